/* SPDX-License-Identifier: Apache-2.0 */
/* The NVMe tier: its life, its areas, its face.
 *
 * Owns: everything in struct nvme.
 * Invariant: an area is FREE (anybody may have it), USED, or DROPPED: nobody's, while something of it is still being written;
 * n_free counts the first.
 * Deliberately not here: copies (nvme_io.c), metadata (nvme_record.c), finding it again (nvme_recover.c), files
 * (nvme_open.c), what slots hold.
 *
 * The end: DRAIN what is in flight, STORE metadata, FLUSH, MARK the superblocks clean, SEAL (flush) that, close the RING.  Whatever
 * fails or does not answer on the way: no mark, and on to the RING.
 */
#include "tier/nvme.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "base/assert.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/thread.h"
#include "tier/nvme_state.h"

#define DEPTH 32u
#define QUEUE 1024u
#define PIECES_MIN 256u
#define RING_ENTRIES 256u
#define META_BYTES ((size_t)(NVME_METAS + NVME_DRIVES_MAX) * NVME_BLOCK)

static void nvme_free(struct nvme *t);

#define NVME_TIMERS 5u
static struct nvme_timer *nvme_timer_at(struct nvme *t, size_t i)
{
	struct nvme_timer *all[NVME_TIMERS] = { &t->deadline, &t->probe, &t->group, &t->grace, &t->pinning };

	return all[i];
}

void nvme_note(struct nvme *t, const char *format, ...)
{
	size_t n = strlen(t->note);
	va_list args;

	if (n > 0 && n + 2 < sizeof(t->note)) {
		memcpy(t->note + n, "; ", 3);
		n += 2;
	}
	va_start(args, format);
	(void)vsnprintf(t->note + n, sizeof(t->note) - n, format, args);
	va_end(args);
}

/* ---- areas ---- */

static uint32_t nvme_areas(struct tier_lower *lower)
{
	return nvme_of(lower)->n_areas;
}

static uint32_t nvme_areas_free(struct tier_lower *lower)
{
	return nvme_of(lower)->n_free;
}

static uint32_t nvme_area_slots(struct tier_lower *lower, const struct tier_area_shape *shape)
{
	struct nvme *t = nvme_of(lower);

	return nvme_part_slots(t->layout.area_bytes, shape) * t->layout.drives;
}

int nvme_area_use(struct nvme *t, const struct nvme_header *h)
{
	struct nvme_area *a = &t->areas[h->area];
	uint32_t n_sectors = nvme_part_sectors(h->n_slots / t->layout.drives) * t->layout.drives;
	size_t words = (n_sectors + 63) / 64, place_words = (h->n_slots + 63) / 64;

	assert(a->state == NVME_AREA_FREE && t->n_free > 0 && h->n_slots > 0);
	a->dirty = calloc(2 * (words + place_words), sizeof(*a->dirty));
	a->owner = calloc(1, sizeof(*a->owner));
	if (!a->dirty || !a->owner) {
		free(steal(&a->dirty));
		free(steal(&a->owner));
		return error_origin(-ENOMEM);
	}
	a->busy = a->dirty + words;
	a->listed = a->busy + words;
	a->writing = a->listed + place_words;
	a->header_known = false;
	*a->owner = h->owner;
	a->state = NVME_AREA_USED;
	a->shape = h->shape;
	a->n_slots = h->n_slots;
	a->n_sectors = n_sectors;
	a->n_dirty = a->next = 0;
	a->life.epoch = h->epoch;
	a->life.digest = nvme_owner_digest(&h->owner);
	t->n_free--;
	return 0;
}

static int nvme_area_make(struct tier_lower *lower, const struct tier_area_shape *shape, const struct tier_owner *owner,
                          struct tier_area *ret_area)
{
	struct nvme *t = nvme_of(lower);
	struct nvme_header h;

	thread_assert(THREAD_LOOP);
	assert(owner->length <= TIER_OWNER_BYTES);
	if (!nvme_is_online(t))
		return TIER_E_GONE;
	if (t->n_free == 0)
		return TIER_E_FULL;
	memset(&h, 0, sizeof(h));
	while (t->areas[t->areas_next].state != NVME_AREA_FREE)
		t->areas_next = (t->areas_next + 1) % t->n_areas;
	h.area = t->areas_next;
	h.n_slots = nvme_area_slots(lower, shape);
	h.shape = *shape;
	h.owner = *owner;
	h.epoch = ++t->epoch;
	assert(h.n_slots > 0);
	if (nvme_area_use(t, &h) < 0)
		return TIER_E_FULL;
	nvme_header_dirty(t, h.area);
	*ret_area = (struct tier_area){ .id = h.area, .n_slots = h.n_slots };
	return 0;
}

void nvme_area_settle(struct nvme *t, uint32_t area)
{
	struct nvme_area *a = &t->areas[area];

	if (a->state != NVME_AREA_DROPPED || a->n_busy > 0)
		return;
	a->state = NVME_AREA_FREE;
	t->n_free++;
	free(steal(&a->dirty));
	a->busy = a->listed = a->writing = NULL;
	free(steal(&a->owner));
	a->n_slots = a->n_sectors = 0;
}

void nvme_area_drop(struct tier_lower *lower, uint32_t area)
{
	struct nvme *t = nvme_of(lower);
	struct nvme_area *a = &t->areas[area];

	thread_assert(THREAD_LOOP);
	assert(area < t->n_areas && a->state == NVME_AREA_USED && a->in_flight == 0);
	a->state = NVME_AREA_DROPPED;
	memset(a->dirty, 0, (a->n_sectors + 63) / 64 * sizeof(*a->dirty));
	a->n_dirty = 0;
	nvme_header_dirty(t, area);
	nvme_area_settle(t, area);
}

static void nvme_forget(struct tier_lower *lower, uint32_t area, uint32_t place)
{
	thread_assert(THREAD_LOOP);
	nvme_record_dirty(nvme_of(lower), area, place, false);
}

static const struct tier_lower_ops nvme_ops = {
	.name = "nvme",
	.areas = nvme_areas,
	.areas_free = nvme_areas_free,
	.area_slots = nvme_area_slots,
	.area_make = nvme_area_make,
	.area_drop = nvme_area_drop,
	.submit = nvme_submit,
	.forget = nvme_forget,
	.region_seen = nvme_region_seen,
	.region_gone = nvme_region_gone,
	.stat = nvme_stat,
};

/* ---- start ---- */

static uint64_t or_else(uint64_t value, uint64_t otherwise)
{
	return value ? value : otherwise;
}

static void nvme_configure(struct nvme *t, const struct nvme_config *config)
{
	t->loop = config->loop;
	t->ring = config->ring;
	t->depth = (config->depth ? config->depth : DEPTH) * config->n_paths;
	t->queue_max = config->queue ? config->queue : QUEUE;
	t->budget_bytes = config->write_budget_bytes;
	t->io_deadline_ns = or_else(config->io_deadline_ns, 10 * CLOCK_NS_PER_S);
	t->grace_ns = config->grace_ns == UINT64_MAX ? 0 : or_else(config->grace_ns, 10 * CLOCK_NS_PER_S);
	t->record_delay_ns = or_else(config->record_delay_ns, 50 * CLOCK_NS_PER_MS);
	t->probe_ns = or_else(config->probe_ns, CLOCK_NS_PER_S);
	t->layout.drives = config->n_paths;
	t->meta_buffer = URING_NO_BUFFER;
	list_init(&t->held);
	list_init(&t->flying);
	list_init(&t->unsaved);
	list_init(&t->metas_free);
	list_init(&t->pieces_free);
	for (int p = 0; p < TIER_PRIORITIES; p++) {
		list_init(&t->queues[p][0]);
		list_init(&t->queues[p][1]);
	}
	for (uint32_t i = 0; i < NVME_DRIVES_MAX; i++)
		t->drives[i].fd = t->drives[i].lock_fd = -1;
	for (size_t i = 0; i < NVME_TIMERS; i++) {
		struct nvme_timer *timer = nvme_timer_at(t, i);

		timer->t = t;
		loop_timer_init(t->loop, &timer->timer);
	}
	loop_deferred_init(&t->tick);
	loop_deferred_init(&t->hurry);
}

static int nvme_memory(struct nvme *t)
{
	uint32_t n_pieces = t->depth * 8 > PIECES_MIN ? t->depth * 8 : PIECES_MIN;
	void *blocks = mmap(NULL, META_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (blocks == MAP_FAILED)
		return error_origin(-ENOMEM);
	t->meta_blocks = blocks;
	t->pieces = calloc(n_pieces, sizeof(*t->pieces));
	t->n_areas = t->n_free = t->super.areas;
	t->areas = calloc(t->n_areas, sizeof(*t->areas));
	if (!t->pieces || !t->areas)
		return error_origin(-ENOMEM);
	for (uint32_t i = 0; i < n_pieces; i++)
		list_add_tail(&t->pieces_free, &t->pieces[i].o.link);
	t->n_pieces_free = n_pieces;
	for (uint32_t i = 0; i < NVME_METAS; i++) {
		t->metas[i].block = t->meta_blocks + (size_t)i * NVME_BLOCK;
		list_add_tail(&t->metas_free, &t->metas[i].o.link);
	}
	for (uint32_t i = 0; i < t->n_areas; i++) {
		list_init(&t->areas[i].link);
		memcpy(t->areas[i].life.uuid, t->super.uuid, NVME_UUID_BYTES);
		t->areas[i].life.area = i;
	}
	return 0;
}

static int nvme_ring(struct nvme *t, char *why)
{
	struct uring_config config = { .loop = t->loop, .entries = RING_ENTRIES, .files = NVME_FILES, .buffers = NVME_BUFFERS };
	int r = t->ring ? 0 : uring_new(&config, &t->ring);

	if (r == URING_E_NONE) {
		(void)snprintf(why, NVME_WHY_BYTES, "io_uring is not available: %s", strerror(errno));
		return NVME_E_RING;
	}
	if (r < 0)
		return error_trace(r);
	for (uint32_t i = 0; i < t->layout.drives; i++) {
		r = t->ring->ops->file_add(t->ring, t->drives[i].fd, &t->drives[i].file);
		if (r != 0) {
			(void)snprintf(why, NVME_WHY_BYTES, "%s: io_uring does not take the file", t->drives[i].path);
			return NVME_E_RING;
		}
	}
	if (t->ring->ops->buffer_add(t->ring, t->meta_blocks, META_BYTES, &t->meta_buffer) != 0)
		t->meta_buffer = URING_NO_BUFFER;
	return 0;
}

int nvme_new(const struct nvme_config *config, char *ret_why, struct tier_lower **ret_tier)
{
	struct nvme *t = calloc(1, sizeof(*t));
	bool random;
	int r;

	thread_assert(THREAD_LOOP);
	assert(config->n_paths > 0 && config->n_paths <= NVME_DRIVES_MAX);
	ret_why[0] = '\0';
	if (!t) {
		if (config->ring)
			config->ring->ops->close(config->ring, NULL, NULL);
		return error_origin(-ENOMEM);
	}
	t->lower.ops = &nvme_ops;
	nvme_configure(t, config);
	random = getrandom(&t->epoch, sizeof(t->epoch), 0) == (ssize_t)sizeof(t->epoch);
	assert(random);
	r = nvme_open_drives(t, config, ret_why);
	if (r == 0)
		r = nvme_memory(t);
	if (r == 0)
		r = nvme_ring(t, ret_why);
	if (r != 0) {
		t->phase = NVME_CLOSING;
		t->step = NVME_CLOSE_RING;
		nvme_free(t);
		return r < 0 ? error_trace(r) : r;
	}
	*ret_tier = &t->lower;
	return 0;
}

void nvme_start(struct tier_lower *lower)
{
	struct nvme *t = nvme_of(lower);

	thread_assert(THREAD_LOOP);
	assert(t->phase == NVME_NEW && lower->user.tag && lower->user.on_area && lower->user.on_slot);
	assert(lower->user.on_recovered && lower->user.on_online);
	nvme_recover(t);
}

bool nvme_knows_areas(const struct tier_lower *lower)
{
	return nvme_of((struct tier_lower *)lower)->areas_known;
}

/* ---- the end ---- */

static void nvme_gone(struct nvme *t)
{
	void (*closed)(void *arg) = t->closed;
	void *arg = t->closed_arg;

	assert(t->closes_due > 0);
	if (--t->closes_due > 0)
		return;
	nvme_close_drives(t);
	nvme_memory_free(t);
	nvme_recover_free(t);
	for (uint32_t i = 0; i < t->n_areas; i++) {
		free(t->areas[i].dirty);
		free(t->areas[i].owner);
	}
	free(t->areas);
	free(t->pieces);
	if (t->meta_blocks)
		(void)munmap(t->meta_blocks, META_BYTES);
	free(t);
	if (closed)
		closed(arg);
}

static void nvme_on_timer_closed(struct loop_timer *timer)
{
	nvme_gone(nvme_of_timer(timer));
}

static void nvme_on_ring_closed(void *arg)
{
	nvme_gone(arg);
}

static void nvme_free(struct nvme *t)
{
	t->closes_due = NVME_TIMERS + (t->ring != NULL);
	loop_deferred_cancel(&t->tick);
	loop_deferred_cancel(&t->hurry);
	nvme_recover_stop(t);
	for (size_t i = 0; i < NVME_TIMERS; i++)
		loop_timer_close(&nvme_timer_at(t, i)->timer, nvme_on_timer_closed);
	if (t->ring)
		t->ring->ops->close(t->ring, nvme_on_ring_closed, t);
}

/* Where to go from here, if the step is done; else the same. */
static enum nvme_close_step close_next(struct nvme *t)
{
	switch (t->step) {
	case NVME_CLOSE_DRAIN:
		if (!list_empty(&t->flying) || t->n_queued[0] + t->n_queued[1] > 0)
			return t->step;
		if (t->offline)
			return NVME_CLOSE_RING;
		if (t->recovered)
			return NVME_CLOSE_STORE;
		return t->mark_clean ? NVME_CLOSE_FLUSH : NVME_CLOSE_RING;
	case NVME_CLOSE_STORE:
		nvme_store(t); /* what was dirty while it was being written */
		return nvme_is_stored(t) ? NVME_CLOSE_FLUSH : t->step;
	case NVME_CLOSE_FLUSH:
		/* A flush that failed is never believed to have succeeded later. */
		return t->sys_left > 0 ? t->step : t->sys_failed || !t->mark_clean ? NVME_CLOSE_RING : NVME_CLOSE_MARK;
	case NVME_CLOSE_MARK:
		return nvme_super_is_stored(t) ? NVME_CLOSE_SEAL : t->step;
	case NVME_CLOSE_SEAL:
		return t->sys_left > 0 ? t->step : NVME_CLOSE_RING;
	case NVME_CLOSE_RING:
		break;
	}
	return NVME_CLOSE_RING;
}

static void close_enter(struct nvme *t, enum nvme_close_step step)
{
	t->step = step;
	switch (step) {
	case NVME_CLOSE_DRAIN:
	case NVME_CLOSE_STORE:
		break;
	case NVME_CLOSE_FLUSH:
	case NVME_CLOSE_SEAL:
		nvme_sys_start(t, URING_FLUSH);
		break;
	case NVME_CLOSE_MARK:
		nvme_super_dirty(t, true);
		nvme_store(t);
		break;
	case NVME_CLOSE_RING:
		nvme_free(t);
		break;
	}
}

void nvme_tick(struct nvme *t)
{
	enum nvme_close_step next;

	assert(t->phase == NVME_CLOSING);
	if (t->step == NVME_CLOSE_RING)
		return;
	next = nvme_is_overdue(t) ? NVME_CLOSE_RING : close_next(t);
	while (next != t->step) {
		close_enter(t, next);
		if (next == NVME_CLOSE_RING)
			return;
		next = close_next(t);
	}
}

static void nvme_on_tick(struct loop_deferred *d)
{
	struct nvme *t = container_of(d, struct nvme, tick);

	nvme_queue_fail(t);
	nvme_tick(t);
}

void nvme_close(struct tier_lower *lower, void (*closed)(void *arg), void *arg)
{
	struct nvme *t = nvme_of(lower);

	thread_assert(THREAD_LOOP);
	assert(t->phase != NVME_CLOSING);
	t->closed = closed;
	t->closed_arg = arg;
	if (t->phase != NVME_SERVING)
		t->mark_clean = t->phase == NVME_RECOVERING && t->was_clean;
	t->phase = NVME_CLOSING;
	t->step = NVME_CLOSE_DRAIN;
	nvme_recover_stop(t);
	loop_timer_stop(&t->group.timer);
	loop_timer_stop(&t->grace.timer);
	loop_timer_stop(&t->probe.timer);
	loop_timer_stop(&t->pinning.timer);
	t->writes_from_ns = 0;
	loop_defer(t->loop, &t->tick, nvme_on_tick);
}
