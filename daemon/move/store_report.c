/* What people ask of the store: reports, why, and the check of every invariant. */
#include <assert.h>
#include <errno.h>

#include "base/metrics.h"
#include "base/thread.h"
#include "move/transfer.h"

uint32_t store_n_namespaces(const struct store *store)
{
	return store->n_namespaces;
}

/* Looks at every session of it, so that the counts include what has been matched up to now. */
static void report_live(struct ns *ns, struct ns_report *ret)
{
	list_for_each(it, &ns->holders) {
		struct holder *h = container_of(it, struct holder, in_ns);

		store_holder_count(h);
		ret->pins += lease_claimed_pins(h);
		ret->holds += h->own_total;
	}
	ret->looked_up = ns->counts.looked_up;
	ret->hits = ns->counts.hits;
	ret->hits_lower = ns->counts.hits_lower;
	ret->misses = ns->counts.misses;
}

static void report_lower(const struct store_ns *sn, struct ns_report *ret)
{
	static const char *const
		writes[] = { [STORE_WRITE_ON_EVICT] = "on-evict", [STORE_WRITE_THROUGH] = "through", [STORE_WRITE_IF_HIT] = "if-hit", [STORE_WRITE_NEVER] = "never" };
	const struct lower *l = sn->ns.lower;
	uint64_t slot = sn->desc.lane_bytes * sn->desc.lanes;

	ret->write = l ? writes[sn->write] : "";
	if (!l)
		return;
	ret->lower_max_slots = sn->lower_max < l->n_areas
	                               ? (uint32_t)((uint64_t)l->max_slots * sn->lower_max / l->n_areas)
	                               : l->max_slots;
	ret->lower_slots = l->n_slots;
	ret->lower_free = l->n_free;
	ret->lower_used = l->n_present;
	ret->lower_writing = l->n_writing;
	ret->lower_stuck = l->n_stuck;
	ret->lower_retired = l->n_retired;
	ret->lower_bytes = l->n_slots * slot;
	ret->lower_metadata_bytes = lower_bytes(l);
	ret->twins = sn->ns.twins;
	ret->transfers = sn->n_transfers;
	ret->clean = sn->ns.heat.clean_live;
	ret->offloaded = l->counts.offloaded;
	ret->onboarded = l->counts.onboarded;
	ret->lost = l->counts.lost;
	ret->draining = sn->drain_end - sn->drain_next;
}

void store_report(struct store *store, uint32_t i, struct ns_report *ret_report)
{
	assert(i < store->n_namespaces);
	list_for_each(it, &store->namespaces) {
		struct store_ns *sn = store_ns_at(it);
		struct ns *ns = &sn->ns;
		struct ns_report r = {
			.name = sn->desc.name,
			.device = sn->pool ? sn->pool->device : NULL,
			.offline = sn->lost,
			.desc = &sn->desc,
			.fingerprint = ns->fingerprint,
			.share_bytes = sn->share_bytes,
			.max_bytes = sn->max_bytes,
			.used_bytes = sn->used_bytes,
			.n_slots = ns->n_slots,
			.free = ns->n_free,
			.used = ns->n_used,
			.quarantined = ns->n_quarantined,
			.partial = ns->n_partial,
			.holders = ns->n_holders,
			.max_slots = ns->geo.max_slots,
			.leaves_parked = ns->heat.parked,
			.grace = ns->heat.grace_live,
			.stored = ns->counts.stored,
			.dropped = ns->counts.dropped,
			.deduplicated = ns->counts.deduplicated,
			.aborted = ns->counts.aborted,
			.metadata_bytes = ns_metadata_bytes(ns),
		};

		if (i-- > 0)
			continue;
		for (uint32_t k = 0; k < ns->geo.n_regions; k++)
			r.regions += ns->regions[k].serial != 0;
		report_live(ns, &r);
		report_lower(sn, &r);
		*ret_report = r;
		return;
	}
}

void holder_report(const struct holder *h, struct holder_report *ret_report)
{
	*ret_report = (struct holder_report){ .ns_name = h->ns->desc->name,
		                              .device = holder_device(h),
		                              .writable = h->writable,
		                              .holds = h->own_total };
	list_for_each(it, &h->leases) {
		const struct lease *lease = container_of(it, struct lease, in_holder);

		if (lease->partial->aborted)
			ret_report->quarantined++;
		else
			ret_report->writing++;
	}
	if (!h->page)
		return;
	ret_report->pins = lease_claimed_pins(h);
	ret_report->looked_up = atomic_load_explicit(&h->page->looked_up, memory_order_relaxed);
	ret_report->hits = atomic_load_explicit(&h->page->hits, memory_order_relaxed);
}

static struct key report_key(const struct ns *ns, uint32_t slot)
{
	return key_from(ns->records[slot].key, ns->desc->key_bytes);
}

static void report_block_host(struct ns *ns, uint32_t slot, struct block_report *ret)
{
	uint32_t parent = block_parent(ns, slot);

	ret->tiers |= STORE_IN_G2;
	ret->slot = slot;
	ret->generation = ns_slot_generation(ns, slot);
	ret->children = ns->blocks[slot].children;
	ret->has_parent = ns->records[slot].parent != 0;
	ret->region = ns->regions[ns_region_of(ns, slot)].serial;
	ret->pins = lease_pins(ns, slot, &ret->holders);
	ret->parent_present = parent != NS_NONE;
	if (parent != NS_NONE)
		ret->parent = report_key(ns, parent);
	ret->n_child_slots = block_children(ns, slot, ret->child_slots, 16);
	for (uint32_t i = 0; i < ret->n_child_slots; i++)
		ret->child_keys[i] = report_key(ns, ret->child_slots[i]);
}

static void report_block_lower(const struct ns *ns, uint32_t lower, struct block_report *ret)
{
	const struct lower_copy *c = lower_at(ns->lower, lower);

	ret->tiers |= STORE_IN_G3;
	ret->has_parent = c->parent != 0;
	ret->lower_area = lower_area_of(ns->lower, lower);
	ret->lower_place = lower_place_of(ns->lower, lower);
	ret->lower_reads = c->busy;
}

/* Is it in a pool? */
static uint8_t report_block_pools(const struct store_ns *hub, const uint8_t *key)
{
	list_for_each(it, &hub->store->namespaces) {
		const struct store_ns *sn = store_ns_at(it);

		if (sn->hub == hub && !sn->lost && block_find(&sn->ns, key) != NS_NONE)
			return STORE_IN_G1;
	}
	return 0;
}

int store_block(struct store *store, const char *name, const struct key *key, struct block_report *ret)
{
	struct store_ns *sn = store_find(store, name);
	uint32_t slot, lower;
	uint8_t tiers;

	if (!sn || key->len != sn->desc.key_bytes)
		return STORE_E_NOENT;
	tiers = report_block_pools(sn, key->bytes);
	slot = block_find(&sn->ns, key->bytes);
	lower = sn->ns.lower ? lower_find(sn->ns.lower, key->bytes) : LOWER_NONE;
	if (slot == NS_NONE && lower == LOWER_NONE && tiers == 0)
		return STORE_E_NOENT;
	*ret = (struct block_report){ .key = *key,
		                      .state = slot != NS_NONE ? "registered"
		                               : tiers         ? "on a device"
		                                               : "below",
		                      .slot = STORE_NO_SLOT,
		                      .tiers = tiers };
	if (lower != LOWER_NONE)
		report_block_lower(&sn->ns, lower, ret);
	if (slot != NS_NONE)
		report_block_host(&sn->ns, slot, ret);
	return 0;
}

int store_why(struct store *store, const char *name, const struct key *key, uint64_t now_ns, struct why_answer *ret)
{
	struct store_ns *sn = store_find(store, name);
	uint32_t slot;

	if (!sn || key->len != sn->desc.key_bytes)
		return STORE_E_NOENT;
	why_ask(sn->ns.why, index_hash(&sn->ns.index, key->bytes).tag, now_ns, ret);
	slot = block_find(&sn->ns, key->bytes);
	if (slot != NS_NONE || (sn->ns.lower && lower_find(sn->ns.lower, key->bytes) != LOWER_NONE)) {
		ret->reason = WHY_PRESENT;
		ret->ago_ns = 0;
		ret->missing_parent = slot != NS_NONE && sn->ns.records[slot].parent != 0 &&
		                      block_parent(&sn->ns, slot) == NS_NONE;
	}
	return 0;
}

/* ---- gauges and the check ---- */

void store_metrics(struct store *store)
{
	uint64_t of[2][5] = { 0 }, lower[5] = { 0 }; /* of: host memory, pools */
	uint64_t resident = 0, leases = 0, pins = 0;

	list_for_each(it, &store->namespaces) {
		const struct store_ns *sn = store_ns_at(it);
		uint64_t *g = of[sn->pool != NULL];

		g[0] += sn->ns.n_slots;
		g[1] += sn->ns.n_free;
		g[2] += sn->ns.n_used + sn->ns.n_partial;
		g[3] += sn->ns.n_quarantined;
		g[4] += sn->used_bytes;
		resident += sn->ns.n_used;
		if (sn->ns.lower) {
			lower[0] += sn->ns.lower->n_slots;
			lower[1] += sn->ns.lower->n_free;
			lower[2] += sn->ns.lower->n_present + sn->ns.lower->n_writing;
			lower[3] += sn->ns.lower->n_stuck + sn->ns.lower->n_retired;
			lower[4] += sn->ns.lower->n_retired;
			resident += sn->ns.lower->n_present - sn->ns.twins;
		}
		list_for_each(hit, &sn->ns.holders) {
			struct holder *h = container_of(hit, struct holder, in_ns);

			store_holder_count(h);
			leases += h->n_leases;
			pins += h->own_total + lease_claimed_pins(h);
		}
	}
	metrics_set(METRIC_g1_slots, of[1][0]);
	metrics_set(METRIC_g1_slots_free, of[1][1]);
	metrics_set(METRIC_g1_slots_used, of[1][2]);
	metrics_set(METRIC_g1_slots_quarantined, of[1][3]);
	metrics_set(METRIC_g1_bytes, of[1][4]);
	metrics_set(METRIC_g2_slots, of[0][0]);
	metrics_set(METRIC_g2_slots_free, of[0][1]);
	metrics_set(METRIC_g2_slots_used, of[0][2]);
	metrics_set(METRIC_g2_slots_quarantined, of[0][3]);
	metrics_set(METRIC_g3_slots, lower[0]);
	metrics_set(METRIC_g3_slots_free, lower[1]);
	metrics_set(METRIC_g3_slots_used, lower[2]);
	metrics_set(METRIC_g3_slots_quarantined, lower[3]);
	metrics_set(METRIC_g3_slots_retired, lower[4]);
	metrics_set(METRIC_blocks_resident, resident);
	metrics_set(METRIC_g2_bytes, of[0][4]);
	metrics_set(METRIC_leases, leases);
	metrics_set(METRIC_pins, pins);
	metrics_set(METRIC_namespaces, store->n_namespaces);
}

/* Every block that an onboard keeps is named by one that is under way. */
static void check_kept(const struct store_ns *sn)
{
	const struct ns *ns = &sn->ns;
	uint64_t kept = 0, named = 0;

	for (uint32_t slot = 0; ns->kept && slot < ns->geo.n_regions << ns->geo.shift; slot++)
		kept += ns->kept[slot];
	list_for_each(it, &sn->store->mover.onboards) {
		const struct store_onboard *o = container_of(it, struct store_onboard, link);

		for (uint32_t i = 0; ns->kept && o->holder_ns == sn && i < o->next; i++) {
			if (o->status[i] != STORE_ONBOARD_DONE)
				continue;
			assert(ns->kept[o->slots[i]] > 0 && ns_slot_generation(ns, o->slots[i]) == o->generations[i]);
			named++;
		}
	}
	assert(kept == named);
}

struct check_counts {
	uint32_t by_state[4], order, parked, grace, clean, twins, reading;
	uint64_t children, parented, leaving, counted;
};

static void check_slot(const struct ns *ns, uint32_t slot, struct check_counts *c)
{
	const struct block *b = &ns->blocks[slot];
	uint8_t state = ns_slot_state(ns, slot);

	assert(state <= SHM_QUARANTINE);
	c->by_state[state]++;
	if (state != SHM_REGISTERED) {
		assert(b->heat.where == HEAT_NOWHERE);
		c->reading += state == SHM_PARTIAL &&
		              ((ns->moving && ns->moving[slot]) || (ns->copies && ns->copies[slot]));
		return;
	}
	assert(block_find(ns, ns->records[slot].key) == slot);
	/* Or it could never be dropped.  What is being written down is in the hands of its transfer. */
	assert(b->heat.where != HEAT_NOWHERE);
	assert(b->heat.where != HEAT_COPYING || ns->moving[slot]);
	assert(b->heat.where != HEAT_PARKED || b->children > 0);
	c->order += b->heat.where == HEAT_ORDER;
	c->parked += b->heat.where == HEAT_PARKED;
	c->grace += b->heat.where == HEAT_GRACE;
	c->clean += b->heat.where == HEAT_CLEAN;
	c->twins += ns->lower && lower_find(ns->lower, ns->records[slot].key) != LOWER_NONE;
	c->children += b->children;
	c->leaving += b->leaving;
	c->counted += (b->heat.flags & HEAT_F_COUNTED) && b->parent != NS_NONE &&
	              ns_slot_generation(ns, b->parent) == b->parent_generation &&
	              ns_slot_state(ns, b->parent) == SHM_REGISTERED;
	c->parented += block_parent(ns, slot) != NS_NONE;
}

static void check_partials(const struct ns *ns, uint32_t reading)
{
	uint32_t n = 0;
	uint64_t last = 0;

	list_for_each(it, &ns->partials) {
		const struct partial *p = container_of(it, struct partial, by_deadline);

		assert(!p->aborted && p->deadline_ns >= last && lease_partial(ns, p->slot) == p);
		assert(ns_slot_state(ns, p->slot) == SHM_PARTIAL);
		last = p->deadline_ns;
		n++;
	}
	assert(n + reading == ns->n_partial);
}

static void check_ns(const struct store_ns *sn)
{
	const struct ns *ns = &sn->ns;
	struct check_counts c = { 0 };
	uint64_t bytes = 0;
	uint32_t free_slots = 0, n_slots = 0;

	for (uint32_t r = 0; r < ns->geo.n_regions; r++) {
		const struct ns_region *region = &ns->regions[r];
		uint32_t before = c.by_state[SHM_FREE];

		for (uint32_t i = 0; i < region->n_slots; i++)
			check_slot(ns, (r << ns->geo.shift) + i, &c);
		assert(c.by_state[SHM_FREE] - before == region->n_free && !region->draining);
		free_slots += region->n_free;
		n_slots += region->n_slots;
		bytes += sn->memory[r].size;
	}
	assert(free_slots == ns->n_free && n_slots == ns->n_slots && bytes == sn->used_bytes);
	assert(c.by_state[SHM_PARTIAL] == ns->n_partial && c.by_state[SHM_REGISTERED] == ns->n_used);
	assert(c.by_state[SHM_QUARANTINE] == ns->n_quarantined);
	assert(ns->n_free + ns->n_used + ns->n_partial + ns->n_quarantined == ns->n_slots);
	assert(ns->index.used == ns->n_used);
	assert(c.order == ns->heat.in_order && c.parked == ns->heat.parked && c.grace == ns->heat.grace_live &&
	       c.clean == ns->heat.clean_live);
	assert(c.children == c.parented && c.leaving == c.counted);
	assert(c.twins == ns->twins);
	if (ns->lower)
		lower_check(ns->lower);
	assert(ns->counts.stored == ns->n_used + (ns->lower ? ns->lower->n_present : 0) - ns->twins +
	                                    ns->counts.dropped + ns->counts.deduplicated);
	assert(ns->counts.looked_up == ns->counts.hits + ns->counts.hits_lower + ns->counts.misses);
	assert(sn->used_bytes <= sn->max_bytes);
	check_partials(ns, c.reading);
	check_kept(sn);
}

void store_check(struct store *store)
{
	struct tier *host = store->config.host;
	struct tier_stat stat;
	uint64_t used = 0;

	assert(store->n_victims == 0 && store->n_plan == 0);
	list_for_each(it, &store->namespaces) {
		const struct store_ns *sn = store_ns_at(it);

		check_ns(sn);
		used += sn->pool ? 0 : sn->used_bytes;
		assert(!sn->hub || (sn->pool && sn->hub->n_pools > 0 && !sn->ns.lower));
	}
	host->ops->stat(host, &stat);
	assert(stat.used_bytes == used && used <= stat.size_bytes);
}
