/* SPDX-License-Identifier: Apache-2.0 */
/* crowd.h: client processes that all do the same until they are told to stop, and a test that waits for how much they did.
 *
 * In the child, each unit of work is one byte, crowd_worked(); it goes on while crowd_goes_on().
 */
#ifndef TESTS_LIB_CROWD_H
#define TESTS_LIB_CROWD_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/lib/client_proc.h"

#define CROWD_MAX 16u

struct crowd {
	unsigned n;
	client_main *main;
	void *arg;
	struct client_proc procs[CROWD_MAX];
	uint64_t work[CROWD_MAX]; /* units done by each since it was started */
};

void crowd_start(struct crowd *crowd, unsigned n, client_main *main, void *arg);
/* Waits until together they did @units more. */
void crowd_await(struct crowd *crowd, uint64_t units);
/* Waits until each did @units more. */
void crowd_await_each(struct crowd *crowd, uint64_t units);
/* SIGKILL, reaped, and another one in its place. */
void crowd_replace(struct crowd *crowd, unsigned i);
/* Tells all to stop, and waits until they have ended by themselves. */
void crowd_stop(struct crowd *crowd);

/* ---- in the child ---- */

bool crowd_goes_on(struct client_self *self);
void crowd_worked(struct client_self *self);

#endif
