/* SPDX-License-Identifier: Apache-2.0 */
/* handshake.h: the client's look-up against the daemon's eviction, as two threads of one process over the same memory.
 *
 * What runs is kvbm__lookup() and kvbm__unpin() of client/lookup.c, and space_condemn() and space_settle() of move/space.c with all
 * that they call.  In each round the evictor names its next victim, both meet, and then the client looks that very block up and
 * reads it under its pin again and again, while the evictor drops it and, if it may, writes another block into the slot at once.
 * The oracle is the bytes.
 *
 * Programs that include this may have put a broken copy of one side before it; these must see wrong bytes.
 *
 * ThreadSanitizer follows the bytes: written, published by the entry (release), read, let go by the pin word (release), read by the
 * evictor (acquire), written again.  It does not model the fence: see test_fence.c for that.
 */
#ifndef TESTS_CLIENT_HANDSHAKE_H
#define TESTS_CLIENT_HANDSHAKE_H

#include <pthread.h>
#include <sched.h>

#include "base/clock.h"
#include "base/rng.h"
#include "base/thread.h"
#include "client/client.h"
#include "move/store_ns.h"
#include "tests/lib/cores.h"
#include "tests/lib/must.h"
#include "tests/unit/block/fixture.h"

#define SLOTS 4u
#define KEYS 16u
#define WORDS 8u
#define READS 40u /* of one block, while it is held */
/* How many stores clog a side now and then, see race_clog().  The client loads what it has just had; the evictor's load has to
 * leave the core too, and would wait behind more. */
#ifndef CLOG_CLIENT
#define CLOG_CLIENT 32u
#endif
#ifndef CLOG_EVICTOR
#define CLOG_EVICTOR 8u
#endif
#define CLOG_BYTES (UINT64_C(32) << 20)
#define PATIENCE_NS (UINT64_C(15) * 1000000000u)

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

struct race {
	_Alignas(64) _Atomic uint32_t at_client;
	_Alignas(64) _Atomic uint32_t at_daemon;
	_Alignas(64) _Atomic uint32_t stop;
	_Alignas(64) _Atomic uint32_t key; /* of the block that will be dropped */
	struct fixture f;
	struct holder holder;
	struct store store;
	struct view view;
	struct kvbm_ns ns;
	volatile uint64_t bytes[SLOTS][WORDS];
	uint32_t keys[SLOTS]; /* evictor's: what it has put where */
	uint8_t *clog[2];     /* owns; one a side */
	int cpus[2];
	/* results */
	uint64_t rounds, dropped, pardoned; /* evictor */
	uint64_t hits, misses, wrong;       /* client */
};

static struct race race;

static bool race_meet(_Atomic uint32_t *mine, _Atomic uint32_t *other, uint32_t at)
{
	atomic_store_explicit(mine, at, memory_order_release);
	for (uint32_t spins = 1; (int32_t)(atomic_load_explicit(other, memory_order_acquire) - at) < 0; spins++) {
		if (atomic_load_explicit(&race.stop, memory_order_acquire))
			return false;
		if (spins % 4096 == 0)
			sched_yield();
	}
	return true;
}

static void race_dawdle(struct rng *rng, uint32_t most)
{
	for (volatile uint32_t n = (uint32_t)rng_below(rng, most); n > 0; n--)
		;
}

/* Stores leave the core in order: what is stored after these, into memory that is in no cache, waits behind them.  Loads do not. */
static void race_clog(struct rng *rng, volatile uint8_t *memory, uint32_t stores)
{
	if (rng_chance(rng, 50))
		return;
	for (uint32_t n = 0; n < stores; n++)
		memory[rng_below(rng, CLOG_BYTES)]++;
}

/* ---- the client ---- */

static bool client_reads_right(uint32_t slot, uint32_t key)
{
	bool right = true;

	for (uint32_t n = 0; n < READS; n++)
		for (uint32_t w = 0; w < WORDS; w++)
			right &= race.bytes[slot][w] == key;
	return right;
}

/* A slot that got another block under our pin is told by its generation. */
static bool client_lets_go(const struct kvbm_span *span)
{
	if (kvbm__unpin(&race.ns, span, 1) == 1)
		return true;
	shm_pin_lower(&race.holder.page->pins[span->slot]);
	race.holder.page->pinned--;
	return false;
}

static void *race_client(void *arg)
{
	uint8_t key[KEY_MAX];
	struct rng rng;
	uint32_t at = 0;

	rng_init(&rng, 1);
	cores_pin(race.cpus[0]);
	while (race_meet(&race.at_client, &race.at_daemon, ++at)) {
		uint32_t number = atomic_load_explicit(&race.key, memory_order_relaxed);
		struct kvbm_span span;

		fixture_key(number, key);
		race_dawdle(&rng, 8);
		race_clog(&rng, race.clog[0], CLOG_CLIENT);
		if (kvbm__lookup(&race.ns, key, 1, 0, &span) == 1) {
			bool right = client_reads_right(span.slot, number);

			race.hits++;
			race.wrong += !client_lets_go(&span) || !right;
		} else {
			race.misses++;
		}
		if (!race_meet(&race.at_client, &race.at_daemon, ++at))
			break;
	}
	return arg;
}

/* ---- the evictor ---- */

static void race_put(uint32_t key)
{
	uint8_t bytes[KEY_MAX];
	uint32_t slot = fixture_written(&race.holder), canonical;

	for (uint32_t w = 0; w < WORDS; w++)
		race.bytes[slot][w] = key;
	must_eq(block_register(&race.f.ns, slot, fixture_key(key, bytes), NULL, &canonical), 0);
	heat_place(&race.f.ns.heat, slot);
	race.keys[slot] = key;
}

static uint32_t race_new_key(struct rng *rng)
{
	for (;;) {
		uint32_t key = 1 + (uint32_t)rng_below(rng, KEYS);
		bool there = false;

		for (uint32_t s = 0; s < SLOTS; s++)
			there |= race.keys[s] == key;
		if (!there)
			return key;
	}
}

static void race_evictor(uint64_t rounds, bool until_wrong)
{
	uint64_t start = clock_now_ns(), hits = 0;
	uint32_t at = 0, delay = 0;
	struct rng rng;

	rng_init(&rng, 2);
	cores_pin(race.cpus[1]);
	for (; race.rounds < rounds; race.rounds++) {
		uint32_t slot = (uint32_t)rng_below(&rng, SLOTS), kept = 0, fresh = race_new_key(&rng);

		if (race.rounds % 256 == 0 && (clock_now_ns() - start > PATIENCE_NS || (until_wrong && race.wrong > 0)))
			break;
		atomic_store_explicit(&race.key, race.keys[slot], memory_order_relaxed);
		race.holder.page->groups[0] = 0; /* each time the first pin of its group */
		must(race_meet(&race.at_daemon, &race.at_client, ++at));
		race_dawdle(&rng, 2 * delay + 8);
		race_clog(&rng, race.clog[1], CLOG_EVICTOR);
		must_eq(space_condemn(&race.store, &race.f.ns, slot), 0);
		if (space_settle(&race.store, 0, WHY_DROPPED, &kept) == 1) {
			race.dropped++;
			race.keys[slot] = 0;
			race_put(fresh);
		} else {
			must_eq(kept, 1);
			race.pardoned++;
		}
		must(race_meet(&race.at_daemon, &race.at_client, ++at));
		/* To where either may be first. */
		if (race.hits == hits)
			delay += delay < 1000;
		else
			delay -= delay > 0;
		hits = race.hits;
	}
	atomic_store_explicit(&race.stop, 1, memory_order_release);
}

/* ---- all of it ---- */

static void race_open(void)
{
	struct view *v = &race.view;
	struct fixture *f = &race.f;

	for (int i = 0; i < 2; i++) {
		race.clog[i] = malloc(CLOG_BYTES);
		must(race.clog[i]);
		memset(race.clog[i], 1, CLOG_BYTES);
	}
	fixture_open(f, fixture_desc(1, 16), 1, SLOTS);
	fixture_holder(f, &race.holder, true);
	race.holder.page->live = 1;
	for (uint32_t k = 1; k <= SLOTS; k++)
		race_put(k);
	v->epoch = 1;
	v->shm = f->memory.shm;
	v->records = f->memory.records;
	v->page = race.holder.page;
	v->lines = f->ns.index.lines;
	v->n_lines = f->ns.index.n_lines;
	memcpy(v->salt, f->memory.salt, sizeof(v->salt));
	v->lane_bytes = v->lane_stride = FIXTURE_LANE;
	v->n_slots = f->geo.n_regions << f->geo.shift;
	v->n_regions = f->geo.n_regions;
	v->shift = f->geo.shift;
	v->group_shift = f->ns.group_shift;
	v->lanes = 1;
	v->key_bytes = 16;
	race.ns.view = v;
	race.ns.key_bytes = 16;
}

static void race_run(uint64_t rounds, bool until_wrong, const char *what)
{
	pthread_t thread;

	race_open();
	must(pthread_create(&thread, NULL, race_client, NULL) == 0);
	race_evictor(rounds, until_wrong);
	pthread_join(thread, NULL);
	printf("hand-shake, %s: %llu rounds: %llu hits, %llu misses, %llu dropped, %llu pardoned, %llu wrong\n", what,
	       (unsigned long long)race.rounds, (unsigned long long)race.hits, (unsigned long long)race.misses,
	       (unsigned long long)race.dropped, (unsigned long long)race.pardoned, (unsigned long long)race.wrong);
	for (uint32_t s = 0; s < SLOTS; s++)
		must_eq(race.holder.page->pins[s] & SHM_PIN_COUNT_MASK, 0);
	must_eq(race.holder.page->pinned, 0);
	fixture_empty(&race.f);
	fixture_holder_close(&race.holder);
	fixture_close(&race.f);
	free(race.store.victims);
	free(race.clog[0]);
	free(race.clog[1]);
	must_cmp(race.hits, >, 0);
	must_cmp(race.dropped, >, 0);
}

/* For programs in which a part was left out: 0 when wrong bytes were seen.  Two stores out of order are a matter of luck: where they did not
 * happen in time nothing was shown (77); test_fence.c is the sharper test. */
static inline int race_control(const TTest *test, bool luck)
{
	SRunner *sr;
	TCase *t;
	Suite *s;
	int failed;

	if (SANITIZED || !cores_find(race.cpus)) {
		printf("hand-shake: not with one core, nor with a sanitizer's delay between a store and a load\n");
		return 77;
	}
	s = suite_create("handshake");
	t = tcase_create("control");
	suite_add_tcase(s, t);
	tcase_add_test(t, test);
	sr = srunner_create(s);
	srunner_set_fork_status(sr, CK_NOFORK); /* what it saw is asked for here */
	srunner_run_all(sr, CK_SILENT);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	if (failed || (race.wrong == 0 && !luck))
		return EXIT_FAILURE;
	return race.wrong > 0 ? EXIT_SUCCESS : 77;
}

#endif
