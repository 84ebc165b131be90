/* SPDX-License-Identifier: Apache-2.0 */
/* The loop, over libuv.
 *
 * Owns: the uv_loop_t, the prepare handle that ends a turn, the idle handle that keeps it from sleeping, the clock's
 * reading.
 * Invariant: when the loop goes to sleep, no deferred call waits and every hook has run since the last callback.
 * Deliberately not here: threads (worker.c), messages from them (mailbox.c), what sockets carry.
 *
 * Order of one uv_run() iteration: timers, pending, idle, *prepare*, poll (descriptors), check, close callbacks.
 * Prepare is therefore the last thing before sleeping, and everything that ran since the previous sleep lies before it:
 * that is where our turn ends.  A check handle would miss close callbacks and timers.
 */
#include "loop/loop.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/signalfd.h>
#include <unistd.h>
#include <uv.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/thread.h"

#define ROUNDS_MAX 16 /* of deferred calls deferring further ones, before descriptors get their turn */

struct loop {
	uv_loop_t uv;
	uv_prepare_t turn_end;
	uv_idle_t awake;   /* active while deferred calls are left over, or after loop_again(): poll returns at once */
	struct list hooks; /* borrows */
	struct list deferred; /* borrows */
	uint64_t now_ns;      /* 0: not yet read in this turn */
	bool in_turn_end, again;
};

_Static_assert(sizeof(uv_timer_t) <= sizeof(union loop_handle), "timer fits");
_Static_assert(sizeof(uv_poll_t) <= sizeof(union loop_handle), "poll fits");
_Static_assert(_Alignof(uv_poll_t) <= _Alignof(union loop_handle), "alignment");

/* One round takes what waits now; what it defers is for the next. */
static void deferred_run(struct loop *loop)
{
	struct list now, *it;

	list_init(&now);
	list_splice_tail(&now, &loop->deferred);
	while ((it = list_pop(&now))) {
		struct loop_deferred *d = container_of(it, struct loop_deferred, link);

		d->cb(d); /* may free @d, and cancel others out of @now */
	}
}

/* Members move back before they are called, so that a hook may remove itself or any other. */
static void hooks_run(struct loop *loop)
{
	struct list now, *it;

	list_init(&now);
	list_splice_tail(&now, &loop->hooks);
	while ((it = list_pop(&now))) {
		struct loop_hook *h = container_of(it, struct loop_hook, link);

		list_add_tail(&loop->hooks, &h->link);
		h->cb(h);
	}
}

static void awake_on_idle(uv_idle_t *idle)
{
	assert(uv_is_active((uv_handle_t *)idle));
}

static void turn_end(struct loop *loop)
{
	unsigned rounds = 0;
	int r;

	assert(!loop->in_turn_end);
	loop->in_turn_end = true;
	do {
		deferred_run(loop);
		hooks_run(loop);
	} while (!list_empty(&loop->deferred) && ++rounds < ROUNDS_MAX);
	loop->in_turn_end = false;
	r = list_empty(&loop->deferred) && !loop->again ? uv_idle_stop(&loop->awake)
	                                                : uv_idle_start(&loop->awake, awake_on_idle);
	assert(r == 0);
	loop->again = false;
	loop->now_ns = 0; /* time passes in sleep */
}

static void turn_end_on_prepare(uv_prepare_t *prepare)
{
	turn_end(container_of(prepare, struct loop, turn_end));
}

int loop_new(struct loop **ret_loop)
{
	struct loop *loop = calloc(1, sizeof(*loop));
	int r;

	if (!loop)
		return error_origin(-ENOMEM);
	r = uv_loop_init(&loop->uv);
	if (r < 0) {
		free(loop);
		return error_origin(r);
	}
	list_init(&loop->hooks);
	list_init(&loop->deferred);
	r = uv_idle_init(&loop->uv, &loop->awake);
	assert(r == 0);
	r = uv_prepare_init(&loop->uv, &loop->turn_end);
	assert(r == 0);
	/* Also what keeps uv_run() from returning when nothing else is open. */
	r = uv_prepare_start(&loop->turn_end, turn_end_on_prepare);
	assert(r == 0);
	*ret_loop = loop;
	return 0;
}

void loop_run(struct loop *loop)
{
	thread_assert(THREAD_LOOP);
	(void)uv_run(&loop->uv, UV_RUN_DEFAULT);
	turn_end(loop);
}

void loop_turn(struct loop *loop, bool wait)
{
	thread_assert(THREAD_LOOP);
	(void)uv_run(&loop->uv, wait ? UV_RUN_ONCE : UV_RUN_NOWAIT);
	turn_end(loop);
}

void loop_stop(struct loop *loop)
{
	thread_assert(THREAD_LOOP);
	uv_stop(&loop->uv);
}

static void free_on_walk(uv_handle_t *handle, void *arg)
{
	(void)arg;
	assert(uv_is_closing(handle)); /* a leak: somebody did not close what they started */
}

struct loop *loop_free(struct loop *loop)
{
	int r;

	if (!loop)
		return NULL;
	thread_assert(THREAD_LOOP);
	assert(!loop->in_turn_end);
	for (unsigned i = 0; i < ROUNDS_MAX && !list_empty(&loop->deferred); i++)
		deferred_run(loop);
	uv_close((uv_handle_t *)&loop->turn_end, NULL);
	uv_close((uv_handle_t *)&loop->awake, NULL);
	uv_walk(&loop->uv, free_on_walk, NULL);
	/* A stop that was asked for and not yet seen would make the first uv_run() return before the close callbacks. */
	do
		r = uv_run(&loop->uv, UV_RUN_NOWAIT);
	while (r != 0);
	for (unsigned i = 0; i < ROUNDS_MAX && !list_empty(&loop->deferred); i++)
		deferred_run(loop);
	assert(list_empty(&loop->deferred) && list_empty(&loop->hooks));
	r = uv_loop_close(&loop->uv);
	assert(r == 0);
	free(loop);
	return NULL;
}

uint64_t loop_now_ns(struct loop *loop)
{
	if (loop->now_ns == 0)
		loop->now_ns = clock_now_ns();
	return loop->now_ns;
}

uint64_t loop_refresh_ns(struct loop *loop)
{
	loop->now_ns = clock_now_ns();
	return loop->now_ns;
}

/* --- timers --- */

static uv_timer_t *timer_uv(const struct loop_timer *t)
{
	return (uv_timer_t *)(uintptr_t)&t->handle;
}

static void timer_on_due(uv_timer_t *uv);

/* libuv counts whole milliseconds from its own, older reading of the clock, rounded down: a plain uv_timer_start() of
 * the difference would fire early.  So aim at the millisecond that begins at or after due_ns. */
static void timer_arm(struct loop_timer *t)
{
	uint64_t due_ms = t->due_ns / CLOCK_NS_PER_MS + (t->due_ns % CLOCK_NS_PER_MS != 0);
	uint64_t uv_ms = uv_now(&t->loop->uv);
	int r;

	r = uv_timer_start(timer_uv(t), timer_on_due, due_ms > uv_ms ? due_ms - uv_ms : 0, 0);
	assert(r == 0); /* fails only on a closing handle */
}

static void timer_on_due(uv_timer_t *uv)
{
	struct loop_timer *t = uv->data;
	uint64_t now = loop_refresh_ns(t->loop);

	assert(now >= t->due_ns);
	if (t->repeat_ns > 0) {
		t->due_ns += t->repeat_ns;
		if (t->due_ns <= now)
			t->due_ns = now + t->repeat_ns;
		timer_arm(t);
	}
	t->cb(t);
}

void loop_timer_init(struct loop *loop, struct loop_timer *t)
{
	int r;

	thread_assert(THREAD_LOOP);
	t->loop = loop;
	t->cb = NULL;
	t->closed = NULL;
	t->due_ns = t->repeat_ns = 0;
	r = uv_timer_init(&loop->uv, timer_uv(t));
	assert(r == 0);
	timer_uv(t)->data = t;
}

void loop_timer_start(struct loop_timer *t, uint64_t first_ns, uint64_t repeat_ns, void (*cb)(struct loop_timer *t))
{
	uint64_t now = loop_now_ns(t->loop);

	thread_assert(THREAD_LOOP);
	assert(cb);
	t->cb = cb;
	t->repeat_ns = repeat_ns;
	t->due_ns = first_ns < UINT64_MAX - now ? now + first_ns : UINT64_MAX;
	timer_arm(t);
}

void loop_timer_stop(struct loop_timer *t)
{
	thread_assert(THREAD_LOOP);
	(void)uv_timer_stop(timer_uv(t)); /* cannot fail */
}

bool loop_timer_is_running(const struct loop_timer *t)
{
	return uv_is_active((uv_handle_t *)timer_uv(t)) != 0;
}

static void timer_on_closed(uv_handle_t *uv)
{
	struct loop_timer *t = uv->data;

	if (t->closed)
		t->closed(t);
}

void loop_timer_close(struct loop_timer *t, void (*closed)(struct loop_timer *t))
{
	thread_assert(THREAD_LOOP);
	t->closed = closed;
	uv_close((uv_handle_t *)timer_uv(t), timer_on_closed); /* asserts that it is not closing already */
}

/* --- descriptors --- */

static uv_poll_t *watch_uv(struct loop_watch *w)
{
	return (uv_poll_t *)(void *)&w->handle;
}

static int mask_to_uv(unsigned events)
{
	assert((events & ~(unsigned)(LOOP_READABLE | LOOP_WRITABLE | LOOP_HANGUP)) == 0);
	return ((events & LOOP_READABLE) ? UV_READABLE : 0) | ((events & LOOP_WRITABLE) ? UV_WRITABLE : 0) |
	       ((events & LOOP_HANGUP) ? UV_DISCONNECT : 0);
}

static void watch_on_poll(uv_poll_t *uv, int status, int events)
{
	struct loop_watch *w = uv->data;
	unsigned seen = 0;

	if (status < 0) {
		/* EPOLLERR, which libuv calls EBADF; it has stopped the handle.  The true error is the socket's to tell. */
		seen = w->events | LOOP_ERROR;
		w->events = 0;
	} else {
		seen |= (events & UV_READABLE) ? LOOP_READABLE : 0;
		seen |= (events & UV_WRITABLE) ? LOOP_WRITABLE : 0;
		seen |= (events & UV_DISCONNECT) ? LOOP_HANGUP : 0;
		seen &= w->events;
	}
	if (seen != 0)
		w->cb(w, seen); /* may close @w */
}

int loop_watch_start(struct loop *loop, struct loop_watch *w, int fd, unsigned events,
                     void (*cb)(struct loop_watch *w, unsigned events))
{
	int r;

	thread_assert(THREAD_LOOP);
	assert(fd >= 0 && cb);
	r = uv_poll_init(&loop->uv, watch_uv(w), fd);
	if (r < 0)
		return error_origin(r);
	watch_uv(w)->data = w;
	w->cb = cb;
	w->closed = NULL;
	w->borrowed_fd = fd;
	w->events = 0;
	loop_watch_set(w, events);
	return 0;
}

void loop_watch_set(struct loop_watch *w, unsigned events)
{
	int r;

	thread_assert(THREAD_LOOP);
	if (events == w->events)
		return; /* asked for on every turn by some; costs an epoll_ctl otherwise */
	w->events = events;
	r = uv_poll_start(watch_uv(w), mask_to_uv(events), watch_on_poll); /* a mask of 0 stops it */
	assert(r == 0);
}

static void watch_on_closed(uv_handle_t *uv)
{
	struct loop_watch *w = uv->data;

	if (w->closed)
		w->closed(w);
}

void loop_watch_close(struct loop_watch *w, void (*closed)(struct loop_watch *w))
{
	thread_assert(THREAD_LOOP);
	w->closed = closed;
	w->events = 0;
	uv_close((uv_handle_t *)watch_uv(w), watch_on_closed);
}

/* --- signals --- */

static void signal_on_readable(struct loop_watch *w, unsigned events)
{
	struct loop_signal *s = container_of(w, struct loop_signal, watch);
	struct signalfd_siginfo info;
	ssize_t n;

	assert(events == LOOP_READABLE);
	n = read(s->fd, &info, sizeof(info)); /* the next one, if there is, on the next turn */
	if (n < 0 && errno == EAGAIN)
		return;
	assert(n == (ssize_t)sizeof(info));
	s->cb(s, (int)info.ssi_signo); /* may close @s */
}

int loop_signal_start(struct loop *loop, struct loop_signal *s, int signum, void (*cb)(struct loop_signal *s, int signum))
{
	sigset_t set;
	int r;

	thread_assert(THREAD_LOOP);
	assert(cb);
	if (signum <= 0 || signum == SIGKILL || signum == SIGSTOP)
		return error_origin(-EINVAL);
	sigemptyset(&set);
	if (sigaddset(&set, signum) != 0)
		return error_origin(-EINVAL);
	s->cb = cb;
	s->closed = NULL;
	s->fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	if (s->fd < 0)
		return error_origin(-errno);
	r = loop_watch_start(loop, &s->watch, s->fd, LOOP_READABLE, signal_on_readable);
	if (r < 0) {
		close(s->fd);
		return error_trace(r);
	}
	r = pthread_sigmask(SIG_BLOCK, &set, NULL);
	assert(r == 0);
	return 0;
}

static void signal_on_closed(struct loop_watch *w)
{
	struct loop_signal *s = container_of(w, struct loop_signal, watch);

	if (s->closed)
		s->closed(s);
}

void loop_signal_close(struct loop_signal *s, void (*closed)(struct loop_signal *s))
{
	thread_assert(THREAD_LOOP);
	s->closed = closed;
	loop_watch_close(&s->watch, signal_on_closed);
	close(s->fd);
}

/* --- the end of a turn --- */

void loop_on_turn_end(struct loop *loop, struct loop_hook *h, void (*cb)(struct loop_hook *h))
{
	thread_assert(THREAD_LOOP);
	assert(cb);
	h->cb = cb;
	list_add_tail(&loop->hooks, &h->link);
}

void loop_hook_remove(struct loop_hook *h)
{
	thread_assert(THREAD_LOOP);
	list_del(&h->link);
}

void loop_again(struct loop *loop)
{
	thread_assert(THREAD_LOOP);
	loop->again = true;
}

void loop_deferred_init(struct loop_deferred *d)
{
	list_init(&d->link);
	d->cb = NULL;
}

void loop_defer(struct loop *loop, struct loop_deferred *d, void (*cb)(struct loop_deferred *d))
{
	thread_assert(THREAD_LOOP);
	assert(cb);
	d->cb = cb;
	if (!list_is_linked(&d->link))
		list_add_tail(&loop->deferred, &d->link);
}

void loop_deferred_cancel(struct loop_deferred *d)
{
	thread_assert(THREAD_LOOP);
	list_del(&d->link);
}
