/* SPDX-License-Identifier: Apache-2.0 */
/* gpu_cuda_memory.c, gpu_cuda_list.c: what devices say of themselves, memory lent and borrowed, handles that are stale or
 * made up, no memory left, pins of several devices, engines that are killed. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/gpu/device.h"
#include "tests/gpu/peer.h"

static struct peer peer;
static struct gpu_mem mem;
static struct device_copy copy;

static void teardown(void)
{
	if (device.loop)
		device_close();
	peer_stop(&peer, true);
}

/* ---- devices ---- */

START_TEST(devices_by_uuid)
{
	const char *settings[] = { "FAKECUDA_DEVICES=3", "FAKECUDA_NUMA=1", "FAKECUDA_BYTES=0x4000000" };

	device_environment(settings, 3);
	device_list();
	ck_assert_uint_ge(device.n_infos, 1);
	for (uint32_t i = 0; i < device.n_infos; i++) {
		ck_assert_uint_eq(strlen(device.infos[i].uuid), 40);
		ck_assert_int_eq(strncmp(device.infos[i].uuid, device.infos[i].mig ? "MIG-" : "GPU-", 4), 0);
		ck_assert_uint_gt(strlen(device.infos[i].name), 0);
		ck_assert_uint_ge(device.infos[i].driver_version, 12080);
	}
	if (!device.control)
		return;
	ck_assert_uint_eq(device.n_infos, 3);
	ck_assert_str_eq(device.infos[2].uuid, "GPU-66616b65-2d63-7564-612d-6465762d3032");
	ck_assert_str_eq(device.infos[2].name, "Stand-in 2");
	ck_assert_uint_eq(device.infos[2].bytes, 64 * MIB);
	ck_assert_int_eq(device.infos[2].numa_node, 1);
	ck_assert(!device.infos[2].mig && device.infos[2].handles && device.infos[2].fds && device.infos[2].stream_flags);
}
END_TEST

START_TEST(no_devices_is_an_answer)
{
	const char *settings[] = { "FAKECUDA_DEVICES=0" };

	device_environment(settings, 1);
	device_list();
	if (device.control) {
		ck_assert_uint_eq(device.n_infos, 0);
		ck_assert_str_eq(device.note, "no device.");
	}
}
END_TEST

START_TEST(an_old_driver_is_none)
{
	const char *settings[] = { "FAKECUDA_DRIVER=12040" };

	device_environment(settings, 1);
	device_list();
	if (device.control)
		ck_assert_str_eq(device.note, "the driver is older than CUDA 12.8.");
}
END_TEST

START_TEST(a_driver_that_fails_to_start_is_none)
{
	const char *settings[] = { "FAKECUDA_FAIL=cuInit@1=999" };

	device_environment(settings, 1);
	device_list();
	if (device.control)
		ck_assert_str_eq(device.note, "cuInit failed with: 999.");
}
END_TEST

static void not_listed(void *arg, const struct gpu_info *infos, uint32_t n, const char *note)
{
	(void)arg, (void)infos, (void)n, (void)note;
	ck_abort_msg("closed before the answer");
}

START_TEST(a_list_may_be_given_up)
{
	struct gpu_list *list;

	device_list();
	for (unsigned i = 0; i < 20; i++) {
		ck_assert_int_eq(gpu_list_start(device.mailbox, not_listed, NULL, &list), 0);
		ck_assert_ptr_null(gpu_list_close(list));
	}
	ck_assert_ptr_null(gpu_list_close(NULL));
	/* Those that posted before they were closed are still in the mailbox, and free themselves. */
}
END_TEST

static void told_never(void *ctx, bool online, const char *why)
{
	(void)ctx, (void)why;
	ck_assert(!online);
}

START_TEST(an_unknown_device_stays_lost)
{
	device_list();
	ck_assert_uint_ge(device.n_infos, 1);
	memcpy(device.infos[0].uuid, "GPU-00000000-0000-0000-0000-000000000000", 41);
	device.gpu = device_start(0, 10000, told_never, NULL);
	device_until(strcmp(gpu_why(device.gpu), "no such device") == 0);
	ck_assert_int_eq(device_alloc(&mem, 2 * MIB, GPU_SHARE_NONE), GPU_E_LOST);
}
END_TEST

START_TEST(mig_has_no_handles)
{
	const char *settings[] = { "FAKECUDA_MIG=1" };

	device_environment(settings, 1);
	device_open(10000);
	if (!device.control)
		return;
	ck_assert(device.infos[0].mig);
	ck_assert_int_eq(strncmp(device.infos[0].uuid, "MIG-", 4), 0);
	ck_assert_int_eq(device_alloc(&mem, 2 * MIB, GPU_SHARE_HANDLE), GPU_E_UNSUPPORTED);
	ck_assert_int_eq(device_alloc(&mem, 2 * MIB, GPU_SHARE_FD), 0);
	ck_assert_uint_eq(device.n_lost, 0);
}
END_TEST

/* ---- memory ---- */

static void no_memory_left(enum gpu_share share)
{
	const char *settings[] = { "FAKECUDA_BYTES=0x1000000" };
	struct gpu_stat stat;
	struct gpu_mem more;

	device_environment(settings, 1);
	device_open(10000);
	ck_assert_int_eq(device_alloc(&mem, 2 * MIB, share), 0);
	ck_assert_int_eq(device_alloc(&more, (device.infos[0].bytes + 2 * MIB) / (2 * MIB) * (2 * MIB), share),
	                 GPU_E_NOMEM);
	ck_assert_int_eq(more.fd, -1);
	gpu_stat(device.gpu, &stat);
	ck_assert_uint_eq(stat.device_bytes, 2 * MIB);
	ck_assert_int_eq(device_mem_close(&mem), 0);
	if (device.control) {
		/* And all that there is, again and again: nothing stays behind. */
		for (unsigned i = 0; i < 10; i++) {
			ck_assert_int_eq(device_alloc(&mem, 16 * MIB, share), 0);
			ck_assert_int_eq(device_alloc(&more, 2 * MIB, share), GPU_E_NOMEM);
			ck_assert_int_eq(device_mem_close(&mem), 0);
		}
	}
	ck_assert_uint_eq(device.n_lost, 0);
	gpu_stat(device.gpu, &stat);
	ck_assert_uint_eq(stat.device_bytes, 0);
}

START_TEST(no_memory_left_by_handle)
{
	no_memory_left(GPU_SHARE_HANDLE);
}
END_TEST

START_TEST(no_memory_left_by_descriptor)
{
	no_memory_left(GPU_SHARE_FD);
}
END_TEST

static void borrow(enum gpu_share share)
{
	struct gpu_mem again;

	device_open(10000);
	peer_start(&peer);
	peer_alloc(&peer, 4 * MIB, share, &mem);
	again = mem;
	if (share == GPU_SHARE_FD)
		again.fd = fcntl(mem.fd, F_DUPFD_CLOEXEC, 0);
	ck_assert_int_eq(device_import(&mem), 0);
	ck_assert_int_eq(device_import(&again), 0); /* the same memory twice */
	memset(device.host, 0x3c, 4 * MIB);
	device_copy_init(&copy, GPU_UP, &mem, 0, 4 * MIB);
	ck_assert_int_eq(device_copy_run(&copy), 0);
	ck_assert_int_eq(device_mem_close(&mem), 0);
	memset(device.host, 0, 4 * MIB);
	device_copy_init(&copy, GPU_DOWN, &again, 0, 4 * MIB);
	ck_assert_int_eq(device_copy_run(&copy), 0);
	ck_assert(device_are(device.host, 0x3c, 4 * MIB));
	ck_assert_int_eq(device_mem_close(&again), 0);
	/* What it says of its size is not believed. */
	peer_stop(&peer, true);
	peer_start(&peer);
	peer_alloc(&peer, 4 * MIB, share, &mem);
	mem.bytes = 6 * MIB;
	ck_assert_int_eq(device_import(&mem), GPU_E_REFUSED);
	ck_assert_int_eq(mem.fd, -1);
	ck_assert_uint_eq(device.n_lost, 0);
}

START_TEST(engine_memory_by_handle)
{
	borrow(GPU_SHARE_HANDLE);
}
END_TEST

START_TEST(engine_memory_by_descriptor)
{
	borrow(GPU_SHARE_FD);
}
END_TEST

START_TEST(handles_that_are_none)
{
	struct gpu_mem own, bad;
	struct gpu_event event;

	device_open(10000);
	/* Ours, sent back to us: it does not open in the process that made it. */
	ck_assert_int_eq(device_alloc(&own, 2 * MIB, GPU_SHARE_HANDLE), 0);
	bad = (struct gpu_mem){ .bytes = 2 * MIB, .share = GPU_SHARE_HANDLE, .fd = -1 };
	memcpy(bad.handle, own.handle, sizeof(bad.handle));
	ck_assert_int_eq(device_import(&bad), GPU_E_REFUSED);
	/* Nonsense. */
	memset(bad.handle, 0x5a, sizeof(bad.handle));
	ck_assert_int_eq(device_import(&bad), GPU_E_REFUSED);
	memset(&event, 0x5a, sizeof(event));
	event.job.gpu = NULL;
	ck_assert_int_eq(device_event_import(&event), GPU_E_REFUSED);
	bad = (struct gpu_mem){ .bytes = 2 * MIB, .share = GPU_SHARE_FD, .fd = open("/dev/null", O_RDWR | O_CLOEXEC) };
	ck_assert_int_eq(device_import(&bad), GPU_E_REFUSED);
	/* A memory of an engine that is dead. */
	peer_start(&peer);
	peer_alloc(&peer, 2 * MIB, GPU_SHARE_HANDLE, &bad);
	peer_event(&peer, event.handle);
	peer_stop(&peer, true);
	ck_assert_int_eq(device_import(&bad), GPU_E_REFUSED);
	ck_assert_int_eq(device_event_import(&event), GPU_E_REFUSED);
	/* An error that looks like the end of the context, about a handle alone. */
	if (device.control) {
		memset(bad.handle, 0x5a, sizeof(bad.handle));
		device_arm("cuIpcOpenMemHandle", 1, 101 + 800); /* a code that nobody has heard of */
		ck_assert_int_eq(device_import(&bad), GPU_E_REFUSED);
	}
	ck_assert_uint_eq(device.n_lost, 0);
	ck_assert_int_eq(device_mem_close(&own), 0);
}
END_TEST

/* ---- pins ---- */

static struct gpu_pin second_pin;
static struct gpu *second;
static bool second_online, second_closed;

static void second_state(void *ctx, bool online, const char *why)
{
	(void)ctx, (void)why;
	second_online = online;
}

static void second_on_closed(void *arg)
{
	(void)arg;
	second_closed = true;
}

/* The second device borrows the first one's registration, and takes over when that goes. */
START_TEST(two_devices_pin_the_same_memory)
{
	const char *settings[] = { "FAKECUDA_DEVICES=2" };
	struct gpu *first;
	struct gpu_stat stat;

	device_environment(settings, 1);
	device_open(10000);
	if (device.n_infos < 2)
		return;
	second = device_start(1, 10000, second_state, NULL);
	gpu_pin(second, &second_pin, device.host, DEVICE_HOST_BYTES);
	device_until(second_online);
	first = device.gpu;
	for (unsigned round = 0; round < 2; round++) {
		device.gpu = second;
		ck_assert_int_eq(device_alloc(&mem, 2 * MIB, GPU_SHARE_NONE), 0);
		device_copy_init(&copy, GPU_UP, &mem, 0, 4096);
		copy.block.pin = &second_pin;
		ck_assert_int_eq(device_copy_run(&copy), 0);
		ck_assert_int_eq(device_mem_close(&mem), 0);
		if (round == 0)
			device_unpin(first, &device.pin);
	}
	gpu_stat(second, &stat);
	ck_assert_uint_eq(stat.kernels, 2);
	ck_assert_uint_eq(stat.pin_failures, 0);
	device.gpu = first;
	gpu_close(second, second_on_closed, NULL);
	device_until(second_closed);
	ck_assert_uint_eq(device.n_lost, 0);
}
END_TEST

START_TEST(unpinned_before_it_was_pinned)
{
	struct gpu_pin pin;

	device_open(10000);
	for (unsigned i = 0; i < 10; i++) {
		void *p = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		ck_assert_ptr_ne(p, MAP_FAILED);
		gpu_pin(device.gpu, &pin, p, MIB);
		device_unpin(device.gpu, &pin);
		(void)munmap(p, MIB);
	}
}
END_TEST

static unsigned n_unpinned;

static void on_unpinned(struct gpu_pin *pin, int r)
{
	(void)pin, (void)r;
	n_unpinned++;
}

START_TEST(closed_right_after_unpinning)
{
	static struct gpu_pin pins[8];
	static char ranges[8][4096] __attribute__((aligned(4096)));

	for (unsigned round = 0; round < 5; round++) {
		device_open(10000);
		n_unpinned = 0;
		for (unsigned i = 0; i < 8; i++) {
			gpu_pin(device.gpu, &pins[i], ranges[i], 4096);
			gpu_unpin(device.gpu, &pins[i], on_unpinned);
		}
		device_close();
		ck_assert_uint_eq(n_unpinned, 8);
	}
}
END_TEST

START_TEST(memory_that_cannot_be_pinned)
{
	struct gpu_pin pin;
	struct gpu_stat stat;

	device_open(10000);
	if (!device.control)
		return;
	ck_assert_int_eq(device_alloc(&mem, 2 * MIB, GPU_SHARE_NONE), 0); /* behind the pin that device_open() asked for */
	device_arm("cuMemHostRegister", 1, 304);
	gpu_pin(device.gpu, &pin, mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), MIB);
	device_copy_init(&copy, GPU_UP, &mem, 0, 4096);
	copy.block.pin = &pin;
	ck_assert_int_eq(device_copy_run(&copy), GPU_E_REFUSED);
	gpu_stat(device.gpu, &stat);
	ck_assert_uint_eq(stat.pin_failures, 1);
	device_unpin(device.gpu, &pin);
	ck_assert_uint_eq(device.n_lost, 0);
}
END_TEST

/* ---- engines that die ---- */

enum step { IMPORTED, WAITING, RUNNING, ENDED, STEPS };

static void hold(uint32_t held)
{
	if (device.control)
		atomic_store(&device.control->held, held);
}

/* Whatever the copy was at: it ends, the import is closed, and the next engine finds all as it was. */
START_TEST(an_engine_is_killed_at_each_step)
{
	struct gpu_event event = { 0 };
	struct gpu_stat stat;

	device_open(10000);
	for (unsigned round = 0; round < 3 * STEPS; round++) {
		enum step step = round % STEPS;
		bool up = round / STEPS == 1, by_event = round / STEPS == 2;
		uint64_t *flag = (uint64_t *)(device.host + 7 * MIB);

		*flag = 0;
		peer_start(&peer);
		peer_alloc(&peer, 4 * MIB, GPU_SHARE_HANDLE, &mem);
		peer_event(&peer, event.handle);
		ck_assert_int_eq(device_import(&mem), 0);
		ck_assert_int_eq(device_event_import(&event), 0);
		device_copy_init(&copy, up ? GPU_UP : GPU_DOWN, &mem, 0, 4 * MIB);
		copy.done = true;
		copy.copy.after = (struct gpu_sync){ .kind = by_event ? GPU_SYNC_EVENT : GPU_SYNC_FLAG,
			                             .pin = &device.pin,
			                             .offset = 7 * MIB,
			                             .value = 1,
			                             .event = &event };
		if (step == WAITING)
			copy.copy.before = (struct gpu_sync){ .kind = GPU_SYNC_FLAG,
				                              .pin = &device.pin,
				                              .offset = 7 * MIB + 8,
				                              .value = 1 };
		hold(step == RUNNING);
		if (step != IMPORTED)
			ck_assert_int_eq(device_copy_start(&copy), 0);
		if (step == ENDED)
			ck_assert_int_eq(device_copy_wait(&copy), 0);
		peer_stop(&peer, true);
		gpu_copy_cancel(&copy.copy);
		hold(0);
		device_until(copy.done);
		ck_assert(step == RUNNING || copy.r == (step == WAITING ? GPU_E_LATE : 0));
		ck_assert_int_eq(device_event_close(&event), 0);
		ck_assert_int_eq(device_mem_close(&mem), 0);
	}
	gpu_stat(device.gpu, &stat);
	ck_assert_uint_eq(stat.copies_now, 0);
	ck_assert_uint_eq(stat.jobs_now, 0);
	ck_assert_uint_eq(device.n_lost, 0);
}
END_TEST

static void add(TCase *tcase)
{
	tcase_add_checked_fixture(tcase, NULL, teardown);
	tcase_add_test(tcase, devices_by_uuid);
	tcase_add_test(tcase, no_devices_is_an_answer);
	tcase_add_test(tcase, an_old_driver_is_none);
	tcase_add_test(tcase, a_driver_that_fails_to_start_is_none);
	tcase_add_test(tcase, a_list_may_be_given_up);
	tcase_add_test(tcase, an_unknown_device_stays_lost);
	tcase_add_test(tcase, mig_has_no_handles);
	tcase_add_test(tcase, no_memory_left_by_handle);
	tcase_add_test(tcase, no_memory_left_by_descriptor);
	tcase_add_test(tcase, engine_memory_by_handle);
	tcase_add_test(tcase, engine_memory_by_descriptor);
	tcase_add_test(tcase, handles_that_are_none);
	tcase_add_test(tcase, two_devices_pin_the_same_memory);
	tcase_add_test(tcase, unpinned_before_it_was_pinned);
	tcase_add_test(tcase, closed_right_after_unpinning);
	tcase_add_test(tcase, memory_that_cannot_be_pinned);
	tcase_add_test(tcase, an_engine_is_killed_at_each_step);
}

int main(int argc, char **argv)
{
	return device_suite(argc, argv, "gpu memory", add);
}
