/* Unit tests of base/sm.c. */
#include "base/sm.h"

#include <check.h>
#include <signal.h>
#include <stdlib.h>

enum { IDLE, RUNNING, DONE };

static const struct sm_state states[] = {
	[IDLE] = { "idle", TO(RUNNING), false },
	[RUNNING] = { "running", TO(IDLE) | TO(DONE), false },
	[DONE] = { "done", 0, true },
};

static int prev_seen;
static bool invariant_result;

static bool invariant(const struct sm *sm, int prev)
{
	(void)sm;
	prev_seen = prev;
	return invariant_result;
}

START_TEST(walks_its_table)
{
	struct sm sm;

	invariant_result = true;
	sm_init(&sm, states, IDLE, invariant);
	ck_assert_int_eq(prev_seen, SM_PREV_NONE);
	ck_assert_str_eq(sm_name(&sm), "idle");
	ck_assert(sm_may_move(&sm, RUNNING));
	ck_assert(!sm_may_move(&sm, DONE));
	sm_move(&sm, RUNNING);
	ck_assert_int_eq(prev_seen, IDLE);
	sm_move(&sm, IDLE);
	sm_move(&sm, RUNNING);
	ck_assert(!sm_is_final(&sm));
	sm_move(&sm, DONE);
	ck_assert(sm_is_final(&sm));
	ck_assert_int_eq(sm.state, DONE);
}
END_TEST

START_TEST(forbidden_move_aborts)
{
	struct sm sm;

	sm_init(&sm, states, IDLE, NULL);
	sm_move(&sm, DONE);
}
END_TEST

START_TEST(move_out_of_final_aborts)
{
	struct sm sm;

	sm_init(&sm, states, DONE, NULL);
	sm_move(&sm, IDLE);
}
END_TEST

START_TEST(broken_invariant_aborts)
{
	struct sm sm;

	invariant_result = true;
	sm_init(&sm, states, IDLE, invariant);
	invariant_result = false;
	sm_move(&sm, RUNNING);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("sm");
	TCase *tc = tcase_create("sm");
	SRunner *sr;
	int failed;

	tcase_add_test(tc, walks_its_table);
	tcase_add_test_raise_signal(tc, forbidden_move_aborts, SIGABRT);
	tcase_add_test_raise_signal(tc, move_out_of_final_aborts, SIGABRT);
	tcase_add_test_raise_signal(tc, broken_invariant_aborts, SIGABRT);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
