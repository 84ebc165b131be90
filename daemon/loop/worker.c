/* SPDX-License-Identifier: Apache-2.0 */
/* N threads and one bounded queue.
 *
 * Owns: the threads, and the jobs between submit and done.
 * Invariant: each job submitted is in exactly one place: waiting, running on one thread, or in the mailbox.
 * Deliberately not here: priorities, cancelling (whoever no longer wants a result ignores it in done()).
 *
 * Not uv_queue_work(): its four threads are shared with whatever else uses libuv in the process, and its queue has no
 * bound.
 *
 * The end: a thread that finds the queue empty while closing posts its farewell as its last act.  Mails of one thread
 * keep their order, so with the last farewell every job is done, and joining waits for a few instructions only.
 */
#include "loop/worker.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/error.h"
#include "base/thread.h"

struct worker {
	struct worker_pool *pool; /* borrows */
	pthread_t thread;
	struct mail farewell;
};

struct worker_pool {
	/* fixed */
	struct mailbox *mailbox; /* borrows */
	unsigned max_waiting;

	/* loop thread */
	unsigned n_jobs;     /* submitted and not done */
	unsigned n_threads;  /* started */
	unsigned n_farewell; /* delivered */
	void (*closed)(void *arg);
	void *arg;

	/* any thread, under mtx: held for a few instructions only, so the loop may take it */
	pthread_mutex_t mtx;
	pthread_cond_t cond;
	struct list waiting; /* owns */
	unsigned n_waiting;
	bool closing;
	bool stillborn; /* worker_pool_new() failed half-way: no farewells */

	struct worker workers[];
};

/* mtx is held; NULL: closing, and nothing is left */
static struct job *worker_take(struct worker_pool *pool)
{
	struct list *it;

	while (!(it = list_pop(&pool->waiting))) {
		assert(pool->n_waiting == 0);
		if (pool->closing)
			return NULL;
		pthread_cond_wait(&pool->cond, &pool->mtx);
	}
	assert(pool->n_waiting > 0);
	pool->n_waiting--;
	return container_of(it, struct job, link);
}

/* A worker computes for as long as the loop takes for many turns: in the moment in which that gives it a job it does not take the loop's place.  Its share of a busy
 * machine is that of others all the same (no nice value): blocks that come up wait for their checksum.  Where somebody has chosen another policy for the process (chrt),
 * that stays. */
static void worker_step_back(void)
{
	struct sched_param param = { 0 };

	if (sched_getscheduler(0) == SCHED_OTHER)
		(void)sched_setscheduler(0, SCHED_BATCH, &param); /* of this thread only */
}

static void *worker_main(void *arg)
{
	struct worker *worker = arg;
	struct worker_pool *pool = worker->pool;
	struct job *job;
	bool stillborn;

	thread_set_role(THREAD_WORKER);
	worker_step_back();
	pthread_mutex_lock(&pool->mtx);
	while ((job = worker_take(pool))) {
		pthread_mutex_unlock(&pool->mtx);
		job->run(job);
		mailbox_post(pool->mailbox, &job->mail);
		pthread_mutex_lock(&pool->mtx);
	}
	stillborn = pool->stillborn;
	pthread_mutex_unlock(&pool->mtx);
	if (!stillborn)
		mailbox_post(pool->mailbox, &worker->farewell);
	return NULL;
}

static void pool_free(struct worker_pool *pool)
{
	int r;

	for (unsigned i = 0; i < pool->n_threads; i++) {
		r = pthread_join(pool->workers[i].thread, NULL);
		assert(r == 0);
	}
	assert(list_empty(&pool->waiting) && pool->n_jobs == 0);
	pthread_cond_destroy(&pool->cond);
	pthread_mutex_destroy(&pool->mtx);
	free(pool);
}

static void worker_on_farewell(struct mail *mail)
{
	struct worker_pool *pool = container_of(mail, struct worker, farewell)->pool;
	void (*closed)(void *arg) = pool->closed;
	void *arg = pool->arg;

	if (++pool->n_farewell < pool->n_threads)
		return;
	pool_free(pool);
	if (closed)
		closed(arg);
}

static int worker_start(struct worker_pool *pool, unsigned i)
{
	struct worker *worker = &pool->workers[i];
	sigset_t all, before;
	char name[16];
	int r;

	worker->pool = pool;
	worker->farewell.deliver = worker_on_farewell;
	/* Signals are the loop's: a new thread inherits the mask, so there is no moment in which it could take one.  Its
	 * own faults still kill the process. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	r = pthread_create(&worker->thread, NULL, worker_main, worker);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (r != 0)
		return error_origin(-r);
	(void)snprintf(name, sizeof(name), "kvbmd-work-%u", i % 1000);
	(void)pthread_setname_np(worker->thread, name);
	return 0;
}

static void pool_end(struct worker_pool *pool, bool stillborn)
{
	pthread_mutex_lock(&pool->mtx);
	assert(!pool->closing);
	pool->closing = true;
	pool->stillborn = stillborn;
	pthread_cond_broadcast(&pool->cond);
	pthread_mutex_unlock(&pool->mtx);
}

int worker_pool_new(struct mailbox *mailbox, unsigned n_threads, unsigned max_waiting, struct worker_pool **ret_pool)
{
	struct worker_pool *pool;
	int r;

	thread_assert(THREAD_LOOP);
	assert(n_threads >= 1 && max_waiting >= 1);
	pool = calloc(1, sizeof(*pool) + n_threads * sizeof(pool->workers[0]));
	if (!pool)
		return error_origin(-ENOMEM);
	pool->mailbox = mailbox;
	pool->max_waiting = max_waiting;
	pthread_mutex_init(&pool->mtx, NULL);
	pthread_cond_init(&pool->cond, NULL);
	list_init(&pool->waiting);
	while (pool->n_threads < n_threads) {
		r = worker_start(pool, pool->n_threads);
		if (r < 0) {
			pool_end(pool, true);
			pool_free(pool);
			return error_trace(r);
		}
		pool->n_threads++;
	}
	*ret_pool = pool;
	return 0;
}

static void worker_on_done(struct mail *mail)
{
	struct job *job = container_of(mail, struct job, mail);
	struct worker_pool *pool = job->pool;

	assert(pool->n_jobs > 0);
	pool->n_jobs--;
	job->done(job); /* may free or submit it again */
}

int worker_submit(struct worker_pool *pool, struct job *job)
{
	int r = 0;

	thread_assert(THREAD_LOOP);
	assert(job->run && job->done);
	pthread_mutex_lock(&pool->mtx);
	if (pool->closing) {
		r = WORKER_E_CLOSING;
	} else if (pool->n_waiting >= pool->max_waiting) {
		r = WORKER_E_FULL;
	} else {
		job->pool = pool;
		job->mail.deliver = worker_on_done;
		list_add_tail(&pool->waiting, &job->link);
		pool->n_waiting++;
		pool->n_jobs++;
	}
	pthread_mutex_unlock(&pool->mtx);
	if (r == 0)
		pthread_cond_signal(&pool->cond); /* once it can have the mutex */
	return r;
}

bool worker_pool_waits(struct worker_pool *pool)
{
	bool waits;

	thread_assert(THREAD_WORKER);
	pthread_mutex_lock(&pool->mtx);
	waits = pool->n_waiting > 0;
	pthread_mutex_unlock(&pool->mtx);
	return waits;
}

unsigned worker_pool_threads(const struct worker_pool *pool)
{
	thread_assert(THREAD_LOOP);
	return pool->n_threads;
}

unsigned worker_pool_jobs(const struct worker_pool *pool)
{
	thread_assert(THREAD_LOOP);
	return pool->n_jobs;
}

void worker_pool_close(struct worker_pool *pool, void (*closed)(void *arg), void *arg)
{
	thread_assert(THREAD_LOOP);
	pool->closed = closed;
	pool->arg = arg;
	pool_end(pool, false);
}
