/* SPDX-License-Identifier: Apache-2.0 */
/* move/pool.c: pools are namespaces of their own, and a device that goes takes nothing with it but its own. */
#include "tests/unit/move/device_fixture.h"

/* ---- who and where ---- */

START_TEST(a_pool_is_a_namespace_of_its_own)
{
	struct holder *other;

	setup_sized(8, 8);
	ck_assert_int_eq(try_pool("a", "GPU-1", LOW_BLOCK, &other), STORE_E_NOENT);
	ck_assert_int_eq(try_pool("a", DEV, LOW_BLOCK / 2, &other), STORE_E_MISMATCH);
	ck_assert_int_eq(try_pool("b", DEV, LOW_BLOCK, &other), 0);
	ck_assert_uint_eq(store_n_namespaces(l.f.store), 4); /* "b" in host memory too */
	ck_assert_ptr_ne(store_ns_of(p), store_ns_of(h));
	ck_assert_ptr_eq(store_ns_of(p)->hub, store_ns_of(h));
	ck_assert_mem_eq(low_ns(p)->index.salt, low_ns(h)->index.salt, 16);
	pool_put(1, 4);
	ck_assert_uint_eq(low_tiers(p, 1), STORE_IN_G1);
	ck_assert_uint_eq(low_tiers(h, 1), 0);
	fix_close(other);
	teardown();
}
END_TEST

START_TEST(pools_take_memory_of_their_own_device_only)
{
	setup_sized(4, 4);
	low_put(&l, h, 1, 16); /* all of host memory */
	pool_put(101, 16);     /* all of the device's */
	ck_assert_uint_eq(fix_bytes(h), 4 * MIB);
	ck_assert_uint_eq(fix_bytes(p), 4 * MIB);
	pool_put(201, 8); /* drops its own coldest, not host memory's */
	ck_assert_uint_eq(fix_bytes(h), 4 * MIB);
	teardown();
}
END_TEST

/* "b" has half of the device guaranteed, and "a" all of it.  Memory that "a" gives comes a little later; "b" waits, and takes no more than it needs. */
START_TEST(memory_comes_late_from_another_pool)
{
	struct low_wait w;
	struct holder *other;
	uint64_t before;

	setup_sized(16, 16);
	fake_device_slow(dev);
	pool_put(1, 64);
	settle();
	ck_assert_uint_eq(fix_bytes(p), 16 * MIB);
	l.f.policies[1].device_share_bytes = 8 * MIB;
	ck_assert_int_eq(try_pool("b", DEV, LOW_BLOCK, &other), 0);
	ck_assert_int_eq(fix_reserve(&l.f, other, STORE_ALL_LANES, 1, 2), STORE_E_WAIT);
	before = fix_bytes(p);
	ck_assert_uint_eq(before, 14 * MIB);
	low_wait_begin(&l, other, &w, 2);
	for (int i = 0; i < 3; i++)
		store_tick(l.f.store, ++l.f.now_ns);
	ck_assert_int_eq(fix_reserve(&l.f, other, STORE_ALL_LANES, 1, 2), STORE_E_WAIT);
	ck_assert_uint_eq(w.called, 0);
	ck_assert_uint_eq(fix_bytes(p), before);
	fake_device_remake(dev);
	ck_assert_uint_eq(w.called, 1);
	ck_assert_int_eq(low_reserve_now(&l, other, 1, 2), 0);
	ck_assert_int_eq(store_abort(other, STORE_ALL_LANES, l.f.slots, l.f.generations, 2), 0);
	ck_assert_uint_eq(fix_bytes(p), before);
	fix_close(other);
	teardown();
}
END_TEST

START_TEST(who_waits_for_memory_of_a_lost_device_is_told)
{
	struct low_wait w;

	setup_sized(16, 16);
	fake_device_slow(dev);
	pool_put(1, 64);
	settle();
	fix_close(p);
	ck_assert_int_eq(try_pool("b", DEV, LOW_BLOCK, &p), 0);
	ck_assert_int_eq(fix_reserve(&l.f, p, STORE_ALL_LANES, 1, 2), STORE_E_WAIT);
	low_wait_begin(&l, p, &w, 2);
	fake_device_set_online(dev, false);
	ck_assert_uint_eq(w.called, 1);
	ck_assert(w.late);
	ck_assert_ptr_null(p);
	teardown();
}
END_TEST

/* What is lent by a handle stays while somebody is there who may have it open. */
START_TEST(memory_lent_by_handle_stays)
{
	struct holder *other;

	setup_sized(16, 16);
	dev->lends_handles = true;
	pool_put(1, 64);
	settle();
	l.f.policies[1].device_share_bytes = 8 * MIB;
	ck_assert_int_eq(try_pool("b", DEV, LOW_BLOCK, &other), 0);
	ck_assert_int_eq(fix_reserve(&l.f, other, STORE_ALL_LANES, 1, 2), STORE_E_NOSPACE);
	fix_close(p);
	p = NULL;
	ck_assert_int_eq(fix_reserve(&l.f, other, STORE_ALL_LANES, 1, 2), 0);
	ck_assert_int_eq(store_abort(other, STORE_ALL_LANES, l.f.slots, l.f.generations, 2), 0);
	fix_close(other);
	teardown();
}
END_TEST

START_TEST(lanes_are_copied_each_to_its_place)
{
	struct holder *lanes, *up_to;
	struct ns_desc desc = fix_desc("b", 4, LOW_BLOCK / 4);
	struct store_attach args = { .desc = &desc, .device = DEV, .user = &l.f.user, .owner = &l.f };
	uint8_t have[16], want[16];

	setup_sized(16, 16);
	ck_assert_int_eq(store_attach(l.f.store, &args, &up_to, have, want), 0);
	args.device = NULL;
	ck_assert_int_eq(store_attach(l.f.store, &args, &lanes, have, want), 0);
	ck_assert_int_eq(fix_reserve(&l.f, up_to, STORE_ALL_LANES, 1, 12), 0);
	for (uint32_t i = 0; i < 12; i++) {
		const struct tier_region *region;
		uint64_t offset;

		for (uint32_t lane = 0; lane < 4; lane++) {
			ck_assert(holder_slot(up_to, l.f.slots[i], lane, &region, &offset));
			memset(fake_device_at(region, offset), (int)(i * 4 + lane), 8);
			memset(fake_device_at(region, offset + LOW_BLOCK / 4 - 8), (int)(i * 4 + lane), 8);
		}
	}
	ck_assert_int_eq(fix_commit(&l.f, up_to, STORE_ALL_LANES, 1, 12, 0), 0);
	settle();
	fix_hold(&l.f, lanes, 1, 12);
	for (uint32_t i = 0; i < 12; i++) {
		const struct tier_region *region;
		uint64_t offset;

		for (uint32_t lane = 0; lane < 4; lane++) {
			ck_assert(holder_slot(lanes, l.f.slots[i], lane, &region, &offset));
			ck_assert_uint_eq(((uint8_t *)region->base)[offset], i * 4 + lane);
			ck_assert_uint_eq(((uint8_t *)region->base)[offset + LOW_BLOCK / 4 - 1], i * 4 + lane);
		}
	}
	ck_assert_int_eq(store_release(lanes, l.f.slots, l.f.generations, 12), 0);
	fix_close(lanes);
	fix_close(up_to);
	teardown();
}
END_TEST

/* ---- loss ---- */

/* With a copy down under way, one up, one wanted from below, a reservation, a hold. */
START_TEST(a_lost_device_takes_its_pools_and_nothing_else)
{
	struct low_onboard b;
	struct holder *late;

	setup_sized(4, 8);
	low_put_below(&l, h, 1, 4);
	low_put(&l, h, 201, 4);
	pool_put(101, 4);
	fix_hold(&l.f, p, 101, 2);
	ck_assert_int_eq(fix_reserve(&l.f, p, STORE_ALL_LANES, 301, 2), 0);
	ck_assert_int_eq(up(&b, _i ? 201 : 1, 4), STORE_E_WAIT);
	fake_device_set_online(dev, false);
	ck_assert_ptr_null(p);
	ck_assert_uint_eq(b.done, 1);
	ck_assert_uint_eq(b.o.hits, 0);
	ck_assert_uint_eq(b.status[0], STORE_ONBOARD_FAILED);
	ck_assert_int_eq(try_pool("a", DEV, LOW_BLOCK, &late), STORE_E_OFFLINE);
	store_check(l.f.store);
	low_put(&l, h, 401, 2); /* host memory serves on */
	/* Back before its copies have ended: a new pool, beside the one that is not quite gone. */
	fake_device_set_online(dev, true);
	ck_assert_int_eq(try_pool("a", DEV, LOW_BLOCK, &p), 0);
	ck_assert_uint_eq(low_count(p, 101, 4, STORE_IN_G1), 0);
	pool_put(101, 4);
	settle();
	ck_assert_uint_eq(low_count(p, 101, 4, STORE_IN_G1 | STORE_IN_G2), 4);
	ck_assert_uint_eq(store_n_namespaces(l.f.store), 2);
	teardown();
}
END_TEST

START_TEST(a_copy_of_a_lost_life_ends_late)
{
	setup_sized(4, 8);
	pool_put(1, 4);
	fake_device_set_online(dev, false);
	ck_assert_uint_eq(fake_device_in_flight(dev), 1);
	ck_assert_uint_eq(store_n_namespaces(l.f.store), 2); /* its memory waits for it */
	ck_assert(store_is_moving(l.f.store));
	ck_assert(fake_device_release(dev));
	ck_assert_uint_eq(store_n_namespaces(l.f.store), 1);
	ck_assert_uint_eq(low_count(h, 1, 4, STORE_IN_G2), 0);
	teardown();
}
END_TEST

/* ---- administration ---- */

START_TEST(a_namespace_goes_with_its_pools)
{
	uint32_t dropped, kept;

	setup_sized(8, 8);
	pool_put(1, 4);
	ck_assert_int_eq(store_remove(l.f.store, "a", &dropped), STORE_E_LIMIT);
	settle();
	ck_assert_int_eq(store_flush(l.f.store, "a", &dropped, &kept), 0);
	ck_assert_uint_eq(dropped, 8);
	ck_assert_uint_eq(low_anywhere(p, 1, 4), 0);
	pool_put(1, 4);
	settle();
	ck_assert_int_eq(store_drop(l.f.store, &(struct store_drop){ .name = "a",
	                                                             .keys = (const uint8_t *)&(uint64_t){ 4 },
	                                                             .n = 1,
	                                                             .key_bytes = 8 }),
	                 0);
	ck_assert_uint_eq(low_anywhere(p, 1, 4), 3);
	fix_close(p);
	fix_close(h);
	p = NULL;
	ck_assert_int_eq(store_remove(l.f.store, "a", &dropped), 0);
	ck_assert_uint_eq(store_n_namespaces(l.f.store), 0);
	h = low_attach(&l, "a");
	teardown();
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {
		a_pool_is_a_namespace_of_its_own,
		pools_take_memory_of_their_own_device_only,
		memory_comes_late_from_another_pool,
		memory_lent_by_handle_stays,
		who_waits_for_memory_of_a_lost_device_is_told,
		lanes_are_copied_each_to_its_place,
		a_copy_of_a_lost_life_ends_late,
		a_namespace_goes_with_its_pools,
	};
	const struct low_loop loops[] = {
		{ a_lost_device_takes_its_pools_and_nothing_else, 2 },
	};

	return low_run("pool", tests, LOW_N(tests), loops, LOW_N(loops));
}
