/* The store: namespaces and who is attached to them.  Owns each namespace with its shared objects and regions; blocks are handled in
 * store_blocks.c, room in space.c, reports in store_report.c.
 */
#include "move/store.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/metrics.h"
#include "base/thread.h"
#include "move/transfer.h"

#define STORE_SEEN (2u * STORE_MAX_KEYS) /* power of two */

static uint64_t store_mix(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

int store_new(const struct store_config *config, struct store **ret_store)
{
	struct store *store = calloc(1, sizeof(*store));

	assert(config->host && config->max_namespaces > 0 && config->boot_id != 0);
	if (!store)
		return -ENOMEM;
	store->config = *config;
	list_init(&store->namespaces);
	list_init(&store->pools);
	/* Clients know the boot id, but not where we are: they cannot choose numbers that meet in the table. */
	store->seen_secret = store_mix(config->boot_id ^ (uintptr_t)store);
	store->seen = calloc(4ull * STORE_SEEN, sizeof(*store->seen));
	store->hashes = malloc(STORE_MAX_KEYS * sizeof(*store->hashes));
	if (!store->seen || !store->hashes || mover_init(store) < 0) {
		free(store->hashes);
		free(store->seen);
		free(store);
		return -ENOMEM;
	}
	*ret_store = store;
	return 0;
}

void store_ns_free(struct store_ns *sn)
{
	struct store *store = sn->store;
	struct tier *host = store->config.host;

	assert(sn->ns.n_holders == 0 && sn->zombies == 0 && sn->n_transfers == 0 && sn->n_onboards == 0);
	assert(sn->n_pools == 0 && sn->n_copies == 0);
	/* Lanes that were committed by who has left since, and that nobody completed. */
	while (!list_empty(&sn->ns.partials))
		lease_partial_abort(&sn->ns, container_of(list_first(&sn->ns.partials), struct partial, by_deadline));
	store_lower_deinit(sn);
	for (uint32_t r = 0; sn->memory && r < sn->ns.geo.n_regions; r++) {
		if (sn->memory[r].size == 0)
			continue;
		space_region_gone(sn, &sn->memory[r]);
		sn->tier->ops->region_drop(sn->tier, &sn->memory[r]);
	}
	if (sn->hub)
		sn->hub->n_pools--;
	ns_deinit(&sn->ns);
	host->ops->object_drop(host, &sn->index);
	host->ops->object_drop(host, &sn->records);
	list_del(&sn->ns.link);
	store->n_namespaces--;
	free(sn->memory);
	free(sn->retains);
	free(sn->through);
	free(sn->unsummed);
	free(sn);
}

struct store *store_free(struct store *store)
{
	if (!store)
		return NULL;
	pool_free_all(store);
	list_for_each_safe(it, next, &store->namespaces)
		store_ns_free(store_ns_at(it));
	mover_deinit(store);
	free(store->victims);
	free(store->hashes);
	free(store->seen);
	free(store);
	return NULL;
}

struct store_ns *store_find_in(struct store *store, const char *name, const struct store_pool *pool)
{
	list_for_each(it, &store->namespaces) {
		struct store_ns *sn = store_ns_at(it);

		if (sn->pool == pool && !sn->lost && strcmp(sn->desc.name, name) == 0)
			return sn;
	}
	return NULL;
}

struct store_ns *store_find(struct store *store, const char *name)
{
	return store_find_in(store, name, NULL);
}

void store_seen_begin(struct store *store, uint32_t n)
{
	assert(n <= STORE_MAX_KEYS);
	store->seen_mask = 63;
	while (store->seen_mask + 1 < 2 * n) /* a small request touches little memory */
		store->seen_mask = store->seen_mask * 2 + 1;
	if (++store->seen_epoch == 0) {
		memset(store->seen, 0, 4ull * STORE_SEEN * sizeof(*store->seen));
		store->seen_epoch = 1;
	}
}

/* Open addressing over {epoch, unused, low, high}; twice as many places as a request can name things. */
bool store_seen(struct store *store, uint64_t x)
{
	uint64_t h = store_mix(x ^ store->seen_secret);

	for (uint32_t i = (uint32_t)(h >> 40) & store->seen_mask;; i = (i + 1) & store->seen_mask) {
		uint32_t *e = &store->seen[4ull * i];

		if (e[0] != store->seen_epoch) {
			e[0] = store->seen_epoch;
			e[2] = (uint32_t)x;
			e[3] = (uint32_t)(x >> 32);
			return false;
		}
		if (e[2] == (uint32_t)x && e[3] == (uint32_t)(x >> 32))
			return true;
	}
}

/* ---- namespaces ---- */

static const struct store_policy *store_policy_of(const struct store *store, const char *name)
{
	for (uint32_t i = 0; i < store->config.n_policies; i++)
		if (strcmp(store->config.policies[i].name, name) == 0)
			return &store->config.policies[i];
	return NULL;
}

static bool store_uid_may(const struct store_policy *policy, uint32_t uid)
{
	if (!policy || policy->n_uids == 0)
		return true;
	for (uint32_t i = 0; i < policy->n_uids; i++)
		if (policy->uids[i] == uid)
			return true;
	return false;
}

bool store_may_use(const struct store *store, const char *name, uint32_t uid)
{
	return store_uid_may(store_policy_of(store, name), uid);
}

static int store_ns_memory(struct store_ns *sn, const struct ns_geometry *geo, const uint64_t salt[2])
{
	struct store *store = sn->store;
	struct tier *host = store->config.host;
	struct ns_memory m = { .boot_id = store->config.boot_id,
		               .grace_percent = store->config.grace_percent,
		               .why_entries = store->config.why_entries };
	uint64_t offset, slots = (uint64_t)geo->n_regions << geo->shift;
	size_t index_bytes = shm_ns_bytes(geo->n_regions, index_lines_for(geo->max_slots), &offset);
	int r;

	if (host->ops->object_make(host, "kvbmd-index", index_bytes, false, &sn->index) != 0)
		return STORE_E_NOSPACE;
	if (host->ops->object_make(host, "kvbmd-records", slots * sizeof(struct shm_record), false, &sn->records) != 0) {
		host->ops->object_drop(host, &sn->index);
		return STORE_E_NOSPACE;
	}
	m.shm = sn->index.base;
	m.records = sn->records.base;
	m.salt[0] = salt ? salt[0] : store_mix(store->config.boot_id + 1);
	m.salt[1] = salt ? salt[1] : store_mix(m.salt[0] ^ (uintptr_t)store->n_namespaces);
	sn->memory = calloc(geo->n_regions, sizeof(*sn->memory));
	r = sn->memory ? ns_init(&sn->ns, &sn->desc, geo, &m) : -ENOMEM;
	if (r < 0) {
		host->ops->object_drop(host, &sn->index);
		host->ops->object_drop(host, &sn->records);
		free(sn->memory);
	}
	return r;
}

void store_ns_limit(struct store_ns *sn)
{
	sn->max_bytes = sn->allowed_bytes > sn->used_bytes ? sn->allowed_bytes : sn->used_bytes;
}

/* What the policy of its name says of it. */
static void store_ns_limits(struct store_ns *sn, const struct store_policy *policy)
{
	struct tier *tier = sn->tier;
	struct tier_stat stat;
	uint64_t max = UINT64_MAX;

	sn->share_bytes = 0;
	if (policy) {
		max = sn->pool ? policy->device_max_bytes : policy->max_bytes;
		sn->share_bytes = sn->pool ? policy->device_share_bytes : policy->share_bytes;
	}
	tier->ops->stat(tier, &stat);
	if (max > stat.size_bytes)
		max = stat.size_bytes;
	sn->allowed_bytes = max / tier->ops->grain(tier) * tier->ops->grain(tier);
	store_ns_limit(sn);
	store_lower_limits(sn, policy);
}

void store_configure(struct store *store, const struct store_config *config)
{
	thread_assert(THREAD_LOOP);
	store->config.policies = config->policies;
	store->config.n_policies = config->n_policies;
	store->config.write_timeout_ns = config->write_timeout_ns;
	store->config.write = config->write;
	if (store->config.scrub_percent != config->scrub_percent) {
		store->config.scrub_percent = config->scrub_percent;
		scrub_at_once(store);
	}
	list_for_each(it, &store->namespaces) {
		struct store_ns *sn = store_ns_at(it);

		store_ns_limits(sn, store_policy_of(store, sn->desc.name));
	}
}

int store_ns_new(struct store *store, const struct ns_desc *desc, const uint64_t salt[2], struct store_pool *pool,
                 struct store_ns **ret_sn)
{
	struct tier *tier = pool ? &pool->tier->tier : store->config.host;
	struct ns_geometry geo;
	struct store_ns *sn;
	int r;

	if (store->n_namespaces >= store->config.max_namespaces)
		return STORE_E_LIMIT;
	sn = calloc(1, sizeof(*sn));
	if (!sn)
		return -ENOMEM;
	sn->store = store;
	sn->tier = tier;
	sn->pool = pool;
	sn->number = ++store->last_number;
	sn->desc = *desc;
	store_ns_limits(sn, store_policy_of(store, desc->name));
	if (pool)
		r = ns_geometry_fixed(desc->lane_bytes, desc->lanes, tier->ops->region_size(tier), sn->max_bytes, &geo);
	else
		r = ns_geometry(desc->lane_bytes, desc->lanes, tier->ops->region_size(tier), tier->ops->grain(tier),
		                sn->max_bytes, &geo);
	r = r != 0 ? STORE_E_NOSPACE : store_ns_memory(sn, &geo, salt);
	if (r != 0) {
		free(sn);
		return r;
	}
	list_add_tail(&store->namespaces, &sn->ns.link);
	store->n_namespaces++;
	r = pool ? pool_ns_init(sn) : store_lower_init(sn);
	if (r < 0) {
		store_ns_free(sn);
		return r;
	}
	log_info("namespace %s%s%s: %u lanes of %llu bytes, at most %u blocks", desc->name, pool ? " on " : "",
	         pool ? pool->device : "", desc->lanes, (unsigned long long)desc->lane_bytes, geo.max_slots);
	*ret_sn = sn;
	return 0;
}

struct store_ns *store_ns_recover(struct store *store, const struct ns_desc *desc, const uint64_t salt[2])
{
	struct store_ns *sn = store_find(store, desc->name);
	uint8_t fingerprint[16];

	ns_fingerprint(desc, fingerprint);
	if (sn)
		return memcmp(sn->ns.fingerprint, fingerprint, sizeof(fingerprint)) == 0 ? sn : NULL;
	return store_ns_new(store, desc, salt, NULL, &sn) == 0 ? sn : NULL;
}

void store_ns_clock_follow(struct store_ns *sn, uint32_t tick)
{
	heat_follow(&sn->ns.heat, tick);
	if (sn->ns.lower)
		heat_follow(&sn->ns.lower->heat, tick);
	atomic_store_explicit(&sn->ns.shm->clock, sn->ns.heat.clock, memory_order_relaxed);
}

static int store_holder_new(struct store_ns *sn, const struct store_attach *a, struct holder **ret_holder)
{
	struct tier *host = sn->store->config.host;
	struct store_holder *sh = calloc(1, sizeof(*sh));
	uint32_t slots = sn->ns.geo.n_regions << sn->ns.geo.shift;
	struct shm_page *page;

	if (!sh)
		return -ENOMEM;
	if (host->ops->object_make(host, "kvbmd-page", shm_page_bytes(slots), true, &sh->page) != 0) {
		free(sh);
		return STORE_E_NOSPACE;
	}
	page = sh->page.base;
	page->magic = SHM_MAGIC;
	page->version = SHM_VERSION;
	atomic_store_explicit(&page->live, 1, memory_order_release);
	lease_holder_init(&sh->h, &sn->ns);
	sh->sn = sn;
	sh->h.page = page;
	sh->h.user = a->user;
	sh->h.owner = a->owner;
	sh->h.writable = !a->readonly;
	*ret_holder = &sh->h;
	return 0;
}

int store_attach(struct store *store, const struct store_attach *a, struct holder **ret_holder, uint8_t ret_have[16],
                 uint8_t ret_want[16])
{
	const struct store_policy *policy = store_policy_of(store, a->desc->name);
	struct store_ns *sn = store_find(store, a->desc->name);
	uint8_t want[16];
	int r;

	thread_assert(THREAD_LOOP);
	if (!store_uid_may(policy, a->uid))
		return STORE_E_PERM;
	ns_fingerprint(a->desc, want);
	if (sn && memcmp(sn->ns.fingerprint, want, sizeof(want)) != 0) {
		memcpy(ret_have, sn->ns.fingerprint, 16);
		memcpy(ret_want, want, 16);
		return STORE_E_MISMATCH;
	}
	r = a->device ? pool_is_there(store, a->device) : 0;
	if (r == 0 && !sn)
		r = store_ns_new(store, a->desc, NULL, NULL, &sn);
	if (r == 0 && a->device)
		r = pool_find_ns(sn, a->device, &sn);
	return r == 0 ? store_holder_new(sn, a, ret_holder) : r;
}

int store_attach_beside(struct holder *h, struct quota_user *user, struct holder **ret_holder)
{
	struct store_attach a = { .readonly = !h->writable, .user = user };

	thread_assert(THREAD_LOOP);
	return store_holder_new(store_ns_of(h), &a, ret_holder);
}

/* ---- holders ---- */

void holder_objects(const struct holder *h, struct store_objects *ret)
{
	const struct store_holder *sh = (const struct store_holder *)h;

	*ret = (struct store_objects){
		.fingerprint = h->ns->fingerprint,
		.lane_bytes = h->ns->desc->lane_bytes,
		.index_ro_fd = sh->sn->index.ro_fd,
		.records_ro_fd = sh->sn->records.ro_fd,
		.page_fd = sh->page.fd,
		.writable = h->writable,
		.key_bytes = h->ns->desc->key_bytes,
		.lanes = h->ns->desc->lanes,
	};
}

int holder_region(const struct holder *h, uint32_t serial, const struct tier_region **ret_region)
{
	const struct store_ns *sn = ((const struct store_holder *)h)->sn;

	for (uint32_t r = 0; serial && r < h->ns->geo.n_regions; r++) {
		if (h->ns->regions[r].serial == serial) {
			*ret_region = &sn->memory[r];
			return 0;
		}
	}
	return STORE_E_NOENT;
}

bool holder_slot(const struct holder *h, uint32_t slot, uint32_t lane, const struct tier_region **ret_region,
                 uint64_t *ret_offset)
{
	const struct store_ns *sn = ((const struct store_holder *)h)->sn;
	const struct ns *ns = h->ns;
	uint32_t r;

	if (!ns_slot_valid(ns, slot) || lane >= sn->desc.lanes)
		return false;
	r = ns_region_of(ns, slot);
	*ret_region = &sn->memory[r];
	*ret_offset = lane * ns->shm->regions[r].lane_area + (slot - (r << ns->geo.shift)) * ns->geo.lane_stride;
	return true;
}

bool holder_is_writable(const struct holder *h)
{
	return h->writable;
}

uint32_t holder_block_tokens(const struct holder *h)
{
	return h->ns->desc->page_size;
}

const char *holder_device(const struct holder *h)
{
	const struct store_ns *sn = ((const struct store_holder *)h)->sn;

	return sn->pool ? sn->pool->device : NULL;
}

const char *holder_ns_name(const struct holder *h)
{
	return h->ns->desc->name;
}

/* A client can only falsify its own share of the counts, and only upwards. */
void store_holder_count(struct holder *h)
{
	struct ns_counts *c = &h->ns->counts;
	uint64_t looked_up = atomic_load_explicit(&h->page->looked_up, memory_order_relaxed);
	uint64_t hits = atomic_load_explicit(&h->page->hits, memory_order_relaxed);

	looked_up = looked_up > h->counted_looked_up ? looked_up - h->counted_looked_up : 0;
	hits = hits > h->counted_hits ? hits - h->counted_hits : 0;
	if (hits > looked_up)
		hits = looked_up; /* the page was read while the client counted: the rest comes next time */
	h->counted_looked_up += looked_up;
	h->counted_hits += hits;
	c->looked_up += looked_up;
	c->hits += hits;
	c->misses += looked_up - hits;
	metrics_add(METRIC_blocks_looked_up, looked_up);
	metrics_add(store_ns_hits(store_ns_of(h)), hits);
	metrics_add(METRIC_misses, looked_up - hits);
	metrics_add(METRIC_bytes_matched, hits * h->ns->desc->lane_bytes);
}

int holder_close(struct holder *h, bool dead)
{
	struct store_holder *sh = (struct store_holder *)h;
	struct tier *host = sh->sn->store->config.host;

	thread_assert(THREAD_LOOP);
	assert(!h->closed);
	dead = dead || sh->sn->lost; /* whatever he writes, the memory is no more */
	h->closed = true;
	/* The client may not know, and go on matching: from here on its pins protect nothing, and it must not believe so. */
	atomic_store_explicit(&h->page->live, 0, memory_order_relaxed);
	shm_fence();
	store_holder_count(h);
	list_for_each_safe(it, next, &h->leases) {
		struct lease *lease = container_of(it, struct lease, in_holder);

		if (dead)
			lease_abort(lease);
		else
			lease_partial_abort(h->ns, lease->partial);
	}
	lease_holder_unpin(h);
	host->ops->object_drop(host, &sh->page);
	if (h->n_leases) {
		sh->sn->zombies++;
		return STORE_E_QUARANTINE;
	}
	pool_ns_end(sh->sn);
	free(sh);
	return 0;
}

void holder_dead(struct holder *h)
{
	struct store_holder *sh = (struct store_holder *)h;

	assert(h->closed && h->n_leases > 0);
	while (!list_empty(&h->leases))
		lease_abort(container_of(list_first(&h->leases), struct lease, in_holder));
	sh->sn->zombies--;
	pool_ns_end(sh->sn);
	free(sh);
}

/* ---- time ---- */

static void store_tick_partials(struct store_ns *sn, uint64_t now_ns)
{
	while (!list_empty(&sn->ns.partials)) {
		struct partial *p = container_of(list_first(&sn->ns.partials), struct partial, by_deadline);

		if (p->deadline_ns > now_ns)
			break;
		metrics_add(METRIC_blocks_expired, 1);
		lease_partial_abort(&sn->ns, p);
	}
}

static bool store_retains(const struct store_ns *sn, const struct store_retain *t)
{
	return ns_slot_state(&sn->ns, t->slot) == SHM_REGISTERED && ns_slot_generation(&sn->ns, t->slot) == t->generation &&
	       sn->ns.blocks[t->slot].heat.flags & HEAT_F_RETAINED;
}

/* A block may have been retained more than once: what ends takes its mark, what lasts gives it back. */
static void store_tick_retains(struct store_ns *sn, uint64_t now_ns)
{
	uint32_t kept = 0;

	for (uint32_t i = 0; i < sn->n_retains; i++)
		if (store_retains(sn, &sn->retains[i]))
			sn->retains[kept++] = sn->retains[i];
	sn->n_retains = kept;
	kept = 0;
	for (uint32_t i = 0; i < sn->n_retains; i++) {
		struct store_retain t = sn->retains[i];

		if (t.until_ns > now_ns)
			sn->retains[kept++] = t;
		else
			sn->ns.blocks[t.slot].heat.flags &= (uint16_t)~HEAT_F_RETAINED;
	}
	sn->n_retains = kept;
	for (uint32_t i = 0; i < kept; i++)
		sn->ns.blocks[sn->retains[i].slot].heat.flags |= HEAT_F_RETAINED;
}

/* What a page claims is cheap to read and a lie away from the truth.  When pins may be why there was no room, the words are counted: one
 * holder a tick, because that reads all of its page. */
static void store_tick_suspects(struct store *store, struct store_ns *sn)
{
	struct list *first = list_first(&sn->ns.holders);
	struct holder *h;
	uint64_t pins;

	if (sn->suspects == 0 || !first)
		return;
	sn->suspects--;
	list_del(first);
	list_add_tail(&sn->ns.holders, first);
	h = container_of(first, struct holder, in_ns);
	pins = lease_counted_pins(h);
	if (pins > h->user->pin_limit && store->on_pins)
		store->on_pins(store->on_pins_ctx, h->owner, pins);
}

static void store_tick_pins(struct store *store, struct store_ns *sn)
{
	store_tick_suspects(store, sn);
	list_for_each_safe(it, next, &sn->ns.holders) {
		struct holder *h = container_of(it, struct holder, in_ns);
		uint64_t pins = lease_claimed_pins(h);

		if (pins > h->user->pin_limit && store->on_pins)
			store->on_pins(store->on_pins_ctx, h->owner, pins);
	}
}

void store_on_pins(struct store *store, void (*cb)(void *ctx, void *owner, uint64_t pins), void *ctx)
{
	store->on_pins = cb;
	store->on_pins_ctx = ctx;
}

void store_tick(struct store *store, uint64_t now_ns)
{
	thread_assert(THREAD_LOOP);
	list_for_each(it, &store->namespaces) {
		struct store_ns *sn = store_ns_at(it);

		sn->ns.now_ns = now_ns;
		store_tick_partials(sn, now_ns);
		store_tick_retains(sn, now_ns);
		store_tick_pins(store, sn);
	}
	store_tick_waiters(store, now_ns);
}

uint64_t store_next_ns(const struct store *store)
{
	uint64_t next = store_next_waiter_ns(store);

	list_for_each(it, &store->namespaces) {
		const struct store_ns *sn = store_ns_at(it);

		if (!list_empty(&sn->ns.partials)) {
			const struct partial *p = container_of(list_first(&sn->ns.partials), struct partial, by_deadline);

			next = p->deadline_ns < next ? p->deadline_ns : next;
		}
		for (uint32_t i = 0; i < sn->n_retains; i++)
			next = sn->retains[i].until_ns < next ? sn->retains[i].until_ns : next;
	}
	return next;
}
