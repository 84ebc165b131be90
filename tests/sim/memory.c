/* SPDX-License-Identifier: Apache-2.0 */
/* What clients do with shared memory: find keys in the index, write and read the bytes of slots.  Uses what proto/shm.h says and
 * nothing of the daemon's but the addresses.
 */
#include <stddef.h>
#include <string.h>

#include "tests/sim/sim.h"

uint32_t sim_index(const struct sim *w, const struct sim_ns *ns)
{
	return (uint32_t)(ns - w->ns);
}

/* The same bytes in every namespace.  "Similar" keys differ in their last bytes only. */
void sim_key(const struct sim *w, const struct sim_ns *ns, int32_t key, uint8_t *ret_bytes)
{
	uint64_t state = (uint64_t)key + 1, words[4];

	sim_must(w, key >= 0);
	if (w->similar_keys) {
		memset(ret_bytes, 0, ns->desc.key_bytes);
		ret_bytes[ns->desc.key_bytes - 1] = (uint8_t)(key % 255 + 1);
		ret_bytes[ns->desc.key_bytes - 2] = (uint8_t)(key / 255);
		return;
	}
	for (uint32_t i = 0; i < 4; i++)
		words[i] = rng_splitmix(&state);
	memcpy(ret_bytes, words, ns->desc.key_bytes);
}

void sim_pack_keys(const struct sim *w, const struct sim_ns *ns, const int32_t *keys, uint32_t n, uint8_t *ret_bytes)
{
	for (uint32_t i = 0; i < n; i++)
		sim_key(w, ns, keys[i], ret_bytes + (size_t)i * ns->desc.key_bytes);
}

/* From the root down to @key: what an engine asks for. */
static uint32_t sim_path(const struct sim_ns *ns, int32_t key, int32_t *ret_keys, uint32_t max)
{
	uint32_t n = 0, depth = 0;

	for (int32_t k = key; k >= 0; k = ns->tree[k])
		depth++;
	for (int32_t k = key; k >= 0; k = ns->tree[k]) {
		depth--;
		if (depth >= max)
			continue;
		ret_keys[depth] = k;
		n++;
	}
	return n;
}

uint32_t sim_pick_keys(struct sim *w, const struct sim_ns *ns, int32_t *ret_keys, uint32_t max)
{
	uint32_t kind = sim_below(w, 10), n;

	if (max > SIM_MAX_N)
		max = SIM_MAX_N;
	if (max == 0)
		return 0;
	if (kind < 6)
		return sim_path(ns, (int32_t)sim_below(w, ns->n_keys), ret_keys, max);
	n = sim_below(w, sim_chance(w, 80) ? (max < 8 ? max : 8) : max) + 1;
	for (uint32_t i = 0; i < n; i++)
		ret_keys[i] = (int32_t)sim_below(w, ns->n_keys);
	return n;
}

bool sim_look_up(const struct sim *w, const struct sim_ns *ns, const uint8_t *key, struct shm_entry *ret_entry)
{
	const struct shm_ns *shm = ns->sn->index.base;
	const struct shm_record *records = ns->sn->records.base;
	const struct shm_line *lines = (const struct shm_line *)((const uint8_t *)shm + shm->lines_offset);
	struct shm_hash h = shm_hash_key(key, shm->key_bytes, shm->salt, shm->n_lines);

	sim_must(w, shm->magic == SHM_MAGIC && !atomic_load(&((struct shm_ns *)shm)->closed));
	for (uint64_t p = 0; p < SHM_MAX_PROBE && p < shm->n_lines; p++) {
		const struct shm_line *line = &lines[(h.line + p) % shm->n_lines];
		bool empty = false;

		for (uint32_t i = 0; i < SHM_LINE_ENTRIES; i++) {
			struct shm_entry e = shm_entry_load(&line->entries[i]);

			empty |= e.generation == 0;
			if (e.generation == 0 || e.tag != h.tag || e.slot >= shm->n_slots)
				continue;
			sim_must(w, memcmp(records[e.slot].key, key, shm->key_bytes) == 0);
			*ret_entry = e;
			return true;
		}
		if (empty)
			return false;
	}
	return false;
}

static uint64_t sim_tag(const struct sim *w, const struct sim_ns *ns, int32_t key, uint32_t lane)
{
	uint64_t state = ((uint64_t)sim_index(w, ns) << 48 | (uint64_t)lane << 32) + (uint64_t)key;

	return rng_splitmix(&state);
}

/* Where lane @lane of @slot lies, by the rule of proto/shm.h. */
static uint8_t *sim_address(const struct sim *w, const struct sim_ns *ns, uint32_t slot, uint32_t lane)
{
	const struct shm_ns *shm = ns->sn->index.base;
	uint32_t r = slot >> shm->region_shift, place = slot & ((1u << shm->region_shift) - 1);
	const struct tier_region *memory = &ns->sn->memory[r];
	uint64_t at = (uint64_t)lane * shm->regions[r].lane_area + (uint64_t)place * shm->lane_stride;

	sim_must(w, atomic_load(&((struct shm_ns *)shm)->regions[r].serial) != 0 && place < shm->regions[r].n_slots);
	sim_must(w, memory->size == shm->regions[r].size && at + shm->lane_bytes <= memory->size);
	return memory->base ? (uint8_t *)memory->base + at : NULL;
}

void sim_write_bytes(struct sim *w, struct sim_ns *ns, uint32_t slot, uint64_t lanes, int32_t key)
{
	for (uint32_t lane = 0; lane < ns->desc.lanes; lane++) {
		uint8_t *at;
		uint64_t tag;

		if (!(lanes >> lane & 1))
			continue;
		at = sim_address(w, ns, slot, lane);
		if (!at)
			continue;
		tag = key == SIM_NO_KEY ? rng_next(&w->rng) : sim_tag(w, ns, key, lane);
		memcpy(at, &tag, sizeof(tag));
		memcpy(at + ns->desc.lane_bytes - sizeof(tag), &tag, sizeof(tag));
	}
}

void sim_read_bytes(const struct sim *w, const struct sim_ns *ns, uint32_t slot, int32_t key)
{
	for (uint32_t lane = 0; lane < ns->desc.lanes; lane++) {
		const uint8_t *at = sim_address(w, ns, slot, lane);
		uint64_t tag = sim_tag(w, ns, key, lane);

		if (!at)
			continue;
		sim_must(w, memcmp(at, &tag, sizeof(tag)) == 0);
		sim_must(w, memcmp(at + ns->desc.lane_bytes - sizeof(tag), &tag, sizeof(tag)) == 0);
	}
}
