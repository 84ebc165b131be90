/* SPDX-License-Identifier: Apache-2.0 */
/* Clients killed at random moments during a replay-like load, every byte checked: afterwards leases, descriptors, mappings and slots
 * are exactly as before.  KVBM_TORTURE_KILLS says how many (1000 by hand), KVBM_TORTURE_SEED repeats the choice of victims. */
#include <check.h>
#include <time.h>

#include "base/clock.h"
#include "tests/lib/crowd.h"
#include "tests/lib/daemon_proc.h"
#include "tests/lib/engine.h"
#include "tests/lib/must.h"
#include "tests/lib/scale.h"

#define CLIENTS 5u

static const char *const flags[] = { "--g2.size=24M", "--g2.region_size=2M", "--g2.huge_pages=never", NULL };

static struct daemon_proc d;
static const struct kvbm_model models[] = {
	{ .name = "plain", .block_bytes = 16384 },
	{ .name = "lanes", .block_bytes = 4096, .lanes = 3, .flags = KVBM_NS_CONFIRM },
};

static void setup(void)
{
	daemon_start(&d, flags);
}

static void teardown(void)
{
	daemon_deinit(&d);
}

/* One in four talks by socket, one in three works with lanes. */
static void replay(struct client_self *self, void *arg)
{
	const struct kvbm_model *model = &models[getpid() % 3 == 0];
	struct engine engine;
	struct cache c;

	(void)arg;
	cache_ok(&c, cache_try_open(&c, d.socket, model, getpid() % 4 ? 0 : KVBM_OPEN_BY_SOCKET));
	engine_init(&engine, &c, (uint64_t)getpid(), 60, 24);
	while (crowd_goes_on(self)) {
		cache_ok(&c, engine_request(&engine));
		crowd_worked(self);
	}
	cache_ok(&c, engine_rest(&engine));
	cache_close(&c);
}

/* BEHAVIOUR section 6. */
static void identities(void)
{
	must_eq(daemon_metric(&d, "blocks_stored_total"), daemon_metric(&d, "blocks_resident") +
	                                                          daemon_metric(&d, "blocks_dropped_total") +
	                                                          daemon_metric(&d, "blocks_deduplicated_total"));
	must_eq(daemon_metric(&d, "blocks_looked_up_total"),
	        daemon_metric(&d, "hits_g2_total") + daemon_metric(&d, "misses_total"));
	must_eq(daemon_metric(&d, "g2_slots"), daemon_metric(&d, "g2_slots_free") + daemon_metric(&d, "g2_slots_used") +
	                                               daemon_metric(&d, "g2_slots_quarantined"));
	must_eq(daemon_metric(&d, "leases"), 0);
	must_eq(daemon_metric(&d, "pins"), 0);
}

START_TEST(killed_at_random_moments)
{
	unsigned kills = scale_env("KVBM_TORTURE_KILLS", SCALE(200, 60));
	uint64_t seed = scale_env("KVBM_TORTURE_SEED", (unsigned)time(NULL)), started = clock_now_ns(), work = 0, units;
	struct daemon_baseline baseline;
	struct crowd crowd;
	struct cache c;
	struct rng rng;

	printf("seed %llu\n", (unsigned long long)seed);
	for (size_t i = 0; i < sizeof(models) / sizeof(models[0]); i++) {
		cache_open(&c, d.socket, &models[i]);
		cache_close(&c);
	}
	daemon_await_metric(&d, "sessions", 1);
	daemon_baseline(&d, &baseline);
	rng_init(&rng, seed);
	crowd_start(&crowd, CLIENTS, replay, NULL);
	for (unsigned i = 0; i < kills; i++) {
		units = rng_below(&rng, 40);
		crowd_await(&crowd, units);
		work += units;
		crowd_replace(&crowd, (unsigned)rng_below(&rng, CLIENTS));
	}
	crowd_await_each(&crowd, 20);
	crowd_stop(&crowd);
	daemon_check(&d, &baseline);
	identities();
	must_cmp(daemon_metric(&d, "hits_g2_total"), >, 0);
	printf("%u kills in %.1f s, %llu requests and more, %llu blocks hit, %llu stored\n", kills,
	       (double)(clock_now_ns() - started) / 1e9, (unsigned long long)work,
	       (unsigned long long)daemon_metric(&d, "hits_g2_total"),
	       (unsigned long long)daemon_metric(&d, "blocks_stored_total"));
}
END_TEST

int main(void)
{
	Suite *s = suite_create("torture");
	TCase *tc = tcase_create("torture");
	SRunner *sr = srunner_create(s);
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 1200);
	tcase_add_test(tc, killed_at_random_moments);
	suite_add_tcase(s, tc);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed == 0 ? 0 : 1;
}
