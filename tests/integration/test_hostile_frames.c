/* SPDX-License-Identifier: Apache-2.0 */
/* Malformed and hostile input [27, 28]: an error or a disconnect for that peer, nothing for the others, nothing leaked. */
#include <check.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/rng.h"
#include "tests/lib/cache.h"
#include "tests/lib/daemon_proc.h"
#include "tests/lib/must.h"
#include "tests/lib/raw.h"
#include "tests/lib/scale.h"

#define BLOCK 4096u
#define N_VERBS (KVBM__VERB__VERB_LOAD + 1u)
#define MANY_FDS 253 /* SCM_MAX_FD */

static const char *const flags[] = { "--g2.size=8M", "--g2.region_size=2M", "--g2.huge_pages=never",
	                             "--limits.frame_timeout=300ms", NULL };

static struct daemon_proc d;
static struct daemon_baseline baseline;
static struct cache honest;

static void setup(void)
{
	struct kvbm_model model = cache_model("honest", BLOCK, 1);

	daemon_start(&d, flags);
	cache_open(&honest, d.socket, &model);
	must_eq(cache_store(&honest, 0, 32), 32);
	daemon_baseline(&d, &baseline);
}

/* The honest one is served as ever, and nothing is left of the others. */
static void unharmed(void)
{
	must_eq(cache_verify(&honest, 0, 32), 32);
	cache_ok(&honest, kvbm_ping(honest.kvbm));
	daemon_check(&d, &baseline);
}

static void teardown(void)
{
	unharmed();
	cache_close(&honest);
	daemon_deinit(&d);
}

/* ---- frames ---- */

struct bad_frame {
	const char *name;
	uint32_t offset, size; /* of the change to the header of a ping */
	uint64_t value;
};

static const struct bad_frame bad_frames[] = {
	{ "magic", 0, 4, 0x4b564231 },
	{ "no magic", 0, 4, 0 },
	{ "reply flag", 6, 2, 1 },
	{ "unknown flag", 6, 2, 0x8000 },
	{ "one byte too long", 8, 4, WIRE_MAX_PAYLOAD + 1 },
	{ "as long as can be said", 8, 4, UINT32_MAX },
	{ "descriptors that are not there", 12, 2, 1 },
	{ "more descriptors than may be", 12, 2, WIRE_MAX_FDS + 1 },
	{ "not zero", 14, 2, 1 },
};
#define N_BAD_FRAMES ((int)(sizeof(bad_frames) / sizeof(bad_frames[0])))

START_TEST(a_bad_frame_ends_the_connection)
{
	const struct bad_frame *bad = &bad_frames[_i];

	for (int greeted = 0; greeted < 2; greeted++) {
		uint8_t header[WIRE_HEADER_BYTES];
		struct raw raw;
		int code;

		if (greeted)
			raw_hello(&raw, d.socket);
		else
			raw_open(&raw, d.socket);
		raw_header(header, KVBM__VERB__VERB_PING, 0, 1);
		memcpy(header + bad->offset, &bad->value, bad->size);
		must(raw_write(&raw, header, sizeof(header)));
		code = raw_await_close(&raw);
		if (code != KVBM_E_PROTO)
			fprintf(stderr, "%s: code %d\n", bad->name, code);
		must_eq(code, KVBM_E_PROTO);
		raw_close(&raw);
	}
}
END_TEST

START_TEST(cut_off_anywhere)
{
	Kvbm__HelloRequest hello = KVBM__HELLO_REQUEST__INIT;
	uint8_t frame[WIRE_HEADER_BYTES + 256];
	uint32_t size;
	struct raw raw;

	hello.version_major = 1;
	hello.name = (char *)"cut off";
	size = (uint32_t)protobuf_c_message_get_packed_size(&hello.base);
	raw_header(frame, KVBM__VERB__VERB_HELLO, size, 1);
	protobuf_c_message_pack(&hello.base, frame + WIRE_HEADER_BYTES);
	for (uint32_t n = 0; n < WIRE_HEADER_BYTES + size; n++) {
		raw_open(&raw, d.socket);
		must(raw_write(&raw, frame, n));
		if (n % 2)
			must(shutdown(raw.fd, SHUT_WR) == 0 && raw_await_close(&raw) == -1);
		raw_close(&raw);
	}
}
END_TEST

START_TEST(hello_comes_first_and_once)
{
	Kvbm__HelloRequest hello = KVBM__HELLO_REQUEST__INIT;
	struct raw raw;
	char name[65];

	for (uint16_t verb = 0; verb < N_VERBS + 3; verb++) {
		if (verb == KVBM__VERB__VERB_HELLO)
			continue;
		raw_open(&raw, d.socket);
		must(raw_send(&raw, verb, NULL));
		must_eq(raw_await_close(&raw), KVBM_E_PROTO);
		raw_close(&raw);
	}
	hello.version_major = 1;
	raw_hello(&raw, d.socket);
	must_eq(raw_call(&raw, KVBM__VERB__VERB_HELLO, &hello.base), KVBM_E_INVAL);
	must_eq(raw_call(&raw, KVBM__VERB__VERB_PING, NULL), 0);
	raw_close(&raw);

	raw_open(&raw, d.socket);
	hello.version_major = 77;
	must_eq(raw_call(&raw, KVBM__VERB__VERB_HELLO, &hello.base), KVBM_E_VERSION);
	must_contain(raw.reply->error, "77");
	must_contain(raw.reply->error, "1.");
	must_eq(raw_await_close(&raw), -1);
	raw_close(&raw);

	raw_open(&raw, d.socket);
	hello.version_major = 1;
	memset(name, 'n', 64);
	name[64] = '\0';
	hello.name = name;
	must_eq(raw_call(&raw, KVBM__VERB__VERB_HELLO, &hello.base), KVBM_E_INVAL);
	name[63] = '\0';
	must_eq(raw_call(&raw, KVBM__VERB__VERB_HELLO, &hello.base), 0);
	raw_close(&raw);
}
END_TEST

START_TEST(unknown_verbs_are_answered)
{
	static const uint16_t verbs[] = { 0, N_VERBS, N_VERBS + 1, 1000, UINT16_MAX };
	struct raw raw;

	raw_hello(&raw, d.socket);
	for (size_t i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++)
		must_eq(raw_call(&raw, verbs[i], NULL), KVBM_E_INVAL);
	must_eq(raw_call(&raw, KVBM__VERB__VERB_PING, NULL), 0);
	raw_close(&raw);
}
END_TEST

START_TEST(what_does_not_decode_ends_the_connection)
{
	static uint8_t payload[WIRE_MAX_PAYLOAD];
	struct raw raw;

	memset(payload, 0xff, sizeof(payload));
	for (uint16_t verb = 1; verb < N_VERBS; verb++) {
		if (verb == KVBM__VERB__VERB_PING)
			continue;
		for (uint32_t size = 1; size <= sizeof(payload); size *= 32) {
			if (verb == KVBM__VERB__VERB_HELLO)
				raw_open(&raw, d.socket);
			else
				raw_hello(&raw, d.socket);
			must(raw_send_bytes(&raw, verb, payload, size));
			must_eq(raw_await_close(&raw), KVBM_E_PROTO);
			raw_close(&raw);
		}
	}
}
END_TEST

/* Random requests that do decode now and then: one reply each, or the end. */
START_TEST(noise_is_answered_or_ended)
{
	unsigned frames = SCALE(6000, 800), replies = 0, ends = 0;
	uint8_t payload[300];
	struct rng rng;
	struct raw raw;

	rng_init(&rng, 27);
	raw_hello(&raw, d.socket);
	(void)raw_attach(&raw, "noise", BLOCK, 0);
	for (unsigned i = 0; i < frames; i++) {
		uint32_t size = (uint32_t)rng_below(&rng, sizeof(payload));

		rng_fill(&rng, payload, size);
		/* Field numbers and types that exist, so that some of it gets far. */
		for (uint32_t at = 0; at < size; at += 1 + (uint32_t)rng_below(&rng, 12))
			payload[at] = (uint8_t)(rng_range(&rng, 1, 8) << 3 | (rng_chance(&rng, 50) ? 0 : 2));
		if (raw_send_bytes(&raw, (uint16_t)rng_range(&rng, 2, N_VERBS), payload, size) && raw_receive(&raw)) {
			must_cmp(raw.reply->code, <, KVBM_E_MAX);
			replies += raw.reply->code != KVBM_E_PROTO;
			if (raw.reply->code != KVBM_E_PROTO)
				continue;
			must(!raw_receive(&raw));
		}
		ends++;
		raw_close(&raw);
		raw_hello(&raw, d.socket);
		(void)raw_attach(&raw, "noise", BLOCK, 0);
	}
	raw_close(&raw);
	must_cmp(replies, >, 0);
	must_cmp(ends, >, 0);
	/* Noise may have made namespaces, which stay: they are the administrator's now. */
	must_cmp(kvbm_admin(daemon_monitor(&d), "flush", NULL, NULL, 0, 0, NULL), >=, 0);
	must_eq(cache_store(&honest, 0, 32), 32);
	daemon_await_metric(&d, "sessions", 2);
	must_eq(daemon_metric(&d, "leases"), 0);
	daemon_baseline(&d, &baseline);
}
END_TEST

/* ---- descriptors ---- */

/* Ten frames with as many descriptors as a message can carry, @size bytes of each.  False: the kernel does not let it. */
static bool send_fds(const struct raw *raw, uint32_t size)
{
	union {
		char buf[CMSG_SPACE(sizeof(int) * MANY_FDS)];
		struct cmsghdr align;
	} control = { 0 };
	uint8_t header[WIRE_HEADER_BYTES];
	struct iovec iov = { header, size };
	struct msghdr msg = { .msg_iov = &iov,
		              .msg_iovlen = 1,
		              .msg_control = control.buf,
		              .msg_controllen = sizeof(control.buf) };
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
	int fds[MANY_FDS], null = open("/dev/null", O_RDONLY);
	bool sent = false;

	must(null >= 0);
	for (int i = 0; i < MANY_FDS; i++)
		fds[i] = null;
	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(fds));
	memcpy(CMSG_DATA(cmsg), fds, sizeof(fds));
	raw_header(header, KVBM__VERB__VERB_PING, 0, 9);
	for (int i = 0; i < 10; i++)
		sent |= sendmsg(raw->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0;
	close(null);
	return sent;
}

START_TEST(descriptors_are_refused)
{
	unsigned delivered = 0;
	struct raw raw;

	for (int i = 0; i < 20; i++) {
		raw_hello(&raw, d.socket);
		if (send_fds(&raw, i % 2 ? WIRE_HEADER_BYTES : 3)) {
			delivered++;
			must_eq(raw_await_close(&raw), KVBM_E_PROTO);
		}
		raw_close(&raw);
	}
	/* Before the daemon has taken the connection up, the kernel cannot know that it wants none. */
	for (int i = 0; i < 20; i++) {
		must(kill(d.pid, SIGSTOP) == 0);
		raw_open(&raw, d.socket);
		if (send_fds(&raw, i % 2 ? WIRE_HEADER_BYTES : 3))
			delivered++;
		must(kill(d.pid, SIGCONT) == 0);
		must_eq(raw_await_close(&raw), KVBM_E_PROTO);
		raw_close(&raw);
	}
	must_cmp(delivered, >, 0);
}
END_TEST

/* ---- slow ones ---- */

START_TEST(one_byte_at_a_time_is_too_slow)
{
	uint8_t frame[WIRE_HEADER_BYTES + 4096] = { 0 };
	struct raw raw;

	for (int greeted = 0; greeted < 2; greeted++) {
		uint32_t sent = 0;

		if (greeted)
			raw_hello(&raw, d.socket);
		else
			raw_open(&raw, d.socket);
		raw_header(frame, KVBM__VERB__VERB_STAT, 4096, 1);
		/* Nothing comes until it is closed; between two bytes is the longest wait for that. */
		while (wire_wait(raw.fd, POLLIN, 20) == WIRE_E_AGAIN) {
			must_cmp(sent, <, 4000);
			(void)raw_write(&raw, &frame[sent++], 1);
		}
		must_eq(raw_await_close(&raw), -1);
		raw_close(&raw);
	}
}
END_TEST

START_TEST(half_open_ones_are_closed)
{
	struct raw raws[40];
	uint8_t header[WIRE_HEADER_BYTES];

	raw_header(header, KVBM__VERB__VERB_HELLO, 10, 1);
	for (int i = 0; i < 40; i++) {
		raw_open(&raws[i], d.socket);
		if (i % 2)
			must(raw_write(&raws[i], header, (size_t)(i % 20)));
	}
	must_eq(cache_verify(&honest, 0, 32), 32);
	cache_ok(&honest, kvbm_ping(honest.kvbm));
	for (int i = 0; i < 40; i++) {
		must_eq(raw_await_close(&raws[i]), -1);
		raw_close(&raws[i]);
	}
}
END_TEST

/* It asks for large answers and never reads one. */
START_TEST(who_does_not_read_is_disconnected)
{
	static uint8_t keys[16u * KVBM_MAX_KEYS];
	Kvbm__StatRequest request = KVBM__STAT_REQUEST__INIT;
	uint64_t evicted = daemon_metric(&d, "sessions_evicted_total"), most = 0;
	struct fdcount before, now;
	uint8_t *frame;
	struct raw raw;
	uint32_t size;
	ssize_t n;

	raw_hello(&raw, d.socket);
	request.ns = raw_attach(&raw, "honest", BLOCK, 0);
	request.keys = (ProtobufCBinaryData){ sizeof(keys), keys };
	size = (uint32_t)protobuf_c_message_get_packed_size(&request.base);
	frame = malloc(WIRE_HEADER_BYTES + size);
	must(frame);
	raw_header(frame, KVBM__VERB__VERB_STAT, size, 1);
	protobuf_c_message_pack(&request.base, frame + WIRE_HEADER_BYTES);
	fdcount_take(d.pid, &before);
	for (uint32_t at = 0;;) {
		n = send(raw.fd, frame + at, WIRE_HEADER_BYTES + size - at, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n > 0) {
			at = (at + (uint32_t)n) % (WIRE_HEADER_BYTES + size);
			continue;
		}
		if (errno != EAGAIN)
			break;
		must_eq(cache_verify(&honest, 0, 32), 32);
		cache_ok(&honest, kvbm_ping(honest.kvbm));
		fdcount_take(d.pid, &now);
		most = now.resident_kib > most ? now.resident_kib : most;
		(void)wire_wait(raw.fd, POLLOUT, 10);
	}
	must_cmp(daemon_metric(&d, "sessions_evicted_total"), ==, evicted + 1);
	must_cmp(most, <, before.resident_kib + 4096 + SCALE(0, 65536));
	free(frame);
	raw_close(&raw);
}
END_TEST

/* ---- very many ---- */

START_TEST(connections_come_and_go)
{
	struct raw raw;

	for (unsigned i = 0; i < SCALE(4000, 500); i++) {
		if (i % 3 == 0)
			raw_hello(&raw, d.socket);
		else
			raw_open(&raw, d.socket);
		raw_close(&raw);
	}
}
END_TEST

START_TEST(more_connections_than_may_be)
{
	static struct raw raws[1100];
	struct rlimit limit = { 4096, 4096 };
	unsigned refused = 0, n = sizeof(raws) / sizeof(raws[0]);
	struct raw churn;

	(void)setrlimit(RLIMIT_NOFILE, &limit);
	for (unsigned i = 0; i < n; i++)
		raw_open(&raws[i], d.socket);
	must_eq(cache_verify(&honest, 0, 32), 32);
	cache_ok(&honest, kvbm_ping(honest.kvbm));
	for (unsigned i = 0; i < n; i++) {
		refused += raw_await_close(&raws[i]) == KVBM_E_LIMIT;
		raw_close(&raws[i]);
	}
	must_cmp(refused, >=, n - 256);
	must_cmp(daemon_metric(&d, "sessions_refused_total"), >=, refused);
	raw_hello(&churn, d.socket);
	raw_close(&churn);
}
END_TEST

/* ---- out of bounds ---- */

START_TEST(lists_too_long_are_refused)
{
	static uint32_t slots[100000];
	static uint8_t keys[16u * (KVBM_MAX_KEYS + 1)];
	Kvbm__ReleaseRequest release = KVBM__RELEASE_REQUEST__INIT;
	Kvbm__AbortRequest abort_request = KVBM__ABORT_REQUEST__INIT;
	Kvbm__CommitRequest commit = KVBM__COMMIT_REQUEST__INIT;
	Kvbm__MatchRequest match = KVBM__MATCH_REQUEST__INIT;
	Kvbm__StatRequest stat_request = KVBM__STAT_REQUEST__INIT;
	Kvbm__ReserveRequest reservation = KVBM__RESERVE_REQUEST__INIT;
	struct raw raw;
	uint32_t ns;

	raw_hello(&raw, d.socket);
	ns = raw_attach(&raw, "honest", BLOCK, 0);
	release.ns = abort_request.ns = commit.ns = match.ns = stat_request.ns = reservation.ns = ns;
	release.slots = release.generations = slots;
	abort_request.slots = abort_request.generations = slots;
	commit.slots = commit.generations = slots;
	commit.length = BLOCK;
	for (size_t n = KVBM_MAX_KEYS + 1; n <= 100000; n += 83615) {
		release.n_slots = release.n_generations = n;
		abort_request.n_slots = abort_request.n_generations = n;
		commit.n_slots = commit.n_generations = n;
		must_eq(raw_call(&raw, KVBM__VERB__VERB_RELEASE, &release.base), KVBM_E_INVAL);
		must_eq(raw_call(&raw, KVBM__VERB__VERB_ABORT, &abort_request.base), KVBM_E_INVAL);
		must_eq(raw_call(&raw, KVBM__VERB__VERB_COMMIT, &commit.base), KVBM_E_INVAL);
	}
	release.n_slots = 5;
	release.n_generations = 4;
	must_eq(raw_call(&raw, KVBM__VERB__VERB_RELEASE, &release.base), KVBM_E_INVAL);
	match.keys = stat_request.keys = reservation.keys = (ProtobufCBinaryData){ sizeof(keys), keys };
	must_eq(raw_call(&raw, KVBM__VERB__VERB_MATCH, &match.base), KVBM_E_INVAL);
	must_eq(raw_call(&raw, KVBM__VERB__VERB_STAT, &stat_request.base), KVBM_E_INVAL);
	reservation.n = KVBM_MAX_KEYS + 1;
	must_eq(raw_call(&raw, KVBM__VERB__VERB_RESERVE, &reservation.base), KVBM_E_INVAL);
	match.keys.len = stat_request.keys.len = reservation.keys.len = 17; /* not a whole number of keys */
	must_eq(raw_call(&raw, KVBM__VERB__VERB_MATCH, &match.base), KVBM_E_INVAL);
	must_eq(raw_call(&raw, KVBM__VERB__VERB_STAT, &stat_request.base), KVBM_E_INVAL);
	must_eq(raw_call(&raw, KVBM__VERB__VERB_RESERVE, &reservation.base), KVBM_E_INVAL);
	reservation.keys.len = 0;
	for (uint64_t n = KVBM_MAX_KEYS + 1; n <= UINT32_MAX; n *= 7) {
		reservation.n = (uint32_t)n;
		must_eq(raw_call(&raw, KVBM__VERB__VERB_RESERVE, &reservation.base), KVBM_E_INVAL);
	}
	match.ns = 1000;
	must_eq(raw_call(&raw, KVBM__VERB__VERB_MATCH, &match.base), KVBM_E_NOENT);
	raw_close(&raw);
}
END_TEST

START_TEST(slots_of_others_are_not_touched)
{
	Kvbm__ReleaseRequest release = KVBM__RELEASE_REQUEST__INIT;
	Kvbm__AbortRequest abort_request = KVBM__ABORT_REQUEST__INIT;
	Kvbm__CommitRequest commit = KVBM__COMMIT_REQUEST__INIT;
	struct kvbm_span reserved[4], held[4];
	uint8_t keys[4 * KVBM_KEY_MAX];
	struct raw raw;
	uint32_t slot, generation;

	cache_keys(&honest, 900, 4, keys);
	must_eq(kvbm_reserve(honest.ns, KVBM_ALL_LANES, keys, 4, reserved, NULL), 4);
	must_eq(cache_hold(&honest, 0, 4, held), 4);
	raw_hello(&raw, d.socket);
	release.ns = abort_request.ns = commit.ns = raw_attach(&raw, "honest", BLOCK, 0);
	release.slots = abort_request.slots = commit.slots = &slot;
	release.generations = abort_request.generations = commit.generations = &generation;
	release.n_slots = release.n_generations = 1;
	abort_request.n_slots = abort_request.n_generations = 1;
	commit.n_slots = commit.n_generations = 1;
	commit.keys = (ProtobufCBinaryData){ 16, keys };
	commit.lane = abort_request.lane = KVBM_ALL_LANES;
	commit.length = BLOCK;
	for (slot = 0; slot < 4096; slot++) {
		for (generation = 0; generation < 4; generation++) {
			must_eq(raw_call(&raw, KVBM__VERB__VERB_RELEASE, &release.base), KVBM_E_NOTHELD);
			must_eq(raw_call(&raw, KVBM__VERB__VERB_ABORT, &abort_request.base), KVBM_E_STALE);
			must_eq(raw_call(&raw, KVBM__VERB__VERB_COMMIT, &commit.base), KVBM_E_STALE);
		}
		if (slot == 64)
			slot = 4000;
	}
	for (slot = UINT32_MAX - 2; slot != 0; slot++) {
		must_eq(raw_call(&raw, KVBM__VERB__VERB_RELEASE, &release.base), KVBM_E_NOTHELD);
		must_eq(raw_call(&raw, KVBM__VERB__VERB_ABORT, &abort_request.base), KVBM_E_STALE);
		must_eq(raw_call(&raw, KVBM__VERB__VERB_COMMIT, &commit.base), KVBM_E_STALE);
	}
	raw_close(&raw);
	for (uint32_t i = 0; i < 4; i++)
		cache_fill(&honest, &reserved[i], keys + (size_t)i * honest.key_bytes, 0);
	must_eq(kvbm_commit(honest.ns, KVBM_ALL_LANES, reserved, keys, 4, NULL, 0), 4);
	must_eq(kvbm_release(honest.ns, held, 4), 4);
	must_eq(cache_verify(&honest, 900, 4), 4);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("hostile frames");
	TCase *tc = tcase_create("frames");
	SRunner *sr = srunner_create(s);
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 240);
	tcase_add_loop_test(tc, a_bad_frame_ends_the_connection, 0, N_BAD_FRAMES);
	tcase_add_test(tc, cut_off_anywhere);
	tcase_add_test(tc, hello_comes_first_and_once);
	tcase_add_test(tc, unknown_verbs_are_answered);
	tcase_add_test(tc, what_does_not_decode_ends_the_connection);
	tcase_add_test(tc, noise_is_answered_or_ended);
	tcase_add_test(tc, descriptors_are_refused);
	tcase_add_test(tc, one_byte_at_a_time_is_too_slow);
	tcase_add_test(tc, half_open_ones_are_closed);
	tcase_add_test(tc, who_does_not_read_is_disconnected);
	tcase_add_test(tc, connections_come_and_go);
	tcase_add_test(tc, more_connections_than_may_be);
	tcase_add_test(tc, lists_too_long_are_refused);
	tcase_add_test(tc, slots_of_others_are_not_touched);
	suite_add_tcase(s, tc);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed == 0 ? 0 : 1;
}
