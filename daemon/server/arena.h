/* SPDX-License-Identifier: Apache-2.0 */
/* arena.h: memory for one decoded request, taken once at start.  What a peer sends can make a request fail to decode, never the
 * daemon grow. */
#ifndef KVBMD_SERVER_ARENA_H
#define KVBMD_SERVER_ARENA_H

#include <stddef.h>
#include <stdint.h>

#include "kvbm.pb-c.h"

struct arena {
	uint8_t *base; /* owns */
	size_t size, used;
	ProtobufCAllocator allocator; /* for kvbm__*__unpack(); its free does nothing */
};

/* Faults only: -ENOMEM. */
int arena_init(struct arena *a, size_t size);
void arena_deinit(struct arena *a);

/* Aligned to 16 bytes; NULL: full. */
void *arena_alloc(struct arena *a, size_t size);

/* Everything allocated is gone. */
void arena_reset(struct arena *a);

#endif
