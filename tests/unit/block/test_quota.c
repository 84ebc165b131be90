/* SPDX-License-Identifier: Apache-2.0 */
/* Unit tests of block/quota.c: both or neither, limits to the last one, nothing given back that was not charged. */
#include "block/quota.h"

#include <check.h>
#include <signal.h>
#include <stdlib.h>

static struct quota uid;
static struct quota_user a, b;

static void setup(void)
{
	uid = (struct quota){ .limit = { 10, 20, 30 } };
	a = (struct quota_user){ .session.limit = { 6, 25, 1 }, .uid = &uid };
	b = (struct quota_user){ .session.limit = { 6, UINT64_MAX, 1 }, .uid = &uid };
}

START_TEST(up_to_the_limit)
{
	ck_assert_int_eq(quota_charge(&a, QUOTA_SLOTS, 6), 0);
	ck_assert_int_eq(quota_charge(&a, QUOTA_SLOTS, 0), 0);
	ck_assert_int_eq(quota_charge(&a, QUOTA_SLOTS, 1), QUOTA_E_OVER);
	quota_return(&a, QUOTA_SLOTS, 1);
	ck_assert_int_eq(quota_charge(&a, QUOTA_SLOTS, 2), QUOTA_E_OVER);
	ck_assert_int_eq(quota_charge(&a, QUOTA_SLOTS, 1), 0);
	ck_assert_uint_eq(a.session.used[QUOTA_SLOTS], 6);
	ck_assert_uint_eq(a.session.used[QUOTA_HOLDS], 0); /* kinds are apart */
}
END_TEST

START_TEST(both_or_neither)
{
	ck_assert_int_eq(quota_charge(&a, QUOTA_SLOTS, 6), 0);
	ck_assert_int_eq(quota_charge(&b, QUOTA_SLOTS, 5), QUOTA_E_OVER); /* of the uid's */
	ck_assert_uint_eq(b.session.used[QUOTA_SLOTS], 0);
	ck_assert_uint_eq(uid.used[QUOTA_SLOTS], 6);
	ck_assert_int_eq(quota_charge(&b, QUOTA_SLOTS, 4), 0);
	ck_assert_int_eq(quota_charge(&b, QUOTA_SLOTS, 7), QUOTA_E_OVER); /* of its own */
	ck_assert_uint_eq(uid.used[QUOTA_SLOTS], 10);
	quota_return(&a, QUOTA_SLOTS, 6);
	quota_return(&b, QUOTA_SLOTS, 4);
	ck_assert_uint_eq(uid.used[QUOTA_SLOTS], 0);
}
END_TEST

/* Sums that would wrap, and limits that were lowered under what is used. */
START_TEST(no_amount_wraps)
{
	ck_assert_int_eq(quota_charge(&b, QUOTA_HOLDS, UINT64_MAX), QUOTA_E_OVER);
	b.uid = NULL;
	ck_assert_int_eq(quota_charge(&b, QUOTA_HOLDS, UINT64_MAX - 1), 0);
	ck_assert_int_eq(quota_charge(&b, QUOTA_HOLDS, UINT64_MAX), QUOTA_E_OVER);
	ck_assert_int_eq(quota_charge(&b, QUOTA_HOLDS, 2), QUOTA_E_OVER);
	ck_assert_int_eq(quota_charge(&b, QUOTA_HOLDS, 1), 0);
	b.session.limit[QUOTA_HOLDS] = 5;
	ck_assert_int_eq(quota_charge(&b, QUOTA_HOLDS, 1), QUOTA_E_OVER);
	quota_return(&b, QUOTA_HOLDS, UINT64_MAX);
	ck_assert_uint_eq(b.session.used[QUOTA_HOLDS], 0);
}
END_TEST

START_TEST(returning_too_much_aborts)
{
	quota_charge(&b, QUOTA_SLOTS, 3);
	quota_charge(&a, QUOTA_SLOTS, 1);
	quota_return(&a, QUOTA_SLOTS, 2);
}
END_TEST

START_TEST(returning_too_much_of_the_uid_aborts)
{
	quota_charge(&a, QUOTA_SLOTS, 2);
	uid.used[QUOTA_SLOTS] = 1;
	quota_return(&a, QUOTA_SLOTS, 2);
}
END_TEST

START_TEST(unknown_kind_aborts)
{
	quota_charge(&a, QUOTA_N, 1);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("quota");
	TCase *tc = tcase_create("quota");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(tc, setup, NULL);
	tcase_add_test(tc, up_to_the_limit);
	tcase_add_test(tc, both_or_neither);
	tcase_add_test(tc, no_amount_wraps);
	tcase_add_test_raise_signal(tc, returning_too_much_aborts, SIGABRT);
	tcase_add_test_raise_signal(tc, returning_too_much_of_the_uid_aborts, SIGABRT);
	tcase_add_test_raise_signal(tc, unknown_kind_aborts, SIGABRT);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
