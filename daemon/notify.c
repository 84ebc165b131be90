/* SPDX-License-Identifier: Apache-2.0 */
/* Owns two timers.  The watchdog's runs on the loop, so that it stops when the loop does; the other one only as long as the line
 * about memory changes.
 */
#include "notify.h"

#include <inttypes.h>
#include <stdio.h>

#include <systemd/sd-daemon.h>

#include "base/clock.h"
#include "base/size.h"

#define PROGRESS_NS CLOCK_NS_PER_S
#define PROGRESS_LOOKS 30u /* without a change: no more will come */

static void notify_on_watchdog(struct loop_timer *t)
{
	(void)t;
	(void)sd_notify(0, "WATCHDOG=1");
}

void notify_start(struct notify *n, struct loop *loop)
{
	uint64_t usec = 0;

	*n = (struct notify){ .host = NULL };
	loop_timer_init(loop, &n->watchdog);
	loop_timer_init(loop, &n->progress);
	if (sd_watchdog_enabled(0, &usec) > 0 && usec > 0)
		loop_timer_start(&n->watchdog, 0, usec * 1000 / 2, notify_on_watchdog);
}

/* "STATUS=g2: 1.0 GiB on thp, 25 % touched" */
static void notify_status(struct notify *n, const char *before)
{
	char size[SIZE_TEXT_MAX], touched[48] = "";
	struct tier_stat stat;

	n->host->ops->stat(n->host, &stat);
	n->told_bytes = stat.populated_bytes;
	n->unchanged = 0;
	if (stat.populated_bytes < stat.size_bytes)
		(void)snprintf(touched, sizeof(touched), ", %u %% of it touched so far",
		               (unsigned)((unsigned __int128)stat.populated_bytes * 100 / stat.size_bytes));
	(void)sd_notifyf(0, "%sSTATUS=g2: %s on pages of kind %s%s", before,
	                 size_format(stat.size_bytes, size, sizeof(size)), stat.page_kind, touched);
}

static void notify_on_progress(struct loop_timer *t)
{
	struct notify *n = container_of(t, struct notify, progress);
	struct tier_stat stat;

	n->host->ops->stat(n->host, &stat);
	if (stat.populated_bytes != n->told_bytes)
		notify_status(n, "");
	else if (++n->unchanged > PROGRESS_LOOKS)
		return;
	if (stat.populated_bytes < stat.size_bytes)
		loop_timer_start(&n->progress, PROGRESS_NS, 0, notify_on_progress);
}

void notify_ready(struct notify *n, struct tier *host)
{
	n->host = host;
	notify_status(n, "READY=1\n");
	loop_timer_start(&n->progress, PROGRESS_NS, 0, notify_on_progress);
}

void notify_reloading(void)
{
	(void)sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%" PRIu64, clock_now_ns() / 1000);
}

void notify_reloaded(void)
{
	(void)sd_notify(0, "READY=1");
}

void notify_stopping(struct notify *n)
{
	loop_timer_stop(&n->progress);
	(void)sd_notify(0, "STOPPING=1\nSTATUS=stopping");
}

void notify_stop(struct notify *n)
{
	loop_timer_close(&n->watchdog, NULL);
	loop_timer_close(&n->progress, NULL);
}
