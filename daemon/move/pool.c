/* SPDX-License-Identifier: Apache-2.0 */
/* Pools: namespaces in device memory, one for each namespace and device that somebody asked for.
 *
 * Owns the list of devices that have joined.  A pool is a struct store_ns of its own over the device's tier, with the salt of its hub, the namespace
 * of the same name in host memory, so that both name parents by the same tags.  A hub does not go while it has pools.
 *
 *   a device   OFFLINE -> ONLINE -> OFFLINE ...                         pool_on_online
 *   a pool     HERE (device online)  -> LOST (its device went: nobody finds it, its sessions are told, its copies end when they do) -> freed
 *
 * A lost pool goes when the last of holders, zombies, copies and onboards has; another life of the device begins with new ones.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/thread.h"
#include "move/transfer.h"

/* ---- a namespace's pool ---- */

int pool_ns_init(struct store_ns *sn)
{
	size_t slots = (size_t)sn->ns.geo.n_regions << sn->ns.geo.shift;

	sn->ns.kept = calloc(slots, sizeof(*sn->ns.kept));
	sn->ns.copies = calloc(slots, sizeof(*sn->ns.copies));
	return sn->ns.kept && sn->ns.copies ? 0 : -ENOMEM;
}

static int pool_hub_init(struct store_ns *hub)
{
	if (!hub->ns.copies)
		hub->ns.copies = calloc((size_t)hub->ns.geo.n_regions << hub->ns.geo.shift, sizeof(*hub->ns.copies));
	return hub->ns.copies ? 0 : -ENOMEM;
}

static struct store_pool *pool_of(const struct store *store, const char *device)
{
	list_for_each(it, &store->pools) {
		struct store_pool *pool = container_of(it, struct store_pool, link);

		if (strcmp(pool->device, device) == 0)
			return pool;
	}
	return NULL;
}

int pool_is_there(const struct store *store, const char *device)
{
	const struct store_pool *pool = pool_of(store, device);

	if (!pool)
		return STORE_E_NOENT;
	return pool->online ? 0 : STORE_E_OFFLINE;
}

int pool_find_ns(struct store_ns *hub, const char *device, struct store_ns **ret_sn)
{
	struct store *store = hub->store;
	struct store_pool *pool = pool_of(store, device);
	struct store_ns *sn;
	int r;

	assert(pool && pool->online);
	sn = store_find_in(store, hub->desc.name, pool);
	if (!sn) {
		r = pool_hub_init(hub);
		if (r == 0)
			r = store_ns_new(store, &hub->desc, hub->ns.index.salt, pool, &sn);
		if (r != 0)
			return r;
		sn->hub = hub;
		hub->n_pools++;
	}
	*ret_sn = sn;
	return 0;
}

bool pool_ns_may_go(const struct store_ns *sn)
{
	return sn->ns.n_holders == 0 && sn->zombies == 0 && sn->n_copies == 0 && sn->n_onboards == 0 && sn->n_pools == 0;
}

void pool_ns_end(struct store_ns *sn)
{
	if (sn->lost && pool_ns_may_go(sn))
		store_ns_free(sn);
}

/* ---- devices ---- */

static struct holder *pool_lost_holder(const struct store_pool *pool)
{
	list_for_each(it, &pool->store->namespaces) {
		struct store_ns *sn = store_ns_at(it);
		struct list *first = list_first(&sn->ns.holders);

		if (sn->pool == pool && sn->lost && first)
			return container_of(first, struct holder, in_ns);
	}
	return NULL;
}

static void pool_lose(struct store_pool *pool)
{
	struct store *store = pool->store;
	struct holder *h;

	list_for_each(it, &store->namespaces) {
		struct store_ns *sn = store_ns_at(it);

		if (sn->pool != pool)
			continue;
		sn->lost = true;
		atomic_store_explicit(&sn->ns.shm->closed, 1, memory_order_release);
	}
	device_lost(pool);
	onboard_lost(store);
	store_waits_lost(store);
	while (store->on_lost && (h = pool_lost_holder(pool)))
		store->on_lost(store->on_lost_ctx, h->owner, h);
	list_for_each_safe(it, next, &store->namespaces)
		pool_ns_end(store_ns_at(it));
}

static void pool_on_online(void *ctx, bool online)
{
	struct store_pool *pool = ctx;

	thread_assert(THREAD_LOOP);
	if (pool->online == online)
		return;
	pool->online = online;
	if (!online)
		pool_lose(pool);
	store_moved(pool->store);
}

static void pool_on_room(void *ctx)
{
	store_moved(((struct store_pool *)ctx)->store);
}

int store_pool_add(struct store *store, const char *device, struct tier_device *tier)
{
	struct store_pool *pool = calloc(1, sizeof(*pool));

	thread_assert(THREAD_LOOP);
	assert(strlen(device) < sizeof(pool->device) && !pool_of(store, device));
	if (!pool)
		return -ENOMEM;
	pool->store = store;
	pool->tier = tier;
	memcpy(pool->device, device, strlen(device) + 1);
	if (device_init(pool) < 0) {
		free(pool);
		return -ENOMEM;
	}
	list_add_tail(&store->pools, &pool->link);
	tier->user = (struct tier_device_user){ .on_online = pool_on_online, .on_room = pool_on_room, .ctx = pool };
	return 0;
}

void store_on_lost(struct store *store, void (*cb)(void *ctx, void *owner, struct holder *h), void *ctx)
{
	store->on_lost = cb;
	store->on_lost_ctx = ctx;
}

void pool_free_all(struct store *store)
{
	struct list *it;

	list_for_each_safe(ns, next, &store->namespaces)
		if (store_ns_at(ns)->pool)
			store_ns_free(store_ns_at(ns));
	while ((it = list_pop(&store->pools))) {
		struct store_pool *pool = container_of(it, struct store_pool, link);

		pool->tier->user = (struct tier_device_user){ 0 };
		device_deinit(pool);
		free(pool);
	}
}
