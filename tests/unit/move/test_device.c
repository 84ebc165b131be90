/* SPDX-License-Identifier: Apache-2.0 */
/* move/pool.c and device.c: what is committed to a pool is in host memory soon after, what is wanted there comes from wherever it is, and a device that
 * goes takes nothing with it but its own.
 */
#include "tests/lib/fake_device.h"
#include "tests/unit/move/onboard_fixture.h"

#define DEV "GPU-0"

static struct low l;
static struct tier_device *dev;
static struct holder *h, *p; /* of host memory, of the pool */

static void on_lost(void *ctx, void *owner, struct holder *lost)
{
	ck_assert(ctx == &l && owner == &l.f && lost == p);
	ck_assert_int_eq(holder_close(lost, false), 0);
	p = NULL;
}

static int try_pool(const char *name, const char *device, uint64_t lane_bytes, struct holder **ret)
{
	struct ns_desc desc = fix_desc(name, 1, lane_bytes);
	uint8_t have[16], want[16];
	struct store_attach args = { .desc = &desc, .device = device, .user = &l.f.user, .owner = &l.f };

	return store_attach(l.f.store, &args, ret, have, want);
}

/* @mib of host memory, @dev_mib of a device's, both four blocks each; 32 blocks below. */
static void setup_sized(uint64_t mib, uint64_t dev_mib)
{
	low_new(&l, mib, 4, 8);
	dev = fake_device_new(dev_mib * MIB, 2 * MIB, true);
	ck_assert_int_eq(store_pool_add(l.f.store, DEV, dev), 0);
	store_on_lost(l.f.store, on_lost, &l);
	h = low_attach(&l, "a");
	ck_assert_int_eq(try_pool("a", DEV, LOW_BLOCK, &p), STORE_E_OFFLINE);
	fake_device_set_online(dev, true);
	ck_assert_int_eq(try_pool("a", DEV, LOW_BLOCK, &p), 0);
}

static void settle(void)
{
	do
		low_settle(&l);
	while (fake_device_release(dev));
	store_check(l.f.store);
}

static void teardown(void)
{
	settle();
	low_verify_all(h);
	fix_close(h);
	if (p)
		fix_close(p);
	store_stop_moving(l.f.store);
	settle();
	ck_assert(!store_is_moving(l.f.store));
	store_check(l.f.store);
	ck_assert_uint_eq(l.f.user.session.used[QUOTA_SLOTS], 0);
	ck_assert_uint_eq(l.f.user.session.used[QUOTA_HOLDS], 0);
	store_free(l.f.store);
	fake_tier_free(l.f.tier);
	dev = fake_device_free(dev);
	fake_lower_free(l.t);
	fake_sums_free(l.sums);
}

static uint64_t *pool_bytes(uint32_t slot)
{
	const struct ns *ns = low_ns(p);
	const struct tier_region *region = &store_ns_of(p)->memory[ns_region_of(ns, slot)];

	return (uint64_t *)fake_device_at(region, (slot & ((1u << ns->geo.shift) - 1)) * ns->geo.lane_stride);
}

static void pool_verify(uint32_t slot, uint64_t key)
{
	const uint64_t *at = pool_bytes(slot);

	ck_assert_uint_eq(at[0], key * 0x9e3779b97f4a7c15ull);
	ck_assert_uint_eq(at[LOW_BLOCK / 8 - 1], ~at[0]);
}

/* A chain of @n. */
static void pool_put(uint64_t first, uint32_t n)
{
	ck_assert_int_eq(fix_reserve(&l.f, p, STORE_ALL_LANES, first, n), 0);
	for (uint32_t i = 0; i < n; i++) {
		uint64_t *at;

		if (l.f.slots[i] == STORE_NO_SLOT)
			continue;
		at = pool_bytes(l.f.slots[i]);
		at[0] = (first + i) * 0x9e3779b97f4a7c15ull;
		at[LOW_BLOCK / 8 - 1] = ~at[0];
	}
	ck_assert_int_eq(fix_commit(&l.f, p, STORE_ALL_LANES, first, n, 0), 0);
}

static int up(struct low_onboard *b, uint64_t first, uint32_t n)
{
	return low_onboard(&l, p, b, first, n);
}

static void up_end(struct low_onboard *b)
{
	ck_assert(b->o.finished);
	for (uint32_t i = 0; i < b->o.hits; i++)
		pool_verify(b->slots[i], b->keys[i]);
	if (p && b->o.hold)
		ck_assert_int_eq(store_release(p, b->slots, b->generations, b->o.hits), 0);
	store_check(l.f.store);
}

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

/* ---- whatever may come ---- */

#define STORM_KEYS 60u
#define STORM_ONBOARDS 3u

static struct rng rng;
static struct low_onboard onboards[STORM_ONBOARDS];
static bool flying[STORM_ONBOARDS];

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

	fix_keys(first, n, keys);
	if (store_reserve(to, &args) != 0)
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
		a_pool_is_a_namespace_of_its_own,
		pools_take_memory_of_their_own_device_only,
		memory_comes_late_from_another_pool,
		memory_lent_by_handle_stays,
		lanes_are_copied_each_to_its_place,
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
		a_copy_of_a_lost_life_ends_late,
		a_namespace_goes_with_its_pools,
	};
	const struct low_loop loops[] = {
		{ at_its_deadline_it_is_told_and_the_copy_goes_on, 2 },
		{ a_session_that_ends_cancels, 2 },
		{ a_copy_up_that_fails_is_told, 2 },
		{ a_lost_device_takes_its_pools_and_nothing_else, 2 },
		{ whatever_comes_bytes_and_counts_are_right, 20 },
	};

	return low_run("device", tests, LOW_N(tests), loops, LOW_N(loops));
}
