/* SPDX-License-Identifier: Apache-2.0 */
/* Clients and the evictor over the same few slots: every byte that is read under a pin is the one that was stored.
 *
 * Against one daemon with hardly any memory: processes that store, match through shared memory and by socket, hold, hint and release, one
 * of them with several threads; one that is killed again and again; an administrator who flushes and drops.  A run in which nobody
 * found anything, or nothing was dropped, shows nothing and fails.
 *
 * KVBM_RACE_SECONDS: how long all of it takes (10); `make check-race' gives it a minute.  That the machinery sees a wrong byte
 * at all is shown by tests/unit/client/test_handshake_*.c, where one side of the hand-shake is broken.
 * ThreadSanitizer sees the threads of one client at a time, not what happens between processes; between daemon and client as
 * threads see tests/unit/client/test_handshake.c.
 */
#include <check.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/rng.h"
#include "tests/lib/cache.h"
#include "tests/lib/client_proc.h"
#include "tests/lib/daemon_proc.h"
#include "tests/lib/must.h"

#define WORKERS 4u
#define THREADS 2u /* of the first worker */
#define TURN 32u   /* things a client does before it looks up */
#define MODELS 2u
#define PATIENCE_NS \
	(UINT64_C(30) * 1000000000u) /* for the first block to be dropped, on a machine that is busy with other things */

struct setting {
	const char *name;
	const char *size;
	unsigned n_models;
	struct kvbm_model models[MODELS]; /* worker i takes number i % n_models */
	uint32_t slots;                   /* about as many are there */
	uint32_t longest;                 /* chain that is stored at once */
};

static const struct setting settings[] = {
	{ "4 slots", "--g2.size=2M", 1, { { .name = "few", .block_bytes = 512u << 10 } }, 4, 1 },
	{ "8 slots", "--g2.size=2M", 1, { { .name = "some", .block_bytes = 256u << 10 } }, 8, 3 },
	{ "64 slots of 3 lanes, keys confirmed",
	  "--g2.size=2M",
	  1,
	  { { .name = "lanes", .block_bytes = 8192, .lanes = 3, .key_bytes = 32, .flags = KVBM_NS_CONFIRM } },
	  64,
	  8 },
	{ "512 slots", "--g2.size=2M", 1, { { .name = "many", .block_bytes = 4096 } }, 512, 32 },
	{ "two namespaces that take each other's regions",
	  "--g2.size=6M",
	  2,
	  { { .name = "one", .block_bytes = 64u << 10 }, { .name = "two", .block_bytes = 96u << 10, .key_bytes = 8 } },
	  48,
	  16 },
};
#define SETTINGS (sizeof(settings) / sizeof(*settings))

struct tally {
	uint64_t stored, refused, hits, misses, vanished;
};

static struct daemon_proc d;
static const struct setting *now;

/* ---- what a client does ---- */

struct worker {
	struct cache *c;
	struct rng rng;
	struct tally tally;
};

static uint64_t pick_first(struct worker *w)
{
	/* Mostly what others are busy with too. */
	return rng_below(&w->rng, rng_chance(&w->rng, 70) ? now->slots : 3 * now->slots);
}

static void work_store(struct worker *w)
{
	uint32_t n = 1 + (uint32_t)rng_below(&w->rng, now->longest);
	int r = cache_try_store(w->c, KVBM_ALL_LANES, pick_first(w), n);

	if (r == -KVBM_E_NOSPACE)
		w->tally.refused++;
	else
		w->tally.stored += (uint64_t)cache_ok(w->c, r);
}

static void check_all(struct worker *w, const struct kvbm_span *spans, const uint8_t *keys, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (spans[i].slot != UINT32_MAX)
			cache_check(w->c, &spans[i], keys + (size_t)i * w->c->key_bytes);
}

/* Tail first, as engines do, or in one go. */
static void let_go(struct worker *w, const struct kvbm_span *spans, uint32_t n)
{
	bool one_by_one = rng_chance(&w->rng, 50);

	if (!one_by_one)
		must_eq(cache_ok(w->c, kvbm_release(w->c->ns, spans, n)), n);
	for (uint32_t i = n; one_by_one && i-- > 0;)
		must_eq(cache_ok(w->c, kvbm_release(w->c->ns, &spans[i], 1)), 1);
}

static void work_match(struct worker *w)
{
	uint32_t n = rng_chance(&w->rng, 50) ? 1 : 1 + (uint32_t)rng_below(&w->rng, CACHE_CHAIN);
	uint8_t keys[CACHE_CHAIN * KVBM_KEY_MAX];
	struct kvbm_span spans[CACHE_CHAIN];
	uint32_t seen, hits;

	cache_keys(w->c, pick_first(w), n, keys);
	seen = (uint32_t)cache_ok(w->c, kvbm_match(w->c->ns, keys, n, KVBM_PEEK, NULL));
	hits = (uint32_t)cache_ok(w->c, kvbm_match(w->c->ns, keys, n, 0, spans));
	w->tally.vanished += hits < seen;
	w->tally.hits += hits;
	w->tally.misses += n - hits;
	check_all(w, spans, keys, hits);
	if (hits > 0)
		let_go(w, spans, hits);
}

static void work_scattered(struct worker *w)
{
	uint8_t keys[8 * KVBM_KEY_MAX];
	struct kvbm_span spans[8], held[8];
	uint32_t n = 0;
	int hits;

	for (uint32_t i = 0; i < 8; i++)
		cache_keys(w->c, pick_first(w), 1, keys + (size_t)i * w->c->key_bytes);
	hits = cache_ok(w->c, kvbm_match(w->c->ns, keys, 8, KVBM_SCATTERED, spans));
	check_all(w, spans, keys, 8);
	for (uint32_t i = 0; i < 8; i++)
		if (spans[i].slot != UINT32_MAX)
			held[n++] = spans[i];
	must_eq(n, hits);
	w->tally.hits += n;
	w->tally.misses += 8 - n;
	let_go(w, held, n);
}

/* Holds on while others drop what they can, and looks again. */
static void work_hold(struct worker *w)
{
	uint8_t keys[2 * KVBM_KEY_MAX];
	struct kvbm_span spans[2];
	uint32_t hits;

	cache_keys(w->c, pick_first(w), 2, keys);
	hits = (uint32_t)cache_ok(w->c, kvbm_match(w->c->ns, keys, 2, 0, spans));
	check_all(w, spans, keys, hits);
	for (uint32_t i = 0; i < 3; i++) {
		work_store(w);
		check_all(w, spans, keys, hits);
	}
	w->tally.hits += hits;
	let_go(w, spans, hits);
}

static void work_hint(struct worker *w)
{
	static const enum kvbm_hint hints[] = { KVBM_HINT_RELEASE, KVBM_HINT_TOUCH, KVBM_HINT_RETAIN };
	uint32_t n = 1 + (uint32_t)rng_below(&w->rng, 8);
	uint8_t keys[8 * KVBM_KEY_MAX];

	cache_keys(w->c, pick_first(w), n, keys);
	cache_ok(w->c, kvbm_hint(w->c->ns, hints[rng_below(&w->rng, 3)], keys, n, 5, 50));
}

static void work(struct worker *w)
{
	uint64_t what = rng_below(&w->rng, 100);

	if (what < 30)
		work_store(w);
	else if (what < 80)
		work_match(w);
	else if (what < 90)
		work_scattered(w);
	else if (what < 96 && now->slots > WORKERS + THREADS)
		work_hold(w); /* with fewer slots hardly anything could come in */
	else
		work_hint(w);
}

/* ---- processes ---- */

static void open_worker(struct cache *c, unsigned number)
{
	const struct kvbm_model *model = &now->models[number % now->n_models];

	if (number == WORKERS - 1)
		cache_open_by_socket(c, d.socket, model);
	else
		cache_open(c, d.socket, model);
}

struct helper {
	struct worker w;
	atomic_bool stop;
};

static void *helper_thread(void *arg)
{
	struct helper *h = arg;

	while (!atomic_load_explicit(&h->stop, memory_order_relaxed))
		work(&h->w);
	return NULL;
}

static void add(struct tally *sum, const struct tally *t)
{
	sum->stored += t->stored;
	sum->refused += t->refused;
	sum->hits += t->hits;
	sum->misses += t->misses;
	sum->vanished += t->vanished;
}

static void worker_main(struct client_self *self, void *arg)
{
	unsigned number = *(unsigned *)arg, helpers = number == 0 ? THREADS - 1 : 0;
	struct helper helper[THREADS] = { 0 };
	struct worker w = { 0 };
	pthread_t threads[THREADS];
	struct cache c;

	open_worker(&c, number);
	w.c = &c;
	rng_init(&w.rng, (uint64_t)getpid());
	for (unsigned i = 0; i < helpers; i++) {
		helper[i].w.c = &c;
		rng_init(&helper[i].w.rng, (uint64_t)getpid() + i + 1);
		must(pthread_create(&threads[i], NULL, helper_thread, &helper[i]) == 0);
	}
	client_pass(self, "works");
	do {
		for (unsigned i = 0; i < TURN; i++)
			work(&w);
	} while (!client_told(self));
	for (unsigned i = 0; i < helpers; i++) {
		atomic_store(&helper[i].stop, true);
		pthread_join(threads[i], NULL);
		add(&w.tally, &helper[i].w.tally);
	}
	cache_close(&c);
	client_tell(self, &w.tally, sizeof(w.tally));
}

/* Says now and then that it has got somewhere, and is killed for it. */
static void victim_main(struct client_self *self, void *arg)
{
	struct worker w = { 0 };
	struct cache c;

	(void)arg;
	open_worker(&c, (unsigned)getpid() % WORKERS);
	w.c = &c;
	rng_init(&w.rng, (uint64_t)getpid());
	for (;;) {
		client_pass(self, "works");
		for (unsigned i = 0; i < TURN; i++)
			work(&w);
	}
}

/* ---- the parent ---- */

static void administer(struct rng *rng, struct cache *keys)
{
	const char *name = now->models[0].name;
	struct kvbm *k = daemon_monitor(&d);
	uint8_t list[8 * KVBM_KEY_MAX];
	int r;

	if (rng_chance(rng, 30)) {
		r = kvbm_admin(k, "flush", name, NULL, 0, 0, NULL);
	} else {
		cache_keys(keys, rng_below(rng, now->slots), 8, list);
		r = kvbm_admin(k, "drop", name, list, keys->key_bytes, 8, NULL);
	}
	if (r < 0)
		fprintf(stderr, "%s: %s\n", kvbm_strerror(r), kvbm_error(k));
	must_cmp(r, >=, 0);
}

static uint64_t race_seconds(void)
{
	const char *text = getenv("KVBM_RACE_SECONDS");

	return text ? strtoull(text, NULL, 10) : 10;
}

static void disturb(uint64_t until_ns, uint64_t *ret_kills)
{
	struct client_proc victim;
	struct rng rng;
	struct cache c;

	rng_init(&rng, until_ns);
	cache_open(&c, d.socket, &now->models[0]);
	*ret_kills = 0;
	while (clock_now_ns() < until_ns ||
	       (daemon_metric(&d, "blocks_dropped_total") == 0 && clock_now_ns() < until_ns + PATIENCE_NS)) {
		client_start(&victim, victim_main, NULL);
		for (uint64_t i = 1 + rng_below(&rng, 20); i > 0; i--)
			client_await(&victim, "works");
		client_kill(&victim);
		++*ret_kills;
		administer(&rng, &c);
	}
	cache_close(&c);
}

static void race(void)
{
	const char *const flags[] = { now->size, "--g2.region_size=2M", "--g2.huge_pages=never", NULL };
	struct client_proc workers[WORKERS];
	struct tally sum = { 0 }, t;
	uint64_t kills, dropped;

	daemon_start(&d, flags);
	for (unsigned i = 0; i < WORKERS; i++) {
		client_start(&workers[i], worker_main, &i);
		client_await(&workers[i], "works");
	}
	disturb(clock_now_ns() + race_seconds() * UINT64_C(1000000000) / SETTINGS, &kills);
	for (unsigned i = 0; i < WORKERS; i++)
		client_go(&workers[i]);
	for (unsigned i = 0; i < WORKERS; i++) {
		client_result(&workers[i], &t, sizeof(t));
		client_join(&workers[i]);
		add(&sum, &t);
	}
	dropped = daemon_metric(&d, "blocks_dropped_total");
	printf("race, %s: %llu stored, %llu refused, %llu dropped; %llu hits read, %llu misses, %llu prefixes that shrank; "
	       "%llu clients killed\n",
	       now->name, (unsigned long long)sum.stored, (unsigned long long)sum.refused, (unsigned long long)dropped,
	       (unsigned long long)sum.hits, (unsigned long long)sum.misses, (unsigned long long)sum.vanished,
	       (unsigned long long)kills);
	(void)daemon_await_metric(&d, "sessions", 1);
	must_eq(daemon_metric(&d, "pins"), 0);
	must_cmp(sum.hits, >, 0);
	must_cmp(sum.misses, >, 0);
	must_cmp(dropped, >, 0);
	must_cmp(kills, >, 0);
	daemon_deinit(&d);
}

START_TEST(no_byte_is_wrong)
{
	now = &settings[_i];
	race();
}
END_TEST

int main(void)
{
	Suite *s = suite_create("race");
	TCase *t = tcase_create("race");
	SRunner *sr;
	int failed;

	suite_add_tcase(s, t);
	tcase_set_timeout(t, (double)(race_seconds() + 120));
	tcase_add_loop_test(t, no_byte_is_wrong, 0, SETTINGS);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
