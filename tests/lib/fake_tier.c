/* SPDX-License-Identifier: Apache-2.0 */
/* A host tier without files.
 *
 * Invariant: used_bytes is the sum of the regions that are out, and never more than size_bytes.
 * Memory is mapped anonymously, so that a large sparse page costs what is touched of it.
 */
#include "fake_tier.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/list.h"

struct fake_tier {
	struct tier tier; /* first */
	uint64_t size_bytes, used_bytes, region_size;
	bool with_memory, with_fds;
	uint32_t n_regions, n_objects;
	uint64_t calls;
	uint64_t fail_from; /* refuse calls fail_from .. fail_from + fail_times - 1; counted from 1 */
	uint32_t fail_times;
};

static struct fake_tier *fake_of(const struct tier *t)
{
	assert(t);
	return (struct fake_tier *)container_of(t, struct fake_tier, tier);
}

static uint64_t grain_up(uint64_t n)
{
	return (n + FAKE_TIER_GRAIN - 1) / FAKE_TIER_GRAIN * FAKE_TIER_GRAIN;
}

/* Counts a call; is it one that has to fail? */
static bool fake_refuses(struct fake_tier *f)
{
	f->calls++;
	if (f->fail_times == 0 || f->calls < f->fail_from)
		return false;
	return f->fail_times == UINT32_MAX || f->calls - f->fail_from < f->fail_times;
}

#define FAKE_HUGE (UINT64_C(16) << 20)

static void *fake_map(uint64_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static void fake_unmap(void *p, uint64_t size)
{
	int r;

	if (!p)
		return;
	r = munmap(p, size);
	assert(r == 0);
}

static int fake_fd(const struct fake_tier *f, int flags)
{
	int fd = f->with_fds ? open("/dev/null", flags | O_CLOEXEC) : -1;

	assert(!f->with_fds || fd >= 0);
	return fd;
}

static void fake_fd_close(int fd)
{
	if (fd >= 0)
		close(fd);
}

static uint64_t fake_grain(struct tier *t)
{
	(void)t;
	return FAKE_TIER_GRAIN;
}

static uint64_t fake_region_size(struct tier *t)
{
	return fake_of(t)->region_size;
}

static uint64_t fake_room(struct tier *t)
{
	struct fake_tier *f = fake_of(t);

	assert(f->used_bytes <= f->size_bytes);
	return f->size_bytes - f->used_bytes;
}

static int fake_region_make(struct tier *t, uint64_t size, uint64_t min_size, uint32_t lanes, uint64_t lane_area,
                            struct tier_region *ret_region)
{
	struct fake_tier *f = fake_of(t);
	uint64_t room = fake_room(t);
	void *base = NULL;

	assert(size > 0 && min_size <= size && ret_region);
	assert(lanes <= TIER_MAX_LANES && (lane_area == 0 || lanes <= grain_up(size) / lane_area));
	if (fake_refuses(f))
		return TIER_E_NOMEM;
	size = grain_up(size);
	if (size > room)
		size = room;
	if (size == 0 || size < min_size)
		return TIER_E_FULL;
	if (f->with_memory && !(base = fake_map(size)))
		return TIER_E_NOMEM;
	f->used_bytes += size;
	f->n_regions++;
	*ret_region = (struct tier_region){ .base = base,
		                            .size = size,
		                            .fd = fake_fd(f, O_RDWR),
		                            .ro_fd = fake_fd(f, O_RDONLY),
		                            .priv = f };
	return 0;
}

static void fake_region_drop(struct tier *t, struct tier_region *region)
{
	struct fake_tier *f = fake_of(t);

	assert(region->priv == f && f->n_regions > 0 && region->size <= f->used_bytes);
	fake_unmap(region->base, region->size);
	fake_fd_close(region->fd);
	fake_fd_close(region->ro_fd);
	f->used_bytes -= region->size;
	f->n_regions--;
	*region = (struct tier_region){ .fd = -1, .ro_fd = -1 };
}

static int fake_object_make(struct tier *t, const char *name, uint64_t size, bool sparse, struct tier_object *ret_object)
{
	struct fake_tier *f = fake_of(t);
	void *base;

	assert(name && size > 0 && ret_object);
	if (fake_refuses(f) || !(base = fake_map(size)))
		return TIER_E_NOMEM;
	if (!sparse && size >= FAKE_HUGE)
		(void)madvise(base, size, MADV_HUGEPAGE); /* as the real one, which does if the system lets it */
	f->n_objects++;
	*ret_object = (struct tier_object){ .base = base,
		                            .size = size,
		                            .fd = fake_fd(f, O_RDWR),
		                            .ro_fd = fake_fd(f, O_RDONLY) };
	return 0;
}

static void fake_object_drop(struct tier *t, struct tier_object *object)
{
	struct fake_tier *f = fake_of(t);

	assert(object->base && f->n_objects > 0);
	fake_unmap(object->base, object->size);
	fake_fd_close(object->fd);
	fake_fd_close(object->ro_fd);
	f->n_objects--;
	*object = (struct tier_object){ .fd = -1, .ro_fd = -1 };
}

static void fake_stat(struct tier *t, struct tier_stat *ret_stat)
{
	struct fake_tier *f = fake_of(t);

	*ret_stat = (struct tier_stat){
		.size_bytes = f->size_bytes,
		.used_bytes = f->used_bytes,
		.populated_bytes = f->size_bytes,
		.regions = f->n_regions,
		.nodes = 1,
		.page_kind = "simulated",
		.note = "",
	};
}

static const struct tier_ops fake_ops = {
	.name = "fake",
	.grain = fake_grain,
	.region_size = fake_region_size,
	.region_make = fake_region_make,
	.region_drop = fake_region_drop,
	.room = fake_room,
	.object_make = fake_object_make,
	.object_drop = fake_object_drop,
	.stat = fake_stat,
};

struct tier *fake_tier_new(uint64_t size_bytes, uint64_t region_size, bool with_memory)
{
	struct fake_tier *f = calloc(1, sizeof(*f));
	uint64_t limit = UINT64_C(1) << 30;

	assert(f);
	f->tier.ops = &fake_ops;
	f->size_bytes = size_bytes / FAKE_TIER_GRAIN * FAKE_TIER_GRAIN;
	f->region_size = grain_up(region_size > 0 ? region_size : f->size_bytes / 64);
	if (f->region_size == 0)
		f->region_size = FAKE_TIER_GRAIN;
	if (region_size == 0 && f->region_size > limit)
		f->region_size = limit;
	f->with_memory = with_memory;
	return &f->tier;
}

void fake_tier_give_fds(struct tier *t)
{
	fake_of(t)->with_fds = true;
}

struct tier *fake_tier_free(struct tier *t)
{
	if (!t)
		return NULL;
	assert(fake_of(t)->n_regions == 0 && fake_of(t)->n_objects == 0 && fake_of(t)->used_bytes == 0);
	free(fake_of(t));
	return NULL;
}

void fake_tier_fail_after(struct tier *t, uint32_t n, uint32_t times)
{
	struct fake_tier *f = fake_of(t);

	assert(n > 0 || times == 0);
	f->fail_from = f->calls + n;
	f->fail_times = times;
}

uint32_t fake_tier_regions(const struct tier *t)
{
	return fake_of(t)->n_regions;
}

uint32_t fake_tier_objects(const struct tier *t)
{
	return fake_of(t)->n_objects;
}

uint64_t fake_tier_calls(const struct tier *t)
{
	return fake_of(t)->calls;
}
