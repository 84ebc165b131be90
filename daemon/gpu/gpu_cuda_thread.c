/* SPDX-License-Identifier: Apache-2.0 */
/* The thread of a device: what it does in a turn, and the frame around each driver call.
 *
 * Invariant: only this thread makes driver calls for its device (but for the list of devices).
 * Deliberately not here: the loop's side (gpu_cuda.c).
 *
 * While copies are under way it looks again at once where something moved, else every 10 to 200 us; otherwise it sleeps.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"
#include "gpu/gpu_cuda_state.h"

#define POLL_MIN_NS UINT64_C(10000)
#define POLL_MAX_NS UINT64_C(200000)
#define TIMER_SLACK_NS 1000UL
#define JOBS_A_TURN 16u
#define FOREVER_NS (~UINT64_C(0))

void gpu_free(struct gpu *gpu)
{
	pthread_cond_destroy(&gpu->cond);
	pthread_mutex_destroy(&gpu->mtx);
	free(gpu);
}

static void gpu_tell(struct gpu *gpu, bool online)
{
	pthread_mutex_lock(&gpu->mtx);
	if (gpu->is_online && !online)
		gpu->losses++;
	gpu->is_online = online;
	if (!gpu->state_posted) {
		gpu->state_posted = true;
		mailbox_post(gpu->options.mailbox, &gpu->state_mail);
	}
	pthread_mutex_unlock(&gpu->mtx);
}

void gpu_sicken(struct gpu *gpu, const char *why)
{
	if (gpu->sick)
		return;
	gpu->sick = true;
	gpu_note(gpu, why);
	gpu_tell(gpu, false); /* before any job ends because of it */
}

void gpu_call_begin(struct gpu *gpu, uint64_t extra_ns)
{
	pthread_mutex_lock(&gpu->mtx);
	assert(gpu->call_due_ns == 0 && !gpu->abandoned);
	gpu->call_due_ns = clock_now_ns() + gpu->options.call_deadline_ns + extra_ns;
	pthread_mutex_unlock(&gpu->mtx);
}

CUresult gpu_call_end(struct gpu *gpu, CUresult result, const char *name)
{
	char why[GPU_WHY_CHARS] = "the driver does not answer";
	bool abandoned, last;

	pthread_mutex_lock(&gpu->mtx);
	gpu->call_due_ns = 0;
	abandoned = gpu->abandoned;
	gpu->thread_gone = abandoned;
	last = gpu->loop_gone;
	if (gpu->hung)
		result = CUDA_ERROR_LAUNCH_TIMEOUT;
	else if (driver_error_is_sticky(result))
		(void)snprintf(why, sizeof(why), "%s: %s (%d)", name, driver_error_name(gpu->driver, result), (int)result);
	pthread_mutex_unlock(&gpu->mtx);
	if (abandoned) {
		if (last)
			gpu_free(gpu);
		pthread_exit(NULL);
	}
	if (driver_error_is_sticky(result))
		gpu_sicken(gpu, why);
	else if (result != CUDA_SUCCESS && result != CUDA_ERROR_NOT_READY)
		log_debug("%s: %s: %s", gpu->options.uuid, name, driver_error_name(gpu->driver, result));
	return result;
}

CUresult gpu_call_end_peer(struct gpu *gpu, CUresult result, const char *name)
{
	bool doubtful = driver_error_is_sticky(result);
	CUresult r = gpu_call_end(gpu, doubtful ? CUDA_ERROR_INVALID_HANDLE : result, name);
	CUresult now;

	if (!doubtful || gpu->sick)
		return r;
	now = CALL(gpu, StreamQuery, gpu->aux);
	return now == CUDA_SUCCESS || now == CUDA_ERROR_NOT_READY ? r : now;
}

void gpu_note(struct gpu *gpu, const char *why)
{
	pthread_mutex_lock(&gpu->mtx);
	(void)snprintf(gpu->why, sizeof(gpu->why), "%s", why);
	pthread_mutex_unlock(&gpu->mtx);
}

int gpu_outcome(struct gpu *gpu, CUresult result)
{
	if (gpu->sick)
		return GPU_E_LOST;
	switch ((int)result) {
	case CUDA_SUCCESS:
		return 0;
	case CUDA_ERROR_OUT_OF_MEMORY:
		return GPU_E_NOMEM;
	case CUDA_ERROR_NOT_SUPPORTED:
		return GPU_E_UNSUPPORTED;
	default:
		return GPU_E_REFUSED;
	}
}

void gpu_job_end(struct gpu *gpu, struct gpu_job *job, int result)
{
	/* No lock: the loop reads it without a mail only after it has abandoned this thread, which it does only during a
	 * driver call, and those begin and end under mtx. */
	assert(!job->posted);
	job->result = result;
	job->posted = true;
	mailbox_post(gpu->options.mailbox, &job->mail);
}

static void gpu_probe(struct gpu *gpu)
{
	pthread_mutex_lock(&gpu->mtx);
	gpu->hung = false; /* the call that hung has returned */
	pthread_mutex_unlock(&gpu->mtx);
	if (gpu_life_begin(gpu)) {
		gpu_tell(gpu, true);
		return;
	}
	gpu_life_end(gpu);
	gpu_tell(gpu, false);
	gpu->probe_ns = clock_now_ns() + gpu->options.reprobe_ns;
}

static void gpu_lose(struct gpu *gpu)
{
	assert(gpu->sick);
	gpu_copies_lost(gpu);
	gpu_life_end(gpu);
	gpu_copies_lost(gpu);
	gpu->probe_ns = clock_now_ns() + gpu->options.reprobe_ns;
}

static void gpu_run(struct gpu *gpu, struct gpu_job *job, bool stop)
{
	bool ends = job->kind == GPU_KIND_CLOSE || job->kind == GPU_KIND_EVENT_CLOSE || job->kind == GPU_KIND_PIN ||
	            job->kind == GPU_KIND_UNPIN;

	if (!ends && (stop || !gpu->context || gpu->sick)) {
		if (job->kind == GPU_KIND_COPY)
			gpu_copy_flag_failed(container_of(job, struct gpu_copy, job));
		gpu_job_end(gpu, job, GPU_E_LOST);
	} else if (job->kind == GPU_KIND_COPY) {
		gpu_copy_take(gpu, container_of(job, struct gpu_copy, job));
	} else {
		gpu_mem_run(gpu, job);
	}
}

/* Until something is queued, or for @wait_ns.  True: it is time to stop. */
static bool gpu_sleep(struct gpu *gpu, uint64_t wait_ns)
{
	uint64_t until_ns = wait_ns == FOREVER_NS ? 0 : clock_now_ns() + wait_ns;
	struct timespec until = { .tv_sec = (time_t)(until_ns / CLOCK_NS_PER_S),
		                  .tv_nsec = (long)(until_ns % CLOCK_NS_PER_S) };
	bool stop;
	int r = 0;

	pthread_mutex_lock(&gpu->mtx);
	while (wait_ns > 0 && r == 0 && list_empty(&gpu->queue) && !gpu->stop)
		r = wait_ns == FOREVER_NS ? pthread_cond_wait(&gpu->cond, &gpu->mtx)
		                          : pthread_cond_timedwait(&gpu->cond, &gpu->mtx, &until);
	stop = gpu->stop;
	pthread_mutex_unlock(&gpu->mtx);
	return stop;
}

static struct gpu_job *gpu_take_or_end(struct gpu *gpu)
{
	struct list *it;

	pthread_mutex_lock(&gpu->mtx);
	it = list_pop(&gpu->queue);
	gpu->over = !it;
	pthread_mutex_unlock(&gpu->mtx);
	return it ? container_of(it, struct gpu_job, link) : NULL;
}

/* One at a time: what is behind a call that hangs stays in the queue, where the loop can answer it. */
static struct gpu_job *gpu_take(struct gpu *gpu)
{
	struct list *it;

	pthread_mutex_lock(&gpu->mtx);
	it = list_pop(&gpu->queue);
	pthread_mutex_unlock(&gpu->mtx);
	return it ? container_of(it, struct gpu_job, link) : NULL;
}

static uint64_t gpu_wait_ns(const struct gpu *gpu, uint64_t poll_ns)
{
	uint64_t now_ns;

	if (gpu->n_running > 0 || !list_empty(&gpu->copies))
		return poll_ns;
	if (gpu->context)
		return FOREVER_NS;
	now_ns = clock_now_ns();
	return gpu->probe_ns > now_ns ? gpu->probe_ns - now_ns : 0;
}

void *gpu_main(void *arg)
{
	struct gpu *gpu = arg;
	uint64_t poll_ns = 0;
	struct gpu_job *job;
	bool stop;

	thread_set_role(THREAD_GPU);
	(void)prctl(PR_SET_TIMERSLACK, TIMER_SLACK_NS, 0, 0, 0); /* or each sleep is 50 us longer */
	do {
		stop = gpu_sleep(gpu, gpu_wait_ns(gpu, poll_ns));
		if (!gpu->context && !stop && clock_now_ns() >= gpu->probe_ns)
			gpu_probe(gpu);
		/* A few, then the copies again. */
		for (unsigned i = 0; (stop || i < JOBS_A_TURN) && (job = gpu_take(gpu)); i++)
			gpu_run(gpu, job, stop);
		if (stop)
			gpu_copies_lost(gpu);
		if (gpu->context && !gpu->sick)
			gpu_pins_check(gpu);
		if (gpu->context && gpu_copies_run(gpu))
			poll_ns = 0;
		else
			poll_ns = poll_ns == 0 ? POLL_MIN_NS : poll_ns < POLL_MAX_NS ? 2 * poll_ns : poll_ns;
		if (gpu->context && gpu->sick)
			gpu_lose(gpu);
	} while (!stop || gpu->n_running > 0);
	gpu_life_end(gpu);
	assert(list_empty(&gpu->copies));
	do {
		job = gpu_take_or_end(gpu);
		if (job)
			gpu_run(gpu, job, true);
	} while (job);
	mailbox_post(gpu->options.mailbox, &gpu->farewell);
	return NULL;
}
