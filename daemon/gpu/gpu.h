/* SPDX-License-Identifier: Apache-2.0 */
/* gpu.h: device memory, host memory pinned for devices, and copies between the two.
 *
 * One thread a device makes all driver calls; the loop hands it jobs and gets the results through the mailbox.  So a
 * driver call that takes seconds, or never returns, stops that device and nothing else.  Everything here is for the loop
 * thread, every callback comes on the loop thread and never from inside the call that caused it.  Devices are named by
 * UUID.  Two implementations: gpu_cuda*.c over the CUDA driver API, and gpu_none.c, which knows no device.
 *
 * Lost.  A sticky driver error, a call past its deadline, or a copy past its deadline: the device is lost.  on_state()
 * says so at once; from then on every start of a job is GPU_E_LOST, and all jobs under way end with GPU_E_LOST.  All
 * device memory of that life is void.  The thread destroys its context and tries a new one every reprobe_ns; when that
 * works, on_state() says that the device is back, with a new life; pinned regions are pinned anew by themselves.
 *
 * Quiet.  done() means that nothing of the job will be touched any more, by the thread or the device, whatever the
 * result.  So a copy that was under way when the device was lost ends only when the context is gone, and where the driver
 * hangs that may be never (until gpu_close()): answer your clients in on_state(), and keep the slots until done().
 *
 * Memory of jobs is the caller's, and the device's from a start that returned 0 until done().
 */
#ifndef GPU_GPU_H
#define GPU_GPU_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/layout.h"
#include "base/list.h"
#include "loop/loop.h"
#include "loop/mailbox.h"

#define GPU_MAX_DEVICES 64u /* MIG instances count */
#define GPU_UUID_CHARS 48u
#define GPU_HANDLE_BYTES 64u
#define GPU_MEM_GRAIN (UINT64_C(2) << 20)

/* The largest for a driver's eyes too: cuStreamWaitValue64() with GEQ waits until (int64_t)(*flag - value) >= 0. */
#define GPU_FLAG_FAILED (UINT64_MAX / 2)

enum {
	GPU_E_LOST = 1, /* the device is lost, or closing */
	GPU_E_FULL,     /* as many jobs are under way as may be */
	GPU_E_NOMEM,    /* the device has no such memory left */
	GPU_E_REFUSED, /* the driver says no to this one: a stale handle, memory of a kind it cannot share, a range that
	                      is not there; the device lives on */
	GPU_E_UNSUPPORTED, /* this device or driver cannot do that at all */
	GPU_E_LATE,        /* what the copy was to wait for did not happen in time; nothing was copied */
};

/* ---- which devices there are ---- */

struct gpu_info {
	char uuid[GPU_UUID_CHARS]; /* "GPU-..." or "MIG-...", as nvidia-smi -L has it */
	char name[96];
	uint64_t bytes;
	int32_t numa_node;       /* the host's, closest to it; -1: not known */
	bool mig;                /* no handles from or to other instances: let engines copy by themselves */
	bool handles, fds;       /* which of enum gpu_share work */
	bool stream_flags;       /* 64-bit flags are written by the stream; otherwise by the thread, later by a poll */
	uint32_t driver_version; /* 13000: CUDA 13.0 */
};

struct gpu_list;

/* Asks the driver, in a thread of its own, because that takes seconds where no other process uses a device.  done() comes
 * once; @note says why there is none ("no driver: ..."), or "".  A driver that hangs never answers.  Faults only. */
int gpu_list_start(struct mailbox *mailbox,
                   void (*done)(void *arg, const struct gpu_info *infos, uint32_t n, const char *note), void *arg,
                   struct gpu_list **ret_list);

/* Before or after done(), not inside it; it will not come any more.  Takes NULL.  Returns NULL. */
struct gpu_list *gpu_list_close(struct gpu_list *list);

/* ---- a device ---- */

struct gpu;

struct gpu_options {
	struct loop *loop;       /* borrows */
	struct mailbox *mailbox; /* borrows; outlives the device */
	char uuid[GPU_UUID_CHARS];
	uint32_t max_copies;       /* jobs of that kind at a time */
	uint64_t call_deadline_ns; /* of one driver call; pinning gets a second more for each GiB */
	uint64_t copy_deadline_ns; /* of one copy on the device */
	uint64_t reprobe_ns;       /* between tries to get it back */
	uint64_t batch_piece_bytes; /* mean piece from which on copies are batched; smaller ones: the kernel.  0: 32 KiB */

	/* It came online (first, or again), or was lost, and why.  For each true there is one false, then perhaps another
	 * true; none after gpu_close().  Jobs may be started from inside it. */
	void (*on_state)(void *ctx, bool online, const char *why);
	void *ctx;
};

/* The device begins lost, and says so when it is not.  An unknown UUID stays lost, with the reason in gpu_why().  Outcome:
 * GPU_E_UNSUPPORTED (built without CUDA). */
int gpu_start(const struct gpu_options *options, struct gpu **ret_gpu);

bool gpu_is_online(const struct gpu *gpu);
const char *gpu_why(const struct gpu *gpu); /* of being lost; "" */

struct gpu_stat {
	uint64_t device_bytes; /* of gpu_mem_alloc() */
	uint64_t up_bytes, down_bytes, copies, batches, kernels;
	uint64_t losses, pin_failures;
	uint32_t copies_now, jobs_now, pins;
};

void gpu_stat(const struct gpu *gpu, struct gpu_stat *ret_stat);

/* Jobs not begun end with GPU_E_LOST, copies under way are awaited, within their deadline.  Memory, imports, events and
 * pins end with the context; the callers' structs are theirs again when closed(arg) is called.  If a driver call hangs,
 * its thread is given up after call_deadline_ns: the memory its copies name must not be used again in this process.
 * @closed may be NULL. */
void gpu_close(struct gpu *gpu, void (*closed)(void *arg), void *arg);

/* ---- for the structs below ---- */

struct gpu_job {
	struct gpu *gpu;  /* NULL: not under way */
	struct list all;  /* loop thread */
	struct list link; /* where the job is: queue, or a list of the thread */
	struct mail mail;
	uint8_t kind;
	bool posted; /* under the device's mutex */
	int result;
};

/* ---- device memory: ours to lend, or an engine's to borrow ---- */

enum gpu_share {
	GPU_SHARE_NONE = 0,
	GPU_SHARE_HANDLE, /* a 64-byte cudaIpcMemHandle; opens in other processes only */
	GPU_SHARE_FD,     /* a descriptor of a cuMemCreate() allocation; needs no common IPC namespace */
};

struct gpu_mem {
	/* Of the start under way: once for gpu_mem_alloc() or gpu_mem_import(), once for gpu_mem_close(). */
	void (*done)(struct gpu_mem *mem, int r);
	uint64_t bytes;
	enum gpu_share share;
	uint8_t handle[GPU_HANDLE_BYTES]; /* alloc: how others open it, after done(0); import: the caller's */
	int fd;                           /* the same; owned until gpu_mem_close() is done, of an import too; else -1 */

	/* gpu's */
	struct gpu_job job;
	struct list mems;
	uint64_t address, vmm;
	bool open, imported;
};

/* @mem->bytes, a multiple of GPU_MEM_GRAIN, to be lent as @mem->share says: few and large, because a handle shows others
 * the whole allocation.  The bytes are zero.  Outcomes: GPU_E_LOST, GPU_E_UNSUPPORTED here; also GPU_E_NOMEM in done(). */
int gpu_mem_alloc(struct gpu *gpu, struct gpu_mem *mem, void (*done)(struct gpu_mem *mem, int r));

/* @mem->bytes of what the handle or descriptor shows; compared with what is there.  The descriptor is taken if 0 is returned,
 * and closed before a done() that is not 0.  Outcomes: the same, and GPU_E_REFUSED in done(). */
int gpu_mem_import(struct gpu *gpu, struct gpu_mem *mem, void (*done)(struct gpu_mem *mem, int r));

/* No copy names it.  To be called once for each start that ended with done(0), whether or not the device was lost since.
 * done(0) when it is closed; GPU_E_LOST: gone with the device.  Memory that others have open by handle must not be closed
 * before they have closed it (undefined, says the driver's manual). */
void gpu_mem_close(struct gpu *gpu, struct gpu_mem *mem, void (*done)(struct gpu_mem *mem, int r));

/* ---- an engine's interprocess event ---- */

struct gpu_event {
	void (*done)(struct gpu_event *event, int r);
	uint8_t handle[GPU_HANDLE_BYTES]; /* a cudaIpcEventHandle; needs a common /dev/shm */
	/* gpu's */
	struct gpu_job job;
	uint64_t life;
	void *event;
	bool open;
};

/* As gpu_mem_import() and gpu_mem_close(). */
int gpu_event_import(struct gpu *gpu, struct gpu_event *event, void (*done)(struct gpu_event *event, int r));
void gpu_event_close(struct gpu *gpu, struct gpu_event *event, void (*done)(struct gpu_event *event, int r));

/* ---- host memory that the device reaches ---- */

struct gpu_pin {
	void (*done)(struct gpu_pin *pin, int r); /* of gpu_unpin() */
	void *base;
	uint64_t bytes;
	/* gpu's */
	struct gpu_job job;
	struct list pins;
	uint64_t device; /* where it sees the range */
	bool registered, borrowed, unpin;
};

/* From now on, whenever the device is online, the range is pinned for it: mapped and portable, in this process only.
 * Cannot fail: copies that name a pin that the system refused end with GPU_E_REFUSED (gpu_stat.pin_failures).  Takes
 * seconds for many gigabytes, and copies wait meanwhile, so pin ahead of use, in parts.  Another device may have the same
 * range pinned. */
void gpu_pin(struct gpu *gpu, struct gpu_pin *pin, void *base, uint64_t bytes);

/* No copy names it, on any device.  done(): the range may be unmapped. */
void gpu_unpin(struct gpu *gpu, struct gpu_pin *pin, void (*done)(struct gpu_pin *pin, int r));

/* ---- copies ---- */

/* What a copy waits for, and what it says when it is done.  The thread waits by looking, never a stream: a peer that
 * stays away holds up its own copy and nobody else's, until wait_ns. */
enum gpu_sync_kind {
	GPU_SYNC_NONE = 0,
	GPU_SYNC_FLAG,  /* the 64-bit word at @offset of @pin; waits until it is >= @value (cuStreamWriteValue64 at the
	                   peer), signals by writing @value in stream order (cuStreamWaitValue64 at the peer, with GEQ) */
	GPU_SYNC_EVENT, /* waits until what was recorded last has happened; signals by recording */
};

struct gpu_sync {
	enum gpu_sync_kind kind;
	const struct gpu_pin *pin;
	uint64_t offset, value; /* below GPU_FLAG_FAILED */
	struct gpu_event *event;
};

/* Where a plane of the layout begins. */
struct gpu_plane {
	const struct gpu_mem *mem;
	uint64_t offset;
};

/* One block's place at both ends; in host memory its bytes are contiguous. */
struct gpu_block {
	uint64_t block; /* the layout's index */
	const struct gpu_pin *pin;
	uint64_t offset;
};

enum gpu_direction { GPU_DOWN = 0, GPU_UP }; /* device to host; host to device */

#define GPU_COPY_MAX_BLOCKS 4096u

/* The caller's, with all it points to, until done(). */
struct gpu_copy {
	/* 0: copied, visible to the CPU (down) or the device (up), and signalled.  GPU_E_LOST, GPU_E_LATE; GPU_E_REFUSED: a
	 * range leaves its memory, or a pin or an import is not there.  Not 0: a flag to be signalled is set to
	 * GPU_FLAG_FAILED, so that nobody waits for ever; an event is not recorded. */
	void (*done)(struct gpu_copy *copy, int r);
	enum gpu_direction direction;
	const struct layout *layout;    /* passed layout_check() */
	const struct gpu_plane *planes; /* layout->planes of them */
	const struct gpu_block *blocks;
	uint32_t n_blocks;
	struct gpu_sync before, after;
	uint64_t wait_ns; /* for @before, from the start */

	/* gpu's */
	struct gpu_job job;
	uint64_t due_ns, bytes;
	atomic_bool cancelled;
};

/* Copies started one after another may end in any order.  Outcomes: GPU_E_LOST, GPU_E_FULL. */
int gpu_copy_start(struct gpu *gpu, struct gpu_copy *copy);

/* The session that wanted it is gone: if it has not begun it ends soon, with GPU_E_LATE; otherwise as ever. */
void gpu_copy_cancel(struct gpu_copy *copy);

#endif
