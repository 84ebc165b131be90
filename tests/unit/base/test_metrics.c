/* Unit tests of base/metrics.c. */
#include "base/metrics.h"

#include <check.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

START_TEST(counters_and_gauges)
{
	metrics_add(METRIC_requests, 2);
	metrics_add(METRIC_requests, 3);
	ck_assert_uint_eq(metrics_get(METRIC_requests), 5);
	metrics_set(METRIC_g2_slots_free, 10);
	metrics_sub(METRIC_g2_slots_free, 4);
	ck_assert_uint_eq(metrics_get(METRIC_g2_slots_free), 6);
	ck_assert_str_eq(metrics_name(METRIC_g2_slots_free), "g2_slots_free");
	ck_assert_int_eq(metrics_kind(METRIC_g2_slots_free), METRIC_KIND_GAUGE);
	ck_assert_int_eq(metrics_kind(METRIC_requests), METRIC_KIND_COUNTER);
	metrics_reset();
	ck_assert_uint_eq(metrics_get(METRIC_requests), 0);
}
END_TEST

START_TEST(counter_set_aborts)
{
	metrics_set(METRIC_requests, 1);
}
END_TEST

START_TEST(gauge_below_zero_aborts)
{
	metrics_set(METRIC_sessions, 1);
	metrics_sub(METRIC_sessions, 2);
}
END_TEST

START_TEST(text_for_prometheus)
{
	size_t length = metrics_render(NULL, 0);
	char *text = malloc(length + 1);

	ck_assert_ptr_nonnull(text);
	metrics_add(METRIC_misses, 7);
	metrics_set(METRIC_sessions, 3);
	ck_assert_uint_eq(metrics_render(text, length + 1), length);
	ck_assert_uint_eq(strlen(text), length);
	ck_assert_ptr_nonnull(strstr(text, "# TYPE kvbmd_misses_total counter\nkvbmd_misses_total 7\n"));
	ck_assert_ptr_nonnull(strstr(text, "# TYPE kvbmd_sessions gauge\nkvbmd_sessions 3\n"));
	free(text);
}
END_TEST

START_TEST(short_room_is_not_overrun)
{
	size_t length = metrics_render(NULL, 0);

	for (size_t size = 0; size < 600; size += 7) {
		char *text = malloc(size + 1);

		ck_assert_ptr_nonnull(text);
		text[size] = '#';
		ck_assert_uint_eq(metrics_render(text, size), length);
		ck_assert_int_eq(text[size], '#');
		if (size > 0)
			ck_assert_uint_eq(strlen(text), size - 1);
		free(text);
	}
}
END_TEST

static void *count(void *arg)
{
	for (int i = 0; i < 10000; i++)
		metrics_add(METRIC_bytes_sent, 1);
	return arg;
}

START_TEST(any_thread)
{
	pthread_t threads[4];

	for (int i = 0; i < 4; i++)
		ck_assert_int_eq(pthread_create(&threads[i], NULL, count, NULL), 0);
	for (int i = 0; i < 4; i++)
		ck_assert_int_eq(pthread_join(threads[i], NULL), 0);
	ck_assert_uint_eq(metrics_get(METRIC_bytes_sent), 40000);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("metrics");
	TCase *tc = tcase_create("metrics");
	SRunner *sr;
	int failed;

	tcase_add_test(tc, counters_and_gauges);
	tcase_add_test_raise_signal(tc, counter_set_aborts, SIGABRT);
	tcase_add_test_raise_signal(tc, gauge_below_zero_aborts, SIGABRT);
	tcase_add_test(tc, text_for_prometheus);
	tcase_add_test(tc, short_room_is_not_overrun);
	tcase_add_test(tc, any_thread);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
