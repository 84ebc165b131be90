/* SPDX-License-Identifier: Apache-2.0 */
/* A tier of areas in memory.
 *
 * An area's data and tags are what a drive would hold: they change when a write ends, or when a slot is forgotten, and not at all once it has
 * crashed.  Invariant: a copy in flight is in exactly one of flying and stuck.
 */
#include "fake_lower.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/assert.h"

#define FAKE_GROUP 32u /* records that are written together */
#define FAKE_EDGE 8u

struct fake_area {
	bool used;
	struct tier_area_shape shape;
	struct tier_owner owner;
	uint32_t n_slots;
	uint8_t *data; /* owns */
	struct tier_tag *tags;
	bool *valid;
};

struct fake_plan {
	enum fake_lower_fault fault;
	uint64_t from, times; /* by the count of submits */
};

struct fake_lower {
	struct tier_lower tier; /* first */
	struct fake_area *areas;
	uint32_t n_areas, n_used, n_flying, n_regions, limit;
	uint64_t area_bytes;
	bool edges, online, recovered, crashed;
	struct list flying, stuck;
	struct fake_plan plans[2];     /* of reads, of writes */
	uint64_t submits[2], taken[2]; /* the same */
	uint64_t speed, latency;
};

static struct fake_lower *fake_of(const struct tier_lower *t)
{
	assert(t);
	return (struct fake_lower *)container_of(t, struct fake_lower, tier);
}

static uint64_t fake_block(const struct fake_lower *f, const struct tier_area_shape *shape)
{
	return (f->edges ? 2 * FAKE_EDGE : shape->lane_bytes) * shape->lanes;
}

/* ---- areas ---- */

static uint32_t fake_areas(struct tier_lower *t)
{
	return fake_of(t)->n_areas;
}

static uint32_t fake_areas_free(struct tier_lower *t)
{
	return fake_of(t)->n_areas - fake_of(t)->n_used;
}

static uint32_t fake_area_slots(struct tier_lower *t, const struct tier_area_shape *shape)
{
	if (shape->lane_bytes % FAKE_LOWER_GRAIN)
		return 0;
	return (uint32_t)(fake_of(t)->area_bytes / (shape->lane_bytes * shape->lanes));
}

static int fake_area_make(struct tier_lower *t, const struct tier_area_shape *shape, const struct tier_owner *owner,
                          struct tier_area *ret_area)
{
	struct fake_lower *f = fake_of(t);
	struct fake_area *a = f->areas;

	if (!f->recovered || !f->online || f->crashed)
		return TIER_E_GONE;
	if (f->n_used == f->n_areas)
		return TIER_E_FULL;
	while (a->used)
		a++;
	*a = (struct fake_area){ .used = true, .shape = *shape, .owner = *owner, .n_slots = fake_area_slots(t, shape) };
	assert(a->n_slots > 0);
	a->data = malloc(a->n_slots * fake_block(f, shape));
	a->tags = calloc(a->n_slots, sizeof(*a->tags));
	a->valid = calloc(a->n_slots, sizeof(*a->valid));
	assert(a->data && a->tags && a->valid);
	memset(a->data, 0x5a, a->n_slots * fake_block(f, shape));
	f->n_used++;
	*ret_area = (struct tier_area){ .id = (uint32_t)(a - f->areas), .n_slots = a->n_slots };
	return 0;
}

static void fake_area_empty(struct fake_lower *f, struct fake_area *a)
{
	assert(a->used && f->n_used > 0);
	free(a->data);
	free(a->tags);
	free(a->valid);
	*a = (struct fake_area){ 0 };
	f->n_used--;
}

static void fake_area_drop(struct tier_lower *t, uint32_t area)
{
	struct fake_lower *f = fake_of(t);

	assert(area < f->n_areas && f->areas[area].used);
	for (int stuck = 0; stuck < 2; stuck++)
		list_for_each(it, stuck ? &f->stuck : &f->flying)
			assert(container_of(it, struct tier_io, link)->area != area);
	if (!f->crashed)
		fake_area_empty(f, &f->areas[area]);
}

static void fake_forget(struct tier_lower *t, uint32_t area, uint32_t place)
{
	struct fake_lower *f = fake_of(t);

	assert(area < f->n_areas && f->areas[area].used && place < f->areas[area].n_slots);
	if (!f->crashed)
		f->areas[area].valid[place] = false;
}

/* ---- copies ---- */

static void fake_copy(const struct fake_lower *f, const struct tier_io *io, uint8_t *slot, bool down)
{
	uint64_t size = f->edges ? FAKE_EDGE : io->shape.lane_bytes;

	for (uint32_t l = 0; l < io->shape.lanes; l++) {
		uint8_t *lane = (uint8_t *)io->region->base + io->offset + l * io->lane_area;

		for (int edge = 0; edge < 1 + f->edges; edge++, slot += size) {
			uint8_t *at = edge ? lane + io->shape.lane_bytes - size : lane;

			if (down)
				memcpy(slot, at, size);
			else
				memcpy(at, slot, size);
		}
	}
}

static uint8_t *fake_slot(const struct fake_lower *f, uint32_t area, uint32_t place)
{
	const struct fake_area *a = &f->areas[area];

	assert(a->used && place < a->n_slots);
	return a->data + place * fake_block(f, &a->shape);
}

/* What a write leaves on the drive. */
static void fake_written(struct fake_lower *f, const struct tier_io *io, enum fake_lower_fault fault)
{
	struct fake_area *a = &f->areas[io->area];
	uint32_t place = io->place;

	if (f->crashed)
		return;
	if (fault == FAKE_LOWER_ASTRAY)
		place = (place + 1) % a->n_slots;
	fake_copy(f, io, fake_slot(f, io->area, place), true);
	if (fault == FAKE_LOWER_CORRUPT)
		fake_slot(f, io->area, place)[fake_block(f, &a->shape) - 1] ^= 1;
	a->tags[io->place] = io->tag;
	a->valid[io->place] = true;
}

static void fake_read(const struct fake_lower *f, const struct tier_io *io, enum fake_lower_fault fault)
{
	uint32_t place = io->place;

	if (fault == FAKE_LOWER_ASTRAY)
		place = (place + 1) % f->areas[io->area].n_slots;
	fake_copy(f, io, fake_slot(f, io->area, place), false);
	if (fault == FAKE_LOWER_CORRUPT)
		*((uint8_t *)io->region->base + io->offset + io->shape.lane_bytes - 1) ^= 1;
}

/* The neighbours' records are written anew with it. */
static void fake_rewrite(struct fake_lower *f, uint32_t area, uint32_t place)
{
	struct fake_area *a = &f->areas[area];
	uint32_t first = place / FAKE_GROUP * FAKE_GROUP;

	if (f->crashed || !a->used || !f->tier.user.tag)
		return;
	for (uint32_t p = first; p < a->n_slots && p < first + FAKE_GROUP; p++)
		if (p != place)
			a->valid[p] = f->tier.user.tag(f->tier.user.ctx, area, p, &a->tags[p]);
}

static void fake_end(struct fake_lower *f, struct tier_io *io)
{
	uint32_t area = io->area, place = io->place;
	enum fake_lower_fault fault = (enum fake_lower_fault)io->pieces;
	bool write = io->write;
	int r = fault == FAKE_LOWER_IO ? TIER_E_IO : 0;

	list_del(&io->link);
	f->n_flying--;
	if (!f->online || f->crashed)
		r = TIER_E_GONE;
	if (r == 0 && write)
		fake_written(f, io, fault);
	else if (r == 0)
		fake_read(f, io, fault);
	io->cb(io, r);
	if (r == 0 && write)
		fake_rewrite(f, area, place);
}

static int fake_submit(struct tier_lower *t, struct tier_io *io)
{
	struct fake_lower *f = fake_of(t);
	struct fake_plan *plan = &f->plans[io->write];
	uint64_t n = ++f->submits[io->write];
	enum fake_lower_fault fault = FAKE_LOWER_NONE;

	assert(io->cb && io->area < f->n_areas && io->region && io->region->base);
	if (plan->fault && n >= plan->from && n - plan->from < plan->times)
		fault = plan->fault;
	if (!f->recovered || !f->online || f->crashed || fault == FAKE_LOWER_GONE)
		return TIER_E_GONE;
	if (fault == FAKE_LOWER_FULL || (f->limit && f->n_flying >= f->limit))
		return TIER_E_FULL;
	assert(f->areas[io->area].used && io->place < f->areas[io->area].n_slots);
	assert(io->shape.lane_bytes == f->areas[io->area].shape.lane_bytes &&
	       io->shape.lanes == f->areas[io->area].shape.lanes);
	assert(io->offset + (io->shape.lanes - 1) * io->lane_area + io->shape.lane_bytes <= io->region->size);
	for (int stuck = 0; stuck < 2; stuck++) /* two copies of one slot: a write may pass a read */
		list_for_each(it, stuck ? &f->stuck : &f->flying) {
			const struct tier_io *other = container_of(it, struct tier_io, link);

			assert(other->area != io->area || other->place != io->place || (!other->write && !io->write));
		}
	io->pieces = fault;
	list_add_tail(fault == FAKE_LOWER_STUCK ? &f->stuck : &f->flying, &io->link);
	f->n_flying++;
	f->taken[io->write]++;
	return 0;
}

static void fake_region_seen(struct tier_lower *t, const struct tier_region *region)
{
	assert(region->size > 0);
	fake_of(t)->n_regions++;
}

static void fake_region_gone(struct tier_lower *t, const struct tier_region *region)
{
	struct fake_lower *f = fake_of(t);

	for (int stuck = 0; stuck < 2; stuck++)
		list_for_each(it, stuck ? &f->stuck : &f->flying)
			assert(container_of(it, struct tier_io, link)->region != region);
	assert(f->n_regions > 0);
	f->n_regions--;
}

static void fake_stat(struct tier_lower *t, struct tier_lower_stat *ret_stat)
{
	struct fake_lower *f = fake_of(t);

	*ret_stat = (struct tier_lower_stat){
		.size_bytes = f->n_areas * f->area_bytes,
		.used_bytes = f->n_used * f->area_bytes,
		.in_flight = f->n_flying,
		.drives = 1,
		.read_bytes_per_s = f->speed,
		.read_latency_ns = f->latency,
		.online = f->online && f->recovered,
		.state = !f->recovered ? "recovering"
		         : f->online   ? "online"
		                       : "offline",
		.note = "",
	};
}

static const struct tier_lower_ops fake_ops = {
	.name = "fake",
	.areas = fake_areas,
	.areas_free = fake_areas_free,
	.area_slots = fake_area_slots,
	.area_make = fake_area_make,
	.area_drop = fake_area_drop,
	.submit = fake_submit,
	.forget = fake_forget,
	.region_seen = fake_region_seen,
	.region_gone = fake_region_gone,
	.stat = fake_stat,
};

struct tier_lower *fake_lower_new(uint32_t areas, uint64_t area_bytes, bool edges)
{
	struct fake_lower *f = calloc(1, sizeof(*f));

	assert(f && areas > 0);
	f->tier.ops = &fake_ops;
	f->areas = calloc(areas, sizeof(*f->areas));
	assert(f->areas);
	f->n_areas = areas;
	f->area_bytes = area_bytes;
	f->edges = edges;
	f->online = true;
	list_init(&f->flying);
	list_init(&f->stuck);
	return &f->tier;
}

struct tier_lower *fake_lower_free(struct tier_lower *t)
{
	if (!t)
		return NULL;
	assert(fake_of(t)->n_flying == 0 && fake_of(t)->n_regions == 0);
	for (uint32_t i = 0; i < fake_of(t)->n_areas; i++)
		if (fake_of(t)->areas[i].used)
			fake_area_empty(fake_of(t), &fake_of(t)->areas[i]);
	free(fake_of(t)->areas);
	free(fake_of(t));
	return NULL;
}

/* ---- time ---- */

uint32_t fake_lower_in_flight(const struct tier_lower *t)
{
	return fake_of(t)->n_flying;
}

static struct tier_io *fake_io(const struct fake_lower *f, uint32_t i)
{
	list_for_each(it, &f->flying)
		if (i-- == 0)
			return container_of(it, struct tier_io, link);
	return NULL;
}

const struct tier_io *fake_lower_io(const struct tier_lower *t, uint32_t i)
{
	return fake_io(fake_of(t), i);
}

void fake_lower_release_at(struct tier_lower *t, uint32_t i)
{
	struct tier_io *io = fake_io(fake_of(t), i);

	assert(io);
	fake_end(fake_of(t), io);
}

bool fake_lower_release(struct tier_lower *t)
{
	if (list_empty(&fake_of(t)->flying))
		return false;
	fake_lower_release_at(t, 0);
	return true;
}

bool fake_lower_release_any(struct tier_lower *t, struct rng *rng)
{
	size_t n = list_count(&fake_of(t)->flying);

	if (n == 0)
		return false;
	fake_lower_release_at(t, (uint32_t)rng_below(rng, n));
	return true;
}

/* ---- faults ---- */

void fake_lower_fail(struct tier_lower *t, bool write, enum fake_lower_fault fault, uint32_t n, uint32_t times)
{
	struct fake_lower *f = fake_of(t);

	f->plans[write] = (struct fake_plan){ .fault = fault, .from = f->submits[write] + n, .times = times };
}

void fake_lower_unstick(struct tier_lower *t)
{
	list_splice_tail(&fake_of(t)->flying, &fake_of(t)->stuck);
}

void fake_lower_limit(struct tier_lower *t, uint32_t n)
{
	fake_of(t)->limit = n;
}

void fake_lower_set_online(struct tier_lower *t, bool online)
{
	struct fake_lower *f = fake_of(t);

	assert(f->recovered);
	if (f->online == online)
		return;
	f->online = online;
	f->tier.user.on_online(f->tier.user.ctx, online);
}

void fake_lower_set_speed(struct tier_lower *t, uint64_t read_bytes_per_s, uint64_t read_latency_ns)
{
	fake_of(t)->speed = read_bytes_per_s;
	fake_of(t)->latency = read_latency_ns;
}

void fake_lower_flip(struct tier_lower *t, uint32_t area, uint32_t place)
{
	fake_slot(fake_of(t), area, place)[0] ^= 0x40;
}

/* ---- lives ---- */

void fake_lower_crash(struct tier_lower *t, struct rng *rng)
{
	struct fake_lower *f = fake_of(t);

	fake_lower_unstick(t);
	list_for_each(it, &f->flying) {
		const struct tier_io *io = container_of(it, struct tier_io, link);

		if (io->write && f->online && rng_chance(rng, 60))
			fake_written(f, io, rng_chance(rng, 30) ? FAKE_LOWER_CORRUPT : FAKE_LOWER_NONE);
	}
	f->crashed = true;
}

void fake_lower_restart(struct tier_lower *t)
{
	struct fake_lower *f = fake_of(t);

	assert(f->n_flying == 0 && f->n_regions == 0);
	f->crashed = f->recovered = false;
	f->online = true;
	f->tier.user = (struct tier_lower_user){ 0 };
}

/* Slots of an area from a random one on, so that what is newest comes at any time. */
static void fake_recover_area(struct fake_lower *f, uint32_t area, uint32_t from)
{
	const struct fake_area *a = &f->areas[area];

	for (uint32_t i = 0; i < a->n_slots; i++) {
		uint32_t place = (i + from) % a->n_slots;

		if (a->valid[place]) {
			struct tier_tag tag = a->tags[place];

			f->tier.user.on_slot(f->tier.user.ctx, area, place, &tag);
		}
	}
}

void fake_lower_recover(struct tier_lower *t, struct rng *rng, bool clean)
{
	struct fake_lower *f = fake_of(t);

	assert(!f->recovered);
	for (uint32_t i = 0; i < f->n_areas; i++) {
		struct fake_area *a = &f->areas[i];
		struct tier_area area = { .id = i, .n_slots = a->n_slots };

		if (a->used && !f->tier.user.on_area(f->tier.user.ctx, &area, &a->shape, &a->owner))
			fake_area_empty(f, a);
	}
	for (uint32_t i = 0; i < f->n_areas; i++)
		if (f->areas[i].used)
			fake_recover_area(f, i, rng ? (uint32_t)rng_below(rng, f->areas[i].n_slots) : 0);
	f->recovered = true;
	f->tier.user.on_recovered(f->tier.user.ctx, clean);
}

/* ---- counts ---- */

uint64_t fake_lower_reads(const struct tier_lower *t)
{
	return fake_of(t)->taken[0];
}

uint64_t fake_lower_writes(const struct tier_lower *t)
{
	return fake_of(t)->taken[1];
}

uint32_t fake_lower_valid(const struct tier_lower *t)
{
	const struct fake_lower *f = fake_of(t);
	uint32_t n = 0;

	for (uint32_t i = 0; i < f->n_areas; i++)
		for (uint32_t p = 0; p < f->areas[i].n_slots; p++)
			n += f->areas[i].valid[p];
	return n;
}

uint32_t fake_lower_regions(const struct tier_lower *t)
{
	return fake_of(t)->n_regions;
}

/* ---- checksums ---- */

struct fake_sums {
	struct list waiting;
	uint32_t n, limit;
	bool edges;
};

struct fake_sum { /* in mover_sum.room */
	struct list link;
	struct mover_sum *sum;
};

static int fake_sums_sum(void *ctx, struct mover_sum *sum)
{
	struct fake_sums *s = ctx;
	struct fake_sum *w = (struct fake_sum *)sum->room;

	_Static_assert(sizeof(*w) <= sizeof(sum->room), "room");
	if (s->limit && s->n >= s->limit)
		return 1;
	w->sum = sum;
	list_add_tail(&s->waiting, &w->link);
	s->n++;
	return 0;
}

static uint64_t fake_sums_of(const struct fake_sums *s, const struct mover_sum *sum)
{
	uint64_t h = sum->seed;

	if (!s->edges)
		return mover_sum_of(sum);
	for (uint32_t l = 0; l < sum->lanes; l++) {
		uint64_t ends[2];

		memcpy(&ends[0], sum->base + l * sum->lane_area, FAKE_EDGE);
		memcpy(&ends[1], sum->base + l * sum->lane_area + sum->lane_bytes - FAKE_EDGE, FAKE_EDGE);
		for (int i = 0; i < 2; i++) {
			h ^= ends[i];
			h = rng_splitmix(&h);
		}
	}
	return h ? h : 1;
}

struct fake_sums *fake_sums_new(uint32_t limit, bool edges)
{
	struct fake_sums *s = calloc(1, sizeof(*s));

	assert(s);
	list_init(&s->waiting);
	s->limit = limit;
	s->edges = edges;
	return s;
}

struct fake_sums *fake_sums_free(struct fake_sums *s)
{
	assert(!s || s->n == 0);
	free(s);
	return NULL;
}

struct mover_calculator fake_sums_calculator(struct fake_sums *s)
{
	return (struct mover_calculator){ .sum = fake_sums_sum, .at_once = 8, .ctx = s };
}

uint32_t fake_sums_waiting(const struct fake_sums *s)
{
	return s->n;
}

static void fake_sums_release_at(struct fake_sums *s, uint32_t i)
{
	struct fake_sum *w = NULL;

	list_for_each(it, &s->waiting) {
		w = container_of(it, struct fake_sum, link);
		if (i-- == 0)
			break;
	}
	assert(w);
	list_del(&w->link);
	s->n--;
	for (struct mover_sum *m = w->sum; m; m = m->next)
		m->sum = fake_sums_of(s, m);
	w->sum->cb(w->sum);
}

bool fake_sums_release(struct fake_sums *s)
{
	if (s->n == 0)
		return false;
	fake_sums_release_at(s, 0);
	return true;
}

bool fake_sums_release_any(struct fake_sums *s, struct rng *rng)
{
	if (s->n == 0)
		return false;
	fake_sums_release_at(s, (uint32_t)rng_below(rng, s->n));
	return true;
}

void fake_sums_limit(struct fake_sums *s, uint32_t limit)
{
	s->limit = limit;
}

void fake_lower_settle(struct tier_lower *t, struct fake_sums *s)
{
	while (fake_lower_release(t) || fake_sums_release(s))
		;
}
