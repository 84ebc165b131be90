/* Unit tests of client/kvbmctl/simulation.c: the daemon's policy against exact leaf-LRU.
 *
 * The published figures of the conversation trace are checked where the trace is: in $KVBM_TRACE, or beside the project.
 */
#include "client/kvbmctl/simulation.h"

#include <check.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/log.h"
#include "client/kvbmctl/trace.h"
#include "client/kvbmctl/workload.h"
#include "tests/lib/leaf_lru.h"

static double ratio(uint64_t a, uint64_t b)
{
	return (double)a / (double)b;
}

static uint64_t exact_hits(const struct requests *rs, const struct numbering *numbering, uint32_t capacity)
{
	uint64_t hits;

	ck_assert(leaf_lru_hits(rs, numbering, capacity, &hits));
	return hits;
}

static double simulated(const struct requests *rs, const struct numbering *numbering, uint32_t capacity, double recall)
{
	struct simulation sim = { .requests = rs, .numbering = numbering, .capacity = capacity, .release_recall = recall };
	struct simulation_result result;

	ck_assert_int_eq(simulation_run(&sim, &result), 0);
	ck_assert_uint_eq(result.looked_up, rs->n_ids);
	return ratio(result.hits, result.looked_up);
}

static uint32_t percent(const struct numbering *numbering, double p)
{
	return (uint32_t)(numbering->n_distinct * p / 100 + 0.5);
}

START_TEST(agrees_on_the_trace)
{
	static const struct {
		double percent, rate;
	} table[] = { { 1, 0.053 }, { 5, 0.196 }, { 10, 0.279 }, { 25, 0.354 }, { 50, 0.363 } };
	const char *path = getenv("KVBM_TRACE"), *source = getenv("KVBM_SOURCE");
	char beside[PATH_MAX], error[TRACE_ERROR_SIZE];
	struct numbering numbering;
	struct requests rs;

	snprintf(beside, sizeof(beside), "%s/../shared/traces/conversation_trace.jsonl", source ? source : ".");
	if (!path)
		path = beside;
	if (access(path, R_OK) != 0) {
		fprintf(stderr, "no conversation trace here: its figures are not checked (KVBM_TRACE)\n");
		return;
	}
	requests_init(&rs);
	ck_assert_msg(trace_read(path, &rs, error) == 0, "%s", error);
	ck_assert_uint_eq(rs.n, 12031);
	ck_assert_uint_eq(rs.n_ids, 288500);
	ck_assert_int_eq(requests_number(&rs, &numbering), 0);
	ck_assert_uint_eq(numbering.n_distinct, 182790);
	for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
		uint32_t capacity = percent(&numbering, table[i].percent);
		double exact = ratio(exact_hits(&rs, &numbering, capacity), rs.n_ids);
		double ours = simulated(&rs, &numbering, capacity, 0);

		ck_assert_msg(fabs(exact - table[i].rate) < 0.0006, "reference at %g %%: %.5f", table[i].percent, exact);
		ck_assert_msg(fabs(ours - table[i].rate) < 0.001, "at %g %%: %.5f, exact %.5f", table[i].percent, ours,
		              exact);
	}
	numbering_deinit(&numbering);
	requests_deinit(&rs);
}
END_TEST

static const char *const workloads[] = { "chat:requests=3000", "agent:requests=1500", "document:requests=1500" };

START_TEST(agrees_on_workloads)
{
	static const double percents[] = { 1, 2, 5, 10, 25, 50, 100 };
	char error[WORKLOAD_ERROR_SIZE];
	struct numbering numbering;
	struct requests rs;

	requests_init(&rs);
	ck_assert_int_eq(workload_make(workloads[_i], &rs, error), 0);
	ck_assert_int_eq(requests_number(&rs, &numbering), 0);
	for (size_t i = 0; i < sizeof(percents) / sizeof(*percents); i++) {
		uint32_t capacity = percent(&numbering, percents[i]);
		double exact, ours;

		if (capacity < rs.longest)
			capacity = rs.longest;
		exact = ratio(exact_hits(&rs, &numbering, capacity), rs.n_ids);
		ours = simulated(&rs, &numbering, capacity, 0);
		ck_assert_msg(fabs(exact - ours) < 0.005, "%s at %u blocks: %.4f, exact %.4f", workloads[_i], capacity,
		              ours, exact);
	}
	numbering_deinit(&numbering);
	requests_deinit(&rs);
}
END_TEST

/* The index must take every block that there is a slot for. */
START_TEST(nothing_is_lost_while_there_is_room)
{
	char error[WORKLOAD_ERROR_SIZE];
	struct simulation sim = { 0 };
	struct simulation_result result;
	struct numbering numbering;
	struct requests rs;

	requests_init(&rs);
	ck_assert_int_eq(workload_make("chat:requests=30000,users=1000,prompts=1000,zipf=0", &rs, error), 0);
	ck_assert_int_eq(requests_number(&rs, &numbering), 0);
	ck_assert_uint_gt(numbering.n_distinct, 100000);
	sim = (struct simulation){ .requests = &rs, .capacity = numbering.n_distinct };
	ck_assert_int_eq(simulation_run(&sim, &result), 0);
	ck_assert_uint_eq(result.dropped, 0);
	ck_assert_uint_eq(result.hits, exact_hits(&rs, &numbering, numbering.n_distinct));
	numbering_deinit(&numbering);
	requests_deinit(&rs);
}
END_TEST

START_TEST(hints_help)
{
	char error[WORKLOAD_ERROR_SIZE];
	struct numbering numbering;
	struct requests rs;
	uint32_t capacity;
	double without, half, all;

	requests_init(&rs);
	ck_assert_int_eq(workload_make("chat:requests=3000", &rs, error), 0);
	ck_assert_int_eq(requests_number(&rs, &numbering), 0);
	capacity = percent(&numbering, 10);
	without = simulated(&rs, &numbering, capacity, 0);
	half = simulated(&rs, &numbering, capacity, 0.5);
	all = simulated(&rs, &numbering, capacity, 1);
	ck_assert_msg(without < half && half < all, "%.3f %.3f %.3f", without, half, all);
	numbering_deinit(&numbering);
	requests_deinit(&rs);
}
END_TEST

/* Ids twice in one request, and requests longer than the capacity. */
START_TEST(odd_requests)
{
	static const uint64_t ids[] = { 1, 2, 1, 1, 3, 2, 4, 5 };
	struct simulation sim = { .capacity = 3 };
	struct simulation_result result;
	struct requests rs;

	requests_init(&rs);
	for (int i = 0; i < 3; i++) {
		ck_assert_int_eq(requests_begin(&rs, i, 0, 0), 0);
		for (size_t k = 0; k < sizeof(ids) / sizeof(*ids); k++)
			ck_assert_int_eq(requests_add(&rs, ids[k]), 0);
	}
	ck_assert_int_eq(requests_begin(&rs, 3, 0, 0), 0); /* without a block */
	sim.requests = &rs;
	ck_assert_int_eq(simulation_run(&sim, &result), 0);
	ck_assert_uint_eq(result.hits, 2 * 6); /* 1 2 1 1 3 2 of the second and third */
	sim.capacity = 5;
	ck_assert_int_eq(simulation_run(&sim, &result), 0);
	ck_assert_uint_eq(result.hits, 2 * 8);
	sim.capacity = 1;
	ck_assert_int_eq(simulation_run(&sim, &result), 0);
	ck_assert_uint_eq(result.hits, 2);
	requests_deinit(&rs);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("simulation");
	TCase *tc = tcase_create("simulation");
	SRunner *sr;
	int failed;

	assert(log_set_level("warn") == 0);
	tcase_set_timeout(tc, 60);
	tcase_add_test(tc, agrees_on_the_trace);
	tcase_add_loop_test(tc, agrees_on_workloads, 0, 3);
	tcase_add_test(tc, nothing_is_lost_while_there_is_room);
	tcase_add_test(tc, hints_help);
	tcase_add_test(tc, odd_requests);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
