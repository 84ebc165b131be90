/* SPDX-License-Identifier: Apache-2.0 */
/* Unit tests of client/kvbmctl/requests.c: lists that grow, are cut, and numbered. */
#include "client/kvbmctl/requests.h"

#include <check.h>
#include <signal.h>
#include <stdlib.h>

#include "base/rng.h"

static struct requests rs;

static void setup(void)
{
	requests_init(&rs);
}

static void teardown(void)
{
	requests_deinit(&rs);
	ck_assert_ptr_null(rs.list);
	ck_assert_ptr_null(rs.ids);
	ck_assert_uint_eq(rs.n, 0);
}

/* Request i has i % 50 ids, from i * 100 on. */
static void fill(uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		int r = requests_begin(&rs, i, i + 1, i + 2);

		for (uint32_t k = 0; k < i % 50 && r == 0; k++)
			r = requests_add(&rs, i * 100 + k);
		if (r != 0)
			ck_abort_msg("request %u", i);
	}
}

START_TEST(requests_keep_their_ids)
{
	fill(2000);
	ck_assert_uint_eq(rs.n, 2000);
	ck_assert_uint_eq(rs.n_ids, 2000 / 50 * (49 * 50 / 2));
	ck_assert_uint_eq(rs.longest, 49);
	for (uint32_t i = 0; i < rs.n; i++) {
		const struct request *q = &rs.list[i];
		bool right = q->timestamp_ms == i && q->input_tokens == i + 1 && q->output_tokens == i + 2 &&
		             q->n == i % 50;

		for (uint32_t k = 0; k < q->n; k++)
			right &= requests_ids(&rs, i)[k] == i * 100 + k;
		if (!right)
			ck_abort_msg("request %u", i);
	}
}
END_TEST

START_TEST(adding_to_nothing_aborts)
{
	requests_add(&rs, 1);
}
END_TEST

START_TEST(only_the_first_are_kept)
{
	fill(100);
	requests_truncate(&rs, 200);
	requests_truncate(&rs, 100);
	ck_assert_uint_eq(rs.n, 100);
	requests_truncate(&rs, 31);
	ck_assert_uint_eq(rs.n, 31);
	ck_assert_uint_eq(rs.n_ids, 30 * 31 / 2);
	ck_assert_uint_eq(rs.longest, 30);
	ck_assert_int_eq(requests_begin(&rs, 0, 0, 0), 0); /* goes on behind them */
	ck_assert_int_eq(requests_add(&rs, 7), 0);
	ck_assert_uint_eq(requests_ids(&rs, 31)[0], 7);
	ck_assert_uint_eq(requests_ids(&rs, 30)[29], 3029);
	requests_truncate(&rs, 0);
	ck_assert_uint_eq(rs.n_ids, 0);
	ck_assert_uint_eq(rs.longest, 0);
}
END_TEST

START_TEST(equal_ids_have_equal_numbers)
{
	static const uint64_t special[] = { 0, UINT64_MAX, 1, UINT64_C(1) << 60, 0, UINT64_MAX };
	struct numbering numbering;
	struct rng rng;
	uint32_t seen = 0;

	rng_init(&rng, 1);
	ck_assert_int_eq(requests_begin(&rs, 0, 0, 0), 0);
	for (size_t i = 0; i < 6; i++)
		ck_assert_int_eq(requests_add(&rs, special[i]), 0);
	for (uint32_t i = 0; i < 3000; i++)
		if (requests_add(&rs, 100 + rng_below(&rng, 1000) * 1024) != 0)
			ck_abort_msg("id %u", i);
	ck_assert_int_eq(requests_number(&rs, &numbering), 0);
	for (uint32_t i = 0; i < rs.n_ids; i++) {
		if (numbering.number[i] > seen || numbering.number[i] >= numbering.n_distinct)
			ck_abort_msg("numbers are dense, in order of first use: %u", i);
		seen += numbering.number[i] == seen;
		for (uint32_t k = 0; k < i; k += 1 + i / 100)
			if ((rs.ids[i] == rs.ids[k]) != (numbering.number[i] == numbering.number[k]))
				ck_abort_msg("ids %u and %u", i, k);
	}
	ck_assert_uint_eq(seen, numbering.n_distinct);
	numbering_deinit(&numbering);
	ck_assert_ptr_null(numbering.number);
}
END_TEST

START_TEST(nothing_has_no_numbers)
{
	struct numbering numbering;

	ck_assert_int_eq(requests_number(&rs, &numbering), 0);
	ck_assert_uint_eq(numbering.n_distinct, 0);
	numbering_deinit(&numbering);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("requests");
	TCase *tc = tcase_create("requests");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, requests_keep_their_ids);
	tcase_add_test_raise_signal(tc, adding_to_nothing_aborts, SIGABRT);
	tcase_add_test(tc, only_the_first_are_kept);
	tcase_add_test(tc, equal_ids_have_equal_numbers);
	tcase_add_test(tc, nothing_has_no_numbers);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
