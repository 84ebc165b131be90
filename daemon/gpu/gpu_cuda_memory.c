/* SPDX-License-Identifier: Apache-2.0 */
/* Device memory, imports, interprocess events and pinned host memory, on the device's thread.
 *
 * Invariant: gpu->mems holds the open memory of this life and none of an earlier one; gpu->pins all that was pinned and
 * not unpinned, registered or not.
 * Deliberately not here: when jobs run; copies.
 *
 * Pins of several devices.  Registering concerns the whole process, so the second device finds the range registered
 * already, which is as good; but when the first one unpins it, or its context goes, the range is registered no more.
 * Whoever takes a registration away counts pin_epoch up; whoever only borrows one then tries to register it himself.
 */
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"
#include "gpu/gpu_cuda_state.h"

#define PIN_NS_PER_GIB CLOCK_NS_PER_S

static _Atomic uint64_t pin_epoch; /* of the process */

/* ---- memory of cuMemCreate(), by descriptor ---- */

/* Address space for @mem->vmm and the right to use it. */
static CUresult vmm_map(struct gpu *gpu, struct gpu_mem *mem)
{
	CUmemAccessDesc access = {
		.location = { .type = CU_MEM_LOCATION_TYPE_DEVICE, .id = gpu->device },
		.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
	};
	CUdeviceptr address;
	CUresult r = CALL(gpu, MemAddressReserve, &address, mem->bytes, 0, 0, 0);

	if (r != CUDA_SUCCESS)
		return r;
	r = CALL(gpu, MemMap, address, mem->bytes, 0, mem->vmm, 0);
	if (r != CUDA_SUCCESS) {
		(void)CALL(gpu, MemAddressFree, address, mem->bytes);
		return r;
	}
	r = CALL(gpu, MemSetAccess, address, mem->bytes, &access, 1);
	if (r != CUDA_SUCCESS) {
		(void)CALL(gpu, MemUnmap, address, mem->bytes);
		(void)CALL(gpu, MemAddressFree, address, mem->bytes);
		return r;
	}
	mem->address = address;
	return CUDA_SUCCESS;
}

static CUresult vmm_alloc(struct gpu *gpu, struct gpu_mem *mem)
{
	CUmemAllocationProp prop = {
		.type = CU_MEM_ALLOCATION_TYPE_PINNED,
		.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
		.location = { .type = CU_MEM_LOCATION_TYPE_DEVICE, .id = gpu->device },
	};
	CUmemGenericAllocationHandle vmm;
	CUresult r = CALL(gpu, MemCreate, &vmm, mem->bytes, &prop, 0);

	if (r != CUDA_SUCCESS)
		return r;
	mem->vmm = vmm;
	r = CALL(gpu, MemExportToShareableHandle, &mem->fd, vmm, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
	if (r != CUDA_SUCCESS)
		mem->fd = -1;
	else
		r = vmm_map(gpu, mem);
	if (r != CUDA_SUCCESS) {
		(void)CALL(gpu, MemRelease, vmm);
		gpu_fd_close(&mem->fd);
	}
	return r;
}

static CUresult vmm_import(struct gpu *gpu, struct gpu_mem *mem)
{
	CUmemGenericAllocationHandle vmm;
	CUresult r = CALL_PEER(gpu, MemImportFromShareableHandle, &vmm, (void *)(intptr_t)mem->fd,
	                       CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);

	if (r != CUDA_SUCCESS)
		return r;
	mem->vmm = vmm;
	r = vmm_map(gpu, mem);
	if (r != CUDA_SUCCESS)
		(void)CALL(gpu, MemRelease, vmm);
	return r;
}

/* All of it, whatever fails. */
static CUresult vmm_close(struct gpu *gpu, struct gpu_mem *mem)
{
	CUresult r = CALL(gpu, MemUnmap, mem->address, mem->bytes), s;

	s = CALL(gpu, MemAddressFree, mem->address, mem->bytes);
	r = r != CUDA_SUCCESS ? r : s;
	s = CALL(gpu, MemRelease, mem->vmm);
	return r != CUDA_SUCCESS ? r : s;
}

/* ---- memory of cuMemAlloc(), by handle ---- */

static CUresult plain_alloc(struct gpu *gpu, struct gpu_mem *mem)
{
	CUdeviceptr address;
	CUipcMemHandle handle;
	CUresult r = CALL(gpu, MemAlloc, &address, mem->bytes);

	if (r != CUDA_SUCCESS)
		return r;
	if (mem->share == GPU_SHARE_HANDLE) {
		r = CALL(gpu, IpcGetMemHandle, &handle, address);
		if (r != CUDA_SUCCESS) {
			(void)CALL(gpu, MemFree, address);
			return r;
		}
		memcpy(mem->handle, &handle, sizeof(mem->handle));
	}
	mem->address = address;
	return CUDA_SUCCESS;
}

static CUresult plain_import(struct gpu *gpu, struct gpu_mem *mem)
{
	CUdeviceptr address, base = 0;
	CUipcMemHandle handle;
	size_t bytes = 0;
	CUresult r;

	_Static_assert(sizeof(handle) == sizeof(mem->handle), "as the driver has it");
	memcpy(&handle, mem->handle, sizeof(handle));
	r = CALL_PEER(gpu, IpcOpenMemHandle, &address, handle, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
	if (r != CUDA_SUCCESS)
		return r;
	r = CALL(gpu, MemGetAddressRange, &base, &bytes, address);
	/* What a client says of its size is not believed. */
	if (r == CUDA_SUCCESS && (base > address || address - base > bytes || bytes - (address - base) < mem->bytes))
		r = CUDA_ERROR_INVALID_VALUE;
	if (r != CUDA_SUCCESS) {
		(void)CALL_PEER(gpu, IpcCloseMemHandle, address);
		return r;
	}
	mem->address = address;
	return CUDA_SUCCESS;
}

/* ---- memory, as a job ---- */

static CUresult mem_close(struct gpu *gpu, struct gpu_mem *mem)
{
	list_del(&mem->mems);
	mem->open = false;
	if (!mem->imported)
		gpu->device_bytes -= mem->bytes;
	if (mem->share == GPU_SHARE_FD)
		return vmm_close(gpu, mem);
	return mem->imported ? CALL_PEER(gpu, IpcCloseMemHandle, mem->address) : CALL(gpu, MemFree, mem->address);
}

static int mem_open(struct gpu *gpu, struct gpu_mem *mem)
{
	bool by_fd = mem->share == GPU_SHARE_FD;
	CUresult r;

	if (mem->imported)
		r = by_fd ? vmm_import(gpu, mem) : plain_import(gpu, mem);
	else
		r = by_fd ? vmm_alloc(gpu, mem) : plain_alloc(gpu, mem);
	if (r != CUDA_SUCCESS)
		return gpu_outcome(gpu, r);
	mem->open = true;
	list_add_tail(&gpu->mems, &mem->mems);
	if (mem->imported)
		return 0;
	gpu->device_bytes += mem->bytes;
	/* Nobody is shown what was there before. */
	r = CALL(gpu, MemsetD8Async, mem->address, 0, mem->bytes, gpu->aux);
	if (r == CUDA_SUCCESS)
		r = CALL(gpu, StreamSynchronize, gpu->aux);
	if (r != CUDA_SUCCESS) {
		(void)mem_close(gpu, mem); /* off the list in any case: the struct is the caller's again */
		gpu_fd_close(&mem->fd);
	}
	return gpu_outcome(gpu, r);
}

static int mem_end(struct gpu *gpu, struct gpu_mem *mem)
{
	int r = GPU_E_LOST;

	if (mem->open) /* else it went with its life */
		r = gpu_outcome(gpu, mem_close(gpu, mem));
	if (mem->share == GPU_SHARE_FD)
		gpu_fd_close(&mem->fd);
	return r;
}

/* ---- events ---- */

static int event_open(struct gpu *gpu, struct gpu_event *event)
{
	CUipcEventHandle handle;
	CUevent opened;
	CUresult r;

	_Static_assert(sizeof(handle) == sizeof(event->handle), "as the driver has it");
	memcpy(&handle, event->handle, sizeof(handle));
	r = CALL_PEER(gpu, IpcOpenEventHandle, &opened, handle);
	if (r == CUDA_SUCCESS) {
		event->event = opened;
		event->life = gpu->life;
		event->open = true;
	}
	return gpu_outcome(gpu, r);
}

static int event_end(struct gpu *gpu, struct gpu_event *event)
{
	bool lost = !event->open || event->life != gpu->life || !gpu->context || gpu->sick;

	event->open = false;
	return lost ? GPU_E_LOST : gpu_outcome(gpu, CALL(gpu, EventDestroy, event->event));
}

/* ---- pins ---- */

void gpu_pin_register(struct gpu *gpu, struct gpu_pin *pin)
{
	uint64_t extra_ns = (pin->bytes >> 30) * PIN_NS_PER_GIB;
	CUdeviceptr device = 0;
	CUresult r = CALL_LONG(gpu, extra_ns, MemHostRegister, pin->base, pin->bytes,
	                       CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP);

	pin->borrowed = r == CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
	if (r == CUDA_SUCCESS || pin->borrowed) {
		r = CALL(gpu, MemHostGetDevicePointer, &device, pin->base, 0);
		if (r != CUDA_SUCCESS && !pin->borrowed && !gpu->sick)
			(void)CALL(gpu, MemHostUnregister, pin->base);
	}
	pin->registered = r == CUDA_SUCCESS;
	pin->device = device;
	if (!pin->registered)
		gpu->pin_failures++;
}

void gpu_pins_check(struct gpu *gpu)
{
	uint64_t epoch = atomic_load(&pin_epoch);

	if (gpu->pin_epoch == epoch)
		return;
	gpu->pin_epoch = epoch;
	list_for_each(it, &gpu->pins) {
		struct gpu_pin *pin = container_of(it, struct gpu_pin, pins);

		if (pin->borrowed && !gpu->sick)
			gpu_pin_register(gpu, pin);
	}
}

static int pin_end(struct gpu *gpu, struct gpu_pin *pin)
{
	bool ours = pin->registered && !pin->borrowed;
	CUresult r = CUDA_SUCCESS;

	list_del(&pin->pins);
	pin->registered = false;
	if (ours) {
		r = CALL(gpu, MemHostUnregister, pin->base);
		atomic_fetch_add(&pin_epoch, 1);
	}
	return gpu_outcome(gpu, r);
}

/* ---- */

void gpu_memory_end(struct gpu *gpu)
{
	bool works = gpu->context && !gpu->sick, took = false;
	struct list *it;

	while ((it = list_pop(&gpu->mems))) {
		struct gpu_mem *mem = container_of(it, struct gpu_mem, mems);

		mem->open = false;
		if (!mem->imported)
			gpu->device_bytes -= mem->bytes;
		if (mem->share == GPU_SHARE_FD)
			(void)vmm_close(gpu, mem);
	}
	list_for_each(link, &gpu->pins) {
		struct gpu_pin *pin = container_of(link, struct gpu_pin, pins);
		bool ours = pin->registered && !pin->borrowed;

		if (ours && works)
			(void)CALL(gpu, MemHostUnregister, pin->base);
		took = took || ours;
		pin->registered = pin->borrowed = false;
	}
	if (took)
		atomic_fetch_add(&pin_epoch, 1);
}

void gpu_mem_run(struct gpu *gpu, struct gpu_job *job)
{
	struct gpu_mem *mem = container_of(job, struct gpu_mem, job);
	struct gpu_event *event = container_of(job, struct gpu_event, job);
	struct gpu_pin *pin = container_of(job, struct gpu_pin, job);
	int r = 0;

	switch ((enum gpu_kind)job->kind) {
	case GPU_KIND_ALLOC:
	case GPU_KIND_IMPORT:
		r = mem_open(gpu, mem);
		break;
	case GPU_KIND_CLOSE:
		r = mem_end(gpu, mem);
		break;
	case GPU_KIND_EVENT_IMPORT:
		r = event_open(gpu, event);
		break;
	case GPU_KIND_EVENT_CLOSE:
		r = event_end(gpu, event);
		break;
	case GPU_KIND_PIN:
		list_add_tail(&gpu->pins, &pin->pins);
		if (gpu->context && !gpu->sick)
			gpu_pin_register(gpu, pin);
		break;
	case GPU_KIND_UNPIN:
		r = pin_end(gpu, pin);
		break;
	case GPU_KIND_NONE:
	case GPU_KIND_COPY:
		assert(!"not a job of memory");
	}
	gpu_job_end(gpu, job, r);
}
