/* store_ns.h: inside the store: a namespace with its memory, and the calls between store*.c and space.c.  Not for others. */
#ifndef KVBMD_MOVE_STORE_NS_H
#define KVBMD_MOVE_STORE_NS_H

#include "block/block.h"
#include "block/lease.h"
#include "move/store.h"

struct store_retain {
	uint32_t slot, generation, priority;
	uint64_t until_ns;
};

struct store_ns {
	struct ns ns;        /* first; in store->namespaces */
	struct store *store; /* borrows */
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
	void (*on_pins)(void *ctx, void *owner, uint64_t pins);
	void *on_pins_ctx;
	struct store_victim *victims; /* owns; condemned in the request in hand */
	uint32_t n_victims, cap_victims;
	struct store_plan plan[STORE_MAX_PLAN];
	uint32_t n_plan;
	uint64_t seen_secret;
	uint32_t *seen, seen_epoch; /* owns; 2 * SEEN_SIZE words: what the request in hand named already */
};

static inline struct store_ns *store_ns_of(struct holder *h)
{
	return ((struct store_holder *)h)->sn;
}

static inline struct store_ns *store_ns_at(struct list *it)
{
	return container_of(container_of(it, struct ns, link), struct store_ns, ns);
}

struct store_ns *store_find(struct store *store, const char *name);
/* What @h matched in shared memory since the last time joins the counts of its namespace. */
void store_holder_count(struct holder *h);
/* Nobody is attached to it. */
void store_ns_free(struct store_ns *sn);

/* At least @n free slots in @sn, or STORE_E_NOSPACE and nothing was dropped (or -errno). *ret_dropped counts. */
int space_make(struct store *store, struct store_ns *sn, uint32_t n, uint32_t *ret_dropped);
/* Condemns @slot for the request in hand; space_settle() then lets the pinned ones live and, unless @undo, forgets the others. */
int space_condemn(struct store *store, struct ns *ns, uint32_t slot);
uint32_t space_settle(struct store *store, uint32_t from, enum why_reason reason, uint32_t *ret_kept);
void space_region_drop(struct store_ns *sn, uint32_t region);
/* Sets max_bytes: call after used_bytes went down or allowed_bytes changed. */
void store_ns_limit(struct store_ns *sn);

/* Has the request in hand named @x before?  store_seen_begin() first. */
void store_seen_begin(struct store *store);
bool store_seen(struct store *store, uint64_t x);

#endif
