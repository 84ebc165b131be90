/* SPDX-License-Identifier: Apache-2.0 */
/* Frames to and from an AF_UNIX stream socket.
 *
 * Owns: the bytes and descriptors that are between the socket and a whole frame.
 * Invariant: nothing is stored because of a length that the peer names.  The input buffer grows only when it is full of
 * bytes that really came, then to hold the frame that has begun, and never beyond one largest frame; header fields are
 * checked before they are used.
 * Deliberately not here: what a verb means, protobuf, request ids, deadlines.
 *
 * Which frame do descriptors belong to?  The kernel hands a stream over in pieces as they were sent (skbs); descriptors
 * hang on the first piece of the sendmsg() that carried them.  One recvmsg() may join pieces without descriptors with one
 * that has some, but ends right behind that one (unix_stream_read_generic: `if (scm.fp) break`).  So one read brings the
 * descriptors of one frame at most, and that frame begins somewhere within the bytes of that very read: not necessarily
 * at the first, because earlier frames may precede it.  We keep that stretch with the batch, and the header's count
 * decides.  A batch whose stretch holds no beginning of a frame that wants it is a stray one.
 */
#include "proto/wire.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BUF_MIN ((size_t)4096)
#define BUF_KEEP ((size_t)65536) /* an empty larger buffer is given back: idle sessions stay small */
#define NO_RESERVATION UINT32_MAX

struct raw_header {
	uint32_t magic;
	uint16_t verb;
	uint16_t flags;
	uint32_t length;
	uint16_t n_fds;
	uint16_t zero;
	uint64_t id;
};

_Static_assert(sizeof(struct raw_header) == WIRE_HEADER_BYTES, "the header is 24 bytes");
_Static_assert(offsetof(struct raw_header, verb) == 4, "verb at 4");
_Static_assert(offsetof(struct raw_header, flags) == 6, "flags at 6");
_Static_assert(offsetof(struct raw_header, length) == 8, "length at 8");
_Static_assert(offsetof(struct raw_header, n_fds) == 12, "n_fds at 12");
_Static_assert(offsetof(struct raw_header, zero) == 14, "zero at 14");
_Static_assert(offsetof(struct raw_header, id) == 16, "id at 16");
_Static_assert(WIRE_MAX_FRAME > BUF_KEEP && BUF_MIN > WIRE_HEADER_BYTES, "buffer bounds");

union fd_control {
	struct cmsghdr align;
	uint8_t bytes[CMSG_SPACE(sizeof(int) * WIRE_MAX_FDS)];
};
/* The kernel fills whatever room there is: padding would let a 17th descriptor in, beyond our arrays. */
_Static_assert(CMSG_SPACE(sizeof(int) * WIRE_MAX_FDS) == CMSG_LEN(sizeof(int) * WIRE_MAX_FDS), "room for 16, not 17");

static void fds_close(const int *fds, unsigned n_fds)
{
	for (unsigned i = 0; i < n_fds; i++)
		if (fds[i] >= 0)
			close(fds[i]); /* on Linux the descriptor is gone even after EINTR */
}

int wire_frame_take_fd(struct wire_frame *frame, unsigned i)
{
	int fd;

	if (i >= frame->n_fds)
		return -1;
	fd = frame->fds[i];
	frame->fds[i] = -1;
	return fd;
}

void wire_frame_close(struct wire_frame *frame)
{
	assert(frame->n_fds <= WIRE_MAX_FDS);
	fds_close(frame->fds, frame->n_fds);
	frame->n_fds = 0;
}

/* --- input --- */

void wire_in_init(struct wire_in *in)
{
	memset(in, 0, sizeof(*in));
}

void wire_in_deinit(struct wire_in *in)
{
	for (unsigned i = 0; i < in->n_batches; i++)
		fds_close(in->batches[i].fds, in->batches[i].n_fds);
	free(in->buf);
	wire_in_init(in);
}

bool wire_in_is_partial(const struct wire_in *in)
{
	return in->tail > in->head;
}

const char *wire_in_reason(const struct wire_in *in)
{
	return in->bad;
}

static int in_refuse(struct wire_in *in, const char *why)
{
	if (!in->bad)
		in->bad = why;
	return WIRE_E_BAD;
}

/* Make room behind tail, moving what waits to the front.  WIRE_E_FULL: as much waits as the largest frame has. */
static int in_make_room(struct wire_in *in)
{
	size_t have = in->tail - in->head, cap = in->cap;
	uint8_t *buf;

	assert(in->head <= in->tail && in->tail <= in->cap);
	if (in->head > 0 && have > 0)
		memmove(in->buf, in->buf + in->head, have);
	in->head = 0;
	in->tail = have;
	if (have < cap)
		return 0;
	if (have >= WIRE_MAX_FRAME)
		return WIRE_E_FULL;
	cap = cap ? cap * 2 : BUF_MIN;
	if (cap < in->need)
		cap = (in->need / BUF_MIN + 1) * BUF_MIN; /* a little more: a read that leaves room was the last */
	if (cap > WIRE_MAX_FRAME)
		cap = WIRE_MAX_FRAME;
	buf = realloc(in->buf, cap);
	if (!buf)
		return -ENOMEM;
	in->buf = buf;
	in->cap = cap;
	return 0;
}

/* The common end of read and feed: @len bytes are in place behind tail, @fds came with them. */
static int in_accept(struct wire_in *in, size_t len, const int *fds, unsigned n_fds)
{
	uint64_t lo = in->at + (in->tail - in->head);
	struct wire_batch *b;

	assert(len > 0 && in->tail + len <= in->cap);
	in->tail += len;
	if (n_fds == 0)
		return 0;
	if (n_fds > WIRE_MAX_FDS || in->n_batches == 2) {
		fds_close(fds, n_fds);
		return in_refuse(in, "stray descriptors");
	}
	b = &in->batches[in->n_batches++];
	b->lo = lo;
	b->hi = lo + len;
	b->n_fds = n_fds;
	memcpy(b->fds, fds, n_fds * sizeof(*fds));
	return 0;
}

/* Collect the descriptors of a message.  All of them, even of one we refuse: they are open in this process by now. */
static unsigned control_collect(struct msghdr *msg, int *fds)
{
	unsigned n = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		assert(c->cmsg_len >= CMSG_LEN(0));
		for (size_t at = 0; at + sizeof(int) <= c->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
			assert(n < WIRE_MAX_FDS); /* by the size of the control buffer */
			memcpy(&fds[n++], CMSG_DATA(c) + at, sizeof(int));
		}
	}
	return n;
}

int wire_in_read(struct wire_in *in, int fd)
{
	union fd_control control;
	int fds[WIRE_MAX_FDS];
	struct iovec iov;
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	unsigned n_fds;
	ssize_t n;
	int r;

	if (in->bad)
		return WIRE_E_BAD;
	if (in->n_batches == 2)
		return WIRE_E_FULL;
	r = in_make_room(in);
	if (r != 0)
		return r;
	do {
		iov = (struct iovec){ in->buf + in->tail, in->cap - in->tail };
		msg.msg_control = control.bytes;
		msg.msg_controllen = sizeof(control.bytes);
		n = recvmsg(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n < 0) {
		if (errno == EAGAIN || errno == EWOULDBLOCK)
			return WIRE_E_AGAIN;
		if (errno == ECONNRESET || errno == EPIPE)
			return WIRE_E_EOF;
		return -errno;
	}
	n_fds = control_collect(&msg, fds);
	if (msg.msg_flags & MSG_CTRUNC) {
		/* More than 16, or our own table is full.  Which ones are missing cannot be told. */
		fds_close(fds, n_fds);
		return in_refuse(in, "descriptors cut off");
	}
	if (n == 0) {
		fds_close(fds, n_fds);
		return WIRE_E_EOF;
	}
	/* Descriptors end a read early, whatever lies behind them. */
	in->may_have_more = (size_t)n == iov.iov_len || n_fds > 0;
	return in_accept(in, (size_t)n, fds, n_fds);
}

bool wire_in_may_have_more(const struct wire_in *in)
{
	return in->may_have_more;
}

int wire_in_feed(struct wire_in *in, const void *bytes, size_t len, const int *fds, unsigned n_fds, size_t *ret_taken)
{
	size_t room;
	int r;

	assert(len > 0);
	if (in->bad) {
		fds_close(fds, n_fds);
		return WIRE_E_BAD;
	}
	if (in->n_batches == 2)
		return WIRE_E_FULL;
	r = in_make_room(in);
	if (r != 0) {
		if (r < 0)
			fds_close(fds, n_fds);
		return r;
	}
	room = in->cap - in->tail;
	if (len > room)
		len = room;
	memcpy(in->buf + in->tail, bytes, len);
	*ret_taken = len;
	return in_accept(in, len, fds, n_fds);
}

static const char *raw_check(const struct raw_header *h)
{
	if (le32toh(h->magic) != WIRE_MAGIC)
		return "bad magic";
	if (le16toh(h->flags) & ~WIRE_FLAGS_KNOWN)
		return "unknown flags";
	if (h->zero != 0)
		return "reserved field not zero";
	if (le32toh(h->length) > WIRE_MAX_PAYLOAD)
		return "frame too large";
	if (le16toh(h->n_fds) > WIRE_MAX_FDS)
		return "too many descriptors";
	return NULL;
}

/* Do the waiting descriptors fit the frame that begins at in->at and is @total bytes long?  @n_fds < 0: its header is
 * not here yet, and @total is the least it can be. */
static const char *in_check_batches(const struct wire_in *in, int n_fds, size_t total)
{
	const struct wire_batch *b = &in->batches[0];
	unsigned first = 0;

	if (n_fds != 0 && in->n_batches > 0 && b->lo <= in->at && in->at < b->hi) {
		if (n_fds > 0 && b->n_fds != (unsigned)n_fds)
			return "descriptors not as announced";
		first = 1;
	} else if (n_fds > 0) {
		return "descriptors missing";
	}
	/* What is left must be for a frame behind this one. */
	for (unsigned i = first; i < in->n_batches; i++)
		if (in->batches[i].hi <= in->at + total)
			return "stray descriptors";
	return NULL;
}

static void in_take_batch(struct wire_in *in, struct wire_frame *frame)
{
	assert(in->n_batches > 0 && in->batches[0].n_fds == frame->n_fds);
	memcpy(frame->fds, in->batches[0].fds, frame->n_fds * sizeof(int));
	in->batches[0] = in->batches[1];
	in->n_batches--;
}

int wire_in_next(struct wire_in *in, struct wire_frame *ret_frame)
{
	size_t have = in->tail - in->head, total;
	struct raw_header h;
	const char *why;

	if (in->bad)
		return WIRE_E_BAD;
	in->need = 0;
	if (have == 0 && in->cap > BUF_KEEP) {
		free(in->buf);
		in->buf = NULL;
		in->cap = in->head = in->tail = 0;
	}
	if (have < sizeof(h)) {
		why = in_check_batches(in, have > 0 ? -1 : 0, sizeof(h));
		return why ? in_refuse(in, why) : WIRE_E_AGAIN;
	}
	memcpy(&h, in->buf + in->head, sizeof(h));
	why = raw_check(&h);
	if (why)
		return in_refuse(in, why);
	total = sizeof(h) + le32toh(h.length);
	why = in_check_batches(in, le16toh(h.n_fds), total);
	if (why)
		return in_refuse(in, why);
	if (have < total) {
		in->need = total;
		return WIRE_E_AGAIN;
	}
	ret_frame->head.verb = le16toh(h.verb);
	ret_frame->head.flags = le16toh(h.flags);
	ret_frame->head.id = le64toh(h.id);
	ret_frame->length = le32toh(h.length);
	ret_frame->payload = in->buf + in->head + sizeof(h);
	ret_frame->n_fds = le16toh(h.n_fds);
	if (ret_frame->n_fds > 0)
		in_take_batch(in, ret_frame);
	in->head += total;
	in->at += total;
	return 0;
}

/* --- output --- */

void wire_out_init(struct wire_out *out, size_t limit)
{
	assert(limit >= WIRE_HEADER_BYTES);
	memset(out, 0, sizeof(*out));
	out->limit = limit;
	out->reserved_len = NO_RESERVATION;
}

void wire_out_deinit(struct wire_out *out)
{
	size_t limit = out->limit;

	for (unsigned i = 0; i < out->n_marks; i++)
		fds_close(out->marks[i].fds, out->marks[i].n_fds);
	free(out->marks);
	free(out->buf);
	memset(out, 0, sizeof(*out));
	out->limit = limit;
	out->reserved_len = NO_RESERVATION;
}

size_t wire_out_bytes(const struct wire_out *out)
{
	return out->tail - out->head;
}

static int out_make_room(struct wire_out *out, size_t want)
{
	size_t have = out->tail - out->head, cap;
	uint8_t *buf;

	if (want > out->limit || have > out->limit - want)
		return WIRE_E_FULL;
	if (want <= out->cap - out->tail)
		return 0;
	/* Moving is worth it when it empties half the buffer; else a slow peer would have us move for every frame. */
	if (have + want <= out->cap && (have <= out->cap / 2 || out->cap >= out->limit)) {
		memmove(out->buf, out->buf + out->head, have);
		out->head = 0;
		out->tail = have;
		return 0;
	}
	cap = out->cap ? out->cap : BUF_MIN;
	while (cap < out->tail + want && cap < out->limit)
		cap *= 2;
	if (cap > out->limit)
		cap = out->limit;
	if (cap < have + want)
		cap = have + want;
	buf = malloc(cap);
	if (!buf)
		return -ENOMEM;
	if (have > 0)
		memcpy(buf, out->buf + out->head, have);
	free(out->buf);
	out->buf = buf;
	out->cap = cap;
	out->head = 0;
	out->tail = have;
	return 0;
}

static int out_make_mark(struct wire_out *out)
{
	unsigned cap = out->cap_marks ? out->cap_marks * 2 : 2;
	struct wire_batch *marks;

	if (out->n_marks < out->cap_marks)
		return 0;
	if (out->n_marks >= WIRE_MAX_MARKS)
		return WIRE_E_FULL;
	marks = realloc(out->marks, cap * sizeof(*marks));
	if (!marks)
		return -ENOMEM;
	out->marks = marks;
	out->cap_marks = cap;
	return 0;
}

int wire_out_reserve(struct wire_out *out, uint32_t max_len, unsigned n_fds, uint8_t **ret_payload)
{
	int r;

	out->reserved_len = NO_RESERVATION;
	if (max_len > WIRE_MAX_PAYLOAD || n_fds > WIRE_MAX_FDS)
		return WIRE_E_FULL;
	r = out_make_room(out, (size_t)WIRE_HEADER_BYTES + max_len);
	if (r == 0 && n_fds > 0)
		r = out_make_mark(out);
	if (r != 0)
		return r;
	out->reserved_len = max_len;
	out->reserved_fds = n_fds;
	*ret_payload = out->buf + out->tail + WIRE_HEADER_BYTES;
	return 0;
}

void wire_out_commit(struct wire_out *out, const struct wire_head *head, uint32_t len, const int *fds)
{
	struct raw_header h = {
		.magic = htole32(WIRE_MAGIC),
		.verb = htole16(head->verb),
		.flags = htole16(head->flags),
		.length = htole32(len),
		.n_fds = htole16((uint16_t)out->reserved_fds),
		.id = htole64(head->id),
	};

	assert(out->reserved_len != NO_RESERVATION && len <= out->reserved_len);
	assert((head->flags & ~WIRE_FLAGS_KNOWN) == 0);
	if (out->reserved_fds > 0) {
		struct wire_batch *m = &out->marks[out->n_marks++];

		m->lo = m->hi = out->at + (out->tail - out->head);
		m->n_fds = out->reserved_fds;
		memcpy(m->fds, fds, m->n_fds * sizeof(*fds));
	}
	memcpy(out->buf + out->tail, &h, sizeof(h));
	out->tail += sizeof(h) + len;
	out->reserved_len = NO_RESERVATION;
	assert(out->tail <= out->cap && out->tail - out->head <= out->limit);
}

int wire_out_push(struct wire_out *out, const struct wire_head *head, const void *payload, uint32_t len, const int *fds,
                  unsigned n_fds)
{
	uint8_t *room;
	int r;

	r = wire_out_reserve(out, len, n_fds, &room);
	if (r != 0)
		return r;
	if (len > 0)
		memcpy(room, payload, len);
	wire_out_commit(out, head, len, fds);
	return 0;
}

/* Put the descriptors of @m into @msg. */
static void control_fill(struct msghdr *msg, union fd_control *control, const struct wire_batch *m)
{
	struct cmsghdr *c;

	memset(control, 0, sizeof(*control));
	msg->msg_control = control->bytes;
	msg->msg_controllen = CMSG_SPACE(sizeof(int) * m->n_fds);
	c = CMSG_FIRSTHDR(msg);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int) * m->n_fds);
	memcpy(CMSG_DATA(c), m->fds, sizeof(int) * m->n_fds);
}

/* One send: up to the next frame with descriptors, since a message has only one set of them.  Returns bytes sent
 * or -errno. */
static ssize_t out_send(struct wire_out *out, int fd)
{
	union fd_control control;
	struct iovec iov = { out->buf + out->head, out->tail - out->head };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	int flags = MSG_NOSIGNAL | MSG_DONTWAIT;
	bool with_fds = out->n_marks > 0 && out->marks[0].lo == out->at;
	ssize_t n;

	if (with_fds)
		control_fill(&msg, &control, &out->marks[0]);
	if (out->n_marks > with_fds) {
		assert(out->marks[with_fds].lo > out->at);
		iov.iov_len = out->marks[with_fds].lo - out->at;
	}
	do
		n = with_fds ? sendmsg(fd, &msg, flags) : send(fd, iov.iov_base, iov.iov_len, flags);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	if (with_fds && n > 0) {
		/* One byte is enough: the descriptors have gone with it. */
		fds_close(out->marks[0].fds, out->marks[0].n_fds);
		out->n_marks--;
		memmove(out->marks, out->marks + 1, out->n_marks * sizeof(*out->marks));
	}
	return n;
}

int wire_out_flush(struct wire_out *out, int fd)
{
	ssize_t n;

	out->reserved_len = NO_RESERVATION;
	while (out->head < out->tail) {
		n = out_send(out, fd);
		if (n == -EAGAIN || n == -EWOULDBLOCK)
			return WIRE_E_AGAIN;
		if (n == -EPIPE || n == -ECONNRESET || n == -ENOTCONN)
			return WIRE_E_EOF;
		if (n < 0)
			return (int)n;
		out->head += (size_t)n;
		out->at += (uint64_t)n;
	}
	assert(out->n_marks == 0);
	out->head = out->tail = 0;
	if (out->cap > BUF_KEEP) {
		free(out->buf);
		out->buf = NULL;
		out->cap = 0;
	}
	return 0;
}

/* --- blocking use --- */

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

int wire_wait(int fd, short events, int timeout_ms)
{
	int64_t end = timeout_ms < 0 ? 0 : now_ms() + timeout_ms, left;
	struct pollfd p = { .fd = fd, .events = events };
	int r;

	assert(fd >= 0);
	for (;;) {
		r = poll(&p, 1, timeout_ms);
		if (r > 0)
			return 0;
		if (r == 0)
			return WIRE_E_AGAIN;
		if (errno != EINTR)
			return -errno;
		if (timeout_ms > 0) {
			left = end - now_ms();
			timeout_ms = left > 0 ? (int)left : 0;
		}
	}
}
