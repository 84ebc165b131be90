/* A namespace's slots: geometry, regions, free lists and generations.  Which block is in a slot is block.c's business, who may write it
 * lease.c's.
 *
 * Life of a slot (record state):
 *   0 FREE         in its region's free list, or never used
 *   1 PARTIAL      somebody writes it                      0->1 ns_slot_take
 *   2 REGISTERED   holds a block, immutable                1->2 block_register
 *   3 QUARANTINE   never visible; somebody may still write 1->3 ns_slot_quarantine
 *   back to 0 from 1, 2 and 3: ns_slot_free
 * Invariant: n_free + n_used + n_partial + n_quarantined = n_slots.
 */
#include "block/namespace.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include <xxhash.h>

#include "block/block.h"
#include "block/block.h"
#include "block/lease.h"

#define NS_PAGE 4096u

static uint64_t ns_round_up(uint64_t v, uint64_t to)
{
	return (v + to - 1) / to * to;
}

uint32_t ns_region_slots(const struct ns_geometry *geo, uint32_t lanes, uint64_t size, uint64_t *ret_lane_area)
{
	uint64_t area = size / lanes / NS_PAGE * NS_PAGE; /* whole pages, so that each lane can have its NUMA node */
	uint64_t n;

	if (lanes == 1)
		area = size;
	n = area / geo->lane_stride;
	*ret_lane_area = area;
	return n > UINT32_MAX ? UINT32_MAX : (uint32_t)n;
}

static uint64_t ns_stride(uint64_t lane_bytes)
{
	return ns_round_up(lane_bytes, lane_bytes >= NS_PAGE ? NS_PAGE : 64);
}

/* What follows from the size of regions. */
static int ns_geometry_count(struct ns_geometry *g, uint32_t lanes, uint64_t max_bytes)
{
	uint64_t area;

	while (1ull << g->shift < g->slots_per_region)
		g->shift++;
	g->n_regions = (uint32_t)(max_bytes / g->region_bytes) + 2; /* short ones at the end of the budget */
	if ((uint64_t)g->n_regions << g->shift > (uint64_t)UINT32_MAX / 2)
		return NS_E_BIG;
	g->max_slots = (uint32_t)(max_bytes / g->region_bytes) * g->slots_per_region +
	               ns_region_slots(g, lanes, max_bytes % g->region_bytes, &area);
	return 0;
}

int ns_geometry(uint64_t lane_bytes, uint32_t lanes, uint64_t region_bytes, uint64_t grain, uint64_t max_bytes,
                struct ns_geometry *ret_geometry)
{
	struct ns_geometry g = { .lane_stride = ns_stride(lane_bytes) };
	uint64_t least, best_waste = UINT64_MAX, area;

	assert(lane_bytes > 0 && lanes > 0 && grain > 0);
	least = ns_round_up(lanes == 1 ? g.lane_stride : ns_round_up(g.lane_stride, NS_PAGE) * lanes, grain);
	if (least > max_bytes)
		return NS_E_BIG;
	if (region_bytes > max_bytes)
		region_bytes = max_bytes / grain * grain;
	if (region_bytes < least)
		region_bytes = least;
	/* A few sizes are tried: a slot of three quarters of a region would waste a quarter of the memory. */
	for (uint64_t k = 1; k <= 4; k++) {
		uint64_t size = region_bytes * k;
		uint64_t n = ns_region_slots(&g, lanes, size, &area);
		uint64_t waste = (size - n * g.lane_stride * lanes) * 1000 / size;

		if (size > max_bytes && k > 1)
			break;
		if (n > 0 && waste + 10 < best_waste) {
			best_waste = waste;
			g.region_bytes = size;
			g.slots_per_region = (uint32_t)n;
		}
	}
	*ret_geometry = g;
	return ns_geometry_count(ret_geometry, lanes, max_bytes);
}

int ns_geometry_fixed(uint64_t lane_bytes, uint32_t lanes, uint64_t region_bytes, uint64_t max_bytes,
                      struct ns_geometry *ret_geometry)
{
	struct ns_geometry g = { .lane_stride = ns_stride(lane_bytes), .region_bytes = region_bytes };
	uint64_t area;

	assert(lane_bytes > 0 && lanes > 0 && region_bytes > 0);
	g.slots_per_region = ns_region_slots(&g, lanes, region_bytes, &area);
	if (g.slots_per_region == 0 || region_bytes > max_bytes)
		return NS_E_BIG;
	*ret_geometry = g;
	return ns_geometry_count(ret_geometry, lanes, max_bytes / region_bytes * region_bytes);
}

void ns_fingerprint(const struct ns_desc *id, uint8_t ret_fingerprint[16])
{
	XXH3_state_t *x = XXH3_createState();
	const char *const strings[] = { id->name, id->model, id->hash_algo, id->salt };
	const uint64_t numbers[] = { id->lane_bytes, id->num_layers, id->page_size, id->inner_dim, id->outer_dim,
		                     id->dtype,      id->layout,     id->lanes,     id->key_bytes, id->confirm };
	XXH128_canonical_t canonical;

	assert(x);
	XXH3_128bits_reset(x);
	for (size_t i = 0; i < sizeof(strings) / sizeof(*strings); i++)
		XXH3_128bits_update(x, strings[i], strlen(strings[i]) + 1);
	XXH3_128bits_update(x, numbers, sizeof(numbers));
	XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(x));
	XXH3_freeState(x);
	memcpy(ret_fingerprint, canonical.digest, 16);
}

static struct heat_mark *ns_mark(void *ctx, uint32_t slot)
{
	return &((struct ns *)ctx)->blocks[slot].heat;
}

static bool ns_has_children(void *ctx, uint32_t slot)
{
	return ((struct ns *)ctx)->blocks[slot].children > 0;
}

static bool ns_has_staying_children(void *ctx, uint32_t slot)
{
	const struct block *b = &((struct ns *)ctx)->blocks[slot];

	return b->children > b->leaving;
}

static void ns_leaving(void *ctx, uint32_t slot, bool on)
{
	block_leaving(ctx, slot, on);
}

static void ns_prefetch(void *ctx, uint32_t slot, bool near)
{
	const struct ns *ns = ctx;

	if (near) {
		index_prefetch(&ns->index, index_hash(&ns->index, ns->records[slot].key));
		return;
	}
	__builtin_prefetch(&ns->blocks[slot]);
	__builtin_prefetch(&ns->records[slot]);
	lease_prefetch(ns, slot);
}

static bool ns_held(void *ctx, uint32_t slot, uint32_t *touch)
{
	return lease_is_held(ctx, slot, touch);
}

static const struct heat_ops ns_heat_ops = {
	.mark = ns_mark,
	.held = ns_held,
	.has_children = ns_has_children,
	.has_staying_children = ns_has_staying_children,
	.leaving = ns_leaving,
	.prefetch = ns_prefetch,
};

static void ns_publish_header(struct ns *ns, const struct ns_memory *m, uint64_t n_lines, uint64_t lines_offset)
{
	struct shm_ns *s = m->shm;

	s->magic = SHM_MAGIC;
	s->version = SHM_VERSION;
	s->boot_id = m->boot_id;
	memcpy(s->salt, m->salt, sizeof(s->salt));
	s->n_lines = n_lines;
	s->lines_offset = lines_offset;
	s->lane_bytes = ns->desc->lane_bytes;
	s->lane_stride = ns->geo.lane_stride;
	s->n_slots = ns->geo.n_regions << ns->geo.shift;
	s->n_regions = ns->geo.n_regions;
	s->region_shift = ns->geo.shift;
	s->lanes = ns->desc->lanes;
	s->key_bytes = ns->desc->key_bytes;
	s->confirm = ns->desc->confirm;
	atomic_store_explicit(&s->clock, ns->heat.clock, memory_order_relaxed);
}

int ns_init(struct ns *ns, const struct ns_desc *id, const struct ns_geometry *geo, const struct ns_memory *m)
{
	uint64_t n_lines = index_lines_for(geo->max_slots), lines_offset;
	uint32_t grace = (uint32_t)((uint64_t)geo->max_slots * m->grace_percent / 100);

	memset(ns, 0, sizeof(*ns));
	list_init(&ns->link);
	list_init(&ns->holders);
	list_init(&ns->partials);
	ns->desc = id;
	ns->geo = *geo;
	ns->group_shift = shm_group_shift(geo->n_regions << geo->shift);
	ns->shm = m->shm;
	ns->records = m->records;
	ns_fingerprint(id, ns->fingerprint);
	shm_ns_bytes(geo->n_regions, n_lines, &lines_offset);
	ns->index = (struct index){ .lines = (struct shm_line *)((uint8_t *)m->shm + lines_offset),
		                    .keys = m->records->key,
		                    .key_stride = sizeof(struct shm_record),
		                    .n_lines = n_lines,
		                    .key_bytes = id->key_bytes,
		                    .salt = { m->salt[0], m->salt[1] } };
	ns->behind = ns->index.behind = calloc(1, index_behind_bytes(n_lines));
	ns->blocks = calloc((size_t)geo->n_regions << geo->shift, sizeof(*ns->blocks));
	ns->regions = calloc(geo->n_regions, sizeof(*ns->regions));
	if (!ns->behind || !ns->blocks || !ns->regions || why_new(m->why_entries, &ns->why) < 0 ||
	    heat_init(&ns->heat, geo->max_slots ? geo->max_slots : 1, grace, &ns_heat_ops, ns) < 0) {
		ns_deinit(ns);
		return -ENOMEM;
	}
	ns_publish_header(ns, m, n_lines, lines_offset);
	return 0;
}

void ns_deinit(struct ns *ns)
{
	assert(list_empty(&ns->holders) && ns->n_partial == 0 && ns->n_quarantined == 0);
	if (ns->shm)
		atomic_store_explicit(&ns->shm->closed, 1, memory_order_release);
	block_orphans_free(ns);
	lease_tables_free(ns);
	ns->why = why_free(ns->why);
	heat_deinit(&ns->heat);
	free(ns->moving);
	free(ns->behind);
	free(ns->blocks);
	free(ns->regions);
	ns->moving = NULL;
	free(ns->kept);
	ns->kept = NULL;
	free(ns->copies);
	ns->copies = NULL;
	ns->behind = ns->index.behind = NULL;
	ns->blocks = NULL;
	ns->regions = NULL;
}

uint32_t ns_region_add(struct ns *ns, uint64_t size)
{
	for (uint32_t r = 0; r < ns->geo.n_regions; r++) {
		struct ns_region *region = &ns->regions[r];
		struct shm_region *shared = &ns->shm->regions[r];
		uint64_t area;

		if (region->serial)
			continue;
		*region = (struct ns_region){ .serial = ++ns->next_serial };
		region->n_slots = ns_region_slots(&ns->geo, ns->desc->lanes, size, &area);
		if (region->n_slots > 1u << ns->geo.shift)
			region->n_slots = 1u << ns->geo.shift;
		if (ns->n_slots + region->n_slots > ns->geo.max_slots) /* what index and heat are sized for */
			region->n_slots = ns->geo.max_slots - ns->n_slots;
		region->n_free = region->n_slots;
		ns->n_slots += region->n_slots;
		if (r < ns->take_from)
			ns->take_from = r;
		ns->n_free += region->n_slots;
		shared->n_slots = region->n_slots;
		shared->size = size;
		shared->lane_area = area;
		atomic_store_explicit(&shared->serial, region->serial, memory_order_release);
		return r;
	}
	return NS_NONE;
}

void ns_region_remove(struct ns *ns, uint32_t r)
{
	struct ns_region *region = &ns->regions[r];

	assert(region->serial && region->n_free == region->n_slots);
	atomic_store_explicit(&ns->shm->regions[r].serial, 0, memory_order_release);
	if (!region->draining)
		ns->n_free -= region->n_slots;
	ns->n_slots -= region->n_slots;
	*region = (struct ns_region){ 0 };
}

void ns_region_drain(struct ns *ns, uint32_t r, bool on)
{
	struct ns_region *region = &ns->regions[r];

	assert(region->serial && region->draining != on);
	region->draining = on;
	if (on)
		ns->n_free -= region->n_free;
	else
		ns->n_free += region->n_free;
	if (!on && r < ns->take_from)
		ns->take_from = r;
}

uint32_t ns_slot_take(struct ns *ns)
{
	assert(ns->n_free > 0);
	for (uint32_t r = ns->take_from; r < ns->geo.n_regions; r++) {
		struct ns_region *region = &ns->regions[r];
		struct shm_record *rec;
		uint32_t slot, generation;

		if (region->n_free == 0 || region->draining)
			continue;
		if (region->free_head) {
			slot = region->free_head - 1;
			region->free_head = ns->blocks[slot].parent;
		} else {
			slot = (r << ns->geo.shift) + region->fresh++;
		}
		ns->take_from = r;
		region->n_free--;
		ns->n_free--;
		ns->n_partial++;
		rec = &ns->records[slot];
		generation = atomic_load_explicit(&rec->generation, memory_order_relaxed) + 1;
		if (generation == 0 || generation == UINT32_MAX) /* mean "empty" and "tombstone" in the index */
			generation = 1;
		assert(ns_slot_state(ns, slot) == SHM_FREE);
		atomic_store_explicit(&rec->generation, generation, memory_order_relaxed);
		atomic_store_explicit(&rec->state, SHM_PARTIAL, memory_order_release);
		rec->sum = 0;
		ns->blocks[slot] = (struct block){ .parent = NS_NONE };
		return slot;
	}
	assert(!"n_free counts slots that no region has");
	return NS_NONE;
}

void ns_slot_free(struct ns *ns, uint32_t slot, enum shm_state was)
{
	struct ns_region *region = &ns->regions[ns_region_of(ns, slot)];

	assert(ns_slot_state(ns, slot) == was && was != SHM_FREE);
	atomic_store_explicit(&ns->records[slot].state, SHM_FREE, memory_order_release);
	if (was == SHM_PARTIAL)
		ns->n_partial--;
	else if (was == SHM_REGISTERED)
		ns->n_used--;
	else
		ns->n_quarantined--;
	ns->blocks[slot] = (struct block){ .parent = region->free_head };
	region->free_head = slot + 1;
	region->n_free++;
	if (!region->draining)
		ns->n_free++;
	if (ns_region_of(ns, slot) < ns->take_from)
		ns->take_from = ns_region_of(ns, slot);
}

void ns_slot_quarantine(struct ns *ns, uint32_t slot)
{
	assert(ns_slot_state(ns, slot) == SHM_PARTIAL);
	atomic_store_explicit(&ns->records[slot].state, SHM_QUARANTINE, memory_order_release);
	ns->n_partial--;
	ns->n_quarantined++;
}

uint64_t ns_metadata_bytes(const struct ns *ns)
{
	uint64_t slots = 0;

	for (uint32_t r = 0; r < ns->geo.n_regions; r++)
		slots += ns->regions[r].n_slots;
	return slots * (sizeof(struct shm_record) + sizeof(struct block)) + ns->index.n_lines * sizeof(struct shm_line) +
	       index_behind_bytes(ns->index.n_lines) + heat_bytes(&ns->heat) + block_orphan_bytes(ns);
}
