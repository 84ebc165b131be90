/* SPDX-License-Identifier: Apache-2.0 */
/* The life of an adoption.
 *
 *   WAITING    the device's context is being made, for us or for somebody before us
 *   IMPORTING  the driver opens memories and events
 *   READY      copies may be asked for
 *   LOST       the device went; what was imported is void, copies under way end when the driver has let go of them
 *   CLOSING    copies end; then memories, events and flags are given back; then it is freed
 *
 * WAITING -> IMPORTING -> READY -> LOST, and from each of them -> CLOSING: adoption_close(), by a failed import, disown or the end of the session.
 *
 * Owns what it imported and the flags.  Deliberately not here: what is copied (handle_copy.c), what a request may say (handle_adopt.c).
 */
#include "server/adoption.h"

#include <stdlib.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/log.h"
#include "base/thread.h"
#include "server/session.h"

static void adoption_step(struct adoption *a);

/* ---- the end ---- */

void adoption_free(struct adoption *a)
{
	if (!a)
		return;
	assert(list_empty(&a->jobs) && a->open == 0 && !a->is_pinned);
	for (uint32_t i = 0; i < a->n_memories; i++)
		if (!a->memories[i].is_asked && a->memories[i].mem.fd >= 0)
			close(a->memories[i].mem.fd);
	if (a->holder)
		(void)holder_close(a->holder, true); /* nothing writes any more */
	if (a->flags.base)
		a->service->host->ops->object_drop(a->service->host, &a->flags);
	free(a->planes);
	free(a->memories);
	free(a->events);
	free(a);
}

static void adoption_on_timer_closed(struct loop_timer *t)
{
	adoption_free(container_of(t, struct adoption, late));
}

static void adoption_on_done(struct adoption *a)
{
	assert(a->open > 0);
	if (--a->open == 0)
		adoption_step(a);
}

static void memory_on_closed(struct gpu_mem *mem, int r)
{
	(void)r; /* closed, or gone with the device */
	adoption_on_done(container_of(mem, struct adopted_memory, mem)->adoption);
}

static void event_on_closed(struct gpu_event *event, int r)
{
	(void)r;
	adoption_on_done(container_of(event, struct adopted_event, event)->adoption);
}

static void flags_on_unpinned(struct gpu_pin *pin, int r)
{
	struct adoption *a = container_of(pin, struct adoption, flags_pin);

	(void)r;
	a->is_pinned = false;
	adoption_on_done(a);
}

/* Gives the device back what it opened.  true: there was nothing. */
static bool adoption_release(struct adoption *a)
{
	struct gpu *gpu = device_use(a->device);

	for (uint32_t i = 0; i < a->n_memories; i++) {
		if (!a->memories[i].is_open)
			continue;
		a->memories[i].is_open = false;
		a->open++;
		gpu_mem_close(gpu, &a->memories[i].mem, memory_on_closed);
	}
	for (uint32_t i = 0; i < a->n_events; i++) {
		if (!a->events[i].is_open)
			continue;
		a->events[i].is_open = false;
		a->open++;
		gpu_event_close(gpu, &a->events[i].event, event_on_closed);
	}
	if (a->is_pinned) {
		a->is_pinned = false;
		a->open++;
		gpu_unpin(gpu, &a->flags_pin, flags_on_unpinned);
	}
	return a->open == 0;
}

void adoption_close(struct adoption *a)
{
	if (a->state == ADOPTION_CLOSING)
		return;
	a->state = ADOPTION_CLOSING;
	loop_timer_stop(&a->late);
	device_unwatch(&a->watch);
	if (a->session)
		later_end(&a->life);
	a->session = NULL;
	adoption_step(a);
}

static void adoption_on_session_end(struct later *l)
{
	struct adoption *a = container_of(l, struct adoption, life);

	a->session = NULL; /* its jobs are told by their own laters */
	adoption_close(a);
}

/* ---- the answer ---- */

static void adoption_on_asked_cancel(struct later *l)
{
	container_of(l, struct adoption, asked)->is_asked = false; /* life is told as well */
}

static void adoption_refuse(struct adoption *a, enum reply_code code, const char *what)
{
	struct reply reply;

	if (a->is_asked) {
		a->is_asked = false;
		reply_init(&reply);
		reply_fail(&reply, code, "device %s: %s", device_info(a->device)->uuid, what);
		later_reply(&a->asked, &reply);
	}
	adoption_close(a);
}

static void adoption_ready(struct adoption *a)
{
	Kvbm__AdoptReply *body;
	struct reply reply;

	a->state = ADOPTION_READY;
	loop_timer_stop(&a->late);
	if (!a->is_asked)
		return;
	a->is_asked = false;
	reply_init(&reply);
	body = &reply.body.adopt;
	kvbm__adopt_reply__init(body);
	body->id = a->id;
	body->n_flags = ADOPTION_FLAGS;
	reply.message.adopt = body;
	if (!reply_add_fd(&reply, a->flags.fd)) {
		reply.message.adopt = NULL;
		later_reply(&a->asked, &reply);
		adoption_close(a);
		return;
	}
	later_reply(&a->asked, &reply);
}

/* ---- the beginning ---- */

static void adoption_imported(struct adoption *a)
{
	static const char *const why[] = {
		[GPU_E_LOST] = "it is offline",
		[GPU_E_FULL] = "too much is asked of it at once",
		[GPU_E_NOMEM] = "it has no memory left",
		[GPU_E_REFUSED] = "the driver does not open a memory or an event: a stale handle, another size, or memory of a kind that "
				  "cannot be shared",
		[GPU_E_UNSUPPORTED] = "this driver cannot open memory of that kind",
	};

	if (a->result == 0)
		adoption_ready(a);
	else
		adoption_refuse(a, a->result == GPU_E_REFUSED || a->result == GPU_E_UNSUPPORTED ? REPLY_INVAL : REPLY_BUSY,
		                why[a->result]);
}

/* Nothing is to come from the device any more: what was waited for? */
static void adoption_step(struct adoption *a)
{
	if (a->open > 0)
		return;
	if (a->state == ADOPTION_IMPORTING) {
		adoption_imported(a);
		return;
	}
	if (a->state != ADOPTION_CLOSING || !list_empty(&a->jobs) || !adoption_release(a))
		return;
	list_del(&a->link);
	loop_timer_close(&a->late, adoption_on_timer_closed);
}

static void adoption_opened(struct adoption *a, int r)
{
	if (r != 0 && a->result == 0)
		a->result = r;
	adoption_on_done(a);
}

static void memory_on_open(struct gpu_mem *mem, int r)
{
	struct adopted_memory *m = container_of(mem, struct adopted_memory, mem);

	m->is_open = r == 0;
	adoption_opened(m->adoption, r);
}

static void event_on_open(struct gpu_event *event, int r)
{
	struct adopted_event *e = container_of(event, struct adopted_event, event);

	e->is_open = r == 0;
	adoption_opened(e->adoption, r);
}

static void adoption_import(struct adoption *a)
{
	struct gpu *gpu = device_use(a->device);
	int r = 0;

	a->state = ADOPTION_IMPORTING;
	a->open = 1; /* ours, so that none ends it before all were asked */
	for (uint32_t i = 0; i < a->n_memories && r == 0; i++) {
		a->memories[i].is_asked = true;
		r = gpu_mem_import(gpu, &a->memories[i].mem, memory_on_open);
		a->open += r == 0;
	}
	for (uint32_t i = 0; i < a->n_events && r == 0; i++) {
		r = gpu_event_import(gpu, &a->events[i].event, event_on_open);
		a->open += r == 0;
	}
	gpu_pin(gpu, &a->flags_pin, a->flags.base, a->flags.size);
	a->is_pinned = true;
	adoption_opened(a, r);
}

static void adoption_on_late(struct loop_timer *t)
{
	struct adoption *a = container_of(t, struct adoption, late);
	const char *why = device_why(a->device);

	adoption_refuse(a, REPLY_BUSY, *why ? why : "it does not answer");
}

static void adoption_on_state(struct device_user *user, bool online)
{
	struct adoption *a = container_of(user, struct adoption, watch);
	struct list jobs;
	struct list *it;

	if (online && a->state == ADOPTION_WAITING)
		adoption_import(a);
	if (online || a->state != ADOPTION_READY)
		return; /* imports end by themselves, badly */
	a->state = ADOPTION_LOST;
	list_init(&jobs);
	list_splice_tail(&jobs, &a->jobs);
	while ((it = list_pop(&jobs))) {
		struct adoption_job *job = container_of(it, struct adoption_job, link);

		list_add_tail(&a->jobs, &job->link);
		job->lost(job);
	}
}

void adoption_start(struct adoption *a, const struct request *q, struct reply *reply)
{
	struct loop *loop = q->session->sessions->loop;

	thread_assert(THREAD_LOOP);
	a->session = q->session;
	a->is_asked = true;
	later_begin(&a->asked, q, reply, adoption_on_asked_cancel);
	later_watch(&a->life, q->session, adoption_on_session_end);
	a->watch.on_state = adoption_on_state;
	device_watch(a->device, &a->watch);
	loop_timer_init(loop, &a->late);
	loop_timer_start(&a->late, ADOPTION_ONLINE_NS, 0, adoption_on_late);
	list_add_tail(&q->service->adoptions, &a->link);
	if (device_is_online(a->device))
		adoption_import(a);
}

/* ---- what it is used for ---- */

struct adoption *adoption_find(const struct request *q, uint32_t id)
{
	list_for_each(it, &q->service->adoptions) {
		struct adoption *a = container_of(it, struct adoption, link);

		if (a->session == q->session && a->id == id)
			return a;
	}
	return NULL;
}

void adoption_job_begin(struct adoption *a, struct adoption_job *job, void (*lost)(struct adoption_job *job))
{
	assert(a->state == ADOPTION_READY);
	job->lost = lost;
	list_add_tail(&a->jobs, &job->link);
}

void adoption_job_end(struct adoption *a, struct adoption_job *job)
{
	list_del(&job->link);
	adoption_step(a);
}
