/* SPDX-License-Identifier: Apache-2.0 */
/* fixture.h: a store over a fake tier, one user, and a few words to fill it with.  Keys are small numbers, eight bytes each. */
#ifndef TESTS_UNIT_MOVE_FIXTURE_H
#define TESTS_UNIT_MOVE_FIXTURE_H

#include <check.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "move/store_ns.h"
#include "tests/lib/fake_tier.h"

#define MIB (UINT64_C(1) << 20)
#define FIX_MAX 64u
#define FIX_TIMEOUT_NS UINT64_C(1000000000)

struct fix {
	struct tier *tier;
	struct store *store;
	struct store_policy policies[2]; /* of "a" and "b" */
	struct quota uid;
	struct quota_user user;
	uint64_t now_ns;
	uint32_t slots[FIX_MAX], generations[FIX_MAX], reserved, dropped; /* of the last reserve, or match */
};

/* @with: what of it concerns the tier below is taken over; NULL: there is none. */
static inline void fix_new_with(struct fix *f, uint64_t mib, const struct store_config *with)
{
	struct store_config config = { .policies = f->policies,
		                       .n_policies = 2,
		                       .max_namespaces = 4,
		                       .grace_percent = 25,
		                       .why_entries = 64,
		                       .write_timeout_ns = FIX_TIMEOUT_NS,
		                       .boot_id = 1 };

	log_set_level("error");
	memset(f, 0, sizeof(*f));
	f->tier = fake_tier_new(mib * MIB, 2 * MIB, with != NULL);
	config.host = f->tier;
	if (with) {
		config.lower = with->lower;
		config.calculator = with->calculator;
		config.max_transfers = with->max_transfers;
		config.low_percent = with->low_percent;
		config.write = with->write;
		config.scrub_percent = with->scrub_percent;
	}
	snprintf(f->policies[0].name, sizeof(f->policies[0].name), "a");
	snprintf(f->policies[1].name, sizeof(f->policies[1].name), "b");
	f->policies[0].max_bytes = f->policies[1].max_bytes = UINT64_MAX;
	f->policies[0].lower_max_bytes = f->policies[1].lower_max_bytes = UINT64_MAX;
	f->policies[0].device_max_bytes = f->policies[1].device_max_bytes = UINT64_MAX;
	f->policies[0].write = f->policies[1].write = with ? with->write : STORE_WRITE_ON_EVICT;
	f->uid.limit[QUOTA_SLOTS] = f->uid.limit[QUOTA_HOLDS] = 1000;
	f->user.session.limit[QUOTA_SLOTS] = f->user.session.limit[QUOTA_HOLDS] = 1000;
	f->user.uid = &f->uid;
	f->user.pin_limit = 1000;
	f->now_ns = 1;
	ck_assert_int_eq(store_new(&config, &f->store), 0);
}

static inline void fix_new(struct fix *f, uint64_t mib)
{
	fix_new_with(f, mib, NULL);
}

/* All holders are closed; nothing is left. */
static inline void fix_free(struct fix *f)
{
	store_check(f->store);
	ck_assert_uint_eq(f->user.session.used[QUOTA_SLOTS], 0);
	ck_assert_uint_eq(f->user.session.used[QUOTA_HOLDS], 0);
	store_free(f->store);
	fake_tier_free(f->tier);
}

static inline struct ns_desc fix_desc(const char *name, uint32_t lanes, uint64_t lane_bytes)
{
	struct ns_desc desc = { .model = "m", .lane_bytes = lane_bytes, .lanes = lanes, .key_bytes = 8 };

	snprintf(desc.name, sizeof(desc.name), "%s", name);
	return desc;
}

static inline int fix_try_attach(struct fix *f, const struct ns_desc *desc, struct holder **ret_holder)
{
	uint8_t have[16], want[16];
	struct store_attach args = { .desc = desc, .user = &f->user, .owner = f };

	return store_attach(f->store, &args, ret_holder, have, want);
}

static inline struct holder *fix_attach(struct fix *f, const char *name, uint32_t lanes, uint64_t lane_bytes)
{
	struct ns_desc desc = fix_desc(name, lanes, lane_bytes);
	struct holder *h;

	ck_assert_int_eq(fix_try_attach(f, &desc, &h), 0);
	return h;
}

static inline void fix_keys(uint64_t first, uint32_t n, uint64_t ret_keys[])
{
	ck_assert_uint_le(n, FIX_MAX);
	for (uint32_t i = 0; i < n; i++)
		ret_keys[i] = first + i;
}

static inline int fix_reserve(struct fix *f, struct holder *h, uint32_t lane, uint64_t first, uint32_t n)
{
	uint64_t keys[FIX_MAX];
	struct store_reserve args = { .keys = (const uint8_t *)keys,
		                      .n = n,
		                      .lane = lane,
		                      .now_ns = f->now_ns,
		                      .slots = f->slots,
		                      .generations = f->generations };
	int r;

	fix_keys(first, n, keys);
	r = store_reserve(h, &args);
	f->reserved = args.reserved;
	f->dropped = args.dropped;
	store_check(f->store);
	return r;
}

/* Commits what was reserved last.  @chain: each key is the parent of the next, and @parent that of the first (0: none). */
static inline int fix_commit(struct fix *f, struct holder *h, uint32_t lane, uint64_t first, uint32_t n, uint64_t parent)
{
	uint64_t keys[FIX_MAX];
	uint32_t slots[FIX_MAX], generations[FIX_MAX];
	uint8_t states[FIX_MAX];
	struct store_commit args = { .slots_in = f->slots,
		                     .generations_in = f->generations,
		                     .keys = (const uint8_t *)keys,
		                     .parents = (const uint8_t *)&parent,
		                     .n = n,
		                     .n_parents = parent ? 1 : 0,
		                     .lane = lane,
		                     .length = h->ns->desc->lane_bytes,
		                     .now_ns = f->now_ns,
		                     .slots = slots,
		                     .generations = generations,
		                     .states = states };
	int r;

	fix_keys(first, n, keys);
	r = store_commit(h, &args);
	store_check(f->store);
	return r;
}

/* @n blocks that have nothing to do with one another, the first the coldest. */
static inline void fix_put(struct fix *f, struct holder *h, uint64_t first, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		ck_assert_int_eq(fix_reserve(f, h, STORE_ALL_LANES, first + i, 1), 0);
		ck_assert_uint_eq(f->reserved, 1);
		ck_assert_int_eq(fix_commit(f, h, STORE_ALL_LANES, first + i, 1, 0), 0);
	}
}

static inline bool fix_has(struct fix *f, struct holder *h, uint64_t key)
{
	uint8_t tiers;
	uint32_t present;

	store_stat(h, (const uint8_t *)&key, 1, &tiers, &present);
	ck_assert_uint_eq(tiers, present ? 2 : 0);
	(void)f;
	return present == 1;
}

/* How many of the keys are here. */
static inline uint32_t fix_count(struct fix *f, struct holder *h, uint64_t first, uint32_t n)
{
	uint32_t have = 0;

	for (uint32_t i = 0; i < n; i++)
		have += fix_has(f, h, first + i);
	return have;
}

static inline void fix_hold(struct fix *f, struct holder *h, uint64_t first, uint32_t n)
{
	uint64_t keys[FIX_MAX];
	struct store_match args = { .keys = (const uint8_t *)keys,
		                    .n = n,
		                    .hold = true,
		                    .now_ns = f->now_ns,
		                    .slots = f->slots,
		                    .generations = f->generations };

	fix_keys(first, n, keys);
	ck_assert_int_eq(store_match(h, &args), 0);
	ck_assert_uint_eq(args.hits, n);
}

static inline void fix_hint(struct fix *f, struct holder *h, enum store_hint hint, uint64_t first, uint32_t n)
{
	uint64_t keys[FIX_MAX];
	uint32_t known;
	struct store_hint_args args = { .hint = hint,
		                        .keys = (const uint8_t *)keys,
		                        .n = n,
		                        .ttl_ms = 1000,
		                        .priority = 50,
		                        .now_ns = f->now_ns };

	fix_keys(first, n, keys);
	ck_assert_int_eq(store_hint(h, &args, &known), 0);
	ck_assert_uint_eq(known, n);
}

static inline uint64_t fix_bytes(const struct holder *h)
{
	return store_ns_of((struct holder *)h)->used_bytes;
}

static inline void fix_close(struct holder *h)
{
	ck_assert_int_eq(holder_close(h, true), 0);
}

#endif
