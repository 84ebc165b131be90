/* SPDX-License-Identifier: Apache-2.0 */
/* pools.h: memory of each GPU for pools of namespaces ([g1] size), once it is known which GPUs there are.
 *
 * Ends in two steps, around the end of the devices: pools_leave() when the store is gone, pools_free() when they are closed.
 */
#ifndef KVBMD_POOLS_H
#define KVBMD_POOLS_H

#include "base/error.h"
#include "gpu/gpu.h"
#include "tier/device.h"

struct store;

struct pools {
	struct loop *loop; /* borrows */
	uint64_t size, region_size;
	struct tier_device *all[GPU_MAX_DEVICES]; /* own */
	uint32_t n;
	bool made; /* from the start where there are to be none */
};

void pools_init(struct pools *p, struct loop *loop, uint64_t size, uint64_t region_size);

/* Once, as soon as the devices are known; before that, and after it, nothing.  Faults only. */
_must_check_ int pools_make(struct pools *p, struct devices *devices, struct store *store);
void pools_leave(struct pools *p);
void pools_free(struct pools *p);

#endif
