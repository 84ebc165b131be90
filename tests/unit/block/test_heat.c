/* SPDX-License-Identifier: Apache-2.0 */
/* Unit tests of block/heat.c: the order against exact leaf-LRU, parking, retains, clean ones, the calendar and its memory. */
#include "tests/unit/block/heat.h"

/* ---- the order ---- */

START_TEST(first_in_first_out)
{
	ck_assert_uint_eq(pick(), NS_NONE);
	for (uint32_t i = 0; i < 100; i++) {
		if (i % 3 == 0)
			tick();
		come(i, NS_NONE);
	}
	ck_assert_uint_eq(heat.in_order, 100);
	for (uint32_t i = 0; i < 100; i++)
		ck_assert_uint_eq(drop(), i);
	ck_empty();
}
END_TEST

START_TEST(clock_ticks_when_enough_was_placed)
{
	heat_deinit(&heat);
	open_heat(2048 * 3, 0);
	ck_assert_uint_eq(heat.per_tick, 3);
	ck_assert_uint_eq(heat_tick(&heat), 1);
	come(0, NS_NONE);
	come(1, NS_NONE);
	ck_assert_uint_eq(heat_tick(&heat), 1);
	come(2, NS_NONE);
	ck_assert_uint_eq(heat_tick(&heat), 2);
	ck_assert_uint_eq(heat_tick(&heat), 2);
}
END_TEST

START_TEST(a_use_moves_its_block)
{
	for (uint32_t i = 0; i < 4; i++) {
		tick();
		come(i, NS_NONE);
	}
	use(0);
	ck_assert_uint_eq(drop(), 1);
	ck_assert_uint_eq(drop(), 2);
	ck_assert_uint_eq(drop(), 3);
	ck_assert_uint_eq(drop(), 0);
	ck_empty();
}
END_TEST

/* Within a tick uses have no order: what was used in the tick of its place is as cold as it was. */
START_TEST(a_tick_is_the_grain)
{
	tick();
	come(0, NS_NONE);
	come(1, NS_NONE);
	use(0);
	ck_assert_uint_eq(pick(), 0);
	heat_place(&heat, 0);
	tick();
	come(2, NS_NONE);
	ck_assert_uint_eq(drop(), 1); /* that one was proposed and put back behind it */
	ck_assert_uint_eq(drop(), 0);
	ck_assert_uint_eq(drop(), 2);
}
END_TEST

START_TEST(held_blocks_are_passed_over)
{
	uint64_t budget = 10;
	uint32_t slot;

	come(0, NS_NONE);
	come(1, NS_NONE);
	tick();
	tick();
	helds[0] = helds[1] = true;
	ck_assert(!heat_pick(&heat, &slot, &budget));
	ck_assert_uint_eq(budget, 0); /* looked again and again, as often as it may */
	ck_assert_uint_eq(heat.in_order, 2);
	ck_assert_uint_eq(marks[0].touch, heat.clock);
	helds[1] = false;
	ck_assert_uint_eq(pick(), 1);
}
END_TEST

START_TEST(retained_blocks_wait_for_their_end)
{
	come(0, NS_NONE);
	marks[0].flags |= HEAT_F_RETAINED;
	tick();
	come(1, NS_NONE);
	ck_assert_uint_eq(drop(), 1);
	ck_assert_uint_eq(pick(), NS_NONE);
	heat.ignore_retained = true;
	ck_assert_uint_eq(drop(), 0);
	ck_empty();
}
END_TEST

START_TEST(parents_wait_for_their_children)
{
	come(0, NS_NONE);
	tick();
	come(1, 0);
	tick();
	come(2, 0);
	ck_assert_uint_eq(pick(), 1);
	ck_assert_uint_eq(heat.parked, 1);
	go(1);
	ck_assert_uint_eq(heat.parked, 1);
	heat_unpark(&heat, 2); /* is not parked: nothing happens */
	ck_assert_uint_eq(drop(), 2);
	ck_assert_uint_eq(heat.parked, 0);
	ck_assert_uint_eq(drop(), 0);
	ck_empty();
}
END_TEST

START_TEST(a_used_parent_comes_back_where_its_use_was)
{
	come(0, NS_NONE);
	tick();
	come(1, 0);
	ck_assert_uint_eq(pick(), 1);
	tick();
	come(2, NS_NONE);
	tick();
	use(0);
	go(1);
	ck_assert_uint_eq(drop(), 2);
	ck_assert_uint_eq(drop(), 0);
}
END_TEST

START_TEST(forgotten_entries_are_skipped)
{
	for (uint32_t i = 0; i < 10; i++)
		come(i, NS_NONE);
	for (uint32_t i = 0; i < 10; i += 2)
		go(i);
	ck_assert_uint_eq(heat.in_order, 5);
	tick();
	come(0, NS_NONE); /* its slot is used again: the old entry is not its */
	for (uint32_t i = 1; i < 10; i += 2)
		ck_assert_uint_eq(drop(), i);
	ck_assert_uint_eq(drop(), 0);
	ck_empty();
}
END_TEST

/* The reference: every event has a tick of its own; the victim is the leaf that was used longest ago. */
struct lru {
	bool here[40];
	uint64_t used[40];
	uint64_t now;
};

static uint32_t lru_victim(const struct lru *l)
{
	uint32_t found = NS_NONE;

	for (uint32_t i = 0; i < 40; i++)
		if (l->here[i] && children[i] == 0 && (found == NS_NONE || l->used[i] < l->used[found]))
			found = i;
	return found;
}

static void lru_touch(struct lru *l, uint32_t slot)
{
	tick();
	l->now++;
	if (l->here[slot]) {
		use(slot);
	} else {
		uint32_t parent = slot ? (slot - 1) / 2 : NS_NONE;

		come(slot, parent != NS_NONE && l->here[parent] ? parent : NS_NONE);
		l->here[slot] = true;
	}
	l->used[slot] = l->now;
}

static void lru_drop(struct lru *l)
{
	uint32_t expected = lru_victim(l);

	ck_assert_uint_eq(drop(), expected);
	if (expected != NS_NONE)
		l->here[expected] = false;
}

START_TEST(exactly_leaf_lru)
{
	struct lru l;
	struct rng rng;

	rng_init(&rng, (uint64_t)_i);
	memset(&l, 0, sizeof(l));
	heat.clock = heat.oldest = _i % 2 ? UINT32_MAX - 150 : 1; /* over the end of the clock, too */
	for (int step = 0; step < 600; step++) {
		uint32_t slot = (uint32_t)rng_below(&rng, 40);

		if (rng_chance(&rng, 70)) {
			lru_touch(&l, slot);
		} else if (rng_chance(&rng, 70)) {
			lru_drop(&l);
		} else { /* a request: a path, tail first */
			for (;; slot = (slot - 1) / 2) {
				if (l.here[slot])
					lru_touch(&l, slot);
				if (slot == 0)
					break;
			}
		}
	}
	for (uint32_t i = 0; i < 41; i++)
		lru_drop(&l);
	ck_empty();
}
END_TEST

/* ---- the calendar ---- */

/* Blocks that stay for more ticks than there are buckets keep their order. */
START_TEST(old_buckets_are_joined_in_order)
{
	heat.clock = heat.oldest = _i ? UINT32_MAX - HEAT_BUCKETS : 1;
	for (uint32_t i = 0; i < 100; i++) {
		for (uint32_t k = 0; k < 101; k++)
			tick();
		come(i, NS_NONE);
		if (i == 30) {
			ck_assert_uint_eq(drop(), 0); /* leaves the oldest bucket half read */
			ck_assert_uint_eq(drop(), 1);
		}
		ck_assert_uint_lt(heat.clock - heat.oldest, HEAT_BUCKETS);
	}
	use(2);
	for (uint32_t i = 3; i < 100; i++)
		ck_assert_uint_eq(drop(), i);
	ck_assert_uint_eq(drop(), 2);
	ck_empty();
}
END_TEST

/* Joined buckets share chunks: one block a tick does not cost a chunk each. */
START_TEST(joined_buckets_share_chunks)
{
	heat_deinit(&heat);
	open_heat(50000, 0);
	for (uint32_t i = 0; i < 50000; i++) {
		tick();
		come(i, NS_NONE);
	}
	ck_assert_uint_le(heat.n_chunks, HEAT_BUCKETS + 2 * (50000 / HEAT_CHUNK_IDS) + 2);
	for (uint32_t i = 0; i < 50000; i++)
		assert(drop() == i);
	ck_empty();
}
END_TEST

START_TEST(chunks_are_used_again)
{
	uint32_t chunks = 0;

	heat_deinit(&heat);
	open_heat(SLOTS, 0);
	for (int round = 0; round < 4; round++) {
		for (uint32_t i = 0; i < SLOTS; i++)
			come(i, NS_NONE);
		if (round)
			ck_assert_uint_eq(heat.n_chunks, chunks);
		chunks = heat.n_chunks;
		ck_assert_uint_eq(chunks, (SLOTS + HEAT_CHUNK_IDS - 1) / HEAT_CHUNK_IDS);
		for (uint32_t i = 0; i < SLOTS; i++)
			assert(drop() == i);
		ck_assert_uint_eq(heat.entries, 0);
	}
	ck_assert_uint_eq(heat.n_slabs, 2);
	ck_assert_uint_ge(heat_bytes(&heat), SLOTS * sizeof(uint32_t));
}
END_TEST

/* Drops that heat did not propose leave stale entries, which are swept when there are too many. */
START_TEST(stale_entries_are_bounded)
{
	uint64_t most = 0;

	for (uint32_t i = 0; i < 200000; i++) {
		if (i >= 100)
			go(i % 100);
		if (i % 7 == 0)
			tick();
		come(i % 100, NS_NONE);
		most = heat.entries > most ? heat.entries : most;
	}
	ck_assert_uint_gt(most, 65536); /* it was swept at all */
	ck_assert_uint_le(most, 65536 + 2 * 100 + 1);
	ck_assert_uint_eq(heat.in_order, 100);
	for (uint32_t i = 0; i < 100; i++)
		ck_assert_uint_eq(drop(), i);
	ck_empty();
}
END_TEST

/* A client may say "release" of the same blocks as often as it likes. */
START_TEST(hints_do_not_make_memory_grow)
{
	for (uint32_t i = 0; i < 10; i++)
		come(i, NS_NONE);
	for (uint32_t i = 0; i < 300000; i++)
		heat_release(&heat, i % 10);
	ck_assert_uint_le(heat.entries, 65536 + 2 * 100 + 2);
	ck_assert_uint_eq(heat.in_order + heat.grace_live, 10);
	for (uint32_t i = 0; i < 10; i++)
		ck_assert_uint_ne(drop(), NS_NONE);
	ck_empty();
}
END_TEST

START_TEST(touches_outside_the_calendar)
{
	tick();
	tick();
	heat.oldest = 2;
	marks[0].touch = heat.clock + 5;
	heat_place(&heat, 0);
	ck_assert_uint_eq(marks[0].place, heat.clock);
	marks[1].touch = 1;
	heat_place(&heat, 1);
	ck_assert_uint_eq(marks[1].place, 2);
	ck_assert_uint_eq(pick(), 1);
}
END_TEST

START_TEST(placing_twice_aborts)
{
	come(0, NS_NONE);
	heat_place(&heat, 0);
}
END_TEST

START_TEST(no_slots_abort)
{
	heat_init(&heat, 0, 0, &ops, marks);
}
END_TEST

/* ---- towards the tier below ---- */

static uint32_t pick_down(void)
{
	uint64_t budget = 1000;
	uint32_t slot;

	return heat_pick_down(&heat, &slot, &budget) ? slot : NS_NONE;
}

static uint32_t pick_ready(void)
{
	uint64_t budget = 1000;
	uint32_t slot;

	return heat_pick_ready(&heat, &slot, &budget) ? slot : NS_NONE;
}

START_TEST(what_is_clean_goes_after_grace_and_before_the_order)
{
	for (uint32_t i = 0; i < 6; i++) {
		tick();
		come(i, NS_NONE);
	}
	ck_assert_uint_eq(pick_down(), 0);
	ck_assert_uint_eq(pick_down(), 1);
	ck_assert_uint_eq(pick_ready(), NS_NONE); /* they are being written */
	heat_clean(&heat, 1);
	heat_clean(&heat, 0);
	heat_release(&heat, 5);
	ck_assert_uint_eq(heat.clean_live, 2);
	ck_assert_uint_eq(heat.in_order, 3);
	ck_assert_uint_eq(drop(), 5);
	ck_assert_uint_eq(drop(), 1);
	ck_assert_uint_eq(pick_ready(), 0);
	heat_place(&heat, 0); /* pinned after all */
	ck_assert_uint_eq(pick_ready(), NS_NONE);
	for (uint32_t i = 0; i < 5; i++)
		if (i != 1)
			ck_assert_uint_eq(drop(), i);
	ck_empty();
}
END_TEST

START_TEST(a_use_rescues_what_is_clean)
{
	for (uint32_t i = 0; i < 4; i++) {
		tick();
		come(i, NS_NONE);
	}
	for (uint32_t i = 0; i < 3; i++) {
		ck_assert_uint_eq(pick_down(), i);
		heat_clean(&heat, i);
	}
	tick();
	use(1);
	heat_unclean(&heat, 2); /* its copy is lost */
	heat_unclean(&heat, 3); /* never was */
	ck_assert_uint_eq(pick_ready(), 0);
	go(0);
	ck_assert_uint_eq(pick_ready(), NS_NONE);
	ck_assert(marks[1].flags & HEAT_F_HIT);
	ck_assert_uint_eq(heat.clean_live, 0);
	ck_assert_uint_eq(drop(), 2);
	ck_assert_uint_eq(drop(), 3);
	ck_assert_uint_eq(drop(), 1);
	ck_empty();
}
END_TEST

START_TEST(clean_parents_wait_for_their_children)
{
	come(0, NS_NONE);
	tick();
	come(1, 0);
	heat_forget(&heat, 0);
	heat_clean(&heat, 0);
	ck_assert_uint_eq(pick_ready(), NS_NONE);
	ck_assert_uint_eq(heat.parked, 1);
	ck_assert_uint_eq(drop(), 1);
	ck_assert_uint_eq(drop(), 0);
	ck_empty();
}
END_TEST

START_TEST(cleaning_does_not_make_memory_grow)
{
	uint64_t most = 0;

	for (uint32_t i = 0; i < 100; i++)
		come(i, NS_NONE);
	for (uint32_t round = 0; round < 400000; round++) {
		uint32_t slot = pick_down();

		heat_clean(&heat, slot);
		heat_unclean(&heat, slot);
		if (heat_bytes(&heat) > most)
			most = heat_bytes(&heat);
	}
	ck_assert_uint_le(most, 2u << 20);
	for (uint32_t i = 0; i < 100; i++)
		ck_assert_uint_ne(drop(), NS_NONE);
	ck_empty();
}
END_TEST

/* An order that is kept in another one's ticks: far ahead, step by step, and across the end of the numbers. */
START_TEST(another_clock_is_followed)
{
	static const uint32_t steps[] = { 1, 7, 1000, 5000 };
	uint32_t n = 0;

	heat_follow(&heat, 0x7ffffff0);
	heat_follow(&heat, 0xffff0000 + 1000);
	ck_assert_uint_eq(heat.clock, 0xffff0000 + 1000);
	heat_follow(&heat, 0xffff0000); /* older: nothing happens */
	ck_assert_uint_eq(heat.clock, 0xffff0000 + 1000);
	heat_follow(&heat, (uint32_t)-60 * steps[_i]);
	for (; n < 100; n++) {
		heat_follow(&heat, heat.clock + steps[_i]);
		ck_assert_uint_lt(heat.clock - heat.oldest, HEAT_BUCKETS);
		come(n, NS_NONE);
	}
	ck_assert_uint_lt(heat.clock, 0x80000000);
	for (uint32_t i = 0; i < 100; i++)
		ck_assert_uint_eq(drop(), i);
	/* Empty: the longest step takes no time. */
	for (uint32_t i = 0; i < 1000; i++)
		heat_follow(&heat, heat.clock + 0x7fffffff);
	come(1, NS_NONE);
	ck_assert_uint_eq(drop(), 1);
	ck_empty();
}
END_TEST

int main(void)
{
	TCase *tc = tcase_create("order"), *clean = tcase_create("clean");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, first_in_first_out);
	tcase_add_test(tc, clock_ticks_when_enough_was_placed);
	tcase_add_test(tc, a_use_moves_its_block);
	tcase_add_test(tc, a_tick_is_the_grain);
	tcase_add_test(tc, held_blocks_are_passed_over);
	tcase_add_test(tc, retained_blocks_wait_for_their_end);
	tcase_add_test(tc, parents_wait_for_their_children);
	tcase_add_test(tc, a_used_parent_comes_back_where_its_use_was);
	tcase_add_test(tc, forgotten_entries_are_skipped);
	tcase_add_loop_test(tc, exactly_leaf_lru, 0, 20);
	tcase_add_loop_test(tc, old_buckets_are_joined_in_order, 0, 2);
	tcase_add_test(tc, joined_buckets_share_chunks);
	tcase_add_test(tc, chunks_are_used_again);
	tcase_add_test(tc, stale_entries_are_bounded);
	tcase_add_test(tc, touches_outside_the_calendar);
	tcase_add_test_raise_signal(tc, placing_twice_aborts, SIGABRT);
	tcase_add_test_raise_signal(tc, no_slots_abort, SIGABRT);
	tcase_add_checked_fixture(clean, setup, teardown);
	tcase_add_test(clean, what_is_clean_goes_after_grace_and_before_the_order);
	tcase_add_test(clean, a_use_rescues_what_is_clean);
	tcase_add_test(clean, clean_parents_wait_for_their_children);
	tcase_add_test(clean, cleaning_does_not_make_memory_grow);
	tcase_add_loop_test(clean, another_clock_is_followed, 0, 4);
	tcase_add_test(clean, hints_do_not_make_memory_grow);
	return fixture_run("heat", tc, clean);
}
