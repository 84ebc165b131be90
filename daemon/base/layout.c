/* SPDX-License-Identifier: Apache-2.0 */
/* Strides to pieces.
 *
 * Invariant: whatever layout_check() has passed can be walked without overflow, and no piece leaves the reach it told.
 * Deliberately not here: whose memory it is, and how pieces are copied (gpu/).
 *
 * Folding: where a dimension's stride is just the size of what is inside it, the two are one run (or one longer
 * dimension).  That is all the coalescing within a block; between blocks the walk holds back its last piece.
 */
#include "base/layout.h"

#include <string.h>

#include "base/assert.h"

#define BYTES_MAX (UINT64_C(1) << 62)

struct layout layout_contiguous(uint64_t layers, uint64_t outers, uint64_t run_bytes)
{
	return (struct layout){
		.planes = 1,
		.n_dims = 2,
		.dims = { { layers, outers * run_bytes }, { outers, run_bytes } },
		.run_bytes = run_bytes,
		.block_stride = layers * outers * run_bytes,
	};
}

struct layout layout_outer_contiguous(uint64_t layers, uint64_t outers, uint64_t run_bytes, uint64_t n_blocks)
{
	return (struct layout){
		.planes = 1,
		.n_dims = 2,
		.dims = { { layers, outers * n_blocks * run_bytes }, { outers, n_blocks * run_bytes } },
		.run_bytes = run_bytes,
		.block_stride = run_bytes,
	};
}

struct layout layout_block_contiguous(uint64_t layers, uint64_t outers, uint64_t run_bytes, uint64_t n_blocks)
{
	return (struct layout){
		.planes = 1,
		.n_dims = 2,
		.dims = { { layers, n_blocks * outers * run_bytes }, { outers, run_bytes } },
		.run_bytes = run_bytes,
		.block_stride = outers * run_bytes,
	};
}

/* *@sum += @n * @size, within BYTES_MAX. */
static bool add_product(uint64_t *sum, uint64_t n, uint64_t size)
{
	uint64_t product;

	return !__builtin_mul_overflow(n, size, &product) && !__builtin_add_overflow(*sum, product, sum) &&
	       *sum <= BYTES_MAX;
}

int layout_check(const struct layout *layout, uint64_t n_blocks, uint64_t *ret_reach)
{
	uint64_t reach = layout->run_bytes, runs = 1, bytes = 0;

	if (layout->n_dims > LAYOUT_MAX_DIMS || n_blocks == 0 || layout->run_bytes == 0 || layout->run_bytes > BYTES_MAX)
		return LAYOUT_E_BAD;
	if (layout->planes != 1 && (layout->planes == 0 || layout->planes > LAYOUT_MAX_PLANES || layout->n_dims == 0 ||
	                            layout->dims[0].extent != layout->planes))
		return LAYOUT_E_BAD;
	for (uint32_t i = 0; i < layout->n_dims; i++) {
		const struct layout_dim *dim = &layout->dims[i];

		if (dim->extent == 0 || __builtin_mul_overflow(runs, dim->extent, &runs) || runs > BYTES_MAX)
			return LAYOUT_E_BAD;
		if (!(i == 0 && layout->planes > 1) && !add_product(&reach, dim->extent - 1, dim->stride))
			return LAYOUT_E_BAD;
	}
	if (!add_product(&reach, n_blocks - 1, layout->block_stride) || !add_product(&bytes, runs, layout->run_bytes))
		return LAYOUT_E_BAD;
	if (layout_block_pieces(layout) > LAYOUT_MAX_PIECES)
		return LAYOUT_E_BAD;
	*ret_reach = reach;
	return 0;
}

uint64_t layout_block_bytes(const struct layout *layout)
{
	uint64_t bytes = layout->run_bytes;

	for (uint32_t i = 0; i < layout->n_dims; i++)
		bytes *= layout->dims[i].extent;
	return bytes;
}

/* Dimensions of extent 1 are none; a dimension that continues what is inside it joins it. */
static struct layout layout_fold(const struct layout *from)
{
	struct layout to = { .planes = from->planes, .block_stride = from->block_stride, .run_bytes = from->run_bytes };
	struct layout_dim kept[LAYOUT_MAX_DIMS]; /* fastest first */
	uint32_t n = 0;

	for (uint32_t i = from->n_dims; i-- > 0;) {
		struct layout_dim dim = from->dims[i];
		bool is_table = i == 0 && from->planes > 1;

		if (dim.extent == 1)
			continue;
		if (is_table)
			kept[n++] = dim;
		else if (n == 0 && dim.stride == to.run_bytes)
			to.run_bytes *= dim.extent;
		else if (n > 0 && dim.stride == kept[n - 1].extent * kept[n - 1].stride)
			kept[n - 1].extent *= dim.extent;
		else
			kept[n++] = dim;
	}
	to.n_dims = n;
	for (uint32_t i = 0; i < n; i++)
		to.dims[i] = kept[n - 1 - i];
	return to;
}

uint64_t layout_block_pieces(const struct layout *layout)
{
	struct layout folded = layout_fold(layout);
	uint64_t pieces = 1;

	for (uint32_t i = 0; i < folded.n_dims; i++)
		pieces *= folded.dims[i].extent;
	return pieces;
}

void layout_walk_init(struct layout_walk *walk, const struct layout *layout, const uint64_t *planes)
{
	memset(walk, 0, sizeof(*walk));
	walk->layout = layout_fold(layout);
	walk->planes = planes;
}

void layout_walk_block(struct layout_walk *walk, uint64_t block, uint64_t host)
{
	assert(!walk->busy);
	memset(walk->index, 0, sizeof(walk->index));
	walk->offset = 0;
	walk->block_offset = block * walk->layout.block_stride;
	walk->host = host;
	walk->busy = true;
}

/* On to the next index, as an odometer does. */
static void walk_step(struct layout_walk *walk)
{
	const struct layout *layout = &walk->layout;

	walk->host += layout->run_bytes;
	for (uint32_t i = layout->n_dims; i-- > 0;) {
		uint64_t stride = i == 0 && layout->planes > 1 ? 0 : layout->dims[i].stride;

		if (++walk->index[i] < layout->dims[i].extent) {
			walk->offset += stride;
			return;
		}
		walk->index[i] = 0;
		walk->offset -= stride * (layout->dims[i].extent - 1);
	}
	walk->busy = false;
}

bool layout_walk_next(struct layout_walk *walk, struct layout_piece *ret_piece)
{
	struct layout_piece *last = &walk->pending;

	while (walk->busy) {
		uint64_t plane = walk->layout.planes > 1 ? walk->index[0] : 0;
		struct layout_piece next = {
			.device = walk->planes[plane] + walk->block_offset + walk->offset,
			.host = walk->host,
			.bytes = walk->layout.run_bytes,
		};

		walk_step(walk);
		if (last->bytes > 0 && plane == walk->pending_plane && last->device + last->bytes == next.device &&
		    last->host + last->bytes == next.host) {
			last->bytes += next.bytes;
			continue;
		}
		*ret_piece = *last;
		*last = next;
		walk->pending_plane = plane;
		if (ret_piece->bytes > 0)
			return true;
	}
	return false;
}

bool layout_walk_end(struct layout_walk *walk, struct layout_piece *ret_piece)
{
	assert(!walk->busy);
	*ret_piece = walk->pending;
	walk->pending.bytes = 0;
	return ret_piece->bytes > 0;
}
