/* What sessions do with blocks: reserve, commit, abort, match, release, hint, stat.  Each call validates all of its arguments before it
 * changes anything, so that a refused request leaves no trace.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/metrics.h"
#include "base/thread.h"
#include "move/transfer.h"

#define STORE_MAX_RETAINS 65536u

/* The mask of the lanes a request means; 0: there is no such lane. */
static uint64_t store_lanes(const struct ns *ns, uint32_t lane)
{
	if (lane == STORE_ALL_LANES)
		return lease_all_lanes(ns);
	return lane < ns->desc->lanes ? 1ull << lane : 0;
}

void store_ns_clock(struct ns *ns)
{
	uint32_t clock = heat_tick(&ns->heat);

	atomic_store_explicit(&ns->shm->clock, clock, memory_order_relaxed);
}

#define STORE_AHEAD 16u

/* store->hashes[i] becomes that of key i, and what a look-up of it reads first is on its way. */
static inline __attribute__((always_inline)) void store_hash_ahead(struct holder *h, const uint8_t *keys, uint32_t n,
                                                                   uint32_t i)
{
	struct ns *ns = h->ns;
	struct shm_hash *hash = &store_ns_of(h)->store->hashes[i];

	if (i >= n)
		return;
	*hash = index_hash(&ns->index, keys + (size_t)i * ns->desc->key_bytes);
	index_prefetch(&ns->index, *hash);
}

/* ---- reserve ---- */

enum { RESERVE_NEW = STORE_NO_SLOT - 1, RESERVE_JOIN = STORE_NO_SLOT - 2 };

/* Sorts the keys into present (held until space is made), repeated, to be joined, and to be made. */
static void store_reserve_sort(struct holder *h, struct store_reserve *a, uint64_t lanes, uint32_t *ret_new,
                               uint32_t *ret_join)
{
	struct ns *ns = h->ns;
	struct store *store = store_ns_of(h)->store;
	uint32_t kb = ns->desc->key_bytes;

	*ret_new = *ret_join = 0;
	store_seen_begin(store, a->n);
	for (uint32_t i = 0; a->keys && i < STORE_AHEAD; i++)
		store_hash_ahead(h, a->keys, a->n, i);
	for (uint32_t i = 0; i < a->n; i++) {
		const uint8_t *key = a->keys ? a->keys + (size_t)i * kb : NULL;
		uint32_t slot = key ? block_find_hashed(ns, key, store->hashes[i]) : NS_NONE;

		if (key)
			store_hash_ahead(h, a->keys, a->n, i + STORE_AHEAD);
		a->generations[i] = STORE_NO_SLOT;
		if (slot != NS_NONE) {
			a->slots[i] = STORE_NO_SLOT;
			if (lease_hold(h, slot) == 0)
				a->generations[i] = slot; /* let go in store_reserve_let_go() */
		} else if (key && store_seen(store, store->hashes[i].tag)) {
			a->slots[i] = STORE_NO_SLOT;
		} else if (key && lease_can_join(ns, key, lanes)) {
			a->slots[i] = RESERVE_JOIN;
			(*ret_join)++;
		} else {
			a->slots[i] = RESERVE_NEW;
			(*ret_new)++;
		}
	}
}

static void store_reserve_let_go(struct holder *h, struct store_reserve *a)
{
	for (uint32_t i = 0; i < a->n; i++) {
		if (a->slots[i] == STORE_NO_SLOT && a->generations[i] != STORE_NO_SLOT)
			lease_unhold(h, a->generations[i]);
		a->generations[i] = 0;
	}
}

static void store_reserve_refused(struct holder *h, const struct store_reserve *a, enum why_reason reason)
{
	struct ns *ns = h->ns;

	metrics_add(METRIC_reserves_refused, reason == WHY_NO_SPACE);
	for (uint32_t i = 0; a->keys && i < a->n; i++)
		if (a->slots[i] == RESERVE_NEW)
			why_note(ns->why, index_hash(&ns->index, a->keys + (size_t)i * ns->desc->key_bytes).tag, reason,
			         a->now_ns);
}

/* There was no room.  Pins that are more than allowed may be why, here or where memory would have come from. */
static void store_suspect_all(struct store *store)
{
	list_for_each(it, &store->namespaces)
		store_ns_at(it)->suspects = store_ns_at(it)->ns.n_holders;
}

/* Makes the leases; -ENOMEM undoes those made so far. */
static int store_reserve_take(struct holder *h, struct store_reserve *a, uint64_t lanes)
{
	struct ns *ns = h->ns;
	uint64_t deadline = a->now_ns + store_ns_of(h)->store->config.write_timeout_ns;
	uint32_t left = a->n, r = 0;

	for (uint32_t i = 0; i < a->n && r == 0; i++) {
		const uint8_t *key = a->keys ? a->keys + (size_t)i * ns->desc->key_bytes : NULL;

		left = i;
		if (a->slots[i] == STORE_NO_SLOT)
			continue;
		if (a->slots[i] == RESERVE_JOIN) {
			a->slots[i] = lease_write_join(h, key, lanes);
			r = a->slots[i] == NS_NONE;
		} else {
			r = (uint32_t)lease_write_new(h, key, lanes, deadline, &a->slots[i]);
		}
		if (r == 0) {
			a->generations[i] = ns_slot_generation(ns, a->slots[i]);
			a->reserved++;
		}
	}
	if (r == 0)
		return 0;
	for (uint32_t i = 0; i < left; i++)
		if (a->slots[i] != STORE_NO_SLOT)
			lease_abort(lease_find(h, a->slots[i], a->generations[i], lanes));
	for (uint32_t i = left; i < a->n; i++)
		if (a->slots[i] != STORE_NO_SLOT || i == left)
			quota_return(h->user, QUOTA_SLOTS, 1); /* charged, never leased */
	return -ENOMEM;
}

int store_reserve(struct holder *h, struct store_reserve *a)
{
	struct ns *ns = h->ns;
	uint64_t lanes = store_lanes(ns, a->lane);
	uint32_t fresh, joins;
	int r;

	thread_assert(THREAD_LOOP);
	assert(!h->closed && a->n <= STORE_MAX_KEYS);
	a->reserved = a->dropped = 0;
	ns->now_ns = a->now_ns;
	if (!h->writable)
		return STORE_E_PERM;
	if (store_ns_of(h)->lost)
		return STORE_E_OFFLINE;
	if (lanes == 0 || (ns->desc->lanes > 1 && !a->keys && a->n > 0))
		return STORE_E_INVAL;
	store_reserve_sort(h, a, lanes, &fresh, &joins);
	if (quota_charge(h->user, QUOTA_SLOTS, fresh + joins) != 0) {
		store_reserve_refused(h, a, WHY_OVER_QUOTA);
		store_reserve_let_go(h, a);
		return STORE_E_LIMIT;
	}
	a->wanted = fresh;
	r = space_make(store_ns_of(h)->store, store_ns_of(h), fresh, a->now ? SPACE_NOW : SPACE_WAIT, &a->dropped);
	if (r == STORE_E_WAIT && offload_for(store_ns_of(h), fresh))
		r = space_make(store_ns_of(h)->store, store_ns_of(h), fresh, SPACE_WAIT, &a->dropped);
	if (r != 0) {
		if (r != STORE_E_WAIT) {
			store_suspect_all(store_ns_of(h)->store);
			store_reserve_refused(h, a, WHY_NO_SPACE);
		}
		quota_return(h->user, QUOTA_SLOTS, fresh + joins);
	}
	store_reserve_let_go(h, a);
	if (r == 0)
		r = store_reserve_take(h, a, lanes);
	metrics_add(METRIC_reserves, a->reserved);
	if (ns->lower)
		(void)offload_run(store_ns_of(h)->store);
	return r;
}

/* ---- commit ---- */

static const uint8_t *store_commit_parent(const struct ns *ns, const struct store_commit *a, uint32_t i)
{
	uint32_t kb = ns->desc->key_bytes;
	const uint8_t *parent;

	if (a->n_parents == a->n && a->n_parents > 1)
		parent = a->parents + (size_t)i * kb;
	else if (i > 0)
		parent = a->keys + (size_t)(i - 1) * kb;
	else
		parent = a->n_parents ? a->parents : NULL;
	return parent && !key_is_zero(parent, kb) ? parent : NULL;
}

static int store_commit_check(struct holder *h, const struct store_commit *a, uint64_t lanes)
{
	struct ns *ns = h->ns;
	struct store *store = store_ns_of(h)->store;
	uint32_t kb = ns->desc->key_bytes;
	bool stale = false;

	if (!h->writable)
		return STORE_E_PERM;
	if (lanes == 0 || a->length != ns->desc->lane_bytes || (a->n_parents > 1 && a->n_parents != a->n))
		return STORE_E_INVAL;
	store_seen_begin(store, a->n);
	for (uint32_t i = 0; i < a->n; i++) {
		const struct lease *lease = lease_find(h, a->slots_in[i], a->generations_in[i], lanes);

		if (i + STORE_AHEAD < a->n && ns_slot_valid(ns, a->slots_in[i + STORE_AHEAD])) {
			__builtin_prefetch(&ns->blocks[a->slots_in[i + STORE_AHEAD]], 1, 3);
			__builtin_prefetch(&ns->records[a->slots_in[i + STORE_AHEAD]].generation, 1, 3);
		}
		if (store_seen(store, a->slots_in[i]) || key_is_zero(a->keys + (size_t)i * kb, kb))
			return STORE_E_INVAL;
		if (lease && lease->partial->keyed && memcmp(lease->partial->key, a->keys + (size_t)i * kb, kb) != 0)
			return STORE_E_INVAL;
		stale |= !lease || lease->partial->aborted;
	}
	if (!stale)
		return 0;
	/* Whoever commits has stopped writing: what missed its deadline leaves quarantine. */
	for (uint32_t i = 0; i < a->n; i++) {
		struct lease *lease = lease_find(h, a->slots_in[i], a->generations_in[i], lanes);

		if (lease && lease->partial->aborted)
			lease_abort(lease);
	}
	return STORE_E_STALE;
}

/* Key i and its parent, with their hashes: of a chain the parent is mostly the key before. */
static void store_commit_what(struct holder *h, const struct store_commit *a, uint32_t i, struct block_new *ret)
{
	const struct ns *ns = h->ns;
	const struct shm_hash *hashes = store_ns_of(h)->store->hashes;
	uint32_t kb = ns->desc->key_bytes;

	*ret = (struct block_new){ .key = a->keys + (size_t)i * kb,
		                   .parent_key = store_commit_parent(ns, a, i),
		                   .hash = hashes[i] };
	if (!ret->parent_key)
		return;
	if (i > 0 && memcmp(ret->parent_key, ret->key - kb, kb) == 0)
		ret->parent_hash = hashes[i - 1];
	else
		ret->parent_hash = index_hash(&ns->index, ret->parent_key);
}

static uint8_t store_commit_one(struct holder *h, const struct store_commit *a, uint32_t i, uint64_t lanes)
{
	struct ns *ns = h->ns;
	uint32_t slot = a->slots_in[i], canonical = slot;
	struct block_new what;
	struct lease *lease = lease_find(h, slot, a->generations_in[i], lanes);
	struct partial *p;
	int r;

	a->slots[i] = slot;
	a->generations[i] = a->generations_in[i];
	if (!lease_write_lanes(lease, lanes, &p))
		return STORE_LANES_MISSING;
	lease_write_done(ns, p);
	store_commit_what(h, a, i, &what);
	r = block_register_hashed(ns, slot, &what, &canonical);
	if (r == 0)
		return STORE_NEW;
	ns_slot_free(ns, slot, SHM_PARTIAL);
	ns->counts.stored++;
	metrics_add(METRIC_blocks_stored, 1);
	if (r == BLOCK_E_EXISTS) {
		ns->counts.deduplicated++;
		metrics_add(METRIC_blocks_deduplicated, 1);
		heat_touch(&ns->heat, canonical);
		a->slots[i] = canonical;
		a->generations[i] = ns_slot_generation(ns, canonical);
		return STORE_EXISTED;
	}
	ns->counts.dropped++; /* its part of the index is full: stored and dropped at once */
	metrics_add(METRIC_blocks_dropped, 1);
	a->slots[i] = STORE_NO_SLOT;
	return STORE_NEW;
}

/* Of a pool: to its hub, parents first. */
static void store_commit_through(struct holder *h, const struct store_commit *a)
{
	for (uint32_t i = 0; i < a->n; i++)
		if (a->states[i] == STORE_NEW && a->slots[i] != STORE_NO_SLOT)
			device_committed(store_ns_of(h), a->slots[i]);
	device_run(store_ns_of(h)->store);
}

int store_commit(struct holder *h, struct store_commit *a)
{
	struct ns *ns = h->ns;
	uint64_t lanes = store_lanes(ns, a->lane);
	uint32_t held = 0;
	int r;

	thread_assert(THREAD_LOOP);
	assert(!h->closed && a->n <= STORE_MAX_KEYS);
	ns->now_ns = a->now_ns;
	r = store_commit_check(h, a, lanes);
	if (r != 0)
		return r;
	if (a->hold && quota_charge(h->user, QUOTA_HOLDS, a->n) != 0)
		return STORE_E_LIMIT;
	store_ns_clock(ns);
	metrics_add(METRIC_bytes_written, a->n * a->length);
	for (uint32_t i = 0; i < STORE_AHEAD; i++)
		store_hash_ahead(h, a->keys, a->n, i);
	for (uint32_t i = 0; i < a->n; i++) {
		store_hash_ahead(h, a->keys, a->n, i + STORE_AHEAD);
		a->states[i] = store_commit_one(h, a, i, lanes);
	}
	/* Tail first into the order: within one batch the tail is the coldest. */
	for (uint32_t i = a->n; i-- > 0;) {
		if (a->slots[i] == STORE_NO_SLOT || a->states[i] == STORE_LANES_MISSING)
			continue;
		if (a->states[i] == STORE_NEW) {
			heat_place(&ns->heat, a->slots[i]);
			offload_committed(store_ns_of(h), a->slots[i]);
			summing_committed(store_ns_of(h), a->slots[i]);
		}
		if (a->hold && lease_hold(h, a->slots[i]) == 0)
			held++;
	}
	if (store_ns_of(h)->pool)
		store_commit_through(h, a);
	if (ns->lower) {
		(void)offload_run(store_ns_of(h)->store);
		summing_run(store_ns_of(h)->store);
	}
	if (a->hold)
		quota_return(h->user, QUOTA_HOLDS, a->n - held);
	return 0;
}

int store_abort(struct holder *h, uint32_t lane, const uint32_t *slots, const uint32_t *generations, uint32_t n)
{
	struct ns *ns = h->ns;
	struct store *store = store_ns_of(h)->store;
	uint64_t lanes = store_lanes(ns, lane);

	thread_assert(THREAD_LOOP);
	if (lanes == 0)
		return STORE_E_INVAL;
	store_seen_begin(store, n);
	for (uint32_t i = 0; i < n; i++) {
		if (store_seen(store, slots[i]))
			return STORE_E_INVAL;
		if (!lease_find(h, slots[i], generations[i], lanes))
			return STORE_E_STALE;
	}
	for (uint32_t i = 0; i < n; i++) {
		metrics_add(METRIC_blocks_aborted, 1);
		lease_abort(lease_find(h, slots[i], generations[i], lanes));
	}
	return 0;
}

/* ---- match and release by message ---- */

/* Keys [@from, @from + @n) of @a.  False: a prefix ends here. */
static bool match_batch(struct holder *h, struct store_match *a, uint32_t from, uint32_t n)
{
	struct ns *ns = h->ns;
	const uint8_t *keys = a->keys + (size_t)from * ns->desc->key_bytes;
	uint32_t *slots = a->slots + from, *generations = a->generations + from;
	struct shm_entry *found[INDEX_BATCH];
	uint32_t got = index_find_batch(&ns->index, keys, n, a->scattered, found), hits = 0;
	bool hold = a->hold;

	for (uint32_t i = 0; hold && i < got; i++)
		if (found[i])
			lease_hold_prefetch(h, found[i]->slot);
	for (uint32_t i = 0; i < n; i++) {
		if (i < got && found[i] && (!hold || lease_hold(h, found[i]->slot) == 0)) {
			slots[i] = found[i]->slot;
			generations[i] = found[i]->generation;
			hits++;
			continue;
		}
		why_miss(ns->why, index_hash(&ns->index, keys + (size_t)i * ns->desc->key_bytes).tag, a->now_ns);
		if (!a->scattered)
			break;
		slots[i] = STORE_NO_SLOT;
		generations[i] = 0;
	}
	a->hits += hits;
	return a->scattered || hits == n;
}

int store_match(struct holder *h, struct store_match *a)
{
	struct ns *ns = h->ns;

	thread_assert(THREAD_LOOP);
	assert(!h->closed && a->n <= STORE_MAX_KEYS);
	a->hits = 0;
	if (a->hold && quota_charge(h->user, QUOTA_HOLDS, a->n) != 0)
		return STORE_E_LIMIT;
	for (uint32_t i = 0; i < a->n; i += INDEX_BATCH)
		if (!match_batch(h, a, i, a->n - i < INDEX_BATCH ? a->n - i : INDEX_BATCH))
			break;
	if (a->hold)
		quota_return(h->user, QUOTA_HOLDS, a->n - a->hits);
	ns->counts.looked_up += a->n;
	ns->counts.hits += a->hits;
	ns->counts.misses += a->n - a->hits;
	metrics_add(METRIC_blocks_looked_up, a->n);
	metrics_add(store_ns_hits(store_ns_of(h)), a->hits);
	metrics_add(METRIC_misses, a->n - a->hits);
	metrics_add(METRIC_bytes_matched, a->hits * ns->desc->lane_bytes);
	return 0;
}

int store_release(struct holder *h, const uint32_t *slots, const uint32_t *generations, uint32_t n)
{
	struct ns *ns = h->ns;
	uint32_t i;

	thread_assert(THREAD_LOOP);
	for (i = 0; i < n; i++) {
		if (!ns_slot_valid(ns, slots[i]) || ns_slot_generation(ns, slots[i]) != generations[i] ||
		    !lease_holds(h, slots[i]))
			break;
		lease_unhold(h, slots[i]);
	}
	if (i == n) {
		quota_return(h->user, QUOTA_HOLDS, n);
		return 0;
	}
	while (i-- > 0)
		lease_hold(h, slots[i]); /* cannot fail: it was just let go */
	return STORE_E_NOTHELD;
}

/* ---- hints and stat ---- */

static void store_retain(struct holder *h, uint32_t slot, const struct store_hint_args *a)
{
	struct store_ns *sn = store_ns_of(h);
	struct block *b = &h->ns->blocks[slot];

	if (a->ttl_ms == 0 || a->priority == 0) {
		b->heat.flags &= (uint16_t)~HEAT_F_RETAINED;
		return;
	}
	if (sn->n_retains >= STORE_MAX_RETAINS)
		return; /* advice: the limit is documented, further ones are passed over */
	if (sn->n_retains == sn->cap_retains) {
		uint32_t cap = sn->cap_retains ? sn->cap_retains * 2 : 64;
		struct store_retain *p = realloc(sn->retains, cap * sizeof(*p));

		if (!p)
			return;
		sn->retains = p;
		sn->cap_retains = cap;
	}
	b->heat.flags |= HEAT_F_RETAINED;
	sn->retains[sn->n_retains++] = (struct store_retain){ .slot = slot,
		                                              .generation = ns_slot_generation(h->ns, slot),
		                                              .priority = a->priority,
		                                              .until_ns = a->now_ns + a->ttl_ms * 1000000ull };
}

int store_hint(struct holder *h, const struct store_hint_args *a, uint32_t *ret_known)
{
	struct ns *ns = h->ns;
	uint32_t known = 0;

	thread_assert(THREAD_LOOP);
	if ((a->hint != STORE_HINT_RELEASE && a->hint != STORE_HINT_RETAIN && a->hint != STORE_HINT_TOUCH) ||
	    a->priority > 100)
		return STORE_E_INVAL;
	for (uint32_t i = a->n; i-- > 0;) { /* tail first */
		uint32_t slot = block_find(ns, a->keys + (size_t)i * ns->desc->key_bytes);

		if (slot == NS_NONE)
			continue;
		known++;
		if (a->hint == STORE_HINT_RELEASE)
			heat_release(&ns->heat, slot);
		else if (a->hint == STORE_HINT_RETAIN)
			store_retain(h, slot, a);
		else
			heat_touch(&ns->heat, slot);
	}
	if (a->hint == STORE_HINT_RELEASE && known) {
		heat_released(&ns->heat);
		atomic_store_explicit(&ns->shm->clock, ns->heat.clock, memory_order_relaxed);
	}
	*ret_known = known;
	return 0;
}

void store_stat(struct holder *h, const uint8_t *keys, uint32_t n, uint8_t *ret_tiers, uint32_t *ret_present)
{
	struct store_ns *sn = store_ns_of(h);
	const struct ns *host = sn->pool ? &sn->hub->ns : &sn->ns;

	*ret_present = 0;
	for (uint32_t i = 0; i < n; i++) {
		const uint8_t *key = keys + (size_t)i * h->ns->desc->key_bytes;
		uint8_t tiers = sn->pool && block_find(h->ns, key) != NS_NONE ? STORE_IN_G1 : 0;

		if (block_find(host, key) != NS_NONE)
			tiers |= STORE_IN_G2;
		if (host->lower && lower_find(host->lower, key) != LOWER_NONE)
			tiers |= STORE_IN_G3;
		ret_tiers[i] = tiers;
		*ret_present += tiers != 0;
	}
}
