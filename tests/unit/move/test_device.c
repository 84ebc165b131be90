/* SPDX-License-Identifier: Apache-2.0 */
/* move/device.c: what is committed to a pool is in host memory soon after, and what is wanted there comes from wherever it is. */
#include "tests/unit/move/device_fixture.h"

/* ---- down ---- */

START_TEST(what_is_committed_is_copied_down)
{
	uint32_t slot;

	setup_sized(8, 8);
	pool_put(1, 8);
	ck_assert_uint_gt(fake_device_in_flight(dev), 0);
	ck_assert_uint_eq(low_count(h, 1, 8, STORE_IN_G2), 0);
	settle();
	ck_assert_uint_eq(low_count(h, 1, 8, STORE_IN_G2), 8);
	ck_assert_uint_eq(fake_device_blocks(dev, false), 8);
	low_verify_all(h);
	/* With its parent, so that leaves go first. */
	slot = block_find(low_ns(h), (const uint8_t *)&(uint64_t){ 2 });
	ck_assert_uint_ne(block_parent(low_ns(h), slot), NS_NONE);
	ck_assert_uint_eq(low_ns(h)->blocks[slot].children, 1);
	/* And on to the tier below, as any other. */
	ck_assert_uint_ne(low_ns(h)->records[slot].sum, 0);
	teardown();
}
END_TEST

START_TEST(what_is_in_host_memory_already_is_not_copied)
{
	setup_sized(8, 8);
	low_put(&l, h, 1, 4);
	pool_put(1, 8);
	settle();
	ck_assert_uint_eq(fake_device_blocks(dev, false), 4);
	teardown();
}
END_TEST

START_TEST(a_block_is_held_while_it_is_copied)
{
	setup_sized(8, 2);
	pool_put(1, 8); /* all of the pool */
	ck_assert_uint_gt(fake_device_in_flight(dev), 0);
	ck_assert_int_eq(fix_reserve(&l.f, p, STORE_ALL_LANES, 101, 1), STORE_E_NOSPACE);
	settle();
	ck_assert_int_eq(fix_reserve(&l.f, p, STORE_ALL_LANES, 101, 1), 0);
	ck_assert_int_eq(store_abort(p, STORE_ALL_LANES, l.f.slots, l.f.generations, 1), 0);
	teardown();
}
END_TEST

START_TEST(who_commits_it_to_host_memory_meanwhile_is_first)
{
	setup_sized(8, 8);
	pool_put(1, 2);
	low_put(&l, h, 1, 2);
	settle();
	ck_assert_uint_eq(low_count(h, 1, 2, STORE_IN_G2), 2);
	teardown();
}
END_TEST

START_TEST(host_memory_makes_room_for_it)
{
	setup_sized(4, 8);
	low_put(&l, h, 1, 16);
	pool_put(101, 16);
	settle();
	ck_assert_uint_eq(low_anywhere(h, 101, 16), 16);
	ck_assert_uint_eq(low_anywhere(h, 1, 16), 16); /* nothing was lost: they went below */
	teardown();
}
END_TEST

START_TEST(a_copy_that_fails_leaves_the_block_where_it_is)
{
	setup_sized(8, 8);
	fake_device_fail(dev, TIER_E_IO, 1);
	pool_put(1, 4);
	settle();
	ck_assert_uint_eq(low_count(p, 1, 4, STORE_IN_G1), 4);
	ck_assert_uint_eq(low_count(p, 1, 4, STORE_IN_G2), 0);
	teardown();
}
END_TEST

START_TEST(a_full_queue_is_asked_again)
{
	setup_sized(8, 8);
	fake_device_fail(dev, TIER_E_FULL, 2);
	pool_put(1, 4);
	ck_assert_uint_eq(fake_device_in_flight(dev), 0);
	ck_assert_uint_eq(store_next_ns(l.f.store), 0);
	for (int i = 0; i < 2; i++)
		store_tick(l.f.store, ++l.f.now_ns);
	ck_assert_uint_gt(fake_device_in_flight(dev), 0);
	settle();
	ck_assert_uint_eq(low_count(h, 1, 4, STORE_IN_G2), 4);
	teardown();
}
END_TEST

/* ---- up ---- */

START_TEST(blocks_come_up_from_host_memory)
{
	struct low_onboard b;

	setup_sized(8, 8);
	low_put(&l, h, 1, 8);
	ck_assert_int_eq(up(&b, 1, 8), STORE_E_WAIT);
	ck_assert_uint_eq(b.done, 0);
	settle();
	ck_assert_uint_eq(b.done, 1);
	ck_assert_uint_eq(b.o.hits, 8);
	ck_assert_uint_eq(low_count(p, 1, 8, STORE_IN_G1), 8);
	ck_assert_uint_eq(fake_device_blocks(dev, false), 0);
	up_end(&b);
	ck_assert_int_eq(up(&b, 1, 8), 0); /* they are there */
	ck_assert_uint_eq(b.o.hits, 8);
	up_end(&b);
	teardown();
}
END_TEST

START_TEST(blocks_come_up_from_below)
{
	struct low_onboard b;

	setup_sized(4, 8);
	low_put_below(&l, h, 1, 8);
	ck_assert_int_eq(up(&b, 1, 8), STORE_E_WAIT);
	settle();
	ck_assert_uint_eq(b.done, 1);
	ck_assert_uint_eq(b.o.hits, 8);
	up_end(&b);
	teardown();
}
END_TEST

START_TEST(a_prefix_ends_where_it_is_missing)
{
	struct low_onboard b;

	setup_sized(8, 8);
	pool_put(1, 2);
	low_put(&l, h, 3, 2);
	ck_assert_int_eq(up(&b, 1, 8), STORE_E_WAIT);
	settle();
	ck_assert_uint_eq(b.o.hits, 4);
	ck_assert_uint_eq(b.status[4], STORE_ONBOARD_MISSING);
	ck_assert_uint_eq(b.status[7], STORE_ONBOARD_MISSING);
	up_end(&b);
	teardown();
}
END_TEST

START_TEST(a_prefix_ends_where_it_cannot_be_read)
{
	struct low_onboard b;

	setup_sized(4, 8);
	low_put_below(&l, h, 1, 8);
	fake_lower_fail(l.t, false, FAKE_LOWER_IO, 4, 1);
	ck_assert_int_eq(up(&b, 1, 8), STORE_E_WAIT);
	settle();
	ck_assert_uint_eq(b.done, 1);
	ck_assert_uint_eq(b.o.hits, 3);
	ck_assert_uint_eq(b.status[3], STORE_ONBOARD_FAILED);
	up_end(&b);
	teardown();
}
END_TEST

START_TEST(two_share_one_copy)
{
	struct low_onboard b, c;

	setup_sized(8, 8);
	low_put(&l, h, 1, 4);
	ck_assert_int_eq(up(&b, 1, 4), STORE_E_WAIT);
	ck_assert_int_eq(up(&c, 1, 4), STORE_E_WAIT);
	settle();
	ck_assert_uint_eq(b.o.hits + c.o.hits, 8);
	ck_assert_uint_eq(fake_device_blocks(dev, true), 4);
	up_end(&b);
	up_end(&c);
	teardown();
}
END_TEST

START_TEST(a_pool_drops_for_what_comes_up)
{
	struct low_onboard b;

	setup_sized(8, 2);
	pool_put(1, 8);
	settle();
	low_put(&l, h, 101, 4);
	ck_assert_int_eq(up(&b, 101, 4), STORE_E_WAIT);
	settle();
	ck_assert_uint_eq(b.o.hits, 4);
	ck_assert_uint_eq(low_count(p, 1, 8, STORE_IN_G1), 4);
	ck_assert_uint_eq(low_count(p, 1, 8, STORE_IN_G2), 8);
	up_end(&b);
	teardown();
}
END_TEST

START_TEST(a_held_pool_is_busy)
{
	struct low_onboard b;

	setup_sized(8, 2);
	pool_put(1, 8);
	settle();
	low_put(&l, h, 101, 4);
	fix_hold(&l.f, p, 1, 8);
	ck_assert_int_eq(up(&b, 101, 4), 0);
	ck_assert_uint_eq(b.o.hits, 0);
	ck_assert_uint_eq(b.status[0], STORE_ONBOARD_BUSY);
	ck_assert_int_eq(store_release(p, l.f.slots, l.f.generations, 8), 0);
	teardown();
}
END_TEST

START_TEST(at_its_deadline_it_is_told_and_the_copy_goes_on)
{
	struct low_onboard b;

	setup_sized(4, 8);
	low_put_below(&l, h, 1, 4);
	ck_assert_int_eq(up(&b, 1, 4), STORE_E_WAIT);
	for (int i = 0; i < _i; i++) /* nothing; read; summed and on its way up */
		low_settle(&l);
	l.f.now_ns += 2000;
	store_tick(l.f.store, l.f.now_ns);
	ck_assert_uint_eq(b.done, 1);
	ck_assert_uint_eq(b.o.hits, 0);
	ck_assert_uint_eq(b.status[0], STORE_ONBOARD_DEADLINE);
	up_end(&b);
	settle();
	ck_assert_uint_eq(low_count(p, 1, 4, STORE_IN_G1), _i ? 4 : 0);
	teardown();
}
END_TEST

START_TEST(a_session_that_ends_cancels)
{
	struct low_onboard b;

	setup_sized(4, 8);
	low_put_below(&l, h, 1, 4);
	pool_put(101, 4);
	ck_assert_int_eq(up(&b, 1, 4), STORE_E_WAIT);
	for (int i = 0; i < _i; i++)
		low_settle(&l);
	store_onboard_cancel(&b.o);
	fix_close(p);
	p = NULL;
	settle();
	ck_assert_uint_eq(b.done, 0);
	teardown();
}
END_TEST

START_TEST(a_copy_up_that_fails_is_told)
{
	struct low_onboard b;

	setup_sized(8, 8);
	low_put(&l, h, 1, 4);
	fake_device_fail(dev, _i ? TIER_E_IO : TIER_E_NOMEM, 1);
	ck_assert_int_eq(up(&b, 1, 4), _i ? STORE_E_WAIT : 0);
	settle();
	ck_assert_uint_eq(b.o.hits, 0);
	ck_assert_uint_eq(b.status[0], STORE_ONBOARD_FAILED);
	up_end(&b);
	ck_assert_int_eq(up(&b, 1, 4), STORE_E_WAIT);
	settle();
	ck_assert_uint_eq(b.o.hits, 4);
	up_end(&b);
	teardown();
}
END_TEST

/* ---- whatever may come ---- */

#define STORM_KEYS 60u
#define STORM_ONBOARDS 3u

static struct rng rng;
static struct low_onboard onboards[STORM_ONBOARDS];
static bool flying[STORM_ONBOARDS];

static struct low_wait storm_wait;

static uint32_t below(uint32_t n)
{
	return (uint32_t)rng_below(&rng, n);
}

/* What is in a pool is what its key says. */
static void pool_verify_all(void)
{
	struct ns *ns = low_ns(p);

	for (uint32_t slot = 0; slot < ns->geo.n_regions << ns->geo.shift; slot++) {
		uint64_t key;

		if (!ns_slot_valid(ns, slot) || ns_slot_state(ns, slot) != SHM_REGISTERED)
			continue;
		memcpy(&key, ns->records[slot].key, sizeof(key));
		pool_verify(slot, key);
	}
}

static void storm_put(struct holder *to)
{
	uint32_t n = 1 + below(6);
	uint64_t keys[FIX_MAX], first = 1 + below(STORM_KEYS - n);
	struct store_reserve args = { .keys = (const uint8_t *)keys,
		                      .n = n,
		                      .lane = STORE_ALL_LANES,
		                      .now = below(2),
		                      .now_ns = l.f.now_ns,
		                      .slots = l.f.slots,
		                      .generations = l.f.generations };
	uint32_t made = 0;
	uint64_t made_keys[FIX_MAX];
	uint32_t slots[FIX_MAX], generations[FIX_MAX];
	uint8_t states[FIX_MAX];

	int r;

	fix_keys(first, n, keys);
	r = store_reserve(to, &args);
	if (r == STORE_E_WAIT && !list_is_linked(&storm_wait.wait.link))
		low_wait_begin(&l, to, &storm_wait, n);
	if (r != 0)
		return;
	for (uint32_t i = 0; i < n; i++) {
		uint64_t *at;

		if (l.f.slots[i] == STORE_NO_SLOT)
			continue;
		at = to == p ? pool_bytes(l.f.slots[i]) : low_bytes(to, l.f.slots[i]);
		at[0] = keys[i] * 0x9e3779b97f4a7c15ull;
		at[LOW_BLOCK / 8 - 1] = ~at[0];
		made_keys[made] = keys[i];
		l.f.generations[made] = l.f.generations[i];
		l.f.slots[made++] = l.f.slots[i];
	}
	if (made == 0)
		return;
	if (below(8) == 0) {
		ck_assert_int_eq(store_abort(to, STORE_ALL_LANES, l.f.slots, l.f.generations, made), 0);
		return;
	}
	ck_assert_int_eq(store_commit(to, &(struct store_commit){ .slots_in = l.f.slots,
	                                                          .generations_in = l.f.generations,
	                                                          .keys = (const uint8_t *)made_keys,
	                                                          .n = made,
	                                                          .lane = STORE_ALL_LANES,
	                                                          .length = LOW_BLOCK,
	                                                          .now_ns = l.f.now_ns,
	                                                          .slots = slots,
	                                                          .generations = generations,
	                                                          .states = states }),
	                 0);
}

/* One of the pool begins, or one that has ended is looked at. */
static void storm_onboard(void)
{
	uint32_t i = below(STORM_ONBOARDS), n = 1 + below(8);
	struct low_onboard *b = &onboards[i];

	if (flying[i] && !b->o.finished) {
		if (below(4) == 0) {
			store_onboard_cancel(&b->o);
			flying[i] = false;
		}
		return;
	}
	flying[i] = false;
	low_onboard_init(&l, b, 1 + below(STORM_KEYS - n), n);
	b->o.hold = false;
	b->o.prefetch = below(4) == 0;
	flying[i] = store_onboard(p, &b->o) == STORE_E_WAIT;
}

static void storm_leave(void)
{
	for (uint32_t i = 0; i < STORM_ONBOARDS; i++) {
		if (flying[i] && !onboards[i].o.finished)
			store_onboard_cancel(&onboards[i].o);
		flying[i] = false;
	}
	store_wait_cancel(&storm_wait.wait);
	if (p)
		fix_close(p);
	p = NULL;
}

static void storm_device(void)
{
	uint32_t dropped, kept;

	switch (below(8)) {
	case 0:
		fake_device_set_online(dev, false);
		memset(flying, 0, sizeof(flying)); /* they were told */
		break;
	case 1:
		storm_leave();
		break;
	case 2:
		fake_device_fail(dev, (int[]){ TIER_E_IO, TIER_E_FULL, TIER_E_NOMEM }[below(3)], 1 + below(3));
		break;
	case 3:
		fake_lower_fail(l.t, below(2), (enum fake_lower_fault[]){ FAKE_LOWER_IO, FAKE_LOWER_FULL }[below(2)],
		                1 + below(3), 1 + below(3));
		break;
	case 4:
		ck_assert_int_eq(store_flush(l.f.store, below(2) ? "a" : NULL, &dropped, &kept), 0);
		break;
	default:
		fake_device_set_online(dev, true);
		break;
	}
	if (!p && try_pool("a", DEV, LOW_BLOCK, &p) != 0)
		p = NULL;
}

START_TEST(whatever_comes_bytes_and_counts_are_right)
{
	memset(flying, 0, sizeof(flying));
	list_init(&storm_wait.wait.link);
	rng_init(&rng, (uint64_t)_i + 1);
	setup_sized(2 + 2 * below(3), 2 + 2 * below(3));
	if (below(2))
		fake_device_slow(dev);
	for (int event = 0; event < 400; event++) {
		switch (below(p ? 12 : 8)) {
		case 0:
		case 1:
			storm_put(h);
			break;
		case 2:
			storm_device();
			break;
		case 3:
			l.f.now_ns += below(600);
			store_tick(l.f.store, l.f.now_ns);
			break;
		case 4:
		case 5:
			(void)fake_device_release_any(dev, &rng);
			if (below(8) == 0)
				fake_device_remake(dev);
			break;
		case 6:
		case 7:
			(void)(below(2) ? fake_lower_release_any(l.t, &rng) : fake_sums_release_any(l.sums, &rng));
			break;
		case 8:
		case 9:
			storm_put(p);
			break;
		default:
			storm_onboard();
			break;
		}
		store_check(l.f.store);
		low_verify_all(h);
		if (p)
			pool_verify_all();
	}
	fake_device_fail(dev, 0, 0);
	storm_leave();
	teardown();
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {
		what_is_committed_is_copied_down,
		what_is_in_host_memory_already_is_not_copied,
		a_block_is_held_while_it_is_copied,
		who_commits_it_to_host_memory_meanwhile_is_first,
		host_memory_makes_room_for_it,
		a_copy_that_fails_leaves_the_block_where_it_is,
		a_full_queue_is_asked_again,
		blocks_come_up_from_host_memory,
		blocks_come_up_from_below,
		a_prefix_ends_where_it_is_missing,
		a_prefix_ends_where_it_cannot_be_read,
		two_share_one_copy,
		a_pool_drops_for_what_comes_up,
		a_held_pool_is_busy,
	};
	const struct low_loop loops[] = {
		{ at_its_deadline_it_is_told_and_the_copy_goes_on, 2 },
		{ a_session_that_ends_cancels, 2 },
		{ a_copy_up_that_fails_is_told, 2 },
		{ whatever_comes_bytes_and_counts_are_right, 20 },
	};

	return low_run("device", tests, LOW_N(tests), loops, LOW_N(loops));
}
