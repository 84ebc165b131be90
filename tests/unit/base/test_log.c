/* Unit tests of base/log.c and base/error.c: what arrives at stderr. */
#include "base/log.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

static int capture_fds[2];
static int stderr_saved;
static char captured[8192];

static void capture_begin(void)
{
	ck_assert_int_eq(pipe2(capture_fds, O_CLOEXEC | O_NONBLOCK), 0);
	stderr_saved = dup(STDERR_FILENO);
	ck_assert_int_ge(dup2(capture_fds[1], STDERR_FILENO), 0);
}

static const char *capture_end(void)
{
	ssize_t n = read(capture_fds[0], captured, sizeof(captured) - 1);

	ck_assert_int_ge(dup2(stderr_saved, STDERR_FILENO), 0);
	close(stderr_saved);
	close(capture_fds[0]);
	close(capture_fds[1]);
	captured[n > 0 ? n : 0] = '\0';
	return captured;
}

START_TEST(level_decides)
{
	ck_assert_int_eq(log_set_level("warn"), 0);
	capture_begin();
	log_info("not this");
	log_warn("but %s", "this");
	ck_assert_ptr_nonnull(strstr(capture_end(), " kvbmd: warn: but this\n"));
	ck_assert_ptr_null(strstr(captured, "not this"));
	ck_assert_int_eq(log_set_level("loud"), -EINVAL);
	ck_assert_int_eq(log_get_level(), LOG_LEVEL_WARN);
	ck_assert_str_eq(log_level_name(LOG_LEVEL_DEBUG), "debug");
}
END_TEST

START_TEST(no_peer_can_forge_a_line)
{
	capture_begin();
	log_info("client '%s'", "x\n<0>kernel: on fire\033[2J");
	ck_assert_ptr_nonnull(strstr(capture_end(), "client 'x?<0>kernel: on fire?[2J'\n"));
	ck_assert_ptr_eq(strchr(captured, '\n'), captured + strlen(captured) - 1);
}
END_TEST

START_TEST(long_text_is_cut)
{
	char text[3 * LOG_LINE_MAX];

	memset(text, 'a', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	capture_begin();
	log_info("%s", text);
	ck_assert_uint_eq(strlen(capture_end()), LOG_LINE_MAX - 1);
	ck_assert_int_eq(captured[LOG_LINE_MAX - 2], '\n');
}
END_TEST

START_TEST(priority_only_if_the_journal_reads)
{
	char stream[64];
	struct stat st;

	ck_assert_int_eq(setenv("JOURNAL_STREAM", "1:1", 1), 0);
	capture_begin();
	log_error("one");
	ck_assert_ptr_nonnull(strstr(capture_end(), "kvbmd: error: one\n"));

	capture_begin();
	ck_assert_int_eq(fstat(STDERR_FILENO, &st), 0);
	snprintf(stream, sizeof(stream), "%ju:%ju", (uintmax_t)st.st_dev, (uintmax_t)st.st_ino);
	ck_assert_int_eq(setenv("JOURNAL_STREAM", stream, 1), 0);
	log_error("two");
	ck_assert_str_eq(capture_end(), "<3>two\n");
}
END_TEST

START_TEST(errno_survives)
{
	capture_begin();
	errno = ENOENT;
	log_info("because: %m");
	ck_assert_int_eq(errno, ENOENT);
	ck_assert_ptr_nonnull(strstr(capture_end(), "because: No such file or directory\n"));
}
END_TEST

START_TEST(fault_is_logged_once_at_birth)
{
	int r;

	capture_begin();
	r = error_origin(-EIO);
	r = error_trace(r);
	ck_assert_int_eq(error_trace(0), 0);
	ck_assert_ptr_nonnull(strstr(capture_end(), "test_log.c:"));
	ck_assert_int_eq(r, -EIO);
	ck_assert_ptr_nonnull(strstr(captured, "Input/output error (-5)\n"));
	ck_assert_ptr_eq(strchr(captured, '\n'), captured + strlen(captured) - 1);
}
END_TEST

START_TEST(outcome_as_fault_aborts)
{
	(void)error_trace(1);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("log");
	TCase *tc = tcase_create("log");
	SRunner *sr;
	int failed;

	tcase_add_test(tc, level_decides);
	tcase_add_test(tc, no_peer_can_forge_a_line);
	tcase_add_test(tc, long_text_is_cut);
	tcase_add_test(tc, priority_only_if_the_journal_reads);
	tcase_add_test(tc, errno_survives);
	tcase_add_test(tc, fault_is_logged_once_at_birth);
	tcase_add_test_raise_signal(tc, outcome_as_fault_aborts, SIGABRT);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
