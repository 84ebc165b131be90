/* SPDX-License-Identifier: Apache-2.0 */
/* A libcuda.so.1 for tests where there is no GPU: the driver API as far as the daemon and libkvbm-cuda use it.  Found
 * through LD_LIBRARY_PATH, it stands in for the driver alone; everything above it is the real code.
 *
 * Modelled: devices with UUIDs; primary contexts, their reset, sticky errors; device memory that the CPU cannot reach by
 * its address; IPC handles that open only in other processes while the exporter lives; cuMem handles as descriptors;
 * registered host memory; streams that work late, out of order within a batch and in pieces; events, also between
 * processes; 64-bit flags; the gather kernel, compiled from its own source.  Arguments are checked as the manual says, and
 * where it leaves a choice, strictly.
 *
 * Not modelled: timing (but for the bandwidth below), copies and kernels competing, peer access between devices, managed
 * and pageable memory (refused where a device would touch it: stricter than the real driver), cuCtxCreate, graphs, memory
 * pools, default streams (refused), MIG beyond its UUIDs and its refusal of IPC; memory of a dead exporter stays readable
 * for those who had opened it; cuMem memory is not tied to a device's reset; weak memory order of a GPU.
 *
 * Environment: FAKECUDA_DIR (shared by the processes of a test, on a tmpfs; default /dev/shm/fakecuda-UID),
 * FAKECUDA_DEVICES (1), FAKECUDA_BYTES of each (256 MiB), FAKECUDA_DRIVER (13000), FAKECUDA_DELAY_US (random delays up
 * to it; 200), FAKECUDA_GBPS (bandwidth of a stream; 0: as fast as it goes), FAKECUDA_MIG (1), FAKECUDA_NUMA (node; -1),
 * FAKECUDA_FDS (0: cuMem memory is not shared by descriptor; 1),
 * FAKECUDA_FAIL (CALL@N=ERROR: the N-th such call of the process), FAKECUDA_HANG (CALL@N).  And control.h.
 */
#ifndef FAKECUDA_H
#define FAKECUDA_H

#include <cuda.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/list.h"
#include "tests/fakecuda/control.h"

#define GRAIN (UINT64_C(2) << 20)
/* Not an address of any process. */
#define DEVICE_BASE (UINT64_C(1) << 60)

enum memory_kind { MEMORY_PLAIN, MEMORY_IMPORTED, MEMORY_RESERVED, MEMORY_PINNED, MEMORY_REGISTERED };

/* A range that somebody may name by address. */
struct memory {
	struct list link;
	enum memory_kind kind;
	int device;
	uint64_t address, bytes;
	char *cpu;       /* where its bytes are; NULL: nothing mapped there */
	bool accessible; /* RESERVED: cuMemSetAccess() was called */
	uint32_t opens;  /* IMPORTED */
	char name[96];   /* PLAIN, IMPORTED: the file */
	int fd;          /* PLAIN: holds the lock that says that the exporter lives; else -1 */
};

/* One shared by two processes has its state in a file. */
struct event_state {
	_Atomic uint64_t recorded, done;
};

struct event {
	struct list link;
	uint64_t id;
	int device;
	bool interprocess, imported;
	struct event_state *state;
	char name[96];
	int fd;
};

struct context {
	int device;
	_Atomic uint32_t retained;
	_Atomic uint32_t sticky; /* a CUresult */
};

struct device {
	struct context context;
	unsigned char uuid[16], parent[16];
};

struct fake {
	pthread_mutex_t mtx; /* memory, events, streams lists */
	bool initialised;
	struct fakecuda_control *control;
	char dir[64];
	int n_devices, driver, numa;
	uint64_t device_bytes, delay_us, gbps;
	bool mig, fds;
	struct device devices[FAKECUDA_MAX_DEVICES];
	struct list memories, events, streams;
	uint64_t next_address, next_id;
};

extern struct fake fake;
extern __thread struct context *fake_current;

/* ---- fault.c ---- */

/* At the top of each entry point: counts, injects, hangs.  FAKE_CONTEXT also wants a current context that works. */
CUresult fake_enter(const char *name, bool wants_context);

#define FAKE_ENTER(name) \
	do { \
		CUresult enter_ = fake_enter(name, false); \
		if (enter_ != CUDA_SUCCESS) \
			return enter_; \
	} while (0)
#define FAKE_CONTEXT(name) \
	do { \
		CUresult enter_ = fake_enter(name, true); \
		if (enter_ != CUDA_SUCCESS) \
			return enter_; \
	} while (0)

bool fake_is_sticky(uint32_t error);
void fake_read_environment(void);

uint64_t fake_random(uint64_t below);
void fake_sleep_us(uint64_t us);

/* ---- memory.c; mtx is held ---- */

/* Where the @bytes at a device's or registered host address are; NULL: no such memory. */
char *fake_cpu(uint64_t address, uint64_t bytes);
struct memory *fake_memory_at(uint64_t address);
void fake_memory_reset(int device);

/* A file in the directory, locked for as long as this process (or who inherits the description) lives. */
int fake_file_make(char *name, size_t name_bytes, const char *kind, int device, uint64_t bytes);

/* Opens it if its maker lives; -1. */
int fake_file_open(const char *name);
void fake_file_remove(const char *name);

/* ---- stream.c ---- */

void fake_streams_reset(int device);

/* tests/fakecuda/kernel.c: the kernel's loop over a launch. */
bool fake_gather(const uint64_t *dsts, const uint64_t *srcs, const uint64_t *sizes, uint32_t n, uint32_t grid,
                 uint32_t threads);

#endif
