/* SPDX-License-Identifier: Apache-2.0 */
/* device_pool.h: memory of one device (G1), lent out in regions: the tier that namespaces' pools are cut from.
 *
 * It is allocated ahead, in few large chunks, as soon as the device is online, and a region is one of them: a handle shows others the whole
 * allocation.  A region that is dropped is closed and allocated anew in the background, so that nobody finds another's bytes in it.
 *
 * Loop thread.  Ends in two steps, because a driver may take its time: device_pool_leave(), then, when the devices are closed, device_pool_free().
 */
#ifndef KVBMD_TIER_DEVICE_POOL_H
#define KVBMD_TIER_DEVICE_POOL_H

#include "tier/device.h"
#include "tier/tier.h"

enum {
	DEVICE_POOL_E_CANNOT = 1, /* its memory cannot be shared, or this build or system cannot use it; logged */
};

struct device_pool_config {
	struct device *device; /* borrows; its context is made now */
	struct loop *loop;     /* borrows */
	uint64_t size;         /* bytes, rounded down to regions */
	uint64_t region_size;  /* bytes, rounded up to 2 MiB; 0: size / 16 */
};

/* Set its user before the loop turns.  Outcome: DEVICE_POOL_E_CANNOT. */
int device_pool_new(const struct device_pool_config *config, struct tier_device **ret_pool);

/* All regions were dropped, no copy is under way. */
void device_pool_leave(struct tier_device *t);

/* The device is closed.  Takes NULL.  Returns NULL. */
struct tier_device *device_pool_free(struct tier_device *t);

/* For reports: chunks that could not be had, so far. */
uint32_t device_pool_missing(const struct tier_device *t);

#endif
