/* SPDX-License-Identifier: Apache-2.0 */
/* Unit tests of block/namespace.c: geometry for sizes of every kind, regions that come and go, slots and their generations, and
 * the fingerprint.
 */
#include "block/namespace.h"

#include "base/rng.h"
#include "tests/unit/block/fixture.h"

#define KIB (UINT64_C(1) << 10)
#define MIB (UINT64_C(1) << 20)

/* ---- geometry ---- */

struct range {
	uint64_t begin, end;
};

static int by_begin(const void *a, const void *b)
{
	const struct range *x = a, *y = b;

	return x->begin < y->begin ? -1 : x->begin > y->begin;
}

/* Every lane of every slot of a region of @size bytes lies in it, and no two have a byte in common: by the formula of proto/shm.h. */
static void check_region(const struct ns_geometry *g, uint64_t lane_bytes, uint32_t lanes, uint64_t size)
{
	uint64_t area;
	uint32_t n = ns_region_slots(g, lanes, size, &area), k = 0;
	struct range *ranges = malloc(((size_t)n * lanes + 1) * sizeof(*ranges));

	ck_assert_ptr_nonnull(ranges);
	for (uint32_t place = 0; place < n; place++) {
		for (uint32_t lane = 0; lane < lanes; lane++) {
			uint64_t begin = lane * area + place * g->lane_stride;

			ranges[k++] = (struct range){ begin, begin + lane_bytes };
		}
	}
	qsort(ranges, k, sizeof(*ranges), by_begin);
	for (uint32_t i = 0; i < k; i++) {
		assert(ranges[i].end <= size);
		assert(i == 0 || ranges[i - 1].end <= ranges[i].begin);
		assert(ranges[i].begin % 64 == 0 && (lane_bytes < 4096 || ranges[i].begin % 4096 == 0));
	}
	assert(lanes == 1 || area % 4096 == 0); /* lanes share no page */
	free(ranges);
}

static void check_geometry(uint64_t lane_bytes, uint32_t lanes, uint64_t region, uint64_t grain, uint64_t max)
{
	struct ns_geometry g;
	uint64_t area, left;

	if (ns_geometry(lane_bytes, lanes, region, grain, max, &g) != 0) {
		/* Not even one slot: or it would be too many numbers. */
		ck_assert(lane_bytes * lanes > max || lanes * 4096ull > max || max < grain ||
		          (lane_bytes * lanes + (lanes > 1 ? lanes * 4096 : 64) + grain > max));
		return;
	}
	ck_assert_uint_ge(g.lane_stride, lane_bytes);
	ck_assert_uint_lt(g.lane_stride, lane_bytes + (lane_bytes < 4096 ? 64 : 4096));
	ck_assert_uint_le(g.region_bytes, max);
	ck_assert_uint_ge(g.slots_per_region, 1);
	ck_assert_uint_eq(ns_region_slots(&g, lanes, g.region_bytes, &area), g.slots_per_region);
	ck_assert_uint_ge(1ull << g.shift, g.slots_per_region);
	ck_assert(g.shift == 0 || 1ull << (g.shift - 1) < g.slots_per_region);
	ck_assert_uint_ge(g.n_regions, max / g.region_bytes + 1);
	ck_assert_uint_le((uint64_t)g.n_regions << g.shift, UINT32_MAX / 2);
	left = max % g.region_bytes;
	ck_assert_uint_eq(g.max_slots, max / g.region_bytes * g.slots_per_region + ns_region_slots(&g, lanes, left, &area));
	check_region(&g, lane_bytes, lanes, g.region_bytes);
	check_region(&g, lane_bytes, lanes, left);
}

START_TEST(geometry_of_odd_sizes)
{
	static const uint64_t sizes[] = { 1, 63, 64, 65, 4095, 4096, 4097, 10000, 16 * KIB, 100001, 3 * MIB };
	static const uint32_t lanes[] = { 1, 2, 3, 8, 63, 64 };

	for (size_t l = 0; l < sizeof(lanes) / sizeof(*lanes); l++) {
		check_geometry(sizes[_i], lanes[l], 256 * KIB, 4096, 3 * MIB);
		check_geometry(sizes[_i], lanes[l], 1 * MIB, 64 * KIB, 10 * MIB);
		check_geometry(sizes[_i], lanes[l], 2 * MIB, 2 * MIB, 14 * MIB);
		check_geometry(sizes[_i], lanes[l], 64 * MIB, 4096, 5 * MIB + 4096);
	}
}
END_TEST

START_TEST(lanes_larger_than_a_region_make_it_larger)
{
	struct ns_geometry g;

	ck_assert_int_eq(ns_geometry(3 * MIB, 4, 2 * MIB, 2 * MIB, 64 * MIB, &g), 0);
	ck_assert_uint_ge(g.region_bytes, 12 * MIB);
	ck_assert_uint_eq(g.region_bytes % (2 * MIB), 0);
	ck_assert_uint_eq(g.max_slots, 5);
}
END_TEST

START_TEST(too_big_is_an_answer)
{
	struct ns_geometry g;

	ck_assert_int_eq(ns_geometry(2 * MIB, 1, MIB, 4096, 2 * MIB, &g), 0);
	ck_assert_int_eq(ns_geometry(2 * MIB + 1, 1, MIB, 4096, 2 * MIB, &g), NS_E_BIG);
	ck_assert_int_eq(ns_geometry(1, 64, MIB, 4096, 64 * 4096 - 1, &g), NS_E_BIG); /* each lane has its page */
	ck_assert_int_eq(ns_geometry(1, 64, MIB, 4096, 64 * 4096, &g), 0);
	ck_assert_uint_eq(g.slots_per_region, 64);
	ck_assert_int_eq(ns_geometry(64, 1, MIB, 4096, UINT64_C(1) << 40, &g), NS_E_BIG); /* more than there are numbers */
	ck_assert_int_eq(ns_geometry(16 * KIB, 1, 64 * MIB, 2 * MIB, UINT64_C(1) << 40, &g), 0);
}
END_TEST

START_TEST(nothing_to_store_aborts)
{
	struct ns_geometry g;

	ns_geometry(0, 1, MIB, 4096, MIB, &g);
}
END_TEST

/* A slot of three quarters of a region does not waste a quarter of the memory. */
START_TEST(little_is_wasted)
{
	for (uint64_t percent = 5; percent <= 100; percent += 5) {
		uint64_t lane_bytes = MIB * percent / 100 / 4096 * 4096, max = 400 * MIB;
		struct ns_geometry g;

		ck_assert_int_eq(ns_geometry(lane_bytes, 1, MIB, 4096, max, &g), 0);
		ck_assert_msg(g.max_slots * lane_bytes > max * 84 / 100, "%llu %%: %u slots",
		              (unsigned long long)percent, g.max_slots);
	}
}
END_TEST

/* The conversation trace at 5 %: 9,140 blocks of 16 KiB; whatever the pages are, nearly all of that is blocks. */
START_TEST(nearly_all_memory_is_blocks)
{
	static const uint64_t grains[] = { 4 * KIB, 64 * KIB, 2 * MIB };
	uint64_t grain = grains[_i], max = 9140 * 16 * KIB / grain * grain;

	for (uint64_t region = 2 * MIB; region <= 64 * MIB; region *= 2) {
		struct ns_geometry g;

		ck_assert_int_eq(ns_geometry(16 * KIB, 1, region, grain, max, &g), 0);
		ck_assert_uint_ge(g.max_slots, 9000);
	}
}
END_TEST

/* ---- fingerprint ---- */

START_TEST(every_field_is_in_the_fingerprint)
{
	struct ns_desc base = fixture_desc(2, 16);
	uint8_t prints[20][16];
	uint32_t n = 0;

	for (uint32_t field = 0; field < 14; field++) {
		struct ns_desc d = base;
		char *const strings[] = { d.name, d.model, d.hash_algo, d.salt };
		uint32_t *const numbers[] = { &d.num_layers, &d.page_size, &d.inner_dim, &d.outer_dim,
			                      &d.dtype,      &d.layout,    &d.lanes,     &d.key_bytes };

		if (field < 4)
			strcat(strings[field], "x");
		else if (field < 12)
			(*numbers[field - 4])++;
		else if (field == 12)
			d.lane_bytes++;
		ns_fingerprint(&d, prints[n++]);
	}
	{
		struct ns_desc d = base; /* the same letters, cut elsewhere */

		strcpy(d.name, "testm");
		strcpy(d.model, "odel");
		ns_fingerprint(&d, prints[n++]);
	}
	for (uint32_t i = 0; i < n; i++)
		for (uint32_t k = 0; k < i; k++)
			ck_assert_mem_ne(prints[i], prints[k], 16);
	ns_fingerprint(&base, prints[n]);
	ck_assert_mem_eq(prints[n], prints[13], 16); /* that one changed nothing */
}
END_TEST

/* Behind a string's end nothing counts; whether readers compare keys is no property of the blocks. */
START_TEST(the_rest_is_not_in_the_fingerprint)
{
	struct ns_desc a = fixture_desc(1, 16), b = a;
	uint8_t x[16], y[16];

	memset(b.salt + 1, 'z', sizeof(b.salt) - 2);
	ns_fingerprint(&a, x);
	ns_fingerprint(&b, y);
	ck_assert_mem_eq(x, y, 16);
	b.confirm = true; /* who wants keys compared must not meet one who does not */
	ns_fingerprint(&b, y);
	ck_assert_mem_ne(x, y, 16);
}
END_TEST

/* ---- regions and slots ---- */

static struct fixture f;

static void setup(void)
{
	fixture_open(&f, fixture_desc(1, 16), 3, 20);
}

static void teardown(void)
{
	fixture_close(&f);
}

static void give(uint32_t slot)
{
	ns_slot_free(&f.ns, slot, SHM_PARTIAL);
}

START_TEST(header_says_what_is_there)
{
	const struct shm_ns *s = f.ns.shm;
	uint64_t offset;

	ck_assert_uint_eq(s->magic, SHM_MAGIC);
	ck_assert_uint_eq(s->version, SHM_VERSION);
	ck_assert_uint_eq(s->boot_id, 9);
	ck_assert_uint_eq(s->lane_bytes, FIXTURE_LANE);
	ck_assert_uint_eq(s->lane_stride, f.geo.lane_stride);
	ck_assert_uint_eq(s->n_slots, f.geo.n_regions << f.geo.shift);
	ck_assert_uint_eq(s->n_regions, f.geo.n_regions);
	ck_assert_uint_eq(s->region_shift, 5);
	ck_assert_uint_eq(s->lanes, 1);
	ck_assert_uint_eq(s->key_bytes, 16);
	ck_assert_uint_eq(s->confirm, 0);
	ck_assert_mem_eq(s->salt, f.memory.salt, sizeof(s->salt));
	shm_ns_bytes(s->n_regions, s->n_lines, &offset);
	ck_assert_uint_eq(s->lines_offset, offset);
	ck_assert_ptr_eq(f.ns.index.lines, (const uint8_t *)s + offset);
	ck_assert_uint_eq(atomic_load(&s->clock), f.ns.heat.clock);
	ck_assert_uint_eq(f.ns.heat.grace_limit, 6);
	for (uint32_t r = 0; r < 3; r++) {
		ck_assert_uint_eq(atomic_load(&s->regions[r].serial), r + 1);
		ck_assert_uint_eq(s->regions[r].n_slots, 20);
		ck_assert_uint_eq(s->regions[r].size, 20 * FIXTURE_LANE);
		ck_assert_uint_eq(s->regions[r].lane_area, 20 * FIXTURE_LANE);
	}
}
END_TEST

START_TEST(every_slot_is_handed_out_once)
{
	bool taken[256] = { false };

	ck_assert_uint_eq(f.ns.n_free, 60);
	for (uint32_t i = 0; i < 60; i++) {
		uint32_t slot = ns_slot_take(&f.ns);

		ck_assert(ns_slot_valid(&f.ns, slot));
		ck_assert(!taken[slot]);
		taken[slot] = true;
		ck_assert_uint_eq(ns_slot_generation(&f.ns, slot), 1);
		ck_assert_uint_eq(ns_slot_state(&f.ns, slot), SHM_PARTIAL);
	}
	ck_assert_uint_eq(f.ns.n_free, 0);
	ck_assert_uint_eq(f.ns.n_partial, 60);
	for (uint32_t slot = 0; slot < 256; slot++)
		if (taken[slot])
			give(slot);
	ck_assert_uint_eq(f.ns.n_free, 60);
	ck_assert_uint_eq(f.ns.n_partial, 0);
}
END_TEST

START_TEST(taking_from_nothing_aborts)
{
	for (uint32_t i = 0; i < 61; i++)
		ns_slot_take(&f.ns);
}
END_TEST

START_TEST(slots_outside_are_not_valid)
{
	ck_assert(ns_slot_valid(&f.ns, 19));
	ck_assert(!ns_slot_valid(&f.ns, 20)); /* behind the last of region 0 */
	ck_assert(ns_slot_valid(&f.ns, 32));
	ck_assert(!ns_slot_valid(&f.ns, 3 << 5)); /* no region there */
	ck_assert(!ns_slot_valid(&f.ns, f.geo.n_regions << 5));
	ck_assert(!ns_slot_valid(&f.ns, NS_NONE));
}
END_TEST

/* 0 and 2^32-1 mean "empty" and "tombstone". */
START_TEST(generations_pass_over_the_special_ones)
{
	uint32_t slot = ns_slot_take(&f.ns);

	give(slot);
	atomic_store(&f.ns.records[slot].generation, UINT32_MAX - 2);
	ck_assert_uint_eq(ns_slot_take(&f.ns), slot);
	ck_assert_uint_eq(ns_slot_generation(&f.ns, slot), UINT32_MAX - 1);
	give(slot);
	ck_assert_uint_eq(ns_slot_take(&f.ns), slot);
	ck_assert_uint_eq(ns_slot_generation(&f.ns, slot), 1);
	give(slot);
}
END_TEST

START_TEST(quarantine_is_counted)
{
	uint32_t slot = ns_slot_take(&f.ns);

	ns_slot_quarantine(&f.ns, slot);
	ck_assert_uint_eq(f.ns.n_partial, 0);
	ck_assert_uint_eq(f.ns.n_quarantined, 1);
	ck_assert_uint_eq(f.ns.n_free, 59);
	ns_slot_free(&f.ns, slot, SHM_QUARANTINE);
	ck_assert_uint_eq(f.ns.n_quarantined, 0);
	ck_assert_uint_eq(f.ns.n_free, 60);
}
END_TEST

START_TEST(freeing_as_something_else_aborts)
{
	ns_slot_free(&f.ns, ns_slot_take(&f.ns), SHM_QUARANTINE);
}
END_TEST

START_TEST(quarantining_a_free_slot_aborts)
{
	ns_slot_quarantine(&f.ns, 0);
}
END_TEST

START_TEST(a_region_goes_and_comes_back)
{
	uint32_t slot = ns_slot_take(&f.ns), generation;

	give(slot);
	generation = ns_slot_generation(&f.ns, slot);
	ns_region_remove(&f.ns, 0);
	ck_assert_uint_eq(f.ns.n_slots, 40);
	ck_assert_uint_eq(f.ns.n_free, 40);
	ck_assert(!ns_slot_valid(&f.ns, slot));
	ck_assert_uint_eq(atomic_load(&f.ns.shm->regions[0].serial), 0);
	ck_assert_uint_eq(ns_region_of(&f.ns, ns_slot_take(&f.ns)), 1);
	give(1 << 5);
	ck_assert_uint_eq(ns_region_add(&f.ns, 20 * FIXTURE_LANE), 0);
	ck_assert_uint_eq(atomic_load(&f.ns.shm->regions[0].serial), 4);
	ck_assert_uint_eq(f.ns.n_free, 60);
	ck_assert_uint_eq(ns_slot_take(&f.ns), slot);
	ck_assert_uint_gt(ns_slot_generation(&f.ns, slot), generation); /* whoever remembers the old one is not fooled */
	give(slot);
}
END_TEST

START_TEST(removing_a_region_in_use_aborts)
{
	ns_region_remove(&f.ns, ns_region_of(&f.ns, ns_slot_take(&f.ns)));
}
END_TEST

START_TEST(draining_regions_hand_out_nothing)
{
	uint32_t slot = ns_slot_take(&f.ns), rest[40];

	ck_assert_uint_eq(ns_region_of(&f.ns, slot), 0);
	ns_region_drain(&f.ns, 0, true);
	ck_assert_uint_eq(f.ns.n_free, 40);
	give(slot);
	ck_assert_uint_eq(f.ns.n_free, 40);
	for (uint32_t i = 0; i < 40; i++) {
		rest[i] = ns_slot_take(&f.ns);
		ck_assert_uint_ne(ns_region_of(&f.ns, rest[i]), 0);
	}
	ck_assert_uint_eq(f.ns.n_free, 0);
	ns_region_drain(&f.ns, 0, false);
	ck_assert_uint_eq(f.ns.n_free, 20);
	ck_assert_uint_eq(ns_region_of(&f.ns, ns_slot_take(&f.ns)), 0);
	give(slot);
	for (uint32_t i = 0; i < 40; i++)
		give(rest[i]);
	ns_region_drain(&f.ns, 1, true);
	ns_region_remove(&f.ns, 1);
	ck_assert_uint_eq(f.ns.n_free, 40);
	ck_assert_uint_eq(f.ns.n_slots, 40);
}
END_TEST

START_TEST(draining_twice_aborts)
{
	ns_region_drain(&f.ns, 0, true);
	ns_region_drain(&f.ns, 0, true);
}
END_TEST

/* The table has room for short regions; what index and heat are sized for is not exceeded. */
START_TEST(regions_beyond_the_budget_have_no_slots)
{
	uint32_t r, n = 0;

	while ((r = ns_region_add(&f.ns, 20 * FIXTURE_LANE)) != NS_NONE) {
		ck_assert_uint_eq(f.ns.regions[r].n_slots, 0);
		n++;
	}
	ck_assert_uint_eq(n, f.geo.n_regions - 3);
	ck_assert_uint_eq(f.ns.n_slots, f.geo.max_slots);
	for (r = 3; r < 3 + n; r++)
		ns_region_remove(&f.ns, r);
	ns_region_remove(&f.ns, 2);
	ck_assert_uint_eq(ns_region_add(&f.ns, 7 * FIXTURE_LANE), 2); /* a short one */
	ck_assert_uint_eq(f.ns.regions[2].n_slots, 7);
	ck_assert_uint_eq(ns_region_add(&f.ns, 20 * FIXTURE_LANE), 3);
	ck_assert_uint_eq(f.ns.regions[3].n_slots, 13);
}
END_TEST

/* A region may be larger than was asked for: slots beyond the numbers it has are not used. */
START_TEST(large_regions_have_as_many_slots_as_numbers)
{
	for (uint32_t r = 0; r < 3; r++)
		ns_region_remove(&f.ns, r);
	ck_assert_uint_eq(f.ns.n_slots, 0);
	ck_assert_uint_eq(ns_region_add(&f.ns, 100 * FIXTURE_LANE), 0);
	ck_assert_uint_eq(f.ns.n_slots, 1u << f.geo.shift);
	ck_assert(!ns_slot_valid(&f.ns, 1u << f.geo.shift));
}
END_TEST

START_TEST(memory_is_counted)
{
	uint64_t before = ns_metadata_bytes(&f.ns);

	ck_assert_uint_ge(before, 60 * 92 + f.ns.index.n_lines * 64);
	ns_region_remove(&f.ns, 2);
	ck_assert_uint_eq(before - ns_metadata_bytes(&f.ns), 20 * (sizeof(struct shm_record) + sizeof(struct block)));
	ck_assert_uint_le(sizeof(struct block), 32);
}
END_TEST

START_TEST(closing_with_a_writer_aborts)
{
	ns_slot_take(&f.ns);
	ns_deinit(&f.ns);
}
END_TEST

START_TEST(readers_are_told_that_it_is_gone)
{
	ck_assert_uint_eq(atomic_load(&f.ns.shm->closed), 0);
	ns_deinit(&f.ns);
	ck_assert_uint_eq(atomic_load(&f.memory.shm->closed), 1);
	ck_assert_int_eq(ns_init(&f.ns, &f.desc, &f.geo, &f.memory), 0);
}
END_TEST

START_TEST(random_slots)
{
	uint32_t slots[60], n = 0;
	struct rng rng;

	rng_init(&rng, (uint64_t)_i);
	for (int step = 0; step < 500; step++) {
		uint32_t r = (uint32_t)rng_below(&rng, 3);
		struct ns_region *region = &f.ns.regions[r];

		if (rng_chance(&rng, 55)) {
			if (f.ns.n_free) {
				slots[n] = ns_slot_take(&f.ns);
				assert(!f.ns.regions[ns_region_of(&f.ns, slots[n])].draining);
				n++;
			}
		} else if (n && rng_chance(&rng, 90)) {
			uint32_t i = (uint32_t)rng_below(&rng, n);

			give(slots[i]);
			slots[i] = slots[--n];
		} else if (!region->serial) {
			assert(ns_region_add(&f.ns, rng_range(&rng, 1, 20) * FIXTURE_LANE) != NS_NONE);
		} else if (region->n_free == region->n_slots) {
			ns_region_remove(&f.ns, r);
		} else {
			ns_region_drain(&f.ns, r, !region->draining);
		}
		assert(n == f.ns.n_partial);
	}
	while (n)
		give(slots[--n]);
}
END_TEST

int main(void)
{
	TCase *tc = tcase_create("numbers"), *slots = tcase_create("slots");

	tcase_add_loop_test(tc, geometry_of_odd_sizes, 0, 11);
	tcase_add_test(tc, lanes_larger_than_a_region_make_it_larger);
	tcase_add_test(tc, too_big_is_an_answer);
	tcase_add_test_raise_signal(tc, nothing_to_store_aborts, SIGABRT);
	tcase_add_test(tc, little_is_wasted);
	tcase_add_loop_test(tc, nearly_all_memory_is_blocks, 0, 3);
	tcase_add_test(tc, every_field_is_in_the_fingerprint);
	tcase_add_test(tc, the_rest_is_not_in_the_fingerprint);
	tcase_add_checked_fixture(slots, setup, teardown);
	tcase_add_test(slots, header_says_what_is_there);
	tcase_add_test(slots, every_slot_is_handed_out_once);
	tcase_add_test_raise_signal(slots, taking_from_nothing_aborts, SIGABRT);
	tcase_add_test(slots, slots_outside_are_not_valid);
	tcase_add_test(slots, generations_pass_over_the_special_ones);
	tcase_add_test(slots, quarantine_is_counted);
	tcase_add_test_raise_signal(slots, freeing_as_something_else_aborts, SIGABRT);
	tcase_add_test_raise_signal(slots, quarantining_a_free_slot_aborts, SIGABRT);
	tcase_add_test(slots, a_region_goes_and_comes_back);
	tcase_add_test_raise_signal(slots, removing_a_region_in_use_aborts, SIGABRT);
	tcase_add_test(slots, draining_regions_hand_out_nothing);
	tcase_add_test_raise_signal(slots, draining_twice_aborts, SIGABRT);
	tcase_add_test(slots, regions_beyond_the_budget_have_no_slots);
	tcase_add_test(slots, large_regions_have_as_many_slots_as_numbers);
	tcase_add_test(slots, memory_is_counted);
	tcase_add_test_raise_signal(slots, closing_with_a_writer_aborts, SIGABRT);
	tcase_add_test(slots, readers_are_told_that_it_is_gone);
	tcase_add_loop_test(slots, random_slots, 0, 5);
	return fixture_run("namespace", tc, slots);
}
