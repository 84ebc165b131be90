/* SPDX-License-Identifier: Apache-2.0 */
/* server/later.c, handle_onboard.c and the reserves that wait: replies that come when copies have ended, or never because their session has. */
#include "server/later.h"

#include <check.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "move/onboard.h"
#include "server/session.h"
#include "tests/lib/fake_lower.h"
#include "tests/lib/fdcount.h"
#include "tests/lib/raw.h"
#include "tests/lib/served.h"

#define BLOCK (UINT64_C(2) << 20) /* one a region; memory has room for eight */
#define KB 16u

static struct served served;
static struct tier_lower *lower;
static struct fake_sums *sums;
static struct raw client;
static uint32_t ns;

static void turns(int n)
{
	while (n-- > 0)
		served_turn(&served);
}

static void settle(void)
{
	fake_lower_settle(lower, sums);
	turns(4);
}

static void connect_to(struct raw *raw)
{
	Kvbm__HelloRequest m = KVBM__HELLO_REQUEST__INIT;
	int pair[2];

	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	memset(raw, 0, sizeof(*raw));
	wire_in_init(&raw->in);
	raw->fd = pair[1];
	sessions_adopt(&served.sessions, pair[0]);
	m.version_major = 1;
	ck_assert(raw_send(raw, KVBM__VERB__VERB_HELLO, &m.base));
	turns(3);
	ck_assert(raw_receive(raw));
	ck_assert_uint_eq(raw->reply->code, 0);
}

/* Is there anything to read? */
static bool is_told(const struct raw *raw)
{
	char byte;

	turns(4);
	return recv(raw->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
}

static int call(struct raw *raw, uint16_t verb, const ProtobufCMessage *m)
{
	ck_assert(raw_send(raw, verb, m));
	turns(4);
	ck_assert(raw_receive(raw));
	return (int)raw->reply->code;
}

static ProtobufCBinaryData keys_from(uint8_t first, uint32_t n)
{
	static uint8_t keys[64 * KB];

	ck_assert_uint_le(n, 64);
	memset(keys, 0, sizeof(keys));
	for (uint32_t i = 0; i < n; i++) {
		keys[i * KB] = (uint8_t)(first + i);
		keys[i * KB + 5] = 1;
	}
	return (ProtobufCBinaryData){ (size_t)n * KB, keys };
}

static void send_reserve(struct raw *raw, uint8_t first, uint32_t n)
{
	Kvbm__ReserveRequest m = KVBM__RESERVE_REQUEST__INIT;

	m.ns = ns;
	m.n = n;
	m.keys = keys_from(first, n);
	m.lane = KVBM_ALL_LANES;
	ck_assert(raw_send(raw, KVBM__VERB__VERB_RESERVE, &m.base));
	turns(4);
}

static void commit(struct raw *raw, uint8_t first)
{
	Kvbm__CommitRequest m = KVBM__COMMIT_REQUEST__INIT;
	uint32_t slots[8], generations[8];
	const Kvbm__ReserveReply *r = raw->reply->reserve;

	ck_assert_uint_eq(raw->reply->code, 0);
	ck_assert_uint_le(r->n_slots, 8);
	m.ns = ns;
	m.lane = KVBM_ALL_LANES;
	m.length = BLOCK;
	m.n_slots = m.n_generations = r->n_slots;
	m.slots = memcpy(slots, r->slots, r->n_slots * sizeof(*slots));
	m.generations = memcpy(generations, r->generations, r->n_slots * sizeof(*generations));
	m.keys = keys_from(first, (uint32_t)r->n_slots);
	ck_assert_int_eq(call(raw, KVBM__VERB__VERB_COMMIT, &m.base), 0);
}

/* Key by key, so that the first is the coldest; the tier works. */
static void put(struct raw *raw, uint8_t first, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		send_reserve(raw, (uint8_t)(first + i), 1);
		while (!is_told(raw) && (fake_lower_release(lower) || fake_sums_release(sums)))
			;
		ck_assert(raw_receive(raw));
		commit(raw, (uint8_t)(first + i));
	}
}

static void send_onboard(struct raw *raw, uint8_t first, uint32_t n, bool hold)
{
	Kvbm__OnboardRequest m = KVBM__ONBOARD_REQUEST__INIT;

	m.ns = ns;
	m.keys = keys_from(first, n);
	m.hold = hold;
	m.timeout_ms = 10000;
	ck_assert(raw_send(raw, KVBM__VERB__VERB_ONBOARD, &m.base));
	turns(4);
}

static uint32_t attach(struct raw *raw)
{
	Kvbm__AttachRequest m = KVBM__ATTACH_REQUEST__INIT;

	m.name = (char *)"a";
	m.block_bytes = BLOCK;
	m.lanes = 1;
	m.key_bytes = KB;
	ck_assert_int_eq(call(raw, KVBM__VERB__VERB_ATTACH, &m.base), 0);
	return raw->reply->attach->ns;
}

static void setup(void)
{
	struct store_config with = { .max_transfers = 8 };

	log_set_level("error");
	lower = fake_lower_new(4, 16 * BLOCK, true);
	sums = fake_sums_new(0, true);
	with.lower = lower;
	with.calculator = fake_sums_calculator(sums);
	served_init_lower(&served, &with);
	store_lower_user(served.store, &lower->user);
	fake_lower_recover(lower, NULL, true);
	connect_to(&client);
	ns = attach(&client);
	/* Keys 1..8 are below only, 9..16 in host memory. */
	put(&client, 1, 16);
	settle();
}

static void teardown(void)
{
	struct ns_report r;

	settle();
	store_report(served.store, 0, &r);
	ck_assert_uint_eq(r.transfers, 0);
	raw_close(&client);
	turns(4);
	store_stop_moving(served.store);
	fake_lower_unstick(lower);
	settle();
	ck_assert(!store_is_moving(served.store));
	served_deinit(&served);
	lower = fake_lower_free(lower);
	sums = fake_sums_free(sums);
}

static struct ns_report report(void)
{
	struct ns_report r;

	store_check(served.store);
	store_report(served.store, 0, &r);
	return r;
}

/* ---- onboard ---- */

START_TEST(an_onboard_is_answered_when_its_copies_have_come)
{
	send_onboard(&client, 1, 4, true);
	ck_assert(!is_told(&client));
	settle();
	ck_assert(raw_receive(&client));
	ck_assert_uint_eq(client.reply->code, 0);
	ck_assert(client.reply->onboard);
	ck_assert_uint_eq(client.reply->onboard->hits, 4);
	ck_assert_uint_eq(client.reply->onboard->n_slots, 4);
	for (int i = 0; i < 4; i++)
		ck_assert_uint_eq(client.reply->onboard->statuses.data[i], 1);
	ck_assert_uint_eq(report().holds, 4);
}
END_TEST

START_TEST(what_is_here_or_nowhere_is_answered_at_once)
{
	send_onboard(&client, 13, 8, false); /* 13..16 are here, 17 never was */
	ck_assert(is_told(&client));
	ck_assert(raw_receive(&client));
	ck_assert_uint_eq(client.reply->onboard->hits, 4);
	ck_assert_uint_eq(client.reply->onboard->statuses.data[4], 2);
	ck_assert_uint_eq(client.reply->onboard->slots[4], 0xffffffff);
	send_onboard(&client, 1, 0, false);
	ck_assert(raw_receive(&client));
	ck_assert(client.reply->code != 0 || client.reply->onboard->hits == 0);
}
END_TEST

/* Other requests are answered meanwhile: replies are matched by their number. */
START_TEST(what_comes_later_does_not_hold_up_others)
{
	send_onboard(&client, 1, 2, false);
	ck_assert_int_eq(call(&client, KVBM__VERB__VERB_PING, NULL), 0);
	ck_assert(client.reply->onboard == NULL);
	settle();
	ck_assert(raw_receive(&client));
	ck_assert_uint_eq(client.reply->onboard->hits, 2);
}
END_TEST

/* After each number of steps the client goes. */
START_TEST(a_session_that_ends_takes_its_replies_with_it)
{
	for (int steps = 0; steps < 12; steps++) {
		struct raw other;

		connect_to(&other);
		ns = attach(&other);
		send_onboard(&other, 1, 4, true);
		send_onboard(&other, 1, 6, false);
		send_reserve(&other, 100, 8);
		for (int i = 0; i < steps; i++)
			(void)(fake_lower_release(lower) || fake_sums_release(sums));
		raw_close(&other);
		turns(6);
		store_check(served.store);
		settle();
		ck_assert_uint_eq(served.sessions.n, 1);
		ck_assert_uint_eq(report().holds, 0);
		ck_assert_uint_eq(report().partial, 0);
	}
	ns = 0;
}
END_TEST

START_TEST(so_many_wait_and_no_more)
{
	fake_lower_fail(lower, false, FAKE_LOWER_STUCK, 1, UINT32_MAX);
	for (uint32_t i = 0; i < LATER_MAX + 5; i++)
		send_onboard(&client, 1, 1, false);
	ck_assert(is_told(&client));
	for (int i = 0; i < 5; i++) {
		ck_assert(raw_receive(&client));
		ck_assert_uint_eq(client.reply->code, KVBM_E_LIMIT);
	}
	ck_assert(!is_told(&client));
	fake_lower_unstick(lower);
	settle();
	for (uint32_t i = 0; i < LATER_MAX; i++) {
		ck_assert(raw_receive(&client));
		ck_assert_uint_eq(client.reply->onboard->hits, 1);
	}
	send_onboard(&client, 1, 1, false);
	ck_assert(raw_receive(&client));
	ck_assert_uint_eq(client.reply->onboard->hits, 1);
}
END_TEST

/* Whoever does not read what it asked for is disconnected, and nobody else notices. */
START_TEST(a_client_that_does_not_read_ends)
{
	struct raw other;
	int small = 4096;

	connect_to(&other);
	ns = attach(&other);
	(void)setsockopt(other.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
	for (int round = 0; round < 4000 && served.sessions.n == 2; round++) {
		for (int i = 0; i < 16 && served.sessions.n == 2; i++) {
			Kvbm__OnboardRequest m = KVBM__ONBOARD_REQUEST__INIT;

			m.ns = ns;
			m.keys = keys_from(1, 64);
			m.timeout_ms = 10000;
			if (!raw_send(&other, KVBM__VERB__VERB_ONBOARD, &m.base))
				break;
			turns(1);
		}
		settle();
		if (served.sessions.n_all == 2 && round > 200)
			break; /* it is not read from any more: that bounds it as well */
	}
	store_check(served.store);
	raw_close(&other);
	turns(6);
	settle();
	ns = 0;
	ck_assert_int_eq(call(&client, KVBM__VERB__VERB_PING, NULL), 0);
}
END_TEST

START_TEST(the_deadline_is_answered)
{
	fake_lower_fail(lower, false, FAKE_LOWER_STUCK, 2, 1);
	send_onboard(&client, 1, 3, true);
	settle();
	ck_assert(!is_told(&client));
	store_tick(served.store, UINT64_MAX);
	ck_assert(is_told(&client));
	ck_assert(raw_receive(&client));
	ck_assert_uint_eq(client.reply->onboard->hits, 1);
	ck_assert_uint_eq(client.reply->onboard->statuses.data[1], 5);
	ck_assert_uint_eq(report().holds, 1);
	fake_lower_unstick(lower);
}
END_TEST

START_TEST(prefetch_is_answered_at_once)
{
	Kvbm__PrefetchRequest m = KVBM__PREFETCH_REQUEST__INIT;
	uint64_t looked_up = report().looked_up;

	m.ns = ns;
	m.keys = keys_from(1, 2);
	ck_assert_int_eq(call(&client, KVBM__VERB__VERB_PREFETCH, &m.base), 0);
	ck_assert_uint_eq(client.reply->count->n, 2);
	settle();
	ck_assert(!is_told(&client));
	send_onboard(&client, 1, 2, false);
	ck_assert(is_told(&client));
	ck_assert(raw_receive(&client));
	ck_assert_uint_eq(client.reply->onboard->hits, 2);
	ck_assert_uint_eq(report().looked_up - looked_up, 2);
}
END_TEST

/* ---- reserve ---- */

START_TEST(a_reserve_waits_for_room)
{
	put(&client, 30, 8);
	settle();
	send_reserve(&client, 50, 7);
	ck_assert(!is_told(&client));
	while (!is_told(&client) && (fake_lower_release(lower) || fake_sums_release(sums)))
		;
	ck_assert(raw_receive(&client));
	ck_assert_uint_eq(client.reply->code, 0);
	ck_assert_uint_eq(client.reply->reserve->reserved, 7);
	commit(&client, 50);
}
END_TEST

START_TEST(a_reserve_that_waited_long_enough_drops_what_it_must)
{
	put(&client, 30, 8);
	settle();
	fake_lower_fail(lower, true, FAKE_LOWER_STUCK, 1, UINT32_MAX);
	send_reserve(&client, 50, 3);
	settle();
	ck_assert(!is_told(&client));
	store_tick(served.store, UINT64_MAX);
	ck_assert(is_told(&client));
	ck_assert(raw_receive(&client));
	ck_assert_uint_eq(client.reply->code, 0);
	ck_assert_uint_eq(client.reply->reserve->reserved, 3);
	commit(&client, 50);
	fake_lower_fail(lower, true, FAKE_LOWER_NONE, 1, 1);
	fake_lower_unstick(lower);
}
END_TEST

/* The daemon stops: whoever waits gets an answer. */
START_TEST(the_end_answers_everybody)
{
	fake_lower_fail(lower, true, FAKE_LOWER_STUCK, 1, UINT32_MAX);
	fake_lower_fail(lower, false, FAKE_LOWER_STUCK, 1, UINT32_MAX);
	send_onboard(&client, 1, 2, false);
	send_reserve(&client, 50, 5);
	ck_assert(!is_told(&client));
	store_stop_moving(served.store);
	for (int i = 0; i < 2; i++) {
		turns(4);
		ck_assert(raw_receive(&client));
		/* What is stuck leaves the reserve too little room. */
		ck_assert(client.reply->onboard || client.reply->code == KVBM_E_NOSPACE);
	}
	fake_lower_unstick(lower);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("later");
	TCase *t = tcase_create("later");
	SRunner *sr;
	int failed;

	tcase_set_timeout(t, 30);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, an_onboard_is_answered_when_its_copies_have_come);
	tcase_add_test(t, what_is_here_or_nowhere_is_answered_at_once);
	tcase_add_test(t, what_comes_later_does_not_hold_up_others);
	tcase_add_test(t, a_session_that_ends_takes_its_replies_with_it);
	tcase_add_test(t, so_many_wait_and_no_more);
	tcase_add_test(t, a_client_that_does_not_read_ends);
	tcase_add_test(t, the_deadline_is_answered);
	tcase_add_test(t, prefetch_is_answered_at_once);
	tcase_add_test(t, a_reserve_waits_for_room);
	tcase_add_test(t, a_reserve_that_waited_long_enough_drops_what_it_must);
	tcase_add_test(t, the_end_answers_everybody);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
