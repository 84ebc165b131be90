/* SPDX-License-Identifier: Apache-2.0 */
/* Work in the background of the host tier.
 *
 * Owns: regions that are dying, and the jobs.
 * Invariant: while a region has jobs (busy), it is neither unmapped nor freed.
 * Deliberately not here: budgets, and when to make regions (host.c).
 */
#include "tier/host_work.h"

#include <stdlib.h>

#include "base/assert.h"
#include "base/error.h"

#define TOUCH_BYTES (UINT64_C(64) << 20) /* of one job, while no other waits for it */
#define PUNCH_BYTES (UINT64_C(16) << 20) /* of one job, a few milliseconds; up to here the loop does it */
#define RETRY_NS UINT64_C(100000000)

/* ---- on a worker ---- */

static void touch_run(struct job *job)
{
	struct host_touch *t = container_of(job, struct host_touch, job);

	/* In small steps, because the kernel holds off whoever wants to map something meanwhile; and no more of them once another job waits: somebody may wait for
	 * that one, as for the checksum of a block that comes up. */
	while (t->r == 0 && t->done < t->size && !atomic_load(&t->region->stop)) {
		uint64_t offset = t->offset + t->done, left = t->size - t->done;
		uint64_t n = left < REGION_GRAIN ? left : REGION_GRAIN;

		if (t->pass > 0)
			nodes_bind(&t->host->nodes, &t->map, offset, n, true);
		t->r = region_populate(t->map.base + offset, n);
		if (t->r == 0)
			t->done += n;
		if (worker_pool_waits(job->pool))
			break;
	}
	/* Of one that was dropped meanwhile, huge pages may have gone to others already. */
	if (t->r < 0 && !atomic_load(&t->region->stop))
		(void)error_origin(t->r);
}

static void host_punch_piece(struct host_region *hr)
{
	uint64_t left = hr->region.size - hr->punched, n = left < PUNCH_BYTES ? left : PUNCH_BYTES;

	region_punch(&hr->region, hr->punched, n);
	hr->punched += n;
}

static void punch_run(struct job *job)
{
	struct host_region *hr = container_of(job, struct host_region, punch);

	if (hr->keep)
		region_close(&hr->region); /* takes as long, where nobody else maps it */
	else
		host_punch_piece(hr);
}

/* ---- back on the loop ---- */

static void host_region_free(struct host_region *hr)
{
	assert(hr->busy == 0);
	list_del(&hr->link);
	list_del(&hr->todo);
	region_close(&hr->region);
	free(hr);
}

static void host_job_done(struct host *h)
{
	assert(h->n_busy > 0);
	h->n_busy--;
	host_work_kick(h);
	if (host_work_is_quiet(h))
		host_on_quiet(h);
}

static void punch_done(struct job *job)
{
	struct host_region *hr = container_of(job, struct host_region, punch);
	struct host *h = hr->host;

	assert(hr->state == HOST_DYING && hr->busy == 1);
	hr->busy--;
	if (hr->keep || hr->punched == hr->region.size)
		host_region_free(hr);
	host_job_done(h); /* hands out the next piece */
}

/* One is finished before another is begun, and those in use before those that are only prepared. */
static void host_touch_later(struct host *h, struct host_region *hr)
{
	const struct list *first = list_first(&h->todo);

	if (first && hr->state == HOST_PREPARED && container_of(first, struct host_region, todo)->state == HOST_OUT)
		list_add_tail(&h->todo, &hr->todo);
	else
		list_add_head(&h->todo, &hr->todo);
}

static void touch_done(struct job *job)
{
	struct host_touch *t = container_of(job, struct host_touch, job);
	struct host_region *hr = t->region;
	struct host *h = t->host;

	assert(hr && hr->busy > 0);
	t->region = NULL;
	hr->busy--;
	if (hr->state != HOST_DYING && t->pass == hr->pass) {
		hr->touched += t->done;
		h->populated_bytes += t->done;
		/* A page the machine cannot give: the rest is left to who uses it. */
		if (t->r == 0 && hr->touched < hr->region.size)
			host_touch_later(h, hr);
		else
			hr->present = true;
	}
	host_job_done(h);
}

/* ---- handing out ---- */

static void host_on_retry(struct loop_timer *timer)
{
	struct host *h = container_of(timer, struct host, retry);

	host_work_kick(h);
	if (h->closing && host_work_is_quiet(h)) /* nobody took the work, so no job will come back */
		host_on_quiet(h);
}

static struct host_touch *host_idle_touch(struct host *h)
{
	unsigned n = worker_pool_threads(h->workers); /* none waits in front of others' jobs */

	for (uint32_t i = 0; i < HOST_TOUCHES && i < n; i++)
		if (!h->touches[i].region)
			return &h->touches[i];
	return NULL;
}

/* Full of the work of others: a job of ours that is done comes back here, else the timer. */
static void host_ask_again(struct host *h)
{
	if (h->n_busy == 0)
		loop_timer_start(&h->retry, RETRY_NS, 0, host_on_retry);
}

/* Pages of the pool are few, quickly given back, and reserved for the next region only then. */
static bool punch_is_quick(const struct host *h, const struct host_region *hr)
{
	return !h->workers || hr->region.pages == REGION_PAGES_HUGETLB || hr->region.size <= PUNCH_BYTES;
}

/* False: try again later. */
static bool host_punch(struct host *h, struct host_region *hr)
{
	int r = WORKER_E_CLOSING;

	assert(hr->busy == 0);
	if (!punch_is_quick(h, hr)) {
		hr->punch = (struct job){ .run = punch_run, .done = punch_done };
		r = worker_submit(h->workers, &hr->punch);
	}
	if (r == WORKER_E_FULL)
		return false;
	if (r == 0) {
		hr->busy = 1;
		h->n_busy++;
		return true;
	}
	if (!hr->keep)
		region_punch(&hr->region, 0, hr->region.size); /* clients may map it: closing alone would not give it back */
	host_region_free(hr);
	return true;
}

static bool host_touch_next(struct host *h, struct host_touch *t)
{
	struct host_region *hr = container_of(list_first(&h->todo), struct host_region, todo);
	uint64_t left = hr->region.size - hr->touched;
	int r;

	assert(left > 0 && hr->state != HOST_DYING);
	*t = (struct host_touch){
		.job = { .run = touch_run, .done = touch_done },
		.host = h,
		.region = hr,
		.map = hr->map,
		.offset = hr->touched,
		.size = left < TOUCH_BYTES ? left : TOUCH_BYTES,
		.pass = hr->pass,
	};
	r = worker_submit(h->workers, &t->job);
	if (r != 0) {
		t->region = NULL;
		if (r == WORKER_E_FULL)
			host_ask_again(h);
		return false;
	}
	hr->busy++;
	h->n_busy++;
	list_del(&hr->todo); /* one worker at a time: it may come back with less than it was given */
	return true;
}

void host_work_kick(struct host *h)
{
	struct host_touch *t;

	list_for_each_safe(it, next, &h->dying) {
		struct host_region *hr = container_of(it, struct host_region, link);

		if (hr->busy == 0 && !host_punch(h, hr)) {
			host_ask_again(h);
			return;
		}
	}
	while (h->workers && !h->closing && list_empty(&h->dying) && !list_empty(&h->todo) && (t = host_idle_touch(h)))
		if (!host_touch_next(h, t))
			return;
}

void host_work_end(struct host *h, struct host_region *hr)
{
	list_del(&hr->link);
	list_del(&hr->todo);
	h->populated_bytes -= hr->touched;
	hr->touched = 0;
	hr->keep = h->leaving && hr->state == HOST_OUT;
	hr->state = HOST_DYING;
	list_add_tail(&h->dying, &hr->link);
	atomic_store(&hr->stop, true);
	if (hr->busy > 0 && !hr->keep && punch_is_quick(h, hr))
		region_punch(&hr->region, 0, hr->region.size); /* most of it now; what the workers are at, when they let go */
	host_work_kick(h);
}

bool host_work_is_quiet(const struct host *h)
{
	return h->n_busy == 0 && list_empty(&h->dying);
}
