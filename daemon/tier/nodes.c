/* SPDX-License-Identifier: Apache-2.0 */
/* NUMA placement through libnuma.
 *
 * Policies of a memfd are those of the file, not of the mapping: a client that touches a page first gets it from the
 * node chosen here.  A call that fails leaves memory where it is, which is slower and not wrong, so it is only noted.
 */
#include "tier/nodes.h"

#include <errno.h>
#include <numa.h>
#include <numaif.h>
#include <string.h>

#include "base/assert.h"
#include "base/log.h"

#define MASK_BITS 1024u /* the kernel's own limit on x86 and arm */
#define LONG_BITS (8 * sizeof(unsigned long))

struct node_mask {
	unsigned long bits[MASK_BITS / LONG_BITS];
};

static void mask_add(struct node_mask *mask, uint32_t id)
{
	assert(id < MASK_BITS);
	mask->bits[id / LONG_BITS] |= 1ul << id % LONG_BITS;
}

static void range_bind(void *base, uint64_t size, int mode, const struct node_mask *mask, unsigned flags)
{
	/* The kernel takes one bit less than it is told. */
	if (mbind(base, size, mode, mask->bits, MASK_BITS + 1, flags) < 0)
		log_debug("mbind: %s", strerror(errno));
}

void nodes_find(struct nodes *ret_nodes)
{
	struct nodes nodes = { 0 };
	struct bitmask *allowed;

	if (numa_available() >= 0 && (allowed = numa_get_mems_allowed())) {
		for (unsigned id = 0; (int)id <= numa_max_node() && id < MASK_BITS && nodes.n < NODES_MAX; id++)
			if (numa_bitmask_isbitset(allowed, id) && numa_node_size64((int)id, NULL) > 0)
				nodes.ids[nodes.n++] = id;
		numa_bitmask_free(allowed);
	}
	if (nodes.n == 0)
		nodes.n = 1;
	*ret_nodes = nodes;
}

uint64_t nodes_lane_start(const struct nodes_map *map, uint32_t lane)
{
	assert(map->lanes > 0 && lane <= map->lanes && map->lane_area > 0 && map->unit > 0);
	assert(map->lane_area <= map->size / map->lanes);
	if (lane == map->lanes)
		return map->size;
	return lane * map->lane_area / map->unit * map->unit;
}

void nodes_interleave(const struct nodes *nodes, const struct nodes_map *map)
{
	struct node_mask mask = { { 0 } };

	if (nodes->n <= 1)
		return;
	for (uint32_t i = 0; i < nodes->n; i++)
		mask_add(&mask, nodes->ids[i]);
	range_bind(map->base, map->size, MPOL_INTERLEAVE, &mask, 0);
}

void nodes_bind(const struct nodes *nodes, const struct nodes_map *map, uint64_t offset, uint64_t length, bool move)
{
	uint64_t end = offset + length;

	assert(end <= map->size);
	if (nodes->n <= 1 || map->lanes == 0 || map->lane_area == 0)
		return;
	for (uint32_t lane = 0; lane < map->lanes; lane++) {
		uint64_t from = nodes_lane_start(map, lane), to = nodes_lane_start(map, lane + 1);
		struct node_mask mask = { { 0 } };

		from = from > offset ? from : offset;
		to = to < end ? to : end;
		if (from >= to)
			continue;
		mask_add(&mask, nodes->ids[lane % nodes->n]);
		range_bind(map->base + from, to - from, MPOL_PREFERRED, &mask, move ? MPOL_MF_MOVE : 0);
	}
}
