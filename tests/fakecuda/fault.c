/* SPDX-License-Identifier: Apache-2.0 */
/* What every call goes through: counting, injected errors, hangs, sticky contexts; and the settings. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "tests/fakecuda/fakecuda.h"

struct fake fake = { .mtx = PTHREAD_MUTEX_INITIALIZER };
__thread struct context *fake_current;

/* From the environment, for this process. */
static struct {
	char call[48];
	_Atomic uint32_t countdown;
	uint32_t error; /* 0: hang */
} preset[2];

uint64_t fake_random(uint64_t below)
{
	static _Atomic uint64_t state;
	uint64_t x = atomic_fetch_add(&state, UINT64_C(0x9e3779b97f4a7c15)) + (uint64_t)getpid();

	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return below == 0 ? 0 : (x ^ (x >> 31)) % below;
}

void fake_sleep_us(uint64_t us)
{
	struct timespec time = { .tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000) * 1000 };

	if (us > 0)
		(void)nanosleep(&time, NULL);
}

bool fake_is_sticky(uint32_t error)
{
	switch (error) {
	case CUDA_ERROR_ECC_UNCORRECTABLE:
	case CUDA_ERROR_NVLINK_UNCORRECTABLE:
	case CUDA_ERROR_ILLEGAL_ADDRESS:
	case CUDA_ERROR_LAUNCH_TIMEOUT:
	case CUDA_ERROR_ASSERT:
	case CUDA_ERROR_HARDWARE_STACK_ERROR:
	case CUDA_ERROR_ILLEGAL_INSTRUCTION:
	case CUDA_ERROR_MISALIGNED_ADDRESS:
	case CUDA_ERROR_INVALID_ADDRESS_SPACE:
	case CUDA_ERROR_INVALID_PC:
	case CUDA_ERROR_LAUNCH_FAILED:
	case CUDA_ERROR_UNKNOWN:
		return true;
	default:
		return false;
	}
}

static void fake_hang(void)
{
	struct fakecuda_control *control = fake.control;

	atomic_fetch_add(&control->hanging, 1);
	fakecuda_wake(&control->hanging);
	while (atomic_load(&control->release) == 0)
		fakecuda_wait(&control->release, 0);
	atomic_fetch_sub(&control->hanging, 1);
	fakecuda_wake(&control->hanging);
}

static bool call_is(const char *wanted, const char *name)
{
	return strcmp(wanted, "*") == 0 || strcmp(wanted, name) == 0;
}

/* The n-th time is taken by one thread alone. */
static bool strikes(_Atomic uint32_t *countdown)
{
	uint32_t left = atomic_load(countdown);

	while (left > 0)
		if (atomic_compare_exchange_weak(countdown, &left, left - 1))
			return left == 1;
	return false;
}

static CUresult fake_fault(const char *name)
{
	struct fakecuda_control *control = fake.control;
	uint32_t armed = atomic_load(&control->armed), error;
	int32_t pid = atomic_load(&control->pid);

	for (int i = 0; i < 2; i++) {
		if (!preset[i].call[0] || !call_is(preset[i].call, name) || !strikes(&preset[i].countdown))
			continue;
		if (preset[i].error != 0)
			return (CUresult)preset[i].error;
		fake_hang();
	}
	if (armed == FAKECUDA_NOTHING || (pid != 0 && pid != getpid()) || !call_is(control->call, name))
		return CUDA_SUCCESS;
	error = atomic_load(&control->error);
	if (!strikes(&control->countdown))
		return CUDA_SUCCESS;
	atomic_store(&control->armed, FAKECUDA_NOTHING);
	if (armed == FAKECUDA_HANG) {
		fake_hang();
		return CUDA_SUCCESS;
	}
	return (CUresult)error;
}

CUresult fake_enter(const char *name, bool wants_context)
{
	struct context *context = fake_current;
	CUresult r;

	if (!fake.initialised)
		return CUDA_ERROR_NOT_INITIALIZED;
	atomic_fetch_add(&fake.control->calls, 1);
	r = fake_fault(name);
	if (r != CUDA_SUCCESS) {
		if (context && fake_is_sticky(r))
			atomic_store(&context->sticky, r);
		return r;
	}
	if (!wants_context)
		return CUDA_SUCCESS;
	if (!context || context->retained == 0)
		return CUDA_ERROR_INVALID_CONTEXT;
	if (atomic_load(&fake.control->gone) >> context->device & 1)
		atomic_store(&context->sticky, CUDA_ERROR_UNKNOWN);
	return (CUresult)atomic_load(&context->sticky);
}

/* ---- settings ---- */

static uint64_t number(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text && *text ? strtoull(text, NULL, 0) : otherwise;
}

/* CALL@N or CALL@N=ERROR */
static void preset_read(int i, const char *name)
{
	const char *text = getenv(name), *at = text ? strchr(text, '@') : NULL, *equals;

	if (!at || (size_t)(at - text) >= sizeof(preset[i].call))
		return;
	memcpy(preset[i].call, text, (size_t)(at - text));
	atomic_store(&preset[i].countdown, (uint32_t)strtoul(at + 1, NULL, 0));
	equals = strchr(at, '=');
	preset[i].error = equals ? (uint32_t)strtoul(equals + 1, NULL, 0) : 0;
}

static void control_map(void)
{
	char path[96];
	int fd;
	void *page;

	(void)mkdir(fake.dir, 0700);
	(void)snprintf(path, sizeof(path), "%s/control", fake.dir);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, 4096) < 0)
		abort();
	page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (page == MAP_FAILED)
		abort();
	(void)close(fd);
	fake.control = page;
}

void fake_read_environment(void)
{
	const char *dir = getenv("FAKECUDA_DIR");

	if (dir && *dir)
		(void)snprintf(fake.dir, sizeof(fake.dir), "%s", dir);
	else
		(void)snprintf(fake.dir, sizeof(fake.dir), "/dev/shm/fakecuda-%u", getuid());
	fake.n_devices = (int)number("FAKECUDA_DEVICES", 1);
	if (fake.n_devices > FAKECUDA_MAX_DEVICES)
		fake.n_devices = FAKECUDA_MAX_DEVICES;
	fake.device_bytes = number("FAKECUDA_BYTES", UINT64_C(256) << 20);
	fake.driver = (int)number("FAKECUDA_DRIVER", 13000);
	fake.delay_us = number("FAKECUDA_DELAY_US", 200);
	fake.gbps = number("FAKECUDA_GBPS", 0);
	fake.mig = number("FAKECUDA_MIG", 0) != 0;
	fake.fds = number("FAKECUDA_FDS", 1) != 0;
	fake.numa = (int)(int64_t)number("FAKECUDA_NUMA", UINT64_MAX);
	preset_read(0, "FAKECUDA_FAIL");
	preset_read(1, "FAKECUDA_HANG");
	control_map();
	list_init(&fake.memories);
	list_init(&fake.events);
	list_init(&fake.streams);
	fake.next_address = DEVICE_BASE;
	fake.next_id = 0x1000;
	for (int d = 0; d < fake.n_devices; d++) {
		struct device *device = &fake.devices[d];

		device->context.device = d;
		memcpy(device->parent, "fake-cuda-dev-00", 16);
		device->parent[15] = (unsigned char)('0' + d);
		memcpy(device->uuid, device->parent, 16);
		if (fake.mig)
			device->uuid[0] = 'M';
	}
}
