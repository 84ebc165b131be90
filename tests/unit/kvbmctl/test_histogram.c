/* SPDX-License-Identifier: Apache-2.0 */
/* Unit tests of client/kvbmctl/histogram.c: quantiles within 3.2 % of those of the sorted values, whatever the values are. */
#include "client/kvbmctl/histogram.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

#define VALUES 20000u

static struct histogram h;
static uint64_t values[VALUES];

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

START_TEST(empty_has_no_quantile)
{
	ck_assert_uint_eq(histogram_total(&h), 0);
	ck_assert_double_eq(histogram_quantile(&h, 0.5), 0);
	ck_assert_double_eq(histogram_quantile(&h, 1), 0);
}
END_TEST

/* Each value by itself: small ones exactly, all others within 3.2 %, up to the largest there is. */
START_TEST(any_value_is_told)
{
	for (int bit = 0; bit < 64; bit++) {
		for (int k = -1; k <= 33; k++) {
			uint64_t value = k < 0 ? (UINT64_C(1) << bit) - 1
			                       : (UINT64_C(1) << bit) + ((UINT64_C(1) << bit) - 1) / 33 * (uint64_t)k;
			double q;

			memset(&h, 0, sizeof(h));
			histogram_add(&h, value);
			q = histogram_quantile(&h, 0.5);
			if (value < 64 ? q != (double)value : fabs(q - (double)value) > 0.032 * (double)value)
				ck_abort_msg("%llu is told as %g", (unsigned long long)value, q);
			if (histogram_quantile(&h, 0) != q || histogram_quantile(&h, 1) != q)
				ck_abort_msg("one value has one quantile");
		}
	}
	histogram_add(&h, UINT64_MAX);
	histogram_add(&h, 0);
	ck_assert_uint_eq(histogram_total(&h), 3);
	ck_assert_double_eq(histogram_quantile(&h, 0), 0);
}
END_TEST

START_TEST(quantiles_are_right)
{
	static const double quantiles[] = { 0, 0.01, 0.25, 0.5, 0.9, 0.99, 0.999, 1 };
	struct rng rng;

	rng_init(&rng, (uint64_t)_i);
	for (uint32_t i = 0; i < VALUES; i++) {
		double x = rng_double(&rng);

		values[i] = (uint64_t)(_i == 0   ? x * 1e6
		                       : _i == 1 ? exp(x * 40)
		                       : _i == 2 ? x * 40
		                                 : -log(1 - x) * 2e4);
		histogram_add(&h, values[i]);
	}
	qsort(values, VALUES, sizeof(*values), by_value);
	ck_assert_uint_eq(histogram_total(&h), VALUES);
	for (size_t i = 0; i < sizeof(quantiles) / sizeof(*quantiles); i++) {
		uint32_t rank = (uint32_t)ceil(quantiles[i] * VALUES);
		double exact = (double)values[rank ? rank - 1 : 0], told = histogram_quantile(&h, quantiles[i]);

		ck_assert_msg(fabs(told - exact) <= 0.032 * exact, "%g: %g, exact %g", quantiles[i], told, exact);
	}
}
END_TEST

START_TEST(merged_is_the_sum)
{
	static struct histogram other, both;

	for (uint64_t i = 0; i < 1000; i++) {
		histogram_add(i % 3 ? &h : &other, i * i);
		histogram_add(&both, i * i);
	}
	histogram_merge(&h, &other);
	ck_assert_mem_eq(&h, &both, sizeof(h));
	ck_assert_uint_eq(histogram_total(&other), 334);
}
END_TEST

static void setup(void)
{
	memset(&h, 0, sizeof(h));
}

int main(void)
{
	Suite *s = suite_create("histogram");
	TCase *tc = tcase_create("histogram");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(tc, setup, NULL);
	tcase_add_test(tc, empty_has_no_quantile);
	tcase_add_test(tc, any_value_is_told);
	tcase_add_loop_test(tc, quantiles_are_right, 0, 4);
	tcase_add_test(tc, merged_is_the_sum);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
