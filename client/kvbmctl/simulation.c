/* The simulation is one session of a store over a tier without memory.  It owns both for the time of one run.  Time is the number of the
 * request: nothing in the policy depends on how long things take.
 */
#include "simulation.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/rng.h"
#include "move/store.h"
#include "oracle.h"
#include "sim_tier.h"

struct simulator {
	const struct simulation *sim;
	struct sim_tier tier;
	struct store *store;   /* owns */
	struct holder *holder; /* owns */
	struct quota_user user;
	struct rng rng;
	uint32_t *last;                     /* owns; per number: the last request that uses it */
	uint8_t *keys, *new_keys, *parents; /* own; of the longest request */
	uint32_t *slots, *generations, *new_slots, *new_generations;
	uint8_t *states;
	uint64_t now_ns;
	struct simulation_result result;
};

static int simulator_memory(struct simulator *s)
{
	const struct requests *rs = s->sim->requests;
	size_t n = (size_t)rs->longest + 1;

	s->keys = malloc(n * ORACLE_KEY_BYTES);
	s->new_keys = malloc(n * ORACLE_KEY_BYTES);
	s->parents = malloc(n * ORACLE_KEY_BYTES);
	s->slots = malloc(n * sizeof(*s->slots));
	s->generations = malloc(n * sizeof(*s->generations));
	s->new_slots = malloc(n * sizeof(*s->new_slots));
	s->new_generations = malloc(n * sizeof(*s->new_generations));
	s->states = malloc(n);
	if (!s->keys || !s->new_keys || !s->parents || !s->slots || !s->generations || !s->new_slots ||
	    !s->new_generations || !s->states)
		return -ENOMEM;
	if (s->sim->release_recall <= 0)
		return 0;
	s->last = calloc((size_t)s->sim->numbering->n_distinct + 1, sizeof(*s->last));
	if (!s->last)
		return -ENOMEM;
	for (uint32_t i = 0; i < rs->n; i++)
		for (uint32_t k = 0; k < rs->list[i].n; k++)
			s->last[s->sim->numbering->number[rs->list[i].first + k]] = i;
	return 0;
}

static int simulator_store(struct simulator *s)
{
	struct store_config config = {
		.host = &s->tier.tier,
		.max_namespaces = 1,
		.grace_percent = 10,
		.why_entries = 0,
		.write_timeout_ns = UINT64_MAX / 4,
		.boot_id = 1,
	};
	struct ns_desc desc = { .lane_bytes = SIM_SLOT_BYTES, .lanes = 1, .key_bytes = ORACLE_KEY_BYTES };
	struct store_attach attach = { .desc = &desc, .user = &s->user };
	uint8_t have[16], want[16];
	int r;

	snprintf(desc.name, sizeof(desc.name), "simulation");
	for (int i = 0; i < QUOTA_N; i++)
		s->user.session.limit[i] = UINT64_MAX;
	s->user.pin_limit = UINT64_MAX;
	sim_tier_init(&s->tier, s->sim->capacity);
	r = store_new(&config, &s->store);
	if (r == 0)
		r = store_attach(s->store, &attach, &s->holder, have, want);
	return r > 0 ? -ENOMEM : r;
}

static void simulator_deinit(struct simulator *s)
{
	if (s->holder) {
		int r = holder_close(s->holder, true);

		assert(r == 0);
	}
	if (s->store) {
		s->store = store_free(s->store);
		sim_tier_deinit(&s->tier);
	}
	free(s->last);
	free(s->keys);
	free(s->new_keys);
	free(s->parents);
	free(s->slots);
	free(s->generations);
	free(s->new_slots);
	free(s->new_generations);
	free(s->states);
}

/* Reserves @n keys from @keys on, or as many of the first as there is room for.  Returns how many it asked for; < 0: -errno. */
static int simulator_reserve(struct simulator *s, const uint8_t *keys, uint32_t n, struct store_reserve *args)
{
	int r = STORE_E_NOSPACE;

	while (n > 0) {
		*args = (struct store_reserve){ .keys = keys,
			                        .n = n,
			                        .lane = STORE_ALL_LANES,
			                        .now_ns = s->now_ns,
			                        .slots = s->new_slots,
			                        .generations = s->new_generations };
		r = store_reserve(s->holder, args);
		if (r != STORE_E_NOSPACE)
			break;
		n -= n > 64 ? n / 16 : 1;
	}
	s->result.dropped += n ? args->dropped : 0;
	if (n == 0)
		return 0;
	assert(r <= 0); /* what else could be refused is not limited here */
	return r < 0 ? r : (int)n;
}

/* What was reserved of the @n blocks after the first @hits becomes present; what was there already is touched. */
static int simulator_store_tail(struct simulator *s, uint32_t hits, uint32_t n)
{
	const uint8_t *tail = s->keys + (size_t)hits * ORACLE_KEY_BYTES;
	struct store_reserve reserve;
	struct store_commit commit = { .lane = STORE_ALL_LANES, .length = SIM_SLOT_BYTES };
	struct store_hint_args touch = { .hint = STORE_HINT_TOUCH, .keys = tail, .now_ns = s->now_ns };
	int asked = simulator_reserve(s, tail, n, &reserve), r = 0;
	uint32_t fresh = 0, known;

	if (asked <= 0)
		return asked;
	for (uint32_t i = 0; i < (uint32_t)asked; i++) {
		size_t at = (size_t)(hits + i) * ORACLE_KEY_BYTES, to = (size_t)fresh * ORACLE_KEY_BYTES;

		if (s->new_slots[i] == STORE_NO_SLOT)
			continue;
		memcpy(s->new_keys + to, s->keys + at, ORACLE_KEY_BYTES);
		if (hits + i > 0)
			memcpy(s->parents + to, s->keys + at - ORACLE_KEY_BYTES, ORACLE_KEY_BYTES);
		else
			memset(s->parents + to, 0, ORACLE_KEY_BYTES);
		s->new_slots[fresh] = s->new_slots[i];
		s->new_generations[fresh++] = s->new_generations[i];
	}
	commit.slots_in = commit.slots = s->new_slots;
	commit.generations_in = commit.generations = s->new_generations;
	commit.keys = s->new_keys;
	commit.parents = s->parents;
	commit.n = commit.n_parents = fresh;
	commit.states = s->states;
	commit.now_ns = s->now_ns;
	if (fresh)
		r = store_commit(s->holder, &commit);
	assert(r <= 0);
	touch.n = (uint32_t)asked;
	if (r == 0 && fresh < (uint32_t)asked)
		r = store_hint(s->holder, &touch, &known);
	return r;
}

/* Blocks that no later request uses are released by hint, as many as the recall says. */
static int simulator_hint(struct simulator *s, uint32_t i)
{
	const struct request *request = &s->sim->requests->list[i];
	struct store_hint_args release = { .hint = STORE_HINT_RELEASE, .keys = s->new_keys, .now_ns = s->now_ns };
	uint32_t known;

	for (uint32_t k = 0; k < request->n; k++) {
		if (s->last[s->sim->numbering->number[request->first + k]] != i ||
		    rng_double(&s->rng) >= s->sim->release_recall)
			continue;
		memcpy(s->new_keys + (size_t)release.n++ * ORACLE_KEY_BYTES, s->keys + (size_t)k * ORACLE_KEY_BYTES,
		       ORACLE_KEY_BYTES);
	}
	s->result.hinted += release.n;
	return release.n ? store_hint(s->holder, &release, &known) : 0;
}

static int simulator_request(struct simulator *s, uint32_t i)
{
	const uint64_t *ids = requests_ids(s->sim->requests, i);
	uint32_t n = s->sim->requests->list[i].n;
	struct store_match match = { .keys = s->keys, .n = n, .hold = true, .now_ns = s->now_ns };
	int r;

	for (uint32_t k = 0; k < n; k++)
		oracle_key(ids[k], s->keys + (size_t)k * ORACLE_KEY_BYTES);
	match.slots = s->slots;
	match.generations = s->generations;
	r = store_match(s->holder, &match);
	assert(r <= 0);
	if (r < 0)
		return r;
	if (match.hits < n)
		r = simulator_store_tail(s, match.hits, n - match.hits);
	for (uint32_t k = match.hits; k-- > 0 && r == 0;)
		r = store_release(s->holder, &s->slots[k], &s->generations[k], 1);
	s->result.looked_up += n;
	s->result.hits += match.hits;
	return r == 0 && s->last ? simulator_hint(s, i) : r;
}

int simulation_run(const struct simulation *sim, struct simulation_result *ret_result)
{
	struct simulator s = { .sim = sim };
	int r;

	assert(sim->capacity > 0 && sim->capacity <= SIMULATION_MAX_CAPACITY);
	assert(sim->release_recall <= 0 || sim->numbering);
	rng_init(&s.rng, sim->seed);
	r = simulator_memory(&s);
	if (r == 0)
		r = simulator_store(&s);
	for (uint32_t i = 0; i < sim->requests->n && r == 0; i++) {
		s.now_ns = ((uint64_t)i + 1) * 1000;
		r = simulator_request(&s, i);
		if (sim->on_progress && i % 256 == 255)
			sim->on_progress(sim->ctx, i + 1);
	}
	assert(r <= 0);
	simulator_deinit(&s);
	if (r == 0)
		*ret_result = s.result;
	return r;
}
