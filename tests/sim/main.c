/* SPDX-License-Identifier: Apache-2.0 */
/* The simulator: for each seed a small node of its own, a few hundred random events, and after every event all that must be true.
 *
 *   sim                     $SIM_SEEDS seeds (10000), in two processes
 *   sim --seeds N           as many
 *   sim --seed N [-v]       this one, in this process; -v: each event
 *
 * A seed is deterministic: it gives the same events in every build.  Violated invariants abort; the process that watches the workers
 * tells which seed it was, and goes on behind it.
 */
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "tests/sim/sim.h"

#define SIM_WORKERS 2u
#define SIM_MAX_FAILURES 5u

static const struct {
	const char *name;
	unsigned weight;
	void (*run)(struct sim *w);
} sim_events[] = {
	{ "reserve", 20, sim_reserve },
	{ "commit", 17, sim_commit },
	{ "abort", 3, sim_abort },
	{ "match", 9, sim_match },
	{ "release", 7, sim_release },
	{ "pin", 9, sim_pin },
	{ "unpin", 7, sim_unpin },
	{ "scribble", 2, sim_scribble },
	{ "hostile", 2, sim_hostile },
	{ "hint", 5, sim_hint },
	{ "stat", 2, sim_stat },
	{ "inspect", 3, sim_inspect },
	{ "flush", 1, sim_flush },
	{ "drop", 2, sim_drop },
	{ "remove", 1, sim_remove },
	{ "attach", 6, sim_attach },
	{ "leave", 3, NULL },
	{ "zombie dies", 2, NULL },
	{ "tick", 4, sim_tick },
	{ "fault", 1, sim_fault },
	{ "configure", 1, sim_configure },
	/* without a tier below these do nothing */
	{ "churn", 14, sim_churn },
	{ "onboard", 12, sim_onboard },
	{ "move", 20, sim_move },
	{ "lower fault", 1, sim_lower_fault },
	{ "restart", 1, sim_restart },
};
#define SIM_EVENTS (sizeof(sim_events) / sizeof(*sim_events))

void sim_failed(const struct sim *w, const char *condition, const char *file, int line)
{
	fflush(stdout);
	fprintf(stderr, "%s:%d: seed %llu, event %llu (%s): must be: %s\n", file, line, (unsigned long long)w->seed,
	        (unsigned long long)w->event, w->doing, condition);
	abort();
}

void sim_say(const struct sim *w, const char *format, ...)
{
	va_list args;

	if (!w->verbose)
		return;
	printf("%5llu %-8s ", (unsigned long long)w->event, w->doing);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
}

static void sim_one_event(struct sim *w)
{
	unsigned total = 0, at, i = 0;

	for (size_t k = 0; k < SIM_EVENTS; k++)
		total += sim_events[k].weight;
	at = sim_below(w, total);
	while (at >= sim_events[i].weight)
		at -= sim_events[i++].weight;
	w->doing = sim_events[i].name;
	if (sim_events[i].run) {
		sim_events[i].run(w);
	} else if (strcmp(w->doing, "leave") == 0) {
		struct sim_session *s = sim_session(w, SESSION_OPEN);

		if (s)
			sim_leave(w, s, sim_chance(w, 60));
	} else {
		struct sim_session *s = sim_session(w, SESSION_ZOMBIE);

		if (s)
			sim_zombie_dies(w, s);
	}
	sim_check(w);
}

static void sim_run(uint64_t seed, bool verbose)
{
	struct sim *w = calloc(1, sizeof(*w));

	assert(w);
	w->verbose = verbose;
	sim_world_new(w, seed);
	for (w->event = 1; w->event <= w->n_events; w->event++)
		sim_one_event(w);
	sim_world_free(w);
	free(w);
}

/* ---- worker processes ---- */

struct sim_worker {
	volatile uint64_t seed, passed; /* written by the worker */
	pid_t pid;                      /* and this by who watches */
};

static void worker_start(struct sim_worker *worker, uint64_t from, uint64_t last)
{
	pid_t pid;

	fflush(stdout);
	fflush(stderr);
	worker->seed = from;
	pid = fork();
	assert(pid >= 0);
	if (pid > 0) {
		worker->pid = pid;
		return;
	}
	for (uint64_t seed = from; seed <= last; seed += SIM_WORKERS) {
		worker->seed = seed;
		sim_run(seed, false);
		worker->passed++;
	}
	_exit(0);
}

static int sim_all(uint64_t seeds, const char *program)
{
	struct sim_worker *workers = mmap(NULL, sizeof(*workers) * SIM_WORKERS, PROT_READ | PROT_WRITE,
	                                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	unsigned running = 0;
	uint64_t failed = 0, passed = 0;

	assert(workers != MAP_FAILED);
	for (; running < SIM_WORKERS; running++)
		worker_start(&workers[running], running + 1, seeds);
	while (running > 0) {
		int status;
		pid_t pid = waitpid(-1, &status, 0);
		struct sim_worker *worker = workers;

		assert(pid > 0);
		while (worker->pid != pid)
			worker++;
		running--;
		if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
			continue;
		failed++;
		fprintf(stderr, "seed %llu failed; to see it:  %s --seed %llu -v\n", (unsigned long long)worker->seed,
		        program, (unsigned long long)worker->seed);
		if (failed >= SIM_MAX_FAILURES)
			continue;
		worker_start(worker, worker->seed + SIM_WORKERS, seeds);
		running++;
	}
	for (unsigned i = 0; i < SIM_WORKERS; i++)
		passed += workers[i].passed;
	printf("%llu passed, %llu failed\n", (unsigned long long)passed, (unsigned long long)failed);
	return failed || passed == 0;
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "seed", required_argument, NULL, 's' },
		                                 { "seeds", required_argument, NULL, 'n' },
		                                 { NULL, 0, NULL, 0 } };
	const char *env = getenv("SIM_SEEDS");
	uint64_t seeds = env ? strtoull(env, NULL, 10) : 10000, seed = 0;
	bool verbose = false;
	int c;

	while ((c = getopt_long(argc, argv, "v", options, NULL)) != -1) {
		if (c == 's')
			seed = strtoull(optarg, NULL, 10);
		else if (c == 'n')
			seeds = strtoull(optarg, NULL, 10);
		else if (c == 'v')
			verbose = true;
		else
			return 2;
	}
	log_set_level(verbose ? "info" : "error");
	if (!seed)
		return sim_all(seeds, argv[0]);
	sim_run(seed, verbose);
	printf("1 passed, 0 failed\n");
	return 0;
}
