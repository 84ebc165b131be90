/* SPDX-License-Identifier: Apache-2.0 */
/* host.h: the host tier (G2): a budget of memory, cut into regions.
 *
 * Loop thread.  Regions of the usual size are made and touched ahead of need by the workers, in the background and from
 * the start, until the whole budget is; region_make() takes one of these, touched already if there is one.
 */
#ifndef TIER_HOST_H
#define TIER_HOST_H

#include <stdbool.h>
#include <stdint.h>

#include "tier/tier.h"

struct loop;
struct worker_pool;

enum {
	HOST_E_HUGE = 1, /* HOST_HUGE_REQUIRE, and the system does not have enough huge pages; logged with what to do */
};

enum host_huge { HOST_HUGE_AUTO = 0, HOST_HUGE_REQUIRE, HOST_HUGE_NEVER };

struct host_config {
	uint64_t size;        /* bytes; at least 2 MiB, rounded down to it */
	uint64_t region_size; /* bytes, rounded up to 2 MiB; 0: size / 64, between 2 MiB and 1 GiB */
	enum host_huge huge;
	bool numa;
	/* borrows both; they outlive the tier.  Both NULL: nothing is done ahead (tests, tools). */
	struct loop *loop;
	struct worker_pool *workers;
};

/* Returns within milliseconds, whatever the size.  Logs one line: how much on which pages, and what would give better
 * ones.  Outcome: HOST_E_HUGE. */
int host_new(const struct host_config *config, struct tier **ret_tier);

/* The daemon ends: what is dropped from now on keeps its bytes for the clients that map it, which may be reading them, and is
 * given back when the last one of these unmaps it. */
void host_leave(struct tier *t);

/* All regions and objects were dropped.  Touching stops; when the last job is done the memory goes and closed(arg) is
 * called, never inline; then the workers may be closed.  @closed may be NULL.  For a tier with a loop. */
void host_close(struct tier *t, void (*closed)(void *arg), void *arg);

/* The same for a tier without a loop, at once.  Takes NULL.  Returns NULL. */
struct tier *host_free(struct tier *t);

#endif
