/* SPDX-License-Identifier: Apache-2.0 */
/* fake_lower.h: a tier below host memory that is itself plain memory, and somebody who calculates checksums, for the simulator and for tests of
 * what stands on tier.h.
 *
 * Nothing is done by itself: each copy, and each checksum, waits until the test releases it, in whatever order.  Real bytes are
 * copied.  Its content outlives the store: after fake_lower_restart() or fake_lower_crash() another one recovers it.
 */
#ifndef TESTS_FAKE_LOWER_H
#define TESTS_FAKE_LOWER_H

#include "base/rng.h"
#include "move/mover.h"
#include "tier/tier.h"

#define FAKE_LOWER_GRAIN UINT64_C(4096) /* lanes are multiples of it */

/* @edges: of each lane only the first and the last eight bytes are kept; enough where nothing between them is ever looked at.
 * Never NULL; recovering until fake_lower_recover(). */
struct tier_lower *fake_lower_new(uint32_t areas, uint64_t area_bytes, bool edges);
/* Nothing is in flight.  Takes NULL.  Returns NULL. */
struct tier_lower *fake_lower_free(struct tier_lower *t);

/* ---- time ---- */

uint32_t fake_lower_in_flight(const struct tier_lower *t); /* stuck ones included */
/* The @i-th of them, the oldest first. */
const struct tier_io *fake_lower_io(const struct tier_lower *t, uint32_t i);
/* That one ends.  Not a stuck one. */
void fake_lower_release_at(struct tier_lower *t, uint32_t i);
/* The oldest that is not stuck ends; false: there is none. */
bool fake_lower_release(struct tier_lower *t);
/* Any of them. */
bool fake_lower_release_any(struct tier_lower *t, struct rng *rng);

/* ---- faults ---- */

enum fake_lower_fault {
	FAKE_LOWER_NONE = 0,
	FAKE_LOWER_IO,      /* ends with TIER_E_IO */
	FAKE_LOWER_STUCK,   /* does not end before fake_lower_unstick() */
	FAKE_LOWER_CORRUPT, /* ends with 0, but a byte is wrong: on disk after a write, in memory after a read */
	FAKE_LOWER_ASTRAY,  /* ends with 0, but went to, or came from, another slot of the area */
	FAKE_LOWER_FULL,    /* submit() answers TIER_E_FULL */
	FAKE_LOWER_GONE,    /* and so on */
};
/* The @n-th submit() of a write, or of a read, from now (1: the next one) and the @times - 1 after it.  FAKE_LOWER_NONE: never. */
void fake_lower_fail(struct tier_lower *t, bool write, enum fake_lower_fault fault, uint32_t n, uint32_t times);
void fake_lower_unstick(struct tier_lower *t);
/* At most @n copies in flight, more are answered TIER_E_FULL; 0: any number. */
void fake_lower_limit(struct tier_lower *t, uint32_t n);
/* Tells the user.  Offline, what is in flight ends with TIER_E_GONE when released. */
void fake_lower_set_online(struct tier_lower *t, bool online);
void fake_lower_set_speed(struct tier_lower *t, uint64_t read_bytes_per_s, uint64_t read_latency_ns);
/* A byte of that slot changes. */
void fake_lower_flip(struct tier_lower *t, uint32_t area, uint32_t place);

/* ---- lives ---- */

/* From here on nothing changes what is stored; of the writes in flight some have happened, some are torn, by @rng.  What is in flight ends with
 * TIER_E_GONE when released. */
void fake_lower_crash(struct tier_lower *t, struct rng *rng);
/* Its user is gone: nothing is in flight.  It is recovering, for another one. */
void fake_lower_restart(struct tier_lower *t);
/* Tells the user what is there, in order or by @rng (or NULL), then that it is online. */
void fake_lower_recover(struct tier_lower *t, struct rng *rng, bool clean);

/* ---- counts ---- */

uint64_t fake_lower_reads(const struct tier_lower *t); /* submitted and taken */
uint64_t fake_lower_writes(const struct tier_lower *t);
uint32_t fake_lower_valid(const struct tier_lower *t);   /* slots that recovery would find */
uint32_t fake_lower_regions(const struct tier_lower *t); /* seen and not gone */

/* ---- checksums ---- */

struct fake_sums;
/* Takes at most @limit at a time (0: any number). */
struct fake_sums *fake_sums_new(uint32_t limit, bool edges);
struct fake_sums *fake_sums_free(struct fake_sums *s); /* none waits */
struct mover_calculator fake_sums_calculator(struct fake_sums *s);
uint32_t fake_sums_waiting(const struct fake_sums *s);
bool fake_sums_release(struct fake_sums *s); /* the oldest */
bool fake_sums_release_any(struct fake_sums *s, struct rng *rng);
void fake_sums_limit(struct fake_sums *s, uint32_t limit);

/* Releases everything, also what that brings about, until nothing but stuck copies waits. */
void fake_lower_settle(struct tier_lower *t, struct fake_sums *s);

#endif
