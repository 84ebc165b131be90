/* sim_tier.h: a host tier without memory, so that the store's policy can run over capacities of any size.  Slots have numbers and no
 * bytes; only the small objects (index, records, session pages) exist, in this process.
 */
#ifndef KVBMCTL_SIM_TIER_H
#define KVBMCTL_SIM_TIER_H

#include "tier/tier.h"

#define SIM_SLOT_BYTES 4096u /* a lane's slice as the store must be told */

struct sim_tier {
	struct tier tier; /* first */
	uint64_t size, used;
	uint32_t regions;
};

/* Exactly @slots slots of SIM_SLOT_BYTES, in one region. */
void sim_tier_init(struct sim_tier *t, uint64_t slots);
/* Everything must have been given back. */
void sim_tier_deinit(struct sim_tier *t);

#endif
