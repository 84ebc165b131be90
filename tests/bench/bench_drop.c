/* SPDX-License-Identifier: Apache-2.0 */
/* P12b: what it costs the daemon to drop a block and put another in its place, against the same on a plain ring of ids; and what a client's
 * look-ups feel of somebody who does that all the time.
 *
 * The daemon's time is measured in this process: its own block/ and move/, over a tier without memory.
 */
#include <stdlib.h>

#include "base/log.h"
#include "move/store.h"
#include "tests/bench/bench.h"
#include "tests/bench/fill.h"
#include "tests/bench/table.h"
#include "tests/lib/fake_tier.h"

#define LANE_BYTES 64u
#define BATCH 64u
#define ROUND_NS (30 * CLOCK_NS_PER_MS)
#define ROUNDS 15u
#define PREFIX 256u

/* The limit: records of 64 bytes, an index of the same design, and a ring of ids in the order of their coming. */
struct ring {
	struct table table;
	struct shm_record *records; /* owns */
	uint32_t *ids;              /* owns */
	uint64_t n, head;           /* the oldest is at ids[head % n] */
};

struct drop {
	struct ring ring;
	struct tier *tier;
	struct store *store;
	struct quota_user user;
	struct holder *holder, *reader; /* two sessions: one that stores, one that is only there */
	uint64_t slots, next, next_ring, now_ns;
	bool chained; /* each batch is a chain; otherwise all are roots */
};

/* ---- the ring ---- */

static void ring_init(struct ring *r, uint64_t n)
{
	uint8_t key[FILL_KEY_BYTES];

	*r = (struct ring){ .n = n };
	table_init(&r->table, n, true);
	r->records = aligned_alloc(4096, n * sizeof(*r->records));
	r->ids = malloc(n * sizeof(*r->ids));
	must(r->records && r->ids);
	memset(r->records, 0, n * sizeof(*r->records));
	for (uint64_t i = 0; i < n; i++) {
		/* Slots are not reused in the order of their numbers, so the oldest ids are anywhere. */
		uint64_t id = (i * UINT64_C(0x9e3779b1)) % n;

		fill_keys(i, 1, key);
		r->ids[i] = (uint32_t)id;
		memcpy(r->records[id].key, key, sizeof(key));
		table_put(&r->table, key, (uint32_t)id, 1);
	}
}

static void ring_deinit(struct ring *r)
{
	table_deinit(&r->table);
	free(r->records);
	free(r->ids);
}

static uint64_t ring_line(const struct ring *r, const uint8_t *key)
{
	return shm_hash_key(key, TABLE_KEY_BYTES, r->table.salt, r->table.n_lines).line;
}

/* Three stages, each prefetching for the next: ids, records, lines. */
static void ring_replace(struct ring *r, const uint8_t *keys, uint32_t n)
{
	uint32_t ids[BATCH];

	for (uint32_t i = 0; i < n; i++) {
		ids[i] = r->ids[(r->head + i) % r->n];
		__builtin_prefetch(&r->records[ids[i]], 1, 3);
	}
	for (uint32_t i = 0; i < n; i++) {
		__builtin_prefetch(&r->table.lines[ring_line(r, r->records[ids[i]].key)], 1, 3);
		__builtin_prefetch(&r->table.lines[ring_line(r, keys + (size_t)i * FILL_KEY_BYTES)], 1, 3);
	}
	for (uint32_t i = 0; i < n; i++) {
		struct shm_record *rec = &r->records[ids[i]];
		uint32_t generation = atomic_load_explicit(&rec->generation, memory_order_relaxed) + 1;

		must(table_remove(&r->table, rec->key));
		memcpy(rec->key, keys + (size_t)i * FILL_KEY_BYTES, FILL_KEY_BYTES);
		atomic_store_explicit(&rec->generation, generation, memory_order_relaxed);
		atomic_store_explicit(&rec->state, SHM_REGISTERED, memory_order_release);
		table_put(&r->table, rec->key, ids[i], generation);
		r->ids[(r->head + i) % r->n] = ids[i];
	}
	r->head += n;
}

/* ---- the store ---- */

static void store_batch(struct drop *d, uint32_t n, bool measured_is_full)
{
	uint8_t keys[BATCH * FILL_KEY_BYTES], parents[BATCH * FILL_KEY_BYTES] = { 0 }, states[BATCH];
	uint32_t slots[BATCH], generations[BATCH], out_slots[BATCH], out_generations[BATCH];
	struct store_reserve reserve = { .keys = keys,
		                         .n = n,
		                         .lane = STORE_ALL_LANES,
		                         .now_ns = d->now_ns++,
		                         .slots = slots,
		                         .generations = generations };
	struct store_commit commit = { .slots_in = slots,
		                       .generations_in = generations,
		                       .keys = keys,
		                       .parents = parents,
		                       .n = n,
		                       .n_parents = n,
		                       .lane = STORE_ALL_LANES,
		                       .length = LANE_BYTES,
		                       .now_ns = d->now_ns,
		                       .slots = out_slots,
		                       .generations = out_generations,
		                       .states = states };

	fill_keys(d->next, n, keys);
	d->next += n;
	if (d->chained)
		memcpy(parents + FILL_KEY_BYTES, keys, (size_t)(n - 1) * FILL_KEY_BYTES);
	must_eq(store_reserve(d->holder, &reserve), 0);
	must_eq(reserve.reserved, n);
	if (measured_is_full)
		must_eq(reserve.dropped, n);
	must_eq(store_commit(d->holder, &commit), 0);
}

static struct holder *drop_attach(struct drop *d)
{
	struct ns_desc desc = { .lane_bytes = LANE_BYTES, .lanes = 1, .key_bytes = FILL_KEY_BYTES };
	struct store_attach attach = { .desc = &desc, .user = &d->user };
	uint8_t have[16], want[16];
	struct holder *h;

	snprintf(desc.name, sizeof(desc.name), "bench");
	must_eq(store_attach(d->store, &attach, &h, have, want), 0);
	return h;
}

static void drop_init(struct drop *d, uint64_t slots, bool chained)
{
	struct store_config config = { .max_namespaces = 1,
		                       .grace_percent = 10,
		                       .why_entries = 4096,
		                       .write_timeout_ns = UINT64_MAX / 4,
		                       .boot_id = 1 };
	struct ns_report report;

	memset(d, 0, sizeof(*d));
	d->chained = chained;
	d->now_ns = 1;
	for (int i = 0; i < QUOTA_N; i++)
		d->user.session.limit[i] = UINT64_MAX;
	d->user.pin_limit = UINT64_MAX;
	d->tier = fake_tier_new(slots * LANE_BYTES + FAKE_TIER_GRAIN, 0, false);
	config.host = d->tier;
	must_eq(store_new(&config, &d->store), 0);
	d->holder = drop_attach(d);
	d->reader = drop_attach(d);
	store_report(d->store, 0, &report);
	d->slots = report.max_slots;
	/* Once full and once over, so that slots come in the order in which they were dropped. */
	while (d->next < d->slots / BATCH * BATCH + d->slots / 4)
		store_batch(d, BATCH, false);
	while (store_report(d->store, 0, &report), report.free > 0)
		store_batch(d, report.free < BATCH ? report.free : BATCH, false);
	ring_init(&d->ring, d->slots);
	d->next_ring = d->slots;
}

static void drop_deinit(struct drop *d)
{
	must_eq(holder_close(d->holder, true), 0);
	must_eq(holder_close(d->reader, true), 0);
	d->store = store_free(d->store);
	d->tier = fake_tier_free(d->tier);
	ring_deinit(&d->ring);
}

/* Of this thread: what other processes take is not the daemon's time. */
static uint64_t cpu_now_ns(void)
{
	struct timespec now;

	must(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) == 0);
	return (uint64_t)now.tv_sec * CLOCK_NS_PER_S + (uint64_t)now.tv_nsec;
}

/* Nanoseconds a block. */
static double ring_round(void *ctx)
{
	struct drop *d = ctx;
	uint64_t start = cpu_now_ns(), now, n = 0;
	uint8_t keys[BATCH * FILL_KEY_BYTES];

	do {
		fill_keys(d->next_ring, BATCH, keys);
		d->next_ring += BATCH;
		ring_replace(&d->ring, keys, BATCH);
		n += BATCH;
		now = cpu_now_ns();
	} while (now - start < ROUND_NS);
	return (double)(now - start) / (double)n;
}

static double store_round(void *ctx)
{
	struct drop *d = ctx;
	uint64_t start = cpu_now_ns(), now, n = 0;

	do {
		store_batch(d, BATCH, true);
		n += BATCH;
		now = cpu_now_ns();
	} while (now - start < ROUND_NS);
	return (double)(now - start) / (double)n;
}

static void drop_figure(uint64_t slots, bool chained)
{
	static struct drop d;
	char variant[80];
	struct figure f = { .name = "P12b",
		            .variant = variant,
		            .unit = "CPU ns a block",
		            .limit_is = "plain ring of ids, 3-stage prefetch",
		            .placement = "this process",
		            .goal = GOAL_RATIO_AT_MOST,
		            .bound = 1.5 };

	drop_init(&d, slots, chained);
	snprintf(variant, sizeof(variant), "drop + replace, %llu M slots, %s", (unsigned long long)slots / 1000000,
	         chained ? "chains of 64" : "roots");
	bench_compare(&f, ROUNDS, ring_round, store_round, &d);
	bench_print(&f);
	drop_deinit(&d);
}

/* ---- a look-up beside it ---- */

struct look {
	struct fill fill;
	struct samples samples;
	uint64_t hot; /* blocks that are looked up all the time, and so stay */
};

static double look_p99(struct look *l)
{
	uint64_t end = clock_now_ns() + ROUND_NS, from, to, random = l->hot;
	uint8_t keys[PREFIX * FILL_KEY_BYTES];
	struct kvbm_span spans[PREFIX];
	int hits;

	samples_clear(&l->samples);
	do {
		fill_keys(bench_random(&random) % (l->hot - PREFIX), PREFIX, keys);
		from = clock_now_ns();
		hits = kvbm_match(l->fill.ns, keys, PREFIX, 0, spans);
		to = clock_now_ns();
		samples_add(&l->samples, to - from);
		must(hits >= 0 && kvbm_release(l->fill.ns, spans, (uint32_t)hits) == hits);
	} while (to < end);
	return samples_quantile(&l->samples, 0.99);
}

static void look_figure(void)
{
	static struct look l;
	struct fill_storer storer = { .lane_bytes = LANE_BYTES, .first = UINT64_C(1) << 40, .batch = 64 };
	struct figure f = { .name = "P12b",
		            .variant = "match p99 while another client commits and evicts",
		            .unit = "us",
		            .limit_is = "quiet",
		            .placement = "reader on one core, daemon and writer on the other",
		            .goal = GOAL_RATIO_AT_MOST,
		            .bound = 1.5 };
	double quiet[ROUNDS], busy[ROUNDS];
	uint64_t stored = 0;

	samples_init(&l.samples, 100000);
	fill_start(&l.fill, 1000000, LANE_BYTES);
	fill_blocks(&l.fill, 1000000);
	fill_settle(&l.fill);
	l.hot = 250000;
	storer.socket = l.fill.daemon.socket;
	fill_storer_start(&storer);
	bench_place(0, 0);
	bench_place(l.fill.daemon.pid, 1);
	bench_place(storer.proc.pid, 1);
	look_p99(&l);
	for (unsigned i = 0; i < ROUNDS; i++) {
		quiet[i] = look_p99(&l);
		fill_storer_go(&storer);
		busy[i] = look_p99(&l);
		stored += fill_storer_halt(&storer);
	}
	fill_storer_end(&storer);
	bench_from(&f, quiet, busy, ROUNDS);
	bench_print(&f);
	bench_say("P12b", "the other client stored %.0f blocks/s meanwhile",
	          (double)stored * 1e9 / (double)(ROUNDS * ROUND_NS));
	bench_place(0, BENCH_ANY_CPU);
	fill_stop(&l.fill);
	samples_deinit(&l.samples);
}

int main(void)
{
	if (!bench_wanted("P12b"))
		return 0;
	bench_init();
	must_eq(log_set_level("warn"), 0);
	drop_figure(1000000, false);
	drop_figure(1000000, true);
	if (bench_available_bytes() > UINT64_C(5) << 30)
		drop_figure(10000000, true);
	else
		bench_say("P12b", "less than 5 GiB of memory are free: 10 M slots were left out");
	look_figure();
	return 0;
}
