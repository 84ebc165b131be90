/* SPDX-License-Identifier: Apache-2.0 */
/* A device as the loop sees it: jobs on their way and back, what is known of its state, starting and closing.
 *
 * Owns: the queue, the watch over driver calls.
 * Invariant: each job under way is in exactly one place: the queue, the thread (its lists, or the job it is at), or the
 * mailbox; and on gpu->jobs in any case.
 * Deliberately not here: the thread (gpu_cuda_thread.c), what jobs do (gpu_cuda_memory.c, gpu_cuda_copy.c), contexts
 * (gpu_cuda_life.c).
 *
 * A call that does not return.  The thread notes when each driver call should be over; while jobs are under way, or the
 * device closes, a timer of the loop looks at that.  Past it the loop says that the device is lost and answers what waits
 * in the queue; what the thread has is touched by nobody else, because the driver may still be at it.  If the call returns
 * after all, it returns an error to the thread, which then makes a new life.  When the daemon is closing the loop does not
 * wait: the thread is given up, and ends the moment its call returns, touching nothing.
 */
#include "gpu/gpu.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/error.h"
#include "base/thread.h"
#include "gpu/gpu_cuda_state.h"

#define WATCH_MIN_NS UINT64_C(10000000)

static void gpu_on_watch(struct loop_timer *timer);

static void gpu_watch_update(struct gpu *gpu)
{
	uint64_t every_ns = gpu->options.call_deadline_ns / 4;
	bool wanted = (gpu->n_jobs > 0 || gpu->closing) && !gpu->ended && !gpu->given_up;

	if (every_ns < WATCH_MIN_NS)
		every_ns = WATCH_MIN_NS;
	if (!wanted)
		loop_timer_stop(&gpu->watch);
	else if (!loop_timer_is_running(&gpu->watch))
		loop_timer_start(&gpu->watch, every_ns, every_ns, gpu_on_watch);
}

static void gpu_on_watch_closed(struct loop_timer *timer)
{
	struct gpu *gpu = container_of(timer, struct gpu, watch);
	void (*closed)(void *arg) = gpu->closed;
	void *arg = gpu->closed_arg;
	bool last = true;

	if (gpu->given_up) {
		pthread_mutex_lock(&gpu->mtx);
		gpu->loop_gone = true;
		last = gpu->thread_gone;
		pthread_mutex_unlock(&gpu->mtx);
	}
	if (last)
		gpu_free(gpu);
	if (closed)
		closed(arg);
}

static void gpu_try_finish(struct gpu *gpu)
{
	bool posted;

	if (gpu->watch_closed || !gpu->closing || !(gpu->ended || gpu->given_up) || gpu->n_jobs > 0)
		return;
	pthread_mutex_lock(&gpu->mtx);
	posted = gpu->state_posted;
	pthread_mutex_unlock(&gpu->mtx);
	if (posted)
		return;
	gpu->watch_closed = true;
	loop_timer_close(&gpu->watch, gpu_on_watch_closed);
}

/* The news, from what the thread has noted: a loss between two times online is told too. */
static void gpu_tell_user(struct gpu *gpu)
{
	uint64_t losses;
	bool online;

	pthread_mutex_lock(&gpu->mtx);
	losses = gpu->losses;
	online = gpu->is_online;
	memcpy(gpu->why_told, gpu->why, sizeof(gpu->why_told));
	pthread_mutex_unlock(&gpu->mtx);
	if (gpu->closing)
		return;
	if (gpu->online && losses != gpu->losses_told) {
		gpu->online = false;
		gpu->options.on_state(gpu->options.ctx, false, gpu->why_told);
	}
	gpu->losses_told = losses;
	if (online && !gpu->online && !gpu->closing) {
		gpu->online = true;
		gpu->options.on_state(gpu->options.ctx, true, "");
	}
}

static void gpu_on_state_mail(struct mail *mail)
{
	struct gpu *gpu = container_of(mail, struct gpu, state_mail);

	pthread_mutex_lock(&gpu->mtx);
	gpu->state_posted = false;
	pthread_mutex_unlock(&gpu->mtx);
	gpu_tell_user(gpu);
	gpu_try_finish(gpu);
}

static int gpu_submit(struct gpu *gpu, struct gpu_job *job, enum gpu_kind kind);

/* The job is its caller's again. */
static void gpu_job_done(struct gpu *gpu, struct gpu_job *job, int r)
{
	enum gpu_kind kind = job->kind;

	assert(gpu->n_jobs > 0 && job->gpu == gpu);
	gpu->n_jobs--;
	list_del(&job->all);
	job->gpu = NULL;
	switch (kind) {
	case GPU_KIND_NONE:
		assert(!"no job");
		break;
	case GPU_KIND_ALLOC:
	case GPU_KIND_IMPORT:
	case GPU_KIND_CLOSE: {
		struct gpu_mem *mem = container_of(job, struct gpu_mem, job);

		if (kind == GPU_KIND_IMPORT && r != 0 && mem->share == GPU_SHARE_FD)
			gpu_fd_close(&mem->fd);
		mem->done(mem, r);
		break;
	}
	case GPU_KIND_EVENT_IMPORT:
	case GPU_KIND_EVENT_CLOSE: {
		struct gpu_event *event = container_of(job, struct gpu_event, job);

		event->done(event, r);
		break;
	}
	case GPU_KIND_PIN:
		if (container_of(job, struct gpu_pin, job)->unpin)
			(void)gpu_submit(gpu, job, GPU_KIND_UNPIN);
		break;
	case GPU_KIND_UNPIN: {
		struct gpu_pin *pin = container_of(job, struct gpu_pin, job);

		gpu->n_pins--;
		pin->done(pin, r);
		break;
	}
	case GPU_KIND_COPY: {
		struct gpu_copy *copy = container_of(job, struct gpu_copy, job);

		gpu->n_copies--;
		copy->done(copy, r);
		break;
	}
	}
}

static void gpu_on_job_mail(struct mail *mail)
{
	struct gpu_job *job = container_of(mail, struct gpu_job, mail);
	struct gpu *gpu = job->gpu;

	gpu_job_done(gpu, job, job->result);
	gpu_watch_update(gpu);
	gpu_try_finish(gpu);
}

/* Cannot fail; the value is for those who return it. */
static int gpu_submit(struct gpu *gpu, struct gpu_job *job, enum gpu_kind kind)
{
	bool over;

	job->gpu = gpu;
	job->kind = (uint8_t)kind;
	job->posted = false;
	job->mail.deliver = gpu_on_job_mail;
	list_add_tail(&gpu->jobs, &job->all);
	gpu->n_jobs++;
	pthread_mutex_lock(&gpu->mtx);
	over = gpu->over;
	if (!over) {
		list_add_tail(&gpu->queue, &job->link);
		pthread_cond_signal(&gpu->cond);
	}
	pthread_mutex_unlock(&gpu->mtx);
	/* Only an unpinning that had to wait for its pinning can come as late as that; what was pinned is gone. */
	assert(!over || kind == GPU_KIND_UNPIN);
	if (over)
		gpu_job_done(gpu, job, GPU_E_LOST);
	gpu_watch_update(gpu);
	return 0;
}

/* What waits in the queue is nobody else's.  What ends something stays for the thread, or for the end. */
static void gpu_fail_queue(struct gpu *gpu)
{
	struct list failed, *it;

	list_init(&failed);
	pthread_mutex_lock(&gpu->mtx);
	list_for_each_safe(link, next, &gpu->queue) {
		uint8_t kind = container_of(link, struct gpu_job, link)->kind;

		if (kind != GPU_KIND_ALLOC && kind != GPU_KIND_IMPORT && kind != GPU_KIND_EVENT_IMPORT &&
		    kind != GPU_KIND_COPY)
			continue;
		list_del(link);
		list_add_tail(&failed, link);
	}
	pthread_mutex_unlock(&gpu->mtx);
	while ((it = list_pop(&failed))) {
		struct gpu_job *job = container_of(it, struct gpu_job, link);

		if (job->kind == GPU_KIND_COPY)
			gpu_copy_flag_failed(container_of(job, struct gpu_copy, job));
		gpu_job_done(gpu, job, GPU_E_LOST);
	}
}

/* mtx was held when the thread was marked as abandoned, inside a driver call: it will touch no job any more. */
static void gpu_give_up(struct gpu *gpu)
{
	assert(gpu->closing && !gpu->given_up);
	gpu->given_up = true;
	(void)pthread_detach(gpu->thread);
	list_for_each_safe(it, next, &gpu->jobs) {
		struct gpu_job *job = container_of(it, struct gpu_job, all);

		if (job->posted)
			continue; /* its mail is on its way */
		if (job->kind == GPU_KIND_COPY)
			gpu_copy_flag_failed(container_of(job, struct gpu_copy, job));
		gpu_job_done(gpu, job, GPU_E_LOST);
	}
	gpu_watch_update(gpu);
	gpu_try_finish(gpu);
}

static void gpu_on_watch(struct loop_timer *timer)
{
	struct gpu *gpu = container_of(timer, struct gpu, watch);
	uint64_t now_ns = loop_now_ns(gpu->options.loop);
	bool hung = false, abandoned = false;

	pthread_mutex_lock(&gpu->mtx);
	if (gpu->call_due_ns != 0 && gpu->call_due_ns <= now_ns) {
		abandoned = gpu->abandoned = gpu->over = gpu->closing;
		hung = !gpu->hung;
		gpu->hung = true;
		if (gpu->is_online)
			gpu->losses++;
		gpu->is_online = false;
		(void)snprintf(gpu->why, sizeof(gpu->why), "the driver does not answer");
	}
	pthread_mutex_unlock(&gpu->mtx);
	if (abandoned) {
		gpu_give_up(gpu);
	} else if (hung) {
		gpu_tell_user(gpu);
		gpu_fail_queue(gpu);
	}
}

static void gpu_on_farewell(struct mail *mail)
{
	struct gpu *gpu = container_of(mail, struct gpu, farewell);
	int r = pthread_join(gpu->thread, NULL);

	assert(r == 0 && gpu->n_jobs == 0);
	gpu->ended = true;
	gpu_watch_update(gpu);
	gpu_try_finish(gpu);
}

int gpu_start(const struct gpu_options *options, struct gpu **ret_gpu)
{
	struct gpu *gpu = calloc(1, sizeof(*gpu));
	pthread_condattr_t monotonic;
	sigset_t all, before;
	int r;

	thread_assert(THREAD_LOOP);
	assert(options->on_state && options->max_copies > 0 && options->call_deadline_ns > 0 &&
	       options->copy_deadline_ns > 0);
	if (!gpu)
		return error_origin(-ENOMEM);
	gpu->options = *options;
	if (gpu->options.batch_piece_bytes == 0)
		gpu->options.batch_piece_bytes = GPU_BATCH_PIECE_BYTES;
	pthread_mutex_init(&gpu->mtx, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&gpu->cond, &monotonic);
	pthread_condattr_destroy(&monotonic);
	list_init(&gpu->jobs);
	list_init(&gpu->queue);
	list_init(&gpu->pins);
	list_init(&gpu->mems);
	list_init(&gpu->copies);
	gpu->state_mail.deliver = gpu_on_state_mail;
	gpu->farewell.deliver = gpu_on_farewell;
	sigfillset(&all); /* signals are the loop's */
	pthread_sigmask(SIG_SETMASK, &all, &before);
	r = pthread_create(&gpu->thread, NULL, gpu_main, gpu);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (r != 0) {
		gpu_free(gpu);
		return error_origin(-r);
	}
	(void)pthread_setname_np(gpu->thread, "kvbmd-gpu");
	loop_timer_init(options->loop, &gpu->watch);
	*ret_gpu = gpu;
	return 0;
}

bool gpu_is_online(const struct gpu *gpu)
{
	thread_assert(THREAD_LOOP);
	return gpu->online;
}

const char *gpu_why(const struct gpu *gpu)
{
	thread_assert(THREAD_LOOP);
	return gpu->online ? "" : gpu->why_told;
}

void gpu_stat(const struct gpu *gpu, struct gpu_stat *ret_stat)
{
	thread_assert(THREAD_LOOP);
	*ret_stat = (struct gpu_stat){
		.device_bytes = gpu->device_bytes,
		.up_bytes = gpu->up_bytes,
		.down_bytes = gpu->down_bytes,
		.copies = gpu->copies_done,
		.batches = gpu->batches,
		.kernels = gpu->kernels,
		.losses = gpu->losses_told,
		.pin_failures = gpu->pin_failures,
		.copies_now = gpu->n_copies,
		.jobs_now = gpu->n_jobs,
		.pins = gpu->n_pins,
	};
}

void gpu_close(struct gpu *gpu, void (*closed)(void *arg), void *arg)
{
	thread_assert(THREAD_LOOP);
	assert(!gpu->closing);
	gpu->closing = true;
	gpu->online = false;
	gpu->closed = closed;
	gpu->closed_arg = arg;
	pthread_mutex_lock(&gpu->mtx);
	gpu->stop = true;
	pthread_cond_signal(&gpu->cond);
	pthread_mutex_unlock(&gpu->mtx);
	gpu_watch_update(gpu);
}

/* ---- starts ---- */

int gpu_mem_alloc(struct gpu *gpu, struct gpu_mem *mem, void (*done)(struct gpu_mem *mem, int r))
{
	thread_assert(THREAD_LOOP);
	assert(mem->bytes > 0 && mem->bytes % GPU_MEM_GRAIN == 0 && !mem->job.gpu);
	mem->fd = -1;
	if (!gpu->online)
		return GPU_E_LOST;
	mem->done = done;
	mem->open = mem->imported = false;
	return gpu_submit(gpu, &mem->job, GPU_KIND_ALLOC);
}

int gpu_mem_import(struct gpu *gpu, struct gpu_mem *mem, void (*done)(struct gpu_mem *mem, int r))
{
	thread_assert(THREAD_LOOP);
	assert(mem->bytes > 0 && mem->share != GPU_SHARE_NONE && !mem->job.gpu);
	if (!gpu->online)
		return GPU_E_LOST;
	mem->done = done;
	mem->open = false;
	mem->imported = true;
	return gpu_submit(gpu, &mem->job, GPU_KIND_IMPORT);
}

void gpu_mem_close(struct gpu *gpu, struct gpu_mem *mem, void (*done)(struct gpu_mem *mem, int r))
{
	thread_assert(THREAD_LOOP);
	assert(!gpu->closing && !mem->job.gpu);
	mem->done = done;
	(void)gpu_submit(gpu, &mem->job, GPU_KIND_CLOSE);
}

int gpu_event_import(struct gpu *gpu, struct gpu_event *event, void (*done)(struct gpu_event *event, int r))
{
	thread_assert(THREAD_LOOP);
	assert(!event->job.gpu);
	if (!gpu->online)
		return GPU_E_LOST;
	event->done = done;
	event->open = false;
	return gpu_submit(gpu, &event->job, GPU_KIND_EVENT_IMPORT);
}

void gpu_event_close(struct gpu *gpu, struct gpu_event *event, void (*done)(struct gpu_event *event, int r))
{
	thread_assert(THREAD_LOOP);
	assert(!gpu->closing && !event->job.gpu);
	event->done = done;
	(void)gpu_submit(gpu, &event->job, GPU_KIND_EVENT_CLOSE);
}

void gpu_pin(struct gpu *gpu, struct gpu_pin *pin, void *base, uint64_t bytes)
{
	thread_assert(THREAD_LOOP);
	assert(!gpu->closing && bytes > 0);
	*pin = (struct gpu_pin){ .base = base, .bytes = bytes };
	list_init(&pin->pins);
	gpu->n_pins++;
	(void)gpu_submit(gpu, &pin->job, GPU_KIND_PIN);
}

void gpu_unpin(struct gpu *gpu, struct gpu_pin *pin, void (*done)(struct gpu_pin *pin, int r))
{
	thread_assert(THREAD_LOOP);
	assert(!gpu->closing && !pin->unpin);
	pin->done = done;
	pin->unpin = true;
	if (!pin->job.gpu) /* else when the pinning is done */
		(void)gpu_submit(gpu, &pin->job, GPU_KIND_UNPIN);
}

int gpu_copy_start(struct gpu *gpu, struct gpu_copy *copy)
{
	thread_assert(THREAD_LOOP);
	assert(copy->done && copy->layout && copy->n_blocks > 0 && copy->n_blocks <= GPU_COPY_MAX_BLOCKS && !copy->job.gpu);
	if (!gpu->online)
		return GPU_E_LOST;
	if (gpu->n_copies >= gpu->options.max_copies)
		return GPU_E_FULL;
	gpu->n_copies++;
	atomic_init(&copy->cancelled, false);
	copy->due_ns = loop_now_ns(gpu->options.loop) + copy->wait_ns;
	copy->bytes = 0;
	return gpu_submit(gpu, &copy->job, GPU_KIND_COPY);
}

void gpu_copy_cancel(struct gpu_copy *copy)
{
	thread_assert(THREAD_LOOP);
	atomic_store(&copy->cancelled, true);
}
