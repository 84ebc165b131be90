/* SPDX-License-Identifier: Apache-2.0 */
/* move/store*.c: what single requests answer.  The simulator asks the same things in any order; these are the plain cases. */
#include <stdlib.h>

#include "base/metrics.h"
#include "tests/unit/move/fixture.h"

#define BLOCK (64 * 1024)

START_TEST(a_fingerprint_that_differs_is_refused_with_both)
{
	struct fix f;
	struct ns_desc desc = fix_desc("a", 1, BLOCK);
	struct store_attach args = { .desc = &desc };
	uint8_t have[16], want[16];
	struct holder *a, *other;

	fix_new(&f, 4);
	a = fix_attach(&f, "a", 1, BLOCK);
	args.user = &f.user;
	desc.num_layers = 7;
	ck_assert_int_eq(store_attach(f.store, &args, &other, have, want), STORE_E_MISMATCH);
	ck_assert_mem_eq(have, a->ns->fingerprint, 16);
	ck_assert_mem_ne(have, want, 16);
	fix_close(a);
	fix_free(&f);
}
END_TEST

START_TEST(a_bound_namespace_admits_its_uids_only)
{
	static const uint32_t uids[] = { 5 };
	struct fix f;
	struct ns_desc desc = fix_desc("a", 1, BLOCK);
	struct store_attach args = { .desc = &desc, .uid = 6 };
	uint8_t have[16], want[16];
	struct holder *a;

	fix_new(&f, 4);
	f.policies[0].uids = uids;
	f.policies[0].n_uids = 1;
	args.user = &f.user;
	ck_assert_int_eq(store_attach(f.store, &args, &a, have, want), STORE_E_PERM);
	args.uid = 5;
	ck_assert_int_eq(store_attach(f.store, &args, &a, have, want), 0);
	fix_close(a);
	fix_free(&f);
}
END_TEST

START_TEST(a_writer_that_is_late_is_told_so_and_its_slot_is_free_then)
{
	struct fix f;
	struct holder *a;
	struct ns_report r;

	fix_new(&f, 4);
	a = fix_attach(&f, "a", 1, BLOCK);
	ck_assert_int_eq(fix_reserve(&f, a, 0, 1, 3), 0);
	ck_assert_uint_eq(store_next_ns(f.store), f.now_ns + FIX_TIMEOUT_NS);
	f.now_ns += FIX_TIMEOUT_NS;
	store_tick(f.store, f.now_ns);
	store_report(f.store, 0, &r);
	ck_assert_uint_eq(r.quarantined, 3); /* it may still be writing */
	ck_assert_int_eq(fix_commit(&f, a, 0, 1, 3, 0), STORE_E_STALE);
	store_report(f.store, 0, &r);
	ck_assert_uint_eq(r.quarantined, 0);
	ck_assert_uint_eq(r.free, r.n_slots);
	ck_assert_uint_eq(fix_count(&f, a, 1, 3), 0);
	fix_close(a);
	fix_free(&f);
}
END_TEST

/* A configuration that is read again may give writers less time: who came later is late earlier. */
START_TEST(shorter_deadlines_are_met_first)
{
	struct fix f;
	struct store_config config;
	struct holder *a;
	struct ns_report r;

	fix_new(&f, 4);
	a = fix_attach(&f, "a", 1, BLOCK);
	ck_assert_int_eq(fix_reserve(&f, a, 0, 1, 1), 0);
	config = f.store->config;
	config.write_timeout_ns = 10;
	store_configure(f.store, &config);
	ck_assert_int_eq(fix_reserve(&f, a, 0, 2, 1), 0);
	ck_assert_uint_eq(store_next_ns(f.store), f.now_ns + 10);
	store_tick(f.store, f.now_ns + 10);
	store_report(f.store, 0, &r);
	ck_assert_uint_eq(r.quarantined, 1);
	ck_assert_uint_eq(r.partial, 1);
	fix_close(a);
	fix_free(&f);
}
END_TEST

START_TEST(slots_of_a_session_that_left_wait_for_its_process)
{
	struct fix f;
	struct holder *a;
	struct ns_report r;
	uint32_t dropped;

	fix_new(&f, 4);
	a = fix_attach(&f, "a", 1, BLOCK);
	ck_assert_int_eq(fix_reserve(&f, a, 0, 1, 3), 0);
	ck_assert_int_eq(holder_close(a, false), STORE_E_QUARANTINE);
	store_check(f.store);
	store_report(f.store, 0, &r);
	ck_assert_uint_eq(r.quarantined, 3);
	ck_assert_uint_eq(r.holders, 0);
	ck_assert_int_eq(store_remove(f.store, "a", &dropped), STORE_E_LIMIT);
	holder_dead(a);
	store_report(f.store, 0, &r);
	ck_assert_uint_eq(r.quarantined, 0);
	ck_assert_int_eq(store_remove(f.store, "a", &dropped), 0);
	fix_free(&f);
}
END_TEST

/* Who committed one lane has left; the other lane never comes. */
START_TEST(half_a_block_whose_writer_left_is_in_nobodys_way)
{
	for (int remove = 0; remove < 2; remove++) {
		struct fix f;
		struct holder *a;
		uint32_t dropped;

		fix_new(&f, 4);
		a = fix_attach(&f, "a", 2, BLOCK);
		ck_assert_int_eq(fix_reserve(&f, a, 0, 1, 3), 0);
		ck_assert_int_eq(fix_commit(&f, a, 0, 1, 3, 0), 0);
		fix_close(a);
		store_check(f.store);
		if (remove)
			ck_assert_int_eq(store_remove(f.store, "a", &dropped), 0);
		fix_free(&f);
	}
}
END_TEST

START_TEST(lanes_of_two_sessions_make_one_block)
{
	struct fix f;
	struct holder *a, *b;
	uint32_t slot;

	fix_new(&f, 4);
	a = fix_attach(&f, "a", 2, BLOCK);
	b = fix_attach(&f, "a", 2, BLOCK);
	ck_assert_int_eq(fix_reserve(&f, a, 0, 1, 1), 0);
	slot = f.slots[0];
	ck_assert_int_eq(fix_reserve(&f, b, 1, 1, 1), 0);
	ck_assert_uint_eq(f.slots[0], slot);
	ck_assert_int_eq(fix_commit(&f, a, 1, 1, 1, 0), STORE_E_STALE); /* not a's lane */
	ck_assert_int_eq(fix_commit(&f, a, 0, 1, 1, 0), 0);
	ck_assert(!fix_has(&f, a, 1));
	ck_assert_int_eq(fix_commit(&f, b, 1, 1, 1, 0), 0);
	ck_assert(fix_has(&f, a, 1));
	fix_close(a);
	fix_close(b);
	fix_free(&f);
}
END_TEST

static uint64_t told;

static void on_pins(void *ctx, void *owner, uint64_t pins)
{
	ck_assert_ptr_eq(ctx, owner);
	told = pins;
}

START_TEST(too_many_pins_are_told)
{
	struct fix f;
	struct holder *a;

	fix_new(&f, 4);
	f.user.pin_limit = 3;
	store_on_pins(f.store, on_pins, &f);
	a = fix_attach(&f, "a", 1, BLOCK);
	a->page->pinned = 3;
	store_tick(f.store, 2);
	ck_assert_uint_eq(told, 0);
	a->page->pinned = 4;
	store_tick(f.store, 3);
	ck_assert_uint_eq(told, 4);
	fix_close(a);
	fix_free(&f);
}
END_TEST

START_TEST(blocks_in_a_circle_can_be_dropped)
{
	struct fix f;
	struct holder *a;

	fix_new(&f, 4);
	a = fix_attach(&f, "a", 1, BLOCK);
	for (uint64_t key = 1; key <= 4; key++) { /* 1 -> 2 -> 3 -> 4 -> 1 */
		ck_assert_int_eq(fix_reserve(&f, a, 0, key, 1), 0);
		ck_assert_int_eq(fix_commit(&f, a, 0, key, 1, key % 4 + 1), 0);
	}
	ck_assert_int_eq(fix_reserve(&f, a, 0, 101, 64), 0);
	ck_assert_uint_eq(f.dropped, 4);
	fix_close(a);
	fix_free(&f);
}
END_TEST

START_TEST(a_retain_that_ends_leaves_a_longer_one)
{
	struct fix f;
	struct holder *a;

	fix_new(&f, 4);
	a = fix_attach(&f, "a", 1, BLOCK);
	fix_put(&f, a, 1, 64);
	fix_hint(&f, a, STORE_HINT_RETAIN, 1, 1);
	f.now_ns += 500000000;
	fix_hint(&f, a, STORE_HINT_RETAIN, 1, 1);
	f.now_ns += 600000000; /* the first is over */
	store_tick(f.store, f.now_ns);
	fix_put(&f, a, 101, 2);
	ck_assert_uint_eq(fix_count(&f, a, 1, 3), 1);
	ck_assert(fix_has(&f, a, 1));
	f.now_ns += 600000000;
	store_tick(f.store, f.now_ns);
	ck_assert_uint_eq(store_next_ns(f.store), UINT64_MAX);
	fix_close(a);
	fix_free(&f);
}
END_TEST

START_TEST(refusals_for_want_of_space_are_counted)
{
	struct fix f;
	struct holder *a;
	uint64_t before = metrics_get(METRIC_reserves_refused);

	fix_new(&f, 4);
	a = fix_attach(&f, "a", 1, 2 * MIB);
	f.uid.limit[QUOTA_SLOTS] = 3;
	ck_assert_int_eq(fix_reserve(&f, a, 0, 1, 4), STORE_E_LIMIT);
	ck_assert_uint_eq(metrics_get(METRIC_reserves_refused), before);
	ck_assert_int_eq(fix_reserve(&f, a, 0, 1, 3), STORE_E_NOSPACE);
	ck_assert_uint_eq(metrics_get(METRIC_reserves_refused), before + 1);
	fix_close(a);
	fix_free(&f);
}
END_TEST

START_TEST(a_pin_keeps_a_block_from_flush_and_drop)
{
	struct fix f;
	struct holder *a;
	uint64_t key = 1;
	struct store_drop drop = { .name = "a", .keys = (const uint8_t *)&key, .n = 1, .key_bytes = 8 };
	uint32_t dropped, kept;

	fix_new(&f, 4);
	a = fix_attach(&f, "a", 1, BLOCK);
	fix_put(&f, a, 1, 3);
	ck_assert(shm_page_raise(a->page, f.slots[0], a->ns->group_shift, 0, 1)); /* key 3 */
	key = 3;
	ck_assert_int_eq(store_drop(f.store, &drop), 0);
	ck_assert_uint_eq(drop.dropped, 0);
	ck_assert_uint_eq(drop.kept, 1);
	ck_assert_int_eq(store_flush(f.store, NULL, &dropped, &kept), 0);
	ck_assert_uint_eq(dropped, 2);
	ck_assert_uint_eq(kept, 1);
	ck_assert(fix_has(&f, a, 3));
	fix_close(a);
	fix_free(&f);
}
END_TEST

/* Between two steps anything may happen: blocks come, the namespace goes, another of its name is made. */
START_TEST(a_flush_in_steps)
{
	struct store_flush flush;
	uint32_t dropped, steps = 0;
	struct holder *a, *b;
	struct fix f;

	fix_new(&f, 16);
	a = fix_attach(&f, "a", 1, BLOCK);
	b = fix_attach(&f, "b", 1, BLOCK);
	fix_put(&f, a, 1, 5);
	fix_put(&f, b, 1, 4);
	ck_assert_int_eq(store_flush_begin(f.store, "c", false, &flush), STORE_E_NOENT);
	ck_assert_int_eq(store_flush_begin(f.store, "a", true, &flush), STORE_E_LIMIT);
	ck_assert_int_eq(store_flush_begin(f.store, NULL, false, &flush), 0);
	for (; !store_flush_step(f.store, &flush, 1); steps++)
		store_check(f.store);
	ck_assert_uint_ge(steps, 9);
	ck_assert_uint_eq(flush.dropped, 9);
	ck_assert_uint_eq(flush.kept, 0);

	fix_put(&f, a, 1, 5);
	ck_assert_int_eq(store_flush_begin(f.store, NULL, false, &flush), 0);
	ck_assert(!store_flush_step(f.store, &flush, 33)); /* one block of the first region */
	fix_close(a);
	ck_assert_int_eq(store_remove(f.store, "a", &dropped), 0);
	a = fix_attach(&f, "a", 1, BLOCK);
	fix_put(&f, a, 1, 2);
	while (!store_flush_step(f.store, &flush, 33))
		;
	ck_assert_uint_eq(flush.dropped + dropped, 5 + 2);

	fix_put(&f, a, 1, 5);
	fix_close(a);
	ck_assert_int_eq(store_flush_begin(f.store, "a", true, &flush), 0);
	ck_assert(!store_flush_step(f.store, &flush, 33));
	a = fix_attach(&f, "a", 1, BLOCK); /* comes in time: it stays */
	while (!store_flush_step(f.store, &flush, 33))
		;
	ck_assert_uint_eq(flush.dropped, 5);
	ck_assert_uint_eq(store_n_namespaces(f.store), 2);
	fix_put(&f, a, 1, 5);
	ck_assert_int_eq(store_flush_begin(f.store, "a", false, &flush), 0);
	ck_assert(!store_flush_step(f.store, &flush, 33));
	fix_close(a);
	ck_assert_int_eq(store_remove(f.store, "a", &dropped), 0);
	ck_assert(store_flush_step(f.store, &flush, 33)); /* gone while it was being flushed */
	fix_close(b);
	fix_free(&f);
}
END_TEST

START_TEST(why_remembers)
{
	struct fix f;
	struct holder *a;
	struct why_answer why;
	uint64_t number = 1;
	struct key key = key_from(&number, 8);
	uint32_t dropped, kept;

	fix_new(&f, 4);
	a = fix_attach(&f, "a", 1, BLOCK);
	ck_assert_int_eq(store_why(f.store, "a", &key, 10, &why), 0);
	ck_assert_int_eq(why.reason, WHY_NEVER_STORED);
	fix_put(&f, a, 1, 1);
	ck_assert_int_eq(store_why(f.store, "a", &key, 10, &why), 0);
	ck_assert_int_eq(why.reason, WHY_PRESENT);
	store_flush(f.store, "a", &dropped, &kept);
	ck_assert_int_eq(store_why(f.store, "a", &key, 10, &why), 0);
	ck_assert_int_eq(why.reason, WHY_FLUSHED);
	fix_close(a);
	fix_free(&f);
}
END_TEST

/* Attach, reserve, commit: refused at each call of the tier in turn, and nothing is left behind. */
START_TEST(refused_memory_at_every_step)
{
	uint32_t k = 1;
	bool through = false;

	for (; !through; k++) {
		struct fix f;
		struct ns_desc desc = fix_desc("a", 1, BLOCK);
		struct holder *a = NULL;

		fix_new(&f, 4);
		fake_tier_fail_after(f.tier, k, 1);
		if (fix_try_attach(&f, &desc, &a) == 0) {
			through = fix_reserve(&f, a, 0, 1, 3) == 0;
			fake_tier_fail_after(f.tier, 1, 0);
			ck_assert_int_eq(fix_reserve(&f, a, 0, 11, 3), 0);
			ck_assert_int_eq(fix_commit(&f, a, 0, 11, 3, 0), 0);
			fix_close(a);
		}
		fix_free(&f);
	}
	ck_assert_uint_eq(k, 6); /* index, records, page, region, and one attempt that met no refusal */
}
END_TEST

int main(void)
{
	Suite *s = suite_create("store");
	TCase *t = tcase_create("store");
	SRunner *sr;
	int failed;

	tcase_add_test(t, a_fingerprint_that_differs_is_refused_with_both);
	tcase_add_test(t, a_bound_namespace_admits_its_uids_only);
	tcase_add_test(t, a_writer_that_is_late_is_told_so_and_its_slot_is_free_then);
	tcase_add_test(t, shorter_deadlines_are_met_first);
	tcase_add_test(t, slots_of_a_session_that_left_wait_for_its_process);
	tcase_add_test(t, half_a_block_whose_writer_left_is_in_nobodys_way);
	tcase_add_test(t, lanes_of_two_sessions_make_one_block);
	tcase_add_test(t, too_many_pins_are_told);
	tcase_add_test(t, blocks_in_a_circle_can_be_dropped);
	tcase_add_test(t, a_retain_that_ends_leaves_a_longer_one);
	tcase_add_test(t, refusals_for_want_of_space_are_counted);
	tcase_add_test(t, a_pin_keeps_a_block_from_flush_and_drop);
	tcase_add_test(t, a_flush_in_steps);
	tcase_add_test(t, why_remembers);
	tcase_add_test(t, refused_memory_at_every_step);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
