/* A namespace's part of the tier below host memory: areas, room in them, and what recovery brings back.
 *
 * Owns each namespace's struct lower.  An area belongs to one namespace at a time; a namespace takes areas as it needs them, up to its maximum;
 * when none is free, one that is under its guaranteed share takes one from whoever is most over its own; then it drops its own coldest copies.
 * What an area's owner and a slot's tag say on disk is in lower_tag.h.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/metrics.h"
#include "base/thread.h"
#include "move/lower_tag.h"
#include "move/transfer.h"

bool lower_is_online(const struct store *store)
{
	return store->config.lower && store->mover.online;
}

/* ---- namespaces ---- */

static bool lower_twin(void *ctx, const uint8_t *key, uint32_t *touch)
{
	struct ns *ns = ctx;
	uint32_t slot = block_find(ns, key);

	if (slot == NS_NONE)
		return false;
	*touch = ns->blocks[slot].heat.touch;
	(void)lease_is_held(ns, slot, touch);
	return true;
}

static void lower_owner(const struct ns *ns, struct tier_owner *ret)
{
	struct lower_owner o = { .version = LOWER_OWNER_VERSION, .bytes = sizeof(o) };

	memcpy(o.salt, ns->index.salt, sizeof(o.salt));
	memcpy(&o.desc, ns->desc, sizeof(o.desc));
	memset(ret, 0, sizeof(*ret));
	ret->length = sizeof(o);
	memcpy(ret->bytes, &o, sizeof(o));
}

int store_lower_init(struct store_ns *sn)
{
	struct tier_lower *t = sn->store->config.lower;
	struct tier_area_shape shape = { .lane_bytes = sn->desc.lane_bytes, .lanes = sn->desc.lanes };
	struct ns *ns = &sn->ns;
	struct lower_config c = { .key_bytes = sn->desc.key_bytes, .salt = ns->index.salt, .twin = lower_twin, .ctx = ns };
	int r;

	if (!t)
		return 0;
	c.area_slots = t->ops->area_slots(t, &shape);
	c.n_areas = t->ops->areas(t);
	if (c.area_slots == 0) {
		log_warn("namespace %s: slices of %llu bytes are not for the tier below: it takes multiples of 4096",
		         sn->desc.name, (unsigned long long)sn->desc.lane_bytes);
		return 0;
	}
	if ((uint64_t)c.n_areas * c.area_slots > UINT32_MAX / 4)
		c.n_areas = UINT32_MAX / 4 / c.area_slots;
	c.max_slots = c.n_areas * c.area_slots;
	ns->moving = calloc((size_t)ns->geo.n_regions << ns->geo.shift, 1);
	ns->kept = calloc((size_t)ns->geo.n_regions << ns->geo.shift, sizeof(*ns->kept));
	ns->lower = ns->moving && ns->kept ? calloc(1, sizeof(*ns->lower)) : NULL;
	r = ns->lower ? lower_init(ns->lower, &c) : -ENOMEM;
	if (r == 0)
		return 0;
	free(ns->lower);
	ns->lower = NULL;
	if (r < 0)
		return r;
	log_warn("namespace %s: its blocks are too many for the tier below", sn->desc.name);
	return 0;
}

void store_lower_limits(struct store_ns *sn, const struct store_policy *policy)
{
	struct tier_lower *t = sn->store->config.lower;
	struct tier_lower_stat stat;
	uint64_t area;

	sn->write = policy ? policy->write : sn->store->config.write;
	if (!t)
		return;
	t->ops->stat(t, &stat);
	area = stat.size_bytes / t->ops->areas(t);
	sn->lower_share = policy && area ? (uint32_t)(policy->lower_share_bytes / area) : 0;
	sn->lower_max = UINT32_MAX;
	if (policy && area && policy->lower_max_bytes / area < UINT32_MAX)
		sn->lower_max = (uint32_t)(policy->lower_max_bytes / area);
}

void store_lower_deinit(struct store_ns *sn)
{
	struct store *store = sn->store;
	struct tier_lower *t = store->config.lower;

	if (!sn->ns.lower)
		return;
	assert(sn->n_transfers == 0);
	for (uint32_t a = 0; a < sn->ns.lower->n_areas; a++) {
		if (store->mover.area_ns[a] != sn)
			continue;
		store->mover.area_ns[a] = NULL;
		if (!store->mover.stopping) /* the daemon's end leaves them to the next one */
			t->ops->area_drop(t, a);
	}
	lower_deinit(sn->ns.lower);
	free(sn->ns.lower);
	sn->ns.lower = NULL;
}

void store_lower_tag(const struct ns *ns, const struct lower_what *what, struct tier_tag *ret)
{
	struct lower_tag tag = { .parent = what->parent,
		                 .sum = what->sum,
		                 .touch = what->touch,
		                 .key_bytes = (uint8_t)ns->desc->key_bytes };

	memcpy(tag.key, what->key, ns->desc->key_bytes);
	memcpy(tag.fingerprint, ns->fingerprint, sizeof(tag.fingerprint));
	memset(ret, 0, sizeof(*ret));
	memcpy(ret->bytes, &tag, sizeof(tag));
}

/* ---- room ---- */

void lower_drop(struct store_ns *sn, uint32_t lower, enum why_reason reason)
{
	struct tier_lower *t = sn->store->config.lower;
	struct ns *ns = &sn->ns;
	const struct lower_copy *c = lower_at(ns->lower, lower);

	uint32_t slot = block_find(ns, c->key);

	if (slot != NS_NONE) {
		ns->twins--;
		if (reason != WHY_DROPPED_LOWER) /* where that is the coldest below, it is the coldest here as well */
			heat_unclean(&ns->heat, slot);
	} else {
		why_note(ns->why, index_hash(&ns->index, c->key).tag, reason, ns->now_ns);
		ns->counts.dropped++;
		metrics_add(METRIC_blocks_dropped, 1);
	}
	lower_forget(ns->lower, lower);
	t->ops->forget(t, lower_area_of(ns->lower, lower), lower_place_of(ns->lower, lower));
}

/* Is nothing of the area being copied? */
static bool lower_area_is_quiet(const struct store_ns *sn, uint32_t area)
{
	const struct lower *l = sn->ns.lower;

	for (uint32_t p = 0; p < l->areas[area].n_slots; p++) {
		const struct lower_copy *c = lower_at(l, (area << l->shift) + p);

		if (c->state == LOWER_WRITING || c->state == LOWER_STUCK || c->busy)
			return false;
	}
	return true;
}

static void lower_area_give(struct store_ns *sn, uint32_t area)
{
	struct store *store = sn->store;
	struct lower *l = sn->ns.lower;

	for (uint32_t p = 0; p < l->areas[area].n_slots; p++)
		if (lower_at(l, (area << l->shift) + p)->state == LOWER_PRESENT)
			lower_drop(sn, (area << l->shift) + p, WHY_REBALANCED);
	lower_area_remove(l, area);
	store->mover.area_ns[area] = NULL;
	sn->lower_areas--;
	store->config.lower->ops->area_drop(store->config.lower, area);
}

static int64_t lower_over(const struct store_ns *sn)
{
	return (int64_t)sn->lower_areas - (int64_t)sn->lower_share;
}

/* An area of whoever is most over its share, if that is more than @sn would be. */
static bool lower_take_from_others(struct store_ns *sn)
{
	struct store *store = sn->store;
	struct store_ns *payer = NULL;
	int64_t most = lower_over(sn) + 1;

	if (most < 0)
		most = 0;
	list_for_each(it, &store->namespaces) {
		struct store_ns *other = store_ns_at(it);

		if (other != sn && other->ns.lower && lower_over(other) > most) {
			most = lower_over(other);
			payer = other;
		}
	}
	for (uint32_t a = 0; payer && a < payer->ns.lower->n_areas; a++) {
		if (store->mover.area_ns[a] != payer || !lower_area_is_quiet(payer, a))
			continue;
		lower_area_give(payer, a);
		return true;
	}
	return false;
}

static bool lower_grow(struct store_ns *sn)
{
	struct store *store = sn->store;
	struct tier_lower *t = store->config.lower;
	struct tier_area_shape shape = { .lane_bytes = sn->desc.lane_bytes, .lanes = sn->desc.lanes };
	struct tier_owner owner;
	struct tier_area area;

	if (sn->lower_areas >= sn->lower_max || (t->ops->areas_free(t) == 0 && !lower_take_from_others(sn)))
		return false;
	lower_owner(&sn->ns, &owner);
	if (t->ops->area_make(t, &shape, &owner, &area) != 0)
		return false;
	if (area.id >= sn->ns.lower->n_areas) { /* more slots than have numbers */
		t->ops->area_drop(t, area.id);
		return false;
	}
	assert(!store->mover.area_ns[area.id]);
	lower_area_add(sn->ns.lower, area.id, area.n_slots);
	store->mover.area_ns[area.id] = sn;
	sn->lower_areas++;
	return true;
}

/* Slots set free in one go, and as many are left when that is done: the tier does not overwrite a slot before it is noted on the drive that it is free,
 * and notes many in one write.  Twice as many as are copied at a time: so that is noted by the time it is their turn. */
#define AHEAD_PART 256u /* of all slots, if that is less */

uint32_t lower_make(struct store_ns *sn)
{
	struct ns *ns = &sn->ns;
	struct lower *l = ns->lower;
	uint64_t budget = (uint64_t)l->n_present + 1;
	uint32_t most = 2 * sn->store->config.max_transfers;
	uint32_t ahead = l->n_slots / AHEAD_PART < most ? l->n_slots / AHEAD_PART : most;
	uint32_t wanted = l->n_free <= ahead ? 2 * ahead + 1 : 1;

	while (l->n_free < wanted) {
		uint32_t victim;

		if (lower_grow(sn))
			continue;
		victim = lower_pick(l, ns->heat.clock, &budget);
		if (victim == LOWER_NONE)
			break;
		lower_drop(sn, victim, WHY_DROPPED_LOWER);
	}
	return l->n_free > 0 ? lower_take(l) : LOWER_NONE;
}

/* ---- what the tier asks and tells ---- */

static bool lower_on_tag(void *ctx, uint32_t area, uint32_t place, struct tier_tag *ret)
{
	struct store *store = ctx;
	const struct store_ns *sn = store->mover.area_ns[area];
	const struct lower *l = sn ? sn->ns.lower : NULL;
	const struct lower_copy *c;

	if (!l || place >= l->areas[area].n_slots)
		return false;
	c = lower_at(l, (area << l->shift) + place);
	if (c->state != LOWER_PRESENT)
		return false;
	store_lower_tag(&sn->ns,
	                &(struct lower_what){ .key = c->key, .parent = c->parent, .sum = c->sum, .touch = c->heat.touch },
	                ret);
	return true;
}

static bool lower_on_area(void *ctx, const struct tier_area *area, const struct tier_area_shape *shape,
                          const struct tier_owner *owner)
{
	struct store *store = ctx;
	struct lower_owner o;
	struct store_ns *sn;

	if (!lower_owner_read(owner, shape, &o))
		return false;
	sn = store_ns_recover(store, &o.desc, o.salt);
	if (!sn || !sn->ns.lower || area->id >= sn->ns.lower->n_areas || area->n_slots > 1u << sn->ns.lower->shift ||
	    store->mover.area_ns[area->id])
		return false;
	lower_area_add(sn->ns.lower, area->id, area->n_slots);
	sn->ns.lower->areas[area->id].foreign = memcmp(sn->ns.index.salt, o.salt, sizeof(o.salt)) != 0;
	store->mover.area_ns[area->id] = sn;
	sn->lower_areas++;
	return true;
}

static void lower_found(struct store *store, const struct mover_found *f)
{
	uint32_t area = f->area, place = f->place, slot;
	struct store_ns *sn = store->mover.area_ns[area];
	struct lower_what what;
	struct lower_tag tag;

	lower_tag_read(&f->tag, &tag);
	if (!sn || tag.key_bytes != sn->desc.key_bytes || tag.sum == 0 ||
	    memcmp(tag.fingerprint, sn->ns.fingerprint, sizeof(tag.fingerprint)) != 0)
		return;
	slot = (area << sn->ns.lower->shift) + place;
	if (!lower_take_at(sn->ns.lower, slot))
		return;
	/* The clock of the run before goes on where it stood, so that what was cold is cold. */
	store_ns_clock_follow(sn, tag.touch);
	what = (struct lower_what){ .key = tag.key, .parent = tag.parent, .sum = tag.sum, .touch = tag.touch };
	if (sn->ns.lower->areas[area].foreign) /* somebody attached before we came to it: kinship is lost, nothing else */
		what.parent = 0;
	if (lower_register(sn->ns.lower, slot, &what) != 0) { /* twice */
		store->config.lower->ops->forget(store->config.lower, area, place);
		return;
	}
	if (block_find(&sn->ns, tag.key) != NS_NONE) {
		sn->ns.twins++;
	} else {
		/* Stored by a run before: it counts as stored by this one, so that the sums go on being right. */
		sn->ns.counts.stored++;
		metrics_add(METRIC_blocks_stored, 1);
		metrics_add(METRIC_blocks_recovered, 1);
	}
}

/* Where a block belongs in the indices follows from its key, and is far from where the one before it belongs: that memory is asked for now, and looked at
 * when some others have had their turn. */
static void lower_on_slot(void *ctx, uint32_t area, uint32_t place, const struct tier_tag *tag)
{
	struct store *store = ctx;
	struct mover *m = &store->mover;
	struct mover_found *f = &m->found[m->n_found % MOVER_FOUND];
	const struct store_ns *sn = m->area_ns[area];
	const uint8_t *key;

	if (m->n_found++ >= MOVER_FOUND)
		lower_found(store, f);
	*f = (struct mover_found){ .tag = *tag, .area = area, .place = place };
	if (!sn)
		return;
	key = tag->bytes + offsetof(struct lower_tag, key);
	index_prefetch(&sn->ns.lower->index, index_hash(&sn->ns.lower->index, key));
	index_prefetch(&sn->ns.index, index_hash(&sn->ns.index, key));
}

static void lower_on_recovered(void *ctx, bool clean)
{
	struct store *store = ctx;
	struct mover *m = &store->mover;
	uint64_t copies = 0;

	for (uint64_t i = m->n_found < MOVER_FOUND ? 0 : m->n_found - MOVER_FOUND; i < m->n_found; i++)
		lower_found(store, &m->found[i % MOVER_FOUND]);
	m->n_found = 0;
	list_for_each(it, &store->namespaces)
		if (store_ns_at(it)->ns.lower)
			copies += store_ns_at(it)->ns.lower->n_present;
	store->mover.online = true;
	log_info("tier below: %llu blocks recovered after %s", (unsigned long long)copies,
	         clean ? "a clean stop" : "a crash, or for the first time");
	store_moved(store);
}

static void lower_on_online(void *ctx, bool online)
{
	struct store *store = ctx;

	store->mover.online = online;
	store_moved(store);
}

void store_lower_user(struct store *store, struct tier_lower_user *ret)
{
	*ret = (struct tier_lower_user){
		.tag = lower_on_tag,
		.on_area = lower_on_area,
		.on_slot = lower_on_slot,
		.on_recovered = lower_on_recovered,
		.on_online = lower_on_online,
		.ctx = store,
	};
}
