/* SPDX-License-Identifier: Apache-2.0 */
/* A bump allocator behind protobuf-c's allocator interface.
 *
 * Owns one range of memory, mapped but untouched until used.  Invariant: used <= size.  Frees nothing by piece: protobuf-c
 * frees a field that comes twice, and that costs no more than the bytes of the frame it came in.
 */
#include "server/arena.h"

#include <errno.h>
#include <stdlib.h>

#include "base/assert.h"
#include "base/error.h"

#define ARENA_ALIGN 16u

void *arena_alloc(struct arena *a, size_t size)
{
	size_t need;
	void *p;

	assert(a->used <= a->size);
	if (size > a->size)
		return NULL;
	need = (size + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
	if (need > a->size - a->used)
		return NULL;
	p = a->base + a->used;
	a->used += need;
	return p;
}

static void *arena_on_alloc(void *data, size_t size)
{
	struct arena *a = data;

	return arena_alloc(a, size);
}

static void arena_on_free(void *data, void *p)
{
	(void)data;
	(void)p;
}

int arena_init(struct arena *a, size_t size)
{
	assert(size > 0 && size % ARENA_ALIGN == 0);
	a->base = aligned_alloc(ARENA_ALIGN, size);
	if (!a->base)
		return error_origin(-ENOMEM);
	a->size = size;
	a->used = 0;
	a->allocator = (ProtobufCAllocator){ arena_on_alloc, arena_on_free, a };
	return 0;
}

void arena_deinit(struct arena *a)
{
	free(a->base);
	a->base = NULL;
	a->size = a->used = 0;
}

void arena_reset(struct arena *a)
{
	a->used = 0;
}
