/* SPDX-License-Identifier: Apache-2.0 */
/* server/dispatch.c: one reply for each frame, whatever is in it.  served_frame() checks that the reply is one, is whole, and answers
 * that very frame. */
#include "server/dispatch.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/metrics.h"
#include "base/rng.h"
#include "server/session.h"
#include "tests/lib/fdcount.h"
#include "tests/lib/served.h"

#define FIRST KVBM__VERB__VERB_HELLO
#define END (KVBM__VERB__VERB_LOAD + 1)

static struct served served;
static struct session *session;
static unsigned fds_before;

static unsigned fds_open(void)
{
	struct fdcount c;

	fdcount_take(getpid(), &c);
	return c.total;
}

static void setup(void)
{
	served_init(&served, NULL, 0); /* what libraries keep open once and for all */
	served_deinit(&served);
	fds_before = fds_open();
	served_init(&served, NULL, 0);
	session = served_open(&served, SERVED_UID);
}

/* Nothing is left of what failed. */
static void teardown(void)
{
	served_deinit(&served);
	ck_assert_uint_eq(fds_open(), fds_before);
}

static bool takes_a_namespace(int verb)
{
	return (verb >= KVBM__VERB__VERB_REGION && verb <= KVBM__VERB__VERB_STAT) || verb >= KVBM__VERB__VERB_ONBOARD;
}

/* ---- each verb ---- */

START_TEST(before_hello)
{
	struct session *fresh = served_session(&served, SERVED_UID);
	int code = served_bytes(&served, fresh, (uint16_t)_i, "", 0);

	/* A hello without a version is one of another version. */
	ck_assert_int_eq(code, _i == KVBM__VERB__VERB_HELLO ? KVBM_E_VERSION : KVBM_E_PROTO);
	ck_assert(served.last);
	ck_assert_int_eq(fresh->sm.state, SESSION_FRESH);
}
END_TEST

START_TEST(garbage)
{
	static const uint8_t bytes[] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
	uint64_t bad = metrics_get(METRIC_frames_bad);
	int code = served_bytes(&served, session, (uint16_t)_i, bytes, sizeof(bytes));

	if (_i == KVBM__VERB__VERB_PING) { /* has no message to decode */
		ck_assert_int_eq(code, 0);
		return;
	}
	ck_assert_int_eq(code, KVBM_E_PROTO);
	ck_assert(served.last);
	ck_assert_uint_eq(metrics_get(METRIC_frames_bad), bad + 1);
}
END_TEST

/* An empty message is one with all defaults. */
START_TEST(nothing_at_all)
{
	static const int codes[END] = {
		[KVBM__VERB__VERB_HELLO] = KVBM_E_INVAL,
		[KVBM__VERB__VERB_ATTACH] = KVBM_E_INVAL,
		[KVBM__VERB__VERB_INFO] = KVBM_E_INVAL,
		[KVBM__VERB__VERB_ADMIN] = KVBM_E_PERM,
		[KVBM__VERB__VERB_PING] = 0,
	};
	int code = served_bytes(&served, session, (uint16_t)_i, "", 0);

	ck_assert_int_eq(code, takes_a_namespace(_i) ? KVBM_E_NOENT : codes[_i]);
	ck_assert(!served.last);
}
END_TEST

/* Every request that names a namespace has its number in field 1. */
START_TEST(a_namespace_that_is_not_attached)
{
	static const uint8_t numbers[][6] = { { 8, 1 }, { 8, 64 }, { 8, 0xff, 0xff, 0xff, 0xff, 0x0f } };

	if (!takes_a_namespace(_i))
		return;
	served_attach(&served, session, "ns", 4096, 1);
	for (int k = 0; k < 3; k++) {
		ck_assert_int_eq(served_bytes(&served, session, (uint16_t)_i, numbers[k], k < 2 ? 2 : 6), KVBM_E_NOENT);
		ck_assert(!served.last);
	}
}
END_TEST

/* Bytes of every kind: what comes back is always a reply, and nothing is left of it. */
START_TEST(random_payloads)
{
	uint8_t bytes[400];
	struct rng rng;

	rng_init(&rng, (uint64_t)_i + 1);
	served_attach(&served, session, "ns", 4096, 2);
	for (int n = 0; n < 2000; n++) {
		uint32_t size = (uint32_t)rng_below(&rng, sizeof(bytes));

		for (uint32_t i = 0; i < size; i++)
			bytes[i] = (uint8_t)(rng_chance(&rng, 30) ? rng_below(&rng, 256) : rng_below(&rng, 3) * 8);
		(void)served_bytes(&served, session, (uint16_t)_i, bytes, size);
	}
	store_check(served.store);
}
END_TEST

/* ---- numbers of verbs ---- */

START_TEST(unknown_verbs_are_answered_and_forgiven)
{
	static const uint16_t verbs[] = { 0, END, END + 1, 255, 0x7fff, 0xffff };

	for (size_t i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++) {
		ck_assert_int_eq(served_bytes(&served, session, verbs[i], "x", 1), KVBM_E_INVAL);
		ck_assert(!served.last);
	}
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_PING, NULL), 0);
}
END_TEST

START_TEST(requests_are_counted)
{
	uint64_t requests = metrics_get(METRIC_requests), ok = metrics_get(METRIC_requests_ok);
	uint64_t had = session->requests, errors = session->errors;

	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_PING, NULL), 0);
	ck_assert_int_eq(served_bytes(&served, session, 99, "", 0), KVBM_E_INVAL);
	ck_assert_uint_eq(metrics_get(METRIC_requests), requests + 2);
	ck_assert_uint_eq(metrics_get(METRIC_requests_ok), ok + 1);
	ck_assert_uint_eq(session->requests, had + 2);
	ck_assert_uint_eq(session->errors, errors + 1);
}
END_TEST

/* ---- sizes ---- */

/* Lists as long as a frame can carry them. */
START_TEST(oversized_lists)
{
	Kvbm__MatchRequest match = KVBM__MATCH_REQUEST__INIT;
	Kvbm__HintRequest hint = KVBM__HINT_REQUEST__INIT;
	Kvbm__StatRequest stat = KVBM__STAT_REQUEST__INIT;
	Kvbm__ReserveRequest reserve = KVBM__RESERVE_REQUEST__INIT;
	Kvbm__CommitRequest commit = KVBM__COMMIT_REQUEST__INIT;
	Kvbm__AbortRequest abort_ = KVBM__ABORT_REQUEST__INIT;
	Kvbm__ReleaseRequest release = KVBM__RELEASE_REQUEST__INIT;
	uint32_t n = KVBM_MAX_KEYS + 1, *numbers = calloc(n, sizeof(*numbers));
	ProtobufCBinaryData keys = { n * 16ul, calloc(n, 16) };

	ck_assert(numbers && keys.data);
	served_attach(&served, session, "ns", 4096, 1);
	match.keys = hint.keys = stat.keys = reserve.keys = keys;
	hint.hint = 1;
	reserve.n = n;
	reserve.lane = KVBM_ALL_LANES;
	abort_.n_slots = abort_.n_generations = release.n_slots = release.n_generations = n;
	abort_.slots = abort_.generations = release.slots = release.generations = numbers;
	commit.n_slots = commit.n_generations = n;
	commit.slots = commit.generations = numbers;
	commit.keys = keys;
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_MATCH, &match.base), KVBM_E_INVAL);
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_HINT, &hint.base), KVBM_E_INVAL);
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_STAT, &stat.base), KVBM_E_INVAL);
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_RESERVE, &reserve.base), KVBM_E_INVAL);
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_COMMIT, &commit.base), KVBM_E_INVAL);
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_ABORT, &abort_.base), KVBM_E_INVAL);
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_RELEASE, &release.base), KVBM_E_INVAL);
	reserve.keys.len = 0;
	reserve.n = UINT32_MAX;
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_RESERVE, &reserve.base), KVBM_E_INVAL);
	ck_assert(!served.last);
	free(numbers);
	free(keys.data);
}
END_TEST

/* A megabyte of the smallest fields there are: it fails to decode, or decodes; memory does not grow. */
START_TEST(a_frame_full_of_small_fields)
{
	static const uint8_t patterns[][3] = { { 0x12, 0x00, 0 },
		                               { 0x08, 0x00, 0 },
		                               { 0x1a, 0x01, 0x00 },
		                               { 0xf8, 0x7f, 0x00 } };
	uint8_t *bytes = malloc(WIRE_MAX_PAYLOAD);
	size_t size = served.service.arena.size;

	ck_assert_ptr_nonnull(bytes);
	for (int k = 0; k < 4; k++) {
		size_t step = k < 2 ? 2 : 3;

		for (size_t i = 0; i + step <= WIRE_MAX_PAYLOAD; i += step)
			memcpy(bytes + i, patterns[k], step);
		for (int verb = FIRST; verb < END; verb++)
			(void)served_bytes(&served, session, (uint16_t)verb, bytes, WIRE_MAX_PAYLOAD / 6 * 6);
	}
	ck_assert_uint_eq(served.service.arena.size, size);
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_PING, NULL), 0);
	free(bytes);
}
END_TEST

/* Processor time of the quickest of some runs. */
static uint64_t commit_ns(const Kvbm__CommitRequest *m)
{
	uint64_t best = UINT64_MAX;

	for (int i = 0; i < 5; i++) {
		struct timespec from, to;
		uint64_t took;

		clock_gettime(CLOCK_THREAD_CPUTIME_ID, &from);
		ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_COMMIT, &m->base), KVBM_E_STALE);
		clock_gettime(CLOCK_THREAD_CPUTIME_ID, &to);
		took = (uint64_t)(to.tv_sec - from.tv_sec) * 1000000000u + (uint64_t)to.tv_nsec - (uint64_t)from.tv_nsec;
		best = took < best ? took : best;
	}
	return best;
}

/* Slot numbers that fall on one place of a table hashed by a multiplication alone: 16384 of them held the loop for half a second. */
START_TEST(numbers_chosen_to_collide_cost_no_more)
{
	Kvbm__CommitRequest m = KVBM__COMMIT_REQUEST__INIT;
	static uint32_t slots[4096], generations[4096];
	static uint8_t keys[4096 * 16];
	uint32_t n = 0;
	uint64_t plain;

	served_attach(&served, session, "ns", 4096, 1);
	memset(keys, 1, sizeof(keys));
	m.lane = KVBM_ALL_LANES;
	m.length = 4096;
	m.slots = slots;
	m.generations = generations;
	m.n_slots = m.n_generations = 4096;
	m.keys = (ProtobufCBinaryData){ sizeof(keys), keys };
	for (; n < 4096; n++)
		slots[n] = n;
	plain = commit_ns(&m);
	n = 0;
	for (uint64_t v = 0; n < 4096 && v < UINT32_MAX; v++)
		if ((uint32_t)(v * 0x9e3779b97f4a7c15ull >> 40) % 32768 == 5)
			slots[n++] = (uint32_t)v;
	ck_assert_uint_eq(n, 4096);
	ck_assert_uint_lt(commit_ns(&m), 10 * plain + 5000000);
}
END_TEST

/* A full output is the connection's end, not a lost reply. */
START_TEST(a_reply_that_finds_no_room_is_a_fault)
{
	struct wire_frame frame = { .head = { .verb = KVBM__VERB__VERB_PING, .id = 1 }, .payload = (const uint8_t *)"" };
	struct wire_out out;

	wire_out_init(&out, WIRE_HEADER_BYTES);
	ck_assert_int_eq(dispatch_frame(&served.service, session, &frame, served.now_ns, &out), -ENOBUFS);
	ck_assert_uint_eq(wire_out_bytes(&out), 0);
	wire_out_deinit(&out);
}
END_TEST

START_TEST(a_reply_with_descriptors_that_finds_no_room)
{
	Kvbm__AttachRequest m = KVBM__ATTACH_REQUEST__INIT;
	struct wire_frame frame = { .head = { .verb = KVBM__VERB__VERB_ATTACH, .id = 1 } };
	struct wire_out out;
	uint8_t payload[64];

	m.name = "ns";
	m.block_bytes = 4096;
	frame.length = (uint32_t)kvbm__attach_request__pack(&m, payload);
	frame.payload = payload;
	wire_out_init(&out, WIRE_HEADER_BYTES + 8);
	ck_assert_int_eq(dispatch_frame(&served.service, session, &frame, served.now_ns, &out), -ENOBUFS);
	wire_out_deinit(&out);
	ck_assert_uint_eq(session->n_holders, 1); /* it ends with the session */
}
END_TEST

START_TEST(the_last_word_has_no_request)
{
	struct wire_out out;
	Kvbm__Reply *r;

	wire_out_init(&out, 4096);
	dispatch_refuse(&served.service, REPLY_LIMIT, "as many as there may be", &out);
	r = kvbm__reply__unpack(NULL, wire_out_bytes(&out) - WIRE_HEADER_BYTES, out.buf + out.head + WIRE_HEADER_BYTES);
	ck_assert_ptr_nonnull(r);
	ck_assert_uint_eq(r->code, KVBM_E_LIMIT);
	ck_assert_str_eq(r->error, "as many as there may be");
	ck_assert_uint_eq(r->boot_id, served.life.boot_id);
	kvbm__reply__free_unpacked(r, NULL);
	wire_out_deinit(&out);
}
END_TEST

static TCase *each_verb(void)
{
	TCase *tc = tcase_create("verbs");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_loop_test(tc, before_hello, FIRST, END);
	tcase_add_loop_test(tc, garbage, FIRST, END);
	tcase_add_loop_test(tc, nothing_at_all, FIRST, END);
	tcase_add_loop_test(tc, a_namespace_that_is_not_attached, FIRST, END);
	tcase_add_loop_test(tc, random_payloads, FIRST, END);
	return tc;
}

static TCase *frames(void)
{
	TCase *tc = tcase_create("frames");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, unknown_verbs_are_answered_and_forgiven);
	tcase_add_test(tc, requests_are_counted);
	tcase_add_test(tc, oversized_lists);
	tcase_add_test(tc, a_frame_full_of_small_fields);
	tcase_add_test(tc, numbers_chosen_to_collide_cost_no_more);
	tcase_add_test(tc, a_reply_that_finds_no_room_is_a_fault);
	tcase_add_test(tc, a_reply_with_descriptors_that_finds_no_room);
	tcase_add_test(tc, the_last_word_has_no_request);
	return tc;
}

int main(void)
{
	Suite *suite = suite_create("dispatch");
	SRunner *runner;
	int failed;

	suite_add_tcase(suite, each_verb());
	suite_add_tcase(suite, frames());
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
