/* SPDX-License-Identifier: Apache-2.0 */
/* proto/wire.c over socket pairs: every split, descriptors, refusals, and no descriptor lost. */
#include "proto/wire.h"

#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int sv[2];
static struct wire_in in;
static struct wire_out out;
static unsigned fds_before;

static unsigned fds_open(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	ck_assert_ptr_nonnull(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static void setup(void)
{
	fds_before = fds_open();
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	wire_in_init(&in);
	wire_out_init(&out, 4 * WIRE_MAX_FRAME);
}

static void teardown(void)
{
	wire_in_deinit(&in);
	wire_out_deinit(&out);
	close(sv[0]);
	close(sv[1]);
	ck_assert_uint_eq(fds_open(), fds_before);
}

/* A descriptor that can be told from others: a pipe end whose inode is returned. */
static int marked_fd(ino_t *ret_ino)
{
	struct stat st;
	int p[2];

	ck_assert_int_eq(pipe2(p, O_CLOEXEC), 0);
	close(p[1]);
	ck_assert_int_eq(fstat(p[0], &st), 0);
	*ret_ino = st.st_ino;
	return p[0];
}

static void check_fd(int fd, ino_t ino)
{
	struct stat st;

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(fstat(fd, &st), 0);
	ck_assert_uint_eq(st.st_ino, ino);
	ck_assert_int_eq(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
}

static void raw_header(uint8_t *h, uint16_t flags, uint32_t length, uint16_t n_fds)
{
	memset(h, 0, WIRE_HEADER_BYTES);
	memcpy(h, "KVB1", 4);
	h[4] = 7;
	h[6] = (uint8_t)flags;
	h[7] = (uint8_t)(flags >> 8);
	for (int i = 0; i < 4; i++)
		h[8 + i] = (uint8_t)(length >> (8 * i));
	h[12] = (uint8_t)n_fds;
	h[13] = (uint8_t)(n_fds >> 8);
	h[16] = 42;
}

/* Send raw bytes with any number of copies of one descriptor. */
static void raw_send(const void *bytes, size_t len, unsigned n_fds)
{
	uint8_t control[CMSG_SPACE(64 * sizeof(int))] __attribute__((aligned(8))) = { 0 };
	struct iovec iov = { (void *)bytes, len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	int fds[64];

	if (n_fds > 0) {
		for (unsigned i = 0; i < n_fds; i++)
			fds[i] = sv[0];
		msg.msg_control = control;
		msg.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		CMSG_FIRSTHDR(&msg)->cmsg_level = SOL_SOCKET;
		CMSG_FIRSTHDR(&msg)->cmsg_type = SCM_RIGHTS;
		CMSG_FIRSTHDR(&msg)->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)), fds, n_fds * sizeof(int));
	}
	ck_assert_int_eq(sendmsg(sv[0], &msg, MSG_NOSIGNAL), (ssize_t)len);
}

static void push(uint16_t verb, uint64_t id, uint32_t len, const int *fds, unsigned n_fds)
{
	struct wire_head head = { .verb = verb, .flags = WIRE_FLAG_REPLY, .id = id };
	uint8_t *p = malloc(len + 1);

	for (uint32_t i = 0; i < len; i++)
		p[i] = (uint8_t)(i * 31 + id);
	ck_assert_int_eq(wire_out_push(&out, &head, p, len, fds, n_fds), 0);
	free(p);
}

static void check_frame(const struct wire_frame *f, uint16_t verb, uint64_t id, uint32_t len, unsigned n_fds)
{
	ck_assert_uint_eq(f->head.verb, verb);
	ck_assert_uint_eq(f->head.flags, WIRE_FLAG_REPLY);
	ck_assert_uint_eq(f->head.id, id);
	ck_assert_uint_eq(f->length, len);
	ck_assert_uint_eq(f->n_fds, n_fds);
	for (uint32_t i = 0; i < len; i++)
		if (f->payload[i] != (uint8_t)(i * 31 + id))
			ck_abort_msg("wrong byte %u", i);
}

START_TEST(layout_is_as_documented)
{
	static const uint8_t want[] = { 'K', 'V', 'B', '1', 2, 1, 1, 0, 3, 0, 0, 0, 0, 0,
		                        0,   0,   8,   7,   6, 5, 4, 3, 2, 1, 9, 9, 9 };
	struct wire_head head = { .verb = 0x0102, .flags = WIRE_FLAG_REPLY, .id = 0x0102030405060708 };
	uint8_t got[64];

	ck_assert_int_eq(wire_out_push(&out, &head, "\x9\x9\x9", 3, NULL, 0), 0);
	ck_assert_uint_eq(wire_out_bytes(&out), sizeof(want));
	ck_assert_int_eq(wire_out_flush(&out, sv[0]), 0);
	ck_assert_int_eq(read(sv[1], got, sizeof(got)), (ssize_t)sizeof(want));
	ck_assert_mem_eq(got, want, sizeof(want));
}
END_TEST

START_TEST(many_frames_in_one_read)
{
	struct wire_frame f;

	for (unsigned i = 0; i < 50; i++)
		push((uint16_t)i, i, i, NULL, 0);
	ck_assert_int_eq(wire_out_flush(&out, sv[0]), 0);
	ck_assert_uint_eq(wire_out_bytes(&out), 0);
	ck_assert_int_eq(wire_in_read(&in, sv[1]), 0);
	for (unsigned i = 0; i < 50; i++) {
		ck_assert_int_eq(wire_in_next(&in, &f), 0);
		check_frame(&f, (uint16_t)i, i, i, 0);
	}
	ck_assert_int_eq(wire_in_next(&in, &f), WIRE_E_AGAIN);
	ck_assert(!wire_in_is_partial(&in));
	ck_assert_int_eq(wire_in_read(&in, sv[1]), WIRE_E_AGAIN);
}
END_TEST

/* Three frames with 1, 0 and 2 descriptors, cut in two at every byte; each piece is sent as the sender would. */
START_TEST(split_at_every_byte)
{
	enum { A = WIRE_HEADER_BYTES + 5, B = WIRE_HEADER_BYTES + 0, C = WIRE_HEADER_BYTES + 9 };
	static const struct {
		uint32_t len;
		unsigned n_fds;
	} want[] = { { 5, 1 }, { 0, 0 }, { 9, 2 } };
	size_t cut = (size_t)_i, at = 0, n;
	uint8_t bytes[A + B + C];
	unsigned got = 0;
	struct wire_frame f;
	int r = 0;

	raw_header(bytes, 1, 5, 1);
	raw_header(bytes + A, 1, 0, 0);
	raw_header(bytes + A + B, 1, 9, 2);
	for (int i = 0; i < 5; i++)
		bytes[WIRE_HEADER_BYTES + i] = (uint8_t)(i * 31 + 42);
	for (int i = 0; i < 9; i++)
		bytes[A + B + WIRE_HEADER_BYTES + i] = (uint8_t)(i * 31 + 42);
	while (at < sizeof(bytes)) {
		unsigned n_fds = at == 0 ? 1 : at == A + B ? 2 : 0;

		n = at < A + B ? A + B - at : sizeof(bytes) - at;
		if (at < cut && at + n > cut)
			n = cut - at;
		raw_send(bytes + at, n, n_fds);
		at += n;
		if (at != cut && at < sizeof(bytes))
			continue;
		while ((r = wire_in_read(&in, sv[1])) == 0) {
			while ((r = wire_in_next(&in, &f)) == 0) {
				check_frame(&f, 7, 42, want[got].len, want[got].n_fds);
				wire_frame_close(&f);
				got++;
			}
			ck_assert_int_eq(r, WIRE_E_AGAIN);
		}
		ck_assert_int_eq(r, WIRE_E_AGAIN);
	}
	ck_assert_uint_eq(got, 3);
}
END_TEST

/* The descriptors of later frames come joined with the bytes of earlier ones: each must find its own frame. */
START_TEST(descriptors_find_their_frames)
{
	static const unsigned n_fds[] = { 0, 0, 1, 0, 16, 2, 0, 1, 1, 0 };
	ino_t ino[10][16];
	unsigned got = 0;
	struct wire_frame f;
	int fds[16], r;

	for (unsigned i = 0; i < 10; i++) {
		for (unsigned k = 0; k < n_fds[i]; k++)
			fds[k] = marked_fd(&ino[i][k]);
		push((uint16_t)i, i, 100 * i, fds, n_fds[i]);
	}
	ck_assert_int_eq(wire_out_flush(&out, sv[0]), 0);
	while ((r = wire_in_read(&in, sv[1])) == 0)
		while (wire_in_next(&in, &f) == 0) {
			check_frame(&f, (uint16_t)got, got, 100 * got, n_fds[got]);
			for (unsigned k = 0; k < f.n_fds; k++)
				check_fd(f.fds[k], ino[got][k]);
			wire_frame_close(&f);
			got++;
		}
	ck_assert_int_eq(r, WIRE_E_AGAIN);
	ck_assert_ptr_null(wire_in_reason(&in));
	ck_assert_uint_eq(got, 10);
}
END_TEST

START_TEST(take_hands_over)
{
	struct wire_frame f;
	ino_t ino;
	int fds[2], fd;

	fds[0] = marked_fd(&ino);
	fds[1] = marked_fd(&ino);
	push(1, 1, 0, fds, 2);
	ck_assert_int_eq(wire_out_flush(&out, sv[0]), 0);
	ck_assert_int_eq(wire_in_read(&in, sv[1]), 0);
	ck_assert_int_eq(wire_in_next(&in, &f), 0);
	fd = wire_frame_take_fd(&f, 1);
	ck_assert_int_eq(wire_frame_take_fd(&f, 1), -1);
	ck_assert_int_eq(wire_frame_take_fd(&f, 2), -1);
	wire_frame_close(&f);
	wire_frame_close(&f);
	check_fd(fd, ino);
	close(fd);
}
END_TEST

/* Large frames through a small socket buffer: partial writes and a growing input buffer. */
START_TEST(large_frames_flow)
{
	static const uint32_t len[] = { WIRE_MAX_PAYLOAD, 3, WIRE_MAX_PAYLOAD - 1, 70000, 0 };
	unsigned got = 0;
	struct wire_frame f;
	int small = 1, w, fd, r;
	ino_t ino[5];

	ck_assert_int_eq(setsockopt(sv[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)), 0);
	for (unsigned i = 0; i < 5; i++) {
		fd = marked_fd(&ino[i]);
		push((uint16_t)i, i, len[i], &fd, 1);
	}
	do {
		w = wire_out_flush(&out, sv[0]);
		ck_assert(w == 0 || w == WIRE_E_AGAIN);
		while ((r = wire_in_read(&in, sv[1])) == 0)
			while (wire_in_next(&in, &f) == 0) {
				check_frame(&f, (uint16_t)got, got, len[got], 1);
				check_fd(f.fds[0], ino[got]);
				wire_frame_close(&f);
				got++;
			}
		ck_assert_int_eq(r, WIRE_E_AGAIN);
	} while (w != 0);
	ck_assert_uint_eq(got, 5);
	ck_assert_int_eq(wire_in_read(&in, sv[1]), WIRE_E_AGAIN);
	ck_assert_uint_le(in.cap, 65536); /* given back */
}
END_TEST

/* A frame larger than the buffer: once its header and a buffer full of it have come, the rest is one read. */
START_TEST(a_large_frame_takes_two_reads)
{
	struct wire_frame f;

	for (unsigned round = 0; round < 2; round++) {
		push(1, round, 100000, NULL, 0);
		ck_assert_int_eq(wire_out_flush(&out, sv[0]), 0);
		ck_assert_int_eq(wire_in_read(&in, sv[1]), 0);
		ck_assert(wire_in_may_have_more(&in));
		ck_assert_int_eq(wire_in_next(&in, &f), WIRE_E_AGAIN);
		ck_assert_int_eq(wire_in_read(&in, sv[1]), 0);
		ck_assert(!wire_in_may_have_more(&in));
		ck_assert_int_eq(wire_in_next(&in, &f), 0);
		check_frame(&f, 1, round, 100000, 0);
		ck_assert_int_eq(wire_in_next(&in, &f), WIRE_E_AGAIN);
		ck_assert_ptr_null(in.buf); /* given back while nothing waits */
	}
}
END_TEST

/* A read with descriptors ends at their frame: it says nothing about what is behind. */
START_TEST(descriptors_may_hide_more)
{
	struct wire_frame f;
	ino_t ino;
	int fd = marked_fd(&ino);

	push(1, 0, 10, &fd, 1);
	ck_assert_int_eq(wire_out_flush(&out, sv[0]), 0);
	push(1, 1, 10, NULL, 0);
	ck_assert_int_eq(wire_out_flush(&out, sv[0]), 0);
	for (unsigned i = 0; i < 2; i++) {
		ck_assert_int_eq(wire_in_read(&in, sv[1]), 0);
		ck_assert(wire_in_may_have_more(&in) == (i == 0));
		ck_assert_int_eq(wire_in_next(&in, &f), 0);
		check_frame(&f, 1, i, 10, i == 0);
		wire_frame_close(&f);
		ck_assert_int_eq(wire_in_next(&in, &f), WIRE_E_AGAIN);
	}
}
END_TEST

START_TEST(claimed_length_allocates_nothing)
{
	uint8_t h[WIRE_HEADER_BYTES];
	struct wire_frame f;

	raw_header(h, 0, WIRE_MAX_PAYLOAD, 0);
	raw_send(h, sizeof(h), 0);
	ck_assert_int_eq(wire_in_read(&in, sv[1]), 0);
	ck_assert_int_eq(wire_in_next(&in, &f), WIRE_E_AGAIN);
	ck_assert_int_eq(wire_in_read(&in, sv[1]), WIRE_E_AGAIN);
	ck_assert_uint_le(in.cap, 4096);
	ck_assert(wire_in_is_partial(&in));
}
END_TEST

static const struct bad_case {
	const char *why;
	unsigned at;
	uint8_t byte;
	unsigned n_fds; /* sent */
} bad_cases[] = {
	{ "bad magic", 0, 'X', 0 },
	{ "bad magic", 3, '2', 0 },
	{ "unknown flags", 6, 2, 0 },
	{ "unknown flags", 7, 0x80, 0 },
	{ "frame too large", 10, 0x11, 0 },
	{ "frame too large", 11, 0xff, 0 },
	{ "too many descriptors", 12, 17, 0 },
	{ "too many descriptors", 13, 1, 16 },
	{ "reserved field not zero", 14, 1, 0 },
	{ "reserved field not zero", 15, 1, 1 },
	{ "descriptors missing", 12, 1, 0 },
	{ "descriptors not as announced", 12, 1, 2 },
	{ "descriptors not as announced", 12, 3, 2 },
	{ "stray descriptors", 12, 0, 1 },
	{ "stray descriptors", 12, 0, 16 },
};

START_TEST(bad_header_is_refused)
{
	const struct bad_case *c = &bad_cases[_i];
	uint8_t h[WIRE_HEADER_BYTES + 1];
	struct wire_frame f;

	raw_header(h, 0, 1, 0);
	h[c->at] = c->byte;
	h[WIRE_HEADER_BYTES] = 0;
	raw_send(h, sizeof(h), c->n_fds);
	ck_assert_int_eq(wire_in_read(&in, sv[1]), 0);
	ck_assert_int_eq(wire_in_next(&in, &f), WIRE_E_BAD);
	ck_assert_str_eq(wire_in_reason(&in), c->why);
	ck_assert_int_eq(wire_in_next(&in, &f), WIRE_E_BAD);
	ck_assert_int_eq(wire_in_read(&in, sv[1]), WIRE_E_BAD);
}
END_TEST

START_TEST(descriptors_in_mid_frame_are_stray)
{
	uint8_t h[WIRE_HEADER_BYTES + 8] = { 0 };
	size_t cut = (size_t)_i;
	struct wire_frame f;

	raw_header(h, 0, 8, 0);
	raw_send(h, cut, 0);
	ck_assert_int_eq(wire_in_read(&in, sv[1]), 0);
	ck_assert_int_eq(wire_in_next(&in, &f), WIRE_E_AGAIN);
	raw_send(h + cut, sizeof(h) - cut, 1);
	ck_assert_int_eq(wire_in_read(&in, sv[1]), 0);
	ck_assert_int_eq(wire_in_next(&in, &f), WIRE_E_BAD);
	ck_assert_str_eq(wire_in_reason(&in), "stray descriptors");
}
END_TEST

START_TEST(late_descriptors_are_refused)
{
	uint8_t h[WIRE_HEADER_BYTES];
	struct wire_frame f;
	int r;

	raw_header(h, 0, 0, 1);
	raw_send(h, 1, 0);
	ck_assert_int_eq(wire_in_read(&in, sv[1]), 0);
	ck_assert_int_eq(wire_in_next(&in, &f), WIRE_E_AGAIN);
	raw_send(h + 1, sizeof(h) - 1, 1);
	ck_assert_int_eq(wire_in_read(&in, sv[1]), 0);
	r = wire_in_next(&in, &f);
	ck_assert_int_eq(r, WIRE_E_BAD);
}
END_TEST

/* One byte and one descriptor at a time: nothing may pile up. */
START_TEST(descriptors_with_every_byte)
{
	uint8_t h[WIRE_HEADER_BYTES];
	struct wire_frame f;
	int r = WIRE_E_AGAIN;

	raw_header(h, 0, 0, 1);
	for (unsigned i = 0; i < 3 && r == WIRE_E_AGAIN; i++) {
		raw_send(h + i, 1, 1);
		ck_assert_int_eq(wire_in_read(&in, sv[1]), 0);
		r = wire_in_next(&in, &f);
	}
	ck_assert_int_eq(r, WIRE_E_BAD);
}
END_TEST

START_TEST(more_than_sixteen_are_cut_off)
{
	uint8_t h[WIRE_HEADER_BYTES];

	raw_header(h, 0, 0, 16);
	raw_send(h, sizeof(h), (unsigned)_i);
	ck_assert_int_eq(wire_in_read(&in, sv[1]), WIRE_E_BAD);
	ck_assert_str_eq(wire_in_reason(&in), "descriptors cut off");
}
END_TEST

/* Our own table is full: the kernel installs what it can and cuts the rest. */
START_TEST(no_room_for_descriptors)
{
	struct rlimit old, tight;
	uint8_t h[WIRE_HEADER_BYTES];
	int top;

	ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &old), 0);
	raw_header(h, 0, 0, 4);
	raw_send(h, sizeof(h), 4);
	top = dup(sv[0]);
	close(top);
	tight = old;
	tight.rlim_cur = (rlim_t)top + 2;
	ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &tight), 0);
	ck_assert_int_eq(wire_in_read(&in, sv[1]), WIRE_E_BAD);
	ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &old), 0);
}
END_TEST

START_TEST(eof_in_mid_frame)
{
	uint8_t h[WIRE_HEADER_BYTES];
	struct wire_frame f;

	raw_header(h, 0, 0, 1);
	raw_send(h, 10, 1);
	shutdown(sv[0], SHUT_WR);
	ck_assert_int_eq(wire_in_read(&in, sv[1]), 0);
	ck_assert_int_eq(wire_in_next(&in, &f), WIRE_E_AGAIN);
	ck_assert_int_eq(wire_in_read(&in, sv[1]), WIRE_E_EOF);
	ck_assert(wire_in_is_partial(&in));
}
END_TEST

START_TEST(peer_gone_while_writing)
{
	ino_t ino;
	int fd = marked_fd(&ino);

	push(1, 1, 10, &fd, 1);
	shutdown(sv[1], SHUT_RD);
	ck_assert_int_eq(wire_out_flush(&out, sv[0]), WIRE_E_EOF);
}
END_TEST

START_TEST(output_limit_holds)
{
	struct wire_head head = { .verb = 1 };
	struct wire_out small;
	uint8_t bytes[100] = { 0 }, *room;
	unsigned n = 0;
	ino_t ino;
	int fd = marked_fd(&ino), r;

	wire_out_init(&small, 1000);
	while ((r = wire_out_push(&small, &head, bytes, sizeof(bytes), NULL, 0)) == 0)
		n++;
	ck_assert_int_eq(r, WIRE_E_FULL);
	ck_assert_uint_eq(n, 1000 / (sizeof(bytes) + WIRE_HEADER_BYTES));
	ck_assert_int_eq(wire_out_push(&small, &head, bytes, sizeof(bytes), &fd, 1), WIRE_E_FULL);
	ck_assert_int_eq(fcntl(fd, F_GETFD), FD_CLOEXEC); /* still ours */
	ck_assert_int_eq(wire_out_flush(&small, sv[0]), 0);
	ck_assert_int_eq(wire_out_push(&small, &head, bytes, sizeof(bytes), &fd, 1), 0);
	wire_out_deinit(&small); /* closes it */
	ck_assert_int_eq(fcntl(fd, F_GETFD), -1);
	ck_assert_int_eq(wire_out_reserve(&out, WIRE_MAX_PAYLOAD + 1, 0, &room), WIRE_E_FULL);
	ck_assert_int_eq(wire_out_reserve(&out, 1, WIRE_MAX_FDS + 1, &room), WIRE_E_FULL);
}
END_TEST

START_TEST(descriptors_waiting_are_bounded)
{
	struct wire_head head = { .verb = 1 };
	int fd, r = 0;
	unsigned n;

	for (n = 0; n <= WIRE_MAX_MARKS; n++) {
		fd = dup(sv[0]);
		r = wire_out_push(&out, &head, NULL, 0, &fd, 1);
		if (r != 0)
			break;
	}
	close(fd);
	ck_assert_int_eq(r, WIRE_E_FULL);
	ck_assert_uint_eq(n, WIRE_MAX_MARKS);
	ck_assert_int_eq(wire_out_push(&out, &head, NULL, 0, NULL, 0), 0);
}
END_TEST

START_TEST(reserve_in_place)
{
	struct wire_head head = { .verb = 9, .flags = WIRE_FLAG_REPLY, .id = 4 };
	struct wire_frame f;
	uint8_t *room;

	ck_assert_int_eq(wire_out_reserve(&out, 5000, 0, &room), 0); /* given up */
	ck_assert_uint_eq(wire_out_bytes(&out), 0);
	ck_assert_int_eq(wire_out_reserve(&out, 5000, 0, &room), 0);
	memset(room, 0xee, 5000);
	for (unsigned i = 0; i < 10; i++)
		room[i] = (uint8_t)(i * 31 + 4);
	wire_out_commit(&out, &head, 10, NULL);
	ck_assert_uint_eq(wire_out_bytes(&out), WIRE_HEADER_BYTES + 10);
	push(9, 4, 0, NULL, 0);
	ck_assert_int_eq(wire_out_flush(&out, sv[0]), 0);
	ck_assert_int_eq(wire_in_read(&in, sv[1]), 0);
	ck_assert_int_eq(wire_in_next(&in, &f), 0);
	check_frame(&f, 9, 4, 10, 0);
	ck_assert_int_eq(wire_in_next(&in, &f), 0);
	check_frame(&f, 9, 4, 0, 0);
}
END_TEST

/* Seeded mix of sizes and descriptors, both sides interleaved, output queue never emptied on purpose. */
START_TEST(random_traffic)
{
	unsigned seed = (unsigned)_i, sent = 0, got = 0, len, n_fds;
	uint32_t lens[400];
	uint8_t counts[400];
	struct wire_frame f;
	int small = 1, fds[3], r;

	setsockopt(sv[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	while (got < 400) {
		for (unsigned k = (unsigned)rand_r(&seed) % 4; k > 0 && sent < 400; k--) {
			len = (unsigned)rand_r(&seed) % (sent % 50 == 0 ? 200000 : 2000);
			n_fds = rand_r(&seed) % 3 ? 0 : (unsigned)rand_r(&seed) % 4;
			for (unsigned i = 0; i < n_fds; i++)
				fds[i] = dup(sv[0]);
			lens[sent] = len;
			counts[sent] = (uint8_t)n_fds;
			push(3, sent++, len, fds, n_fds);
		}
		r = wire_out_flush(&out, sv[0]);
		ck_assert(r == 0 || r == WIRE_E_AGAIN);
		r = wire_in_read(&in, sv[1]);
		ck_assert(r == 0 || r == WIRE_E_AGAIN);
		while (wire_in_next(&in, &f) == 0) {
			check_frame(&f, 3, got, lens[got], counts[got]);
			wire_frame_close(&f);
			got++;
		}
		ck_assert_msg(!wire_in_reason(&in), "seed %d: %s", _i, wire_in_reason(&in));
	}
}
END_TEST

static void on_alarm(int sig)
{
	(void)sig;
}

START_TEST(wait_keeps_its_budget)
{
	struct sigaction sa = { .sa_handler = on_alarm };
	struct itimerval every = { { 0, 2000 }, { 0, 2000 } };
	struct timespec a, b;
	long ms;

	sigaction(SIGALRM, &sa, NULL);
	setitimer(ITIMER_REAL, &every, NULL);
	clock_gettime(CLOCK_MONOTONIC, &a);
	ck_assert_int_eq(wire_wait(sv[1], POLLIN, 30), WIRE_E_AGAIN);
	clock_gettime(CLOCK_MONOTONIC, &b);
	ms = (b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000;
	ck_assert_int_ge(ms, 28);
	memset(&every, 0, sizeof(every));
	setitimer(ITIMER_REAL, &every, NULL);
	ck_assert_int_eq(wire_wait(sv[1], POLLIN, 0), WIRE_E_AGAIN);
	ck_assert_int_eq(wire_wait(sv[1], POLLOUT, -1), 0);
	close(sv[0]);
	sv[0] = dup(sv[1]);
	ck_assert_int_eq(wire_wait(sv[1], POLLIN, -1), 0);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("wire");
	TCase *tc = tcase_create("wire");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, layout_is_as_documented);
	tcase_add_test(tc, many_frames_in_one_read);
	tcase_add_loop_test(tc, split_at_every_byte, 0, 3 * WIRE_HEADER_BYTES + 14);
	tcase_add_test(tc, descriptors_find_their_frames);
	tcase_add_test(tc, take_hands_over);
	tcase_add_test(tc, large_frames_flow);
	tcase_add_test(tc, claimed_length_allocates_nothing);
	tcase_add_loop_test(tc, bad_header_is_refused, 0, sizeof(bad_cases) / sizeof(*bad_cases));
	tcase_add_loop_test(tc, descriptors_in_mid_frame_are_stray, 1, WIRE_HEADER_BYTES + 8);
	tcase_add_test(tc, late_descriptors_are_refused);
	tcase_add_test(tc, descriptors_with_every_byte);
	tcase_add_loop_test(tc, more_than_sixteen_are_cut_off, 17, 20);
	tcase_add_test(tc, no_room_for_descriptors);
	tcase_add_test(tc, eof_in_mid_frame);
	tcase_add_test(tc, peer_gone_while_writing);
	tcase_add_test(tc, output_limit_holds);
	tcase_add_test(tc, descriptors_waiting_are_bounded);
	tcase_add_test(tc, reserve_in_place);
	tcase_add_loop_test(tc, random_traffic, 0, 8);
	tcase_add_test(tc, a_large_frame_takes_two_reads);
	tcase_add_test(tc, descriptors_may_hide_more);
	tcase_add_test(tc, wait_keeps_its_budget);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
