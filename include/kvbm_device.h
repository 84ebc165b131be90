/* SPDX-License-Identifier: Apache-2.0 */
/* kvbm_device.h: an engine's own device memory.
 *
 * An engine lets the daemon copy blocks from and to the memory in which it has them, on streams of the daemon's.
 * It says once where they are, and gets an adoption.  Valid while this session is connected and the device is there:
 * after either has gone the calls below answer STALE, and the engine adopts again.
 *
 * Layout: byte i0, i1, ... of block b is at
 *     plane + b * block_stride + i0 * strides[0] + i1 * strides[1] + ... + (0 .. run_bytes - 1)
 * With as many planes as extents[0] (an engine's layers, each a tensor of its own) i0 names the plane, and strides[0]
 * means nothing; otherwise there is one plane.  In host memory the bytes of a slice lie in the order of the indices.
 * extents[0] * extents[1] * ... * run_bytes must be kvbm_lane_bytes().
 *
 * Results, threads and units are as in kvbm.h.
 */
#ifndef KVBM_DEVICE_H
#define KVBM_DEVICE_H

#include <kvbm.h>

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

struct kvbm_adoption; /* freed with its namespace */

struct kvbm_memory {
	const void *handle; /* 64 bytes, a cudaIpcMemHandle of the allocation; NULL: @fd is one's of cuMemCreate() */
	int fd;             /* stays the caller's */
	uint64_t bytes;     /* of the whole allocation, not of what is used of it */
};
struct kvbm_plane {
	uint32_t memory; /* index */
	uint64_t offset; /* of block 0's first byte from the allocation's beginning */
};
#define KVBM_MAX_DIMS 6u
struct kvbm_engine_blocks {
	const char *device; /* UUID, as nvidia-smi -L shows it */
	uint32_t lane;      /* that this memory is of */
	uint64_t n_blocks;
	const struct kvbm_memory *memories; /* 1..256; at most 16 of them by descriptor */
	const struct kvbm_plane *planes;    /* 1..1024 */
	uint32_t n_memories, n_planes, n_dims;
	uint64_t extents[KVBM_MAX_DIMS], strides[KVBM_MAX_DIMS];
	uint64_t run_bytes, block_stride;
	const void *events; /* n_events cudaIpcEventHandles of 64 bytes; up to 64 */
	uint32_t n_events;
};

/* Waits for the device and the import, up to 10 s where it is the device's first use.  @ret_adoption is freed by
 * kvbm_disown() or with the session.  Memory must not be freed before kvbm_disown() has returned.
 * Errors: INVAL (layout, handle, memory of a kind that cannot be shared), NOENT (no such device), BUSY (device offline),
 * LIMIT (16 adoptions a session), GONE. */
int kvbm_adopt(struct kvbm_ns *ns, const struct kvbm_engine_blocks *blocks, struct kvbm_adoption **ret_adoption);

/* Copies under way are awaited by the daemon, not here.  The struct is gone whatever the result.  NULL is fine. */
int kvbm_disown(struct kvbm_adoption *adoption);

/* 512 words of 64 bits that both sides write: register them with the driver (cuMemHostRegister) to write and await them in
 * stream order.  A word that a copy is told to signal gets its value when the copy is done, or
 * KVBM_FLAG_FAILED if it failed; set it back before you use it again.  Values are smaller than that: it is past all of them
 * for cuStreamWaitValue64() with GEQ too, which compares cyclically. */
#define KVBM_FLAG_FAILED (UINT64_MAX / 2)
uint64_t *kvbm_adoption_flags(struct kvbm_adoption *adoption);

enum kvbm_sync_kind { KVBM_SYNC_NONE = 0, KVBM_SYNC_FLAG, KVBM_SYNC_EVENT };
struct kvbm_sync {
	enum kvbm_sync_kind kind;
	uint32_t index; /* of the flag, or of the adoption's event */
	uint64_t value; /* flag: waited for until it is >= value; signalled by writing value */
};

struct kvbm_copy {
	const void *keys;        /* n * key_bytes */
	const uint32_t *blocks;  /* n: the engine's block of each key */
	uint32_t n;              /* up to 4096 */
	unsigned flags;          /* KVBM_NOWAIT, KVBM_PARENTS (store), KVBM_ALL (load) */
	const void *parent;      /* store: as in kvbm_commit() */
	struct kvbm_sync before; /* nothing is read (store) or written (load) before it */
	struct kvbm_sync after;
	int timeout_ms;        /* for @before, and load's blocks, 15 s at most; 0: 5 s */
	uint32_t tokens_per_s; /* load: as in kvbm_onboard_options */
	uint8_t *ret_states; /* n, may be NULL; store: 1 new, 2 existed, 3 other lanes missing; load: enum kvbm_status */
};
#define KVBM_ALL 8u /* all blocks or none */

/* Copies engine blocks into host memory and publishes them, but for those that the node has.  The engine must not
 * change a block until the call has returned or @after was signalled.
 * With KVBM_NOWAIT it returns once the request is written; @after, a flag, tells the outcome.
 * Returns the number of blocks that are new to the node.  Errors: INVAL, NOSPACE, PERM, BUSY (@before did not come in
 * time, too much is under way), STALE (adopt again), TIMEOUT, GONE. */
int kvbm_store(struct kvbm_adoption *adoption, const struct kvbm_copy *copy);

/* Brings the leading blocks of keys, from whichever tier they are in, into engine blocks.  Blocks behind the first that
 * could not be had are not touched.
 * Returns the number that were copied.  Errors: as kvbm_store(). */
int kvbm_load(struct kvbm_adoption *adoption, const struct kvbm_copy *copy);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
#endif
