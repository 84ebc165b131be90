/* heat.h: which blocks are cold.  Lazy leaf-LRU: each block has one place in a calendar of buckets, one bucket a tick of the
 * namespace clock; using a block moves nothing, it only makes its touch newer than its place.  The oldest bucket is asked first;
 * what was touched since is put where its touch belongs, what has children waits outside (parked) until its last child went.
 *
 * Heat never drops a block: it proposes slots, and space.c may find them pinned.
 */
#ifndef KVBMD_BLOCK_HEAT_H
#define KVBMD_BLOCK_HEAT_H

#include <stdbool.h>
#include <stdint.h>

#define HEAT_BUCKETS 4096u /* power of two */

#define HEAT_CHUNK_IDS 62u
struct heat_chunk {
	uint32_t next, n; /* n: ids written */
	uint32_t ids[HEAT_CHUNK_IDS];
};

/* First in, first out.  head is read from at @read. */
struct heat_queue {
	uint32_t head, tail, read; /* chunk numbers + 1; 0: empty */
};

enum heat_where { HEAT_NOWHERE = 0, HEAT_ORDER, HEAT_PARKED, HEAT_GRACE };

/* What heat keeps of a slot, 12 bytes, embedded in struct block. */
struct heat_mark {
	uint32_t place; /* tick of its bucket, when in the order */
	uint32_t touch; /* tick of its last use, as far as the daemon knows */
	uint16_t where; /* enum heat_where */
	uint16_t flags; /* HEAT_F_* */
};
#define HEAT_F_RELEASED 1u /* its holder said that it will hardly be used again */
#define HEAT_F_RETAINED 2u /* not to be proposed until the retain ends */

/* How heat reads a slot.  @mark: its mark.  @use: the newest tick a session's pins tell (0: none), and whether it is held now. */
struct heat_ops {
	struct heat_mark *(*mark)(void *ctx, uint32_t slot);
	bool (*held)(void *ctx, uint32_t slot, uint32_t *touch);
	bool (*has_children)(void *ctx, uint32_t slot);
	void (*prefetch)(void *ctx, uint32_t slot);
};

struct heat {
	const struct heat_ops *ops;
	void *ctx;
	uint32_t clock, oldest;    /* ticks; clock - oldest < HEAT_BUCKETS */
	uint32_t per_tick, placed; /* the clock may advance after that many placements */
	uint32_t n_slots;
	uint32_t parked, in_order; /* live ones */
	bool ignore_retained;      /* retains are advice: set while nothing else is left */
	uint32_t grace_live, grace_limit;
	uint64_t entries; /* live and stale ones, in all queues */
	struct heat_queue buckets[HEAT_BUCKETS];
	struct heat_queue grace;
	struct heat_chunk **slabs; /* owns; chunks are numbered across slabs */
	uint32_t n_slabs, n_chunks, free_chunk;
};

/* @n_slots: how many blocks can live; the clock then ticks about 2048 times while they are all replaced. */
int heat_init(struct heat *h, uint32_t n_slots, uint32_t grace_limit, const struct heat_ops *ops, void *ctx);
void heat_deinit(struct heat *h);

/* A new tick begins if enough was placed since the last.  Returns the clock. */
uint32_t heat_tick(struct heat *h);

/* A block appeared, or a proposed one stays after all: to the place of its touch. */
void heat_place(struct heat *h, uint32_t slot);
/* Its last child went. */
void heat_unpark(struct heat *h, uint32_t slot);
/* It was released by hint: droppable first, unless touched meanwhile.  Over the limit the oldest goes to the cold end of the order. */
void heat_release(struct heat *h, uint32_t slot);
/* It was used, by message: no longer released. */
void heat_touch(struct heat *h, uint32_t slot);
/* It is gone.  Its entry is skipped when met. */
void heat_forget(struct heat *h, uint32_t slot);

/* Next victim: a leaf, not held, coldest; it is in no queue any more.  false: nothing is droppable (everything was looked at
 * once at most @budget entries were looked at). */
bool heat_pick(struct heat *h, uint32_t *ret_slot, uint64_t *budget);

uint64_t heat_bytes(const struct heat *h);

#endif
