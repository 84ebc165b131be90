/* SPDX-License-Identifier: Apache-2.0 */
/* Finds out what is on the drives: first all area headers, then the records of the areas that their owner keeps.
 *
 * Several large reads are under way; what they bring is looked at in small steps, so that others get their turns.
 * Whatever cannot be read or is not whole is not there.
 *
 * Meanwhile the superblocks are marked not CLEAN; the tier serves when both are done.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/error.h"
#include "tier/nvme_state.h"

#define STEP_SECTORS 4u /* looked at in one step; the loop takes 16 in a turn */
#define SCAN_SECTORS ((uint32_t)(NVME_SCAN_BYTES / NVME_BLOCK))

struct scan_read {
	struct nvme_op o; /* first; link: free, flying, or arrived */
	uint8_t *buf;
	uint32_t area, first, n, at; /* sectors of this drive's part; looked at so far */
	bool failed;
};

struct nvme_scan {
	struct nvme *t; /* borrows */
	uint8_t *bufs;  /* owns */
	struct scan_read reads[NVME_SCANS];
	struct list free, arrived;
	uint32_t n_busy;
	bool records;                /* else headers */
	uint32_t area, drive, first; /* what to read next */
	struct nvme_header *best;    /* owns: of each area; used: found */
	bool stopped;
	struct loop_deferred step;
};

static void scan_on_step(struct loop_deferred *d);

static void scan_on_done(struct nvme_op *o, int r)
{
	struct scan_read *s = container_of(o, struct scan_read, o);
	struct nvme *t = o->t;
	struct nvme_scan *scan = t->scan;

	s->failed = r != 0;
	list_add_tail(&scan->arrived, &o->link);
	loop_defer(t->loop, &scan->step, scan_on_step);
}

static void scan_read(struct nvme_scan *scan, struct scan_read *s, uint64_t offset, uint32_t n)
{
	s->n = n;
	s->at = 0;
	s->o.done = scan_on_done;
	s->o.op = (struct uring_op){ .kind = URING_READ,
		                     .buffer = URING_NO_BUFFER,
		                     .base = s->buf,
		                     .length = n * NVME_BLOCK,
		                     .offset = offset };
	scan->n_busy++;
	nvme_op_start(scan->t, &s->o, s->o.drive);
}

/* The next place to read from; false: there is none. */
static bool scan_next(struct nvme_scan *scan, struct scan_read *s)
{
	struct nvme *t = scan->t;

	while (scan->area < t->n_areas) {
		struct nvme_area *a = &t->areas[scan->area];
		uint32_t n = NVME_HEADER_COPIES;

		if (scan->records)
			n = a->state == NVME_AREA_USED ? a->n_sectors / t->layout.drives - scan->first : 0;
		if (n == 0) {
			scan->first = 0;
			if (++scan->drive == t->layout.drives) {
				scan->drive = 0;
				scan->area++;
			}
			continue;
		}
		n = n < SCAN_SECTORS ? n : SCAN_SECTORS;
		s->area = scan->area;
		s->first = scan->first;
		s->o.drive = scan->drive;
		s->n = n;
		if (scan->records) {
			scan->first += n;
		} else if (++scan->drive == t->layout.drives) {
			scan->drive = 0;
			scan->area++;
		}
		return true;
	}
	return false;
}

static void scan_fill(struct nvme_scan *scan)
{
	struct nvme *t = scan->t;

	while (!scan->stopped && !list_empty(&scan->free)) {
		struct scan_read *s = container_of(list_first(&scan->free), struct scan_read, o.link);
		uint64_t offset;

		if (!scan_next(scan, s))
			return;
		list_del(&s->o.link);
		offset = nvme_area_offset(&t->layout, s->area);
		if (scan->records)
			offset += ((uint64_t)NVME_HEADER_COPIES + s->first) * NVME_BLOCK;
		scan_read(scan, s, offset, s->n);
	}
}

/* ---- headers ---- */

static void look_at_headers(struct nvme_scan *scan, const struct scan_read *s)
{
	struct nvme *t = scan->t;
	struct nvme_header h, *best = &scan->best[s->area];

	for (uint32_t i = 0; i < NVME_HEADER_COPIES; i++) {
		if (nvme_header_decode(t->super.uuid, s->area, s->buf + (size_t)i * NVME_BLOCK, &h) != 0)
			continue;
		if (h.seq > t->seq)
			t->seq = h.seq;
		if (h.seq > best->seq)
			*best = h;
	}
}

static void take_areas(struct nvme_scan *scan)
{
	struct nvme *t = scan->t;
	const struct tier_lower_user *user = &t->lower.user;

	for (uint32_t i = 0; i < t->n_areas; i++) {
		const struct nvme_header *h = &scan->best[i];
		struct tier_area area = { .id = i, .n_slots = h->n_slots };

		if (!h->used || h->n_slots != nvme_part_slots(t->layout.area_bytes, &h->shape) * t->layout.drives)
			continue;
		if (nvme_area_use(t, h) < 0)
			continue; /* without memory it is lost */
		t->areas[i].header_seq = h->seq;
		t->areas[i].header_known = true;
		if (!user->on_area(user->ctx, &area, &h->shape, &h->owner))
			nvme_area_drop(&t->lower, i);
	}
	t->areas_known = true;
}

/* ---- records ---- */

static void look_at_records(struct nvme_scan *scan, struct scan_read *s)
{
	struct nvme *t = scan->t;
	const struct tier_lower_user *user = &t->lower.user;
	const struct nvme_area *a = &t->areas[s->area];
	uint32_t end = s->n - s->at < STEP_SECTORS ? s->n : s->at + STEP_SECTORS;

	for (; s->at < end; s->at++) {
		uint32_t sector = (s->first + s->at) * t->layout.drives + s->o.drive;
		const uint8_t *block = s->buf + (size_t)s->at * NVME_BLOCK;

		for (uint32_t i = 0; i < NVME_SECTOR_RECORDS; i++) {
			uint32_t place = nvme_sector_place(&t->layout, sector, i);
			struct tier_tag tag;

			if (place >= a->n_slots ||
			    nvme_record_decode(&a->life, place, block + (size_t)i * NVME_RECORD, &tag) != 0)
				continue;
			nvme_bit_set(a->listed, place);
			user->on_slot(user->ctx, s->area, place, &tag);
		}
	}
}

/* ---- the whole ---- */

void nvme_recover_free(struct nvme *t)
{
	if (!t->scan)
		return;
	loop_deferred_cancel(&t->scan->step);
	(void)munmap(t->scan->bufs, NVME_SCANS * NVME_SCAN_BYTES);
	free(t->scan->best);
	free(t->scan);
	t->scan = NULL;
}

static void recover_ended(struct nvme *t)
{
	const struct tier_lower_user *user = &t->lower.user;

	nvme_recover_free(t);
	t->recovered = t->mark_clean = t->areas_known = true;
	t->phase = NVME_SERVING;
	t->why[0] = '\0';
	t->today_since_ns = loop_now_ns(t->loop);
	if (t->grace_ns > 0)
		t->writes_from_ns = t->today_since_ns + t->grace_ns;
	if (t->grace_ns > 0 || !list_empty(&t->unsaved))
		loop_timer_start(&t->grace.timer, t->grace_ns > NVME_ALONE_NS ? NVME_ALONE_NS : t->grace_ns, 0,
		                 nvme_on_grace);
	user->on_recovered(user->ctx, t->was_clean);
}

/* Each way into this is deferred: nothing is told from inside nvme_start(). */
static void scan_on_step(struct loop_deferred *d)
{
	struct nvme_scan *scan = container_of(d, struct nvme_scan, step);
	struct nvme *t = scan->t;
	struct list *it = list_first(&scan->arrived);

	if (scan->stopped)
		return;
	if (it) {
		struct scan_read *s = container_of(it, struct scan_read, o.link);

		if (!s->failed && scan->records)
			look_at_records(scan, s);
		else if (!s->failed)
			look_at_headers(scan, s);
		if (s->failed || !scan->records || s->at == s->n) {
			list_del(it);
			list_add_tail(&scan->free, it);
			scan->n_busy--;
		}
	}
	scan_fill(scan);
	if (!list_empty(&scan->arrived)) {
		loop_defer(t->loop, d, scan_on_step);
	} else if (scan->n_busy == 0 && !scan->records) {
		scan->records = true;
		scan->area = scan->drive = scan->first = 0;
		take_areas(scan);
		loop_defer(t->loop, d, scan_on_step);
	} else if (scan->n_busy == 0 && nvme_super_is_stored(t)) {
		recover_ended(t);
	}
}

static int scan_new(struct nvme *t)
{
	struct nvme_scan *scan = calloc(1, sizeof(*scan));

	if (!scan)
		return error_origin(-ENOMEM);
	scan->t = t;
	list_init(&scan->free);
	list_init(&scan->arrived);
	loop_deferred_init(&scan->step);
	scan->best = calloc(t->n_areas, sizeof(*scan->best));
	scan->bufs = mmap(NULL, NVME_SCANS * NVME_SCAN_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!scan->best || scan->bufs == MAP_FAILED) {
		if (scan->bufs != MAP_FAILED)
			(void)munmap(scan->bufs, NVME_SCANS * NVME_SCAN_BYTES);
		free(scan->best);
		free(scan);
		return error_origin(-ENOMEM);
	}
	for (uint32_t i = 0; i < NVME_SCANS; i++) {
		scan->reads[i].buf = scan->bufs + i * NVME_SCAN_BYTES;
		list_add_tail(&scan->free, &scan->reads[i].o.link);
	}
	if (t->fresh) {
		scan->records = true; /* of no areas */
		scan->area = t->n_areas;
	}
	t->scan = scan;
	return 0;
}

void nvme_recover(struct nvme *t)
{
	int r = scan_new(t);

	assert(r == 0); /* at the start, a few MiB */
	t->phase = NVME_RECOVERING;
	nvme_super_dirty(t, false);
	nvme_store(t);
	nvme_recover_step(t);
}

void nvme_recover_step(struct nvme *t)
{
	assert(t->scan);
	loop_defer(t->loop, &t->scan->step, scan_on_step);
}

void nvme_recover_stop(struct nvme *t)
{
	if (t->scan)
		t->scan->stopped = true;
}
