/* SPDX-License-Identifier: Apache-2.0 */
/* The loop around a device, and waiting in it. */
#include "tests/gpu/device.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/thread.h"
#include "tests/gpu/peer.h"
#include "tests/lib/must.h"

struct device_case device;
uint64_t device_copy_deadline_ms = 60000;
static bool release_when_lost;

static struct fakecuda_control *(*standin(void))(void)
{
	void *library = dlopen("libcuda.so.1", RTLD_NOW);
	struct fakecuda_control *(*control)(void) = NULL;

	if (library)
		*(void **)&control = dlsym(library, "fakecuda_control");
	return control;
}

static void list_note_skip(void *arg, const struct gpu_info *infos, uint32_t n, const char *note)
{
	(void)infos;
	if (n == 0)
		printf("skipped: %s\n", note);
	*(int *)arg = n == 0 ? 77 : 0;
}

void device_skip_without(void)
{
	struct gpu_list *list;
	int verdict = -1;

	if (standin())
		return;
	thread_set_role(THREAD_LOOP);
	must_eq(loop_new(&device.loop), 0);
	must_eq(mailbox_new(device.loop, &device.mailbox), 0);
	must_eq(gpu_list_start(device.mailbox, list_note_skip, &verdict, &list), 0);
	device_until(verdict >= 0);
	gpu_list_close(list);
	mailbox_close(device.mailbox, NULL, NULL);
	loop_free(device.loop);
	if (verdict != 0)
		exit(verdict);
}

static char standin_dir[32];

static void remove_dir(void)
{
	char command[64];

	if (!standin_dir[0])
		return;
	(void)snprintf(command, sizeof(command), "rm -rf %s", standin_dir);
	(void)!system(command);
}

void device_environment(const char *const *settings, unsigned n)
{
	if (!standin())
		return;
	if (!standin_dir[0]) {
		strcpy(standin_dir, "/dev/shm/kvbm-gpu-XXXXXX");
		must(mkdtemp(standin_dir));
		(void)setenv("FAKECUDA_DIR", standin_dir, 1);
		(void)atexit(remove_dir);
	}
	for (unsigned i = 0; i < n; i++)
		(void)putenv((char *)(uintptr_t)settings[i]);
	device.control = standin()();
}

static void on_listed(void *arg, const struct gpu_info *infos, uint32_t n, const char *note)
{
	(void)arg;
	memcpy(device.infos, infos, n * sizeof(*infos));
	device.n_infos = n;
	(void)snprintf(device.note, sizeof(device.note), "%s.", note);
}

void device_list(void)
{
	struct gpu_list *list;

	device_environment(NULL, 0);
	thread_set_role(THREAD_LOOP);
	device.note[0] = 0;
	must_eq(loop_new(&device.loop), 0);
	must_eq(mailbox_new(device.loop, &device.mailbox), 0);
	must_eq(gpu_list_start(device.mailbox, on_listed, NULL, &list), 0);
	must_eq(device.note[0], 0);
	device_until(device.note[0] != 0);
	must(!gpu_list_close(list));
}

static void on_state(void *ctx, bool online, const char *why)
{
	(void)ctx;
	if (online) {
		must(strcmp(why, "") == 0);
		must_eq(device.n_online, device.n_lost);
		device.n_online++;
	} else {
		must(strcmp(why, "") != 0);
		device.n_lost++;
		if (release_when_lost) {
			atomic_store(&device.control->release, 1);
			fakecuda_wake(&device.control->release);
		}
	}
}

struct gpu *device_start(uint32_t which, uint64_t call_ms, void (*told)(void *ctx, bool online, const char *why), void *ctx)
{
	struct gpu_options options = {
		.loop = device.loop,
		.mailbox = device.mailbox,
		.max_copies = 64,
		.call_deadline_ns = call_ms * MS,
		.copy_deadline_ns = device_copy_deadline_ms * MS,
		.reprobe_ns = 5 * MS,
		.on_state = told ? told : on_state,
		.ctx = ctx,
	};
	struct gpu *gpu;

	must(which < device.n_infos);
	memcpy(options.uuid, device.infos[which].uuid, sizeof(options.uuid));
	must_eq(gpu_start(&options, &gpu), 0);
	return gpu;
}

void device_open(uint64_t call_ms)
{
	device_list();
	must(device.n_infos >= 1);
	device.n_online = device.n_lost = 0;
	device.gpu = device_start(0, call_ms, on_state, NULL);
	must(!gpu_is_online(device.gpu));
	device.memfd = memfd_create("gpu-test", MFD_CLOEXEC);
	must_eq(ftruncate(device.memfd, (off_t)DEVICE_HOST_BYTES), 0);
	device.host = mmap(NULL, DEVICE_HOST_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, device.memfd, 0);
	must(device.host != MAP_FAILED);
	gpu_pin(device.gpu, &device.pin, device.host, DEVICE_HOST_BYTES);
	device_until(gpu_is_online(device.gpu));
}

static void on_closed(void *arg)
{
	*(bool *)arg = true;
}

void device_close(void)
{
	device.closed = true;
	if (device.gpu) {
		device.closed = false;
		gpu_close(device.gpu, on_closed, &device.closed);
		must(!device.closed);
	}
	device_until(device.closed);
	device.gpu = NULL;
	if (device.host) {
		(void)munmap(device.host, DEVICE_HOST_BYTES);
		(void)close(device.memfd);
		device.host = NULL;
	}
	mailbox_close(device.mailbox, NULL, NULL);
	device.loop = loop_free(device.loop);
	thread_set_role(THREAD_NONE);
}

/* ---- starting and waiting ---- */

static int last_r;
static bool last_done;

static int wait_for(int started)
{
	if (started != 0)
		return started;
	must(!last_done);
	device_until(last_done);
	return last_r;
}

static void ended(int r)
{
	must(!last_done);
	last_done = true;
	last_r = r;
}

static void mem_done(struct gpu_mem *mem, int r)
{
	must(!mem->job.gpu);
	ended(r);
}

static void event_done(struct gpu_event *event, int r)
{
	must(!event->job.gpu);
	ended(r);
}

static void pin_done(struct gpu_pin *pin, int r)
{
	must(!pin->job.gpu);
	ended(r);
}

int device_alloc(struct gpu_mem *mem, uint64_t bytes, enum gpu_share share)
{
	memset(mem, 0, sizeof(*mem));
	mem->bytes = bytes;
	mem->share = share;
	last_done = false;
	return wait_for(gpu_mem_alloc(device.gpu, mem, mem_done));
}

int device_import(struct gpu_mem *mem)
{
	last_done = false;
	return wait_for(gpu_mem_import(device.gpu, mem, mem_done));
}

int device_mem_close(struct gpu_mem *mem)
{
	last_done = false;
	gpu_mem_close(device.gpu, mem, mem_done);
	return wait_for(0);
}

int device_event_import(struct gpu_event *event)
{
	last_done = false;
	return wait_for(gpu_event_import(device.gpu, event, event_done));
}

int device_event_close(struct gpu_event *event)
{
	last_done = false;
	gpu_event_close(device.gpu, event, event_done);
	return wait_for(0);
}

void device_unpin(struct gpu *gpu, struct gpu_pin *pin)
{
	last_done = false;
	gpu_unpin(gpu, pin, pin_done);
	(void)wait_for(0);
}

static void copy_done(struct gpu_copy *gpu_copy, int r)
{
	struct device_copy *copy = container_of(gpu_copy, struct device_copy, copy);

	must(!copy->done);
	copy->done = true;
	copy->r = r;
}

void device_copy_init(struct device_copy *copy, enum gpu_direction direction, const struct gpu_mem *mem,
                      uint64_t offset, uint64_t bytes)
{
	memset(copy, 0, sizeof(*copy));
	copy->layout = layout_contiguous(1, 1, bytes);
	copy->plane.mem = mem;
	copy->block = (struct gpu_block){ .pin = &device.pin, .offset = offset };
	copy->copy = (struct gpu_copy){
		.done = copy_done,
		.direction = direction,
		.layout = &copy->layout,
		.planes = &copy->plane,
		.blocks = &copy->block,
		.n_blocks = 1,
		.wait_ns = 60000 * MS,
	};
}

int device_copy_start(struct device_copy *copy)
{
	copy->done = false;
	copy->copy.done = copy_done;
	return gpu_copy_start(device.gpu, &copy->copy);
}

int device_copy_wait(struct device_copy *copy)
{
	device_until(copy->done);
	return copy->r;
}

int device_copy_run(struct device_copy *copy)
{
	int r = device_copy_start(copy);

	must(!copy->done);
	return r != 0 ? r : device_copy_wait(copy);
}

bool device_are(const uint8_t *bytes, uint8_t byte, uint64_t n)
{
	return bytes[0] == byte && memcmp(bytes, bytes + 1, n - 1) == 0;
}

void device_release_when_lost(bool release)
{
	release_when_lost = release;
}

void device_arm(const char *call, uint32_t nth, uint32_t error)
{
	struct fakecuda_control *control = device.control;

	must_eq(control->armed, FAKECUDA_NOTHING);
	(void)snprintf(control->call, sizeof(control->call), "%s", call);
	control->pid = getpid();
	control->countdown = nth;
	control->error = error;
	control->release = 0;
	control->armed = error ? FAKECUDA_FAIL : FAKECUDA_HANG;
}

int device_suite(int argc, char **argv, const char *name, void (*add)(TCase *tcase))
{
	Suite *suite = suite_create(name);
	TCase *tcase = tcase_create(name);
	SRunner *sr;
	int failed;

	peer_main(argc, argv);
	device_skip_without();
	add(tcase);
	suite_add_tcase(suite, tcase);
	sr = srunner_create(suite);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
