/* SPDX-License-Identifier: Apache-2.0 */
/* The NVMe tier (G3): files or block devices, one a drive, under struct tier_lower_ops.
 *
 * Loop thread only.  All memory is taken at the start or when an area is made; capacity is physical and never exceeded.
 *
 * Shapes it cannot take (area_slots() is 0): lane_bytes that are no multiple of 4096, more than 64 lanes, slots above 1 GiB or
 * larger than an area.  Host memory of a copy is aligned to 4096: offset and lane_area too.
 *
 * A copy in flight when the tier goes offline belongs to it until the kernel is done with the memory; all others are
 * answered TIER_E_GONE at once.  It comes back by itself: every second it reads from each drive.
 */
#ifndef KVBMD_TIER_NVME_H
#define KVBMD_TIER_NVME_H

#include "loop/uring.h"
#include "tier/tier.h"

#define NVME_WHY_BYTES 320u

/* Why it does not start. */
enum {
	NVME_E_OPEN = 1, /* a path cannot be opened or made, or is neither file nor block device */
	NVME_E_SPACE,    /* the filesystem is full */
	NVME_E_SMALL,    /* no size given and none there; or too small for one area */
	NVME_E_BUSY,     /* another daemon has it, or it is mounted */
	NVME_E_FOREIGN,  /* it is not empty and not ours; nothing was changed */
	NVME_E_VERSION,  /* written by another version; nothing was changed */
	NVME_E_CHANGED,  /* size, number or set of drives are not those it was made for; nothing was changed */
	NVME_E_DAMAGED,  /* every superblock is damaged; nothing was changed */
	NVME_E_IO,       /* it cannot be read or written */
	NVME_E_RING,     /* no io_uring here */
};

struct nvme_config {
	const char *const *paths; /* borrows until nvme_new() returns */
	uint32_t n_paths;
	uint64_t size;      /* of all drives together; 0: what is there.  A file that is not there is made */
	uint64_t area_size; /* over all drives; 0: size / 256, within 64 MiB and 4 GiB, smaller for a small size */
	uint32_t depth;     /* copies in flight a drive, of large ones fewer: 16 MiB; 0: 32 */
	uint32_t queue; /* copies waiting; 0: 1024.  TIER_WANTED may use all, TIER_BACKGROUND 3/4, TIER_AHEAD half */
	uint64_t write_budget_bytes; /* a day; 0: no limit */
	uint64_t io_deadline_ns;     /* 0: 10 s */
	uint64_t grace_ns; /* the longest that writes wait for those of a dead daemon; 0: 10 s; UINT64_MAX: none */
	/* A record is written that long after its slot, or once 16 wait: so many a crash may lose.  0: 50 ms */
	uint64_t record_delay_ns;
	uint64_t probe_ns;   /* offline: between attempts; 0: 1 s */
	uint8_t boot_id[16]; /* of /proc/sys/kernel/random/boot_id; zeros: unknown */
	struct loop *loop;
	struct uring *ring; /* NULL: its own.  Otherwise becomes the tier's in any case, also when it does not start */
};

/* Opens, checks, or makes and formats; reads and writes nothing else yet.  Outcomes: NVME_E_*, with a sentence for people in
 * @ret_why of NVME_WHY_BYTES.  Takes milliseconds, and blocks. */
int nvme_new(const struct nvme_config *config, char *ret_why, struct tier_lower **ret_tier);

/* Once tier->user is set: recovers in the background; submit() and area_make() answer TIER_E_GONE until on_recovered(). */
void nvme_start(struct tier_lower *t);

/* Has the first part of that, on_area() for every area, been done?  It takes milliseconds; a user that makes owners of areas by itself waits for
 * it before, or it may make one anew that is about to come back. */
bool nvme_knows_areas(const struct tier_lower *t);

/* No new copies; those waiting are answered TIER_E_GONE.  Waits for those in flight, stores what there is to store, marks the
 * drives CLEAN; then the memory goes and closed(arg) is called, never inline.  A drive that does not answer within the
 * deadline is not waited for: then callbacks of what it has do not come, and its memory remains the kernel's. */
void nvme_close(struct tier_lower *t, void (*closed)(void *arg), void *arg);

#endif
