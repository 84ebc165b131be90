/* SPDX-License-Identifier: Apache-2.0 */
/* Owns a socket, its watcher and timer, and the bytes between it and whole frames.
 *
 * Life of a connection
 *   OPEN      frames are read and served
 *   DRAINING  no more reading; ends when the output is sent, or by the timer
 *   ENDED     socket closed; on_closed comes when watcher and timer are closed
 *
 * OPEN->DRAINING conn_drain, CONN_E_LAST, a bad frame      OPEN,DRAINING->ENDED conn_end
 *
 * Invariant: the watcher asks for reading only when no whole frame waits and the output is below half its limit, so memory
 * is bounded by what we can answer, not by what the peer sends.  Knows no verbs.
 */
#include "server/conn.h"

#include <sys/socket.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/cleanup.h"
#include "base/metrics.h"
#include "base/thread.h"
#include "kvbm.pb-c.h"

enum conn_state { CONN_OPEN, CONN_DRAINING, CONN_ENDED };

#define FRAMES_PER_TURN 64u
#define READS_PER_TURN 4u
#define READS_AT_END 64u /* more than a socket's buffer holds; one who sends on for ever does not get for ever */

#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS 83 /* Linux 6.16 */
#endif

static void conn_on_turn(struct loop_deferred *d);

static void conn_closed_one(struct conn *c)
{
	assert(c->state == CONN_ENDED && c->closing > 0);
	if (--c->closing == 0)
		c->ops->on_closed(c);
}

static void conn_on_watch_closed(struct loop_watch *w)
{
	conn_closed_one(container_of(w, struct conn, watch));
}

static void conn_on_timer_closed(struct loop_timer *t)
{
	conn_closed_one(container_of(t, struct conn, timer));
}

static void conn_end(struct conn *c, const char *why)
{
	assert(c->state != CONN_ENDED);
	c->state = CONN_ENDED;
	loop_deferred_cancel(&c->turn);
	c->closing = 2;
	loop_watch_close(&c->watch, conn_on_watch_closed);
	loop_timer_close(&c->timer, conn_on_timer_closed);
	close(steal_fd(&c->fd));
	wire_in_deinit(&c->in);
	wire_out_deinit(&c->out);
	c->ops->on_gone(c, why);
}

/* ---- time ---- */

static void conn_on_timer(struct loop_timer *t);

/* The earliest moment at which the peer is too slow; 0: it owes us nothing. */
static uint64_t conn_due(const struct conn *c)
{
	uint64_t from = UINT64_MAX;

	if (!c->greeted)
		from = c->since_ns;
	if (c->partial_ns && c->partial_ns < from)
		from = c->partial_ns;
	if (c->stuck_ns && c->stuck_ns < from)
		from = c->stuck_ns;
	return from == UINT64_MAX ? 0 : from + c->limits.timeout_ns;
}

static void conn_arm(struct conn *c)
{
	uint64_t now = loop_now_ns(c->loop), due = conn_due(c);

	if (due == c->due_ns)
		return;
	c->due_ns = due;
	if (due == 0)
		loop_timer_stop(&c->timer);
	else
		loop_timer_start(&c->timer, due > now ? due - now : 0, 0, conn_on_timer);
}

static void conn_on_timer(struct loop_timer *t)
{
	struct conn *c = container_of(t, struct conn, timer);
	uint64_t due = conn_due(c);

	c->due_ns = 0;
	if (due == 0 || due > loop_now_ns(c->loop)) {
		conn_arm(c);
		return;
	}
	metrics_add(METRIC_sessions_evicted, 1);
	if (c->stuck_ns)
		conn_end(c, "does not read its replies");
	else if (!c->greeted)
		conn_end(c, "did not say hello in time");
	else
		conn_end(c, "did not finish a frame in time");
}

/* ---- output ---- */

/* Served is only while less than half of the limit waits, and then whatever comes of it: an answer is as long as it is. */
static void conn_out_init(struct conn *c)
{
	wire_out_init(&c->out, c->limits.output_bytes / 2 + WIRE_MAX_FRAME);
}

static bool conn_is_full(const struct conn *c)
{
	return wire_out_bytes(&c->out) > c->limits.output_bytes / 2;
}

/* False: the connection ended. */
static bool conn_flush(struct conn *c)
{
	size_t before = wire_out_bytes(&c->out);
	int r;

	if (before == 0)
		return true;
	r = wire_out_flush(&c->out, c->fd);
	metrics_add(METRIC_bytes_sent, before - wire_out_bytes(&c->out));
	c->blocked = r == WIRE_E_AGAIN;
	if (r == 0)
		c->stuck_ns = 0;
	else if (r == WIRE_E_AGAIN && (c->stuck_ns == 0 || wire_out_bytes(&c->out) < before))
		c->stuck_ns = loop_now_ns(c->loop);
	return r == 0 || r == WIRE_E_AGAIN;
}

/* ---- input ---- */

/* Serves one frame.  False: the connection ended, or reads no more. */
static bool conn_serve(struct conn *c, struct wire_frame *frame)
{
	bool stray = (frame->n_fds > 0 && frame->head.verb != KVBM__VERB__VERB_ADOPT) ||
	             (frame->head.flags & WIRE_FLAG_REPLY);
	int r;

	c->greeted = true;
	c->partial_ns = 0;
	if (stray) {
		wire_frame_close(frame);
		metrics_add(METRIC_frames_bad, 1);
		c->ops->on_bad(c, "a request but adopt carries no descriptors, and none the reply flag");
		conn_drain(c, "broke the protocol");
		return false;
	}
	r = c->ops->on_frame(c, frame);
	wire_frame_close(frame); /* who wants to keep a descriptor has duplicated it */
	assert(c->state != CONN_ENDED);
	if (r == 0)
		return true;
	if (r < 0)
		conn_end(c, "a fault of ours");
	else if (c->state == CONN_OPEN)
		conn_drain(c, "refused");
	return false;
}

/* Serves what is whole, up to @max frames.  False: the connection ended, or reads no more. */
static bool conn_process(struct conn *c, unsigned max)
{
	struct wire_frame frame;
	int r;

	for (unsigned n = 0; n < max; n++) {
		if (conn_is_full(c)) {
			c->more = true;
			return true;
		}
		r = wire_in_next(&c->in, &frame);
		if (r == WIRE_E_AGAIN) {
			c->more = false;
			if (!wire_in_is_partial(&c->in))
				c->partial_ns = 0;
			else if (c->partial_ns == 0)
				c->partial_ns = loop_now_ns(c->loop);
			return true;
		}
		if (r != 0) {
			metrics_add(METRIC_frames_bad, 1);
			c->ops->on_bad(c, wire_in_reason(&c->in));
			conn_drain(c, "broke the protocol");
			return false;
		}
		if (!conn_serve(c, &frame))
			return false;
	}
	c->more = true;
	return true;
}

/* The peer has left, perhaps right after requests that still count.  Serves what it sent, throws the answers away, ends. */
static void conn_finish(struct conn *c)
{
	int r = 0;

	for (unsigned n = 0; c->state == CONN_OPEN && r == 0 && n < READS_AT_END; n++) {
		c->more = false;
		do {
			if (!conn_flush(c)) {
				wire_out_deinit(&c->out);
				conn_out_init(c);
			} else if (conn_is_full(c)) {
				conn_end(c, "left without reading its replies");
				return;
			}
			if (!conn_process(c, FRAMES_PER_TURN))
				break;
		} while (c->more);
		if (c->state == CONN_OPEN)
			r = wire_in_read(&c->in, c->fd);
	}
	if (c->state == CONN_ENDED)
		return;
	(void)conn_flush(c);
	conn_end(c, c->last_reason);
}

/* ---- the turn ---- */

static void conn_update(struct conn *c)
{
	unsigned events = 0;

	if (c->state == CONN_ENDED)
		return;
	if (c->state == CONN_OPEN && !c->more && !conn_is_full(c))
		events |= LOOP_READABLE;
	if (c->blocked)
		events |= LOOP_WRITABLE;
	if (c->watch.events != events)
		loop_watch_set(&c->watch, events);
	conn_arm(c);
}

/* The end of a turn in which something happened: everything answered goes out in one call. */
static void conn_on_turn(struct loop_deferred *d)
{
	struct conn *c = container_of(d, struct conn, turn);

	assert(c->state != CONN_ENDED);
	if (!c->blocked && !conn_flush(c)) {
		conn_finish(c);
		return;
	}
	if (c->state == CONN_DRAINING && wire_out_bytes(&c->out) == 0) {
		conn_end(c, c->last_reason);
		return;
	}
	if (c->state == CONN_OPEN && c->more && !conn_is_full(c)) {
		(void)conn_process(c, FRAMES_PER_TURN);
		if (c->state == CONN_ENDED)
			return;
		loop_defer(c->loop, &c->turn, conn_on_turn);
	}
	conn_update(c);
}

static void conn_read(struct conn *c)
{
	unsigned reads = 0;
	size_t before;
	int r;

	/* A frame larger than the buffer is not worth a turn for each piece. */
	do {
		before = c->in.tail - c->in.head;
		r = wire_in_read(&c->in, c->fd);
		if (r != 0)
			break;
		metrics_add(METRIC_bytes_received, c->in.tail - c->in.head - before);
		if (!conn_process(c, FRAMES_PER_TURN))
			return;
	} while (++reads < READS_PER_TURN && !c->more && wire_in_is_partial(&c->in) && wire_in_may_have_more(&c->in));
	switch (r) {
	case 0:
		break;
	case WIRE_E_AGAIN:
		break;
	case WIRE_E_FULL:
		c->more = true;
		break;
	case WIRE_E_BAD:
		metrics_add(METRIC_frames_bad, 1);
		c->ops->on_bad(c, wire_in_reason(&c->in));
		conn_drain(c, "broke the protocol");
		break;
	default: /* WIRE_E_EOF, or what the socket said */
		conn_finish(c);
	}
}

static void conn_on_event(struct loop_watch *w, unsigned events)
{
	struct conn *c = container_of(w, struct conn, watch);

	assert(c->state != CONN_ENDED);
	if (events & LOOP_ERROR) {
		conn_finish(c);
		return;
	}
	if (events & LOOP_WRITABLE)
		c->blocked = false;
	if ((events & (LOOP_READABLE | LOOP_HANGUP)) && c->state == CONN_OPEN && !c->more && !conn_is_full(c))
		conn_read(c);
	if (c->state != CONN_ENDED)
		loop_defer(c->loop, &c->turn, conn_on_turn);
}

/* ---- life ---- */

/* Where the kernel can, it refuses them at the sender: to close one that somebody made for us may take long. */
void conn_take_descriptors(struct conn *c, bool on)
{
	int value = on;

	(void)setsockopt(c->fd, SOL_SOCKET, SO_PASSRIGHTS, &value, sizeof(value));
}

int conn_init(struct conn *c, struct loop *loop, int fd, const struct conn_limits *limits, const struct conn_ops *ops)
{
	int r;

	thread_assert(THREAD_LOOP);
	assert(fd >= 0 && limits->timeout_ns > 0);
	*c = (struct conn){ .loop = loop, .ops = ops, .limits = *limits, .fd = fd, .state = CONN_OPEN };
	c->since_ns = loop_now_ns(loop);
	conn_take_descriptors(c, false);
	r = loop_watch_start(loop, &c->watch, fd, LOOP_READABLE, conn_on_event);
	if (r < 0) {
		close(fd);
		return error_trace(r);
	}
	loop_timer_init(loop, &c->timer);
	loop_deferred_init(&c->turn);
	wire_in_init(&c->in);
	conn_out_init(c);
	conn_arm(c);
	return 0;
}

void conn_drain(struct conn *c, const char *why)
{
	thread_assert(THREAD_LOOP);
	if (c->state != CONN_OPEN)
		return;
	c->state = CONN_DRAINING;
	c->last_reason = why;
	c->more = false;
	c->greeted = true;
	c->partial_ns = 0;
	if (c->stuck_ns == 0)
		c->stuck_ns = loop_now_ns(c->loop); /* it has one timeout to take the rest */
	loop_defer(c->loop, &c->turn, conn_on_turn);
}

void conn_wake(struct conn *c)
{
	thread_assert(THREAD_LOOP);
	if (c->state != CONN_ENDED)
		loop_defer(c->loop, &c->turn, conn_on_turn);
}

void conn_hangup(struct conn *c)
{
	thread_assert(THREAD_LOOP);
	if (c->state != CONN_ENDED)
		conn_finish(c);
}

void conn_close(struct conn *c, const char *why)
{
	thread_assert(THREAD_LOOP);
	if (c->state != CONN_ENDED)
		conn_end(c, why);
}
