/* The oracle computes eight bytes from their place, so that filling and checking need no memory but the slice itself. */
#include "oracle.h"

#include <string.h>

#include "base/rng.h"

#define ORACLE_STEP UINT64_C(0xa0761d6478bd642f)
#define ORACLE_XOR UINT64_C(0xe7037ed1a0b428db)
#define ORACLE_GROUP 64u /* words that are compared before anything is decided */

static inline uint64_t oracle_mix(uint64_t a, uint64_t b)
{
	unsigned __int128 product = (unsigned __int128)a * b;

	return (uint64_t)(product >> 64) ^ (uint64_t)product;
}

static inline uint64_t oracle_word(uint64_t seed, uint64_t i)
{
	uint64_t s = seed + (i + 1) * ORACLE_STEP;

	return oracle_mix(s, s ^ ORACLE_XOR);
}

void oracle_key(uint64_t id, uint8_t ret_key[ORACLE_KEY_BYTES])
{
	uint64_t state = id, words[2];

	words[0] = rng_splitmix(&state); /* a bijection of the id */
	words[1] = rng_splitmix(&state) | 1;
	memcpy(ret_key, words, ORACLE_KEY_BYTES);
}

uint64_t oracle_seed(const char *ns_name, const void *key, size_t key_bytes, uint32_t lane)
{
	uint64_t seed = ORACLE_XOR ^ lane, word;
	const uint8_t *p = key;

	for (const char *c = ns_name; *c; c++)
		seed = oracle_mix(seed ^ (uint8_t)*c, ORACLE_STEP);
	while (key_bytes > 0) {
		size_t n = key_bytes < sizeof(word) ? key_bytes : sizeof(word);

		word = 0;
		memcpy(&word, p, n);
		seed = oracle_mix(seed ^ word, ORACLE_STEP) + rng_splitmix(&word);
		p += n;
		key_bytes -= n;
	}
	word = (uint64_t)lane + 1;
	return seed ^ rng_splitmix(&word);
}

void oracle_fill(void *data, size_t size, uint64_t seed)
{
	uint8_t *p = data;
	size_t n = size / 8;
	uint64_t word;

	for (size_t i = 0; i < n; i++) {
		word = oracle_word(seed, i);
		memcpy(p + i * 8, &word, 8);
	}
	if (size % 8) {
		word = oracle_word(seed, n);
		memcpy(p + n * 8, &word, size % 8);
	}
}

/* Byte by byte, where something is known to be wrong. */
static uint64_t oracle_count(const uint8_t *p, size_t from, size_t to, uint64_t seed, size_t *first)
{
	uint64_t wrong = 0;

	for (size_t i = from; i < to; i++) {
		uint64_t word = oracle_word(seed, i / 8);

		if (p[i] == ((const uint8_t *)&word)[i % 8])
			continue;
		if (*first == SIZE_MAX)
			*first = i;
		wrong++;
	}
	return wrong;
}

uint64_t oracle_check(const void *data, size_t size, uint64_t seed, size_t *ret_first)
{
	const uint8_t *p = data;
	size_t n = size / 8, i = 0, first = SIZE_MAX;
	uint64_t wrong = 0;

	while (i < n) {
		size_t end = n - i < ORACLE_GROUP ? n : i + ORACLE_GROUP, from = i;
		uint64_t different = 0, word;

		for (; i < end; i++) {
			memcpy(&word, p + i * 8, 8);
			different |= word ^ oracle_word(seed, i);
		}
		if (different)
			wrong += oracle_count(p, from * 8, end * 8, seed, &first);
	}
	wrong += oracle_count(p, n * 8, size, seed, &first);
	if (wrong && ret_first)
		*ret_first = first;
	return wrong;
}
