/* Offload decides when cold blocks are written down, and which; transfer.c does it.
 *
 * Ahead of need: once a namespace has no more memory to get, blocks are written in the order in which they would be dropped, until free slots and
 * clean ones (also below, still findable here) reach the watermark.  Children that are clean do not keep their parent from being written, so that
 * of a chain more than its tail can be clean.  What a namespace's policy does not want below goes to the clean ones without a copy.  `through`
 * writes soon after commit as well.
 *
 * Does not drop: space.c takes clean blocks first, and asks offload_can_help() before it takes others.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/thread.h"
#include "move/transfer.h"

#define OFFLOAD_LEAST 64u

/* Slots that are to be free or clean. */
static uint32_t offload_mark(const struct store_ns *sn)
{
	uint64_t mark = (uint64_t)sn->ns.n_slots * sn->store->config.low_percent / 100;

	if (mark < OFFLOAD_LEAST)
		mark = OFFLOAD_LEAST;
	if (mark > sn->ns.n_slots / 4)
		mark = sn->ns.n_slots / 4;
	if (sn->wanted > mark)
		mark = sn->wanted;
	return (uint32_t)mark;
}

static bool offload_wants(const struct store_ns *sn, uint32_t slot)
{
	const struct heat_mark *m = &sn->ns.blocks[slot].heat;

	return sn->write != STORE_WRITE_IF_HIT || (m->flags & HEAT_F_HIT);
}

/* One cold block is made clean (*ret_clean: without a copy), or its copy begins.  false: nothing more can be done now. */
static bool offload_one(struct store_ns *sn, uint64_t *budget, bool *ret_clean)
{
	struct ns *ns = &sn->ns;
	uint32_t slot;

	if (!heat_pick_down(&ns->heat, &slot, budget))
		return false;
	if (lower_find(ns->lower, ns->records[slot].key) != LOWER_NONE || !offload_wants(sn, slot)) {
		heat_clean(&ns->heat, slot);
		*ret_clean = true;
		return true;
	}
	switch (transfer_down(sn, slot, false, TIER_BACKGROUND)) {
	case TRANSFER_BEGUN:
		return true;
	case TRANSFER_HOPELESS: /* to wait would fill memory for good */
		heat_clean(&ns->heat, slot);
		*ret_clean = true;
		return true;
	case TRANSFER_LATER:
	default:
		heat_place(&ns->heat, slot); /* back to where it was */
		return false;
	}
}

/* It is there still, and is neither below nor on its way there. */
static bool offload_is_due(const struct ns *ns, const struct store_through *t)
{
	return ns_slot_state(ns, t->slot) == SHM_REGISTERED && ns_slot_generation(ns, t->slot) == t->generation &&
	       ns->blocks[t->slot].heat.where != HEAT_COPYING &&
	       lower_find(ns->lower, ns->records[t->slot].key) == LOWER_NONE;
}

static void offload_through(struct store_ns *sn)
{
	struct ns *ns = &sn->ns;

	while (sn->through_head != sn->through_tail && mover_has_room(sn->store)) {
		const struct store_through *t = &sn->through[sn->through_head % STORE_THROUGH];

		if (offload_is_due(ns, t)) {
			if (ns->moving[t->slot]) /* its checksum is being made */
				return;
			if (transfer_down(sn, t->slot, true, TIER_BACKGROUND) == TRANSFER_LATER)
				return;
		}
		sn->through_head++;
	}
}

/* Looked at in one go. */
#define DRAIN_SLOTS 16384u

/* What somebody wants below at once, hot or cold: it keeps its place in host memory. */
static void offload_drain(struct store_ns *sn)
{
	struct ns *ns = &sn->ns;

	sn->drain_more = false;
	for (uint32_t i = 0; i < DRAIN_SLOTS && sn->drain_next < sn->drain_end; i++) {
		uint32_t slot = sn->drain_next;

		if (ns_slot_valid(ns, slot) && ns_slot_state(ns, slot) == SHM_REGISTERED &&
		    lower_find(ns->lower, ns->records[slot].key) == LOWER_NONE) {
			if (ns->moving[slot]) /* on its way, or its checksum is being made */
				return;
			if (!mover_has_room(sn->store) || transfer_down(sn, slot, true, TIER_BACKGROUND) != TRANSFER_BEGUN)
				return;
		}
		sn->drain_next++;
	}
	sn->drain_more = sn->drain_next < sn->drain_end;
}

int store_drain(struct store *store, const char *name, uint32_t *ret_begun, uint32_t *ret_cannot)
{
	bool found = name == NULL;

	thread_assert(THREAD_LOOP);
	*ret_begun = *ret_cannot = 0;
	list_for_each(it, &store->namespaces) {
		struct store_ns *sn = store_ns_at(it);

		if (name && strcmp(name, sn->desc.name) != 0)
			continue;
		found = true;
		if (sn->pool) /* its hub is asked */
			continue;
		if (!sn->ns.lower || sn->write == STORE_WRITE_NEVER) {
			*ret_cannot += sn->ns.n_used - (sn->ns.lower ? sn->ns.twins : 0);
			continue;
		}
		*ret_begun += sn->ns.n_used - sn->ns.twins;
		sn->drain_next = 0;
		sn->drain_end = sn->ns.geo.n_regions << sn->ns.geo.shift;
	}
	store_moved(store);
	return found ? 0 : STORE_E_NOENT;
}

static void offload_ns(struct store_ns *sn, bool *ret_clean)
{
	struct ns *ns = &sn->ns;
	uint64_t budget = ns->heat.in_order;
	uint32_t mark;

	if (!ns->lower || sn->write == STORE_WRITE_NEVER)
		return;
	if (sn->write == STORE_WRITE_THROUGH)
		offload_through(sn);
	offload_drain(sn);
	if (store_ns_can_grow(sn) && sn->wanted == 0)
		return;
	mark = offload_mark(sn);
	while (ns->n_free + ns->heat.clean_live + ns->heat.grace_live + sn->n_transfers < mark &&
	       mover_has_room(sn->store) && offload_one(sn, &budget, ret_clean))
		budget++; /* its parent may have come into the order */
}

bool offload_run(struct store *store)
{
	bool clean = false;

	if (!lower_is_online(store) || store->mover.stopping)
		return false;
	list_for_each(it, &store->namespaces)
		offload_ns(store_ns_at(it), &clean);
	return clean;
}

bool offload_for(struct store_ns *sn, uint32_t need)
{
	if (sn->wanted < need)
		sn->wanted = need;
	return offload_run(sn->store);
}

void offload_committed(struct store_ns *sn, uint32_t slot)
{
	struct ns *ns = &sn->ns;

	if (!ns->lower || sn->write != STORE_WRITE_THROUGH)
		return;
	if (!sn->through) {
		sn->through = malloc(STORE_THROUGH * sizeof(*sn->through));
		if (!sn->through)
			return; /* it will be written when it is cold */
	}
	if (sn->through_tail - sn->through_head == STORE_THROUGH)
		sn->through_head++; /* the same */
	sn->through[sn->through_tail++ % STORE_THROUGH] = (struct store_through){ .slot = slot,
		                                                                  .generation = ns_slot_generation(ns, slot) };
}

bool offload_can_help(struct store_ns *sn)
{
	const struct ns *ns = &sn->ns;

	if (sn->pool)
		return space_is_coming(sn);
	return ns->lower && sn->write != STORE_WRITE_NEVER && lower_is_online(sn->store) &&
	       !sn->store->mover.stopping && (sn->n_transfers > 0 || ns->heat.in_order > 0);
}
