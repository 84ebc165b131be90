/* rng.h: a small deterministic generator for tests, workloads and sampling.
 *
 * xoshiro256** seeded through splitmix64 (Blackman and Vigna, prng.di.unimi.it): the same seed gives the same numbers on
 * every machine and in every release.  Not for secrets.  A struct rng belongs to one thread.
 */
#ifndef BASE_RNG_H
#define BASE_RNG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/assert.h"

struct rng {
	uint64_t s[4];
};

/* One step of splitmix64; also a good mixer of a single number. */
static inline uint64_t rng_splitmix(uint64_t *state)
{
	uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

static inline void rng_init(struct rng *rng, uint64_t seed)
{
	for (int i = 0; i < 4; i++)
		rng->s[i] = rng_splitmix(&seed);
}

static inline uint64_t rng_rotl_(uint64_t x, int k)
{
	return (x << k) | (x >> (64 - k));
}

static inline uint64_t rng_next(struct rng *rng)
{
	uint64_t *s = rng->s;
	uint64_t result = rng_rotl_(s[1] * 5, 7) * 9;
	uint64_t t = s[1] << 17;

	s[2] ^= s[0];
	s[3] ^= s[1];
	s[1] ^= s[2];
	s[0] ^= s[3];
	s[2] ^= t;
	s[3] = rng_rotl_(s[3], 45);
	return result;
}

/* Uniform in [0, n), n > 0 (the bias, n / 2^64, is not measurable). */
static inline uint64_t rng_below(struct rng *rng, uint64_t n)
{
	assert(n > 0);
	return (uint64_t)(((unsigned __int128)rng_next(rng) * n) >> 64);
}

/* Uniform in [low, high]. */
static inline uint64_t rng_range(struct rng *rng, uint64_t low, uint64_t high)
{
	assert(low <= high && high - low < UINT64_MAX);
	return low + rng_below(rng, high - low + 1);
}

/* Uniform in [0, 1), 53 bits. */
static inline double rng_double(struct rng *rng)
{
	return (double)(rng_next(rng) >> 11) * 0x1.0p-53;
}

/* True @percent times in a hundred. */
static inline bool rng_chance(struct rng *rng, unsigned percent)
{
	return rng_below(rng, 100) < percent;
}

static inline void rng_fill(struct rng *rng, void *buf, size_t size)
{
	unsigned char *p = (unsigned char *)buf;

	while (size > 0) {
		uint64_t word = rng_next(rng);
		size_t n = size < sizeof(word) ? size : sizeof(word);

		memcpy(p, &word, n);
		p += n;
		size -= n;
	}
}

#endif
