/* SPDX-License-Identifier: Apache-2.0 */
/* move/waiters.c: reserves that wait for room, in order, for a bounded time. */
#include "tests/unit/move/onboard_fixture.h"

static struct low l;
static struct holder *h;

/* Host memory is full of blocks whose writes get stuck, but for those that are below already. */
static void setup_full(void)
{
	low_new(&l, 4, 8, 32);
	h = low_attach(&l, "a");
	fake_lower_fail(l.t, true, FAKE_LOWER_STUCK, 1, UINT32_MAX);
	for (uint64_t key = 1; key <= 16; key++) {
		ck_assert_int_eq(fix_reserve(&l.f, h, 0, key, 1), 0);
		low_commit(&l, h, key, 1, 0);
		while (fake_sums_release(l.sums))
			;
	}
	ck_assert_uint_eq(low_count(h, 1, 16, STORE_IN_G2), 16);
}

static void teardown_full(void)
{
	low_verify_all(h);
	fix_close(h);
	low_free(&l);
}

START_TEST(who_waits_goes_on_when_room_comes)
{
	struct low_wait w;

	setup_full();
	ck_assert_int_eq(fix_reserve(&l.f, h, 0, 101, 3), STORE_E_WAIT);
	low_wait_begin(&l, h, &w, 3);
	ck_assert_uint_eq(w.called, 0);
	while (fake_sums_release(l.sums))
		;
	fake_lower_unstick(l.t);
	ck_assert(fake_lower_release(l.t) && fake_lower_release(l.t));
	ck_assert_uint_eq(w.called, 0);
	ck_assert(fake_lower_release(l.t));
	ck_assert_uint_eq(w.called, 1);
	ck_assert(!w.late);
	ck_assert_int_eq(fix_reserve(&l.f, h, 0, 101, 3), 0);
	ck_assert_uint_eq(low_anywhere(h, 1, 16), 16);
	teardown_full();
}
END_TEST

START_TEST(at_its_deadline_it_drops_what_it_must)
{
	struct low_wait w;

	setup_full();
	ck_assert_int_eq(fix_reserve(&l.f, h, 0, 101, 3), STORE_E_WAIT);
	low_wait_begin(&l, h, &w, 3);
	ck_assert_uint_eq(store_next_ns(l.f.store), w.wait.deadline_ns);
	store_tick(l.f.store, w.wait.deadline_ns - 1);
	ck_assert_uint_eq(w.called, 0);
	store_tick(l.f.store, w.wait.deadline_ns);
	ck_assert_uint_eq(w.called, 1);
	ck_assert(w.late);
	ck_assert_int_eq(low_reserve_now(&l, h, 101, 3), 0);
	ck_assert_uint_eq(l.f.dropped, 3);
	ck_assert_uint_eq(low_anywhere(h, 1, 16), 13);
	teardown_full();
}
END_TEST

/* A small one does not overtake a large one, even where there would be room for it. */
START_TEST(first_come_first_served)
{
	struct low_wait large, small, other;

	setup_full();
	low_wait_begin(&l, h, &large, 5);
	low_wait_begin(&l, h, &small, 1);
	low_wait_begin(&l, h, &other, 1);
	fake_lower_unstick(l.t);
	for (int i = 0; i < 4; i++) {
		ck_assert(fake_lower_release(l.t));
		ck_assert_uint_eq(large.called + small.called + other.called, 0);
	}
	fake_lower_fail(l.t, true, FAKE_LOWER_NONE, 1, 1);
	low_settle(&l);
	fake_lower_unstick(l.t);
	low_settle(&l);
	ck_assert_uint_eq(large.called + small.called + other.called, 3);
	teardown_full();
}
END_TEST

/* Whoever waits again has not lost its place. */
static struct low_wait again;
static unsigned times;

static void on_wait_again(struct store_wait *w, bool late)
{
	again.late = late;
	if (++times < 3 && !late)
		store_wait(w->holder, w, 4);
}

START_TEST(who_waits_again_keeps_its_place)
{
	struct low_wait second;

	setup_full();
	times = 0;
	low_wait_begin(&l, h, &again, 1);
	again.wait.cb = on_wait_again;
	low_wait_begin(&l, h, &second, 1);
	fake_lower_unstick(l.t);
	ck_assert(fake_lower_release(l.t));
	ck_assert_uint_eq(times, 1);
	ck_assert_uint_eq(second.called, 0);
	ck_assert(fake_lower_release(l.t));
	ck_assert_uint_eq(second.called, 0);
	fake_lower_fail(l.t, true, FAKE_LOWER_NONE, 1, 1);
	while (times < 2 && (fake_lower_release(l.t) || fake_sums_release(l.sums)))
		ck_assert_uint_eq(second.called, 0);
	store_tick(l.f.store, l.f.now_ns);
	ck_assert_uint_eq(times, 3);
	ck_assert_uint_eq(second.called, 1);
	teardown_full();
}
END_TEST

START_TEST(a_cancelled_wait_is_not_called)
{
	struct low_wait w, second;

	setup_full();
	low_wait_begin(&l, h, &w, 4);
	low_wait_begin(&l, h, &second, 4);
	store_wait_cancel(&w.wait);
	store_wait_cancel(&w.wait);
	fake_lower_fail(l.t, true, FAKE_LOWER_NONE, 1, 1);
	fake_lower_unstick(l.t);
	low_settle(&l);
	store_tick(l.f.store, UINT64_MAX);
	ck_assert_uint_eq(w.called, 0);
	ck_assert_uint_eq(second.called, 1);
	teardown_full();
}
END_TEST

START_TEST(nobody_waits_for_a_tier_that_went)
{
	struct low_wait w[3];

	setup_full();
	for (uint32_t i = 0; i < 3; i++)
		low_wait_begin(&l, h, &w[i], 2 + i);
	if (_i)
		store_stop_moving(l.f.store);
	else
		fake_lower_set_online(l.t, false);
	for (uint32_t i = 0; i < 3; i++) {
		ck_assert_uint_eq(w[i].called, 1);
		ck_assert(w[i].late);
	}
	ck_assert_int_eq(low_reserve_now(&l, h, 101, 3), 0);
	ck_assert_int_eq(fix_reserve(&l.f, h, 0, 201, 1), 0);
	teardown_full();
}
END_TEST

START_TEST(namespaces_do_not_wait_for_one_another)
{
	struct low_wait a, b;
	struct holder *other;

	low_new(&l, 8, 8, 32);
	l.f.policies[0].share_bytes = l.f.policies[1].share_bytes = 4 * MIB;
	h = low_attach(&l, "a");
	other = low_attach(&l, "b");
	for (uint64_t key = 1; key <= 16; key++) {
		low_put(&l, h, key, 1);
		low_put(&l, other, key, 1);
	}
	low_settle(&l);
	fake_lower_fail(l.t, true, FAKE_LOWER_STUCK, 1, 4);
	low_wait_begin(&l, h, &a, 8); /* stuck */
	while (fake_sums_release(l.sums) || fake_lower_in_flight(l.t) < 4)
		;
	low_wait_begin(&l, other, &b, 6);
	low_settle(&l);
	ck_assert_uint_eq(a.called, 0);
	ck_assert_uint_eq(b.called, 1);
	store_wait_cancel(&a.wait);
	fix_close(other);
	teardown_full();
}
END_TEST

/* Blocks that need no copy are room at once: nobody waits for a second's tick. */
START_TEST(room_that_needs_no_copy_is_not_waited_for)
{
	memset(&l, 0, sizeof(l));
	l.config.write = STORE_WRITE_IF_HIT;
	low_make(&l, 4, 8, 32);
	h = low_attach(&l, "a");
	low_put(&l, h, 1, 16);
	while (fake_sums_release(l.sums))
		;
	ck_assert_int_eq(fix_reserve(&l.f, h, 0, 101, 12), 0);
	ck_assert_uint_eq(l.f.dropped, 12);
	teardown_full();
}
END_TEST

/* Checksums that nobody took are offered again, at the latest by the clock. */
START_TEST(a_busy_calculator_is_asked_again)
{
	struct low_onboard b;

	low_new(&l, 4, 8, 32);
	h = low_attach(&l, "a");
	low_put_below(&l, h, 1, 4);
	ck_assert_int_eq(low_onboard(&l, h, &b, 1, 4), STORE_E_WAIT);
	while (fake_sums_release(l.sums)) /* what others put there */
		;
	fake_sums_limit(l.sums, UINT32_MAX);
	low_settle(&l);
	low_onboard_end(&l, h, &b);
	low_put_below(&l, h, 11, 4);
	fake_sums_limit(l.sums, 1);
	ck_assert_int_eq(low_onboard(&l, h, &b, 11, 4), STORE_E_WAIT);
	while (fake_lower_release(l.t))
		;
	ck_assert_uint_eq(fake_sums_waiting(l.sums), 1);
	low_settle(&l);
	ck_assert_uint_eq(b.o.hits, 4);
	low_onboard_end(&l, h, &b);
	teardown_full();
}
END_TEST

/* A session that goes takes its waits with it, in any order with the others. */
START_TEST(a_holder_that_closes_has_cancelled)
{
	struct low_wait w, mine;
	struct holder *other;

	setup_full();
	other = low_attach(&l, "a");
	low_wait_begin(&l, h, &w, 4);
	low_wait_begin(&l, other, &mine, 4);
	store_wait_cancel(&w.wait);
	fix_close(h);
	h = other;
	fake_lower_unstick(l.t);
	low_settle(&l);
	store_tick(l.f.store, UINT64_MAX);
	ck_assert_uint_eq(mine.called, 1);
	teardown_full();
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {
		who_waits_goes_on_when_room_comes,
		at_its_deadline_it_drops_what_it_must,
		first_come_first_served,
		who_waits_again_keeps_its_place,
		a_cancelled_wait_is_not_called,
		namespaces_do_not_wait_for_one_another,
		room_that_needs_no_copy_is_not_waited_for,
		a_busy_calculator_is_asked_again,
		a_holder_that_closes_has_cancelled,
	};
	const struct low_loop loops[] = { { nobody_waits_for_a_tier_that_went, 2 } };

	return low_run("waiters", tests, LOW_N(tests), loops, LOW_N(loops));
}
