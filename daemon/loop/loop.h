/* SPDX-License-Identifier: Apache-2.0 */
/* The event loop: one thread, its clock, timers, descriptors, signals and the end of a turn.
 *
 * A turn: wake up, descriptor and mailbox callbacks, timers, then deferred calls and turn-end hooks, then sleep until
 * something happens.  There are no polling timers: an idle loop sleeps for good.
 *
 * Everything here is for the loop thread; other threads have mailbox_post().  No callback ever runs from inside the
 * function it was given to.
 *
 * Lifetime law: what was started is closed before its memory goes.  x_close(x, closed) stops callbacks at once; the
 * memory belongs to the loop until closed(x) has been called (never inline), and may be freed there.  closed may be NULL
 * for memory that outlives loop_free().
 */
#ifndef LOOP_LOOP_H
#define LOOP_LOOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/list.h"

struct loop;

/* Room for a handle of the library behind the loop, which nobody else needs to know; checked in loop.c. */
union loop_handle {
	max_align_t align;
	unsigned char bytes[192];
};

/* Faults only. */
int loop_new(struct loop **ret_loop);

/* Turns until loop_stop().  Deferred calls and hooks of the last turn have run when it returns. */
void loop_run(struct loop *loop);

/* One turn: with @wait it sleeps until something happens, else it takes what is there. */
void loop_turn(struct loop *loop, bool wait);

/* The turn under way is the last one of loop_run().  From a callback, or before loop_run(). */
void loop_stop(struct loop *loop);

/* Everything must have been closed and every hook removed, which is asserted; close callbacks still due are called
 * here.  Takes NULL.  Returns NULL. */
struct loop *loop_free(struct loop *loop);

/* Nanoseconds of CLOCK_MONOTONIC, read once a turn, so that all decisions of a turn agree.  In a timer callback it is
 * never before the timer's time. */
uint64_t loop_now_ns(struct loop *loop);

/* Reads the clock anew, for the rest of this turn too: after something long. */
uint64_t loop_refresh_ns(struct loop *loop);

/* --- timers: resolution 1 ms, never early --- */

struct loop_timer {
	void (*cb)(struct loop_timer *t);
	void (*closed)(struct loop_timer *t);
	struct loop *loop; /* borrows */
	uint64_t due_ns, repeat_ns;
	union loop_handle handle;
};

void loop_timer_init(struct loop *loop, struct loop_timer *t);

/* First after @first_ns from now, then every @repeat_ns (0: once).  Missed repetitions are skipped, not made up for.
 * Starting a running timer starts it anew. */
void loop_timer_start(struct loop_timer *t, uint64_t first_ns, uint64_t repeat_ns, void (*cb)(struct loop_timer *t));

/* Harmless when it does not run. */
void loop_timer_stop(struct loop_timer *t);
bool loop_timer_is_running(const struct loop_timer *t);
void loop_timer_close(struct loop_timer *t, void (*closed)(struct loop_timer *t));

/* --- descriptors --- */

enum {
	LOOP_READABLE = 1,
	LOOP_WRITABLE = 2,
	LOOP_HANGUP = 4, /* the peer has shut down its side; seen also by one who does not ask for LOOP_READABLE */
	LOOP_ERROR = 8,  /* never asked for: the descriptor has an error.  The watcher has been stopped (it would spin);
			    what was asked for is reported with it: read what is left, learn the error, close */
};

struct loop_watch {
	void (*cb)(struct loop_watch *w, unsigned events);
	void (*closed)(struct loop_watch *w);
	int borrowed_fd;
	unsigned events;
	union loop_handle handle;
};

/* Level-triggered.  @fd is made non-blocking; it must stay open until loop_watch_close() was called (its callback need
 * not have come) and must not have another watcher.  Fault: -EPERM for what cannot be polled (a regular file), -EEXIST.
 * On a fault nothing needs closing. */
int loop_watch_start(struct loop *loop, struct loop_watch *w, int fd, unsigned events,
                     void (*cb)(struct loop_watch *w, unsigned events));

/* Change what is waited for; 0: nothing for now. */
void loop_watch_set(struct loop_watch *w, unsigned events);
void loop_watch_close(struct loop_watch *w, void (*closed)(struct loop_watch *w));

/* --- signals --- */

struct loop_signal {
	void (*cb)(struct loop_signal *s, int signum);
	void (*closed)(struct loop_signal *s);
	int fd;
	struct loop_watch watch;
};

/* From here on @signum is blocked in this thread and comes by a descriptor: no code of ours runs in a signal handler, and
 * what comes while nobody can answer waits.  It stays blocked after loop_signal_close(), so that a second one does not kill
 * a process at the last step of its end.  Threads started before must block it themselves; a process started later
 * inherits the mask.  Fault: -EINVAL for a signal that cannot be caught, -EMFILE. */
int loop_signal_start(struct loop *loop, struct loop_signal *s, int signum, void (*cb)(struct loop_signal *s, int signum));
void loop_signal_close(struct loop_signal *s, void (*closed)(struct loop_signal *s));

/* --- the end of a turn --- */

struct loop_hook {
	struct list link;
	void (*cb)(struct loop_hook *h);
};

/* @h->cb runs at the end of every turn, after all callbacks and deferred calls, before sleeping; and once more if a hook
 * or what it caused deferred something.  Must be cheap and idempotent.  The struct is the caller's. */
void loop_on_turn_end(struct loop *loop, struct loop_hook *h, void (*cb)(struct loop_hook *h));

/* Harmless twice, and from inside any hook. */
void loop_hook_remove(struct loop_hook *h);

/* The loop does not sleep after this turn: for a hook that has more to do, but lets descriptors and timers have theirs first. */
void loop_again(struct loop *loop);

struct loop_deferred {
	struct list link;
	void (*cb)(struct loop_deferred *d);
};

void loop_deferred_init(struct loop_deferred *d);

/* @cb runs later in this turn, once, never inline; in the order of these calls.  While it waits, another loop_defer() of
 * it changes nothing but the callback.  It may be deferred again or freed from inside the callback; who defers anew
 * without end gets its turn between those of the others. */
void loop_defer(struct loop *loop, struct loop_deferred *d, void (*cb)(struct loop_deferred *d));

/* It will not run.  Harmless when it does not wait. */
void loop_deferred_cancel(struct loop_deferred *d);

#endif
