/* SPDX-License-Identifier: Apache-2.0 */
/* P6: storing a 2 MiB block from private memory, against the same copy alone into the same memory. */
#include <stdlib.h>

#include "tests/bench/bench.h"
#include "tests/bench/fill.h"

#define BLOCK_BYTES (UINT64_C(2) << 20)
#define BLOCKS 160u
#define ROUND_NS (50 * CLOCK_NS_PER_MS)
#define ROUNDS 25u
#define BATCH_MAX 8u

struct copy {
	struct fill fill;
	uint8_t *from; /* owns; one block, as an engine's buffer */
	uint64_t next;
	uint32_t batch; /* blocks in one reservation */
	struct samples samples;
};

/* One round of stores, of which all is timed, or only the copies: so both are into the same memory, after the same wake-ups. */
static double copy_run(struct copy *c, bool only_copies)
{
	uint64_t end = clock_now_ns() + ROUND_NS, start, copies, from;
	uint8_t keys[BATCH_MAX * FILL_KEY_BYTES];
	struct kvbm_span spans[BATCH_MAX];

	samples_clear(&c->samples);
	do {
		fill_keys(c->next, c->batch, keys);
		c->next += c->batch;
		copies = 0;
		start = clock_now_ns();
		must_eq(kvbm_reserve(c->fill.ns, KVBM_ALL_LANES, keys, c->batch, spans, NULL), c->batch);
		for (uint32_t i = 0; i < c->batch; i++) {
			void *data = kvbm_data(c->fill.ns, &spans[i], 0);

			must(data);
			from = clock_now_ns();
			memcpy(data, c->from, BLOCK_BYTES);
			copies += clock_now_ns() - from;
		}
		must(kvbm_commit(c->fill.ns, KVBM_ALL_LANES, spans, keys, c->batch, NULL, KVBM_NOWAIT) >= 0);
		samples_add(&c->samples, (only_copies ? copies : clock_now_ns() - start) / c->batch);
	} while (clock_now_ns() < end);
	return (double)BLOCK_BYTES / 1e3 / samples_quantile(&c->samples, 0.5);
}

static double copy_round(void *ctx)
{
	return copy_run(ctx, true);
}

static double store_round(void *ctx)
{
	return copy_run(ctx, false);
}

/* The last block stored has the bytes it was given. */
static void copy_verify(struct copy *c)
{
	uint8_t key[FILL_KEY_BYTES];
	struct kvbm_span span;

	fill_keys(c->next - 1, 1, key);
	must_eq(kvbm_ping(c->fill.kvbm), 0); /* after it the commit has been seen to */
	must_eq(kvbm_match(c->fill.ns, key, 1, 0, &span), 1);
	must(memcmp(kvbm_data(c->fill.ns, &span, 0), c->from, BLOCK_BYTES) == 0);
	must_eq(kvbm_release(c->fill.ns, &span, 1), 1);
}

static void copy_figure(struct copy *c, bool one_core)
{
	char variant[64];
	struct figure f = { .name = "P6",
		            .variant = variant,
		            .unit = "GB/s",
		            .limit_is = "its copy alone",
		            .placement = one_core ? "one core" : "two cores",
		            .goal = GOAL_RATIO_AT_LEAST,
		            .bound = 0.9 };

	snprintf(variant, sizeof(variant), "store 2 MiB, %u in a reservation", c->batch);
	for (uint64_t from = c->next; c->next < from + 2 * BLOCKS;)
		store_round(c); /* until every slot is mapped */
	bench_compare(&f, ROUNDS, copy_round, store_round, c);
	bench_print(&f);
	copy_verify(c);
}

int main(void)
{
	struct copy c = { .next = 1, .batch = 1 };

	if (!bench_wanted("P6"))
		return 0;
	bench_init();
	samples_init(&c.samples, 10000);
	c.from = malloc(BLOCK_BYTES);
	must(c.from);
	for (uint64_t i = 0; i < BLOCK_BYTES; i++)
		c.from[i] = (uint8_t)bench_mix(i);
	fill_start(&c.fill, BLOCKS, BLOCK_BYTES);
	fill_settle(&c.fill);
	for (int one = 1; one >= 0; one--) {
		bench_place(0, 0);
		bench_place(c.fill.daemon.pid, one ? 0 : 1);
		for (c.batch = 1; c.batch <= BATCH_MAX; c.batch *= BATCH_MAX)
			copy_figure(&c, one);
	}
	bench_place(0, BENCH_ANY_CPU);
	fill_stop(&c.fill);
	free(c.from);
	samples_deinit(&c.samples);
	return 0;
}
