/* The workload generator: one machine for all kinds, which differ only in their numbers.  Owns nothing after workload_make(). */
#include "workload.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

struct workload {
	const char *kind;
	bool keep; /* what was said in a turn stays in the context */
	double requests, users, seed, turns, prompts, zipf, system, first, input, output, block, max, burst;
};

static const struct workload workload_kinds[] = {
	{ "chat", true, 4000, 100, 1, 6, 32, 1.0, 1500, 0, 200, 350, 128, 32768, 0 },
	{ "agent", true, 4000, 40, 1, 20, 4, 1.0, 6000, 1000, 1200, 200, 128, 131072, 80 },
	{ "document", false, 4000, 40, 1, 8, 1, 1.0, 500, 24000, 100, 250, 128, 131072, 0 },
};

#define KEY(name, low, high, whole) \
	{ \
#name, offsetof(struct workload, name), low, high, whole \
	}

static const struct workload_key {
	const char *name;
	size_t offset;
	double low, high;
	bool whole;
} workload_keys[] = {
	KEY(requests, 1, 1e8, true), KEY(users, 1, 1e6, true),  KEY(seed, 0, 9e15, true),  KEY(turns, 1, 1e6, false),
	KEY(prompts, 1, 1e6, true),  KEY(zipf, 0, 10, false),   KEY(system, 0, 1e8, true), KEY(first, 0, 1e8, true),
	KEY(input, 1, 1e8, true),    KEY(output, 0, 1e8, true), KEY(block, 1, 1e6, true),  KEY(max, 1, 1e9, true),
	KEY(burst, 0, 100, true),
};

#define WORKLOAD_KEYS (sizeof(workload_keys) / sizeof(*workload_keys))

struct conversation {
	uint64_t number;
	uint64_t prompt, shared; /* which system prompt, and its whole blocks */
	uint64_t context;        /* tokens that stay */
	bool live;
};

struct generator {
	const struct workload *w;
	struct rng rng;
	struct conversation *conversations; /* owns; users */
	double *popularity;                 /* owns; cumulated, prompts */
	uint64_t *prompt_tokens;            /* owns; prompts */
	uint64_t n_conversations, n_fleeting;
	double now_ms;
};

/* ---- its text ---- */

static int workload_set(struct workload *w, char *pair, char *ret_error)
{
	char *value = strchr(pair, '='), *end;
	double x;

	if (value)
		*value++ = '\0';
	for (size_t i = 0; i < WORKLOAD_KEYS; i++) {
		const struct workload_key *key = &workload_keys[i];

		if (strcmp(pair, key->name) != 0)
			continue;
		x = value && *value ? strtod(value, &end) : NAN;
		if (isnan(x) || *end || x < key->low || x > key->high || (key->whole && x != floor(x))) {
			snprintf(ret_error, WORKLOAD_ERROR_SIZE, "%s must be a%s number from %g to %g, not '%.60s'",
			         key->name, key->whole ? " whole" : "", key->low, key->high, value ? value : "");
			return WORKLOAD_E_TEXT;
		}
		memcpy((char *)w + key->offset, &x, sizeof(x));
		return 0;
	}
	snprintf(ret_error, WORKLOAD_ERROR_SIZE,
	         "no workload has the key '%.60s'; keys are requests, users, seed, turns, prompts, zipf, system, first, input, "
	         "output, block, max, burst",
	         pair);
	return WORKLOAD_E_TEXT;
}

static int workload_parse(char *text, struct workload *w, char *ret_error)
{
	char *pairs = strchr(text, ':'), *save = NULL;
	int r = 0;

	if (pairs)
		*pairs++ = '\0';
	for (size_t i = 0; i < sizeof(workload_kinds) / sizeof(*workload_kinds); i++)
		if (strcmp(text, workload_kinds[i].kind) == 0)
			*w = workload_kinds[i];
	if (!w->kind) {
		snprintf(ret_error, WORKLOAD_ERROR_SIZE, "no workload '%.60s'; there are chat, agent and document", text);
		return WORKLOAD_E_TEXT;
	}
	for (char *pair = pairs ? strtok_r(pairs, ",", &save) : NULL; pair && r == 0; pair = strtok_r(NULL, ",", &save))
		r = workload_set(w, pair, ret_error);
	if (r == 0 && w->max / w->block > WORKLOAD_MAX_BLOCKS) {
		snprintf(ret_error, WORKLOAD_ERROR_SIZE, "max / block is %.0f blocks, a request can have %u",
		         w->max / w->block, WORKLOAD_MAX_BLOCKS);
		r = WORKLOAD_E_TEXT;
	}
	if (r == 0 && w->max < w->block) {
		snprintf(ret_error, WORKLOAD_ERROR_SIZE, "max is shorter than one block");
		r = WORKLOAD_E_TEXT;
	}
	return r;
}

/* ---- its requests ---- */

static uint64_t generator_exponential(struct generator *g, double mean)
{
	return (uint64_t)(-log(1.0 - rng_double(&g->rng)) * mean);
}

static uint64_t generator_around(struct generator *g, double mean)
{
	return (uint64_t)((0.5 + rng_double(&g->rng)) * mean);
}

static uint64_t generator_prompt(struct generator *g)
{
	uint64_t n = (uint64_t)g->w->prompts, low = 0, high = n - 1;
	double x = rng_double(&g->rng) * g->popularity[n - 1];

	while (low < high) {
		uint64_t middle = (low + high) / 2;

		if (g->popularity[middle] > x)
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

static int generator_init(struct generator *g, const struct workload *w)
{
	uint64_t prompts = (uint64_t)w->prompts;
	double sum = 0;

	*g = (struct generator){ .w = w };
	rng_init(&g->rng, (uint64_t)w->seed);
	g->conversations = calloc((size_t)w->users, sizeof(*g->conversations));
	g->popularity = calloc(prompts, sizeof(*g->popularity));
	g->prompt_tokens = calloc(prompts, sizeof(*g->prompt_tokens));
	if (!g->conversations || !g->popularity || !g->prompt_tokens)
		return -ENOMEM;
	for (uint64_t i = 0; i < prompts; i++) {
		sum += pow((double)(i + 1), -w->zipf);
		g->popularity[i] = sum;
		g->prompt_tokens[i] = generator_around(g, w->system);
	}
	return 0;
}

static void generator_deinit(struct generator *g)
{
	free(g->conversations);
	free(g->popularity);
	free(g->prompt_tokens);
}

static void conversation_start(struct generator *g, struct conversation *c)
{
	uint64_t block = (uint64_t)g->w->block, max = (uint64_t)g->w->max, system;

	c->number = ++g->n_conversations;
	c->prompt = generator_prompt(g);
	system = g->prompt_tokens[c->prompt];
	c->shared = system / block;
	c->context = system + generator_around(g, g->w->first);
	if (c->context > max)
		c->context = max;
	c->live = true;
}

/* Ids of three kinds never meet: of system prompts, of a conversation, and of what is said once and forgotten. */
static uint64_t conversation_id(struct generator *g, const struct conversation *c, uint64_t block, uint64_t kept)
{
	if (block < c->shared)
		return UINT64_C(1) << 60 | c->prompt << 24 | block;
	if (block < kept)
		return c->number << 24 | block;
	return UINT64_C(1) << 61 | ++g->n_fleeting;
}

/* One turn of @c is the next request; then it may end. */
static int conversation_turn(struct generator *g, struct conversation *c, struct requests *rs)
{
	const struct workload *w = g->w;
	uint64_t input = 1 + generator_exponential(g, w->input), output = generator_exponential(g, w->output);
	uint64_t block = (uint64_t)w->block, max = (uint64_t)w->max, total = c->context + input, kept;
	int r;

	if (total > max)
		total = max;
	if (total < block)
		total = block; /* no request without a block */
	kept = (w->keep ? total : c->context) / block;
	g->now_ms += -log(1.0 - rng_double(&g->rng)) * 100.0;
	r = requests_begin(rs, g->now_ms, total, output);
	for (uint64_t i = 0; i < total / block && r == 0; i++)
		r = requests_add(rs, conversation_id(g, c, i, kept));
	if (w->keep)
		c->context = total + output;
	if (c->context >= max || rng_double(&g->rng) < 1.0 / w->turns)
		c->live = false;
	return r;
}

static int workload_generate(const struct workload *w, struct requests *rs)
{
	struct generator g;
	uint64_t user = 0;
	int r = generator_init(&g, w);

	while (r == 0 && rs->n < (uint32_t)w->requests) {
		struct conversation *c;

		if (rs->n == 0 || !g.conversations[user].live || !rng_chance(&g.rng, (unsigned)w->burst))
			user = rng_below(&g.rng, (uint64_t)w->users);
		c = &g.conversations[user];
		if (!c->live)
			conversation_start(&g, c);
		r = conversation_turn(&g, c, rs);
	}
	generator_deinit(&g);
	return r;
}

int workload_make(const char *text, struct requests *rs, char ret_error[WORKLOAD_ERROR_SIZE])
{
	struct workload w = { 0 };
	char *copy = strdup(text);
	int r = copy ? workload_parse(copy, &w, ret_error) : -ENOMEM;

	if (r == 0)
		r = workload_generate(&w, rs);
	free(copy);
	if (r < 0)
		snprintf(ret_error, WORKLOAD_ERROR_SIZE, "out of memory");
	if (r != 0)
		requests_deinit(rs);
	return r;
}
