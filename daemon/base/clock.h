/* clock.h: the time of this boot, in nanoseconds.
 *
 * Only loop/, gpu/ and the roots (daemon.c, main.c, client programs) may ask: block/ and move/ take the time as an argument,
 * which is what makes the simulator possible.
 */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

#include "base/assert.h"

#define CLOCK_NS_PER_MS UINT64_C(1000000)
#define CLOCK_NS_PER_S UINT64_C(1000000000)

/* CLOCK_MONOTONIC: never goes back, does not count suspended time, starts anew at boot. */
static inline uint64_t clock_now_ns(void)
{
	struct timespec now;
	int r = clock_gettime(CLOCK_MONOTONIC, &now);

	assert(r == 0);
	return (uint64_t)now.tv_sec * CLOCK_NS_PER_S + (uint64_t)now.tv_nsec;
}

#endif
