/* SPDX-License-Identifier: Apache-2.0 */
/* layout.h: where the bytes of a block lie in a device's memory.  Pure arithmetic, any thread.
 *
 * In host memory (G2) a block is fully contiguous: its bytes in the order of its dimensions, slowest first.  In a device
 * block b has the byte with indices i0, i1, ... at
 *
 *	base + b * block_stride + i0 * dims[0].stride + i1 * dims[1].stride + ... + (0 .. run_bytes - 1)
 *
 * With planes > 1 the slowest dimension is not a stride but a table: index i0 has a base of its own (an engine's layers
 * are tensors of their own).  The layouts that engines use, with L layers, O = 2 (keys and values) or 1 (MLA), N blocks
 * and R bytes of one block in one layer and one of O:
 *
 *	fully contiguous                 [N][L][O][R]   planes 1
 *	layer-separate, outer-contiguous L x [O][N][R]  planes L, or 1 where the layers lie at equal distances
 *	layer-separate, block-contiguous L x [N][O][R]  the same
 *	anything else                    strides
 */
#ifndef BASE_LAYOUT_H
#define BASE_LAYOUT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

#define LAYOUT_MAX_DIMS 6u
#define LAYOUT_MAX_PLANES 1024u
#define LAYOUT_MAX_PIECES 65536u /* of one block */

enum {
	LAYOUT_E_BAD = 1, /* no such memory: nothing in it, more than fits 2^62, or too many pieces */
};

struct layout_dim {
	uint64_t extent, stride; /* bytes; the stride of dims[0] means nothing with planes > 1 */
};

struct layout {
	uint32_t planes; /* 1, or dims[0].extent */
	uint32_t n_dims; /* 0: one run a block */
	struct layout_dim dims[LAYOUT_MAX_DIMS];
	uint64_t run_bytes;    /* contiguous at each index */
	uint64_t block_stride; /* from one block to the next */
};

/* One copy: contiguous at both ends. */
struct layout_piece {
	uint64_t device, host, bytes;
};

/* The common layouts; @n_blocks is the device's, R = @run_bytes.  Layers one after another in one plane; for a plane
 * each, set planes = layers. */
struct layout layout_contiguous(uint64_t layers, uint64_t outers, uint64_t run_bytes);
struct layout layout_outer_contiguous(uint64_t layers, uint64_t outers, uint64_t run_bytes, uint64_t n_blocks);
struct layout layout_block_contiguous(uint64_t layers, uint64_t outers, uint64_t run_bytes, uint64_t n_blocks);

/* For a description from a stranger, before any other function here: 0 or LAYOUT_E_BAD.  @ret_reach is how many bytes
 * from its base each plane needs for @n_blocks blocks; whether the memory has them is the caller's to compare. */
int layout_check(const struct layout *layout, uint64_t n_blocks, uint64_t *ret_reach) _must_check_;

/* Bytes of one block. */
uint64_t layout_block_bytes(const struct layout *layout);

/* Pieces of one block, neighbouring runs taken together. */
uint64_t layout_block_pieces(const struct layout *layout);

/* Walks over the pieces of one block after another; pieces of one plane that are neighbours at both ends are one piece,
 * across blocks too.  Not so of two planes: they may be two allocations, which no copy may span.  Borrows @layout and @planes (a base address for each plane). */
struct layout_walk {
	struct layout layout; /* folded: as few dimensions as possible */
	const uint64_t *planes;
	uint64_t index[LAYOUT_MAX_DIMS];
	uint64_t offset; /* of the next run in its plane, without the block's */
	uint64_t block_offset, host;
	bool busy;                   /* runs of the block are left */
	struct layout_piece pending; /* bytes 0: none */
	uint64_t pending_plane;
};

void layout_walk_init(struct layout_walk *walk, const struct layout *layout, const uint64_t *planes);

/* The next block, whose host bytes begin at @host.  Only when layout_walk_next() has said false. */
void layout_walk_block(struct layout_walk *walk, uint64_t block, uint64_t host);

/* False: the block has been walked; what may still grow is kept until the next block, or layout_walk_end(). */
bool layout_walk_next(struct layout_walk *walk, struct layout_piece *ret_piece);

/* The last piece, if there is one; also where the next block's host bytes must not be taken together with these. */
bool layout_walk_end(struct layout_walk *walk, struct layout_piece *ret_piece);

#endif
