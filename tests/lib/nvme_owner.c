/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/nvme_owner.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <xxhash.h>

#include "base/rng.h"
#include "tests/lib/must.h"
#include "tier/nvme_state.h"

struct tag {
	uint64_t seed, life, sum;
	uint32_t area, place;
	uint8_t more[48]; /* of the seed, so that no byte of a tag is constant */
};
_Static_assert(sizeof(struct tag) == TIER_TAG_BYTES, "tag");

struct copy {
	struct tier_io io;
	struct list link;
	struct nvme_owner *o;
	uint64_t seed, life;
	bool done;
	bool keep; /* the waiter frees it */
	int result;
};

static uint8_t *lane_at(const struct nvme_owner *o, uint32_t lane, uint64_t offset)
{
	return (uint8_t *)o->region.base + (uint64_t)lane * o->lane_area + offset;
}

static void fill(const struct nvme_owner *o, const struct tier_area_shape *shape, uint64_t offset, uint64_t seed)
{
	for (uint32_t l = 0; l < shape->lanes; l++) {
		struct rng rng;

		rng_init(&rng, seed * 64 + l);
		rng_fill(&rng, lane_at(o, l, offset), shape->lane_bytes);
	}
}

static uint64_t sum_of(const struct nvme_owner *o, const struct tier_area_shape *shape, uint64_t offset, uint64_t life,
                       uint32_t place)
{
	uint64_t sum = life << 32 | place;

	for (uint32_t l = 0; l < shape->lanes; l++)
		sum = XXH3_64bits_withSeed(lane_at(o, l, offset), shape->lane_bytes, sum);
	return sum;
}

static bool is_filled(const struct nvme_owner *o, const struct tier_area_shape *shape, uint64_t offset, uint64_t seed)
{
	uint8_t *expected = malloc(shape->lane_bytes);
	bool same = true;

	must(expected);
	for (uint32_t l = 0; l < shape->lanes && same; l++) {
		struct rng rng;

		rng_init(&rng, seed * 64 + l);
		rng_fill(&rng, expected, shape->lane_bytes);
		same = memcmp(expected, lane_at(o, l, offset), shape->lane_bytes) == 0;
	}
	free(expected);
	return same;
}

static struct tier_tag tag_make(const struct tag *what)
{
	struct tag tag = *what;
	struct tier_tag ret;
	struct rng rng;

	rng_init(&rng, tag.seed ^ tag.sum);
	rng_fill(&rng, tag.more, sizeof(tag.more));
	memcpy(ret.bytes, &tag, sizeof(ret.bytes));
	return ret;
}

static bool tag_makes_sense(const struct tag *tag)
{
	struct tier_tag again = tag_make(tag);

	return memcmp(&again, tag, sizeof(again)) == 0;
}

/* ---- the past ---- */

uint64_t nvme_owner_seed(struct nvme_owner *o)
{
	must(o->keeps_past);
	if (o->n_past == o->past_max) {
		o->past_max = o->past_max ? o->past_max * 2 : 1024;
		o->past = realloc(o->past, o->past_max * sizeof(*o->past));
		must(o->past);
	}
	o->past[o->n_past].life = 0;
	return o->n_past++;
}

static bool past_has(const struct nvme_owner *o, const struct tag *tag)
{
	const struct nvme_owner_past *p = &o->past[tag->seed];

	if (!o->keeps_past)
		return true;
	return tag->seed < o->n_past && p->life == tag->life && p->area == tag->area && p->place == tag->place &&
	       memcmp(&p->tag, tag, sizeof(*tag)) == 0;
}

/* ---- what the tier asks and tells ----
 *
 * Each of these stops the loop, so that who turns it and sleeps sees what happened. */

static bool on_tag(void *ctx, uint32_t area, uint32_t place, struct tier_tag *ret_tag)
{
	struct nvme_owner *o = ctx;

	must(area < NVME_OWNER_AREAS && o->areas[area].used && place < o->areas[area].n_slots);
	if (!o->areas[area].slots[place].present)
		return false;
	*ret_tag = o->areas[area].slots[place].tag;
	return true;
}

static void area_take(struct nvme_owner *o, const struct tier_area *area, const struct tier_area_shape *shape, uint64_t life)
{
	struct nvme_owner_area *a;

	must(area->id < NVME_OWNER_AREAS);
	a = &o->areas[area->id];
	must(!a->used && area->n_slots > 0);
	*a = (struct nvme_owner_area){ .used = true, .n_slots = area->n_slots, .life = life, .shape = *shape };
	a->slots = calloc(area->n_slots, sizeof(*a->slots));
	must(a->slots);
	if (life >= o->lives)
		o->lives = life + 1;
}

static bool on_area(void *ctx, const struct tier_area *area, const struct tier_area_shape *shape,
                    const struct tier_owner *owner)
{
	struct nvme_owner *o = ctx;
	uint64_t life;

	must(!o->recovered && owner->length == 600);
	memcpy(&life, owner->bytes, sizeof(life));
	must(owner->bytes[599] == (uint8_t)life);
	o->n_areas_found++;
	if (o->refuse_areas)
		return false;
	area_take(o, area, shape, life);
	return true;
}

static void on_slot(void *ctx, uint32_t area, uint32_t place, const struct tier_tag *tag)
{
	struct nvme_owner *o = ctx;
	struct nvme_owner_area *a = &o->areas[area];
	struct tag is;

	must(!o->recovered && area < NVME_OWNER_AREAS && a->used && place < a->n_slots && !a->slots[place].present);
	memcpy(&is, tag->bytes, sizeof(is));
	if (is.area != area || is.place != place || is.life != a->life || !tag_makes_sense(&is) || !past_has(o, &is)) {
		o->n_strangers++;
		return;
	}
	a->slots[place] = (struct nvme_owner_slot){ .present = true, .found = true, .seed = is.seed, .tag = *tag };
	o->n_slots_found++;
}

static void on_recovered(void *ctx, bool clean)
{
	struct nvme_owner *o = ctx;

	must(!o->recovered);
	o->recovered = o->online = true;
	o->clean = clean;
	loop_stop(o->loop);
}

static void on_online(void *ctx, bool online)
{
	struct nvme_owner *o = ctx;

	must(o->recovered && o->online != online);
	o->online = online;
	o->n_online += online;
	o->n_offline += !online;
	loop_stop(o->loop);
}

/* ---- life ---- */

void nvme_owner_init(struct nvme_owner *o, uint64_t memory)
{
	memset(o, 0, sizeof(*o));
	must(loop_new(&o->loop) == 0);
	o->region.size = memory;
	o->lane_area = memory / TIER_MAX_LANES;
	list_init(&o->copies);
	o->region.fd = o->region.ro_fd = -1;
	o->region.base = mmap(NULL, memory, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	must(o->region.base != MAP_FAILED);
}

void nvme_owner_deinit(struct nvme_owner *o)
{
	must(!o->t);
	must(munmap(o->region.base, o->region.size) == 0);
	free(o->past);
	o->loop = loop_free(o->loop);
}

int nvme_owner_open(struct nvme_owner *o, const struct nvme_config *config)
{
	struct nvme_config c = *config;
	int r;

	must(!o->t);
	c.loop = o->loop;
	r = nvme_new(&c, o->why, &o->t);
	if (r != 0) {
		must(r < 0 || o->why[0]);
		o->t = NULL;
		for (int i = 0; i < 3; i++)
			loop_turn(o->loop, false);
		return r;
	}
	o->recovered = o->online = false;
	o->n_areas_found = o->n_slots_found = o->n_strangers = 0;
	o->t->user = (struct tier_lower_user){ .tag = on_tag,
		                               .on_area = on_area,
		                               .on_slot = on_slot,
		                               .on_recovered = on_recovered,
		                               .on_online = on_online,
		                               .ctx = o };
	nvme_start(o->t);
	must(!o->recovered);
	while (!o->recovered)
		loop_turn(o->loop, true);
	o->t->ops->region_seen(o->t, &o->region);
	return 0;
}

static void forget_areas(struct nvme_owner *o)
{
	for (uint32_t i = 0; i < NVME_OWNER_AREAS; i++) {
		free(o->areas[i].slots);
		o->areas[i] = (struct nvme_owner_area){ .used = false };
	}
}

static void on_closed(void *arg)
{
	struct nvme_owner *o = arg;

	o->t = NULL;
	loop_stop(o->loop);
}

void nvme_owner_close(struct nvme_owner *o)
{
	o->t->ops->region_gone(o->t, &o->region);
	nvme_close(o->t, on_closed, o);
	must(o->t);
	while (o->t)
		loop_turn(o->loop, true);
	forget_areas(o);
}

void nvme_owner_die(struct nvme_owner *o)
{
	struct nvme *t = nvme_of(o->t);
	struct list *it;

	t->io_deadline_ns = 0; /* not waited for */
	loop_timer_start(&t->deadline.timer, 0, 0, nvme_on_deadline);
	nvme_owner_close(o);
	while ((it = list_pop(&o->copies)))
		free(container_of(it, struct copy, link));
	o->in_flight = 0;
}

uint32_t nvme_owner_area(struct nvme_owner *o, uint64_t lane_bytes, uint32_t lanes)
{
	struct tier_area_shape shape = { .lane_bytes = lane_bytes, .lanes = lanes };
	struct tier_owner owner = { .length = 600 };
	struct tier_area area;
	uint64_t life = ++o->lives;

	must(lane_bytes <= o->lane_area);
	memset(owner.bytes, (int)(life & 255), owner.length);
	memcpy(owner.bytes, &life, sizeof(life));
	must(o->t->ops->area_make(o->t, &shape, &owner, &area) == 0);
	must_eq(area.n_slots, o->t->ops->area_slots(o->t, &shape));
	area_take(o, &area, &shape, life);
	return area.id;
}

/* ---- copies ---- */

static void on_copied(struct tier_io *io, int r)
{
	struct copy *c = container_of(io, struct copy, io);
	struct nvme_owner *o = c->o;
	struct nvme_owner_area *a = &o->areas[io->area];

	must(o->in_flight > 0);
	o->in_flight--;
	list_del(&c->link);
	o->n_ok += r == 0;
	o->n_io += r == TIER_E_IO;
	o->n_gone += r == TIER_E_GONE;
	if (io->write && r == 0 && a->used && a->life == c->life)
		a->slots[io->place] = (struct nvme_owner_slot){ .present = true, .seed = c->seed, .tag = io->tag };
	c->done = true;
	c->result = r;
	loop_stop(o->loop);
	if (!c->keep)
		free(c);
}

static struct copy *copy_new(struct nvme_owner *o, uint32_t area, uint32_t place, uint32_t at)
{
	struct nvme_owner_area *a = &o->areas[area];
	struct copy *c = calloc(1, sizeof(*c));

	must(c && a->used && place < a->n_slots && (at + 1) * a->shape.lane_bytes <= o->lane_area);
	c->o = o;
	c->life = a->life;
	c->io = (struct tier_io){ .cb = on_copied,
		                  .priority = TIER_WANTED,
		                  .area = area,
		                  .place = place,
		                  .shape = a->shape,
		                  .region = &o->region,
		                  .offset = at * a->shape.lane_bytes,
		                  .lane_area = o->lane_area };
	return c;
}

static int copy_submit(struct copy *c)
{
	struct nvme_owner *o = c->o;
	int r = o->t->ops->submit(o->t, &c->io);

	must(!c->done);
	if (r == 0) {
		o->in_flight++;
		list_add_tail(&o->copies, &c->link);
	} else {
		free(c);
	}
	return r;
}

static struct copy *write_new(struct nvme_owner *o, uint32_t area, uint32_t place, uint64_t seed, uint32_t at)
{
	struct copy *c = copy_new(o, area, place, at);
	struct tag tag = { .seed = seed, .life = c->life, .area = area, .place = place };

	fill(o, &c->io.shape, c->io.offset, seed);
	tag.sum = sum_of(o, &c->io.shape, c->io.offset, c->life, place);
	c->io.write = true;
	c->io.tag = tag_make(&tag);
	c->io.priority = TIER_BACKGROUND;
	c->seed = seed;
	if (o->keeps_past) {
		must(seed < o->n_past);
		o->past[seed] = (struct nvme_owner_past){ .life = c->life, .area = area, .place = place, .tag = c->io.tag };
	}
	/* The old block is forgotten before its slot is written, as every owner must. */
	o->areas[area].slots[place].present = false;
	return c;
}

int nvme_owner_write(struct nvme_owner *o, uint32_t area, uint32_t place, uint64_t seed, uint32_t at)
{
	return copy_submit(write_new(o, area, place, seed, at));
}

int nvme_owner_put(struct nvme_owner *o, uint32_t area, uint32_t place, uint64_t seed)
{
	struct copy *c = write_new(o, area, place, seed, 0);
	int r;

	c->keep = true;
	r = copy_submit(c);
	if (r != 0)
		return r;
	while (!c->done)
		loop_turn(o->loop, true);
	r = c->result;
	free(c);
	return r;
}

int nvme_owner_get(struct nvme_owner *o, uint32_t area, uint32_t place)
{
	struct nvme_owner_slot *slot = &o->areas[area].slots[place];
	struct copy *c = copy_new(o, area, place, 0);
	struct tag tag;
	int r;

	must(slot->present);
	memcpy(&tag, slot->tag.bytes, sizeof(tag));
	fill(o, &c->io.shape, 0, ~slot->seed); /* so that what is not read is seen */
	c->keep = true;
	r = o->t->ops->submit(o->t, &c->io);
	if (r == 0) {
		o->in_flight++;
		list_add_tail(&o->copies, &c->link);
		while (!c->done)
			loop_turn(o->loop, true);
		r = c->result;
	}
	if (r == 0 && sum_of(o, &c->io.shape, 0, c->life, place) != tag.sum)
		r = NVME_OWNER_WRONG;
	if (r == 0 && !is_filled(o, &c->io.shape, 0, slot->seed))
		r = NVME_OWNER_LIE;
	free(c);
	return r;
}

void nvme_owner_forget(struct nvme_owner *o, uint32_t area, uint32_t place)
{
	o->areas[area].slots[place].present = false;
	o->t->ops->forget(o->t, area, place);
}

void nvme_owner_drop(struct nvme_owner *o, uint32_t area)
{
	free(o->areas[area].slots);
	o->areas[area] = (struct nvme_owner_area){ .used = false };
	o->t->ops->area_drop(o->t, area);
}

bool nvme_owner_is_idle(const struct nvme_owner *o, uint64_t offset, uint64_t length)
{
	list_for_each(it, &o->copies) {
		const struct copy *c = container_of(it, struct copy, link);

		if (c->io.offset < offset + length && offset < c->io.offset + c->io.shape.lane_bytes)
			return false;
	}
	return true;
}

bool nvme_owner_is_writing(const struct nvme_owner *o, uint32_t area, uint32_t place)
{
	list_for_each(it, &o->copies) {
		const struct copy *c = container_of(it, struct copy, link);

		if (c->io.write && c->io.area == area && c->io.place == place)
			return true;
	}
	return false;
}

void nvme_owner_wait(struct nvme_owner *o)
{
	while (o->in_flight > 0)
		loop_turn(o->loop, true);
}

void nvme_owner_settle(struct nvme_owner *o)
{
	/* Not asleep: what stores it may be done before there is anything to sleep for. */
	while (!nvme_is_stored(nvme_of(o->t)))
		loop_turn(o->loop, false);
}

struct tier_lower_stat nvme_owner_stat(struct nvme_owner *o)
{
	struct tier_lower_stat st;

	o->t->ops->stat(o->t, &st);
	return st;
}

uint32_t nvme_owner_check_all(struct nvme_owner *o)
{
	uint32_t right = 0;

	for (uint32_t i = 0; i < NVME_OWNER_AREAS; i++) {
		for (uint32_t p = 0; o->areas[i].used && p < o->areas[i].n_slots; p++) {
			int r;

			if (!o->areas[i].slots[p].present)
				continue;
			r = nvme_owner_get(o, i, p);
			must(r == 0 || r == NVME_OWNER_WRONG);
			right += r == 0;
		}
	}
	return right;
}
