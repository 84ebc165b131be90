/* SPDX-License-Identifier: Apache-2.0 */
/* fault_uring.h: a ring that does everything at once, on the descriptors it is given, and wrongly where it is told to.
 *
 * Takes the place of loop/uring.c under tier/nvme.  Operations are numbered from 1 in the order they are submitted; an order
 * applies to a number, or a predicate decides.  With memfds in the place of drives a whole life takes a millisecond.
 *
 * Power cuts: writes that no flush followed are remembered.  fault_uring_cut() leaves of each all, nothing, or some of its
 * sectors of 512 bytes, chosen by a seed, whatever their order was.
 */
#ifndef TESTS_LIB_FAULT_URING_H
#define TESTS_LIB_FAULT_URING_H

#include "base/rng.h"
#include "loop/uring.h"

enum fault_kind {
	FAULT_NONE = 0,
	FAULT_ERROR, /* -EIO, nothing is done */
	FAULT_SHORT, /* done, but for the second half, and says so */
	FAULT_TEAR,  /* write: only some sectors of 512 bytes, and says all.  Read: the rest is noise, and says all */
	FAULT_LOSE,  /* says all, and does nothing */
	FAULT_MISPLACE, /* write or read 4 KiB further on or back */
	FAULT_DELAY,    /* does it when fault_uring_release() is called, and says so then */
	FAULT_KINDS
};

struct fault_uring {
	struct uring uring; /* first */
	/* What befalls operation @n; NULL: nothing ever. */
	enum fault_kind (*decide)(void *ctx, const struct uring_op *op, uint64_t n);
	void *ctx;
	bool dead; /* does nothing any more, and answers nothing: the power is off, or the process is dead */
	uint64_t n_ops, n_faults, n_kinds[3];
	struct rng rng;
	/* its own */
	struct loop *loop;
	int fds[16];
	uint32_t n_fds;
	struct list due, held;
	struct loop_deferred step;
	struct list unflushed; /* owns: struct fault_write, oldest first */
	bool closing;
	void (*closed)(void *arg);
	void *closed_arg;
	struct loop_deferred close_step;
};

/* The memory is the caller's, and must live until the ring is closed. */
void fault_uring_init(struct fault_uring *f, struct loop *loop, uint64_t seed);

/* What FAULT_DELAY held back is done. */
void fault_uring_release(struct fault_uring *f);
uint32_t fault_uring_held(const struct fault_uring *f);

/* The process is killed, and the machine lives: what was answered is there, whatever else was submitted is, is not, or is in part. */
void fault_uring_kill(struct fault_uring *f);

/* The power goes: from now on it is dead, and the descriptors have what is left. */
void fault_uring_cut(struct fault_uring *f);

#endif
