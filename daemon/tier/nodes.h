/* SPDX-License-Identifier: Apache-2.0 */
/* nodes.h: the NUMA nodes of this machine, and which part of a region belongs on which.
 *
 * All of it is advice to the kernel: it prefers the node and takes another one rather than fail.
 */
#ifndef TIER_NODES_H
#define TIER_NODES_H

#include <stdbool.h>
#include <stdint.h>

#define NODES_MAX 64u

struct nodes {
	uint32_t n; /* 1: there is nothing to choose */
	uint32_t ids[NODES_MAX];
};

/* How a region is divided among the lanes.  lanes 0 or lane_area 0: it is not. */
struct nodes_map {
	uint8_t *base;
	uint64_t size;
	uint64_t unit; /* of pages: areas begin at multiples of it */
	uint32_t lanes;
	uint64_t lane_area;
};

/* Nodes with memory this process may use; those beyond NODES_MAX are left out. */
void nodes_find(struct nodes *ret_nodes);

/* Where lane @lane begins in the region; for @lane == lanes, where the last one ends. */
uint64_t nodes_lane_start(const struct nodes_map *map, uint32_t lane);

/* Pages of the whole come from all nodes in turn. */
void nodes_interleave(const struct nodes *nodes, const struct nodes_map *map);

/* Pages of [offset, offset + length), which is of whole units, come from node (lane % n) of their lane.  @move: also those
 * that are there already; that one on any thread, because it copies. */
void nodes_bind(const struct nodes *nodes, const struct nodes_map *map, uint64_t offset, uint64_t length, bool move);

#endif
