/* SPDX-License-Identifier: Apache-2.0 */
/* P16: copies between device and host memory, through all of gpu.h, against one large pinned copy that the same process makes
 * by itself with the driver's plainest call, in both directions.  On a real device; on the stand-in its numbers mean nothing.
 */
#include <cuda.h>
#include <cudaTypedefs.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "tests/bench/bench.h"
#include "tests/gpu/device.h"

#define BLOCK_BYTES (2 * MIB)
#define BLOCKS 256u
#define ROUNDS 15u

static struct {
	uint8_t *host;
	struct gpu_pin pin;
	struct gpu_mem mem;
	struct gpu_plane plane;
	struct gpu_block blocks[BLOCKS];
	struct device_copy copy;
	enum gpu_direction direction;

	/* The limit's own way. */
	PFN_cuMemcpyHtoDAsync_v3020 up;
	PFN_cuMemcpyDtoHAsync_v3020 down;
	PFN_cuStreamSynchronize_v2000 synchronize;
	CUstream stream;
	CUdeviceptr memory;
} bench;

static double gbps(uint64_t begin_ns)
{
	return (double)(BLOCKS * BLOCK_BYTES) / (double)(clock_now_ns() - begin_ns);
}

static double one_large_copy(void *ctx)
{
	uint64_t begin_ns = clock_now_ns();
	CUresult r;

	(void)ctx;
	if (bench.direction == GPU_UP)
		r = bench.up(bench.memory, bench.host, BLOCKS * BLOCK_BYTES, bench.stream);
	else
		r = bench.down(bench.host, bench.memory, BLOCKS * BLOCK_BYTES, bench.stream);
	must(r == CUDA_SUCCESS && bench.synchronize(bench.stream) == CUDA_SUCCESS);
	return gbps(begin_ns);
}

static double ours(void *ctx)
{
	uint64_t begin_ns = clock_now_ns();

	(void)ctx;
	must_eq(device_copy_run(&bench.copy), 0);
	return gbps(begin_ns);
}

static void *find(void *library, const char *symbol)
{
	void *function = dlsym(library, symbol);

	must(function);
	return function;
}

/* In the context that the device's thread uses too, as there is one a process. */
static void limit_open(void)
{
	void *library = dlopen("libcuda.so.1", RTLD_NOW);
	PFN_cuDevicePrimaryCtxRetain_v7000 retain;
	PFN_cuCtxSetCurrent_v4000 set_current;
	PFN_cuStreamCreate_v2000 stream_create;
	PFN_cuMemAlloc_v3020 alloc;
	CUcontext context;

	must(library);
	*(void **)&retain = find(library, "cuDevicePrimaryCtxRetain");
	*(void **)&set_current = find(library, "cuCtxSetCurrent");
	*(void **)&stream_create = find(library, "cuStreamCreate");
	*(void **)&alloc = find(library, "cuMemAlloc_v2");
	*(void **)&bench.up = find(library, "cuMemcpyHtoDAsync_v2");
	*(void **)&bench.down = find(library, "cuMemcpyDtoHAsync_v2");
	*(void **)&bench.synchronize = find(library, "cuStreamSynchronize");
	must(retain(&context, 0) == CUDA_SUCCESS && set_current(context) == CUDA_SUCCESS);
	must(stream_create(&bench.stream, CU_STREAM_NON_BLOCKING) == CUDA_SUCCESS);
	must(alloc(&bench.memory, BLOCKS * BLOCK_BYTES) == CUDA_SUCCESS);
}

static void layout_run(const char *what, struct layout layout, enum goal goal, double bound)
{
	static const char *const ways[] = { "down", "up" };
	char variant[160];

	must(layout_block_bytes(&layout) == BLOCK_BYTES);
	for (unsigned way = 0; way < 2; way++) {
		struct figure figure = {
			.name = "P16",
			.variant = variant,
			.unit = "GB/s",
			.limit_is = "one pinned copy of 512 MiB",
			.placement = "free",
			.goal = goal,
			.bound = bound,
		};

		(void)snprintf(variant, sizeof(variant), "%s, %s, %s", device.infos[0].name, what, ways[way]);
		bench.direction = way ? GPU_UP : GPU_DOWN;
		device_copy_init(&bench.copy, bench.direction, &bench.mem, 0, BLOCK_BYTES);
		bench.copy.copy.layout = &layout;
		bench.copy.copy.planes = &bench.plane;
		bench.copy.copy.blocks = bench.blocks;
		bench.copy.copy.n_blocks = BLOCKS;
		bench_compare(&figure, ROUNDS, one_large_copy, ours, NULL);
		bench_print(&figure);
	}
}

int main(void)
{
	device_skip_without();
	bench_init();
	if (!bench_wanted("P16"))
		return EXIT_SUCCESS;
	device_open(60000);
	bench.host = mmap(NULL, BLOCKS * BLOCK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(bench.host != MAP_FAILED);
	(void)madvise(bench.host, BLOCKS * BLOCK_BYTES, MADV_HUGEPAGE);
	memset(bench.host, 1, BLOCKS * BLOCK_BYTES);
	gpu_pin(device.gpu, &bench.pin, bench.host, BLOCKS * BLOCK_BYTES);
	must_eq(device_alloc(&bench.mem, BLOCKS * BLOCK_BYTES, GPU_SHARE_NONE), 0);
	limit_open();
	bench.plane.mem = &bench.mem;
	/* No block beside its neighbour, at either end. */
	for (uint32_t i = 0; i < BLOCKS; i++)
		bench.blocks[i] = (struct gpu_block){ .block = i * 37 % BLOCKS,
			                              .pin = &bench.pin,
			                              .offset = (uint64_t)(i * 101 % BLOCKS) * BLOCK_BYTES };
	layout_run("2 MiB contiguous", layout_contiguous(32, 2, 32 * 1024), GOAL_RATIO_AT_LEAST, 0.95);
	layout_run("layer-separate, 32 KiB pieces", layout_outer_contiguous(32, 2, 32 * 1024, BLOCKS),
	           GOAL_RATIO_AT_LEAST, 0.8);
	layout_run("layer-separate, 16 KiB pieces", layout_outer_contiguous(64, 2, 16 * 1024, BLOCKS), GOAL_NONE, 0);
	layout_run("layer-separate, 4 KiB pieces", layout_outer_contiguous(256, 2, 4 * 1024, BLOCKS), GOAL_NONE, 0);
	device_close();
	return EXIT_SUCCESS;
}
