/* SPDX-License-Identifier: Apache-2.0 */
/* device.h: the GPUs of this node, and host memory pinned for them.
 *
 * Which GPUs there are is known some time after the start: the driver is asked in a thread.  A GPU's context costs it some
 * hundred MiB, so it is made at first use, device_use(), and kept.  From then on every region of host memory that was announced is
 * pinned for it, each through a mapping of its own, so that a region can go at once while the driver takes its time.
 *
 * Loop thread.  No CUDA here: that is gpu/gpu.h's.
 */
#ifndef KVBMD_TIER_DEVICE_H
#define KVBMD_TIER_DEVICE_H

#include "gpu/gpu.h"
#include "tier/tier.h"

struct devices;
struct device;

struct devices_config {
	struct loop *loop;       /* borrows */
	struct mailbox *mailbox; /* borrows; outlives them */
	const char *which;       /* "auto": all; "none"; or UUIDs with commas; borrows */
	uint32_t max_copies;     /* requests, a device */
	uint64_t call_deadline_ns, copy_deadline_ns, reprobe_ns;
};

/* Faults only.  Nothing is asked of the driver for "none". */
int devices_new(const struct devices_config *config, struct devices **ret_devices);

/* Nobody watches a device.  Copies that are under way are awaited, within their deadline; what else of others' is on a device is void then.
 * closed(arg) comes at the end, inline where no device was in use. */
void devices_close(struct devices *ds, void (*closed)(void *arg), void *arg);

/* Host memory comes and goes; @region stays where it is meanwhile.  Copies name no region that is gone. */
void devices_region_seen(struct devices *ds, const struct tier_region *region);
void devices_region_gone(struct devices *ds, const struct tier_region *region);

/* Is the answer of the driver still to come? */
bool devices_are_known(const struct devices *ds);
const char *devices_note(const struct devices *ds); /* why there is none; "" */
uint32_t devices_n(const struct devices *ds);
/* There are some, or it is not known yet. */
bool devices_may_be(const struct devices *ds);
struct device *devices_at(struct devices *ds, uint32_t i);
/* By UUID, whole.  NULL: none, or not among those of the configuration. */
struct device *devices_find(struct devices *ds, const char *uuid);

const struct gpu_info *device_info(const struct device *d);

/* Who wants to know when a device goes or comes: on_state() of gpu.h, after first use. */
struct device_user {
	struct list link;
	void (*on_state)(struct device_user *user, bool online);
};
void device_watch(struct device *d, struct device_user *user);
void device_unwatch(struct device_user *user);

/* Its context is made, if that has not begun.  NULL: this build or system cannot. */
struct gpu *device_use(struct device *d);
bool device_is_online(const struct device *d);
const char *device_why(const struct device *d); /* it is not online; "" when not in use yet */

/* The pin of @region on @d, in which offsets are those in the region; NULL: @d is not in use. */
const struct gpu_pin *device_pin(const struct device *d, const struct tier_region *region);

/* "new" (not in use), "online", "offline". */
const char *device_state(const struct device *d);
void device_stat(const struct device *d, struct gpu_stat *ret_stat);

#endif
