/* SPDX-License-Identifier: Apache-2.0 */
/* Finding the driver.
 *
 * Owns: the handle of libcuda.so.1, which is never closed (the driver has threads of its own and does not unload).
 * Deliberately not here: devices (gpu_cuda_list.c), and what is called when.
 */
#include "gpu/gpu_cuda_driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/assert.h"

static pthread_once_t driver_once = PTHREAD_ONCE_INIT, library_once = PTHREAD_ONCE_INIT;
static void *library;
static struct driver driver_calls;
static const struct driver *driver_loaded;
static char driver_why[160];

static void driver_refuse(const char *what, const char *detail)
{
	(void)snprintf(driver_why, sizeof(driver_why), "%s%s%s", what, detail ? ": " : "", detail ? detail : "");
}

/* A symbol is a pointer to an object for dlsym() and cuGetProcAddress(); copying its bytes is what POSIX has in mind. */
static bool driver_find(PFN_cuGetProcAddress_v12000 get, const char *name, int version, void *ret_function)
{
	CUdriverProcAddressQueryResult found = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
	void *symbol = NULL;

	if (get(name, &symbol, version, CU_GET_PROC_ADDRESS_LEGACY_STREAM, &found) != CUDA_SUCCESS || !symbol ||
	    found != CU_GET_PROC_ADDRESS_SUCCESS)
		return false;
	memcpy(ret_function, &symbol, sizeof(symbol));
	return true;
}

static const char *driver_find_all(struct driver *d, PFN_cuGetProcAddress_v12000 get)
{
#define DRIVER_FIND(name, version) \
	if (!driver_find(get, "cu" #name, version, &d->name)) \
		return "cu" #name;
	DRIVER_CALLS(DRIVER_FIND)
#undef DRIVER_FIND
	if (!driver_find(get, "cuDeviceGetUuid", 9020, &d->uuid_of_parent))
		return "cuDeviceGetUuid";
	if (d->version >= 13000 && driver_find(get, "cuMemcpyBatchAsync", 13000, &d->batch_13000))
		return NULL;
	return driver_find(get, "cuMemcpyBatchAsync", 12080, &d->batch_12080) ? NULL : "cuMemcpyBatchAsync";
}

static void library_load(void)
{
	library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
	if (!library)
		driver_refuse("no driver", dlerror());
}

bool driver_is_there(const char **ret_why)
{
	pthread_once(&library_once, library_load);
	*ret_why = driver_why;
	return library != NULL;
}

static void driver_load(void)
{
	PFN_cuGetProcAddress_v12000 get = NULL;
	PFN_cuInit_v2000 init = NULL;
	PFN_cuDriverGetVersion_v2020 get_version = NULL;
	const char *missing;
	CUresult r;

	*(void **)&get = dlsym(library, "cuGetProcAddress_v2");
	if (!get || !driver_find(get, "cuInit", 2000, &init) ||
	    !driver_find(get, "cuDriverGetVersion", 2020, &get_version)) {
		driver_refuse("the driver is older than CUDA 12.8", NULL);
		return;
	}
	r = init(0);
	if (r == CUDA_SUCCESS)
		r = get_version(&driver_calls.version);
	if (r == CUDA_ERROR_NO_DEVICE) {
		driver_refuse("no device", NULL);
		return;
	}
	if (r != CUDA_SUCCESS) {
		char number[16];

		(void)snprintf(number, sizeof(number), "%d", (int)r);
		driver_refuse("cuInit failed with", number);
		return;
	}
	if (driver_calls.version < DRIVER_VERSION_MIN) {
		driver_refuse("the driver is older than CUDA 12.8", NULL);
		return;
	}
	missing = driver_find_all(&driver_calls, get);
	if (missing)
		driver_refuse("the driver has no", missing);
	else
		driver_loaded = &driver_calls;
}

const struct driver *driver_get(const char **ret_why)
{
	if (driver_is_there(ret_why))
		pthread_once(&driver_once, driver_load);
	return driver_loaded;
}

CUresult driver_batch(const struct driver *driver, CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count,
                      CUstream stream)
{
	/* Any order: what a source was to wait for has happened before the copy is submitted. */
	CUmemcpyAttributes attributes = {
		.srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_ANY,
		.flags = CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE,
	};
	size_t first = 0, failed;

	assert(count > 0);
	if (driver->batch_13000)
		return driver->batch_13000(dsts, srcs, sizes, count, &attributes, &first, 1, stream);
	return driver->batch_12080(dsts, srcs, sizes, count, &attributes, &first, 1, &failed, stream);
}

const char *driver_error_name(const struct driver *driver, CUresult result)
{
	const char *name = NULL;

	return driver->GetErrorName(result, &name) == CUDA_SUCCESS && name ? name : "unknown error";
}

bool driver_error_is_sticky(CUresult result)
{
	switch ((int)result) {
	case CUDA_SUCCESS:
	case CUDA_ERROR_NOT_READY:
	case CUDA_ERROR_INVALID_VALUE:
	case CUDA_ERROR_OUT_OF_MEMORY:
	case CUDA_ERROR_INVALID_DEVICE:
	case CUDA_ERROR_INVALID_CONTEXT: /* a handle of our own, opened by ourselves */
	case CUDA_ERROR_INVALID_HANDLE:
	case CUDA_ERROR_MAP_FAILED:
	case CUDA_ERROR_ALREADY_MAPPED:
	case CUDA_ERROR_NOT_FOUND:
	case CUDA_ERROR_NOT_SUPPORTED:
	case CUDA_ERROR_NOT_PERMITTED:
	case CUDA_ERROR_PEER_ACCESS_UNSUPPORTED:
	case CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED:
	case CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED:
	case CUDA_ERROR_OPERATING_SYSTEM:
		return false;
	default:
		return true;
	}
}
