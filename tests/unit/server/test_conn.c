/* SPDX-License-Identifier: Apache-2.0 */
/* server/conn.c over a socketpair and a real loop, turn by turn: peers that are slow, greedy, rude or gone. */
#include "server/conn.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/thread.h"
#include "tests/lib/fdcount.h"
#include "tests/lib/raw.h"

#define MS UINT64_C(1000000)
#define OUTPUT (256u * 1024u)

struct owner {
	struct conn conn;
	unsigned frames, bad, gone, closed;
	const char *why, *reason;
	int answer;          /* what on_frame returns */
	uint32_t reply_size; /* of the payload pushed for each frame */
	uint64_t sum;        /* over the ids of frames, in order */
};

static struct loop *loop;
static struct owner owner;
static int peer;
static unsigned fds_before;

static unsigned fds_open(void)
{
	struct fdcount c;

	fdcount_take(getpid(), &c);
	return c.total;
}

static int on_frame(struct conn *c, const struct wire_frame *frame)
{
	struct owner *o = container_of(c, struct owner, conn);
	struct wire_head head = { .verb = frame->head.verb, .flags = WIRE_FLAG_REPLY, .id = frame->head.id };
	static uint8_t payload[WIRE_MAX_PAYLOAD];

	o->frames++;
	o->sum = o->sum * 31 + frame->head.id;
	ck_assert_uint_eq(o->gone, 0);
	ck_assert_uint_le(wire_out_bytes(&c->out), OUTPUT / 2);
	ck_assert_int_eq(wire_out_push(&c->out, &head, payload, o->reply_size, NULL, 0), 0);
	return o->answer;
}

static void on_bad(struct conn *c, const char *reason)
{
	struct owner *o = container_of(c, struct owner, conn);
	struct wire_head head = { .flags = WIRE_FLAG_REPLY };

	o->bad++;
	o->reason = reason;
	ck_assert_int_eq(wire_out_push(&c->out, &head, "!", 1, NULL, 0), 0);
}

static void on_gone(struct conn *c, const char *why)
{
	struct owner *o = container_of(c, struct owner, conn);

	o->gone++;
	o->why = why;
}

static void on_closed(struct conn *c)
{
	struct owner *o = container_of(c, struct owner, conn);

	ck_assert_uint_eq(o->gone, 1);
	o->closed++;
}

static const struct conn_ops ops = { .on_frame = on_frame, .on_bad = on_bad, .on_gone = on_gone, .on_closed = on_closed };

static void start(uint64_t timeout_ns)
{
	struct conn_limits limits = { .timeout_ns = timeout_ns, .output_bytes = OUTPUT };
	int pair[2];

	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	peer = pair[1];
	ck_assert_int_eq(fcntl(peer, F_SETFL, O_NONBLOCK), 0);
	ck_assert_int_eq(conn_init(&owner.conn, loop, pair[0], &limits, &ops), 0);
}

static void setup(void)
{
	thread_set_role(THREAD_LOOP);
	ck_assert_int_eq(loop_new(&loop), 0); /* what the library keeps open once and for all */
	loop = loop_free(loop);
	fds_before = fds_open();
	ck_assert_int_eq(loop_new(&loop), 0);
	owner = (struct owner){ 0 };
	peer = -1;
}

/* However a test left it, it ends once, and nothing stays open. */
static void teardown(void)
{
	if (owner.conn.loop && owner.gone == 0)
		conn_close(&owner.conn, "test");
	for (int i = 0; i < 4; i++)
		loop_turn(loop, false);
	if (owner.conn.loop) {
		ck_assert_uint_eq(owner.gone, 1);
		ck_assert_uint_eq(owner.closed, 1);
		ck_assert_int_eq(owner.conn.fd, -1);
	}
	loop = loop_free(loop);
	close_p(&peer);
	ck_assert_uint_eq(fds_open(), fds_before);
}

static void turns(int n)
{
	while (n-- > 0)
		loop_turn(loop, false);
}

static size_t frame_make(uint8_t *to, uint64_t id, uint32_t length)
{
	raw_header(to, 1, length, id);
	memset(to + WIRE_HEADER_BYTES, 'p', length);
	return WIRE_HEADER_BYTES + length;
}

static void put(const void *bytes, size_t size)
{
	ck_assert_int_eq(send(peer, bytes, size, MSG_NOSIGNAL), (ssize_t)size);
}

/* Everything that came so far; true: and the end. */
static bool drink(size_t *ret_size)
{
	char buf[65536];
	ssize_t n;

	*ret_size = 0;
	while ((n = recv(peer, buf, sizeof(buf), 0)) > 0)
		*ret_size += (size_t)n;
	return n == 0 || errno != EAGAIN;
}

START_TEST(a_byte_at_a_time)
{
	uint8_t frame[64];
	size_t size = frame_make(frame, 9, 20), got;

	start(5000 * MS);
	for (int round = 0; round < 3; round++) {
		for (size_t i = 0; i < size; i++) {
			ck_assert_uint_eq(owner.frames, (unsigned)round);
			put(frame + i, 1);
			turns(1);
		}
		ck_assert_uint_eq(owner.frames, (unsigned)round + 1);
	}
	ck_assert(!drink(&got));
	ck_assert_uint_eq(got, 3 * WIRE_HEADER_BYTES);
}
END_TEST

START_TEST(pipelined_frames_are_served_in_one_turn)
{
	uint8_t frames[10 * 64];
	size_t size = 0, got;
	uint64_t sum = 0;

	start(5000 * MS);
	for (uint64_t i = 0; i < 10; i++) {
		size += frame_make(frames + size, i, (uint32_t)i * 3);
		sum = sum * 31 + i;
	}
	put(frames, size);
	turns(1);
	ck_assert_uint_eq(owner.frames, 10);
	ck_assert_uint_eq(owner.sum, sum);
	ck_assert(!drink(&got));
	ck_assert_uint_eq(got, 10 * WIRE_HEADER_BYTES);
}
END_TEST

/* More than is served in one go: the rest comes without further input. */
START_TEST(many_pipelined_frames_are_all_served)
{
	uint8_t frames[1000 * WIRE_HEADER_BYTES];
	size_t size = 0, got = 0, n;

	start(5000 * MS);
	for (uint64_t i = 0; i < 1000; i++)
		size += frame_make(frames + size, i, 0);
	put(frames, size);
	for (int i = 0; i < 100 && got < size; i++) {
		turns(1);
		ck_assert(!drink(&n));
		got += n;
	}
	ck_assert_uint_eq(owner.frames, 1000);
	ck_assert_uint_eq(got, size);
}
END_TEST

/* Who does not read is not read from: what waits stays bounded, and time ends it. */
START_TEST(who_does_not_read_is_dropped)
{
	uint8_t frame[WIRE_HEADER_BYTES];
	size_t size = frame_make(frame, 1, 0), sent = 0;
	unsigned served;

	start(50 * MS);
	owner.reply_size = 32 * 1024;
	for (int i = 0; i < 2000 && owner.gone == 0; i++) {
		if (send(peer, frame, size, MSG_NOSIGNAL) == (ssize_t)size)
			sent++;
		turns(1);
		ck_assert_uint_le(wire_out_bytes(&owner.conn.out), OUTPUT);
	}
	served = owner.frames;
	ck_assert_uint_lt(served, sent);
	while (owner.gone == 0)
		loop_turn(loop, true);
	ck_assert_str_eq(owner.why, "does not read its replies");
	ck_assert_uint_eq(owner.frames, served);
}
END_TEST

/* The same, but it does read in time: nothing is lost, and it stays. */
START_TEST(who_reads_late_gets_everything)
{
	uint8_t frame[WIRE_HEADER_BYTES];
	size_t size = frame_make(frame, 1, 0), got = 0, n, want;

	start(5000 * MS);
	owner.reply_size = 32 * 1024;
	for (int i = 0; i < 100; i++) {
		put(frame, size);
		turns(1);
	}
	ck_assert_uint_lt(owner.frames, 100);
	want = 100 * (WIRE_HEADER_BYTES + (size_t)owner.reply_size);
	for (int i = 0; i < 1000 && got < want; i++) {
		ck_assert(!drink(&n));
		got += n;
		turns(1);
	}
	ck_assert_uint_eq(owner.frames, 100);
	ck_assert_uint_eq(got, want);
	ck_assert_uint_eq(owner.gone, 0);
}
END_TEST

/* The limit says when to stop serving, not how long an answer may be. */
START_TEST(an_answer_may_be_longer_than_what_may_wait)
{
	uint8_t frame[WIRE_HEADER_BYTES];
	static const uint32_t sizes[] = { OUTPUT / 2 - WIRE_HEADER_BYTES, OUTPUT - 1, WIRE_MAX_PAYLOAD };
	size_t size = frame_make(frame, 1, 0), got = 0, n, want;

	start(5000 * MS);
	owner.reply_size = sizes[_i];
	put(frame, size);
	put(frame, size);
	put(frame, size);
	want = 3 * (WIRE_HEADER_BYTES + (size_t)owner.reply_size);
	for (int i = 0; i < 1000 && got < want; i++) {
		turns(1);
		ck_assert(!drink(&n));
		got += n;
	}
	ck_assert_uint_eq(owner.frames, 3);
	ck_assert_uint_eq(got, want);
	ck_assert_uint_eq(owner.gone, 0);
}
END_TEST

START_TEST(half_a_frame_and_gone)
{
	uint8_t frame[64];

	start(5000 * MS);
	put(frame, frame_make(frame, 1, 20) - 5);
	turns(1);
	close_p(&peer);
	turns(2);
	ck_assert_uint_eq(owner.frames, 0);
	ck_assert_uint_eq(owner.bad, 0);
	ck_assert_uint_eq(owner.gone, 1);
	ck_assert_ptr_null(owner.why);
}
END_TEST

START_TEST(half_a_frame_and_silence)
{
	uint8_t frame[64];
	size_t size = frame_make(frame, 1, 20);

	start(30 * MS);
	put(frame, size);
	put(frame, size - 5);
	while (owner.gone == 0)
		loop_turn(loop, true);
	ck_assert_uint_eq(owner.frames, 1);
	ck_assert_str_eq(owner.why, "did not finish a frame in time");
}
END_TEST

START_TEST(silence_from_the_start)
{
	start(30 * MS);
	while (owner.gone == 0)
		loop_turn(loop, true);
	ck_assert_str_eq(owner.why, "did not say hello in time");
}
END_TEST

START_TEST(silence_after_the_first_frame_is_fine)
{
	uint8_t frame[64];

	start(1 * MS);
	put(frame, frame_make(frame, 1, 0));
	turns(1);
	ck_assert_uint_eq(owner.frames, 1);
	ck_assert(!loop_timer_is_running(&owner.conn.timer));
}
END_TEST

/* A request that came with descriptors is refused, where the kernel does not already keep them from being sent. */
START_TEST(stray_descriptors_are_refused)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	uint8_t frame[64];
	struct iovec iov = { frame, frame_make(frame, 1, 4) };
	struct msghdr msg = { .msg_iov = &iov,
		              .msg_iovlen = 1,
		              .msg_control = control.bytes,
		              .msg_controllen = sizeof(control.bytes) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
	int fd = STDERR_FILENO;
	size_t got;

	start(5000 * MS);
	frame[12] = 1; /* as many as it says */
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(int));
	if (sendmsg(peer, &msg, MSG_NOSIGNAL) < 0) {
		ck_assert_int_eq(errno, EPERM);
		return;
	}
	turns(2);
	ck_assert_uint_eq(owner.frames, 0);
	ck_assert_uint_eq(owner.bad, 1);
	ck_assert_uint_eq(owner.gone, 1);
	ck_assert(drink(&got)); /* the last word, then the end */
	ck_assert_uint_eq(got, WIRE_HEADER_BYTES + 1);
}
END_TEST

/* One wrong thing each, in an otherwise good header. */
START_TEST(bad_frames_get_a_last_word)
{
	static const struct {
		unsigned at;
		uint8_t value;
	} wrong[] = { { 0, 'X' }, { 6, 1 }, { 6, 2 }, { 11, 0xff }, { 12, 1 }, { 12, 17 }, { 14, 1 } };
	uint8_t frame[WIRE_HEADER_BYTES + 8];
	size_t size = frame_make(frame, 1, 8), got;

	start(5000 * MS);
	frame[wrong[_i].at] = wrong[_i].value;
	put(frame, size);
	put(frame, size);
	turns(3);
	ck_assert_uint_eq(owner.frames, 0);
	ck_assert_uint_eq(owner.bad, 1);
	ck_assert_ptr_nonnull(owner.reason);
	ck_assert_uint_eq(owner.gone, 1);
	ck_assert_str_eq(owner.why, "broke the protocol");
	ck_assert(drink(&got));
	ck_assert_uint_eq(got, WIRE_HEADER_BYTES + 1);
}
END_TEST

/* Requests right before the end still count. */
START_TEST(frames_before_the_end_are_served)
{
	uint8_t frames[300 * WIRE_HEADER_BYTES];
	size_t size = 0;

	start(5000 * MS);
	for (uint64_t i = 0; i < 300; i++)
		size += frame_make(frames + size, i, 0);
	put(frames, size);
	close_p(&peer);
	turns(1);
	ck_assert_uint_eq(owner.frames, 300);
	ck_assert_uint_eq(owner.gone, 1);
	ck_assert_ptr_null(owner.why);
}
END_TEST

/* The peer is gone when its reply is written: no signal, and what else it sent is served. */
START_TEST(writing_to_nobody)
{
	uint8_t frame[WIRE_HEADER_BYTES];
	size_t size = frame_make(frame, 1, 0);

	start(5000 * MS);
	put(frame, size);
	put(frame, size);
	ck_assert_int_eq(shutdown(peer, SHUT_RD), 0);
	turns(3);
	ck_assert_uint_eq(owner.frames, 2);
	ck_assert_uint_eq(owner.gone, 1);
}
END_TEST

START_TEST(the_last_reply_is_sent_before_the_end)
{
	uint8_t frame[WIRE_HEADER_BYTES];
	size_t size = frame_make(frame, 1, 0), got;

	start(5000 * MS);
	owner.answer = CONN_E_LAST;
	put(frame, size);
	put(frame, size);
	turns(2);
	ck_assert_uint_eq(owner.frames, 1);
	ck_assert_str_eq(owner.why, "refused");
	ck_assert(drink(&got));
	ck_assert_uint_eq(got, WIRE_HEADER_BYTES);
}
END_TEST

START_TEST(a_fault_of_ours_ends_it_at_once)
{
	uint8_t frame[WIRE_HEADER_BYTES];

	start(5000 * MS);
	owner.answer = -EIO;
	put(frame, frame_make(frame, 1, 0));
	turns(1);
	ck_assert_uint_eq(owner.gone, 1);
	ck_assert_str_eq(owner.why, "a fault of ours");
}
END_TEST

START_TEST(drains)
{
	uint8_t frame[WIRE_HEADER_BYTES];
	size_t size = frame_make(frame, 1, 0), got, sum = 0;

	start(5000 * MS);
	owner.reply_size = 100 * 1024;
	put(frame, size);
	put(frame, size);
	turns(1);
	ck_assert_uint_gt(owner.frames, 0);
	conn_drain(&owner.conn, NULL);
	conn_drain(&owner.conn, "twice");
	put(frame, size); /* not read any more */
	for (int i = 0; i < 20 && owner.gone == 0; i++) {
		(void)drink(&got);
		sum += got;
		turns(1);
	}
	ck_assert_uint_eq(owner.gone, 1);
	ck_assert_ptr_null(owner.why);
	ck_assert(drink(&got));
	ck_assert_uint_eq(sum + got, owner.frames * (WIRE_HEADER_BYTES + (size_t)owner.reply_size));
}
END_TEST

START_TEST(a_drain_does_not_wait_for_ever)
{
	uint8_t frame[WIRE_HEADER_BYTES];

	start(30 * MS);
	owner.reply_size = OUTPUT - WIRE_HEADER_BYTES;
	put(frame, frame_make(frame, 1, 0));
	turns(1);
	conn_drain(&owner.conn, "enough");
	while (owner.gone == 0)
		loop_turn(loop, true);
	ck_assert_str_eq(owner.why, "does not read its replies");
}
END_TEST

START_TEST(hangup_serves_what_came)
{
	uint8_t frame[WIRE_HEADER_BYTES];

	start(5000 * MS);
	put(frame, frame_make(frame, 1, 0));
	conn_hangup(&owner.conn);
	ck_assert_uint_eq(owner.frames, 1);
	ck_assert_uint_eq(owner.gone, 1);
	conn_hangup(&owner.conn);
	conn_close(&owner.conn, "again");
	ck_assert_uint_eq(owner.gone, 1);
}
END_TEST

START_TEST(what_cannot_be_watched_is_closed)
{
	struct conn_limits limits = { .timeout_ns = MS, .output_bytes = OUTPUT };
	int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_lt(conn_init(&owner.conn, loop, fd, &limits, &ops), 0);
	ck_assert_int_eq(fcntl(fd, F_GETFD), -1);
	owner.conn.loop = NULL; /* nothing needs closing */
}
END_TEST

static TCase *slow_and_greedy(void)
{
	TCase *tc = tcase_create("slow");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, a_byte_at_a_time);
	tcase_add_test(tc, pipelined_frames_are_served_in_one_turn);
	tcase_add_test(tc, many_pipelined_frames_are_all_served);
	tcase_add_test(tc, who_does_not_read_is_dropped);
	tcase_add_test(tc, who_reads_late_gets_everything);
	tcase_add_loop_test(tc, an_answer_may_be_longer_than_what_may_wait, 0, 3);
	tcase_add_test(tc, half_a_frame_and_gone);
	tcase_add_test(tc, half_a_frame_and_silence);
	tcase_add_test(tc, silence_from_the_start);
	tcase_add_test(tc, silence_after_the_first_frame_is_fine);
	return tc;
}

static TCase *rude_and_gone(void)
{
	TCase *tc = tcase_create("rude");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, stray_descriptors_are_refused);
	tcase_add_loop_test(tc, bad_frames_get_a_last_word, 0, 7);
	tcase_add_test(tc, frames_before_the_end_are_served);
	tcase_add_test(tc, writing_to_nobody);
	tcase_add_test(tc, the_last_reply_is_sent_before_the_end);
	tcase_add_test(tc, a_fault_of_ours_ends_it_at_once);
	tcase_add_test(tc, drains);
	tcase_add_test(tc, a_drain_does_not_wait_for_ever);
	tcase_add_test(tc, hangup_serves_what_came);
	tcase_add_test(tc, what_cannot_be_watched_is_closed);
	return tc;
}

int main(void)
{
	Suite *suite = suite_create("conn");
	SRunner *runner;
	int failed;

	suite_add_tcase(suite, slow_and_greedy());
	suite_add_tcase(suite, rude_and_gone());
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
