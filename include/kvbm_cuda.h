/* SPDX-License-Identifier: Apache-2.0 */
/* kvbm_cuda.h: blocks in a pool on a GPU as addresses of CUDA.  Library libkvbm-cuda, beside libkvbm; it finds the driver (12.8 or later) when it is
 * first called, and links no CUDA library.
 *
 * Results, threads and units are as in kvbm.h.
 */
#ifndef KVBM_CUDA_H
#define KVBM_CUDA_H

#include <kvbm.h>

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

/* Address of @lane's slice of a held (readable) or reserved (writable) block of a namespace that was attached with a device.  It is a CUdeviceptr in
 * that device's primary context, the one of the runtime API; the calling thread's current context is as it was.  Opens the block's region at first use,
 * and keeps it open.  Work on a stream is the caller's to order: what is committed has been written, what is released is not read any more.
 *
 * Errors: INVAL (the namespace is in host memory), STALE (a stale span, daemon or device gone, region cannot be opened: kvbm_error() says why). */
int kvbm_cuda_data(struct kvbm_ns *ns, const struct kvbm_span *span, uint32_t lane, unsigned long long *ret_address);

/* UUID of the device that CUDA counts as @ordinal, as struct kvbm_model takes it.  Errors: NOENT (no driver or device), INVAL. */
#define KVBM_CUDA_UUID_CHARS 48
int kvbm_cuda_uuid(int ordinal, char ret_uuid[KVBM_CUDA_UUID_CHARS]);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
#endif
