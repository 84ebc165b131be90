/* Transfers: one copy of one block, down or up.
 *
 * Life of a transfer
 *   0 FREE   1 SUMMING   2 COPYING
 *   down  0->1 transfer_down (0->2 where the checksum is known)   1->2 transfer_on_sum   2->0 transfer_end
 *   up    0->2 transfer_up   2->1 transfer_on_copied   1->0 transfer_end
 *
 * While it runs, ns->moving[slot] is set: the host slot is neither dropped nor reused.  Down, the slot below is WRITING; up, it is PRESENT and
 * busy.  Invariant: a block that was read is registered only after its checksum was found right.
 *
 * The pool is as large as the configuration says; whoever gets none asks again when one ends.
 */
#include "move/transfer.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include <xxhash.h>
#if defined(__x86_64__) && __has_include(<xxh_x86dispatch.h>)
#include <xxh_x86dispatch.h> /* the same functions, with the widest registers that the processor has: two to three times as fast */
#endif

#include "base/log.h"
#include "base/metrics.h"
#include "base/thread.h"

/* ---- checksums ---- */

uint64_t mover_seed(const uint8_t *key, uint32_t key_bytes)
{
	return XXH3_64bits(key, key_bytes);
}

uint64_t mover_sum_of(const struct mover_sum *s)
{
	uint64_t h = s->seed;

	for (uint32_t l = 0; l < s->lanes; l++)
		h = XXH3_64bits_withSeed(s->base + l * s->lane_area, s->lane_bytes, h);
	return h ? h : 1;
}

/* ---- the pool ---- */

int mover_init(struct store *store)
{
	struct mover *m = &store->mover;

	list_init(&m->free);
	list_init(&m->running);
	list_init(&m->unsummed);
	list_init(&m->onboards);
	list_init(&m->waiters);
	list_init(&m->reserves);
	if (!store->config.lower)
		return 0;
	assert(store->config.max_transfers > 0 && store->config.calculator.sum && store->config.calculator.at_once > 0);
	m->pool = calloc(store->config.max_transfers, sizeof(*m->pool));
	m->area_ns = calloc(store->config.lower->ops->areas(store->config.lower), sizeof(struct store_ns *));
	if (!m->pool || !m->area_ns || summing_init(m) < 0 || scrub_init(m) < 0) {
		mover_deinit(store);
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < store->config.max_transfers; i++)
		list_add_tail(&m->free, &m->pool[i].link);
	return 0;
}

void mover_deinit(struct store *store)
{
	assert(store->mover.n_running == 0);
	free(store->mover.pool);
	summing_deinit(&store->mover);
	scrub_deinit(&store->mover);
	free(store->mover.area_ns);
	store->mover.pool = NULL;
	store->mover.area_ns = NULL;
}

bool mover_has_room(const struct store *store)
{
	return !list_empty(&store->mover.free) && !store->mover.stopping;
}

void transfer_sum_init(struct store_ns *sn, uint32_t slot, struct mover_sum *ret)
{
	const struct ns *ns = &sn->ns;
	uint32_t region = ns_region_of(ns, slot);

	*ret = (struct mover_sum){
		.base = (const uint8_t *)sn->memory[region].base + (slot & ((1u << ns->geo.shift) - 1)) * ns->geo.lane_stride,
		.lane_area = ns->shm->regions[region].lane_area,
		.lane_bytes = ns->desc->lane_bytes,
		.lanes = ns->desc->lanes,
	};
}

static struct transfer *transfer_new(struct store_ns *sn, uint32_t slot, uint32_t lower, bool down)
{
	struct mover *m = &sn->store->mover;
	struct transfer *x = container_of(list_first(&m->free), struct transfer, link);
	struct ns *ns = &sn->ns;
	uint32_t region = ns_region_of(ns, slot);
	uint64_t place = slot & ((1u << ns->geo.shift) - 1);

	list_del(&x->link);
	list_add_tail(&m->running, &x->link);
	m->n_running++;
	m->n_down += down;
	sn->n_transfers++;
	*x = (struct transfer){ .link = x->link, .sn = sn, .slot = slot, .lower = lower, .down = down };
	list_init(&x->wants);
	x->io = (struct tier_io){
		.write = down,
		.area = lower_area_of(ns->lower, lower),
		.place = lower_place_of(ns->lower, lower),
		.shape = { .lane_bytes = ns->desc->lane_bytes, .lanes = ns->desc->lanes },
		.region = &sn->memory[region],
		.offset = place * ns->geo.lane_stride,
		.lane_area = ns->shm->regions[region].lane_area,
	};
	transfer_sum_init(sn, slot, &x->sum);
	assert(!ns->moving[slot]);
	ns->moving[slot] = 1;
	return x;
}

static void transfer_free(struct transfer *x)
{
	struct store_ns *sn = x->sn;
	struct mover *m = &sn->store->mover;

	assert(list_empty(&x->wants));
	sn->ns.moving[x->slot] = 0;
	sn->n_transfers--;
	m->n_running--;
	m->n_down -= x->down;
	list_del(&x->link);
	x->state = TRANSFER_FREE;
	list_add_tail(&m->free, &x->link);
}

/* ---- the end ---- */

static void transfer_end_down(struct transfer *x, int r)
{
	struct store_ns *sn = x->sn;
	struct ns *ns = &sn->ns;
	const struct shm_record *rec = &ns->records[x->slot];
	struct lower_what what = { .key = rec->key,
		                   .parent = rec->parent,
		                   .sum = rec->sum,
		                   .touch = ns->blocks[x->slot].heat.touch };

	heat_follow(&ns->lower->heat, ns->heat.clock);
	if (r != 0) {
		if (r == TIER_E_IO)
			lower_bad(ns->lower, x->lower);
		lower_abort(ns->lower, x->lower, false);
		metrics_add(METRIC_offloads_failed, 1);
	} else if (lower_register(ns->lower, x->lower, &what) != 0) {
		sn->store->config.lower->ops->forget(sn->store->config.lower, x->io.area, x->io.place);
		metrics_add(METRIC_offloads_failed, 1);
	} else {
		ns->twins++;
		ns->lower->counts.offloaded++;
		metrics_add(METRIC_blocks_offloaded, 1);
		metrics_add(METRIC_bytes_offloaded, ns->desc->lane_bytes * ns->desc->lanes);
	}
	if (ns->blocks[x->slot].heat.where != HEAT_COPYING)
		return; /* written ahead of need */
	/* What could not be written can be dropped all the same: waiting for a failing tier would fill memory for good. */
	if (r == TIER_E_FULL && sn->store->mover.n_running > 1)
		heat_place(&ns->heat, x->slot);
	else
		heat_clean(&ns->heat, x->slot);
}

static void transfer_settle_all(struct transfer *x, uint8_t status, uint32_t slot)
{
	while (!list_empty(&x->wants)) {
		struct onboard_want *w = container_of(list_first(&x->wants), struct onboard_want, link);

		list_del(&w->link);
		list_init(&w->link);
		onboard_settle(w, status, slot);
	}
}

/* Read and right: it is in host memory again. */
static void transfer_restore(struct transfer *x)
{
	struct ns *ns = &x->sn->ns;
	const struct lower_copy *c = lower_at(ns->lower, x->lower);
	struct block_back back = { .key = c->key, .parent = c->parent, .sum = c->sum };
	uint32_t slot = x->slot;
	int r;

	bool needed = false;

	list_for_each(it, &x->wants) {
		const struct onboard_want *w = container_of(it, struct onboard_want, link);

		needed |= !w->onboard->prefetch;
		/* A prefix names each block's parent before it. */
		if (w->i > 0)
			back.parent_key = w->onboard->keys + (size_t)(w->i - 1) * ns->desc->key_bytes;
	}
	r = block_restore(ns, x->slot, &back, &slot);
	if (r != 0)
		ns_slot_free(ns, x->slot, SHM_PARTIAL);
	if (r == BLOCK_E_FULL) {
		transfer_settle_all(x, STORE_ONBOARD_BUSY, STORE_NO_SLOT);
		return;
	}
	if (r == 0) {
		store_ns_clock(ns);
		if (needed)
			heat_place(&ns->heat, slot);
		else
			heat_clean(&ns->heat, slot); /* what came ahead of need goes first, unless it is used */
		ns->lower->counts.onboarded++;
		metrics_add(METRIC_blocks_onboarded, 1);
		metrics_add(METRIC_bytes_onboarded, ns->desc->lane_bytes * ns->desc->lanes);
	}
	lower_touch(ns->lower, x->lower, ns->heat.clock);
	transfer_settle_all(x, STORE_ONBOARD_DONE, slot);
}

static void transfer_end_up(struct transfer *x, int r)
{
	struct store_ns *sn = x->sn;
	struct ns *ns = &sn->ns;
	struct lower_copy *c = lower_at(ns->lower, x->lower);
	bool wrong = r == 0 && x->sum.sum != c->sum;

	c->busy--;
	if (r == 0 && !wrong) {
		transfer_restore(x);
		return;
	}
	ns_slot_free(ns, x->slot, SHM_PARTIAL);
	metrics_add(METRIC_onboards_failed, 1);
	if (wrong) {
		metrics_add(METRIC_checksum_errors, 1);
		log_error("namespace %s: what was read from area %u, place %u is not the block's; the copy is dropped",
		          ns->desc->name, x->io.area, x->io.place);
	}
	if (r != TIER_E_GONE && c->busy == 0) {
		ns->lower->counts.lost++;
		lower_bad(ns->lower, x->lower);
		lower_drop(sn, x->lower, WHY_TIER_FAILED);
	}
	transfer_settle_all(x, STORE_ONBOARD_FAILED, STORE_NO_SLOT);
}

static void transfer_end(struct transfer *x, int r)
{
	struct store *store = x->sn->store;

	thread_assert(THREAD_LOOP);
	if (x->down)
		transfer_end_down(x, r);
	else
		transfer_end_up(x, r);
	transfer_free(x);
	store_moved(store);
}

/* ---- the steps ---- */

static void transfer_on_copied(struct tier_io *io, int r);
static void transfer_on_sum(struct mover_sum *s);

/* The record's copy below: what recovery needs to know. */
static void transfer_tag(struct transfer *x)
{
	struct ns *ns = &x->sn->ns;
	const struct shm_record *rec = &ns->records[x->slot];

	store_lower_tag(ns,
	                &(struct lower_what){ .key = rec->key,
	                                      .parent = rec->parent,
	                                      .sum = rec->sum,
	                                      .touch = ns->blocks[x->slot].heat.touch },
	                &x->io.tag);
}

/* Outcome: > 0, not now. */
static int transfer_copy(struct transfer *x)
{
	struct tier_lower *lower = x->sn->store->config.lower;

	x->state = TRANSFER_COPYING;
	x->io.cb = transfer_on_copied;
	if (x->down)
		transfer_tag(x);
	return lower->ops->submit(lower, &x->io);
}

static void transfer_sum(struct transfer *x)
{
	struct store *store = x->sn->store;
	const struct mover_calculator *c = &store->config.calculator;

	x->state = TRANSFER_SUMMING;
	x->sum.cb = transfer_on_sum;
	if (c->sum(c->ctx, &x->sum) == 0)
		return;
	list_del(&x->link);
	list_add_tail(&store->mover.unsummed, &x->link);
}

/* Those that the calculator did not take. */
void transfer_sum_again(struct store *store)
{
	struct mover *m = &store->mover;

	for (uint32_t n = m->n_running; n > 0 && !list_empty(&m->unsummed); n--) {
		struct transfer *x = container_of(list_first(&m->unsummed), struct transfer, link);

		list_del(&x->link);
		list_add_tail(&m->running, &x->link);
		transfer_sum(x);
		if (!list_empty(&m->unsummed) && list_last(&m->unsummed) == &x->link)
			return;
	}
}

static void transfer_on_sum(struct mover_sum *s)
{
	struct transfer *x = container_of(s, struct transfer, sum);
	int r;

	assert(x->state == TRANSFER_SUMMING);
	transfer_sum_again(x->sn->store);
	if (!x->down) {
		transfer_end(x, 0);
		return;
	}
	block_set_sum(&x->sn->ns, x->slot, s->sum);
	r = transfer_copy(x);
	if (r != 0)
		transfer_end(x, r);
}

static void transfer_on_copied(struct tier_io *io, int r)
{
	struct transfer *x = container_of(io, struct transfer, io);

	assert(x->state == TRANSFER_COPYING);
	if (x->down || r != 0)
		transfer_end(x, r);
	else
		transfer_sum(x);
}

/* ---- the beginning ---- */

enum transfer_begun transfer_down(struct store_ns *sn, uint32_t slot, bool in_order, enum tier_priority priority)
{
	struct ns *ns = &sn->ns;
	struct transfer *x;
	uint32_t lower;
	int r;

	assert(ns->lower && ns_slot_state(ns, slot) == SHM_REGISTERED);
	if (!lower_is_online(sn->store))
		return TRANSFER_HOPELESS;
	if (!mover_has_room(sn->store))
		return TRANSFER_LATER;
	lower = lower_make(sn);
	if (lower == LOWER_NONE)
		return sn->n_transfers ? TRANSFER_LATER : TRANSFER_HOPELESS;
	x = transfer_new(sn, slot, lower, true);
	x->in_order = in_order;
	x->io.priority = priority;
	x->sum.seed = mover_seed(ns->records[slot].key, ns->desc->key_bytes);
	if (ns->records[slot].sum == 0) {
		transfer_sum(x);
		return TRANSFER_BEGUN;
	}
	r = transfer_copy(x);
	if (r == 0)
		return TRANSFER_BEGUN;
	lower_abort(ns->lower, lower, false);
	transfer_free(x);
	return r == TIER_E_FULL && sn->store->mover.n_down ? TRANSFER_LATER : TRANSFER_HOPELESS;
}

struct transfer *transfer_up(struct store_ns *sn, uint32_t lower, enum tier_priority priority)
{
	struct ns *ns = &sn->ns;
	struct lower_copy *c = lower_at(ns->lower, lower);
	struct transfer *x;
	uint32_t slot;

	assert(c->state == LOWER_PRESENT && ns->n_free > 0);
	if (!mover_has_room(sn->store) || !lower_is_online(sn->store))
		return NULL;
	slot = ns_slot_take(ns);
	x = transfer_new(sn, slot, lower, false);
	x->io.priority = priority;
	x->sum.seed = mover_seed(c->key, ns->desc->key_bytes);
	c->busy++;
	if (transfer_copy(x) == 0)
		return x;
	c->busy--;
	ns_slot_free(ns, slot, SHM_PARTIAL);
	transfer_free(x);
	return NULL;
}

struct transfer *transfer_find(struct store_ns *sn, uint32_t lower)
{
	if (lower_at(sn->ns.lower, lower)->busy == 0)
		return NULL;
	/* A handful runs at a time. */
	for (int unsummed = 0; unsummed < 2; unsummed++) {
		struct list *all = unsummed ? &sn->store->mover.unsummed : &sn->store->mover.running;

		list_for_each(it, all) {
			struct transfer *x = container_of(it, struct transfer, link);

			if (x->sn == sn && !x->down && x->lower == lower)
				return x;
		}
	}
	return NULL;
}
