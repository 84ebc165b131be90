/* SPDX-License-Identifier: Apache-2.0 */
/* Unit tests of client/kvbmctl/oracle.c: one wrong byte anywhere is seen, and no two slices are alike. */
#include "client/kvbmctl/oracle.h"

#include <check.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

static uint8_t data[4200];

START_TEST(filled_is_right)
{
	for (size_t size = 0; size <= 1200; size++) {
		memset(data, 0xee, sizeof(data));
		oracle_fill(data, size, size * 3);
		if (oracle_check(data, size, size * 3, NULL) != 0)
			ck_abort_msg("%zu bytes", size);
		for (size_t i = size; i < size + 16; i++)
			if (data[i] != 0xee)
				ck_abort_msg("byte %zu behind %zu", i, size);
	}
}
END_TEST

START_TEST(one_wrong_byte_is_seen)
{
	static const size_t sizes[] = { 1, 7, 8, 9, 511, 512, 513, 520, 1031 };

	for (size_t s = 0; s < sizeof(sizes) / sizeof(*sizes); s++) {
		oracle_fill(data, sizes[s], 5);
		for (size_t i = 0; i < sizes[s]; i++) {
			size_t first = 0;

			data[i] ^= (uint8_t)(1u << i % 8);
			if (oracle_check(data, sizes[s], 5, &first) != 1 || first != i)
				ck_abort_msg("byte %zu of %zu", i, sizes[s]);
			data[i] ^= (uint8_t)(1u << i % 8);
		}
	}
}
END_TEST

START_TEST(wrong_bytes_are_counted)
{
	static const size_t wrong[] = { 17, 18, 511, 512, 4000, 4099 };
	size_t first;

	oracle_fill(data, 4100, 5);
	for (size_t i = 0; i < 6; i++)
		data[wrong[i]] = (uint8_t)~data[wrong[i]];
	ck_assert_uint_eq(oracle_check(data, 4100, 5, &first), 6);
	ck_assert_uint_eq(first, 17);
	ck_assert_uint_eq(oracle_check(data, 4100, 5, NULL), 6);
	memset(data, 0, sizeof(data));
	ck_assert_uint_gt(oracle_check(data, 4100, 5, &first), 4000);
	ck_assert_uint_le(first, 8);
	first = 77;
	oracle_fill(data, 4100, 5);
	ck_assert_uint_eq(oracle_check(data, 4100, 5, &first), 0);
	ck_assert_uint_eq(first, 77); /* untouched */
}
END_TEST

/* A page of another block, lane or namespace, or the same moved by a word, is wrong nearly everywhere. */
START_TEST(nothing_resembles_another)
{
	uint8_t key[ORACLE_KEY_BYTES], other[ORACLE_KEY_BYTES];
	uint64_t seeds[6];

	oracle_key(1, key);
	oracle_key(2, other);
	seeds[0] = oracle_seed("ns", key, sizeof(key), 0);
	seeds[1] = oracle_seed("ns", other, sizeof(other), 0);
	seeds[2] = oracle_seed("ns", key, sizeof(key), 1);
	seeds[3] = oracle_seed("nt", key, sizeof(key), 0);
	seeds[4] = oracle_seed("ns", key, sizeof(key) - 1, 0);
	seeds[5] = oracle_seed("", key, sizeof(key), 0);
	ck_assert_uint_eq(seeds[0], oracle_seed("ns", key, sizeof(key), 0));
	for (int i = 0; i < 6; i++) {
		oracle_fill(data, 4096, seeds[i]);
		for (int k = 0; k < 6; k++)
			if (k != i)
				ck_assert_uint_gt(oracle_check(data, 4096, seeds[k], NULL), 4000);
		ck_assert_uint_gt(oracle_check(data + 8, 4088, seeds[i], NULL), 4000);
	}
}
END_TEST

START_TEST(keys_are_as_different_as_ids)
{
	uint8_t keys[500][ORACLE_KEY_BYTES], again[ORACLE_KEY_BYTES];
	static const uint8_t zero[ORACLE_KEY_BYTES];

	for (uint64_t i = 0; i < 500; i++) {
		oracle_key(i < 250 ? i : UINT64_MAX - i, keys[i]);
		if (memcmp(keys[i], zero, sizeof(zero)) == 0)
			ck_abort_msg("a key of zeros");
		for (uint64_t k = 0; k < i; k++)
			if (memcmp(keys[i], keys[k], 8) == 0)
				ck_abort_msg("%llu and %llu", (unsigned long long)i, (unsigned long long)k);
	}
	oracle_key(77, again);
	ck_assert_mem_eq(again, keys[77], sizeof(again));
}
END_TEST

int main(void)
{
	Suite *s = suite_create("oracle");
	TCase *tc = tcase_create("oracle");
	SRunner *sr;
	int failed;

	tcase_add_test(tc, filled_is_right);
	tcase_add_test(tc, one_wrong_byte_is_seen);
	tcase_add_test(tc, wrong_bytes_are_counted);
	tcase_add_test(tc, nothing_resembles_another);
	tcase_add_test(tc, keys_are_as_different_as_ids);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
