/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses of block bytes: maps a region when one of its blocks is first asked for, and answers from the table after that.
 *
 * A region's serial changes when its memory goes back and is made anew.  That never happens while the caller holds or writes a slot of it,
 * so a mapping of an older serial is one that nobody can be using.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/client.h"

#define HUGE_PAGE ((size_t)2 << 20)

/* Aligned to 2 MiB, so that huge pages behind the descriptor are mapped as such. */
static void *region_mmap(int fd, uint64_t size, int prot, bool huge)
{
	char *base = mmap(NULL, size + HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	size_t skip;
	void *p;

	if (base == MAP_FAILED)
		return NULL;
	skip = (HUGE_PAGE - (uintptr_t)base % HUGE_PAGE) % HUGE_PAGE;
	p = mmap(base + skip, size, prot, MAP_SHARED | MAP_FIXED, fd, 0);
	if (p == MAP_FAILED) {
		munmap(base, size + HUGE_PAGE);
		return NULL;
	}
	if (skip)
		munmap(base, skip);
	munmap(base + skip + size, HUGE_PAGE - skip);
	(void)madvise(p, size, MADV_DONTFORK);
	if (huge) /* for what is not there yet, where we write to it before the daemon has touched it */
		(void)madvise(p, size, MADV_HUGEPAGE);
	return p;
}

static bool region_fits(const struct view *v, const struct shm_region *r, uint64_t size)
{
	uint64_t last = r->n_slots ? (r->n_slots - 1ull) * v->lane_stride : 0;

	return r->size == size && r->n_slots > 0 && r->lane_area <= size / v->lanes && last + v->lane_bytes <= r->lane_area;
}

/* Host memory: what the descriptor shows. */
static int region_map_host(const struct kvbm_ns *ns, const struct shm_region *table, int fd, struct view_region *ret)
{
	struct kvbm *k = ns->kvbm;
	const struct view *v = ns->view;
	struct stat st;

	if (fd < 0 || fstat(fd, &st) != 0)
		return kvbm__fail(k, KVBM_E_PROTO, "the daemon sent no region");
	ret->size = (uint64_t)st.st_size;
	if (!region_fits(v, table, ret->size))
		return kvbm__fail(k, KVBM_E_PROTO, "a region is not what the index says of it");
	ret->base = region_mmap(fd, ret->size, PROT_READ | (v->writable ? PROT_WRITE : 0), k->answer.reply->region->huge);
	if (!ret->base)
		return kvbm__fail(k, KVBM_E_SYS, "a region cannot be mapped: %s", strerror(errno));
	return 0;
}

/* Device memory: the mapper knows how. */
static int region_map_device(const struct kvbm_ns *ns, const struct shm_region *table, int fd,
                             const struct kvbm_mapper *mapper, struct view_region *ret)
{
	struct kvbm *k = ns->kvbm;
	const Kvbm__RegionReply *reply = k->answer.reply->region;
	struct kvbm_device_region region = { .device = ns->model.device,
		                             .size = reply->size,
		                             .writable = ns->view->writable,
		                             .fd = fd };
	char why[256] = "";
	uint64_t base;
	int e;

	if ((reply->handle.len != sizeof(region.handle)) == (fd < 0) || !region_fits(ns->view, table, reply->size))
		return kvbm__fail(k, KVBM_E_PROTO, "a region of device memory is not what the index says of it");
	if (fd < 0)
		memcpy(region.handle, reply->handle.data, sizeof(region.handle));
	e = mapper->map(&region, &base, &ret->mapping, why, sizeof(why));
	if (e < 0)
		return kvbm__fail(k, -e, "a region of %s cannot be opened: %s", ns->model.device, why);
	ret->base = (void *)(uintptr_t)base;
	ret->size = reply->size;
	ret->unmap = mapper->unmap;
	return 0;
}

/* kvbm->lock is held, and the session ready. */
static int region_fetch(struct kvbm_ns *ns, uint32_t index, uint32_t serial, const struct kvbm_mapper *mapper,
                        uint64_t deadline_ns)
{
	struct kvbm *k = ns->kvbm;
	struct view *v = ns->view;
	struct pending what = { .kind = PENDING_CALL, .verb = KVBM__VERB__VERB_REGION, .ns = ns };
	Kvbm__RegionRequest m = KVBM__REGION_REQUEST__INIT;
	const struct shm_region *table = &v->shm->regions[index];
	struct view_region now = { .serial = serial }, *r = &v->regions[index];
	int fd, e;

	m.ns = v->number;
	m.serial = serial;
	e = kvbm__call(k, &what, &m.base, deadline_ns);
	if (e < 0)
		return e;
	fd = kvbm__answer_take_fd(&k->answer, 0);
	if (!k->answer.reply->region)
		e = kvbm__fail(k, KVBM_E_PROTO, "the daemon sent no region");
	else if (mapper)
		e = region_map_device(ns, table, fd, mapper, &now);
	else
		e = region_map_host(ns, table, fd, &now);
	kvbm__answer_drop(&k->answer);
	if (fd >= 0)
		close(fd);
	if (e < 0)
		return e;
	pthread_mutex_lock(&ns->lock);
	kvbm__region_unmap(r);
	now.lane_area = table->lane_area;
	now.used = r->used;
	now.held = r->held;
	*r = now;
	pthread_mutex_unlock(&ns->lock);
	return 0;
}

/* Device memory that the daemon took back, and that others wait for. */
static void region_unmap_stale(struct kvbm_ns *ns)
{
	struct view *v = ns->view;

	pthread_mutex_lock(&ns->lock);
	for (uint32_t i = 0; i < v->n_regions; i++)
		if (v->regions[i].mapping &&
		    v->regions[i].serial != atomic_load_explicit(&v->shm->regions[i].serial, memory_order_relaxed))
			kvbm__region_unmap(&v->regions[i]);
	pthread_mutex_unlock(&ns->lock);
}

/* Maps the region of @span.  0: ask again. */
static int region_map(struct kvbm_ns *ns, const struct kvbm_span *span, const struct kvbm_mapper *mapper)
{
	struct kvbm *k = ns->kvbm;
	uint64_t deadline;
	uint32_t index, serial;
	int r;

	pthread_mutex_lock(&k->lock);
	deadline = kvbm__now_ns() + (uint64_t)k->timeout_ms * 1000000u;
	r = kvbm__ready(k, deadline);
	if (r == 0 && (!ns->view || kvbm__view_of(ns, span) != ns->view))
		r = kvbm__fail(k, KVBM_E_STALE, "the daemon that lent this slot has gone, and its region was not mapped");
	if (r == 0) {
		index = kvbm__view_region(ns->view, span->slot);
		serial = atomic_load_explicit(&ns->view->shm->regions[index].serial, memory_order_acquire);
		if (ns->view->regions[index].base && ns->view->regions[index].serial == serial)
			r = 0; /* another thread was first */
		else if (serial == 0)
			r = kvbm__fail(k, KVBM_E_STALE, "the slot's region is no longer there");
		else
			r = region_fetch(ns, index, serial, mapper, deadline);
		if (r == 0 && mapper)
			region_unmap_stale(ns);
	}
	pthread_mutex_unlock(&k->lock);
	return r;
}

/* NULL with *ret_known: there is no such address; without: its region is not mapped. */
static void *region_address(struct kvbm_ns *ns, const struct kvbm_span *span, uint32_t lane, const char **ret_why)
{
	struct view *v = kvbm__view_of(ns, span);
	const struct view_region *r;

	*ret_why = "the span names no slot of this namespace, or one of a daemon that has gone";
	if (!v || lane >= v->lanes)
		return NULL;
	/* Retired, or to be retired once we notice, by a daemon that lives on: it has forgotten our pins, and may have reused the slot. */
	if ((v->retired || !shm_page_is_live(v->page)) && shm_daemon_alive(v->life->page))
		return NULL;
	if (atomic_load_explicit(&v->records[span->slot].generation, memory_order_relaxed) != span->generation) {
		*ret_why = "the span is stale: its slot holds, or held, another block";
		return NULL;
	}
	r = &v->regions[kvbm__view_region(v, span->slot)];
	if (!v->retired)
		*ret_why = NULL;
	if (!r->base ||
	    (!v->retired && r->serial != atomic_load_explicit(&v->shm->regions[kvbm__view_region(v, span->slot)].serial,
	                                                      memory_order_relaxed)))
		return NULL;
	return (char *)r->base + lane * r->lane_area + span->offset;
}

/* kvbm->error says why not. */
static void *region_refuse(struct kvbm *k, int code, const char *why)
{
	pthread_mutex_lock(&k->lock);
	kvbm__fail(k, code, "%s", why);
	pthread_mutex_unlock(&k->lock);
	return NULL;
}

static void *region_data(struct kvbm_ns *ns, const struct kvbm_span *span, uint32_t lane, const struct kvbm_mapper *mapper)
{
	const char *why = NULL;
	void *p = NULL;

	for (int tries = 0; tries < 2 && !p; tries++) {
		if (tries > 0 && region_map(ns, span, mapper) < 0)
			return NULL;
		pthread_mutex_lock(&ns->lock);
		p = region_address(ns, span, lane, &why);
		pthread_mutex_unlock(&ns->lock);
		if (!p && why)
			return region_refuse(ns->kvbm, KVBM_E_STALE, why);
	}
	return p;
}

void *kvbm_data(struct kvbm_ns *ns, const struct kvbm_span *span, uint32_t lane)
{
	if (kvbm__is_forked(ns->kvbm))
		return NULL;
	if (*ns->model.device)
		return region_refuse(ns->kvbm, KVBM_E_INVAL,
		                     "the block is in device memory: kvbm_cuda_data() of libkvbm-cuda has its address");
	return region_data(ns, span, lane, NULL);
}

int kvbm_device_address(struct kvbm_ns *ns, const struct kvbm_span *span, uint32_t lane,
                        const struct kvbm_mapper *mapper, uint64_t *ret_address)
{
	struct kvbm *k = ns->kvbm;
	void *p;

	if (kvbm__is_forked(k))
		return -KVBM_E_FORKED;
	if (!*ns->model.device) {
		(void)region_refuse(k, KVBM_E_INVAL, "the block is in host memory: kvbm_data() has its address");
		return -KVBM_E_INVAL;
	}
	p = region_data(ns, span, lane, mapper);
	*ret_address = (uintptr_t)p;
	return p ? 0 : -KVBM_E_STALE;
}
