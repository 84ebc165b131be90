/* lease.h: who holds what.  A holder is one session's part in one namespace: its pins (written by the client in its session page, and
 * by the daemon in @own for what is held by message) and its write leases on partial slots.
 */
#ifndef KVBMD_BLOCK_LEASE_H
#define KVBMD_BLOCK_LEASE_H

#include "block/namespace.h"
#include "block/quota.h"
#include "block/table.h"
#include "proto/shm_pin.h"

/* A slot being written, by one session or, with lanes, by several. */
struct partial {
	struct list by_deadline; /* in ns->partials; unlinked once aborted */
	struct list leases;      /* owns: struct lease */
	uint64_t deadline_ns;
	uint64_t lanes_open; /* nobody has reserved them */
	uint64_t lanes_done; /* committed */
	uint32_t slot, number;
	bool aborted; /* never visible; the slot waits in quarantine until no lease is left */
	bool keyed;
	uint8_t key[KEY_MAX];
	struct partial *next_same_key; /* borrows; another one for the same key */
	UT_hash_handle hh;
};

/* One session's right to write lanes of a partial slot. */
struct lease {
	struct list in_holder, in_partial;
	struct holder *holder;   /* borrows */
	struct partial *partial; /* borrows */
	uint64_t lanes;
};

struct holder {
	struct list in_ns;
	struct ns *ns;           /* borrows */
	struct quota_user *user; /* borrows */
	void *owner;             /* borrows: the session */
	struct shm_page *page;   /* borrows; the client writes it; NULL once closed */
	struct shm_page *own;    /* owns; pins of what is held by message, which we write, NULL until first used */
	uint64_t own_total;
	struct list leases; /* owns */
	uint32_t n_leases;
	uint64_t counted_looked_up, counted_hits; /* of the page: what the namespace's counts have already */
	bool writable, closed;
	void *memory; /* the store's */
};

void lease_holder_init(struct holder *h, struct ns *ns);
/* Its pins no longer count; its hits are remembered by the blocks. */
void lease_holder_unpin(struct holder *h);

/* Is @slot held by anybody?  *touch becomes the newest tick any session's pin tells, if that is newer. */
bool lease_is_held(struct ns *ns, uint32_t slot, uint32_t *touch);
/* Only "held", after a full fence: the second look of the drop protocol. */
bool lease_is_pinned(struct ns *ns, uint32_t slot);
void lease_prefetch(const struct ns *ns, uint32_t slot);
uint32_t lease_pins(const struct ns *ns, uint32_t slot, uint32_t *ret_holders);
/* Pins of one holder as its own counters claim, and as they really are (reads the whole page). */
uint64_t lease_claimed_pins(const struct holder *h);
uint64_t lease_counted_pins(const struct holder *h);

/* Holds by message. 0 or -ENOMEM / LEASE_E_NOTHELD. */
enum { LEASE_E_NOTHELD = 1, LEASE_E_STALE, LEASE_E_NOMEM };
int lease_hold(struct holder *h, uint32_t slot);
static inline __attribute__((always_inline)) void lease_hold_prefetch(const struct holder *h, uint32_t slot)
{
	if (h->own)
		__builtin_prefetch(&h->own[slot], 1);
}
bool lease_holds(const struct holder *h, uint32_t slot);
void lease_unhold(struct holder *h, uint32_t slot);

/* Writing.  @lanes: a mask.  lease_write_new() takes a free slot of the namespace. */
int lease_write_new(struct holder *h, const uint8_t *key, uint64_t lanes, uint64_t deadline_ns, uint32_t *ret_slot);
/* A partial with this key whose @lanes nobody has: its slot is shared from now on.  NS_NONE: there is none. */
uint32_t lease_write_join(struct holder *h, const uint8_t *key, uint64_t lanes);
bool lease_can_join(const struct ns *ns, const uint8_t *key, uint64_t lanes);
uint64_t lease_all_lanes(const struct ns *ns);
/* The lease on @slot of that generation for at least @lanes, or NULL. */
struct lease *lease_find(const struct holder *h, uint32_t slot, uint32_t generation, uint64_t lanes);
/* @lanes are written.  true: the whole block is; the caller registers it or frees the slot with lease_write_done(). */
bool lease_write_lanes(struct lease *lease, uint64_t lanes, struct partial **ret_partial);
/* Forgets the partial; the slot is the caller's.  Other leases on it end. */
void lease_write_done(struct ns *ns, struct partial *p);
/* The writer gives up (or is dead), and writes no more. */
void lease_abort(struct lease *lease);
/* The block will never be visible; its writers may still write.  For deadlines. */
void lease_partial_abort(struct ns *ns, struct partial *p);
void lease_tables_free(struct ns *ns);

static inline struct partial *lease_partial(const struct ns *ns, uint32_t slot)
{
	return ns->partial_at[ns->blocks[slot].parent];
}

#endif
