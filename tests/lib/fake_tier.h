/* SPDX-License-Identifier: Apache-2.0 */
/* fake_tier.h: a host tier of plain memory, for the simulator and for tests of what stands on tier.h.
 *
 * Same budget rules as tier/host.c, no descriptors (fd and ro_fd are -1) unless asked for, nothing in the background.  Objects are zeroed
 * private memory; regions have no memory (base NULL) unless asked for.  Refuses on demand, and counts what is out, so that
 * a test can say that nothing is.
 */
#ifndef TESTS_FAKE_TIER_H
#define TESTS_FAKE_TIER_H

#include "tier/tier.h"

#define FAKE_TIER_GRAIN (UINT64_C(2) << 20)

/* @size_bytes is rounded down to the grain; @region_size 0: as the host tier would choose, else rounded up to the grain.
 * @with_memory: regions have a base.  Never NULL. */
struct tier *fake_tier_new(uint64_t size_bytes, uint64_t region_size, bool with_memory);

/* From now on regions and objects come with descriptors, of /dev/null: what server/ sends has to be something. */
void fake_tier_give_fds(struct tier *t);

/* Asserts that no region and no object is out.  Takes NULL.  Returns NULL. */
struct tier *fake_tier_free(struct tier *t);

/* The @n-th call of region_make or object_make from now (1: the next one) and the @times - 1 after it answer TIER_E_NOMEM.
 * @times 0: never (takes an earlier order back); UINT32_MAX: for ever. */
void fake_tier_fail_after(struct tier *t, uint32_t n, uint32_t times);

/* Given out and not yet dropped. */
uint32_t fake_tier_regions(const struct tier *t);
uint32_t fake_tier_objects(const struct tier *t);

/* Calls of region_make and object_make so far, refused ones too: the length of a fault loop. */
uint64_t fake_tier_calls(const struct tier *t);

#endif
