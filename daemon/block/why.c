/* The memory behind `why`: a ring of the last notes and a hash of their fingerprints over it.  A fingerprint has at most one note; a
 * newer one takes its place.  Notes are advice for people: two keys with equal 64-bit fingerprints share one. */
#include "block/why.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#define WHY_NONE UINT32_MAX

struct why_note {
	uint64_t fingerprint, at_ns;
	uint32_t misses, next; /* next in its chain */
	uint8_t reason, used;
};

struct why {
	uint32_t n, mask, cursor;
	uint64_t oldest_ns;
	struct why_note *notes; /* owns */
	uint32_t *heads;        /* owns; mask + 1 */
};

int why_new(uint32_t entries, struct why **ret_why)
{
	struct why *w = calloc(1, sizeof(*w));
	uint32_t heads = 1;

	if (!w)
		return -ENOMEM;
	while (heads < entries)
		heads *= 2;
	w->n = entries;
	w->mask = heads - 1;
	w->notes = calloc(entries ? entries : 1, sizeof(*w->notes));
	w->heads = malloc(heads * sizeof(*w->heads));
	if (!w->notes || !w->heads) {
		why_free(w);
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < heads; i++)
		w->heads[i] = WHY_NONE;
	*ret_why = w;
	return 0;
}

struct why *why_free(struct why *w)
{
	if (w) {
		free(w->notes);
		free(w->heads);
		free(w);
	}
	return NULL;
}

static struct why_note *why_find(const struct why *w, uint64_t fp)
{
	for (uint32_t i = w->heads[fp & w->mask]; i != WHY_NONE; i = w->notes[i].next)
		if (w->notes[i].fingerprint == fp)
			return &w->notes[i];
	return NULL;
}

static void why_unlink(struct why *w, uint32_t i)
{
	uint32_t *p = &w->heads[w->notes[i].fingerprint & w->mask];

	while (*p != i) {
		assert(*p != WHY_NONE);
		p = &w->notes[*p].next;
	}
	*p = w->notes[i].next;
}

static struct why_note *why_make(struct why *w, uint64_t fp, uint64_t now_ns)
{
	uint32_t i = w->cursor;
	struct why_note *note = &w->notes[i];

	w->cursor = (i + 1) % w->n;
	if (note->used) {
		if (note->at_ns > w->oldest_ns) /* it may have been renewed in its old place */
			w->oldest_ns = note->at_ns;
		why_unlink(w, i);
	}
	*note = (struct why_note){ .fingerprint = fp,
		                   .at_ns = now_ns,
		                   .used = 1,
		                   .reason = WHY_NEVER_STORED,
		                   .next = w->heads[fp & w->mask] };
	w->heads[fp & w->mask] = i;
	return note;
}

void why_note(struct why *w, uint64_t fp, enum why_reason reason, uint64_t now_ns)
{
	struct why_note *note;

	assert(reason < WHY_N);
	if (w->n == 0)
		return;
	note = why_find(w, fp);
	if (!note)
		note = why_make(w, fp, now_ns);
	note->reason = (uint8_t)reason;
	note->at_ns = now_ns;
	note->misses = 0;
}

void why_miss(struct why *w, uint64_t fp, uint64_t now_ns)
{
	struct why_note *note;

	if (w->n == 0)
		return;
	note = why_find(w, fp);
	if (!note)
		note = why_make(w, fp, now_ns);
	note->misses++;
}

void why_ask(const struct why *w, uint64_t fp, uint64_t now_ns, struct why_answer *ret_answer)
{
	const struct why_note *note = why_find(w, fp);

	*ret_answer = (struct why_answer){ .reason = WHY_NEVER_STORED, .memory_ns = w->n ? now_ns - w->oldest_ns : 0 };
	if (note) {
		ret_answer->reason = note->reason;
		ret_answer->ago_ns = note->reason == WHY_NEVER_STORED ? 0 : now_ns - note->at_ns;
		ret_answer->misses = note->misses;
	}
}

const char *why_text(enum why_reason reason)
{
	static const char *const text[WHY_N] = {
		[WHY_PRESENT] = "present",
		[WHY_NEVER_STORED] = "never stored",
		[WHY_DROPPED] = "dropped from host memory to make room",
		[WHY_FLUSHED] = "flushed or dropped by an administrator",
		[WHY_REBALANCED] = "dropped: its memory went to a namespace below its guaranteed share",
		[WHY_RELEASED] = "dropped first: its holder had said that it would not be used again",
		[WHY_ABORTED] = "reserved but never committed: the writer died, gave up or missed its deadline",
		[WHY_OVER_QUOTA] = "refused: the writer was over its quota",
		[WHY_NO_SPACE] = "refused: nothing could be dropped for it",
		[WHY_DROPPED_LOWER] = "dropped from the tier below host memory to make room",
		[WHY_TIER_FAILED] = "lost: the tier below could not read it, or read something else",
	};

	assert(reason < WHY_N);
	return text[reason];
}
