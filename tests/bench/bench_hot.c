/* SPDX-License-Identifier: Apache-2.0 */
/* P1, P2, P11, P14: match, pin and release through shared memory, with 1 M and 10 M blocks resident. */
#include <stdlib.h>

#include "tests/bench/bench.h"
#include "tests/bench/fill.h"
#include "tests/bench/table.h"

#define PREFIX 256u
#define ROUND_NS (20 * CLOCK_NS_PER_MS)
#define ROUNDS 25u
#define LANE_BYTES 64u
#define SESSIONS 64u
#define MAX_CLIENTS 8u

struct hot {
	struct fill fill;
	struct table huge, small; /* the same on huge and on small pages */
	struct samples match, release;
	uint64_t random;
	uint8_t keys[PREFIX * FILL_KEY_BYTES];
	struct kvbm_span spans[PREFIX];
	struct shm_entry entries[PREFIX];
	bool scattered; /* 256 random blocks instead of 256 consecutive ones */
	double release_us;
};

/* The keys of the next prefix: outside of what is measured. */
static void hot_next(struct hot *h)
{
	if (!h->scattered) {
		fill_keys(bench_random(&h->random) % (h->fill.resident - PREFIX), PREFIX, h->keys);
		return;
	}
	for (uint32_t i = 0; i < PREFIX; i++)
		fill_keys(bench_random(&h->random) % h->fill.resident, 1, h->keys + i * FILL_KEY_BYTES);
}

static double hot_limit(struct hot *h, const struct table *t)
{
	uint64_t end = clock_now_ns() + ROUND_NS, from, to;

	samples_clear(&h->match);
	do {
		hot_next(h);
		from = clock_now_ns();
		must_eq(table_find(t, h->keys, PREFIX, h->entries), PREFIX);
		to = clock_now_ns();
		samples_add(&h->match, to - from);
	} while (to < end);
	return samples_quantile(&h->match, 0.5);
}

static double limit_huge(void *ctx)
{
	return hot_limit(ctx, &((struct hot *)ctx)->huge);
}

static double limit_small(void *ctx)
{
	return hot_limit(ctx, &((struct hot *)ctx)->small);
}

static double ours_match(void *ctx)
{
	struct hot *h = ctx;
	uint64_t end = clock_now_ns() + ROUND_NS, from, held, to;

	samples_clear(&h->match);
	samples_clear(&h->release);
	do {
		hot_next(h);
		from = clock_now_ns();
		must_eq(kvbm_match(h->fill.ns, h->keys, PREFIX, 0, h->spans), PREFIX);
		held = clock_now_ns();
		must_eq(kvbm_release(h->fill.ns, h->spans, PREFIX), PREFIX);
		to = clock_now_ns();
		samples_add(&h->match, held - from);
		samples_add(&h->release, to - held);
	} while (to < end);
	h->release_us = samples_quantile(&h->release, 0.5);
	return samples_quantile(&h->match, 0.5);
}

static double ours_match_release(void *ctx)
{
	double match = ours_match(ctx);

	return match + ((struct hot *)ctx)->release_us;
}

static double ours_match_p99(void *ctx)
{
	ours_match(ctx);
	return samples_quantile(&((struct hot *)ctx)->match, 0.99);
}

static void table_fill(struct table *t, uint64_t n, bool huge)
{
	uint8_t key[FILL_KEY_BYTES];

	table_init(t, n, huge);
	for (uint64_t i = 0; i < n; i++) {
		fill_keys(i, 1, key);
		table_put(t, key, (uint32_t)i, 1);
	}
}

static void hot_start(struct hot *h, uint64_t blocks)
{
	memset(h, 0, sizeof(*h));
	samples_init(&h->match, 100000);
	samples_init(&h->release, 100000);
	fill_start(&h->fill, blocks, LANE_BYTES);
	fill_blocks(&h->fill, blocks);
	for (uint64_t at = 0; at + 8192 <= blocks; at += blocks / 16)
		fill_verify(h->fill.ns, at, 4096);
	fill_settle(&h->fill);
	table_fill(&h->huge, blocks, true);
	table_fill(&h->small, blocks, false);
	bench_place(0, 0);
	bench_place(h->fill.daemon.pid, 1);
}

static void hot_stop(struct hot *h)
{
	bench_place(0, BENCH_ANY_CPU);
	fill_stop(&h->fill);
	table_deinit(&h->huge);
	table_deinit(&h->small);
	samples_deinit(&h->match);
	samples_deinit(&h->release);
}

/* ---- P1, P2 ---- */

static double hot_figures(struct hot *h, const char *name, const char *blocks)
{
	static const struct {
		const char *variant, *limit_is;
		bench_round *limit, *ours;
		bool scattered, goal;
	} table[] = {
		{ "match + pin, prefix", "private table, huge pages", limit_huge, ours_match, false, true },
		{ "match + pin, prefix", "private table, 4 KiB pages", limit_small, ours_match, false, false },
		{ "match + pin + release, prefix", "private table, huge pages", limit_huge, ours_match_release, false,
		  false },
		{ "match + pin, random blocks", "private table, huge pages", limit_huge, ours_match, true, false },
		{ "match + pin, random blocks", "private table, 4 KiB pages", limit_small, ours_match, true, false },
	};
	double first = 0;

	for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
		char variant[80], limit_is[80];
		struct figure f = { .name = name, .variant = variant, .unit = "us", .limit_is = limit_is, .placement = "two cores" };
		bool huge = table[i].limit == limit_huge;

		snprintf(variant, sizeof(variant), "%s of 256 of %s", table[i].variant, blocks);
		snprintf(limit_is, sizeof(limit_is), "%s%s", table[i].limit_is,
		         huge && table_huge_bytes(&h->huge) < h->huge.bytes / 2 ? " (not given)" : "");
		f.goal = table[i].goal ? GOAL_RATIO_AT_MOST : GOAL_NONE;
		f.bound = 1.5;
		h->scattered = table[i].scattered;
		bench_compare(&f, ROUNDS, table[i].limit, table[i].ours, h);
		bench_print(&f);
		if (i == 0)
			first = f.ratio;
	}
	h->scattered = false;
	return first;
}

static void hot_p99(struct hot *h, const char *name)
{
	double values[ROUNDS];
	struct figure f = { .name = name, .variant = "match + pin, prefix: p99", .unit = "us", .placement = "two cores" };

	for (unsigned i = 0; i < ROUNDS; i++)
		values[i] = ours_match_p99(h);
	bench_from(&f, NULL, values, ROUNDS);
	bench_print(&f);
}

struct crowd {
	const char *socket;
	uint64_t resident;
};

/* SESSIONS - 1 sessions that have looked up and still hold something. */
static void crowd_main(struct client_self *self, void *arg)
{
	const struct crowd *c = arg;
	uint8_t keys[PREFIX * FILL_KEY_BYTES];
	struct kvbm_span spans[PREFIX];
	uint64_t random = 7;

	for (unsigned i = 0; i < SESSIONS - 1; i++) {
		struct kvbm *kvbm;
		struct kvbm_ns *ns;

		fill_attach(c->socket, LANE_BYTES, 0, &kvbm, &ns);
		for (unsigned k = 0; k < 64; k++) {
			fill_keys(bench_random(&random) % (c->resident - PREFIX), PREFIX, keys);
			must_eq(kvbm_match(ns, keys, PREFIX, 0, spans), PREFIX);
			if (k > 0)
				must_eq(kvbm_release(ns, spans, PREFIX), PREFIX);
		}
	}
	client_at(self, "attached");
}

/* The sessions cannot come and go between rounds: each side is measured against the table, and those ratios are compared. */
static void hot_crowd(struct hot *h, double alone)
{
	struct crowd c = { .socket = h->fill.daemon.socket, .resident = h->fill.resident };
	struct figure f = { .unit = "us", .placement = "two cores" };
	struct figure p2 = { .name = "P2",
		             .variant = "match + pin, prefix, with 64 sessions",
		             .unit = "x table",
		             .limit_is = "with one session",
		             .placement = "two cores",
		             .goal = GOAL_RATIO_AT_MOST,
		             .bound = 1.2 };
	struct client_proc proc;
	uint64_t start;

	client_start(&proc, crowd_main, &c);
	bench_place(proc.pid, BENCH_ANY_CPU);
	client_await(&proc, "attached");
	bench_compare(&f, ROUNDS, limit_huge, ours_match, h);
	p2.value = f.ratio;
	p2.limit = alone;
	p2.ratio = f.ratio / alone;
	p2.spread = f.spread;
	p2.rounds = f.rounds;
	bench_print(&p2);
	(void)daemon_monitor(&h->fill.daemon);
	start = clock_now_ns();
	client_kill(&proc);
	daemon_await_metric(&h->fill.daemon, "sessions", 2);
	bench_say("P2", "63 sessions that died together were cleared away in %.0f ms",
	          (double)(clock_now_ns() - start) / 1e6);
}

/* ---- P11 ---- */

static void metadata_figure(struct hot *h)
{
	struct figure f = { .name = "P11", .unit = "bytes a block", .goal = GOAL_VALUE_AT_MOST, .bound = 128 };
	double used = (double)fill_ask(h->fill.kvbm, "namespaces", "bench", "used");
	double slots = (double)fill_ask(h->fill.kvbm, "namespaces", "bench", "max_slots");
	char variant[64];

	f.value = (double)fill_ask(h->fill.kvbm, "namespaces", "bench", "metadata_bytes") / used;
	snprintf(variant, sizeof(variant), "metadata, %.0f blocks", used);
	f.variant = variant;
	bench_print(&f);
	bench_say("P11",
	          "and 4 bytes of pins a block and session at most: %.1f MiB a session here, as far as it touches them",
	          4 * slots / 1048576);
}

/* ---- P14 ---- */

struct runner {
	struct client_proc proc;
	const char *socket;
	uint64_t resident, random;
};

static void runner_main(struct client_self *self, void *arg)
{
	struct runner *r = arg;
	static uint8_t keys[64][PREFIX * FILL_KEY_BYTES];
	struct kvbm_span spans[PREFIX];
	struct kvbm *kvbm;
	struct kvbm_ns *ns;

	fill_attach(r->socket, LANE_BYTES, 0, &kvbm, &ns);
	for (;;) {
		uint64_t start, now, blocks = 0;
		double rate;

		for (unsigned i = 0; i < 64; i++)
			fill_keys(bench_random(&r->random) % (r->resident - PREFIX), PREFIX, keys[i]);
		client_at(self, "ready");
		start = clock_now_ns();
		do {
			for (unsigned i = 0; i < 64; i++, blocks += PREFIX) {
				must_eq(kvbm_match(ns, keys[i], PREFIX, 0, spans), PREFIX);
				must_eq(kvbm_release(ns, spans, PREFIX), PREFIX);
			}
			now = clock_now_ns();
		} while (now - start < 2 * ROUND_NS);
		rate = (double)blocks * 1e3 / (double)(now - start);
		client_pass(self, "done");
		client_tell(self, &rate, sizeof(rate));
	}
}

static double runners_rate(struct runner *runners, unsigned n)
{
	double sum = 0, rate;

	for (unsigned i = 0; i < n; i++)
		client_go(&runners[i].proc);
	for (unsigned i = 0; i < n; i++) {
		client_await(&runners[i].proc, "done");
		client_result(&runners[i].proc, &rate, sizeof(rate));
		client_await(&runners[i].proc, "ready");
		sum += rate;
	}
	return sum;
}

static void throughput_figures(struct hot *h)
{
	struct runner runners[MAX_CLIENTS];
	double one[ROUNDS], many[ROUNDS], limit[ROUNDS];
	unsigned cpus = bench_cpus() < MAX_CLIENTS ? bench_cpus() : MAX_CLIENTS;

	for (unsigned i = 0; i < cpus; i++) {
		runners[i] = (struct runner){ .socket = h->fill.daemon.socket, .resident = h->fill.resident, .random = i };
		client_start(&runners[i].proc, runner_main, &runners[i]);
		client_await(&runners[i].proc, "ready");
		bench_place(runners[i].proc.pid, (int)i);
	}
	for (unsigned n = 1; n <= cpus; n *= 2) {
		char variant[64];
		struct figure f = { .name = "P14",
			            .variant = variant,
			            .unit = "M blocks/s",
			            .limit_is = "one client times their number",
			            .placement = "a core each",
			            .goal = n > 1 ? GOAL_RATIO_AT_LEAST : GOAL_NONE,
			            .bound = 0.9 };

		snprintf(variant, sizeof(variant), "match + pin + release, %u client%s", n, n > 1 ? "s" : "");
		for (unsigned i = 0; i < ROUNDS; i++) {
			one[i] = runners_rate(runners, 1);
			many[i] = n > 1 ? runners_rate(runners, n) : one[i];
			limit[i] = one[i] * n;
		}
		bench_from(&f, n > 1 ? limit : NULL, many, ROUNDS);
		bench_print(&f);
	}
	for (unsigned i = 0; i < cpus; i++)
		client_kill(&runners[i].proc);
}

/* ---- */

static uint64_t large(void)
{
	uint64_t blocks = 10000000;

	if (bench_available_bytes() < UINT64_C(6) << 30) {
		blocks = 4000000;
		bench_say("P2", "less than 6 GiB of memory are free: 4 M blocks, not 10 M");
	}
	return blocks;
}

static void hot_run(const char *name, const char *text, uint64_t blocks, bool metadata)
{
	static struct hot h;
	double alone;

	hot_start(&h, blocks);
	bench_say(name, "%s blocks were stored in %.1f s", text, h.fill.seconds);
	if (metadata)
		metadata_figure(&h);
	if (bench_wanted(name)) {
		alone = hot_figures(&h, name, text);
		hot_p99(&h, name);
		if (strcmp(name, "P2") == 0)
			hot_crowd(&h, alone);
	}
	if (strcmp(name, "P1") == 0 && bench_wanted("P14"))
		throughput_figures(&h);
	hot_stop(&h);
}

int main(void)
{
	bool metadata = bench_wanted("P11");
	char text[32];
	uint64_t blocks;

	if (!bench_wanted("P1") && !bench_wanted("P2") && !bench_wanted("P14") && !metadata)
		return 0;
	bench_init();
	if (bench_wanted("P1") || bench_wanted("P14") || metadata)
		hot_run("P1", "1 M", 1000000, metadata);
	if (bench_wanted("P2")) {
		blocks = large();
		snprintf(text, sizeof(text), "%llu M", (unsigned long long)blocks / 1000000);
		hot_run("P2", text, blocks, true);
	}
	return 0;
}
