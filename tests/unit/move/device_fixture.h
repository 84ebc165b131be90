/* SPDX-License-Identifier: Apache-2.0 */
/* device_fixture.h: the same with a device above host memory: a holder of namespace "a" there and one of its pool, both of blocks of 256 KiB. */
#ifndef TESTS_UNIT_MOVE_DEVICE_FIXTURE_H
#define TESTS_UNIT_MOVE_DEVICE_FIXTURE_H

#include "tests/lib/fake_device.h"
#include "tests/unit/move/onboard_fixture.h"

#define DEV "GPU-0"

static struct low l;
static struct tier_device *dev;
static struct holder *h, *p; /* of host memory, of the pool */

static inline void on_lost(void *ctx, void *owner, struct holder *lost)
{
	ck_assert(ctx == &l && owner == &l.f && lost == p);
	ck_assert_int_eq(holder_close(lost, false), 0);
	p = NULL;
}

static inline int try_pool(const char *name, const char *device, uint64_t lane_bytes, struct holder **ret)
{
	struct ns_desc desc = fix_desc(name, 1, lane_bytes);
	uint8_t have[16], want[16];
	struct store_attach args = { .desc = &desc, .device = device, .user = &l.f.user, .owner = &l.f };

	return store_attach(l.f.store, &args, ret, have, want);
}

/* @mib of host memory, @dev_mib of a device's, both four blocks each; 32 blocks below. */
static inline void setup_sized(uint64_t mib, uint64_t dev_mib)
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

static inline void settle(void)
{
	do
		low_settle(&l);
	while (fake_device_release(dev));
	store_check(l.f.store);
}

static inline void teardown(void)
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

static inline uint64_t *pool_bytes(uint32_t slot)
{
	const struct ns *ns = low_ns(p);
	const struct tier_region *region = &store_ns_of(p)->memory[ns_region_of(ns, slot)];

	return (uint64_t *)fake_device_at(region, (slot & ((1u << ns->geo.shift) - 1)) * ns->geo.lane_stride);
}

static inline void pool_verify(uint32_t slot, uint64_t key)
{
	const uint64_t *at = pool_bytes(slot);

	ck_assert_uint_eq(at[0], key * 0x9e3779b97f4a7c15ull);
	ck_assert_uint_eq(at[LOW_BLOCK / 8 - 1], ~at[0]);
}

/* A chain of @n. */
static inline void pool_put(uint64_t first, uint32_t n)
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

static inline int up(struct low_onboard *b, uint64_t first, uint32_t n)
{
	return low_onboard(&l, p, b, first, n);
}

static inline void up_end(struct low_onboard *b)
{
	ck_assert(b->o.finished);
	for (uint32_t i = 0; i < b->o.hits; i++)
		pool_verify(b->slots[i], b->keys[i]);
	if (p && b->o.hold)
		ck_assert_int_eq(store_release(p, b->slots, b->generations, b->o.hits), 0);
	store_check(l.f.store);
}

#endif
