/* SPDX-License-Identifier: Apache-2.0 */
/* Runs the kernel: each thread of each block, one after another.  Its source is compiled through shim.h. */
#include "tests/fakecuda/fakecuda.h"

struct shim_dim {
	unsigned x, y, z;
};

extern __thread struct shim_dim blockIdx, threadIdx, blockDim, gridDim;
__thread struct shim_dim blockIdx, threadIdx, blockDim, gridDim;

unsigned char *shim_at(unsigned long long address, unsigned long long bytes);
void kvbm_gather(const unsigned long long *dsts, const unsigned long long *srcs, const unsigned long long *sizes,
                 unsigned n);

unsigned char *shim_at(unsigned long long address, unsigned long long bytes)
{
	return (unsigned char *)fake_cpu(address, bytes);
}

bool fake_gather(const uint64_t *dsts, const uint64_t *srcs, const uint64_t *sizes, uint32_t n, uint32_t grid,
                 uint32_t threads)
{
	_Static_assert(sizeof(uint64_t) == sizeof(unsigned long long), "words");
	for (uint32_t i = 0; i < n; i++)
		if (!fake_cpu(dsts[i], sizes[i]) || !fake_cpu(srcs[i], sizes[i]))
			return false;
	blockDim = (struct shim_dim){ threads, 1, 1 };
	gridDim = (struct shim_dim){ grid, 1, 1 };
	for (uint32_t b = 0; b < grid; b++)
		for (uint32_t t = 0; t < threads; t++) {
			blockIdx = (struct shim_dim){ b, 0, 0 };
			threadIdx = (struct shim_dim){ t, 0, 0 };
			kvbm_gather((const unsigned long long *)dsts, (const unsigned long long *)srcs,
			            (const unsigned long long *)sizes, n);
		}
	return true;
}
