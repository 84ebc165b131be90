/* SPDX-License-Identifier: Apache-2.0 */
/* Namespaces of different slot sizes and lanes that compete for one pool [6, 20, 23]: guaranteed shares and hard maxima hold, nobody
 * starves, the bytes are right throughout, and regions come back. */
#include <check.h>
#include <sys/mman.h>

#include "tests/lib/crowd.h"
#include "tests/lib/daemon_proc.h"
#include "tests/lib/engine.h"
#include "tests/lib/must.h"
#include "tests/lib/scale.h"

#define MIB (UINT64_C(1) << 20)

static const char config[] = "[g2]\nsize = 32M\nregion_size = 2M\nhuge_pages = never\n"
			     "[namespace shared]\nshare = 8M\n"
			     "[namespace capped]\nmax = 6M\n";

static const struct kvbm_model shared = { .name = "shared", .block_bytes = 16384 };
static const struct kvbm_model capped = { .name = "capped", .block_bytes = 10000 };
static const struct kvbm_model greedy = { .name = "greedy", .block_bytes = 65536 };
static const struct kvbm_model lanes = { .name = "lanes", .block_bytes = 12288, .lanes = 8 };

static struct daemon_proc d;

static void setup(void)
{
	daemon_init(&d, config, NULL);
	daemon_run(&d);
}

static void teardown(void)
{
	daemon_deinit(&d);
}

/* Far more than there is room for. */
static void gorge(struct cache *c, uint64_t first, uint64_t bytes)
{
	uint64_t block = c->lane_bytes * c->lanes;

	for (uint64_t done = 0; done < bytes; done += 16 * block, first += 32)
		must_eq(cache_store(c, first, 16), 16);
}

START_TEST(a_guaranteed_share_is_kept)
{
	struct cache s, g;
	uint32_t n;

	cache_open(&s, d.socket, &shared);
	cache_open(&g, d.socket, &greedy);
	n = (uint32_t)(8 * MIB / s.lane_bytes) - 64; /* less what does not fill a region */
	cache_store_chain(&s, 1, n);
	gorge(&g, 100000, 150 * MIB);
	for (uint32_t i = 0; i < n; i += 32)
		must_eq(cache_verify(&s, 1 + i, n - i < 32 ? n - i : 32), n - i < 32 ? n - i : 32);
	cache_close(&s);
	cache_close(&g);
}
END_TEST

START_TEST(a_hard_maximum_is_kept)
{
	struct kvbm_span spans[1];
	uint32_t capacity;
	struct cache c;

	cache_open(&c, d.socket, &capped);
	gorge(&c, 1, 40 * MIB);
	must_cmp(daemon_metric(&d, "g2_bytes"), <=, 6 * MIB);
	must_cmp(daemon_metric(&d, "g2_bytes"), >, 4 * MIB);
	capacity = cache_capacity(&c);
	must_cmp(capacity, <=, 6 * MIB / 10000);
	must_cmp(capacity, >=, 6 * MIB / 10000 * 9 / 10 / 2); /* a slot is whole pages */
	must_eq(kvbm_reserve(c.ns, KVBM_ALL_LANES, NULL, 1, spans, NULL), 1);
	must_eq(kvbm_abort(c.ns, KVBM_ALL_LANES, spans, 1), 1);
	cache_close(&c);
}
END_TEST

/* Who comes last finds the pool full of others. */
START_TEST(nobody_starves)
{
	struct cache g, s, l, c;
	uint32_t n;

	cache_open(&g, d.socket, &greedy);
	gorge(&g, 1, 64 * MIB);
	cache_open(&s, d.socket, &shared);
	n = (uint32_t)(8 * MIB / s.lane_bytes) - 64;
	cache_store_chain(&s, 1, n); /* its share, at once */
	must_eq(cache_verify(&s, 1, 64), 64);
	must_eq(cache_verify(&s, n - 63, 64), 64);
	cache_open(&l, d.socket, &lanes);
	cache_store_chain(&l, 1, 40); /* 3.75 MiB, without any share */
	must_eq(cache_verify(&l, 1, 40), 40);
	cache_open(&c, d.socket, &capped);
	cache_store_chain(&c, 1, 64);
	must_eq(cache_verify(&c, 1, 64), 64);
	gorge(&g, 1000000, 64 * MIB); /* and goes on */
	must_eq(cache_verify(&s, 1, 64), 64);
	must_eq(cache_verify(&s, n - 63, 64), 64);
	must_cmp(daemon_metric(&d, "g2_bytes"), <=, 32 * MIB);
	cache_close(&g);
	cache_close(&s);
	cache_close(&l);
	cache_close(&c);
}
END_TEST

/* What others hold is not taken, whoever is over its share. */
START_TEST(what_is_held_is_not_taken_for_others)
{
	struct kvbm_span spans[64];
	struct cache g, s;
	uint8_t keys[64 * KVBM_KEY_MAX];

	cache_open(&g, d.socket, &greedy);
	gorge(&g, 1, 64 * MIB);
	cache_store_chain(&g, 500000, 64);
	must_eq(cache_hold(&g, 500000, 64, spans), 64);
	cache_open(&s, d.socket, &shared);
	gorge(&s, 1, 64 * MIB);
	cache_keys(&g, 500000, 64, keys);
	for (uint32_t i = 0; i < 64; i++)
		cache_check(&g, &spans[i], keys + (size_t)i * g.key_bytes);
	must_eq(kvbm_release(g.ns, spans, 64), 64);
	cache_close(&g);
	cache_close(&s);
}
END_TEST

START_TEST(the_same_key_in_two_namespaces_is_two_blocks)
{
	struct cache a, b;

	cache_open(&a, d.socket, &shared);
	cache_open(&b, d.socket, &lanes);
	must_eq(cache_store(&a, 7, 8), 8);
	must_eq(cache_present(&b, 7, 8), 0);
	must_eq(cache_verify(&b, 7, 8), 0);
	must_eq(cache_store(&b, 7, 8), 8); /* other bytes: the name is part of the oracle */
	must_eq(cache_verify(&a, 7, 8), 8);
	must_eq(cache_verify(&b, 7, 8), 8);
	must_eq(kvbm_admin(daemon_monitor(&d), "flush", "shared", NULL, 0, 0, NULL), 8);
	must_eq(cache_verify(&a, 7, 8), 0);
	must_eq(cache_verify(&b, 7, 8), 8);
	cache_close(&a);
	cache_close(&b);
}
END_TEST

/* ---- all at once ---- */

static const struct kvbm_model *const all[] = { &shared, &capped, &greedy, &lanes };
#define N_ALL (sizeof(all) / sizeof(all[0]))

static _Atomic unsigned *turn; /* gives each client another namespace */

static void competitor(struct client_self *self, void *arg)
{
	struct engine engine;
	struct cache c;

	(void)arg;
	cache_open(&c, d.socket, all[(*turn)++ % N_ALL]);
	engine_init(&engine, &c, (uint64_t)getpid(), 200, 24);
	while (crowd_goes_on(self)) {
		int r = engine_request(&engine);

		if (r != -KVBM_E_NOSPACE) /* when all it may have is in use by its like */
			cache_ok(&c, r);
		crowd_worked(self);
	}
	cache_ok(&c, engine_rest(&engine));
	cache_close(&c);
}

START_TEST(they_compete_and_all_get_on)
{
	struct daemon_baseline baseline;
	struct crowd crowd;
	struct cache c;

	turn = mmap(NULL, sizeof(*turn), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	must(turn != MAP_FAILED);
	for (size_t i = 0; i < N_ALL; i++) {
		cache_open(&c, d.socket, all[i]);
		cache_close(&c);
	}
	daemon_await_metric(&d, "sessions", 1);
	daemon_baseline(&d, &baseline);
	crowd_start(&crowd, 2 * N_ALL, competitor, NULL);
	for (int i = 0; i < SCALE(20, 4); i++) {
		crowd_await_each(&crowd, 20);
		must_cmp(daemon_metric(&d, "g2_bytes"), <=, 32 * MIB);
	}
	crowd_stop(&crowd);
	daemon_check(&d, &baseline);
	must_cmp(daemon_metric(&d, "blocks_dropped_total"), >, 0);
	for (size_t i = 0; i < N_ALL; i++)
		must_cmp(kvbm_admin(daemon_monitor(&d), "drop", all[i]->name, NULL, 0, 0, NULL), >, 0);
	must_eq(daemon_metric(&d, "g2_bytes"), 0);
	must_eq(daemon_metric(&d, "namespaces"), 0);
	munmap(turn, sizeof(*turn));
}
END_TEST

/* The whole pool goes from one namespace to another and back. */
START_TEST(regions_come_back)
{
	struct cache g, l;

	cache_open(&g, d.socket, &greedy);
	cache_open(&l, d.socket, &lanes);
	for (int i = 0; i < 4; i++) {
		gorge(&g, 1 + 1000000ull * (unsigned)i, 40 * MIB);
		must_cmp(kvbm_admin(daemon_monitor(&d), "flush", "greedy", NULL, 0, 0, NULL), >, 0);
		gorge(&l, 1 + 1000000ull * (unsigned)i, 40 * MIB);
		must_cmp(kvbm_admin(daemon_monitor(&d), "flush", "lanes", NULL, 0, 0, NULL), >, 0);
	}
	must_cmp(cache_capacity(&g), >=, 30 * MIB / greedy.block_bytes);
	cache_close(&g);
	cache_close(&l);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("namespaces");
	TCase *tc = tcase_create("namespaces");
	SRunner *sr = srunner_create(s);
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 240);
	tcase_add_test(tc, a_guaranteed_share_is_kept);
	tcase_add_test(tc, a_hard_maximum_is_kept);
	tcase_add_test(tc, nobody_starves);
	tcase_add_test(tc, what_is_held_is_not_taken_for_others);
	tcase_add_test(tc, the_same_key_in_two_namespaces_is_two_blocks);
	tcase_add_test(tc, they_compete_and_all_get_on);
	tcase_add_test(tc, regions_come_back);
	suite_add_tcase(s, tc);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed == 0 ? 0 : 1;
}
