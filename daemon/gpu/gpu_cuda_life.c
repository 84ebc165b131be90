/* SPDX-License-Identifier: Apache-2.0 */
/* The lives of a device: from a context that works to one that does not.
 *
 * Owns: the primary context of the device, the module with the kernel, one stream for zeroing.
 * Invariant: gpu->context is NULL exactly between gpu_life_end() and the next gpu_life_begin() that worked.
 * Deliberately not here: when (gpu_cuda_thread.c); what lives in it (gpu_cuda_memory.c, gpu_cuda_copy.c).
 *
 * The primary context, not one of our own: cuCtxCreate() has changed its signature with 13.0, and handles between
 * processes work in either.  Nobody else in this process uses CUDA, so it may be reset, which destroys all that is in it,
 * waits for or kills what runs, and takes back a sticky error where anything does.
 */
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "gpu/gather.h"
#include "gpu/gpu_cuda_state.h"

/* Several calls without a frame each, in one. */
static bool life_find(struct gpu *gpu, struct gpu_info *ret_info, const char **ret_why)
{
	int n = 0;

	gpu->driver = driver_get(ret_why);
	if (!gpu->driver)
		return false;
	*ret_why = "no such device";
	if (gpu->driver->DeviceGetCount(&n) != CUDA_SUCCESS)
		return false;
	for (int i = 0; i < n; i++)
		if (gpu->driver->DeviceGet(&gpu->device, i) == CUDA_SUCCESS &&
		    gpu_info_read(gpu->driver, gpu->device, ret_info) && strcmp(ret_info->uuid, gpu->options.uuid) == 0)
			return true;
	return false;
}

static bool life_context(struct gpu *gpu)
{
	CUmodule module;

	if (CALL(gpu, DevicePrimaryCtxRetain, &gpu->context, gpu->device) != CUDA_SUCCESS) {
		gpu->context = NULL;
		return false;
	}
	if (CALL(gpu, CtxSetCurrent, gpu->context) != CUDA_SUCCESS ||
	    CALL(gpu, StreamCreate, &gpu->aux, CU_STREAM_NON_BLOCKING) != CUDA_SUCCESS ||
	    CALL(gpu, ModuleLoadData, &module, gather_fatbin) != CUDA_SUCCESS ||
	    CALL(gpu, ModuleGetFunction, &gpu->gather, module, GATHER_KERNEL) != CUDA_SUCCESS)
		return false;
	for (uint32_t i = 0; i < GPU_SLOTS; i++)
		if (!gpu_slot_open(gpu, &gpu->slots[i]))
			return false;
	return true;
}

bool gpu_life_begin(struct gpu *gpu)
{
	struct gpu_info info;
	const char *why;
	bool found;

	assert(!gpu->context && gpu->n_running == 0 && list_empty(&gpu->mems));
	gpu->sick = false;
	gpu->life++;
	gpu_call_begin(gpu, 0);
	found = life_find(gpu, &info, &why);
	if (gpu_call_end(gpu, CUDA_SUCCESS, "cuInit") != CUDA_SUCCESS)
		return false;
	if (!found) {
		gpu_note(gpu, why);
		return false;
	}
	gpu->stream_flags = info.stream_flags;
	gpu_note(gpu, "the driver gives no context");
	if (!life_context(gpu))
		return false;
	list_for_each(it, &gpu->pins) {
		gpu_pin_register(gpu, container_of(it, struct gpu_pin, pins));
		if (gpu->sick)
			return false;
	}
	return true;
}

void gpu_life_end(struct gpu *gpu)
{
	if (gpu->context && !gpu->sick)
		gpu_memory_end(gpu);
	if (gpu->context) {
		/* Whatever they say, there is nothing else to be done about it. */
		(void)CALL(gpu, DevicePrimaryCtxReset, gpu->device);
		(void)CALL(gpu, DevicePrimaryCtxRelease, gpu->device);
		gpu->context = NULL;
	}
	gpu->aux = NULL;
	gpu_memory_end(gpu);
	gpu->sick = false;
}
