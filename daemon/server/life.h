/* SPDX-License-Identifier: Apache-2.0 */
/* life.h: the page by which clients see, without a system call, that the daemon is gone (struct shm_life).
 *
 * Made and freed by the thread whose end means the daemon's end: the loop thread. */
#ifndef KVBMD_SERVER_LIFE_H
#define KVBMD_SERVER_LIFE_H

#include <stdint.h>

#include "base/error.h"
#include "proto/shm.h"

struct life {
	struct shm_life *page; /* owns the mapping */
	int fd;                /* owns */
	int ro_fd;             /* owns; what clients are sent */
	uint64_t boot_id;      /* random, not 0 */
};

/* Faults only. */
_must_check_ int life_init(struct life *life);
/* Clients see a dead daemon from here on.  Harmless on a zeroed struct. */
void life_deinit(struct life *life);

#endif
