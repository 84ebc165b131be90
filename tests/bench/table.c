/* SPDX-License-Identifier: Apache-2.0 */
/* Owns its lines.  gcc 12 at -O2 drops prefetches that sit in plain inline functions, hence always_inline. */
#include "tests/bench/table.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "block/index.h"
#include "tests/lib/must.h"

#define TABLE_AHEAD 16u
#define TABLE_HUGE (UINT64_C(2) << 20)

void table_init(struct table *t, uint64_t n_entries, bool huge)
{
	*t = (struct table){ .n_lines = index_lines_for(n_entries), .salt = { 0x243f6a8885a308d3u, 0x13198a2e03707344u } };
	t->bytes = (t->n_lines * sizeof(struct shm_line) + TABLE_HUGE - 1) / TABLE_HUGE * TABLE_HUGE;
	t->lines = aligned_alloc(TABLE_HUGE, t->bytes);
	must(t->lines);
	(void)madvise(t->lines, t->bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	memset(t->lines, 0, t->bytes);
}

void table_deinit(struct table *t)
{
	free(t->lines);
	*t = (struct table){ 0 };
}

uint64_t table_huge_bytes(const struct table *t)
{
	char line[256];
	unsigned long from, to;
	uint64_t kib = 0, all = 0;
	bool inside = false;
	FILE *f = fopen("/proc/self/smaps", "re");

	must(f);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
			inside = from < (uintptr_t)t->lines + t->bytes && to > (uintptr_t)t->lines;
		else if (inside && sscanf(line, "AnonHugePages: %lu", &from) == 1)
			kib = from, all += kib;
	}
	fclose(f);
	return all << 10;
}

void table_put(struct table *t, const uint8_t *key, uint32_t slot, uint32_t generation)
{
	struct shm_hash h = shm_hash_key(key, TABLE_KEY_BYTES, t->salt, t->n_lines);

	for (uint64_t line = h.line;; line = line + 1 < t->n_lines ? line + 1 : 0) {
		for (uint32_t i = 0; i < SHM_LINE_ENTRIES; i++) {
			struct shm_entry *e = &t->lines[line].entries[i];

			if (e->generation != 0 && e->tag != 0)
				continue;
			*e = (struct shm_entry){ .tag = h.tag, .generation = generation, .slot = slot };
			return;
		}
	}
}

static inline __attribute__((always_inline)) const struct shm_entry *table_probe(const struct table *t, struct shm_hash h)
{
	for (uint64_t line = h.line, left = SHM_MAX_PROBE; left > 0; left--) {
		bool empty = false;

		for (uint32_t i = 0; i < SHM_LINE_ENTRIES; i++) {
			struct shm_entry e = shm_entry_load(&t->lines[line].entries[i]);

			if (e.tag == h.tag && e.generation != 0)
				return &t->lines[line].entries[i];
			empty |= e.generation == 0;
		}
		if (empty)
			return NULL;
		if (++line == t->n_lines)
			line = 0;
	}
	return NULL;
}

/* In a full line a tombstone is left (tag 0), which the next key that comes this way takes: nobody looks up what is not there. */
bool table_remove(struct table *t, const uint8_t *key)
{
	struct shm_entry *e = (struct shm_entry *)table_probe(t, shm_hash_key(key, TABLE_KEY_BYTES, t->salt, t->n_lines));
	const struct shm_line *line = (const struct shm_line *)((uintptr_t)e & ~(uintptr_t)63);
	bool full = true;

	if (!e)
		return false;
	for (uint32_t i = 0; i < SHM_LINE_ENTRIES; i++)
		full = full && line->entries[i].generation != 0;
	*e = (struct shm_entry){ .generation = full ? UINT32_MAX : 0 };
	return true;
}

static inline __attribute__((always_inline)) struct shm_hash table_hash(const struct table *t, const uint8_t *key)
{
	struct shm_hash h = shm_hash_key(key, TABLE_KEY_BYTES, t->salt, t->n_lines);

	__builtin_prefetch(&t->lines[h.line], 0, 3);
	return h;
}

uint32_t table_find(const struct table *t, const uint8_t *keys, uint32_t n, struct shm_entry *ret_entries)
{
	struct shm_hash ahead[TABLE_AHEAD];

	for (uint32_t i = 0; i < n && i < TABLE_AHEAD; i++)
		ahead[i] = table_hash(t, keys + i * TABLE_KEY_BYTES);
	for (uint32_t i = 0; i < n; i++) {
		struct shm_hash h = ahead[i % TABLE_AHEAD];
		const struct shm_entry *e;

		if (i + TABLE_AHEAD < n)
			ahead[i % TABLE_AHEAD] = table_hash(t, keys + (i + TABLE_AHEAD) * TABLE_KEY_BYTES);
		e = table_probe(t, h);
		if (!e)
			return i;
		ret_entries[i] = *e;
	}
	return n;
}
