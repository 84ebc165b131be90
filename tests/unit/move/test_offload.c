/* SPDX-License-Identifier: Apache-2.0 */
/* move/offload.c: which blocks are written down, in which order, and that nothing that could be is dropped instead. */
#include "tests/unit/move/onboard_fixture.h"

static struct low l;

static void low_new_write(enum store_write write, uint64_t mib, uint32_t areas, uint32_t area_slots)
{
	memset(&l, 0, sizeof(l));
	l.config.write = write;
	low_make(&l, mib, areas, area_slots);
}

/* Puts @n blocks and never has to wait for longer than the tier works. */
static void put_is_never_late(struct holder *h, uint64_t first, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		low_put(&l, h, first + i, 1);
		low_verify_all(h);
	}
}

START_TEST(nothing_is_written_before_memory_is_short)
{
	struct holder *h;

	low_new(&l, 4, 4, 32);
	h = low_attach(&l, "a");
	low_put(&l, h, 1, 8);
	low_settle(&l);
	ck_assert_uint_eq(fake_lower_writes(l.t), 0);
	fix_close(h);
	low_free(&l);
}
END_TEST

START_TEST(order_of_writing_is_order_of_dropping)
{
	uint64_t written = 0, dropped = 0;
	struct holder *h;

	low_new(&l, 4, 8, 32);
	h = low_attach(&l, "a");
	for (uint64_t key = 1; key <= 100; key++) {
		low_reserve(&l, h, key, 1);
		low_commit(&l, h, key, 1, 0);
		do {
			const struct tier_io *io = fake_lower_io(l.t, 0);

			if (io)
				ck_assert_uint_eq(low_key_of(io), ++written);
		} while (fake_lower_release(l.t) || fake_sums_release(l.sums));
		while (low_tiers(h, dropped + 1) == STORE_IN_G3)
			dropped++;
		ck_assert_uint_eq(low_count(h, dropped + 1, (uint32_t)(key - dropped < 60 ? key - dropped : 60), STORE_IN_G2),
		                  key - dropped);
		ck_assert_uint_le(dropped, written);
	}
	ck_assert_uint_ge(dropped, 84);
	ck_assert_uint_eq(low_anywhere(h, 1, 100), 100);
	fix_close(h);
	low_free(&l);
}
END_TEST

/* A chain: its head need not wait until its tail has been dropped, only until that is being written. */
START_TEST(leaves_are_written_before_their_parents)
{
	struct holder *h;
	uint64_t last = 17;

	low_new(&l, 4, 4, 32);
	h = low_attach(&l, "a");
	low_reserve(&l, h, 1, 16);
	low_commit(&l, h, 1, 16, 0); /* 1 <- 2 <- .. <- 16 */
	while (fake_sums_release(l.sums))
		;
	ck_assert_int_eq(fix_reserve(&l.f, h, 0, 101, 6), STORE_E_WAIT);
	ck_assert_uint_eq(store_ns_of(h)->n_transfers, 6);
	for (uint32_t i = 0; i < 6; i++)
		ck_assert_uint_eq(low_key_of(fake_lower_io(l.t, i)), --last);
	/* Whatever is written first: the tail goes first. */
	while (fake_lower_in_flight(l.t))
		fake_lower_release_at(l.t, fake_lower_in_flight(l.t) - 1);
	store_check(l.f.store);
	for (uint64_t key = 101; key <= 112; key++) {
		low_reserve(&l, h, key, 1);
		low_commit(&l, h, key, 1, 0);
		for (uint64_t k = 1; k < 16; k++)
			ck_assert((low_tiers(h, k) & STORE_IN_G2) || !(low_tiers(h, k + 1) & STORE_IN_G2));
		ck_assert_uint_eq(low_anywhere(h, 1, 16), 16);
	}
	low_settle(&l);
	fix_close(h);
	low_free(&l);
}
END_TEST

START_TEST(what_is_not_below_is_not_dropped_while_waiting_can_help)
{
	struct holder *h;

	low_new(&l, 4, 4, 32);
	h = low_attach(&l, "a");
	low_put(&l, h, 1, 16);
	ck_assert_uint_eq(low_count(h, 1, 16, STORE_IN_G2), 16);
	ck_assert_int_eq(fix_reserve(&l.f, h, 0, 101, 6), STORE_E_WAIT);
	ck_assert_uint_eq(l.f.dropped, 0);
	ck_assert_uint_eq(low_count(h, 1, 16, STORE_IN_G2), 16);
	low_reserve(&l, h, 101, 6);
	ck_assert_uint_eq(l.f.dropped, 6);
	ck_assert_uint_eq(low_anywhere(h, 1, 16), 16);
	ck_assert_uint_eq(low_count(h, 1, 6, STORE_IN_G3), 6);
	low_commit(&l, h, 101, 6, 0);
	low_settle(&l);
	ck_assert_uint_eq(low_anywhere(h, 1, 16), 16);
	fix_close(h);
	low_free(&l);
}
END_TEST

/* Whatever the tier answers to writes: memory goes on being used, and nobody waits for what cannot help. */
START_TEST(a_failing_tier_does_not_fill_memory)
{
	static const enum fake_lower_fault faults[] = { FAKE_LOWER_IO, FAKE_LOWER_FULL, FAKE_LOWER_GONE };
	struct holder *h;

	low_new(&l, 4, 4, 32);
	h = low_attach(&l, "a");
	low_put(&l, h, 1, 4);
	fake_lower_fail(l.t, true, faults[_i], 1, UINT64_MAX >> 32);
	put_is_never_late(h, 11, 80);
	low_settle(&l);
	ck_assert_uint_eq(fake_lower_valid(l.t), 0);
	/* It works again: blocks are written again. */
	fake_lower_fail(l.t, true, FAKE_LOWER_NONE, 1, 1);
	put_is_never_late(h, 201, 40);
	low_settle(&l);
	ck_assert_uint_gt(fake_lower_valid(l.t), 20);
	fix_close(h);
	low_free(&l);
}
END_TEST

/* A write that is refused while others are under way is only put off. */
START_TEST(a_busy_tier_is_waited_for)
{
	struct holder *h;

	low_new(&l, 4, 8, 32);
	fake_lower_limit(l.t, 2);
	h = low_attach(&l, "a");
	put_is_never_late(h, 1, 120);
	low_settle(&l);
	ck_assert_uint_eq(low_anywhere(h, 1, 60) + low_anywhere(h, 61, 60), 120);
	fix_close(h);
	low_free(&l);
}
END_TEST

START_TEST(nobody_waits_without_room_below)
{
	struct holder *h;

	low_new(&l, 4, 4, 32);
	l.f.policies[0].lower_max_bytes = 0;
	h = low_attach(&l, "a");
	put_is_never_late(h, 1, 80);
	ck_assert_uint_eq(fake_lower_writes(l.t), 0);
	fix_close(h);
	low_free(&l);
}
END_TEST

START_TEST(blocks_known_by_checksum_do_not_block_either)
{
	struct low_onboard b;
	struct holder *h;

	low_new(&l, 4, 1, 20);
	h = low_attach(&l, "a");
	low_put_below(&l, h, 1, 4);
	ck_assert_int_eq(low_onboard(&l, h, &b, 1, 4), STORE_E_WAIT);
	low_settle(&l);
	low_onboard_end(&l, h, &b);
	/* Their copies go, their sums stay: a write is begun, and refused, at once. */
	low_put(&l, h, 2000, 60);
	fake_lower_fail(l.t, true, FAKE_LOWER_FULL, 1, UINT32_MAX);
	put_is_never_late(h, 3000, 80);
	fix_close(h);
	low_free(&l);
}
END_TEST

START_TEST(through_writes_after_commit_and_only_once)
{
	struct holder *h;

	low_new_write(STORE_WRITE_THROUGH, 4, 8, 32);
	h = low_attach(&l, "a");
	low_put(&l, h, 1, 8);
	low_settle(&l);
	ck_assert_uint_eq(low_count(h, 1, 8, STORE_IN_G2 | STORE_IN_G3), 8);
	ck_assert_uint_eq(fake_lower_writes(l.t), 8);
	low_put(&l, h, 9, 92);
	low_settle(&l);
	ck_assert_uint_eq(fake_lower_writes(l.t), 100);
	ck_assert_uint_eq(low_count(h, 1, 50, STORE_IN_G3) + low_count(h, 51, 50, STORE_IN_G3), 100);
	ck_assert_uint_eq(low_count(h, 85, 16, STORE_IN_G2), 16);
	fix_close(h);
	low_free(&l);
}
END_TEST

START_TEST(through_goes_on_where_it_had_no_transfer)
{
	struct holder *h;

	memset(&l, 0, sizeof(l));
	l.config.max_transfers = 1;
	l.config.write = STORE_WRITE_THROUGH;
	low_make(&l, 4, 8, 32);
	h = low_attach(&l, "a");
	for (uint64_t key = 1; key <= 8; key++) {
		ck_assert_int_eq(fix_reserve(&l.f, h, 0, key, 1), 0);
		low_commit(&l, h, key, 1, 0);
	}
	low_settle(&l);
	ck_assert_uint_eq(low_count(h, 1, 8, STORE_IN_G3), 8);
	fix_close(h);
	low_free(&l);
}
END_TEST

START_TEST(if_hit_writes_what_was_used)
{
	struct holder *h;

	low_new_write(STORE_WRITE_IF_HIT, 4, 8, 32);
	h = low_attach(&l, "a");
	low_put(&l, h, 1, 8);
	fix_hint(&l.f, h, STORE_HINT_TOUCH, 3, 2);
	put_is_never_late(h, 11, 40);
	low_settle(&l);
	ck_assert_uint_eq(fake_lower_writes(l.t), 2);
	ck_assert_uint_eq(low_count(h, 3, 2, STORE_IN_G3), 2);
	ck_assert_uint_eq(low_anywhere(h, 1, 2) + low_anywhere(h, 5, 4), 0);
	fix_close(h);
	low_free(&l);
}
END_TEST

START_TEST(never_writes_nothing_and_waits_for_nothing)
{
	struct holder *h;

	low_new_write(STORE_WRITE_NEVER, 4, 8, 32);
	h = low_attach(&l, "a");
	for (uint64_t key = 1; key <= 80; key++) {
		ck_assert_int_eq(fix_reserve(&l.f, h, 0, key, 1), 0);
		low_commit(&l, h, key, 1, 0);
	}
	ck_assert_uint_eq(fake_lower_writes(l.t), 0);
	fix_close(h);
	low_free(&l);
}
END_TEST

START_TEST(a_stuck_write_keeps_its_slots_and_no_others)
{
	struct holder *h;

	low_new(&l, 4, 8, 32);
	h = low_attach(&l, "a");
	fake_lower_fail(l.t, true, FAKE_LOWER_STUCK, 1, 1);
	put_is_never_late(h, 1, 60);
	low_settle(&l);
	ck_assert_uint_eq(low_tiers(h, 1), STORE_IN_G2);
	ck_assert_uint_eq(store_ns_of(h)->n_transfers, 1);
	fake_lower_unstick(l.t);
	put_is_never_late(h, 101, 20);
	low_settle(&l);
	ck_assert_uint_eq(low_tiers(h, 1), STORE_IN_G3);
	fix_close(h);
	low_free(&l);
}
END_TEST

START_TEST(what_is_being_written_is_not_dropped)
{
	struct ns_report r;
	struct holder *h;
	uint32_t dropped, kept;

	low_new(&l, 4, 8, 32);
	h = low_attach(&l, "a");
	low_put(&l, h, 1, 16);
	ck_assert_uint_gt(store_ns_of(h)->n_transfers, 0);
	ck_assert_int_eq(store_flush(l.f.store, "a", &dropped, &kept), 0);
	ck_assert_uint_eq(kept, store_ns_of(h)->n_transfers);
	ck_assert_uint_eq(dropped + kept, 16);
	store_check(l.f.store);
	low_settle(&l);
	ck_assert_int_eq(store_flush(l.f.store, "a", &dropped, &kept), 0);
	ck_assert_uint_eq(kept, 0);
	store_report(l.f.store, 0, &r);
	ck_assert_uint_eq(r.lower_used, 0);
	ck_assert_uint_eq(r.stored, r.dropped);
	ck_assert_uint_eq(fake_lower_valid(l.t), 0);
	fix_close(h);
	low_free(&l);
}
END_TEST

START_TEST(without_the_tier_it_goes_on_as_without_one)
{
	struct holder *h;

	low_new(&l, 4, 8, 32);
	h = low_attach(&l, "a");
	low_put(&l, h, 1, 20);
	fake_lower_set_online(l.t, false);
	low_settle(&l);
	for (uint64_t key = 101; key < 140; key++) {
		ck_assert_int_eq(fix_reserve(&l.f, h, 0, key, 1), 0);
		low_commit(&l, h, key, 1, 0);
	}
	ck_assert_uint_eq(fake_lower_in_flight(l.t), 0);
	fake_lower_set_online(l.t, true);
	put_is_never_late(h, 201, 40);
	low_settle(&l);
	ck_assert_uint_gt(low_count(h, 201, 40, STORE_IN_G3), 20);
	fix_close(h);
	low_free(&l);
}
END_TEST

/* When all of the tier is in use its coldest go. */
START_TEST(a_full_tier_drops_its_coldest)
{
	struct holder *h;

	low_new(&l, 4, 4, 8);
	h = low_attach(&l, "a");
	put_is_never_late(h, 1, 200);
	low_settle(&l);
	ck_assert_uint_eq(low_anywhere(h, 1, 50) + low_anywhere(h, 51, 50) + low_anywhere(h, 101, 50), 0);
	ck_assert_uint_ge(low_anywhere(h, 151, 50), 44);
	ck_assert_uint_eq(low_count(h, 185, 16, STORE_IN_G2), 16);
	ck_assert_uint_le(fake_lower_valid(l.t), 32);
	fix_close(h);
	low_free(&l);
}
END_TEST

/* Nothing has to be copied, and nothing is under way that could be waited for. */
START_TEST(a_chain_that_is_below_makes_room_at_once)
{
	struct holder *h;

	memset(&l, 0, sizeof(l));
	l.config.write = STORE_WRITE_THROUGH;
	low_make(&l, 16, 4, 32);
	h = low_attach(&l, "a");
	low_reserve(&l, h, 1, 64);
	low_commit(&l, h, 1, 64, 0); /* 1 <- 2 <- .. <- 64 */
	low_settle(&l);
	ck_assert_uint_eq(low_count(h, 1, 64, STORE_IN_G2 | STORE_IN_G3), 64);
	low_reserve(&l, h, 1000, 40);
	ck_assert_uint_eq(l.f.dropped, 40);
	ck_assert_uint_eq(low_anywhere(h, 1, 64), 64);
	low_commit(&l, h, 1000, 40, 0);
	low_settle(&l);
	fix_close(h);
	low_free(&l);
}
END_TEST

/* A slot is not overwritten before the tier has noted that it is free: so some are, ahead of need, and more than one at a time. */
START_TEST(slots_below_are_set_free_ahead)
{
	struct holder *h;
	const struct lower *lower;
	uint32_t least = UINT32_MAX, falls = 0, last;

	low_new(&l, 4, 2, 512);
	h = low_attach(&l, "a");
	put_is_never_late(h, 1, 1100);
	low_settle(&l);
	lower = low_ns(h)->lower;
	last = lower->n_free;
	for (uint64_t key = 1101; key <= 1200; key++) {
		put_is_never_late(h, key, 1);
		low_settle(&l);
		falls += lower->n_free < last;
		last = lower->n_free;
		least = last < least ? last : least;
		ck_assert_uint_le(last, 8);
	}
	ck_assert_uint_eq(least, 4);
	ck_assert_uint_ge(falls, 75);
	fix_close(h);
	low_free(&l);
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {
		nothing_is_written_before_memory_is_short,
		order_of_writing_is_order_of_dropping,
		leaves_are_written_before_their_parents,
		what_is_not_below_is_not_dropped_while_waiting_can_help,
		a_busy_tier_is_waited_for,
		nobody_waits_without_room_below,
		blocks_known_by_checksum_do_not_block_either,
		through_writes_after_commit_and_only_once,
		through_goes_on_where_it_had_no_transfer,
		if_hit_writes_what_was_used,
		never_writes_nothing_and_waits_for_nothing,
		a_stuck_write_keeps_its_slots_and_no_others,
		what_is_being_written_is_not_dropped,
		without_the_tier_it_goes_on_as_without_one,
		a_full_tier_drops_its_coldest,
		a_chain_that_is_below_makes_room_at_once,
		slots_below_are_set_free_ahead,
	};

	const struct low_loop loops[] = { { a_failing_tier_does_not_fill_memory, 3 } };

	return low_run("offload", tests, LOW_N(tests), loops, LOW_N(loops));
}
