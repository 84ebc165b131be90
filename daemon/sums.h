/* SPDX-License-Identifier: Apache-2.0 */
/* sums.h: checksums of blocks on the worker threads, for move/, which knows no threads. */
#ifndef KVBMD_SUMS_H
#define KVBMD_SUMS_H

#include "loop/worker.h"
#include "move/mover.h"

/* @pool outlives what uses it. */
struct mover_calculator sums_on(struct worker_pool *pool);

#endif
