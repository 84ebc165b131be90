/* SPDX-License-Identifier: Apache-2.0 */
/* Fault loops over the driver: a sticky error, an error of the call alone, and a call that hangs, at every call of a
 * scenario with everything in it.  Each job ends exactly once, the loop goes on, nothing stays behind, and the device comes
 * back.  On the stand-in driver only.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/fakecuda/control.h"
#include "tests/gpu/device.h"
#include "tests/gpu/peer.h"
#include "tests/lib/fdcount.h"

#define STICKY 719 /* CUDA_ERROR_LAUNCH_FAILED */
#define REFUSED 1  /* CUDA_ERROR_INVALID_VALUE */
#define ENOUGH 400 /* more calls than a scenario has */

static struct peer peer;

static void teardown(void)
{
	if (device.control)
		atomic_store(&device.control->release, 1);
	if (device.loop)
		device_close();
	peer_stop(&peer, true);
}

/* The copy's bytes, so that "done" can be held to its word. */
static void host_fill(uint64_t offset, uint64_t bytes, uint8_t byte)
{
	memset(device.host + offset, byte, bytes);
}

/* Up and down again through @mem: where both said 0, the bytes are there.  Small pieces: by kernel. */
static void there_and_back(const struct gpu_mem *mem, bool small, bool flagged)
{
	struct device_copy up, down;
	uint64_t bytes = 256 * 1024, *flag = (uint64_t *)(device.host + 4 * MIB);
	int r;

	host_fill(0, bytes, 0x77);
	host_fill(MIB, bytes, 0);
	*flag = 0;
	device_copy_init(&up, GPU_UP, mem, 0, bytes);
	device_copy_init(&down, GPU_DOWN, mem, MIB, bytes);
	if (small)
		up.layout = down.layout = (struct layout){ .planes = 1,
			                                   .n_dims = 1,
			                                   .dims = { { 64, 8192 } },
			                                   .run_bytes = 4096,
			                                   .block_stride = MIB };
	if (flagged)
		up.copy.after = (struct gpu_sync){ .kind = GPU_SYNC_FLAG, .pin = &device.pin, .offset = 4 * MIB, .value = 1 };
	r = device_copy_run(&up);
	if (flagged && r != GPU_E_LOST) /* of a start that was refused nobody waits for the flag */
		ck_assert_uint_eq(*flag, r == 0 ? 1 : GPU_FLAG_FAILED);
	if (device_copy_run(&down) == 0 && r == 0)
		ck_assert(device_are(device.host + MIB, 0x77, bytes));
}

/* Whatever fails, each thing that was opened is closed. */
static void scenario(void)
{
	struct gpu_mem plain, vmm, theirs;
	struct gpu_event event = { 0 };
	struct gpu_pin pin;
	struct device_copy copy;
	int p, v, t, e;
	void *range = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ck_assert_ptr_ne(range, MAP_FAILED);
	vmm.fd = -1;
	p = device_alloc(&plain, 2 * MIB, GPU_SHARE_HANDLE);
	v = device_alloc(&vmm, 2 * MIB, GPU_SHARE_FD);
	peer_alloc(&peer, 2 * MIB, GPU_SHARE_HANDLE, &theirs);
	peer_event(&peer, event.handle);
	t = device_import(&theirs);
	e = device_event_import(&event);
	gpu_pin(device.gpu, &pin, range, MIB);
	if (p == 0)
		there_and_back(&plain, true, true);
	if (v == 0)
		there_and_back(&vmm, false, false);
	if (t == 0 && e == 0) {
		device_copy_init(&copy, GPU_DOWN, &theirs, 0, MIB);
		copy.copy.before = copy.copy.after = (struct gpu_sync){ .kind = GPU_SYNC_EVENT, .event = &event };
		(void)device_copy_run(&copy);
	}
	device_unpin(device.gpu, &pin);
	if (e == 0)
		(void)device_event_close(&event);
	if (t == 0)
		(void)device_mem_close(&theirs);
	if (v == 0)
		(void)device_mem_close(&vmm);
	if (p == 0)
		(void)device_mem_close(&plain);
	ck_assert_int_eq(vmm.fd, -1);
	(void)munmap(range, MIB);
}

static void nothing_is_left(void)
{
	struct gpu_stat stat;

	gpu_stat(device.gpu, &stat);
	ck_assert_uint_eq(stat.device_bytes, 0);
	ck_assert_uint_eq(stat.jobs_now, 0);
	ck_assert_uint_eq(stat.copies_now, 0);
	ck_assert_uint_eq(stat.pins, 1);
}

/* In the end it works again, as if nothing had been. */
static void all_is_well(void)
{
	struct gpu_mem mem;
	unsigned lost = device.n_lost;

	device_until(gpu_is_online(device.gpu));
	ck_assert_int_eq(device_alloc(&mem, 2 * MIB, GPU_SHARE_HANDLE), 0);
	there_and_back(&mem, true, false);
	there_and_back(&mem, false, true);
	ck_assert_int_eq(device_mem_close(&mem), 0);
	ck_assert_uint_eq(device.n_lost, lost);
	nothing_is_left();
}

static void fault_loop(uint32_t error)
{
	struct fdcount before, after;
	unsigned k;

	device_open(10000);
	if (!device.control)
		return;
	device.control->delay_us = 1;
	peer_start(&peer);
	scenario();
	fdcount_take(getpid(), &before);
	for (k = 1; k < ENOUGH; k++) {
		device_until(gpu_is_online(device.gpu));
		device_arm("*", k, error);
		scenario();
		/* The fault may also have struck the thread after the last job; then news of it is coming. */
		if (atomic_exchange(&device.control->armed, FAKECUDA_NOTHING) != FAKECUDA_NOTHING)
			break;
		all_is_well();
	}
	ck_assert_uint_gt(k, 35);
	ck_assert_uint_lt(k, ENOUGH);
	all_is_well();
	fdcount_take(getpid(), &after);
	/* Where a call that gives back was made to fail, the driver keeps a descriptor or two of its own. */
	ck_assert_uint_le(after.total, before.total + 8);
	if (error == STICKY)
		ck_assert_uint_gt(device.n_lost, 10);
}

START_TEST(a_sticky_error_at_every_call)
{
	fault_loop(STICKY);
}
END_TEST

START_TEST(an_error_at_every_call)
{
	fault_loop(REFUSED);
}
END_TEST

/* While the device is being made: each of these calls. */
START_TEST(a_sticky_error_at_every_call_of_the_start)
{
	struct gpu_mem mem;

	device_open(10000);
	if (!device.control)
		return;
	for (unsigned k = 1; k < 80; k++) {
		/* Lose it, and let the k-th call from then on fail too. */
		device_arm("cuMemAlloc", 1, STICKY);
		ck_assert_int_eq(device_alloc(&mem, 2 * MIB, GPU_SHARE_NONE), GPU_E_LOST);
		atomic_store(&device.control->armed, FAKECUDA_NOTHING);
		device_arm("*", k, STICKY);
		ck_assert_uint_eq(device.n_lost, k); /* the news comes before the end of the job */
		device_until(gpu_is_online(device.gpu));
		atomic_store(&device.control->armed, FAKECUDA_NOTHING);
		all_is_well();
	}
}
END_TEST

/* The device falls off the bus under copies, and comes back when it is there again. */
START_TEST(a_device_that_is_gone_comes_back)
{
	static struct device_copy copies[16];
	struct gpu_mem mem;

	device_open(10000);
	if (!device.control)
		return;
	for (unsigned round = 1; round <= 5; round++) {
		ck_assert_int_eq(device_alloc(&mem, 2 * MIB, GPU_SHARE_NONE), 0);
		for (unsigned i = 0; i < 16; i++) {
			device_copy_init(&copies[i], i % 2 ? GPU_UP : GPU_DOWN, &mem, i * 65536, 65536);
			ck_assert_int_eq(device_copy_start(&copies[i]), 0);
		}
		atomic_store(&device.control->gone, 1);
		device_until(device.n_lost == round);
		ck_assert(!gpu_is_online(device.gpu));
		for (unsigned i = 0; i < 16; i++)
			(void)device_copy_wait(&copies[i]);
		ck_assert_int_eq(device_copy_start(&copies[0]), GPU_E_LOST);
		ck_assert_int_eq(device_mem_close(&mem), GPU_E_LOST);
		atomic_store(&device.control->gone, 0);
		device_until(gpu_is_online(device.gpu));
		all_is_well();
	}
}
END_TEST

/* ---- hangs ---- */

#define CALL_MS 1000 /* a loaded machine with a sanitizer should not take as long by itself */

static void timer_due(struct loop_timer *t)
{
	(void)t;
}

/* The loop turns while the thread hangs: timers of a millisecond come in time. */
static void the_loop_goes_on(void)
{
	static struct loop_timer timer;
	uint64_t begin = clock_now_ns();

	loop_timer_init(device.loop, &timer);
	for (unsigned i = 0; i < 20; i++) {
		loop_timer_start(&timer, MS, 0, timer_due);
		while (loop_timer_is_running(&timer))
			loop_turn(device.loop, true);
	}
	ck_assert_uint_lt(clock_now_ns() - begin, 10000 * MS);
	loop_timer_close(&timer, NULL);
}

static unsigned n_ended;

static void mem_ended(struct gpu_mem *mem, int r)
{
	(void)mem;
	ck_assert(r == 0 || r == GPU_E_LOST);
	n_ended++;
}

/* The engine has died; closing its memory hangs.  Others are answered at once, and when the call returns all is well. */
START_TEST(closing_hangs)
{
	struct gpu_mem theirs, mem;
	struct device_copy copy;
	uint64_t begin;

	device_open(CALL_MS);
	if (!device.control)
		return;
	peer_start(&peer);
	peer_alloc(&peer, 2 * MIB, GPU_SHARE_HANDLE, &theirs);
	ck_assert_int_eq(device_import(&theirs), 0);
	ck_assert_int_eq(device_alloc(&mem, 2 * MIB, GPU_SHARE_NONE), 0);
	peer_stop(&peer, true);
	device_arm("cuIpcCloseMemHandle", 1, 0);
	n_ended = 0;
	gpu_mem_close(device.gpu, &theirs, mem_ended);
	device_copy_init(&copy, GPU_DOWN, &mem, 0, 4096);
	copy.copy.after = (struct gpu_sync){ .kind = GPU_SYNC_FLAG, .pin = &device.pin, .offset = MIB, .value = 1 };
	ck_assert_int_eq(device_copy_start(&copy), 0); /* queued behind it */
	begin = clock_now_ns();
	device_until(device.n_lost == 1);
	ck_assert_uint_lt(clock_now_ns() - begin, 2000 * MS); /* U2 */
	ck_assert_str_eq(gpu_why(device.gpu), "the driver does not answer");
	ck_assert(copy.done && copy.r == GPU_E_LOST);
	ck_assert_uint_eq(*(uint64_t *)(device.host + MIB), GPU_FLAG_FAILED);
	the_loop_goes_on();
	ck_assert_uint_eq(n_ended, 0); /* what hangs has not ended */
	atomic_store(&device.control->release, 1);
	fakecuda_wake(&device.control->release);
	device_until(n_ended == 1);
	ck_assert_int_eq(device_mem_close(&mem), GPU_E_LOST);
	all_is_well();
}
END_TEST

/* Calls of each kind of job hang, by name. */
START_TEST(every_kind_of_call_hangs)
{
	static const char *const calls[] = {
		"cuMemAlloc",          "cuStreamSynchronize", "cuMemCreate",  "cuIpcOpenMemHandle",
		"cuMemHostRegister",   "cuLaunchKernel",      "cuEventQuery", "cuMemcpyBatchAsync",
		"cuIpcCloseMemHandle", "cuMemUnmap",
	};

	device_open(CALL_MS);
	if (!device.control)
		return;
	device.control->delay_us = 1;
	peer_start(&peer);
	for (unsigned i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		unsigned lost = device.n_lost;

		/* What hangs is let go by the news of it.  On a machine so slow that another call took as long, again. */
		do {
			device_until(gpu_is_online(device.gpu));
			device_arm(calls[i], 1, 0);
			device_release_when_lost(true);
			scenario();
			device_release_when_lost(false);
		} while (atomic_exchange(&device.control->armed, FAKECUDA_NOTHING) != FAKECUDA_NOTHING);
		ck_assert_msg(device.n_lost > lost, "%s: not noticed", calls[i]);
		device_until(gpu_is_online(device.gpu));
	}
	all_is_well();
}
END_TEST

/* Closing the device while a call hangs: the loop is done within the deadline, and leaves the thread behind. */
START_TEST(closing_the_device_while_it_hangs)
{
	struct gpu_mem theirs, mem;
	struct device_copy copy;
	uint64_t begin;

	device_open(CALL_MS);
	if (!device.control)
		return;
	peer_start(&peer);
	peer_alloc(&peer, 2 * MIB, GPU_SHARE_HANDLE, &theirs);
	ck_assert_int_eq(device_import(&theirs), 0);
	ck_assert_int_eq(device_alloc(&mem, 2 * MIB, GPU_SHARE_NONE), 0);
	atomic_store(&device.control->held, 1);
	device_copy_init(&copy, GPU_DOWN, &mem, 0, 4096);
	ck_assert_int_eq(device_copy_start(&copy), 0);
	device_arm("cuIpcCloseMemHandle", 1, 0);
	n_ended = 0;
	gpu_mem_close(device.gpu, &theirs, mem_ended);
	while (atomic_load(&device.control->hanging) == 0)
		fakecuda_wait(&device.control->hanging, 0);
	begin = clock_now_ns();
	device_close();
	ck_assert_uint_lt(clock_now_ns() - begin, 2000 * MS);
	ck_assert_uint_eq(n_ended, 1);
	ck_assert(copy.done && copy.r == GPU_E_LOST);
	/* The thread wakes up, finds itself given up, and touches nothing. */
	memset(&theirs, 0xa5, sizeof(theirs));
	memset(&copy, 0xa5, sizeof(copy));
	atomic_store(&device.control->release, 1);
	fakecuda_wake(&device.control->release);
	while (atomic_load(&device.control->hanging) != 0)
		fakecuda_wait(&device.control->hanging, 1);
}
END_TEST

/* The driver does not come up at all: the loop does not mind, and closes. */
START_TEST(the_start_hangs)
{
	const char *settings[] = { "FAKECUDA_HANG=cuDevicePrimaryCtxRetain@1" };

	device_environment(settings, 1);
	device_list();
	if (!device.control)
		return;
	device.gpu = device_start(0, CALL_MS, NULL, NULL);
	while (atomic_load(&device.control->hanging) == 0)
		fakecuda_wait(&device.control->hanging, 0);
	the_loop_goes_on();
	ck_assert(!gpu_is_online(device.gpu));
	device_close();
}
END_TEST

/* A copy that the device never finishes. */
START_TEST(a_copy_that_never_ends)
{
	struct gpu_mem mem;
	struct device_copy copy;

	device_copy_deadline_ms = 2000;
	device_open(10000);
	if (!device.control)
		return;
	ck_assert_int_eq(device_alloc(&mem, 2 * MIB, GPU_SHARE_NONE), 0);
	atomic_store(&device.control->held, 1);
	device_copy_init(&copy, GPU_DOWN, &mem, 0, 4096);
	ck_assert_int_eq(device_copy_run(&copy), GPU_E_LOST);
	ck_assert_uint_eq(device.n_lost, 1);
	ck_assert_int_eq(device_mem_close(&mem), GPU_E_LOST);
	atomic_store(&device.control->held, 0);
	all_is_well();
}
END_TEST

static void add(TCase *tcase)
{
	tcase_add_checked_fixture(tcase, NULL, teardown);
	tcase_add_test(tcase, a_sticky_error_at_every_call);
	tcase_add_test(tcase, an_error_at_every_call);
	tcase_add_test(tcase, a_sticky_error_at_every_call_of_the_start);
	tcase_add_test(tcase, a_device_that_is_gone_comes_back);
	tcase_add_test(tcase, closing_hangs);
	tcase_add_test(tcase, every_kind_of_call_hangs);
	tcase_add_test(tcase, closing_the_device_while_it_hangs);
	tcase_add_test(tcase, the_start_hangs);
	tcase_add_test(tcase, a_copy_that_never_ends);
}

int main(int argc, char **argv)
{
	return device_suite(argc, argv, "gpu faults", add);
}
