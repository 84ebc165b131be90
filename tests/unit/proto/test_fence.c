/* SPDX-License-Identifier: Apache-2.0 */
/* The litmus test of the hand-shake: one entry, one pin, one client, one evictor, a million times.
 *
 * Both sides are made of what production is made of (proto/shm.h), in batches of one, which leaves the least time between store and load.
 * A round is stale when the client believes it holds the block and the daemon saw no pin.  With the fences none may be; with either
 * left out some must be, or this test shows nothing and fails.  The two sides meet at the start of each round, and waste a few random
 * cycles, so that stores and loads fall together in every way.
 *
 * ThreadSanitizer: it does not model fences, and under it entries are written in halves; what it does follow is that neither side
 * touches anything without an atomic access.
 */
#include <check.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/rng.h"
#include "proto/shm_pin.h"
#include "tests/lib/cores.h"
#include "tests/lib/must.h"

#define BATCH 512u /* rounds between two reckonings */
#define STAMP 7u
#define ENOUGH_STALE 10u
#define PATIENCE_NS (UINT64_C(20) * 1000000000u) /* on a machine that is busy with other things */

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#define ROUNDS 50000u
#else
#define SANITIZED 0
#define ROUNDS 1000000u
#endif

struct round {
	struct shm_line line;
	_Alignas(64) _Atomic uint32_t pin;
	_Alignas(64) uint8_t found, held; /* client */
	_Alignas(64) uint8_t seen;        /* daemon */
};

struct arena {
	_Alignas(64) _Atomic uint32_t at_client;
	_Alignas(64) _Atomic uint32_t at_daemon;
	_Alignas(64) _Atomic uint32_t stop;
	struct round rounds[BATCH];
};

struct litmus {
	bool client_fence, daemon_fence;
	uint64_t at_least, rounds, missed, shortened, held, pardoned, stale;
};

static struct arena *arena;
static int cpus[2];

/* False: the other one has stopped. */
static bool meet(_Atomic uint32_t *mine, _Atomic uint32_t *other, uint32_t at)
{
	atomic_store_explicit(mine, at, memory_order_release);
	for (uint32_t spins = 1; (int32_t)(atomic_load_explicit(other, memory_order_acquire) - at) < 0; spins++) {
		if (atomic_load_explicit(&arena->stop, memory_order_relaxed))
			return false;
		if (spins % 4096 == 0)
			sched_yield(); /* somebody else has the other core */
	}
	return true;
}

static void dawdle(struct rng *rng)
{
	for (volatile uint32_t n = (uint32_t)rng_below(rng, 16); n > 0; n--)
		;
}

/* ---- the two halves ---- */

static inline __attribute__((always_inline)) void fence(bool on)
{
	if (on)
		shm_fence();
	else
		atomic_signal_fence(memory_order_seq_cst); /* the compiler's order stays */
}

static inline __attribute__((always_inline)) void client_half(struct round *r, bool fenced)
{
	struct shm_entry e = shm_entry_load(&r->line.entries[0]);

	r->found = e.slot != SHM_NO_SLOT;
	r->held = 0;
	if (!r->found)
		return;
	must(shm_pin_raise(&r->pin, STAMP, 1));
	fence(fenced);
	r->held = shm_entry_equal(shm_entry_load(&r->line.entries[0]), e);
}

static inline __attribute__((always_inline)) void daemon_half(struct round *r, bool fenced)
{
	shm_entry_store(&r->line.entries[0], SHM_TOMBSTONE);
	fence(fenced);
	r->seen = (uint8_t)shm_pin_count(shm_pin_load(&r->pin));
}

/* ---- the two sides ---- */

static void client_side(const struct litmus *l)
{
	struct rng rng;
	uint32_t at = 0;

	rng_init(&rng, 1);
	cores_pin(cpus[0]);
	while (meet(&arena->at_client, &arena->at_daemon, ++at)) {
		for (uint32_t i = 0; i < BATCH; i++) {
			if (!meet(&arena->at_client, &arena->at_daemon, ++at))
				return;
			dawdle(&rng);
			if (l->client_fence)
				client_half(&arena->rounds[i], true);
			else
				client_half(&arena->rounds[i], false);
		}
		if (!meet(&arena->at_client, &arena->at_daemon, ++at))
			return;
	}
}

static void reckon(struct litmus *l)
{
	for (uint32_t i = 0; i < BATCH; i++) {
		struct round *r = &arena->rounds[i];

		l->missed += !r->found;
		l->shortened += r->found && !r->held;
		l->held += r->held;
		l->pardoned += r->seen;
		l->stale += r->held && !r->seen;
	}
	l->rounds += BATCH;
}

static void daemon_side(struct litmus *l)
{
	uint64_t start = clock_now_ns();
	struct rng rng;
	uint32_t at = 0;

	rng_init(&rng, 2);
	cores_pin(cpus[1]);
	while (l->rounds < l->at_least && clock_now_ns() - start < PATIENCE_NS) {
		if (!(l->client_fence && l->daemon_fence) && l->stale >= ENOUGH_STALE)
			break;
		for (uint32_t i = 0; i < BATCH; i++) {
			shm_entry_store(&arena->rounds[i].line.entries[0],
			                (struct shm_entry){ .tag = i + 1, .generation = at + 1, .slot = i });
			atomic_store_explicit(&arena->rounds[i].pin, 0, memory_order_relaxed);
		}
		must(meet(&arena->at_daemon, &arena->at_client, ++at));
		for (uint32_t i = 0; i < BATCH; i++) {
			must(meet(&arena->at_daemon, &arena->at_client, ++at));
			dawdle(&rng);
			if (l->daemon_fence)
				daemon_half(&arena->rounds[i], true);
			else
				daemon_half(&arena->rounds[i], false);
		}
		must(meet(&arena->at_daemon, &arena->at_client, ++at));
		reckon(l);
	}
	atomic_store(&arena->stop, 1);
}

static void report(const struct litmus *l, const char *who)
{
	printf("fence: %s, %s: %llu rounds: %llu missed, %llu shortened, %llu held, %llu pardoned, %llu stale\n", who,
	       !l->client_fence   ? "without the client's"
	       : !l->daemon_fence ? "without the daemon's"
	                          : "both fences",
	       (unsigned long long)l->rounds, (unsigned long long)l->missed, (unsigned long long)l->shortened,
	       (unsigned long long)l->held, (unsigned long long)l->pardoned, (unsigned long long)l->stale);
}

static void *client_thread(void *arg)
{
	client_side(arg);
	return NULL;
}

static void arena_reset(void)
{
	memset(arena, 0, sizeof(*arena));
}

static struct litmus run_threads(bool client_fence, bool daemon_fence, uint64_t rounds)
{
	struct litmus l = { .client_fence = client_fence, .daemon_fence = daemon_fence, .at_least = rounds }, ask = l;
	pthread_t thread;

	arena_reset();
	must(pthread_create(&thread, NULL, client_thread, &ask) == 0);
	daemon_side(&l);
	pthread_join(thread, NULL);
	report(&l, "two threads");
	return l;
}

static struct litmus run_processes(bool client_fence, bool daemon_fence, uint64_t rounds)
{
	struct litmus l = { .client_fence = client_fence, .daemon_fence = daemon_fence, .at_least = rounds };
	int status;
	pid_t pid;

	arena_reset();
	pid = fork();
	must(pid >= 0);
	if (pid == 0) {
		must(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
		client_side(&l);
		_exit(0);
	}
	daemon_side(&l);
	must(waitpid(pid, &status, 0) == pid && status == 0);
	report(&l, "two processes");
	return l;
}

static void must_be_tight(struct litmus l)
{
	must_eq(l.stale, 0);
	/* Else they did not meet, and nothing was shown. */
	must_cmp(l.shortened, >, 0);
	must_cmp(l.pardoned, >, 0);
	must_cmp(l.held, >, 0);
}

START_TEST(with_both_fences_nothing_is_stale)
{
	must_be_tight(run_threads(true, true, ROUNDS));
}
END_TEST

START_TEST(nor_between_processes)
{
	must_be_tight(run_processes(true, true, ROUNDS));
}
END_TEST

START_TEST(without_the_clients_fence_rounds_are_stale)
{
	must_cmp(run_threads(false, true, UINT64_MAX).stale, >, 0);
	must_cmp(run_processes(false, true, UINT64_MAX).stale, >, 0);
}
END_TEST

START_TEST(without_the_daemons_fence_rounds_are_stale)
{
	must_cmp(run_threads(true, false, UINT64_MAX).stale, >, 0);
	must_cmp(run_processes(true, false, UINT64_MAX).stale, >, 0);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("fence");
	TCase *t = tcase_create("litmus");
	SRunner *sr;
	int failed;

	if (!cores_find(cpus)) {
		printf("fence: one core: two sides cannot meet here\n");
		return 77;
	}
	arena = mmap(NULL, sizeof(*arena), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	must(arena != MAP_FAILED);
	suite_add_tcase(s, t);
	tcase_set_timeout(t, 120);
	tcase_add_test(t, with_both_fences_nothing_is_stale);
	tcase_add_test(t, nor_between_processes);
	/* Sanitizers put so much between a store and the load after it that it has always left the core. */
	if (!SANITIZED) {
		tcase_add_test(t, without_the_clients_fence_rounds_are_stale);
		tcase_add_test(t, without_the_daemons_fence_rounds_are_stale);
	}
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	munmap(arena, sizeof(*arena));
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
