/* SPDX-License-Identifier: Apache-2.0 */
/* P9, P17: how soon a daemon serves, how soon all of its memory is there, and what it costs when nobody wants anything. */
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "tests/bench/bench.h"
#include "tests/bench/fill.h"

#define GIB (UINT64_C(1) << 30)
#define PIECE (UINT64_C(64) << 20)
#define LANE_BYTES (UINT64_C(64) << 10)
#define IDLE_MS 3000
#define P9_STARTS 5u
#define P9_POOLS 3u

/* ---- P9 ---- */

static void start_daemon(struct daemon_proc *d, uint64_t bytes)
{
	static char size[40];
	static const char *flags[] = { size, NULL };

	snprintf(size, sizeof(size), "--g2.size=%llu", (unsigned long long)bytes);
	daemon_init(d, NULL, flags);
}

/* From the start of the process to the first block read back, in milliseconds; the daemon is left running. */
static double first_block(struct daemon_proc *d, struct kvbm **ret_kvbm)
{
	uint64_t start = clock_now_ns();
	uint8_t key[FILL_KEY_BYTES];
	struct kvbm_span span;
	struct kvbm_ns *ns;
	uint8_t *data;

	daemon_spawn(d);
	fill_attach(d->socket, LANE_BYTES, 0, ret_kvbm, &ns); /* the connection waits in the socket that it will inherit */
	fill_keys(1, 1, key);
	must_eq(kvbm_reserve(ns, KVBM_ALL_LANES, key, 1, &span, NULL), 1);
	data = kvbm_data(ns, &span, 0);
	must(data);
	memset(data, 0x5a, LANE_BYTES);
	must_eq(kvbm_commit(ns, KVBM_ALL_LANES, &span, key, 1, NULL, 0), 1);
	must_eq(kvbm_match(ns, key, 1, 0, &span), 1);
	data = kvbm_data(ns, &span, 0);
	must(data && data[0] == 0x5a && data[LANE_BYTES - 1] == 0x5a);
	return (double)(clock_now_ns() - start) / 1e6;
}

struct touch {
	uint8_t *base;
	uint64_t bytes;
	_Atomic uint64_t next;
};

static void *touch_main(void *arg)
{
	struct touch *t = arg;
	uint64_t at;

	while ((at = atomic_fetch_add(&t->next, PIECE)) < t->bytes) {
		uint64_t n = t->bytes - at < PIECE ? t->bytes - at : PIECE;

		if (madvise(t->base + at, n, MADV_POPULATE_WRITE) != 0)
			memset(t->base + at, 0, n);
	}
	return NULL;
}

/* The limit: as many threads as cores touch a memfd of that size.  GiB/s. */
static double touch_all(uint64_t bytes)
{
	struct touch t = { .bytes = bytes };
	pthread_t threads[64];
	unsigned n = bench_cpus() < 64 ? bench_cpus() : 64;
	int fd = memfd_create("bench-touch", MFD_CLOEXEC);
	uint64_t start;
	double seconds;

	must(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
	t.base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	must(t.base != MAP_FAILED);
	(void)madvise(t.base, bytes, MADV_HUGEPAGE);
	start = clock_now_ns();
	for (unsigned i = 0; i < n; i++)
		must(pthread_create(&threads[i], NULL, touch_main, &t) == 0);
	for (unsigned i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	seconds = (double)(clock_now_ns() - start) / 1e9;
	must(munmap(t.base, bytes) == 0);
	close(fd);
	return (double)bytes / (double)GIB / seconds;
}

/* The daemon goes on touching memory meanwhile; it is not waited for. */
static double first_block_alone(uint64_t bytes)
{
	struct daemon_proc d;
	struct kvbm *kvbm;
	double ms;

	start_daemon(&d, bytes);
	ms = first_block(&d, &kvbm);
	daemon_kill(&d);
	kvbm_close(kvbm);
	daemon_deinit(&d);
	return ms;
}

/* GiB/s from the start of the process until all is touched. */
static double pool_ready(uint64_t bytes)
{
	struct daemon_proc d;
	struct kvbm *kvbm;
	uint64_t start;
	double seconds;

	start_daemon(&d, bytes);
	start = clock_now_ns();
	(void)first_block(&d, &kvbm);
	while (fill_ask(kvbm, "tiers", "g2", "touched_bytes") < bytes)
		(void)poll(NULL, 0, 5);
	seconds = (double)(clock_now_ns() - start) / 1e9;
	kvbm_close(kvbm);
	daemon_deinit(&d);
	return (double)bytes / (double)GIB / seconds;
}

static void p9(void)
{
	double first[P9_STARTS], ready[P9_POOLS], limit[P9_POOLS];
	struct figure f = { .name = "P9", .unit = "ms", .goal = GOAL_VALUE_AT_MOST, .bound = 100 };
	struct figure full = { .name = "P9",
		               .unit = "GiB/s",
		               .limit_is = "parallel first touch of a memfd",
		               .goal = GOAL_RATIO_AT_LEAST,
		               .bound = 0.8 };
	char variant[64];
	uint64_t bytes = 8 * GIB;

	while (bytes > GIB && bytes + 2 * GIB > bench_available_bytes())
		bytes /= 2;
	for (unsigned i = 0; i < P9_STARTS; i++)
		first[i] = first_block_alone(bytes);
	snprintf(variant, sizeof(variant), "start to first block served, %llu GiB", (unsigned long long)(bytes / GIB));
	f.variant = variant;
	bench_from(&f, NULL, first, P9_STARTS);
	bench_print(&f);
	/* A part of it says the same in less time: small pages of a virtual machine come at a quarter of a GiB a second. */
	bytes /= 4;
	for (unsigned i = 0; i < P9_POOLS; i++) {
		limit[i] = touch_all(bytes);
		ready[i] = pool_ready(bytes);
	}
	snprintf(variant, sizeof(variant), "full pool, %.3g GiB", (double)bytes / (double)GIB);
	full.variant = variant;
	bench_from(&full, limit, ready, P9_POOLS);
	bench_print(&full);
}

/* ---- P17 ---- */

static uint64_t status_kib(pid_t pid, const char *name)
{
	char path[64], line[256];
	unsigned long kib = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	f = fopen(path, "re");
	must(f);
	while (fgets(line, sizeof(line), f))
		if (strncmp(line, name, strlen(name)) == 0)
			kib = strtoul(line + strlen(name) + 1, NULL, 10);
	fclose(f);
	return kib;
}

static void idle_figures(struct fill *f, const char *state)
{
	char variant[80];
	struct figure cpu = { .name = "P17", .variant = variant, .unit = "% of a core", .goal = GOAL_VALUE_AT_MOST, .bound = 0.1 };
	struct figure rss = { .name = "P17", .variant = variant, .unit = "MiB", .goal = GOAL_VALUE_AT_MOST, .bound = 32 };
	uint64_t before = bench_cpu_ns(f->daemon.pid), start = clock_now_ns();

	(void)poll(NULL, 0, IDLE_MS);
	cpu.value = 100.0 * (double)(bench_cpu_ns(f->daemon.pid) - before) / (double)(clock_now_ns() - start);
	snprintf(variant, sizeof(variant), "idle CPU, %s", state);
	bench_print(&cpu);
	/* Shared memory is the pool and what LIMITS counts as metadata (P11). */
	rss.value = (double)(status_kib(f->daemon.pid, "RssAnon") + status_kib(f->daemon.pid, "RssFile")) / 1024;
	snprintf(variant, sizeof(variant), "RSS beyond shared memory, %s", state);
	bench_print(&rss);
	bench_say("P17", "%s: RSS of shared memory %.1f MiB", state, (double)status_kib(f->daemon.pid, "RssShmem") / 1024);
}

static void p17(void)
{
	struct fill f;

	fill_start(&f, 100000, 4096);
	fill_settle(&f);
	idle_figures(&f, "one session, nothing stored");
	fill_blocks(&f, 100000);
	idle_figures(&f, "one session, 100,000 blocks");
	kvbm_close(f.kvbm);
	f.kvbm = NULL;
	idle_figures(&f, "nobody there, 100,000 blocks");
	fill_stop(&f);
}

int main(void)
{
	if (!bench_wanted("P9") && !bench_wanted("P17"))
		return 0;
	bench_init();
	if (bench_wanted("P9"))
		p9();
	if (bench_wanted("P17"))
		p17();
	return 0;
}
