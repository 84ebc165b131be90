/* mover.h: what copies between host memory and the tier below need from outside of move/: somebody who calculates checksums on
 * another thread.  Loop thread but for mover_sum_of().
 */
#ifndef KVBMD_MOVE_MOVER_H
#define KVBMD_MOVE_MOVER_H

#include <stdint.h>

/* The checksum of one block's payload, bound to its key: XXH3-64 (xxhash.com) of each lane's slice in turn, each seeded with the one before, the first
 * with XXH3-64 of the key.  Never 0, which means "not known". */
struct mover_sum {
	const uint8_t *base; /* lane l's slice is lane_bytes at base + l * lane_area */
	uint64_t lane_area, lane_bytes, seed;
	uint32_t lanes;
	uint64_t sum;           /* out */
	struct mover_sum *next; /* to be calculated along with this one; their cb is not called */
	void (*cb)(struct mover_sum *s);
	_Alignas(16) unsigned char room[128]; /* the calculator's, while it calculates */
};

uint64_t mover_seed(const uint8_t *key, uint32_t key_bytes);

/* Any thread; reads all of the payload. */
uint64_t mover_sum_of(const struct mover_sum *s);

struct mover_calculator {
	/* 0: @s->sum (and those of all that are chained to it) is set and @s->cb called later, on the loop thread, never inline; > 0: too much waits, try again when
	 * something is done. */
	int (*sum)(void *ctx, struct mover_sum *s);
	uint32_t at_once; /* that many are calculated at a time, others wait; > 0 */
	void *ctx;
};

#endif
