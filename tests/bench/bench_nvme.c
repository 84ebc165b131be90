/* SPDX-License-Identifier: Apache-2.0 */
/* P7: the NVMe tier by itself, copying between host memory and a file, against fio on a file of the same size beside it; and LMCache on that one, where it is
 * installed.
 *
 * The owner here does what move/ does and no more: it forgets what places hold, some at a time, before it writes them anew, gives tags when it is
 * asked for them, and begins the next copy when one ends.  Each slot's bytes name their place at both ends, which is looked at whenever one is read.
 */
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "base/thread.h"
#include "loop/loop.h"
#include "tests/bench/bench.h"
#include "tests/bench/fio.h"
#include "tests/bench/lmcache.h"
#include "tests/lib/tmpdir.h"
#include "tier/nvme.h"

#define FILE_BYTES (UINT64_C(2) << 30)
#define ROUND_MS 250u
#define ROUNDS 7u
#define DEPTH_MAX 16u
#define AHEAD 32u

struct nvme_bench;

struct copy {
	struct tier_io io; /* first */
	struct nvme_bench *b;
	uint32_t place; /* numbered through all areas */
};

struct nvme_bench {
	struct tmpdir dir;
	char path[128], fio_path[128];
	enum fio_memory memory;
	struct lmcache *lmcache; /* owns; NULL: not there */
	struct loop *loop;
	struct tier_lower *t;
	struct tier_region region;
	struct tier_area_shape shape;
	uint32_t *ids, *orders; /* of areas: which was made i-th, and i of each */
	uint32_t n_areas, area_slots, n_places;
	uint8_t *present, *busy; /* by place */
	struct copy copies[DEPTH_MAX];
	uint32_t depth, flying;
	/* the round */
	bool write, random, cold, recovered, closed;
	uint64_t end_ns, blocks, blocks_ever, next, next_memory, state;
	/* to be written: a ring of places, set free AHEAD at a time when as many are left */
	uint32_t ahead[2 * AHEAD], n_ahead, at_ahead;
};

/* ---- what the tier asks and tells ---- */

static uint32_t place_number(const struct nvme_bench *b, uint32_t area, uint32_t place)
{
	return b->orders[area] * b->area_slots + place;
}

static bool on_tag(void *ctx, uint32_t area, uint32_t place, struct tier_tag *ret_tag)
{
	struct nvme_bench *b = ctx;
	uint32_t number = place_number(b, area, place);

	if (!b->present[number])
		return false;
	memset(ret_tag, 0, sizeof(*ret_tag));
	memcpy(ret_tag->bytes, &number, sizeof(number));
	return true;
}

static bool on_area(void *ctx, const struct tier_area *area, const struct tier_area_shape *shape,
                    const struct tier_owner *owner)
{
	(void)ctx;
	(void)area;
	(void)shape;
	(void)owner;
	return false;
}

static void on_slot(void *ctx, uint32_t area, uint32_t place, const struct tier_tag *tag)
{
	(void)ctx;
	(void)area;
	(void)place;
	(void)tag;
}

static void on_recovered(void *ctx, bool clean)
{
	struct nvme_bench *b = ctx;

	(void)clean;
	b->recovered = true;
}

static void on_online(void *ctx, bool online)
{
	(void)ctx;
	must(online);
}

static void on_closed(void *arg)
{
	struct nvme_bench *b = arg;

	b->closed = true;
}

/* ---- copies ---- */

static uint64_t *copy_end(const struct copy *c, bool last)
{
	uint64_t *words = (uint64_t *)((uint8_t *)c->b->region.base + c->io.offset);

	return last ? words + c->b->shape.lane_bytes / sizeof(*words) - 1 : words;
}

static uint32_t place_next(struct nvme_bench *b)
{
	uint32_t place;

	do
		place = (uint32_t)((b->random ? bench_random(&b->state) : b->next++) % b->n_places);
	while (b->busy[place]);
	b->busy[place] = 1;
	return place;
}

/* As move/store_lower.c does it. */
static uint32_t place_free(struct nvme_bench *b)
{
	bool more = b->n_ahead <= AHEAD;

	while (more && b->n_ahead < 2 * AHEAD) {
		uint32_t place = place_next(b);

		if (b->present[place])
			b->t->ops->forget(b->t, b->ids[place / b->area_slots], place % b->area_slots);
		b->present[place] = 0;
		b->ahead[(b->at_ahead + b->n_ahead++) % (2 * AHEAD)] = place;
	}
	b->n_ahead--;
	return b->ahead[b->at_ahead++ % (2 * AHEAD)];
}

static void copy_next(struct copy *c)
{
	struct nvme_bench *b = c->b;

	c->place = b->write ? place_free(b) : place_next(b);
	c->io.write = b->write;
	c->io.area = b->ids[c->place / b->area_slots];
	c->io.place = c->place % b->area_slots;
	if (b->cold) /* whatever was there has left the cache since */
		c->io.offset = b->next_memory++ % (b->region.size / b->shape.lane_bytes) * b->shape.lane_bytes;
	if (b->write) {
		*copy_end(c, false) = *copy_end(c, true) = c->place + UINT64_C(1);
	} else {
		*copy_end(c, false) = *copy_end(c, true) = 0;
	}
	must_eq(b->t->ops->submit(b->t, &c->io), 0);
	b->flying++;
}

static void on_copied(struct tier_io *io, int r)
{
	struct copy *c = container_of(io, struct copy, io);
	struct nvme_bench *b = c->b;

	must_eq(r, 0);
	if (io->write)
		b->present[c->place] = 1;
	else
		must(*copy_end(c, false) == c->place + UINT64_C(1) && *copy_end(c, true) == c->place + UINT64_C(1));
	b->busy[c->place] = 0;
	b->blocks++;
	b->flying--;
	if (loop_now_ns(b->loop) < b->end_ns)
		copy_next(c);
}

static double cpu_us(void)
{
	struct rusage u;

	must(getrusage(RUSAGE_SELF, &u) == 0);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1e6 + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

/* What records were left over by the round before is written in this one, and what this one leaves is not waited for. */
static struct fio_result tier_round(struct nvme_bench *b, uint64_t ns)
{
	uint64_t start = loop_refresh_ns(b->loop);
	double cpu = cpu_us(), seconds;

	b->end_ns = start + ns;
	b->blocks = 0;
	for (uint32_t i = 0; i < b->depth; i++)
		copy_next(&b->copies[i]);
	while (b->flying > 0)
		loop_turn(b->loop, true);
	b->blocks_ever += b->blocks;
	seconds = (double)(loop_refresh_ns(b->loop) - start) / 1e9;
	return (struct fio_result){ .gb_per_s = (double)(b->blocks * b->shape.lane_bytes) / 1e9 / seconds,
		                    .cpu_us = (cpu_us() - cpu) / (double)b->blocks };
}

/* ---- areas ---- */

static void bench_shape(struct nvme_bench *b, uint64_t block, uint32_t depth)
{
	static const struct tier_owner owner = { .length = 8 };

	for (uint32_t i = 0; i < b->n_areas; i++)
		b->t->ops->area_drop(b->t, b->ids[i]);
	while (b->t->ops->areas_free(b->t) < b->t->ops->areas(b->t))
		loop_turn(b->loop, true);
	b->shape = (struct tier_area_shape){ .lane_bytes = block, .lanes = 1 };
	b->n_areas = b->t->ops->areas(b->t);
	b->area_slots = b->t->ops->area_slots(b->t, &b->shape);
	b->n_places = b->n_areas * b->area_slots;
	b->n_ahead = 0;
	free(b->present);
	free(b->busy);
	b->present = calloc(b->n_places, 1);
	b->busy = calloc(b->n_places, 1);
	must(b->present && b->busy && b->n_places > 0);
	for (uint32_t i = 0; i < b->n_areas; i++) {
		struct tier_area area;

		must_eq(b->t->ops->area_make(b->t, &b->shape, &owner, &area), 0);
		must_eq(area.n_slots, b->area_slots);
		b->ids[i] = area.id;
		b->orders[area.id] = i;
	}
	b->depth = depth;
	for (uint32_t i = 0; i < depth; i++) {
		b->copies[i].b = b;
		b->copies[i].io = (struct tier_io){ .cb = on_copied,
			                            .shape = b->shape,
			                            .region = &b->region,
			                            .offset = i * block,
			                            .lane_area = block };
	}
	/* All places once: no first writes in what is measured. */
	b->write = true;
	b->random = false;
	b->next = 0;
	do
		(void)tier_round(b, 50 * CLOCK_NS_PER_MS);
	while (b->next < b->n_places);
}

static void bench_start(struct nvme_bench *b)
{
	static const char *paths[1];
	struct nvme_config config = { .paths = paths,
		                      .n_paths = 1,
		                      .size = FILE_BYTES,
		                      .depth = DEPTH_MAX,
		                      .grace_ns = UINT64_MAX,
		                      .boot_id = { 1 } };
	char why[NVME_WHY_BYTES];

	thread_set_role(THREAD_LOOP);
	tmpdir_make(&b->dir);
	tmpdir_path(&b->dir, "g3", b->path, sizeof(b->path));
	tmpdir_path(&b->dir, "fio", b->fio_path, sizeof(b->fio_path));
	fio_fill(b->fio_path, FILE_BYTES);
	must(loop_new(&b->loop) == 0);
	b->memory = FIO_HUGETLB;
	b->region = (struct tier_region){ .size = UINT64_C(256) << 20, .fd = -1, .ro_fd = -1 };
	b->region.base = mmap(NULL, b->region.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB,
	                      -1, 0);
	if (b->region.base == MAP_FAILED) {
		b->memory = FIO_THP;
		must(posix_memalign(&b->region.base, UINT64_C(2) << 20, b->region.size) == 0);
		(void)madvise(b->region.base, b->region.size, MADV_HUGEPAGE);
	}
	memset(b->region.base, 0x5a, b->region.size);
	paths[0] = b->path;
	config.loop = b->loop;
	if (nvme_new(&config, why, &b->t) != 0) {
		fprintf(stderr, "bench: %s\n", why);
		_exit(1);
	}
	b->t->user = (struct tier_lower_user){ .tag = on_tag,
		                               .on_area = on_area,
		                               .on_slot = on_slot,
		                               .on_recovered = on_recovered,
		                               .on_online = on_online,
		                               .ctx = b };
	nvme_start(b->t);
	while (!b->recovered)
		loop_turn(b->loop, true);
	b->t->ops->region_seen(b->t, &b->region);
	b->ids = calloc(b->t->ops->areas(b->t), sizeof(*b->ids));
	b->orders = calloc(b->t->ops->areas(b->t), sizeof(*b->orders));
	must(b->ids && b->orders);
}

static void bench_stop(struct nvme_bench *b)
{
	b->t->ops->region_gone(b->t, &b->region);
	nvme_close(b->t, on_closed, b);
	while (!b->closed)
		loop_turn(b->loop, true);
	b->loop = loop_free(b->loop);
	tmpdir_remove(&b->dir);
}

/* ---- figures ---- */

/* @bound 0: no goal. */
static void figure_pair(struct nvme_bench *b, const char *text, double bound)
{
	const struct fio_job job = { .path = b->fio_path,
		                     .size = FILE_BYTES,
		                     .block = b->shape.lane_bytes,
		                     .depth = b->depth,
		                     .ms = ROUND_MS,
		                     .write = b->write,
		                     .random = b->random,
		                     .memory = b->memory };
	double rate[2][ROUNDS], cpu[2][ROUNDS];
	char variant[2][100];
	struct figure f = { .name = "P7",
		            .variant = variant[0],
		            .unit = "GB/s",
		            .limit_is = "fio",
		            .goal = GOAL_RATIO_AT_LEAST,
		            .bound = bound };

	if (bound == 0)
		f.goal = GOAL_NONE;
	for (unsigned i = 0; i < ROUNDS; i++) {
		struct fio_result fio = fio_run(&job), ours = tier_round(b, ROUND_MS * CLOCK_NS_PER_MS);

		rate[0][i] = fio.gb_per_s;
		rate[1][i] = ours.gb_per_s;
		cpu[0][i] = fio.cpu_us;
		cpu[1][i] = ours.cpu_us;
	}
	snprintf(variant[0], sizeof(variant[0]), "%s, depth %u", text, b->depth);
	bench_from(&f, rate[0], rate[1], ROUNDS);
	bench_print(&f);
	snprintf(variant[1], sizeof(variant[1]), "CPU a block, %s", text);
	f.variant = variant[1];
	f.unit = "us";
	f.goal = bound == 0 ? GOAL_NONE : GOAL_RATIO_AT_MOST;
	f.bound = 1.5;
	bench_from(&f, cpu[0], cpu[1], ROUNDS);
	bench_print(&f);
}

static void figure_lmcache(struct nvme_bench *b, const char *size)
{
	const struct fio_job job = { .path = b->fio_path,
		                     .size = FILE_BYTES,
		                     .block = b->shape.lane_bytes,
		                     .depth = b->depth,
		                     .ms = ROUND_MS,
		                     .write = b->write,
		                     .memory = b->memory };
	struct figure f = { .name = "P7", .limit_is = "fio" };
	double rate[2][ROUNDS], cpu[2][ROUNDS];
	char variant[100];

	(void)lmcache_round(b->lmcache, b->write, job.block, job.depth, ROUND_MS);
	for (unsigned i = 0; i < ROUNDS; i++) {
		struct fio_result fio = fio_run(&job), theirs;

		theirs = lmcache_round(b->lmcache, b->write, job.block, job.depth, ROUND_MS);
		rate[0][i] = fio.gb_per_s;
		rate[1][i] = theirs.gb_per_s;
		cpu[0][i] = fio.cpu_us;
		cpu[1][i] = theirs.cpu_us;
	}
	f.variant = variant;
	f.unit = "GB/s";
	snprintf(variant, sizeof(variant), "LMCache %s, %s of %s, depth %u", lmcache_version(b->lmcache),
	         b->write ? "store" : "load", size, b->depth);
	bench_from(&f, rate[0], rate[1], ROUNDS);
	bench_print(&f);
	f.unit = "us";
	snprintf(variant, sizeof(variant), "CPU a block, LMCache %s, %s of %s", lmcache_version(b->lmcache),
	         b->write ? "store" : "load", size);
	bench_from(&f, cpu[0], cpu[1], ROUNDS);
	bench_print(&f);
}

/* fio's few buffers, and the others' here, stay in the processor's cache; a daemon's memory does not. */
static void figures_cold(struct nvme_bench *b, const char *size)
{
	b->random = false;
	b->cold = true;
	for (unsigned i = 0; i < 2; i++) {
		char text[80];

		b->write = i == 0;
		snprintf(text, sizeof(text), "tier, G%s of %s, memory in turn", b->write ? "2->G3" : "3->G2", size);
		figure_pair(b, text, 0);
	}
	b->cold = false;
}

/* @bound_random: of writes at random places; 0: no goal, see tests/bench/README.md. */
static void figures_of(struct nvme_bench *b, const char *size, double bound, double bound_random)
{
	for (unsigned i = 0; i < 4; i++) {
		struct tier_lower_stat before, after;
		char text[80];

		b->write = i < 2;
		b->random = i % 2;
		snprintf(text, sizeof(text), "tier, G%s of %s, %s places", b->write ? "2->G3" : "3->G2", size,
		         b->random ? "random" : "in-order");
		b->t->ops->stat(b->t, &before);
		b->blocks_ever = 0;
		figure_pair(b, text, b->write && b->random ? bound_random : bound);
		b->t->ops->stat(b->t, &after);
		must_eq(after.errors, 0);
		if (b->write) /* what is written besides copies is records */
			bench_say("P7", "%s: %.3f sectors of records were written a block", text,
			          (double)(after.written_bytes - before.written_bytes) / (double)b->blocks_ever / 4096 -
			                  (double)b->shape.lane_bytes / 4096);
		if (b->lmcache && !b->random)
			figure_lmcache(b, size);
	}
	figures_cold(b, size);
}

int main(void)
{
	static struct nvme_bench b;

	if (!bench_wanted("P7"))
		return 0;
	bench_init();
	if (!fio_is_there()) {
		bench_say("P7", "left out: fio is not installed");
		return 0;
	}
	bench_start(&b);
	bench_say("P7", "files of %llu MiB in %s; buffers on %s huge pages; %u areas",
	          (unsigned long long)(FILE_BYTES >> 20), b.dir.path,
	          b.memory == FIO_HUGETLB ? "reserved" : "transparent", b.t->ops->areas(b.t));
	b.lmcache = lmcache_start(b.fio_path, FILE_BYTES);
	bench_shape(&b, UINT64_C(2) << 20, 4);
	figures_of(&b, "2 MiB", 0.95, 0.95);
	bench_shape(&b, UINT64_C(64) << 10, 16);
	figures_of(&b, "64 KiB", 0.85, 0);
	lmcache_stop(b.lmcache);
	bench_stop(&b);
	return 0;
}
