/* SPDX-License-Identifier: Apache-2.0 */
/* loop/worker.c: each job runs once elsewhere and is done once here, the queue is bounded, closing drains. */
#include "loop/worker.h"

#include <check.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/assert.h"
#include "base/thread.h"

static struct loop *loop;
static struct mailbox *mailbox;
static struct worker_pool *pool;
static pthread_t loop_thread;
static unsigned n_done, n_pool_closed;

static void setup(void)
{
	loop_thread = pthread_self();
	n_done = n_pool_closed = 0;
	thread_set_role(THREAD_LOOP);
	ck_assert_int_eq(loop_new(&loop), 0);
	ck_assert_int_eq(mailbox_new(loop, &mailbox), 0);
}

static void pool_on_closed(void *arg)
{
	ck_assert_ptr_eq(arg, &pool);
	n_pool_closed++;
	pool = NULL;
	loop_stop(loop);
}

static void teardown(void)
{
	if (pool) {
		worker_pool_close(pool, pool_on_closed, &pool);
		ck_assert_uint_eq(n_pool_closed, 0);
		loop_run(loop);
		ck_assert_uint_eq(n_pool_closed, 1);
	}
	mailbox_close(mailbox, NULL, NULL);
	loop = loop_free(loop);
	thread_set_role(THREAD_NONE);
}

struct sum_job {
	struct job job;
	unsigned n, sum, runs, again;
	bool done;
};

static void sum_run(struct job *job)
{
	struct sum_job *s = container_of(job, struct sum_job, job);
	sigset_t mask;

	assert(thread_get_role() == THREAD_WORKER && !pthread_equal(pthread_self(), loop_thread));
	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	assert(sigismember(&mask, SIGTERM) && sigismember(&mask, SIGCHLD));
	s->runs++;
	s->sum = 0;
	for (unsigned i = 1; i <= s->n; i++)
		s->sum += i;
}

static void sum_done(struct job *job)
{
	struct sum_job *s = container_of(job, struct sum_job, job);

	ck_assert(pthread_equal(pthread_self(), loop_thread));
	ck_assert(!s->done);
	ck_assert_uint_eq(s->sum, s->n * (s->n + 1) / 2);
	n_done++;
	if (s->again > 0) {
		s->again--;
		ck_assert_int_eq(worker_submit(pool, job), 0);
		return;
	}
	s->done = true;
	if (worker_pool_jobs(pool) == 0)
		loop_stop(loop);
}

START_TEST(every_job_once)
{
	enum { JOBS = 1000 };
	struct sum_job *jobs = calloc(JOBS, sizeof(*jobs));

	ck_assert_int_eq(worker_pool_new(mailbox, 3, JOBS, &pool), 0);
	for (unsigned i = 0; i < JOBS; i++) {
		jobs[i].job.run = sum_run;
		jobs[i].job.done = sum_done;
		jobs[i].n = i;
		jobs[i].again = i % 3;
		ck_assert_int_eq(worker_submit(pool, &jobs[i].job), 0);
	}
	ck_assert_uint_eq(n_done, 0); /* never inline */
	ck_assert_uint_eq(worker_pool_jobs(pool), JOBS);
	loop_run(loop);
	for (unsigned i = 0; i < JOBS; i++) {
		ck_assert(jobs[i].done);
		ck_assert_uint_eq(jobs[i].runs, 1 + i % 3);
	}
	ck_assert_uint_eq(worker_pool_jobs(pool), 0);
	free(jobs);
}
END_TEST

static sem_t started, go;

static void gate_run(struct job *job)
{
	(void)job;
	sem_post(&started);
	while (sem_wait(&go) != 0)
		;
}

static void gate_done(struct job *job)
{
	(void)job;
	n_done++;
}

START_TEST(queue_is_bounded_and_close_drains)
{
	struct job jobs[6];
	unsigned i;

	memset(jobs, 0, sizeof(jobs));
	sem_init(&started, 0, 0);
	sem_init(&go, 0, 0);
	ck_assert_int_eq(worker_pool_new(mailbox, 2, 3, &pool), 0);
	for (i = 0; i < 6; i++) {
		jobs[i].run = gate_run;
		jobs[i].done = gate_done;
	}
	for (i = 0; i < 2; i++) {
		ck_assert_int_eq(worker_submit(pool, &jobs[i]), 0);
		ck_assert_int_eq(sem_wait(&started), 0); /* it runs, it does not wait any more */
	}
	for (; i < 5; i++)
		ck_assert_int_eq(worker_submit(pool, &jobs[i]), 0);
	ck_assert_int_eq(worker_submit(pool, &jobs[5]), WORKER_E_FULL);
	ck_assert_uint_eq(worker_pool_jobs(pool), 5);
	worker_pool_close(pool, pool_on_closed, &pool);
	ck_assert_int_eq(worker_submit(pool, &jobs[5]), WORKER_E_CLOSING);
	for (i = 0; i < 5; i++)
		sem_post(&go);
	loop_run(loop);
	ck_assert_uint_eq(n_done, 5);
	ck_assert_uint_eq(n_pool_closed, 1);
	ck_assert_ptr_null(pool);
}
END_TEST

static struct {
	int policy, nice;
} found;

static void manner_run(struct job *job)
{
	(void)job;
	found.policy = sched_getscheduler(0);
	found.nice = getpriority(PRIO_PROCESS, 0);
}

/* The loop and the engines come first: a worker is of those that compute, and ten steps nicer than who made it. */
START_TEST(a_worker_steps_back)
{
	struct job job = { .run = manner_run, .done = gate_done };
	int nice = getpriority(PRIO_PROCESS, 0), policy = sched_getscheduler(0);

	ck_assert_int_eq(worker_pool_new(mailbox, 1, 1, &pool), 0);
	ck_assert_uint_eq(worker_pool_threads(pool), 1);
	ck_assert_int_eq(worker_submit(pool, &job), 0);
	while (n_done == 0)
		loop_turn(loop, true);
	ck_assert_int_eq(found.policy, policy == SCHED_OTHER ? SCHED_BATCH : policy);
	ck_assert_int_eq(found.nice, nice); /* blocks that come up wait for it, on a busy machine too */
	ck_assert_int_eq(getpriority(PRIO_PROCESS, 0), nice);
	ck_assert_int_eq(sched_getscheduler(0), policy);
}
END_TEST

START_TEST(idle_pool_closes)
{
	ck_assert_int_eq(worker_pool_new(mailbox, 8, 1, &pool), 0);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("worker");
	TCase *tc = tcase_create("worker");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, every_job_once);
	tcase_add_test(tc, queue_is_bounded_and_close_drains);
	tcase_add_test(tc, a_worker_steps_back);
	tcase_add_loop_test(tc, idle_pool_closes, 0, 5);
	tcase_set_timeout(tc, 30);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
