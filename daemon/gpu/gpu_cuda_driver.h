/* SPDX-License-Identifier: Apache-2.0 */
/* gpu_cuda_driver.h: the CUDA driver's entry points, found at run time.
 *
 * Nothing links libcuda: it is opened by name, and each entry point is asked for by the version whose signature we
 * compile against, so that one binary serves 12.8 and 13 and starts where there is no driver.
 */
#ifndef GPU_GPU_CUDA_DRIVER_H
#define GPU_GPU_CUDA_DRIVER_H

#include <cuda.h>
#include <cudaTypedefs.h>
#include <stdbool.h>
#include <stddef.h>

#define DRIVER_VERSION_MIN 12080 /* the first with batched copies */

/* name, version of its signature */
#define DRIVER_CALLS(X) \
	X(DriverGetVersion, 2020) \
	X(DeviceGetCount, 2000) \
	X(DeviceGet, 2000) \
	X(DeviceGetName, 2000) \
	X(DeviceGetUuid, 11040) \
	X(DeviceTotalMem, 3020) \
	X(DeviceGetAttribute, 2000) \
	X(DeviceGetPCIBusId, 4010) \
	X(DevicePrimaryCtxRetain, 7000) \
	X(DevicePrimaryCtxRelease, 11000) \
	X(DevicePrimaryCtxReset, 11000) \
	X(CtxSetCurrent, 4000) \
	X(MemAlloc, 3020) \
	X(MemFree, 3020) \
	X(MemsetD8Async, 3020) \
	X(MemGetAddressRange, 3020) \
	X(IpcGetMemHandle, 4010) \
	X(IpcOpenMemHandle, 11000) \
	X(IpcCloseMemHandle, 4010) \
	X(IpcOpenEventHandle, 4010) \
	X(MemCreate, 10020) \
	X(MemRelease, 10020) \
	X(MemAddressReserve, 10020) \
	X(MemAddressFree, 10020) \
	X(MemMap, 10020) \
	X(MemUnmap, 10020) \
	X(MemSetAccess, 10020) \
	X(MemExportToShareableHandle, 10020) \
	X(MemImportFromShareableHandle, 10020) \
	X(MemHostRegister, 6050) \
	X(MemHostUnregister, 4000) \
	X(MemHostGetDevicePointer, 3020) \
	X(MemHostAlloc, 2020) \
	X(MemFreeHost, 2000) \
	X(StreamCreate, 2000) \
	X(StreamDestroy, 4000) \
	X(StreamSynchronize, 2000) \
	X(StreamQuery, 2000) \
	X(StreamWriteValue64, 11070) \
	X(EventCreate, 2000) \
	X(EventRecord, 2000) \
	X(EventQuery, 2000) \
	X(EventDestroy, 4000) \
	X(ModuleLoadData, 2000) \
	X(ModuleGetFunction, 2000) \
	X(LaunchKernel, 4000) \
	X(GetErrorName, 6000)

struct driver {
#define DRIVER_FIELD(name, version) PFN_cu##name##_v##version name;
	DRIVER_CALLS(DRIVER_FIELD)
#undef DRIVER_FIELD
	/* Of the two signatures that this entry point has had; the other is NULL. */
	CUresult (*batch_12080)(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count,
	                        CUmemcpyAttributes *attrs, size_t *attr_indexes, size_t n_attrs, size_t *ret_failed,
	                        CUstream stream);
	CUresult (*batch_13000)(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count,
	                        CUmemcpyAttributes *attrs, size_t *attr_indexes, size_t n_attrs, CUstream stream);
	PFN_cuDeviceGetUuid_v9020 uuid_of_parent; /* of a MIG instance: the whole device's */
	int version;
};

/* Any thread, quick: is there a library at all?  *ret_why says why not. */
bool driver_is_there(const char **ret_why);

/* Any thread; opens and initialises the driver once a process, which takes seconds, and may hang.  NULL: there is none;
 * *ret_why says why. */
const struct driver *driver_get(const char **ret_why);

/* All copies of a batch have one set of attributes. */
CUresult driver_batch(const struct driver *driver, CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count,
                      CUstream stream);

/* "CUDA_ERROR_..." */
const char *driver_error_name(const struct driver *driver, CUresult result);

/* After it the context is of no use: whatever is not known to concern one call alone is taken for that. */
bool driver_error_is_sticky(CUresult result);

#endif
