/* SPDX-License-Identifier: Apache-2.0 */
/* gpu_cuda_state.h: the structs that the gpu_cuda*.c share.  Nobody else includes this. */
#ifndef GPU_GPU_CUDA_STATE_H
#define GPU_GPU_CUDA_STATE_H

#include <pthread.h>

#include "base/cleanup.h"
#include "gpu/gpu.h"
#include "gpu/gpu_cuda_driver.h"

#define GPU_SLOTS 8u /* copies on the device at a time, each on a stream of its own */
#define GPU_PARTS 4u /* of a copy on its stream at a time: submitting takes as long as copying */
#define GPU_PART_PIECES 2048u
#define GPU_PART_BYTES (UINT64_C(64) << 20)
#define GPU_BATCH_PIECE_BYTES (UINT64_C(32) << 10) /* INTEGRATION: below, batched copies collapse */
#define GPU_WHY_CHARS 160u

enum gpu_kind {
	GPU_KIND_NONE = 0,
	GPU_KIND_ALLOC,
	GPU_KIND_IMPORT,
	GPU_KIND_CLOSE,
	GPU_KIND_EVENT_IMPORT,
	GPU_KIND_EVENT_CLOSE,
	GPU_KIND_PIN,
	GPU_KIND_UNPIN,
	GPU_KIND_COPY,
};

/* Some pieces of a copy: three arrays in one pinned allocation, which the kernel reads. */
struct gpu_part {
	void *table;
	CUdeviceptr table_device;
	CUdeviceptr *dsts, *srcs;
	size_t *sizes;
	CUevent fence;
	uint64_t due_ns;
};

/* A stream, and the copy on it.  Thread. */
struct gpu_slot {
	struct gpu_copy *copy; /* borrows; NULL: free */
	CUstream stream;
	struct gpu_part parts[GPU_PARTS]; /* a ring */
	uint32_t first, n_parts;          /* submitted and not seen to be complete */
	struct layout_walk walk;
	uint64_t planes[LAYOUT_MAX_PLANES];
	uint32_t next_block;
	bool last; /* all of it was submitted */
};

struct gpu {
	/* fixed */
	struct gpu_options options;
	pthread_t thread;

	/* loop thread */
	bool online;            /* as the user was told */
	bool closing, given_up; /* given_up: the thread will not come back in time */
	uint64_t losses_told;
	struct list jobs; /* borrows: all under way */
	uint32_t n_jobs, n_copies, n_pins;
	struct loop_timer watch;
	bool watch_closed, ended; /* ended: the thread's farewell came */
	void (*closed)(void *arg);
	void *closed_arg;
	struct mail farewell;
	char why_told[GPU_WHY_CHARS];

	/* any thread, under mtx: held for a few instructions only */
	pthread_mutex_t mtx;
	pthread_cond_t cond;
	struct list queue; /* borrows */
	bool stop, hung, abandoned, loop_gone, thread_gone;
	bool over;            /* the thread takes no job any more */
	uint64_t call_due_ns; /* of the driver call under way; 0: none */
	uint64_t losses;
	bool is_online, state_posted;
	struct mail state_mail;
	char why[GPU_WHY_CHARS];

	/* any thread */
	_Atomic uint64_t device_bytes, up_bytes, down_bytes, copies_done, batches, kernels, pin_failures;

	/* gpu thread */
	const struct driver *driver;
	CUdevice device;
	CUcontext context; /* NULL: no life */
	CUfunction gather;
	CUstream aux; /* for zeroing memory */
	uint64_t life;
	bool retained, sick, stream_flags; /* sick: a sticky error in this life */
	uint64_t pin_epoch;
	uint64_t probe_ns;  /* when to try again; while there is no context */
	struct list pins;   /* borrows struct gpu_pin */
	struct list mems;   /* borrows struct gpu_mem: the open ones of this life */
	struct list copies; /* borrows: waiting for something or for a slot */
	struct gpu_slot slots[GPU_SLOTS];
	uint32_t n_running;
};

/* Closes it once, if it is one. */
static inline void gpu_fd_close(int *fd)
{
	_cleanup_(close_p) int owned = steal_fd(fd);

	(void)owned;
}

/* ---- thread: gpu_cuda_thread.c ---- */

void *gpu_main(void *gpu);
void gpu_free(struct gpu *gpu);

/* Around each driver call, so that the loop notices one that does not return.  gpu_call_end() gives @result back, or an
 * error where the loop has given the device up meanwhile; where it has given up the thread, it does not return. */
void gpu_call_begin(struct gpu *gpu, uint64_t extra_ns);
CUresult gpu_call_end(struct gpu *gpu, CUresult result, const char *name);

#define CALL_LONG(gpu, extra_ns, call, ...) \
	(gpu_call_begin(gpu, extra_ns), gpu_call_end(gpu, (gpu)->driver->call(__VA_ARGS__), "cu" #call))
#define CALL(gpu, call, ...) CALL_LONG(gpu, 0, call, __VA_ARGS__)

/* For what another process has handed us: an error that looks sticky may be about its handle alone, and the context is
 * asked whether it still works. */
CUresult gpu_call_end_peer(struct gpu *gpu, CUresult result, const char *name);

#define CALL_PEER(gpu, call, ...) \
	(gpu_call_begin(gpu, 0), gpu_call_end_peer(gpu, (gpu)->driver->call(__VA_ARGS__), "cu" #call))

/* The outcome of gpu.h. */
int gpu_outcome(struct gpu *gpu, CUresult result);

/* Why the device is not online, until something better is known. */
void gpu_note(struct gpu *gpu, const char *why);

/* This life is over, and the loop is told: for the first reason given. */
void gpu_sicken(struct gpu *gpu, const char *why);

/* The job's last moment on this thread. */
void gpu_job_end(struct gpu *gpu, struct gpu_job *job, int result);

/* ---- thread: gpu_cuda_life.c ---- */

/* A context and all that copies need.  False: not now, and why. */
bool gpu_life_begin(struct gpu *gpu);

/* The context is gone, and with it whatever was under way.  Nothing is left that the device could touch. */
void gpu_life_end(struct gpu *gpu);

/* ---- thread: gpu_cuda_memory.c ---- */

void gpu_mem_run(struct gpu *gpu, struct gpu_job *job);

void gpu_pin_register(struct gpu *gpu, struct gpu_pin *pin);

/* Another device may have let go of a range that we, too, want pinned. */
void gpu_pins_check(struct gpu *gpu);

/* Memory and pins of a life that ends: before its context goes if it still works, else after. */
void gpu_memory_end(struct gpu *gpu);

/* ---- thread: gpu_cuda_copy.c ---- */

/* False: the driver refused something. */
bool gpu_slot_open(struct gpu *gpu, struct gpu_slot *slot);

void gpu_copy_take(struct gpu *gpu, struct gpu_copy *copy);

/* One look at everything; true if something moved. */
bool gpu_copies_run(struct gpu *gpu);

/* Those that wait end with GPU_E_LOST; and, where the context is gone, those that were running. */
void gpu_copies_lost(struct gpu *gpu);

/* Any thread: nobody is to wait for the copy's flag for ever. */
void gpu_copy_flag_failed(const struct gpu_copy *copy);

/* ---- gpu_cuda_list.c, thread ---- */

/* False: not a device we can use. */
bool gpu_info_read(const struct driver *driver, CUdevice device, struct gpu_info *ret_info);

#endif
