/* SPDX-License-Identifier: Apache-2.0 */
/* Unit tests of client/kvbmctl/output.c: numbers for people, tables whose columns stand under each other, JSON that is JSON. */
#include "client/kvbmctl/output.h"

#include <stdlib.h>

#include "tests/unit/kvbmctl/capture.h"

static char text[8192];

static json_t *parse(const char *json)
{
	json_error_t error;
	json_t *value = json_loads(json, JSON_DECODE_ANY, &error);

	ck_assert_msg(value != NULL, "%s: %s", json, error.text);
	return value;
}

static const char *table(const char *json)
{
	json_t *value = parse(json);
	struct capture c;

	capture_begin(&c, stdout);
	output_table(value);
	capture_end(&c, text, sizeof(text));
	json_decref(value);
	return text;
}

static const char *as_value(const char *name, const char *json)
{
	json_t *value = parse(json);

	memset(text, 'x', OUTPUT_TEXT + 1);
	output_value(name, value, text);
	ck_assert_uint_lt(strlen(text), OUTPUT_TEXT);
	json_decref(value);
	return text;
}

START_TEST(bytes_counts_and_durations)
{
	char b[64];

	ck_assert_str_eq(output_bytes(0, b, sizeof(b)), "0 B");
	ck_assert_str_eq(output_bytes(1023, b, sizeof(b)), "1023 B");
	ck_assert_str_eq(output_bytes(1024, b, sizeof(b)), "1 KiB");
	ck_assert_str_eq(output_bytes(1536, b, sizeof(b)), "1.5 KiB");
	ck_assert_str_eq(output_bytes(0x1p40, b, sizeof(b)), "1 TiB");
	ck_assert_str_eq(output_bytes(0x1p64, b, sizeof(b)), "16 EiB");
	ck_assert_str_eq(output_bytes(0x1p80, b, sizeof(b)), "1048576.0 EiB");
	ck_assert_str_eq(output_count(0, b, sizeof(b)), "0");
	ck_assert_str_eq(output_count(9999, b, sizeof(b)), "9999");
	ck_assert_str_eq(output_count(0.5, b, sizeof(b)), "0.50");
	ck_assert_str_eq(output_count(12345, b, sizeof(b)), "12.3 k");
	ck_assert_str_eq(output_count(1.5e9, b, sizeof(b)), "1.5 G");
	ck_assert_str_eq(output_duration(0, b, sizeof(b)), "0 ns");
	ck_assert_str_eq(output_duration(1500, b, sizeof(b)), "1.5 us");
	ck_assert_str_eq(output_duration(2.5e6, b, sizeof(b)), "2.5 ms");
	ck_assert_str_eq(output_duration(90e9, b, sizeof(b)), "90.0 s");
	ck_assert_str_eq(output_duration(600e9, b, sizeof(b)), "10.0 min");
	ck_assert_str_eq(output_duration(3 * 3600e9, b, sizeof(b)), "3.0 h");
	ck_assert_str_eq(output_duration(3 * 86400e9, b, sizeof(b)), "3.0 d");
	ck_assert_str_eq(output_bytes(123456789, b, 4), "117"); /* cut, not overrun */
}
END_TEST

START_TEST(names_say_what_numbers_are)
{
	ck_assert_str_eq(as_value("used_bytes", "1048576"), "1 MiB");
	ck_assert_str_eq(as_value("bytes_per_second", "1048576"), "1 MiB/s");
	ck_assert_str_eq(as_value("age_ns", "1500"), "1.5 us");
	ck_assert_str_eq(as_value("wait_us", "1.5"), "1.5 us");
	ck_assert_str_eq(as_value("write_timeout_ms", "2000"), "2.0 s");
	ck_assert_str_eq(as_value("hit_rate", "0.125"), "12.5 %");
	ck_assert_str_eq(as_value("blocks", "123456"), "123.5 k");
	ck_assert_str_eq(as_value("slot", "123456"), "123456"); /* a name, not a count */
	ck_assert_str_eq(as_value("boot_id", "123456789012345"), "123456789012345");
	ck_assert_str_eq(as_value("x", "null"), "-");
	ck_assert_str_eq(as_value("x", "true"), "yes");
	ck_assert_str_eq(as_value("x", "false"), "no");
	ck_assert_str_eq(as_value("x", "\"\""), "-");
	ck_assert_str_eq(as_value("x", "\"text\""), "text");
	ck_assert_str_eq(as_value("x", "[1, {\"a\": 2}]"), "[1,{\"a\":2}]");
	ck_assert_str_eq(as_value("bytes_per_second", "1e300") + strlen(text) - 2, "/s");
}
END_TEST

START_TEST(long_values_are_cut)
{
	char json[1000] = "[";

	for (int i = 0; i < 99; i++)
		strcat(json, "12345,");
	strcat(json, "1]");
	ck_assert_uint_eq(strlen(as_value("x", json)), OUTPUT_TEXT - 1);
	ck_assert_str_eq(text + OUTPUT_TEXT - 4, "...");
	memset(json, 'y', 500);
	json[0] = json[500] = '"';
	json[501] = '\0';
	ck_assert_uint_eq(strlen(as_value("x", json)), OUTPUT_TEXT - 1);
}
END_TEST

/* Names are what clients call themselves: they must not reach the terminal as control sequences, nor begin lines. */
START_TEST(control_characters_are_not_printed)
{
	ck_assert_str_eq(as_value("name", "\"a\\u001b[2Jb\\nc\\td\\u007f\""), "a?[2Jb?c?d?");
	ck_assert_str_eq(as_value("name", "\"\\u00e9\\u20ac\""), "\xc3\xa9\xe2\x82\xac");
	ck_assert_str_eq(as_value("name", "\"\\u009b2J\""), "??2J"); /* one byte for what ESC [ does */
}
END_TEST

START_TEST(columns_stand_under_each_other)
{
	ck_assert_str_eq(table("[{\"name\": \"a\", \"slots\": 5, \"free\": null, \"note\": \"x y\"},"
	                       " {\"name\": \"longer\", \"slots\": 12345, \"late\": true}]"),
	                 "name     slots  free  note  late\n"
	                 "a            5     -  x y   -\n"
	                 "longer  12.3 k     -  -     yes\n");
}
END_TEST

/* What does not fit into a column is left out; a row without a member has a dash. */
START_TEST(structures_get_no_column)
{
	ck_assert_str_eq(table("[{\"a\": 1, \"o\": {\"x\": 1}, \"rows\": [{\"y\": 1}], \"l\": [1, 2],"
	                       " \"many\": [1, 2, 3, 4, 5, 6, 7, 8, 9]}]"),
	                 "a  l\n1  [1,2]\n");
	ck_assert_str_eq(table("[{\"a\": 1}, {}, {\"b\": 2}]"), "a  b\n1  -\n-  -\n-  2\n");
}
END_TEST

START_TEST(columns_are_bounded)
{
	char json[2000] = "[{", part[32];
	int lines = 0;

	for (int i = 0; i < 50; i++) {
		snprintf(part, sizeof(part), "%s\"m%02d\": %d", i ? ", " : "", i, i);
		strcat(json, part);
	}
	strcat(json, "}]");
	table(json);
	ck_assert_ptr_nonnull(strstr(text, "m31"));
	ck_assert_ptr_null(strstr(text, "m32"));
	for (const char *p = text; *p; p++)
		lines += *p == '\n';
	ck_assert_int_eq(lines, 2);
}
END_TEST

START_TEST(objects_are_lines_then_tables)
{
	ck_assert_str_eq(table("{\"list\": [{\"id\": 7}], \"version\": \"1\", \"host\": {\"size_bytes\": 2048, \"in\": {\"n\": 1}},"
	                       " \"none\": []}"),
	                 "version                    1\n"
	                 "host.size_bytes            2 KiB\n"
	                 "host.in.n                  1\n"
	                 "none                       []\n"
	                 "\nlist\nid\n 7\n");
}
END_TEST

START_TEST(other_values_are_one_line)
{
	ck_assert_str_eq(table("[]"), "none\n");
	ck_assert_str_eq(table("5"), "5\n");
	ck_assert_str_eq(table("[1, 2]"), "[1,2]\n");
	ck_assert_str_eq(table("\"text\""), "text\n");
	ck_assert_str_eq(table("{}"), "");
}
END_TEST

START_TEST(json_is_json)
{
	static const char *const values[] = {
		"{\"a\": [1, 2.5, -3e300, null, true], \"b\": {\"c\": \"\\u001b\\n\\\"\\u20ac\"}, \"n\": 9223372036854775807}",
		"[]",
		"{}",
		"5",
		"\"text\"",
		"null",
		"0.1",
	};

	for (size_t i = 0; i < sizeof(values) / sizeof(*values); i++) {
		json_t *value = parse(values[i]), *back;
		struct capture c;

		capture_begin(&c, stdout);
		output_json(value);
		capture_end(&c, text, sizeof(text));
		ck_assert_int_eq(text[strlen(text) - 1], '\n');
		back = parse(text);
		ck_assert_msg(json_equal(value, back), "%s", text);
		json_decref(back);
		json_decref(value);
	}
}
END_TEST

int main(void)
{
	Suite *s = suite_create("output");
	TCase *tc = tcase_create("output");
	SRunner *sr;
	int failed;

	tcase_add_test(tc, bytes_counts_and_durations);
	tcase_add_test(tc, names_say_what_numbers_are);
	tcase_add_test(tc, long_values_are_cut);
	tcase_add_test(tc, control_characters_are_not_printed);
	tcase_add_test(tc, columns_stand_under_each_other);
	tcase_add_test(tc, structures_get_no_column);
	tcase_add_test(tc, columns_are_bounded);
	tcase_add_test(tc, objects_are_lines_then_tables);
	tcase_add_test(tc, other_values_are_one_line);
	tcase_add_test(tc, json_is_json);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
