/* SPDX-License-Identifier: Apache-2.0 */
/* Unit tests of client/kvbmctl/workload.c: the statistics that workload.h states, its keys, and what is refused. */
#include "client/kvbmctl/workload.h"

#include <check.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static struct requests rs;
static char error[WORKLOAD_ERROR_SIZE];

static void setup(void)
{
	requests_init(&rs);
}

static void teardown(void)
{
	requests_deinit(&rs);
}

static void make(const char *text)
{
	requests_deinit(&rs);
	ck_assert_msg(workload_make(text, &rs, error) == 0, "%s: %s", text, error);
}

/* Hits of an unlimited cache, as a part of all blocks: what was seen before, up to the first that was not. */
static double hit_rate(void)
{
	struct numbering numbering;
	uint64_t hits = 0;
	bool *seen;

	ck_assert_int_eq(requests_number(&rs, &numbering), 0);
	seen = calloc(numbering.n_distinct, sizeof(*seen));
	ck_assert_ptr_nonnull(seen);
	for (uint32_t i = 0; i < rs.n; i++) {
		const uint32_t *number = numbering.number + rs.list[i].first;
		uint32_t k = 0;

		while (k < rs.list[i].n && seen[number[k]])
			k++;
		hits += k;
		while (k < rs.list[i].n)
			seen[number[k++]] = true;
	}
	free(seen);
	numbering_deinit(&numbering);
	return (double)hits / (double)rs.n_ids;
}

static double blocks_a_request(void)
{
	return (double)rs.n_ids / rs.n;
}

static const struct {
	const char *text;
	double blocks, rate;
	uint32_t longest;
} kinds[] = {
	{ "chat", 31, 0.87, 32768 / 128 },
	{ "agent", 240, 0.95, 131072 / 128 },
	{ "document", 194, 0.87, 131072 / 128 },
};

START_TEST(statistics_as_documented)
{
	make(kinds[_i].text);
	ck_assert_uint_eq(rs.n, 4000);
	ck_assert_msg(fabs(blocks_a_request() - kinds[_i].blocks) < 0.03 * kinds[_i].blocks, "%g", blocks_a_request());
	ck_assert_msg(fabs(hit_rate() - kinds[_i].rate) < 0.03, "%g", hit_rate());
	ck_assert_uint_le(rs.longest, kinds[_i].longest);
}
END_TEST

START_TEST(requests_are_well_formed)
{
	double last = 0;

	make(kinds[_i].text);
	for (uint32_t i = 0; i < rs.n; i++) {
		const struct request *q = &rs.list[i];

		if (q->n == 0 || q->n != q->input_tokens / 128 || q->timestamp_ms < last)
			ck_abort_msg("request %u", i);
		last = q->timestamp_ms;
		for (uint32_t k = 0; k + 1 < q->n; k++)
			if (requests_ids(&rs, i)[k] == requests_ids(&rs, i)[k + 1])
				ck_abort_msg("request %u, block %u", i, k);
	}
}
END_TEST

/* Equal ids are equal blocks with all before them: each id always comes after the same one. */
START_TEST(ids_are_prefixes)
{
	struct numbering numbering;
	uint64_t *before;

	make(kinds[_i].text);
	ck_assert_int_eq(requests_number(&rs, &numbering), 0);
	before = calloc(numbering.n_distinct, sizeof(*before));
	ck_assert_ptr_nonnull(before);
	for (uint32_t i = 0; i < rs.n; i++) {
		for (uint32_t k = 0; k < rs.list[i].n; k++) {
			uint64_t n = rs.list[i].first + k, now = k ? numbering.number[n - 1] + 2ull : 1;

			if (before[numbering.number[n]] && before[numbering.number[n]] != now)
				ck_abort_msg("request %u, block %u", i, k);
			before[numbering.number[n]] = now;
		}
	}
	free(before);
	numbering_deinit(&numbering);
}
END_TEST

START_TEST(the_same_text_is_the_same_stream)
{
	struct requests other;

	requests_init(&other);
	make("chat:requests=500,seed=7");
	ck_assert_int_eq(workload_make("chat:seed=7,requests=500", &other, error), 0);
	ck_assert_uint_eq(rs.n_ids, other.n_ids);
	ck_assert_mem_eq(rs.ids, other.ids, rs.n_ids * sizeof(*rs.ids));
	for (uint32_t i = 0; i < rs.n; i++) {
		const struct request *a = &rs.list[i], *b = &other.list[i];

		if (a->timestamp_ms != b->timestamp_ms || a->input_tokens != b->input_tokens ||
		    a->output_tokens != b->output_tokens || a->n != b->n)
			ck_abort_msg("request %u", i);
	}
	requests_deinit(&other);
	ck_assert_int_eq(workload_make("chat:seed=8,requests=500", &other, error), 0);
	ck_assert(rs.n_ids != other.n_ids || memcmp(rs.ids, other.ids, rs.n_ids * sizeof(*rs.ids)) != 0);
	requests_deinit(&other);
}
END_TEST

START_TEST(keys_do_what_they_say)
{
	double blocks;

	make("chat:requests=2000,turns=1"); /* nothing but system prompts is shared */
	ck_assert_msg(hit_rate() < 0.95 && blocks_a_request() < 18, "%g %g", hit_rate(), blocks_a_request());
	make("chat:requests=1000,system=0,turns=1");
	ck_assert_double_eq(hit_rate(), 0);
	make("chat:requests=1000");
	blocks = blocks_a_request();
	make("chat:requests=1000,block=64");
	ck_assert_msg(fabs(blocks_a_request() / blocks - 2) < 0.1, "%g", blocks_a_request());
	make("chat:requests=1000,max=1024");
	ck_assert_uint_le(rs.longest, 8);
	make("agent:requests=1000,users=1,burst=0"); /* one user: every request is the same conversation's next */
	ck_assert_msg(hit_rate() > 0.9, "%g", hit_rate());
	make("chat:requests=1,first=100000");
	ck_assert_uint_eq(rs.longest, 256);
	make("document:requests=10,input=1,output=0,block=1000000,max=1000000");
	ck_assert_double_eq(blocks_a_request(), 1); /* no request without a block */
}
END_TEST

START_TEST(popularity_is_skewed)
{
	double even, skewed;

	make("chat:requests=2000,turns=1,prompts=1000,zipf=0");
	even = hit_rate();
	make("chat:requests=2000,turns=1,prompts=1000,zipf=2");
	skewed = hit_rate();
	ck_assert_msg(skewed > even + 0.1, "%g %g", even, skewed);
}
END_TEST

START_TEST(wrong_texts_are_refused)
{
	static const struct {
		const char *text, *says;
	} bad[] = {
		{ "", "there are chat, agent and document" },
		{ "chatter", "no workload 'chatter'" },
		{ "chat:turn=5", "no workload has the key 'turn'" },
		{ "chat:turns", "turns must be a number from 1 to 1e+06, not ''" },
		{ "chat:turns=", "turns must be" },
		{ "chat:turns=x", "not 'x'" },
		{ "chat:turns=5x", "not '5x'" },
		{ "chat:turns=nan", "turns must be" },
		{ "chat:turns=inf", "turns must be" },
		{ "chat:turns=0.5", "turns must be" },
		{ "chat:users=2.5", "users must be a whole number" },
		{ "chat:users=0", "users must be" },
		{ "chat:requests=1e9", "requests must be" },
		{ "chat:burst=101", "burst must be" },
		{ "chat:users=5,zipf=-1", "zipf must be" },
		{ "chat:block=1,max=16385", "a request can have 16384" },
		{ "chat:block=128,max=127", "max is shorter than one block" },
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		ck_assert_msg(workload_make(bad[i].text, &rs, error) == WORKLOAD_E_TEXT, "%s", bad[i].text);
		ck_assert_msg(strstr(error, bad[i].says) != NULL, "%s: %s", bad[i].text, error);
		ck_assert_uint_eq(rs.n, 0);
	}
	ck_assert_int_eq(workload_make("chat:requests=5,,seed=2", &rs, error), 0); /* as strtok has it */
}
END_TEST

int main(void)
{
	Suite *s = suite_create("workload");
	TCase *tc = tcase_create("workload");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_loop_test(tc, statistics_as_documented, 0, 3);
	tcase_add_loop_test(tc, requests_are_well_formed, 0, 3);
	tcase_add_loop_test(tc, ids_are_prefixes, 0, 3);
	tcase_add_test(tc, the_same_text_is_the_same_stream);
	tcase_add_test(tc, keys_do_what_they_say);
	tcase_add_test(tc, popularity_is_skewed);
	tcase_add_test(tc, wrong_texts_are_refused);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
