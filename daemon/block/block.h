/* block.h: the life of a block in its namespace, from registration to oblivion, and who is whose child. */
#ifndef KVBMD_BLOCK_BLOCK_H
#define KVBMD_BLOCK_BLOCK_H

#include "block/namespace.h"

/* The slot of @key, or NS_NONE.  @h: index_hash() of it. */
uint32_t block_find(const struct ns *ns, const uint8_t *key);
uint32_t block_find_hashed(const struct ns *ns, const uint8_t *key, struct shm_hash h);

/* A written (PARTIAL) slot becomes a registered block.  @parent_key NULL: a root.  *ret_slot is the canonical slot.
 * Outcomes: BLOCK_E_EXISTS (*ret_slot is another one; nothing changed), BLOCK_E_FULL (no room in its part of the index; nothing changed). */
enum { BLOCK_E_EXISTS = 1, BLOCK_E_FULL };
int block_register(struct ns *ns, uint32_t slot, const uint8_t *key, const uint8_t *parent_key, uint32_t *ret_slot);
struct block_new {
	const uint8_t *key, *parent_key;
	struct shm_hash hash, parent_hash; /* index_hash() of them */
};
int block_register_hashed(struct ns *ns, uint32_t slot, const struct block_new *b, uint32_t *ret_slot);

/* A slot that a copy from below was read into (PARTIAL) becomes the block again.  @parent_key: its parent's key if the caller knows it, else NULL. Counts as
 * nothing stored.  Outcomes as above. */
struct block_back {
	const uint8_t *key, *parent_key;
	uint64_t parent, sum; /* as its record said */
};
int block_restore(struct ns *ns, uint32_t slot, const struct block_back *back, uint32_t *ret_slot);

/* Keeps the checksum of its payload, which is not 0, in its record. */
void block_set_sum(struct ns *ns, uint32_t slot, uint64_t sum);

/* Two steps of dropping.  After block_condemn() nobody finds it, and its parent has a child less; the caller then fences, asks
 * whether anybody holds it, and goes on with one of the others.  No registration may come in between. */
void block_condemn(struct ns *ns, uint32_t slot);
void block_pardon(struct ns *ns, uint32_t slot);
/* @reason: for why.  Its slot is free afterwards. */
void block_forget(struct ns *ns, uint32_t slot, enum why_reason reason);

/* Resident children of a block, up to @max of them, for reports: those found by looking at some ten thousand slots. */
uint32_t block_children(const struct ns *ns, uint32_t slot, uint32_t *ret_slots, uint32_t max);
/* Tag that children of @slot name. */
uint64_t block_tag(const struct ns *ns, uint32_t slot);
/* Slot of the parent of @slot, or NS_NONE. */
uint32_t block_parent(const struct ns *ns, uint32_t slot);

/* What heat tells: @slot is clean or copying, or is no more; its parent counts such children. */
void block_leaving(struct ns *ns, uint32_t slot, bool on);

/* Parents that are not here although children are, or that came back after them: for deinit and reports. */
void block_orphans_free(struct ns *ns);
uint64_t block_orphan_bytes(const struct ns *ns);

#endif
