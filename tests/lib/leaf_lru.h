/* SPDX-License-Identifier: Apache-2.0 */
/* leaf_lru.h: exact leaf-LRU in the plainest way, to compare the daemon's policy with.
 *
 * One list in order of use.  A request's blocks are used tail first, so a parent is always more recent than its children, and the coldest
 * block of all is always a leaf: dropping from the cold end of the list is leaf-LRU.
 */
#ifndef TESTS_LIB_LEAF_LRU_H
#define TESTS_LIB_LEAF_LRU_H

#include <stdbool.h>

#include "client/kvbmctl/requests.h"

/* Hits of @rs with room for @capacity blocks.  False: out of memory. */
bool leaf_lru_hits(const struct requests *rs, const struct numbering *numbering, uint32_t capacity, uint64_t *ret_hits);

#endif
