/* One client process of a replay.  Owns its session and the scratch memory for one request; writes nothing but its page of results and
 * the blocks it stores.
 *
 * A request is done as an engine does it: match and hold the prefix, bring up what of the rest is
 * below host memory, read every byte of it, reserve what is missing, write it, publish it,
 * let go tail first.  The daemon may say no (no room, a limit): then fewer blocks are stored.  It may go away: then the rest of the request is
 * left undone, and the next one begins when it is back.  Neither is an error.
 */
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/rng.h"
#include "oracle.h"
#include "replay.h"

#define CLIENT_PATIENCE_MS 30000 /* how long the daemon may be away */
#define CLIENT_ONBOARD_MS 10000
#define CLIENT_ONBOARD_TRIES 8 /* as long as there is no room for the moment */
#define CLIENT_BACKOFF_MS 500  /* longest pause between two tries */

struct replay_client {
	const struct replay *replay;
	struct replay_page *page;
	struct kvbm *kvbm;  /* owns */
	struct kvbm_ns *ns; /* borrows from kvbm */
	uint32_t which;
	uint8_t *keys, *fresh_keys, *parents; /* own; of the longest request */
	struct kvbm_span *held, *slots;       /* own */
	uint8_t *status;                      /* owns */
	uint32_t n, n_fresh;                  /* keys of the request in hand; of them in fresh_keys */
	uint64_t request, reconnects;         /* number of the request in hand; the library's count when it began */
	bool away;                            /* the daemon went away during this request */
};

void replay_model(const struct replay *replay, struct kvbm_model *ret_model)
{
	*ret_model = (struct kvbm_model){ .name = replay->ns_name,
		                          .block_bytes = replay->block_bytes,
		                          .lanes = replay->lanes,
		                          .key_bytes = ORACLE_KEY_BYTES,
		                          .model = "kvbmctl replay" };
}

static void client_count(struct replay_client *c, enum replay_count what, uint64_t n)
{
	uint64_t have = atomic_load_explicit(&c->page->counts[what], memory_order_relaxed);

	atomic_store_explicit(&c->page->counts[what], have + n, memory_order_relaxed);
}

static void client_note(char *text, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Only the first is kept: it is the one that says most. */
static void client_note(char *text, const char *fmt, ...)
{
	va_list ap;

	if (*text)
		return;
	va_start(ap, fmt);
	vsnprintf(text, REPLAY_TEXT, fmt, ap);
	va_end(ap);
}

/* ---- waiting ---- */

/* Until @until_ns.  False: the replay is to stop. */
static bool client_pause(const struct replay_client *c, uint64_t until_ns)
{
	struct pollfd pollfd = { .fd = c->replay->stop_fd };
	struct timespec left = { 0 };
	uint64_t now;
	int r;

	do {
		now = clock_now_ns();
		if (now < until_ns) {
			left.tv_sec = (time_t)((until_ns - now) / CLOCK_NS_PER_S);
			left.tv_nsec = (long)((until_ns - now) % CLOCK_NS_PER_S);
		} else {
			left = (struct timespec){ 0 };
		}
		r = ppoll(&pollfd, 1, &left, NULL);
	} while (r < 0 && errno == EINTR);
	return r == 0;
}

static bool client_is_away(int r)
{
	return r == -KVBM_E_GONE || r == -KVBM_E_SYS || r == -KVBM_E_TIMEOUT;
}

static int client_connect(struct replay_client *c)
{
	char name[64];
	struct kvbm_options options = { .socket = c->replay->socket,
		                        .name = name,
		                        .flags = c->replay->by_socket ? KVBM_OPEN_BY_SOCKET : 0 };
	struct kvbm_model model;
	int r;

	if (c->ns)
		return kvbm_ping(c->kvbm); /* the library attaches again by itself */
	snprintf(name, sizeof(name), "kvbmctl replay %u", c->which + 1);
	replay_model(c->replay, &model);
	r = c->kvbm ? 0 : kvbm_open(&options, &c->kvbm);
	return r < 0 ? r : kvbm_attach(c->kvbm, &model, &c->ns);
}

/* Waits until the daemon answers.  False: it is time to end, for whatever reason. */
static bool client_reach(struct replay_client *c)
{
	uint64_t end_ns = clock_now_ns() + CLIENT_PATIENCE_MS * CLOCK_NS_PER_MS, pause_ms = 10;
	int r = client_connect(c);

	while (client_is_away(r)) {
		if (clock_now_ns() >= end_ns) {
			client_count(c, REPLAY_GAVE_UP, 1);
			break;
		}
		if (!client_pause(c, clock_now_ns() + pause_ms * CLOCK_NS_PER_MS))
			return false;
		pause_ms = pause_ms * 2 < CLIENT_BACKOFF_MS ? pause_ms * 2 : CLIENT_BACKOFF_MS;
		r = client_connect(c);
	}
	if (r >= 0)
		return true;
	client_count(c, REPLAY_ERRORS, 1);
	client_note(c->page->error, "ended before request %llu: %s%s%s", (unsigned long long)c->request,
	            kvbm_strerror(r), c->kvbm ? ": " : "", c->kvbm ? kvbm_error(c->kvbm) : "");
	return false;
}

/* ---- answers that are not what was hoped for ---- */

static bool client_is_refusal(int r)
{
	return r == -KVBM_E_NOSPACE || r == -KVBM_E_LIMIT || r == -KVBM_E_BUSY;
}

static uint64_t client_reconnects(const struct replay_client *c)
{
	struct kvbm_counters counters = { 0 };

	kvbm_get_counters(c->kvbm, &counters);
	return counters.reconnects;
}

/* After a restart the spans of the request in hand mean nothing any more, and the daemon says so. */
static void client_failed(struct replay_client *c, const char *what, int r)
{
	if (client_is_away(r) || client_reconnects(c) != c->reconnects) {
		c->away = true;
		return;
	}
	if (client_is_refusal(r)) {
		client_count(c, REPLAY_REFUSED, 1);
		return;
	}
	client_count(c, REPLAY_ERRORS, 1);
	client_note(c->page->error, "request %llu: %s: %s: %s", (unsigned long long)c->request, what, kvbm_strerror(r),
	            kvbm_error(c->kvbm));
}

/* ---- the steps of a request ---- */

/* Returns the hits, which are held.  Where a session may not hold as many, fewer are asked for. */
static uint32_t client_match(struct replay_client *c)
{
	uint32_t asked = c->n;

	while (asked > 0) {
		uint64_t start_ns = clock_now_ns();
		int r = kvbm_match(c->ns, c->keys, asked, 0, c->held);

		if (r >= 0) {
			assert((uint32_t)r <= asked);
			histogram_add(&c->page->match_ns, clock_now_ns() - start_ns);
			return (uint32_t)r;
		}
		client_failed(c, "match", r);
		if (c->away || !client_is_refusal(r))
			return 0;
		asked /= 2;
	}
	return 0;
}

/* Brings up what is below host memory of the rest; asks again, a few times, while there is no room for it.  Returns all hits, which are held. */
static uint32_t client_onboard(struct replay_client *c, uint32_t hits)
{
	struct kvbm_onboard_options options = { .flags = KVBM_HOLD, .timeout_ms = CLIENT_ONBOARD_MS };

	for (unsigned tries = 0; hits < c->n && tries < CLIENT_ONBOARD_TRIES && !c->away; tries++) {
		uint32_t asked = c->n - hits;
		uint64_t start_ns = clock_now_ns();
		int r = kvbm_onboard(c->ns, c->keys + (size_t)hits * ORACLE_KEY_BYTES, asked, &options, c->status,
		                     c->held + hits);

		if (r < 0) {
			client_failed(c, "onboard", r);
			break;
		}
		assert((uint32_t)r <= asked);
		if (r > 0)
			histogram_add(&c->page->onboard_ns, clock_now_ns() - start_ns);
		client_count(c, REPLAY_HITS_G3, (uint64_t)r);
		hits += (uint32_t)r;
		if (hits == c->n)
			break;
		client_count(c, REPLAY_ONBOARD_FAILED, c->status[r] == KVBM_FAILED);
		if (c->status[r] != KVBM_BUSY)
			break;
		client_count(c, REPLAY_ONBOARD_BUSY, 1);
	}
	return hits;
}

static void client_count_hits(struct replay_client *c, uint32_t hits)
{
	for (uint32_t k = 0; k < hits; k++) {
		uint32_t tiers = c->held[k].tiers;

		client_count(c,
		             tiers & KVBM_TIER_G1   ? REPLAY_HITS_G1
		             : tiers & KVBM_TIER_G2 ? REPLAY_HITS_G2
		             : tiers & KVBM_TIER_G3 ? REPLAY_HITS_G3
		             : tiers & KVBM_TIER_G4 ? REPLAY_HITS_G4
		                                    : REPLAY_HITS_G2,
		             1);
	}
}

/* Where lane @lane of @span is; NULL after counting what that means. */
static void *client_data(struct replay_client *c, const struct kvbm_span *span, uint32_t lane)
{
	void *data = kvbm_data(c->ns, span, lane);
	int r;

	if (data)
		return data;
	r = kvbm_ping(c->kvbm); /* is it that the daemon went away? */
	client_failed(c, "data of a block that is held or reserved", r < 0 ? r : -KVBM_E_STALE);
	return NULL;
}

static const char *client_hex(const uint8_t *key, char text[2 * ORACLE_KEY_BYTES + 1])
{
	for (size_t i = 0; i < ORACLE_KEY_BYTES; i++)
		snprintf(text + 2 * i, 3, "%02x", key[i]);
	return text;
}

/* Every byte of every lane of the held block @k.  False: it could not be looked at. */
static bool client_check_block(struct replay_client *c, uint32_t k)
{
	const uint8_t *key = c->keys + (size_t)k * ORACLE_KEY_BYTES;
	char hex[2 * ORACLE_KEY_BYTES + 1];
	uint64_t wrong_bytes = 0;

	for (uint32_t lane = 0; lane < c->replay->lanes; lane++) {
		const void *data = client_data(c, &c->held[k], lane);
		size_t first = 0;
		uint64_t wrong;

		if (!data)
			return false;
		wrong = oracle_check(data, c->replay->block_bytes,
		                     oracle_seed(c->replay->ns_name, key, ORACLE_KEY_BYTES, lane), &first);
		if (wrong)
			client_note(c->page->wrong,
			            "request %llu, block %u, key %s, lane %u: %llu of %llu bytes wrong, the first at %zu",
			            (unsigned long long)c->request, k, client_hex(key, hex), lane,
			            (unsigned long long)wrong, (unsigned long long)c->replay->block_bytes, first);
		wrong_bytes += wrong;
	}
	client_count(c, REPLAY_VERIFIED, 1);
	client_count(c, REPLAY_WRONG_BYTES, wrong_bytes);
	client_count(c, REPLAY_WRONG_BLOCKS, wrong_bytes > 0);
	return true;
}

/* Reserves the keys from @hits on, or as many of the first as there is room for.  Returns how many were asked for. */
static uint32_t client_reserve(struct replay_client *c, uint32_t hits)
{
	const uint8_t *tail = c->keys + (size_t)hits * ORACLE_KEY_BYTES;
	uint32_t asked = c->n - hits;

	while (asked > 0) {
		uint64_t start_ns = clock_now_ns();
		int r = kvbm_reserve(c->ns, KVBM_ALL_LANES, tail, asked, c->slots, NULL);

		if (r >= 0) {
			histogram_add(&c->page->reserve_ns, clock_now_ns() - start_ns);
			return asked;
		}
		client_failed(c, "reserve", r);
		if (c->away || !client_is_refusal(r))
			return 0;
		asked -= asked > 64 ? asked / 16 : 1;
	}
	return 0;
}

/* Packs what was reserved of the @asked keys after the first @hits to the front, each with its parent's key. */
static void client_pack(struct replay_client *c, uint32_t hits, uint32_t asked)
{
	c->n_fresh = 0;
	for (uint32_t i = 0; i < asked; i++) {
		const uint8_t *key = c->keys + (size_t)(hits + i) * ORACLE_KEY_BYTES;
		size_t to = (size_t)c->n_fresh * ORACLE_KEY_BYTES;

		if (c->slots[i].slot == UINT32_MAX)
			continue;
		memcpy(c->fresh_keys + to, key, ORACLE_KEY_BYTES);
		if (hits + i > 0)
			memcpy(c->parents + to, key - ORACLE_KEY_BYTES, ORACLE_KEY_BYTES);
		else
			memset(c->parents + to, 0, ORACLE_KEY_BYTES);
		c->slots[c->n_fresh++] = c->slots[i];
	}
}

static bool client_write(struct replay_client *c)
{
	for (uint32_t i = 0; i < c->n_fresh; i++) {
		const uint8_t *key = c->fresh_keys + (size_t)i * ORACLE_KEY_BYTES;

		for (uint32_t lane = 0; lane < c->replay->lanes; lane++) {
			void *data = client_data(c, &c->slots[i], lane);

			if (!data)
				return false;
			oracle_fill(data, c->replay->block_bytes,
			            oracle_seed(c->replay->ns_name, key, ORACLE_KEY_BYTES, lane));
		}
	}
	return true;
}

/* Returns how many are new to the node; < 0: none was published. */
static int client_commit(struct replay_client *c)
{
	uint64_t start_ns = clock_now_ns();
	int r = kvbm_commit(c->ns, KVBM_ALL_LANES, c->slots, c->fresh_keys, c->n_fresh, c->parents, KVBM_PARENTS);

	if (r < 0) {
		client_failed(c, "commit", r);
		return r;
	}
	histogram_add(&c->page->commit_ns, clock_now_ns() - start_ns);
	client_count(c, REPLAY_STORED, (uint64_t)r);
	client_count(c, REPLAY_DEDUPLICATED, c->n_fresh - (uint64_t)r);
	return r;
}

/* Stores what is missing after the first @hits, and touches what of it turned out to be there. */
static void client_store(struct replay_client *c, uint32_t hits)
{
	const uint8_t *tail = c->keys + (size_t)hits * ORACLE_KEY_BYTES;
	uint32_t asked = client_reserve(c, hits);
	int r;

	client_pack(c, hits, asked);
	client_count(c, REPLAY_NOT_STORED, c->n - hits - asked);
	if (c->n_fresh > 0 && (!client_write(c) || client_commit(c) < 0)) {
		client_count(c, REPLAY_NOT_STORED, c->n_fresh);
		if (!c->away)
			kvbm_abort(c->ns, KVBM_ALL_LANES, c->slots, c->n_fresh); /* those that still are ours, if any */
		return;
	}
	if (c->n_fresh == asked)
		return;
	r = kvbm_hint(c->ns, KVBM_HINT_TOUCH, tail, asked, 0, 0);
	if (r < 0)
		client_failed(c, "touch", r);
}

/* Tail first. */
static void client_release(struct replay_client *c, uint32_t hits)
{
	int r;

	for (uint32_t i = 0; i < hits / 2; i++) {
		struct kvbm_span span = c->held[i];

		c->held[i] = c->held[hits - 1 - i];
		c->held[hits - 1 - i] = span;
	}
	r = kvbm_release(c->ns, c->held, hits);
	if (r < 0)
		client_failed(c, "release", r);
}

static void client_request(struct replay_client *c, uint64_t number)
{
	const struct requests *rs = c->replay->requests;
	uint32_t index = (uint32_t)(number % rs->n), hits;
	const uint64_t *ids = requests_ids(rs, index);
	uint64_t seed = c->replay->seed, salt = seed ? rng_splitmix(&seed) : 0;

	c->request = number;
	c->reconnects = client_reconnects(c);
	c->away = false;
	c->n = rs->list[index].n;
	for (uint32_t k = 0; k < c->n; k++)
		oracle_key(ids[k] ^ salt, c->keys + (size_t)k * ORACLE_KEY_BYTES);
	hits = client_match(c);
	client_count_hits(c, hits);
	if (c->replay->shared->has_g3 && !c->away)
		hits = client_onboard(c, hits);
	for (uint32_t k = 0; k < hits && client_check_block(c, k); k++)
		;
	if (hits < c->n && !c->away)
		client_store(c, hits);
	else
		client_count(c, REPLAY_NOT_STORED, c->n - hits);
	if (hits > 0)
		client_release(c, hits);
	client_count(c, REPLAY_LOOKED_UP, c->n);
	client_count(c, REPLAY_REQUESTS, 1);
	client_count(c, REPLAY_RECONNECTS, client_reconnects(c) - c->reconnects);
}

/* ---- the process ---- */

static bool client_memory(struct replay_client *c)
{
	size_t n = (size_t)c->replay->requests->longest + 1;

	c->keys = malloc(n * ORACLE_KEY_BYTES);
	c->fresh_keys = malloc(n * ORACLE_KEY_BYTES);
	c->parents = malloc(n * ORACLE_KEY_BYTES);
	c->held = malloc(n * sizeof(*c->held));
	c->slots = malloc(n * sizeof(*c->slots));
	c->status = malloc(n);
	return c->keys && c->fresh_keys && c->parents && c->held && c->slots && c->status;
}

static void client_deinit(struct replay_client *c)
{
	kvbm_close(c->kvbm);
	free(c->keys);
	free(c->fresh_keys);
	free(c->parents);
	free(c->held);
	free(c->slots);
	free(c->status);
}

/* Waits until it may begin.  False: the replay was called off. */
static bool client_begin(const struct replay_client *c)
{
	struct pollfd pollfds[] = { { .fd = c->replay->go_fd }, { .fd = c->replay->stop_fd } };
	int r;

	do
		r = poll(pollfds, 2, -1);
	while (r < 0 && errno == EINTR);
	return pollfds[1].revents == 0;
}

static void client_run(struct replay_client *c)
{
	const struct replay *replay = c->replay;
	bool up = client_reach(c);

	while (up) {
		uint64_t number = atomic_fetch_add(&replay->shared->next, 1), due_ns = 0;

		if (number >= replay->total)
			break;
		if (replay->rate > 0)
			due_ns = replay->shared->start_ns + (uint64_t)((double)number / replay->rate * 1e9);
		if (!client_pause(c, due_ns))
			break;
		client_request(c, number);
		if (c->away) {
			uint64_t before = client_reconnects(c);

			up = client_reach(c);
			client_count(c, REPLAY_RECONNECTS, client_reconnects(c) - before);
		}
	}
}

int replay_client(const struct replay *replay, uint32_t which)
{
	struct replay_client c = { .replay = replay, .page = &replay->shared->clients[which], .which = which };

	if (client_begin(&c)) {
		if (client_memory(&c)) {
			client_run(&c);
		} else {
			client_count(&c, REPLAY_ERRORS, 1);
			client_note(c.page->error, "out of memory");
		}
	}
	client_deinit(&c);
	return 0;
}
