/* SPDX-License-Identifier: Apache-2.0 */
/* move/space.c: where room is taken from, in which order, and that a refusal leaves everything as it was. */
#include <stdlib.h>

#include "tests/unit/move/fixture.h"

#define BLOCK (2 * MIB) /* one a region */
#define BIG (11 * MIB / 4)

START_TEST(free_memory_comes_before_blocks)
{
	struct fix f;
	struct holder *a, *b;

	fix_new(&f, 16);
	a = fix_attach(&f, "a", 1, BLOCK);
	b = fix_attach(&f, "b", 1, BLOCK);
	fix_put(&f, a, 1, 4);
	ck_assert_int_eq(fix_reserve(&f, b, 0, 1, 4), 0);
	ck_assert_uint_eq(f.dropped, 0);
	ck_assert_uint_eq(fix_count(&f, a, 1, 4), 4);
	fix_close(a);
	fix_close(b);
	fix_free(&f);
}
END_TEST

START_TEST(empty_regions_elsewhere_come_before_blocks)
{
	struct fix f;
	struct holder *a, *b;
	uint32_t dropped, kept;

	fix_new(&f, 16);
	a = fix_attach(&f, "a", 1, BLOCK);
	b = fix_attach(&f, "b", 1, BLOCK);
	fix_put(&f, a, 1, 4);
	ck_assert_int_eq(store_flush(f.store, "a", &dropped, &kept), 0);
	ck_assert_uint_eq(dropped, 4);
	ck_assert_uint_eq(fix_bytes(a), 8 * MIB);
	fix_put(&f, b, 1, 8);
	ck_assert_uint_eq(f.dropped, 0);
	ck_assert_uint_eq(fix_bytes(a), 0);
	fix_close(a);
	fix_close(b);
	fix_free(&f);
}
END_TEST

START_TEST(whoever_is_over_its_share_pays_first)
{
	struct fix f;
	struct holder *a, *b;

	fix_new(&f, 16);
	f.policies[0].share_bytes = f.policies[1].share_bytes = 8 * MIB;
	a = fix_attach(&f, "a", 1, BLOCK);
	b = fix_attach(&f, "b", 1, BLOCK);
	fix_put(&f, a, 1, 8);
	fix_put(&f, b, 1, 4);
	ck_assert_uint_eq(fix_count(&f, b, 1, 4), 4);
	ck_assert_uint_eq(fix_count(&f, a, 1, 8), 4);
	/* Both have their share: from now on each pays for itself. */
	fix_put(&f, b, 5, 8);
	ck_assert_uint_eq(fix_count(&f, a, 1, 8), 4);
	fix_put(&f, a, 9, 8);
	ck_assert_uint_eq(fix_count(&f, a, 9, 8), 4);
	ck_assert_uint_eq(fix_count(&f, b, 5, 8), 4);
	fix_close(a);
	fix_close(b);
	fix_free(&f);
}
END_TEST

START_TEST(two_without_shares_do_not_play_ping_pong)
{
	struct fix f;
	struct holder *a, *b;
	uint64_t have;

	fix_new(&f, 32);
	a = fix_attach(&f, "a", 1, BLOCK);
	b = fix_attach(&f, "b", 1, BLOCK);
	fix_put(&f, a, 1, 16);
	fix_put(&f, b, 1, 16);
	have = fix_bytes(a);
	ck_assert_uint_ge(have, 14 * MIB);
	ck_assert_uint_le(have, 20 * MIB);
	for (uint64_t key = 17; key < 200; key += 3) {
		fix_put(&f, a, key, 3);
		fix_put(&f, b, key, 3);
		ck_assert_uint_eq(fix_bytes(a), have);
	}
	fix_close(a);
	fix_close(b);
	fix_free(&f);
}
END_TEST

/* One region each, and none left: the next namespace gets one all the same. */
START_TEST(who_has_nothing_gets_a_first_region)
{
	static const char *const names[] = { "c", "d", "e" };
	struct holder *h[3];
	struct fix f;

	fix_new(&f, 4);
	for (int i = 0; i < 3; i++) {
		h[i] = fix_attach(&f, names[i], 1, BLOCK);
		fix_put(&f, h[i], 1, 1);
		ck_assert_uint_eq(fix_bytes(h[i]), 2 * MIB);
	}
	ck_assert_uint_eq(fix_bytes(h[0]) + fix_bytes(h[1]), 2 * MIB);
	for (int i = 0; i < 3; i++)
		fix_close(h[i]);
	fix_free(&f);
}
END_TEST

START_TEST(leaves_go_before_parents_and_the_cold_before_the_warm)
{
	struct fix f;
	struct holder *a;

	fix_new(&f, 16);
	a = fix_attach(&f, "a", 1, BLOCK);
	ck_assert_int_eq(fix_reserve(&f, a, 0, 1, 4), 0);
	ck_assert_int_eq(fix_commit(&f, a, 0, 1, 4, 0), 0); /* 1 <- 2 <- 3 <- 4 */
	fix_put(&f, a, 11, 4);
	ck_assert_int_eq(fix_reserve(&f, a, 0, 21, 3), 0);
	ck_assert_uint_eq(f.dropped, 3);
	ck_assert(fix_has(&f, a, 1));
	ck_assert_uint_eq(fix_count(&f, a, 2, 3), 0);
	ck_assert_int_eq(fix_reserve(&f, a, 0, 31, 2), 0);
	ck_assert(!fix_has(&f, a, 1) && !fix_has(&f, a, 11) && fix_has(&f, a, 12));
	fix_close(a);
	fix_free(&f);
}
END_TEST

START_TEST(what_can_never_fit_takes_nothing)
{
	struct fix f;
	struct holder *a, *b;
	uint32_t dropped, kept;

	fix_new(&f, 16);
	a = fix_attach(&f, "a", 1, BLOCK);
	b = fix_attach(&f, "b", 1, BLOCK);
	fix_put(&f, a, 1, 4);
	store_flush(f.store, "a", &dropped, &kept);
	ck_assert_int_eq(fix_reserve(&f, b, 0, 1, 9), STORE_E_NOSPACE);
	ck_assert_uint_eq(fix_bytes(a), 8 * MIB);
	ck_assert_uint_eq(fix_bytes(b), 0);
	fix_close(a);
	fix_close(b);
	fix_free(&f);
}
END_TEST

START_TEST(a_refusal_leaves_everything_as_it_was)
{
	struct fix f;
	struct holder *a, *b;

	fix_new(&f, 16);
	f.policies[1].share_bytes = 16 * MIB;
	a = fix_attach(&f, "a", 1, BLOCK);
	b = fix_attach(&f, "b", 1, BLOCK);
	fix_put(&f, a, 1, 4);
	fix_put(&f, b, 1, 4);
	fix_hold(&f, b, 2, 2);
	fix_hold(&f, a, 4, 1);
	for (uint32_t n = 6; n <= 9; n++) { /* 2 + 3 could be dropped */
		ck_assert_int_eq(fix_reserve(&f, b, 0, 100, n), STORE_E_NOSPACE);
		ck_assert_uint_eq(f.dropped, 0);
		ck_assert_uint_eq(fix_count(&f, a, 1, 4), 4);
		ck_assert_uint_eq(fix_count(&f, b, 1, 4), 4);
		ck_assert_uint_eq(f.user.session.used[QUOTA_SLOTS], 0);
	}
	fix_close(a);
	fix_close(b);
	fix_free(&f);
}
END_TEST

/* Looked at one after the other from the root on, after all of them were used: heat alone comes to its bound before the end. */
START_TEST(all_that_can_be_dropped_is_found)
{
	struct fix f;
	struct holder *a;

	fix_new(&f, 32);
	a = fix_attach(&f, "a", 1, BLOCK);
	for (uint64_t key = 1; key <= 16; key++) {
		ck_assert_int_eq(fix_reserve(&f, a, 0, key, 1), 0);
		ck_assert_int_eq(fix_commit(&f, a, 0, key, 1, key - 1), 0);
	}
	fix_hint(&f, a, STORE_HINT_TOUCH, 1, 16);
	ck_assert_int_eq(fix_reserve(&f, a, 0, 100, 16), 0);
	ck_assert_uint_eq(f.dropped, 16);
	fix_close(a);
	fix_free(&f);
}
END_TEST

/* 14 MiB would hold five blocks of 2.75 MiB in one piece, but not as a region of 12 and one of 2. */
START_TEST(memory_to_come_is_counted_in_regions)
{
	struct fix f;
	struct holder *a, *b;

	fix_new(&f, 16);
	f.policies[1].share_bytes = 16 * MIB;
	a = fix_attach(&f, "a", 1, BLOCK);
	b = fix_attach(&f, "b", 1, BIG);
	fix_put(&f, a, 1, 8);
	ck_assert_int_eq(fix_reserve(&f, b, 0, 1, 5), 0);
	ck_assert_uint_eq(f.dropped, 8);
	fix_close(a);
	fix_close(b);
	fix_free(&f);
}
END_TEST

/* Asked for one by one, regions as short as will do would fill the table before all of the memory has a place in it. */
START_TEST(short_regions_leave_places_for_the_rest)
{
	struct fix f;
	struct holder *a, *b;
	uint64_t key = 1;

	fix_new(&f, 24);
	f.policies[1].share_bytes = 24 * MIB;
	a = fix_attach(&f, "a", 1, BLOCK);
	b = fix_attach(&f, "b", 1, BIG);
	fix_put(&f, a, 1, 10);
	while (fix_reserve(&f, b, 0, key, 1) == 0)
		key++;
	ck_assert_uint_eq(fix_bytes(b), 24 * MIB);
	fix_close(a);
	fix_close(b);
	fix_free(&f);
}
END_TEST

/* What A is over its share would not make one block of B's. */
START_TEST(nobody_pays_for_nothing)
{
	struct fix f;
	struct holder *a, *b;

	fix_new(&f, 24);
	f.policies[0].share_bytes = 18 * MIB;
	f.policies[1].share_bytes = 6 * MIB;
	a = fix_attach(&f, "a", 1, BLOCK);
	b = fix_attach(&f, "b", 1, BIG);
	fix_put(&f, a, 1, 10);
	fix_put(&f, b, 1, 2);
	ck_assert_uint_eq(f.dropped, 1);
	ck_assert_uint_eq(fix_count(&f, a, 1, 10), 10);
	fix_close(a);
	fix_close(b);
	fix_free(&f);
}
END_TEST

START_TEST(released_blocks_go_first_and_use_rescues_them)
{
	struct fix f;
	struct holder *a;

	fix_new(&f, 32);
	a = fix_attach(&f, "a", 1, BLOCK);
	fix_put(&f, a, 1, 16);
	fix_hint(&f, a, STORE_HINT_RELEASE, 14, 3);
	fix_put(&f, a, 101, 1); /* 16 went; the clock is one on */
	ck_assert(!fix_has(&f, a, 16) && fix_has(&f, a, 1));
	fix_hint(&f, a, STORE_HINT_TOUCH, 15, 1);
	fix_put(&f, a, 102, 2);
	ck_assert(fix_has(&f, a, 15) && !fix_has(&f, a, 14));
	ck_assert_uint_eq(fix_count(&f, a, 1, 2), 1);
	fix_close(a);
	fix_free(&f);
}
END_TEST

/* Two conversations go on from block 2.  The first ends, and all of its blocks are released: what it had alone goes, whatever is below it; what the
 * other one needs stays. */
START_TEST(what_was_released_by_one_and_is_shared_stays)
{
	struct fix f;
	struct holder *a;

	fix_new(&f, 32);
	a = fix_attach(&f, "a", 1, BLOCK);
	ck_assert_int_eq(fix_reserve(&f, a, STORE_ALL_LANES, 1, 5), 0); /* 1 2 3 4 5 */
	ck_assert_int_eq(fix_commit(&f, a, STORE_ALL_LANES, 1, 5, 0), 0);
	ck_assert_int_eq(fix_reserve(&f, a, STORE_ALL_LANES, 11, 2), 0); /* 1 2 11 12 */
	ck_assert_int_eq(fix_commit(&f, a, STORE_ALL_LANES, 11, 2, 2), 0);
	fix_put(&f, a, 101, 9);
	fix_hint(&f, a, STORE_HINT_RELEASE, 1, 4); /* not 5 */
	fix_put(&f, a, 201, 2);
	ck_assert_uint_eq(fix_count(&f, a, 3, 2), 0);
	ck_assert_uint_eq(fix_count(&f, a, 1, 2), 2);
	ck_assert_uint_eq(fix_count(&f, a, 11, 2), 2);
	ck_assert_uint_eq(fix_count(&f, a, 101, 9), 9);
	fix_close(a);
	fix_free(&f);
}
END_TEST

/* Whoever goes on from a released block uses it. */
START_TEST(a_new_child_rescues_its_parent)
{
	struct fix f;
	struct holder *a;

	fix_new(&f, 32);
	a = fix_attach(&f, "a", 1, BLOCK);
	fix_put(&f, a, 1, 14);
	fix_hint(&f, a, STORE_HINT_RELEASE, 13, 2);
	ck_assert_int_eq(fix_reserve(&f, a, STORE_ALL_LANES, 101, 1), 0);
	ck_assert_int_eq(fix_commit(&f, a, STORE_ALL_LANES, 101, 1, 13), 0);
	fix_put(&f, a, 201, 2);
	ck_assert(fix_has(&f, a, 13) && !fix_has(&f, a, 14) && fix_has(&f, a, 1));
	fix_close(a);
	fix_free(&f);
}
END_TEST

START_TEST(grace_is_bounded)
{
	struct fix f;
	struct holder *a;
	struct ns_report r;

	fix_new(&f, 32);
	a = fix_attach(&f, "a", 1, BLOCK);
	fix_put(&f, a, 1, 16);
	fix_hint(&f, a, STORE_HINT_RELEASE, 1, 12);
	store_report(f.store, 0, &r);
	ck_assert_uint_eq(r.grace, 4); /* 25 % of 16 */
	fix_put(&f, a, 101, 12);
	ck_assert_uint_eq(fix_count(&f, a, 1, 12), 0);
	ck_assert_uint_eq(fix_count(&f, a, 13, 4), 4);
	fix_close(a);
	fix_free(&f);
}
END_TEST

START_TEST(retained_blocks_go_last_and_only_while_it_lasts)
{
	struct fix f;
	struct holder *a;

	fix_new(&f, 16);
	a = fix_attach(&f, "a", 1, BLOCK);
	fix_put(&f, a, 1, 8);
	fix_hint(&f, a, STORE_HINT_RETAIN, 1, 2);
	fix_put(&f, a, 11, 6);
	ck_assert_uint_eq(fix_count(&f, a, 1, 8), 2);
	ck_assert_int_eq(fix_reserve(&f, a, 0, 21, 8), 0); /* advice: it does not make a request fail */
	fix_close(a);
	a = fix_attach(&f, "a", 1, BLOCK);
	fix_put(&f, a, 1, 8);
	fix_hint(&f, a, STORE_HINT_RETAIN, 1, 2);
	f.now_ns += UINT64_C(1000000000);
	store_tick(f.store, f.now_ns);
	fix_put(&f, a, 11, 2);
	ck_assert_uint_eq(fix_count(&f, a, 1, 2), 0);
	fix_close(a);
	fix_free(&f);
}
END_TEST

/* For each call of the tier that making room for another namespace takes: refused, nothing is lost but what the answer says. */
START_TEST(refused_memory_at_every_step)
{
	for (uint32_t k = 1; k <= 4; k++) {
		struct fix f;
		struct holder *a, *b;
		int r;

		fix_new(&f, 16);
		f.policies[1].share_bytes = 8 * MIB;
		a = fix_attach(&f, "a", 1, BLOCK);
		b = fix_attach(&f, "b", 1, BLOCK);
		fix_put(&f, a, 1, 8);
		fix_hold(&f, a, 1, 8); /* the first look finds nobody who could pay */
		ck_assert_int_eq(fix_reserve(&f, b, 0, 1, 3), STORE_E_NOSPACE);
		ck_assert_int_eq(store_release(a, f.slots, f.generations, 0), 0);
		fix_close(a);
		a = fix_attach(&f, "a", 1, BLOCK);
		fake_tier_fail_after(f.tier, k, UINT32_MAX);
		r = fix_reserve(&f, b, 0, 1, 3);
		ck_assert(r == 0 || r == STORE_E_NOSPACE);
		ck_assert_uint_eq(fix_count(&f, a, 1, 8) + f.dropped, 8);
		fake_tier_fail_after(f.tier, 1, 0);
		ck_assert_int_eq(fix_reserve(&f, b, 0, 11, 1), 0);
		fix_close(a);
		fix_close(b);
		fix_free(&f);
	}
}
END_TEST

/* A namespace of many blocks, of which all are pinned: a search of them all has failed once, and is not made again at once; but what is let go of
 * is found by those that look at a part. */
START_TEST(many_pins_are_not_looked_at_again_and_again)
{
	enum { N = 262144, BATCH = 16384 };
	static uint64_t keys[BATCH];
	static uint32_t slots[2 * BATCH], generations[2 * BATCH];
	static uint8_t states[BATCH];
	struct store_reserve reserve = { .keys = (const uint8_t *)keys, .slots = slots, .generations = generations };
	struct store_commit commit = { .slots_in = slots,
		                       .generations_in = generations,
		                       .keys = (const uint8_t *)keys,
		                       .n = BATCH,
		                       .length = 64,
		                       .slots = slots + BATCH,
		                       .generations = generations + BATCH,
		                       .states = states };
	uint32_t tries = 0, free_slot = 5 * BATCH - 1; /* last of a chain */
	struct store_ns *sn;
	struct holder *a;
	struct fix f;
	int r;

	fix_new(&f, 16);
	f.user.session.limit[QUOTA_SLOTS] = f.uid.limit[QUOTA_SLOTS] = N;
	a = fix_attach(&f, "a", 1, 64);
	sn = store_find(f.store, "a");
	ck_assert_uint_eq(a->ns->geo.max_slots, N);
	for (uint32_t at = 0; at < N; at += BATCH) {
		for (uint32_t i = 0; i < BATCH; i++)
			keys[i] = 1 + at + i;
		reserve.n = BATCH;
		reserve.now_ns = commit.now_ns = f.now_ns;
		ck_assert_int_eq(store_reserve(a, &reserve), 0);
		ck_assert_int_eq(store_commit(a, &commit), 0);
	}
	for (uint32_t s = 0; s < N; s++)
		ck_assert(shm_page_raise(a->page, s, a->ns->group_shift, a->ns->heat.clock, 1));
	keys[0] = N + 1;
	reserve.n = 1;
	ck_assert_int_eq(store_reserve(a, &reserve), STORE_E_NOSPACE);
	ck_assert_uint_gt(sn->barren_until_ns, f.now_ns);
	ck_assert_int_eq(store_reserve(a, &reserve), STORE_E_NOSPACE);
	shm_pin_lower(&a->page->pins[free_slot]);
	while ((r = store_reserve(a, &reserve)) == STORE_E_NOSPACE)
		ck_assert_uint_le(++tries, 2 * N / 65536 + 1);
	ck_assert_int_eq(r, 0);
	ck_assert_uint_eq(slots[0], free_slot);
	fix_close(a);
	fix_free(&f);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("space");
	TCase *t = tcase_create("space");
	SRunner *sr;
	int failed;

	tcase_add_test(t, free_memory_comes_before_blocks);
	tcase_add_test(t, empty_regions_elsewhere_come_before_blocks);
	tcase_add_test(t, whoever_is_over_its_share_pays_first);
	tcase_add_test(t, two_without_shares_do_not_play_ping_pong);
	tcase_add_test(t, who_has_nothing_gets_a_first_region);
	tcase_add_test(t, leaves_go_before_parents_and_the_cold_before_the_warm);
	tcase_add_test(t, what_can_never_fit_takes_nothing);
	tcase_add_test(t, a_refusal_leaves_everything_as_it_was);
	tcase_add_test(t, all_that_can_be_dropped_is_found);
	tcase_add_test(t, memory_to_come_is_counted_in_regions);
	tcase_add_test(t, short_regions_leave_places_for_the_rest);
	tcase_add_test(t, nobody_pays_for_nothing);
	tcase_add_test(t, released_blocks_go_first_and_use_rescues_them);
	tcase_add_test(t, what_was_released_by_one_and_is_shared_stays);
	tcase_add_test(t, a_new_child_rescues_its_parent);
	tcase_add_test(t, grace_is_bounded);
	tcase_add_test(t, retained_blocks_go_last_and_only_while_it_lasts);
	tcase_add_test(t, refused_memory_at_every_step);
	tcase_add_test(t, many_pins_are_not_looked_at_again_and_again);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
