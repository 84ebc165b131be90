/* SPDX-License-Identifier: Apache-2.0 */
/* Unit tests of client/kvbmctl/args.c: every way to give an option, what is refused and with which words, and the help. */
#include "client/kvbmctl/args.h"

#include <stdlib.h>

#include "tests/unit/kvbmctl/capture.h"

static const char *string;
static uint32_t u32;
static uint64_t u64, size;
static double real;
static bool flag, other;

static const struct arg table[] = {
	{ "string", 's', ARG_STRING, &string, "TEXT", "a text" },
	{ "u32", 'n', ARG_U32, &u32, "N", "a number" },
	{ "u64", 0, ARG_U64, &u64, "N", "a large number" },
	{ "size", 'z', ARG_SIZE, &size, "SIZE", "a size" },
	{ "real", 'r', ARG_REAL, &real, "X", "a real number" },
	{ "flag", 'f', ARG_FLAG, &flag, NULL, "a switch" },
	{ NULL, 0, ARG_FLAG, NULL, NULL, NULL },
};
static const struct arg more[] = {
	{ "other", 'o', ARG_FLAG, &other, NULL, "another switch" },
	{ NULL, 0, ARG_FLAG, NULL, NULL, NULL },
};

static char said[1024];
static char *words[16];

/* Parses @line, cut at blanks; the words that are left stay in @words.  Returns how many, or minus the outcome. */
static int parse(const char *line)
{
	static char text[256];
	struct capture c;
	char *save = NULL;
	int n = 0, r;

	string = NULL;
	u32 = 0;
	u64 = size = 0;
	real = 0;
	flag = other = false;
	strcpy(text, line);
	for (char *w = strtok_r(text, " ", &save); w; w = strtok_r(NULL, " ", &save))
		words[n++] = strcmp(w, "''") == 0 ? strcpy(w, "") : w;
	words[n] = NULL;
	capture_begin(&c, stderr);
	r = args_parse(table, more, "kvbmctl test", &n, words);
	capture_end(&c, said, sizeof(said));
	return r ? -r : n;
}

START_TEST(takes_options_of_every_kind)
{
	ck_assert_int_eq(parse("--string=a=b --u32 5 --u64=18446744073709551615 --size 1.5K --real=0.25 --flag"), 0);
	ck_assert_str_eq(string, "a=b");
	ck_assert_uint_eq(u32, 5);
	ck_assert_uint_eq(u64, UINT64_MAX);
	ck_assert_uint_eq(size, 1536);
	ck_assert_double_eq(real, 0.25);
	ck_assert(flag && !other);
	ck_assert_str_eq(said, "");
}
END_TEST

START_TEST(letters_are_short_for_names)
{
	ck_assert_int_eq(parse("-s text -n7 -z 2M -r1e3 -f -o"), 0);
	ck_assert_str_eq(string, "text");
	ck_assert_uint_eq(u32, 7);
	ck_assert_uint_eq(size, 2 << 20);
	ck_assert_double_eq(real, 1000);
	ck_assert(flag && other);
}
END_TEST

START_TEST(words_and_options_mix)
{
	ck_assert_int_eq(parse("one --flag two - --u32 3 three"), 4);
	ck_assert_str_eq(words[0], "one");
	ck_assert_str_eq(words[1], "two");
	ck_assert_str_eq(words[2], "-");
	ck_assert_str_eq(words[3], "three");
	ck_assert(flag);
	ck_assert_int_eq(parse("one -- --flag -- -n"), 4);
	ck_assert_str_eq(words[1], "--flag");
	ck_assert_str_eq(words[2], "--");
	ck_assert(!flag);
	ck_assert_int_eq(parse("''"), 1); /* an empty word is a word */
	ck_assert_int_eq(parse(""), 0);
}
END_TEST

/* A value may look like an option, and an empty one is a value. */
START_TEST(values_are_taken_as_they_are)
{
	ck_assert_int_eq(parse("--string --flag"), 0);
	ck_assert_str_eq(string, "--flag");
	ck_assert(!flag);
	ck_assert_int_eq(parse("--string= one"), 1);
	ck_assert_str_eq(string, "");
	ck_assert_int_eq(parse("-n 1 -n 2"), 0); /* the last one counts */
	ck_assert_uint_eq(u32, 2);
}
END_TEST

START_TEST(help_is_an_outcome)
{
	ck_assert_int_eq(parse("one --help --nonsense"), -ARGS_E_HELP);
	ck_assert_int_eq(parse("-h"), -ARGS_E_HELP);
	ck_assert_int_eq(parse("-- -h"), 1);
}
END_TEST

START_TEST(wrong_ones_are_refused)
{
	static const struct {
		const char *line, *says;
	} bad[] = {
		{ "--nonsense", "unknown option '--nonsense'" },
		{ "--flagg", "unknown option" },
		{ "--fla", "unknown option" }, /* names are not cut */
		{ "-x", "unknown option '-x'" },
		{ "--=5", "unknown option" },
		{ "--flag=yes", "takes no value" },
		{ "-fo", "takes no value" },
		{ "--u32", "'--u32' needs a whole number" },
		{ "-n", "needs a whole number" },
		{ "--u32 4294967296", "--u32 needs a whole number, not '4294967296'" },
		{ "--u32 -1", "needs a whole number" },
		{ "--u32 +1", "needs a whole number" },
		{ "--u32 1x", "needs a whole number" },
		{ "--u32=", "needs a whole number" },
		{ "--u64 18446744073709551616", "needs a whole number" },
		{ "--size 1Q", "a size such as 16K or 0.5G" },
		{ "--real -1", "a number >= 0" },
		{ "--real nan", "a number >= 0" },
		{ "--real inf", "a number >= 0" },
		{ "--real 1,5", "a number >= 0" },
		{ "--real=", "a number >= 0" },
		{ "--string", "needs a value" },
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		ck_assert_msg(parse(bad[i].line) == -ARGS_E_USAGE, "%s", bad[i].line);
		ck_assert_msg(strncmp(said, "kvbmctl test: ", 14) == 0, "%s", said);
		ck_assert_msg(strstr(said, bad[i].says) != NULL, "%s: %s", bad[i].line, said);
		ck_assert_ptr_eq(strchr(said, '\n'), said + strlen(said) - 1); /* one line */
	}
}
END_TEST

START_TEST(help_has_a_line_an_option)
{
	struct capture c;
	char text[1024], *line, *save = NULL;
	int n = 0;

	capture_begin(&c, stdout);
	args_help(table);
	capture_end(&c, text, sizeof(text));
	for (line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		ck_assert_ptr_nonnull(strstr(line, table[n].name));
		ck_assert_str_eq(line + 33, table[n].help); /* all begin in one column */
		ck_assert_int_eq(line[3] == table[n].letter, table[n].letter != 0);
		n++;
	}
	ck_assert_int_eq(n, 6);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("args");
	TCase *tc = tcase_create("args");
	SRunner *sr;
	int failed;

	tcase_add_test(tc, takes_options_of_every_kind);
	tcase_add_test(tc, letters_are_short_for_names);
	tcase_add_test(tc, words_and_options_mix);
	tcase_add_test(tc, values_are_taken_as_they_are);
	tcase_add_test(tc, help_is_an_outcome);
	tcase_add_test(tc, wrong_ones_are_refused);
	tcase_add_test(tc, help_has_a_line_an_option);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
