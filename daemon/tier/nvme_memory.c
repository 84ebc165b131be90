/* SPDX-License-Identifier: Apache-2.0 */
/* Host memory registered with the ring, so that the kernel need not find and pin its pages for each copy.
 *
 * Invariant: hosts are in the order of their regions' addresses; of each the first n_known buffers are registered.
 * Registering takes the kernel a microsecond for some pages, and far longer for those that are not there yet: what the workers have not touched waits,
 * and then a piece is done each millisecond, until the system refuses.  Copies do not wait for it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/thread.h"
#include "tier/nvme_state.h"

#define CHUNK_MIN (UINT64_C(64) << 20)
#define CHUNK_MAX (UINT64_C(1) << 30)
#define CHUNKS_WANTED 16u
#define TOUCHING_NS (20 * CLOCK_NS_PER_MS) /* then we look again */

/* Where @region is, or would be. */
static uint32_t host_find(const struct nvme *t, const struct tier_region *region)
{
	uint32_t low = 0, high = t->n_hosts;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if ((uintptr_t)t->hosts[middle].region < (uintptr_t)region)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static uint64_t chunk_length(const struct nvme_host *h, uint32_t i)
{
	uint64_t at = (uint64_t)i * h->chunk, rest = h->region->size - at;

	return rest < h->chunk ? rest : h->chunk;
}

static void memory_on_pinning(struct loop_timer *timer)
{
	struct nvme *t = nvme_of_timer(timer);
	bool touching = false;

	for (uint32_t i = 0; i < t->n_hosts && !t->pin_refused; i++) {
		struct nvme_host *h = &t->hosts[i];
		char *base = h->region->base;
		int r;

		if (h->n_known == h->n)
			continue;
		if (h->region->present && !*h->region->present) {
			touching = true;
			continue;
		}
		r = t->ring->ops->buffer_add(t->ring, base + h->n_known * h->chunk, chunk_length(h, h->n_known),
		                             &h->buffers[h->n_known]);
		if (r != 0) {
			t->pin_refused = true; /* tried again when memory goes, or comes */
			return;
		}
		h->n_known++;
		loop_timer_start(&t->pinning.timer, CLOCK_NS_PER_MS, 0, memory_on_pinning);
		return;
	}
	if (touching && !t->pin_refused)
		loop_timer_start(&t->pinning.timer, TOUCHING_NS, 0, memory_on_pinning);
}

static int hosts_grow(struct nvme *t)
{
	uint32_t max = t->hosts_max ? t->hosts_max * 2 : 64;
	struct nvme_host *hosts = realloc(t->hosts, max * sizeof(*hosts));

	if (!hosts)
		return error_origin(-ENOMEM);
	t->hosts = hosts;
	t->hosts_max = max;
	return 0;
}

void nvme_region_seen(struct tier_lower *lower, const struct tier_region *region)
{
	struct nvme *t = nvme_of(lower);
	uint32_t at = host_find(t, region);
	struct nvme_host h = { .region = region };

	thread_assert(THREAD_LOOP);
	assert(region->base && region->size > 0);
	assert(at == t->n_hosts || t->hosts[at].region != region);
	h.chunk = (region->size / CHUNKS_WANTED + NVME_HEAD_BYTES - 1) / NVME_HEAD_BYTES * NVME_HEAD_BYTES;
	h.chunk = h.chunk < CHUNK_MIN ? CHUNK_MIN : h.chunk > CHUNK_MAX ? CHUNK_MAX : h.chunk;
	h.n = (uint32_t)((region->size + h.chunk - 1) / h.chunk);
	h.buffers = calloc(h.n, sizeof(*h.buffers));
	/* Without memory for that it is not registered, and works as well. */
	if (!h.buffers || (t->n_hosts == t->hosts_max && hosts_grow(t) < 0)) {
		free(h.buffers);
		return;
	}
	memmove(&t->hosts[at + 1], &t->hosts[at], (t->n_hosts - at) * sizeof(h));
	t->hosts[at] = h;
	t->n_hosts++;
	t->pin_refused = false;
	if (!loop_timer_is_running(&t->pinning.timer))
		loop_timer_start(&t->pinning.timer, 0, 0, memory_on_pinning);
}

void nvme_region_gone(struct tier_lower *lower, const struct tier_region *region)
{
	struct nvme *t = nvme_of(lower);
	uint32_t at = host_find(t, region);

	thread_assert(THREAD_LOOP);
	if (at == t->n_hosts || t->hosts[at].region != region)
		return;
	for (uint32_t i = 0; i < t->hosts[at].n_known; i++)
		t->ring->ops->buffer_drop(t->ring, t->hosts[at].buffers[i]);
	free(t->hosts[at].buffers);
	t->n_hosts--;
	memmove(&t->hosts[at], &t->hosts[at + 1], (t->n_hosts - at) * sizeof(*t->hosts));
	t->pin_refused = false;
	if (!loop_timer_is_running(&t->pinning.timer))
		loop_timer_start(&t->pinning.timer, 0, 0, memory_on_pinning);
}

uint32_t nvme_buffer_of(const struct nvme *t, const struct tier_region *region, uint64_t offset, uint64_t length)
{
	uint32_t at = host_find(t, region);
	const struct nvme_host *h;
	uint64_t chunk;

	if (at == t->n_hosts || t->hosts[at].region != region)
		return URING_NO_BUFFER;
	h = &t->hosts[at];
	chunk = offset / h->chunk;
	/* What lies across a border is rare, and goes without. */
	if (chunk >= h->n_known || (offset + length - 1) / h->chunk != chunk)
		return URING_NO_BUFFER;
	return h->buffers[chunk];
}

void nvme_memory_free(struct nvme *t)
{
	for (uint32_t i = 0; i < t->n_hosts; i++)
		free(t->hosts[i].buffers);
	free(t->hosts);
	t->hosts = NULL;
	t->n_hosts = t->hosts_max = 0;
}
