/* Copies below host memory.  Owns their records, index and order; does no I/O and knows no tier.
 *
 * Life of a slot
 *   0 FREE   1 WRITING   2 PRESENT   3 STUCK   4 RETIRED
 *   0->1 lower_take, lower_take_at   1->2 lower_register   1->0, 1->3 lower_abort   2->0 lower_forget   3->0 lower_unstick
 *   4 in the place of 0 after lower_bad() twice   4->0 lower_area_remove
 * Invariant: n_free + n_writing + n_present + n_stuck + n_retired = n_slots; the index has exactly the PRESENT ones; each of them is in the
 * order, or in the hands of lower_pick()'s caller.
 */
#include "block/lower.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

/* The index has entries for that part more than others of that many slots: five in eight are in use, not three in four.  With three in four one insertion in a
 * million finds no room within SHM_MAX_PROBE lines, and a block that was just written is lost; here no table of clients has to stay small. */
#define INDEX_SPARE 5u

static struct heat_mark *lower_mark(void *ctx, uint32_t slot)
{
	return &lower_at(ctx, slot)->heat;
}

static bool lower_held(void *ctx, uint32_t slot, uint32_t *touch)
{
	const struct lower *l = ctx;
	const struct lower_copy *c = lower_at(l, slot);
	uint32_t twin;

	if (l->twin && l->twin(l->ctx, c->key, &twin) && (int32_t)(twin - *touch) > 0)
		*touch = twin;
	return c->busy > 0;
}

static bool lower_has_children(void *ctx, uint32_t slot)
{
	(void)ctx;
	(void)slot;
	return false;
}

static void lower_prefetch(void *ctx, uint32_t slot, bool near)
{
	const struct lower *l = ctx;

	if (!near)
		__builtin_prefetch(lower_at(l, slot));
	else
		index_prefetch(&l->index, index_hash(&l->index, lower_at(l, slot)->key));
}

static const struct heat_ops lower_heat_ops = {
	.mark = lower_mark,
	.held = lower_held,
	.has_children = lower_has_children,
	.prefetch = lower_prefetch,
};

static void *lower_map(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	(void)madvise(p, size, MADV_HUGEPAGE);
	return p;
}

int lower_init(struct lower *l, const struct lower_config *c)
{
	uint64_t slots;

	assert(c->n_areas > 0 && c->area_slots > 0 && c->max_slots > 0);
	memset(l, 0, sizeof(*l));
	while (1ull << l->shift < c->area_slots)
		l->shift++;
	slots = (uint64_t)c->n_areas << l->shift;
	if (slots > UINT32_MAX / 2)
		return LOWER_E_BIG;
	l->n_areas = c->n_areas;
	l->max_slots = c->max_slots;
	l->key_bytes = c->key_bytes;
	l->twin = c->twin;
	l->ctx = c->ctx;
	l->stride = (sizeof(struct lower_copy) + c->key_bytes + 7) & ~(size_t)7;
	l->copies_bytes = slots * l->stride;
	l->index.n_lines = index_lines_for(c->max_slots + (uint64_t)c->max_slots / INDEX_SPARE);
	l->lines_bytes = l->index.n_lines * sizeof(struct shm_line);
	l->copies = lower_map(l->copies_bytes);
	l->lines = lower_map(l->lines_bytes);
	l->behind = calloc(1, index_behind_bytes(l->index.n_lines));
	l->areas = calloc(c->n_areas, sizeof(*l->areas));
	if (!l->copies || !l->lines || !l->behind || !l->areas ||
	    heat_init(&l->heat, c->max_slots, 0, &lower_heat_ops, l) < 0) {
		lower_deinit(l);
		return -ENOMEM;
	}
	l->index.lines = l->lines;
	l->index.behind = l->behind;
	l->index.keys = l->copies + offsetof(struct lower_copy, key);
	l->index.key_stride = l->stride;
	l->index.key_bytes = c->key_bytes;
	l->index.salt[0] = c->salt[0];
	l->index.salt[1] = c->salt[1];
	return 0;
}

void lower_deinit(struct lower *l)
{
	assert(l->n_writing == 0);
	heat_deinit(&l->heat);
	if (l->copies)
		munmap(l->copies, l->copies_bytes);
	if (l->lines)
		munmap(l->lines, l->lines_bytes);
	free(l->behind);
	free(l->areas);
	memset(l, 0, sizeof(*l));
}

/* ---- areas ---- */

void lower_area_add(struct lower *l, uint32_t area, uint32_t n_slots)
{
	struct lower_area *a = &l->areas[area];

	assert(area < l->n_areas && a->n_slots == 0 && n_slots > 0 && n_slots <= 1u << l->shift);
	if (l->n_slots + n_slots > l->max_slots) /* what index and order are sized for */
		n_slots = l->max_slots - l->n_slots;
	if (n_slots == 0)
		return;
	*a = (struct lower_area){ .n_slots = n_slots, .n_free = n_slots };
	l->n_slots += n_slots;
	l->n_free += n_slots;
}

void lower_area_remove(struct lower *l, uint32_t area)
{
	struct lower_area *a = &l->areas[area];

	assert(a->n_free + a->n_retired == a->n_slots);
	l->n_slots -= a->n_slots;
	l->n_free -= a->n_free;
	l->n_retired -= a->n_retired;
	for (uint32_t p = 0; a->bad && p < a->n_slots; p++) {
		lower_at(l, (area << l->shift) + p)->state = LOWER_FREE;
		lower_at(l, (area << l->shift) + p)->bad = 0;
	}
	*a = (struct lower_area){ 0 };
}

/* ---- slots ---- */

static void lower_used(struct lower *l, struct lower_copy *c)
{
	assert(c->state == LOWER_FREE && c->busy == 0);
	c->state = LOWER_WRITING;
	c->heat = (struct heat_mark){ 0 };
	if (++c->generation == UINT32_MAX || c->generation == 0)
		c->generation = 1;
	l->n_free--;
	l->n_writing++;
}

uint32_t lower_take(struct lower *l)
{
	assert(l->n_free > 0);
	for (uint32_t i = 0; i < l->n_areas; i++) {
		uint32_t area = (l->area_next + i) % l->n_areas;
		struct lower_area *a = &l->areas[area];
		uint32_t slot;

		if (a->n_free == 0 || a->draining)
			continue;
		if (a->free_first) {
			slot = (area << l->shift) + a->free_first - 1;
			a->free_first = lower_at(l, slot)->link;
			a->free_last = a->free_first ? a->free_last : 0;
		} else {
			/* What recovery took lies behind fresh as well. */
			while (lower_at(l, (area << l->shift) + a->fresh)->state != LOWER_FREE)
				a->fresh++;
			slot = (area << l->shift) + a->fresh++;
			assert(a->fresh <= a->n_slots);
		}
		l->area_next = area;
		a->n_free--;
		lower_used(l, lower_at(l, slot));
		return slot;
	}
	return LOWER_NONE;
}

bool lower_take_at(struct lower *l, uint32_t slot)
{
	struct lower_area *a = &l->areas[lower_area_of(l, slot)];

	if (lower_area_of(l, slot) >= l->n_areas || lower_place_of(l, slot) >= a->n_slots ||
	    lower_at(l, slot)->state != LOWER_FREE)
		return false;
	assert(a->fresh == 0 && a->free_first == 0);
	a->n_free--;
	lower_used(l, lower_at(l, slot));
	return true;
}

static void lower_put_back(struct lower *l, uint32_t slot)
{
	struct lower_area *a = &l->areas[lower_area_of(l, slot)];
	struct lower_copy *c = lower_at(l, slot);

	if (c->bad >= LOWER_BAD_MAX) {
		c->state = LOWER_RETIRED;
		l->n_retired++;
		a->n_retired++;
		return;
	}
	c->state = LOWER_FREE;
	l->n_free++;
	a->n_free++;
	/* A place that lower_take() has not come to yet is found there; the list is for those behind it. */
	if (lower_place_of(l, slot) >= a->fresh)
		return;
	c->link = 0;
	if (a->free_last)
		lower_at(l, slot - lower_place_of(l, slot) + a->free_last - 1)->link = lower_place_of(l, slot) + 1;
	else
		a->free_first = lower_place_of(l, slot) + 1;
	a->free_last = lower_place_of(l, slot) + 1;
}

uint32_t lower_find(const struct lower *l, const uint8_t *key)
{
	struct shm_entry *e = index_find(&l->index, key, index_hash(&l->index, key));

	return e ? e->slot : LOWER_NONE;
}

int lower_register(struct lower *l, uint32_t slot, const struct lower_what *what)
{
	struct lower_copy *c = lower_at(l, slot);
	struct shm_hash h = index_hash(&l->index, what->key);

	assert(c->state == LOWER_WRITING);
	if (index_find(&l->index, what->key, h)) {
		lower_abort(l, slot, false);
		return LOWER_E_EXISTS;
	}
	memcpy(c->key, what->key, l->key_bytes);
	c->parent = what->parent;
	c->sum = what->sum;
	if (index_insert(&l->index, h, c->generation, slot) != 0) {
		lower_abort(l, slot, false);
		return LOWER_E_FULL;
	}
	c->state = LOWER_PRESENT;
	c->heat.touch = what->touch;
	l->n_writing--;
	l->n_present++;
	heat_place(&l->heat, slot);
	return 0;
}

void lower_abort(struct lower *l, uint32_t slot, bool stuck)
{
	struct lower_copy *c = lower_at(l, slot);

	assert(c->state == LOWER_WRITING);
	l->n_writing--;
	if (stuck) {
		c->state = LOWER_STUCK;
		l->n_stuck++;
	} else {
		lower_put_back(l, slot);
	}
}

void lower_bad(struct lower *l, uint32_t slot)
{
	struct lower_copy *c = lower_at(l, slot);

	assert(c->state == LOWER_WRITING || c->state == LOWER_PRESENT);
	c->bad += c->bad < LOWER_BAD_MAX;
	l->areas[lower_area_of(l, slot)].bad = true;
}

void lower_unstick(struct lower *l, uint32_t slot)
{
	assert(lower_at(l, slot)->state == LOWER_STUCK);
	l->n_stuck--;
	lower_put_back(l, slot);
}

void lower_forget(struct lower *l, uint32_t slot)
{
	struct lower_copy *c = lower_at(l, slot);
	struct shm_entry *e = index_find(&l->index, c->key, index_hash(&l->index, c->key));

	assert(c->state == LOWER_PRESENT && c->busy == 0 && e && e->slot == slot);
	index_tombstone(&l->index, e);
	index_remove(&l->index, e);
	heat_forget(&l->heat, slot);
	l->n_present--;
	l->counts.dropped++;
	lower_put_back(l, slot);
}

uint32_t lower_pick(struct lower *l, uint32_t clock, uint64_t *budget)
{
	uint32_t slot;

	heat_follow(&l->heat, clock);
	return heat_pick(&l->heat, &slot, budget) ? slot : LOWER_NONE;
}

void lower_touch(struct lower *l, uint32_t slot, uint32_t tick)
{
	struct lower_copy *c = lower_at(l, slot);

	heat_follow(&l->heat, tick);
	if ((int32_t)(tick - c->heat.touch) > 0)
		c->heat.touch = tick;
}

/* ---- reports ---- */

uint64_t lower_bytes(const struct lower *l)
{
	return l->n_present * (uint64_t)l->stride + l->lines_bytes + index_behind_bytes(l->index.n_lines) +
	       heat_bytes(&l->heat);
}

void lower_check(const struct lower *l)
{
	uint32_t count[5] = { 0 }, slots = 0, unused = 0;

	for (uint32_t a = 0; a < l->n_areas; a++) {
		uint32_t area_free = 0, area_retired = 0;

		for (uint32_t p = 0; p < l->areas[a].n_slots; p++) {
			uint32_t slot = (a << l->shift) + p;
			const struct lower_copy *c = lower_at(l, slot);

			assert(c->state <= LOWER_RETIRED);
			count[c->state]++;
			area_free += c->state == LOWER_FREE;
			area_retired += c->state == LOWER_RETIRED;
			if (c->state == LOWER_PRESENT)
				assert(lower_find(l, c->key) == slot && c->generation != 0);
			else
				assert(c->busy == 0);
			unused += c->state == LOWER_PRESENT && c->heat.where == HEAT_NOWHERE;
		}
		assert(area_free == l->areas[a].n_free && area_retired == l->areas[a].n_retired);
		slots += l->areas[a].n_slots;
	}
	assert(slots == l->n_slots && count[LOWER_FREE] == l->n_free && count[LOWER_WRITING] == l->n_writing);
	assert(count[LOWER_PRESENT] == l->n_present && count[LOWER_STUCK] == l->n_stuck &&
	       count[LOWER_RETIRED] == l->n_retired);
	assert(l->index.used == l->n_present && unused == 0);
}
