/* SPDX-License-Identifier: Apache-2.0 */
/* block/lower.c against a model that remembers everything, and what it must not do. */
#include "block/lower.h"

#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "tests/unit/block/fixture.h"

#define AREAS 5u
#define AREA_SLOTS 11u /* not a power of two */
#define KEYS 200u

static struct lower lower;
static struct rng rng;
static const uint64_t salt[2] = { 3, 4 };

/* The model: of each key and slot. */
static uint32_t at[KEYS];          /* slot, or LOWER_NONE */
static int32_t key_in[AREAS << 4]; /* -1: nothing known; slots are (area << 4) + place */
static enum lower_state state_of[AREAS << 4];
static bool ours[AREAS];
static uint32_t twin_touch[KEYS];

static const uint8_t *key_of(uint32_t n)
{
	static uint8_t bytes[KEY_MAX];

	return fixture_key(n + 1, bytes);
}

static bool twin(void *ctx, const uint8_t *key, uint32_t *touch)
{
	uint32_t n;

	ck_assert_ptr_eq(ctx, twin_touch);
	memcpy(&n, key, sizeof(n));
	if (twin_touch[n - 1] == 0)
		return false;
	*touch = twin_touch[n - 1];
	return true;
}

static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 33) * UINT64_C(0xff51afd7ed558ccd);
	x = (x ^ x >> 33) * UINT64_C(0xc4ceb9fe1a85ec53);
	return x ^ x >> 33;
}

static void open_lower(uint32_t key_bytes)
{
	struct lower_config c = { .key_bytes = key_bytes,
		                  .n_areas = AREAS,
		                  .area_slots = AREA_SLOTS,
		                  .max_slots = AREAS * AREA_SLOTS,
		                  .salt = salt,
		                  .twin = twin,
		                  .ctx = twin_touch };

	ck_assert_int_eq(lower_init(&lower, &c), 0);
	memset(twin_touch, 0, sizeof(twin_touch));
	memset(ours, 0, sizeof(ours));
	memset(state_of, 0, sizeof(state_of));
	for (uint32_t i = 0; i < KEYS; i++)
		at[i] = LOWER_NONE;
	for (uint32_t i = 0; i < AREAS << 4; i++)
		key_in[i] = -1;
}

static void close_lower(void)
{
	for (uint32_t s = 0; s < AREAS << 4; s++) {
		if (state_of[s] == LOWER_PRESENT) {
			if (lower_at(&lower, s)->busy)
				lower_at(&lower, s)->busy = 0;
			lower_forget(&lower, s);
		} else if (state_of[s] == LOWER_WRITING) {
			lower_abort(&lower, s, false);
		} else if (state_of[s] == LOWER_STUCK) {
			lower_unstick(&lower, s);
		}
	}
	ck_assert_uint_eq(lower.n_free, lower.n_slots);
	lower_check(&lower);
	lower_deinit(&lower);
}

static int put(uint32_t slot, uint32_t key, uint32_t touch)
{
	struct lower_what what = { .key = key_of(key), .parent = key, .sum = key + 7, .touch = touch };

	return lower_register(&lower, slot, &what);
}

/* ---- the model ---- */

static void model_check(void)
{
	lower_check(&lower);
	for (uint32_t k = 0; k < KEYS; k++) {
		ck_assert_uint_eq(lower_find(&lower, key_of(k)), at[k]);
		if (at[k] == LOWER_NONE)
			continue;
		ck_assert_uint_eq(lower_at(&lower, at[k])->parent, k);
		ck_assert_uint_eq(lower_at(&lower, at[k])->sum, k + 7);
	}
	for (uint32_t s = 0; s < AREAS << 4; s++)
		if (ours[s >> 4] && (s & 15) < AREA_SLOTS)
			ck_assert_uint_eq(lower_at(&lower, s)->state, state_of[s]);
}

static void model_area(void)
{
	uint32_t a = (uint32_t)rng_below(&rng, AREAS);
	bool used = false;

	if (!ours[a]) {
		lower_area_add(&lower, a, AREA_SLOTS);
		ours[a] = true;
		return;
	}
	for (uint32_t p = 0; p < AREA_SLOTS; p++)
		used |= state_of[(a << 4) + p] != LOWER_FREE;
	if (used)
		return;
	lower_area_remove(&lower, a);
	ours[a] = false;
}

static void model_write(void)
{
	uint32_t slot;

	if (lower.n_free == 0)
		return;
	slot = lower_take(&lower);
	ck_assert_uint_ne(slot, LOWER_NONE);
	ck_assert(ours[slot >> 4] && (slot & 15) < AREA_SLOTS && state_of[slot] == LOWER_FREE);
	state_of[slot] = LOWER_WRITING;
}

static uint32_t some_slot(enum lower_state state)
{
	uint32_t from = (uint32_t)rng_below(&rng, AREAS << 4);

	for (uint32_t i = 0; i < AREAS << 4; i++)
		if (state_of[(from + i) % (AREAS << 4)] == state)
			return (from + i) % (AREAS << 4);
	return LOWER_NONE;
}

static void model_written(void)
{
	uint32_t slot = some_slot(LOWER_WRITING), key = (uint32_t)rng_below(&rng, KEYS);
	bool stuck = rng_chance(&rng, 30);

	if (slot == LOWER_NONE)
		return;
	if (rng_chance(&rng, 25)) {
		lower_abort(&lower, slot, stuck);
		state_of[slot] = stuck ? LOWER_STUCK : LOWER_FREE;
		return;
	}
	ck_assert_int_eq(put(slot, key, lower.heat.clock), at[key] == LOWER_NONE ? 0 : LOWER_E_EXISTS);
	if (at[key] != LOWER_NONE) {
		state_of[slot] = LOWER_FREE;
		return;
	}
	state_of[slot] = LOWER_PRESENT;
	at[key] = slot;
	key_in[slot] = (int32_t)key;
}

static void model_gone(uint32_t slot)
{
	state_of[slot] = LOWER_FREE;
	at[key_in[slot]] = LOWER_NONE;
	key_in[slot] = -1;
}

static void model_pick(void)
{
	uint64_t budget = 2ull * lower.n_present + 2;
	uint32_t slot = lower_pick(&lower, lower.heat.clock + (uint32_t)rng_below(&rng, 3), &budget);

	if (slot == LOWER_NONE)
		return;
	ck_assert(state_of[slot] == LOWER_PRESENT && lower_at(&lower, slot)->busy == 0);
	if (rng_chance(&rng, 20)) {
		heat_place(&lower.heat, slot); /* thought better of */
		return;
	}
	lower_forget(&lower, slot);
	model_gone(slot);
}

static void model_other(void)
{
	uint32_t slot = some_slot(LOWER_PRESENT), stuck = some_slot(LOWER_STUCK);

	if (stuck != LOWER_NONE && rng_chance(&rng, 30)) {
		lower_unstick(&lower, stuck);
		state_of[stuck] = LOWER_FREE;
	}
	if (slot == LOWER_NONE)
		return;
	if (rng_chance(&rng, 40)) {
		lower_touch(&lower, slot, lower.heat.clock + 1);
	} else if (rng_chance(&rng, 60)) {
		lower_at(&lower, slot)->busy ^= 1;
	} else if (lower_at(&lower, slot)->busy == 0) {
		lower_forget(&lower, slot);
		model_gone(slot);
	}
}

START_TEST(whatever_is_done_it_knows_where_everything_is)
{
	void (*const events[])(void) = { model_area,    model_write, model_write, model_written,
		                         model_written, model_pick,  model_other };

	open_lower(8u << _i % 3);
	rng_init(&rng, 100 + (uint64_t)_i);
	for (int i = 0; i < 4000; i++) {
		events[rng_below(&rng, sizeof(events) / sizeof(*events))]();
		if (i % 8 == 0)
			model_check();
	}
	model_check();
	close_lower();
}
END_TEST

/* ---- order ---- */

START_TEST(the_coldest_goes_first_and_twins_count)
{
	uint64_t budget;
	uint32_t slot;

	open_lower(16);
	lower_area_add(&lower, 2, AREA_SLOTS);
	for (uint32_t k = 0; k < 6; k++) {
		heat_follow(&lower.heat, 10 + k);
		ck_assert_int_eq(put(lower_take(&lower), k, 10 + k), 0);
	}
	twin_touch[0] = 30; /* it is in host memory, and was used there */
	lower_touch(&lower, lower_find(&lower, key_of(1)), 31);
	lower_at(&lower, lower_find(&lower, key_of(2)))->busy = 1;
	for (uint32_t k = 3; k < 6; k++) {
		budget = 100;
		slot = lower_pick(&lower, 40, &budget);
		ck_assert_uint_eq(slot, lower_find(&lower, key_of(k)));
		lower_forget(&lower, slot);
	}
	budget = 100;
	slot = lower_pick(&lower, 40, &budget);
	ck_assert_uint_eq(slot, lower_find(&lower, key_of(0)));
	heat_place(&lower.heat, slot);
	lower_at(&lower, lower_find(&lower, key_of(2)))->busy = 0;
	for (uint32_t k = 0; k < 3; k++)
		lower_forget(&lower, lower_find(&lower, key_of(k)));
	close_lower();
}
END_TEST

/* Slots that recovery takes are not handed out again, whatever comes back of them. */
START_TEST(recovered_slots_and_new_ones_do_not_meet)
{
	bool taken[16] = { 0 };

	open_lower(32);
	lower_area_add(&lower, 0, AREA_SLOTS);
	for (uint32_t p = 0; p < AREA_SLOTS; p += 2) {
		ck_assert(lower_take_at(&lower, p));
		ck_assert(!lower_take_at(&lower, p));
		ck_assert_int_eq(put(p, p, 1000 - p), 0);
		taken[p] = true;
	}
	ck_assert(!lower_take_at(&lower, AREA_SLOTS));
	ck_assert(!lower_take_at(&lower, 1 << 4));
	lower_forget(&lower, 4);
	taken[4] = false;
	while (lower.n_free) {
		uint32_t slot = lower_take(&lower);

		ck_assert(slot < AREA_SLOTS && !taken[slot]);
		taken[slot] = true;
		state_of[slot] = LOWER_WRITING;
	}
	lower_check(&lower);
	for (uint32_t p = 0; p < AREA_SLOTS; p++)
		if (lower_at(&lower, p)->state == LOWER_PRESENT)
			state_of[p] = LOWER_PRESENT;
	close_lower();
}
END_TEST

/* So that the tier has time to note that a slot is free, and slots taken one after the other are neighbours. */
START_TEST(what_was_set_free_first_is_taken_first)
{
	static const uint32_t freed[] = { (1 << 4) + 3, (1 << 4) + 4, 7, 2, (1 << 4) + 1 };
	static const uint32_t taken[] = { (1 << 4) + 3, (1 << 4) + 4, (1 << 4) + 1, 7, 2 };

	open_lower(8);
	lower_area_add(&lower, 0, AREA_SLOTS);
	lower_area_add(&lower, 1, AREA_SLOTS);
	for (uint32_t i = 0; i < 2 * AREA_SLOTS; i++) {
		uint32_t slot = lower_take(&lower);

		ck_assert_uint_eq(slot, i < AREA_SLOTS ? i : (1 << 4) + i - AREA_SLOTS);
		ck_assert_int_eq(put(slot, i, i + 1), 0);
		state_of[slot] = LOWER_PRESENT;
	}
	for (size_t i = 0; i < sizeof(freed) / sizeof(freed[0]); i++)
		lower_forget(&lower, freed[i]);
	for (size_t i = 0; i < sizeof(taken) / sizeof(taken[0]); i++) {
		ck_assert_uint_eq(lower_take(&lower), taken[i]);
		state_of[taken[i]] = LOWER_WRITING;
	}
	close_lower();
}
END_TEST

START_TEST(a_slot_that_loses_blocks_twice_is_retired)
{
	uint32_t slot;

	open_lower(8);
	lower_area_add(&lower, 1, AREA_SLOTS);
	slot = lower_take(&lower);
	lower_bad(&lower, slot); /* a write that failed */
	lower_abort(&lower, slot, false);
	ck_assert_uint_eq(lower.n_free, AREA_SLOTS);
	for (uint32_t i = 0; i < AREA_SLOTS; i++) {
		uint32_t other = lower_take(&lower);

		ck_assert_int_eq(put(other, i, 1), 0);
		if (other == slot)
			lower_bad(&lower, slot); /* what was in it is wrong */
		lower_forget(&lower, other);
	}
	ck_assert_uint_eq(lower_at(&lower, slot)->state, LOWER_RETIRED);
	ck_assert_uint_eq(lower.n_retired, 1);
	lower_check(&lower);
	while (lower.n_free > 0) {
		uint32_t other = lower_take(&lower);

		ck_assert_uint_ne(other, slot);
		state_of[other] = LOWER_WRITING;
	}
	for (uint32_t s = 1 << 4; s < (1 << 4) + AREA_SLOTS; s++)
		if (state_of[s] == LOWER_WRITING)
			lower_abort(&lower, s, false);
	memset(state_of, 0, sizeof(state_of));
	/* Another area there may have its slots elsewhere. */
	lower_area_remove(&lower, 1);
	lower_area_add(&lower, 1, AREA_SLOTS);
	lower_check(&lower);
	ck_assert_uint_eq(lower.n_free, AREA_SLOTS);
	close_lower();
}
END_TEST

/* When all slots are in use and one goes for each that comes, there is room in the index for the key of the one that comes.  (With this salt there was not, after
 * 789,477 blocks.) */
START_TEST(the_index_never_is_full)
{
	enum { SLOTS = 1023, TOGETHER = 31 * SLOTS, BLOCKS = 1000000 };
	static const uint64_t unlucky[2] = { UINT64_C(0xb456bcfc34c2cb2c), UINT64_C(0xeb995cf1fe705ed1) };
	struct lower_config c = { .key_bytes = 16, .n_areas = 31, .area_slots = SLOTS, .max_slots = TOGETHER, .salt = unlucky };
	uint64_t full = 0;

	ck_assert_int_eq(lower_init(&lower, &c), 0);
	for (uint32_t a = 0; a < 31; a++)
		lower_area_add(&lower, a, SLOTS);
	for (uint64_t i = 1; i < BLOCKS; i++) {
		uint64_t key[2] = { mix(i), mix(i) * UINT64_C(0x9e3779b97f4a7c15) }, budget = TOGETHER;
		struct lower_what what = { .key = (const uint8_t *)key, .touch = (uint32_t)(i / lower.heat.per_tick) + 1 };

		for (uint32_t n = lower.n_free <= 64 ? 65 : 0; n > 0; n--)
			lower_forget(&lower, lower_pick(&lower, what.touch, &budget));
		full += lower_register(&lower, lower_take(&lower), &what) != 0;
	}
	ck_assert_uint_eq(full, 0);
	lower_deinit(&lower);
}
END_TEST

START_TEST(too_many_slots_are_refused)
{
	struct lower_config c = { .key_bytes = 8, .n_areas = 1u << 20, .area_slots = 1u << 12, .max_slots = 100, .salt = salt };

	ck_assert_int_eq(lower_init(&lower, &c), LOWER_E_BIG);
}
END_TEST

START_TEST(forgetting_what_is_read_aborts)
{
	open_lower(8);
	lower_area_add(&lower, 0, AREA_SLOTS);
	ck_assert_int_eq(put(lower_take(&lower), 1, 1), 0);
	lower_at(&lower, 0)->busy = 1;
	lower_forget(&lower, 0);
}
END_TEST

START_TEST(removing_an_area_in_use_aborts)
{
	open_lower(8);
	lower_area_add(&lower, 0, AREA_SLOTS);
	(void)lower_take(&lower);
	lower_area_remove(&lower, 0);
}
END_TEST

int main(void)
{
	TCase *t = tcase_create("lower");

	tcase_add_loop_test(t, whatever_is_done_it_knows_where_everything_is, 0, 12);
	tcase_add_test(t, the_coldest_goes_first_and_twins_count);
	tcase_add_test(t, recovered_slots_and_new_ones_do_not_meet);
	tcase_add_test(t, what_was_set_free_first_is_taken_first);
	tcase_add_test(t, a_slot_that_loses_blocks_twice_is_retired);
	tcase_add_test(t, the_index_never_is_full);
	tcase_add_test(t, too_many_slots_are_refused);
	tcase_add_test_raise_signal(t, forgetting_what_is_read_aborts, SIGABRT);
	tcase_add_test_raise_signal(t, removing_an_area_in_use_aborts, SIGABRT);
	return fixture_run("lower", t, NULL);
}
