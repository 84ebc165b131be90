/* SPDX-License-Identifier: Apache-2.0 */
/* P7, P8, P10 through the whole daemon: blocks go down because a client stores more than memory holds, and come up because it asks for them;
 * what others notice of that; how soon a restarted daemon knows again what is below, and what blocks wait for that come up then (P9).
 */
#include <jansson.h>
#include <poll.h>
#include <stdlib.h>

#include "tests/bench/bench.h"
#include "tests/bench/fill.h"
#include "tests/bench/fio.h"

#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)
#define G2_BYTES (256 * MIB)
#define G3_BYTES (2 * GIB)
#define ROUND_MS 300u
#define ROUNDS 7u
#define RUN_MAX 256u
#define BRINGERS \
	2u /* clients who ask for blocks: one that waits until all it asked for is there leaves the drive idle in between */

struct tiers {
	struct daemon_proc daemon;
	struct kvbm *kvbm;  /* owns */
	struct kvbm_ns *ns; /* borrows */
	struct tmpdir dir;
	char path[128], fio_path[128];
	uint64_t lane_bytes, next; /* block numbers stored so far are below it */
	uint32_t batch;            /* in one call */
	bool random;
	uint64_t at, state; /* which run comes up next */
	struct client_proc bringers[BRINGERS];
};

static char g2_size[40];

/* From its next start on. */
static void tiers_resize(uint64_t g2)
{
	snprintf(g2_size, sizeof(g2_size), "--g2.size=%llu", (unsigned long long)g2);
}

static void tiers_start(struct tiers *t, uint64_t g2, uint64_t g3, uint64_t lane_bytes, unsigned depth)
{
	static char g3_size[40], g3_path[160], g3_depth[40];
	static const char *flags[] = { g2_size,
		                       g3_size,
		                       g3_path,
		                       g3_depth,
		                       "--limits.slots_per_session=1048576",
		                       "--limits.slots_per_uid=1048576",
		                       NULL };

	tiers_resize(g2);
	snprintf(g3_size, sizeof(g3_size), "--g3.size=%llu", (unsigned long long)g3);
	snprintf(g3_path, sizeof(g3_path), "--g3.path=%s", t->path);
	snprintf(g3_depth, sizeof(g3_depth), "--g3.depth=%u", depth);
	t->lane_bytes = lane_bytes;
	t->next = t->at = 0;
	daemon_start(&t->daemon, flags);
	fill_attach(t->daemon.socket, lane_bytes, 0, &t->kvbm, &t->ns);
}

static void tiers_stop(struct tiers *t)
{
	kvbm_close(t->kvbm);
	daemon_deinit(&t->daemon);
	must(unlink(t->path) == 0);
}

static void tiers_files(struct tiers *t)
{
	tmpdir_make(&t->dir);
	tmpdir_path(&t->dir, "g3", t->path, sizeof(t->path));
	tmpdir_path(&t->dir, "fio", t->fio_path, sizeof(t->fio_path));
}

/* Until @blocks more were written below. */
static void tiers_store(struct tiers *t, uint64_t blocks)
{
	for (uint64_t end = t->next + blocks; t->next < end; t->next += t->batch)
		fill_store(t->ns, t->next, t->batch);
}

/* One run comes up, of blocks that were stored so long ago that memory has others, and not so long that they are no longer below.  Returns how many did. */
static uint32_t tiers_bring(struct tiers *t)
{
	uint8_t keys[RUN_MAX * FILL_KEY_BYTES];
	uint64_t newest = t->next - G2_BYTES / t->lane_bytes, runs = G3_BYTES / 4 / t->lane_bytes / t->batch;
	uint64_t run = (t->random ? bench_random(&t->state) : t->at++) % runs;
	int n;

	fill_keys(newest - (run + 1) * t->batch, t->batch, keys);
	n = kvbm_onboard(t->ns, keys, t->batch, NULL, NULL, NULL);
	must(n >= 0);
	return (uint32_t)n;
}

/* Is @member of the report on that tier @text? */
static bool tier_says(struct kvbm *kvbm, const char *tier, const char *member, const char *text)
{
	char *report = NULL;
	json_t *root;
	bool same;

	must(kvbm_info(kvbm, "tiers", tier, NULL, 0, &report) >= 0);
	root = json_loads(report, 0, NULL);
	must(json_is_string(json_object_get(json_array_get(root, 0), member)));
	same = strcmp(json_string_value(json_object_get(json_array_get(root, 0), member)), text) == 0;
	json_decref(root);
	free(report);
	return same;
}

/* ---- P7 ---- */

static void bringer_main(struct client_self *self, void *arg)
{
	struct tiers *t = arg;

	fill_attach(t->daemon.socket, t->lane_bytes, 0, &t->kvbm, &t->ns);
	for (;;) {
		client_at(self, "idle");
		while (!client_told(self))
			must_eq(tiers_bring(t), t->batch);
		client_pass(self, "halted");
	}
}

/* Each brings up other runs than the others. */
static void bringers_start(struct tiers *t)
{
	for (uint32_t i = 0; i < BRINGERS; i++) {
		struct tiers *own = malloc(sizeof(*own));

		must(own);
		*own = *t;
		own->at = i * (G3_BYTES / 4 / t->lane_bytes / t->batch) / BRINGERS;
		own->state += i;
		client_start(&t->bringers[i], bringer_main, own);
		client_await(&t->bringers[i], "idle");
		free(own); /* the client has its own copy of everything */
	}
}

static void bringers_stop(struct tiers *t)
{
	for (uint32_t i = 0; i < BRINGERS; i++)
		client_kill(&t->bringers[i]);
}

static void bringers_run(struct tiers *t, int ms)
{
	for (uint32_t i = 0; i < BRINGERS; i++)
		client_go(&t->bringers[i]);
	(void)poll(NULL, 0, ms);
	for (uint32_t i = 0; i < BRINGERS; i++) {
		client_lead(&t->bringers[i], "halted");
		client_await(&t->bringers[i], "idle");
	}
}

/* Of blocks that went one way in a round; all of the daemon's CPU time, requests and checksums included. */
static struct fio_result way_round(struct tiers *t, bool down)
{
	const char *metric = down ? "blocks_offloaded_total" : "blocks_onboarded_total";
	uint64_t before = daemon_metric(&t->daemon, metric), cpu = bench_cpu_ns(t->daemon.pid), start = clock_now_ns(),
		 end = start + ROUND_MS * CLOCK_NS_PER_MS, blocks, ns;

	while (down && clock_now_ns() < end)
		tiers_store(t, t->batch);
	if (!down)
		bringers_run(t, ROUND_MS);
	blocks = daemon_metric(&t->daemon, metric) - before;
	ns = clock_now_ns() - start;
	must(blocks > 0);
	return (struct fio_result){ .gb_per_s = (double)(blocks * t->lane_bytes) / (double)ns,
		                    .cpu_us = (double)(bench_cpu_ns(t->daemon.pid) - cpu) / 1e3 / (double)blocks };
}

static void way_figure(struct tiers *t, bool down, const char *size, unsigned depth, double bound)
{
	struct fio_job job = { .path = t->fio_path,
		               .size = G3_BYTES,
		               .block = t->lane_bytes,
		               .depth = depth,
		               .ms = ROUND_MS,
		               .write = down,
		               .random = t->random,
		               .memory = tier_says(t->kvbm, "g2", "pages", "hugetlb") ? FIO_HUGETLB
		                         : tier_says(t->kvbm, "g2", "pages", "thp")   ? FIO_THP
		                                                                      : FIO_SMALL_PAGES };
	double rate[2][ROUNDS], cpu[2][ROUNDS];
	char variant[100];
	struct figure f = { .name = "P7",
		            .variant = variant,
		            .unit = "GB/s",
		            .limit_is = "fio",
		            .goal = GOAL_RATIO_AT_LEAST,
		            .bound = bound };

	(void)way_round(t, down);
	for (unsigned i = 0; i < ROUNDS; i++) {
		struct fio_result fio = fio_run(&job), ours = way_round(t, down);

		rate[0][i] = fio.gb_per_s;
		rate[1][i] = ours.gb_per_s;
		cpu[0][i] = fio.cpu_us;
		cpu[1][i] = ours.cpu_us;
	}
	snprintf(variant, sizeof(variant), "daemon, %s %s, %s of %u", down ? "offload of" : "onboard of", size,
	         down        ? "stores"
	         : t->random ? "random runs"
	                     : "runs in order",
	         t->batch);
	bench_from(&f, rate[0], rate[1], ROUNDS);
	bench_print(&f);
	if (t->random)
		return;
	snprintf(variant, sizeof(variant), "CPU a block, daemon with its checksums, %s %s",
	         down ? "offload of" : "onboard of", size);
	f.unit = "us";
	f.goal = GOAL_NONE;
	bench_from(&f, cpu[0], cpu[1], ROUNDS);
	bench_print(&f);
}

/* @depth: as many as the daemon has in flight of that size by its defaults. */
static void p7_size(struct tiers *t, const char *size, uint64_t lane_bytes, unsigned depth, double bound)
{
	tiers_start(t, G2_BYTES, G3_BYTES, lane_bytes, 32);
	t->random = false;
	tiers_store(t, (G2_BYTES + G3_BYTES) / lane_bytes); /* every place was written once */
	way_figure(t, true, size, depth, bound);
	for (int random = 0; random < 2; random++) {
		t->random = random;
		bringers_start(t);
		way_figure(t, false, size, depth, bound);
		bringers_stop(t);
	}
	must_eq(daemon_metric(&t->daemon, "checksum_errors_total"), 0);
	must_eq(daemon_metric(&t->daemon, "offloads_failed_total"), 0);
	tiers_stop(t);
}

static void p7(struct tiers *t)
{
	if (!fio_is_there()) {
		bench_say("P7", "left out: fio is not installed");
		return;
	}
	fio_fill(t->fio_path, G3_BYTES);
	t->batch = 16;
	p7_size(t, "2 MiB", 2 * MIB, 8, 0.95);
	t->batch = RUN_MAX;
	p7_size(t, "64 KiB", 64 << 10, 32, 0.85);
	must(unlink(t->fio_path) == 0);
}

/* ---- P8 ---- */

#define P8_ROUNDS 15u
#define P8_STARTS 5u

/* Stores a batch, brings up a run of old blocks, and so on. */
static void mover_main(struct client_self *self, void *arg)
{
	struct tiers *t = arg;

	fill_attach(t->daemon.socket, t->lane_bytes, 0, &t->kvbm, &t->ns);
	for (;;) {
		uint64_t moved = 0;

		client_at(self, "idle");
		while (!client_told(self)) {
			tiers_store(t, t->batch);
			moved += t->batch + tiers_bring(t);
		}
		client_pass(self, "halted");
		client_tell(self, &moved, sizeof(moved));
	}
}

/* Until what the last round left to be copied is copied. */
static void tiers_settle(struct tiers *t)
{
	uint64_t last = UINT64_MAX, now = 0;

	while (last != now || fill_ask(t->kvbm, "tiers", "g3", "in_flight") > 0) {
		last = now;
		(void)poll(NULL, 0, 20);
		now = daemon_metric(&t->daemon, "bytes_offloaded_total");
	}
}

static double ping_p99(struct tiers *t, struct samples *samples)
{
	uint64_t end = clock_now_ns() + ROUND_MS * CLOCK_NS_PER_MS, from, to;

	samples_clear(samples);
	do {
		from = clock_now_ns();
		must_eq(kvbm_ping(t->kvbm), 0);
		to = clock_now_ns();
		samples_add(samples, to - from);
	} while (to < end);
	return samples_quantile(samples, 0.99);
}

static void spinner_main(struct client_self *self, void *arg)
{
	(void)arg;
	for (;;) {
		client_at(self, "idle");
		while (!client_told(self))
			;
		client_pass(self, "halted");
	}
}

/* A run of blocks, asked for one after the other. */
static double bring_p99(struct tiers *t, struct samples *samples)
{
	uint64_t end = clock_now_ns() + ROUND_MS * CLOCK_NS_PER_MS, from, to;

	samples_clear(samples);
	do {
		from = clock_now_ns();
		must_eq(tiers_bring(t), t->batch);
		to = clock_now_ns();
		samples_add(samples, to - from);
	} while (to < end);
	return samples_quantile(samples, 0.99);
}

/* Engines wait for their devices by spinning: a node's cores are busy when it is. */
static void p8_busy_cores(struct tiers *t, const char *size, struct samples *samples)
{
	char variant[100];
	struct figure f = { .name = "P8", .variant = variant, .unit = "us", .limit_is = "p99 when idle", .goal = GOAL_NONE };
	double quiet[P8_ROUNDS], busy[P8_ROUNDS];
	struct client_proc spinners[8];
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	bool random = t->random;

	if (cores > 8) {
		bench_say("P8", "more than 8 cores: not made busy");
		return;
	}
	for (long i = 0; i < cores; i++) {
		client_start(&spinners[i], spinner_main, NULL);
		client_await(&spinners[i], "idle");
	}
	t->random = false; /* none that is in memory still */
	for (unsigned i = 0; i < P8_ROUNDS; i++) {
		quiet[i] = bring_p99(t, samples);
		for (long k = 0; k < cores; k++)
			client_go(&spinners[k]);
		busy[i] = bring_p99(t, samples);
		for (long k = 0; k < cores; k++) {
			client_lead(&spinners[k], "halted");
			client_await(&spinners[k], "idle");
		}
	}
	t->random = random;
	for (long i = 0; i < cores; i++)
		client_kill(&spinners[i]);
	snprintf(variant, sizeof(variant), "p99 of %u blocks of %s brought up while every core is busy", t->batch, size);
	bench_from(&f, quiet, busy, P8_ROUNDS);
	bench_print(&f);
}

static void p8_size(struct tiers *t, const char *size, uint64_t lane_bytes)
{
	char variant[100];
	struct figure f = { .name = "P8",
		            .variant = variant,
		            .unit = "us",
		            .limit_is = "p99 when idle",
		            .goal = GOAL_RATIO_AT_MOST,
		            .bound = 3 };
	double quiet[P8_ROUNDS], busy[P8_ROUNDS];
	struct client_proc mover;
	struct samples samples;
	uint64_t moved = 0;

	samples_init(&samples, 200000);
	tiers_start(t, G2_BYTES, G3_BYTES, lane_bytes, 32);
	tiers_store(t, (G2_BYTES + G3_BYTES) / lane_bytes);
	tiers_settle(t);
	p8_busy_cores(t, size, &samples);
	client_start(&mover, mover_main, t);
	client_await(&mover, "idle");
	(void)ping_p99(t, &samples);
	for (unsigned i = 0; i < P8_ROUNDS; i++) {
		uint64_t n;

		tiers_settle(t);
		quiet[i] = ping_p99(t, &samples);
		client_go(&mover);
		busy[i] = ping_p99(t, &samples);
		client_lead(&mover, "halted");
		client_result(&mover, &n, sizeof(n));
		client_await(&mover, "idle");
		moved += n;
	}
	client_kill(&mover);
	snprintf(variant, sizeof(variant), "no-op p99 while blocks of %s go down and up", size);
	bench_from(&f, quiet, busy, P8_ROUNDS);
	bench_print(&f);
	bench_say("P8", "meanwhile %.2f GB/s of blocks of %s were stored or brought up",
	          (double)(moved * lane_bytes) / (P8_ROUNDS * ROUND_MS * 1e6), size);
	tiers_stop(t);
	samples_deinit(&samples);
}

/* The first engine of a daemon that has just started uses memory that nobody has touched. */
static void p8_start(struct tiers *t)
{
	char variant[100];
	struct figure f = { .name = "P8", .variant = variant, .unit = "us", .limit_is = "p99 when idle", .goal = GOAL_NONE };
	double quiet[P8_STARTS], busy[P8_STARTS], worst = 0;
	uint64_t bytes = 8 * GIB;
	struct samples samples;

	while (bytes > GIB && bytes + 2 * GIB > bench_available_bytes())
		bytes /= 2;
	samples_init(&samples, 200000);
	for (unsigned i = 0; i < P8_STARTS; i++) {
		struct fill_storer storer = { .lane_bytes = 2 * MIB, .first = 1, .batch = 16 };

		tiers_start(t, bytes, GIB, 2 * MIB, 32);
		storer.socket = t->daemon.socket;
		fill_storer_start(&storer);
		fill_storer_go(&storer);
		busy[i] = ping_p99(t, &samples);
		if (samples_quantile(&samples, 1) > worst)
			worst = samples_quantile(&samples, 1);
		(void)fill_storer_halt(&storer);
		fill_storer_end(&storer);
		tiers_settle(t);
		while (fill_ask(t->kvbm, "tiers", "g2", "touched_bytes") < bytes)
			(void)poll(NULL, 0, 5);
		quiet[i] = ping_p99(t, &samples);
		tiers_stop(t);
	}
	snprintf(variant, sizeof(variant), "no-op p99 while a client stores in %llu GiB that are new",
	         (unsigned long long)(bytes / GIB));
	bench_from(&f, quiet, busy, P8_STARTS);
	bench_print(&f);
	bench_say("P8", "and at worst %.1f ms", worst / 1e3);
	samples_deinit(&samples);
}

static void p8(struct tiers *t)
{
	t->random = true;
	t->batch = 16;
	p8_size(t, "2 MiB", 2 * MIB);
	t->batch = 64;
	p8_size(t, "64 KiB", 64 << 10);
	p8_start(t);
}

/* ---- P9 ---- */

#define P9_BLOCKS 4096u
#define P9_ROUNDS 3u
#define P9_SAMPLES 500u
#define P9_LANE (UINT64_C(64) << 10)

/* One block after the other, with pauses, until @touched bytes of memory are there or a round is full; or, with 0, a full round.
 * 0: they were there from the start. */
static double up_p99(struct tiers *t, struct samples *samples, uint64_t touched)
{
	uint8_t key[FILL_KEY_BYTES];

	samples_clear(samples);
	while (samples->n < P9_SAMPLES && (touched == 0 || fill_ask(t->kvbm, "tiers", "g2", "touched_bytes") < touched)) {
		uint64_t from = clock_now_ns();

		fill_keys(t->at++, 1, key);
		must_eq(kvbm_onboard(t->ns, key, 1, NULL, NULL, NULL), 1);
		samples_add(samples, clock_now_ns() - from);
		(void)poll(NULL, 0, 2);
	}
	return samples->n > 0 ? samples_quantile(samples, 0.99) : 0;
}

/* A daemon that has started touches its memory for seconds to minutes; the same workers check what comes up. */
static void p9(struct tiers *t)
{
	char variant[100];
	struct figure f = { .name = "P9", .variant = variant, .unit = "us", .limit_is = "when all is touched", .goal = GOAL_NONE };
	double during[P9_ROUNDS], after[P9_ROUNDS];
	uint64_t bytes = 8 * GIB;
	struct samples samples;
	unsigned n = 0;

	while (bytes > GIB && bytes + 2 * GIB > bench_available_bytes())
		bytes /= 2;
	samples_init(&samples, P9_SAMPLES);
	tiers_start(t, 64 * MIB, GIB, P9_LANE, 32);
	t->batch = 64;
	tiers_store(t, P9_BLOCKS + 64 * MIB / P9_LANE);
	tiers_settle(t);
	for (unsigned i = 0; i < P9_ROUNDS; i++) {
		daemon_kill(&t->daemon);
		tiers_resize(bytes);
		daemon_run(&t->daemon);
		while (kvbm_ping(t->kvbm) != 0)
			;
		fill_store(t->ns, t->next, 1); /* attached again */
		t->next++;
		while (!tier_says(t->kvbm, "g3", "state", "online"))
			(void)poll(NULL, 0, 1);
		t->at = 0;
		during[n] = up_p99(t, &samples, bytes);
		while (fill_ask(t->kvbm, "tiers", "g2", "touched_bytes") < bytes)
			(void)poll(NULL, 0, 5);
		after[n] = up_p99(t, &samples, 0);
		n += during[n] > 0;
	}
	snprintf(variant, sizeof(variant), "p99 of a block of 64 KiB brought up while %llu GiB are touched",
	         (unsigned long long)(bytes / GIB));
	if (n > 0) {
		bench_from(&f, after, during, n);
		bench_print(&f);
	} else {
		bench_say("P9", "all memory was touched before a block could be asked for");
	}
	samples_deinit(&samples);
	tiers_stop(t);
}

/* ---- P10 ---- */

#define P10_BLOCKS 1000000u
#define P10_LANE 4096u
#define P10_STARTS 5u

/* From READY on, until it serves what is below; others are served meanwhile.  Returns blocks a second. */
static double recovery(struct tiers *t, struct samples *stores, uint64_t *ret_found)
{
	uint64_t start, first, now;

	daemon_kill(&t->daemon);
	daemon_run(&t->daemon);
	while (kvbm_ping(t->kvbm) != 0)
		;
	fill_store(t->ns, t->next, 16); /* attached again */
	t->next += 16;
	start = clock_now_ns();
	first = daemon_metric(&t->daemon, "blocks_recovered_total");
	do {
		uint64_t from = clock_now_ns();

		fill_store(t->ns, t->next, 16);
		fill_verify(t->ns, t->next, 16);
		t->next += 16;
		now = clock_now_ns();
		samples_add(stores, now - from);
	} while (!tier_says(t->kvbm, "g3", "state", "online"));
	*ret_found = daemon_metric(&t->daemon, "blocks_recovered_total");
	return (double)(*ret_found - first) * 1e9 / (double)(now - start);
}

/* Bytes a block that has a copy there. */
static double g3_metadata(struct tiers *t)
{
	char *report = NULL;
	json_t *root;
	const json_t *g3;
	double bytes;

	must(kvbm_info(t->kvbm, "namespaces", "bench", NULL, 0, &report) >= 0);
	root = json_loads(report, 0, NULL);
	g3 = json_object_get(json_is_array(root) ? json_array_get(root, 0) : root, "g3");
	must(json_is_integer(json_object_get(g3, "metadata_bytes")) && json_is_integer(json_object_get(g3, "used")));
	bytes = (double)json_integer_value(json_object_get(g3, "metadata_bytes")) /
	        (double)json_integer_value(json_object_get(g3, "used"));
	json_decref(root);
	free(report);
	return bytes;
}

static void p10(struct tiers *t)
{
	struct figure f = { .name = "P10",
		            .variant = "recovery of 1 M blocks of 4 KiB while G2 serves",
		            .unit = "blocks/s",
		            .goal = GOAL_VALUE_AT_LEAST,
		            .bound = 1e6 };
	double rates[P10_STARTS];
	struct figure metadata = { .name = "P11",
		                   .variant = "metadata, 1 M blocks on G3",
		                   .unit = "bytes a block",
		                   .goal = GOAL_VALUE_AT_MOST,
		                   .bound = 96 };
	struct samples stores;
	uint64_t start = clock_now_ns(), found = 0;

	samples_init(&stores, 100000);
	tiers_start(t, 64 * MIB, P10_BLOCKS * UINT64_C(5) * 1024, P10_LANE, 64);
	t->batch = 512;
	tiers_store(t, P10_BLOCKS + 64 * MIB / P10_LANE);
	bench_say("P10", "%llu blocks were written down in %.1f s",
	          (unsigned long long)daemon_metric(&t->daemon, "blocks_offloaded_total"),
	          (double)(clock_now_ns() - start) / 1e9);
	metadata.value = g3_metadata(t);
	bench_print(&metadata);
	for (unsigned i = 0; i < P10_STARTS; i++)
		rates[i] = recovery(t, &stores, &found);
	bench_from(&f, NULL, rates, P10_STARTS);
	bench_print(&f);
	bench_say("P10", "%llu blocks were found the last time", (unsigned long long)found);
	bench_say("P10", "meanwhile 16 blocks were stored, matched and compared in %.0f us (median), %.0f us at worst",
	          samples_quantile(&stores, 0.5), samples_quantile(&stores, 1));
	samples_deinit(&stores);
	tiers_stop(t);
}

int main(void)
{
	static struct tiers t;

	if (!bench_wanted("P7") && !bench_wanted("P8") && !bench_wanted("P9") && !bench_wanted("P10"))
		return 0;
	bench_init();
	tiers_files(&t);
	if (bench_wanted("P7"))
		p7(&t);
	if (bench_wanted("P8"))
		p8(&t);
	if (bench_wanted("P9"))
		p9(&t);
	if (bench_wanted("P10"))
		p10(&t);
	tmpdir_remove(&t.dir);
	return 0;
}
