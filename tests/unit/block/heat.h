/* SPDX-License-Identifier: Apache-2.0 */
/* heat.h: an order over an array of marks, and a few words to move blocks through it. */
#ifndef TESTS_UNIT_BLOCK_HEAT_H
#define TESTS_UNIT_BLOCK_HEAT_H

#include "block/heat.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/rng.h"
#include "tests/unit/block/fixture.h"

#define SLOTS 70000u /* more chunks than a slab has */

static struct heat heat;
static struct heat_mark marks[SLOTS];
static uint32_t uses[SLOTS], parents[SLOTS], children[SLOTS];
static bool helds[SLOTS], used[SLOTS];

static inline struct heat_mark *ops_mark(void *ctx, uint32_t slot)
{
	assert(ctx == marks && slot < SLOTS);
	return &marks[slot];
}

static inline bool ops_held(void *ctx, uint32_t slot, uint32_t *touch)
{
	(void)ctx;
	if (used[slot] && (int32_t)(uses[slot] - *touch) > 0)
		*touch = uses[slot];
	return helds[slot];
}

static inline bool ops_has_children(void *ctx, uint32_t slot)
{
	(void)ctx;
	return children[slot] > 0;
}

static inline void ops_prefetch(void *ctx, uint32_t slot, bool near)
{
	(void)ctx;
	(void)near;
	assert(slot < SLOTS);
}

static const struct heat_ops ops = {
	.mark = ops_mark, .held = ops_held, .has_children = ops_has_children, .prefetch = ops_prefetch
};

static inline void open_heat(uint32_t n_slots, uint32_t grace)
{
	ck_assert_uint_le(n_slots, SLOTS);
	memset(marks, 0, n_slots * sizeof(*marks));
	memset(used, 0, n_slots * sizeof(*used));
	memset(children, 0, n_slots * sizeof(*children));
	memset(helds, 0, n_slots * sizeof(*helds));
	ck_assert_int_eq(heat_init(&heat, n_slots, grace, &ops, marks), 0);
}

static inline void setup(void)
{
	open_heat(100, 4);
}

static inline void teardown(void)
{
	heat_deinit(&heat);
	ck_assert_ptr_null(heat.slabs);
}

static inline void tick(void)
{
	heat.placed = heat.per_tick;
	heat_tick(&heat);
}

/* A block comes, as block_register() and store_commit() have it; @parent must be there. */
static inline void come(uint32_t slot, uint32_t parent)
{
	marks[slot] = (struct heat_mark){ .touch = heat.clock };
	used[slot] = false;
	parents[slot] = parent;
	if (parent != NS_NONE)
		children[parent]++;
	heat_place(&heat, slot);
}

static inline void use(uint32_t slot)
{
	used[slot] = true;
	uses[slot] = heat.clock;
}

static inline void go(uint32_t slot)
{
	uint32_t parent = parents[slot];

	heat_forget(&heat, slot);
	if (parent != NS_NONE && --children[parent] == 0)
		heat_unpark(&heat, parent);
}

static inline uint32_t pick(void)
{
	uint64_t budget = 10000;
	uint32_t slot;

	return heat_pick(&heat, &slot, &budget) ? slot : NS_NONE;
}

/* Picks and drops.  Check writes a message for each of its assertions: in loops plain ones are faster. */
static inline uint32_t drop(void)
{
	uint32_t slot = pick();

	if (slot != NS_NONE) {
		assert(marks[slot].where == HEAT_NOWHERE);
		go(slot);
	}
	return slot;
}

static inline void ck_empty(void)
{
	ck_assert_uint_eq(drop(), NS_NONE);
	ck_assert_uint_eq(heat.in_order, 0);
	ck_assert_uint_eq(heat.parked, 0);
	ck_assert_uint_eq(heat.grace_live, 0);
}

#endif
