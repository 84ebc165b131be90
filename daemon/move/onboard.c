/* Onboard brings blocks of a prefix from below into host memory, for somebody who waits, or ahead of need.
 *
 * Life of a store_onboard
 *   0 none   1 begun: its keys are gone through in order   2 waits for room, or for a transfer   3 all keys begun, some still on their way
 *   4 done: every key has a status
 *   0->1 store_onboard()   1->2, 2->1, 1->3 onboard_step   1->4, 3->4 onboard_finish   any -> 0 store_onboard_cancel
 *
 * Into a pool in device memory a block comes from its hub.  What the hub has to read first, an onboard of its own reads (o->below), and the pool's goes on
 * whenever some of that has come.
 *
 * Two who want one block share its transfer.  A missing block ends the prefix; one that cannot be read cuts it there.  Status and holds of those before
 * stay.  Never drops anything but to make the room it needs now, and ahead of need (prefetch) only what is clean.  What it has brought is
 * kept until it is done, or a long prefix would push out its own beginning.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/metrics.h"
#include "base/thread.h"
#include "move/transfer.h"

static void onboard_wait(struct store_onboard *o)
{
	if (!list_is_linked(&o->waiting))
		list_add_tail(&o->holder_ns->store->mover.waiters, &o->waiting);
}

static void onboard_mark(struct store_onboard *o, uint32_t i, uint8_t status)
{
	o->status[i] = status;
	if (status != STORE_ONBOARD_DONE) {
		o->slots[i] = STORE_NO_SLOT;
		o->generations[i] = 0;
	}
}

/* Nothing behind @i is part of the prefix any more. */
static void onboard_cut(struct store_onboard *o, uint32_t i, uint8_t status)
{
	while (o->next < o->n)
		onboard_mark(o, o->next++, status);
	if (o->cut > i)
		o->cut = i;
}

/* The block of key @i is in host memory at @slot, and is kept there. */
static void onboard_have(struct store_onboard *o, uint32_t i, uint32_t slot)
{
	struct ns *ns = &o->holder_ns->ns;

	if (ns->kept && ns->kept[slot] == UINT16_MAX) {
		onboard_mark(o, i, STORE_ONBOARD_BUSY);
		return;
	}
	onboard_mark(o, i, STORE_ONBOARD_DONE);
	o->slots[i] = slot;
	o->generations[i] = ns_slot_generation(ns, slot);
	if (ns->kept)
		ns->kept[slot]++;
}

static bool onboard_hold(struct store_onboard *o, uint32_t slot)
{
	if (quota_charge(o->holder->user, QUOTA_HOLDS, 1) != 0)
		return false;
	if (lease_hold(o->holder, slot) == 0)
		return true;
	quota_return(o->holder->user, QUOTA_HOLDS, 1);
	return false;
}

/* Would it come later than it is computed? */
static bool onboard_is_too_slow(const struct store_onboard *o, uint32_t i)
{
	struct tier_lower *t = o->holder_ns->store->config.lower;
	const struct ns_desc *d = o->holder_ns->ns.desc;
	struct tier_lower_stat s;
	uint64_t bytes = d->lane_bytes * d->lanes, ahead, arrival;

	if (o->recompute_ns == 0)
		return false;
	t->ops->stat(t, &s);
	if (s.read_bytes_per_s == 0)
		return false;
	ahead = (uint64_t)(s.in_flight + s.queued + 1) * bytes;
	arrival = s.read_latency_ns + (uint64_t)((double)ahead / (double)s.read_bytes_per_s * 1e9);
	return arrival > o->recompute_ns * (uint64_t)(i + 1);
}

enum { ONBOARD_ON = 0, ONBOARD_WAIT, ONBOARD_CUT, ONBOARD_AGAIN };

/* Room for one more block of host memory. */
static int onboard_room(struct store_onboard *o)
{
	struct store_ns *sn = o->holder_ns;
	enum space_how how = o->prefetch ? SPACE_CLEAN : SPACE_WAIT;
	uint32_t dropped = 0;
	int r;

	if (sn->ns.n_free > 0)
		return ONBOARD_ON;
	r = space_make(sn->store, sn, 1, how, &dropped);
	if (r == STORE_E_WAIT && offload_for(sn, o->n - o->next))
		r = space_make(sn->store, sn, 1, how, &dropped);
	if (r == 0)
		return ONBOARD_ON;
	return r == STORE_E_WAIT ? ONBOARD_WAIT : ONBOARD_CUT;
}

/* @waiting: who waits for the copy that brings key @i. */
static int onboard_want(struct store_onboard *o, uint32_t i, struct list *waiting)
{
	o->wants[i] = (struct onboard_want){ .onboard = o, .i = i };
	list_add_tail(waiting, &o->wants[i].link);
	o->status[i] = STORE_ONBOARD_PENDING;
	o->pending++;
	return ONBOARD_ON;
}

/* ---- into a pool ---- */

static void onboard_below_free(struct store_onboard *o)
{
	if (!o->below)
		return;
	store_onboard_cancel(o->below);
	free(o->below);
	o->below = NULL;
}

static void onboard_below_done(struct store_onboard *below);
static int onboard_begin(struct store_ns *sn, struct holder *h, struct store_onboard *o);

/* The hub reads what it has below, of key @i and those behind it. */
static bool onboard_below_begin(struct store_onboard *o, uint32_t i)
{
	uint32_t n = o->n - i;
	struct store_onboard *below = calloc(1, sizeof(*below) +
	                                                n * (sizeof(struct onboard_want) + 2 * sizeof(uint32_t) + 1));
	uint8_t *at = (uint8_t *)(below + 1);

	if (!below)
		return false;
	below->wants = (struct onboard_want *)at;
	below->slots = (uint32_t *)(at += n * sizeof(struct onboard_want));
	below->generations = (uint32_t *)(at += n * sizeof(uint32_t));
	below->status = at + n * sizeof(uint32_t);
	below->keys = o->keys + (size_t)i * o->holder_ns->desc.key_bytes;
	below->n = n;
	below->prefetch = o->prefetch;
	below->quiet = true;
	below->now_ns = o->now_ns;
	below->deadline_ns = o->deadline_ns;
	below->recompute_ns = o->recompute_ns;
	below->done = onboard_below_done;
	below->above = o;
	o->below = below;
	o->below_from = i;
	(void)onboard_begin(o->holder_ns->hub, NULL, below);
	return true;
}

/* Key @i is not in the hub's memory. */
static int onboard_key_below(struct store_onboard *o, uint32_t i, const uint8_t *key)
{
	struct ns *ns = &o->holder_ns->ns, *hub = &o->holder_ns->hub->ns;
	const struct store_onboard *below = o->below;

	if (!below && hub->lower && lower_find(hub->lower, key) != LOWER_NONE) {
		if (onboard_below_begin(o, i))
			return ONBOARD_AGAIN;
		o->status[i] = STORE_ONBOARD_BUSY;
		return ONBOARD_CUT;
	}
	o->status[i] = STORE_ONBOARD_MISSING;
	if (below) {
		uint8_t status = below->status[i - o->below_from];

		/* What it has not come past yet may have a status that is none. */
		if (!below->finished && (status == STORE_ONBOARD_PENDING || i - o->below_from >= below->next))
			return ONBOARD_WAIT;
		/* Read, and dropped before we came to it. */
		o->status[i] = status == STORE_ONBOARD_DONE ? STORE_ONBOARD_BUSY : status;
	}
	if (o->status[i] == STORE_ONBOARD_MISSING)
		why_miss(ns->why, index_hash(&ns->index, key).tag, ns->now_ns);
	return ONBOARD_CUT;
}

/* The same as onboard_key() below. */
static int onboard_key_up(struct store_onboard *o, uint32_t i, const uint8_t *key)
{
	struct store_ns *sn = o->holder_ns;
	struct ns *hub = &sn->hub->ns;
	uint32_t hub_slot = block_find(hub, key);
	struct list *waiting;
	int r;

	if (hub_slot == NS_NONE)
		return onboard_key_below(o, i, key);
	waiting = device_find_up(sn, hub_slot);
	if (!waiting) {
		o->status[i] = STORE_ONBOARD_BUSY;
		r = onboard_room(o);
		if (r != ONBOARD_ON)
			return r;
		waiting = device_up(sn, hub_slot);
		if (!waiting)
			return ONBOARD_WAIT;
		heat_touch(&hub->heat, hub_slot);
		o->from_hub += !o->below;
	}
	return onboard_want(o, i, waiting);
}

/* ---- key by key ---- */

static int onboard_key(struct store_onboard *o, uint32_t i)
{
	struct store_ns *sn = o->holder_ns;
	struct ns *ns = &sn->ns;
	const uint8_t *key = o->keys + (size_t)i * ns->desc->key_bytes;
	uint32_t slot = block_find(ns, key), lower;
	struct transfer *x;
	int r;

	if (slot != NS_NONE) {
		onboard_have(o, i, slot);
		o->from_host++;
		return ONBOARD_ON;
	}
	if (sn->pool)
		return onboard_key_up(o, i, key);
	lower = ns->lower ? lower_find(ns->lower, key) : LOWER_NONE;
	if (lower == LOWER_NONE) {
		why_miss(ns->why, index_hash(&ns->index, key).tag, ns->now_ns);
		o->status[i] = STORE_ONBOARD_MISSING;
		return ONBOARD_CUT;
	}
	x = transfer_find(sn, lower);
	if (!x) {
		o->status[i] = onboard_is_too_slow(o, i)    ? STORE_ONBOARD_RECOMPUTE
		               : lower_is_online(sn->store) ? STORE_ONBOARD_BUSY
		                                            : STORE_ONBOARD_FAILED;
		if (o->status[i] != STORE_ONBOARD_BUSY)
			return ONBOARD_CUT;
		if (!mover_has_room(sn->store))
			return ONBOARD_WAIT;
		lower_at(ns->lower, lower)->busy++; /* what is written down for room must not take its place */
		r = onboard_room(o);
		lower_at(ns->lower, lower)->busy--;
		if (r != ONBOARD_ON)
			return r;
		x = transfer_up(sn, lower, o->prefetch ? TIER_AHEAD : TIER_WANTED);
		if (!x)
			return ONBOARD_WAIT;
	}
	return onboard_want(o, i, &x->wants);
}

/* What was found where. */
static void onboard_count(const struct store_onboard *o)
{
	struct ns *ns = &o->holder_ns->ns;
	uint32_t here = o->from_host < o->hits ? o->from_host : o->hits;
	uint32_t hub = o->from_hub < o->hits - here ? o->from_hub : o->hits - here;

	if (o->prefetch || o->quiet)
		return;
	ns->counts.looked_up += o->n;
	ns->counts.hits += here;
	ns->counts.hits_lower += o->hits - here;
	ns->counts.misses += o->n - o->hits;
	metrics_add(METRIC_blocks_looked_up, o->n);
	metrics_add(store_ns_hits(o->holder_ns), here);
	metrics_add(METRIC_hits_g2, hub);
	metrics_add(METRIC_hits_g3, o->hits - here - hub);
	metrics_add(METRIC_misses, o->n - o->hits);
}

/* Every key has a status.  From here on the session holds what it asked to hold; until now it has had no say in it.  What came behind a cut is let go: it is no
 * part of the prefix. */
static void onboard_finish(struct store_onboard *o)
{
	struct store_ns *sn = o->holder_ns;
	struct ns *ns = &sn->ns;

	assert(o->pending == 0 && o->next == o->n);
	o->hits = 0;
	for (uint32_t i = 0; i < o->n; i++) {
		if (o->status[i] != STORE_ONBOARD_DONE)
			continue;
		if (ns->kept)
			ns->kept[o->slots[i]]--;
		if (o->hits == i && (!o->hold || onboard_hold(o, o->slots[i])))
			o->hits++;
		else
			onboard_mark(o, i, STORE_ONBOARD_BUSY);
	}
	onboard_count(o);
	onboard_below_free(o);
	if (list_is_linked(&o->waiting))
		list_del(&o->waiting);
	list_del(&o->link);
	o->holder_ns->n_onboards--;
	o->finished = true;
}

/* All keys have their status, and it can be finished. */
static bool onboard_is_ready(const struct store_onboard *o)
{
	return o->pending == 0 && o->next == o->n && !list_is_linked(&o->waiting);
}

/* Goes on with its keys. */
static void onboard_step(struct store_onboard *o)
{
	int r = ONBOARD_ON;

	while (o->next < o->n && (r == ONBOARD_ON || r == ONBOARD_AGAIN)) {
		r = onboard_key(o, o->next);
		if (r == ONBOARD_ON)
			o->next++;
	}
	if (r == ONBOARD_CUT) {
		uint8_t status = o->status[o->next];

		onboard_cut(o, o->next, status);
	} else if (r == ONBOARD_WAIT) {
		onboard_wait(o);
		return;
	}
	if (list_is_linked(&o->waiting)) {
		list_del(&o->waiting);
		list_init(&o->waiting);
	}
}

void onboard_settle(struct onboard_want *w, uint8_t status, uint32_t slot)
{
	struct store_onboard *o = w->onboard;

	assert(o->pending > 0 && o->status[w->i] == STORE_ONBOARD_PENDING);
	o->pending--;
	if (status == STORE_ONBOARD_DONE) {
		onboard_have(o, w->i, slot);
	} else {
		onboard_mark(o, w->i, status);
		onboard_cut(o, w->i, status);
	}
}

/* ---- the face ---- */

static int onboard_begin(struct store_ns *sn, struct holder *h, struct store_onboard *o)
{
	thread_assert(THREAD_LOOP);
	assert(o->n <= STORE_MAX_KEYS && (h || !o->hold));
	sn->ns.now_ns = o->now_ns;
	o->holder = h;
	o->holder_ns = sn;
	o->next = o->pending = o->from_host = o->from_hub = o->hits = 0;
	o->below = NULL;
	o->cut = o->n;
	o->finished = false;
	list_init(&o->waiting);
	list_add_tail(&sn->store->mover.onboards, &o->link);
	sn->n_onboards++;
	memset(o->status, STORE_ONBOARD_PENDING, o->n);
	onboard_step(o);
	device_submit_all(sn->store);
	if (!onboard_is_ready(o))
		return STORE_E_WAIT;
	onboard_finish(o);
	return 0;
}

int store_onboard(struct holder *h, struct store_onboard *o)
{
	assert(!h->closed);
	return onboard_begin(store_ns_of(h), h, o);
}

int store_prefetch(struct store *store, const char *name, uint32_t key_bytes, struct store_onboard *o)
{
	struct store_ns *sn = store_find(store, name);

	assert(o->prefetch && !o->hold);
	if (!sn)
		return STORE_E_NOENT;
	return key_bytes == sn->desc.key_bytes ? onboard_begin(sn, NULL, o) : STORE_E_INVAL;
}

/* Takes it off everything that could still come.  Its keys that are not settled get @status. */
static void onboard_stop(struct store_onboard *o, uint8_t status)
{
	for (uint32_t i = 0; i < o->next; i++) {
		if (o->status[i] != STORE_ONBOARD_PENDING)
			continue;
		list_del(&o->wants[i].link);
		o->pending--;
		onboard_mark(o, i, status);
	}
	onboard_cut(o, o->next, status);
	onboard_finish(o);
}

void store_onboard_cancel(struct store_onboard *o)
{
	if (o->finished)
		return;
	o->hold = false;
	onboard_stop(o, STORE_ONBOARD_DEADLINE);
}

void onboard_kick(struct store *store)
{
	struct list again;

	/* Those that wait anew are not asked twice. */
	list_init(&again);
	list_splice_tail(&again, &store->mover.waiters);
	while (!list_empty(&again)) {
		struct store_onboard *o = container_of(list_first(&again), struct store_onboard, waiting);

		list_del(&o->waiting);
		list_init(&o->waiting);
		onboard_step(o);
	}
	device_submit_all(store);
	/* What is done is told last: a callback may begin another one. */
	for (bool told = true; told;) {
		told = false;
		list_for_each(it, &store->mover.onboards) {
			struct store_onboard *o = container_of(it, struct store_onboard, link);

			if (!onboard_is_ready(o))
				continue;
			onboard_finish(o);
			o->done(o);
			told = true;
			break;
		}
	}
}

/* Its last key has a status, which may be what the one above waits for. */
static void onboard_below_done(struct store_onboard *below)
{
	struct store_onboard *o = below->above;

	if (list_is_linked(&o->waiting)) {
		list_del(&o->waiting);
		list_init(&o->waiting);
		onboard_step(o);
	}
	device_submit_all(o->holder_ns->store);
}

void onboard_lost(struct store *store)
{
	for (bool told = true; told;) {
		told = false;
		list_for_each(it, &store->mover.onboards) {
			struct store_onboard *o = container_of(it, struct store_onboard, link);

			if (!o->holder_ns->lost)
				continue;
			onboard_stop(o, STORE_ONBOARD_FAILED);
			o->done(o);
			told = true;
			break;
		}
	}
}

void onboard_tick(struct store *store, uint64_t now_ns)
{
	for (bool told = true; told;) {
		told = false;
		list_for_each(it, &store->mover.onboards) {
			struct store_onboard *o = container_of(it, struct store_onboard, link);

			if (o->deadline_ns > now_ns)
				continue;
			onboard_stop(o, list_is_linked(&o->waiting) && !o->below ? STORE_ONBOARD_BUSY
			                                                         : STORE_ONBOARD_DEADLINE);
			o->done(o);
			told = true; /* the callback may have changed the list */
			break;
		}
	}
}

uint64_t onboard_next_ns(const struct store *store)
{
	uint64_t next = UINT64_MAX;

	list_for_each(it, &store->mover.onboards) {
		const struct store_onboard *o = container_of(it, struct store_onboard, link);

		next = o->deadline_ns < next ? o->deadline_ns : next;
	}
	return next;
}
