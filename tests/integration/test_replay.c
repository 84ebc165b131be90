/* SPDX-License-Identifier: Apache-2.0 */
/* kvbmctl replay against a real daemon: what it counts, that it can see a wrong byte, and what it makes of clients and daemons that die. */
#include <check.h>
#include <signal.h>
#include <stdlib.h>

#include <kvbm.h>

#include "client/kvbmctl/oracle.h"
#include "client/kvbmctl/replay.h"
#include "client/kvbmctl/workload.h"
#include "tests/lib/command.h"
#include "tests/lib/daemon_proc.h"
#include "tests/lib/must.h"

#define BLOCK 4096u
#define BLOCK_TEXT "4K"

static const char *const flags[] = { "--g2.size=16M", "--g2.region_size=2M", "--g2.huge_pages=never", NULL };

static struct daemon_proc d;
static struct command command;

static void setup(void)
{
	daemon_start(&d, flags);
	daemon_monitor(&d);
}

static void teardown(void)
{
	command_deinit(&command);
	daemon_deinit(&d);
}

/* Runs it to its end with those words after the usual ones; the caller owns the result. */
static json_t *replay(int code, const char *const *words)
{
	const char *all[COMMAND_MAX_WORDS] = { "-o", "json", "replay", "--block-bytes", BLOCK_TEXT };

	for (int n = 5; *words; words++)
		all[n++] = *words;
	command_deinit(&command);
	command_ctl(&command, d.socket, all);
	command_expect(&command, code);
	return command_json(&command);
}

#define REPLAY(code, ...) replay(code, (const char *const[]){ __VA_ARGS__, NULL })

static uint64_t count(const json_t *report, const char *name)
{
	return (uint64_t)json_number_at(report, name);
}

/* What holds after any replay of which nobody was killed. */
static void check_report(const json_t *report)
{
	static const char *const names[] = { "g2_slots",        "g3_slots",       "seconds",        "match_ns.p50",
		                             "match_ns.p99",    "reserve_us.p50", "reserve_us.p99", "commit_us.p50",
		                             "commit_us.p99",   "onboard_us.p50", "onboard_us.p99", "hits_by_tier.g1",
		                             "hits_by_tier.g3", "hits_by_tier.g4" };

	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
		must(json_number_at(report, names[i]) >= 0);
	must_eq(count(report, "wrong_bytes"), 0);
	must_eq(count(report, "errors"), 0);
	must_eq(json_array_size(json_at(report, "messages")), 0);
	must_eq(count(report, "blocks_hit"), count(report, "hits_by_tier.g2"));
	must(json_number_at(report, "hit_rate") * (double)count(report, "blocks_looked_up") -
	             (double)count(report, "blocks_hit") <
	     0.5);
	must_cmp(count(report, "blocks_verified"), <=, count(report, "blocks_hit"));
}

static void check_identities(void)
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

static void check_nobody_left(void)
{
	daemon_await_metric(&d, "sessions", 1); /* the monitor */
	daemon_await_metric(&d, "leases", 0);
	daemon_await_metric(&d, "pins", 0);
	daemon_await_metric(&d, "g2_slots_quarantined", 0);
	check_identities();
}

static const struct {
	const char *lanes, *mode;
} ways[] = { { "1", "--clients=4" }, { "1", "--by-socket" }, { "3", "--clients=4" } };

START_TEST(four_clients_share_chats_and_every_byte_is_right)
{
	json_t *report = REPLAY(0, "--workload", "chat:requests=600,users=20", "--clients", "4", "--lanes",
	                        ways[_i].lanes, ways[_i].mode);

	check_report(report);
	must_eq(count(report, "clients"), 4);
	must_eq(count(report, "requests"), 600);
	must_eq(count(report, "not_stored"), 0);
	must_eq(count(report, "blocks_verified"), count(report, "blocks_hit"));
	must_cmp(count(report, "blocks_hit"), >, count(report, "blocks_looked_up") / 4);
	must_cmp(count(report, "g2_slots"), >, 1000);
	must(json_number_at(report, "match_ns.p50") > 0 && json_number_at(report, "commit_us.p99") > 0);
	check_nobody_left();
	must_eq(daemon_metric(&d, "blocks_stored_total"),
	        count(report, "blocks_stored") + count(report, "blocks_deduplicated"));
	must_eq(daemon_metric(&d, "blocks_deduplicated_total"), count(report, "blocks_deduplicated"));
	json_decref(report);
}
END_TEST

START_TEST(a_second_pass_over_what_fits_misses_nothing)
{
	json_t *report = REPLAY(0, "--workload", "chat:requests=60,users=5", "--clients", "2", "--passes", "2");
	uint64_t stored = count(report, "blocks_stored");

	check_report(report);
	must_eq(count(report, "requests"), 120);
	must_eq(daemon_metric(&d, "blocks_dropped_total"), 0);
	json_decref(report);
	report = REPLAY(0, "--workload", "chat:requests=60,users=5");
	must_eq(count(report, "blocks_hit"), count(report, "blocks_looked_up"));
	must(json_number_at(report, "hit_rate") == 1);
	must_eq(count(report, "blocks_stored"), 0);
	json_decref(report);
	/* Another seed's keys are other keys. */
	report = REPLAY(0, "--workload", "chat:requests=60,users=5", "--seed", "7");
	must_eq(count(report, "blocks_stored"), stored);
	check_report(report);
	json_decref(report);
}
END_TEST

/* The control: a block with one wrong bit, under a key that the replay will ask for. */
static void store_a_wrong_block(void)
{
	struct replay plan = { .ns_name = "replay", .block_bytes = BLOCK, .lanes = 1 };
	struct kvbm *kvbm = daemon_monitor(&d);
	char error[WORKLOAD_ERROR_SIZE];
	uint8_t key[ORACLE_KEY_BYTES];
	struct requests requests;
	struct kvbm_model model;
	struct kvbm_span span;
	struct kvbm_ns *ns;
	uint8_t *data;

	requests_init(&requests);
	must_eq(workload_make("chat:requests=3", &requests, error), 0);
	oracle_key(requests_ids(&requests, 0)[0], key);
	requests_deinit(&requests);
	replay_model(&plan, &model);
	must_eq(kvbm_attach(kvbm, &model, &ns), 0);
	must_eq(kvbm_reserve(ns, 0, key, 1, &span, NULL), 1);
	data = kvbm_data(ns, &span, 0);
	must(data);
	oracle_fill(data, BLOCK, oracle_seed("replay", key, sizeof(key), 0));
	data[BLOCK - 100] ^= 0x10;
	must_eq(kvbm_commit(ns, 0, &span, key, 1, NULL, 0), 1);
}

START_TEST(one_wrong_bit_is_seen)
{
	json_t *report;

	store_a_wrong_block();
	report = REPLAY(1, "--workload", "chat:requests=3", "--requests", "1");
	must_eq(count(report, "wrong_bytes"), 1);
	must_eq(count(report, "wrong_blocks"), 1);
	must_eq(count(report, "errors"), 0);
	must_contain(json_string_value(json_array_get(json_at(report, "messages"), 0)), "the first at 3996");
	json_decref(report);
	command_deinit(&command);
	command_ctl(&command, d.socket,
	            (const char *const[]){ "replay", "--workload", "chat:requests=3", "--block-bytes", BLOCK_TEXT, NULL });
	command_expect(&command, 1);
	must_contain(command.out, "WRONG");
}
END_TEST

static double simulated(const char *workload, uint64_t capacity)
{
	char text[32];
	double rate;
	json_t *results;

	snprintf(text, sizeof(text), "%llu", (unsigned long long)capacity);
	command_deinit(&command);
	command_run(&command, (const char *const[]){ "kvbmctl", "-o", "json", "simulate", "--workload", workload,
	                                             "--capacity", text, NULL });
	command_expect(&command, 0);
	results = command_json(&command);
	rate = json_number_at(json_array_get(results, 0), "hit_rate");
	json_decref(results);
	return rate;
}

/* One client and a cache too small for the workload: the daemon does what the simulation says. */
START_TEST(it_agrees_with_the_simulation)
{
	static const char workload[] = "chat:requests=1500,users=60,prompts=8";
	json_t *report = REPLAY(0, "--workload", workload);
	double rate = json_number_at(report, "hit_rate"), expected = simulated(workload, count(report, "g2_slots"));

	check_report(report);
	must_cmp(daemon_metric(&d, "blocks_dropped_total"), >, 1000);
	if (rate < expected - 0.01 || rate > expected + 0.01)
		fprintf(stderr, "replay %.4f, simulation %.4f\n", rate, expected);
	must(rate > expected - 0.01 && rate < expected + 0.01);
	json_decref(report);
}
END_TEST

/* Documents of about 190 blocks and more in a pool of 4096 / 32. */
START_TEST(of_a_request_longer_than_the_pool_the_head_is_kept)
{
	json_t *report = REPLAY(0, "--workload", "document:requests=60,users=2", "--lanes", "32");

	check_report(report);
	must_cmp(count(report, "g2_slots"), <=, 128);
	must_cmp(count(report, "not_stored"), >, 1000);
	must_cmp(count(report, "refused"), >, 0);
	must_cmp(count(report, "blocks_hit"), >, 0);
	check_nobody_left();
	json_decref(report);
}
END_TEST

/* ---- what dies ---- */

/* Starts one that takes a while, and returns when all of its clients have a session and some have done requests. */
static void start_slowly(const char *rate, unsigned clients)
{
	char text[16];

	snprintf(text, sizeof(text), "%u", clients);
	command_deinit(&command);
	command_start(&command, (const char *const[]){ "kvbmctl", "-S", d.socket, "-o", "json", "replay", "--workload",
	                                               "chat:requests=400,users=20", "--block-bytes", BLOCK_TEXT,
	                                               "--clients", text, "--rate", rate, NULL });
	daemon_await_metric(&d, "sessions_accepted_total", 2 + clients); /* the monitor, and the replay's own look */
	daemon_await_metric(&d, "sessions", 1 + clients);
	while (daemon_metric(&d, "blocks_stored_total") < 50)
		; /* each look is a round trip */
}

/* A child of the command; which of them does not matter. */
static pid_t one_client(void)
{
	char path[64], text[256] = "";
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)command.pid, (int)command.pid);
	f = fopen(path, "r");
	must(f && fgets(text, sizeof(text), f));
	fclose(f);
	must_cmp(atoi(text), >, 1);
	return (pid_t)atoi(text);
}

START_TEST(a_killed_client_is_told_and_the_others_go_on)
{
	json_t *report;

	start_slowly("400", 4);
	must_eq(kill(one_client(), SIGKILL), 0);
	command_wait(&command);
	command_expect(&command, 1);
	must_contain(command.err, "was killed");
	report = command_json(&command);
	must_eq(count(report, "clients_killed"), 1);
	must_eq(count(report, "errors"), 0);
	must_eq(count(report, "wrong_bytes"), 0);
	must_cmp(count(report, "requests"), >=, 399); /* all but the one it was at */
	json_decref(report);
	check_nobody_left();
}
END_TEST

START_TEST(an_interrupt_ends_it_with_what_was_done)
{
	json_t *report;

	start_slowly("20", 3);
	must_eq(kill(command.pid, SIGINT), 0);
	command_wait(&command);
	command_expect(&command, 1);
	report = command_json(&command);
	must(json_is_true(json_at(report, "interrupted")));
	must_cmp(count(report, "requests"), <, 400);
	must_eq(count(report, "errors"), 0);
	json_decref(report);
	check_nobody_left();
}
END_TEST

START_TEST(a_restart_of_the_daemon_is_ridden_out)
{
	json_t *report;

	start_slowly("200", 3);
	daemon_kill(&d);
	daemon_run(&d);
	command_wait(&command);
	command_expect(&command, 0);
	report = command_json(&command);
	check_report(report);
	must_eq(count(report, "requests"), 400);
	must_cmp(count(report, "reconnects"), >=, 1);
	must_cmp(count(report, "blocks_hit"), >, 0);
	json_decref(report);
	check_nobody_left();
}
END_TEST

START_TEST(the_rate_is_kept)
{
	json_t *report = REPLAY(0, "--workload", "chat:requests=31,users=5", "--clients", "3", "--rate", "100");

	must(json_number_at(report, "seconds") >= 0.3);
	must_eq(count(report, "requests"), 31);
	json_decref(report);
}
END_TEST

/* ---- what is wrong from the start ---- */

static void expect_usage(const char *says, const char *const *words)
{
	command_deinit(&command);
	command_ctl(&command, d.socket, words);
	command_expect(&command, 2);
	must_contain(command.err, says);
	must_contain(command.err, "usage: kvbmctl replay");
	must_eq(strlen(command.out), 0);
}

#define USAGE(says, ...) expect_usage(says, (const char *const[]){ "replay", __VA_ARGS__, NULL })

START_TEST(wrong_words_are_usage)
{
	USAGE("--trace FILE or --workload KIND", "--clients", "2");
	USAGE("--trace FILE or --workload KIND", "--workload", "chat", "--trace", "x");
	USAGE("--clients is 1 to", "--workload", "chat", "--clients", "0");
	USAGE("--clients needs a whole number, not '-1'", "--workload", "chat", "--clients", "-1");
	USAGE("--lanes is 1 to 64", "--workload", "chat", "--lanes=65");
	USAGE("--block-bytes must not be 0", "--workload", "chat", "--block-bytes", "0");
	USAGE("needs a size", "--workload", "chat", "--block-bytes", "many");
	USAGE("--passes must not be 0", "--workload", "chat", "--passes", "0");
	USAGE("unknown option '--nothing'", "--workload", "chat", "--nothing");
	USAGE("unexpected 'word'", "--workload", "chat", "word");
	USAGE("output is table or json", "--workload", "chat", "-o", "xml");
	command_deinit(&command);
	command_ctl(&command, d.socket, (const char *const[]){ "replay", "--workload", "chess", NULL });
	command_expect(&command, 2);
	command_deinit(&command);
	command_ctl(&command, d.socket, (const char *const[]){ "replay", "--trace", "/nonexistent/trace", NULL });
	command_expect(&command, 1);
	must_contain(command.err, "/nonexistent/trace");
}
END_TEST

START_TEST(another_model_of_that_name_is_refused_once)
{
	const char *say;

	json_decref(REPLAY(0, "--workload", "chat:requests=5"));
	command_deinit(&command);
	command_ctl(&command, d.socket,
	            (const char *const[]){ "replay", "--workload", "chat:requests=5", "--clients", "4", NULL });
	command_expect(&command, 1);
	must_contain(command.err, "replay: replay: ");
	say = strstr(command.err, "kvbmctl replay:");
	must(say && !strstr(say + 1, "kvbmctl replay:"));
	must_eq(strlen(command.out), 0);
	check_nobody_left();
}
END_TEST

START_TEST(without_a_daemon_it_ends_at_once)
{
	char path[128];

	tmpdir_path(&d.dir, "nobody.sock", path, sizeof(path));
	command_deinit(&command);
	command_ctl(&command, path,
	            (const char *const[]){ "replay", "--workload", "chat:requests=5", "--clients", "3", NULL });
	command_expect(&command, 3);
	must_contain(command.err, path);
}
END_TEST

START_TEST(people_get_a_summary)
{
	command_ctl(&command, d.socket,
	            (const char *const[]){ "replay", "--workload", "chat:requests=50", "-c2", "-b", BLOCK_TEXT, NULL });
	command_expect(&command, 0);
	must_contain(command.out, "50 requests by 2 clients");
	must_contain(command.out, "hit rate");
	must_contain(command.out, "byte by byte");
	must_contain(command.out, "all right");
	must_contain(command.out, "errors      none");
	must_eq(strlen(command.err), 0);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("replay");
	TCase *tc = tcase_create("replay");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 120);
	tcase_add_loop_test(tc, four_clients_share_chats_and_every_byte_is_right, 0, 3);
	tcase_add_test(tc, a_second_pass_over_what_fits_misses_nothing);
	tcase_add_test(tc, one_wrong_bit_is_seen);
	tcase_add_test(tc, it_agrees_with_the_simulation);
	tcase_add_test(tc, of_a_request_longer_than_the_pool_the_head_is_kept);
	tcase_add_test(tc, a_killed_client_is_told_and_the_others_go_on);
	tcase_add_test(tc, an_interrupt_ends_it_with_what_was_done);
	tcase_add_test(tc, a_restart_of_the_daemon_is_ridden_out);
	tcase_add_test(tc, the_rate_is_kept);
	tcase_add_test(tc, wrong_words_are_usage);
	tcase_add_test(tc, another_model_of_that_name_is_refused_once);
	tcase_add_test(tc, without_a_daemon_it_ends_at_once);
	tcase_add_test(tc, people_get_a_summary);
	suite_add_tcase(suite, tc);
	sr = srunner_create(suite);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
