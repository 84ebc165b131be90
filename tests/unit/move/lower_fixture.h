/* SPDX-License-Identifier: Apache-2.0 */
/* lower_fixture.h: the same with a tier below, in which nothing ends before the test lets it.  Blocks of 256 KiB, eight a region; what is in them is a
 * function of their key.
 */
#ifndef TESTS_UNIT_MOVE_LOWER_FIXTURE_H
#define TESTS_UNIT_MOVE_LOWER_FIXTURE_H

#include "base/metrics.h"
#include "move/onboard.h"
#include "move/transfer.h"
#include "tests/lib/fake_lower.h"
#include "tests/unit/move/fixture.h"

#define LOW_BLOCK (UINT64_C(256) << 10)

struct low {
	struct fix f;
	struct tier_lower *t;
	struct fake_sums *sums;
	struct store_config config; /* what of it is not the fixture's */
	uint64_t mib;
};

/* A store over what is below already. */
static inline void low_start(struct low *l)
{
	l->config.lower = l->t;
	l->config.calculator = fake_sums_calculator(l->sums);
	fix_new_with(&l->f, l->mib, &l->config);
	store_lower_user(l->f.store, &l->t->user);
}

/* @mib of host memory, four blocks each; @areas of @area_slots blocks. */
static inline void low_make(struct low *l, uint64_t mib, uint32_t areas, uint32_t area_slots)
{
	if (l->config.max_transfers == 0)
		l->config.max_transfers = 8;
	l->mib = mib;
	l->t = fake_lower_new(areas, area_slots * LOW_BLOCK, true);
	l->sums = fake_sums_new(0, true);
	low_start(l);
	fake_lower_recover(l->t, NULL, true);
}

static inline void low_new(struct low *l, uint64_t mib, uint32_t areas, uint32_t area_slots)
{
	memset(l, 0, sizeof(*l));
	low_make(l, mib, areas, area_slots);
}

static inline void low_settle(struct low *l)
{
	fake_lower_settle(l->t, l->sums);
	store_check(l->f.store);
}

/* The store ends, as the daemon does; what is below stays. */
static inline void low_stop(struct low *l)
{
	store_stop_moving(l->f.store);
	fake_lower_unstick(l->t);
	low_settle(l);
	ck_assert(!store_is_moving(l->f.store));
	fix_free(&l->f);
}

static inline void low_free(struct low *l)
{
	low_stop(l);
	l->t = fake_lower_free(l->t);
	l->sums = fake_sums_free(l->sums);
}

static inline struct holder *low_attach(struct low *l, const char *name)
{
	return fix_attach(&l->f, name, 1, LOW_BLOCK);
}

static inline struct ns *low_ns(struct holder *h)
{
	return &store_ns_of(h)->ns;
}

static inline uint8_t low_tiers(struct holder *h, uint64_t key)
{
	uint8_t tiers;
	uint32_t present;

	store_stat(h, (const uint8_t *)&key, 1, &tiers, &present);
	return tiers;
}

/* How many of them are in all of @tiers. */
static inline uint32_t low_count(struct holder *h, uint64_t first, uint32_t n, uint8_t tiers)
{
	uint32_t have = 0;

	for (uint32_t i = 0; i < n; i++)
		have += (low_tiers(h, first + i) & tiers) == tiers;
	return have;
}

static inline uint32_t low_anywhere(struct holder *h, uint64_t first, uint32_t n)
{
	uint32_t have = 0;

	for (uint32_t i = 0; i < n; i++)
		have += low_tiers(h, first + i) != 0;
	return have;
}

static inline uint64_t *low_bytes(struct holder *h, uint32_t slot)
{
	const struct ns *ns = low_ns(h);
	const struct tier_region *region = &store_ns_of(h)->memory[ns_region_of(ns, slot)];

	return (uint64_t *)((uint8_t *)region->base + (slot & ((1u << ns->geo.shift) - 1)) * ns->geo.lane_stride);
}

static inline void low_fill(struct holder *h, uint32_t slot, uint64_t key)
{
	uint64_t *at = low_bytes(h, slot);

	at[0] = key * 0x9e3779b97f4a7c15ull;
	at[LOW_BLOCK / 8 - 1] = ~at[0];
}

static inline void low_verify(struct holder *h, uint32_t slot, uint64_t key)
{
	const uint64_t *at = low_bytes(h, slot);

	ck_assert_uint_eq(at[0], key * 0x9e3779b97f4a7c15ull);
	ck_assert_uint_eq(at[LOW_BLOCK / 8 - 1], ~at[0]);
}

/* Every block that can be found in host memory is what its key says. */
static inline void low_verify_all(struct holder *h)
{
	struct ns *ns = low_ns(h);

	for (uint32_t r = 0; r < ns->geo.n_regions; r++) {
		for (uint32_t i = 0; i < ns->regions[r].n_slots; i++) {
			uint32_t slot = (r << ns->geo.shift) + i;
			uint64_t key;

			if (ns_slot_state(ns, slot) != SHM_REGISTERED)
				continue;
			memcpy(&key, ns->records[slot].key, sizeof(key));
			low_verify(h, slot, key);
		}
	}
}

/* ---- reserve ---- */

struct low_wait {
	struct store_wait wait;
	unsigned called;
	bool late;
};

static inline void low_on_wait(struct store_wait *w, bool late)
{
	struct low_wait *lw = container_of(w, struct low_wait, wait);

	lw->called++;
	lw->late = late;
}

static inline void low_wait_begin(struct low *l, struct holder *h, struct low_wait *w, uint32_t need)
{
	memset(w, 0, sizeof(*w));
	w->wait.deadline_ns = l->f.now_ns + 1000;
	w->wait.cb = low_on_wait;
	list_init(&w->wait.link);
	store_wait(h, &w->wait, need);
}

static inline int low_reserve_now(struct low *l, struct holder *h, uint64_t first, uint32_t n)
{
	uint64_t keys[FIX_MAX];
	struct store_reserve args = { .keys = (const uint8_t *)keys,
		                      .n = n,
		                      .lane = STORE_ALL_LANES,
		                      .now = true,
		                      .now_ns = l->f.now_ns,
		                      .slots = l->f.slots,
		                      .generations = l->f.generations };
	int r;

	fix_keys(first, n, keys);
	r = store_reserve(h, &args);
	l->f.reserved = args.reserved;
	l->f.dropped = args.dropped;
	store_check(l->f.store);
	return r;
}

/* As a handler does it, with the tier working.  Never late: that is what the caller shows. */
static inline void low_reserve(struct low *l, struct holder *h, uint64_t first, uint32_t n)
{
	int r = fix_reserve(&l->f, h, STORE_ALL_LANES, first, n);

	for (int tries = 0; r == STORE_E_WAIT; tries++) {
		struct low_wait w;

		ck_assert_int_lt(tries, 20);
		low_wait_begin(l, h, &w, n);
		while (!w.called && (fake_lower_release(l->t) || fake_sums_release(l->sums)))
			;
		ck_assert_uint_eq(w.called, 1);
		if (w.late) {
			r = low_reserve_now(l, h, first, n);
			break;
		}
		r = fix_reserve(&l->f, h, STORE_ALL_LANES, first, n);
	}
	ck_assert_int_eq(r, 0);
}

static inline void low_commit(struct low *l, struct holder *h, uint64_t first, uint32_t n, uint64_t parent)
{
	for (uint32_t i = 0; i < n; i++)
		if (l->f.slots[i] != STORE_NO_SLOT)
			low_fill(h, l->f.slots[i], first + i);
	ck_assert_int_eq(fix_commit(&l->f, h, STORE_ALL_LANES, first, n, parent), 0);
}

/* Blocks that have nothing to do with one another, the first the coldest. */
static inline void low_put(struct low *l, struct holder *h, uint64_t first, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		low_reserve(l, h, first + i, 1);
		low_commit(l, h, first + i, 1, 0);
	}
}

/* The key of a write in flight. */
static inline uint64_t low_key_of(const struct tier_io *io)
{
	uint64_t key;

	memcpy(&key, io->tag.bytes, sizeof(key));
	return key;
}

struct low_loop { /* run with _i from 0 to @times - 1 */
	const TTest *test;
	int times;
};
#define LOW_N(array) (sizeof(array) / sizeof(*(array)))

static inline int low_run(const char *name, const TTest *const *tests, size_t n, const struct low_loop *loops, size_t n_loops)
{
	Suite *s = suite_create(name);
	TCase *tc = tcase_create(name);
	SRunner *sr;
	int failed;

	for (size_t i = 0; i < n; i++)
		tcase_add_test(tc, tests[i]);
	for (size_t i = 0; i < n_loops; i++)
		tcase_add_loop_test(tc, loops[i].test, 0, loops[i].times);
	tcase_set_timeout(tc, 60);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}

#endif
