/* What a replay found out, for programs and for people.  Reads the clients' pages; owns nothing. */
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "output.h"
#include "replay.h"

uint64_t replay_sum(const struct replay *replay, enum replay_count what)
{
	uint64_t sum = 0;

	assert(what < REPLAY_N);
	for (uint32_t i = 0; i < replay->n_clients; i++)
		sum += atomic_load_explicit(&replay->shared->clients[i].counts[what], memory_order_relaxed);
	return sum;
}

static uint64_t report_hits(const struct replay *replay)
{
	return replay_sum(replay, REPLAY_HITS_G1) + replay_sum(replay, REPLAY_HITS_G2) +
	       replay_sum(replay, REPLAY_HITS_G3) + replay_sum(replay, REPLAY_HITS_G4);
}

static double report_hit_rate(const struct replay *replay)
{
	uint64_t looked_up = replay_sum(replay, REPLAY_LOOKED_UP);

	return looked_up ? (double)report_hits(replay) / (double)looked_up : 0;
}

/* ---- times ---- */

enum { TIME_MATCH, TIME_ONBOARD, TIME_RESERVE, TIME_COMMIT, TIME_N };

static void report_times(const struct replay *replay, int which, struct histogram *ret_histogram)
{
	memset(ret_histogram, 0, sizeof(*ret_histogram));
	for (uint32_t i = 0; i < replay->n_clients; i++) {
		const struct replay_page *page = &replay->shared->clients[i];
		const struct histogram *of[TIME_N] = { &page->match_ns, &page->onboard_ns, &page->reserve_ns,
			                               &page->commit_ns };

		histogram_merge(ret_histogram, of[which]);
	}
}

static json_t *report_quantiles(const struct replay *replay, int which, double unit_ns)
{
	struct histogram h;

	report_times(replay, which, &h);
	return json_pack("{s:f, s:f}", "p50", histogram_quantile(&h, 0.5) / unit_ns, "p99",
	                 histogram_quantile(&h, 0.99) / unit_ns);
}

/* ---- for programs ---- */

static void report_set(json_t *object, const char *name, uint64_t value)
{
	json_object_set_new(object, name, json_integer((json_int_t)value));
}

/* The first error and the first wrong block of each client. */
static json_t *report_messages(const struct replay *replay)
{
	json_t *messages = json_array();
	char text[REPLAY_TEXT + 32];

	for (uint32_t i = 0; i < replay->n_clients; i++) {
		const struct replay_page *page = &replay->shared->clients[i];

		for (int k = 0; k < 2; k++) {
			const char *what = k ? page->error : page->wrong;

			if (!*what)
				continue;
			snprintf(text, sizeof(text), "client %u: %.*s", i + 1, REPLAY_TEXT, what);
			json_array_append_new(messages, json_string(text));
		}
	}
	return messages;
}

json_t *replay_report(const struct replay *replay, const struct replay_outcome *outcome)
{
	static const struct {
		const char *name;
		enum replay_count what;
	} counts[] = {
		{ "blocks_stored", REPLAY_STORED },          { "blocks_deduplicated", REPLAY_DEDUPLICATED },
		{ "not_stored", REPLAY_NOT_STORED },         { "refused", REPLAY_REFUSED },
		{ "blocks_verified", REPLAY_VERIFIED },      { "wrong_blocks", REPLAY_WRONG_BLOCKS },
		{ "wrong_bytes", REPLAY_WRONG_BYTES },       { "errors", REPLAY_ERRORS },
		{ "reconnects", REPLAY_RECONNECTS },         { "onboard_busy", REPLAY_ONBOARD_BUSY },
		{ "onboard_failed", REPLAY_ONBOARD_FAILED },
	};
	static const char *const tiers[] = { "g1", "g2", "g3", "g4" };
	json_t *report = json_object(), *by_tier = json_object();

	json_object_set_new(report, "namespace", json_string(replay->ns_name));
	report_set(report, "clients", replay->n_clients);
	report_set(report, "block_bytes", replay->block_bytes);
	report_set(report, "lanes", replay->lanes);
	report_set(report, "g2_slots", outcome->g2_slots);
	report_set(report, "g3_slots", outcome->g3_slots);
	report_set(report, "requests", replay_sum(replay, REPLAY_REQUESTS));
	report_set(report, "blocks_looked_up", replay_sum(replay, REPLAY_LOOKED_UP));
	report_set(report, "blocks_hit", report_hits(replay));
	json_object_set_new(report, "hit_rate", json_real(report_hit_rate(replay)));
	for (size_t i = 0; i < sizeof(counts) / sizeof(*counts); i++)
		report_set(report, counts[i].name, replay_sum(replay, counts[i].what));
	report_set(report, "clients_killed", outcome->clients_killed);
	json_object_set_new(report, "interrupted", json_boolean(outcome->interrupted));
	json_object_set_new(report, "seconds", json_real(outcome->seconds));
	for (int i = 0; i < 4; i++)
		report_set(by_tier, tiers[i], replay_sum(replay, (enum replay_count)(REPLAY_HITS_G1 + i)));
	json_object_set_new(report, "hits_by_tier", by_tier);
	json_object_set_new(report, "match_ns", report_quantiles(replay, TIME_MATCH, 1));
	json_object_set_new(report, "reserve_us", report_quantiles(replay, TIME_RESERVE, 1e3));
	json_object_set_new(report, "commit_us", report_quantiles(replay, TIME_COMMIT, 1e3));
	json_object_set_new(report, "onboard_us", report_quantiles(replay, TIME_ONBOARD, 1e3));
	json_object_set_new(report, "messages", report_messages(replay));
	return report;
}

/* ---- for people ---- */

static const char *report_count(const struct replay *replay, enum replay_count what, char text[OUTPUT_TEXT])
{
	return output_count((double)replay_sum(replay, what), text, OUTPUT_TEXT);
}

static void report_print_times(const struct replay *replay)
{
	static const char *const names[TIME_N] = { "match", "onboard", "reserve", "commit" };
	struct histogram h;
	char p50[OUTPUT_TEXT], p99[OUTPUT_TEXT], n[OUTPUT_TEXT];

	printf("\n  %-10s %10s %10s %10s\n", "time of a", "half below", "99 % below", "calls");
	for (int i = 0; i < TIME_N; i++) {
		report_times(replay, i, &h);
		if (i == TIME_ONBOARD && histogram_total(&h) == 0)
			continue;
		printf("  %-10s %10s %10s %10s\n", names[i],
		       output_duration(histogram_quantile(&h, 0.5), p50, sizeof(p50)),
		       output_duration(histogram_quantile(&h, 0.99), p99, sizeof(p99)),
		       output_count((double)histogram_total(&h), n, sizeof(n)));
	}
}

static void report_print_trouble(const struct replay *replay, const struct replay_outcome *outcome)
{
	uint64_t wrong = replay_sum(replay, REPLAY_WRONG_BYTES), errors = replay_sum(replay, REPLAY_ERRORS);
	json_t *messages = report_messages(replay);
	const json_t *message;
	char a[OUTPUT_TEXT];
	size_t i;

	if (wrong)
		printf("  WRONG       %" PRIu64 " bytes in %s blocks\n", wrong,
		       report_count(replay, REPLAY_WRONG_BLOCKS, a));
	if (errors)
		printf("  ERRORS      %" PRIu64 "\n", errors);
	else
		printf("  errors      none\n");
	if (replay_sum(replay, REPLAY_RECONNECTS))
		printf("  reconnects  %s: the daemon went away and came back\n",
		       report_count(replay, REPLAY_RECONNECTS, a));
	if (outcome->clients_killed)
		printf("  KILLED      %u of the %u clients\n", outcome->clients_killed, replay->n_clients);
	json_array_foreach(messages, i, message) printf("  %s\n", json_string_value(message));
	json_decref(messages);
}

void replay_print(const struct replay *replay, const struct replay_outcome *outcome)
{
	double requests = (double)replay_sum(replay, REPLAY_REQUESTS);
	uint64_t verified = replay_sum(replay, REPLAY_VERIFIED);
	char a[OUTPUT_TEXT], b[OUTPUT_TEXT], c[OUTPUT_TEXT];

	printf("%s%.0f requests by %u client%s in %s (%.0f a second), namespace %s\n\n",
	       outcome->interrupted ? "Interrupted after " : "", requests, replay->n_clients,
	       replay->n_clients == 1 ? "" : "s", output_duration(outcome->seconds * 1e9, a, sizeof(a)),
	       outcome->seconds > 0 ? requests / outcome->seconds : 0, replay->ns_name);
	printf("  cache       %s slots of %s\n", output_count((double)outcome->g2_slots, a, sizeof(a)),
	       output_bytes((double)replay->block_bytes * replay->lanes, b, sizeof(b)));
	printf("  looked up   %s blocks\n", report_count(replay, REPLAY_LOOKED_UP, a));
	printf("  found       %s of them: hit rate %.2f %%\n", output_count((double)report_hits(replay), a, sizeof(a)),
	       report_hit_rate(replay) * 100);
	if (replay->shared->has_g3)
		printf("  from disk   %s of these\n", report_count(replay, REPLAY_HITS_G3, a));
	printf("  stored      %s new ones", report_count(replay, REPLAY_STORED, a));
	if (replay_sum(replay, REPLAY_DEDUPLICATED))
		printf("; %s more that another client had stored first", report_count(replay, REPLAY_DEDUPLICATED, a));
	if (replay_sum(replay, REPLAY_NOT_STORED))
		printf("; %s not stored (%s refusals)", report_count(replay, REPLAY_NOT_STORED, a),
		       report_count(replay, REPLAY_REFUSED, c));
	printf("\n  compared    %s blocks byte by byte, %s%s\n", output_count((double)verified, a, sizeof(a)),
	       output_bytes((double)verified * (double)replay->block_bytes * replay->lanes, b, sizeof(b)),
	       replay_sum(replay, REPLAY_WRONG_BYTES) ? "" : ": all right");
	report_print_trouble(replay, outcome);
	report_print_times(replay);
}
