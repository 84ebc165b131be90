/* SPDX-License-Identifier: Apache-2.0 */
/* Owns its list for the time of one call. */
#include "tests/lib/leaf_lru.h"

#include <stdlib.h>

#define LEAF_LRU_END UINT32_MAX

struct leaf_lru {
	uint32_t *newer, *older; /* by number */
	bool *present;
	uint32_t newest, oldest, n;
};

static void leaf_lru_unlink(struct leaf_lru *l, uint32_t x)
{
	if (l->newer[x] == LEAF_LRU_END)
		l->newest = l->older[x];
	else
		l->older[l->newer[x]] = l->older[x];
	if (l->older[x] == LEAF_LRU_END)
		l->oldest = l->newer[x];
	else
		l->newer[l->older[x]] = l->newer[x];
	l->present[x] = false;
	l->n--;
}

static void leaf_lru_use(struct leaf_lru *l, uint32_t x)
{
	if (l->present[x])
		leaf_lru_unlink(l, x);
	l->older[x] = l->newest;
	l->newer[x] = LEAF_LRU_END;
	if (l->newest != LEAF_LRU_END)
		l->newer[l->newest] = x;
	else
		l->oldest = x;
	l->newest = x;
	l->present[x] = true;
	l->n++;
}

static uint32_t leaf_lru_request(struct leaf_lru *l, const uint32_t *number, uint32_t n)
{
	uint32_t hits = 0;

	while (hits < n && l->present[number[hits]])
		hits++;
	for (uint32_t k = n; k-- > 0;)
		leaf_lru_use(l, number[k]);
	return hits;
}

bool leaf_lru_hits(const struct requests *rs, const struct numbering *numbering, uint32_t capacity, uint64_t *ret_hits)
{
	struct leaf_lru l = { .newest = LEAF_LRU_END, .oldest = LEAF_LRU_END };
	bool ok;

	l.newer = calloc(numbering->n_distinct, sizeof(*l.newer));
	l.older = calloc(numbering->n_distinct, sizeof(*l.older));
	l.present = calloc(numbering->n_distinct, sizeof(*l.present));
	ok = l.newer && l.older && l.present;
	if (ok)
		*ret_hits = 0;
	for (uint32_t i = 0; ok && i < rs->n; i++) {
		*ret_hits += leaf_lru_request(&l, numbering->number + rs->list[i].first, rs->list[i].n);
		while (l.n > capacity)
			leaf_lru_unlink(&l, l.oldest);
	}
	free(l.newer);
	free(l.older);
	free(l.present);
	return ok;
}
