/* SPDX-License-Identifier: Apache-2.0 */
/* host_work.h: what the workers do for the host tier, and the structs that host.c and host_work.c share.
 *
 * Two kinds of work: touching regions ahead of their use, and giving back the pages of those that were dropped, which
 * takes the kernel a quarter of a second for a gigabyte of small pages.  Nobody else includes this.  Loop thread.
 */
#ifndef TIER_HOST_WORK_H
#define TIER_HOST_WORK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "loop/loop.h"
#include "loop/worker.h"
#include "tier/nodes.h"
#include "tier/region.h"
#include "tier/tier.h"

#define HOST_PREPARED_MAX 256u /* each is a descriptor */
#define HOST_TOUCHES 16u       /* jobs at a time, and no more than there are workers */

enum host_state { HOST_PREPARED = 0, HOST_OUT, HOST_DYING };

struct host_region {
	struct list link;  /* on the list of its state */
	struct list todo;  /* on host->todo while there is more to touch and no worker is at it */
	struct host *host; /* borrows */
	struct region region;
	enum host_state state;
	uint64_t touched; /* bytes, from the start on; of this pass */
	uint32_t busy;    /* jobs */
	uint32_t pass;    /* a second one moves what was touched before it had lanes */
	struct nodes_map map;
	struct job punch;
	uint64_t punched; /* given back up to here */
	bool present;     /* see tier.h */
	bool keep;        /* once it is dying: clients keep its bytes */
	atomic_bool stop; /* any thread: no more touching */
};

/* One job: touch a part of a region. */
struct host_touch {
	struct job job;
	struct host *host;          /* borrows */
	struct host_region *region; /* borrows; NULL: idle */
	struct nodes_map map;
	uint64_t offset, size, done;
	uint32_t pass;
	int r;
};

struct host {
	struct tier tier; /* first */
	struct loop *loop;
	struct worker_pool *workers;
	struct nodes nodes;
	enum region_pages pages, object_pages;
	bool may_fall_back, huge_wanted;
	char note[256];

	uint64_t size_bytes, used_bytes, prepared_bytes, region_size, populated_bytes;
	uint32_t n_out, n_prepared, n_objects;
	struct list prepared, out, dying; /* owns struct host_region */
	struct list todo;                 /* borrows; those given out first */

	struct host_touch touches[HOST_TOUCHES];
	uint32_t n_busy; /* jobs of any kind */
	struct loop_deferred fill;
	struct loop_timer retry;
	bool closing;
	bool leaving; /* clients keep what they map */
	void (*closed)(void *arg);
	void *closed_arg;
};

/* Hands out work while there is some and somebody to do it.  Nothing is touched while pages of dropped regions wait to
 * be given back, so that the two together do not need more memory than the budget. */
void host_work_kick(struct host *h);

/* @hr left its list and was charged to nobody: it ends here, now or when the workers have let go of it. */
void host_work_end(struct host *h, struct host_region *hr);

/* No worker has work of ours, and all dropped memory was given back. */
bool host_work_is_quiet(const struct host *h);

/* In host.c: called when a job is done and nothing waits any more. */
void host_on_quiet(struct host *h);

#endif
