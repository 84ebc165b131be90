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

/* COPYING: proposed by heat_pick_down(), in the hands of whoever writes it down. */
enum heat_where { HEAT_NOWHERE = 0, HEAT_ORDER, HEAT_PARKED, HEAT_GRACE, HEAT_CLEAN, HEAT_COPYING };

/* What heat keeps of a slot, 12 bytes, embedded in struct block. */
struct heat_mark {
	uint32_t place; /* tick of its bucket, when in the order */
	uint32_t touch; /* tick of its last use, as far as the daemon knows */
	uint16_t where; /* enum heat_where */
	uint16_t flags; /* HEAT_F_* */
};
#define HEAT_F_RELEASED 1u /* its holder said that it will hardly be used again */
#define HEAT_F_RETAINED 2u /* not to be proposed until the retain ends */
#define HEAT_F_HIT 4u      /* was used after it came */
#define HEAT_F_COUNTED 8u  /* its parent counts it among the leaving */
#define HEAT_F_SHARED 16u  /* more than one chain has gone on from it, or from one below it */

/* How heat reads a slot.  @mark: its mark.  @use: the newest tick a session's pins tell (0: none), and whether it is held now. */
struct heat_ops {
	struct heat_mark *(*mark)(void *ctx, uint32_t slot);
	bool (*held)(void *ctx, uint32_t slot, uint32_t *touch);
	bool (*has_children)(void *ctx, uint32_t slot);
	/* May be NULL.  Children that are neither copying nor clean: those that keep it from being written down; and how heat tells which
	 * are: @slot became one of them, or is none any more. */
	bool (*has_staying_children)(void *ctx, uint32_t slot);
	void (*leaving)(void *ctx, uint32_t slot, bool on);
	/* It will be looked at soon; @near: very soon, and what the first call asked for may be read. */
	void (*prefetch)(void *ctx, uint32_t slot, bool near);
};

struct heat {
	const struct heat_ops *ops;
	void *ctx;
	uint32_t clock, oldest;    /* ticks; clock - oldest < HEAT_BUCKETS */
	uint32_t per_tick, placed; /* the clock may advance after that many placements */
	uint32_t n_slots;
	bool bumped;               /* the last tick was heat_released()'s */
	uint32_t parked, in_order; /* live ones */
	bool ignore_retained;      /* retains are advice: set while nothing else is left */
	uint32_t grace_live, grace_limit;
	uint32_t clean_live; /* cold ones that a lower tier has too: dropping them loses nothing */
	uint64_t entries;    /* live and stale ones, in all queues */
	struct heat_queue buckets[HEAT_BUCKETS];
	struct heat_queue grace, clean;
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
/* It was released by hint: droppable first, before its children too if it is not shared, unless touched meanwhile.  Over the limit the oldest goes to the cold end of the order. */
void heat_release(struct heat *h, uint32_t slot);
/* That was all of a hint: a new tick, mostly, so that a use from now on is newer than the release. */
void heat_released(struct heat *h);
/* It was used, by message: no longer released. */
void heat_touch(struct heat *h, uint32_t slot);
/* A proposed block has a copy below by now, or needs none: it waits, still findable, to be dropped right after those in grace. */
void heat_clean(struct heat *h, uint32_t slot);
/* Its copy below went: back to the order, if it was clean. */
void heat_unclean(struct heat *h, uint32_t slot);
/* It is gone.  Its entry is skipped when met. */
void heat_forget(struct heat *h, uint32_t slot);

/* Next victim: a leaf, not held, coldest; it is in no queue any more.  false: nothing is droppable (everything was looked at
 * once at most @budget entries were looked at). */
bool heat_pick(struct heat *h, uint32_t *ret_slot, uint64_t *budget);
/* Half of that: only what waits in grace or clean. */
bool heat_pick_ready(struct heat *h, uint32_t *ret_slot, uint64_t *budget);
/* What to write down next: from the order, where children that will be dropped before it do not count.  It is COPYING: to be ended with heat_clean()
 * or heat_place(). */
bool heat_pick_down(struct heat *h, uint32_t *ret_slot, uint64_t *budget);

/* For an order that is kept in the ticks of another one's clock: brings the clock up to @clock, if that is newer. */
void heat_follow(struct heat *h, uint32_t clock);

uint64_t heat_bytes(const struct heat *h);

#endif
