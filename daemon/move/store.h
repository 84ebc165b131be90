/* store.h: the blocks of this node.  Ties the pure state of block/ (namespaces, index, heat, leases, quotas) to the host
 * tier's memory, and is all that handlers see of both.  Does no I/O beyond asking the tier for regions, reads no clock.
 *
 * Loop thread only.  Time is an argument, nanoseconds of any monotonic clock.
 */
#ifndef KVBMD_MOVE_STORE_H
#define KVBMD_MOVE_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "block/desc.h"
#include "block/key.h"
#include "block/quota.h"
#include "block/why.h"
#include "move/mover.h"
#include "base/list.h"
#include "tier/tier.h"

enum {
	STORE_E_INVAL = 1, /* arguments contradict the namespace (lane, length, number of keys, slot named twice) */
	STORE_E_MISMATCH,  /* namespace exists with another fingerprint */
	STORE_E_PERM,      /* uid may not use it, or session may not write */
	STORE_E_LIMIT,     /* a limit of the session, the uid or the daemon */
	STORE_E_NOSPACE,   /* free + droppable < n; nothing was dropped */
	STORE_E_STALE,     /* slot is not this holder's to write */
	STORE_E_NOTHELD,   /* released what is not held; nothing changed */
	STORE_E_NOENT,
	STORE_E_QUARANTINE, /* see store_close() */
	STORE_E_WAIT,       /* not now: worth waiting for copies to the tier below */
	STORE_E_OFFLINE,    /* its device is lost for now */
};

#define STORE_NO_SLOT UINT32_MAX
#define STORE_ALL_LANES UINT32_MAX
#define STORE_DEVICE_CHARS 48u

struct store;
struct ns;
struct holder; /* what one session has in one namespace */

/* Which blocks are written to the tier below. */
enum store_write {
	STORE_WRITE_ON_EVICT = 0, /* those that host memory would drop, shortly before */
	STORE_WRITE_THROUGH,      /* all, soon after commit */
	STORE_WRITE_IF_HIT,       /* as on evict, if they were used after they came */
	STORE_WRITE_NEVER,
};

/* Policy of a namespace as configured; applies to the name when it is created. */
struct store_policy {
	char name[64];
	uint64_t share_bytes;                          /* guaranteed; 0: none */
	uint64_t max_bytes;                            /* UINT64_MAX: the whole pool */
	uint64_t lower_share_bytes, lower_max_bytes;   /* the same of the tier below */
	uint64_t device_share_bytes, device_max_bytes; /* and of each device's pool */
	enum store_write write;
	const uint32_t *uids; /* borrows; who may attach */
	uint32_t n_uids;      /* 0: anybody */
};

struct store_config {
	struct tier *host;                   /* borrows */
	const struct store_policy *policies; /* borrows */
	uint32_t n_policies;
	uint32_t max_namespaces;
	uint32_t grace_percent; /* of a namespace's slots, for blocks released by hint */
	uint32_t why_entries;   /* remembered misses and drops a namespace */
	uint64_t write_timeout_ns;
	uint64_t boot_id;
	struct tier_watch watch; /* region_seen NULL: nobody */
	/* below host memory */
	struct tier_lower *lower;           /* borrows; NULL: there is no such tier */
	struct mover_calculator calculator; /* borrows its ctx */
	uint32_t max_transfers;             /* at a time */
	uint32_t low_percent;               /* of a namespace's slots: kept free or clean */
	uint32_t scrub_percent; /* of what is below, in an hour: looked at while there is nothing else to do; 0: none */
	enum store_write write; /* where no policy says otherwise */
};

int store_new(const struct store_config *config, struct store **ret_store);
/* All holders must be closed. */
struct store *store_free(struct store *store);

/* What a re-read configuration may change: policies, write_timeout_ns and scrub_percent; the rest of @config is not looked at.  Namespaces that
 * exist follow their policy: one that has more than its new maximum gets no more memory until it has less; none grows beyond
 * the maximum it was made with, which its index is cut for. */
void store_configure(struct store *store, const struct store_config *config);

/* Attaches @uid's session to the namespace of @desc, creating it at first use.  @user is charged for what the holder takes and must outlive
 * it (also while quarantined).  Outcomes: MISMATCH (*ret_have is the existing fingerprint, ret_want the given one), PERM, LIMIT, NOSPACE,
 * INVAL; with @device NOENT (there is no pool on such a device), OFFLINE. */
struct store_attach {
	const struct ns_desc *desc;
	const char *device; /* borrows; NULL: host memory; else the namespace's pool there */
	uint32_t uid;
	bool readonly;
	struct quota_user *user; /* borrows */
	void *owner;             /* opaque: the session, for reports and store_on_evict_holder */
};
int store_attach(struct store *store, const struct store_attach *args, struct holder **ret_holder, uint8_t ret_have[16],
                 uint8_t ret_want[16]);

/* Does the policy of that name let @uid in? */
bool store_may_use(const struct store *store, const char *name, uint32_t uid);

/* Another holder in @h's namespace, with its rights, that outlives it: what it has is charged to @user.  Nobody maps its page.  Outcome:
 * NOSPACE. */
int store_attach_beside(struct holder *h, struct quota_user *user, struct holder **ret_holder);

/* What the attach and region replies need.  Descriptors are borrowed: dup before sending. */
struct store_objects {
	const uint8_t *fingerprint; /* 16 */
	uint64_t lane_bytes;
	int index_ro_fd, records_ro_fd, page_fd;
	bool writable;
	uint32_t key_bytes, lanes;
};
void holder_objects(const struct holder *h, struct store_objects *ret_objects);
/* Outcome: NOENT (no such region now). */
int holder_region(const struct holder *h, uint32_t serial, const struct tier_region **ret_region);
/* Where @lane's slice of @slot is; false: there is no such slot now.  @ret_offset: in the region. */
bool holder_slot(const struct holder *h, uint32_t slot, uint32_t lane, const struct tier_region **ret_region,
                 uint64_t *ret_offset);
bool holder_is_writable(const struct holder *h);
const char *holder_ns_name(const struct holder *h);
const char *holder_device(const struct holder *h);    /* of its pool; NULL: host memory */
uint32_t holder_block_tokens(const struct holder *h); /* of one block */

/* Ends a session's part in a namespace: its pins, holds and reservations are gone.  Slots it could still write go to quarantine
 * unless @dead (its process is known to have exited).  0: the holder is freed.  STORE_E_QUARANTINE: it is kept, owns nothing visible,
 * and the caller must call holder_dead() once the process is known dead. */
int holder_close(struct holder *h, bool dead);
void holder_dead(struct holder *h);

/* keys: n * key_bytes packed, or NULL.  slots/generations: n each, NO_SLOT for a key that is present or repeated.
 * Outcomes: INVAL, PERM, LIMIT, NOSPACE, OFFLINE; WAIT unless @now: nothing was done, try again when a struct store_wait is called. */
struct store_reserve {
	const uint8_t *keys;
	uint32_t n, lane;
	bool now; /* do not wait for copies: drop what is not below yet */
	uint64_t now_ns;
	uint32_t *slots, *generations; /* out */
	uint32_t reserved, dropped;    /* out */
	uint32_t wanted;               /* out: slots it takes, for store_wait() */
};
int store_reserve(struct holder *h, struct store_reserve *args);

enum { STORE_NEW = 1, STORE_EXISTED = 2, STORE_LANES_MISSING = 3 };
struct store_commit {
	const uint32_t *slots_in, *generations_in;
	const uint8_t *keys;
	const uint8_t *parents; /* n_parents * key_bytes */
	uint32_t n, n_parents;  /* n_parents: 0, 1 or n */
	uint32_t lane;
	uint64_t length, now_ns;
	bool hold;
	uint32_t *slots, *generations; /* out, n */
	uint8_t *states;               /* out, n */
};
/* All or nothing.  Outcomes: INVAL, STALE, PERM, LIMIT. */
int store_commit(struct holder *h, struct store_commit *args);

/* Outcomes: INVAL, STALE. */
int store_abort(struct holder *h, uint32_t lane, const uint32_t *slots, const uint32_t *generations, uint32_t n);

struct store_match {
	const uint8_t *keys;
	uint32_t n;
	bool scattered, hold;
	uint64_t now_ns;
	uint32_t *slots, *generations; /* out, n */
	uint32_t hits;                 /* out */
};
/* Outcomes: LIMIT (holds of this session). */
int store_match(struct holder *h, struct store_match *args);

/* Lets go of what match and commit messages held.  Outcome: NOTHELD; nothing changed then. */
int store_release(struct holder *h, const uint32_t *slots, const uint32_t *generations, uint32_t n);

enum store_hint { STORE_HINT_RELEASE = 1, STORE_HINT_RETAIN, STORE_HINT_TOUCH };
struct store_hint_args {
	enum store_hint hint;
	const uint8_t *keys;
	uint32_t n, ttl_ms, priority;
	uint64_t now_ns;
};
/* Outcome: INVAL. */
int store_hint(struct holder *h, const struct store_hint_args *args, uint32_t *ret_known);

/* One byte a key: STORE_IN_*. */
enum { STORE_IN_G1 = 1, STORE_IN_G2 = 2, STORE_IN_G3 = 4 };
void store_stat(struct holder *h, const uint8_t *keys, uint32_t n, uint8_t *ret_tiers, uint32_t *ret_present);

/* Drops these blocks (children included are not: they stay as orphans).  Outcomes: NOENT (namespace), INVAL (key size). */
struct store_drop {
	const char *name;    /* of the namespace */
	const uint8_t *keys; /* n * key_bytes */
	uint32_t n, key_bytes;
	uint32_t dropped, kept; /* out */
};
int store_drop(struct store *store, struct store_drop *args);
/* Begins to write down whatever is not below yet, of one namespace or all (name NULL), as fast as copies go; once through all slots.
 * *ret_begun: blocks that are to be written; *ret_cannot: those of namespaces that the tier below does not take, or that are not to write there.
 * Progress is in the reports.  Outcome: NOENT. */
int store_drain(struct store *store, const char *name, uint32_t *ret_begun, uint32_t *ret_cannot);
/* Drops what is not in use, of one namespace with its pools or of all (@name NULL), in steps of bounded work.  @remove: and then the namespace, if nobody is
 * attached to it then.  Outcomes of begin: NOENT; LIMIT (@remove, and somebody is attached now).  A step answers whether that was
 * all; a @budget of 16384 is about 500 blocks.  What is stored meanwhile goes too, or not. */
struct store_flush {
	uint32_t dropped, kept; /* out */
	/* where it is */
	bool one, remove, below;
	uint64_t number, only;
	uint32_t area, place;
};
int store_flush_begin(struct store *store, const char *name, bool remove, struct store_flush *ret_flush);
bool store_flush_step(struct store *store, struct store_flush *flush, uint32_t budget);
/* The same at once. */
int store_flush(struct store *store, const char *name, uint32_t *ret_dropped, uint32_t *ret_kept);
int store_remove(struct store *store, const char *name, uint32_t *ret_dropped);

/* Deadlines of reservations, expired retains, pin limits.  Call about once a second, or at store_next_ns(). */
void store_tick(struct store *store, uint64_t now_ns);
uint64_t store_next_ns(const struct store *store); /* UINT64_MAX: nothing is due */

/* Called (from store_tick or store_reserve) when a holder keeps more pins than its limit: the caller disconnects it. */
void store_on_pins(struct store *store, void (*cb)(void *ctx, void *owner, uint64_t pins), void *ctx);

/* Device memory joins, for good: once it is online, sessions may attach to namespaces' pools in it.  @tier->user becomes the store's. */
int store_pool_add(struct store *store, const char *device, struct tier_device *tier);
/* Called when a device was lost, for each holder in a pool there: all it had is void, and the caller closes it. */
void store_on_lost(struct store *store, void (*cb)(void *ctx, void *owner, struct holder *h), void *ctx);

/* Sets the gauges of base/metrics.def, and counts what clients have matched in shared memory since the last time. */
void store_metrics(struct store *store);

/* ---- reports; all values are a snapshot ---- */
struct ns_report {
	const char *name;
	const char *device; /* of a pool; NULL: host memory */
	bool offline;       /* a pool whose device went */
	const struct ns_desc *desc;
	const uint8_t *fingerprint;
	uint64_t share_bytes, max_bytes, used_bytes;
	uint32_t n_slots, free, used, quarantined, partial, regions, holders;
	uint32_t max_slots; /* with all its maximum */
	uint32_t leaves_parked, grace;
	uint64_t stored, dropped, deduplicated, aborted, looked_up, hits, hits_lower, misses;
	uint64_t pins, holds;
	uint32_t lower_max_slots, lower_slots, lower_free, lower_used, lower_writing, lower_stuck, lower_retired, twins,
		transfers, clean;
	uint64_t lower_bytes, lower_metadata_bytes, offloaded, onboarded, lost;
	uint32_t draining; /* slots that store_drain() has still to look at */
	const char *write;
	uint64_t metadata_bytes;
};
uint32_t store_n_namespaces(const struct store *store);
void store_report(struct store *store, uint32_t i, struct ns_report *ret_report);

struct holder_report {
	const char *ns_name, *device; /* NULL: host memory */
	uint32_t writing, quarantined;
	uint64_t pins, holds, looked_up, hits;
	bool writable;
};
void holder_report(const struct holder *h, struct holder_report *ret_report);

struct block_report {
	struct key key, parent;
	bool has_parent, parent_present;
	uint8_t tiers; /* STORE_IN_*; what follows is of host memory but for lower_*, and NO_SLOT where it is not there */
	uint32_t slot, generation, children, pins, holders;
	const char *state;
	uint64_t region;
	uint32_t child_slots[16], n_child_slots; /* a few, as far as they were found */
	struct key child_keys[16];
	uint32_t lower_area, lower_place, lower_reads;
};
/* Outcome: NOENT. */
int store_block(struct store *store, const char *name, const struct key *key, struct block_report *ret_report);
/* Why was @key a miss?  Outcome: NOENT (namespace).  See block/why.h. */
int store_why(struct store *store, const char *name, const struct key *key, uint64_t now_ns, struct why_answer *ret_answer);

/* Checks every identity of BEHAVIOUR 6 and every internal invariant; asserts. For tests and `kvbmctl doctor`. */
void store_check(struct store *store);

#endif
