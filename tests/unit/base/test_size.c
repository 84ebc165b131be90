/* Unit tests of base/size.c. */
#include "base/size.h"

#include <check.h>
#include <stdlib.h>

START_TEST(sizes_people_write)
{
	static const struct {
		const char *text;
		uint64_t bytes;
	} good[] = {
		{ "0", 0 },
		{ "4096", 4096 },
		{ "4096B", 4096 },
		{ "16K", 16384 },
		{ "16k", 16384 },
		{ "16KiB", 16384 },
		{ "0.5G", UINT64_C(512) << 20 },
		{ "1.5TiB", UINT64_C(1536) << 30 },
		{ "0.1G", 107374182 },
		{ "1.1", 1 },
		{ "18446744073709551615", UINT64_MAX },
		{ "16777215.999999999999T", UINT64_MAX - 1 },
		{ "0.000000000001T", 1 },
	};

	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		uint64_t bytes = 1234567;

		ck_assert_msg(size_parse(good[i].text, &bytes) == 0, "%s", good[i].text);
		ck_assert_msg(bytes == good[i].bytes, "%s is %lu", good[i].text, bytes);
	}
}
END_TEST

START_TEST(sizes_refused)
{
	static const struct {
		const char *text;
		int r;
	} bad[] = {
		{ "", SIZE_E_FORMAT },
		{ "G", SIZE_E_FORMAT },
		{ ".5G", SIZE_E_FORMAT },
		{ "1.G", SIZE_E_FORMAT },
		{ "-1", SIZE_E_FORMAT },
		{ "+1", SIZE_E_FORMAT },
		{ " 1", SIZE_E_FORMAT },
		{ "1 ", SIZE_E_FORMAT },
		{ "1 G", SIZE_E_FORMAT },
		{ "16KB", SIZE_E_FORMAT },
		{ "9140x16K", SIZE_E_FORMAT },
		{ "0x10", SIZE_E_FORMAT },
		{ "1e3", SIZE_E_FORMAT },
		{ "1.0000000000000T", SIZE_E_FORMAT },
		{ "18446744073709551616", SIZE_E_RANGE },
		{ "16777216T", SIZE_E_RANGE },
		{ "99999999999999999999999999999999999999999999", SIZE_E_RANGE },
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		uint64_t bytes = 7;

		ck_assert_msg(size_parse(bad[i].text, &bytes) == bad[i].r, "'%s'", bad[i].text);
		ck_assert_uint_eq(bytes, 7);
	}
}
END_TEST

START_TEST(truth_in_both_spellings)
{
	static const char *const yes[] = { "true", "yes", "on", "1", "TRUE", "Yes" };
	static const char *const no[] = { "false", "no", "off", "0", "False", "OFF" };
	bool value;

	for (size_t i = 0; i < 6; i++) {
		value = false;
		ck_assert_int_eq(size_parse_bool(yes[i], &value), 0);
		ck_assert(value);
		ck_assert_int_eq(size_parse_bool(no[i], &value), 0);
		ck_assert(!value);
	}
	value = true;
	ck_assert_int_eq(size_parse_bool("maybe", &value), SIZE_E_FORMAT);
	ck_assert_int_eq(size_parse_bool("", &value), SIZE_E_FORMAT);
	ck_assert_int_eq(size_parse_bool("2", &value), SIZE_E_FORMAT);
	ck_assert(value);
}
END_TEST

START_TEST(durations)
{
	uint64_t ns = 0;

	ck_assert_int_eq(size_parse_duration("100ms", &ns), 0);
	ck_assert_uint_eq(ns, 100000000);
	ck_assert_int_eq(size_parse_duration("1.5s", &ns), 0);
	ck_assert_uint_eq(ns, 1500000000);
	ck_assert_int_eq(size_parse_duration("10m", &ns), 0);
	ck_assert_uint_eq(ns, UINT64_C(600000000000));
	ck_assert_int_eq(size_parse_duration("1h", &ns), 0);
	ck_assert_uint_eq(ns, UINT64_C(3600000000000));
	ck_assert_int_eq(size_parse_duration("2d", &ns), 0);
	ck_assert_uint_eq(ns, UINT64_C(172800000000000));
	ck_assert_int_eq(size_parse_duration("250us", &ns), 0);
	ck_assert_uint_eq(ns, 250000);
	ck_assert_int_eq(size_parse_duration("0", &ns), 0);
	ck_assert_uint_eq(ns, 0);
	ck_assert_int_eq(size_parse_duration("5", &ns), SIZE_E_FORMAT);
	ck_assert_int_eq(size_parse_duration("-5s", &ns), SIZE_E_FORMAT);
	ck_assert_int_eq(size_parse_duration("213504d", &ns), SIZE_E_RANGE);
}
END_TEST

START_TEST(sizes_for_people)
{
	char buf[SIZE_TEXT_MAX];

	ck_assert_str_eq(size_format(0, buf, sizeof(buf)), "0B");
	ck_assert_str_eq(size_format(1023, buf, sizeof(buf)), "1023B");
	ck_assert_str_eq(size_format(16384, buf, sizeof(buf)), "16K");
	ck_assert_str_eq(size_format(9140, buf, sizeof(buf)), "8.92K");
	ck_assert_str_eq(size_format(UINT64_C(3) << 29, buf, sizeof(buf)), "1.50G");
	ck_assert_str_eq(size_format(UINT64_MAX, buf, sizeof(buf)), "15.99E");
}
END_TEST

int main(void)
{
	Suite *s = suite_create("size");
	TCase *tc = tcase_create("size");
	SRunner *sr;
	int failed;

	tcase_add_test(tc, sizes_people_write);
	tcase_add_test(tc, sizes_refused);
	tcase_add_test(tc, truth_in_both_spellings);
	tcase_add_test(tc, durations);
	tcase_add_test(tc, sizes_for_people);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
