/* SPDX-License-Identifier: Apache-2.0 */
/* sim.h: one simulated node: the real store over a fake tier, clients that do what libkvbm does and worse, and beside them a model
 * that knows what must be true.
 *
 *   main.c    seeds, worker processes, the summary          world.c   a seed's node; sessions come and go
 *   model.c   what must be true after every event           memory.c  the client's side of shared memory: look-up, bytes
 *   write.c   reserve, commit, abort                        read.c    match, release, pins, hostile pages
 *   lower.c   the tier below: copies that end in any order, faults, onboards, waits, restarts of the store
 *   admin.c   hints, stat, why, flush, drop, remove, time, refused memory, a reload
 *
 * The model knows nothing of policy: which block is dropped for room it only sees afterwards, and then asks whether that block
 * might have been.  Everything else (who is answered what, every count) it predicts.
 */
#ifndef TESTS_SIM_SIM_H
#define TESTS_SIM_SIM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/rng.h"
#include "move/onboard.h"
#include "move/store_ns.h"
#include "tests/lib/fake_lower.h"

#define SIM_MAX_NS 4u
#define SIM_MAX_SESSIONS 6u
#define SIM_UIDS 3u
#define SIM_MAX_N 96u /* keys a request, at most */
#define SIM_REMEMBERED 4u
#define SIM_NO_KEY (-1)
#define SIM_ONBOARDS 6u
#define SIM_WAITS 4u

struct sim_block { /* of one key */
	bool present;
	bool doomed;                     /* expected to be dropped by the event in hand */
	bool wanted;                     /* named by the request in hand: not to be dropped for it */
	bool dropped;                    /* by the event in hand */
	bool released;                   /* by hint */
	bool below;                      /* has a copy in the tier below */
	bool lived;                      /* was somewhere when the daemon was killed */
	bool linked;                     /* its parent, which is here, knows of it */
	int32_t parent, parent_below;    /* as the copy there says */
	uint32_t slot, generation, left; /* left: scratch of whoever counts children */
};

struct sim_partial {
	uint32_t slot, generation, n_leases; /* slot SHM_NO_SLOT: this element is free */
	int32_t key;                         /* SIM_NO_KEY: reserved without one */
	uint64_t open, done, deadline_ns;    /* masks of lanes */
	bool aborted;
};

struct sim_lease {
	uint32_t partial; /* in sim_ns.partials */
	uint64_t lanes;
};

struct sim_ns {
	struct ns_desc desc;
	struct store_ns *sn; /* borrows; NULL: not there */
	const struct store_policy *policy;
	uint32_t n_keys, n_slots; /* slot numbers are below n_slots */
	int32_t *tree;            /* natural parent of each key */
	struct sim_block *blocks;
	struct sim_partial *partials;
	uint32_t n_partials;
	uint32_t *generations; /* the last one handed out of each slot */
	struct ns_counts counts;
	bool garbled; /* a hostile client wrote into the counters that are summed here */
};

struct sim_holder {            /* a session in a namespace */
	struct holder *h;      /* NULL: none */
	struct shm_page *page; /* NULL: closed, waits for holder_dead() */
	bool writable;
	struct sim_lease *leases;
	uint32_t n_leases, cap_leases;
	uint16_t *held, *pins; /* by message, in shared memory; one a slot */
	uint64_t n_held, n_pins, looked_up, hits;
	struct shm_entry remembered[SIM_REMEMBERED]; /* looked up earlier, not pinned then */
	int32_t remembered_key[SIM_REMEMBERED];
};

enum sim_session_state { SESSION_NONE, SESSION_OPEN, SESSION_ZOMBIE };
struct sim_session {
	enum sim_session_state state;
	uint32_t uid, number;
	bool hostile, too_many_pins;
	struct quota_user user;
	struct sim_holder in[SIM_MAX_NS];
};

struct sim_onboard {
	struct store_onboard o;
	bool active, finished;
	struct sim *w;
	struct sim_session *s;
	struct sim_ns *ns;
	int32_t key[SIM_MAX_N];
	uint8_t keys[SIM_MAX_N * KEY_MAX], status[SIM_MAX_N];
	uint32_t slots[SIM_MAX_N], generations[SIM_MAX_N];
	struct onboard_want wants[SIM_MAX_N];
};

struct sim_wait {
	struct store_wait wait;
	bool active;
	struct sim_session *s;
	struct sim_ns *ns;
};

enum sim_drops {
	DROPS_NONE,
	DROPS_DOOMED, /* exactly the blocks marked so */
	DROPS_ROOM,   /* the request's own leaves, and regions of others */
};

struct sim {
	uint64_t seed, now_ns, event, n_events;
	const char *doing;
	bool verbose;
	struct rng rng;
	struct tier *tier;
	struct store *store;
	struct store_config config;
	struct store_policy policies[SIM_MAX_NS];
	uint32_t policy_uids[1];
	struct quota uids[SIM_UIDS];
	struct sim_ns ns[SIM_MAX_NS];
	struct sim_session sessions[SIM_MAX_SESSIONS];
	uint32_t n_ns, max_namespaces;
	bool with_memory, with_lower, similar_keys, cyclic, fault_armed;
	struct tier_lower *lower; /* NULL: there is none */
	struct fake_sums *sums;
	struct sim_onboard onboards[SIM_ONBOARDS];
	struct sim_wait waits[SIM_WAITS];
	/* what the event in hand may drop */
	enum sim_drops drops;
	uint32_t drops_ns, told_dropped, n_dropped;
};

/* ---- main.c ---- */
void sim_failed(const struct sim *w, const char *condition, const char *file, int line) __attribute__((noreturn));
void sim_say(const struct sim *w, const char *format, ...) __attribute__((format(printf, 2, 3)));
#define sim_must(w, condition) ((condition) ? (void)0 : sim_failed((w), #condition, __FILE__, __LINE__))

static inline uint32_t sim_below(struct sim *w, uint64_t n)
{
	return (uint32_t)rng_below(&w->rng, n);
}

static inline bool sim_chance(struct sim *w, unsigned percent)
{
	return rng_chance(&w->rng, percent);
}

/* ---- world.c ---- */
void sim_world_new(struct sim *w, uint64_t seed);
/* Everybody leaves; nothing may be left. */
void sim_world_free(struct sim *w);
void sim_attach(struct sim *w);
void sim_leave(struct sim *w, struct sim_session *s, bool dead);
void sim_zombie_dies(struct sim *w, struct sim_session *s);
/* A session in that state, or NULL. */
struct sim_session *sim_session(struct sim *w, enum sim_session_state state);
/* An attached holder, or NULL. */
struct sim_holder *sim_holder(struct sim *w, struct sim_session **ret_session, struct sim_ns **ret_ns);

/* ---- model.c ---- */
void sim_check(struct sim *w);
/* Is @slot pinned or held by anybody?  The other: or in use by the store itself? */
bool sim_is_pinned(const struct sim *w, const struct sim_ns *ns, uint32_t slot);
bool sim_is_held(const struct sim *w, const struct sim_ns *ns, uint32_t slot);
bool sim_is_present(const struct sim_ns *ns, int32_t key);
uint64_t sim_all_lanes(const struct sim_ns *ns);
/* How many blocks of @ns could be dropped, leaves first, with those named by the request in hand kept. */
uint32_t sim_droppable(const struct sim *w, struct sim_ns *ns);
uint32_t sim_children(const struct sim_ns *ns, int32_t key);
struct sim_partial *sim_partial_at(struct sim_ns *ns, uint32_t slot, uint32_t generation);
uint32_t sim_partial_new(struct sim_ns *ns);
void sim_partial_abort(struct sim_ns *ns, struct sim_partial *p);
void sim_lease_add(struct sim_holder *sh, uint32_t partial, uint64_t lanes);
/* Ends a lease; the partial is free when it was aborted and this was its last. */
void sim_lease_end(struct sim_ns *ns, struct sim_holder *sh, uint32_t i);
/* Index in @sh->leases of one that covers @lanes of the slot, or -1. */
int32_t sim_lease_find(const struct sim_ns *ns, const struct sim_holder *sh, uint32_t slot, uint32_t generation,
                       uint64_t lanes);

/* ---- memory.c ---- */
uint32_t sim_index(const struct sim *w, const struct sim_ns *ns);
void sim_key(const struct sim *w, const struct sim_ns *ns, int32_t key, uint8_t *ret_bytes);
/* Keys of a request, @n of them packed; returns n.  @repeats: the same one may come again. */
uint32_t sim_pick_keys(struct sim *w, const struct sim_ns *ns, int32_t *ret_keys, uint32_t max);
void sim_pack_keys(const struct sim *w, const struct sim_ns *ns, const int32_t *keys, uint32_t n, uint8_t *ret_bytes);
/* As a client does it, from shared memory alone. */
bool sim_look_up(const struct sim *w, const struct sim_ns *ns, const uint8_t *key, struct shm_entry *ret_entry);
/* What the writer puts there, or garbage (@key SIM_NO_KEY). */
void sim_write_bytes(struct sim *w, struct sim_ns *ns, uint32_t slot, uint64_t lanes, int32_t key);
void sim_read_bytes(const struct sim *w, const struct sim_ns *ns, uint32_t slot, int32_t key);

/* ---- lower.c ---- */
void sim_lower_new(struct sim *w, uint64_t pool);
void sim_lower_free(struct sim *w);
/* What @s waits for in @ns, or in all of them (NULL), is cancelled. */
void sim_lower_leave(struct sim *w, const struct sim_session *s, const struct sim_ns *ns);
/* Who waits for room. */
void sim_wait_begin(struct sim *w, struct sim_session *s, struct sim_ns *ns, uint32_t need);
/* Everything that moves ends, in any order. */
void sim_settle(struct sim *w);
/* Onboards that ended in the event: what they said is so. */
void sim_onboards_check(struct sim *w);

/* ---- world.c ---- */
void sim_store_new(struct sim *w);
void sim_ns_appears(struct sim *w, struct sim_ns *ns);
void sim_ns_forget(struct sim_ns *ns);
void sim_everybody_leaves(struct sim *w);

/* ---- events ---- */
void sim_churn(struct sim *w);
void sim_onboard(struct sim *w);
void sim_move(struct sim *w);
void sim_lower_fault(struct sim *w);
void sim_restart(struct sim *w);
void sim_reserve(struct sim *w);
void sim_commit(struct sim *w);
void sim_abort(struct sim *w);
void sim_scribble(struct sim *w);
void sim_match(struct sim *w);
void sim_release(struct sim *w);
void sim_pin(struct sim *w);
void sim_unpin(struct sim *w);
void sim_hostile(struct sim *w);
void sim_hint(struct sim *w);
void sim_stat(struct sim *w);
void sim_inspect(struct sim *w);
void sim_flush(struct sim *w);
void sim_drop(struct sim *w);
void sim_remove(struct sim *w);
void sim_tick(struct sim *w);
void sim_fault(struct sim *w);
void sim_configure(struct sim *w);

#endif
