/* Space makes room: it decides which memory goes to which namespace and which blocks are dropped for it.
 *
 * Order: free slots; memory nobody has; regions that stand empty elsewhere; regions of whoever is over its guaranteed share, most over
 * first, if the asking namespace is under its own or over by much less; then its own coldest blocks.
 *
 * All or nothing: victims and regions are only condemned (unfindable) until there are enough, and pardoned when there are not.  The
 * fence between condemning and looking at pins is the daemon's half of the hand-shake that proto/README.md argues.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/log.h"
#include "move/transfer.h"

#define SPACE_SAMPLES 64u

int space_condemn(struct store *store, struct ns *ns, uint32_t slot)
{
	if (store->n_victims == store->cap_victims) {
		uint32_t cap = store->cap_victims ? store->cap_victims * 2 : 1024;
		struct store_victim *v = realloc(store->victims, cap * sizeof(*v));

		if (!v)
			return -ENOMEM;
		store->victims = v;
		store->cap_victims = cap;
	}
	block_condemn(ns, slot);
	store->victims[store->n_victims++] = (struct store_victim){ .ns = ns, .slot = slot };
	return 0;
}

/* Pardons what is pinned among victims[from..).  Returns how many. */
static uint32_t space_pardon_pinned(struct store *store, uint32_t from)
{
	uint32_t kept = from, pardoned = 0;

	shm_fence();
	for (uint32_t i = from; i < store->n_victims; i++) {
		struct store_victim v = store->victims[i];

		if (!lease_is_pinned(v.ns, v.slot)) {
			store->victims[kept++] = v;
			continue;
		}
		heat_touch(&v.ns->heat, v.slot);
		block_pardon(v.ns, v.slot);
		pardoned++;
	}
	store->n_victims = kept;
	return pardoned;
}

static void space_pardon_all(struct store *store, uint32_t from)
{
	while (store->n_victims > from) {
		struct store_victim v = store->victims[--store->n_victims];

		block_pardon(v.ns, v.slot);
	}
}

uint32_t space_settle(struct store *store, uint32_t from, enum why_reason reason, uint32_t *ret_kept)
{
	uint32_t dropped;

	*ret_kept += space_pardon_pinned(store, from);
	dropped = store->n_victims - from;
	for (uint32_t i = from; i < store->n_victims; i++) {
		struct store_victim v = store->victims[i];
		bool released = v.ns->blocks[v.slot].heat.flags & HEAT_F_RELEASED;

		block_forget(v.ns, v.slot, released && reason == WHY_DROPPED ? WHY_RELEASED : reason);
	}
	store->n_victims = from;
	return dropped;
}

/* ---- regions ---- */

static void space_region_seen(const struct store_ns *sn, const struct tier_region *region)
{
	const struct store_config *c = &sn->store->config;

	if (sn->pool)
		return;
	if (c->lower)
		c->lower->ops->region_seen(c->lower, region);
	if (c->watch.region_seen)
		c->watch.region_seen(c->watch.ctx, region);
}

void space_region_gone(const struct store_ns *sn, const struct tier_region *region)
{
	const struct store_config *c = &sn->store->config;

	if (sn->pool)
		return;
	if (c->lower)
		c->lower->ops->region_gone(c->lower, region);
	if (c->watch.region_gone)
		c->watch.region_gone(c->watch.ctx, region);
}

void space_region_drop(struct store_ns *sn, uint32_t r)
{
	sn->used_bytes -= sn->memory[r].size;
	space_region_gone(sn, &sn->memory[r]);
	ns_region_remove(&sn->ns, r);
	sn->tier->ops->region_drop(sn->tier, &sn->memory[r]);
	sn->memory[r] = (struct tier_region){ .fd = -1, .ro_fd = -1 };
	store_ns_limit(sn);
}

static bool space_may_grow(const struct store_ns *sn)
{
	return sn->max_bytes - sn->used_bytes >= sn->tier->ops->grain(sn->tier) && sn->ns.n_slots < sn->ns.geo.max_slots;
}

static uint64_t space_unused(const struct store_ns *sn)
{
	uint64_t unused = 0;

	for (uint32_t r = 0; r < sn->ns.geo.n_regions; r++)
		unused += sn->ns.regions[r].serial == 0;
	return unused;
}

/* The shortest next region with which @unused places in the table are enough for all of @room: or short ones would fill it. */
static uint64_t space_shortest(const struct store_ns *sn, uint64_t room, uint64_t unused)
{
	uint64_t whole = sn->ns.geo.region_bytes, rest = (unused - 1) * whole;

	assert(unused > 0);
	if (room <= rest)
		return 0;
	return room - rest < whole ? room - rest : whole;
}

static bool space_grow(struct store_ns *sn)
{
	struct tier *tier = sn->tier;
	uint64_t grain = tier->ops->grain(tier), size = sn->ns.geo.region_bytes, room = sn->max_bytes - sn->used_bytes;
	uint64_t area, least = grain, unused = space_unused(sn);
	struct tier_region region;
	uint32_t r;

	if (size > room)
		size = room / grain * grain;
	while (least < size && ns_region_slots(&sn->ns.geo, sn->desc.lanes, least, &area) == 0)
		least += grain;
	if (size < grain || ns_region_slots(&sn->ns.geo, sn->desc.lanes, size, &area) == 0)
		return false;
	if (!space_may_grow(sn) || unused == 0)
		return false;
	while (least < space_shortest(sn, room, unused))
		least += grain;
	if (least > size)
		least = size;
	if (tier->ops->region_make(tier, size, least, sn->desc.lanes, area, &region) != 0)
		return false;
	r = ns_region_add(&sn->ns, region.size);
	if (r == NS_NONE) {
		tier->ops->region_drop(tier, &region);
		return false;
	}
	sn->memory[r] = region;
	sn->used_bytes += region.size;
	space_region_seen(sn, &sn->memory[r]);
	return true;
}

bool store_ns_can_grow(const struct store_ns *sn)
{
	uint64_t room = sn->tier->ops->room(sn->tier), unused = space_unused(sn);

	return space_may_grow(sn) && unused > 0 && room >= sn->tier->ops->grain(sn->tier) &&
	       room >= space_shortest(sn, sn->max_bytes - sn->used_bytes, unused);
}

/* Could memory go from @sn to @to?  What somebody may have open by a handle stays as long as he is there. */
static bool space_may_give(const struct store_ns *sn, const struct store_ns *to)
{
	return sn != to && sn->tier == to->tier && !sn->lost &&
	       !(sn->pool && sn->pool->tier->lends_handles && (sn->ns.n_holders || sn->zombies));
}

bool space_is_coming(const struct store_ns *sn)
{
	const struct tier_device_ops *ops = sn->pool && !sn->lost ? sn->pool->tier->ops : NULL;

	return ops && ops->coming && ops->coming(sn->pool->tier) > 0 && space_may_grow(sn) && space_unused(sn) > 0;
}

/* An empty region of any other namespace goes back to the tier. */
static bool space_take_empty(struct store *store, const struct store_ns *but)
{
	list_for_each(it, &store->namespaces) {
		struct store_ns *sn = store_ns_at(it);

		if (!space_may_give(sn, but))
			continue;
		for (uint32_t r = 0; r < sn->ns.geo.n_regions; r++) {
			const struct ns_region *region = &sn->ns.regions[r];

			if (region->serial && !region->draining && region->n_free == region->n_slots) {
				space_region_drop(sn, r);
				return true;
			}
		}
	}
	return false;
}

static int64_t space_over(const struct store *store, const struct store_ns *sn)
{
	int64_t over = (int64_t)sn->used_bytes - (int64_t)sn->share_bytes;

	for (uint32_t i = 0; i < store->n_plan; i++)
		if (store->plan[i].sn == sn)
			over -= (int64_t)sn->memory[store->plan[i].region].size;
	return over;
}

/* Who pays for @sn, which would have @gain bytes more.  NULL: nobody else does. */
static struct store_ns *space_payer(struct store *store, const struct store_ns *sn, uint64_t gain,
                                    const struct store_ns * not )
{
	int64_t mine = space_over(store, sn) + (int64_t)gain, most = 0;
	struct store_ns *payer = NULL;

	list_for_each(it, &store->namespaces) {
		struct store_ns *other = store_ns_at(it);
		int64_t over = space_over(store, other);

		if (!space_may_give(other, sn) || other == not || over <= most)
			continue;
		/* Over my own share I only take from who would still be over by more afterwards: no ping-pong.  But who has nothing
		 * must come to something: a first region is anybody's who is over. */
		if (mine >= 0 && sn->used_bytes + gain > 0 &&
		    over - (int64_t)other->ns.geo.region_bytes <= mine + (int64_t)sn->ns.geo.region_bytes)
			continue;
		most = over;
		payer = other;
	}
	return payer;
}

/* The region of @sn whose loss costs least: most free slots, then oldest blocks by a sample. */
static uint32_t space_cheapest_region(struct store_ns *sn)
{
	struct ns *ns = &sn->ns;
	uint64_t best = UINT64_MAX;
	uint32_t found = NS_NONE;

	for (uint32_t r = 0; r < ns->geo.n_regions; r++) {
		struct ns_region *region = &ns->regions[r];
		uint64_t cost = 0;

		if (!region->serial || region->draining || region->n_slots == 0)
			continue;
		for (uint32_t i = 0; i < SPACE_SAMPLES; i++) {
			uint32_t place = (uint32_t)((uint64_t)i * region->n_slots / SPACE_SAMPLES);
			uint32_t slot = (r << ns->geo.shift) + place;
			uint8_t state = ns_slot_state(ns, slot);

			if (state == SHM_PARTIAL || state == SHM_QUARANTINE)
				cost += UINT32_MAX;
			else if (state == SHM_REGISTERED)
				cost += ns->heat.clock + 1 - (ns->heat.clock - ns->blocks[slot].heat.touch);
		}
		if (cost < best) {
			best = cost;
			found = r;
		}
	}
	return found;
}

/* Condemns all of a region; false: somebody holds or writes something in it, and nothing has changed. */
static bool space_condemn_region(struct store *store, struct store_ns *sn, uint32_t r)
{
	struct ns *ns = &sn->ns;
	uint32_t from = store->n_victims, n = ns->regions[r].n_slots, touch = 0;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t slot = (r << ns->geo.shift) + i;
		uint8_t state = ns_slot_state(ns, slot);

		if (state == SHM_PARTIAL || state == SHM_QUARANTINE ||
		    (state == SHM_REGISTERED && lease_is_held(ns, slot, &touch)))
			return false;
	}
	for (uint32_t i = 0; i < n; i++) {
		uint32_t slot = (r << ns->geo.shift) + i;

		if (ns_slot_state(ns, slot) == SHM_REGISTERED && space_condemn(store, ns, slot) < 0) {
			space_pardon_all(store, from);
			return false;
		}
	}
	if (space_pardon_pinned(store, from)) {
		space_pardon_all(store, from);
		return false;
	}
	ns_region_drain(ns, r, true);
	return true;
}

/* Slots that @sn would have of @bytes more: whole regions and what is left over, as far as its table of regions has room. */
static uint64_t space_slots_of(const struct store_ns *sn, uint64_t bytes)
{
	const struct ns_geometry *geo = &sn->ns.geo;
	uint64_t whole = bytes / geo->region_bytes, rest = bytes % geo->region_bytes, slots, area;
	uint64_t unused = space_unused(sn), room = sn->max_bytes - sn->used_bytes;

	if (whole >= unused) {
		slots = unused * geo->slots_per_region;
	} else {
		slots = whole * geo->slots_per_region;
		if (rest >= space_shortest(sn, room - whole * geo->region_bytes, unused - whole))
			slots += ns_region_slots(geo, sn->desc.lanes, rest, &area);
	}
	return slots < geo->max_slots - sn->ns.n_slots ? slots : geo->max_slots - sn->ns.n_slots;
}

static void space_undo(struct store *store)
{
	space_pardon_all(store, 0);
	while (store->n_plan) {
		struct store_plan *p = &store->plan[--store->n_plan];

		ns_region_drain(&p->sn->ns, p->region, false);
	}
}

/* Plans to take regions from others until @need slots more would fit.  Returns the slots that would come. */
static uint64_t space_plan(struct store *store, struct store_ns *sn, uint64_t need)
{
	uint64_t gain = 0, slots = 0, room = sn->max_bytes - sn->used_bytes;
	const struct store_ns *not = NULL;

	while (slots < need && gain < room && store->n_plan < STORE_MAX_PLAN) {
		uint64_t more = gain + sn->ns.geo.region_bytes;
		struct store_ns *payer;
		uint32_t r;

		if (space_slots_of(sn, more < room ? more : room) == slots)
			break; /* whatever came, there would be no place for it */
		payer = space_payer(store, sn, gain, not );
		if (!payer)
			break;
		r = space_cheapest_region(payer);
		if (r == NS_NONE || !space_condemn_region(store, payer, r)) {
			if (not )
				break;
			not = payer; /* its cheapest region is in use: try one other namespace, then do without */
			continue;
		}
		store->plan[store->n_plan++] = (struct store_plan){ .sn = payer, .region = r };
		gain += payer->memory[r].size;
		slots = space_slots_of(sn, gain < room ? gain : room);
	}
	if (slots == 0)
		space_undo(store); /* not enough for even one: nobody pays for nothing */
	return slots;
}

/* ---- own victims ---- */

/* What may be looked at while the last search of everything is known to have failed. */
#define SPACE_LOOKS 65536u
#define SPACE_LOOK_NS 1000u /* ten times what a look takes, about */

/* @ready: only what waits to be dropped, nothing that would be lost.  *looks: how many may be looked at. */
static uint32_t space_own_pass(struct store *store, struct ns *ns, uint32_t need, bool ready, uint64_t *looks)
{
	uint64_t all = (uint64_t)ns->heat.in_order + ns->heat.grace_live + ns->heat.clean_live + ns->heat.parked;
	uint64_t budget = all < *looks ? all : *looks, given = budget;
	uint32_t got = 0;
	bool more = true;

	while (got < need && more) {
		uint32_t from = store->n_victims, slot;

		while (got < need && (more = ready ? heat_pick_ready(&ns->heat, &slot, &budget)
		                                   : heat_pick(&ns->heat, &slot, &budget))) {
			if (space_condemn(store, ns, slot) < 0) {
				heat_place(&ns->heat, slot);
				more = false;
				break;
			}
			got++;
		}
		got -= space_pardon_pinned(store, from);
	}
	*looks -= given - budget;
	return got;
}

static bool space_is_loose(struct ns *ns, uint32_t slot)
{
	return ns_slot_state(ns, slot) == SHM_REGISTERED && ns->blocks[slot].children == 0 &&
	       !lease_is_pinned(ns, slot) && block_find(ns, ns->records[slot].key) == slot; /* not condemned yet */
}

/* Condemns @slot if it is a leaf, then its parent if that has no other child, and so on.  false: no memory. */
static bool space_sweep_up(struct store *store, struct ns *ns, uint32_t slot, uint32_t need, uint32_t *got)
{
	while (*got < need && slot != NS_NONE && space_is_loose(ns, slot)) {
		uint32_t parent = block_parent(ns, slot);

		if (space_condemn(store, ns, slot) < 0)
			return false;
		(*got)++;
		slot = parent;
	}
	return true;
}

/* Heat looks at each block a bounded number of times, or held ones would be asked for ever.  What it did not come to is found by looking at
 * every slot once, from where the last sweep has stopped. */
static uint32_t space_own_sweep(struct store *store, struct store_ns *sn, uint32_t need, uint64_t *looks)
{
	struct ns *ns = &sn->ns;
	uint32_t from = store->n_victims, got = 0, n = ns->geo.n_regions << ns->geo.shift;
	bool more = true;

	for (uint32_t left = n; left > 0 && *looks > 0 && got < need && more;) {
		uint32_t r = ns_region_of(ns, sn->sweep), next = (r + 1) << ns->geo.shift;
		uint32_t end = (r << ns->geo.shift) + ns->regions[r].n_slots;

		if (sn->sweep < end) {
			more = space_sweep_up(store, ns, sn->sweep, need, &got);
			(*looks)--;
			next = sn->sweep + 1;
		}
		left -= next - sn->sweep < left ? next - sn->sweep : left;
		sn->sweep = next < n ? next : 0;
	}
	return got - space_pardon_pinned(store, from);
}

/* A search that finds too little has looked at every block, which takes a second where there are ten millions.  For ten times as long further
 * ones look at fewer, going on where the last one stopped: what clients let go of is not told to us. */
static uint32_t space_own(struct store *store, struct store_ns *sn, uint32_t need, bool ready)
{
	uint64_t given = sn->ns.now_ns < sn->barren_until_ns ? SPACE_LOOKS : UINT64_MAX, looks = given, swept = given;
	struct ns *ns = &sn->ns;
	uint32_t got = space_own_pass(store, ns, need, ready, &looks);

	if (ready || got >= need)
		return got;
	ns->heat.ignore_retained = true;
	got += space_own_pass(store, ns, need - got, false, &looks);
	ns->heat.ignore_retained = false;
	if (got < need)
		got += space_own_sweep(store, sn, need - got, &swept);
	looks = given - looks + (given - swept);
	if (got < need && given == UINT64_MAX && looks > 2 * SPACE_LOOKS)
		sn->barren_until_ns = ns->now_ns + looks * SPACE_LOOK_NS;
	return got;
}

static uint32_t space_execute(struct store *store)
{
	uint32_t dropped = store->n_victims;

	for (uint32_t i = 0; i < dropped; i++) {
		struct store_victim v = store->victims[i];
		enum why_reason reason = WHY_DROPPED;

		if (v.ns->regions[ns_region_of(v.ns, v.slot)].draining)
			reason = WHY_REBALANCED;
		else if (v.ns->blocks[v.slot].heat.flags & HEAT_F_RELEASED)
			reason = WHY_RELEASED;
		block_forget(v.ns, v.slot, reason);
	}
	store->n_victims = 0;
	while (store->n_plan) {
		struct store_plan *p = &store->plan[--store->n_plan];

		space_region_drop(p->sn, p->region);
	}
	return dropped;
}

int space_make(struct store *store, struct store_ns *sn, uint32_t n, enum space_how how, uint32_t *ret_dropped)
{
	struct ns *ns = &sn->ns;
	bool help = how != SPACE_NOW && offload_can_help(sn), ready = help || how == SPACE_CLEAN;
	uint64_t coming;

	assert(store->n_victims == 0 && store->n_plan == 0);
	if (n > ns->geo.max_slots)
		return STORE_E_NOSPACE;
	/* Device memory that others gave back comes a little later: nobody gives more meanwhile. */
	while (ns->n_free < n &&
	       (space_grow(sn) || (space_may_grow(sn) && !space_is_coming(sn) && space_take_empty(store, sn))))
		;
	if (ns->n_free >= n)
		return 0;
	if (how != SPACE_NOW && space_is_coming(sn))
		return STORE_E_WAIT;
	coming = how == SPACE_CLEAN || space_is_coming(sn) ? 0 : space_plan(store, sn, n - ns->n_free);
	if (ns->n_free + coming < n) {
		uint32_t need = (uint32_t)(n - ns->n_free - coming);

		if (space_own(store, sn, need, ready) < need) {
			space_undo(store);
			return help ? STORE_E_WAIT : STORE_E_NOSPACE;
		}
	}
	*ret_dropped += space_execute(store);
	while (ns->n_free < n && space_grow(sn))
		;
	if (ns->n_free >= n)
		return 0;
	if (how != SPACE_NOW && space_is_coming(sn))
		return STORE_E_WAIT;
	/* The system did not give the memory that the plan had counted on: the last resort is our own blocks. */
	log_warn("namespace %s: memory taken back could not be had again", sn->desc.name);
	if (how == SPACE_CLEAN || space_own(store, sn, n - ns->n_free, false) < n - ns->n_free) {
		space_undo(store);
		return STORE_E_NOSPACE;
	}
	*ret_dropped += space_execute(store);
	return 0;
}
