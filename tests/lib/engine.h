/* SPDX-License-Identifier: Apache-2.0 */
/* engine.h: a stream of requests as an engine makes them, checked byte by byte, for tests that need load.
 *
 * A request is a prefix of one of a number of conversations, some of which are asked for far more often than others: it matches
 * what is there and reads all of it, then writes and commits the rest, and sometimes gives up half way, keeps its hold over the next
 * request, or leaves a hint.  A wrong byte ends the process.
 */
#ifndef TESTS_LIB_ENGINE_H
#define TESTS_LIB_ENGINE_H

#include "base/rng.h"
#include "tests/lib/cache.h"

#define ENGINE_SPACE (2u * CACHE_CHAIN) /* distance of two conversations in numbers of blocks */

struct engine {
	struct cache *cache; /* borrows */
	struct rng rng;
	uint32_t conversations, longest;
	struct kvbm_span held[CACHE_CHAIN];
	uint32_t n_held;
};

/* @longest: blocks in a request, at most CACHE_CHAIN. */
void engine_init(struct engine *e, struct cache *cache, uint64_t seed, uint32_t conversations, uint32_t longest);
/* One request.  What the library said when it refused; the engine holds nothing then. */
int engine_request(struct engine *e);
/* Releases what is held over. */
int engine_rest(struct engine *e);

#endif
