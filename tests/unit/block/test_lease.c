/* SPDX-License-Identifier: Apache-2.0 */
/* Unit tests of block/lease.c: lanes, the states of a partial, quarantine, pins and their stamps, holds by message. */
#include "block/lease.h"

#include "base/rng.h"
#include "tests/unit/block/fixture.h"

static struct fixture f;
static struct holder a, b;
static uint8_t key[KEY_MAX];

static void setup_lanes(uint32_t lanes)
{
	fixture_open(&f, fixture_desc(lanes, 16), 2, 16);
	fixture_holder(&f, &a, true);
	fixture_holder(&f, &b, true);
	fixture_key(1, key);
}

static void setup_one(void)
{
	setup_lanes(1);
}

static void setup_four(void)
{
	setup_lanes(4);
}

static void teardown(void)
{
	fixture_empty(&f);
	ck_assert(list_empty(&f.ns.partials));
	ck_assert_uint_eq(f.ns.n_free, f.ns.n_slots);
	fixture_holder_close(&a);
	fixture_holder_close(&b);
	ck_assert_uint_eq(f.ns.n_holders, 0);
	fixture_close(&f);
}

static uint64_t reserved(void)
{
	return f.user.session.used[QUOTA_SLOTS];
}

/* Joins, as store_reserve() does. */
static uint32_t join(struct holder *h, uint64_t lanes)
{
	uint32_t slot = lease_write_join(h, key, lanes);

	if (slot != NS_NONE)
		ck_assert_int_eq(quota_charge(h->user, QUOTA_SLOTS, 1), 0);
	return slot;
}

/* ---- one writer ---- */

START_TEST(reserve_write_done)
{
	uint32_t slot = fixture_reserve(&a, key, 1, 7);
	struct lease *lease = fixture_lease(&a, slot, 1);
	struct partial *p;

	ck_assert_ptr_nonnull(lease);
	ck_assert_uint_eq(ns_slot_state(&f.ns, slot), SHM_PARTIAL);
	ck_assert_uint_eq(a.n_leases, 1);
	ck_assert_ptr_eq(lease_partial(&f.ns, slot), lease->partial);
	ck_assert_uint_eq(lease->partial->deadline_ns, 7);
	ck_assert_ptr_eq(list_first(&f.ns.partials), &lease->partial->by_deadline);
	ck_assert_ptr_null(fixture_lease(&b, slot, 1)); /* not its */
	ck_assert_ptr_null(lease_find(&a, slot, ns_slot_generation(&f.ns, slot) + 1, 1));
	ck_assert_ptr_null(lease_find(&a, slot + 1, 0, 1)); /* free */
	ck_assert_ptr_null(lease_find(&a, NS_NONE, 0, 1));
	ck_assert(lease_write_lanes(lease, 1, &p));
	ck_assert_uint_eq(a.n_leases, 0);
	ck_assert_uint_eq(reserved(), 0);
	lease_write_done(&f.ns, p);
	ns_slot_free(&f.ns, slot, SHM_PARTIAL);
	ck_assert_ptr_null(lease_find(&a, slot, ns_slot_generation(&f.ns, slot), 1));
}
END_TEST

START_TEST(abort_frees_the_slot)
{
	uint32_t slot = fixture_reserve(&a, NULL, 1, 0);

	lease_abort(fixture_lease(&a, slot, 1));
	ck_assert_uint_eq(ns_slot_state(&f.ns, slot), SHM_FREE);
	ck_assert_uint_eq(reserved(), 0);
	ck_assert_uint_eq(f.ns.counts.aborted, 1);
}
END_TEST

/* Past its deadline a writer may still write: quarantine until it lets go. */
START_TEST(deadline_means_quarantine)
{
	uint32_t slot = fixture_reserve(&a, key, 1, 0);
	struct partial *p = lease_partial(&f.ns, slot);

	lease_partial_abort(&f.ns, p);
	lease_partial_abort(&f.ns, p); /* once is enough */
	ck_assert_uint_eq(ns_slot_state(&f.ns, slot), SHM_QUARANTINE);
	ck_assert_uint_eq(f.ns.n_quarantined, 1);
	ck_assert_uint_eq(f.ns.counts.aborted, 1);
	ck_assert(list_empty(&f.ns.partials)); /* no further deadline */
	ck_assert_uint_eq(reserved(), 1);
	ck_assert_ptr_nonnull(fixture_lease(&a, slot, 1));
	lease_abort(fixture_lease(&a, slot, 1));
	ck_assert_uint_eq(ns_slot_state(&f.ns, slot), SHM_FREE);
	ck_assert_uint_eq(reserved(), 0);
}
END_TEST

START_TEST(writing_what_was_aborted_aborts)
{
	uint32_t slot = fixture_reserve(&a, key, 1, 0);
	struct partial *p = lease_partial(&f.ns, slot);

	lease_partial_abort(&f.ns, p);
	lease_write_lanes(fixture_lease(&a, slot, 1), 1, &p);
}
END_TEST

START_TEST(deadlines_are_in_order)
{
	uint32_t slots[10];
	uint64_t last = 0;

	for (uint32_t i = 0; i < 10; i++)
		slots[i] = fixture_reserve(i % 2 ? &a : &b, NULL, 1, 100 + i);
	lease_abort(fixture_lease(&b, slots[4], 1));
	list_for_each(it, &f.ns.partials) {
		const struct partial *p = container_of(it, struct partial, by_deadline);

		ck_assert_uint_gt(p->deadline_ns, last);
		ck_assert_uint_ne(p->deadline_ns, 104);
		last = p->deadline_ns;
	}
	for (uint32_t i = 0; i < 10; i++)
		if (i != 4)
			lease_abort(fixture_lease(i % 2 ? &a : &b, slots[i], 1));
}
END_TEST

/* Numbers of partials are used again, and there may be more of them than one step of the table. */
START_TEST(partial_numbers_are_used_again)
{
	uint32_t most = 0;

	for (int round = 0; round < 3; round++) {
		uint32_t slots[32];

		for (uint32_t i = 0; i < 32; i++)
			slots[i] = fixture_reserve(&a, NULL, 1, 0);
		for (uint32_t i = 0; i < 32; i++) {
			const struct partial *p = lease_partial(&f.ns, slots[i]);

			ck_assert_uint_eq(p->slot, slots[i]);
			most = p->number > most ? p->number : most;
		}
		for (uint32_t i = 0; i < 32; i++)
			lease_abort(fixture_lease(&a, slots[(i * 7 + (uint32_t)round) % 32], 1));
	}
	ck_assert_uint_eq(most, 31);
	ck_assert_uint_eq(f.ns.partial_cap, 32);
}
END_TEST

START_TEST(one_lane_has_nothing_to_join)
{
	uint32_t slot = fixture_reserve(&a, key, 1, 0);

	ck_assert(!lease_can_join(&f.ns, key, 1));
	ck_assert_uint_eq(join(&b, 1), NS_NONE);
	lease_abort(fixture_lease(&a, slot, 1));
}
END_TEST

/* ---- lanes ---- */

START_TEST(lanes_are_joined)
{
	uint32_t slot = fixture_reserve(&a, key, 1, 0);
	struct partial *p;

	ck_assert(lease_can_join(&f.ns, key, 2));
	ck_assert(!lease_can_join(&f.ns, key, 1)); /* somebody has it */
	ck_assert(!lease_can_join(&f.ns, key, 3));
	ck_assert_uint_eq(join(&b, 2), slot);
	ck_assert_uint_eq(join(&a, 0xc), slot);
	ck_assert_uint_eq(join(&b, 8), NS_NONE);
	ck_assert_uint_eq(reserved(), 3);
	ck_assert(!lease_write_lanes(fixture_lease(&b, slot, 2), 2, &p));
	ck_assert_uint_eq(f.ns.records[slot].sum, 2);
	ck_assert(!lease_write_lanes(fixture_lease(&a, slot, 4), 4, &p)); /* one of the two */
	ck_assert_ptr_null(fixture_lease(&a, slot, 4));
	ck_assert(!lease_write_lanes(fixture_lease(&a, slot, 1), 1, &p));
	ck_assert_uint_eq(f.ns.records[slot].sum, 7);
	ck_assert(lease_write_lanes(fixture_lease(&a, slot, 8), 8, &p));
	ck_assert_uint_eq(reserved(), 0);
	lease_write_done(&f.ns, p);
	ns_slot_free(&f.ns, slot, SHM_PARTIAL);
	ck_assert(!lease_can_join(&f.ns, key, 1));
}
END_TEST

/* A lane that somebody has is reserved in a second slot for the same key; further lanes find room in either. */
START_TEST(double_reserve_makes_a_second_slot)
{
	uint32_t first = fixture_reserve(&a, key, 1, 0), second = fixture_reserve(&b, key, 1, 0), third;

	ck_assert_uint_ne(first, second);
	ck_assert_uint_eq(join(&a, 6), first);
	ck_assert_uint_eq(join(&a, 2), second);
	third = fixture_reserve(&a, key, 3, 0);
	ck_assert_uint_eq(join(&a, 8), first);
	/* the first of a chain, or one in its middle, goes */
	lease_partial_abort(&f.ns, lease_partial(&f.ns, _i & 1 ? first : second));
	ck_assert_uint_eq(join(&b, 8), third);
	while (!list_empty(&a.leases))
		lease_abort(container_of(list_first(&a.leases), struct lease, in_holder));
	while (!list_empty(&b.leases))
		lease_abort(container_of(list_first(&b.leases), struct lease, in_holder));
	ck_assert(!lease_can_join(&f.ns, key, 8));
}
END_TEST

START_TEST(quarantine_lasts_until_the_last_lease_ends)
{
	uint32_t slot = fixture_reserve(&a, key, 1, 0);

	ck_assert_uint_eq(join(&b, 2), slot);
	ck_assert_uint_eq(join(&b, 4), slot);
	lease_abort(fixture_lease(&a, slot, 1)); /* one gives up: it will never be whole */
	ck_assert_uint_eq(ns_slot_state(&f.ns, slot), SHM_QUARANTINE);
	ck_assert(!lease_can_join(&f.ns, key, 8));
	lease_abort(fixture_lease(&b, slot, 2));
	ck_assert_uint_eq(ns_slot_state(&f.ns, slot), SHM_QUARANTINE);
	lease_abort(fixture_lease(&b, slot, 4));
	ck_assert_uint_eq(ns_slot_state(&f.ns, slot), SHM_FREE);
	ck_assert_uint_eq(f.ns.counts.aborted, 1);
}
END_TEST

/* One lane written, nobody writes the others: at the deadline there is nobody to wait for. */
START_TEST(written_lanes_do_not_keep_a_slot)
{
	uint32_t slot = fixture_reserve(&a, key, 1, 0);
	struct partial *p;

	ck_assert(!lease_write_lanes(fixture_lease(&a, slot, 1), 1, &p));
	ck_assert_uint_eq(reserved(), 0);
	lease_partial_abort(&f.ns, p);
	ck_assert_uint_eq(ns_slot_state(&f.ns, slot), SHM_FREE);
	ck_assert_uint_eq(f.ns.n_quarantined, 0);
}
END_TEST

START_TEST(writing_lanes_of_others_aborts)
{
	uint32_t slot = fixture_reserve(&a, key, 1, 0);
	struct partial *p;

	lease_write_lanes(fixture_lease(&a, slot, 1), 3, &p);
}
END_TEST

START_TEST(done_ends_other_leases)
{
	uint32_t slot = fixture_reserve(&a, key, 3, 0);
	struct partial *p = lease_partial(&f.ns, slot);

	ck_assert_uint_eq(join(&b, 4), slot);
	lease_write_done(&f.ns, p);
	ck_assert_uint_eq(reserved(), 0);
	ck_assert_uint_eq(a.n_leases + b.n_leases, 0);
	ns_slot_free(&f.ns, slot, SHM_PARTIAL);
}
END_TEST

static void setup_most(void)
{
	setup_lanes(64);
}

START_TEST(sixty_four_lanes)
{
	uint32_t slot = fixture_reserve(&a, key, 1ull << 63, 0);
	struct partial *p;

	ck_assert_uint_eq(lease_all_lanes(&f.ns), UINT64_MAX);
	for (uint32_t l = 0; l < 63; l++)
		ck_assert_uint_eq(join(l % 2 ? &a : &b, 1ull << l), slot);
	ck_assert_uint_eq(lease_partial(&f.ns, slot)->lanes_open, 0);
	for (uint32_t l = 0; l < 64; l++)
		ck_assert(lease_write_lanes(fixture_lease(l % 2 ? &a : &b, slot, 1ull << l), 1ull << l, &p) == (l == 63));
	ck_assert_uint_eq(p->lanes_done, UINT64_MAX);
	lease_write_done(&f.ns, p);
	ns_slot_free(&f.ns, slot, SHM_PARTIAL);
}
END_TEST

/* ---- pins ---- */

static void pin(struct holder *h, uint32_t slot, uint32_t tick, uint32_t count)
{
	shm_page_mark(h->page, slot, f.ns.group_shift);
	atomic_store(&h->page->pins[slot], (tick & SHM_STAMP_MASK) << SHM_PIN_COUNT_BITS | count);
}

START_TEST(pins_hold)
{
	uint32_t slot = fixture_store(&a, 1, 0), touch = 0, holders;

	ck_assert(!lease_is_held(&f.ns, slot, &touch));
	ck_assert(!lease_is_pinned(&f.ns, slot));
	ck_assert_uint_eq(touch, 0);
	pin(&a, slot, 1, 2);
	pin(&b, slot, 1, 1);
	ck_assert(lease_is_held(&f.ns, slot, &touch));
	ck_assert(lease_is_pinned(&f.ns, slot));
	ck_assert_uint_eq(touch, 1);
	ck_assert_int_eq(lease_hold(&b, slot), 0);
	ck_assert_uint_eq(lease_pins(&f.ns, slot, &holders), 4);
	ck_assert_uint_eq(holders, 2);
	ck_assert_uint_eq(lease_counted_pins(&a), 2);
	ck_assert_uint_eq(lease_claimed_pins(&a), 0); /* what the client says may be wrong */
	atomic_store(&a.page->pinned, 5);
	ck_assert_uint_eq(lease_claimed_pins(&a), 5);
	lease_prefetch(&f.ns, slot);
	lease_unhold(&b, slot);
	pin(&a, slot, 1, 0);
	pin(&b, slot, 1, 0);
	ck_assert(!lease_is_pinned(&f.ns, slot));
}
END_TEST

/* The newest stamp wins; a stamp that would be in the future is of the turn before. */
START_TEST(stamps_wrap)
{
	static const struct {
		uint32_t clock, stamped, read;
	} cases[] = {
		{ 5, 5, 5 },
		{ 5, 1, 1 },
		{ 0x100000, 0xfffff, 0xfffff },
		{ 0x100000, 0x100000, 0x100000 },
		{ 0x100003, 0xffffe, 0xffffe },
		{ 0x1fffff, 0x100000, 0x100000 },
		{ 0x300000, 0x200001, 0x200001 }, /* the farthest back that can be told */
		{ 0x300000, 0x200000, 0x300000 }, /* one farther looks new */
		{ 3, UINT32_MAX, UINT32_MAX },    /* the whole clock has wrapped */
		{ 0, UINT32_MAX - 9, UINT32_MAX - 9 },
	};
	uint32_t slot = fixture_store(&a, 1, 0);

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		uint32_t touch = cases[i].read - 1;

		f.ns.heat.clock = cases[i].clock;
		pin(&a, slot, cases[i].stamped, 1);
		ck_assert(lease_is_held(&f.ns, slot, &touch));
		ck_assert_uint_eq(touch, cases[i].read);
		touch = cases[i].read + 1;
		lease_is_held(&f.ns, slot, &touch);
		ck_assert_uint_eq(touch, cases[i].read + 1); /* older than what is known */
		pin(&a, slot, cases[i].stamped, 0);
	}
	f.ns.heat.clock = f.ns.heat.oldest;
}
END_TEST

START_TEST(uses_of_a_dead_session_are_remembered)
{
	uint32_t slot = fixture_store(&a, 1, 0), other = fixture_store(&a, 2, 0);
	struct shm_page *page;
	struct holder c;

	fixture_holder(&f, &c, true);
	for (int i = 0; i < 3; i++) {
		f.ns.heat.placed = f.ns.heat.per_tick;
		heat_tick(&f.ns.heat);
	}
	pin(&c, slot, 3, 1);
	ck_assert_int_eq(quota_charge(c.user, QUOTA_HOLDS, 2), 0);
	ck_assert_int_eq(lease_hold(&c, other), 0);
	ck_assert_int_eq(lease_hold(&c, other), 0);
	page = c.page;
	lease_holder_unpin(&c);
	free(page);
	ck_assert_uint_eq(f.ns.blocks[slot].heat.touch, 3);
	ck_assert_uint_eq(f.ns.blocks[other].heat.touch, 4);
	ck_assert(!lease_is_pinned(&f.ns, slot));
	ck_assert(!lease_is_pinned(&f.ns, other));
	ck_assert_uint_eq(f.user.session.used[QUOTA_HOLDS], 0);
	ck_assert_uint_eq(f.ns.n_holders, 2);
}
END_TEST

START_TEST(any_of_many_holds)
{
	uint32_t slot = fixture_store(&a, 1, 0), touch = 0, holders;
	struct holder many[8];

	for (int i = 0; i < 8; i++)
		fixture_holder(&f, &many[i], true);
	for (int i = 0; i < 8; i++) {
		pin(&many[i], slot, 1, 1);
		lease_prefetch(&f.ns, slot);
		ck_assert(lease_is_held(&f.ns, slot, &touch));
		ck_assert_uint_eq(lease_pins(&f.ns, slot, &holders), 1);
		ck_assert_uint_eq(holders, 1);
		pin(&many[i], slot, 1, 0);
	}
	for (int i = 0; i < 8; i++)
		fixture_holder_close(&many[i]);
	ck_assert(!lease_is_held(&f.ns, slot, &touch));
}
END_TEST

START_TEST(without_a_page_nothing_is_pinned)
{
	struct holder c;

	fixture_holder(&f, &c, false);
	ck_assert_uint_eq(lease_counted_pins(&c), 0);
	ck_assert_uint_eq(lease_claimed_pins(&c), 0);
	fixture_holder_close(&c);
}
END_TEST

/* ---- holds by message ---- */

START_TEST(holds_count)
{
	uint32_t slot = fixture_store(&a, 1, 0), touch = 0, holders;

	ck_assert(!lease_holds(&a, slot));
	for (uint32_t i = 0; i < SHM_PIN_COUNT_MASK; i++)
		if (lease_hold(&a, slot) != 0)
			ck_abort_msg("hold %u", i);
	ck_assert_int_eq(lease_hold(&a, slot), LEASE_E_NOMEM); /* the count is full */
	ck_assert_uint_eq(a.own_total, SHM_PIN_COUNT_MASK);
	ck_assert_uint_eq(lease_pins(&f.ns, slot, &holders), SHM_PIN_COUNT_MASK);
	ck_assert(lease_is_held(&f.ns, slot, &touch));
	ck_assert_uint_eq(touch, f.ns.heat.clock);
	while (lease_holds(&a, slot))
		lease_unhold(&a, slot);
	ck_assert_uint_eq(a.own_total, 0);
	ck_assert(!lease_is_held(&f.ns, slot, &touch));
}
END_TEST

START_TEST(letting_go_of_nothing_aborts)
{
	lease_unhold(&a, 0);
}
END_TEST

/* ---- all of it at random ---- */

START_TEST(random_writers)
{
	struct holder *h[2] = { &a, &b };
	struct rng rng;

	rng_init(&rng, (uint64_t)_i);
	for (int step = 0; step < 300; step++) {
		struct holder *who = h[rng_below(&rng, 2)];
		uint64_t lanes = rng_range(&rng, 1, 15);

		fixture_key((uint32_t)rng_range(&rng, 1, 3), key);
		if (rng_chance(&rng, 50)) {
			if (join(who, lanes) == NS_NONE && f.ns.n_free)
				fixture_reserve(who, key, lanes, 0);
		} else if (!list_empty(&who->leases)) {
			struct lease *lease = container_of(list_first(&who->leases), struct lease, in_holder);
			struct partial *p = lease->partial;
			uint32_t slot = p->slot;

			if (p->aborted || rng_chance(&rng, 20)) {
				lease_abort(lease);
			} else if (rng_chance(&rng, 20)) {
				lease_partial_abort(&f.ns, p);
			} else if (lease_write_lanes(lease, lease->lanes, &p)) {
				lease_write_done(&f.ns, p);
				ns_slot_free(&f.ns, slot, SHM_PARTIAL);
			}
		}
		assert(f.ns.n_free + f.ns.n_partial + f.ns.n_quarantined == f.ns.n_slots);
		assert(reserved() == a.n_leases + b.n_leases);
	}
	while (!list_empty(&a.leases))
		lease_abort(container_of(list_first(&a.leases), struct lease, in_holder));
	while (!list_empty(&b.leases))
		lease_abort(container_of(list_first(&b.leases), struct lease, in_holder));
	while (!list_empty(&f.ns.partials))
		lease_partial_abort(&f.ns, container_of(list_first(&f.ns.partials), struct partial, by_deadline));
	ck_assert_uint_eq(f.ns.n_free, f.ns.n_slots);
	ck_assert_ptr_null(f.ns.partial_by_key);
}
END_TEST

int main(void)
{
	TCase *tc = tcase_create("one"), *lanes = tcase_create("lanes"), *most = tcase_create("most");
	Suite *s = suite_create("lease");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(tc, setup_one, teardown);
	tcase_add_test(tc, reserve_write_done);
	tcase_add_test(tc, abort_frees_the_slot);
	tcase_add_test(tc, deadline_means_quarantine);
	tcase_add_test_raise_signal(tc, writing_what_was_aborted_aborts, SIGABRT);
	tcase_add_test(tc, deadlines_are_in_order);
	tcase_add_test(tc, partial_numbers_are_used_again);
	tcase_add_test(tc, one_lane_has_nothing_to_join);
	tcase_add_test(tc, pins_hold);
	tcase_add_test(tc, stamps_wrap);
	tcase_add_test(tc, uses_of_a_dead_session_are_remembered);
	tcase_add_test(tc, any_of_many_holds);
	tcase_add_test(tc, without_a_page_nothing_is_pinned);
	tcase_add_test(tc, holds_count);
	tcase_add_test_raise_signal(tc, letting_go_of_nothing_aborts, SIGABRT);
	tcase_add_checked_fixture(lanes, setup_four, teardown);
	tcase_add_test(lanes, lanes_are_joined);
	tcase_add_loop_test(lanes, double_reserve_makes_a_second_slot, 0, 2);
	tcase_add_test(lanes, quarantine_lasts_until_the_last_lease_ends);
	tcase_add_test(lanes, written_lanes_do_not_keep_a_slot);
	tcase_add_test_raise_signal(lanes, writing_lanes_of_others_aborts, SIGABRT);
	tcase_add_test(lanes, done_ends_other_leases);
	tcase_add_loop_test(lanes, random_writers, 0, 10);
	tcase_add_checked_fixture(most, setup_most, teardown);
	tcase_add_test(most, sixty_four_lanes);
	suite_add_tcase(s, tc);
	suite_add_tcase(s, lanes);
	suite_add_tcase(s, most);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
