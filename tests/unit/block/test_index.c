/* SPDX-License-Identifier: Apache-2.0 */
/* Unit tests of block/index.c: random operations on tiny tables against a plain model, and what a reader sees between any two stores.
 *
 * The file under test is compiled in, with its store to an entry led through a check: after each of them every registered key must be
 * found as a client would.
 */
#include <assert.h>
#include <check.h>
#include <signal.h>
#include <stdlib.h>

#include "base/rng.h"
#include "proto/shm.h"

static void checked_store(struct shm_entry *p, struct shm_entry e);

#define shm_entry_store checked_store
#include "daemon/block/index.c"
#undef shm_entry_store

#define KEYS 400u

enum state { ABSENT, PRESENT, CONDEMNED };

static struct shm_line *lines;
static uint8_t *behind;
static struct shm_record records[KEYS];
static struct index ix;
static enum state states[KEYS];
static struct shm_entry *places[KEYS]; /* of the tombstone */
static uint32_t stores, checked, moving = UINT32_MAX;

/* As a client reads: no records, from the home line to one with an empty entry.  Returns how often the entry is there. */
static uint32_t reader_sees(const uint8_t *key, uint32_t slot)
{
	struct shm_hash h = shm_hash_key(key, ix.key_bytes, ix.salt, ix.n_lines);
	uint32_t found = 0;

	for (uint64_t p = 0; p < SHM_MAX_PROBE && p < ix.n_lines; p++) {
		const struct shm_line *line = &ix.lines[(h.line + p) % ix.n_lines];
		bool empty = false;

		for (uint32_t i = 0; i < SHM_LINE_ENTRIES; i++) {
			struct shm_entry e = shm_entry_load(&line->entries[i]);

			empty |= e.generation == 0;
			found += e.tag == h.tag && e.slot == slot && e.generation == slot + 1;
		}
		if (empty)
			break;
	}
	return found;
}

static void everybody_is_found(void)
{
	for (uint32_t i = 0; i < KEYS; i++) {
		uint32_t seen = states[i] == ABSENT ? 0 : reader_sees(records[i].key, i);

		/* While an entry moves it is there twice; the key that is coming may be there or not. */
		if (i != moving && (states[i] == PRESENT ? seen < 1 || seen > 2 : seen != 0))
			ck_abort_msg("key %u, state %d, is seen %u times after store %u", i, states[i], seen, stores);
	}
	checked++;
}

static void checked_store(struct shm_entry *p, struct shm_entry e)
{
	shm_entry_store(p, e);
	stores++;
	everybody_is_found();
}

static void open_table(uint64_t n_lines, uint32_t key_bytes)
{
	lines = aligned_alloc(64, n_lines * sizeof(*lines));
	behind = calloc(1, index_behind_bytes(n_lines));
	ck_assert(lines && behind);
	memset(lines, 0, n_lines * sizeof(*lines));
	memset(states, 0, sizeof(states));
	for (uint32_t i = 0; i < KEYS; i++) {
		memset(&records[i], 0, sizeof(records[i]));
		memcpy(records[i].key + key_bytes - 8, &i, sizeof(i));
	}
	ix = (struct index){ .lines = lines,
		             .behind = behind,
		             .keys = records->key,
		             .key_stride = sizeof(*records),
		             .n_lines = n_lines,
		             .key_bytes = key_bytes };
	ix.salt[0] = 77;
	ix.salt[1] = 78;
}

static void teardown(void)
{
	free(lines);
	free(behind);
}

static void setup(void)
{
	open_table(8, 16);
}

static struct shm_hash hash(uint32_t i)
{
	return index_hash(&ix, records[i].key);
}

static int insert(uint32_t i)
{
	int r;

	moving = i;
	r = index_insert(&ix, hash(i), i + 1, i);
	moving = UINT32_MAX;
	if (r == 0)
		states[i] = PRESENT;
	return r;
}

static void condemn(uint32_t i)
{
	places[i] = index_find(&ix, records[i].key, hash(i));
	assert(places[i] && places[i]->slot == i);
	moving = i;
	index_tombstone(&ix, places[i]);
	moving = UINT32_MAX;
	states[i] = CONDEMNED;
}

static void pardon(uint32_t i)
{
	moving = i;
	index_restore(&ix, places[i], hash(i), i + 1, i);
	moving = UINT32_MAX;
	states[i] = PRESENT;
}

static void end(uint32_t i)
{
	index_remove(&ix, places[i]);
	states[i] = ABSENT;
}

static uint32_t count(enum state state)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < KEYS; i++)
		n += states[i] == state;
	return n;
}

/* Many at once find what one at a time finds; a prefix ends where it should. */
static void check_batches(void)
{
	uint8_t keys[INDEX_BATCH * 32];
	struct shm_entry *found[INDEX_BATCH];

	for (uint32_t from = 0; from < KEYS; from += INDEX_BATCH) {
		uint32_t n = KEYS - from < INDEX_BATCH ? KEYS - from : INDEX_BATCH, prefix = 0;

		for (uint32_t i = 0; i < n; i++)
			memcpy(keys + i * ix.key_bytes, records[from + i].key, ix.key_bytes);
		assert(index_find_batch(&ix, keys, n, true, found) == n);
		for (uint32_t i = 0; i < n; i++)
			assert(found[i] == index_find(&ix, records[from + i].key, hash(from + i)));
		while (prefix < n && states[from + prefix] == PRESENT)
			prefix++;
		assert(index_find_batch(&ix, keys, n, false, found) == prefix);
		for (uint32_t i = 0; i < prefix; i++)
			assert(found[i]->slot == from + i);
	}
}

static void check_table(void)
{
	uint32_t used = 0, tombstones = 0;

	for (uint64_t l = 0; l < ix.n_lines; l++) {
		for (uint32_t i = 0; i < SHM_LINE_ENTRIES; i++) {
			const struct shm_entry *e = &ix.lines[l].entries[i];

			if (e->generation == UINT32_MAX)
				tombstones++;
			else if (e->generation != 0)
				used++;
			if (e->generation != 0 && e->generation != UINT32_MAX)
				assert((hash(e->slot).line + behind[l * SHM_LINE_ENTRIES + i]) % ix.n_lines == l);
		}
	}
	assert(used == count(PRESENT) && used == ix.used);
	assert(tombstones == count(CONDEMNED));
	for (uint32_t i = 0; i < KEYS; i++) {
		struct shm_entry *e = index_find(&ix, records[i].key, hash(i));

		assert((e != NULL) == (states[i] == PRESENT));
		assert(!e || (e->slot == i && e->generation == i + 1));
		e = index_find_tombstone(&ix, hash(i), i);
		assert((e != NULL) == (states[i] == CONDEMNED));
	}
	check_batches();
}

START_TEST(lines_hold_the_slots_at_three_quarters)
{
	for (uint64_t n = 1; n < 100000; n = n * 3 + 1) {
		ck_assert_uint_ge(index_lines_for(n) * SHM_LINE_ENTRIES * 3, n * 4);
		ck_assert_uint_le(index_lines_for(n), n / 3 + 4);
	}
	ck_assert_uint_eq(index_lines_for(0), 4);
}
END_TEST

/* Keys of 8 to 32 bytes are compared whole; the bytes behind a key's length do not matter. */
START_TEST(finds_what_was_inserted)
{
	static const uint32_t lengths[] = { 8, 9, 16, 17, 24, 31, 32 };

	teardown();
	open_table(index_lines_for(KEYS), lengths[_i]);
	for (uint32_t i = 0; i < KEYS; i++)
		ck_assert_int_eq(insert(i), 0);
	check_table();
	for (uint32_t i = 0; i < KEYS; i++) {
		condemn(i);
		end(i);
	}
	check_table();
	ck_assert_uint_eq(ix.used, 0);
	for (uint64_t l = 0; l < ix.n_lines; l++)
		for (uint32_t i = 0; i < SHM_LINE_ENTRIES; i++)
			ck_assert_uint_eq(ix.lines[l].entries[i].generation, 0);
}
END_TEST

/* A table of fewer lines than a probe is long is used to its last entry. */
START_TEST(full_is_an_answer)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < KEYS; i++)
		n += insert(i) == 0;
	ck_assert_uint_eq(n, 8 * SHM_LINE_ENTRIES);
	ck_assert_uint_eq(ix.used, n);
	ck_assert_int_eq(insert(KEYS - 1), INDEX_E_FULL);
	check_table();
	condemn(0);
	end(0);
	ck_assert_int_eq(insert(KEYS - 1), 0);
	check_table();
}
END_TEST

/* In a larger one no key lies farther from home than a client looks. */
START_TEST(probes_are_bounded)
{
	const uint32_t reach = SHM_MAX_PROBE * SHM_LINE_ENTRIES, n_lines = SHM_MAX_PROBE + 9;
	uint32_t full = 0;

	ck_assert_uint_lt(reach, KEYS);
	teardown();
	open_table(n_lines, 16);
	for (uint32_t i = 0; i < KEYS; i++) {
		struct shm_hash h = { .line = 0, .tag = hash(i).tag }; /* as if all had their home in the first line */

		full += index_insert(&ix, h, i + 1, i) == INDEX_E_FULL;
	}
	ck_assert_uint_eq(full, KEYS - reach);
	for (uint64_t l = 0; l < n_lines; l++)
		ck_assert_uint_eq(lines[l].entries[3].generation != 0, l < SHM_MAX_PROBE);
	ck_assert_ptr_nonnull(index_find(&ix, records[reach - 1].key, (struct shm_hash){ 0, hash(reach - 1).tag }));
	ck_assert_ptr_null(index_find(&ix, records[reach].key, (struct shm_hash){ 0, hash(reach).tag }));
}
END_TEST

START_TEST(equal_tags_are_told_apart)
{
	struct shm_hash h = { .line = 3, .tag = 5 };

	moving = 0;
	ck_assert_int_eq(index_insert(&ix, h, 1, 0), 0);
	moving = 1;
	ck_assert_int_eq(index_insert(&ix, h, 2, 1), 0);
	ck_assert_uint_eq(index_find(&ix, records[0].key, h)->slot, 0);
	ck_assert_uint_eq(index_find(&ix, records[1].key, h)->slot, 1);
	ck_assert_ptr_null(index_find(&ix, records[2].key, h));
}
END_TEST

/* Another key of the same fingerprint comes first in the chain, or alone. */
START_TEST(equal_tags_are_told_apart_in_a_batch)
{
	struct shm_entry *found[2];
	uint8_t keys[2 * 16];

	memcpy(keys, records[2].key, 16);
	memcpy(keys + 16, records[0].key, 16);
	moving = 2;
	ck_assert_int_eq(insert(2), 0);
	moving = 1;
	ck_assert_int_eq(index_insert(&ix, hash(0), 2, 1), 0);
	ck_assert_uint_eq(index_find_batch(&ix, keys, 2, false, found), 1);
	ck_assert_uint_eq(index_find_batch(&ix, keys, 2, true, found), 2);
	ck_assert_ptr_null(found[1]);
	moving = 0;
	ck_assert_int_eq(index_insert(&ix, hash(0), 1, 0), 0);
	ck_assert_uint_eq(index_find_batch(&ix, keys, 2, false, found), 2);
	ck_assert_uint_eq(found[0]->slot, 2);
	ck_assert_uint_eq(found[1]->slot, 0);
}
END_TEST

/* Tables of few lines and one of more than a probe reaches, from empty to full, so that chains wrap and are mended in every way. */
START_TEST(random_operations)
{
	static const uint64_t sizes[] = { 3, 5, 9, 17, SHM_MAX_PROBE + 6 };
	struct rng rng;
	uint32_t keys, limit;

	teardown();
	open_table(sizes[_i % 5], 16);
	keys = (uint32_t)ix.n_lines * 5;
	rng_init(&rng, (uint64_t)_i);
	for (int step = 0; step < (_i % 5 == 4 ? 10 : 60); step++) {
		limit = (uint32_t)rng_below(&rng, ix.n_lines * SHM_LINE_ENTRIES + 1);
		for (uint32_t i = 0; i < keys && ix.used < limit; i++) {
			uint32_t k = (uint32_t)rng_below(&rng, keys);

			if (states[k] == ABSENT && insert(k) == INDEX_E_FULL)
				break;
		}
		for (uint32_t i = 0; i < keys; i++)
			if (states[i] == PRESENT && rng_chance(&rng, 40))
				condemn(i);
		check_table();
		for (uint32_t i = keys; i-- > 0;)
			if (states[i] == CONDEMNED && rng_chance(&rng, 40))
				pardon(i);
		check_table();
		for (uint32_t i = 0; i < keys; i++)
			if (states[i] == CONDEMNED)
				end(i);
		check_table();
	}
	ck_assert_uint_eq(checked, stores);
	ck_assert_uint_gt(stores, 300);
}
END_TEST

/* Three lines of one home: the hole of the first moves to the end of the chain in as few stores as there are lines. */
START_TEST(the_chain_is_mended)
{
	uint32_t inserted = 0, before;

	teardown();
	open_table(16, 16);
	for (uint32_t i = 0; i < KEYS && inserted < 12; i++)
		if (hash(i).line == 15) {
			ck_assert_int_eq(insert(i), 0);
			inserted++;
		}
	ck_assert_uint_eq(inserted, 12); /* lines 15, 0 and 1 are full */
	for (uint32_t i = 0; i < KEYS; i++) {
		if (states[i] != PRESENT)
			continue;
		condemn(i);
		before = stores;
		end(i);
		ck_assert_uint_eq(stores - before, 5);
		break;
	}
	check_table();
	ck_assert_uint_eq((lines[1].entries[0].generation != 0) + (lines[1].entries[1].generation != 0) +
	                          (lines[1].entries[2].generation != 0) + (lines[1].entries[3].generation != 0),
	                  3);
}
END_TEST

START_TEST(empty_tag_aborts)
{
	index_insert(&ix, (struct shm_hash){ 0, 0 }, 1, 0);
}
END_TEST

START_TEST(generation_of_a_tombstone_aborts)
{
	index_insert(&ix, hash(0), UINT32_MAX, 0);
}
END_TEST

START_TEST(two_tombstones_abort)
{
	insert(0);
	condemn(0);
	index_tombstone(&ix, places[0]);
}
END_TEST

START_TEST(restoring_what_is_there_aborts)
{
	insert(0);
	index_restore(&ix, index_find(&ix, records[0].key, hash(0)), hash(0), 1, 0);
}
END_TEST

START_TEST(removing_what_is_there_aborts)
{
	insert(0);
	index_remove(&ix, index_find(&ix, records[0].key, hash(0)));
}
END_TEST

int main(void)
{
	Suite *s = suite_create("index");
	TCase *tc = tcase_create("index");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, lines_hold_the_slots_at_three_quarters);
	tcase_add_loop_test(tc, finds_what_was_inserted, 0, 7);
	tcase_add_test(tc, full_is_an_answer);
	tcase_add_test(tc, probes_are_bounded);
	tcase_add_test(tc, equal_tags_are_told_apart);
	tcase_add_test(tc, equal_tags_are_told_apart_in_a_batch);
	tcase_add_loop_test(tc, random_operations, 0, 15);
	tcase_add_test(tc, the_chain_is_mended);
	tcase_add_test_raise_signal(tc, empty_tag_aborts, SIGABRT);
	tcase_add_test_raise_signal(tc, generation_of_a_tombstone_aborts, SIGABRT);
	tcase_add_test_raise_signal(tc, two_tombstones_abort, SIGABRT);
	tcase_add_test_raise_signal(tc, restoring_what_is_there_aborts, SIGABRT);
	tcase_add_test_raise_signal(tc, removing_what_is_there_aborts, SIGABRT);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
