/* SPDX-License-Identifier: Apache-2.0 */
/* Ties move/'s calculator to the worker pool.  Owns nothing: the job lies in the room that each sum has for it. */
#include "sums.h"

#include "base/assert.h"
#include "base/list.h"

struct sums_job {
	struct job job;
	struct mover_sum *sum;
};
_Static_assert(sizeof(struct sums_job) <= sizeof(((struct mover_sum *)0)->room), "the job fits its room");

static void sums_run(struct job *job)
{
	for (struct mover_sum *s = container_of(job, struct sums_job, job)->sum; s; s = s->next)
		s->sum = mover_sum_of(s);
}

static void sums_done(struct job *job)
{
	struct mover_sum *s = container_of(job, struct sums_job, job)->sum;

	s->cb(s);
}

static int sums_submit(void *ctx, struct mover_sum *s)
{
	struct sums_job *j = (struct sums_job *)(void *)s->room;

	*j = (struct sums_job){ .job = { .run = sums_run, .done = sums_done }, .sum = s };
	return worker_submit(ctx, &j->job);
}

struct mover_calculator sums_on(struct worker_pool *pool)
{
	return (struct mover_calculator){ .sum = sums_submit, .at_once = worker_pool_threads(pool), .ctx = pool };
}
