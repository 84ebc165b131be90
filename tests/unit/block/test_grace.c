/* SPDX-License-Identifier: Apache-2.0 */
/* Unit tests of block/heat.c: blocks released by hint. */
#include "tests/unit/block/heat.h"

START_TEST(released_blocks_go_first)
{
	for (uint32_t i = 0; i < 6; i++) {
		tick();
		come(i, NS_NONE);
	}
	tick();
	heat_release(&heat, 4);
	heat_release(&heat, 2);
	heat_release(&heat, 4); /* once is enough */
	ck_assert_uint_eq(heat.grace_live, 2);
	ck_assert_uint_eq(heat.in_order, 4);
	ck_assert_uint_eq(drop(), 4);
	ck_assert_uint_eq(drop(), 2);
	ck_assert_uint_eq(drop(), 0);
}
END_TEST

START_TEST(a_touch_rescues)
{
	come(0, NS_NONE);
	come(1, NS_NONE);
	heat_release(&heat, 0);
	tick();
	use(0);
	come(2, NS_NONE);
	ck_assert_uint_eq(drop(), 1);
	ck_assert_uint_eq(heat.grace_live, 0);
	ck_assert_uint_eq(marks[0].flags & HEAT_F_RELEASED, 0);
	ck_assert_uint_eq(drop(), 2);
	ck_assert_uint_eq(drop(), 0);
}
END_TEST

/* A use before the release is no reason to stay. */
START_TEST(release_forgets_earlier_uses)
{
	come(0, NS_NONE);
	come(1, NS_NONE);
	tick();
	use(0);
	tick();
	heat_release(&heat, 0);
	ck_assert_uint_eq(drop(), 0);
}
END_TEST

START_TEST(grace_is_bounded)
{
	for (uint32_t i = 0; i < 10; i++)
		come(i, NS_NONE);
	for (uint32_t i = 0; i < 10; i++) {
		heat_release(&heat, i);
		ck_assert_uint_le(heat.grace_live, 4);
	}
	ck_assert_uint_eq(heat.in_order, 6);
	for (uint32_t i = 6; i < 10; i++)
		ck_assert_uint_eq(drop(), i);
	for (uint32_t i = 0; i < 6; i++) /* the oldest went to the cold end */
		ck_assert_uint_eq(drop(), i);
	ck_empty();
}
END_TEST

/* What is over the limit stays colder than blocks that were used before it and not released. */
START_TEST(over_the_limit_is_the_cold_end)
{
	for (uint32_t i = 0; i < 10; i++, tick())
		come(i, NS_NONE);
	for (uint32_t i = 5; i < 10; i++)
		heat_release(&heat, i);
	for (uint32_t i = 6; i < 10; i++)
		ck_assert_uint_eq(drop(), i);
	ck_assert_uint_eq(drop(), 0);
	ck_assert_uint_eq(drop(), 5);
	ck_assert_uint_eq(drop(), 1);
}
END_TEST

START_TEST(forgotten_in_grace)
{
	for (uint32_t i = 0; i < 6; i++)
		come(i, NS_NONE);
	heat_release(&heat, 0);
	heat_release(&heat, 1);
	go(0);
	ck_assert_uint_eq(heat.grace_live, 1);
	for (uint32_t i = 2; i < 6; i++)
		heat_release(&heat, i); /* the stale entry is passed over when the oldest leaves */
	ck_assert_uint_eq(heat.grace_live, 4);
	ck_assert_int_eq(marks[1].where, HEAT_ORDER);
	for (uint32_t i = 2; i < 6; i++)
		ck_assert_uint_eq(drop(), i);
	ck_assert_uint_eq(drop(), 1);
	ck_empty();
}
END_TEST

START_TEST(a_released_block_goes_before_its_children)
{
	come(0, NS_NONE);
	come(1, 0);
	come(2, NS_NONE);
	ck_assert_uint_eq(pick(), 1); /* parks its parent */
	heat_place(&heat, 1);
	heat_release(&heat, 0);
	ck_assert_int_eq(marks[0].where, HEAT_GRACE);
	ck_assert_uint_eq(pick(), 0);
	go(0);
	parents[1] = NS_NONE;
	ck_assert_uint_eq(drop(), 2);
	ck_assert_uint_eq(drop(), 1);
	ck_empty();
}
END_TEST

/* A release while its stamp is of this tick, then a use: that is newer, because the release began a tick. */
START_TEST(a_use_right_after_the_release_rescues)
{
	uint32_t clock;

	come(0, NS_NONE);
	come(1, NS_NONE);
	heat_touch(&heat, 0);
	heat_release(&heat, 0);
	clock = heat.clock;
	heat_released(&heat);
	ck_assert_uint_eq(heat.clock, clock + 1);
	use(0);
	ck_assert_uint_eq(drop(), 1);
	heat_released(&heat); /* without anything placed since: not again */
	ck_assert_uint_eq(heat.clock, clock + 1);
	ck_assert_uint_eq(drop(), 0);
	ck_empty();
}
END_TEST

START_TEST(released_parents_of_several_follow_their_children)
{
	come(0, NS_NONE);
	come(1, 0);
	come(2, NS_NONE);
	marks[0].flags |= HEAT_F_SHARED;
	ck_assert_uint_eq(pick(), 1); /* parks its parent */
	heat_place(&heat, 1);
	heat_release(&heat, 0);
	ck_assert_int_eq(marks[0].where, HEAT_PARKED);
	ck_assert_uint_eq(heat.grace_live, 0);
	heat_release(&heat, 1);
	ck_assert_uint_eq(drop(), 1);
	ck_assert_int_eq(marks[0].where, HEAT_GRACE);
	ck_assert_uint_eq(drop(), 0);
	ck_assert_uint_eq(drop(), 2);
	ck_empty();
}
END_TEST

START_TEST(a_proposed_block_cannot_be_released)
{
	come(0, NS_NONE);
	ck_assert_uint_eq(pick(), 0);
	heat_release(&heat, 0);
	ck_assert_int_eq(marks[0].where, HEAT_NOWHERE);
	ck_assert_uint_eq(heat.grace_live, 0);
}
END_TEST

START_TEST(held_in_grace)
{
	come(0, NS_NONE);
	heat_release(&heat, 0);
	helds[0] = true;
	ck_assert_int_eq(marks[0].where, HEAT_GRACE);
	tick();
	ck_assert_uint_eq(heat.grace_live, 1);
	come(1, NS_NONE);
	ck_assert_uint_eq(drop(), 1);
	ck_assert_int_eq(marks[0].where, HEAT_ORDER);
}
END_TEST

/* A touch that is not in the calendar is of its nearest end. */

int main(void)
{
	TCase *tc = tcase_create("grace");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, released_blocks_go_first);
	tcase_add_test(tc, a_touch_rescues);
	tcase_add_test(tc, release_forgets_earlier_uses);
	tcase_add_test(tc, grace_is_bounded);
	tcase_add_test(tc, over_the_limit_is_the_cold_end);
	tcase_add_test(tc, forgotten_in_grace);
	tcase_add_test(tc, a_released_block_goes_before_its_children);
	tcase_add_test(tc, a_use_right_after_the_release_rescues);
	tcase_add_test(tc, released_parents_of_several_follow_their_children);
	tcase_add_test(tc, a_proposed_block_cannot_be_released);
	tcase_add_test(tc, held_in_grace);
	return fixture_run("grace", tc, NULL);
}
