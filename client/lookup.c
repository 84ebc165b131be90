/* SPDX-License-Identifier: Apache-2.0 */
/* Match and release through shared memory: no system call, no message.
 *
 * match   find the entry of each key, prefetching ahead; raise the pin word of each slot in our own page; one full fence; read each
 *         entry again.  An entry that is as it was says that the daemon, which tombstones an entry, fences and only then reads pins, has
 *         seen our pin or will see it: the slot is ours to read until we let go.  proto/README.md has the argument.
 * release lower the pin words.
 *
 * Owns nothing: the view's page is written here and nowhere else.  Invariant: page->pinned is the sum of the counts.
 * gcc 12 at -O2 drops prefetches that sit in plain inline functions, so what prefetches is always_inline.
 */
#include <string.h>

#include "client/client.h"

#define LOOKUP_AHEAD 16u
#define LOOKUP_BATCH 256u

/* Of the 12 bits of a count the highest is kvbm__unpin()'s. */
#define PIN_MARK ((SHM_PIN_COUNT_MASK + 1u) / 2u)
#define PIN_MAX (PIN_MARK - 1u)

#define hot static inline __attribute__((always_inline))

struct found {
	const struct shm_entry *at; /* NULL: absent */
	uint64_t where; /* generation and slot, the second half of the entry: no other block ever has the same */
};

static inline uint32_t found_slot(const struct found *f)
{
	return (uint32_t)(f->where >> 32);
}

static inline uint32_t found_generation(const struct found *f)
{
	return (uint32_t)f->where;
}

/* What a look-up needs of a view, in registers: through the pointer it would be read again after every store. */
struct table {
	const struct shm_line *lines;
	uint64_t n_lines, probes, salt[2];
	uint32_t n_slots, key_bytes;
};

hot struct table lookup_table(const struct view *v, uint32_t key_bytes)
{
	return (struct table){ .lines = v->lines,
		               .n_lines = v->n_lines,
		               .probes = v->n_lines < SHM_MAX_PROBE ? v->n_lines : SHM_MAX_PROBE,
		               .salt = { v->salt[0], v->salt[1] },
		               .n_slots = v->n_slots,
		               .key_bytes = key_bytes };
}

hot struct shm_hash lookup_hash(const struct table *t, const uint8_t *key)
{
	struct shm_hash h = shm_hash_key(key, t->key_bytes, t->salt, t->n_lines);

	__builtin_prefetch(&t->lines[h.line], 0, 3);
	return h;
}

hot const struct shm_entry *lookup_find(const struct table *t, struct shm_hash h, uint64_t *ret_where)
{
	uint64_t line = h.line, probes = t->probes;

	while (probes-- > 0) {
		const struct shm_line *l = &t->lines[line];
		bool empty = false;

		for (uint32_t i = 0; i < SHM_LINE_ENTRIES; i++) {
			struct shm_entry e = shm_entry_load(&l->entries[i]);

			if (e.tag == h.tag && e.generation != 0 && e.slot < t->n_slots) {
				*ret_where = shm_entry_where(e);
				return &l->entries[i];
			}
			empty |= e.generation == 0;
		}
		if (empty)
			return NULL;
		if (++line == t->n_lines)
			line = 0;
	}
	return NULL;
}

/* Looks up to LOOKUP_BATCH keys up.  Returns how many of @found are filled: all, or up to the first miss. */
hot uint32_t lookup_batch_of(const struct view *v, const uint8_t *keys, uint32_t n, bool scattered, struct found *found,
                             uint32_t kb)
{
	const struct table t = lookup_table(v, kb);
	struct shm_hash ahead[LOOKUP_AHEAD];

	for (uint32_t i = 0; i < n && i < LOOKUP_AHEAD; i++)
		ahead[i] = lookup_hash(&t, keys + (size_t)i * kb);
	for (uint32_t i = 0; i < n; i++) {
		struct shm_hash h = ahead[i % LOOKUP_AHEAD];

		if (i + LOOKUP_AHEAD < n)
			ahead[i % LOOKUP_AHEAD] = lookup_hash(&t, keys + (size_t)(i + LOOKUP_AHEAD) * kb);
		found[i].at = lookup_find(&t, h, &found[i].where);
		if (found[i].at) {
			__builtin_prefetch(&v->page->pins[found_slot(&found[i])], 1, 3);
			if (v->confirm)
				__builtin_prefetch(&v->records[found_slot(&found[i])], 0, 3);
		} else if (!scattered) {
			return i;
		}
	}
	return n;
}

/* With the length known, a key is two loads and not a call of memcpy. */
static uint32_t lookup_batch(const struct view *v, const uint8_t *keys, uint32_t n, bool scattered, struct found *found)
{
	if (v->key_bytes == 16)
		return lookup_batch_of(v, keys, n, scattered, found, 16);
	if (v->key_bytes == 32)
		return lookup_batch_of(v, keys, n, scattered, found, 32);
	return lookup_batch_of(v, keys, n, scattered, found, v->key_bytes);
}

/* ---- pins ---- */

hot bool pin_raise(const struct view *v, uint32_t slot, uint32_t stamp)
{
	return shm_page_raise(v->page, slot, v->group_shift, stamp, PIN_MAX);
}

hot void pin_lower(const struct view *v, uint32_t slot)
{
	shm_pin_lower(&v->page->pins[slot]);
}

static uint32_t pin_stamp(const struct view *v)
{
	return atomic_load_explicit(&v->shm->clock, memory_order_relaxed) & SHM_STAMP_MASK;
}

static void pinned_add(struct view *v, int64_t n)
{
	uint64_t pinned = atomic_load_explicit(&v->page->pinned, memory_order_relaxed);

	atomic_store_explicit(&v->page->pinned, pinned + (uint64_t)n, memory_order_relaxed);
}

bool kvbm__pin(struct view *v, uint32_t slot)
{
	uint64_t pinned = atomic_load_explicit(&v->page->pinned, memory_order_relaxed);

	if ((v->max_pins && pinned >= v->max_pins) || !pin_raise(v, slot, pin_stamp(v)))
		return false;
	pinned_add(v, 1);
	return true;
}

/* The entry was moved or is gone: find it again, pinned as it already is. */
static __attribute__((noinline)) bool pin_holds_elsewhere(const struct view *v, const uint8_t *key, uint64_t where)
{
	const struct table t = lookup_table(v, v->key_bytes);
	uint64_t now;

	return lookup_find(&t, lookup_hash(&t, key), &now) && now == where;
}

static __attribute__((noinline)) bool pin_key_is(const struct view *v, const uint8_t *key, uint32_t slot)
{
	static const uint8_t zeros[KVBM_KEY_MAX];
	const uint8_t *have = v->records[slot].key;

	return memcmp(have, key, v->key_bytes) == 0 && memcmp(have + v->key_bytes, zeros, KVBM_KEY_MAX - v->key_bytes) == 0;
}

hot bool pin_is_right(const struct view *v, const uint8_t *key, const struct found *f)
{
	if (!shm_entry_is_still(f->at, f->where) && !pin_holds_elsewhere(v, key, f->where))
		return false;
	return !v->confirm || pin_key_is(v, key, found_slot(f));
}

/* Pins @found[0..n) and fills their spans.  Returns how many stay pinned: scattered ones become absent where they do not, others end there. */
static uint32_t pin_batch(const struct view *v, const uint8_t *keys, uint32_t n, bool scattered, struct found *found,
                          struct kvbm_span *ret_spans)
{
	uint32_t stamp = pin_stamp(v), kb = v->key_bytes, kept = 0, i;
	bool live;

	for (i = 0; i < n; i++)
		if (found[i].at && !pin_raise(v, found_slot(&found[i]), stamp))
			found[i].at = NULL; /* held 2,047 times by this session: not once more */
	shm_fence();
	live = shm_page_is_live(v->page); /* else the daemon has ended this session, and nobody reads our pins */
	for (i = 0; i < n; i++) {
		if (found[i].at && live && pin_is_right(v, keys + (size_t)i * kb, &found[i])) {
			kvbm__view_span(v, found_slot(&found[i]), found_generation(&found[i]), &ret_spans[i]);
			kept++;
			continue;
		}
		if (!scattered)
			break;
		if (found[i].at)
			pin_lower(v, found_slot(&found[i]));
		ret_spans[i] = (struct kvbm_span){ .slot = SHM_NO_SLOT };
	}
	for (; i < n; i++)
		if (found[i].at)
			pin_lower(v, found_slot(&found[i]));
	return kept;
}

/* ---- match ---- */

static void lookup_count(struct kvbm_ns *ns, struct view *v, uint32_t n, uint32_t hits)
{
	struct shm_page *page = v->page;

	ns->counters.looked_up += n;
	ns->counters.hits += hits;
	ns->counters.misses += n - hits;
	atomic_store_explicit(&page->looked_up, atomic_load_explicit(&page->looked_up, memory_order_relaxed) + n,
	                      memory_order_relaxed);
	atomic_store_explicit(&page->hits, atomic_load_explicit(&page->hits, memory_order_relaxed) + hits,
	                      memory_order_relaxed);
	atomic_store_explicit(&page->misses, atomic_load_explicit(&page->misses, memory_order_relaxed) + n - hits,
	                      memory_order_relaxed);
}

/* For somebody who only wants to know.  Returns the hits. */
static uint32_t peek_batch(const struct view *v, uint32_t n, const struct found *found, struct kvbm_span *ret_spans)
{
	uint32_t hits = 0;

	for (uint32_t i = 0; i < n; i++) {
		hits += found[i].at != NULL;
		if (!ret_spans)
			continue;
		if (found[i].at)
			kvbm__view_span(v, found_slot(&found[i]), found_generation(&found[i]), &ret_spans[i]);
		else
			ret_spans[i] = (struct kvbm_span){ .slot = SHM_NO_SLOT };
	}
	return hits;
}

int kvbm__lookup(struct kvbm_ns *ns, const uint8_t *keys, uint32_t n, unsigned flags, struct kvbm_span *ret_spans)
{
	bool scattered = flags & KVBM_SCATTERED, peek = flags & KVBM_PEEK;
	struct found found[LOOKUP_BATCH];
	struct view *v = ns->view;
	uint32_t hits = 0, done = 0;

	while (done < n) {
		uint32_t batch = n - done < LOOKUP_BATCH ? n - done : LOOKUP_BATCH, got, kept;
		const uint8_t *at = keys + (size_t)done * v->key_bytes;
		struct kvbm_span *spans = ret_spans ? ret_spans + done : NULL;

		got = lookup_batch(v, at, batch, scattered, found);
		kept = peek ? peek_batch(v, got, found, spans) : pin_batch(v, at, got, scattered, found, spans);
		hits += kept;
		done += batch;
		if (!scattered && kept < batch)
			break;
	}
	if (!peek) {
		pinned_add(v, hits);
		lookup_count(ns, v, n, hits);
	}
	return (int)hits;
}

/* ---- release ---- */

/* Lowers a pin but leaves it marked, which the daemon reads as held, until the whole call is known to be right. */
static bool unpin_mark(const struct view *v, uint32_t slot)
{
	uint32_t word = atomic_load_explicit(&v->page->pins[slot], memory_order_relaxed);

	if ((word & PIN_MAX) == 0)
		return false;
	atomic_store_explicit(&v->page->pins[slot], (word - 1) | PIN_MARK, memory_order_relaxed);
	return true;
}

/* Takes the marks off @spans[0..n); @undo: their pins are as they were. */
static void unpin_settle(struct kvbm_ns *ns, const struct kvbm_span *spans, uint32_t n, bool undo)
{
	for (uint32_t i = 0; i < n; i++) {
		struct view *v = kvbm__view_of(ns, &spans[i]);
		_Atomic uint32_t *pin = &v->page->pins[spans[i].slot];
		uint32_t word = atomic_load_explicit(pin, memory_order_relaxed);

		/* Release: what was read under the pin was read before. */
		if (undo)
			atomic_store_explicit(pin, word + 1, memory_order_relaxed);
		else
			atomic_store_explicit(pin, word & ~PIN_MARK, memory_order_release);
	}
	for (uint32_t i = 0; undo && i < n; i++) {
		struct view *v = kvbm__view_of(ns, &spans[i]);
		_Atomic uint32_t *pin = &v->page->pins[spans[i].slot];

		atomic_store_explicit(pin, atomic_load_explicit(pin, memory_order_relaxed) & ~PIN_MARK,
		                      memory_order_relaxed);
	}
}

/* Counts what was let go.  True: some of it in retired views. */
static bool unpin_count(struct kvbm_ns *ns, const struct kvbm_span *spans, uint32_t n)
{
	uint32_t old = 0;

	for (uint32_t i = 0; i < n && ns->retired; i++) {
		struct view *v = kvbm__view_of(ns, &spans[i]);

		if (!v->retired)
			continue;
		v->regions[kvbm__view_region(v, spans[i].slot)].held--;
		pinned_add(v, -1);
		old++;
	}
	if (old < n)
		pinned_add(ns->view, -(int64_t)(n - old));
	return old > 0;
}

/* The generation tells a span of an earlier block of that slot from one of the block we hold.  Where nobody keeps our blocks any more the
 * slot may hold another by now, and our pin of it is of the span all the same. */
static bool unpin_is_ours(const struct view *v, const struct kvbm_span *s)
{
	return atomic_load_explicit(&v->records[s->slot].generation, memory_order_relaxed) == s->generation ||
	       v->retired || !shm_page_is_live(v->page);
}

int kvbm__unpin(struct kvbm_ns *ns, const struct kvbm_span *spans, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		const struct kvbm_span *s = &spans[i];
		struct view *v = kvbm__view_of(ns, s);

		if (i + LOOKUP_AHEAD < n && ns->view && spans[i + LOOKUP_AHEAD].slot < ns->view->n_slots)
			__builtin_prefetch(&ns->view->records[spans[i + LOOKUP_AHEAD].slot].generation, 0, 3);
		if (!v || !unpin_is_ours(v, s) || !unpin_mark(v, s->slot)) {
			unpin_settle(ns, spans, i, true);
			return -KVBM_E_NOTHELD;
		}
	}
	unpin_settle(ns, spans, n, false);
	if (unpin_count(ns, spans, n))
		kvbm__view_sweep(ns);
	return (int)n;
}
