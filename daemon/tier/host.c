/* SPDX-License-Identifier: Apache-2.0 */
/* The host tier: who has how much of the budget, and memory prepared ahead.
 *
 * Owns: all regions and objects.
 * Invariant: used_bytes + prepared_bytes <= size_bytes.
 * Deliberately not here: how a memfd is made (region.c), what is done in the background (host_work.c), which node is whose
 * (nodes.c), what regions are for.
 *
 * Life of a region
 *   PREPARED  made ahead; on the list of prepared ones; charged to prepared_bytes
 *   OUT       given out by region_make(); charged to used_bytes
 *   DYING     dropped; its pages are given back in this call, or by a worker if that takes long or workers are touching it.
 *             Not charged; but until it is gone nothing is touched or made ahead.
 *
 * (none) -> PREPARED  host_fill        PREPARED -> OUT    region_make, of the same size
 * (none) -> OUT       region_make      OUT, PREPARED -> DYING or gone  region_drop; room for another size; host_close
 */
#include "tier/host.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/assert.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"
#include "base/size.h"
#include "base/thread.h"
#include "tier/host_work.h"

#define HOST_REGION_MAX (UINT64_C(1) << 30)
#define HOST_REGIONS_AUTO 64

static struct host *host_of(struct tier *t)
{
	assert(t);
	return container_of(t, struct host, tier);
}

static uint64_t grain_up(uint64_t n)
{
	return (n + REGION_GRAIN - 1) / REGION_GRAIN * REGION_GRAIN;
}

static uint64_t page_up(uint64_t n)
{
	return (n + REGION_SMALL_PAGE - 1) / REGION_SMALL_PAGE * REGION_SMALL_PAGE;
}

/* ---- regions ---- */

/* On the best pages there are.  Outcome: TIER_E_NOMEM, for faults too: they were logged where they were born. */
static int host_region_new(struct host *h, uint64_t size, struct host_region **ret_hr)
{
	struct host_region *hr = calloc(1, sizeof(*hr));
	enum region_pages pages = h->pages;
	int r;

	if (!hr)
		return TIER_E_NOMEM;
	r = region_open("kvbmd-g2", size, pages, &hr->region);
	if (r != 0 && pages == REGION_PAGES_HUGETLB && h->may_fall_back) {
		pages = h->object_pages;
		r = region_open("kvbmd-g2", size, pages, &hr->region);
		if (r == 0)
			(void)snprintf(h->note, sizeof(h->note),
			               "others took huge pages: some regions are on smaller ones");
	}
	if (r != 0) {
		free(hr);
		return TIER_E_NOMEM;
	}
	list_init(&hr->link);
	list_init(&hr->todo);
	hr->host = h;
	atomic_init(&hr->stop, false);
	hr->map = (struct nodes_map){
		.base = hr->region.base,
		.size = size,
		.unit = pages == REGION_PAGES_SMALL ? REGION_SMALL_PAGE : REGION_GRAIN,
	};
	hr->present = !h->workers; /* else once they have been there */
	nodes_interleave(&h->nodes, &hr->map);
	if (h->workers)
		list_add_tail(&h->todo, &hr->todo);
	*ret_hr = hr;
	return 0;
}

static void host_prepared_end(struct host *h, struct host_region *hr)
{
	assert(hr->state == HOST_PREPARED && h->n_prepared > 0 && h->prepared_bytes >= hr->region.size);
	h->prepared_bytes -= hr->region.size;
	h->n_prepared--;
	host_work_end(h, hr);
}

/* The one whose loss costs least: it has been touched least. */
static bool host_prepared_drop_one(struct host *h)
{
	struct host_region *worst = NULL;

	list_for_each(it, &h->prepared) {
		struct host_region *hr = container_of(it, struct host_region, link);

		if (!worst || hr->touched < worst->touched)
			worst = hr;
	}
	if (worst)
		host_prepared_end(h, worst);
	return worst;
}

/* Makes regions ahead until the budget is covered; not before dropped memory was given back. */
static void host_fill(struct host *h)
{
	while (h->workers && !h->closing && list_empty(&h->dying) && h->n_prepared < HOST_PREPARED_MAX) {
		uint64_t size = h->size_bytes - h->used_bytes - h->prepared_bytes;
		struct host_region *hr;

		size = size < h->region_size ? size : h->region_size;
		if (size == 0 || host_region_new(h, size, &hr) != 0)
			return; /* refused: tried again after the next drop */
		hr->state = HOST_PREPARED;
		list_add_tail(&h->prepared, &hr->link);
		h->prepared_bytes += size;
		h->n_prepared++;
	}
}

static void host_on_fill(struct loop_deferred *d)
{
	struct host *h = container_of(d, struct host, fill);

	host_fill(h);
	host_work_kick(h);
}

/* ---- the face: regions ---- */

static uint64_t host_grain(struct tier *t)
{
	(void)t;
	return REGION_GRAIN;
}

static uint64_t host_region_size(struct tier *t)
{
	return host_of(t)->region_size;
}

static uint64_t host_room(struct tier *t)
{
	struct host *h = host_of(t);

	return h->size_bytes - h->used_bytes;
}

/* The prepared one of that size that was touched most. */
static struct host_region *host_prepared_best(struct host *h, uint64_t size)
{
	struct host_region *best = NULL;

	list_for_each(it, &h->prepared) {
		struct host_region *hr = container_of(it, struct host_region, link);

		if (hr->region.size == size && (!best || hr->touched > best->touched))
			best = hr;
		if (best && best->touched == size)
			break;
	}
	return best;
}

/* A prepared one leaves the list, or a new one is made in the place of prepared ones of another size. */
static int host_region_get(struct host *h, uint64_t size, struct host_region **ret_hr)
{
	struct host_region *hr = host_prepared_best(h, size);
	int r;

	if (hr) {
		list_del(&hr->link);
		h->prepared_bytes -= size;
		h->n_prepared--;
		*ret_hr = hr;
		return 0;
	}
	while (h->used_bytes + h->prepared_bytes + size > h->size_bytes)
		(void)host_prepared_drop_one(h);
	do
		r = host_region_new(h, size, ret_hr);
	while (r != 0 && host_prepared_drop_one(h)); /* they hold memory and descriptors */
	return r;
}

/* From now on it has lanes: new pages come from their nodes, those touched before are moved by the workers. */
static void host_region_place(struct host *h, struct host_region *hr, uint32_t lanes, uint64_t lane_area)
{
	hr->map.lanes = lanes;
	hr->map.lane_area = lane_area;
	if (h->nodes.n <= 1 || lanes == 0 || lane_area == 0)
		return;
	nodes_bind(&h->nodes, &hr->map, 0, hr->region.size, false);
	if (!h->workers || (hr->touched == 0 && hr->busy == 0))
		return;
	h->populated_bytes -= hr->touched;
	hr->touched = 0;
	hr->present = false;
	hr->pass++;
	list_del(&hr->todo);
	list_add_tail(&h->todo, &hr->todo);
}

static int host_region_make(struct tier *t, uint64_t size, uint64_t min_size, uint32_t lanes, uint64_t lane_area,
                            struct tier_region *ret_region)
{
	struct host *h = host_of(t);
	uint64_t room = host_room(t);
	struct host_region *hr;
	int r;

	thread_assert(THREAD_LOOP);
	assert(size > 0 && min_size <= grain_up(size) && lanes <= TIER_MAX_LANES && !h->closing);
	size = grain_up(size);
	if (size > room)
		size = room;
	if (size == 0 || size < min_size)
		return TIER_E_FULL;
	if (lanes > 0 && lane_area > size / lanes)
		lane_area = size / lanes; /* the budget made it smaller than was asked for */
	r = host_region_get(h, size, &hr);
	if (r != 0)
		return r;
	hr->state = HOST_OUT;
	list_add_tail(&h->out, &hr->link);
	h->used_bytes += size;
	h->n_out++;
	*ret_region = (struct tier_region){ .priv = hr, .size = size };
	if (region_open_ro(&hr->region) != 0) {
		t->ops->region_drop(t, ret_region);
		return TIER_E_NOMEM;
	}
	host_region_place(h, hr, lanes, lane_area);
	if (list_is_linked(&hr->todo)) { /* before what is only prepared */
		list_del(&hr->todo);
		list_add_head(&h->todo, &hr->todo);
	}
	host_work_kick(h);
	*ret_region = (struct tier_region){
		.base = hr->region.base,
		.size = size,
		.fd = hr->region.fd,
		.ro_fd = hr->region.ro_fd,
		.huge = hr->region.pages != REGION_PAGES_SMALL,
		.present = &hr->present,
		.priv = hr,
	};
	return 0;
}

static void host_region_drop(struct tier *t, struct tier_region *region)
{
	struct host *h = host_of(t);
	struct host_region *hr = region->priv;

	thread_assert(THREAD_LOOP);
	assert(hr && hr->state == HOST_OUT && h->n_out > 0 && h->used_bytes >= hr->region.size);
	h->used_bytes -= hr->region.size;
	h->n_out--;
	host_work_end(h, hr);
	*region = (struct tier_region){ .fd = -1, .ro_fd = -1 };
	/* Not at once: room is often made for a region of another size, in this very turn. */
	if (h->loop && !h->closing)
		loop_defer(h->loop, &h->fill, host_on_fill);
}

/* ---- the face: objects, figures ---- */

static int host_object_make(struct tier *t, const char *name, uint64_t size, bool sparse, struct tier_object *ret_object)
{
	struct host *h = host_of(t);
	struct region region;

	thread_assert(THREAD_LOOP);
	assert(size > 0 && !h->closing);
	while (region_open(name, page_up(size), sparse ? REGION_PAGES_SMALL : h->object_pages, &region) != 0)
		if (!host_prepared_drop_one(h))
			return TIER_E_NOMEM;
	if (region_open_ro(&region) != 0 || (!sparse && region_freeze(&region) != 0)) {
		region_close(&region);
		return TIER_E_NOMEM;
	}
	h->n_objects++;
	*ret_object = (struct tier_object){ .base = region.base, .size = size, .fd = region.fd, .ro_fd = region.ro_fd };
	return 0;
}

static void host_object_drop(struct tier *t, struct tier_object *object)
{
	struct host *h = host_of(t);
	struct region region = { .base = object->base, .fd = object->fd, .ro_fd = object->ro_fd };

	thread_assert(THREAD_LOOP);
	assert(region.base && h->n_objects > 0);
	h->n_objects--;
	region.size = page_up(object->size);
	region_close(&region);
	*object = (struct tier_object){ .fd = -1, .ro_fd = -1 };
}

static void host_stat(struct tier *t, struct tier_stat *ret_stat)
{
	static const char *const
		kinds[] = { [REGION_PAGES_SMALL] = "4k", [REGION_PAGES_THP] = "thp", [REGION_PAGES_HUGETLB] = "hugetlb" };
	struct host *h = host_of(t);

	*ret_stat = (struct tier_stat){
		.size_bytes = h->size_bytes,
		.used_bytes = h->used_bytes,
		.populated_bytes = h->populated_bytes,
		.regions = h->n_out,
		.nodes = h->nodes.n,
		.huge = h->pages != REGION_PAGES_SMALL,
		.huge_wanted = h->huge_wanted,
		.page_kind = kinds[h->pages],
		.note = h->note,
	};
}

static const struct tier_ops host_ops = {
	.name = "g2",
	.grain = host_grain,
	.region_size = host_region_size,
	.region_make = host_region_make,
	.region_drop = host_region_drop,
	.room = host_room,
	.object_make = host_object_make,
	.object_drop = host_object_drop,
	.stat = host_stat,
};

/* ---- start and end ---- */

static void host_on_retry_closed(struct loop_timer *timer)
{
	struct host *h = container_of(timer, struct host, retry);
	void (*closed)(void *arg) = h->closed;
	void *arg = h->closed_arg;

	free(h);
	if (closed)
		closed(arg);
}

void host_on_quiet(struct host *h)
{
	if (!h->closing) {
		host_fill(h);
		host_work_kick(h);
		return;
	}
	assert(list_empty(&h->todo) && h->populated_bytes == 0);
	loop_deferred_cancel(&h->fill);
	loop_timer_close(&h->retry, host_on_retry_closed);
}

/* Which pages, and the one line about it. */
static int host_choose_pages(struct host *h, enum host_huge wish)
{
	char size[SIZE_TEXT_MAX], have[SIZE_TEXT_MAX];
	struct region_system s;
	uint64_t pool;

	region_system_read("/sys", &s);
	size_format(h->size_bytes, size, sizeof(size));
	size_format(s.hugetlb_free, have, sizeof(have));
	h->may_fall_back = wish != HOST_HUGE_REQUIRE;
	h->huge_wanted = wish != HOST_HUGE_NEVER;
	h->object_pages = h->huge_wanted && s.thp ? REGION_PAGES_THP : REGION_PAGES_SMALL;
	h->pages = h->object_pages;
	if (!h->huge_wanted) {
		log_info("g2: %s on pages of 4K, as configured", size);
		return 0;
	}
	if (s.hugetlb_free >= h->size_bytes) {
		h->pages = REGION_PAGES_HUGETLB;
		log_info("g2: %s on reserved huge pages of 2M", size);
		return 0;
	}
	pool = (s.hugetlb_total + h->size_bytes - s.hugetlb_free) / REGION_GRAIN;
	if (wish == HOST_HUGE_REQUIRE) {
		log_error("g2.huge_pages is \"require\", but of the %s needed only %s are free in huge pages of 2M; "
		          "sysctl -w vm.nr_hugepages=%llu gives them",
		          size, have, (unsigned long long)pool);
		return HOST_E_HUGE;
	}
	if (s.thp)
		(void)snprintf(h->note, sizeof(h->note),
		               "huge pages where the kernel finds some; vm.nr_hugepages=%llu reserves them",
		               (unsigned long long)pool);
	else
		(void)snprintf(h->note, sizeof(h->note),
		               "no huge pages: %s of 2M pages are free, shmem_enabled is \"%s\"; for faster copies set "
		               "vm.nr_hugepages=%llu, or /sys/kernel/mm/transparent_hugepage/shmem_enabled to advise",
		               have, s.thp_setting[0] ? s.thp_setting : "absent", (unsigned long long)pool);
	if (s.thp)
		log_info("g2: %s on transparent huge pages: %s", size, h->note);
	else
		log_warn("g2: %s on pages of 4K: %s", size, h->note);
	return 0;
}

static void host_size_regions(struct host *h, const struct host_config *config)
{
	uint64_t size = grain_up(config->region_size ? config->region_size : h->size_bytes / HOST_REGIONS_AUTO);

	if (config->region_size == 0 && size > HOST_REGION_MAX)
		size = HOST_REGION_MAX;
	if (size > h->size_bytes)
		size = h->size_bytes;
	h->region_size = size > 0 ? size : REGION_GRAIN;
}

/* Nothing is out and nobody touches anything, so this is all there is. */
static void host_prepared_drop_all(struct host *h)
{
	while (host_prepared_drop_one(h))
		;
	assert(h->n_prepared == 0 && h->prepared_bytes == 0);
}

int host_new(const struct host_config *config, struct tier **ret_tier)
{
	_cleanup_(free_p) struct host *h = calloc(1, sizeof(*h));
	int r;

	assert(!config->loop == !config->workers);
	if (!h)
		return error_origin(-ENOMEM);
	if (config->size < REGION_GRAIN)
		return error_origin(-EINVAL);
	h->tier.ops = &host_ops;
	h->loop = config->loop;
	h->workers = config->workers;
	list_init(&h->prepared);
	list_init(&h->out);
	list_init(&h->dying);
	list_init(&h->todo);
	h->size_bytes = config->size / REGION_GRAIN * REGION_GRAIN;
	host_size_regions(h, config);
	h->nodes.n = 1;
	if (config->numa)
		nodes_find(&h->nodes);
	r = host_choose_pages(h, config->huge);
	if (r != 0)
		return r;
	host_fill(h);
	if (!h->may_fall_back && h->workers && h->n_prepared < HOST_PREPARED_MAX && h->prepared_bytes < h->size_bytes) {
		log_error("g2.huge_pages is \"require\", but others took the huge pages meanwhile");
		h->workers = NULL; /* they have not been asked for anything */
		host_prepared_drop_all(h);
		return HOST_E_HUGE;
	}
	if (h->loop) {
		loop_deferred_init(&h->fill);
		loop_timer_init(h->loop, &h->retry);
		host_work_kick(h);
	}
	*ret_tier = &h->tier;
	steal(&h);
	return 0;
}

void host_leave(struct tier *t)
{
	thread_assert(THREAD_LOOP);
	host_of(t)->leaving = true;
}

void host_close(struct tier *t, void (*closed)(void *arg), void *arg)
{
	struct host *h = host_of(t);

	thread_assert(THREAD_LOOP);
	assert(h->loop && !h->closing && h->n_out == 0 && h->n_objects == 0 && h->used_bytes == 0);
	h->closing = true;
	h->closed = closed;
	h->closed_arg = arg;
	host_prepared_drop_all(h);
	if (host_work_is_quiet(h))
		host_on_quiet(h);
}

struct tier *host_free(struct tier *t)
{
	struct host *h;

	if (!t)
		return NULL;
	h = host_of(t);
	assert(!h->loop && h->n_out == 0 && h->n_objects == 0 && h->used_bytes == 0 && list_empty(&h->prepared));
	free(h);
	return NULL;
}
