/* SPDX-License-Identifier: Apache-2.0 */
/* move/transfer.c and store_lower.c: what is on the drive is what was committed, or nobody sees it; whose the areas are; and what comes back after the
 * store has ended.
 */
#include "tests/unit/move/onboard_fixture.h"

static struct low l;
static struct holder *h;

static void setup_below(void)
{
	low_new(&l, 4, 8, 32);
	h = low_attach(&l, "a");
}

static void teardown_below(void)
{
	low_verify_all(h);
	fix_close(h);
	low_free(&l);
}

/* ---- bytes ---- */

/* Brings one up and lets it go; its status. */
static uint8_t fetch(uint64_t key)
{
	struct low_onboard b;

	if (low_onboard(&l, h, &b, key, 1) == STORE_E_WAIT) {
		low_settle(&l);
		ck_assert_uint_eq(b.done, 1);
	}
	low_onboard_end(&l, h, &b);
	return b.status[0];
}

START_TEST(a_wrong_write_is_a_miss_later)
{
	static const enum fake_lower_fault faults[] = { FAKE_LOWER_CORRUPT, FAKE_LOWER_ASTRAY };
	uint32_t done = 0;

	setup_below();
	fake_lower_fail(l.t, true, faults[_i], 3, 4);
	low_put_below(&l, h, 1, 16);
	for (uint64_t key = 1; key <= 16; key++) {
		uint8_t status = fetch(key);

		ck_assert(status == STORE_ONBOARD_DONE || status == STORE_ONBOARD_FAILED);
		done += status == STORE_ONBOARD_DONE;
		ck_assert((low_tiers(h, key) != 0) == (status == STORE_ONBOARD_DONE));
	}
	ck_assert_uint_ge(done, 11);
	ck_assert_uint_lt(done, 16);
	teardown_below();
}
END_TEST

START_TEST(a_flipped_byte_is_a_miss)
{
	setup_below();
	low_put_below(&l, h, 1, 8);
	for (uint32_t place = 0; place < 4; place++)
		fake_lower_flip(l.t, 0, place);
	for (uint64_t key = 1; key <= 8; key++)
		ck_assert_uint_eq(fetch(key), key <= 4 ? STORE_ONBOARD_FAILED : STORE_ONBOARD_DONE);
	ck_assert_uint_eq(metrics_get(METRIC_checksum_errors), 4);
	teardown_below();
}
END_TEST

/* The bytes of a registered block changed in host memory before it was written: the checksum of its commit says so. */
START_TEST(the_checksum_is_of_the_commit)
{
	setup_below();
	low_put(&l, h, 1, 4);
	low_settle(&l);
	*low_bytes(h, fix_has(&l.f, h, 2) ? block_find(low_ns(h), (const uint8_t *)&(uint64_t){ 2 }) : 0) ^= 1;
	low_put(&l, h, 101, 20);
	low_settle(&l);
	ck_assert_uint_eq(fetch(2), STORE_ONBOARD_FAILED);
	ck_assert_uint_eq(fetch(3), STORE_ONBOARD_DONE);
	teardown_below();
}
END_TEST

static uint32_t moving(const struct ns *ns)
{
	uint32_t n = 0;

	for (uint32_t slot = 0; slot < ns->geo.n_regions << ns->geo.shift; slot++)
		n += ns->moving[slot];
	return n;
}

/* Whoever waits for a checksum (of a block that was read) does not stand behind all that was stored just now: of that a MiB is begun for each worker. */
START_TEST(what_was_stored_is_summed_little_by_little)
{
	uint32_t summed = 0;

	low_new(&l, 8, 8, 32);
	h = low_attach(&l, "a");
	l.f.store->config.calculator.at_once = 2;
	low_put(&l, h, 1, 24);
	ck_assert_uint_eq(fake_sums_waiting(l.sums), 2);
	ck_assert_uint_le(moving(low_ns(h)), 2 * 4);
	while (fake_sums_release(l.sums)) {
		ck_assert_uint_le(fake_sums_waiting(l.sums), 2);
		ck_assert_uint_le(moving(low_ns(h)), 2 * 4);
	}
	for (uint64_t key = 1; key <= 24; key++)
		summed += low_ns(h)->records[block_find(low_ns(h), (const uint8_t *)&key)].sum != 0;
	ck_assert_uint_eq(summed, 24);
	teardown_below();
}
END_TEST

START_TEST(a_block_is_written_once_however_often_it_comes_and_goes)
{
	uint64_t writes;

	setup_below();
	low_put_below(&l, h, 1, 4);
	for (int round = 0; round < 5; round++) {
		for (uint64_t key = 1; key <= 4; key++)
			ck_assert_uint_eq(fetch(key), STORE_ONBOARD_DONE);
		low_put(&l, h, 5000 + 100 * (uint64_t)round, 20);
		low_settle(&l);
		ck_assert_uint_eq(low_count(h, 1, 4, STORE_IN_G2), 0);
	}
	writes = fake_lower_writes(l.t);
	ck_assert_uint_le(writes, 4 + 16 + 100);
	teardown_below();
}
END_TEST

START_TEST(lanes_are_copied_each_to_its_place)
{
	struct low_onboard b;
	struct holder *lanes;
	uint64_t keys[12];

	setup_below();
	lanes = fix_attach(&l.f, "b", 4, LOW_BLOCK / 4);
	for (uint64_t key = 1; key <= 12; key++) {
		struct tier_region *region;
		uint32_t slot;

		low_reserve(&l, lanes, key, 1);
		slot = l.f.slots[0];
		region = &store_ns_of(lanes)->memory[ns_region_of(low_ns(lanes), slot)];
		for (uint32_t lane = 0; lane < 4; lane++) {
			uint8_t *at = (uint8_t *)region->base + lane * low_ns(lanes)->shm->regions[0].lane_area +
			              (slot & ((1u << low_ns(lanes)->geo.shift) - 1)) * low_ns(lanes)->geo.lane_stride;

			memset(at, (int)(key * 4 + lane), 8);
			memset(at + LOW_BLOCK / 4 - 8, (int)(key * 4 + lane), 8);
		}
		ck_assert_int_eq(fix_commit(&l.f, lanes, STORE_ALL_LANES, key, 1, 0), 0);
	}
	fix_keys(1, 12, keys);
	low_put(&l, lanes, 100, 0);
	for (uint64_t key = 101; key <= 120; key++) {
		low_reserve(&l, lanes, key, 1);
		ck_assert_int_eq(fix_commit(&l.f, lanes, STORE_ALL_LANES, key, 1, 0), 0);
	}
	low_settle(&l);
	ck_assert_uint_eq(low_count(lanes, 1, 12, STORE_IN_G3), 12);
	ck_assert_int_eq(low_onboard(&l, lanes, &b, 1, 12), STORE_E_WAIT);
	low_settle(&l);
	ck_assert_uint_eq(b.o.hits, 12);
	for (uint64_t key = 1; key <= 12; key++) {
		uint32_t slot = b.slots[key - 1];
		const struct tier_region *region = &store_ns_of(lanes)->memory[ns_region_of(low_ns(lanes), slot)];

		for (uint32_t lane = 0; lane < 4; lane++) {
			const uint8_t *at = (const uint8_t *)region->base +
			                    lane * low_ns(lanes)->shm->regions[ns_region_of(low_ns(lanes), slot)].lane_area +
			                    (slot & ((1u << low_ns(lanes)->geo.shift) - 1)) * low_ns(lanes)->geo.lane_stride;

			ck_assert_uint_eq(at[0], key * 4 + lane);
			ck_assert_uint_eq(at[LOW_BLOCK / 4 - 1], key * 4 + lane);
		}
	}
	ck_assert_int_eq(store_release(lanes, b.slots, b.generations, 12), 0);
	fix_close(lanes);
	teardown_below();
}
END_TEST

/* ---- areas ---- */

static uint32_t areas_of(struct holder *holder)
{
	return store_ns_of(holder)->lower_areas;
}

static void put_much(struct holder *holder, uint64_t first, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		low_put(&l, holder, first + i, 1);
	low_settle(&l);
}

START_TEST(areas_go_to_who_is_under_its_share)
{
	struct holder *b;

	low_new(&l, 8, 8, 8);
	l.f.policies[1].lower_share_bytes = 4 * 8 * LOW_BLOCK;
	h = low_attach(&l, "a");
	put_much(h, 1, 120);
	ck_assert_uint_eq(areas_of(h), 8);
	b = low_attach(&l, "b");
	put_much(b, 1, 120);
	ck_assert_uint_eq(areas_of(b), 6); /* what is over the shares is divided evenly */
	ck_assert_uint_eq(areas_of(h), 2);
	/* The other does not get them back, and neither grows at the other's cost. */
	put_much(h, 1001, 120);
	put_much(b, 1001, 120);
	ck_assert_uint_ge(areas_of(b), 4);
	ck_assert_uint_eq(areas_of(h) + areas_of(b), 8);
	ck_assert_uint_gt(low_count(b, 1001, 64, STORE_IN_G3) + low_count(b, 1065, 56, STORE_IN_G3), 24);
	fix_close(b);
	teardown_below();
}
END_TEST

START_TEST(two_without_shares_do_not_play_ping_pong_below)
{
	struct holder *b;
	uint32_t have;

	low_new(&l, 8, 8, 4);
	h = low_attach(&l, "a");
	put_much(h, 1, 80);
	b = low_attach(&l, "b");
	put_much(b, 1, 80);
	have = areas_of(h);
	ck_assert_uint_ge(have, 3);
	ck_assert_uint_le(have, 5);
	for (uint64_t round = 1; round < 10; round++) {
		put_much(h, 1000 * round, 12);
		put_much(b, 1000 * round, 12);
		ck_assert_uint_eq(areas_of(h), have);
	}
	fix_close(b);
	teardown_below();
}
END_TEST

START_TEST(the_maximum_is_kept)
{
	low_new(&l, 4, 8, 8);
	l.f.policies[0].lower_max_bytes = 2 * 8 * LOW_BLOCK;
	h = low_attach(&l, "a");
	put_much(h, 1, 100);
	ck_assert_uint_eq(areas_of(h), 2);
	ck_assert_uint_eq(l.t->ops->areas_free(l.t), 6);
	ck_assert_uint_eq(fake_lower_valid(l.t), 16);
	teardown_below();
}
END_TEST

START_TEST(a_removed_namespace_gives_its_areas_back)
{
	struct holder *b;
	uint32_t dropped;

	low_new(&l, 8, 8, 8);
	h = low_attach(&l, "a");
	b = low_attach(&l, "b");
	put_much(b, 1, 80);
	ck_assert_uint_gt(areas_of(b), 0);
	low_put(&l, b, 1000, 8);
	fix_close(b);
	if (store_is_moving(l.f.store))
		ck_assert_int_eq(store_remove(l.f.store, "b", &dropped), STORE_E_LIMIT);
	low_settle(&l);
	ck_assert_int_eq(store_remove(l.f.store, "b", &dropped), 0);
	ck_assert_uint_gt(dropped, 32);
	ck_assert_uint_eq(l.t->ops->areas_free(l.t), 8 - areas_of(h));
	ck_assert_uint_eq(fake_lower_valid(l.t), 0);
	put_much(h, 1, 80);
	teardown_below();
}
END_TEST

START_TEST(an_area_in_use_is_not_taken)
{
	struct low_onboard b;
	struct holder *other;

	low_new(&l, 8, 1, 32);
	l.f.policies[1].lower_share_bytes = 32 * LOW_BLOCK;
	h = low_attach(&l, "a");
	low_put(&l, h, 1, 8);
	low_put(&l, h, 1000000, 32);
	low_settle(&l);
	ck_assert_uint_eq(low_count(h, 1, 8, STORE_IN_G2), 0);
	fake_lower_fail(l.t, false, FAKE_LOWER_STUCK, 1, 1);
	ck_assert_int_eq(low_onboard(&l, h, &b, 1, 1), STORE_E_WAIT);
	other = low_attach(&l, "b");
	low_put(&l, other, 1, 40); /* does without */
	low_settle(&l);
	ck_assert_uint_eq(areas_of(other), 0);
	fake_lower_unstick(l.t);
	low_settle(&l);
	ck_assert_uint_eq(b.o.hits, 1);
	low_onboard_end(&l, h, &b);
	low_put(&l, other, 1001, 40);
	low_settle(&l);
	ck_assert_uint_eq(areas_of(other), 1);
	ck_assert_uint_eq(areas_of(h), 0);
	/* What was clean here because of its copy there is not any more. */
	ck_assert_uint_eq(low_ns(h)->twins, 0);
	fix_close(other);
	teardown_below();
}
END_TEST

/* ---- lives ---- */

static void restart(bool clean)
{
	low_stop(&l);
	fake_lower_restart(l.t);
	low_start(&l);
	fake_lower_recover(l.t, NULL, clean);
	store_check(l.f.store);
}

START_TEST(everything_below_comes_back)
{
	uint32_t below;

	setup_below();
	low_put(&l, h, 1, 60);
	low_settle(&l);
	below = low_count(h, 1, 60, STORE_IN_G3);
	ck_assert_uint_ge(below, 44);
	fix_close(h);
	restart(true);
	ck_assert_uint_eq(metrics_get(METRIC_blocks_recovered), below);
	h = low_attach(&l, "a");
	ck_assert_uint_eq(low_count(h, 1, 60, STORE_IN_G3), below);
	ck_assert_uint_eq(low_ns(h)->lower->n_present, below);
	for (uint64_t key = 1; key <= below; key++)
		ck_assert_uint_eq(fetch(key), STORE_ONBOARD_DONE);
	/* And the other way round: once more. */
	fix_close(h);
	restart(true);
	h = low_attach(&l, "a");
	ck_assert_uint_ge(low_count(h, 1, 60, STORE_IN_G3), below);
	teardown_below();
}
END_TEST

START_TEST(what_was_cold_is_cold_after_a_restart)
{
	struct rng rng;
	uint32_t below, gone;

	rng_init(&rng, 7);
	low_new(&l, 4, 2, 32);
	h = low_attach(&l, "a");
	low_put(&l, h, 1, 60);
	low_settle(&l);
	fix_close(h);
	low_stop(&l);
	fake_lower_restart(l.t);
	low_start(&l);
	fake_lower_recover(l.t, &rng, true);
	h = low_attach(&l, "a");
	below = low_ns(h)->lower->n_present;
	for (uint64_t key = 1; key <= 4; key++)
		ck_assert_uint_eq(fetch(key), STORE_ONBOARD_DONE);
	low_put(&l, h, 201, 60);
	low_settle(&l);
	/* So many had to go, of those that were not used since. */
	gone = below + 48 - 64;
	ck_assert_uint_eq(low_count(h, 1, 4, STORE_IN_G3), 4);
	ck_assert_uint_eq(low_count(h, 5, gone - 6, STORE_IN_G3), 0);
	ck_assert_uint_eq(low_count(h, 5 + gone, below - gone - 4, STORE_IN_G3), below - gone - 4);
	teardown_below();
}
END_TEST

START_TEST(who_attached_before_recovery_keeps_everything)
{
	uint32_t below;

	setup_below();
	low_put(&l, h, 1, 60);
	low_settle(&l);
	below = low_count(h, 1, 60, STORE_IN_G3);
	fix_close(h);
	low_stop(&l);
	fake_lower_restart(l.t);
	low_start(&l);
	h = low_attach(&l, "a");
	ck_assert_int_eq(fix_reserve(&l.f, h, 0, 1, 4), 0); /* served meanwhile */
	low_commit(&l, h, 1, 4, 0);
	fake_lower_recover(l.t, NULL, false);
	store_check(l.f.store);
	ck_assert_uint_eq(low_count(h, 1, 60, STORE_IN_G3), below);
	ck_assert_uint_eq(low_ns(h)->twins, 4);
	for (uint64_t key = 1; key <= below; key++)
		ck_assert_uint_eq(fetch(key), STORE_ONBOARD_DONE);
	teardown_below();
}
END_TEST

START_TEST(another_layout_of_that_name_is_not_mixed_up)
{
	setup_below();
	low_put(&l, h, 1, 40);
	low_settle(&l);
	fix_close(h);
	low_stop(&l);
	fake_lower_restart(l.t);
	low_start(&l);
	h = fix_attach(&l.f, "a", 2, LOW_BLOCK / 2);
	fake_lower_recover(l.t, NULL, true);
	store_check(l.f.store);
	ck_assert_uint_eq(low_anywhere(h, 1, 40), 0);
	ck_assert_uint_eq(l.t->ops->areas_free(l.t), 8);
	fix_close(h);
	low_free(&l);
}
END_TEST

/* Killed at every step of a busy life: what comes back is right, or a miss. */
START_TEST(killed_at_any_time)
{
	struct rng rng;

	rng_init(&rng, 11);
	for (unsigned steps = 0; steps < 120; steps++) {
		uint32_t wrong = 0, right = 0;

		low_new(&l, 4, 4, 16);
		h = low_attach(&l, "a");
		for (uint64_t key = 1; key <= 60; key++) {
			low_put(&l, h, key, 1);
			if (key * 2 == steps || key * 2 + 1 == steps)
				break;
			if (steps % 2)
				fake_lower_release_any(l.t, &rng);
		}
		fake_lower_crash(l.t, &rng);
		fix_close(h);
		restart(false);
		h = low_attach(&l, "a");
		for (uint64_t key = 1; key <= 60; key++) {
			uint8_t tiers = low_tiers(h, key), status = fetch(key);

			ck_assert(tiers ? status == STORE_ONBOARD_DONE || status == STORE_ONBOARD_FAILED
			                : status == STORE_ONBOARD_MISSING);
			wrong += status == STORE_ONBOARD_FAILED;
			right += status == STORE_ONBOARD_DONE;
		}
		low_verify_all(h);
		ck_assert_uint_le(wrong, 8);
		ck_assert(steps < 100 || right > 30);
		teardown_below();
	}
}
END_TEST

START_TEST(a_clean_end_gives_nothing_up)
{
	struct low_onboard b;
	uint32_t valid;

	setup_below();
	low_put_below(&l, h, 1, 8);
	ck_assert_int_eq(low_onboard(&l, h, &b, 1, 4), STORE_E_WAIT);
	valid = fake_lower_valid(l.t);
	store_stop_moving(l.f.store);
	ck_assert_uint_eq(b.done, 1);
	low_onboard_end(&l, h, &b);
	ck_assert(store_is_moving(l.f.store));
	low_settle(&l);
	ck_assert(!store_is_moving(l.f.store));
	fix_close(h);
	restart(true);
	ck_assert_uint_ge(fake_lower_valid(l.t), valid);
	h = low_attach(&l, "a");
	ck_assert_uint_eq(low_count(h, 1, 8, STORE_IN_G3), 8);
	teardown_below();
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {
		a_flipped_byte_is_a_miss,
		the_checksum_is_of_the_commit,
		what_was_stored_is_summed_little_by_little,
		a_block_is_written_once_however_often_it_comes_and_goes,
		lanes_are_copied_each_to_its_place,
		areas_go_to_who_is_under_its_share,
		two_without_shares_do_not_play_ping_pong_below,
		the_maximum_is_kept,
		a_removed_namespace_gives_its_areas_back,
		an_area_in_use_is_not_taken,
		everything_below_comes_back,
		what_was_cold_is_cold_after_a_restart,
		who_attached_before_recovery_keeps_everything,
		another_layout_of_that_name_is_not_mixed_up,
		killed_at_any_time,
		a_clean_end_gives_nothing_up,
	};
	const struct low_loop loops[] = { { a_wrong_write_is_a_miss_later, 2 } };

	return low_run("transfer", tests, LOW_N(tests), loops, LOW_N(loops));
}
