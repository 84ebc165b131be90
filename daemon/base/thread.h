/* thread.h: which of the daemon's threads is this, and is it the one that may be here.
 *
 * One thread owns the state (the loop); others take a job and hand back a result.  thread_assert() at the top of a
 * public function says so and checks it.  A thread that never took a role (THREAD_NONE: unit tests, the simulator)
 * satisfies every check, so pure code is tested without ceremony.
 */
#ifndef BASE_THREAD_H
#define BASE_THREAD_H

#include <stdbool.h>

#include "base/assert.h"

enum thread_role {
	THREAD_NONE = 0,
	THREAD_LOOP,
	THREAD_GPU,
	THREAD_WORKER,
};

/* Give the calling thread its role, once and before it does anything else; THREAD_NONE takes it away again. */
void thread_set_role(enum thread_role role);
enum thread_role thread_get_role(void);

/* True if the calling thread has @role or none. */
bool thread_is(enum thread_role role);

#define thread_assert(role) assert(thread_is(role))

#endif
