/* SPDX-License-Identifier: Apache-2.0 */
/* Unit tests of block/block.c: registration, the two-step drop, and kinship against a plain count over all records. */
#include "block/block.h"

#include <signal.h>

#include "base/rng.h"
#include "tests/unit/block/fixture.h"

static struct fixture f;
static struct holder h;

static void setup(void)
{
	fixture_open(&f, fixture_desc(1, 16), 2, 32);
	fixture_holder(&f, &h, true);
}

static void teardown(void)
{
	fixture_empty(&f);
	fixture_holder_close(&h);
	fixture_close(&f);
}

static uint32_t children(uint32_t slot)
{
	return f.ns.blocks[slot].children;
}

/* ---- registration ---- */

START_TEST(registers_and_is_found)
{
	uint32_t a = fixture_store(&h, 1, 0), b = fixture_store(&h, 2, 1);
	const struct shm_record *rec = &f.ns.records[b];
	uint8_t key[KEY_MAX];

	ck_assert_uint_eq(fixture_find(&f, 1), a);
	ck_assert_uint_eq(fixture_find(&f, 2), b);
	ck_assert_uint_eq(fixture_find(&f, 3), NS_NONE);
	ck_assert_mem_eq(rec->key, fixture_key(2, key), KEY_MAX);
	ck_assert_uint_eq(rec->parent, block_tag(&f.ns, a));
	ck_assert_uint_eq(rec->key_bytes, 16);
	ck_assert_uint_eq(f.ns.records[a].parent, 0);
	ck_assert_uint_eq(block_parent(&f.ns, b), a);
	ck_assert_uint_eq(block_parent(&f.ns, a), NS_NONE);
	ck_assert_uint_eq(f.ns.n_used, 2);
	ck_assert_uint_eq(f.ns.n_partial, 0);
	ck_assert_uint_eq(f.ns.counts.stored, 2);
	ck_assert_uint_eq(ns_slot_state(&f.ns, a), SHM_REGISTERED);
}
END_TEST

START_TEST(a_key_has_one_block)
{
	uint32_t a = fixture_store(&h, 1, 0), b = fixture_written(&h), canonical = NS_NONE;
	uint8_t key[KEY_MAX];

	ck_assert_int_eq(block_register(&f.ns, b, fixture_key(1, key), NULL, &canonical), BLOCK_E_EXISTS);
	ck_assert_uint_eq(canonical, a);
	ck_assert_uint_eq(ns_slot_state(&f.ns, b), SHM_PARTIAL);
	ck_assert_uint_eq(f.ns.n_partial, 1);
	ns_slot_free(&f.ns, b, SHM_PARTIAL);
	ck_assert_uint_eq(f.ns.n_used, 1);
}
END_TEST

/* As if the index had one line: four blocks have room in it. */
START_TEST(full_index_is_an_answer)
{
	uint64_t lines = f.ns.index.n_lines;
	uint32_t n = 0, canonical;
	uint8_t key[KEY_MAX];

	f.ns.index.n_lines = 1;
	for (n = 1; n <= SHM_LINE_ENTRIES; n++)
		fixture_store(&h, n, 0);
	canonical = fixture_written(&h);
	ck_assert_int_eq(block_register(&f.ns, canonical, fixture_key(n, key), NULL, &canonical), BLOCK_E_FULL);
	ck_assert_uint_eq(ns_slot_state(&f.ns, canonical), SHM_PARTIAL);
	ck_assert_uint_eq(f.ns.n_partial, 1);
	ck_assert_uint_eq(f.ns.n_used, SHM_LINE_ENTRIES);
	ns_slot_free(&f.ns, canonical, SHM_PARTIAL);
	fixture_empty(&f);
	f.ns.index.n_lines = lines;
}
END_TEST

START_TEST(only_written_slots_register)
{
	uint32_t slot = fixture_store(&h, 1, 0), canonical;
	uint8_t key[KEY_MAX];

	block_register(&f.ns, slot, fixture_key(2, key), NULL, &canonical);
}
END_TEST

/* Over key, parent, generation and length of the key: a successor believes nothing else. */
START_TEST(record_check_covers_every_field)
{
	uint8_t key[KEY_MAX], parent[KEY_MAX];
	uint32_t checks[8], n = 0;

	for (uint32_t i = 0; i < 5; i++) {
		uint32_t slot;

		fixture_key(7 + (i == 1), key);
		fixture_key(i == 2 ? 6 : 5, parent);
		f.desc.key_bytes = i == 4 ? 17 : 16; /* the index still hashes 16 */
		slot = fixture_store_keys(&h, key, i == 3 ? NULL : parent);
		checks[n++] = f.ns.records[slot].check;
		fixture_drop(&f, slot); /* the next one has the same slot, and another generation */
	}
	f.desc.key_bytes = 16;
	fixture_key(7, key);
	checks[n] = f.ns.records[fixture_store_keys(&h, key, fixture_key(5, parent))].check;
	n++;
	for (uint32_t i = 0; i < n; i++)
		for (uint32_t k = 0; k < i; k++)
			ck_assert_uint_ne(checks[i], checks[k]);
}
END_TEST

/* As above with the same generation, so that each difference is of one field. */
START_TEST(record_check_differs_by_one_field)
{
	uint32_t checks[4], slot = NS_NONE;
	uint8_t key[KEY_MAX], parent[KEY_MAX];

	for (uint32_t i = 0; i < 4; i++) {
		if (slot != NS_NONE)
			atomic_store(&f.ns.records[slot].generation, 41);
		else
			atomic_store(&f.ns.records[0].generation, 41);
		slot = fixture_store_keys(&h, fixture_key(i == 1 ? 8 : 7, key), fixture_key(i == 2 ? 6 : 5, parent));
		ck_assert_uint_eq(slot, 0);
		ck_assert_uint_eq(ns_slot_generation(&f.ns, slot), 42);
		checks[i] = f.ns.records[slot].check;
		fixture_drop(&f, slot);
	}
	ck_assert_uint_ne(checks[0], checks[1]);
	ck_assert_uint_ne(checks[0], checks[2]);
	ck_assert_uint_eq(checks[0], checks[3]);
}
END_TEST

/* ---- dropping ---- */

START_TEST(condemned_is_unfindable_and_pardon_restores)
{
	uint32_t a = fixture_store(&h, 1, 0), b = fixture_store(&h, 2, 1);

	block_condemn(&f.ns, b);
	ck_assert_uint_eq(fixture_find(&f, 2), NS_NONE);
	ck_assert_uint_eq(children(a), 0);
	block_pardon(&f.ns, b);
	ck_assert_uint_eq(fixture_find(&f, 2), b);
	ck_assert_uint_eq(children(a), 1);
	ck_assert_uint_eq(block_parent(&f.ns, b), a);
	ck_assert_uint_eq(f.ns.counts.dropped, 0);
}
END_TEST

START_TEST(forgotten_frees_its_slot_and_tells_why)
{
	uint32_t a = fixture_store(&h, 1, 0);
	uint64_t tag = block_tag(&f.ns, a);
	struct why_answer answer;

	f.ns.now_ns = 1000;
	block_condemn(&f.ns, a);
	block_forget(&f.ns, a, WHY_FLUSHED);
	ck_assert_uint_eq(ns_slot_state(&f.ns, a), SHM_FREE);
	ck_assert_uint_eq(f.ns.n_used, 0);
	ck_assert_uint_eq(f.ns.heat.in_order, 0);
	ck_assert_uint_eq(f.ns.counts.dropped, 1);
	why_ask(f.ns.why, tag, 1500, &answer);
	ck_assert_int_eq(answer.reason, WHY_FLUSHED);
	ck_assert_uint_eq(answer.ago_ns, 500);
}
END_TEST

START_TEST(condemning_twice_aborts)
{
	uint32_t a = fixture_store(&h, 1, 0);

	block_condemn(&f.ns, a);
	block_condemn(&f.ns, a);
}
END_TEST

START_TEST(condemning_a_free_slot_aborts)
{
	block_condemn(&f.ns, 0);
}
END_TEST

START_TEST(forgetting_a_findable_block_aborts)
{
	block_forget(&f.ns, fixture_store(&h, 1, 0), WHY_DROPPED);
}
END_TEST

/* ---- kinship ---- */

START_TEST(last_child_unparks)
{
	uint32_t a = fixture_store(&h, 1, 0), b = fixture_store(&h, 2, 1), victim;
	uint64_t budget = 10;

	ck_assert(heat_pick(&f.ns.heat, &victim, &budget));
	ck_assert_uint_eq(victim, b); /* a was looked at first, and is parked */
	ck_assert_uint_eq(f.ns.blocks[a].heat.where, HEAT_PARKED);
	fixture_drop(&f, b);
	ck_assert_uint_eq(f.ns.blocks[a].heat.where, HEAT_ORDER);
	ck_assert(heat_pick(&f.ns.heat, &victim, &budget));
	ck_assert_uint_eq(victim, a);
}
END_TEST

START_TEST(a_pardoned_victim_is_in_the_order_again)
{
	uint64_t budget = 100;
	uint32_t victim;

	for (uint32_t i = 1; i <= 20; i++)
		fixture_store(&h, i, 0);
	ck_assert(heat_pick(&f.ns.heat, &victim, &budget));
	ck_assert_uint_eq(f.ns.heat.in_order, 19);
	block_condemn(&f.ns, victim);
	block_pardon(&f.ns, victim);
	ck_assert_uint_eq(f.ns.heat.in_order, 20);
	ck_assert_int_eq(f.ns.blocks[victim].heat.where, HEAT_ORDER);
}
END_TEST

/* A namespace may end with blocks in it, orphans among them. */
START_TEST(nothing_is_left_of_a_namespace)
{
	struct fixture g;
	struct holder writer;

	fixture_open(&g, fixture_desc(1, 16), 1, 32);
	fixture_holder(&g, &writer, false);
	for (uint32_t i = 2; i <= 20; i++)
		fixture_store(&writer, i, i / 2);
	fixture_drop(&g, fixture_find(&g, 3));
	ck_assert_uint_gt(block_orphan_bytes(&g.ns), 0);
	fixture_holder_close(&writer);
	fixture_close(&g);
}
END_TEST

START_TEST(own_parent_is_a_root)
{
	uint32_t a = fixture_store(&h, 1, 1);

	ck_assert_uint_eq(children(a), 0);
	ck_assert_uint_eq(f.ns.records[a].parent, 0);
	ck_assert_uint_eq(block_parent(&f.ns, a), NS_NONE);
}
END_TEST

START_TEST(later_parent_takes_orphans_on)
{
	uint32_t b = fixture_store(&h, 2, 1), c = fixture_store(&h, 3, 1), a;

	ck_assert_uint_gt(block_orphan_bytes(&f.ns), 0);
	ck_assert_uint_eq(block_parent(&f.ns, b), NS_NONE);
	a = fixture_store(&h, 1, 0);
	ck_assert_uint_eq(children(a), 2);
	ck_assert_uint_eq(block_parent(&f.ns, b), a);
	fixture_drop(&f, b);
	ck_assert_uint_eq(children(a), 1);
	fixture_drop(&f, c);
	ck_assert_uint_eq(children(a), 0);
}
END_TEST

START_TEST(parent_comes_back)
{
	uint32_t a = fixture_store(&h, 1, 0), b = fixture_store(&h, 2, 1), c;

	fixture_drop(&f, a);
	ck_assert_uint_eq(block_parent(&f.ns, b), NS_NONE);
	ck_assert_uint_ne(fixture_store(&h, 9, 0), NS_NONE); /* takes its slot */
	ck_assert_uint_eq(block_parent(&f.ns, b), NS_NONE);
	a = fixture_store(&h, 1, 0);
	ck_assert_uint_eq(children(a), 1);
	c = fixture_store(&h, 3, 1);
	ck_assert_uint_eq(children(a), 2);
	ck_assert_uint_eq(block_parent(&f.ns, c), a);
	fixture_drop(&f, a);
	a = fixture_store(&h, 1, 0);
	ck_assert_uint_eq(children(a), 2);
}
END_TEST

/* The parent came after its only child; the child is condemned, found pinned and pardoned; then the parent goes. */
START_TEST(pardoned_orphan_stays_its_parents_child)
{
	uint32_t b = fixture_store(&h, 2, 1), a = fixture_store(&h, 1, 0);

	ck_assert_uint_eq(children(a), 1);
	block_condemn(&f.ns, b);
	ck_assert_uint_eq(children(a), 0);
	block_pardon(&f.ns, b);
	ck_assert_uint_eq(children(a), 1);
	ck_assert_uint_eq(block_parent(&f.ns, b), a);
	fixture_drop(&f, a);
	ck_assert_uint_eq(block_parent(&f.ns, b), NS_NONE);
	fixture_drop(&f, b);
	ck_assert_uint_eq(block_orphan_bytes(&f.ns), 0);
}
END_TEST

START_TEST(family_is_condemned_and_pardoned_together)
{
	uint32_t slots[4];

	for (uint32_t order = 0; order < 4; order++) {
		for (uint32_t i = 0; i < 4; i++)
			slots[i] = fixture_store(&h, i + 1, i); /* 1 <- 2 <- 3 <- 4 */
		for (uint32_t i = 0; i < 4; i++)
			block_condemn(&f.ns, slots[order & 1 ? i : 3 - i]);
		for (uint32_t i = 0; i < 4; i++)
			block_pardon(&f.ns, slots[order & 2 ? i : 3 - i]);
		for (uint32_t i = 0; i < 4; i++)
			ck_assert_uint_eq(children(slots[i]), i < 3);
		for (uint32_t i = 0; i < 4; i++)
			fixture_drop(&f, slots[order & 1 ? i : 3 - i]);
		ck_assert_uint_eq(block_orphan_bytes(&f.ns), 0);
	}
}
END_TEST

START_TEST(children_are_listed)
{
	uint32_t a = fixture_store(&h, 1, 0), slots[4], n;

	for (uint32_t i = 2; i < 8; i++)
		fixture_store(&h, i, i < 6 ? 1 : 2);
	n = block_children(&f.ns, a, slots, 4);
	ck_assert_uint_eq(n, 4);
	for (uint32_t i = 0; i < n; i++)
		ck_assert_uint_eq(block_parent(&f.ns, slots[i]), a);
	ck_assert_uint_eq(block_children(&f.ns, a, slots, 2), 2);
	ck_assert_uint_eq(block_children(&f.ns, fixture_find(&f, 7), slots, 4), 0);
}
END_TEST

/* Two keys of 32 bytes with one hash: what bytes 17..24 add is taken off bytes 1..8.  A client can do that: the salt is in the index. */
static void twin_of(const uint8_t key[KEY_MAX], uint64_t n, uint8_t ret_twin[KEY_MAX])
{
	const uint64_t *salt = f.memory.salt;
	uint64_t w[4], a;

	memcpy(w, key, KEY_MAX);
	a = (w[0] ^ salt[0]) + (w[2] ^ 0x9e3779b97f4a7c15ull) * 0xd6e8feb86659fd93ull;
	w[2] += n;
	w[0] = (a - (w[2] ^ 0x9e3779b97f4a7c15ull) * 0xd6e8feb86659fd93ull) ^ salt[0];
	memcpy(ret_twin, w, KEY_MAX);
}

static void setup_long_keys(void)
{
	fixture_open(&f, fixture_desc(1, 32), 2, 32);
	fixture_holder(&f, &h, false);
}

START_TEST(twins_are_two_blocks)
{
	uint8_t key[KEY_MAX], twin[KEY_MAX];
	uint32_t a, b;

	twin_of(fixture_key(1, key), 1, twin);
	ck_assert_uint_eq(index_hash(&f.ns.index, key).tag, index_hash(&f.ns.index, twin).tag);
	a = fixture_store_keys(&h, key, NULL);
	b = fixture_store_keys(&h, twin, NULL);
	ck_assert_uint_ne(a, b);
	ck_assert_uint_eq(block_find(&f.ns, key), a);
	ck_assert_uint_eq(block_find(&f.ns, twin), b);
	fixture_drop(&f, a);
	ck_assert_uint_eq(block_find(&f.ns, key), NS_NONE);
	ck_assert_uint_eq(block_find(&f.ns, twin), b);
}
END_TEST

/* Two children name an absent twin of a block that is here and has a child of its own; then that block goes. */
START_TEST(twin_of_an_absent_parent_goes)
{
	uint8_t key[KEY_MAX], twin[KEY_MAX], child[KEY_MAX];
	uint32_t a, b;

	twin_of(fixture_key(1, key), 1, twin);
	a = fixture_store_keys(&h, key, NULL);
	fixture_store_keys(&h, fixture_key(2, child), twin);
	fixture_store_keys(&h, fixture_key(3, child), twin);
	b = fixture_store_keys(&h, fixture_key(4, child), key);
	ck_assert_uint_eq(children(a), 1);
	fixture_drop(&f, a);
	ck_assert_uint_eq(block_parent(&f.ns, b), NS_NONE);
	a = fixture_store_keys(&h, key, NULL);
	ck_assert_uint_eq(children(a), 3); /* one tag: the table cannot tell them apart */
}
END_TEST

/* Both twins come after the child: one of them takes it on, and only one. */
START_TEST(one_twin_takes_orphans_on)
{
	uint8_t key[KEY_MAX], twin[KEY_MAX], child[KEY_MAX];
	uint32_t a, b, c;

	twin_of(fixture_key(1, key), 1, twin);
	c = fixture_store_keys(&h, fixture_key(2, child), key);
	a = fixture_store_keys(&h, key, NULL);
	b = fixture_store_keys(&h, twin, NULL);
	ck_assert_uint_eq(children(a), 1);
	ck_assert_uint_eq(children(b), 0);
	if (_i == 0) {
		fixture_drop(&f, b);
		fixture_drop(&f, a);
		fixture_drop(&f, c);
	} else {
		fixture_drop(&f, c);
		ck_assert_uint_eq(children(a), 0);
	}
}
END_TEST

/* ---- all of it against a model ---- */

#define MODEL_KEYS 24u

struct model {
	uint32_t slot[MODEL_KEYS + 1]; /* NS_NONE: absent; key 0 is nobody */
	bool condemned[MODEL_KEYS + 1];
};

static uint32_t model_parent(uint32_t n)
{
	return n % 7 == 6 ? n : n / 2; /* some name themselves */
}

static void model_check(const struct model *m)
{
	uint32_t used = 0;

	for (uint32_t n = 1; n <= MODEL_KEYS; n++) {
		uint32_t expected = 0, parent = model_parent(n), slot = m->slot[n];

		ck_assert_uint_eq(fixture_find(&f, n), m->condemned[n] ? NS_NONE : slot);
		if (slot == NS_NONE)
			continue;
		used++;
		for (uint32_t k = 1; k <= MODEL_KEYS; k++)
			expected += k != n && model_parent(k) == n && m->slot[k] != NS_NONE && !m->condemned[k];
		ck_assert_uint_eq(children(slot), expected);
		if (parent != n && parent && !m->condemned[n])
			ck_assert_uint_eq(block_parent(&f.ns, slot), m->slot[parent]);
		ck_assert(f.ns.blocks[slot].heat.where != HEAT_PARKED || expected > 0);
	}
	ck_assert_uint_eq(f.ns.n_used, used);
	ck_assert_uint_eq(f.ns.n_used + f.ns.n_free, f.ns.n_slots);
}

static void model_drop(struct rng *rng, struct model *m)
{
	for (uint32_t n = 1; n <= MODEL_KEYS; n++) {
		uint32_t k = (n * 5 + 3) % MODEL_KEYS + 1; /* not in order of kinship */

		if (m->slot[k] == NS_NONE || !rng_chance(rng, 30))
			continue;
		block_condemn(&f.ns, m->slot[k]);
		m->condemned[k] = true;
	}
	model_check(m);
	for (uint32_t n = 1; n <= MODEL_KEYS; n++) {
		if (!m->condemned[n] || rng_chance(rng, 50))
			continue;
		block_pardon(&f.ns, m->slot[n]);
		m->condemned[n] = false;
	}
	model_check(m);
	for (uint32_t n = 1; n <= MODEL_KEYS; n++) {
		if (!m->condemned[n])
			continue;
		block_forget(&f.ns, m->slot[n], WHY_DROPPED);
		m->condemned[n] = false;
		m->slot[n] = NS_NONE;
		model_check(m);
	}
}

START_TEST(kinship_as_counted_plainly)
{
	struct model m;
	struct rng rng;

	rng_init(&rng, (uint64_t)_i);
	memset(&m, 0, sizeof(m));
	memset(m.slot, 0xff, sizeof(m.slot));
	for (int step = 0; step < 60; step++) {
		for (int i = 0; i < 5; i++) {
			uint32_t n = 1 + (uint32_t)rng_below(&rng, MODEL_KEYS);

			heat_tick(&f.ns.heat);
			if (m.slot[n] == NS_NONE)
				m.slot[n] = fixture_store(&h, n, model_parent(n));
		}
		model_check(&m);
		model_drop(&rng, &m);
	}
}
END_TEST

/* ---- copies below ---- */

static struct lower lower;

static void setup_lower(void)
{
	struct lower_config c = { .key_bytes = 16, .n_areas = 1, .area_slots = 32, .max_slots = 32 };

	setup();
	c.salt = f.ns.index.salt;
	ck_assert_int_eq(lower_init(&lower, &c), 0);
	lower_area_add(&lower, 0, 32);
	f.ns.lower = &lower;
	f.ns.moving = calloc(2 * 32, 1);
	f.ns.kept = calloc(2 * 32, sizeof(*f.ns.kept));
	ck_assert(f.ns.moving && f.ns.kept);
}

static void teardown_lower(void)
{
	f.ns.lower = NULL;
	lower_check(&lower);
	lower_deinit(&lower);
	teardown();
}

/* As if the block of key @n had been written down. */
static void copy_down(uint32_t n)
{
	uint32_t slot = fixture_find(&f, n);
	struct lower_what what = { .key = f.ns.records[slot].key, .parent = f.ns.records[slot].parent, .sum = 5, .touch = 1 };

	block_set_sum(&f.ns, slot, 5);
	ck_assert_int_eq(lower_register(&lower, lower_take(&lower), &what), 0);
	f.ns.twins++;
}

/* The copy of key @n comes up again; @parent 0: nobody knows it. */
static int copy_up(uint32_t n, uint32_t parent, uint32_t *ret_slot)
{
	uint8_t key[KEY_MAX], parent_key[KEY_MAX];
	const struct lower_copy *c = lower_at(&lower, lower_find(&lower, fixture_key(n, key)));
	struct block_back back = { .key = c->key, .parent = c->parent, .sum = c->sum };
	uint32_t slot = ns_slot_take(&f.ns);
	int r;

	if (parent)
		back.parent_key = fixture_key(parent, parent_key);
	r = block_restore(&f.ns, slot, &back, ret_slot);
	if (r == 0)
		heat_place(&f.ns.heat, slot);
	else
		ns_slot_free(&f.ns, slot, SHM_PARTIAL);
	return r;
}

static void check_sums(void)
{
	ck_assert_uint_eq(f.ns.counts.stored,
	                  f.ns.n_used + lower.n_present - f.ns.twins + f.ns.counts.dropped + f.ns.counts.deduplicated);
}

START_TEST(a_block_below_is_neither_dropped_nor_stored_again)
{
	uint32_t slot;

	fixture_store(&h, 1, 0);
	copy_down(1);
	fixture_drop(&f, fixture_find(&f, 1));
	ck_assert_uint_eq(f.ns.twins, 0);
	ck_assert_uint_eq(f.ns.counts.dropped, 0);
	check_sums();
	ck_assert_int_eq(copy_up(1, 0, &slot), 0);
	ck_assert_uint_eq(fixture_find(&f, 1), slot);
	ck_assert_uint_eq(f.ns.records[slot].sum, 5);
	ck_assert_uint_eq(f.ns.twins, 1);
	ck_assert_uint_eq(f.ns.counts.stored, 1);
	check_sums();
	/* Twice: the first stays. */
	ck_assert_int_eq(copy_up(1, 0, &slot), BLOCK_E_EXISTS);
	ck_assert_uint_eq(fixture_find(&f, 1), slot);
	check_sums();
	/* Committed anew while it is only below: one block, twice stored. */
	fixture_drop(&f, slot);
	fixture_store(&h, 1, 0);
	ck_assert_uint_eq(f.ns.counts.stored, 2);
	ck_assert_uint_eq(f.ns.counts.deduplicated, 1);
	ck_assert_uint_eq(f.ns.twins, 1);
	check_sums();
	lower_forget(&lower, lower_find(&lower, f.ns.records[fixture_find(&f, 1)].key));
	f.ns.twins--;
	fixture_drop(&f, fixture_find(&f, 1));
	ck_assert_uint_eq(f.ns.counts.dropped, 1);
	check_sums();
}
END_TEST

START_TEST(what_comes_up_finds_its_parent)
{
	uint32_t parent, child;

	fixture_store(&h, 1, 0);
	fixture_store(&h, 2, 1);
	copy_down(1);
	copy_down(2);
	fixture_drop(&f, fixture_find(&f, 2));
	fixture_drop(&f, fixture_find(&f, 1));
	/* In order, in the other order, and where nobody knows the parent. */
	ck_assert_int_eq(copy_up(1, 0, &parent), 0);
	ck_assert_int_eq(copy_up(2, 1, &child), 0);
	ck_assert_uint_eq(block_parent(&f.ns, child), parent);
	ck_assert_uint_eq(children(parent), 1);
	fixture_drop(&f, child);
	fixture_drop(&f, parent);
	for (uint32_t known = 0; known < 2; known++) {
		ck_assert_int_eq(copy_up(2, known, &child), 0);
		ck_assert_uint_eq(block_parent(&f.ns, child), NS_NONE);
		ck_assert_int_eq(copy_up(1, 0, &parent), 0);
		ck_assert_uint_eq(block_parent(&f.ns, child), parent);
		ck_assert_uint_eq(children(parent), 1);
		fixture_drop(&f, child);
		ck_assert_uint_eq(children(parent), 0);
		fixture_drop(&f, parent);
	}
	lower_forget(&lower, 0);
	lower_forget(&lower, 1);
}
END_TEST

static uint32_t pick_down(void)
{
	uint64_t budget = 1000;
	uint32_t slot;

	return heat_pick_down(&f.ns.heat, &slot, &budget) ? slot : NS_NONE;
}

START_TEST(children_on_their_way_out_do_not_keep_their_parent)
{
	uint32_t a = fixture_store(&h, 1, 0), b = fixture_store(&h, 2, 1), c = fixture_store(&h, 3, 1), slot;
	uint64_t budget = 1000;

	ck_assert_uint_eq(pick_down(), b); /* the parent is looked at first, and parked */
	ck_assert_uint_eq(f.ns.blocks[a].leaving, 1);
	ck_assert_uint_eq(pick_down(), c);
	ck_assert_uint_eq(pick_down(), a);
	ck_assert_uint_eq(pick_down(), NS_NONE);
	heat_clean(&f.ns.heat, a);
	heat_clean(&f.ns.heat, b);
	/* To be dropped it waits for all of them. */
	ck_assert(heat_pick_ready(&f.ns.heat, &slot, &budget));
	ck_assert_uint_eq(slot, b);
	ck_assert_uint_eq(f.ns.blocks[a].leaving, 1);
	ck_assert(!heat_pick_ready(&f.ns.heat, &slot, &budget));
	fixture_drop(&f, b);
	heat_place(&f.ns.heat, c); /* could not be written */
	ck_assert_uint_eq(f.ns.blocks[a].leaving, 0);
	ck_assert_uint_eq(pick_down(), c);
	heat_clean(&f.ns.heat, c);
	ck_assert_uint_eq(f.ns.blocks[a].leaving, 1);
	/* Condemned where it is, and pardoned: it is counted as before. */
	block_condemn(&f.ns, c);
	block_pardon(&f.ns, c);
	ck_assert_uint_eq(f.ns.blocks[a].leaving, 1);
	ck_assert_uint_eq(children(a), 1);
	/* The parent goes first, by an administrator; its slot has another block. */
	fixture_drop(&f, a);
	a = fixture_store(&h, 4, 0);
	heat_unclean(&f.ns.heat, c);
	ck_assert_uint_eq(f.ns.blocks[a].leaving, 0);
	ck_assert(!(f.ns.blocks[c].heat.flags & HEAT_F_COUNTED));
}
END_TEST

int main(void)
{
	TCase *tc = tcase_create("block"), *twins = tcase_create("twins"), *below = tcase_create("below");
	TCase *const cases[] = { tc, twins, below };

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, registers_and_is_found);
	tcase_add_test(tc, a_key_has_one_block);
	tcase_add_test(tc, full_index_is_an_answer);
	tcase_add_test_raise_signal(tc, only_written_slots_register, SIGABRT);
	tcase_add_test(tc, record_check_covers_every_field);
	tcase_add_test(tc, record_check_differs_by_one_field);
	tcase_add_test(tc, condemned_is_unfindable_and_pardon_restores);
	tcase_add_test(tc, forgotten_frees_its_slot_and_tells_why);
	tcase_add_test_raise_signal(tc, condemning_twice_aborts, SIGABRT);
	tcase_add_test_raise_signal(tc, condemning_a_free_slot_aborts, SIGABRT);
	tcase_add_test_raise_signal(tc, forgetting_a_findable_block_aborts, SIGABRT);
	tcase_add_test(tc, last_child_unparks);
	tcase_add_test(tc, a_pardoned_victim_is_in_the_order_again);
	tcase_add_test(tc, nothing_is_left_of_a_namespace);
	tcase_add_test(tc, own_parent_is_a_root);
	tcase_add_test(tc, later_parent_takes_orphans_on);
	tcase_add_test(tc, parent_comes_back);
	tcase_add_test(tc, pardoned_orphan_stays_its_parents_child);
	tcase_add_test(tc, family_is_condemned_and_pardoned_together);
	tcase_add_test(tc, children_are_listed);
	tcase_add_loop_test(tc, kinship_as_counted_plainly, 0, 20);
	tcase_add_checked_fixture(below, setup_lower, teardown_lower);
	tcase_add_test(below, a_block_below_is_neither_dropped_nor_stored_again);
	tcase_add_test(below, what_comes_up_finds_its_parent);
	tcase_add_test(below, children_on_their_way_out_do_not_keep_their_parent);
	tcase_add_checked_fixture(twins, setup_long_keys, teardown);
	tcase_add_test(twins, twins_are_two_blocks);
	tcase_add_test(twins, twin_of_an_absent_parent_goes);
	tcase_add_loop_test(twins, one_twin_takes_orphans_on, 0, 2);
	return fixture_run_all("block", cases, 3);
}
