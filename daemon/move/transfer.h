/* transfer.h: copies being made between host memory and the tier below.  Inside move/.  Loop thread. */
#ifndef KVBMD_MOVE_TRANSFER_H
#define KVBMD_MOVE_TRANSFER_H

#include "move/mover.h"
#include "move/onboard.h"
#include "move/store_ns.h"

enum transfer_state {
	TRANSFER_FREE = 0,
	TRANSFER_SUMMING, /* down: the checksum before the copy; up: after it */
	TRANSFER_COPYING,
};

struct transfer {
	struct list link;    /* in mover->free, ->running or ->unsummed */
	struct store_ns *sn; /* borrows */
	enum transfer_state state;
	bool down;
	bool in_order;  /* down: the block keeps its place in the order (written ahead of need) */
	bool refused;   /* it could not be begun, and is ended at the end of the turn */
	uint32_t slot;  /* of host memory */
	uint32_t lower; /* below */
	struct tier_io io;
	struct mover_sum sum;
	struct list wants; /* borrows: struct onboard_want, who waits for it */
};

int mover_init(struct store *store);
void mover_deinit(struct store *store);

/* Is a transfer to be had now? */
bool mover_has_room(const struct store *store);

/* Begins to write @slot's block down.  It stays findable and is not dropped meanwhile.  Otherwise nothing has changed. */
enum transfer_begun {
	TRANSFER_BEGUN = 0,
	TRANSFER_LATER,    /* once something that is under way has ended */
	TRANSFER_HOPELESS, /* nothing under way would help: no room below, today's writes are used up, tier offline */
};
enum transfer_begun transfer_down(struct store_ns *sn, uint32_t slot, bool in_order, enum tier_priority priority);

/* Begins to read the copy at @lower into a free slot of host memory (n_free > 0).  NULL: not now. */
struct transfer *transfer_up(struct store_ns *sn, uint32_t lower, enum tier_priority priority);
/* Those that the calculator did not take are offered again. */
void transfer_sum_again(struct store *store);
/* The one that is reading it, or NULL. */
struct transfer *transfer_find(struct store_ns *sn, uint32_t lower);

/* Where the payload of @slot is. */
void transfer_sum_init(struct store_ns *sn, uint32_t slot, struct mover_sum *ret_sum);

/* ---- summing.c ---- */

int summing_init(struct mover *m);
void summing_deinit(struct mover *m);
/* @slot was committed just now: its checksum will be made. */
void summing_committed(struct store_ns *sn, uint32_t slot);
void summing_run(struct store *store);

/* ---- scrub.c ---- */

int scrub_init(struct mover *m);
void scrub_deinit(struct mover *m);
bool scrub_is_running(const struct store *store);
/* Begins to look at one more block, if it is time to. */
void scrub_tick(struct store *store, uint64_t now_ns);
uint64_t scrub_next_ns(const struct store *store);
/* The rate is another one. */
void scrub_at_once(struct store *store);

/* ---- offload.c ---- */

/* Writes cold blocks ahead of need, as far as the watermarks ask.  After whatever used up room.  true: some became clean at once, because they need
 * no copy or cannot have one: whoever waits for room may go on. */
bool offload_run(struct store *store);
/* The same for somebody who needs @need slots in @sn. */
bool offload_for(struct store_ns *sn, uint32_t need);
/* @slot was committed just now. */
void offload_committed(struct store_ns *sn, uint32_t slot);
/* Does it make sense to wait for room in @sn, because copies under way or to be made will give some? */
bool offload_can_help(struct store_ns *sn);

/* ---- onboard.c ---- */

/* Something that waiting onboards may have waited for has happened. */
void onboard_kick(struct store *store);
/* Deadlines. */
void onboard_tick(struct store *store, uint64_t now_ns);
uint64_t onboard_next_ns(const struct store *store);
/* The block of @w: STORE_ONBOARD_*.  @slot: where it is, for DONE. */
void onboard_settle(struct onboard_want *w, uint8_t status, uint32_t slot);

/* A device has gone: whoever waits for blocks in a pool there is told. */
void onboard_lost(struct store *store);

/* ---- pool.c ---- */

int pool_ns_init(struct store_ns *sn);
/* 0, NOENT or OFFLINE. */
int pool_is_there(const struct store *store, const char *device);
/* The pool of @hub on that device, which is there, made if it is not.  Outcomes: LIMIT, NOSPACE. */
int pool_find_ns(struct store_ns *hub, const char *device, struct store_ns **ret_sn);
/* Nobody uses it. */
bool pool_ns_may_go(const struct store_ns *sn);
/* Somebody less uses it: if it is lost, and he was the last, it goes. */
void pool_ns_end(struct store_ns *sn);
void pool_free_all(struct store *store);

/* ---- device.c ---- */

int device_init(struct store_pool *pool);
void device_deinit(struct store_pool *pool);
/* @slot of a pool was committed just now: it is to be copied to its hub. */
void device_committed(struct store_ns *sn, uint32_t slot);
/* Copies whatever can be copied now. */
void device_run(struct store *store);
/* Begins to copy the hub's block in @hub_slot into a free slot of the pool @sn (n_free > 0), once device_submit_all() is called: where those who
 * wait for it are to be listed (struct onboard_want).  NULL: not now.  device_find_up(): a copy of it that has begun already. */
struct list *device_up(struct store_ns *sn, uint32_t hub_slot);
struct list *device_find_up(struct store_ns *sn, uint32_t hub_slot);
void device_submit_all(struct store *store);
/* Some could not be submitted: try again soon. */
bool device_is_pending(const struct store *store);
/* Those that were not submitted end. */
void device_lost(struct store_pool *pool);

/* ---- store_lower.c ---- */

/* A free slot below (WRITING), making room as the policy allows; LOWER_NONE. */
uint32_t lower_make(struct store_ns *sn);
/* The copy goes; the block too, if that was its last one. */
void lower_drop(struct store_ns *sn, uint32_t lower, enum why_reason reason);
bool lower_is_online(const struct store *store);

#endif
