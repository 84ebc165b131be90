/* SPDX-License-Identifier: Apache-2.0 */
/* fake_device.h: device memory that is plain memory nobody maps, for the simulator and for tests of what stands on tier.h.
 *
 * Nothing is done by itself: each batch of copies waits until the test releases it, in whatever order, and only then are bytes copied: what was
 * changed too early shows.
 */
#ifndef TESTS_FAKE_DEVICE_H
#define TESTS_FAKE_DEVICE_H

#include "base/rng.h"
#include "tier/tier.h"

/* Regions of @region_size, as many as fit into @size.  @edges: of each lane only the first and the last eight bytes are copied.  Offline.  Never NULL. */
struct tier_device *fake_device_new(uint64_t size, uint64_t region_size, bool edges);
/* No region is out, nothing is in flight.  Takes NULL.  Returns NULL. */
struct tier_device *fake_device_free(struct tier_device *t);

/* Tells the user.  Offline, what is in flight ends with TIER_E_GONE when released, and all memory is lost. */
void fake_device_set_online(struct tier_device *t, bool online);

uint32_t fake_device_in_flight(const struct tier_device *t);
bool fake_device_release(struct tier_device *t); /* the oldest; false: there is none */
bool fake_device_release_any(struct tier_device *t, struct rng *rng);

/* The next @times copies from now end with (FULL, GONE: are answered) @outcome, a TIER_E_*. */
void fake_device_fail(struct tier_device *t, int outcome, uint32_t times);

/* From now on what is dropped can be had again only after fake_device_remake(), which tells the user. */
void fake_device_slow(struct tier_device *t);
void fake_device_remake(struct tier_device *t);

/* The byte of a region that a client would see there. */
uint8_t *fake_device_at(const struct tier_region *region, uint64_t offset);

uint64_t fake_device_blocks(const struct tier_device *t, bool up); /* copied so far */

#endif
