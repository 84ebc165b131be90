/* SPDX-License-Identifier: Apache-2.0 */
/* Where one gets in: initialisation, entry points by name and version, devices, primary contexts, names of errors. */
#include <stdio.h>
#include <string.h>

#include "tests/fakecuda/fakecuda.h"

CUresult fake_uuid_of_parent(CUuuid *uuid, CUdevice dev);
CUresult fake_batch_13000(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count, CUmemcpyAttributes *attrs,
                          size_t *indexes, size_t n_attrs, CUstream stream);
CUresult fake_batch_12080(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count, CUmemcpyAttributes *attrs,
                          size_t *indexes, size_t n_attrs, size_t *ret_failed, CUstream stream);

static pthread_once_t once = PTHREAD_ONCE_INIT;

static bool device_is_there(CUdevice dev)
{
	return dev >= 0 && dev < fake.n_devices && !(atomic_load(&fake.control->gone) >> dev & 1);
}

CUresult cuInit(unsigned int Flags)
{
	CUresult r;

	if (Flags != 0)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_once(&once, fake_read_environment);
	fake.initialised = true;
	r = fake_enter("cuInit", false);
	if (r == CUDA_SUCCESS && fake.n_devices == 0)
		r = CUDA_ERROR_NO_DEVICE;
	fake.initialised = r == CUDA_SUCCESS;
	return r;
}

CUresult cuDriverGetVersion(int *driverVersion)
{
	*driverVersion = fake.driver;
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *count)
{
	FAKE_ENTER("cuDeviceGetCount");
	*count = fake.n_devices;
	return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
	FAKE_ENTER("cuDeviceGet");
	if (ordinal < 0 || ordinal >= fake.n_devices)
		return CUDA_ERROR_INVALID_DEVICE;
	*device = ordinal;
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *name, int len, CUdevice dev)
{
	FAKE_ENTER("cuDeviceGetName");
	if (dev < 0 || dev >= fake.n_devices)
		return CUDA_ERROR_INVALID_DEVICE;
	(void)snprintf(name, (size_t)len, "Stand-in %d", dev);
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice dev)
{
	FAKE_ENTER("cuDeviceGetUuid");
	if (dev < 0 || dev >= fake.n_devices)
		return CUDA_ERROR_INVALID_DEVICE;
	memcpy(uuid, fake.devices[dev].uuid, 16);
	return CUDA_SUCCESS;
}

CUresult fake_uuid_of_parent(CUuuid *uuid, CUdevice dev)
{
	FAKE_ENTER("cuDeviceGetUuid");
	if (dev < 0 || dev >= fake.n_devices)
		return CUDA_ERROR_INVALID_DEVICE;
	memcpy(uuid, fake.devices[dev].parent, 16);
	return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem(size_t *bytes, CUdevice dev)
{
	FAKE_ENTER("cuDeviceTotalMem");
	if (dev < 0 || dev >= fake.n_devices)
		return CUDA_ERROR_INVALID_DEVICE;
	*bytes = fake.device_bytes;
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *pi, CUdevice_attribute attrib, CUdevice dev)
{
	FAKE_ENTER("cuDeviceGetAttribute");
	if (dev < 0 || dev >= fake.n_devices)
		return CUDA_ERROR_INVALID_DEVICE;
	switch ((int)attrib) {
	case CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED:
		*pi = fake.fds;
		return CUDA_SUCCESS;
	case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
	case CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS:
		*pi = 1;
		return CUDA_SUCCESS;
	case CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID:
		*pi = fake.numa;
		return CUDA_SUCCESS;
	default:
		return CUDA_ERROR_INVALID_VALUE;
	}
}

CUresult cuDeviceGetPCIBusId(char *pciBusId, int len, CUdevice dev)
{
	FAKE_ENTER("cuDeviceGetPCIBusId");
	(void)snprintf(pciBusId, (size_t)len, "FFFF:FF:%02X.0", (unsigned)dev);
	return CUDA_SUCCESS;
}

/* ---- primary contexts ---- */

CUresult cuDevicePrimaryCtxRetain(CUcontext *pctx, CUdevice dev)
{
	FAKE_ENTER("cuDevicePrimaryCtxRetain");
	if (!device_is_there(dev))
		return CUDA_ERROR_DEVICE_UNAVAILABLE;
	fake.devices[dev].context.retained++;
	*pctx = (CUcontext)&fake.devices[dev].context;
	return CUDA_SUCCESS;
}

static void context_reset(CUdevice dev)
{
	struct context *context = &fake.devices[dev].context;

	fake_streams_reset(dev);
	pthread_mutex_lock(&fake.mtx);
	fake_memory_reset(dev);
	pthread_mutex_unlock(&fake.mtx);
	atomic_store(&context->sticky, 0);
}

CUresult cuDevicePrimaryCtxRelease(CUdevice dev)
{
	FAKE_ENTER("cuDevicePrimaryCtxRelease");
	if (dev < 0 || dev >= fake.n_devices || fake.devices[dev].context.retained == 0)
		return CUDA_ERROR_INVALID_CONTEXT;
	if (--fake.devices[dev].context.retained == 0)
		context_reset(dev);
	return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxReset(CUdevice dev)
{
	FAKE_ENTER("cuDevicePrimaryCtxReset");
	if (dev < 0 || dev >= fake.n_devices)
		return CUDA_ERROR_INVALID_DEVICE;
	context_reset(dev);
	return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext ctx)
{
	FAKE_ENTER("cuCtxSetCurrent");
	fake_current = (struct context *)ctx;
	return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *pctx)
{
	FAKE_ENTER("cuCtxGetCurrent");
	*pctx = (CUcontext)fake_current;
	return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **pStr)
{
	switch ((int)error) {
#define NAME(code) \
	case code: \
		*pStr = #code; \
		return CUDA_SUCCESS;
		NAME(CUDA_SUCCESS)
		NAME(CUDA_ERROR_INVALID_VALUE)
		NAME(CUDA_ERROR_OUT_OF_MEMORY)
		NAME(CUDA_ERROR_INVALID_CONTEXT)
		NAME(CUDA_ERROR_INVALID_HANDLE)
		NAME(CUDA_ERROR_ILLEGAL_ADDRESS)
		NAME(CUDA_ERROR_LAUNCH_FAILED)
		NAME(CUDA_ERROR_LAUNCH_TIMEOUT)
		NAME(CUDA_ERROR_DEVICE_UNAVAILABLE)
		NAME(CUDA_ERROR_ECC_UNCORRECTABLE)
		NAME(CUDA_ERROR_UNKNOWN)
#undef NAME
	default:
		*pStr = NULL;
		return CUDA_ERROR_INVALID_VALUE;
	}
}

/* ---- entry points ---- */

struct entry {
	const char *name;
	int version; /* that brought this signature */
	void *function;
};

#define ENTRY(name, version) \
	{ \
#name, version, (void *)name \
	}
static const struct entry entries[] = {
	ENTRY(cuInit, 2000),
	ENTRY(cuDriverGetVersion, 2020),
	ENTRY(cuGetErrorName, 6000),
	ENTRY(cuDeviceGetCount, 2000),
	ENTRY(cuDeviceGet, 2000),
	ENTRY(cuDeviceGetName, 2000),
	{ "cuDeviceGetUuid", 9020, (void *)fake_uuid_of_parent },
	ENTRY(cuDeviceGetUuid, 11040),
	ENTRY(cuDeviceTotalMem, 3020),
	ENTRY(cuDeviceGetAttribute, 2000),
	ENTRY(cuDeviceGetPCIBusId, 4010),
	ENTRY(cuDevicePrimaryCtxRetain, 7000),
	ENTRY(cuDevicePrimaryCtxRelease, 11000),
	ENTRY(cuDevicePrimaryCtxReset, 11000),
	ENTRY(cuCtxGetCurrent, 4000),
	ENTRY(cuCtxSetCurrent, 4000),
	ENTRY(cuMemAlloc, 3020),
	ENTRY(cuMemFree, 3020),
	ENTRY(cuMemGetAddressRange, 3020),
	ENTRY(cuMemcpyHtoD, 3020),
	ENTRY(cuMemcpyDtoH, 3020),
	ENTRY(cuMemsetD8Async, 3020),
	ENTRY(cuIpcGetMemHandle, 4010),
	ENTRY(cuIpcOpenMemHandle, 11000),
	ENTRY(cuIpcCloseMemHandle, 4010),
	ENTRY(cuIpcGetEventHandle, 4010),
	ENTRY(cuIpcOpenEventHandle, 4010),
	ENTRY(cuMemCreate, 10020),
	ENTRY(cuMemRelease, 10020),
	ENTRY(cuMemAddressReserve, 10020),
	ENTRY(cuMemAddressFree, 10020),
	ENTRY(cuMemMap, 10020),
	ENTRY(cuMemUnmap, 10020),
	ENTRY(cuMemSetAccess, 10020),
	ENTRY(cuMemExportToShareableHandle, 10020),
	ENTRY(cuMemImportFromShareableHandle, 10020),
	ENTRY(cuMemHostAlloc, 2020),
	ENTRY(cuMemFreeHost, 2000),
	ENTRY(cuMemHostRegister, 6050),
	ENTRY(cuMemHostUnregister, 4000),
	ENTRY(cuMemHostGetDevicePointer, 3020),
	ENTRY(cuStreamCreate, 2000),
	ENTRY(cuStreamDestroy, 4000),
	ENTRY(cuStreamSynchronize, 2000),
	ENTRY(cuStreamQuery, 2000),
	ENTRY(cuStreamWaitEvent, 3020),
	ENTRY(cuStreamWaitValue64, 11070),
	ENTRY(cuStreamWriteValue64, 11070),
	ENTRY(cuEventCreate, 2000),
	ENTRY(cuEventDestroy, 4000),
	ENTRY(cuEventRecord, 2000),
	ENTRY(cuEventQuery, 2000),
	{ "cuMemcpyBatchAsync", 12080, (void *)fake_batch_12080 },
	{ "cuMemcpyBatchAsync", 13000, (void *)fake_batch_13000 },
	ENTRY(cuModuleLoadData, 2000),
	ENTRY(cuModuleGetFunction, 2000),
	ENTRY(cuLaunchKernel, 4000),
};

/* The newest signature that is not newer than what is asked for. */
CUresult cuGetProcAddress(const char *symbol, void **pfn, int cudaVersion, cuuint64_t flags,
                          CUdriverProcAddressQueryResult *symbolStatus)
{
	const struct entry *best = NULL;
	bool known = false;
	int driver;

	pthread_once(&once, fake_read_environment);
	driver = fake.driver;
	if (flags > CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM)
		return CUDA_ERROR_INVALID_VALUE;
	for (size_t i = 0; i < sizeof(entries) / sizeof(entries[0]); i++) {
		const struct entry *e = &entries[i];

		if (strcmp(e->name, symbol) != 0 || e->version > driver)
			continue;
		known = true;
		if (e->version <= cudaVersion && (!best || e->version > best->version))
			best = e;
	}
	*pfn = best ? best->function : NULL;
	if (symbolStatus)
		*symbolStatus = best    ? CU_GET_PROC_ADDRESS_SUCCESS
		                : known ? CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT
		                        : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
	return best ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

/* So that a test knows that it has this driver before it, and can steer it. */
struct fakecuda_control *fakecuda_control(void);

struct fakecuda_control *fakecuda_control(void)
{
	pthread_once(&once, fake_read_environment);
	return fake.control;
}
