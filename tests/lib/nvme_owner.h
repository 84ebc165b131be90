/* SPDX-License-Identifier: Apache-2.0 */
/* nvme_owner.h: one who keeps things in an NVMe tier, as move/ does, and checks everything that comes back.
 *
 * What is written is a PRNG of a seed; the tag says seed, life of the area, place and checksum of the bytes.  After recovery a
 * slot counts as found if its tag is one that was given to the tier for that life and place; its bytes are read and compared
 * with the checksum, as the real owner does, and with the PRNG, as no real owner could: bytes that pass the first and not
 * the second are wrong bytes.
 */
#ifndef TESTS_LIB_NVME_OWNER_H
#define TESTS_LIB_NVME_OWNER_H

#include "loop/loop.h"
#include "tier/nvme.h"

#define NVME_OWNER_AREAS 64u
#define NVME_OWNER_SLOTS 4096u

struct nvme_owner_slot {
	bool present, found; /* found: by recovery, and not looked at since */
	uint64_t seed;
	struct tier_tag tag;
};

struct nvme_owner_area {
	bool used;
	uint32_t n_slots;
	uint64_t life;
	struct tier_area_shape shape;
	struct nvme_owner_slot *slots; /* owns: n_slots */
};

/* What was ever given to the tier, by seed. */
struct nvme_owner_past {
	uint64_t life;
	uint32_t area, place;
	struct tier_tag tag;
};

struct nvme_owner {
	struct loop *loop;    /* owns */
	struct tier_lower *t; /* owns, until nvme_owner_close() */
	char why[NVME_WHY_BYTES];
	/* host memory: one region */
	struct tier_region region;
	uint64_t lane_area;
	struct nvme_owner_area areas[NVME_OWNER_AREAS];
	uint64_t lives;
	struct list copies; /* owns: in flight */
	/* Seeds are next_seed, next_seed + 1, ... if this is kept; then whatever recovery brings must be in it. */
	bool keeps_past;
	struct nvme_owner_past *past; /* owns */
	uint64_t n_past, past_max;
	bool recovered, clean, refuse_areas;
	uint32_t n_areas_found, n_slots_found, n_strangers; /* strangers: tags that make no sense */
	bool online;
	uint32_t n_offline, n_online; /* times told */
	uint32_t in_flight;
	uint64_t n_ok, n_io, n_gone;
};

/* A loop and @memory bytes of host memory; lanes are memory / 64 apart. */
void nvme_owner_init(struct nvme_owner *o, uint64_t memory);
void nvme_owner_deinit(struct nvme_owner *o);

/* Starts on @config (whose loop is filled in) and waits until it is recovered.  Returns what nvme_new() does. */
int nvme_owner_open(struct nvme_owner *o, const struct nvme_config *config);
/* Waits until it is closed.  Forgets what is where. */
void nvme_owner_close(struct nvme_owner *o);
/* The process is dead: nothing is stored any more, which the ring sees to; callbacks of what is in flight do not come. */
void nvme_owner_die(struct nvme_owner *o);
/* One more seed of those kept. */
uint64_t nvme_owner_seed(struct nvme_owner *o);

uint32_t nvme_owner_area(struct nvme_owner *o, uint64_t lane_bytes, uint32_t lanes);

/* Submits; the copy's outcome is counted.  @at: which slot of host memory.  Returns what submit() does. */
int nvme_owner_write(struct nvme_owner *o, uint32_t area, uint32_t place, uint64_t seed, uint32_t at);
/* The same, and waits: the outcome. */
int nvme_owner_put(struct nvme_owner *o, uint32_t area, uint32_t place, uint64_t seed);
/* Reads and compares: 0, TIER_E_*, or one of these. */
enum {
	NVME_OWNER_WRONG = 100, /* the checksum says so: a miss */
	NVME_OWNER_LIE          /* the checksum does not notice */
};
int nvme_owner_get(struct nvme_owner *o, uint32_t area, uint32_t place);

void nvme_owner_forget(struct nvme_owner *o, uint32_t area, uint32_t place);
void nvme_owner_drop(struct nvme_owner *o, uint32_t area);

/* Has no copy in flight these bytes of each lane's memory? */
bool nvme_owner_is_idle(const struct nvme_owner *o, uint64_t offset, uint64_t length);
bool nvme_owner_is_writing(const struct nvme_owner *o, uint32_t area, uint32_t place);

/* Turns the loop until nothing is in flight. */
void nvme_owner_wait(struct nvme_owner *o);
/* Until all metadata is stored. */
void nvme_owner_settle(struct nvme_owner *o);
struct tier_lower_stat nvme_owner_stat(struct nvme_owner *o);

/* Reads everything that is present; returns how much of it is right.  Lies are not survived. */
uint32_t nvme_owner_check_all(struct nvme_owner *o);

#endif
