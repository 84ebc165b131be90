/* SPDX-License-Identifier: Apache-2.0 */
/* adopt and disown: what an engine says of its own device memory, checked before anything is asked of the driver.
 *
 * Owns nothing: what it makes goes to adoption.c.  An import is opened by its handle or descriptor alone; whether the planes lie in it
 * is compared here with the size that the client claims, and by gpu/ with what is really there.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "server/adoption.h"
#include "server/session.h"

static bool adopt_counts(const Kvbm__AdoptRequest *m, struct reply *reply)
{
	if (m->n_memories == 0 || m->n_memories > ADOPTION_MAX_MEMORIES)
		reply_fail(reply, REPLY_INVAL, "%zu memories are not in 1..%u", m->n_memories, ADOPTION_MAX_MEMORIES);
	else if (m->n_planes == 0 || m->n_planes > LAYOUT_MAX_PLANES)
		reply_fail(reply, REPLY_INVAL, "%zu planes are not in 1..%u", m->n_planes, LAYOUT_MAX_PLANES);
	else if (m->n_extents > LAYOUT_MAX_DIMS || m->n_strides != m->n_extents)
		reply_fail(reply, REPLY_INVAL, "%zu extents and %zu strides: as many of each, at most %u", m->n_extents,
		           m->n_strides, LAYOUT_MAX_DIMS);
	else if (m->n_events > ADOPTION_MAX_EVENTS)
		reply_fail(reply, REPLY_INVAL, "%zu events, at most %u are possible", m->n_events, ADOPTION_MAX_EVENTS);
	else if (m->n_blocks == 0 || m->n_blocks > UINT32_MAX)
		reply_fail(reply, REPLY_INVAL, "%" PRIu64 " blocks are not in 1..2^32-1", m->n_blocks);
	return reply->code == REPLY_OK;
}

/* Does every plane lie in its memory? */
static bool adopt_layout(const Kvbm__AdoptRequest *m, uint64_t lane_bytes, struct layout *ret, struct reply *reply)
{
	uint64_t reach;

	*ret = (struct layout){ .planes = (uint32_t)m->n_planes,
		                .n_dims = (uint32_t)m->n_extents,
		                .run_bytes = m->run_bytes,
		                .block_stride = m->block_stride };
	for (size_t i = 0; i < m->n_extents; i++)
		ret->dims[i] = (struct layout_dim){ .extent = m->extents[i], .stride = m->strides[i] };
	if (layout_check(ret, m->n_blocks, &reach) != 0) {
		reply_fail(reply, REPLY_INVAL, "the layout describes no memory, or too many pieces");
		return false;
	}
	if (layout_block_bytes(ret) != lane_bytes) {
		reply_fail(reply, REPLY_INVAL, "a block of that layout has %" PRIu64 " bytes, a lane's slice %" PRIu64,
		           layout_block_bytes(ret), lane_bytes);
		return false;
	}
	for (size_t i = 0; i < m->n_planes; i++) {
		const Kvbm__AdoptPlane *p = m->planes[i];

		if (p->memory >= m->n_memories || p->offset > m->memories[p->memory]->bytes ||
		    reach > m->memories[p->memory]->bytes - p->offset) {
			reply_fail(reply, REPLY_INVAL,
			           "plane %zu does not lie in its memory: %" PRIu64 " bytes from %" PRIu64 " of memory %u",
			           i, reach, p->offset, p->memory);
			return false;
		}
	}
	return true;
}

static bool adopt_handles(const struct request *q, const Kvbm__AdoptRequest *m, struct reply *reply)
{
	unsigned n_fds = 0;

	for (size_t i = 0; i < m->n_memories; i++) {
		if (m->memories[i]->handle.len == 0)
			n_fds++;
		else if (m->memories[i]->handle.len != GPU_HANDLE_BYTES)
			reply_fail(reply, REPLY_INVAL, "the handle of memory %zu has %zu bytes, not %u", i,
			           m->memories[i]->handle.len, GPU_HANDLE_BYTES);
	}
	for (size_t i = 0; i < m->n_events; i++)
		if (m->events[i].len != GPU_HANDLE_BYTES)
			reply_fail(reply, REPLY_INVAL, "the handle of event %zu has %zu bytes, not %u", i,
			           m->events[i].len, GPU_HANDLE_BYTES);
	if (reply->code == REPLY_OK && n_fds != q->frame->n_fds)
		reply_fail(reply, REPLY_INVAL, "%u memories without a handle, but %u descriptors", n_fds, q->frame->n_fds);
	return reply->code == REPLY_OK;
}

static struct device *adopt_device(const struct request *q, const char *uuid, struct reply *reply)
{
	struct devices *ds = q->service->devices;
	struct device *d = ds ? devices_find(ds, uuid) : NULL;

	if (!d && ds && !devices_are_known(ds))
		reply_fail(reply, REPLY_BUSY, "the driver has not said yet which devices there are");
	else if (!d)
		reply_fail(reply, REPLY_NOENT, "there is no device %.63s here%s%s", uuid,
		           ds && *devices_note(ds) ? ": " : "", ds ? devices_note(ds) : "");
	else if (!device_use(d))
		reply_fail(reply, REPLY_NOENT, "device %s cannot be used by this build", uuid), d = NULL;
	return d;
}

/* The adoption with all that the request said; NULL: out of memory or descriptors. */
static struct adoption *adoption_new(const struct request *q, const Kvbm__AdoptRequest *m)
{
	struct adoption *a = calloc(1, sizeof(*a));
	unsigned n_fds = 0;

	if (!a)
		return NULL;
	a->service = q->service;
	list_init(&a->jobs);
	a->lane = m->lane;
	a->n_blocks = m->n_blocks;
	a->planes = calloc(m->n_planes, sizeof(*a->planes));
	a->memories = calloc(m->n_memories, sizeof(*a->memories));
	a->events = calloc(m->n_events + 1, sizeof(*a->events));
	if (!a->planes || !a->memories || !a->events ||
	    q->service->host->ops->object_make(q->service->host, "kvbmd-flags", ADOPTION_FLAGS * sizeof(uint64_t), true,
	                                       &a->flags) != 0) {
		adoption_free(a);
		return NULL;
	}
	a->n_memories = (uint32_t)m->n_memories;
	a->n_events = (uint32_t)m->n_events;
	for (size_t i = 0; i < m->n_memories; i++) {
		struct gpu_mem *mem = &a->memories[i].mem;

		a->memories[i].adoption = a;
		mem->bytes = m->memories[i]->bytes;
		mem->fd = -1;
		mem->share = m->memories[i]->handle.len ? GPU_SHARE_HANDLE : GPU_SHARE_FD;
		if (mem->share == GPU_SHARE_HANDLE)
			memcpy(mem->handle, m->memories[i]->handle.data, GPU_HANDLE_BYTES);
		else
			mem->fd = fcntl(q->frame->fds[n_fds++], F_DUPFD_CLOEXEC, 3); /* -1: the import says so */
	}
	for (size_t i = 0; i < m->n_planes; i++)
		a->planes[i] = (struct gpu_plane){ .mem = &a->memories[m->planes[i]->memory].mem,
			                           .offset = m->planes[i]->offset };
	for (size_t i = 0; i < m->n_events; i++) {
		a->events[i].adoption = a;
		memcpy(a->events[i].event.handle, m->events[i].data, GPU_HANDLE_BYTES);
	}
	return a;
}

/* A number no other one of the session has; 0: it has too many. */
static uint32_t adopt_number(const struct request *q)
{
	uint32_t n = 0, last = 0;

	list_for_each(it, &q->service->adoptions) {
		const struct adoption *a = container_of(it, struct adoption, link);

		if (a->session != q->session)
			continue;
		n++;
		last = a->id > last ? a->id : last;
	}
	return n < ADOPTION_MAX ? last + 1 : 0;
}

int handle_adopt(const struct request *q, struct reply *reply)
{
	const Kvbm__AdoptRequest *m = q->message;
	struct store_objects objects;
	struct layout layout;
	struct adoption *a;
	struct device *d;
	struct holder *h;
	uint32_t id = adopt_number(q);
	int r;

	if (!request_holder(q, m->ns, reply, &h, NULL) || !adopt_counts(m, reply) || !adopt_handles(q, m, reply))
		return 0;
	if (holder_device(h)) {
		reply_fail(reply, REPLY_INVAL,
		           "an engine's memory is copied to and from host memory: name the namespace, not its pool");
		return 0;
	}
	holder_objects(h, &objects);
	if (m->lane >= objects.lanes) {
		reply_fail(reply, REPLY_INVAL, "lane %u, of %u", m->lane, objects.lanes);
		return 0;
	}
	if (!adopt_layout(m, objects.lane_bytes, &layout, reply) || !later_may(q, reply))
		return 0;
	if (id == 0) {
		reply_fail(reply, REPLY_LIMIT, "a session adopts at most %u times", ADOPTION_MAX);
		return 0;
	}
	d = adopt_device(q, m->device, reply);
	if (!d)
		return 0;
	a = adoption_new(q, m);
	if (!a)
		return error_origin(-ENOMEM);
	a->id = id;
	a->device = d;
	a->layout = layout;
	/* Bounded by what requests may wait at a time, and by what one may name. */
	a->user = (struct quota_user){ .session.limit = { UINT64_MAX, UINT64_MAX, UINT64_MAX }, .pin_limit = UINT64_MAX };
	r = store_attach_beside(h, &a->user, &a->holder);
	if (r != 0) {
		a->holder = NULL;
		adoption_free(a);
		if (r < 0)
			return error_trace(r);
		reply_fail_store(reply, r, "adopt");
		return 0;
	}
	adoption_start(a, q, reply);
	return 0;
}

int handle_disown(const struct request *q, struct reply *reply)
{
	const Kvbm__DisownRequest *m = q->message;
	struct adoption *a = adoption_find(q, m->id);

	if (!a)
		reply_fail(reply, REPLY_NOENT, "adoption %u is not of this session", m->id);
	else
		adoption_close(a);
	return 0;
}
