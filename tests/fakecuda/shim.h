/* SPDX-License-Identifier: Apache-2.0 */
/* shim.h: what daemon/gpu/gather.cu needs of CUDA's C++ when it is compiled for the host. */
#ifndef FAKECUDA_SHIM_H
#define FAKECUDA_SHIM_H

#define __global__
#define __device__

struct shim_dim {
	unsigned x, y, z;
};

struct uint4 {
	unsigned x, y, z, w;
};

extern "C" {
extern __thread struct shim_dim blockIdx, threadIdx, blockDim, gridDim;

/* Where a device's bytes are. */
unsigned char *shim_at(unsigned long long address, unsigned long long bytes);

void kvbm_gather(const unsigned long long *dsts, const unsigned long long *srcs, const unsigned long long *sizes,
                 unsigned n);
}

#define GATHER_AT(address, bytes) shim_at(address, bytes)

#endif
