/* Unit tests of base/cleanup.h. */
#include "base/cleanup.h"

#include <check.h>
#include <fcntl.h>

static int freed;

static char *thing_free(char *thing)
{
	if (thing)
		freed++;
	free(thing);
	return NULL;
}

CLEANUP_DEFINE(char *, thing_free);

static char *thing_new(int steal_it)
{
	_cleanup_(thing_free_p) char *thing = malloc(1);
	_cleanup_(free_p) char *other = malloc(8);

	ck_assert_ptr_nonnull(other);
	return steal_it ? steal(&thing) : NULL;
}

START_TEST(locals_free_what_they_own)
{
	ck_assert_ptr_null(thing_new(0));
	ck_assert_int_eq(freed, 1);
}
END_TEST

START_TEST(stolen_is_not_freed)
{
	char *thing = thing_new(1);

	ck_assert_ptr_nonnull(thing);
	ck_assert_int_eq(freed, 0);
	thing_free(thing);
}
END_TEST

static int fd_open(int steal_it, int *ret_fd)
{
	_cleanup_(close_p) int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	*ret_fd = fd;
	errno = EXDEV;
	return steal_it ? steal_fd(&fd) : -1;
}

START_TEST(descriptors_too)
{
	int fd, kept;

	ck_assert_int_eq(fd_open(0, &fd), -1);
	ck_assert_int_eq(errno, EXDEV);
	ck_assert_int_eq(fcntl(fd, F_GETFD), -1);
	kept = fd_open(1, &fd);
	ck_assert_int_eq(kept, fd);
	ck_assert_int_ge(fcntl(kept, F_GETFD), 0);
	close_p(&kept);
	kept = -1;
	close_p(&kept);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("cleanup");
	TCase *tc = tcase_create("cleanup");
	SRunner *sr;
	int failed;

	tcase_add_test(tc, locals_free_what_they_own);
	tcase_add_test(tc, stolen_is_not_freed);
	tcase_add_test(tc, descriptors_too);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
