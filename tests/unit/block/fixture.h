/* SPDX-License-Identifier: Apache-2.0 */
/* fixture.h: a namespace over plain memory, with regions, holders and blocks, for the tests of block/. */
#ifndef TESTS_BLOCK_FIXTURE_H
#define TESTS_BLOCK_FIXTURE_H

#include <check.h>
#include <signal.h>
#include <stdlib.h>

#include "block/block.h"
#include "block/lease.h"

#define FIXTURE_LANE 4096u

struct fixture {
	struct ns ns;
	struct ns_desc desc;
	struct ns_geometry geo;
	struct ns_memory memory;
	struct quota_user user;
};

static inline struct ns_desc fixture_desc(uint32_t lanes, uint32_t key_bytes)
{
	return (struct ns_desc){ .name = "test",
		                 .model = "model",
		                 .hash_algo = "hash",
		                 .lane_bytes = FIXTURE_LANE,
		                 .lanes = lanes,
		                 .key_bytes = key_bytes };
}

/* @regions regions of @slots slots each; all of them are there. */
static inline void fixture_open(struct fixture *f, struct ns_desc desc, uint32_t regions, uint32_t slots)
{
	uint64_t size = (uint64_t)desc.lane_bytes * desc.lanes * slots, offset;

	memset(f, 0, sizeof(*f));
	f->desc = desc;
	for (int i = 0; i < QUOTA_N; i++)
		f->user.session.limit[i] = UINT64_MAX;
	ck_assert_int_eq(ns_geometry(desc.lane_bytes, desc.lanes, size, FIXTURE_LANE, size * regions, &f->geo), 0);
	ck_assert_uint_eq(f->geo.slots_per_region, slots);
	f->memory = (struct ns_memory){ .salt = { 0x1234, 0x5678 }, .boot_id = 9, .grace_percent = 10, .why_entries = 16 };
	f->memory.shm = aligned_alloc(
		SHM_ALIGN,
		(shm_ns_bytes(f->geo.n_regions, index_lines_for(f->geo.max_slots), &offset) + 4095) / 4096 * 4096);
	f->memory.records = aligned_alloc(64, ((size_t)f->geo.n_regions << f->geo.shift) * sizeof(struct shm_record));
	ck_assert(f->memory.shm && f->memory.records);
	memset(f->memory.shm, 0, shm_ns_bytes(f->geo.n_regions, index_lines_for(f->geo.max_slots), &offset));
	memset(f->memory.records, 0, ((size_t)f->geo.n_regions << f->geo.shift) * sizeof(struct shm_record));
	ck_assert_int_eq(ns_init(&f->ns, &f->desc, &f->geo, &f->memory), 0);
	for (uint32_t i = 0; i < regions; i++)
		ck_assert_uint_ne(ns_region_add(&f->ns, size), NS_NONE);
}

static inline void fixture_close(struct fixture *f)
{
	ns_deinit(&f->ns);
	for (int i = 0; i < QUOTA_N; i++)
		ck_assert_uint_eq(f->user.session.used[i], 0);
	free(f->memory.shm);
	free(f->memory.records);
}

/* A session's part; with a page, as a client would map it. */
static inline void fixture_holder(struct fixture *f, struct holder *h, bool page)
{
	lease_holder_init(h, &f->ns);
	h->user = &f->user;
	if (page) {
		size_t bytes = shm_page_bytes(f->geo.n_regions << f->geo.shift);

		h->page = aligned_alloc(64, (bytes + 63) / 64 * 64);
		ck_assert(h->page);
		memset(h->page, 0, bytes);
	}
}

static inline void fixture_holder_close(struct holder *h)
{
	struct shm_page *page = h->page;

	ck_assert(list_empty(&h->leases));
	lease_holder_unpin(h);
	free(page);
}

static inline uint32_t fixture_reserve(struct holder *h, const uint8_t *key, uint64_t lanes, uint64_t deadline_ns)
{
	uint32_t slot;

	ck_assert_int_eq(quota_charge(h->user, QUOTA_SLOTS, 1), 0);
	ck_assert_int_eq(lease_write_new(h, key, lanes, deadline_ns, &slot), 0);
	return slot;
}

static inline struct lease *fixture_lease(const struct holder *h, uint32_t slot, uint64_t lanes)
{
	return lease_find(h, slot, ns_slot_generation(h->ns, slot), lanes);
}

/* @n as a key of @key_bytes; 0: all zero. */
static inline const uint8_t *fixture_key(uint32_t n, uint8_t key[KEY_MAX])
{
	memset(key, 0, KEY_MAX);
	memcpy(key, &n, sizeof(n));
	return key;
}

/* A slot that is written but not registered. */
static inline uint32_t fixture_written(struct holder *h)
{
	uint64_t all = lease_all_lanes(h->ns);
	uint32_t slot = fixture_reserve(h, NULL, all, 0);
	struct partial *p;

	ck_assert(lease_write_lanes(fixture_lease(h, slot, all), all, &p));
	lease_write_done(h->ns, p);
	return slot;
}

static inline uint32_t fixture_store_keys(struct holder *h, const uint8_t *key, const uint8_t *parent)
{
	uint32_t slot = fixture_written(h), canonical;

	ck_assert_int_eq(block_register(h->ns, slot, key, parent, &canonical), 0);
	ck_assert_uint_eq(canonical, slot);
	heat_place(&h->ns->heat, slot);
	return slot;
}

/* Registers key @n with parent @parent (0: a root). */
static inline uint32_t fixture_store(struct holder *h, uint32_t n, uint32_t parent)
{
	uint8_t key[KEY_MAX], parent_key[KEY_MAX];

	return fixture_store_keys(h, fixture_key(n, key), parent ? fixture_key(parent, parent_key) : NULL);
}

static inline uint32_t fixture_find(struct fixture *f, uint32_t n)
{
	uint8_t key[KEY_MAX];

	return block_find(&f->ns, fixture_key(n, key));
}

static inline void fixture_drop(struct fixture *f, uint32_t slot)
{
	block_condemn(&f->ns, slot);
	block_forget(&f->ns, slot, WHY_DROPPED);
}

/* Drops all blocks. */
static inline void fixture_empty(struct fixture *f)
{
	for (uint32_t s = 0; s < f->geo.n_regions << f->geo.shift; s++)
		if (ns_slot_state(&f->ns, s) == SHM_REGISTERED)
			fixture_drop(f, s);
	ck_assert_uint_eq(f->ns.n_used, 0);
	ck_assert_uint_eq(f->ns.index.used, 0);
	ck_assert_uint_eq(block_orphan_bytes(&f->ns), 0);
}

/* The rest of main(). */
static inline int fixture_run_all(const char *name, TCase *const *cases, size_t n)
{
	Suite *s = suite_create(name);
	SRunner *sr;
	int failed;

	for (size_t i = 0; i < n; i++)
		suite_add_tcase(s, cases[i]);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* @b may be NULL. */
static inline int fixture_run(const char *name, TCase *a, TCase *b)
{
	TCase *const cases[] = { a, b };

	return fixture_run_all(name, cases, b ? 2 : 1);
}

#endif
