/* SPDX-License-Identifier: Apache-2.0 */
/* notify.h: what systemd is told: ready, reloading, stopping, alive, and one line for people.
 *
 * Loop thread.  Without systemd nothing of it does anything.
 */
#ifndef KVBMD_NOTIFY_H
#define KVBMD_NOTIFY_H

#include "loop/loop.h"
#include "tier/tier.h"

struct notify {
	struct tier *host;          /* borrows */
	struct loop_timer watchdog; /* "alive", twice as often as systemd wants it */
	struct loop_timer progress; /* while memory is being touched */
	uint64_t told_bytes;        /* what the line said */
	unsigned unchanged;         /* looks since then */
};

/* The watchdog is fed from here on. */
void notify_start(struct notify *n, struct loop *loop);
/* Clients are served; the line says how much of @host's memory is there, until all of it is. */
void notify_ready(struct notify *n, struct tier *host);
void notify_reloading(void);
void notify_reloaded(void);
/* The watchdog is fed still: for as long as notify_stop() was not called. */
void notify_stopping(struct notify *n);
void notify_stop(struct notify *n);

#endif
