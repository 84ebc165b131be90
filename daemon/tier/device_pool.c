/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of one device, in chunks, and copies from and to it.
 *
 * Life of a chunk
 *   0 EMPTY   1 ASKED: being allocated   2 FREE   3 USED: a region   4 CLOSING
 *   0->1 chunk_ask   1->2, 1->0 chunk_on_made   2->3 pool_region_make   3->4 pool_region_drop   2->4 the device was lost   4->0 chunk_on_closed
 *
 * The user is told that the device is there when the first round of asking has ended.  What was lost with the device keeps its chunk until its region
 * is dropped.  A copy is cut into jobs, one for each lane and device region; it ends when the last of them has.  What the device does not take at once
 * waits here, in order, and is offered again when a job ends, or a little later.
 *
 * Deliberately not: which blocks, and when (move/device.c); pinning of host memory (device.c).
 */
#include "tier/device_pool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/size.h"
#include "base/thread.h"
#include "loop/loop.h"

#define POOL_AGAIN_NS (10 * CLOCK_NS_PER_MS) /* others keep the device busy */
#define POOL_ASK_NS (5 * CLOCK_NS_PER_S)     /* it had no memory */

enum chunk_state { CHUNK_EMPTY = 0, CHUNK_ASKED, CHUNK_FREE, CHUNK_USED, CHUNK_CLOSING };

struct chunk {
	struct device_pool *pool; /* borrows */
	struct gpu_mem mem;
	enum chunk_state state;
};

struct device_pool {
	struct tier_device device; /* first */
	struct device *d;          /* borrows */
	struct gpu *gpu;           /* borrows */
	struct device_user user;
	struct loop_timer again;
	enum gpu_share share;
	uint64_t chunk_bytes;
	struct chunk *chunks; /* owns */
	uint32_t n_chunks, n_free, n_used, n_asked, n_closing, n_jobs;
	struct list waiting; /* owns: struct job, not yet taken by the device */
	bool told, leaving, again_is_closed, warned;
};

/* Of one lane and one device region. */
struct job {
	struct list link;         /* in pool->waiting */
	struct device_pool *pool; /* borrows */
	struct copying *of;       /* borrows */
	struct gpu_copy copy;
	struct gpu_plane plane;
	struct layout layout;
	struct gpu_block blocks[];
};

/* What a struct tier_copy is made of here. */
struct copying {
	struct tier_copy *copy; /* borrows */
	uint32_t left;          /* jobs */
	int result;
};

static struct device_pool *pool_of(const struct tier *t)
{
	return (struct device_pool *)container_of(container_of(t, struct tier_device, tier), struct device_pool, device);
}

/* ---- chunks ---- */

static void pool_tell(struct device_pool *p, bool online)
{
	if (p->told == online)
		return;
	p->told = online;
	if (p->device.user.on_online)
		p->device.user.on_online(p->device.user.ctx, online);
}

static void pool_tell_room(struct device_pool *p)
{
	if (p->told && p->device.user.on_room)
		p->device.user.on_room(p->device.user.ctx);
}

static void chunk_on_closed(struct gpu_mem *mem, int r);

static void chunk_close(struct chunk *c)
{
	c->state = CHUNK_CLOSING;
	c->pool->n_closing++;
	gpu_mem_close(c->pool->gpu, &c->mem, chunk_on_closed);
}

static uint32_t pool_empty(const struct device_pool *p)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < p->n_chunks; i++)
		n += p->chunks[i].state == CHUNK_EMPTY;
	return n;
}

static void pool_on_again(struct loop_timer *t);

static void pool_arm(struct device_pool *p, uint64_t wait_ns)
{
	if (!p->leaving && !loop_timer_is_running(&p->again))
		loop_timer_start(&p->again, wait_ns, 0, pool_on_again);
}

/* Somebody else has the memory, or had it until a moment ago. */
static void pool_no_memory(struct device_pool *p)
{
	char want[SIZE_TEXT_MAX], have[SIZE_TEXT_MAX];

	if (!p->warned)
		log_warn("g1: %s gives %s of %s for pools: the rest is asked for again from time to time",
		         device_info(p->d)->uuid,
		         size_format((p->n_free + p->n_used) * p->chunk_bytes, have, sizeof(have)),
		         size_format(p->n_chunks * p->chunk_bytes, want, sizeof(want)));
	p->warned = true;
	pool_arm(p, POOL_ASK_NS);
}

static void chunk_on_made(struct gpu_mem *mem, int r)
{
	struct chunk *c = container_of(mem, struct chunk, mem);
	struct device_pool *p = c->pool;
	bool online = device_is_online(p->d) && !p->leaving;

	assert(c->state == CHUNK_ASKED);
	p->n_asked--;
	c->state = CHUNK_EMPTY;
	if (r == 0 && !online) {
		chunk_close(c);
	} else if (r == 0) {
		c->state = CHUNK_FREE;
		p->n_free++;
	}
	if (p->n_asked > 0 || !online)
		return;
	if (pool_empty(p) > 0)
		pool_no_memory(p);
	pool_tell(p, true);
	pool_tell_room(p);
}

static void chunk_ask(struct chunk *c)
{
	struct device_pool *p = c->pool;

	assert(c->state == CHUNK_EMPTY);
	c->mem = (struct gpu_mem){ .bytes = p->chunk_bytes, .share = p->share, .fd = -1 };
	if (gpu_mem_alloc(p->gpu, &c->mem, chunk_on_made) != 0)
		return; /* it has just gone, and will come back */
	c->state = CHUNK_ASKED;
	p->n_asked++;
}

static void pool_ask(struct device_pool *p)
{
	for (uint32_t i = 0; i < p->n_chunks && device_is_online(p->d) && !p->leaving; i++)
		if (p->chunks[i].state == CHUNK_EMPTY)
			chunk_ask(&p->chunks[i]);
}

static void chunk_on_closed(struct gpu_mem *mem, int r)
{
	struct chunk *c = container_of(mem, struct chunk, mem);

	(void)r; /* it is gone either way */
	c->pool->n_closing--;
	c->state = CHUNK_EMPTY;
	if (device_is_online(c->pool->d) && !c->pool->leaving)
		chunk_ask(c);
}

/* ---- the tier ---- */

static uint64_t pool_region_size(struct tier *t)
{
	return pool_of(t)->chunk_bytes;
}

static uint64_t pool_room(struct tier *t)
{
	return pool_of(t)->told ? pool_of(t)->n_free * pool_of(t)->chunk_bytes : 0;
}

static int pool_region_make(struct tier *t, uint64_t size, uint64_t min_size, uint32_t lanes, uint64_t lane_area,
                            struct tier_region *ret_region)
{
	struct device_pool *p = pool_of(t);
	struct chunk *c = p->chunks;

	(void)lanes;
	(void)lane_area;
	if (p->n_free == 0 || !p->told || size < p->chunk_bytes || min_size > p->chunk_bytes)
		return TIER_E_FULL;
	while (c->state != CHUNK_FREE)
		c++;
	c->state = CHUNK_USED;
	p->n_free--;
	p->n_used++;
	*ret_region = (struct tier_region){
		.size = p->chunk_bytes,
		.fd = p->share == GPU_SHARE_FD ? c->mem.fd : -1,
		.ro_fd = p->share == GPU_SHARE_FD ? c->mem.fd : -1,
		.handle = p->share == GPU_SHARE_HANDLE ? c->mem.handle : NULL,
		.priv = c,
	};
	return 0;
}

static void pool_region_drop(struct tier *t, struct tier_region *region)
{
	struct chunk *c = region->priv;

	assert(c->pool == pool_of(t) && c->state == CHUNK_USED);
	c->pool->n_used--;
	chunk_close(c);
	*region = (struct tier_region){ .fd = -1, .ro_fd = -1 };
}

static void pool_stat(struct tier *t, struct tier_stat *ret_stat)
{
	const struct device_pool *p = pool_of(t);

	*ret_stat = (struct tier_stat){
		.size_bytes = p->n_chunks * p->chunk_bytes,
		.used_bytes = p->n_used * p->chunk_bytes,
		.populated_bytes = (p->n_used + p->n_free) * p->chunk_bytes,
		.regions = p->n_used,
		.nodes = 1,
		.page_kind = "device",
		.note = device_why(p->d),
	};
}

static const struct tier_ops pool_ops = {
	.name = "device",
	.grain = pool_region_size,
	.region_size = pool_region_size,
	.region_make = pool_region_make,
	.region_drop = pool_region_drop,
	.room = pool_room,
	.stat = pool_stat,
};

/* ---- copies ---- */

static void copying_end(struct copying *c)
{
	struct tier_copy *copy = c->copy;
	int r = c->result;

	free(c);
	copy->cb(copy, r);
}

static void job_end(struct job *j, int r)
{
	struct copying *c = j->of;

	if (r != 0)
		c->result = r == GPU_E_LOST ? TIER_E_GONE : TIER_E_IO;
	free(j);
	if (--c->left == 0)
		copying_end(c);
}

static void pool_pump(struct device_pool *p);

static void job_on_done(struct gpu_copy *copy, int r)
{
	struct job *j = container_of(copy, struct job, copy);
	struct device_pool *p = j->pool;

	p->n_jobs--;
	job_end(j, r);
	pool_pump(p);
}

/* As many as the device takes. */
static void pool_pump(struct device_pool *p)
{
	struct list *first;

	while ((first = list_first(&p->waiting))) {
		struct job *j = container_of(first, struct job, link);
		int r = gpu_copy_start(p->gpu, &j->copy);

		if (r == GPU_E_FULL) {
			if (p->n_jobs == 0)
				pool_arm(p, POOL_AGAIN_NS);
			return;
		}
		list_del(&j->link);
		if (r == 0)
			p->n_jobs++;
		else
			job_end(j, r);
	}
}

static void pool_on_again(struct loop_timer *t)
{
	struct device_pool *p = container_of(t, struct device_pool, again);

	pool_pump(p);
	if (p->n_asked == 0)
		pool_ask(p);
}

/* Blocks [@from, ...) of @copy that are in the same device region as the first: of lane @lane.  NULL: no memory, or memory that is not pinned. */
static struct job *job_new(struct device_pool *p, const struct tier_copy *copy, uint32_t from, uint32_t n, uint32_t lane)
{
	struct job *j = calloc(1, sizeof(*j) + n * sizeof(j->blocks[0]));
	const struct tier_region *host = NULL;
	const struct gpu_pin *pin = NULL;

	if (!j)
		return NULL;
	j->pool = p;
	j->layout = (struct layout){ .planes = 1, .run_bytes = copy->lane_bytes, .block_stride = copy->stride };
	j->plane = (struct gpu_plane){ .mem = &((struct chunk *)copy->blocks[from].device->priv)->mem,
		                       .offset = lane * copy->blocks[from].device_lane_area };
	for (uint32_t i = 0; i < n; i++) {
		const struct tier_copy_block *b = &copy->blocks[from + i];

		if (b->host != host)
			pin = device_pin(p->d, host = b->host);
		j->blocks[i] = (struct gpu_block){ .block = b->device_offset / copy->stride,
			                           .pin = pin,
			                           .offset = b->host_offset + lane * b->host_lane_area };
		if (!pin) {
			free(j);
			return NULL;
		}
	}
	j->copy = (struct gpu_copy){ .done = job_on_done,
		                     .direction = copy->up ? GPU_UP : GPU_DOWN,
		                     .layout = &j->layout,
		                     .planes = &j->plane,
		                     .blocks = j->blocks,
		                     .n_blocks = n };
	return j;
}

/* Cuts it into jobs.  false: no memory. */
static bool copying_cut(struct device_pool *p, struct copying *c, struct list *ret_jobs)
{
	const struct tier_copy *copy = c->copy;

	for (uint32_t from = 0, n; from < copy->n; from += n) {
		for (n = 1; from + n < copy->n && copy->blocks[from + n].device == copy->blocks[from].device; n++)
			;
		for (uint32_t lane = 0; lane < copy->lanes; lane++) {
			struct job *j = job_new(p, copy, from, n, lane);

			if (!j)
				return false;
			j->of = c;
			list_add_tail(ret_jobs, &j->link);
			c->left++;
		}
	}
	return true;
}

/* The first job begins, or none does: so none that fails can end the whole before we have returned. */
static int copying_begin(struct device_pool *p, struct list *jobs)
{
	struct job *first = container_of(list_first(jobs), struct job, link);
	int r = gpu_copy_start(p->gpu, &first->copy);

	if (r != 0)
		return r == GPU_E_FULL ? TIER_E_FULL : TIER_E_GONE;
	list_del(&first->link);
	p->n_jobs++;
	list_splice_tail(&p->waiting, jobs);
	pool_pump(p);
	return 0;
}

static int pool_copy(struct tier_device *t, struct tier_copy *copy)
{
	struct device_pool *p = pool_of(&t->tier);
	struct copying *c;
	struct list jobs, *it;
	int r;

	thread_assert(THREAD_LOOP);
	assert(copy->n > 0 && copy->lanes > 0);
	if (!p->told)
		return TIER_E_GONE;
	if (!list_empty(&p->waiting))
		return TIER_E_FULL;
	c = calloc(1, sizeof(*c));
	if (!c)
		return TIER_E_NOMEM;
	c->copy = copy;
	list_init(&jobs);
	r = copying_cut(p, c, &jobs) ? copying_begin(p, &jobs) : TIER_E_NOMEM;
	if (r == 0)
		return 0;
	while ((it = list_pop(&jobs)))
		free(container_of(it, struct job, link));
	free(c);
	return r;
}

static uint64_t pool_coming(struct tier_device *t)
{
	const struct device_pool *p = pool_of(&t->tier);

	return p->told ? (p->n_asked + p->n_closing) * p->chunk_bytes : 0;
}

static const struct tier_device_ops pool_device_ops = { .copy = pool_copy, .coming = pool_coming };

/* ---- birth and end ---- */

static void pool_on_state(struct device_user *user, bool online)
{
	struct device_pool *p = container_of(user, struct device_pool, user);

	if (online) {
		pool_ask(p);
		return;
	}
	pool_tell(p, false);
	pool_pump(p); /* what waits ends: the device takes nothing */
	for (uint32_t i = 0; i < p->n_chunks; i++) {
		if (p->chunks[i].state != CHUNK_FREE)
			continue;
		p->n_free--;
		chunk_close(&p->chunks[i]);
	}
}

int device_pool_new(const struct device_pool_config *config, struct tier_device **ret_pool)
{
	const struct gpu_info *info = device_info(config->device);
	uint64_t chunk = config->region_size ? config->region_size : config->size / 16;
	struct device_pool *p;

	thread_assert(THREAD_LOOP);
	if (info->mig || (!info->fds && !info->handles)) {
		log_warn("g1: %s: no pools: %s", info->uuid,
		         info->mig ? "memory of a MIG instance is not shared" : "its memory cannot be shared");
		return DEVICE_POOL_E_CANNOT;
	}
	p = calloc(1, sizeof(*p));
	if (!p)
		return error_origin(-ENOMEM);
	p->chunk_bytes = (chunk + GPU_MEM_GRAIN - 1) / GPU_MEM_GRAIN * GPU_MEM_GRAIN;
	p->n_chunks = (uint32_t)(config->size / p->chunk_bytes);
	p->chunks = calloc(p->n_chunks + 1, sizeof(*p->chunks));
	p->gpu = p->chunks ? device_use(config->device) : NULL;
	if (!p->gpu) {
		free(p->chunks);
		free(p);
		return DEVICE_POOL_E_CANNOT;
	}
	p->d = config->device;
	p->share = info->fds ? GPU_SHARE_FD : GPU_SHARE_HANDLE;
	p->device.tier.ops = &pool_ops;
	p->device.ops = &pool_device_ops;
	p->device.lends_handles = p->share == GPU_SHARE_HANDLE;
	list_init(&p->waiting);
	for (uint32_t i = 0; i < p->n_chunks; i++)
		p->chunks[i].pool = p;
	loop_timer_init(config->loop, &p->again);
	p->user.on_state = pool_on_state;
	device_watch(p->d, &p->user);
	pool_ask(p); /* where it has been in use before */
	*ret_pool = &p->device;
	return 0;
}

static void pool_on_again_closed(struct loop_timer *t)
{
	container_of(t, struct device_pool, again)->again_is_closed = true;
}

void device_pool_leave(struct tier_device *t)
{
	struct device_pool *p = pool_of(&t->tier);

	assert(p->n_used == 0 && p->n_jobs == 0 && list_empty(&p->waiting));
	p->leaving = true;
	p->told = false;
	device_unwatch(&p->user);
	loop_timer_close(&p->again, pool_on_again_closed);
}

struct tier_device *device_pool_free(struct tier_device *t)
{
	struct device_pool *p;

	if (!t)
		return NULL;
	p = pool_of(&t->tier);
	assert(p->leaving && p->again_is_closed);
	free(p->chunks);
	free(p);
	return NULL;
}

uint32_t device_pool_missing(const struct tier_device *t)
{
	return pool_empty(pool_of(&t->tier));
}
