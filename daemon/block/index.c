/* The index: see index.h for its invariant.  Looks at keys where they lie, to compare them.  How far an entry lies behind its home line is kept aside, so that
 * mending a chain reads neighbours only.  A tombstone names its slot, so that it can be found again. */
#include "block/index.h"

#include <assert.h>

/* gcc 12 at -O2 drops prefetches that sit in plain inline functions. */
#define hot static inline __attribute__((always_inline))

#define INDEX_EMPTY ((struct shm_entry){ 0 })

uint64_t index_lines_for(uint64_t n_slots)
{
	return n_slots / 3 + 4;
}

static uint8_t *index_behind(const struct index *ix, const struct shm_entry *e)
{
	return &ix->behind[e - &ix->lines[0].entries[0]];
}

static bool index_is_tombstone(const struct shm_entry *e)
{
	return e->generation == UINT32_MAX;
}

static uint64_t index_probe_max(const struct index *ix)
{
	return ix->n_lines < SHM_MAX_PROBE ? ix->n_lines : SHM_MAX_PROBE;
}

static uint64_t index_wrap(const struct index *ix, uint64_t line)
{
	return line < ix->n_lines ? line : line - ix->n_lines;
}

static bool index_key_is(const struct index *ix, uint32_t slot, const uint8_t *key)
{
	return memcmp(ix->keys + slot * ix->key_stride, key, ix->key_bytes) == 0;
}

struct shm_entry *index_find(const struct index *ix, const uint8_t *key, struct shm_hash h)
{
	uint64_t max = index_probe_max(ix), at = h.line;

	assert(h.line < ix->n_lines);
	while (max-- > 0) {
		struct shm_entry *e = ix->lines[at].entries;
		bool empty = false;

		/* Tags of tombstones and of what is empty are no key's. */
#pragma GCC unroll 4
		for (uint32_t i = 0; i < SHM_LINE_ENTRIES; i++) {
			if (e[i].tag == h.tag && index_key_is(ix, e[i].slot, key))
				return &e[i];
			empty |= e[i].generation == 0;
		}
		if (empty)
			return NULL;
		if (++at == ix->n_lines)
			at = 0;
	}
	return NULL;
}

/* ---- many at once ---- */

/* The first entry of that fingerprint, whatever its key. */
hot struct shm_entry *index_find_tag(struct shm_line *lines, uint64_t n_lines, uint64_t max, struct shm_hash h)
{
	uint64_t at = h.line;

	while (max-- > 0) {
		struct shm_line *line = &lines[at];
		bool empty = false;

		for (uint32_t i = 0; i < SHM_LINE_ENTRIES; i++) {
			struct shm_entry *e = &line->entries[i];

			if (e->tag == h.tag && e->generation != 0 && e->slot != SHM_NO_SLOT)
				return e;
			empty |= e->generation == 0;
		}
		if (empty)
			return NULL;
		if (++at == n_lines)
			at = 0;
	}
	return NULL;
}

hot uint32_t index_find_batch_of(const struct index *ix, const uint8_t *keys, uint32_t n, bool scattered,
                                 struct shm_entry **ret_found, uint32_t kb)
{
	struct shm_line *lines = ix->lines;
	const uint8_t *own = ix->keys;
	const size_t stride = ix->key_stride;
	const uint64_t salt[2] = { ix->salt[0], ix->salt[1] }, n_lines = ix->n_lines, max = index_probe_max(ix);
	struct shm_hash hashes[INDEX_BATCH];

	for (uint32_t i = 0; i < n; i++) {
		hashes[i] = shm_hash_key(keys + (size_t)i * kb, kb, salt, n_lines);
		__builtin_prefetch(&lines[hashes[i].line]);
	}
	for (uint32_t i = 0; i < n; i++) {
		ret_found[i] = index_find_tag(lines, n_lines, max, hashes[i]);
		if (ret_found[i])
			__builtin_prefetch(own + ret_found[i]->slot * stride);
		else if (!scattered)
			n = i;
	}
	for (uint32_t i = 0; i < n; i++) {
		const uint8_t *key = keys + (size_t)i * kb;

		if (!ret_found[i] || memcmp(own + ret_found[i]->slot * stride, key, kb) == 0)
			continue;
		ret_found[i] = index_find(ix, key, hashes[i]); /* two keys of one fingerprint */
		if (!ret_found[i] && !scattered)
			return i;
	}
	return n;
}

uint32_t index_find_batch(const struct index *ix, const uint8_t *keys, uint32_t n, bool scattered,
                          struct shm_entry **ret_found)
{
	assert(n <= INDEX_BATCH);
	/* With its length known a key is loaded and compared without a call. */
	if (ix->key_bytes == 16)
		return index_find_batch_of(ix, keys, n, scattered, ret_found, 16);
	if (ix->key_bytes == 32)
		return index_find_batch_of(ix, keys, n, scattered, ret_found, 32);
	return index_find_batch_of(ix, keys, n, scattered, ret_found, ix->key_bytes);
}

/* ---- changes ---- */

int index_insert(struct index *ix, struct shm_hash h, uint32_t generation, uint32_t slot)
{
	uint64_t max = index_probe_max(ix);

	assert(h.tag != 0 && generation != 0 && generation != UINT32_MAX);
	for (uint64_t p = 0; p < max; p++) {
		struct shm_line *line = &ix->lines[index_wrap(ix, h.line + p)];

		for (uint32_t i = 0; i < SHM_LINE_ENTRIES; i++) {
			if (line->entries[i].generation != 0)
				continue;
			/* The record's stores come first: a reader that sees the entry may read the record. */
			atomic_thread_fence(memory_order_release);
			shm_entry_store(&line->entries[i],
			                (struct shm_entry){ .tag = h.tag, .generation = generation, .slot = slot });
			*index_behind(ix, &line->entries[i]) = (uint8_t)p;
			ix->used++;
			return 0;
		}
	}
	return INDEX_E_FULL;
}

void index_tombstone(struct index *ix, struct shm_entry *e)
{
	struct shm_entry tombstone = SHM_TOMBSTONE;

	assert(e->generation != 0 && !index_is_tombstone(e));
	tombstone.slot = e->slot;
	shm_entry_store(e, tombstone);
	ix->used--;
}

struct shm_entry *index_find_tombstone(const struct index *ix, struct shm_hash h, uint32_t slot)
{
	uint64_t max = index_probe_max(ix);

	/* Also behind a line that was full when it came. */
	for (uint64_t p = 0; p < max; p++) {
		struct shm_line *line = &ix->lines[index_wrap(ix, h.line + p)];

		for (uint32_t i = 0; i < SHM_LINE_ENTRIES; i++)
			if (index_is_tombstone(&line->entries[i]) && line->entries[i].slot == slot)
				return &line->entries[i];
	}
	return NULL;
}

void index_restore(struct index *ix, struct shm_entry *e, struct shm_hash h, uint32_t generation, uint32_t slot)
{
	assert(e && index_is_tombstone(e) && e->slot == slot);
	shm_entry_store(e, (struct shm_entry){ .tag = h.tag, .generation = generation, .slot = slot });
	ix->used++;
}

/* An entry of line @from that may live @back lines earlier: its home is that far back or farther.  NULL: none. */
static struct shm_entry *index_movable(const struct index *ix, uint64_t from, uint64_t back, bool *ret_empty)
{
	struct shm_line *line = &ix->lines[from];

	*ret_empty = false;
	for (uint32_t i = 0; i < SHM_LINE_ENTRIES; i++) {
		struct shm_entry *e = &line->entries[i];
		if (e->generation == 0) {
			*ret_empty = true;
			continue;
		}
		if (!index_is_tombstone(e) && *index_behind(ix, e) >= back)
			return e;
	}
	return NULL;
}

void index_remove(struct index *ix, struct shm_entry *e)
{
	uint64_t max = index_probe_max(ix), back;
	struct shm_entry *hole = e;

	assert(e && index_is_tombstone(e));
	for (;;) {
		uint64_t at = (uint64_t)((struct shm_line *)((uintptr_t)hole & ~(uintptr_t)63) - ix->lines);
		struct shm_line *line = &ix->lines[at];
		struct shm_entry *move = NULL;
		bool empty = false;

		for (uint32_t i = 0; i < SHM_LINE_ENTRIES; i++)
			empty |= line->entries[i].generation == 0;
		/* With an empty entry in its line nothing probes past it. */
		for (back = 1; back < max && !empty && !move; back++)
			move = index_movable(ix, index_wrap(ix, at + back), back, &empty);
		if (!move)
			break;
		*index_behind(ix, hole) = (uint8_t)(*index_behind(ix, move) - (back - 1));
		shm_entry_store(hole, *move);
		atomic_thread_fence(memory_order_release);
		shm_entry_store(move, SHM_TOMBSTONE);
		hole = move;
	}
	shm_entry_store(hole, INDEX_EMPTY);
}
