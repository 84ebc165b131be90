/* SPDX-License-Identifier: Apache-2.0 */
/* The daemon killed under live clients [26, 31]: each attaches again by itself and goes on, no wrong byte, nothing of the old daemon
 * is left in the clients.  KVBM_DAEMON_KILLS says how often (200 by hand). */
#include <check.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "tests/lib/crowd.h"
#include "tests/lib/daemon_proc.h"
#include "tests/lib/engine.h"
#include "tests/lib/must.h"
#include "tests/lib/scale.h"

#define CLIENTS 4u
#define BLOCK 16384u
#define MS 1000000u

static const char *const flags[] = { "--g2.size=8M", "--g2.region_size=2M", "--g2.huge_pages=never", NULL };

static struct daemon_proc d;
static const struct kvbm_model model = { .name = "survivor", .block_bytes = BLOCK };

static void setup(void)
{
	daemon_start(&d, flags);
}

static void teardown(void)
{
	daemon_deinit(&d);
}

/* What a client may be told while its daemon is away or new. */
static bool is_of_the_restart(int r)
{
	return r == -KVBM_E_GONE || r == -KVBM_E_STALE || r == -KVBM_E_NOTHELD || r == -KVBM_E_TIMEOUT;
}

static void must_be_of_the_restart(const struct cache *c, int r)
{
	if (r < 0 && !is_of_the_restart(r))
		cache_ok(c, r);
}

/* ---- many deaths ---- */

/* Descriptors and mappings of a client that has just attached to a daemon and used it, and nothing of an earlier one. */
static void take_own(struct fdcount *ret)
{
	fdcount_take(getpid(), ret);
}

static void survivor(struct client_self *self, void *arg)
{
	struct kvbm_counters counters;
	struct fdcount before, after;
	struct engine engine;
	struct cache c;

	(void)arg;
	cache_ok(&c, cache_try_open(&c, d.socket, &model, getpid() % 3 ? 0 : KVBM_OPEN_BY_SOCKET));
	engine_init(&engine, &c, (uint64_t)getpid(), 40, 16);
	cache_ok(&c, kvbm_ping(c.kvbm));
	take_own(&before);
	while (crowd_goes_on(self)) {
		int r = engine_request(&engine);

		must_be_of_the_restart(&c, r);
		if (r >= 0)
			crowd_worked(self);
	}
	must_be_of_the_restart(&c, engine_rest(&engine));
	cache_ok(&c, kvbm_ping(c.kvbm));
	kvbm_get_counters(c.kvbm, &counters);
	must_cmp(counters.reconnects, >, 0);
	take_own(&after);
	must_eq(after.sockets, before.sockets);
	must_eq(after.memfds, before.memfds);
	must_eq(after.pages, before.pages);
	must_eq(after.page_maps, before.page_maps);
	must_eq(after.memfd_maps, before.memfd_maps);
	must_eq(after.other, before.other);
	must_eq(after.total - after.regions, before.total - before.regions);
	cache_close(&c);
	take_own(&after);
	must_eq(after.sockets + after.memfds + after.pages + after.regions, 0);
	must_eq(after.memfd_maps + after.page_maps, 0);
}

START_TEST(clients_go_on_with_the_next_daemon)
{
	unsigned kills = scale_env("KVBM_DAEMON_KILLS", SCALE(40, 12));
	uint64_t started = clock_now_ns();
	struct daemon_baseline baseline;
	struct crowd crowd;
	struct cache c;
	struct rng rng;

	rng_init(&rng, 31);
	crowd_start(&crowd, CLIENTS, survivor, NULL);
	crowd_await_each(&crowd, 10);
	for (unsigned i = 0; i < kills; i++) {
		if (i % 2)
			daemon_stop(&d);
		else
			daemon_kill(&d);
		daemon_run(&d);
		crowd_await_each(&crowd, 1 + rng_below(&rng, 20));
	}
	crowd_stop(&crowd);
	cache_open(&c, d.socket, &model);
	cache_close(&c);
	daemon_await_metric(&d, "sessions", 1);
	daemon_baseline(&d, &baseline);
	must_eq(baseline.leases, 0);
	must_eq(baseline.pins, 0);
	daemon_check(&d, &baseline);
	printf("%u deaths in %.1f s\n", kills, (double)(clock_now_ns() - started) / 1e9);
}
END_TEST

/* ---- one death, seen closely ---- */

START_TEST(what_is_held_stays_readable)
{
	static uint8_t copy[8][BLOCK];
	const uint8_t *data[8];
	struct kvbm_span spans[8];
	struct cache c;

	cache_ok(&c, cache_try_open(&c, d.socket, &model, _i ? KVBM_OPEN_BY_SOCKET : 0));
	must_eq(cache_store(&c, 10, 8), 8);
	must_eq(cache_hold(&c, 10, 8, spans), 8);
	for (int i = 0; i < 8; i++) {
		data[i] = kvbm_data(c.ns, &spans[i], 0);
		must(data[i]);
		memcpy(copy[i], data[i], BLOCK);
	}
	daemon_kill(&d);
	for (int i = 0; i < 8; i++)
		must(memcmp(copy[i], data[i], BLOCK) == 0);
	/* By socket it would be asked for until the deadline; through shared memory a vanished daemon is a miss. */
	if (!_i)
		must_eq(cache_verify(&c, 10, 8), 0);
	daemon_run(&d);
	cache_ok(&c, kvbm_ping(c.kvbm));
	must_eq(cache_verify(&c, 10, 8), 0); /* a new one, and empty */
	must_eq(cache_store(&c, 500, 64), 64);
	for (int i = 0; i < 8; i++)
		must(memcmp(copy[i], data[i], BLOCK) == 0);
	must_cmp(kvbm_release(c.ns, spans, 8), !=, -KVBM_E_INTERNAL);
	must_eq(cache_store(&c, 10, 8), 8);
	must_eq(cache_verify(&c, 10, 8), 8);
	must_eq(daemon_metric(&d, "pins"), 0);
	cache_close(&c);
}
END_TEST

/* Slots that the old daemon gave out are nothing to the new one. */
START_TEST(what_was_reserved_is_stale)
{
	struct kvbm_span spans[4], fresh[4];
	uint8_t keys[4 * KVBM_KEY_MAX];
	struct kvbm_counters counters;
	uint64_t boot_id;
	struct cache c;
	int r;

	cache_open(&c, d.socket, &model);
	kvbm_get_counters(c.kvbm, &counters);
	boot_id = counters.boot_id;
	cache_keys(&c, 10, 4, keys);
	must_eq(kvbm_reserve(c.ns, KVBM_ALL_LANES, keys, 4, spans, NULL), 4);
	for (uint32_t i = 0; i < 4; i++)
		cache_fill(&c, &spans[i], keys + (size_t)i * c.key_bytes, 0);
	daemon_kill(&d);
	daemon_run(&d);
	r = kvbm_commit(c.ns, KVBM_ALL_LANES, spans, keys, 4, NULL, 0);
	must(r == -KVBM_E_GONE || r == -KVBM_E_STALE);
	/* The very next call works, and even with slots of the same numbers in hand the old spans are refused. */
	must_eq(cache_ok(&c, kvbm_reserve(c.ns, KVBM_ALL_LANES, keys, 4, fresh, NULL)), 4);
	must_eq(kvbm_commit(c.ns, KVBM_ALL_LANES, spans, keys, 4, NULL, 0), -KVBM_E_STALE);
	for (uint32_t i = 0; i < 4; i++)
		must(kvbm_data(c.ns, &spans[i], 0) == NULL);
	must_eq(kvbm_abort(c.ns, KVBM_ALL_LANES, fresh, 4), 4);
	must_eq(cache_present(&c, 10, 4), 0);
	kvbm_get_counters(c.kvbm, &counters);
	must_eq(counters.reconnects, 1);
	must(counters.boot_id != boot_id);
	cache_close(&c);
}
END_TEST

/* ---- host loops ---- */

/* Also when a forked child has a copy of all of it. */
START_TEST(the_descriptor_tells_of_the_death)
{
	struct pollfd p = { .events = POLLIN };
	pid_t child = 0;
	struct cache c;

	cache_open(&c, d.socket, &model);
	if (_i) {
		child = fork();
		must(child >= 0);
		if (child == 0) {
			must(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
			for (;;)
				pause();
		}
	}
	p.fd = kvbm_get_fd(c.kvbm);
	must(p.fd >= 0);
	must_eq(poll(&p, 1, 0), 0);
	must_eq(kvbm_dispatch(c.kvbm), 0);
	daemon_kill(&d);
	must_eq(poll(&p, 1, DAEMON_WAIT_MS), 1);
	must_eq(kvbm_dispatch(c.kvbm), -KVBM_E_GONE);
	daemon_run(&d);
	cache_ok(&c, kvbm_ping(c.kvbm));
	p.fd = kvbm_get_fd(c.kvbm);
	must(p.fd >= 0);
	must_eq(poll(&p, 1, 0), 0);
	must_eq(cache_ok(&c, kvbm_dispatch(c.kvbm)), 0);
	cache_close(&c);
	if (_i)
		must(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
}
END_TEST

/* ---- deadlines ---- */

static unsigned ms_since(uint64_t start)
{
	return (unsigned)((clock_now_ns() - start) / MS);
}

static void on_alarm(int signal)
{
	(void)signal;
}

START_TEST(deadlines_are_kept)
{
	struct sigaction ignore = { .sa_handler = on_alarm };
	struct itimerval often = { { 0, 5000 }, { 0, 5000 } };
	struct kvbm_options options = { .socket = d.socket, .timeout_ms = 150 };
	struct kvbm *kvbm;
	struct kvbm_ns *ns;
	uint64_t start;

	must_eq(kvbm_open(&options, &kvbm), 0);
	must_eq(kvbm_attach(kvbm, &model, &ns), 0);

	/* There, but not answering. */
	must(kill(d.pid, SIGSTOP) == 0);
	start = clock_now_ns();
	must_eq(kvbm_ping(kvbm), -KVBM_E_TIMEOUT);
	must_cmp(ms_since(start), >=, 140);
	must_cmp(ms_since(start), <, 20000);
	/* Signals neither shorten nor lengthen it. */
	must(sigaction(SIGALRM, &ignore, NULL) == 0 && setitimer(ITIMER_REAL, &often, NULL) == 0);
	start = clock_now_ns();
	must_eq(kvbm_ping(kvbm), -KVBM_E_TIMEOUT);
	must_cmp(ms_since(start), >=, 140);
	must_cmp(ms_since(start), <, 20000);
	often = (struct itimerval){ 0 };
	must(setitimer(ITIMER_REAL, &often, NULL) == 0);
	must(kill(d.pid, SIGCONT) == 0);
	must_eq(kvbm_ping(kvbm), 0); /* the late answer is not taken for this one's */
	must_eq(kvbm_ping(kvbm), 0);

	/* Away: the socket takes connections, nobody takes them up. */
	daemon_kill(&d);
	start = clock_now_ns();
	for (int i = 0; i < 5; i++) {
		int r = kvbm_ping(kvbm);

		must(r == -KVBM_E_GONE || r == -KVBM_E_TIMEOUT);
	}
	must_cmp(ms_since(start), <, 20000);
	start = clock_now_ns();
	kvbm_close(kvbm);
	must_eq(kvbm_open(&options, &kvbm), -KVBM_E_TIMEOUT);
	must_cmp(ms_since(start), >=, 140);
	options.socket = "/nonexistent/kvbmd.sock";
	must_eq(kvbm_open(&options, &kvbm), -KVBM_E_SYS);
	must_eq(errno, ENOENT);
	options.socket = d.config;
	must_eq(kvbm_open(&options, &kvbm), -KVBM_E_SYS);
}
END_TEST

/* The daemon stops cleanly although clients are connected, one of them in the middle of a write. */
START_TEST(a_stop_ends_sessions)
{
	struct kvbm_span spans[4];
	struct cache c;

	cache_open(&c, d.socket, &model);
	must_eq(kvbm_reserve(c.ns, KVBM_ALL_LANES, NULL, 4, spans, NULL), 4);
	daemon_stop(&d);
	daemon_run(&d);
	cache_ok(&c, kvbm_ping(c.kvbm));
	must_eq(cache_store(&c, 0, 4), 4);
	cache_close(&c);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("daemon death");
	TCase *tc = tcase_create("death");
	SRunner *sr = srunner_create(s);
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 1200);
	tcase_add_test(tc, clients_go_on_with_the_next_daemon);
	tcase_add_loop_test(tc, what_is_held_stays_readable, 0, 2);
	tcase_add_test(tc, what_was_reserved_is_stale);
	tcase_add_loop_test(tc, the_descriptor_tells_of_the_death, 0, 2);
	tcase_add_test(tc, deadlines_are_kept);
	tcase_add_test(tc, a_stop_ends_sessions);
	suite_add_tcase(s, tc);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed == 0 ? 0 : 1;
}
