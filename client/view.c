/* SPDX-License-Identifier: Apache-2.0 */
/* A namespace as one daemon gave it: the mappings of its index, records and our session page, and of regions as they are needed.
 *
 * Invariant: what a mapping is used for lies inside it; the numbers that say so are copied and checked once, in kvbm__view_new().
 * A view is retired when its daemon, or the connection, has gone; it then keeps exactly the regions in which something is held or
 * being written, and goes with the last of them.  Makes no request: verbs.c fetches the descriptors of regions.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/client.h"

/* Not in a child: a forked engine worker must not keep gigabytes of a cache it cannot use. */
static void *view_map(int fd, int prot, size_t least, size_t *ret_size)
{
	struct stat st;
	void *p;

	if (fd < 0 || fstat(fd, &st) != 0 || st.st_size < 0 || (size_t)st.st_size < least || st.st_size == 0)
		return NULL;
	p = mmap(NULL, (size_t)st.st_size, prot, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return NULL;
	(void)madvise(p, (size_t)st.st_size, MADV_DONTFORK);
	*ret_size = (size_t)st.st_size;
	return p;
}

static bool view_header_fits(struct view *v)
{
	const struct shm_ns *s = v->shm;
	uint64_t lines = s->n_lines, offset = s->lines_offset;

	if (s->magic != SHM_MAGIC || s->version != SHM_VERSION || lines == 0 || s->region_shift > 31 ||
	    s->n_regions == 0 || s->n_regions >= CLIENT_REGION_MASK || s->lanes == 0 || s->lanes > KVBM_MAX_LANES ||
	    s->key_bytes < 8 || s->key_bytes > KVBM_KEY_MAX)
		return false;
	if (offset % sizeof(struct shm_line) != 0 || offset > v->shm_size ||
	    lines > (v->shm_size - offset) / sizeof(struct shm_line) ||
	    sizeof(*s) + s->n_regions * sizeof(struct shm_region) > offset)
		return false;
	v->lines = (const struct shm_line *)((const char *)s + offset);
	v->n_lines = lines;
	v->salt[0] = s->salt[0];
	v->salt[1] = s->salt[1];
	v->lane_bytes = s->lane_bytes;
	v->lane_stride = s->lane_stride;
	v->n_slots = s->n_slots;
	v->n_regions = s->n_regions;
	v->shift = s->region_shift;
	v->group_shift = shm_group_shift(v->n_slots);
	v->lanes = s->lanes;
	v->key_bytes = s->key_bytes;
	v->confirm = s->confirm;
	return v->n_slots <= (uint64_t)v->n_regions << v->shift;
}

struct view *kvbm__view_new(const int fds[3], const Kvbm__AttachReply *reply, struct life *life, const char **ret_why)
{
	struct view *v = calloc(1, sizeof(*v));
	bool ok = false;

	*ret_why = v ? "the daemon's index, records or page cannot be mapped" : "out of memory";
	if (v) {
		v->life = life;
		life->refs++;
		v->number = reply->ns;
		v->writable = reply->writable;
		v->max_pins = reply->max_pins;
		v->shm = view_map(fds[0], PROT_READ, sizeof(struct shm_ns), &v->shm_size);
		if (v->shm && view_header_fits(v)) {
			v->records = view_map(fds[1], PROT_READ, v->n_slots * sizeof(struct shm_record), &v->records_size);
			v->page = view_map(fds[2], PROT_READ | PROT_WRITE, shm_page_bytes(v->n_slots), &v->page_size);
			v->regions = calloc(v->n_regions, sizeof(*v->regions));
			ok = v->records && v->page && v->regions;
		} else if (v->shm) {
			*ret_why = "the daemon's index is not one of this version";
		}
	}
	for (unsigned i = 0; i < 3; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	if (!ok) {
		kvbm__view_free(v);
		return NULL;
	}
	return v;
}

void kvbm__region_unmap(struct view_region *r)
{
	if (r->mapping)
		r->unmap(r->mapping);
	else if (r->base)
		munmap(r->base, r->size);
	r->base = r->mapping = NULL;
}

void kvbm__view_free(struct view *v)
{
	if (!v)
		return;
	for (uint32_t i = 0; v->regions && i < v->n_regions; i++)
		kvbm__region_unmap(&v->regions[i]);
	free(v->regions);
	if (v->shm)
		munmap((void *)v->shm, v->shm_size);
	if (v->records)
		munmap((void *)v->records, v->records_size);
	if (v->page)
		munmap(v->page, v->page_size);
	kvbm__life_put(v->life);
	free(v);
}

/* ---- retired views ---- */

/* Unmaps what nothing is used of.  True: nothing is left. */
static bool view_shrink(struct view *v)
{
	bool empty = true;

	for (uint32_t i = 0; i < v->n_regions; i++) {
		struct view_region *r = &v->regions[i];

		if (r->held || r->used)
			empty = false;
		else
			kvbm__region_unmap(r);
	}
	return empty;
}

void kvbm__view_sweep(struct kvbm_ns *ns)
{
	struct view **at = &ns->retired;

	while (*at) {
		struct view *v = *at;

		if (view_shrink(v)) {
			*at = v->next;
			kvbm__view_free(v);
		} else {
			at = &v->next;
		}
	}
}

void kvbm__view_retire(struct kvbm_ns *ns)
{
	struct view *v = ns->view;

	if (!v)
		return;
	ns->view = NULL;
	v->retired = true;
	/* Our page says what we hold.  Reading what we wrote of it is rare: once for each daemon that goes away. */
	if (atomic_load_explicit(&v->page->pinned, memory_order_relaxed) > 0)
		for (uint32_t s = 0; s < v->n_slots; s++)
			v->regions[kvbm__view_region(v, s)].held += shm_pin_count(shm_page_pin(v->page, s, v->group_shift));
	v->next = ns->retired;
	ns->retired = v;
	kvbm__view_sweep(ns);
}

/* ---- spans ---- */

struct view *kvbm__view_retired(struct kvbm_ns *ns, const struct kvbm_span *span)
{
	struct view *v = ns->retired;

	while (v && !kvbm__view_has(v, span))
		v = v->next;
	return v;
}
