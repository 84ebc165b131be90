/* reference.h: exact leaf-LRU in the plainest way, to compare the daemon's policy with.
 *
 * One list in order of use.  A request's blocks are used tail first, so a parent is always more recent than its children, and the coldest
 * block of all is always a leaf: dropping from the cold end of the list is leaf-LRU.
 */
#ifndef TESTS_KVBMCTL_REFERENCE_H
#define TESTS_KVBMCTL_REFERENCE_H

#include <check.h>
#include <stdbool.h>
#include <stdlib.h>

#include "client/kvbmctl/requests.h"

#define REFERENCE_END UINT32_MAX

struct reference {
	uint32_t *newer, *older; /* by number */
	bool *present;
	uint32_t newest, oldest, n;
};

static inline void reference_unlink(struct reference *l, uint32_t x)
{
	if (l->newer[x] == REFERENCE_END)
		l->newest = l->older[x];
	else
		l->older[l->newer[x]] = l->older[x];
	if (l->older[x] == REFERENCE_END)
		l->oldest = l->newer[x];
	else
		l->newer[l->older[x]] = l->newer[x];
	l->present[x] = false;
	l->n--;
}

static inline void reference_use(struct reference *l, uint32_t x)
{
	if (l->present[x])
		reference_unlink(l, x);
	l->older[x] = l->newest;
	l->newer[x] = REFERENCE_END;
	if (l->newest != REFERENCE_END)
		l->newer[l->newest] = x;
	else
		l->oldest = x;
	l->newest = x;
	l->present[x] = true;
	l->n++;
}

/* Hits of @rs with room for @capacity blocks. */
static inline uint64_t reference_hits(const struct requests *rs, const struct numbering *numbering, uint32_t capacity)
{
	struct reference l = { .newest = REFERENCE_END, .oldest = REFERENCE_END };
	uint64_t hits = 0;

	l.newer = calloc(numbering->n_distinct, sizeof(uint32_t));
	l.older = calloc(numbering->n_distinct, sizeof(uint32_t));
	l.present = calloc(numbering->n_distinct, sizeof(bool));
	ck_assert(l.newer && l.older && l.present);
	for (uint32_t i = 0; i < rs->n; i++) {
		const uint32_t *number = numbering->number + rs->list[i].first;
		uint32_t h = 0;

		while (h < rs->list[i].n && l.present[number[h]])
			h++;
		hits += h;
		for (uint32_t k = rs->list[i].n; k-- > 0;)
			reference_use(&l, number[k]);
		while (l.n > capacity)
			reference_unlink(&l, l.oldest);
	}
	free(l.newer);
	free(l.older);
	free(l.present);
	return hits;
}

#endif
