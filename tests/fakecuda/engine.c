/* SPDX-License-Identifier: Apache-2.0 */
/* What engines ask the driver that the daemon does not: whose memory an address is, and a device's UUID by the older name. */
#include "tests/fakecuda/fakecuda.h"

CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr ptr)
{
	struct memory *m;
	CUresult r = CUDA_ERROR_INVALID_VALUE;

	FAKE_ENTER("cuPointerGetAttribute");
	if (attribute != CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL || !data)
		return CUDA_ERROR_INVALID_VALUE;
	pthread_mutex_lock(&fake.mtx);
	m = fake_memory_at(ptr);
	if (m && m->kind != MEMORY_REGISTERED) {
		*(int *)data = m->device;
		r = CUDA_SUCCESS;
	}
	pthread_mutex_unlock(&fake.mtx);
	return r;
}

CUresult fake_uuid_of_parent(CUuuid *uuid, CUdevice dev);

#undef cuDeviceGetUuid /* the header makes it the newer one, which of a MIG instance is the instance's */
CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice dev);

CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice dev)
{
	return fake_uuid_of_parent(uuid, dev);
}
