/* SPDX-License-Identifier: Apache-2.0 */
/* bench.h: figures, as ratios to a limit that the same program measures in the same minute.
 *
 * A figure is made of rounds: limit, ours, limit, ours, ...  A round lasts some milliseconds and gives one number (usually the median of
 * many calls); the figure's value, limit and ratio are medians over the rounds, and its spread is that of the rounds' ratios,
 * (p90 - p10) / median.  So a slow moment of the machine hits both sides of one ratio, and a disturbed figure is marked as such.
 *
 * Each program asks bench_wanted() which of its figures $BENCH names (nothing: all), and prints one JSON line a figure; run.py shows them
 * as a table.  Nothing here judges times: a program fails only if something broke.
 */
#ifndef TESTS_BENCH_BENCH_H
#define TESTS_BENCH_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/clock.h"
#include "tests/lib/must.h"

#define BENCH_WIDE 0.2 /* a spread beyond it is marked */
#define BENCH_MAX_ROUNDS 101u

/* ---- figures ---- */

enum goal { GOAL_NONE = 0, GOAL_RATIO_AT_MOST, GOAL_RATIO_AT_LEAST, GOAL_VALUE_AT_MOST, GOAL_VALUE_AT_LEAST };

struct figure {
	const char *name;    /* as in the table of goals: "P1" */
	const char *variant; /* what tells it from others of that name */
	const char *unit;    /* of value and limit */
	const char *limit_is;
	const char *placement; /* "one core", "two cores", "free" */
	enum goal goal;
	double bound;
	double value, limit, ratio, spread; /* limit 0: there is none, and no ratio */
	unsigned rounds;
};

/* Reads $BENCH and says on what machine this is, once a run. */
void bench_init(void);
bool bench_wanted(const char *name);
void bench_print(const struct figure *figure);
/* A figure that cannot be had here, or a remark on one. */
void bench_say(const char *name, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* One side of a comparison: runs for about a round and returns its number. */
typedef double bench_round(void *ctx);
/* Fills value, limit, ratio, spread and rounds; one round of each is run before and not counted. */
void bench_compare(struct figure *figure, unsigned rounds, bench_round *limit, bench_round *ours, void *ctx);
/* The same from numbers that were measured elsewhere; @limits may be NULL. */
void bench_from(struct figure *figure, const double *limits, const double *ours, unsigned rounds);

/* ---- samples of one round, in nanoseconds ---- */

struct samples {
	uint32_t *ns; /* owns */
	uint32_t n, cap;
};

void samples_init(struct samples *s, uint32_t cap);
void samples_deinit(struct samples *s);
static inline void samples_clear(struct samples *s)
{
	s->n = 0;
}
/* The last ones are not kept when it is full: a round is short. */
static inline void samples_add(struct samples *s, uint64_t ns)
{
	if (s->n < s->cap)
		s->ns[s->n++] = ns < UINT32_MAX ? (uint32_t)ns : UINT32_MAX;
}
/* In microseconds; sorts. */
double samples_quantile(struct samples *s, double q);
double bench_quantile(double *values, unsigned n, double q);

/* ---- placement ---- */

#define BENCH_ANY_CPU (-1)
unsigned bench_cpus(void);
/* Puts a process with all its threads (0: this one) on the @which-th of the CPUs we may use, or on all of them. */
void bench_place(pid_t pid, int which);
/* Nanoseconds on a CPU, of all threads that a process has, ever. */
uint64_t bench_cpu_ns(pid_t pid);

/* ---- numbers ---- */

static inline uint64_t bench_mix(uint64_t x)
{
	x = (x ^ x >> 33) * UINT64_C(0xff51afd7ed558ccd);
	x = (x ^ x >> 33) * UINT64_C(0xc4ceb9fe1a85ec53);
	return x ^ x >> 33;
}

static inline uint64_t bench_random(uint64_t *state)
{
	*state += UINT64_C(0x9e3779b97f4a7c15);
	return bench_mix(*state);
}

uint64_t bench_available_bytes(void);

#endif
