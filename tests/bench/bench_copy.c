/* SPDX-License-Identifier: Apache-2.0 */
/* P6: storing a 2 MiB block from private memory, against the same copy alone into the same kind of memory. */
#include <stdlib.h>
#include <sys/mman.h>

#include "tests/bench/bench.h"
#include "tests/bench/fill.h"

#define BLOCK_BYTES (UINT64_C(2) << 20)
#define BLOCKS 128u
#define ROUND_NS (50 * CLOCK_NS_PER_MS)
#define ROUNDS 25u

struct copy {
	struct fill fill;
	uint8_t *from;  /* owns; one block, as an engine's buffer */
	uint8_t *plain; /* owns; BLOCKS blocks of a memfd like the pool's regions */
	uint64_t next_plain, next;
	struct samples samples;
};

/* A memfd on such pages as the pool's regions have: huge ones of the pool, else transparent ones, else small ones. */
static uint8_t *plain_map(uint64_t bytes)
{
	int fd = memfd_create("bench-plain", MFD_CLOEXEC | MFD_HUGETLB);
	uint8_t *p = MAP_FAILED;

	if (fd >= 0 && ftruncate(fd, (off_t)bytes) == 0)
		p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED) {
		close(fd);
		fd = memfd_create("bench-plain", MFD_CLOEXEC);
		must(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
		p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		must(p != MAP_FAILED);
		(void)madvise(p, bytes, MADV_HUGEPAGE);
	}
	close(fd);
	memset(p, 1, bytes);
	return p;
}

static double copy_round(void *ctx)
{
	struct copy *c = ctx;
	uint64_t end = clock_now_ns() + ROUND_NS, start, now;

	samples_clear(&c->samples);
	do {
		start = clock_now_ns();
		memcpy(c->plain + c->next_plain++ % BLOCKS * BLOCK_BYTES, c->from, BLOCK_BYTES);
		now = clock_now_ns();
		samples_add(&c->samples, now - start);
	} while (now < end);
	return (double)BLOCK_BYTES / 1e3 / samples_quantile(&c->samples, 0.5);
}

static double store_round(void *ctx)
{
	struct copy *c = ctx;
	uint64_t end = clock_now_ns() + ROUND_NS, start, now;
	uint8_t key[FILL_KEY_BYTES];

	samples_clear(&c->samples);
	do {
		struct kvbm_span span;
		void *data;

		fill_keys(c->next++, 1, key);
		start = clock_now_ns();
		must_eq(kvbm_reserve(c->fill.ns, KVBM_ALL_LANES, key, 1, &span, NULL), 1);
		data = kvbm_data(c->fill.ns, &span, 0);
		must(data);
		memcpy(data, c->from, BLOCK_BYTES);
		must(kvbm_commit(c->fill.ns, KVBM_ALL_LANES, &span, key, 1, NULL, KVBM_NOWAIT) >= 0);
		now = clock_now_ns();
		samples_add(&c->samples, now - start);
	} while (now < end);
	return (double)BLOCK_BYTES / 1e3 / samples_quantile(&c->samples, 0.5);
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

int main(void)
{
	struct copy c = { .next = 1 };

	if (!bench_wanted("P6"))
		return 0;
	bench_init();
	samples_init(&c.samples, 10000);
	c.from = malloc(BLOCK_BYTES);
	must(c.from);
	for (uint64_t i = 0; i < BLOCK_BYTES; i++)
		c.from[i] = (uint8_t)bench_mix(i);
	c.plain = plain_map(BLOCKS * BLOCK_BYTES);
	fill_start(&c.fill, BLOCKS, BLOCK_BYTES);
	fill_settle(&c.fill);
	for (int one = 1; one >= 0; one--) {
		struct figure f = { .name = "P6",
			            .variant = "store 2 MiB: reserve, copy, commit",
			            .unit = "GB/s",
			            .limit_is = "the copy alone",
			            .placement = one ? "one core" : "two cores",
			            .goal = GOAL_RATIO_AT_LEAST,
			            .bound = 0.9 };

		bench_place(0, 0);
		bench_place(c.fill.daemon.pid, one ? 0 : 1);
		for (uint64_t from = c.next; c.next < from + 2 * BLOCKS;)
			store_round(&c); /* until every slot is mapped */
		bench_compare(&f, ROUNDS, copy_round, store_round, &c);
		bench_print(&f);
		copy_verify(&c);
	}
	bench_place(0, BENCH_ANY_CPU);
	fill_stop(&c.fill);
	must(munmap(c.plain, BLOCKS * BLOCK_BYTES) == 0);
	free(c.from);
	samples_deinit(&c.samples);
	return 0;
}
