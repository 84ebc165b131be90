/* SPDX-License-Identifier: Apache-2.0 */
/* Reads, writes and flushes of files, many at once, without waiting: one io_uring, polled by the loop.
 *
 * Loop thread only.  What is submitted in a turn goes to the kernel in one call at its end; of many, some
 * do so in the next turns, because it takes time of each.  Behind struct uring_ops, so
 * that a test can put a layer of faults in the ring's place.
 *
 * The ring can do nothing but read, write and flush, which the kernel is told: a daemon that was taken over cannot open
 * files through it.
 */
#ifndef LOOP_URING_H
#define LOOP_URING_H

#include "loop/loop.h"

enum {
	URING_E_NONE = 1, /* the system has no io_uring, or this process may not use it */
	URING_E_FULL,     /* as many are registered as may */
	URING_E_REFUSED,  /* the system does not register it: use URING_NO_BUFFER */
};

#define URING_NO_BUFFER UINT32_MAX

enum uring_kind { URING_READ, URING_WRITE, URING_FLUSH };

/* The caller's memory, which is the ring's from submit() until cb. */
struct uring_op {
	/* @r: bytes, which may be fewer than asked for, or -errno; for a flush 0 or -errno.  Exactly once, never inline. */
	void (*cb)(struct uring_op *op, int r);
	enum uring_kind kind;
	uint32_t file;   /* of file_add() */
	uint32_t buffer; /* the registered buffer that base..base + length lies in, or URING_NO_BUFFER */
	void *base;
	uint32_t length;
	uint64_t offset;
	struct list link; /* the ring's */
};

struct uring;
struct uring_ops {
	void (*submit)(struct uring *u, struct uring_op *op);

	/* @fd stays the caller's and open until the ring is closed.  Outcome: URING_E_FULL. */
	int (*file_add)(struct uring *u, int fd, uint32_t *ret_file);

	/* Pins the memory, and touches it if nobody has: not quick.  At most 1 GiB.  Outcomes: URING_E_FULL,
	 * URING_E_REFUSED. */
	int (*buffer_add)(struct uring *u, void *base, uint64_t size, uint32_t *ret_buffer);
	/* Nothing that names it is in flight. */
	void (*buffer_drop)(struct uring *u, uint32_t buffer);

	/* What is not as it should be; "" if nothing.  Borrowed until the next call. */
	const char *(*note)(struct uring *u);

	/* Callbacks of what is still in flight will not come; its memory remains the kernel's for as long as that takes.
	 * Then closed(arg), never inline; may be NULL. */
	void (*close)(struct uring *u, void (*closed)(void *arg), void *arg);
};

/* Embedded first. */
struct uring {
	const struct uring_ops *ops;
};

struct uring_config {
	struct loop *loop;
	uint32_t entries; /* four times as many are in flight at most, the rest wait here */
	uint32_t files, buffers;
};

/* Outcome: URING_E_NONE, with errno saying why. */
int uring_new(const struct uring_config *config, struct uring **ret_ring);

#endif
