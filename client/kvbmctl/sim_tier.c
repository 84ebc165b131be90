/* The tier of a simulation: it counts bytes and hands out none. */
#include "sim_tier.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"

#define SIM_ALIGN 4096u

static struct sim_tier *sim_tier_of(struct tier *t)
{
	return (struct sim_tier *)t;
}

static uint64_t sim_tier_grain(struct tier *t)
{
	(void)t;
	return SIM_SLOT_BYTES;
}

static uint64_t sim_tier_region_size(struct tier *t)
{
	return sim_tier_of(t)->size;
}

static uint64_t sim_tier_room(struct tier *t)
{
	return sim_tier_of(t)->size - sim_tier_of(t)->used;
}

static int sim_tier_region_make(struct tier *t, uint64_t size, uint64_t min_size, uint32_t lanes, uint64_t lane_area,
                                struct tier_region *ret_region)
{
	struct sim_tier *sim = sim_tier_of(t);

	(void)lanes;
	(void)lane_area;
	size = (size + SIM_SLOT_BYTES - 1) / SIM_SLOT_BYTES * SIM_SLOT_BYTES;
	if (size > sim_tier_room(t))
		size = sim_tier_room(t);
	if (size == 0 || size < min_size)
		return TIER_E_FULL;
	sim->used += size;
	sim->regions++;
	*ret_region = (struct tier_region){ .size = size, .fd = -1, .ro_fd = -1 };
	return 0;
}

static void sim_tier_region_drop(struct tier *t, struct tier_region *region)
{
	struct sim_tier *sim = sim_tier_of(t);

	assert(sim->regions > 0 && sim->used >= region->size);
	sim->used -= region->size;
	sim->regions--;
	*region = (struct tier_region){ .fd = -1, .ro_fd = -1 };
}

static int sim_tier_object_make(struct tier *t, const char *name, uint64_t size, bool sparse, struct tier_object *ret_object)
{
	uint64_t rounded = (size + SIM_ALIGN - 1) / SIM_ALIGN * SIM_ALIGN;
	void *base = aligned_alloc(SIM_ALIGN, rounded);

	(void)t;
	(void)name;
	(void)sparse;
	if (!base)
		return TIER_E_NOMEM;
	memset(base, 0, rounded);
	*ret_object = (struct tier_object){ .base = base, .size = rounded, .fd = -1, .ro_fd = -1 };
	return 0;
}

static void sim_tier_object_drop(struct tier *t, struct tier_object *object)
{
	(void)t;
	free(object->base);
	*object = (struct tier_object){ .fd = -1, .ro_fd = -1 };
}

static void sim_tier_stat(struct tier *t, struct tier_stat *ret_stat)
{
	const struct sim_tier *sim = sim_tier_of(t);

	*ret_stat = (struct tier_stat){
		.size_bytes = sim->size,
		.used_bytes = sim->used,
		.regions = sim->regions,
		.nodes = 1,
		.page_kind = "simulated",
		.note = "",
	};
}

static const struct tier_ops sim_tier_ops = {
	.name = "simulated",
	.grain = sim_tier_grain,
	.region_size = sim_tier_region_size,
	.region_make = sim_tier_region_make,
	.region_drop = sim_tier_region_drop,
	.room = sim_tier_room,
	.object_make = sim_tier_object_make,
	.object_drop = sim_tier_object_drop,
	.stat = sim_tier_stat,
};

void sim_tier_init(struct sim_tier *t, uint64_t slots)
{
	assert(slots > 0);
	*t = (struct sim_tier){ .tier.ops = &sim_tier_ops, .size = slots * SIM_SLOT_BYTES };
}

void sim_tier_deinit(struct sim_tier *t)
{
	assert(t->used == 0 && t->regions == 0);
}
