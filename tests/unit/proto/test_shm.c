/* SPDX-License-Identifier: Apache-2.0 */
/* Unit tests of proto/shm.h and shm_pin.h: what both ends agree on byte by byte, and the hash that says where a key lives. */
#include "proto/shm_pin.h"

#include <check.h>
#include <stddef.h>
#include <stdlib.h>

#include "base/rng.h"

#define KEYS 16384u

static const uint64_t salt[2] = { 0x0123456789abcdefull, 0xfedcba9876543210ull };

/* ---- layout ---- */

START_TEST(layout_is_as_published)
{
	ck_assert_uint_eq(offsetof(struct shm_life, boot_id), 8);
	ck_assert_uint_eq(offsetof(struct shm_life, life_word), 64);
	ck_assert_uint_eq(offsetof(struct shm_ns, boot_id), 8);
	ck_assert_uint_eq(offsetof(struct shm_ns, salt), 16);
	ck_assert_uint_eq(offsetof(struct shm_ns, n_lines), 32);
	ck_assert_uint_eq(offsetof(struct shm_ns, lines_offset), 40);
	ck_assert_uint_eq(offsetof(struct shm_ns, lane_bytes), 48);
	ck_assert_uint_eq(offsetof(struct shm_ns, lane_stride), 56);
	ck_assert_uint_eq(offsetof(struct shm_ns, n_slots), 64);
	ck_assert_uint_eq(offsetof(struct shm_ns, confirm), 84);
	ck_assert_uint_eq(offsetof(struct shm_ns, clock), 128); /* a line of its own: it is written often */
	ck_assert_uint_eq(offsetof(struct shm_ns, closed), 132);
	ck_assert_uint_eq(offsetof(struct shm_ns, regions), 192);
	ck_assert_uint_eq(offsetof(struct shm_region, size), 8);
	ck_assert_uint_eq(offsetof(struct shm_region, lane_area), 16);
	ck_assert_uint_eq(offsetof(struct shm_entry, generation), 8);
	ck_assert_uint_eq(offsetof(struct shm_entry, slot), 12);
	ck_assert_uint_eq(sizeof(struct shm_entry), 16);
	ck_assert_uint_eq(offsetof(struct shm_record, parent), 32);
	ck_assert_uint_eq(offsetof(struct shm_record, sum), 40);
	ck_assert_uint_eq(offsetof(struct shm_record, check), 48);
	ck_assert_uint_eq(offsetof(struct shm_record, generation), 52);
	ck_assert_uint_eq(offsetof(struct shm_record, state), 56);
	ck_assert_uint_eq(offsetof(struct shm_record, key_bytes), 57);
	ck_assert_uint_eq(offsetof(struct shm_page, looked_up), 8);
	ck_assert_uint_eq(offsetof(struct shm_page, pinned), 32);
	ck_assert_uint_eq(offsetof(struct shm_page, groups), 64);
	ck_assert_uint_eq(offsetof(struct shm_page, pins), SHM_ALIGN);
}
END_TEST

START_TEST(sizes_leave_room_for_everything)
{
	for (uint32_t regions = 1; regions < 2000; regions = regions * 2 + 1) {
		uint64_t offset, bytes = shm_ns_bytes(regions, 100, &offset);

		ck_assert_uint_eq(offset % SHM_ALIGN, 0);
		ck_assert_uint_ge(offset, offsetof(struct shm_ns, regions) + regions * sizeof(struct shm_region));
		ck_assert_uint_lt(offset, SHM_ALIGN + sizeof(struct shm_ns) + regions * sizeof(struct shm_region));
		ck_assert_uint_eq(bytes, offset + 100 * sizeof(struct shm_line));
	}
	ck_assert_uint_eq(shm_page_bytes(0), SHM_ALIGN);
	ck_assert_uint_eq(shm_page_bytes(1000), SHM_ALIGN + 4000);
	ck_assert_uint_eq(shm_page_bytes(UINT32_MAX), SHM_ALIGN + 4 * (uint64_t)UINT32_MAX);
}
END_TEST

START_TEST(daemon_is_alive_until_the_kernel_says_so)
{
	struct shm_life life = { 0 };

	ck_assert(!shm_daemon_alive(&life)); /* not begun */
	atomic_store(&life.life_word, 1234);
	ck_assert(shm_daemon_alive(&life));
	atomic_store(&life.life_word, 1234 | 0x80000000u); /* somebody waits for it */
	ck_assert(shm_daemon_alive(&life));
	atomic_store(&life.life_word, 1234 | SHM_OWNER_DIED);
	ck_assert(!shm_daemon_alive(&life));
	atomic_store(&life.life_word, SHM_OWNER_DIED);
	ck_assert(!shm_daemon_alive(&life));
}
END_TEST

/* ---- entries ---- */

START_TEST(an_entry_is_read_as_written)
{
	struct shm_line line;
	struct rng rng;

	rng_init(&rng, 1);
	memset(&line, 0, sizeof(line));
	for (int round = 0; round < 100; round++) {
		for (uint32_t i = 0; i < SHM_LINE_ENTRIES; i++) {
			struct shm_entry e = { rng_next(&rng), (uint32_t)rng_next(&rng), (uint32_t)rng_next(&rng) };
			struct shm_line before = line;

			shm_entry_store(&line.entries[i], e);
			ck_assert(shm_entry_equal(shm_entry_load(&line.entries[i]), e));
			before.entries[i] = e;
			ck_assert_mem_eq(&line, &before, sizeof(line)); /* and nothing beside it */
		}
	}
}
END_TEST

START_TEST(equal_in_every_field)
{
	struct shm_entry e = { 1, 2, 3 };

	ck_assert(shm_entry_equal(e, (struct shm_entry){ 1, 2, 3 }));
	ck_assert(!shm_entry_equal(e, (struct shm_entry){ 2, 2, 3 }));
	ck_assert(!shm_entry_equal(e, (struct shm_entry){ 1, 3, 3 }));
	ck_assert(!shm_entry_equal(e, (struct shm_entry){ 1, 2, 4 }));
}
END_TEST

/* ---- pin words ---- */

START_TEST(pin_words_hold_count_and_stamp)
{
	uint32_t word = 0xabcdeu << SHM_PIN_COUNT_BITS | 0x123;

	ck_assert_uint_eq(shm_pin_count(word), 0x123);
	ck_assert_uint_eq(shm_pin_stamp(word), 0xabcde);
	ck_assert_uint_eq(shm_pin_count(UINT32_MAX), SHM_PIN_COUNT_MASK);
	ck_assert_uint_eq(shm_pin_stamp(UINT32_MAX), SHM_STAMP_MASK);
	ck_assert_uint_eq(SHM_PIN_COUNT_MASK, 4095);
	ck_assert_uint_eq((uint64_t)SHM_STAMP_MASK << SHM_PIN_COUNT_BITS | SHM_PIN_COUNT_MASK, UINT32_MAX);
}
END_TEST

/* ---- the hash ---- */

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* @KEYS keys of @key_bytes that differ only in the eight bytes from @at, counted up from 0 in steps of @step: tags are all different,
 * tags' low and high halves as different as chance has it, and lines are filled evenly. */
static void check_spread(uint32_t key_bytes, uint32_t at, uint64_t step, uint64_t n_lines)
{
	static uint64_t tags[KEYS], halves[KEYS];
	uint32_t *fill = calloc(n_lines, sizeof(*fill));
	double chi = 0, expected = (double)KEYS / (double)n_lines;
	uint32_t twice[2] = { 0, 0 };
	uint8_t key[40] = { 7, 7, 7 };

	ck_assert_ptr_nonnull(fill);
	for (uint32_t i = 0; i < KEYS; i++) {
		uint64_t value = i * step;
		struct shm_hash h;

		memcpy(key + at, &value, 8);
		h = shm_hash_key(key, key_bytes, salt, n_lines);
		assert(h.line < n_lines && h.tag != 0);
		tags[i] = h.tag;
		fill[h.line]++;
	}
	for (uint64_t l = 0; l < n_lines; l++)
		chi += (fill[l] - expected) * (fill[l] - expected) / expected;
	/* Mean n_lines, deviation sqrt(2 n_lines): seven of them. */
	ck_assert_msg(chi < (double)n_lines + 7 * 1.42 * (double)n_lines / 32, "%u bytes, at %u by %llx: chi %g of %llu",
	              key_bytes, at, (unsigned long long)step, chi, (unsigned long long)n_lines);
	for (int half = 0; half < 2; half++) {
		for (uint32_t i = 0; i < KEYS; i++)
			halves[i] = half ? tags[i] >> 32 : (uint32_t)tags[i];
		qsort(halves, KEYS, sizeof(*halves), by_value);
		for (uint32_t i = 1; i < KEYS; i++)
			twice[half] += halves[i] == halves[i - 1];
	}
	qsort(tags, KEYS, sizeof(*tags), by_value);
	for (uint32_t i = 1; i < KEYS; i++)
		assert(tags[i] != tags[i - 1]);
	ck_assert_uint_le(twice[0], 8); /* 0.5 by chance */
	ck_assert_uint_le(twice[1], 8);
	free(fill);
}

START_TEST(keys_are_spread)
{
	static const struct {
		uint32_t key_bytes, at;
	} where[] = { { 8, 0 },   { 16, 0 }, { 16, 8 }, { 24, 16 }, { 32, 16 },
		      { 32, 24 }, { 32, 0 }, { 17, 9 }, { 20, 12 } };
	static const uint64_t steps[] = { 1, 1ull << 16, 1ull << 32, 1ull << 48, 0x9e3779b97f4a7c15ull };

	for (size_t i = 0; i < sizeof(steps) / sizeof(*steps); i++) {
		if (where[_i].key_bytes < where[_i].at + 8 && steps[i] != 1)
			continue;
		check_spread(where[_i].key_bytes, where[_i].at, steps[i], 1024);
	}
}
END_TEST

/* Each bit of a key, also of its bytes 17 to 32, changes about half of the bits of the tag. */
START_TEST(every_bit_counts)
{
	struct rng rng;

	rng_init(&rng, 3);
	for (uint32_t bit = 0; bit < 256; bit++) {
		uint32_t changed = 0, same_line = 0;

		for (int round = 0; round < 64; round++) {
			struct shm_hash a, b;
			uint8_t key[32];

			rng_fill(&rng, key, sizeof(key));
			a = shm_hash_key(key, 32, salt, 1 << 20);
			key[bit / 8] ^= (uint8_t)(1u << bit % 8);
			b = shm_hash_key(key, 32, salt, 1 << 20);
			changed += (uint32_t)__builtin_popcountll(a.tag ^ b.tag);
			same_line += a.line == b.line;
		}
		ck_assert_msg(changed > 64 * 27 && changed < 64 * 37, "bit %u changes %g bits", bit, changed / 64.0);
		ck_assert_uint_eq(same_line, 0);
	}
}
END_TEST

START_TEST(only_the_keys_own_bytes_count)
{
	uint8_t a[40], b[40];

	for (uint32_t n = 8; n <= 32; n++) {
		memset(a, 0, sizeof(a));
		memset(b, 0xff, sizeof(b));
		memset(b, 0, n);
		ck_assert_uint_eq(shm_hash_key(a, n, salt, 99).tag, shm_hash_key(b, n, salt, 99).tag);
		b[n - 1] = 1;
		ck_assert_uint_ne(shm_hash_key(a, n, salt, 99).tag, shm_hash_key(b, n, salt, 99).tag);
	}
}
END_TEST

/* Another namespace's salt moves every key: nobody can choose keys that meet in a table whose salt is not known. */
START_TEST(salt_moves_every_key)
{
	const uint64_t other[2] = { salt[0] + 1, salt[1] }, third[2] = { salt[0], salt[1] ^ 1ull << 63 };
	uint32_t same = 0;

	for (uint32_t i = 0; i < 1000; i++) {
		uint8_t key[16] = { 0 };
		struct shm_hash h;

		memcpy(key, &i, 4);
		h = shm_hash_key(key, 16, salt, 1 << 20);
		same += h.tag == shm_hash_key(key, 16, other, 1 << 20).tag;
		same += h.tag == shm_hash_key(key, 16, third, 1 << 20).tag;
		same += h.line == shm_hash_key(key, 16, other, 1 << 20).line;
	}
	ck_assert_uint_le(same, 1);
}
END_TEST

/* Clients and the daemon may be of different builds: the values are part of the layout. */
START_TEST(hash_as_published)
{
	uint8_t key[32];
	struct shm_hash h;

	for (uint32_t i = 0; i < 32; i++)
		key[i] = (uint8_t)i;
	h = shm_hash_key(key, 16, salt, UINT64_C(1) << 32);
	ck_assert_uint_eq(h.tag, UINT64_C(0xc85f34ab043b1bad));
	ck_assert_uint_eq(h.line, UINT64_C(0x451425db));
	h = shm_hash_key(key, 32, salt, UINT64_C(1) << 32);
	ck_assert_uint_eq(h.tag, UINT64_C(0x7d10bce41b1887da));
	ck_assert_uint_eq(h.line, UINT64_C(0xdfeafd4d));
}
END_TEST

START_TEST(pins_count_in_marked_groups_only)
{
	static const uint32_t slots[] = { 0, 1023, 1024, 1 << 20, (1 << 25) - 1, 1 << 26, UINT32_MAX / 2 };
	struct shm_page *page = calloc(1, shm_page_bytes(8192));

	ck_assert_ptr_nonnull(page);
	page->pins[4000] = 5;
	ck_assert_uint_eq(shm_page_pin(page, 4000, 10), 0);
	shm_page_mark(page, 3 << 10, 10);
	ck_assert_uint_eq(page->groups[0], 1 << 3);
	ck_assert_uint_eq(shm_page_pin(page, 4000, 10), 5);
	ck_assert(shm_page_raise(page, 4096, 10, 9, 7));
	ck_assert_uint_eq(page->groups[0], 1 << 3 | 1 << 4);
	ck_assert_uint_eq(shm_page_pin(page, 4096, 10), 9 << SHM_PIN_COUNT_BITS | 1);
	/* However many slots there are, each has its bit. */
	for (size_t i = 0; i < sizeof(slots) / sizeof(*slots); i++) {
		uint32_t shift = shm_group_shift(slots[i] + 1);

		ck_assert_uint_lt((slots[i] >> shift) / 32, SHM_GROUP_WORDS);
		ck_assert(shift == SHM_GROUP_MIN_SHIFT || slots[i] >> (shift - 1) >= SHM_GROUP_WORDS * 32 - 1);
	}
	free(page);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("shm");
	TCase *tc = tcase_create("shm");
	SRunner *sr;
	int failed;

	tcase_add_test(tc, layout_is_as_published);
	tcase_add_test(tc, sizes_leave_room_for_everything);
	tcase_add_test(tc, daemon_is_alive_until_the_kernel_says_so);
	tcase_add_test(tc, an_entry_is_read_as_written);
	tcase_add_test(tc, equal_in_every_field);
	tcase_add_test(tc, pin_words_hold_count_and_stamp);
	tcase_add_test(tc, pins_count_in_marked_groups_only);
	tcase_add_loop_test(tc, keys_are_spread, 0, 9);
	tcase_add_test(tc, every_bit_counts);
	tcase_add_test(tc, only_the_keys_own_bytes_count);
	tcase_add_test(tc, salt_moves_every_key);
	tcase_add_test(tc, hash_as_published);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
