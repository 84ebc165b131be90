/* SPDX-License-Identifier: Apache-2.0 */
/* move/onboard.c: bringing prefixes up, and every way in which that ends. */
#include "tests/unit/move/onboard_fixture.h"

static struct low l;
static struct holder *h;

/* Keys 1..8 are below only; host memory, 16 blocks, is full of others that are below as well or will be. */
static void setup_below(void)
{
	low_new(&l, 4, 8, 32);
	h = low_attach(&l, "a");
	low_put_below(&l, h, 1, 8);
}

static void teardown_below(void)
{
	low_verify_all(h);
	fix_close(h);
	low_free(&l);
}

static struct ns_report report(void)
{
	struct ns_report r;

	store_report(l.f.store, 0, &r);
	return r;
}

static enum why_reason why(uint64_t key)
{
	struct why_answer answer;
	struct key k = key_from((const uint8_t *)&key, 8);

	ck_assert_int_eq(store_why(l.f.store, "a", &k, l.f.now_ns, &answer), 0);
	return answer.reason;
}

START_TEST(a_prefix_comes_up_and_is_held)
{
	struct low_onboard b;
	struct ns_report before, after;
	uint64_t reads;

	setup_below();
	before = report();
	reads = fake_lower_reads(l.t);
	ck_assert_int_eq(low_onboard(&l, h, &b, 1, 8), STORE_E_WAIT);
	ck_assert_uint_eq(b.done, 0);
	low_settle(&l);
	ck_assert_uint_eq(b.done, 1);
	ck_assert_uint_eq(b.o.hits, 8);
	ck_assert_uint_eq(report().holds, 8);
	ck_assert_uint_eq(fake_lower_reads(l.t) - reads, 8);
	ck_assert_uint_eq(low_count(h, 1, 8, STORE_IN_G2 | STORE_IN_G3), 8);
	low_onboard_end(&l, h, &b);
	after = report();
	ck_assert_uint_eq(after.hits_lower - before.hits_lower, 8);
	ck_assert_uint_eq(after.looked_up - before.looked_up, 8);
	ck_assert_uint_eq(after.hits - before.hits, 0);
	/* Again: they are here. */
	ck_assert_int_eq(low_onboard(&l, h, &b, 1, 8), 0);
	ck_assert_uint_eq(b.o.hits, 8);
	ck_assert_uint_eq(b.done, 0);
	low_onboard_end(&l, h, &b);
	ck_assert_uint_eq(report().hits - after.hits, 8);
	teardown_below();
}
END_TEST

START_TEST(two_who_want_one_block_share_its_read)
{
	struct low_onboard a, b;
	uint64_t reads;

	setup_below();
	reads = fake_lower_reads(l.t);
	ck_assert_int_eq(low_onboard(&l, h, &a, 1, 3), STORE_E_WAIT);
	ck_assert_int_eq(low_onboard(&l, h, &b, 1, 4), STORE_E_WAIT);
	low_settle(&l);
	ck_assert_uint_eq(a.done + b.done, 2);
	ck_assert_uint_eq(a.o.hits, 3);
	ck_assert_uint_eq(b.o.hits, 4);
	ck_assert_uint_eq(fake_lower_reads(l.t) - reads, 4);
	for (int i = 0; i < 3; i++)
		ck_assert_uint_eq(a.slots[i], b.slots[i]);
	low_onboard_end(&l, h, &a);
	low_onboard_end(&l, h, &b);
	teardown_below();
}
END_TEST

START_TEST(a_missing_block_ends_the_prefix)
{
	struct low_onboard b;

	setup_below();
	ck_assert_int_eq(low_onboard(&l, h, &b, 6, 6), STORE_E_WAIT); /* 9, 10, 11: never stored */
	low_settle(&l);
	ck_assert_uint_eq(b.done, 1);
	ck_assert_uint_eq(b.o.hits, 3);
	for (int i = 3; i < 6; i++)
		ck_assert_uint_eq(b.status[i], STORE_ONBOARD_MISSING);
	ck_assert_int_eq(why(9), WHY_NEVER_STORED);
	low_onboard_end(&l, h, &b);
	ck_assert_int_eq(low_onboard(&l, h, &b, 50, 2), 0);
	ck_assert_uint_eq(b.o.hits, 0);
	ck_assert_uint_eq(b.status[1], STORE_ONBOARD_MISSING);
	low_onboard_end(&l, h, &b);
	teardown_below();
}
END_TEST

/* Whatever goes wrong with the third of five: the two before it are held, those behind it are not. */
START_TEST(what_cannot_be_read_cuts_the_prefix)
{
	static const enum fake_lower_fault faults[] = { FAKE_LOWER_IO, FAKE_LOWER_CORRUPT, FAKE_LOWER_ASTRAY };
	struct low_onboard b;
	struct ns_report before;

	setup_below();
	before = report();
	fake_lower_fail(l.t, false, faults[_i], 3, 1);
	ck_assert_int_eq(low_onboard(&l, h, &b, 1, 5), STORE_E_WAIT);
	low_settle(&l);
	ck_assert_uint_eq(b.done, 1);
	ck_assert_uint_eq(b.o.hits, 2);
	ck_assert_uint_eq(b.status[2], STORE_ONBOARD_FAILED);
	ck_assert_uint_eq(report().holds, 2);
	/* Only that copy is lost, and says why. */
	ck_assert_uint_eq(low_tiers(h, 3), 0);
	ck_assert_int_eq(why(3), WHY_TIER_FAILED);
	ck_assert_uint_eq(low_anywhere(h, 4, 5), 5);
	ck_assert_uint_eq(report().lost - before.lost, 1);
	ck_assert_uint_eq(report().hits_lower - before.hits_lower, 2);
	ck_assert_uint_eq(metrics_get(METRIC_checksum_errors), faults[_i] != FAKE_LOWER_IO);
	low_onboard_end(&l, h, &b);
	teardown_below();
}
END_TEST

START_TEST(offline_is_failed_not_missing_and_loses_nothing)
{
	struct low_onboard b;

	setup_below();
	ck_assert_int_eq(low_onboard(&l, h, &b, 1, 4), STORE_E_WAIT);
	fake_lower_set_online(l.t, false);
	low_settle(&l);
	ck_assert_uint_eq(b.done, 1);
	ck_assert_uint_eq(b.o.hits, 0);
	ck_assert_uint_eq(b.status[0], STORE_ONBOARD_FAILED);
	low_onboard_end(&l, h, &b);
	ck_assert_int_eq(low_onboard(&l, h, &b, 1, 4), 0);
	ck_assert_uint_eq(b.status[0], STORE_ONBOARD_FAILED);
	low_onboard_end(&l, h, &b);
	/* What is in host memory is not concerned. */
	ck_assert_int_eq(low_onboard(&l, h, &b, 1000004, 4), 0);
	ck_assert_uint_eq(b.o.hits, 4);
	low_onboard_end(&l, h, &b);
	fake_lower_set_online(l.t, true);
	ck_assert_int_eq(low_onboard(&l, h, &b, 1, 4), STORE_E_WAIT);
	low_settle(&l);
	ck_assert_uint_eq(b.o.hits, 4);
	low_onboard_end(&l, h, &b);
	teardown_below();
}
END_TEST

/* After each number of steps: cancelled, late, its session gone, the store stopping.  Nothing is left behind. */
START_TEST(an_end_at_every_step)
{
	for (int how = 0; how < 4; how++) {
		for (unsigned steps = 0, over = 0; !over; steps++) {
			struct low_onboard a, b;
			struct holder *other;

			setup_below();
			other = low_attach(&l, "a");
			ck_assert_int_eq(low_onboard(&l, h, &b, 1, 8), STORE_E_WAIT);
			ck_assert_int_eq(low_onboard(&l, other, &a, 1, 2), STORE_E_WAIT);
			for (unsigned i = 0; i < steps; i++)
				over = !(fake_lower_release(l.t) || fake_sums_release(l.sums));
			if (how == 0 || how == 2) {
				bool done = b.done;

				store_onboard_cancel(&b.o);
				store_check(l.f.store);
				low_settle(&l);
				ck_assert_uint_eq(b.done, done);
				if (how == 2) {
					fix_close(h);
					h = low_attach(&l, "a");
				} else if (done) {
					low_onboard_end(&l, h, &b);
				}
			} else {
				if (how == 1)
					store_tick(l.f.store, l.f.now_ns + 1000);
				else
					store_stop_moving(l.f.store);
				ck_assert_uint_eq(b.done, 1);
				store_check(l.f.store);
				low_settle(&l);
				ck_assert_uint_eq(b.done, 1);
				low_onboard_end(&l, h, &b);
			}
			low_settle(&l);
			ck_assert_uint_eq(a.done, 1);
			low_onboard_end(&l, other, &a);
			ck_assert(how == 3 || low_count(h, 1, 8, STORE_IN_G3) == 8);
			ck_assert_uint_eq(report().holds, 0);
			ck_assert_uint_eq(report().partial, 0);
			fix_close(other);
			teardown_below();
		}
	}
}
END_TEST

START_TEST(the_deadline_is_told_and_kept)
{
	struct low_onboard b;

	setup_below();
	fake_lower_fail(l.t, false, FAKE_LOWER_STUCK, 3, 1);
	ck_assert_int_eq(low_onboard(&l, h, &b, 1, 5), STORE_E_WAIT);
	ck_assert_uint_eq(store_next_ns(l.f.store), l.f.now_ns + 1000);
	low_settle(&l);
	ck_assert_uint_eq(b.done, 0);
	store_tick(l.f.store, l.f.now_ns + 999);
	ck_assert_uint_eq(b.done, 0);
	store_tick(l.f.store, l.f.now_ns + 1000);
	ck_assert_uint_eq(b.done, 1);
	ck_assert_uint_eq(b.o.hits, 2);
	ck_assert_uint_eq(b.status[2], STORE_ONBOARD_DEADLINE);
	low_onboard_end(&l, h, &b);
	/* It comes after all, for the next one. */
	fake_lower_unstick(l.t);
	low_settle(&l);
	ck_assert_uint_eq(low_count(h, 1, 5, STORE_IN_G2), 5);
	teardown_below();
}
END_TEST

/* Those that wait for a transfer are told when what they waited for came in another way. */
START_TEST(who_waits_is_told_when_nothing_is_left_to_wait_for)
{
	struct low_onboard a, b;

	memset(&l, 0, sizeof(l));
	l.config.max_transfers = 1;
	low_make(&l, 4, 8, 32);
	h = low_attach(&l, "a");
	low_put_below(&l, h, 1, 8);
	ck_assert_int_eq(low_onboard(&l, h, &a, 1, 1), STORE_E_WAIT);
	ck_assert_int_eq(low_onboard(&l, h, &b, 5, 1), STORE_E_WAIT);
	ck_assert_int_eq(fix_reserve(&l.f, h, 0, 5, 1), 0);
	low_commit(&l, h, 5, 1, 0);
	ck_assert_uint_eq(low_tiers(h, 5), STORE_IN_G2 | STORE_IN_G3);
	low_settle(&l);
	ck_assert_uint_eq(a.done, 1);
	ck_assert_uint_eq(b.done, 1);
	low_onboard_end(&l, h, &a);
	low_onboard_end(&l, h, &b);
	/* And when it went. */
	ck_assert_int_eq(low_onboard(&l, h, &a, 2, 1), STORE_E_WAIT);
	ck_assert_int_eq(low_onboard(&l, h, &b, 6, 1), STORE_E_WAIT);
	lower_drop(store_ns_of(h), lower_find(low_ns(h)->lower, (const uint8_t *)&b.keys[0]), WHY_FLUSHED);
	low_settle(&l);
	ck_assert_uint_eq(b.done, 1);
	ck_assert_uint_eq(b.status[0], STORE_ONBOARD_MISSING);
	low_onboard_end(&l, h, &a);
	low_onboard_end(&l, h, &b);
	teardown_below();
}
END_TEST

/* More than fits at once: they come in order, a few at a time. */
START_TEST(transfers_are_shared_by_many)
{
	struct low_onboard b[4];

	memset(&l, 0, sizeof(l));
	l.config.max_transfers = 2;
	low_make(&l, 4, 8, 32);
	h = low_attach(&l, "a");
	low_put_below(&l, h, 1, 8);
	for (uint64_t i = 0; i < 4; i++)
		ck_assert_int_eq(low_onboard(&l, h, &b[i], 1 + 2 * i, 2), STORE_E_WAIT);
	low_settle(&l);
	for (int i = 0; i < 4; i++) {
		ck_assert_uint_eq(b[i].done, 1);
		ck_assert_uint_eq(b[i].o.hits, 2);
		low_onboard_end(&l, h, &b[i]);
	}
	teardown_below();
}
END_TEST

START_TEST(a_tier_that_takes_no_more_for_now_is_waited_for)
{
	struct low_onboard b;

	setup_below();
	fake_lower_limit(l.t, 1);
	ck_assert_int_eq(low_onboard(&l, h, &b, 1, 8), STORE_E_WAIT);
	low_settle(&l);
	ck_assert_uint_eq(b.o.hits, 8);
	low_onboard_end(&l, h, &b);
	teardown_below();
}
END_TEST

START_TEST(held_memory_makes_it_busy)
{
	struct low_onboard b, c;

	setup_below();
	ck_assert_int_eq(low_onboard(&l, h, &c, 1000000, 16), 0);
	ck_assert_uint_eq(c.o.hits, 16);
	ck_assert_int_eq(low_onboard(&l, h, &b, 1, 4), STORE_E_WAIT);
	low_settle(&l);
	ck_assert_uint_eq(b.done, 0);
	store_tick(l.f.store, l.f.now_ns + 500);
	ck_assert_uint_eq(b.done, 0);
	/* Room comes without a copy. */
	ck_assert_int_eq(store_release(h, c.slots, c.generations, 2), 0);
	store_tick(l.f.store, l.f.now_ns + 501);
	low_settle(&l);
	store_tick(l.f.store, l.f.now_ns + 1000);
	ck_assert_uint_eq(b.done, 1);
	ck_assert_uint_eq(b.o.hits, 2);
	ck_assert_uint_eq(b.status[2], STORE_ONBOARD_BUSY);
	low_onboard_end(&l, h, &b);
	ck_assert_int_eq(store_release(h, c.slots + 2, c.generations + 2, 14), 0);
	teardown_below();
}
END_TEST

/* More than there is memory, and nobody keeps it: the beginning is not pushed out by the end. */
START_TEST(a_long_prefix_does_not_push_out_its_beginning)
{
	struct low_onboard b;

	low_new(&l, 4, 8, 32);
	h = low_attach(&l, "a");
	low_put_below(&l, h, 1, 24);
	low_onboard_init(&l, &b, 1, 24);
	b.o.hold = false;
	b.o.prefetch = _i;
	ck_assert_int_eq(store_onboard(h, &b.o), STORE_E_WAIT);
	low_settle(&l);
	store_tick(l.f.store, l.f.now_ns + 1000);
	low_settle(&l);
	ck_assert_uint_eq(b.done, 1);
	ck_assert_uint_ge(b.o.hits, _i ? 4 : 16);
	ck_assert_uint_eq(low_count(h, 1, b.o.hits, STORE_IN_G2), b.o.hits);
	ck_assert_uint_eq(report().holds, 0);
	low_onboard_end(&l, h, &b);
	teardown_below();
}
END_TEST

START_TEST(prefetch_takes_only_clean_room)
{
	struct low_onboard b;
	struct ns_report before;

	setup_below();
	before = report();
	fake_lower_fail(l.t, true, FAKE_LOWER_STUCK, 1, UINT32_MAX);
	ck_assert_uint_ge(before.clean, 1);
	low_onboard_init(&l, &b, 1, 8);
	b.o.hold = false;
	b.o.prefetch = true;
	ck_assert_int_eq(store_onboard(h, &b.o), STORE_E_WAIT);
	low_settle(&l);
	store_tick(l.f.store, l.f.now_ns + 1000);
	ck_assert_uint_eq(b.done, 1);
	ck_assert_uint_ge(b.o.hits, 1);
	ck_assert_uint_le(b.o.hits, before.clean + before.free);
	ck_assert_uint_eq(low_anywhere(h, 1000000, 16), 16);
	ck_assert_uint_eq(report().looked_up, before.looked_up); /* nobody asked for them */
	low_onboard_end(&l, h, &b);
	/* They go first; a use rescues them. */
	fake_lower_fail(l.t, true, FAKE_LOWER_NONE, 1, 1);
	fake_lower_unstick(l.t);
	low_settle(&l);
	teardown_below();
}
END_TEST

START_TEST(prefetched_blocks_go_first_unless_used)
{
	struct low_onboard b;

	low_new(&l, 4, 8, 32);
	h = low_attach(&l, "a");
	low_put_below(&l, h, 1, 8);
	low_onboard_init(&l, &b, 1, 4);
	b.o.hold = false;
	b.o.prefetch = true;
	ck_assert_int_eq(store_onboard(h, &b.o), STORE_E_WAIT);
	low_settle(&l);
	ck_assert_uint_eq(b.o.hits, 4);
	low_onboard_end(&l, h, &b);
	low_put(&l, h, 2000000, 2);
	fix_hold(&l.f, h, 4, 1); /* the others may have gone already */
	ck_assert_int_eq(store_release(h, l.f.slots, l.f.generations, 1), 0);
	low_put(&l, h, 2000002, 8);
	ck_assert_uint_eq(low_count(h, 1, 3, STORE_IN_G2), 0);
	ck_assert_uint_eq(low_count(h, 4, 1, STORE_IN_G2), 1);
	ck_assert_uint_gt(low_count(h, 1000008, 8, STORE_IN_G2), 0);
	teardown_below();
}
END_TEST

START_TEST(what_would_come_too_late_is_to_be_recomputed)
{
	struct low_onboard b;

	setup_below();
	fake_lower_set_speed(l.t, LOW_BLOCK * 1000, 1000000); /* 1 ms a block, and 1 ms before the first */
	low_onboard_init(&l, &b, 1, 8);
	b.o.recompute_ns = 100000;
	ck_assert_int_eq(store_onboard(h, &b.o), 0);
	ck_assert_uint_eq(b.o.hits, 0);
	for (int i = 0; i < 8; i++)
		ck_assert_uint_eq(b.status[i], STORE_ONBOARD_RECOMPUTE);
	low_onboard_init(&l, &b, 1, 8);
	b.o.recompute_ns = 10000000;
	ck_assert_int_eq(store_onboard(h, &b.o), STORE_E_WAIT);
	low_settle(&l);
	ck_assert_uint_eq(b.o.hits, 8);
	low_onboard_end(&l, h, &b);
	teardown_below();
}
END_TEST

START_TEST(a_commit_during_the_read_wins)
{
	struct low_onboard b;
	struct ns_report r;

	setup_below();
	ck_assert_int_eq(low_onboard(&l, h, &b, 1, 2), STORE_E_WAIT);
	low_reserve(&l, h, 3, 1);
	ck_assert_int_eq(fix_reserve(&l.f, h, 0, 1, 1), 0);
	low_commit(&l, h, 1, 1, 0);
	low_settle(&l);
	ck_assert_uint_eq(b.o.hits, 2);
	low_onboard_end(&l, h, &b);
	r = report();
	ck_assert_uint_eq(r.deduplicated, 1);
	ck_assert_uint_ge(r.twins, 2);
	teardown_below();
}
END_TEST

/* The same when what was read is wrong: the new block stays. */
START_TEST(a_commit_during_a_wrong_read_stays)
{
	struct low_onboard b;

	setup_below();
	fake_lower_fail(l.t, false, FAKE_LOWER_CORRUPT, 1, 1);
	ck_assert_int_eq(low_onboard(&l, h, &b, 1, 1), STORE_E_WAIT);
	low_reserve(&l, h, 1, 1);
	low_commit(&l, h, 1, 1, 0);
	low_settle(&l);
	ck_assert_uint_eq(b.status[0], STORE_ONBOARD_FAILED);
	ck_assert_uint_eq(low_tiers(h, 1), STORE_IN_G2);
	low_onboard_end(&l, h, &b);
	/* It is written again before it goes. */
	low_put(&l, h, 5000, 20);
	low_settle(&l);
	ck_assert_uint_eq(low_tiers(h, 1), STORE_IN_G3);
	teardown_below();
}
END_TEST

START_TEST(a_chain_that_came_back_is_a_chain)
{
	struct low_onboard b;
	struct block_report r;
	uint64_t key = 2;
	struct key k = key_from((const uint8_t *)&key, 8);

	low_new(&l, 4, 8, 32);
	h = low_attach(&l, "a");
	low_reserve(&l, h, 1, 4);
	low_commit(&l, h, 1, 4, 0);
	low_put(&l, h, 1000000, 20);
	low_settle(&l);
	ck_assert_uint_eq(low_count(h, 1, 4, STORE_IN_G2), 0);
	ck_assert_int_eq(low_onboard(&l, h, &b, 1, 4), STORE_E_WAIT);
	while (fake_lower_in_flight(l.t)) /* the children first */
		fake_lower_release_at(l.t, fake_lower_in_flight(l.t) - 1);
	low_settle(&l);
	low_onboard_end(&l, h, &b);
	ck_assert_int_eq(store_block(l.f.store, "a", &k, &r), 0);
	ck_assert(r.parent_present && r.children == 1);
	low_put(&l, h, 2000000, 14);
	for (uint64_t i = 1; i < 4; i++)
		ck_assert((low_tiers(h, i) & STORE_IN_G2) || !(low_tiers(h, i + 1) & STORE_IN_G2));
	teardown_below();
}
END_TEST

START_TEST(holds_over_the_limit_are_busy)
{
	struct low_onboard b;

	setup_below();
	l.f.user.session.limit[QUOTA_HOLDS] = 3;
	ck_assert_int_eq(low_onboard(&l, h, &b, 1, 5), STORE_E_WAIT);
	low_settle(&l);
	ck_assert_uint_eq(b.o.hits, 3);
	ck_assert_uint_eq(l.f.user.session.used[QUOTA_HOLDS], 3);
	ck_assert_uint_eq(b.status[3], STORE_ONBOARD_BUSY);
	low_onboard_end(&l, h, &b);
	teardown_below();
}
END_TEST

/* What an onboard under way keeps is not its session's to release yet. */
START_TEST(what_is_not_told_yet_cannot_be_released)
{
	struct low_onboard b;
	uint32_t slot, generation;
	uint64_t key = 1;

	setup_below();
	ck_assert_int_eq(low_onboard(&l, h, &b, 1, 1), STORE_E_WAIT);
	low_settle(&l);
	low_onboard_end(&l, h, &b);
	fake_lower_fail(l.t, false, FAKE_LOWER_STUCK, 1, 1);
	ck_assert_int_eq(low_onboard(&l, h, &b, 1, 2), STORE_E_WAIT);
	slot = block_find(low_ns(h), (const uint8_t *)&key);
	generation = ns_slot_generation(low_ns(h), slot);
	ck_assert_int_eq(store_release(h, &slot, &generation, 1), STORE_E_NOTHELD);
	ck_assert_uint_eq(l.f.user.session.used[QUOTA_HOLDS], 0);
	store_check(l.f.store);
	if (_i == 0)
		store_tick(l.f.store, l.f.now_ns + 1000);
	else
		store_onboard_cancel(&b.o);
	ck_assert_uint_eq(b.done, _i == 0);
	ck_assert_uint_eq(l.f.user.session.used[QUOTA_HOLDS], _i == 0);
	low_onboard_end(&l, h, &b);
	fake_lower_unstick(l.t);
	low_settle(&l);
	teardown_below();
}
END_TEST

START_TEST(nothing_to_bring_is_done_at_once)
{
	struct low_onboard b;

	setup_below();
	ck_assert_int_eq(low_onboard(&l, h, &b, 1, 0), 0);
	ck_assert_uint_eq(b.o.hits, 0);
	low_onboard_end(&l, h, &b);
	teardown_below();
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {
		a_prefix_comes_up_and_is_held,
		two_who_want_one_block_share_its_read,
		a_missing_block_ends_the_prefix,
		offline_is_failed_not_missing_and_loses_nothing,
		an_end_at_every_step,
		the_deadline_is_told_and_kept,
		who_waits_is_told_when_nothing_is_left_to_wait_for,
		transfers_are_shared_by_many,
		a_tier_that_takes_no_more_for_now_is_waited_for,
		held_memory_makes_it_busy,
		prefetch_takes_only_clean_room,
		prefetched_blocks_go_first_unless_used,
		what_would_come_too_late_is_to_be_recomputed,
		a_commit_during_the_read_wins,
		a_commit_during_a_wrong_read_stays,
		a_chain_that_came_back_is_a_chain,
		holds_over_the_limit_are_busy,
		nothing_to_bring_is_done_at_once,
	};
	const struct low_loop loops[] = {
		{ what_cannot_be_read_cuts_the_prefix, 3 },
		{ what_is_not_told_yet_cannot_be_released, 2 },
		{ a_long_prefix_does_not_push_out_its_beginning, 2 },
	};

	return low_run("onboard", tests, LOW_N(tests), loops, LOW_N(loops));
}
