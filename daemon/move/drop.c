/* What people have dropped: single blocks, all that are not in use, whole namespaces.
 *
 * Millions of blocks take seconds: store_flush_step() does a bounded part, and remembers where it stopped by numbers, so that between two
 * steps everything may change, the namespace go included.
 */
#include <assert.h>
#include <errno.h>

#include "base/thread.h"
#include "move/transfer.h"

/* Of a step's budget. */
#define DROP_COST_LOOK 1u
#define DROP_COST_BLOCK 32u
#define DROP_BATCH 512u

/* The namespace of that name, or a pool of it. */
static bool flush_is_used(struct store *store, const char *name)
{
	list_for_each(it, &store->namespaces) {
		struct store_ns *sn = store_ns_at(it);

		if (strcmp(sn->desc.name, name) == 0 &&
		    (sn->ns.n_holders || sn->zombies || sn->n_transfers || sn->n_onboards || sn->n_copies))
			return true;
	}
	return false;
}

int store_flush_begin(struct store *store, const char *name, bool remove, struct store_flush *f)
{
	struct store_ns *sn = name ? store_find(store, name) : NULL;

	thread_assert(THREAD_LOOP);
	assert(name || !remove);
	*f = (struct store_flush){ .one = name != NULL, .remove = remove };
	if (!name)
		return 0;
	if (!sn)
		return STORE_E_NOENT;
	if (remove && flush_is_used(store, name))
		return STORE_E_LIMIT;
	f->number = f->only = sn->number;
	return 0;
}

/* Is it the namespace that @f is of, or a pool of it? */
static bool flush_is_of(const struct store_flush *f, const struct store_ns *sn)
{
	return sn->number == f->only || (sn->hub && sn->hub->number == f->only);
}

/* Where @f is, or the next one after a namespace that has gone. */
static struct store_ns *flush_at(struct store *store, const struct store_flush *f)
{
	list_for_each(it, &store->namespaces) {
		struct store_ns *sn = store_ns_at(it);

		if (sn->number >= f->number && !sn->lost && (!f->one || flush_is_of(f, sn)))
			return sn;
	}
	return NULL;
}

/* Condemns blocks of region f->area from f->place on, until it or the budget ends.  True: the region is done. */
static bool flush_region(struct store_ns *sn, struct store_flush *f, uint32_t *budget)
{
	struct ns *ns = &sn->ns;
	struct store *store = sn->store;
	uint32_t n = ns->regions[f->area].n_slots;

	while (f->place<n && * budget> 0) {
		uint32_t slot = (f->area << ns->geo.shift) + f->place++;

		*budget -= DROP_COST_LOOK;
		if (ns_slot_state(ns, slot) != SHM_REGISTERED)
			continue;
		if (space_condemn(store, ns, slot) < 0)
			f->kept++;
		if (store->n_victims == DROP_BATCH)
			(void)space_settle(store, 0, WHY_FLUSHED, &f->kept);
		*budget -= *budget < DROP_COST_BLOCK ? *budget : DROP_COST_BLOCK;
	}
	(void)space_settle(store, 0, WHY_FLUSHED, &f->kept);
	return f->place >= n;
}

/* The same of an area below. */
static bool flush_area(struct store_ns *sn, struct store_flush *f, uint32_t *budget)
{
	struct lower *l = sn->ns.lower;
	uint32_t n = l->areas[f->area].n_slots;

	while (f->place<n && * budget> 0) {
		uint32_t slot = (f->area << l->shift) + f->place++;

		*budget -= DROP_COST_LOOK;
		if (lower_at(l, slot)->state != LOWER_PRESENT)
			continue;
		if (lower_at(l, slot)->busy)
			f->kept += block_find(&sn->ns, lower_at(l, slot)->key) == NS_NONE;
		else
			lower_drop(sn, slot, WHY_FLUSHED);
		*budget -= *budget < DROP_COST_BLOCK ? *budget : DROP_COST_BLOCK;
	}
	return f->place >= n;
}

/* True: all of @sn was looked at. */
static bool flush_ns(struct store_ns *sn, struct store_flush *f, uint32_t *budget)
{
	while (*budget > 0) {
		uint32_t n = f->below ? sn->ns.lower->n_areas : sn->ns.geo.n_regions;

		if (f->area == n) {
			if (f->below || !sn->ns.lower)
				return true;
			f->below = true;
			f->area = f->place = 0;
			continue;
		}
		if (f->below ? flush_area(sn, f, budget) : flush_region(sn, f, budget)) {
			f->area++;
			f->place = 0;
			*budget -= *budget > 0;
		}
	}
	return false;
}

/* Unless somebody has come meanwhile: then its blocks are gone, and it stays. */
static bool flush_may_remove(const struct store_ns *sn)
{
	return sn->ns.n_used == 0 && sn->n_transfers == 0 && pool_ns_may_go(sn);
}

static void flush_next(struct store_ns *sn, struct store_flush *f)
{
	struct store_ns *hub = sn->hub;

	f->number = sn->number + 1;
	f->below = false;
	f->area = f->place = 0;
	if (!f->remove || !flush_may_remove(sn))
		return;
	store_ns_free(sn);
	if (hub && flush_may_remove(hub))
		store_ns_free(hub); /* it was waiting for its last pool */
}

bool store_flush_step(struct store *store, struct store_flush *f, uint32_t budget)
{
	struct store_ns *sn;

	thread_assert(THREAD_LOOP);
	while (budget > 0 && (sn = flush_at(store, f))) {
		uint64_t before = sn->ns.counts.dropped;
		bool done = flush_ns(sn, f, &budget);

		f->dropped += (uint32_t)(sn->ns.counts.dropped - before);
		if (!done)
			return false;
		flush_next(sn, f);
	}
	return !flush_at(store, f);
}

static void flush_all(struct store *store, struct store_flush *f)
{
	while (!store_flush_step(store, f, UINT32_MAX))
		;
}

int store_flush(struct store *store, const char *name, uint32_t *ret_dropped, uint32_t *ret_kept)
{
	struct store_flush f;
	int r = store_flush_begin(store, name, false, &f);

	if (r == 0)
		flush_all(store, &f);
	*ret_dropped = f.dropped;
	*ret_kept = f.kept;
	return r;
}

int store_remove(struct store *store, const char *name, uint32_t *ret_dropped)
{
	struct store_flush f;
	int r = store_flush_begin(store, name, true, &f);

	if (r == 0) {
		flush_all(store, &f);
		*ret_dropped = f.dropped;
		assert(f.kept == 0);
	}
	return r;
}

/* In pools of @hub.  A block that is in use there stays there, and is as good as kept. */
static void drop_in_pools(struct store_ns *hub, const uint8_t *key, uint32_t *ret_kept)
{
	list_for_each(it, &hub->store->namespaces) {
		struct store_ns *sn = store_ns_at(it);
		uint32_t slot = sn->hub == hub && !sn->lost ? block_find(&sn->ns, key) : NS_NONE;

		if (slot != NS_NONE && space_condemn(hub->store, &sn->ns, slot) < 0)
			(*ret_kept)++;
		(void)space_settle(hub->store, 0, WHY_FLUSHED, ret_kept);
	}
}

int store_drop(struct store *store, struct store_drop *a)
{
	struct store_ns *sn = store_find(store, a->name);
	uint64_t before;

	thread_assert(THREAD_LOOP);
	if (!sn)
		return STORE_E_NOENT;
	if (a->key_bytes != sn->desc.key_bytes)
		return STORE_E_INVAL;
	before = sn->ns.counts.dropped;
	a->kept = 0;
	for (uint32_t i = 0; i < a->n; i++) {
		const uint8_t *key = a->keys + (size_t)i * a->key_bytes;
		uint32_t slot = block_find(&sn->ns, key);
		uint32_t lower = sn->ns.lower ? lower_find(sn->ns.lower, key) : LOWER_NONE;

		if (sn->n_pools)
			drop_in_pools(sn, key, &a->kept);
		if (slot != NS_NONE && space_condemn(store, &sn->ns, slot) < 0)
			a->kept++;
		(void)space_settle(store, 0, WHY_FLUSHED, &a->kept);
		if (lower == LOWER_NONE)
			continue;
		if (lower_at(sn->ns.lower, lower)->busy)
			a->kept += block_find(&sn->ns, key) == NS_NONE;
		else
			lower_drop(sn, lower, WHY_FLUSHED);
	}
	a->dropped = (uint32_t)(sn->ns.counts.dropped - before);
	return 0;
}
