/* SPDX-License-Identifier: Apache-2.0 */
/* conn.h: one connected socket: bytes in, frames to its owner, bytes out.
 *
 * Loop thread.  Bounded in memory (one largest frame in; half of output_bytes and one largest frame out) and in time (a frame
 * must be whole, and output must move, within timeout_ns).  A peer that pipelines is served a few frames a turn; one that does not read is not read from.
 */
#ifndef KVBMD_SERVER_CONN_H
#define KVBMD_SERVER_CONN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "loop/loop.h"
#include "proto/wire.h"

enum { CONN_E_LAST = 1 };

struct conn;
struct conn_ops {
	/* A frame came; its descriptors are closed by the caller.  May write to conn->out, may not call conn_close().
	 * Outcome: CONN_E_LAST, close when what was written is sent.  Fault: close now. */
	int (*on_frame)(struct conn *c, const struct wire_frame *frame);

	/* The peer breaks the protocol (@reason is static); may write a last word.  The connection is closed after it. */
	void (*on_bad)(struct conn *c, const char *reason);

	/* The connection has ended, once, whoever ended it; @why is static text, NULL when the peer simply left.  The
	 * socket is closed already.  Never from inside conn_init(). */
	void (*on_gone)(struct conn *c, const char *why);

	/* The memory is the owner's again: after on_gone, never inline. */
	void (*on_closed)(struct conn *c);
};

struct conn_limits {
	uint64_t timeout_ns;   /* for a whole frame, for output to move, and for the first frame */
	uint32_t output_bytes; /* waiting output, headers included; with more than half of it no request is served */
};

struct conn {
	struct loop *loop; /* borrows */
	const struct conn_ops *ops;
	struct conn_limits limits;
	struct loop_watch watch;
	struct loop_timer timer;
	struct loop_deferred turn;
	struct wire_in in;
	struct wire_out out;
	int fd;                  /* owns; -1 once ended */
	uint8_t state;           /* enum conn_state in conn.c */
	uint8_t closing;         /* close callbacks still to come */
	bool greeted;            /* the first frame came */
	bool more;               /* whole frames may wait in @in */
	bool blocked;            /* the socket takes no more output now */
	uint64_t since_ns;       /* when it was made */
	uint64_t partial_ns;     /* since when a part of a frame waits; 0: none does */
	uint64_t stuck_ns;       /* since when output does not move; 0: it does */
	uint64_t due_ns;         /* what the timer was started for; 0: it does not run */
	const char *last_reason; /* why it drains; NULL: not a failure */
};

/* Takes @fd over in any case.  Faults only; after a fault nothing needs closing. */
_must_check_ int conn_init(struct conn *c, struct loop *loop, int fd, const struct conn_limits *limits,
                           const struct conn_ops *ops);

/* May requests carry descriptors?  No, until somebody says so. */
void conn_take_descriptors(struct conn *c, bool on);

/* Sends what waits, reads no more, then ends.  @why as in on_gone. */
void conn_drain(struct conn *c, const char *why);

/* Something was written to c->out outside of on_frame: it goes out at the end of this turn. */
void conn_wake(struct conn *c);

/* The peer is known to have left: serves what it had sent, then ends.  Calls on_gone inline.  Harmless when it has ended. */
void conn_hangup(struct conn *c);

/* Ends at once.  Calls on_gone inline.  Harmless when it has ended. */
void conn_close(struct conn *c, const char *why);

#endif
