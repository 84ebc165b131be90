/* The verb simulate: options, a run per capacity, and what the hit rate is worth.
 *
 * Break-even: recomputing a block takes its tokens / prefill rate; loading it takes its tokens * bytes a token / bandwidth.  Below
 * bandwidth = bytes a token * prefill rate, recomputing is cheaper.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl.h"
#include "output.h"
#include "simulation.h"

#define SIMULATE_MAX_CAPACITIES 64

struct simulate {
	const char *trace, *workload, *capacities, *policy;
	double recall, prefill;
	uint64_t seed, bytes_per_token;
	uint32_t limit, tokens_per_block;
	struct requests requests;
	struct numbering numbering;
	uint32_t capacity[SIMULATE_MAX_CAPACITIES], n;
	uint32_t at; /* the capacity in hand, for progress */
};

/* "5%" of the distinct blocks, or a number of blocks. */
static bool simulate_capacity(const struct simulate *s, const char *text, uint32_t *ret_capacity)
{
	char *end;
	double x = strtod(text, &end);

	if (*text < '0' || *text > '9')
		return false;
	if (strcmp(end, "%") == 0)
		x = x * s->numbering.n_distinct / 100;
	else if (*end)
		return false;
	if (x + 0.5 < 1 || x > SIMULATION_MAX_CAPACITY)
		return false;
	*ret_capacity = (uint32_t)(x + 0.5);
	return true;
}

static int simulate_capacities(struct ctl *ctl, struct simulate *s)
{
	char *copy = strdup(s->capacities), *save = NULL;
	int r = copy ? 0 : CTL_NO;

	for (char *text = copy ? strtok_r(copy, ",", &save) : NULL; text && r == 0; text = strtok_r(NULL, ",", &save)) {
		if (s->n == SIMULATE_MAX_CAPACITIES)
			r = ctl_usage(ctl, "at most %d capacities", SIMULATE_MAX_CAPACITIES);
		else if (!simulate_capacity(s, text, &s->capacity[s->n++]))
			r = ctl_usage(ctl,
			              "capacity '%s' is neither a number of blocks (1 to %u) nor a percentage such as 5%%",
			              text, SIMULATION_MAX_CAPACITY);
	}
	free(copy);
	if (r == 0 && s->n == 0)
		r = ctl_usage(ctl, "no capacity");
	return r;
}

static int simulate_check(struct ctl *ctl, const struct simulate *s)
{
	if (strcmp(s->policy, "leaf-lru") != 0)
		return ctl_usage(ctl, "no policy '%s'; there is leaf-lru", s->policy);
	if (s->recall > 1)
		return ctl_usage(ctl, "--release-recall is 0 to 1");
	if (s->tokens_per_block == 0)
		return ctl_usage(ctl, "--tokens-per-block must not be 0");
	return 0;
}

static void simulate_on_progress(void *ctx, uint32_t done)
{
	const struct simulate *s = ctx;
	char detail[64];

	snprintf(detail, sizeof(detail), "capacity %u, %u of %u", s->capacity[s->at], s->at + 1, s->n);
	ctl_progress("simulate", ((double)done / s->requests.n + s->at) / s->n, detail);
}

static json_t *simulate_one(struct simulate *s)
{
	struct simulation sim = { .requests = &s->requests,
		                  .numbering = &s->numbering,
		                  .capacity = s->capacity[s->at],
		                  .release_recall = s->recall,
		                  .seed = s->seed,
		                  .on_progress = simulate_on_progress,
		                  .ctx = s };
	struct simulation_result result;
	double rate;

	if (simulation_run(&sim, &result) < 0)
		return NULL;
	rate = result.looked_up ? (double)result.hits / (double)result.looked_up : 0;
	return json_pack("{s:s, s:I, s:f, s:f, s:I, s:I, s:I, s:I, s:f, s:I, s:f, s:f}", "policy", s->policy,
	                 "capacity", (json_int_t)sim.capacity, "capacity_ratio",
	                 (double)sim.capacity / s->numbering.n_distinct, "hit_rate", rate, "requests",
	                 (json_int_t)s->requests.n, "blocks_looked_up", (json_int_t)result.looked_up, "blocks_hit",
	                 (json_int_t)result.hits, "blocks_dropped", (json_int_t)result.dropped, "release_recall",
	                 s->recall, "tokens_saved", (json_int_t)(result.hits * s->tokens_per_block),
	                 "prefill_seconds_saved", (double)result.hits * s->tokens_per_block / s->prefill,
	                 "break_even_bytes_per_second", (double)s->bytes_per_token * s->prefill);
}

static int simulate_run(struct ctl *ctl, struct simulate *s)
{
	json_t *results = json_array();
	char text[64];

	for (s->at = 0; s->at < s->n; s->at++) {
		json_t *one = simulate_one(s);

		if (!one) {
			ctl_progress_end();
			json_decref(results);
			fprintf(stderr, "kvbmctl simulate: out of memory for %u blocks\n", s->capacity[s->at]);
			return CTL_NO;
		}
		json_array_append_new(results, one);
	}
	ctl_progress_end();
	if (ctl->json) {
		ctl_print(ctl, results);
		return CTL_DONE;
	}
	printf("%u requests, %llu blocks looked up, %u distinct; %s\n\n", s->requests.n,
	       (unsigned long long)s->requests.n_ids, s->numbering.n_distinct, s->policy);
	printf("%12s %10s %10s %14s %20s\n", "capacity", "of all", "hit rate", "blocks hit", "prefill time saved");
	for (size_t i = 0; i < json_array_size(results); i++) {
		const json_t *row = json_array_get(results, i);

		printf("%12" JSON_INTEGER_FORMAT " %8.1f %% %8.2f %% %14" JSON_INTEGER_FORMAT,
		       json_integer_value(json_object_get(row, "capacity")),
		       json_real_value(json_object_get(row, "capacity_ratio")) * 100,
		       json_real_value(json_object_get(row, "hit_rate")) * 100,
		       json_integer_value(json_object_get(row, "blocks_hit")));
		printf(" %20s\n", output_duration(json_real_value(json_object_get(row, "prefill_seconds_saved")) * 1e9,
		                                  text, sizeof(text)));
	}
	printf("\nLoading a block is worth it from %s/s on (%llu bytes a token, %.0f prefill tokens a second).\n",
	       output_bytes((double)s->bytes_per_token * s->prefill, text, sizeof(text)),
	       (unsigned long long)s->bytes_per_token, s->prefill);
	json_decref(results);
	return CTL_DONE;
}

int verb_simulate(struct ctl *ctl, int argc, char **argv)
{
	struct simulate s = { .capacities = "1%,5%,10%,25%,50%",
		              .policy = "leaf-lru",
		              .seed = 1,
		              .tokens_per_block = 512,
		              .bytes_per_token = 131072,
		              .prefill = 10000 };
	const struct arg table[] = {
		{ "trace", 't', ARG_STRING, &s.trace, "FILE", "a request trace (JSONL); -: standard input" },
		{ "workload", 'w', ARG_STRING, &s.workload, "KIND", "chat, agent or document[:key=value,...]" },
		{ "capacity", 'c', ARG_STRING, &s.capacities, "LIST", "blocks or % of distinct ones (1%,5%,10%,25%,50%)" },
		{ "policy", 0, ARG_STRING, &s.policy, "NAME", "leaf-lru" },
		{ "release-recall", 0, ARG_REAL, &s.recall, "R", "part of the dead blocks released by hint, 0..1 (0)" },
		{ "seed", 0, ARG_U64, &s.seed, "N", "of the choice of those (1)" },
		{ "requests", 'n', ARG_U32, &s.limit, "N", "only the first so many (0: all)" },
		{ "tokens-per-block", 0, ARG_U32, &s.tokens_per_block, "N", "(512)" },
		{ "bytes-per-token", 0, ARG_SIZE, &s.bytes_per_token, "SIZE", "of KV data, all layers and lanes (128K)" },
		{ "prefill-tokens-per-second", 0, ARG_REAL, &s.prefill, "P", "of the engine (10000)" },
		{ 0 },
	};
	int r = ctl_args(ctl, table, &argc, argv, 0, 0);

	if (r >= 0)
		return r;
	r = simulate_check(ctl, &s);
	if (r == 0 && s.prefill <= 0)
		r = ctl_usage(ctl, "--prefill-tokens-per-second must not be 0");
	if (r == 0)
		r = ctl_requests(ctl, s.trace, s.workload, s.limit, &s.requests);
	if (r != 0)
		return r;
	r = requests_number(&s.requests, &s.numbering) == 0 ? simulate_capacities(ctl, &s) : CTL_NO;
	if (r == 0)
		r = simulate_run(ctl, &s);
	numbering_deinit(&s.numbering);
	requests_deinit(&s.requests);
	return r;
}
