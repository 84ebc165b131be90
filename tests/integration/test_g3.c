/* SPDX-License-Identifier: Apache-2.0 */
/* A real daemon with a file below host memory [21, 23-25, 30, 31]: blocks go down and come back right, also after SIGTERM and after kill -9 at
 * any moment; files that are not its own are left alone.  KVBM_G3_KILLS says how often. */
#include <check.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/rng.h"
#include "tests/lib/command.h"
#include "tests/lib/crowd.h"
#include "tests/lib/daemon_proc.h"
#include "tests/lib/cache.h"
#include "tests/lib/must.h"
#include "tests/lib/scale.h"

#define BLOCK 16384u
#define MIB (1u << 20)

static struct daemon_proc d;
static struct command command;
static char path[128], path_flag[160];

/* G2 of 4 MiB, 256 blocks; G3 sixteen times that. */
static const char *const flags[] = { "--g2.size=4M", "--g2.region_size=2M", "--g2.huge_pages=never", "--g3.size=65M", NULL };

static void add_flag(const char *flag)
{
	unsigned n = 0;

	while (d.flags[n])
		n++;
	must_cmp(n, <, DAEMON_MAX_FLAGS - 1);
	d.flags[n] = flag;
}

static void setup(void)
{
	daemon_init(&d, NULL, flags);
	tmpdir_path(&d.dir, "g3.img", path, sizeof(path));
	must(snprintf(path_flag, sizeof(path_flag), "--g3.path=%s", path) > 0);
	add_flag(path_flag);
}

static void teardown(void)
{
	command_deinit(&command);
	daemon_deinit(&d);
}

static void log_has(const char *text)
{
	char *log = daemon_log(&d);

	must_contain(log, text);
	free(log);
}

static json_t *ctl_json(int code, const char *const *words)
{
	const char *all[COMMAND_MAX_WORDS] = { "-o", "json" };

	for (int n = 2; *words; words++)
		all[n++] = *words;
	command_deinit(&command);
	command_ctl(&command, d.socket, all);
	command_expect(&command, code);
	return command_json(&command);
}

#define CTL_JSON(code, ...) ctl_json(code, (const char *const[]){ __VA_ARGS__, NULL })

/* [BEHAVIOUR 6], once nobody is at work. */
static void check_identities(void)
{
	static const char *const tiers[] = { "g2", "g3" };

	daemon_await_metric(&d, "leases", 0);
	daemon_await_metric(&d, "pins", 0);
	must_eq(daemon_metric(&d, "blocks_stored_total"), daemon_metric(&d, "blocks_resident") +
	                                                          daemon_metric(&d, "blocks_dropped_total") +
	                                                          daemon_metric(&d, "blocks_deduplicated_total"));
	must_eq(daemon_metric(&d, "blocks_looked_up_total"), daemon_metric(&d, "hits_g2_total") +
	                                                             daemon_metric(&d, "hits_g3_total") +
	                                                             daemon_metric(&d, "misses_total"));
	for (size_t i = 0; i < 2; i++) {
		json_t *list = CTL_JSON(0, "tiers", tiers[i]);
		const json_t *tier = json_array_get(list, 0);

		must_eq(json_number_at(tier, "slots"), json_number_at(tier, "free") + json_number_at(tier, "used") +
		                                               json_number_at(tier, "quarantined"));
		must_cmp(json_number_at(tier, "used_bytes"), <=, json_number_at(tier, "size_bytes"));
		json_decref(list);
	}
}

static json_t *replay(const char *clients, const char *requests)
{
	return CTL_JSON(0, "replay", "--workload", "chat", "--clients", clients, "--requests", requests,
	                "--block-bytes", "16K", "--namespace", "demo");
}

static uint64_t count(const json_t *report, const char *name)
{
	return (uint64_t)json_number_at(report, name);
}

static void check_report(const json_t *report)
{
	must_eq(count(report, "wrong_bytes"), 0);
	must_eq(count(report, "errors"), 0);
	must_eq(count(report, "onboard_failed"), 0);
	must_eq(count(report, "blocks_hit"), count(report, "hits_by_tier.g2") + count(report, "hits_by_tier.g3"));
}

/* Recovery goes on after READY. */
static void run_and_recover(void)
{
	bool online = false;

	daemon_run(&d);
	for (uint64_t end = clock_now_ns() + DAEMON_WAIT_MS * UINT64_C(1000000); !online && clock_now_ns() < end;) {
		char *text;
		json_t *list;

		must_eq(kvbm_info(daemon_monitor(&d), "tiers", "g3", NULL, 0, &text), 0);
		list = json_loads(text, 0, NULL);
		must(list);
		online = strcmp(json_string_value(json_at(json_array_get(list, 0), "state")), "online") == 0;
		json_decref(list);
		free(text);
	}
	must(online);
}

/* ---- a life in order ---- */

START_TEST(four_clients_share_both_tiers)
{
	json_t *report;

	daemon_run(&d);
	json_decref(replay("4", SCALE("1500", "300")));
	report = replay("4", SCALE("1500", "300"));
	check_report(report);
	must_cmp(count(report, "hits_by_tier.g3"), >, 0);
	must_cmp(count(report, "g3_slots"), >, 3000);
	json_decref(report);
	daemon_monitor(&d);
	daemon_await_metric(&d, "sessions", 1);
	check_identities();
	must_cmp(daemon_metric(&d, "blocks_offloaded_total"), >, 0);
	must_cmp(daemon_metric(&d, "blocks_onboarded_total"), >, 0);
	must_eq(daemon_metric(&d, "checksum_errors_total"), 0);
	daemon_stop(&d);
}
END_TEST

/* All of @n blocks in chains of 64 that are there, byte by byte, up from below; how many. */
static uint32_t verify_all(struct cache *c, uint32_t n, bool whole)
{
	struct kvbm_span spans[CACHE_CHAIN];
	uint8_t keys[CACHE_CHAIN * KVBM_KEY_MAX];
	struct kvbm_onboard_options options = { .flags = KVBM_HOLD, .timeout_ms = 20000 };
	uint32_t there = 0;

	for (uint32_t first = 0; first < n; first += CACHE_CHAIN) {
		int hits;

		cache_keys(c, first * 2, CACHE_CHAIN, keys);
		hits = cache_ok(c, kvbm_onboard(c->ns, keys, CACHE_CHAIN, &options, NULL, spans));
		if (whole)
			must_eq(hits, CACHE_CHAIN);
		for (int i = 0; i < hits; i++)
			cache_check(c, &spans[i], keys + (size_t)i * c->key_bytes);
		cache_ok(c, kvbm_release(c->ns, spans, (uint32_t)hits));
		there += (uint32_t)hits;
	}
	return there;
}

static void store_all(struct cache *c, uint32_t n)
{
	for (uint32_t first = 0; first < n; first += CACHE_CHAIN)
		must_eq(cache_store(c, first * 2, CACHE_CHAIN), CACHE_CHAIN);
}

START_TEST(everything_is_there_after_a_clean_stop)
{
	struct kvbm_model model = cache_model("kept", BLOCK, 1);
	const uint32_t n = 1024; /* four times what memory has room for */
	struct cache c;
	json_t *json;

	add_flag("--g3.wait=30s"); /* nothing is dropped unwritten */
	daemon_run(&d);
	cache_open(&c, d.socket, &model);
	store_all(&c, n);
	json = CTL_JSON(0, "drain", "kept");
	must_eq(json_number_at(json, "left"), 0);
	json_decref(json);
	must_eq(verify_all(&c, n, true), n);
	cache_close(&c);
	daemon_monitor(&d);
	daemon_await_metric(&d, "sessions", 1);
	check_identities();
	daemon_stop(&d);
	json = CTL_JSON(0, "fsck", "--data", path);
	must(json_is_true(json_at(json_array_get(json, 0), "clean")));
	must_eq(json_number_at(json_array_get(json, 0), "payloads_good"), n);
	json_decref(json);

	run_and_recover();
	must_eq(daemon_metric(&d, "blocks_recovered_total"), n);
	log_has("after a clean stop");
	cache_open(&c, d.socket, &model);
	must_eq(verify_all(&c, n, true), n);
	cache_close(&c);
	daemon_await_metric(&d, "sessions", 1);
	check_identities();
	must_eq(daemon_metric(&d, "hits_g3_total") + daemon_metric(&d, "hits_g2_total"), n);
	must_eq(daemon_metric(&d, "checksum_errors_total"), 0);
	daemon_stop(&d);
}
END_TEST

static const struct {
	const char *name;
	uint64_t block;
	uint32_t lanes;
	bool below;
} kinds[] = {
	{ "small", 4096, 1, true },
	{ "lanes", 8192, 3, true },
	{ "large", 262144, 1, true },
	{ "odd", 5000, 1, false },
};
#define N_KINDS (sizeof(kinds) / sizeof(*kinds))

START_TEST(namespaces_of_all_sizes_come_back)
{
	struct cache c;

	d.flags[0] = "--g2.size=32M";
	daemon_run(&d);
	for (size_t i = 0; i < N_KINDS; i++) {
		struct kvbm_model model = cache_model(kinds[i].name, kinds[i].block, kinds[i].lanes);
		json_t *json;

		cache_open(&c, d.socket, &model);
		must_eq(cache_store(&c, 0, 16), 16);
		json = CTL_JSON(kinds[i].below ? 0 : 1, "drain", kinds[i].name);
		must_eq(json_number_at(json, "written"), kinds[i].below ? 16 : 0);
		must_eq(json_number_at(json, "left"), kinds[i].below ? 0 : 16);
		must_eq(json_number_at(json, "not_for_g3"), kinds[i].below ? 0 : 16);
		json_decref(json);
		cache_close(&c);
	}
	daemon_stop(&d);
	run_and_recover();
	must_eq(daemon_metric(&d, "blocks_recovered_total"), 48);
	for (size_t i = 0; i < N_KINDS; i++) {
		struct kvbm_model model = cache_model(kinds[i].name, kinds[i].block, kinds[i].lanes);
		struct kvbm_onboard_options options = { .timeout_ms = 20000 };
		uint8_t keys[16 * KVBM_KEY_MAX];

		cache_open(&c, d.socket, &model);
		cache_keys(&c, 0, 16, keys);
		must_eq(cache_ok(&c, kvbm_onboard(c.ns, keys, 16, &options, NULL, NULL)), kinds[i].below ? 16 : 0);
		must_eq(cache_verify(&c, 0, 16), kinds[i].below ? 16 : 0);
		cache_close(&c);
	}
	daemon_await_metric(&d, "sessions", 1);
	check_identities();
	daemon_stop(&d);
}
END_TEST

START_TEST(capacity_is_not_exceeded)
{
	struct kvbm_model model = cache_model("much", BLOCK, 1);
	struct stat before, after;
	struct cache c;

	daemon_run(&d);
	must_eq(stat(path, &before), 0);
	must_eq(before.st_size, 65 * MIB);
	cache_open(&c, d.socket, &model);
	for (uint32_t i = 0; i < SCALE(3u, 1u) * 65 * MIB / BLOCK / CACHE_CHAIN; i++)
		must_eq(cache_store(&c, i * 2 * CACHE_CHAIN, CACHE_CHAIN), CACHE_CHAIN);
	cache_close(&c);
	daemon_monitor(&d);
	daemon_await_metric(&d, "sessions", 1);
	check_identities();
	must_eq(stat(path, &after), 0);
	must_eq(after.st_size, before.st_size);
	must_cmp(after.st_blocks, <=, before.st_blocks + 16);
	daemon_stop(&d);
}
END_TEST

/* ---- what a running daemon is told ---- */

START_TEST(never_is_live)
{
	struct kvbm_model model = cache_model("a", BLOCK, 1);
	struct cache c;
	char text[64];
	uint64_t before;

	d.keep_notify = true;
	d.flags[0] = "--g2.size=16M"; /* more than has its checksums made at a time: that could not be dropped */
	daemon_run(&d);
	cache_open(&c, d.socket, &model);
	store_all(&c, 512);
	json_decref(CTL_JSON(0, "drain"));
	tmpdir_write(&d.dir, "kvbmd.conf", "[namespace a]\ng3_write = never\n");
	must_eq(kill(d.pid, SIGHUP), 0);
	do
		must(daemon_next_message(&d, text, sizeof(text), DAEMON_WAIT_MS));
	while (!strstr(text, "READY=1"));
	before = daemon_metric(&d, "blocks_offloaded_total");
	must_cmp(before, >=, 512);
	for (uint32_t i = 0; i < 32; i++)
		must_eq(cache_store(&c, (100 + i) * 2 * CACHE_CHAIN, CACHE_CHAIN), CACHE_CHAIN);
	must_eq(daemon_metric(&d, "blocks_offloaded_total"), before);
	must_cmp(verify_all(&c, 512, false), >=, 256); /* what is there is still read */
	cache_close(&c);
	daemon_stop(&d);
}
END_TEST

/* ---- files ---- */

static void refused(const char *says)
{
	daemon_spawn(&d);
	must_eq(daemon_wait(&d), 2);
	log_has(says);
}

START_TEST(files_of_others_are_left_alone)
{
	struct daemon_proc other = d;
	char *text;

	tmpdir_write(&d.dir, "g3.img", "somebody's thesis");
	refused("g3.img");
	text = tmpdir_read(path);
	must(strcmp(text, "somebody's thesis") == 0);
	free(text);
	must_eq(unlink(path), 0);
	must_eq(mkdir(path, 0700), 0);
	refused("g3.img");
	must_eq(rmdir(path), 0);

	/* Made for another size; it stays as it is, and is right with the old one. */
	daemon_run(&d);
	daemon_stop(&d);
	d.flags[3] = "--g3.size=33M";
	refused("g3.img");
	d.flags[3] = "--g3.size=65M";
	daemon_run(&d);

	/* In use. */
	tmpdir_path(&d.dir, "other.sock", other.socket, sizeof(other.socket));
	tmpdir_path(&d.dir, "other.log", other.log, sizeof(other.log));
	other.flags[4] = path_flag;
	daemon_spawn(&other);
	must_eq(daemon_wait(&other), 2);
	text = daemon_log(&other);
	must_contain(text, "g3.img");
	free(text);
	must_eq(daemon_metric(&d, "sessions"), 1);
	daemon_stop(&d);
}
END_TEST

/* The rest is served, and whoever looks is told. */
START_TEST(a_full_disk_is_no_end)
{
	struct kvbm_model model = cache_model("a", BLOCK, 1);
	char mountpoint[128];
	struct cache c;

	tmpdir_path(&d.dir, "small", mountpoint, sizeof(mountpoint));
	must_eq(mkdir(mountpoint, 0700), 0);
	if (mount("none", mountpoint, "tmpfs", 0, "size=8M") != 0) {
		printf("not run: no right to mount\n");
		return;
	}
	must(snprintf(path_flag, sizeof(path_flag), "--g3.path=%s/g3.img", mountpoint) > 0);
	daemon_run(&d);
	log_has("going on without it");
	cache_open(&c, d.socket, &model);
	must_eq(cache_store(&c, 0, 16), 16);
	must_eq(cache_verify(&c, 0, 16), 16);
	cache_close(&c);
	daemon_stop(&d);
	must_eq(umount2(mountpoint, MNT_DETACH), 0);
}
END_TEST

/* Whoever computes faster than a drive reads is told so, once it is known how fast that is; nobody else. */
START_TEST(what_is_faster_computed_is_not_waited_for)
{
	struct kvbm_model model = cache_model("kept", BLOCK, 1);
	struct kvbm_onboard_options fast = { .timeout_ms = 20000, .tokens_per_s = UINT32_MAX },
				    slow = { .timeout_ms = 20000, .tokens_per_s = 1 };
	uint8_t keys[CACHE_CHAIN * KVBM_KEY_MAX], status[CACHE_CHAIN];
	struct cache c;

	model.page_size = 16;
	daemon_run(&d);
	cache_open(&c, d.socket, &model);
	store_all(&c, 1024);
	json_decref(CTL_JSON(0, "drain", "kept"));
	cache_keys(&c, 0, CACHE_CHAIN, keys);
	must_eq(cache_ok(&c, kvbm_onboard(c.ns, keys, CACHE_CHAIN, &slow, status, NULL)), CACHE_CHAIN);
	must_eq(status[CACHE_CHAIN - 1], KVBM_DONE);
	cache_keys(&c, 2 * CACHE_CHAIN, CACHE_CHAIN, keys);
	must_eq(cache_ok(&c, kvbm_onboard(c.ns, keys, CACHE_CHAIN, &fast, status, NULL)), 0);
	must_eq(status[0], KVBM_RECOMPUTE);
	must_eq(cache_ok(&c, kvbm_onboard(c.ns, keys, CACHE_CHAIN, &slow, status, NULL)), CACHE_CHAIN);
	cache_close(&c);
	daemon_stop(&d);
}
END_TEST

/* Then blocks are dropped unwritten, as without such a tier; what is there is served. */
START_TEST(the_writes_of_a_day_are_bounded)
{
	struct kvbm_model model = cache_model("kept", BLOCK, 1);
	json_t *list;
	const json_t *tier;
	struct cache c;

	add_flag("--g3.write_budget=2M");
	daemon_run(&d);
	cache_open(&c, d.socket, &model);
	store_all(&c, 1024);
	list = CTL_JSON(0, "tiers", "g3");
	tier = json_array_get(list, 0);
	must_eq(json_number_at(tier, "write_budget_bytes"), 2 * MIB);
	must_cmp(json_number_at(tier, "written_today_bytes"), >, MIB);
	must_cmp(json_number_at(tier, "written_today_bytes"), <=, 2 * MIB + 64 * 4096); /* records of the last ones */
	must_cmp(json_number_at(tier, "used"), <=, 2 * MIB / BLOCK);
	json_decref(list);
	must_cmp(daemon_metric(&d, "blocks_dropped_total"), >, 512);
	must_cmp(verify_all(&c, 1024, false), >, 128);
	cache_close(&c);
	daemon_monitor(&d);
	daemon_await_metric(&d, "sessions", 1);
	check_identities();
	daemon_stop(&d);
}
END_TEST

static bool is_offline(void)
{
	json_t *status = CTL_JSON(0, "status");
	const char *health = json_string_value(json_at(status, "health"));
	bool offline = strstr(health, "offline");

	if (offline) {
		must_contain(health, "g3 is offline: ");
		must_contain(health, path);
		must_contain(health, "errors in a minute");
	}
	json_decref(status);
	return offline;
}

static void await_log(const char *text)
{
	for (uint64_t end = clock_now_ns() + DAEMON_WAIT_MS * UINT64_C(1000000); clock_now_ns() < end;) {
		char *log = daemon_log(&d);
		bool there = strstr(log, text);

		free(log);
		if (there)
			return;
		(void)daemon_metric(&d, "sessions");
	}
	log_has(text);
}

/* The file is cut off under it, so that what is below cannot be read any more: misses; the tier is offline, whoever looks is told, memory serves on; and it comes
 * back by itself. */
START_TEST(a_drive_that_fails_is_no_end)
{
	struct kvbm_model model = cache_model("kept", BLOCK, 1);
	struct kvbm_onboard_options options = { .timeout_ms = 20000 };
	uint8_t keys[CACHE_CHAIN * KVBM_KEY_MAX];
	const uint32_t n = 1024;
	bool seen = false;
	struct cache c;
	struct stat st;

	add_flag("--g3.wait=30s");
	daemon_run(&d);
	cache_open(&c, d.socket, &model);
	store_all(&c, n);
	json_decref(CTL_JSON(0, "drain", "kept"));
	must_eq(stat(path, &st), 0);
	for (uint32_t first = 0; first < n / 2 && !seen; first += CACHE_CHAIN) {
		must_eq(truncate(path, 0), 0);
		cache_keys(&c, first * 2, CACHE_CHAIN, keys);
		must_cmp(cache_ok(&c, kvbm_onboard(c.ns, keys, CACHE_CHAIN, &options, NULL, NULL)), <, CACHE_CHAIN);
		seen = is_offline();
	}
	must(seen);
	log_has("g3 is offline: ");
	must_eq(cache_store(&c, 1000000, 16), 16);
	must_eq(cache_verify(&c, 1000000, 16), 16);
	must_eq(truncate(path, st.st_size), 0);
	await_log("g3 is online again");
	store_all(&c, n); /* those that are lost */
	json_decref(CTL_JSON(0, "drain", "kept"));
	(void)verify_all(&c, n, false);
	must_eq(daemon_metric(&d, "onboards_failed_total") > 0, 1);
	cache_close(&c);
	daemon_monitor(&d);
	daemon_await_metric(&d, "sessions", 1);
	check_identities();
	daemon_stop(&d);
}
END_TEST

/* ---- death ---- */

START_TEST(a_killed_daemon_starts_warm)
{
	uint64_t before, after;
	json_t *report;

	d.flags[3] = "--g3.size=257M";
	daemon_run(&d);
	json_decref(replay("1", SCALE("3000", "400")));
	report = replay("1", SCALE("1000", "200"));
	check_report(report);
	before = count(report, "blocks_hit");
	json_decref(report);
	daemon_kill(&d);
	run_and_recover();
	report = replay("1", SCALE("1000", "200"));
	check_report(report);
	after = count(report, "blocks_hit");
	json_decref(report);
	printf("%llu hits before the kill, %llu after\n", (unsigned long long)before, (unsigned long long)after);
	must_cmp(after * 10, >=, before * 9);
	must_cmp(daemon_metric(&d, "blocks_recovered_total"), >, 0);
	log_has("after a crash");
	daemon_stop(&d);
}
END_TEST

#define CLIENTS 4u
#define CONVERSATIONS 24u /* of 64 blocks: six times what memory has room for */

/* What a client may be told while its daemon is away or new. */
static bool is_of_the_restart(int r)
{
	return r == -KVBM_E_GONE || r == -KVBM_E_STALE || r == -KVBM_E_NOTHELD || r == -KVBM_E_TIMEOUT ||
	       r == -KVBM_E_NOSPACE;
}

/* One request: brings up what there is of a conversation, reads all of it, stores the rest. */
static int load_request(struct cache *c, struct rng *rng)
{
	struct kvbm_onboard_options options = { .flags = KVBM_HOLD, .timeout_ms = 1000 };
	uint64_t first = 2 * CACHE_CHAIN * (uint64_t)rng_below(rng, CONVERSATIONS);
	uint32_t n = 1 + (uint32_t)rng_below(rng, CACHE_CHAIN);
	struct kvbm_span spans[CACHE_CHAIN];
	uint8_t keys[CACHE_CHAIN * KVBM_KEY_MAX];
	struct kvbm_counters before, after;
	int hits, r;

	kvbm_get_counters(c->kvbm, &before);
	cache_keys(c, first, n, keys);
	hits = kvbm_onboard(c->ns, keys, n, &options, NULL, spans);
	if (hits < 0)
		return hits;
	for (int i = 0; i < hits; i++) {
		/* A span of a daemon that has gone cannot be mapped any more, if it was not before; and one that stops ends sessions first. */
		if (!cache_try_check(c, &spans[i], keys + (size_t)i * c->key_bytes))
			return -KVBM_E_GONE;
	}
	r = kvbm_release(c->ns, spans, (uint32_t)hits);
	kvbm_get_counters(c->kvbm, &after);
	if (r < 0 || before.reconnects != after.reconnects)
		return r < 0 ? r : -KVBM_E_GONE;
	return cache_try_store(c, KVBM_ALL_LANES, first, n);
}

static void survivor(struct client_self *self, void *arg)
{
	struct kvbm_model model = cache_model("load", BLOCK, 1);
	struct cache c;
	struct rng rng;

	(void)arg;
	rng_init(&rng, (uint64_t)getpid());
	cache_open(&c, d.socket, &model);
	while (crowd_goes_on(self)) {
		int r = load_request(&c, &rng);

		if (r < 0 && !is_of_the_restart(r))
			cache_ok(&c, r);
		if (r >= 0)
			crowd_worked(self);
	}
	cache_close(&c);
}

/* After a clean stop a daemon writes at once; after a crash it waits for 10 s.  So it is killed after the first, and the second proves what was left. */
START_TEST(kills_under_load_cost_no_byte)
{
	unsigned kills = scale_env("KVBM_G3_KILLS", SCALE(200, 6));
	uint64_t started = clock_now_ns(), recovered = 0, wrong = 0, hits = 0;
	struct kvbm_model model = cache_model("load", BLOCK, 1);
	struct crowd crowd;
	struct cache c;
	struct rng rng;

	add_flag(_i ? "--g3.write=through" : "--g3.write=on-evict");
	rng_init(&rng, 31);
	daemon_run(&d);
	crowd_start(&crowd, CLIENTS, survivor, NULL);
	for (unsigned i = 0; i < (kills + 1) / 2; i++) {
		crowd_await(&crowd, 20 + rng_below(&rng, 60));
		daemon_kill(&d);
		run_and_recover();
		cache_open(&c, d.socket, &model);
		hits += verify_all(&c, CONVERSATIONS * CACHE_CHAIN, false);
		cache_close(&c);
		recovered += daemon_metric(&d, "blocks_recovered_total");
		wrong += daemon_metric(&d, "checksum_errors_total");
		daemon_stop(&d);
		daemon_run(&d);
	}
	crowd_stop(&crowd);
	daemon_monitor(&d);
	daemon_await_metric(&d, "sessions", 1);
	check_identities();
	must_cmp(recovered, >, 0);
	must_eq(wrong, 0); /* no slot is overwritten while its record says what was in it */
	daemon_stop(&d);
	printf("%u kills in %.1f s: %llu blocks recovered, %llu verified, none found to be overwritten\n", (kills + 1) / 2,
	       (double)(clock_now_ns() - started) / 1e9, (unsigned long long)recovered, (unsigned long long)hits);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("g3");
	TCase *tc = tcase_create("g3");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 1800);
	tcase_add_test(tc, four_clients_share_both_tiers);
	tcase_add_test(tc, everything_is_there_after_a_clean_stop);
	tcase_add_test(tc, namespaces_of_all_sizes_come_back);
	tcase_add_test(tc, capacity_is_not_exceeded);
	tcase_add_test(tc, never_is_live);
	tcase_add_test(tc, files_of_others_are_left_alone);
	tcase_add_test(tc, a_full_disk_is_no_end);
	tcase_add_test(tc, what_is_faster_computed_is_not_waited_for);
	tcase_add_test(tc, the_writes_of_a_day_are_bounded);
	tcase_add_test(tc, a_drive_that_fails_is_no_end);
	tcase_add_test(tc, a_killed_daemon_starts_warm);
	tcase_add_loop_test(tc, kills_under_load_cost_no_byte, 0, 2);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed == 0 ? 0 : 1;
}
