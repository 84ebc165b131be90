/* store_ns.h: inside the store: a namespace with its memory, and the calls between store*.c and space.c.  Not for others. */
#ifndef KVBMD_MOVE_STORE_NS_H
#define KVBMD_MOVE_STORE_NS_H

#include "base/metrics.h"
#include "block/block.h"
#include "block/lease.h"
#include "move/store.h"

struct store_retain {
	uint32_t slot, generation, priority;
	uint64_t until_ns;
};

/* A device, and what is being copied between it and host memory; pool.c, device.c. */
struct store_pool {
	struct list link;    /* in store->pools */
	struct store *store; /* borrows */
	char device[STORE_DEVICE_CHARS];
	struct tier_device *tier;     /* borrows */
	struct device_copies *copies; /* owns */
	bool online;
};

struct store_ns {
	struct ns ns;        /* first; in store->namespaces */
	struct store *store; /* borrows */
	struct tier *tier;   /* borrows; of its regions */
	/* In device memory.  A block there is a copy of one in the namespace of the same name in host memory, or to become one. */
	struct store_pool *pool; /* borrows; NULL: host memory */
	struct store_ns *hub;    /* borrows; that namespace */
	uint32_t n_pools;        /* of host memory: those whose hub it is */
	bool lost;       /* its device is, and with it all that was in it: it goes when nobody uses it any more */
	uint64_t number; /* rises in the list of namespaces; never that of another */
	struct ns_desc desc;
	struct tier_object index, records; /* owns */
	struct tier_region *memory;        /* owns; one a region number */
	uint64_t used_bytes, share_bytes;
	uint64_t max_bytes;           /* never below used_bytes */
	uint64_t allowed_bytes;       /* what the policy says; max_bytes comes down to it as regions go */
	uint32_t zombies;             /* closed holders with slots in quarantine */
	uint32_t suspects;            /* holders whose pins are still to be counted, one a tick */
	struct store_retain *retains; /* owns */
	uint32_t n_retains, cap_retains;
	uint64_t barren_until_ns; /* there was nothing to drop: see space_own() */
	uint32_t sweep;           /* slot at which its next sweep begins */
	/* below host memory; ns.lower is NULL where there is no such tier for it */
	enum store_write write;
	uint32_t lower_areas, lower_share, lower_max; /* areas: had, guaranteed, at most */
	uint32_t n_transfers, n_onboards, n_copies;   /* copies: batches of device.c */
	uint32_t wanted;                              /* slots that somebody waits for; 0: nobody does */
	struct store_through *through; /* owns; a ring of STORE_THROUGH, NULL until first used; of a pool: for its hub */
	uint32_t through_head, through_tail;
	struct store_through *unsummed; /* owns; the same, of blocks without a checksum */
	uint32_t unsummed_head, unsummed_tail;
	uint32_t drain_next, drain_end; /* slots that are still to be written down whatever their heat */
	bool drain_more;                /* the last look at them ended only because it was long */
};

/* Committed, and to be looked at before it is cold. */
struct store_through {
	uint32_t slot, generation;
};
#define STORE_THROUGH 65536u

/* Copies between host memory and the tier below; transfer.c, onboard.c. */
#define MOVER_FOUND 16u

struct mover {
	struct transfer *pool;                 /* owns */
	struct list free, running, unsummed;   /* borrow from pool */
	uint32_t n_running, n_down, n_summing; /* n_down: of those running */
	uint32_t n_device;                     /* batches of device.c */
	struct summing *summing;               /* owns */
	struct scrub *scrub;                   /* owns */
	struct list onboards;                  /* borrows: struct store_onboard, begun and not done */
	struct list waiters;                   /* borrows: those of them that wait for room or for a transfer */
	struct list reserves;                  /* borrows: struct store_wait, by number */
	uint64_t n_waits, n_kicks;
	bool online, stopping;
	struct store_ns **area_ns; /* owns the table: whose an area of the tier is */
	struct mover_found {
		struct tier_tag tag;
		uint32_t area, place;
	} found[MOVER_FOUND]; /* by recovery: a ring of those whose turn has not come yet */
	uint64_t n_found;     /* in this recovery; the last MOVER_FOUND are in the ring */
};

struct store_holder {
	struct holder h;         /* first */
	struct store_ns *sn;     /* borrows */
	struct tier_object page; /* owns */
};

struct store_victim {
	struct ns *ns;
	uint32_t slot;
};

struct store_plan { /* a region that would be taken from another namespace */
	struct store_ns *sn;
	uint32_t region;
};
#define STORE_MAX_PLAN 64u
#define STORE_MAX_KEYS 16384u

struct store {
	struct store_config config;
	struct list namespaces; /* owns: struct store_ns */
	uint32_t n_namespaces;
	struct list pools; /* owns: struct store_pool */
	uint64_t last_number;
	void (*on_pins)(void *ctx, void *owner, uint64_t pins);
	void *on_pins_ctx;
	void (*on_lost)(void *ctx, void *owner, struct holder *h);
	void *on_lost_ctx;
	struct store_victim *victims; /* owns; condemned in the request in hand */
	uint32_t n_victims, cap_victims;
	struct store_plan plan[STORE_MAX_PLAN];
	uint32_t n_plan;
	uint64_t seen_secret;
	struct mover mover;
	uint32_t *seen, seen_epoch, seen_mask; /* owns; what the request in hand named already */
	struct shm_hash *hashes;               /* owns; STORE_MAX_KEYS: of the keys of the request in hand */
};

static inline struct store_ns *store_ns_of(struct holder *h)
{
	return ((struct store_holder *)h)->sn;
}

/* The counter of hits there. */
static inline enum metric store_ns_hits(const struct store_ns *sn)
{
	return sn->pool ? METRIC_hits_g1 : METRIC_hits_g2;
}

static inline struct store_ns *store_ns_at(struct list *it)
{
	return container_of(container_of(it, struct ns, link), struct store_ns, ns);
}

/* In host memory. */
struct store_ns *store_find(struct store *store, const char *name);
/* @pool NULL: in host memory. */
struct store_ns *store_find_in(struct store *store, const char *name, const struct store_pool *pool);
/* @salt NULL: one of this run. */
int store_ns_new(struct store *store, const struct ns_desc *desc, const uint64_t salt[2], struct store_pool *pool,
                 struct store_ns **ret_sn);
/* What @h matched in shared memory since the last time joins the counts of its namespace. */
void store_holder_count(struct holder *h);
/* Nobody is attached to it. */
void store_ns_free(struct store_ns *sn);

enum space_how {
	SPACE_NOW = 0, /* whatever it takes */
	SPACE_WAIT,    /* blocks still to be written down are not dropped while waiting for that can help */
	SPACE_CLEAN,   /* nor when it cannot: only what is free, clean or in grace, and nothing of others */
};
/* At least @n free slots in @sn, or STORE_E_NOSPACE or STORE_E_WAIT, and nothing was dropped (or -errno). *ret_dropped counts. */
int space_make(struct store *store, struct store_ns *sn, uint32_t n, enum space_how how, uint32_t *ret_dropped);
/* Of a pool: has memory been given back that it can soon have? */
bool space_is_coming(const struct store_ns *sn);
/* Could it get more memory without dropping anything? */
bool store_ns_can_grow(const struct store_ns *sn);
/* The clock of the order ticks if enough was placed; readers stamp pins with it. */
void store_ns_clock(struct ns *ns);
/* Recovery: the clock is at least @tick. */
void store_ns_clock_follow(struct store_ns *sn, uint32_t tick);
/* Recovery: the namespace of @desc, made if it is not there; NULL: cannot be. */
struct store_ns *store_ns_recover(struct store *store, const struct ns_desc *desc, const uint64_t salt[2]);

/* ---- store_lower.c ---- */
int store_lower_init(struct store_ns *sn);
void store_lower_deinit(struct store_ns *sn);
void store_lower_limits(struct store_ns *sn, const struct store_policy *policy);
void store_lower_tag(const struct ns *ns, const struct lower_what *what, struct tier_tag *ret_tag);
/* Drops all copies that are not being read.  Returns how many were, of blocks that are nowhere else. */

/* ---- waiters.c ---- */
/* A transfer ended, or the tier came or went: whoever waited goes on, and more is written down. */
void store_moved(struct store *store);
/* A device has gone: who waits for room in a pool there goes on, and is refused. */
void store_waits_lost(struct store *store);
void store_tick_waiters(struct store *store, uint64_t now_ns);
uint64_t store_next_waiter_ns(const struct store *store);
/* Condemns @slot for the request in hand; space_settle() then lets the pinned ones live and, unless @undo, forgets the others. */
int space_condemn(struct store *store, struct ns *ns, uint32_t slot);
uint32_t space_settle(struct store *store, uint32_t from, enum why_reason reason, uint32_t *ret_kept);
void space_region_drop(struct store_ns *sn, uint32_t region);
/* No copy names it any more: whoever was told of it, as host memory, is told so. */
void space_region_gone(const struct store_ns *sn, const struct tier_region *region);
/* Sets max_bytes: call after used_bytes went down or allowed_bytes changed. */
void store_ns_limit(struct store_ns *sn);

/* Has the request in hand named @x before?  store_seen_begin() first, for at most @n. */
void store_seen_begin(struct store *store, uint32_t n);
bool store_seen(struct store *store, uint64_t x);

#endif
