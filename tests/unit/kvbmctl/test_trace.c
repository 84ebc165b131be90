/* SPDX-License-Identifier: Apache-2.0 */
/* Unit tests of client/kvbmctl/trace.c: what a request is, and that all else is refused with its line. */
#include "client/kvbmctl/trace.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static struct requests rs;
static char error[TRACE_ERROR_SIZE];
static int fd;

static void setup(void)
{
	requests_init(&rs);
	fd = memfd_create("trace", MFD_CLOEXEC);
	ck_assert_int_ge(fd, 0);
	error[0] = '\0';
}

static void teardown(void)
{
	requests_deinit(&rs);
	close(fd);
}

static void put(const void *text, size_t len)
{
	ck_assert_int_eq(write(fd, text, len), (ssize_t)len);
}

static int read_back(void)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return trace_read(path, &rs, error);
}

static int read_text(const char *text)
{
	ck_assert_int_eq(ftruncate(fd, 0), 0);
	ck_assert_int_eq(lseek(fd, 0, SEEK_SET), 0);
	put(text, strlen(text));
	return read_back();
}

#define LINE(ids) "{\"timestamp\": 5.5, \"input_length\": 100, \"output_length\": 7, \"hash_ids\": [" ids "]}"

START_TEST(reads_requests)
{
	ck_assert_msg(read_text(LINE("1, 2, 9223372036854775807") "\n\n \t\r\n" LINE("") "\r\n" LINE("1")) == 0, "%s",
	              error);
	ck_assert_uint_eq(rs.n, 3);
	ck_assert_double_eq(rs.list[0].timestamp_ms, 5.5);
	ck_assert_uint_eq(rs.list[0].input_tokens, 100);
	ck_assert_uint_eq(rs.list[0].output_tokens, 7);
	ck_assert_uint_eq(rs.list[0].n, 3);
	ck_assert_uint_eq(requests_ids(&rs, 0)[2], INT64_MAX);
	ck_assert_uint_eq(rs.list[1].n, 0);
	ck_assert_uint_eq(rs.list[2].n, 1); /* the last line needs no end */
}
END_TEST

START_TEST(other_members_are_passed_over)
{
	ck_assert_int_eq(read_text("{\"hash_ids\": [4], \"x\": {\"y\": [1, null]}, \"output_length\": 0, \"input_length\": 0, "
	                           "\"timestamp\": 0, \"name\": \"\\u20ac\"}\n"),
	                 0);
	ck_assert_uint_eq(requests_ids(&rs, 0)[0], 4);
}
END_TEST

static const struct {
	const char *line, *says;
} bad_lines[] = {
	{ "nonsense", "" },
	{ "{", "" },
	{ "[1, 2]", "not a JSON object" },
	{ "5", "" },
	{ "{}", "\"timestamp\" is missing" },
	{ "{\"timestamp\": 1, \"output_length\": 1, \"hash_ids\": []}", "\"input_length\" is missing" },
	{ "{\"timestamp\": 1, \"input_length\": 1, \"hash_ids\": []}", "\"output_length\" is missing" },
	{ "{\"timestamp\": \"1\", \"input_length\": 1, \"output_length\": 1, \"hash_ids\": []}", "\"timestamp\"" },
	{ "{\"timestamp\": 1, \"input_length\": -1, \"output_length\": 1, \"hash_ids\": []}", "\"input_length\"" },
	{ "{\"timestamp\": 1, \"input_length\": 1, \"output_length\": 1e300, \"hash_ids\": []}", "\"output_length\"" },
	{ "{\"timestamp\": 1, \"input_length\": 1, \"output_length\": 1}", "\"hash_ids\" is missing" },
	{ "{\"timestamp\": 1, \"input_length\": 1, \"output_length\": 1, \"hash_ids\": 5}", "\"hash_ids\"" },
	{ LINE("1, -1"), "hash_ids[1]" },
	{ LINE("1, 2, 2.5"), "hash_ids[2]" },
	{ LINE("\"1\""), "hash_ids[0]" },
	{ LINE("9223372036854775808"), "" }, /* more than the parser's integers hold */
	{ "{\"timestamp\": 1, \"timestamp\": 2, \"input_length\": 1, \"output_length\": 1, \"hash_ids\": []}", "duplicate" },
	{ LINE("1") " x", "" },
	{ "{\"\xff\": 1}", "" },
};

START_TEST(bad_lines_are_refused_with_their_number)
{
	char text[1024], place[100];

	snprintf(text, sizeof(text), "%s\n\n%s\n%s\n%s\n", LINE("1"), LINE("2"), bad_lines[_i].line, LINE("3"));
	ck_assert_int_eq(read_text(text), TRACE_E_FORMAT);
	snprintf(place, sizeof(place), "/proc/self/fd/%d:4: ", fd);
	ck_assert_msg(strncmp(error, place, strlen(place)) == 0, "%s", error);
	ck_assert_msg(strstr(error, bad_lines[_i].says) != NULL, "%s", error);
	ck_assert_uint_eq(rs.n, 0); /* half a trace is no trace */
	ck_assert_ptr_null(rs.list);
}
END_TEST

START_TEST(a_zero_byte_is_refused)
{
	put("{\"timestamp\0\": 1}\n", 17);
	ck_assert_int_eq(read_back(), TRACE_E_FORMAT);
	ck_assert_ptr_nonnull(strstr(error, ":1: "));
}
END_TEST

START_TEST(nothing_in_it_is_refused)
{
	ck_assert_int_eq(read_text(""), TRACE_E_FORMAT);
	ck_assert_ptr_nonnull(strstr(error, "no request"));
	ck_assert_int_eq(read_text("\n\n  \n"), TRACE_E_FORMAT);
}
END_TEST

static int read_ids(uint32_t n)
{
	ck_assert_int_eq(ftruncate(fd, 0), 0);
	ck_assert_int_eq(lseek(fd, 0, SEEK_SET), 0);
	put("{\"timestamp\": 1, \"input_length\": 1, \"output_length\": 1, \"hash_ids\": [0", 70);
	for (uint32_t i = 1; i < n; i++)
		if (write(fd, ", 9223372036854775807", 21) != 21)
			return -1;
	put("]}\n", 3);
	return read_back();
}

START_TEST(ids_of_a_request_are_bounded)
{
	ck_assert_int_eq(read_ids(TRACE_MAX_IDS), 0);
	ck_assert_uint_eq(rs.longest, TRACE_MAX_IDS);
	requests_deinit(&rs);
	ck_assert_int_eq(read_ids(TRACE_MAX_IDS + 1), TRACE_E_FORMAT);
	ck_assert_ptr_nonnull(strstr(error, "16385 hash_ids, at most 16384"));
}
END_TEST

/* Something that is no trace and has no lines, of any size, does not fill the memory. */
START_TEST(lines_are_bounded)
{
	put(LINE("1") "\n", strlen(LINE("1")) + 1);
	ck_assert_int_eq(ftruncate(fd, (off_t)1 << 40), 0);
	ck_assert_int_eq(read_back(), TRACE_E_FORMAT);
	ck_assert_ptr_nonnull(strstr(error, ":2: the line is longer than "));
	ck_assert_uint_eq(rs.n, 0);
}
END_TEST

START_TEST(files_that_cannot_be_read)
{
	ck_assert_int_lt(trace_read("/nonexistent/trace", &rs, error), 0);
	ck_assert_str_eq(error, "/nonexistent/trace: No such file or directory");
	ck_assert_int_lt(trace_read("/", &rs, error), 0);
	ck_assert_ptr_nonnull(strstr(error, "Is a directory"));
}
END_TEST

START_TEST(standard_input)
{
	put(LINE("3") "\n", strlen(LINE("3")) + 1);
	ck_assert_int_eq(lseek(fd, 0, SEEK_SET), 0);
	ck_assert_int_ge(dup2(fd, STDIN_FILENO), 0);
	ck_assert_int_eq(trace_read("-", &rs, error), 0);
	ck_assert_uint_eq(rs.n, 1);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("trace");
	TCase *tc = tcase_create("trace");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, reads_requests);
	tcase_add_test(tc, other_members_are_passed_over);
	tcase_add_loop_test(tc, bad_lines_are_refused_with_their_number, 0, sizeof(bad_lines) / sizeof(*bad_lines));
	tcase_add_test(tc, a_zero_byte_is_refused);
	tcase_add_test(tc, nothing_in_it_is_refused);
	tcase_add_test(tc, ids_of_a_request_are_bounded);
	tcase_add_test(tc, lines_are_bounded);
	tcase_add_test(tc, files_that_cannot_be_read);
	tcase_add_test(tc, standard_input);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
