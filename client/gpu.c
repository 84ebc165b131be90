/* SPDX-License-Identifier: Apache-2.0 */
/* Opens regions of device memory for libkvbm, by handle or by descriptor, through the CUDA driver API.
 *
 * Owns: the driver's library, never closed; the primary contexts of the devices it was asked for, kept to the end of the process, because what is opened
 * in one is void without it; each open region, as a struct mapping that libkvbm keeps and gives back to gpu_unmap().
 * Deliberately not here: which region a block is in, and when it is not needed any more (client/region.c).
 */
#include <kvbm_cuda.h>

#include <cuda.h>
#include <cudaTypedefs.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GPU_MAX 64

/* name, version of its signature */
#define GPU_CALLS(X) \
	X(DeviceGetCount, 2000) \
	X(DeviceGet, 2000) \
	X(DeviceGetUuid, 11040) \
	X(DevicePrimaryCtxRetain, 7000) \
	X(CtxGetCurrent, 4000) \
	X(CtxSetCurrent, 4000) \
	X(IpcOpenMemHandle, 11000) \
	X(IpcCloseMemHandle, 4010) \
	X(MemAddressReserve, 10020) \
	X(MemAddressFree, 10020) \
	X(MemMap, 10020) \
	X(MemUnmap, 10020) \
	X(MemSetAccess, 10020) \
	X(MemImportFromShareableHandle, 10020) \
	X(MemRelease, 10020)

static struct {
#define GPU_FIELD(name, version) PFN_cu##name##_v##version name;
	GPU_CALLS(GPU_FIELD)
#undef GPU_FIELD
} cu;

static pthread_once_t gpu_once = PTHREAD_ONCE_INIT;
static const char *gpu_why = "no driver"; /* NULL: it was found */

static pthread_mutex_t gpu_lock = PTHREAD_MUTEX_INITIALIZER;
static CUcontext contexts[GPU_MAX]; /* under gpu_lock; NULL: not retained yet */

struct mapping {
	CUcontext context;
	CUdeviceptr address;
	size_t size;
	bool imported; /* cuMem memory */
};

/* ---- the driver ---- */

static bool gpu_find(PFN_cuGetProcAddress_v12000 get, const char *name, int version, void *ret_function)
{
	CUdriverProcAddressQueryResult found = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
	void *symbol = NULL;

	if (get(name, &symbol, version, CU_GET_PROC_ADDRESS_LEGACY_STREAM, &found) != CUDA_SUCCESS || !symbol)
		return false;
	memcpy(ret_function, &symbol, sizeof(symbol)); /* a pointer to a function, which dlsym() knows no type for */
	return true;
}

static void gpu_load(void)
{
	void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL), *symbol;
	PFN_cuGetProcAddress_v12000 get;
	PFN_cuInit_v2000 init;
	bool ok;

	symbol = library ? dlsym(library, "cuGetProcAddress_v2") : NULL;
	if (!symbol)
		return;
	memcpy(&get, &symbol, sizeof(get));
	ok = gpu_find(get, "cuInit", 2000, &init);
#define GPU_FIND(name, version) ok = ok && gpu_find(get, "cu" #name, version, &cu.name);
	GPU_CALLS(GPU_FIND)
#undef GPU_FIND
	if (!ok)
		gpu_why = "the driver is too old";
	else
		gpu_why = init(0) == CUDA_SUCCESS ? NULL : "the driver finds no device";
}

static bool gpu_is_there(void)
{
	pthread_once(&gpu_once, gpu_load);
	return !gpu_why;
}

static bool gpu_uuid(int ordinal, char ret_uuid[KVBM_CUDA_UUID_CHARS])
{
	CUdevice device;
	CUuuid u;
	const unsigned char *b = (const unsigned char *)u.bytes;
	int n;

	if (cu.DeviceGet(&device, ordinal) != CUDA_SUCCESS || cu.DeviceGetUuid(&u, device) != CUDA_SUCCESS)
		return false;
	n = snprintf(ret_uuid, KVBM_CUDA_UUID_CHARS, "GPU-");
	for (int i = 0; i < 16; i++)
		n += snprintf(ret_uuid + n, KVBM_CUDA_UUID_CHARS - (size_t)n, "%s%02x",
		              i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", b[i]);
	return true;
}

int kvbm_cuda_uuid(int ordinal, char ret_uuid[KVBM_CUDA_UUID_CHARS])
{
	int n = 0;

	if (!gpu_is_there() || cu.DeviceGetCount(&n) != CUDA_SUCCESS || n == 0)
		return -KVBM_E_NOENT;
	return ordinal >= 0 && ordinal < n && gpu_uuid(ordinal, ret_uuid) ? 0 : -KVBM_E_INVAL;
}

/* The primary context of the device of that UUID, retained once.  NULL: *ret_why. */
static CUcontext gpu_context(const char *uuid, const char **ret_why)
{
	char name[KVBM_CUDA_UUID_CHARS];
	CUcontext context = NULL;
	CUdevice device;
	int n = 0;

	*ret_why = "this process does not see the device (CUDA_VISIBLE_DEVICES, or a container without it)";
	(void)cu.DeviceGetCount(&n);
	for (int i = 0; i < n && i < GPU_MAX; i++) {
		if (!gpu_uuid(i, name) || strcmp(name, uuid) != 0)
			continue;
		*ret_why = "the device gives no context";
		pthread_mutex_lock(&gpu_lock);
		if (!contexts[i] && (cu.DeviceGet(&device, i) != CUDA_SUCCESS ||
		                     cu.DevicePrimaryCtxRetain(&contexts[i], device) != CUDA_SUCCESS))
			contexts[i] = NULL;
		context = contexts[i];
		pthread_mutex_unlock(&gpu_lock);
		break;
	}
	return context;
}

/* ---- regions ---- */

static CUresult gpu_access(const struct mapping *m, CUdevice device, int writable)
{
	CUmemAccessDesc access = { .location = { .type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device },
		                   .flags = writable ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE : CU_MEM_ACCESS_FLAGS_PROT_READ };
	CUresult r = cu.MemSetAccess(m->address, m->size, &access, 1);

	if (r == CUDA_SUCCESS || writable)
		return r;
	/* Read-only is not offered everywhere. */
	access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
	return cu.MemSetAccess(m->address, m->size, &access, 1);
}

/* The ordinal of a context of ours. */
static CUdevice gpu_device_of(CUcontext context)
{
	CUdevice device = 0;

	pthread_mutex_lock(&gpu_lock);
	for (int i = 0; i < GPU_MAX; i++)
		if (contexts[i] == context)
			(void)cu.DeviceGet(&device, i);
	pthread_mutex_unlock(&gpu_lock);
	return device;
}

/* What the descriptor shows, mapped; the mapping keeps the memory, so the handle need not. */
static CUresult gpu_import(const struct kvbm_device_region *region, struct mapping *m)
{
	CUmemGenericAllocationHandle handle;
	CUresult r;

	m->imported = true;
	r = cu.MemImportFromShareableHandle(&handle, (void *)(uintptr_t)region->fd,
	                                    CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
	if (r != CUDA_SUCCESS)
		return r;
	r = cu.MemAddressReserve(&m->address, m->size, 0, 0, 0);
	if (r == CUDA_SUCCESS) {
		r = cu.MemMap(m->address, m->size, 0, handle, 0);
		if (r == CUDA_SUCCESS) {
			r = gpu_access(m, gpu_device_of(m->context), region->writable);
			if (r != CUDA_SUCCESS)
				(void)cu.MemUnmap(m->address, m->size);
		}
		if (r != CUDA_SUCCESS)
			(void)cu.MemAddressFree(m->address, m->size);
	}
	(void)cu.MemRelease(handle);
	return r;
}

static CUresult gpu_open(const struct kvbm_device_region *region, struct mapping *m)
{
	CUipcMemHandle handle;

	if (region->fd >= 0)
		return gpu_import(region, m);
	_Static_assert(sizeof(handle) == sizeof(region->handle), "a handle");
	memcpy(&handle, region->handle, sizeof(handle));
	return cu.IpcOpenMemHandle(&m->address, handle, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
}

static void gpu_close(struct mapping *m)
{
	if (m->imported) {
		(void)cu.MemUnmap(m->address, m->size);
		(void)cu.MemAddressFree(m->address, m->size);
	} else {
		(void)cu.IpcCloseMemHandle(m->address);
	}
}

static int gpu_map(const struct kvbm_device_region *region, uint64_t *ret_base, void **ret_mapping, char *why, size_t size)
{
	struct mapping *m = calloc(1, sizeof(*m));
	const char *reason = "out of memory";
	CUcontext before = NULL;
	CUresult r;

	if (m && gpu_is_there()) {
		m->size = region->size;
		m->context = gpu_context(region->device, &reason);
	} else if (m) {
		reason = gpu_why;
	}
	if (!m || !m->context) {
		snprintf(why, size, "%s", reason);
		free(m);
		return -KVBM_E_SYS;
	}
	(void)cu.CtxGetCurrent(&before);
	(void)cu.CtxSetCurrent(m->context);
	r = gpu_open(region, m);
	(void)cu.CtxSetCurrent(before);
	if (r != CUDA_SUCCESS) {
		snprintf(why, size, "the driver refuses it with error %d%s", (int)r,
		         region->fd < 0 ? " (its handle opens only where the daemon's process is visible)" : "");
		free(m);
		return -KVBM_E_SYS;
	}
	*ret_base = m->address;
	*ret_mapping = m;
	return 0;
}

static void gpu_unmap(void *mapping)
{
	struct mapping *m = mapping;
	CUcontext before = NULL;

	(void)cu.CtxGetCurrent(&before);
	if (cu.CtxSetCurrent(m->context) == CUDA_SUCCESS)
		gpu_close(m);
	(void)cu.CtxSetCurrent(before);
	free(m);
}

int kvbm_cuda_data(struct kvbm_ns *ns, const struct kvbm_span *span, uint32_t lane, unsigned long long *ret_address)
{
	static const struct kvbm_mapper mapper = { .map = gpu_map, .unmap = gpu_unmap };
	uint64_t address;
	int r = kvbm_device_address(ns, span, lane, &mapper, &address);

	*ret_address = address;
	return r;
}
