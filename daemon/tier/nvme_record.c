/* SPDX-License-Identifier: Apache-2.0 */
/* Metadata while the tier runs: sectors of records, area headers, superblocks.
 *
 * Invariant: no block of metadata is written twice at once; what changes meanwhile is dirty again.  An area with something
 * dirty is in nvme.unsaved.
 * Tags are not kept here: a sector's are asked for when it is written, so that it always says what holds then.
 *
 * A place is overwritten only when no record on the drive speaks of it: until a sector was written in which it is free, its write
 * is in nvme.held.  Mostly that has happened before, because owners set places free some time ahead.  No flush: that order holds when the daemon
 * dies, not when the power fails, and nobody trusts it: see the crash windows in nvme_format.h.
 */
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "tier/nvme_state.h"

#define WORD_BITS 64u
#define SUPER_ALL ((1u << NVME_SUPER_COPIES) - 1)

static void hold_on_hurry(struct loop_deferred *d);

static void group_on_due(struct loop_timer *timer)
{
	struct nvme *t = nvme_of_timer(timer);

	nvme_store(t);
	if (!list_empty(&t->held))
		loop_defer(t->loop, &t->hurry, hold_on_hurry);
}

static void group_wait(struct nvme *t, uint64_t delay_ns)
{
	if (t->phase == NVME_SERVING && (delay_ns == 0 || !loop_timer_is_running(&t->group.timer)))
		loop_timer_start(&t->group.timer, delay_ns, 0, group_on_due);
}

static void area_unsaved(struct nvme *t, struct nvme_area *a)
{
	if (!list_is_linked(&a->link))
		list_add_tail(&t->unsaved, &a->link);
}

static void sector_dirty(struct nvme *t, struct nvme_area *a, uint32_t sector)
{
	assert(sector < a->n_sectors);
	if (!nvme_bit(a->dirty, sector)) {
		nvme_bit_set(a->dirty, sector);
		a->n_dirty++;
	}
	area_unsaved(t, a);
}

void nvme_record_dirty(struct nvme *t, uint32_t area, uint32_t place, bool written)
{
	struct nvme_area *a = &t->areas[area];

	assert(a->state == NVME_AREA_USED && place < a->n_slots);
	sector_dirty(t, a, nvme_place_sector(&t->layout, place));
	t->n_group += written;
	group_wait(t, t->n_group >= NVME_GROUP ? 0 : t->record_delay_ns);
}

void nvme_header_dirty(struct nvme *t, uint32_t area)
{
	struct nvme_area *a = &t->areas[area];

	a->header_seq = ++t->seq;
	a->header_todo = (uint32_t)((UINT64_C(1) << (t->layout.drives * NVME_HEADER_COPIES)) - 1);
	area_unsaved(t, a);
	group_wait(t, t->record_delay_ns);
}

void nvme_super_dirty(struct nvme *t, bool clean)
{
	t->super.clean = clean;
	t->super_seq++;
	for (uint32_t i = 0; i < t->layout.drives; i++)
		t->drives[i].super_todo = SUPER_ALL;
}

bool nvme_super_is_stored(const struct nvme *t)
{
	for (uint32_t i = 0; i < t->layout.drives; i++)
		if (t->drives[i].super_todo || t->drives[i].super_busy)
			return false;
	return true;
}

bool nvme_is_stored(const struct nvme *t)
{
	return list_empty(&t->unsaved) && t->n_metas_busy == 0 && nvme_super_is_stored(t);
}

/* ---- what became of a block ---- */

static bool record_is_free(const uint8_t *block, uint32_t i)
{
	static const uint8_t none[4];

	return memcmp(block + (size_t)i * NVME_RECORD, none, sizeof(none)) == 0;
}

static void records_on_done(struct nvme *t, const struct nvme_meta *m, bool ok, bool again)
{
	struct nvme_area *a = &t->areas[m->area];

	assert(nvme_bit(a->busy, m->number) && a->n_busy > 0);
	nvme_bit_clear(a->busy, m->number);
	a->n_busy--;
	for (uint32_t i = 0; ok && i < NVME_SECTOR_RECORDS; i++) {
		uint32_t place = nvme_sector_place(&t->layout, m->number, i);

		if (place < a->n_slots && record_is_free(m->block, i))
			nvme_bit_clear(a->listed, place);
	}
	if (again && a->state == NVME_AREA_USED)
		sector_dirty(t, a, m->number);
	nvme_area_settle(t, m->area);
}

static void header_on_done(struct nvme *t, const struct nvme_meta *m, bool ok, bool again)
{
	struct nvme_area *a = &t->areas[m->area];
	struct nvme_header h;

	assert((a->header_busy >> m->number & 1) && a->n_busy > 0);
	a->header_busy &= ~(1u << m->number);
	a->n_busy--;
	/* One copy will do: of all there are, the newest is believed. */
	if (ok && nvme_header_decode(t->super.uuid, m->area, m->block, &h) == 0 && h.used && h.epoch == a->life.epoch)
		a->header_known = true;
	if (again) {
		a->header_todo |= 1u << m->number;
		area_unsaved(t, a);
	}
	nvme_area_settle(t, m->area);
}

static void meta_on_done(struct nvme_op *o, int r)
{
	struct nvme_meta *m = container_of(o, struct nvme_meta, o);
	struct nvme *t = o->t;
	/* What fails again and again takes the tier offline, and is tried when it is back; but not at the very end. */
	bool again = r != 0 && t->phase != NVME_CLOSING;

	assert(t->n_metas_busy > 0);
	t->n_metas_busy--;
	list_add_head(&t->metas_free, &o->link);
	if (r == 0)
		t->done_bytes[1] += NVME_BLOCK;
	else if (t->phase == NVME_CLOSING)
		t->mark_clean = false;
	t->today_bytes += NVME_BLOCK;
	switch (m->kind) {
	case NVME_META_RECORDS:
		records_on_done(t, m, r == 0, again);
		break;
	case NVME_META_HEADER:
		header_on_done(t, m, r == 0, again);
		break;
	case NVME_META_SUPER:
		t->drives[o->drive].super_busy &= (uint8_t) ~(1u << m->number);
		break;
	}
	if (r == 0 && !list_empty(&t->held))
		loop_defer(t->loop, &t->hurry, hold_on_hurry);
	if (t->storing)
		nvme_store(t);
	if (t->phase == NVME_RECOVERING)
		nvme_recover_step(t);
	else if (!list_empty(&t->unsaved))
		group_wait(t, t->record_delay_ns);
}

/* ---- writing ---- */

static struct nvme_meta *meta_take(struct nvme *t, enum nvme_meta_kind kind, uint32_t area, uint32_t number)
{
	struct list *it = list_pop(&t->metas_free);
	struct nvme_meta *m;

	if (!it)
		return NULL;
	m = container_of(it, struct nvme_meta, o.link);
	m->kind = kind;
	m->area = area;
	m->number = number;
	t->n_metas_busy++;
	return m;
}

static void meta_write(struct nvme *t, struct nvme_meta *m, uint32_t drive, uint64_t offset)
{
	m->o.done = meta_on_done;
	m->o.op = (struct uring_op){ .kind = URING_WRITE,
		                     .buffer = t->meta_buffer,
		                     .base = m->block,
		                     .length = NVME_BLOCK,
		                     .offset = offset };
	nvme_op_start(t, &m->o, drive);
}

/* False: no block was free. */
static bool super_store(struct nvme *t, uint32_t drive)
{
	struct nvme_drive *d = &t->drives[drive];
	struct nvme_super s = t->super;

	s.drive = drive;
	s.size = d->size;
	s.seq = t->super_seq;
	for (uint32_t i = 0; i < NVME_SUPER_COPIES; i++) {
		struct nvme_meta *m;

		if (!((d->super_todo & ~d->super_busy) >> i & 1))
			continue;
		m = meta_take(t, NVME_META_SUPER, 0, i);
		if (!m)
			return false;
		d->super_todo &= (uint8_t) ~(1u << i);
		d->super_busy |= (uint8_t)(1u << i);
		nvme_super_encode(&s, m->block);
		meta_write(t, m, drive, nvme_super_offset(d->size, i));
	}
	return true;
}

static void header_fill(const struct nvme *t, uint32_t area, uint8_t *block)
{
	const struct nvme_area *a = &t->areas[area];
	struct nvme_header h;

	memset(&h, 0, sizeof(h));
	h.area = area;
	h.epoch = a->life.epoch;
	h.seq = a->header_seq;
	h.used = a->state == NVME_AREA_USED;
	if (h.used) {
		h.n_slots = a->n_slots;
		h.shape = a->shape;
		h.owner = *a->owner;
	}
	nvme_header_encode(t->super.uuid, &h, block);
}

static bool header_store(struct nvme *t, uint32_t area)
{
	struct nvme_area *a = &t->areas[area];

	for (uint32_t i = 0; i < t->layout.drives * NVME_HEADER_COPIES; i++) {
		struct nvme_meta *m;

		if (!((a->header_todo & ~a->header_busy) >> i & 1))
			continue;
		m = meta_take(t, NVME_META_HEADER, area, i);
		if (!m)
			return false;
		a->header_todo &= ~(1u << i);
		a->header_busy |= 1u << i;
		a->n_busy++;
		header_fill(t, area, m->block);
		meta_write(t, m, i / NVME_HEADER_COPIES,
		           nvme_area_offset(&t->layout, area) + (uint64_t)(i % NVME_HEADER_COPIES) * NVME_BLOCK);
	}
	return true;
}

static void sector_fill(const struct nvme *t, struct nvme_area *a, uint32_t sector, uint64_t seq, uint8_t *block)
{
	const struct tier_lower_user *user = &t->lower.user;

	memset(block, 0, NVME_BLOCK);
	for (uint32_t i = 0; i < NVME_SECTOR_RECORDS; i++) {
		uint32_t place = nvme_sector_place(&t->layout, sector, i);
		struct tier_tag tag;

		if (place >= a->n_slots || nvme_bit(a->writing, place) || !user->tag(user->ctx, a->life.area, place, &tag))
			continue;
		nvme_record_encode(&a->life, place, seq, &tag, block + (size_t)i * NVME_RECORD);
		nvme_bit_set(a->listed, place);
	}
}

/* The next sector from a->next on that is dirty and not being written; n_sectors: none. */
static uint32_t sector_next(const struct nvme_area *a)
{
	uint32_t n_words = (a->n_sectors + WORD_BITS - 1) / WORD_BITS, first = a->next / WORD_BITS;

	for (uint32_t i = 0; i < n_words; i++) {
		uint32_t w = (first + i) % n_words;
		uint64_t ready = a->dirty[w] & ~a->busy[w];

		if (ready)
			return w * WORD_BITS + (uint32_t)__builtin_ctzll(ready);
	}
	return a->n_sectors;
}

/* It is dirty, and not being written. */
static bool sector_store(struct nvme *t, struct nvme_area *a, uint32_t sector)
{
	struct nvme_meta *m = meta_take(t, NVME_META_RECORDS, a->life.area, sector);

	if (!m)
		return false;
	nvme_bit_clear(a->dirty, sector);
	nvme_bit_set(a->busy, sector);
	a->n_dirty--;
	a->n_busy++;
	sector_fill(t, a, sector, ++t->seq, m->block);
	meta_write(t, m, sector % t->layout.drives, nvme_sector_offset(&t->layout, a->life.area, sector));
	return true;
}

static bool sectors_store(struct nvme *t, uint32_t area)
{
	struct nvme_area *a = &t->areas[area];

	while (a->n_dirty > 0) {
		uint32_t sector = sector_next(a);

		if (sector == a->n_sectors)
			return true; /* all of them are being written, as they were before */
		if (!sector_store(t, a, sector))
			return false;
		a->next = sector;
	}
	return true;
}

static bool may_store(const struct nvme *t)
{
	if (t->phase == NVME_CLOSING)
		return t->step == NVME_CLOSE_STORE;
	/* While it recovers, nobody knows all tags of a sector yet. */
	return nvme_is_online(t) && loop_now_ns(t->loop) >= t->writes_from_ns;
}

void nvme_store(struct nvme *t)
{
	bool room = true;

	for (uint32_t i = 0; i < t->layout.drives && room; i++)
		room = super_store(t, i);
	if (room && may_store(t)) {
		t->n_group = 0;
		list_for_each_safe(it, next, &t->unsaved) {
			struct nvme_area *a = container_of(it, struct nvme_area, link);

			room = header_store(t, a->life.area) && sectors_store(t, a->life.area);
			if (!room)
				break;
			if (a->n_dirty == 0 && a->header_todo == 0)
				list_del(&a->link);
		}
	}
	t->storing = !room;
}

/* ---- writes that wait for records ---- */

static bool hold_is_over(const struct nvme *t, const struct tier_io *io)
{
	const struct nvme_area *a = &t->areas[io->area];

	return a->header_known && !nvme_bit(a->listed, io->place);
}

/* The header of its area, or the sector that has its place, is written at once.  False: no block was free. */
static bool hold_store(struct nvme *t, const struct tier_io *io)
{
	struct nvme_area *a = &t->areas[io->area];
	uint32_t sector = nvme_place_sector(&t->layout, io->place);
	bool room = a->header_known || header_store(t, io->area);

	if (!nvme_bit(a->listed, io->place) || nvme_bit(a->busy, sector))
		return room;
	sector_dirty(t, a, sector);
	return room && sector_store(t, a, sector);
}

/* At the end of a turn, so that those that came in it share what is written. */
static void hold_on_hurry(struct loop_deferred *d)
{
	struct nvme *t = container_of(d, struct nvme, hurry);
	bool room = may_store(t);

	list_for_each_safe(it, next, &t->held) {
		struct tier_io *io = container_of(it, struct tier_io, link);

		if (hold_is_over(t, io)) {
			list_del(it);
			list_add_tail(&t->queues[io->priority][1], it);
		} else if (room) {
			room = hold_store(t, io);
		}
	}
	if (!list_empty(&t->held))
		group_wait(t, t->record_delay_ns); /* what fails is tried again */
	nvme_dispatch(t);
}

bool nvme_place_hold(struct nvme *t, struct tier_io *io)
{
	struct nvme_area *a = &t->areas[io->area];

	assert(io->write && !nvme_bit(a->writing, io->place));
	nvme_bit_set(a->writing, io->place);
	if (hold_is_over(t, io))
		return false;
	list_add_tail(&t->held, &io->link);
	loop_defer(t->loop, &t->hurry, hold_on_hurry);
	return true;
}

void nvme_place_written(struct nvme *t, const struct tier_io *io)
{
	nvme_bit_clear(t->areas[io->area].writing, io->place);
}
