/* SPDX-License-Identifier: Apache-2.0 */
/* onboard_fixture.h: the same for bringing blocks up. */
#ifndef TESTS_UNIT_MOVE_ONBOARD_FIXTURE_H
#define TESTS_UNIT_MOVE_ONBOARD_FIXTURE_H

#include "tests/unit/move/lower_fixture.h"

struct low_onboard {
	struct store_onboard o;
	uint64_t keys[FIX_MAX];
	uint8_t status[FIX_MAX];
	uint32_t slots[FIX_MAX], generations[FIX_MAX];
	struct onboard_want wants[FIX_MAX];
	unsigned done;
};

static inline void low_on_done(struct store_onboard *o)
{
	container_of(o, struct low_onboard, o)->done++;
}

static inline void low_onboard_init(struct low *l, struct low_onboard *b, uint64_t first, uint32_t n)
{
	memset(b, 0, sizeof(*b));
	fix_keys(first, n, b->keys);
	b->o = (struct store_onboard){ .keys = (const uint8_t *)b->keys,
		                       .n = n,
		                       .hold = true,
		                       .now_ns = l->f.now_ns,
		                       .deadline_ns = l->f.now_ns + 1000,
		                       .status = b->status,
		                       .slots = b->slots,
		                       .generations = b->generations,
		                       .wants = b->wants,
		                       .done = low_on_done };
}

static inline int low_onboard(struct low *l, struct holder *h, struct low_onboard *b, uint64_t first, uint32_t n)
{
	int r;

	low_onboard_init(l, b, first, n);
	r = store_onboard(h, &b->o);
	store_check(l->f.store);
	return r;
}

/* What it brought is right, held as often as it says, and let go. */
static inline void low_onboard_end(struct low *l, struct holder *h, struct low_onboard *b)
{
	ck_assert(b->o.finished);
	for (uint32_t i = 0; i < b->o.n; i++) {
		ck_assert_uint_ne(b->status[i], STORE_ONBOARD_PENDING);
		ck_assert(i < b->o.hits ? b->status[i] == STORE_ONBOARD_DONE : b->status[i] != STORE_ONBOARD_DONE);
		if (i < b->o.hits)
			low_verify(h, b->slots[i], b->keys[i]);
		else
			ck_assert_uint_eq(b->slots[i], STORE_NO_SLOT);
	}
	if (b->o.hold)
		ck_assert_int_eq(store_release(h, b->slots, b->generations, b->o.hits), 0);
	store_check(l->f.store);
}

/* Puts @n blocks and sees to it that they are below and not in host memory. */
static inline void low_put_below(struct low *l, struct holder *h, uint64_t first, uint32_t n)
{
	uint32_t slots = 4 * (uint32_t)l->mib;

	low_put(l, h, first, n);
	low_put(l, h, 1000000, slots);
	low_settle(l);
	ck_assert_uint_eq(low_count(h, first, n, STORE_IN_G3), n);
	ck_assert_uint_eq(low_count(h, first, n, STORE_IN_G2), 0);
}

#endif
