/* SPDX-License-Identifier: Apache-2.0 */
/* Unit tests of block/why.c: the last notes are remembered, the memory is bounded and says how far back it goes. */
#include "block/why.h"

#include <check.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

static struct why *why;

static void setup(void)
{
	ck_assert_int_eq(why_new(4, &why), 0);
}

static void teardown(void)
{
	why = why_free(why);
	ck_assert_ptr_null(why);
	ck_assert_ptr_null(why_free(NULL));
}

static struct why_answer ask(uint64_t fingerprint, uint64_t now_ns)
{
	struct why_answer answer;

	memset(&answer, 0xff, sizeof(answer));
	why_ask(why, fingerprint, now_ns, &answer);
	ck_assert_uint_eq(answer.missing_parent, 0);
	return answer;
}

START_TEST(tells_the_last_reason)
{
	ck_assert_int_eq(ask(1, 100).reason, WHY_NEVER_STORED);
	ck_assert_uint_eq(ask(1, 100).ago_ns, 0);
	why_note(why, 1, WHY_DROPPED, 100);
	ck_assert_int_eq(ask(1, 150).reason, WHY_DROPPED);
	ck_assert_uint_eq(ask(1, 150).ago_ns, 50);
	why_note(why, 1, WHY_FLUSHED, 200);
	ck_assert_int_eq(ask(1, 210).reason, WHY_FLUSHED);
	ck_assert_uint_eq(ask(1, 210).ago_ns, 10);
}
END_TEST

START_TEST(counts_misses)
{
	why_miss(why, 1, 10);
	why_miss(why, 1, 20);
	ck_assert_int_eq(ask(1, 30).reason, WHY_NEVER_STORED);
	ck_assert_uint_eq(ask(1, 30).misses, 2);
	ck_assert_uint_eq(ask(1, 30).ago_ns, 0);
	ck_assert_uint_eq(ask(2, 30).misses, 0);
}
END_TEST

/* "Since then": a note begins a new count. */
START_TEST(misses_are_counted_since_the_note)
{
	why_miss(why, 1, 10);
	why_miss(why, 1, 20);
	why_note(why, 1, WHY_DROPPED, 30);
	ck_assert_uint_eq(ask(1, 40).misses, 0);
	why_miss(why, 1, 40);
	ck_assert_uint_eq(ask(1, 40).misses, 1);
	ck_assert_uint_eq(ask(1, 40).ago_ns, 10); /* a miss does not make the drop newer */
	ck_assert_int_eq(ask(1, 40).reason, WHY_DROPPED);
}
END_TEST

START_TEST(forgets_the_oldest)
{
	for (uint64_t i = 1; i <= 6; i++)
		why_note(why, i, WHY_DROPPED, i * 10);
	ck_assert_int_eq(ask(1, 100).reason, WHY_NEVER_STORED);
	ck_assert_int_eq(ask(2, 100).reason, WHY_NEVER_STORED);
	for (uint64_t i = 3; i <= 6; i++)
		ck_assert_int_eq(ask(i, 100).reason, WHY_DROPPED);
	ck_assert_uint_eq(ask(1, 100).memory_ns, 80); /* everything after 20 */
}
END_TEST

/* What happened after the newest forgotten note is remembered, and not what happened before. */
START_TEST(memory_does_not_grow_back)
{
	for (uint64_t i = 1; i <= 4; i++)
		why_note(why, i, WHY_DROPPED, i * 10);
	why_note(why, 1, WHY_FLUSHED, 50);
	why_note(why, 5, WHY_DROPPED, 60); /* in place of 1 */
	ck_assert_uint_eq(ask(1, 100).memory_ns, 50);
	why_note(why, 6, WHY_DROPPED, 70); /* in place of 2, whose note was older */
	ck_assert_uint_eq(ask(1, 100).memory_ns, 50);
}
END_TEST

START_TEST(without_entries_nothing_is_remembered)
{
	teardown();
	ck_assert_int_eq(why_new(0, &why), 0);
	why_note(why, 1, WHY_DROPPED, 10);
	why_miss(why, 1, 10);
	ck_assert_int_eq(ask(1, 20).reason, WHY_NEVER_STORED);
	ck_assert_uint_eq(ask(1, 20).memory_ns, 0);
}
END_TEST

/* Against a plain ring: fingerprints that fall into the same chains, noted, missed and overwritten. */
START_TEST(random_notes)
{
	struct {
		uint64_t fingerprint, at_ns;
		enum why_reason reason;
		uint32_t misses;
	} ring[7] = { { 0 } };
	uint32_t cursor = 0;
	struct rng rng;

	teardown();
	ck_assert_int_eq(why_new(7, &why), 0);
	rng_init(&rng, (uint64_t)_i);
	for (uint64_t now = 1; now < 400; now++) {
		uint64_t fp = 1 + rng_below(&rng, 12) * 4;
		bool miss = rng_chance(&rng, 50);
		uint32_t k;

		for (k = 0; k < 7 && ring[k].fingerprint != fp; k++)
			;
		if (k == 7) {
			k = cursor;
			cursor = (cursor + 1) % 7;
			memset(&ring[k], 0, sizeof(ring[k]));
			ring[k].fingerprint = fp;
			ring[k].reason = WHY_NEVER_STORED;
		}
		if (miss) {
			why_miss(why, fp, now);
			ring[k].misses++;
		} else {
			ring[k].reason = (enum why_reason)rng_range(&rng, WHY_DROPPED, WHY_N - 1);
			ring[k].at_ns = now;
			ring[k].misses = 0;
			why_note(why, fp, ring[k].reason, now);
		}
		for (uint32_t i = 0; i < 7; i++) {
			struct why_answer answer;

			if (!ring[i].fingerprint)
				continue;
			why_ask(why, ring[i].fingerprint, now, &answer);
			if (answer.reason != ring[i].reason || answer.misses != ring[i].misses ||
			    (answer.reason != WHY_NEVER_STORED && answer.ago_ns != now - ring[i].at_ns))
				ck_abort_msg("note %u at %llu", i, (unsigned long long)now);
		}
	}
}
END_TEST

START_TEST(every_reason_has_a_text)
{
	for (int i = 0; i < WHY_N; i++) {
		ck_assert_uint_gt(strlen(why_text((enum why_reason)i)), 5);
		for (int k = 0; k < i; k++)
			ck_assert_str_ne(why_text((enum why_reason)i), why_text((enum why_reason)k));
	}
}
END_TEST

START_TEST(unknown_reason_aborts)
{
	why_note(why, 1, WHY_N, 0);
}
END_TEST

START_TEST(text_of_an_unknown_reason_aborts)
{
	why_text(WHY_N);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("why");
	TCase *tc = tcase_create("why");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, tells_the_last_reason);
	tcase_add_test(tc, counts_misses);
	tcase_add_test(tc, misses_are_counted_since_the_note);
	tcase_add_test(tc, forgets_the_oldest);
	tcase_add_test(tc, memory_does_not_grow_back);
	tcase_add_test(tc, without_entries_nothing_is_remembered);
	tcase_add_loop_test(tc, random_notes, 0, 5);
	tcase_add_test(tc, every_reason_has_a_text);
	tcase_add_test_raise_signal(tc, unknown_reason_aborts, SIGABRT);
	tcase_add_test_raise_signal(tc, text_of_an_unknown_reason_aborts, SIGABRT);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
