/* SPDX-License-Identifier: Apache-2.0 */
/* Copies between pools in device memory and their hubs in host memory.
 *
 * Down: what is committed to a pool is written through to its hub soon after, unless the hub or the tier below it has it already.  Up: onboard.c asks for
 * single blocks (device_up), which go in batches.
 *
 * Life of a batch
 *   0 FREE   1 OPEN: up, takes further blocks   2 RUNNING
 *   0->1 device_batch   1->2, 0->2 device_submit   2->0 device_end   1->0 device_end, where the tier refused it for good
 *
 * While a block is in a batch, both of its slots are counted in ns->copies: neither is dropped nor reused.  One of them is PARTIAL, and is registered or
 * freed when the batch ends, which with a lost device may be late; whoever waited for it was told at once.
 *
 * Deliberately not: reading from the tier below (the hub's own onboard does), and dropping (space.c).
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/metrics.h"
#include "base/thread.h"
#include "move/transfer.h"

#define DEVICE_BATCHES 32u
#define DEVICE_BLOCKS 64u /* of a batch */

struct device_one {
	uint32_t slot, hub_slot;
	struct list wants; /* borrows: struct onboard_want */
};

struct device_batch {
	struct list link;    /* in free, open or running */
	struct store_ns *sn; /* borrows; the pool's */
	struct tier_copy io;
	struct tier_copy_block blocks[DEVICE_BLOCKS];
	struct device_one ones[DEVICE_BLOCKS];
};

struct device_copies {
	struct device_batch all[DEVICE_BATCHES];
	struct list free, open, running; /* borrow from all */
	uint32_t n_running;
};

int device_init(struct store_pool *pool)
{
	struct device_copies *c = calloc(1, sizeof(*c));

	if (!c)
		return -ENOMEM;
	list_init(&c->free);
	list_init(&c->open);
	list_init(&c->running);
	for (uint32_t i = 0; i < DEVICE_BATCHES; i++)
		list_add_tail(&c->free, &c->all[i].link);
	pool->copies = c;
	return 0;
}

void device_deinit(struct store_pool *pool)
{
	assert(list_empty(&pool->copies->open) && list_empty(&pool->copies->running));
	free(pool->copies);
	pool->copies = NULL;
}

/* ---- batches ---- */

static struct device_batch *device_batch_new(struct store_ns *sn, bool up)
{
	struct device_copies *c = sn->pool->copies;
	struct list *it = sn->store->mover.stopping ? NULL : list_pop(&c->free);
	struct device_batch *b = it ? container_of(it, struct device_batch, link) : NULL;

	if (!b)
		return NULL;
	b->sn = sn;
	b->io = (struct tier_copy){ .up = up,
		                    .lane_bytes = sn->desc.lane_bytes,
		                    .stride = sn->ns.geo.lane_stride,
		                    .lanes = sn->desc.lanes,
		                    .blocks = b->blocks };
	list_add_tail(&c->open, &b->link);
	sn->n_copies++;
	sn->hub->n_copies++;
	return b;
}

static const struct tier_region *device_place(const struct store_ns *sn, uint32_t slot, uint64_t *ret_offset,
                                              uint64_t *ret_lane_area)
{
	const struct ns *ns = &sn->ns;
	uint32_t region = ns_region_of(ns, slot);

	*ret_offset = (slot & ((1u << ns->geo.shift) - 1)) * ns->geo.lane_stride;
	*ret_lane_area = ns->shm->regions[region].lane_area;
	return &sn->memory[region];
}

static struct device_one *device_batch_add(struct device_batch *b, uint32_t slot, uint32_t hub_slot)
{
	struct device_one *one = &b->ones[b->io.n];
	struct tier_copy_block *at = &b->blocks[b->io.n++];

	assert(b->io.n <= DEVICE_BLOCKS);
	one->slot = slot;
	one->hub_slot = hub_slot;
	list_init(&one->wants);
	at->device = device_place(b->sn, slot, &at->device_offset, &at->device_lane_area);
	at->host = device_place(b->sn->hub, hub_slot, &at->host_offset, &at->host_lane_area);
	b->sn->ns.copies[slot]++;
	b->sn->hub->ns.copies[hub_slot]++;
	return one;
}

/* ---- the end ---- */

/* The parent's key, where it is known: a tag alone makes an orphan. */
static const uint8_t *device_parent_key(const struct ns *from, uint32_t slot)
{
	uint32_t parent = block_parent(from, slot);

	return parent == NS_NONE ? NULL : from->records[parent].key;
}

/* @slot of @to has the bytes of the block in @from_slot of @from now. */
static int device_register(struct store_ns *to, uint32_t slot, const struct ns *from, uint32_t from_slot,
                           const uint8_t *parent_key, uint32_t *ret_slot)
{
	const struct shm_record *rec = &from->records[from_slot];
	struct block_back back = { .key = rec->key, .parent = rec->parent, .parent_key = parent_key, .sum = 0 };
	struct ns *ns = &to->ns;
	bool below = ns->lower && lower_find(ns->lower, rec->key) != LOWER_NONE;
	int r;

	if (!back.parent_key)
		back.parent_key = device_parent_key(from, from_slot);
	r = block_restore(ns, slot, &back, ret_slot);
	if (r != 0) {
		ns_slot_free(ns, slot, SHM_PARTIAL);
		return r;
	}
	if (!below) {
		ns->counts.stored++;
		metrics_add(METRIC_blocks_stored, 1);
	}
	store_ns_clock(ns);
	heat_place(&ns->heat, slot);
	return 0;
}

static void device_end_down(struct device_batch *b, const struct device_one *one, int r)
{
	struct store_ns *hub = b->sn->hub;
	uint32_t slot;

	if (r != 0) {
		ns_slot_free(&hub->ns, one->hub_slot, SHM_PARTIAL);
		metrics_add(METRIC_g1_copies_failed, 1);
		return;
	}
	metrics_add(METRIC_g1_blocks_down, 1);
	if (device_register(hub, one->hub_slot, &b->sn->ns, one->slot, NULL, &slot) != 0)
		return;
	offload_committed(hub, slot);
	summing_committed(hub, slot);
}

static void device_settle_all(struct device_one *one, uint8_t status, uint32_t slot)
{
	struct list *it;

	while ((it = list_pop(&one->wants))) {
		list_init(it);
		onboard_settle(container_of(it, struct onboard_want, link), status, slot);
	}
}

static void device_end_up(struct device_batch *b, struct device_one *one, int r)
{
	struct store_ns *sn = b->sn;
	const uint8_t *parent_key = NULL;
	uint32_t slot = one->slot;

	if (r != 0) {
		ns_slot_free(&sn->ns, one->slot, SHM_PARTIAL);
		metrics_add(METRIC_g1_copies_failed, 1);
		device_settle_all(one, STORE_ONBOARD_FAILED, STORE_NO_SLOT);
		return;
	}
	list_for_each(it, &one->wants) {
		const struct onboard_want *w = container_of(it, struct onboard_want, link);

		if (w->i > 0)
			parent_key = w->onboard->keys + (size_t)(w->i - 1) * sn->desc.key_bytes;
	}
	metrics_add(METRIC_g1_blocks_up, 1);
	r = device_register(sn, one->slot, &sn->hub->ns, one->hub_slot, parent_key, &slot);
	if (r == BLOCK_E_FULL)
		device_settle_all(one, STORE_ONBOARD_BUSY, STORE_NO_SLOT);
	else
		device_settle_all(one, STORE_ONBOARD_DONE, slot);
}

/* All that it took is given back; whoever waited is settled. */
static void device_end(struct device_batch *b, int r)
{
	struct store_ns *sn = b->sn, *hub = sn->hub;

	for (uint32_t i = 0; i < b->io.n; i++) {
		struct device_one *one = &b->ones[i];

		sn->ns.copies[one->slot]--;
		hub->ns.copies[one->hub_slot]--;
		if (b->io.up)
			device_end_up(b, one, r);
		else
			device_end_down(b, one, r);
	}
	list_del(&b->link);
	list_add_tail(&sn->pool->copies->free, &b->link);
	b->sn = NULL;
	sn->n_copies--;
	hub->n_copies--;
}

static void device_on_copied(struct tier_copy *io, int r)
{
	struct device_batch *b = container_of(io, struct device_batch, io);
	struct store_ns *sn = b->sn;
	struct store *store = sn->store;

	thread_assert(THREAD_LOOP);
	sn->pool->copies->n_running--;
	store->mover.n_device--;
	device_end(b, sn->lost ? TIER_E_GONE : r);
	pool_ns_end(sn);
	store_moved(store);
}

/* ---- the beginning ---- */

/* false: not now. */
static bool device_submit(struct device_batch *b)
{
	struct store_pool *pool = b->sn->pool;
	int r;

	b->io.cb = device_on_copied;
	r = pool->tier->ops->copy(pool->tier, &b->io);
	if (r == TIER_E_FULL)
		return false;
	if (r != 0) {
		device_end(b, r);
		return true;
	}
	list_del(&b->link);
	list_add_tail(&pool->copies->running, &b->link);
	pool->copies->n_running++;
	pool->store->mover.n_device++;
	return true;
}

void device_submit_all(struct store *store)
{
	list_for_each(it, &store->pools) {
		struct store_pool *pool = container_of(it, struct store_pool, link);
		struct list *first;

		while ((first = list_first(&pool->copies->open)) &&
		       device_submit(container_of(first, struct device_batch, link)))
			;
	}
}

bool device_is_pending(const struct store *store)
{
	list_for_each(it, &store->pools)
		if (!list_empty(&container_of(it, struct store_pool, link)->copies->open))
			return true;
	return false;
}

/* ---- up ---- */

struct list *device_up(struct store_ns *sn, uint32_t hub_slot)
{
	struct device_copies *c = sn->pool->copies;
	struct device_batch *b = NULL;

	assert(sn->ns.n_free > 0 && ns_slot_state(&sn->hub->ns, hub_slot) == SHM_REGISTERED);
	list_for_each(it, &c->open) {
		struct device_batch *open = container_of(it, struct device_batch, link);

		if (open->sn == sn && open->io.up && open->io.n < DEVICE_BLOCKS)
			b = open;
	}
	if (!b)
		b = device_batch_new(sn, true);
	if (!b || sn->hub->ns.copies[hub_slot] == UINT16_MAX)
		return NULL;
	return &device_batch_add(b, ns_slot_take(&sn->ns), hub_slot)->wants;
}

struct list *device_find_up(struct store_ns *sn, uint32_t hub_slot)
{
	struct device_copies *c = sn->pool->copies;

	if (sn->hub->ns.copies[hub_slot] == 0)
		return NULL;
	for (uint32_t k = 0; k < DEVICE_BATCHES; k++) {
		struct device_batch *b = &c->all[k];

		for (uint32_t i = 0; b->sn == sn && b->io.up && i < b->io.n; i++)
			if (b->ones[i].hub_slot == hub_slot)
				return &b->ones[i].wants;
	}
	return NULL;
}

/* ---- down ---- */

void device_committed(struct store_ns *sn, uint32_t slot)
{
	if (!sn->through) {
		sn->through = malloc(STORE_THROUGH * sizeof(*sn->through));
		if (!sn->through)
			return; /* the device alone has it */
	}
	if (sn->through_tail - sn->through_head == STORE_THROUGH)
		sn->through_head++; /* the same */
	sn->through[sn->through_tail++ % STORE_THROUGH] = (struct store_through){ .slot = slot,
		                                                                  .generation = ns_slot_generation(
											  &sn->ns, slot) };
}

/* It is there still, and the node has it nowhere else. */
static bool device_is_due(const struct store_ns *sn, const struct store_through *t)
{
	const struct ns *ns = &sn->ns, *hub = &sn->hub->ns;

	return ns_slot_state(ns, t->slot) == SHM_REGISTERED && ns_slot_generation(ns, t->slot) == t->generation &&
	       ns->copies[t->slot] == 0 && block_find(hub, ns->records[t->slot].key) == NS_NONE &&
	       !(hub->lower && lower_find(hub->lower, ns->records[t->slot].key) != LOWER_NONE);
}

/* One more free slot in the hub, where only what is below too is dropped as long as that can help. */
static bool device_hub_room(struct store_ns *hub)
{
	uint32_t dropped = 0;
	int r;

	if (hub->ns.n_free > 0)
		return true;
	r = space_make(hub->store, hub, 1, SPACE_WAIT, &dropped);
	if (r == STORE_E_WAIT && offload_for(hub, 1))
		r = space_make(hub->store, hub, 1, SPACE_WAIT, &dropped);
	return r == 0;
}

/* Fills @b, or begins one.  false: it must wait for something. */
static bool device_down_one(struct store_ns *sn, const struct store_through *t, struct device_batch **b)
{
	if (!*b)
		*b = device_batch_new(sn, false);
	if (!*b || !device_hub_room(sn->hub))
		return false;
	device_batch_add(*b, t->slot, ns_slot_take(&sn->hub->ns));
	if ((*b)->io.n == DEVICE_BLOCKS) {
		bool taken = device_submit(*b);

		*b = NULL;
		return taken;
	}
	return true;
}

static void device_down(struct store_ns *sn)
{
	struct device_batch *b = NULL;

	while (sn->through_head != sn->through_tail) {
		const struct store_through *t = &sn->through[sn->through_head % STORE_THROUGH];

		if (device_is_due(sn, t)) {
			if (!device_down_one(sn, t, &b))
				break;
		}
		sn->through_head++;
	}
	if (b && b->io.n > 0)
		(void)device_submit(b);
	else if (b)
		device_end(b, 0);
}

void device_run(struct store *store)
{
	if (store->mover.stopping)
		return;
	device_submit_all(store);
	list_for_each(it, &store->namespaces) {
		struct store_ns *sn = store_ns_at(it);

		if (sn->pool && !sn->lost && sn->pool->online)
			device_down(sn);
	}
}

void device_lost(struct store_pool *pool)
{
	struct list *first;

	while ((first = list_first(&pool->copies->open)))
		device_end(container_of(first, struct device_batch, link), TIER_E_GONE);
}
