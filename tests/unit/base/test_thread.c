/* Unit tests of base/thread.c. */
#include "base/thread.h"

#include <check.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

START_TEST(no_role_may_do_everything)
{
	ck_assert_int_eq(thread_get_role(), THREAD_NONE);
	thread_assert(THREAD_LOOP);
	thread_assert(THREAD_GPU);
	thread_assert(THREAD_WORKER);
}
END_TEST

static void *worker_main(void *arg)
{
	bool *ok = arg;

	*ok = thread_get_role() == THREAD_NONE;
	thread_set_role(THREAD_WORKER);
	*ok = *ok && thread_is(THREAD_WORKER) && !thread_is(THREAD_LOOP);
	return NULL;
}

START_TEST(role_belongs_to_the_thread)
{
	pthread_t thread;
	bool ok = false;

	thread_set_role(THREAD_LOOP);
	ck_assert_int_eq(pthread_create(&thread, NULL, worker_main, &ok), 0);
	ck_assert_int_eq(pthread_join(thread, NULL), 0);
	ck_assert(ok);
	thread_assert(THREAD_LOOP);
	thread_set_role(THREAD_NONE);
	thread_set_role(THREAD_GPU);
	ck_assert(!thread_is(THREAD_LOOP));
}
END_TEST

START_TEST(wrong_thread_aborts)
{
	thread_set_role(THREAD_WORKER);
	thread_assert(THREAD_LOOP);
}
END_TEST

START_TEST(second_role_aborts)
{
	thread_set_role(THREAD_WORKER);
	thread_set_role(THREAD_LOOP);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("thread");
	TCase *tc = tcase_create("thread");
	SRunner *sr;
	int failed;

	tcase_add_test(tc, no_role_may_do_everything);
	tcase_add_test(tc, role_belongs_to_the_thread);
	tcase_add_test_raise_signal(tc, wrong_thread_aborts, SIGABRT);
	tcase_add_test_raise_signal(tc, second_role_aborts, SIGABRT);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
