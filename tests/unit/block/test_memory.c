/* SPDX-License-Identifier: Apache-2.0 */
/* block/ without memory: for each allocation k of a run, the k-th and all later ones fail, or only the k-th.  Nothing aborts, nothing
 * leaks, counts stay right, and what could not be had is an answer.
 *
 * The files under test are compiled in, with their allocations led through a count, those of uthash too.
 */
#include <stdlib.h>

#include "block/table.h"

static unsigned calls, fail_from, fail_to;

static int fails(void)
{
	calls++;
	return calls >= fail_from && calls < fail_to;
}

static void *count_malloc(size_t size)
{
	return fails() ? NULL : malloc(size);
}

static void *count_calloc(size_t n, size_t size)
{
	return fails() ? NULL : calloc(n, size);
}

static void *count_realloc(void *p, size_t size)
{
	return fails() ? NULL : realloc(p, size);
}

#define malloc(size) count_malloc(size)
#define calloc(n, size) count_calloc(n, size)
#define realloc(p, size) count_realloc(p, size)
#include "daemon/block/block.c"
#include "daemon/block/heat.c"
#include "daemon/block/lease.c"
#include "daemon/block/namespace.c"
#include "daemon/block/why.c"
#undef malloc
#undef calloc
#undef realloc

#include "base/rng.h"
#include "tests/unit/block/fixture.h"

#define KEYS 40u

static struct fixture f;
static struct holder h;

/* Reserves and registers; false: there was no memory. */
static bool store(uint32_t n)
{
	uint8_t key[KEY_MAX], parent[KEY_MAX];
	struct partial *p;
	uint32_t slot, canonical;
	struct lease *other;

	fixture_key(n, key);
	if (block_find(&f.ns, key) != NS_NONE || f.ns.n_free == 0)
		return true;
	assert(quota_charge(&f.user, QUOTA_SLOTS, 1) == 0);
	if (lease_write_new(&h, key, 1, 0, &slot) != 0) {
		quota_return(&f.user, QUOTA_SLOTS, 1);
		return false;
	}
	assert(quota_charge(&f.user, QUOTA_SLOTS, 1) == 0);
	if (lease_write_join(&h, key, 2) == NS_NONE) {
		quota_return(&f.user, QUOTA_SLOTS, 1);
		lease_abort(fixture_lease(&h, slot, 1));
		return false;
	}
	other = fixture_lease(&h, slot, 2);
	assert(!lease_write_lanes(fixture_lease(&h, slot, 1), 1, &p));
	assert(lease_write_lanes(other, 2, &p));
	lease_write_done(&f.ns, p);
	assert(block_register(&f.ns, slot, key, fixture_key(n / 2, parent), &canonical) == 0);
	heat_place(&f.ns.heat, slot);
	if (n % 3 == 0 && quota_charge(&f.user, QUOTA_HOLDS, 1) == 0) {
		if (lease_hold(&h, slot) != 0) {
			quota_return(&f.user, QUOTA_HOLDS, 1);
			return false;
		}
		lease_unhold(&h, slot);
		quota_return(&f.user, QUOTA_HOLDS, 1);
	}
	return true;
}

/* The same blocks come, are hinted at, condemned, pardoned and dropped, however much memory there is. */
static void run(struct rng *rng)
{
	for (int step = 0; step < 200; step++) {
		uint32_t n = 1 + (uint32_t)rng_below(rng, KEYS), slot, what = (uint32_t)rng_below(rng, 10);

		heat_tick(&f.ns.heat);
		slot = fixture_find(&f, n);
		if (slot == NS_NONE || what < 5) {
			store(n);
		} else if (what == 5) {
			heat_release(&f.ns.heat, slot);
		} else {
			block_condemn(&f.ns, slot);
			if (what == 6)
				block_pardon(&f.ns, slot);
			else
				block_forget(&f.ns, slot, WHY_DROPPED);
		}
		assert(f.ns.n_free + f.ns.n_used == f.ns.n_slots);
		assert(f.ns.heat.in_order + f.ns.heat.parked + f.ns.heat.grace_live == f.ns.n_used);
	}
}

static unsigned run_failing(unsigned from, unsigned to)
{
	struct rng rng;

	rng_init(&rng, 4);
	fail_from = fail_to = 0;
	fixture_open(&f, fixture_desc(2, 16), 2, 16);
	fixture_holder(&f, &h, false);
	calls = 0;
	fail_from = from;
	fail_to = to;
	run(&rng);
	fail_from = fail_to = 0;
	for (uint32_t s = 0; s < f.geo.n_regions << f.geo.shift; s++)
		if (ns_slot_valid(&f.ns, s) && ns_slot_state(&f.ns, s) == SHM_REGISTERED)
			fixture_drop(&f, s);
	ck_assert_uint_eq(f.ns.n_free, f.ns.n_slots);
	fixture_holder_close(&h);
	fixture_close(&f);
	return calls;
}

START_TEST(any_allocation_may_fail)
{
	unsigned n = run_failing(0, 0);

	ck_assert_uint_gt(n, 50);
	for (unsigned k = 1; k <= n; k++) {
		run_failing(k, k + 1);
		run_failing(k, k + 40);
	}
}
END_TEST

START_TEST(all_later_ones_may_fail)
{
	unsigned n = run_failing(0, 0);

	for (unsigned k = 1; k <= n; k += 3)
		run_failing(k, UINT32_MAX);
}
END_TEST

START_TEST(a_namespace_that_cannot_begin)
{
	struct ns_memory memory;
	struct ns ns;
	unsigned k;

	fixture_open(&f, fixture_desc(1, 16), 2, 16);
	memory = f.memory;
	ns_deinit(&f.ns);
	for (k = 1;; k++) {
		int r;

		calls = 0;
		fail_from = k;
		fail_to = k + 1;
		r = ns_init(&ns, &f.desc, &f.geo, &memory);
		fail_from = fail_to = 0;
		if (r == 0)
			break;
		ck_assert_int_eq(r, -ENOMEM);
	}
	ck_assert_uint_eq(k, 7); /* the index, blocks, regions and three of why */
	ns_deinit(&ns);
	ck_assert_int_eq(ns_init(&f.ns, &f.desc, &f.geo, &memory), 0);
	fixture_close(&f);
}
END_TEST

int main(void)
{
	TCase *tc = tcase_create("memory");

	tcase_add_test(tc, any_allocation_may_fail);
	tcase_add_test(tc, all_later_ones_may_fail);
	tcase_add_test(tc, a_namespace_that_cannot_begin);
	return fixture_run("memory", tc, NULL);
}
