/* SPDX-License-Identifier: Apache-2.0 */
/* device.h: one device of gpu.h in a loop of its own, for the suites here, on the stand-in driver or a real one.
 *
 * One at a time a process; Check's fork gives each test a new process, and with CK_FORK=no they follow one another.
 */
#ifndef TESTS_GPU_DEVICE_H
#define TESTS_GPU_DEVICE_H

#include <check.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "gpu/gpu.h"
#include "tests/fakecuda/control.h"

#define MIB (UINT64_C(1) << 20)
#define MS CLOCK_NS_PER_MS
#define DEVICE_HOST_BYTES (8 * MIB)

struct device_case {
	struct loop *loop;
	struct mailbox *mailbox;
	struct gpu *gpu;
	struct gpu_info infos[GPU_MAX_DEVICES];
	uint32_t n_infos;
	char note[160];
	unsigned n_online, n_lost;
	bool closed;
	/* Host memory, pinned: a memfd, so that peers can map it. */
	int memfd;
	uint8_t *host;
	struct gpu_pin pin;
	/* Of the stand-in; NULL: a real driver. */
	struct fakecuda_control *control;
};

extern struct device_case device;

/* Of devices started from now on; 60 s. */
extern uint64_t device_copy_deadline_ms;

/* Skips the program (exit 77, and why) where there is no driver or no device. */
void device_skip_without(void);

/* Sets what the stand-in reads, before its first use in this process: its directory (of this test's own), and
 * NAME=VALUE pairs. */
void device_environment(const char *const *settings, unsigned n);

/* A loop, and the list of devices. */
void device_list(void);

/* That, and the first device online, with the host memory pinned.  Deadlines of calls: @call_ms. */
void device_open(uint64_t call_ms);

/* Another device of the list, beside it. */
struct gpu *device_start(uint32_t which, uint64_t call_ms, void (*on_state)(void *ctx, bool online, const char *why),
                         void *ctx);

/* All of it is closed, and waited for. */
void device_close(void);

/* Turns of the loop until @condition; Check's time limit is the deadline. */
#define device_until(condition) \
	while (!(condition)) \
	loop_turn(device.loop, true)

/* Each starts, waits, and gives the outcome. */
int device_alloc(struct gpu_mem *mem, uint64_t bytes, enum gpu_share share);
int device_import(struct gpu_mem *mem);
int device_mem_close(struct gpu_mem *mem);
int device_event_import(struct gpu_event *event);
int device_event_close(struct gpu_event *event);
void device_unpin(struct gpu *gpu, struct gpu_pin *pin);

/* A copy that remembers its end. */
struct device_copy {
	struct gpu_copy copy;
	struct gpu_plane plane;
	struct gpu_block block;
	struct layout layout;
	bool done;
	int r;
};

/* One contiguous block of @bytes at the beginning of @mem and at @offset of the host memory; not started. */
void device_copy_init(struct device_copy *copy, enum gpu_direction direction, const struct gpu_mem *mem,
                      uint64_t offset, uint64_t bytes);
int device_copy_start(struct device_copy *copy);
int device_copy_wait(struct device_copy *copy);
int device_copy_run(struct device_copy *copy);

/* Are they all @byte? */
bool device_are(const uint8_t *bytes, uint8_t byte, uint64_t n);

/* The stand-in: the @nth call of that name in this process fails, or hangs (error 0). */
void device_release_when_lost(bool release); /* what hangs, at the news that the device is lost */
void device_arm(const char *call, uint32_t nth, uint32_t error);

/* Runs the suite as every program here does. */
int device_suite(int argc, char **argv, const char *name, void (*add)(TCase *tcase));

#endif
