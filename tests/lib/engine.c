/* SPDX-License-Identifier: Apache-2.0 */
/* Owns what is held from one request to the next.  Bytes are cache.h's. */
#include "tests/lib/engine.h"

#include "tests/lib/must.h"

void engine_init(struct engine *e, struct cache *cache, uint64_t seed, uint32_t conversations, uint32_t longest)
{
	must(longest > 0 && longest <= CACHE_CHAIN && conversations > 0);
	memset(e, 0, sizeof(*e));
	e->cache = cache;
	e->conversations = conversations;
	e->longest = longest;
	rng_init(&e->rng, seed);
}

int engine_rest(struct engine *e)
{
	uint32_t n = e->n_held;

	e->n_held = 0;
	return n ? kvbm_release(e->cache->ns, e->held, n) : 0;
}

/* Reserves, writes a part, gives it all back. */
static int engine_give_up(struct engine *e, uint64_t first, uint32_t n)
{
	uint8_t keys[CACHE_CHAIN * KVBM_KEY_MAX];
	struct kvbm_span spans[CACHE_CHAIN];
	struct cache *c = e->cache;
	uint32_t m = 0;
	int r;

	cache_keys(c, first, n, keys);
	r = kvbm_reserve(c->ns, KVBM_ALL_LANES, keys, n, spans, NULL);
	if (r <= 0)
		return r;
	for (uint32_t i = 0; i < n; i++)
		if (spans[i].slot != UINT32_MAX)
			spans[m++] = spans[i];
	if (kvbm_data(c->ns, &spans[0], 0))
		cache_fill(c, &spans[0], keys, 0);
	return kvbm_abort(c->ns, KVBM_ALL_LANES, spans, m);
}

static int engine_hint(struct engine *e, uint64_t first, uint32_t n)
{
	uint8_t keys[CACHE_CHAIN * KVBM_KEY_MAX];

	cache_keys(e->cache, first, n, keys);
	return kvbm_hint(e->cache->ns, (enum kvbm_hint)rng_range(&e->rng, KVBM_HINT_RELEASE, KVBM_HINT_TOUCH), keys, n,
	                 100, (uint32_t)rng_below(&e->rng, 101));
}

/* The prefix that is there, read and held. */
static int engine_match(struct engine *e, uint64_t first, uint32_t n, struct kvbm_span *spans)
{
	uint8_t keys[CACHE_CHAIN * KVBM_KEY_MAX];
	struct cache *c = e->cache;
	int hits;

	cache_keys(c, first, n, keys);
	hits = kvbm_match(c->ns, keys, n, 0, spans);
	for (int i = 0; i < hits; i++) {
		if (!kvbm_data(c->ns, &spans[i], 0)) {
			(void)kvbm_release(c->ns, spans, (uint32_t)hits);
			return -KVBM_E_GONE;
		}
		cache_check(c, &spans[i], keys + (size_t)i * c->key_bytes);
	}
	return hits;
}

int engine_request(struct engine *e)
{
	uint64_t a = rng_below(&e->rng, e->conversations), b = rng_below(&e->rng, e->conversations);
	uint64_t first = (a * b / e->conversations) * ENGINE_SPACE + 1;
	uint32_t n = (uint32_t)rng_range(&e->rng, 1, e->longest);
	struct kvbm_span spans[CACHE_CHAIN];
	int hits = engine_match(e, first, n, spans), r = 0;

	if (hits < 0) {
		(void)engine_rest(e);
		return hits;
	}
	if ((uint32_t)hits < n && rng_chance(&e->rng, 8))
		r = engine_give_up(e, first + (uint32_t)hits, n - (uint32_t)hits);
	else if ((uint32_t)hits < n)
		r = cache_try_store(e->cache, KVBM_ALL_LANES, first + (uint32_t)hits, n - (uint32_t)hits);
	if (r >= 0 && rng_chance(&e->rng, 4))
		r = engine_hint(e, first, n);
	if (r >= 0)
		r = engine_rest(e);
	if (r >= 0 && rng_chance(&e->rng, 30)) {
		memcpy(e->held, spans, (size_t)hits * sizeof(spans[0]));
		e->n_held = (uint32_t)hits;
		return 0;
	}
	if (hits > 0) {
		int released = kvbm_release(e->cache->ns, spans, (uint32_t)hits);

		r = r < 0 ? r : released;
	}
	if (r < 0)
		(void)engine_rest(e);
	return r < 0 ? r : 0;
}
