/* SPDX-License-Identifier: Apache-2.0 */
/* cache.h: what an engine does with libkvbm, for tests: stores and verifies blocks whose bytes are known.
 *
 * The oracle: byte i of a lane's slice is a function of (namespace, key, lane, i), so that one wrong byte is seen anywhere, by
 * whoever reads it.  It is not kvbmctl's oracle: a mistake in one does not hide in the other.  Blocks are named by a number;
 * a chain of blocks first..first+n-1 has each one's predecessor as its parent.
 *
 * cache_try_*() return what the library returned; the others end the test if that is an error.  A wrong byte always does.
 */
#ifndef TESTS_LIB_CACHE_H
#define TESTS_LIB_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include <kvbm.h>

#define CACHE_CHAIN 64u /* most blocks in one call here */

struct cache {
	struct kvbm *kvbm;  /* owns */
	struct kvbm_ns *ns; /* borrows from kvbm */
	char name[64];
	uint32_t lanes, key_bytes;
	uint64_t lane_bytes;
};

/* A namespace of plain blocks, the one that most tests use. */
struct kvbm_model cache_model(const char *name, uint64_t block_bytes, uint32_t lanes);

int cache_try_open(struct cache *c, const char *socket, const struct kvbm_model *model, unsigned open_flags);
void cache_open(struct cache *c, const char *socket, const struct kvbm_model *model);
void cache_open_by_socket(struct cache *c, const char *socket, const struct kvbm_model *model);
/* Ends the test unless @r >= 0; says what the library said. */
int cache_ok(const struct cache *c, int r);
void cache_close(struct cache *c);

/* @ret_keys: n * key_bytes. */
void cache_keys(const struct cache *c, uint64_t first, uint32_t n, uint8_t *ret_keys);
void cache_fill(const struct cache *c, const struct kvbm_span *span, const uint8_t *key, uint32_t lane);
/* Every byte of every lane. */
void cache_check(const struct cache *c, const struct kvbm_span *span, const uint8_t *key);
/* The same where the session may end at any moment: false, it has. */
bool cache_try_check(const struct cache *c, const struct kvbm_span *span, const uint8_t *key);

/* Reserves, writes and commits a chain whose first block's parent is block first-1 (0: a root).  Returns how many were new. */
int cache_try_store(struct cache *c, uint32_t lane, uint64_t first, uint32_t n);
uint32_t cache_store(struct cache *c, uint64_t first, uint32_t n);
/* Matches the prefix, reads all of it, releases.  Returns the hits. */
int cache_try_verify(struct cache *c, uint64_t first, uint32_t n);
uint32_t cache_verify(struct cache *c, uint64_t first, uint32_t n);
/* Matches and keeps hold. */
uint32_t cache_hold(struct cache *c, uint64_t first, uint32_t n, struct kvbm_span *ret_spans);
/* How many are there, without holding or touching. */
uint32_t cache_present(struct cache *c, uint64_t first, uint32_t n);

/* ---- any number of blocks ---- */

/* One chain, piece by piece. */
void cache_store_chain(struct cache *c, uint64_t first, uint32_t n);
/* @n blocks without parents or children: numbers first, first + 2, ...; @first > 0. */
void cache_store_roots(struct cache *c, uint64_t first, uint32_t n);
/* How many of these are there. */
uint32_t cache_present_roots(struct cache *c, uint64_t first, uint32_t n);
/* Slots that can be had when nothing is in use; whatever could be dropped is, and the namespace gets its memory. */
uint32_t cache_capacity(struct cache *c);
/* Reserves @n slots and gives them back.  Returns how many blocks had to go. */
uint32_t cache_make_room(struct cache *c, uint32_t n);

#endif
