/* SPDX-License-Identifier: Apache-2.0 */
/* Unit tests of block/key.c: lengths, comparison, hex both ways. */
#include "block/key.h"

#include <check.h>
#include <signal.h>
#include <stdlib.h>

START_TEST(keeps_bytes_and_length)
{
	uint8_t bytes[KEY_MAX];
	struct key k;

	for (uint32_t i = 0; i < KEY_MAX; i++)
		bytes[i] = (uint8_t)(i + 1);
	for (uint32_t len = KEY_MIN; len <= KEY_MAX; len++) {
		k = key_from(bytes, len);
		ck_assert_uint_eq(k.len, len);
		ck_assert_mem_eq(k.bytes, bytes, len);
		for (uint32_t i = len; i < KEY_MAX; i++)
			ck_assert_uint_eq(k.bytes[i], 0);
	}
}
END_TEST

START_TEST(too_short_aborts)
{
	key_from("1234567", 7);
}
END_TEST

START_TEST(too_long_aborts)
{
	static const uint8_t bytes[KEY_MAX + 1];

	key_from(bytes, KEY_MAX + 1);
}
END_TEST

START_TEST(equal_by_bytes_and_length)
{
	uint8_t bytes[KEY_MAX] = { 1 };
	struct key a = key_from(bytes, 16), b = key_from(bytes, 17), c;

	ck_assert(key_equal(&a, &a));
	ck_assert(!key_equal(&a, &b)); /* differ only in length */
	for (uint32_t i = 0; i < 16; i++) {
		bytes[i] ^= 0x80;
		c = key_from(bytes, 16);
		bytes[i] ^= 0x80;
		ck_assert(!key_equal(&a, &c));
	}
}
END_TEST

START_TEST(zero_means_no_parent)
{
	uint8_t bytes[KEY_MAX] = { 0 };

	ck_assert(key_is_zero(bytes, KEY_MAX));
	bytes[KEY_MAX - 1] = 1;
	ck_assert(key_is_zero(bytes, KEY_MAX - 1));
	ck_assert(!key_is_zero(bytes, KEY_MAX));
}
END_TEST

START_TEST(hex_both_ways)
{
	char text[2 * KEY_MAX + 1];
	uint8_t bytes[KEY_MAX];
	struct key k, back;

	for (uint32_t len = KEY_MIN; len <= KEY_MAX; len++) {
		for (uint32_t i = 0; i < KEY_MAX; i++)
			bytes[i] = (uint8_t)(i * 37 + len);
		k = key_from(bytes, len);
		key_format(&k, text);
		ck_assert_uint_eq(strlen(text), 2 * len);
		ck_assert(key_parse(text, &back));
		ck_assert(key_equal(&k, &back));
	}
	ck_assert(key_parse("0123456789abcdefABCDEF", &k));
	key_format(&k, text);
	ck_assert_str_eq(text, "0123456789abcdefabcdef");
}
END_TEST

START_TEST(bad_hex_is_refused)
{
	static const char *const bad[] = {
		"",
		"0123456789abcde",  /* odd */
		"0123456789abcd",   /* seven bytes */
		"0123456789abcdeg", /* not a digit */
		" 123456789abcdef",
		"0x23456789abcdef",
		"0123456789abcdef0",
		"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef01", /* 33 bytes */
	};
	struct key k = { .len = 99 };

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		ck_assert_msg(!key_parse(bad[i], &k), "%s", bad[i]);
	ck_assert_uint_eq(k.len, 99); /* untouched */
}
END_TEST

int main(void)
{
	Suite *s = suite_create("key");
	TCase *tc = tcase_create("key");
	SRunner *sr;
	int failed;

	tcase_add_test(tc, keeps_bytes_and_length);
	tcase_add_test_raise_signal(tc, too_short_aborts, SIGABRT);
	tcase_add_test_raise_signal(tc, too_long_aborts, SIGABRT);
	tcase_add_test(tc, equal_by_bytes_and_length);
	tcase_add_test(tc, zero_means_no_parent);
	tcase_add_test(tc, hex_both_ways);
	tcase_add_test(tc, bad_hex_is_refused);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
