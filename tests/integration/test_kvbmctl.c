/* SPDX-License-Identifier: Apache-2.0 */
/* The command line against a real daemon: every verb for people and for programs, its exit codes, and what it says when something is wrong. */
#include <check.h>
#include <stdlib.h>
#include <unistd.h>

#include "tests/lib/cache.h"
#include "tests/lib/command.h"
#include "tests/lib/daemon_proc.h"
#include "tests/lib/must.h"

#define BLOCK 16384u
#define N_BLOCKS 8u
#define ABSENT "00112233445566770011223344556677"

static const char *const flags[] = { "--g2.size=8M", "--g2.region_size=2M", "--g2.huge_pages=never", NULL };

static struct daemon_proc d;
static struct cache c;
static struct command command;
static struct daemon_baseline baseline;
static char keys[N_BLOCKS][2 * KVBM_KEY_MAX + 1]; /* in hex */

/* A daemon with one namespace, "models/a:1", and a chain of eight blocks in it. */
static void setup(void)
{
	struct kvbm_model model = cache_model("models/a:1", BLOCK, 1);
	uint8_t bytes[N_BLOCKS * KVBM_KEY_MAX];

	daemon_start(&d, flags);
	cache_open(&c, d.socket, &model);
	must_eq(cache_store(&c, 0, N_BLOCKS), N_BLOCKS);
	cache_keys(&c, 0, N_BLOCKS, bytes);
	for (uint32_t i = 0; i < N_BLOCKS; i++)
		for (uint32_t k = 0; k < c.key_bytes; k++)
			snprintf(keys[i] + 2 * k, 3, "%02x", bytes[i * c.key_bytes + k]);
	daemon_baseline(&d, &baseline);
}

static void teardown(void)
{
	daemon_check(&d, &baseline);
	command_deinit(&command);
	cache_close(&c);
	daemon_deinit(&d);
}

static const char *ctl(int code, const char *const *words)
{
	command_deinit(&command);
	command_ctl(&command, d.socket, words);
	command_expect(&command, code);
	return command.out;
}

#define CTL(code, ...) ctl(code, (const char *const[]){ __VA_ARGS__, NULL })

/* stdout is one JSON value and stderr is empty; the caller owns it. */
static json_t *ctl_json(int code, const char *const *words)
{
	const char *all[COMMAND_MAX_WORDS] = { "-o", "json" };

	for (int n = 2; *words; words++)
		all[n++] = *words;
	ctl(code, all);
	must_eq(strlen(command.err), 0);
	return command_json(&command);
}

#define CTL_JSON(code, ...) ctl_json(code, (const char *const[]){ __VA_ARGS__, NULL })

static void has(const json_t *object, const char *const *names)
{
	for (; *names; names++)
		(void)json_at(object, *names);
}

#define HAS(object, ...) has(object, (const char *const[]){ __VA_ARGS__, NULL })

/* ---- what is shown ---- */

START_TEST(status_in_both_forms)
{
	json_t *status = CTL_JSON(0, "status");

	HAS(status, "health", "version", "pid", "socket", "boot_id", "uptime_seconds", "requests", "request_errors",
	    "deduplicated", "dropped", "leases", "pins", "misses", "hit_rate", "tiers");
	must_eq(json_number_at(status, "pid"), d.pid);
	must_eq(json_number_at(status, "namespaces"), 1);
	must_eq(json_number_at(status, "blocks"), N_BLOCKS);
	must_eq(json_number_at(status, "stored"), N_BLOCKS);
	must_eq(json_number_at(status, "looked_up"), 0);
	must(json_is_null(json_at(status, "hit_rate")));
	json_decref(status);
	must_contain(CTL(0, "status"), "health                     ok\n");
	must_contain(command.out, "\nname  state  ");
	must_contain(CTL(0, "status", "-o", "table"), "uptime_seconds");
}
END_TEST

/* A session that stays: its matches in shared memory are seen while it lives. */
START_TEST(matches_of_a_living_session_are_counted)
{
	json_t *json;

	must_eq(cache_verify(&c, 0, 12), N_BLOCKS);
	must_eq(daemon_metric(&d, "blocks_looked_up_total"), 12);
	must_eq(daemon_metric(&d, "hits_g2_total"), N_BLOCKS);
	must_eq(daemon_metric(&d, "misses_total"), 4);
	must_eq(daemon_metric(&d, "bytes_matched_total"), N_BLOCKS * BLOCK);
	must_eq(cache_verify(&c, 0, 4), 4);
	json = CTL_JSON(0, "namespaces");
	must_eq(json_number_at(json_array_get(json, 0), "looked_up"), 16);
	must_eq(json_number_at(json_array_get(json, 0), "hits"), 12);
	json_decref(json);
	json = CTL_JSON(0, "metrics");
	must_eq(json_number_at(json, "kvbmd_blocks_looked_up_total"), 16);
	must_eq(json_number_at(json, "kvbmd_hits_g2_total"), 12);
	json_decref(json);
	cache_close(&c);
	daemon_await_metric(&d, "sessions", 1);
	must_eq(daemon_metric(&d, "blocks_looked_up_total"), 16);
	must_eq(daemon_metric(&d, "hits_g2_total"), 12);
	cache_open(&c, d.socket, &(struct kvbm_model){ .name = "models/a:1", .block_bytes = BLOCK, .lanes = 1 });
}
END_TEST

START_TEST(namespaces_and_one_of_them)
{
	json_t *list = CTL_JSON(0, "namespaces");
	const json_t *one = json_array_get(list, 0);

	must_eq(json_array_size(list), 1);
	HAS(one, "slots", "free", "writing", "quarantined", "max_slots", "used_bytes", "share_bytes", "max_bytes",
	    "sessions", "pins", "looked_up", "hits", "misses", "hit_rate", "stored", "dropped", "deduplicated",
	    "fingerprint", "key_bytes", "lanes");
	must_contain(json_string_value(json_at(one, "name")), "models/a:1");
	must_eq(json_number_at(one, "used"), N_BLOCKS);
	must_eq(json_number_at(one, "lane_bytes"), BLOCK);
	json_decref(list);

	list = CTL_JSON(0, "namespaces", "models/a:1");
	must_eq(json_array_size(list), 1);
	HAS(json_array_get(list, 0), "aborted", "regions", "grace", "metadata_bytes", "model", "hash_algo", "salted",
	    "num_layers", "page_size", "inner_dim", "outer_dim", "confirm");
	json_decref(list);

	must_contain(CTL(0, "namespaces"), "models/a:1      16 KiB");
	must_contain(CTL(0, "namespaces", "models/a:1"), "metadata_bytes");
	CTL(1, "namespaces", "nobody");
	must_contain(command.err, "there is no namespace nobody");
	must_eq(strlen(command.out), 0);
}
END_TEST

START_TEST(clients_and_one_of_them)
{
	struct kvbm_span spans[N_BLOCKS];
	json_t *list;
	const json_t *one = NULL, *row;
	char number[24];
	size_t i;

	must_eq(cache_hold(&c, 0, 5, spans), 5);
	list = CTL_JSON(0, "clients");
	json_array_foreach(list, i, row) if (strcmp(json_string_value(json_at(row, "name")), "test") == 0) one = row;
	must(one);
	HAS(one, "session", "uid", "state", "connected_seconds", "requests", "errors", "writing", "quarantined",
	    "looked_up", "hits", "hit_rate");
	must_eq(json_number_at(one, "pid"), getpid());
	must_eq(json_number_at(one, "pins"), 5);
	must_eq(json_number_at(one, "namespaces"), 1);
	snprintf(number, sizeof(number), "%.0f", json_number_at(one, "session"));
	json_decref(list);

	list = CTL_JSON(0, "clients", number);
	must_eq(json_array_size(list), 1);
	one = json_array_get(json_at(json_array_get(list, 0), "attached"), 0);
	must_eq(json_number_at(one, "pins"), 5);
	HAS(one, "namespace", "writable", "writing", "quarantined", "holds", "looked_up", "hits");
	json_decref(list);
	must_contain(CTL(0, "clients"), "  test  ");
	must_contain(CTL(0, "clients", "test"), "\nattached\n");
	CTL(1, "clients", "nobody");
	must_eq(kvbm_release(c.ns, spans, 5), 5);
}
END_TEST

START_TEST(tiers_and_one_of_them)
{
	json_t *list = CTL_JSON(0, "tiers");
	const json_t *one = json_array_get(list, 0);

	must_eq(json_array_size(list), 1);
	HAS(one, "state", "used_bytes", "touched_bytes", "regions", "numa_nodes", "pages", "note");
	must_eq(json_number_at(one, "size_bytes"), 8 << 20);
	must_eq(json_number_at(one, "slots"),
	        json_number_at(one, "free") + json_number_at(one, "used") + json_number_at(one, "quarantined"));
	json_decref(list);
	must_contain(CTL(0, "tiers"), "name  state  size_bytes");
	must_contain(CTL(0, "tiers", "g2"), "touched_bytes");
	CTL(1, "tiers", "g7");
	must_contain(command.err, "there is no tier g7");
}
END_TEST

START_TEST(metrics_as_text_and_as_json)
{
	json_t *json = CTL_JSON(0, "metrics");

	must_eq(json_number_at(json, "kvbmd_blocks_stored_total"), N_BLOCKS);
	must_eq(json_number_at(json, "kvbmd_blocks_resident"), N_BLOCKS);
	json_decref(json);
	must_contain(CTL(0, "metrics"), "# TYPE kvbmd_blocks_resident gauge\n");
	must_contain(command.out, "\nkvbmd_blocks_resident 8\n");
}
END_TEST

START_TEST(top_looks_as_often_as_it_is_told)
{
	const char *second;

	must_contain(CTL(0, "top", "--count", "2", "--interval", "0.05"), "models/a:1");
	second = strstr(strstr(command.out, "health") + 1, "health");
	must(second && !strstr(second + 1, "health"));
	must_contain(second, "looked_up/s");
	must(!strchr(command.out, '\033')); /* no terminal, no escapes */
	CTL(2, "top", "--interval", "0");
	must_contain(command.err, "interval is 0.05 to");
	json_decref(CTL_JSON(0, "top", "-c", "1"));
}
END_TEST

/* ---- blocks ---- */

START_TEST(a_block_with_its_kin_and_holders)
{
	struct kvbm_span spans[N_BLOCKS];
	json_t *block;

	must_eq(cache_hold(&c, 0, 3, spans), 3);
	block = CTL_JSON(0, "block", "--namespace", "models/a:1", keys[2]);
	HAS(block, "state", "tiers", "slot", "generation", "region");
	must_contain(json_string_value(json_at(block, "key")), keys[2]);
	must_contain(json_string_value(json_at(block, "parent")), keys[1]);
	must_eq(json_number_at(block, "children"), 1);
	must_contain(json_string_value(json_at(json_array_get(json_at(block, "some_children"), 0), "key")), keys[3]);
	must_eq(json_number_at(block, "pins"), 1);
	must_eq(json_number_at(block, "holders"), 1);
	json_decref(block);
	must_eq(kvbm_release(c.ns, spans, 3), 3);

	block = CTL_JSON(0, "block", "-n", "models/a:1", keys[0]);
	must(json_is_false(json_at(block, "has_parent")) && json_is_null(json_at(block, "parent")));
	json_decref(block);
	must_contain(CTL(0, "block", keys[7]), "registered"); /* there is only one */
	CTL(1, "block", "-n", "models/a:1", ABSENT);
	must_contain(command.err, "has no such block");
	CTL(1, "block", "-n", "nobody", ABSENT);
	must_contain(command.err, "there is no namespace nobody");
}
END_TEST

static void expect_why(const char *key, const char *reason)
{
	json_t *why = CTL_JSON(0, "why", "-n", "models/a:1", key);

	must_contain(json_string_value(json_at(why, "reason")), reason);
	HAS(why, "text", "ago_seconds", "misses", "parent_missing", "memory_seconds");
	json_decref(why);
}

START_TEST(why_a_look_up_misses)
{
	json_t *why;

	expect_why(keys[3], "present");
	expect_why(ABSENT, "never-stored");
	CTL(0, "drop", "-n", "models/a:1", keys[3]);
	expect_why(keys[3], "flushed");
	must_contain(CTL(0, "why", "-n", "models/a:1", keys[3]), "by an administrator");
	why = CTL_JSON(0, "why", "-n", "models/a:1", keys[4]);
	must(json_is_true(json_at(why, "parent_missing")));
	json_decref(why);
	CTL(1, "why", "-n", "nobody", ABSENT);
}
END_TEST

START_TEST(match_says_how_long_the_prefix_is)
{
	json_t *match = CTL_JSON(0, "match", "-n", "models/a:1", keys[0], keys[1], keys[2]);

	must_eq(json_number_at(match, "looked_up"), 3);
	must_eq(json_number_at(match, "hits"), 3);
	must_eq(json_array_size(json_at(match, "blocks")), 3);
	json_decref(match);
	match = CTL_JSON(1, "match", "-n", "models/a:1", keys[0], keys[1], ABSENT, keys[2]);
	must_eq(json_number_at(match, "hits"), 2);
	json_decref(match);
	must_contain(CTL(1, "match", "-n", "models/a:1", ABSENT), "hits");
	CTL(1, "match", "-n", "nobody", keys[0]);
	must_eq(daemon_metric(&d, "pins"), 0);
	must_eq(daemon_metric(&d, "blocks_looked_up_total"), 0); /* a look is not a use */
}
END_TEST

/* ---- dropping ---- */

START_TEST(flush_and_drop_keep_what_is_held_and_say_so)
{
	struct kvbm_span spans[N_BLOCKS];
	json_t *json;

	must_eq(cache_hold(&c, 0, 3, spans), 3);
	json = CTL_JSON(0, "drop", "-n", "models/a:1", keys[0], keys[7]);
	must_eq(json_number_at(json, "dropped"), 1);
	must_eq(json_number_at(json, "kept"), 1);
	json_decref(json);
	must_contain(CTL(0, "flush", "models/a:1"), "dropped 4 blocks of models/a:1, kept 3 that somebody holds or writes");
	json = CTL_JSON(0, "flush");
	must_eq(json_number_at(json, "dropped"), 0);
	must_eq(json_number_at(json, "kept"), 3);
	must(json_is_null(json_at(json, "namespace")));
	json_decref(json);
	must_contain(CTL(0, "drop", "-n", "models/a:1"), "kept 3"); /* somebody is attached: it stays */
	must_eq(daemon_metric(&d, "namespaces"), 1);
	must_eq(kvbm_release(c.ns, spans, 3), 3);
	must_contain(CTL(0, "flush"), "dropped 3 blocks\n");
	must_contain(CTL(0, "drop", "-n", "models/a:1", keys[0]), "dropped 0 blocks");
	CTL(1, "flush", "nobody");
	CTL(1, "drop", "-n", "nobody");
	must_contain(command.err, "no such namespace");
}
END_TEST

START_TEST(drop_without_keys_removes_a_namespace_that_nobody_uses)
{
	struct kvbm_model model = cache_model("other", BLOCK, 2);
	struct cache other;

	cache_open(&other, d.socket, &model);
	must_eq(cache_store(&other, 0, 4), 4);
	CTL(2, "block", keys[7]);
	must_contain(command.err, "--namespace is missing: there are 2");
	CTL(2, "match", keys[7]);
	cache_close(&other);
	daemon_await_metric(&d, "sessions", 2);
	must_eq(daemon_metric(&d, "namespaces"), 2);
	must_contain(CTL(0, "drop", "-n", "other"), "dropped 4 blocks of other\n");
	must_eq(daemon_metric(&d, "namespaces"), 1);
}
END_TEST

/* ---- what needs a tier below ---- */

START_TEST(without_g3_there_is_nothing_to_move)
{
	json_t *json;

	CTL(1, "drain");
	must_contain(command.err, "there is no g3: see g3.path in kvbmd.conf");
	CTL(1, "tiers", "g3");
	must_contain(command.err, "there is g2");
	json = CTL_JSON(0, "prefetch", "-n", "models/a:1", keys[0], keys[1]); /* they are there already */
	must_eq(json_number_at(json, "in_memory"), 2);
	json_decref(json);
	json = CTL_JSON(1, "prefetch", "-n", "models/a:1", keys[0], ABSENT);
	must_eq(json_number_at(json, "in_memory"), 1);
	must_eq(json_number_at(json, "not"), 1);
	json_decref(json);
	CTL(1, "prefetch", "-n", "nobody", keys[0]);
	CTL(1, "prefetch", "-n", "models/a:1", "0011223344556677"); /* no key of this namespace */
	must_eq(daemon_metric(&d, "blocks_looked_up_total"), 0);
}
END_TEST

/* ---- doctor ---- */

static void expect_finding(const json_t *doctor, const char *check, const char *result)
{
	const json_t *line;
	size_t i;

	json_array_foreach(json_at(doctor, "checks"), i, line)
	{
		HAS(line, "detail", "advice");
		if (strcmp(json_string_value(json_at(line, "check")), check) != 0)
			continue;
		must(result && strcmp(json_string_value(json_at(line, "result")), result) == 0);
		return;
	}
	must(!result); /* it was not looked at */
}

START_TEST(doctor_of_what_runs)
{
	json_t *doctor = CTL_JSON(0, "doctor");

	must(json_is_true(json_at(doctor, "ok")));
	expect_finding(doctor, "socket", "ok");
	expect_finding(doctor, "daemon", "ok");
	expect_finding(doctor, "namespace", "ok");
	expect_finding(doctor, "memfd", "ok");
	expect_finding(doctor, "NUMA", "ok");
	expect_finding(doctor, "tier", "ok");
	json_decref(doctor);
	must_contain(CTL(0, "doctor"), "ok    daemon       answers\n");
	must_contain(command.out, "fingerprint");
}
END_TEST

START_TEST(doctor_of_what_does_not)
{
	char path[128];
	json_t *doctor;

	/* No socket. */
	tmpdir_path(&d.dir, "nobody.sock", path, sizeof(path));
	doctor = CTL_JSON(1, "doctor", "-S", path);
	must(json_is_false(json_at(doctor, "ok")));
	expect_finding(doctor, "socket", "fail");
	expect_finding(doctor, "daemon", NULL);
	expect_finding(doctor, "memfd", "ok");
	json_decref(doctor);
	/* A file where the socket should be. */
	tmpdir_write(&d.dir, "nobody.sock", "");
	must_contain(CTL(1, "doctor", "-S", path), "is not a socket");
	must_contain(command.out, "-> remove it and start kvbmd");
}
END_TEST

/* ---- what is wrong ---- */

START_TEST(wrong_words_are_usage)
{
	static const struct {
		const char *says, *words[6];
	} wrong[] = {
		{ "no such verb: chess", { "chess" } },
		{ "no verb", { NULL } },
		{ "unknown option --fast", { "--fast", "status" } },
		{ "a value is missing after -o", { "-o" } },
		{ "output is table or json, not 'yaml'", { "-o", "yaml", "status" } },
		{ "unexpected 'now'", { "status", "now" } },
		{ "unexpected 'b'", { "clients", "a", "b" } },
		{ "unknown option '--all'", { "flush", "--all" } },
		{ "--namespace is missing", { "drop" } },
		{ "'--namespace' needs a value", { "drop", "--namespace" } },
		{ "something is missing", { "block", "-n", "models/a:1" } },
		{ "something is missing", { "match", "-n", "models/a:1" } },
		{ "'xyz' is not a key", { "why", "-n", "models/a:1", "xyz" } },
		{ "'0011' is not a key", { "block", "-n", "models/a:1", "0011" } },
		{ "'00112233445566778' is not a key", { "match", "-n", "models/a:1", "00112233445566778" } },
		{ "is not as long as the first key", { "drop", "-n", "models/a:1", ABSENT, "0011223344556677" } },
		{ "no capacity", { "simulate", "--workload=chat", "--capacity=" } },
		{ "give --trace FILE or --workload KIND", { "simulate" } },
		{ "--count needs a whole number, not 'x'", { "top", "--count", "x" } },
		{ "something is missing", { "fsck" } },
		{ "something is missing", { "dump", "--data" } },
		{ "--wipe goes with neither", { "fsck", "--wipe", "--repair", "/nowhere" } },
		{ "something is missing", { "prefetch", "-n", "models/a:1" } },
		{ "unexpected 'b'", { "drain", "a", "b" } },
		{ "--patience needs a number", { "drain", "--patience", "x" } },
	};

	for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
		ctl(2, wrong[i].words);
		must_contain(command.err, wrong[i].says);
		must_eq(strlen(command.out), 0);
	}
	/* Right in form, but not a key of this namespace. */
	CTL(1, "block", "-n", "models/a:1", "0011223344556677");
	must_contain(command.err, "have 16 bytes, not 8");
}
END_TEST

START_TEST(help_is_no_error)
{
	static const char *const verbs[] = { "doctor", "status",   "top",   "namespaces", "clients", "tiers",
		                             "block",  "why",      "match", "flush",      "drop",    "metrics",
		                             "replay", "simulate", "drain", "prefetch",   "fsck",    "dump" };

	for (size_t i = 0; i < sizeof(verbs) / sizeof(*verbs); i++) {
		must_contain(CTL(0, verbs[i], "--help"), "Exit codes:");
		must_contain(command.out, verbs[i]);
		CTL(0, "--help");
		must_contain(command.out, verbs[i]);
	}
	must_contain(CTL(0, "--version"), "kvbmctl 0.");
}
END_TEST

START_TEST(every_verb_says_that_the_daemon_is_not_there)
{
	static const char *const verbs[][5] = {
		{ "status" },
		{ "top" },
		{ "namespaces" },
		{ "clients" },
		{ "tiers", "g2" },
		{ "metrics" },
		{ "flush" },
		{ "block", "-n", "a", ABSENT },
		{ "why", "-n", "a", ABSENT },
		{ "match", "-n", "a", ABSENT },
		{ "drop", "-n", "a" },
		{ "drain" },
		{ "prefetch", "-n", "a", ABSENT },
	};
	char path[128];

	tmpdir_path(&d.dir, "nobody.sock", path, sizeof(path));
	for (size_t i = 0; i < sizeof(verbs) / sizeof(*verbs); i++) {
		command_deinit(&command);
		command_ctl(&command, path, verbs[i]);
		command_expect(&command, 3);
		must_contain(command.err, "no kvbmd at");
		must_contain(command.err, path);
		must_contain(command.err, "kvbmctl doctor");
		must_eq(strlen(command.out), 0);
	}
}
END_TEST

START_TEST(the_socket_may_be_named_in_the_environment)
{
	must_eq(setenv("KVBM_SOCKET", d.socket, 1), 0);
	command_deinit(&command);
	command_run(&command, (const char *const[]){ "kvbmctl", "status", NULL });
	command_expect(&command, 0);
	unsetenv("KVBM_SOCKET");
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("kvbmctl");
	TCase *tc = tcase_create("kvbmctl");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 120);
	tcase_add_test(tc, status_in_both_forms);
	tcase_add_test(tc, matches_of_a_living_session_are_counted);
	tcase_add_test(tc, namespaces_and_one_of_them);
	tcase_add_test(tc, clients_and_one_of_them);
	tcase_add_test(tc, tiers_and_one_of_them);
	tcase_add_test(tc, metrics_as_text_and_as_json);
	tcase_add_test(tc, top_looks_as_often_as_it_is_told);
	tcase_add_test(tc, a_block_with_its_kin_and_holders);
	tcase_add_test(tc, why_a_look_up_misses);
	tcase_add_test(tc, match_says_how_long_the_prefix_is);
	tcase_add_test(tc, flush_and_drop_keep_what_is_held_and_say_so);
	tcase_add_test(tc, drop_without_keys_removes_a_namespace_that_nobody_uses);
	tcase_add_test(tc, without_g3_there_is_nothing_to_move);
	tcase_add_test(tc, doctor_of_what_runs);
	tcase_add_test(tc, doctor_of_what_does_not);
	tcase_add_test(tc, wrong_words_are_usage);
	tcase_add_test(tc, help_is_no_error);
	tcase_add_test(tc, every_verb_says_that_the_daemon_is_not_there);
	tcase_add_test(tc, the_socket_may_be_named_in_the_environment);
	suite_add_tcase(suite, tc);
	sr = srunner_create(suite);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
