/* SPDX-License-Identifier: Apache-2.0 */
/* move/scrub.c: at its rate, only while nothing else is to be done; what is bad is dropped, and its slot retired. */
#include <check.h>

#include "tests/unit/move/onboard_fixture.h"

#define BLOCKS 36u /* at 100 % an hour, one in 100 s */
#define S UINT64_C(1000000000)

static struct low l;
static struct holder *h;

/* All of them below, and the first quarter or so of them nowhere else. */
static void begin(uint32_t percent)
{
	memset(&l, 0, sizeof(l));
	l.config.scrub_percent = percent;
	l.config.write = STORE_WRITE_THROUGH;
	low_make(&l, 4, 4, 32);
	h = low_attach(&l, "a");
	low_put(&l, h, 1, BLOCKS);
	low_settle(&l);
	ck_assert_uint_eq(low_ns(h)->lower->n_present, BLOCKS);
	ck_assert_uint_eq(fake_lower_reads(l.t), 0);
}

static void end(void)
{
	fix_close(h);
	low_free(&l);
}

static void tick(uint64_t seconds)
{
	l.f.now_ns += seconds * S;
	store_tick(l.f.store, l.f.now_ns);
}

static uint64_t scrubbed(void)
{
	return metrics_get(METRIC_blocks_scrubbed);
}

/* Where the copy of @key is. */
static uint32_t below(uint64_t key)
{
	return lower_find(low_ns(h)->lower, (const uint8_t *)&key);
}

static void flip(uint64_t key)
{
	const struct lower *lower = low_ns(h)->lower;

	ck_assert_uint_ne(below(key), LOWER_NONE);
	fake_lower_flip(l.t, lower_area_of(lower, below(key)), lower_place_of(lower, below(key)));
}

/* More often than there are copies; long enough for the last one, too. */
static void once_through(void)
{
	for (uint32_t i = 0; i < 2 * BLOCKS; i++) {
		tick(3601);
		low_settle(&l);
	}
}

START_TEST(at_its_rate)
{
	uint64_t before;

	begin(100);
	before = scrubbed();
	ck_assert_uint_eq(store_next_ns(l.f.store), 0); /* it has not seen the time yet */
	tick(0);
	ck_assert_uint_eq(store_next_ns(l.f.store), l.f.now_ns + 100 * S + 1);
	for (uint32_t i = 1; i <= BLOCKS; i++) {
		tick(99);
		ck_assert_uint_eq(fake_lower_reads(l.t), i - 1);
		tick(2);
		ck_assert_uint_eq(fake_lower_reads(l.t), i);
		low_settle(&l);
		ck_assert_uint_eq(scrubbed() - before, i);
	}
	ck_assert_uint_eq(metrics_get(METRIC_scrub_errors), 0);
	ck_assert_uint_eq(low_ns(h)->lower->n_present, BLOCKS);
	end();
}
END_TEST

/* Each of them once, wherever it begins. */
START_TEST(all_of_them)
{
	begin(100);
	for (uint64_t key = 1; key <= BLOCKS; key++)
		flip(key);
	once_through();
	ck_assert_uint_eq(metrics_get(METRIC_scrub_errors), BLOCKS);
	ck_assert_uint_eq(low_ns(h)->lower->counts.lost, BLOCKS);
	ck_assert_uint_eq(low_anywhere(h, 1, 8), 0);
	/* What is in memory is what it was, and is written down again when its turn comes. */
	low_verify_all(h);
	ck_assert_uint_eq(low_count(h, BLOCKS - 15, 16, STORE_IN_G2), 16);
	ck_assert_uint_ge(low_ns(h)->lower->n_present, 1);
	ck_assert_uint_eq(low_ns(h)->lower->n_present, low_count(h, BLOCKS - 15, 16, STORE_IN_G2 | STORE_IN_G3));
	end();
}
END_TEST

START_TEST(not_if_it_is_not_to)
{
	struct store_config c = { .write_timeout_ns = S, .write = STORE_WRITE_THROUGH, .scrub_percent = 200 };

	begin(0);
	once_through();
	ck_assert_uint_eq(fake_lower_reads(l.t), 0);
	ck_assert_uint_eq(store_next_ns(l.f.store), UINT64_MAX);
	store_configure(l.f.store, &c);
	tick(1);
	tick(50);
	ck_assert_uint_eq(fake_lower_reads(l.t), 0);
	tick(1);
	ck_assert_uint_eq(fake_lower_reads(l.t), 1);
	low_settle(&l);
	/* Offline. */
	fake_lower_set_online(l.t, false);
	tick(100);
	ck_assert_uint_eq(fake_lower_reads(l.t), 1);
	ck_assert_uint_eq(store_next_ns(l.f.store), UINT64_MAX);
	fake_lower_set_online(l.t, true);
	tick(100);
	ck_assert_uint_eq(fake_lower_reads(l.t), 2);
	/* And while one is under way that goes away. */
	fake_lower_set_online(l.t, false);
	low_settle(&l);
	fake_lower_set_online(l.t, true);
	ck_assert_uint_eq(low_ns(h)->lower->n_present, BLOCKS);
	end();
}
END_TEST

/* A copy that somebody wants, or that is written down, comes first; it looks again soon. */
START_TEST(only_while_there_is_nothing_else)
{
	begin(100);
	tick(0);
	tick(99);
	low_reserve(&l, h, 1000, 1);
	low_commit(&l, h, 1000, 1, 0);
	while (fake_lower_in_flight(l.t) == 0)
		ck_assert(fake_sums_release(l.sums));
	tick(2);
	ck_assert_uint_eq(fake_lower_reads(l.t), 0);
	ck_assert_uint_eq(store_next_ns(l.f.store), l.f.now_ns + S);
	tick(1);
	ck_assert_uint_eq(fake_lower_reads(l.t), 0);
	low_settle(&l);
	tick(1);
	ck_assert_uint_eq(fake_lower_reads(l.t), 1);
	/* One at a time, and no more. */
	tick(200);
	ck_assert_uint_eq(fake_lower_reads(l.t), 1);
	low_settle(&l);
	end();
}
END_TEST

/* Given up: nobody has time for its checksum. */
START_TEST(the_workers_are_busy)
{
	uint64_t before;

	begin(100);
	before = scrubbed();
	flip(1);
	tick(0);
	fake_sums_limit(l.sums, 1);
	tick(101);
	ck_assert_uint_eq(fake_lower_reads(l.t), 1);
	low_reserve(&l, h, 1000, 1);
	low_commit(&l, h, 1000, 1, 0);
	ck_assert_uint_eq(fake_sums_waiting(l.sums), 1);
	ck_assert(fake_lower_release(l.t));
	ck_assert_uint_eq(scrubbed(), before);
	fake_sums_limit(l.sums, 0);
	low_settle(&l);
	ck_assert_uint_eq(low_ns(h)->lower->n_present, BLOCKS + 1);
	once_through();
	ck_assert_uint_eq(metrics_get(METRIC_scrub_errors), 1);
	ck_assert_uint_eq(below(1), LOWER_NONE);
	end();
}
END_TEST

START_TEST(what_cannot_be_read_is_bad)
{
	begin(100);
	tick(0);
	fake_lower_fail(l.t, false, FAKE_LOWER_IO, 1, 1);
	tick(101);
	low_settle(&l);
	ck_assert_uint_eq(metrics_get(METRIC_scrub_errors), 1);
	ck_assert_uint_eq(metrics_get(METRIC_checksum_errors), 0);
	ck_assert_uint_eq(low_ns(h)->lower->n_present, BLOCKS - 1);
	end();
}
END_TEST

/* Somebody wants the block that is being looked at: he reads it for himself, and both see what is wrong. */
START_TEST(not_in_the_way_of_an_onboard)
{
	struct low_onboard b;

	begin(100);
	flip(1);
	tick(0);
	for (;;) {
		tick(101);
		ck_assert_uint_eq(fake_lower_in_flight(l.t), 1);
		if (lower_at(low_ns(h)->lower, below(1))->busy)
			break;
		low_settle(&l);
	}
	ck_assert_int_eq(low_onboard(&l, h, &b, 1, 1), STORE_E_WAIT);
	ck_assert_uint_eq(fake_lower_in_flight(l.t), 2);
	low_settle(&l);
	ck_assert_uint_eq(b.done, 1);
	ck_assert_uint_eq(b.status[0], STORE_ONBOARD_FAILED);
	ck_assert_uint_eq(below(1), LOWER_NONE);
	ck_assert_uint_eq(metrics_get(METRIC_scrub_errors), 1);
	ck_assert_uint_eq(metrics_get(METRIC_checksum_errors), 2);
	ck_assert_uint_eq(low_ns(h)->lower->counts.lost, 1);
	low_onboard_end(&l, h, &b);
	end();
}
END_TEST

/* The same slot loses blocks: twice, and it gets no more. */
START_TEST(a_slot_that_is_bad_twice_is_retired)
{
	struct lower *lower;
	uint32_t slot, writes = 0;

	begin(100);
	lower = low_ns(h)->lower;
	slot = below(1);
	flip(1);
	once_through();
	ck_assert_uint_eq(lower_at(lower, slot)->state, LOWER_FREE);
	for (uint64_t key = 2000; lower_at(lower, slot)->state != LOWER_PRESENT; key++) {
		ck_assert_uint_lt(++writes, 200);
		low_put(&l, h, key, 1);
		low_settle(&l);
	}
	fake_lower_flip(l.t, lower_area_of(lower, slot), lower_place_of(lower, slot));
	for (uint32_t i = 0; i < 20; i++)
		once_through();
	ck_assert_uint_eq(lower_at(lower, slot)->state, LOWER_RETIRED);
	ck_assert_uint_eq(lower->n_retired, 1);
	store_metrics(l.f.store);
	ck_assert_uint_eq(metrics_get(METRIC_g3_slots_retired), 1);
	ck_assert_uint_eq(metrics_get(METRIC_g3_slots), metrics_get(METRIC_g3_slots_free) +
	                                                        metrics_get(METRIC_g3_slots_used) +
	                                                        metrics_get(METRIC_g3_slots_quarantined));
	low_put(&l, h, 5000, 300);
	low_settle(&l);
	ck_assert_uint_eq(lower_at(lower, slot)->state, LOWER_RETIRED);
	end();
}
END_TEST

/* Another daemon looks at what the one before has left. */
START_TEST(after_a_restart)
{
	uint32_t area, place;

	begin(100);
	area = lower_area_of(low_ns(h)->lower, below(7));
	place = lower_place_of(low_ns(h)->lower, below(7));
	fix_close(h);
	low_stop(&l);
	fake_lower_flip(l.t, area, place);
	fake_lower_restart(l.t);
	low_start(&l);
	tick(0);
	ck_assert_uint_eq(store_next_ns(l.f.store), UINT64_MAX);
	fake_lower_recover(l.t, NULL, true);
	h = low_attach(&l, "a");
	ck_assert_uint_eq(low_ns(h)->lower->n_present, BLOCKS);
	once_through();
	ck_assert_uint_eq(metrics_get(METRIC_scrub_errors), 1);
	ck_assert_uint_eq(below(7), LOWER_NONE);
	ck_assert_uint_eq(low_ns(h)->lower->n_present, BLOCKS - 1);
	end();
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {
		at_its_rate,
		all_of_them,
		not_if_it_is_not_to,
		only_while_there_is_nothing_else,
		the_workers_are_busy,
		what_cannot_be_read_is_bad,
		not_in_the_way_of_an_onboard,
		a_slot_that_is_bad_twice_is_retired,
		after_a_restart,
	};

	return low_run("scrub", tests, LOW_N(tests), NULL, 0);
}
