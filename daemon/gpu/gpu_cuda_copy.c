/* SPDX-License-Identifier: Apache-2.0 */
/* Copies, on the device's thread.
 *
 *   waiting   on gpu->copies: for its peer (before), or for a slot
 *   running   in a slot: a few parts at a time on its stream, each with a fence behind it
 *   ended     posted
 *
 * Owns: the slots.
 * Invariant: a copy in a slot has something submitted that was not seen to be complete; so it ends only by its fence, or
 * with the context.
 * Deliberately not here: order among copies (move/ decides what is started when); the arithmetic (base/layout.c).
 *
 * No stream ever waits for a peer: streams share the hardware's few channels, and one whose flag never comes would hold
 * up the others.  So flags and events are looked at here until they are there, and only then is anything submitted; what
 * engines wait for, they wait for on streams of their own.
 *
 * If a submission fails half-way, what was accepted before may run, and nothing tells when it is over: the device is given
 * up as after any sticky error.
 */
#include <stdatomic.h>

#include "base/assert.h"
#include "base/clock.h"
#include "gpu/gather.h"
#include "gpu/gpu_cuda_state.h"

#define PIECES_PER_BLOCK (GATHER_THREADS / 32u)

static bool part_open(struct gpu *gpu, struct gpu_part *part)
{
	size_t bytes = GPU_PART_PIECES * sizeof(uint64_t);

	_Static_assert(sizeof(CUdeviceptr) == 8 && sizeof(size_t) == 8, "the kernel's words");
	if (CALL(gpu, EventCreate, &part->fence, CU_EVENT_DISABLE_TIMING) != CUDA_SUCCESS ||
	    CALL(gpu, MemHostAlloc, &part->table, 3 * bytes, CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP) !=
	            CUDA_SUCCESS ||
	    CALL(gpu, MemHostGetDevicePointer, &part->table_device, part->table, 0) != CUDA_SUCCESS)
		return false;
	part->dsts = part->table;
	part->srcs = part->dsts + GPU_PART_PIECES;
	part->sizes = (size_t *)(part->srcs + GPU_PART_PIECES);
	return true;
}

bool gpu_slot_open(struct gpu *gpu, struct gpu_slot *slot)
{
	if (CALL(gpu, StreamCreate, &slot->stream, CU_STREAM_NON_BLOCKING) != CUDA_SUCCESS)
		return false;
	for (uint32_t i = 0; i < GPU_PARTS; i++)
		if (!part_open(gpu, &slot->parts[i]))
			return false;
	return true;
}

/* ---- what a copy says of itself ---- */

static bool pin_has(const struct gpu_pin *pin, uint64_t offset, uint64_t bytes)
{
	return pin && offset <= pin->bytes && bytes <= pin->bytes - offset;
}

static bool sync_is_sane(const struct gpu_sync *sync)
{
	switch (sync->kind) {
	case GPU_SYNC_NONE:
		return true;
	case GPU_SYNC_FLAG:
		return pin_has(sync->pin, sync->offset, 8) && sync->offset % 8 == 0 && sync->pin->registered &&
		       sync->value < GPU_FLAG_FAILED;
	case GPU_SYNC_EVENT:
		return sync->event && sync->event->open;
	}
	return false;
}

static bool copy_is_sane(const struct gpu *gpu, const struct gpu_copy *copy)
{
	uint64_t block_bytes = layout_block_bytes(copy->layout), last = 0, reach;

	if (!sync_is_sane(&copy->before) || !sync_is_sane(&copy->after))
		return false;
	if ((copy->before.kind == GPU_SYNC_EVENT && copy->before.event->life != gpu->life) ||
	    (copy->after.kind == GPU_SYNC_EVENT && copy->after.event->life != gpu->life))
		return false;
	for (uint32_t i = 0; i < copy->n_blocks; i++) {
		const struct gpu_block *block = &copy->blocks[i];

		if (!pin_has(block->pin, block->offset, block_bytes) || !block->pin->registered || block->block == UINT64_MAX)
			return false;
		last = block->block > last ? block->block : last;
	}
	if (layout_check(copy->layout, last + 1, &reach) != 0)
		return false;
	for (uint32_t i = 0; i < copy->layout->planes; i++) {
		const struct gpu_plane *plane = &copy->planes[i];

		if (!plane->mem->open || plane->offset > plane->mem->bytes || reach > plane->mem->bytes - plane->offset)
			return false;
	}
	return true;
}

static _Atomic uint64_t *flag_of(const struct gpu_sync *sync)
{
	return (_Atomic uint64_t *)((char *)sync->pin->base + sync->offset);
}

void gpu_copy_flag_failed(const struct gpu_copy *copy)
{
	const struct gpu_sync *after = &copy->after;

	if (after->kind == GPU_SYNC_FLAG && after->offset % 8 == 0 && pin_has(after->pin, after->offset, 8))
		atomic_store_explicit(flag_of(after), GPU_FLAG_FAILED, memory_order_release);
}

static void copy_end(struct gpu *gpu, struct gpu_copy *copy, int r)
{
	if (r != 0)
		gpu_copy_flag_failed(copy);
	gpu_job_end(gpu, &copy->job, r);
}

/* ---- one part ---- */

static void part_add(struct gpu_copy *copy, struct gpu_part *part, const struct layout_piece *piece, uint32_t n)
{
	bool down = copy->direction == GPU_DOWN;

	part->dsts[n] = down ? piece->host : piece->device;
	part->srcs[n] = down ? piece->device : piece->host;
	part->sizes[n] = piece->bytes;
	copy->bytes += piece->bytes;
}

/* The next pieces of the copy. */
static uint32_t part_fill(struct gpu_slot *slot, struct gpu_part *part, uint64_t *ret_bytes)
{
	struct gpu_copy *copy = slot->copy;
	struct layout_piece piece;
	uint64_t bytes = 0;
	uint32_t n = 0;

	while (!slot->last && n < GPU_PART_PIECES && bytes < GPU_PART_BYTES) {
		if (layout_walk_next(&slot->walk, &piece)) {
			part_add(copy, part, &piece, n++);
			bytes += piece.bytes;
		} else if (slot->next_block < copy->n_blocks) {
			const struct gpu_block *block = &copy->blocks[slot->next_block];

			/* Two registrations side by side are two for the driver. */
			if (slot->next_block > 0 && block->pin != block[-1].pin && layout_walk_end(&slot->walk, &piece)) {
				part_add(copy, part, &piece, n++);
				bytes += piece.bytes;
				continue;
			}
			slot->next_block++;
			layout_walk_block(&slot->walk, block->block, block->pin->device + block->offset);
		} else {
			slot->last = true;
			if (layout_walk_end(&slot->walk, &piece)) {
				part_add(copy, part, &piece, n++);
				bytes += piece.bytes;
			}
		}
	}
	*ret_bytes = bytes;
	return n;
}

static CUresult part_by_batch(struct gpu *gpu, CUstream stream, struct gpu_part *part, uint32_t n)
{
	gpu->batches++;
	gpu_call_begin(gpu, 0);
	return gpu_call_end(gpu, driver_batch(gpu->driver, part->dsts, part->srcs, part->sizes, n, stream),
	                    "cuMemcpyBatchAsync");
}

static CUresult part_by_kernel(struct gpu *gpu, CUstream stream, struct gpu_part *part, uint32_t n)
{
	uint64_t array_bytes = GPU_PART_PIECES * sizeof(uint64_t);
	CUdeviceptr dsts = part->table_device, srcs = dsts + array_bytes, sizes = srcs + array_bytes;
	uint32_t blocks = (n + PIECES_PER_BLOCK - 1) / PIECES_PER_BLOCK;
	void *parameters[] = { &dsts, &srcs, &sizes, &n };

	if (blocks > GATHER_BLOCKS_MAX)
		blocks = GATHER_BLOCKS_MAX;
	gpu->kernels++;
	return CALL(gpu, LaunchKernel, gpu->gather, blocks, 1, 1, GATHER_THREADS, 1, 1, 0, stream, parameters, NULL);
}

/* In stream order behind the last part. */
static CUresult part_signal(struct gpu *gpu, struct gpu_slot *slot)
{
	const struct gpu_sync *after = &slot->copy->after;

	if (after->kind == GPU_SYNC_EVENT)
		return CALL(gpu, EventRecord, after->event->event, slot->stream);
	if (after->kind == GPU_SYNC_FLAG && gpu->stream_flags)
		return CALL(gpu, StreamWriteValue64, slot->stream, after->pin->device + after->offset, after->value,
		            CU_STREAM_WRITE_VALUE_DEFAULT);
	return CUDA_SUCCESS;
}

static void part_submit(struct gpu *gpu, struct gpu_slot *slot)
{
	struct gpu_part *part = &slot->parts[(slot->first + slot->n_parts) % GPU_PARTS];
	uint64_t bytes;
	uint32_t n = part_fill(slot, part, &bytes);
	CUresult r = CUDA_SUCCESS;

	assert(slot->n_parts < GPU_PARTS);
	slot->n_parts++;
	if (n > 0 && bytes / n >= gpu->options.batch_piece_bytes)
		r = part_by_batch(gpu, slot->stream, part, n);
	else if (n > 0)
		r = part_by_kernel(gpu, slot->stream, part, n);
	if (r == CUDA_SUCCESS && slot->last)
		r = part_signal(gpu, slot);
	if (r == CUDA_SUCCESS)
		r = CALL(gpu, EventRecord, part->fence, slot->stream);
	part->due_ns = clock_now_ns() + gpu->options.copy_deadline_ns;
	if (r != CUDA_SUCCESS)
		gpu_sicken(gpu, "the driver refused a copy");
}

/* ---- copies ---- */

static void slot_begin(struct gpu *gpu, struct gpu_slot *slot, struct gpu_copy *copy)
{
	slot->copy = copy;
	slot->last = false;
	slot->next_block = slot->first = slot->n_parts = 0;
	for (uint32_t i = 0; i < copy->layout->planes; i++)
		slot->planes[i] = copy->planes[i].mem->address + copy->planes[i].offset;
	layout_walk_init(&slot->walk, copy->layout, slot->planes);
	gpu->n_running++;
	part_submit(gpu, slot);
}

static void slot_end(struct gpu *gpu, struct gpu_slot *slot, int r)
{
	struct gpu_copy *copy = slot->copy;

	slot->copy = NULL;
	gpu->n_running--;
	if (r == 0) {
		*(copy->direction == GPU_UP ? &gpu->up_bytes : &gpu->down_bytes) += copy->bytes;
		gpu->copies_done++;
		if (copy->after.kind == GPU_SYNC_FLAG && !gpu->stream_flags)
			atomic_store_explicit(flag_of(&copy->after), copy->after.value, memory_order_release);
	}
	copy_end(gpu, copy, r);
}

/* True if a part was seen to be complete. */
static bool part_look(struct gpu *gpu, struct gpu_slot *slot)
{
	struct gpu_part *part = &slot->parts[slot->first];
	CUresult r = CALL(gpu, EventQuery, part->fence);

	if (r == CUDA_SUCCESS) {
		slot->first = (slot->first + 1) % GPU_PARTS;
		slot->n_parts--;
		return true;
	}
	if (r != CUDA_ERROR_NOT_READY || clock_now_ns() >= part->due_ns)
		gpu_sicken(gpu, "a copy did not end in time");
	return false;
}

/* True if something moved. */
static bool slot_look(struct gpu *gpu, struct gpu_slot *slot)
{
	bool moved = false;

	while (slot->n_parts > 0 && part_look(gpu, slot))
		moved = true;
	if (gpu->sick)
		return true;
	if (slot->last && slot->n_parts == 0) {
		slot_end(gpu, slot, 0);
		return true;
	}
	/* One, and then the others have their turn. */
	if (slot->last || slot->n_parts == GPU_PARTS)
		return moved;
	part_submit(gpu, slot);
	return true;
}

#define NOT_YET GPU_E_FULL /* no outcome of a copy */

/* 0: it happened. */
static int before_look(struct gpu *gpu, const struct gpu_sync *before)
{
	CUresult r;

	switch (before->kind) {
	case GPU_SYNC_NONE:
		return 0;
	case GPU_SYNC_FLAG:
		/* As the driver compares. */
		return (int64_t)(atomic_load_explicit(flag_of(before), memory_order_acquire) - before->value) >= 0
		               ? 0
		               : NOT_YET;
	case GPU_SYNC_EVENT:
		r = CALL_PEER(gpu, EventQuery, before->event->event);
		return r == CUDA_ERROR_NOT_READY ? NOT_YET : gpu_outcome(gpu, r);
	}
	return GPU_E_REFUSED;
}

static struct gpu_slot *slot_free(struct gpu *gpu)
{
	for (uint32_t i = 0; i < GPU_SLOTS; i++)
		if (!gpu->slots[i].copy)
			return &gpu->slots[i];
	return NULL;
}

/* True if it does not wait any more. */
static bool copy_look(struct gpu *gpu, struct gpu_copy *copy)
{
	struct gpu_slot *slot;
	int r;

	r = atomic_load(&copy->cancelled) ? GPU_E_LATE : before_look(gpu, &copy->before);
	if (r == NOT_YET && clock_now_ns() < copy->due_ns)
		return false;
	if (r != 0) {
		list_del(&copy->job.link);
		copy_end(gpu, copy, r == NOT_YET ? GPU_E_LATE : r);
		return true;
	}
	slot = slot_free(gpu);
	if (!slot)
		return false;
	list_del(&copy->job.link);
	slot_begin(gpu, slot, copy);
	return true;
}

void gpu_copy_take(struct gpu *gpu, struct gpu_copy *copy)
{
	/* Once: as long as the copy is under way nobody closes what it names. */
	if (copy_is_sane(gpu, copy))
		list_add_tail(&gpu->copies, &copy->job.link);
	else
		copy_end(gpu, copy, GPU_E_REFUSED);
}

bool gpu_copies_run(struct gpu *gpu)
{
	bool moved = false;

	for (uint32_t i = 0; i < GPU_SLOTS && !gpu->sick; i++)
		if (gpu->slots[i].copy)
			moved |= slot_look(gpu, &gpu->slots[i]);
	list_for_each_safe(it, next, &gpu->copies) {
		if (gpu->sick)
			break;
		moved |= copy_look(gpu, container_of(it, struct gpu_copy, job.link));
	}
	return moved;
}

void gpu_copies_lost(struct gpu *gpu)
{
	struct list *it;

	while ((it = list_pop(&gpu->copies)))
		copy_end(gpu, container_of(it, struct gpu_copy, job.link), GPU_E_LOST);
	for (uint32_t i = 0; i < GPU_SLOTS && !gpu->context; i++)
		if (gpu->slots[i].copy)
			slot_end(gpu, &gpu->slots[i], GPU_E_LOST);
}
