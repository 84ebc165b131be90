/* index.h: fingerprint -> slot, in shared memory (proto/shm.h), of which this is the only writer.
 *
 * Lines of four entries, linear probing over lines.  Invariant: an entry lies in a line after its home line only while every line in
 * between is full of entries and tombstones; so a look-up may stop at the first line with an empty entry.  Removal in two steps: a
 * tombstone makes the block unfindable and can be taken back; index_remove() then mends the probe chains, which leaves no
 * tombstones behind.  A moved entry is written to its new place before the old one is cleared: a reader that sees neither
 * misses, which is harmless.
 */
#ifndef KVBMD_BLOCK_INDEX_H
#define KVBMD_BLOCK_INDEX_H

#include <stddef.h>

#include "proto/shm.h"

enum { INDEX_E_FULL = 1 };

struct index {
	struct shm_line *lines; /* borrows */
	const uint8_t *keys;    /* borrows; slot s has its key at keys + s * key_stride */
	size_t key_stride;
	uint8_t *behind; /* borrows; a byte an entry, index_behind_bytes(): how many lines after its home line it lies */
	uint64_t n_lines, used;
	uint64_t salt[2];
	uint32_t key_bytes;
};

/* Lines that hold @n_slots entries at a load of 3/4. */
uint64_t index_lines_for(uint64_t n_slots);
static inline size_t index_behind_bytes(uint64_t n_lines)
{
	return n_lines * SHM_LINE_ENTRIES;
}

static inline struct shm_hash index_hash(const struct index *ix, const uint8_t *key)
{
	return shm_hash_key(key, ix->key_bytes, ix->salt, ix->n_lines);
}

/* The entry of @key, compared whole, or NULL. */
struct shm_entry *index_find(const struct index *ix, const uint8_t *key, struct shm_hash h);

/* The same of many, with their cache misses side by side; NULL: not there.  Unless @scattered it ends before the first that is not there.
 * Returns how many are filled in. */
#define INDEX_BATCH 64u
uint32_t index_find_batch(const struct index *ix, const uint8_t *keys, uint32_t n, bool scattered,
                          struct shm_entry **ret_found);

/* @slot holds the key already.  The key must not be there.  Outcome: INDEX_E_FULL. */
int index_insert(struct index *ix, struct shm_hash h, uint32_t generation, uint32_t slot);

/* For batches: what a look-up of @h reads first.  A macro, because gcc 12 drops prefetches out of small inline functions. */
#define index_prefetch(ix, h) \
	do { \
		__builtin_prefetch(&(ix)->lines[(h).line], 1, 3); \
		__builtin_prefetch(&(ix)->behind[SHM_LINE_ENTRIES * (h).line], 1, 3); \
	} while (0)

/* First step of removal: from now on nobody finds it but index_find_tombstone().  index_restore() takes that back, index_remove() ends it; no insert
 * may come in between, and no restore after the first remove (a mended chain no longer reaches a tombstone that stood behind it). */
void index_tombstone(struct index *ix, struct shm_entry *e);
struct shm_entry *index_find_tombstone(const struct index *ix, struct shm_hash h, uint32_t slot);
void index_restore(struct index *ix, struct shm_entry *e, struct shm_hash h, uint32_t generation, uint32_t slot);
void index_remove(struct index *ix, struct shm_entry *e);

#endif
