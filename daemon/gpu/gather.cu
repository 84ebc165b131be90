/* SPDX-License-Identifier: Apache-2.0 */
/* Many small copies in one launch, between device memory and mapped host memory in either direction.
 *
 * A warp a piece.  Bytes go in words of 16 where both ends allow it, with the odd bytes before and after by themselves;
 * otherwise in words of 4, or one by one.  Four words a turn are read before they are written, because reads over the
 * link take a microsecond.
 *
 * The stand-in driver of the tests compiles this file for the host: tests/fakecuda/shim.h defines GATHER_AT then.
 */
#ifndef GATHER_AT
#define GATHER_AT(address, bytes) ((unsigned char *)(address))
#endif

#define LANES 32u

template <typename word>
__device__ static void copy_words(unsigned char *dst, const unsigned char *src, unsigned long long n, unsigned lane)
{
	word *to = (word *)dst;
	const word *from = (const word *)src;
	unsigned long long i = lane;

	for (; i + 3 * LANES < n; i += 4 * LANES) {
		word a = from[i], b = from[i + LANES], c = from[i + 2 * LANES], d = from[i + 3 * LANES];

		to[i] = a;
		to[i + LANES] = b;
		to[i + 2 * LANES] = c;
		to[i + 3 * LANES] = d;
	}
	for (; i < n; i += LANES)
		to[i] = from[i];
}

__device__ static void copy_piece(unsigned char *dst, const unsigned char *src, unsigned long long bytes, unsigned lane)
{
	unsigned long long apart = (unsigned long long)dst ^ (unsigned long long)src;
	unsigned size = apart % 16 == 0 ? 16 : apart % 4 == 0 ? 4 : 1;
	unsigned long long head = (size - (unsigned long long)dst % size) % size, body;

	if (head > bytes)
		head = bytes;
	body = (bytes - head) / size * size;
	copy_words<unsigned char>(dst, src, head, lane);
	if (size == 16)
		copy_words<uint4>(dst + head, src + head, body / 16, lane);
	else if (size == 4)
		copy_words<unsigned>(dst + head, src + head, body / 4, lane);
	else
		copy_words<unsigned char>(dst + head, src + head, body, lane);
	copy_words<unsigned char>(dst + head + body, src + head + body, bytes - head - body, lane);
}

extern "C" __global__ void kvbm_gather(const unsigned long long *dsts, const unsigned long long *srcs,
                                       const unsigned long long *sizes, unsigned n)
{
	unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
	unsigned warps = gridDim.x * blockDim.x / LANES;

	for (unsigned i = thread / LANES; i < n; i += warps)
		copy_piece(GATHER_AT(dsts[i], sizes[i]), GATHER_AT(srcs[i], sizes[i]), sizes[i], thread % LANES);
}
