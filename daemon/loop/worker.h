/* SPDX-License-Identifier: Apache-2.0 */
/* Threads for what the loop must not do itself: checksums, big copies, first-touching memory, blocking libraries.
 *
 * Loop thread only.  A job belongs to the pool from a worker_submit() that returned 0 until done() is called.
 */
#ifndef LOOP_WORKER_H
#define LOOP_WORKER_H

#include <stdbool.h>

#include "loop/loop.h"
#include "loop/mailbox.h"

enum {
	WORKER_E_FULL = 1, /* as many jobs wait as may: try again when one is done */
	WORKER_E_CLOSING,  /* worker_pool_close() was called */
};

struct worker_pool;

struct job {
	/* On a worker thread; touches nothing but the job and what it points to.  Others wait behind it: what takes longer than a few
	 * milliseconds is cut in pieces, or asks worker_pool_waits(), and is submitted again. */
	void (*run)(struct job *job);
	void (*done)(struct job *job); /* on the loop thread, exactly once, after run; may free or submit it again */
	/* the pool's */
	struct worker_pool *pool;
	struct list link;
	struct mail mail;
};

/* @n_threads >= 1; at most @max_waiting jobs wait for a thread.  @mailbox outlives the pool.  Faults only. */
int worker_pool_new(struct mailbox *mailbox, unsigned n_threads, unsigned max_waiting, struct worker_pool **ret_pool);

/* 0: job->done() will come, never inline.  WORKER_E_FULL, WORKER_E_CLOSING: it will not. */
int worker_submit(struct worker_pool *pool, struct job *job);

/* On a worker thread: does another job wait for one? */
bool worker_pool_waits(struct worker_pool *pool);

unsigned worker_pool_threads(const struct worker_pool *pool);

/* Jobs submitted and not done. */
unsigned worker_pool_jobs(const struct worker_pool *pool);

/* No new jobs; those submitted still run and are done.  Then the threads end, the memory goes and closed(arg) is called,
 * never inline; @mailbox may be closed there.  @closed may be NULL. */
void worker_pool_close(struct worker_pool *pool, void (*closed)(void *arg), void *arg);

#endif
