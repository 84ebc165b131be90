/* SPDX-License-Identifier: Apache-2.0 */
/* Device memory without a device: a fake host tier, of which nobody sees the addresses. */
#include "tests/lib/fake_device.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "tests/lib/fake_tier.h"

struct fake_device {
	struct tier_device device; /* first */
	struct tier *memory;       /* owns */
	uint64_t region_size;
	bool edges, online, slow;
	struct tier_region *coming[64]; /* own; dropped, and not to be had yet */
	uint32_t n_coming;
	struct list flying; /* borrows: struct tier_copy, the oldest first */
	uint32_t n_flying, fail_times;
	int fail_with;
	uint64_t blocks[2];
};

static struct fake_device *fake_of(const struct tier *t)
{
	return (struct fake_device *)container_of(container_of(t, struct tier_device, tier), struct fake_device, device);
}

static struct fake_device *fake_dev(const struct tier_device *t)
{
	return fake_of(&t->tier);
}

static uint64_t fake_grain(struct tier *t)
{
	return fake_of(t)->region_size;
}

static uint64_t fake_room(struct tier *t)
{
	struct fake_device *f = fake_of(t);

	return f->online ? f->memory->ops->room(f->memory) : 0;
}

static int fake_region_make(struct tier *t, uint64_t size, uint64_t min_size, uint32_t lanes, uint64_t lane_area,
                            struct tier_region *ret_region)
{
	struct fake_device *f = fake_of(t);
	struct tier_region *inner = calloc(1, sizeof(*inner));
	int r;

	(void)min_size;
	assert(inner);
	r = size != f->region_size ? TIER_E_FULL
	                           : f->memory->ops->region_make(f->memory, size, size, lanes, lane_area, inner);
	if (r != 0) {
		free(inner);
		return r;
	}
	*ret_region = (struct tier_region){ .size = inner->size, .fd = -1, .ro_fd = -1, .priv = inner };
	return 0;
}

static void fake_region_drop(struct tier *t, struct tier_region *region)
{
	struct fake_device *f = fake_of(t);

	if (f->slow) {
		assert(f->n_coming < sizeof(f->coming) / sizeof(*f->coming));
		f->coming[f->n_coming++] = region->priv;
	} else {
		f->memory->ops->region_drop(f->memory, region->priv);
		free(region->priv);
	}
	*region = (struct tier_region){ .fd = -1, .ro_fd = -1 };
}

static void fake_stat(struct tier *t, struct tier_stat *ret_stat)
{
	fake_of(t)->memory->ops->stat(fake_of(t)->memory, ret_stat);
}

static const struct tier_ops fake_ops = {
	.name = "fake device",
	.grain = fake_grain,
	.region_size = fake_grain,
	.region_make = fake_region_make,
	.region_drop = fake_region_drop,
	.room = fake_room,
	.stat = fake_stat,
};

static int fake_copy(struct tier_device *t, struct tier_copy *copy)
{
	struct fake_device *f = fake_dev(t);

	assert(copy->n > 0 && copy->cb);
	if (!f->online)
		return TIER_E_GONE;
	if (f->fail_times > 0 && f->fail_with != TIER_E_IO) {
		f->fail_times--;
		return f->fail_with;
	}
	list_add_tail(&f->flying, &copy->link);
	f->n_flying++;
	return 0;
}

static uint64_t fake_coming(struct tier_device *t)
{
	return fake_dev(t)->online ? fake_dev(t)->n_coming * fake_dev(t)->region_size : 0;
}

static const struct tier_device_ops fake_device_ops = { .copy = fake_copy, .coming = fake_coming };

void fake_device_slow(struct tier_device *t)
{
	fake_dev(t)->slow = true;
}

void fake_device_remake(struct tier_device *t)
{
	struct fake_device *f = fake_dev(t);

	while (f->n_coming > 0) {
		struct tier_region *region = f->coming[--f->n_coming];

		f->memory->ops->region_drop(f->memory, region);
		free(region);
	}
	if (f->online && t->user.on_room)
		t->user.on_room(t->user.ctx);
}

struct tier_device *fake_device_new(uint64_t size, uint64_t region_size, bool edges)
{
	struct fake_device *f = calloc(1, sizeof(*f));

	assert(f && region_size % FAKE_TIER_GRAIN == 0);
	f->device.tier.ops = &fake_ops;
	f->device.ops = &fake_device_ops;
	f->memory = fake_tier_new(size / region_size * region_size, region_size, true);
	f->region_size = region_size;
	f->edges = edges;
	list_init(&f->flying);
	return &f->device;
}

struct tier_device *fake_device_free(struct tier_device *t)
{
	if (!t)
		return NULL;
	fake_dev(t)->online = false;
	fake_device_remake(t);
	assert(fake_dev(t)->n_flying == 0);
	fake_dev(t)->memory = fake_tier_free(fake_dev(t)->memory);
	free(fake_dev(t));
	return NULL;
}

void fake_device_set_online(struct tier_device *t, bool online)
{
	struct fake_device *f = fake_dev(t);

	if (f->online == online)
		return;
	f->online = online;
	if (t->user.on_online)
		t->user.on_online(t->user.ctx, online);
}

uint8_t *fake_device_at(const struct tier_region *region, uint64_t offset)
{
	const struct tier_region *inner = region->priv;

	return (uint8_t *)inner->base + offset;
}

static void fake_move(const struct fake_device *f, uint8_t *to, const uint8_t *from, uint64_t bytes)
{
	if (!f->edges || bytes <= 16) {
		memcpy(to, from, bytes);
		return;
	}
	memcpy(to, from, 8);
	memcpy(to + bytes - 8, from + bytes - 8, 8);
}

static void fake_copy_block(struct fake_device *f, const struct tier_copy *copy, const struct tier_copy_block *b)
{
	for (uint32_t l = 0; l < copy->lanes; l++) {
		uint64_t at = b->device_offset + l * b->device_lane_area;
		uint8_t *device = fake_device_at(b->device, at);
		uint8_t *host = (uint8_t *)b->host->base + b->host_offset + l * b->host_lane_area;

		assert(at + copy->lane_bytes <= b->device->size);
		assert(b->host_offset + l * b->host_lane_area + copy->lane_bytes <= b->host->size);
		if (copy->up)
			fake_move(f, device, host, copy->lane_bytes);
		else
			fake_move(f, host, device, copy->lane_bytes);
	}
	f->blocks[copy->up]++;
}

static bool fake_release(struct fake_device *f, uint32_t i)
{
	struct list *it = list_first(&f->flying);
	struct tier_copy *copy;
	int r = f->online ? 0 : TIER_E_GONE;

	if (!it)
		return false;
	while (i-- > 0)
		it = it->next;
	list_del(it);
	f->n_flying--;
	copy = container_of(it, struct tier_copy, link);
	if (r == 0 && f->fail_times > 0) {
		f->fail_times--;
		r = f->fail_with;
	}
	for (uint32_t k = 0; r == 0 && k < copy->n; k++)
		fake_copy_block(f, copy, &copy->blocks[k]);
	copy->cb(copy, r);
	return true;
}

uint32_t fake_device_in_flight(const struct tier_device *t)
{
	return fake_dev(t)->n_flying;
}

bool fake_device_release(struct tier_device *t)
{
	return fake_release(fake_dev(t), 0);
}

bool fake_device_release_any(struct tier_device *t, struct rng *rng)
{
	struct fake_device *f = fake_dev(t);

	return fake_release(f, f->n_flying ? (uint32_t)rng_below(rng, f->n_flying) : 0);
}

void fake_device_fail(struct tier_device *t, int outcome, uint32_t times)
{
	fake_dev(t)->fail_with = outcome;
	fake_dev(t)->fail_times = times;
}

uint64_t fake_device_blocks(const struct tier_device *t, bool up)
{
	return fake_dev(t)->blocks[up];
}
