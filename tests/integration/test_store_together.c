/* SPDX-License-Identifier: Apache-2.0 */
/* Several processes that write the same blocks: the race for a key [4], and lanes of one block [3]. */
#include <check.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>

#include "tests/lib/cache.h"
#include "tests/lib/client_proc.h"
#include "tests/lib/daemon_proc.h"
#include "tests/lib/must.h"
#include "tests/lib/scale.h"

#define BLOCK 8192u
#define RACE 4u /* blocks a round */
#define WRITERS 4u

static const char *const flags[] = { "--g2.size=8M", "--g2.region_size=2M", "--g2.huge_pages=never", NULL };

static struct daemon_proc d;
static struct daemon_baseline baseline;
static struct kvbm_model model;

static void setup(void)
{
	daemon_start(&d, flags);
}

static void teardown(void)
{
	daemon_deinit(&d);
}

/* The namespace is there, and everybody has left it. */
static void begin(uint32_t lanes)
{
	struct cache c;

	model = cache_model("together", BLOCK, lanes);
	cache_open(&c, d.socket, &model);
	cache_close(&c);
	daemon_await_metric(&d, "sessions", 1);
	daemon_baseline(&d, &baseline);
}

/* ---- the race for a key ---- */

struct race {
	unsigned writers, rounds;
	_Atomic unsigned ready; /* grows by one each time somebody reaches the line */
};

struct outcome {
	int created;
	struct kvbm_span spans[RACE];
};

/* Everybody leaves the line at the same instant, as near as two cores allow. */
static void race_line(struct race *race, unsigned round)
{
	atomic_fetch_add(&race->ready, 1);
	while (atomic_load(&race->ready) < race->writers * (round + 1))
		sched_yield();
}

static void racer(struct client_self *self, void *arg)
{
	struct race *race = arg;
	struct outcome outcome;
	uint8_t keys[RACE * KVBM_KEY_MAX];
	struct cache c;

	cache_open(&c, d.socket, &model);
	client_at(self, "open");
	for (unsigned round = 0; round < race->rounds; round++) {
		uint64_t first = 1000 + 2ull * RACE * round;

		cache_keys(&c, first, RACE, keys);
		must_eq(cache_ok(&c, kvbm_reserve(c.ns, KVBM_ALL_LANES, keys, RACE, outcome.spans, NULL)), RACE);
		for (uint32_t i = 0; i < RACE; i++)
			cache_fill(&c, &outcome.spans[i], keys + (size_t)i * c.key_bytes, 0);
		race_line(race, 2 * round);
		outcome.created = cache_ok(&c,
		                           kvbm_commit(c.ns, KVBM_ALL_LANES, outcome.spans, keys, RACE, NULL, KVBM_HOLD));
		for (uint32_t i = 0; i < RACE; i++)
			cache_check(&c, &outcome.spans[i], keys + (size_t)i * c.key_bytes);
		client_tell(self, &outcome, sizeof(outcome));
		race_line(race, 2 * round + 1); /* nobody reserves before all have committed */
		must_eq(cache_ok(&c, kvbm_release(c.ns, outcome.spans, RACE)), RACE);
	}
	cache_close(&c);
}

START_TEST(exactly_one_copy_survives)
{
	struct client_proc writers[WRITERS];
	struct outcome first, other;
	unsigned rounds = SCALE(400, 60), created, n = (unsigned)_i;
	struct race *race = mmap(NULL, sizeof(*race), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	must(race != MAP_FAILED);
	begin(1);
	race->writers = n;
	race->rounds = rounds;
	for (unsigned w = 0; w < n; w++)
		client_start(&writers[w], racer, race);
	for (unsigned w = 0; w < n; w++)
		client_await(&writers[w], "open");
	for (unsigned w = 0; w < n; w++)
		client_go(&writers[w]);
	for (unsigned round = 0; round < rounds; round++) {
		client_result(&writers[0], &first, sizeof(first));
		created = (unsigned)first.created;
		for (unsigned w = 1; w < n; w++) {
			client_result(&writers[w], &other, sizeof(other));
			created += (unsigned)other.created;
			must(memcmp(other.spans, first.spans, sizeof(other.spans)) == 0);
		}
		must_eq(created, RACE);
	}
	for (unsigned w = 0; w < n; w++)
		client_join(&writers[w]);
	daemon_check(&d, &baseline);
	must_eq(daemon_metric(&d, "blocks_deduplicated_total"), (n - 1) * RACE * rounds);
	must_eq(daemon_metric(&d, "blocks_stored_total"), n * RACE * rounds);
	munmap(race, sizeof(*race));
}
END_TEST

/* ---- lanes ---- */

#define LANES 4u
#define CHAIN 8u

struct rank {
	uint32_t lane;
	bool dies; /* between reserve and commit */
};

static void rank_main(struct client_self *self, void *arg)
{
	const struct rank *rank = arg;
	struct kvbm_span spans[CHAIN];
	uint8_t keys[CHAIN * KVBM_KEY_MAX];
	struct cache c;

	cache_open(&c, d.socket, &model);
	cache_keys(&c, 50, CHAIN, keys);
	must_eq(cache_ok(&c, kvbm_reserve(c.ns, rank->lane, keys, CHAIN, spans, NULL)), CHAIN);
	client_at(self, "reserved");
	for (uint32_t i = 0; i < CHAIN; i++)
		cache_fill(&c, &spans[i], keys + (size_t)i * c.key_bytes, rank->lane);
	client_tell(self, spans, sizeof(spans));
	client_at(self, "written");
	if (rank->dies) {
		must_eq(kvbm_commit(c.ns, rank->lane, spans, keys, CHAIN, NULL, 0), -KVBM_E_STALE);
	} else {
		int created = cache_ok(&c, kvbm_commit(c.ns, rank->lane, spans, keys, CHAIN, NULL, 0));

		client_tell(self, &created, sizeof(created));
	}
	client_at(self, "committed");
	cache_close(&c);
}

static void lanes_begin(struct client_proc *procs, struct rank *ranks, bool dies)
{
	struct kvbm_span first[CHAIN], other[CHAIN];

	for (uint32_t i = 0; i < LANES; i++) {
		ranks[i] = (struct rank){ .lane = i, .dies = dies };
		client_start(&procs[i], rank_main, &ranks[i]);
		client_await(&procs[i], "reserved");
	}
	must_eq(daemon_metric(&d, "leases"), CHAIN * LANES);
	for (uint32_t i = 0; i < LANES; i++) {
		client_go(&procs[i]);
		client_result(&procs[i], i ? other : first, sizeof(other));
		client_await(&procs[i], "written");
		must(i == 0 || memcmp(first, other, sizeof(first)) == 0); /* one slot for all lanes */
	}
}

START_TEST(lanes_of_different_processes_appear_when_complete)
{
	static const uint32_t order[LANES] = { 2, 0, 3, 1 };
	struct client_proc procs[LANES];
	struct rank ranks[LANES];
	struct cache reader;
	int created;

	begin(LANES);
	cache_open(&reader, d.socket, &model);
	lanes_begin(procs, ranks, false);
	for (uint32_t i = 0; i < LANES; i++) {
		must_eq(cache_verify(&reader, 50, CHAIN), 0);
		client_go(&procs[order[i]]);
		client_result(&procs[order[i]], &created, sizeof(created));
		must_eq(created, i == LANES - 1 ? CHAIN : 0);
		client_await(&procs[order[i]], "committed");
	}
	must_eq(cache_verify(&reader, 50, CHAIN), CHAIN);
	must_eq(daemon_metric(&d, "leases"), 0);
	for (uint32_t i = 0; i < LANES; i++) {
		client_go(&procs[i]);
		client_join(&procs[i]);
	}
	must_eq(cache_verify(&reader, 50, CHAIN), CHAIN);
	cache_close(&reader);
	daemon_check(&d, &baseline);
}
END_TEST

/* One rank is killed: the block never appears, and its slot waits for the other writers, not for the dead one. */
START_TEST(a_dead_lane_is_the_end_of_the_block)
{
	struct client_proc procs[LANES];
	struct rank ranks[LANES];
	struct cache reader;

	begin(LANES);
	cache_open(&reader, d.socket, &model);
	lanes_begin(procs, ranks, true);
	client_kill(&procs[1]);
	daemon_await_metric(&d, "g2_slots_quarantined", CHAIN);
	must_eq(cache_present(&reader, 50, CHAIN), 0);
	for (uint32_t i = 0; i < LANES; i++) {
		if (i == 1)
			continue;
		must_eq(daemon_metric(&d, "g2_slots_quarantined"), CHAIN);
		client_lead(&procs[i], "committed");
	}
	daemon_await_metric(&d, "g2_slots_quarantined", 0);
	must_eq(cache_present(&reader, 50, CHAIN), 0);
	/* The same keys again, and all is well. */
	must_eq(cache_store(&reader, 50, CHAIN), CHAIN);
	must_eq(cache_verify(&reader, 50, CHAIN), CHAIN);
	for (uint32_t i = 0; i < LANES; i++) {
		if (i == 1)
			continue;
		client_go(&procs[i]);
		client_join(&procs[i]);
	}
	cache_close(&reader);
	daemon_check(&d, &baseline);
}
END_TEST

START_TEST(lanes_need_keys_and_exist)
{
	uint8_t keys[2 * KVBM_KEY_MAX];
	struct kvbm_span spans[2];
	struct cache c;

	begin(LANES);
	cache_open(&c, d.socket, &model);
	cache_keys(&c, 1, 2, keys);
	must_eq(kvbm_reserve(c.ns, 0, NULL, 2, spans, NULL), -KVBM_E_INVAL);
	must_eq(kvbm_reserve(c.ns, LANES, keys, 2, spans, NULL), -KVBM_E_INVAL);
	must_eq(kvbm_reserve(c.ns, 1, keys, 2, spans, NULL), 2);
	must_eq(kvbm_commit(c.ns, 0, spans, keys, 2, NULL, 0), -KVBM_E_STALE); /* not the lane that was reserved */
	must_eq(kvbm_commit(c.ns, 1, spans, keys + c.key_bytes, 1, NULL, 0), -KVBM_E_INVAL); /* another key's slot */
	must_eq(kvbm_abort(c.ns, 0, spans, 2), -KVBM_E_STALE);
	must_eq(kvbm_abort(c.ns, 1, spans, 2), 2);
	must_eq(cache_store(&c, 1, 2), 2); /* all lanes by one */
	must_eq(cache_verify(&c, 1, 2), 2);
	cache_close(&c);
	daemon_check(&d, &baseline);
}
END_TEST

START_TEST(from_one_to_sixty_four_lanes)
{
	static const uint32_t counts[] = { 1, 3, 8, 64 };
	char name[32];

	daemon_baseline(&d, &baseline);
	for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
		struct kvbm_model m;
		struct cache c;

		snprintf(name, sizeof(name), "lanes-%u", counts[i]);
		m = cache_model(name, 1000, counts[i]); /* not a round size */
		cache_open(&c, d.socket, &m);
		must_eq(c.lanes, counts[i]);
		for (uint32_t lane = 0; lane < c.lanes; lane++)
			must_eq(cache_ok(&c, cache_try_store(&c, lane, 1, 3)), lane == c.lanes - 1 ? 3 : 0);
		must_eq(cache_verify(&c, 1, 3), 3);
		cache_close(&c);
	}
}
END_TEST

int main(void)
{
	Suite *s = suite_create("store together");
	TCase *tc = tcase_create("together");
	SRunner *sr = srunner_create(s);
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 120);
	tcase_add_loop_test(tc, exactly_one_copy_survives, 2, (int)WRITERS + 1);
	tcase_add_test(tc, lanes_of_different_processes_appear_when_complete);
	tcase_add_test(tc, a_dead_lane_is_the_end_of_the_block);
	tcase_add_test(tc, lanes_need_keys_and_exist);
	tcase_add_test(tc, from_one_to_sixty_four_lanes);
	suite_add_tcase(s, tc);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed == 0 ? 0 : 1;
}
