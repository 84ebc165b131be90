/* simulation.h: a request stream against the daemon's own policy code (daemon/move, daemon/block) and no daemon.
 *
 * Counting rule: a request looks up its blocks in order; the hits are the leading ones that are present; then all its blocks are present
 * and most recently used, tail first.  Of a request with more blocks than the capacity, the head is kept.
 */
#ifndef KVBMCTL_SIMULATION_H
#define KVBMCTL_SIMULATION_H

#include "requests.h"

#define SIMULATION_MAX_CAPACITY 100000000u /* blocks */

struct simulation {
	const struct requests *requests;   /* borrows */
	const struct numbering *numbering; /* borrows; NULL unless release_recall > 0 */
	uint32_t capacity;                 /* blocks, 1..SIMULATION_MAX_CAPACITY */
	double release_recall;             /* 0..1: of blocks that are not used again, the part released by hint */
	uint64_t seed;                     /* of the choice which */
	void (*on_progress)(void *ctx, uint32_t done); /* now and then; may be NULL */
	void *ctx;
};

struct simulation_result {
	uint64_t looked_up, hits, dropped, hinted;
};

/* 0 or -errno. */
int simulation_run(const struct simulation *sim, struct simulation_result *ret_result);

#endif
