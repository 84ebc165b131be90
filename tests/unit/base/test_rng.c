/* Unit tests of base/rng.h and base/clock.h. */
#include "base/rng.h"

#include <check.h>
#include <stdlib.h>

#include "base/clock.h"

START_TEST(same_seed_same_numbers)
{
	struct rng a, b, c;
	uint64_t different = 0;

	rng_init(&a, 42);
	rng_init(&b, 42);
	rng_init(&c, 43);
	for (int i = 0; i < 1000; i++) {
		uint64_t x = rng_next(&a);

		ck_assert_uint_eq(x, rng_next(&b));
		different += x != rng_next(&c);
	}
	ck_assert_uint_gt(different, 990);
}
END_TEST

/* The first outputs of the authors' splitmix64.c for seed 0. */
START_TEST(splitmix_as_published)
{
	uint64_t state = 0;

	ck_assert_uint_eq(rng_splitmix(&state), UINT64_C(0xe220a8397b1dcdaf));
	ck_assert_uint_eq(rng_splitmix(&state), UINT64_C(0x6e789e6aa1b965f4));
	ck_assert_uint_eq(rng_splitmix(&state), UINT64_C(0x06c45d188009454f));
}
END_TEST

/* The first outputs of the authors' xoshiro256starstar.c for the state 1, 2, 3, 4. */
START_TEST(xoshiro_as_published)
{
	struct rng rng = { { 1, 2, 3, 4 } };

	ck_assert_uint_eq(rng_next(&rng), 11520);
	ck_assert_uint_eq(rng_next(&rng), 0);
	ck_assert_uint_eq(rng_next(&rng), 1509978240);
	ck_assert_uint_eq(rng_next(&rng), UINT64_C(1215971899390074240));
}
END_TEST

START_TEST(stays_in_range_and_reaches_all_of_it)
{
	struct rng rng;
	unsigned seen[10] = { 0 };
	unsigned heads = 0;

	rng_init(&rng, 1);
	for (int i = 0; i < 10000; i++) {
		uint64_t x = rng_range(&rng, 5, 14);
		double d = rng_double(&rng);

		ck_assert(x >= 5 && x <= 14);
		seen[x - 5]++;
		ck_assert(d >= 0 && d < 1);
		heads += rng_chance(&rng, 25);
		ck_assert_uint_eq(rng_below(&rng, 1), 0);
	}
	for (int i = 0; i < 10; i++)
		ck_assert(seen[i] > 800 && seen[i] < 1200);
	ck_assert(heads > 2300 && heads < 2700);
}
END_TEST

START_TEST(fills_any_length)
{
	struct rng a, b;
	unsigned char x[37], y[37];

	rng_init(&a, 9);
	rng_init(&b, 9);
	memset(y, 0, sizeof(y));
	rng_fill(&a, x, sizeof(x));
	rng_fill(&b, y, 32);
	ck_assert_mem_eq(x, y, 32);
	ck_assert_int_eq(y[32], 0);
}
END_TEST

START_TEST(clock_does_not_go_back)
{
	uint64_t before = clock_now_ns();

	for (int i = 0; i < 1000; i++) {
		uint64_t now = clock_now_ns();

		ck_assert_uint_ge(now, before);
		before = now;
	}
}
END_TEST

int main(void)
{
	Suite *s = suite_create("rng");
	TCase *tc = tcase_create("rng");
	SRunner *sr;
	int failed;

	tcase_add_test(tc, same_seed_same_numbers);
	tcase_add_test(tc, splitmix_as_published);
	tcase_add_test(tc, xoshiro_as_published);
	tcase_add_test(tc, stays_in_range_and_reaches_all_of_it);
	tcase_add_test(tc, fills_any_length);
	tcase_add_test(tc, clock_does_not_go_back);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
