/* SPDX-License-Identifier: Apache-2.0 */
/* Owns a session and knows what the bytes of its blocks must be. */
#include "tests/lib/cache.h"

#include <stdlib.h>

#include "tests/lib/must.h"

/* The finaliser of MurmurHash3: every bit of the input moves half of the output's. */
static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 33)) * UINT64_C(0xff51afd7ed558ccd);
	x = (x ^ (x >> 33)) * UINT64_C(0xc4ceb9fe1a85ec53);
	return x ^ (x >> 33);
}

static uint64_t seed_of(const struct cache *c, const uint8_t *key, uint32_t lane)
{
	uint64_t seed = mix(lane + 1);

	for (const char *p = c->name; *p; p++)
		seed = mix(seed ^ (uint8_t)*p);
	for (uint32_t i = 0; i < c->key_bytes; i++)
		seed = mix(seed + key[i] + 1);
	return seed;
}

struct kvbm_model cache_model(const char *name, uint64_t block_bytes, uint32_t lanes)
{
	return (struct kvbm_model){ .name = name, .block_bytes = block_bytes, .lanes = lanes };
}

int cache_try_open(struct cache *c, const char *socket, const struct kvbm_model *model, unsigned open_flags)
{
	struct kvbm_options options = { .socket = socket, .name = "test", .timeout_ms = 30000, .flags = open_flags };
	int r;

	memset(c, 0, sizeof(*c));
	r = kvbm_open(&options, &c->kvbm);
	if (r < 0)
		return r;
	r = kvbm_attach(c->kvbm, model, &c->ns);
	if (r < 0)
		return r;
	must(strlen(model->name) < sizeof(c->name));
	strcpy(c->name, model->name);
	c->lanes = kvbm_ns_lanes(c->ns);
	c->key_bytes = kvbm_ns_key_bytes(c->ns);
	c->lane_bytes = kvbm_lane_bytes(c->ns);
	return 0;
}

int cache_ok(const struct cache *c, int r)
{
	if (r >= 0)
		return r;
	fprintf(stderr, "namespace %s: %s: %s\n", c->name, kvbm_strerror(r), c->kvbm ? kvbm_error(c->kvbm) : "no session");
	_exit(1);
}

void cache_open(struct cache *c, const char *socket, const struct kvbm_model *model)
{
	cache_ok(c, cache_try_open(c, socket, model, 0));
}

void cache_open_by_socket(struct cache *c, const char *socket, const struct kvbm_model *model)
{
	cache_ok(c, cache_try_open(c, socket, model, KVBM_OPEN_BY_SOCKET));
}

void cache_close(struct cache *c)
{
	kvbm_close(c->kvbm);
	memset(c, 0, sizeof(*c));
}

void cache_keys(const struct cache *c, uint64_t first, uint32_t n, uint8_t *ret_keys)
{
	for (uint32_t i = 0; i < n; i++) {
		for (uint32_t at = 0; at < c->key_bytes; at += 8) {
			uint64_t word = mix(first + i + at + 1) ^ at; /* at 0 a bijection: distinct numbers, distinct keys */
			uint32_t left = c->key_bytes - at;

			memcpy(ret_keys + i * c->key_bytes + at, &word, left < 8 ? left : 8);
		}
	}
}

static void cache_write(const struct cache *c, uint8_t *data, const uint8_t *key, uint32_t lane)
{
	uint64_t seed = seed_of(c, key, lane), word;

	for (uint64_t i = 0; i < c->lane_bytes; i += 8) {
		word = seed + mix(seed ^ i);
		memcpy(data + i, &word, c->lane_bytes - i < 8 ? c->lane_bytes - i : 8);
	}
}

void cache_fill(const struct cache *c, const struct kvbm_span *span, const uint8_t *key, uint32_t lane)
{
	uint8_t *data = kvbm_data(c->ns, span, lane);

	if (!data)
		cache_ok(c, -KVBM_E_INTERNAL);
	cache_write(c, data, key, lane);
}

/* The first byte that is wrong, or lane_bytes. */
static uint64_t cache_compare(const struct cache *c, const uint8_t *data, const uint8_t *key, uint32_t lane)
{
	uint64_t seed = seed_of(c, key, lane), word, i;

	for (i = 0; i < c->lane_bytes; i += 8) {
		word = seed + mix(seed ^ i);
		if (memcmp(data + i, &word, c->lane_bytes - i < 8 ? c->lane_bytes - i : 8) != 0)
			return i;
	}
	return c->lane_bytes;
}

bool cache_try_check(const struct cache *c, const struct kvbm_span *span, const uint8_t *key)
{
	for (uint32_t lane = 0; lane < c->lanes; lane++) {
		const uint8_t *data = kvbm_data(c->ns, span, lane);
		uint64_t wrong;

		if (!data)
			return false;
		wrong = cache_compare(c, data, key, lane);
		if (wrong == c->lane_bytes)
			continue;
		if (!kvbm_data(c->ns, span, lane))
			return false; /* the session ended meanwhile, and with it what was held */
		fprintf(stderr, "WRONG BYTES in namespace %s, lane %u, at byte %llu\n", c->name, lane,
		        (unsigned long long)wrong);
		_exit(1);
	}
	return true;
}

void cache_check(const struct cache *c, const struct kvbm_span *span, const uint8_t *key)
{
	if (!cache_try_check(c, span, key))
		cache_ok(c, -KVBM_E_INTERNAL);
}

static bool cache_try_fill(struct cache *c, const struct kvbm_span *span, const uint8_t *key, uint32_t lane)
{
	uint32_t from = lane == KVBM_ALL_LANES ? 0 : lane, to = lane == KVBM_ALL_LANES ? c->lanes : lane + 1;

	for (; from < to; from++) {
		uint8_t *data = kvbm_data(c->ns, span, from);

		if (!data)
			return false;
		cache_write(c, data, key, from);
	}
	return true;
}

int cache_try_store(struct cache *c, uint32_t lane, uint64_t first, uint32_t n)
{
	uint8_t chain[(CACHE_CHAIN + 1) * KVBM_KEY_MAX] = { 0 }; /* the parent of the first, then the keys */
	uint8_t keys[CACHE_CHAIN * KVBM_KEY_MAX], parents[CACHE_CHAIN * KVBM_KEY_MAX];
	struct kvbm_span spans[CACHE_CHAIN];
	uint32_t size = c->key_bytes, m = 0;
	int r;

	must(n <= CACHE_CHAIN);
	if (first > 0)
		cache_keys(c, first - 1, 1, chain);
	cache_keys(c, first, n, chain + size);
	r = kvbm_reserve(c->ns, lane, chain + size, n, spans, NULL);
	if (r <= 0)
		return r;
	/* What is there already needs nothing; the others move up. */
	for (uint32_t i = 0; i < n; i++) {
		if (spans[i].slot == UINT32_MAX)
			continue;
		memcpy(parents + m * size, chain + i * size, size);
		memcpy(keys + m * size, chain + (i + 1) * size, size);
		spans[m++] = spans[i];
	}
	must_eq(m, r);
	for (uint32_t i = 0; i < m; i++) {
		if (!cache_try_fill(c, &spans[i], keys + i * size, lane)) {
			(void)kvbm_abort(c->ns, lane, spans, m);
			return -KVBM_E_GONE;
		}
	}
	return kvbm_commit(c->ns, lane, spans, keys, m, parents, KVBM_PARENTS);
}

uint32_t cache_store(struct cache *c, uint64_t first, uint32_t n)
{
	return (uint32_t)cache_ok(c, cache_try_store(c, KVBM_ALL_LANES, first, n));
}

int cache_try_verify(struct cache *c, uint64_t first, uint32_t n)
{
	uint8_t keys[CACHE_CHAIN * KVBM_KEY_MAX];
	struct kvbm_span spans[CACHE_CHAIN];
	int hits, r;

	must(n <= CACHE_CHAIN);
	cache_keys(c, first, n, keys);
	hits = kvbm_match(c->ns, keys, n, 0, spans);
	if (hits <= 0)
		return hits;
	for (int i = 0; i < hits; i++) {
		if (!cache_try_check(c, &spans[i], keys + (size_t)i * c->key_bytes)) {
			(void)kvbm_release(c->ns, spans, (uint32_t)hits);
			return -KVBM_E_GONE;
		}
	}
	r = kvbm_release(c->ns, spans, (uint32_t)hits);
	return r < 0 ? r : hits;
}

uint32_t cache_verify(struct cache *c, uint64_t first, uint32_t n)
{
	return (uint32_t)cache_ok(c, cache_try_verify(c, first, n));
}

uint32_t cache_hold(struct cache *c, uint64_t first, uint32_t n, struct kvbm_span *ret_spans)
{
	uint8_t keys[CACHE_CHAIN * KVBM_KEY_MAX];

	must(n <= CACHE_CHAIN);
	cache_keys(c, first, n, keys);
	return (uint32_t)cache_ok(c, kvbm_match(c->ns, keys, n, 0, ret_spans));
}

uint32_t cache_present(struct cache *c, uint64_t first, uint32_t n)
{
	uint8_t keys[CACHE_CHAIN * KVBM_KEY_MAX];
	uint32_t tiers[CACHE_CHAIN];

	must(n <= CACHE_CHAIN);
	cache_keys(c, first, n, keys);
	return (uint32_t)cache_ok(c, kvbm_stat(c->ns, keys, n, tiers));
}

/* ---- any number of blocks ---- */

void cache_store_chain(struct cache *c, uint64_t first, uint32_t n)
{
	for (uint32_t i = 0, part; i < n; i += part) {
		part = n - i < CACHE_CHAIN ? n - i : CACHE_CHAIN;
		must_eq(cache_store(c, first + i, part), part);
	}
}

void cache_store_roots(struct cache *c, uint64_t first, uint32_t n)
{
	must(first > 0);
	for (uint32_t i = 0; i < n; i++)
		must_eq(cache_store(c, first + 2ull * i, 1), 1);
}

uint32_t cache_present_roots(struct cache *c, uint64_t first, uint32_t n)
{
	uint32_t present = 0;

	for (uint32_t i = 0; i < n; i++)
		present += cache_present(c, first + 2ull * i, 1);
	return present;
}

static int cache_try_room(struct cache *c, uint32_t n, uint32_t *ret_dropped)
{
	struct kvbm_span *spans = calloc(n, sizeof(*spans));
	int r;

	must(spans && n > 0);
	r = kvbm_reserve(c->ns, KVBM_ALL_LANES, NULL, n, spans, ret_dropped);
	if (r >= 0) {
		must_eq(r, n);
		must_eq(cache_ok(c, kvbm_abort(c->ns, KVBM_ALL_LANES, spans, n)), n);
	}
	free(spans);
	return r;
}

uint32_t cache_capacity(struct cache *c)
{
	uint32_t low = 0, high = KVBM_MAX_KEYS, middle;
	int r;

	must_eq(c->lanes, 1);
	while (low < high) {
		middle = low + (high - low + 1) / 2;
		r = cache_try_room(c, middle, NULL);
		if (r == -KVBM_E_NOSPACE) {
			high = middle - 1;
		} else {
			cache_ok(c, r);
			low = middle;
		}
	}
	return low;
}

uint32_t cache_make_room(struct cache *c, uint32_t n)
{
	uint32_t dropped = 0;

	cache_ok(c, cache_try_room(c, n, &dropped));
	return dropped;
}
