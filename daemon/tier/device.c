/* SPDX-License-Identifier: Apache-2.0 */
/* The GPUs of this node, and host memory pinned for them.
 *
 * Owns: the list of devices, their contexts, and a mapping of each host region for pins.
 * Invariant: a region that is here is pinned, or on its way to be, on every device that is in use; a region that is gone keeps
 * its mapping until the last device has let go of it.
 * Deliberately not here: what is copied (server/adoption.c), and what the driver is asked (gpu/).
 *
 * A device: NEW -> USED (device_use) -> closing with all of them.  Online and offline are gpu/'s.
 */
#include "tier/device.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/assert.h"
#include "base/error.h"
#include "base/log.h"
#include "base/thread.h"
#include "tier/region.h"

struct device {
	struct devices *devices; /* borrows */
	struct gpu_info info;
	struct gpu *gpu; /* owns; NULL: not in use */
	uint32_t number;
	struct list users; /* borrows: struct device_user */
	char why[128];
};

struct device_pin {
	struct gpu_pin pin;
	struct device_region *region; /* borrows */
};

/* A region of host memory, for as long as some device may have it pinned. */
struct device_region {
	struct list link;
	const void *key; /* the region's own mapping tells it from others */
	void *base;      /* owns; our mapping */
	uint64_t size;
	uint32_t leaving;                         /* unpins still to be done */
	struct device_pin *pins[GPU_MAX_DEVICES]; /* own; NULL: not pinned there */
};

struct devices {
	struct devices_config config;
	char *which;              /* owns */
	struct gpu_list *listing; /* owns; until it has answered */
	bool known, closing;
	char note[192];
	struct device *all; /* owns */
	uint32_t n;
	struct list regions, gone; /* own: struct device_region */
	uint32_t closing_gpus;
	void (*closed)(void *arg);
	void *closed_arg;
};

/* ---- which there are ---- */

static void region_free(struct device_region *r)
{
	list_del(&r->link);
	for (uint32_t i = 0; i < GPU_MAX_DEVICES; i++)
		free(r->pins[i]);
	free(r);
}

static void region_unmap(struct device_region *r)
{
	munmap(r->base, r->size);
	region_free(r);
}

static bool devices_wants(const struct devices *ds, const char *uuid)
{
	size_t length = strlen(uuid);
	const char *at = ds->which;

	if (strcmp(ds->which, "auto") == 0)
		return true;
	while ((at = strstr(at, uuid))) {
		if ((at == ds->which || at[-1] == ',') && (at[length] == '\0' || at[length] == ','))
			return true;
		at += length;
	}
	return false;
}

static void devices_on_list(void *arg, const struct gpu_info *infos, uint32_t n, const char *note)
{
	struct devices *ds = arg;

	ds->known = true;
	snprintf(ds->note, sizeof(ds->note), "%s", note);
	ds->all = n ? calloc(n, sizeof(*ds->all)) : NULL;
	for (uint32_t i = 0; i < n && ds->all; i++) {
		struct device *d = &ds->all[ds->n];

		if (!devices_wants(ds, infos[i].uuid))
			continue;
		d->devices = ds;
		d->info = infos[i];
		d->number = ds->n++;
		list_init(&d->users);
		log_info("g1: %s, %s%s", infos[i].uuid, infos[i].name,
		         infos[i].mig ? " (a MIG instance: memory is not shared with others)" : "");
	}
	if (n > 0 && !ds->all)
		snprintf(ds->note, sizeof(ds->note), "no memory");
	if (ds->n == 0)
		while (!list_empty(&ds->regions)) /* nobody will want them */
			region_unmap(container_of(list_first(&ds->regions), struct device_region, link));
	if (ds->n == 0)
		log_info("g1: no device: %s", ds->note[0] ? ds->note : "none of those in g1.devices is here");
}

int devices_new(const struct devices_config *config, struct devices **ret_devices)
{
	struct devices *ds = calloc(1, sizeof(*ds));
	int r = 0;

	thread_assert(THREAD_LOOP);
	if (!ds)
		return error_origin(-ENOMEM);
	ds->config = *config;
	list_init(&ds->regions);
	list_init(&ds->gone);
	ds->which = strdup(config->which);
	if (!ds->which)
		r = error_origin(-ENOMEM);
	else if (strcmp(config->which, "none") == 0)
		ds->known = true;
	else
		r = error_trace(gpu_list_start(config->mailbox, devices_on_list, ds, &ds->listing));
	if (r < 0) {
		free(ds->which);
		free(ds);
		return r;
	}
	*ret_devices = ds;
	return 0;
}

bool devices_are_known(const struct devices *ds)
{
	return ds->known;
}

bool devices_may_be(const struct devices *ds)
{
	return !ds->known || ds->n > 0;
}

const char *devices_note(const struct devices *ds)
{
	return ds->note;
}

uint32_t devices_n(const struct devices *ds)
{
	return ds->n;
}

struct device *devices_at(struct devices *ds, uint32_t i)
{
	assert(i < ds->n);
	return &ds->all[i];
}

struct device *devices_find(struct devices *ds, const char *uuid)
{
	for (uint32_t i = 0; i < ds->n; i++)
		if (strcmp(ds->all[i].info.uuid, uuid) == 0)
			return &ds->all[i];
	return NULL;
}

/* ---- host memory ---- */

static void region_pin(struct device_region *r, struct device *d)
{
	struct device_pin *p = calloc(1, sizeof(*p));

	if (!p)
		return; /* copies of its slots are refused */
	p->region = r;
	r->pins[d->number] = p;
	gpu_pin(d->gpu, &p->pin, r->base, r->size);
}

static void region_on_unpinned(struct gpu_pin *pin, int result)
{
	struct device_region *r = container_of(pin, struct device_pin, pin)->region;

	(void)result; /* the device has let go of it, or is no more */
	assert(r->leaving > 0);
	if (--r->leaving == 0)
		region_unmap(r);
}

static struct device_region *region_find(const struct devices *ds, const struct tier_region *region)
{
	list_for_each(it, &ds->regions) {
		struct device_region *r = container_of(it, struct device_region, link);

		if (r->key == region->base)
			return r;
	}
	return NULL;
}

void devices_region_seen(struct devices *ds, const struct tier_region *region)
{
	struct device_region *r;

	thread_assert(THREAD_LOOP);
	if (region->fd < 0 || (ds->known && ds->n == 0))
		return; /* simulated, or nobody will want it */
	r = calloc(1, sizeof(*r));
	if (!r)
		return;
	r->base = region_map(region->fd, region->size, region->huge);
	if (!r->base) {
		log_warn("g1: a region of host memory cannot be mapped for devices: %s", strerror(errno));
		free(r);
		return;
	}
	r->key = region->base;
	r->size = region->size;
	list_add_tail(&ds->regions, &r->link);
	for (uint32_t i = 0; i < ds->n; i++)
		if (ds->all[i].gpu)
			region_pin(r, &ds->all[i]);
}

void devices_region_gone(struct devices *ds, const struct tier_region *region)
{
	struct device_region *r = region_find(ds, region);

	thread_assert(THREAD_LOOP);
	if (!r)
		return;
	list_del(&r->link);
	list_add_tail(&ds->gone, &r->link);
	for (uint32_t i = 0; i < ds->n; i++)
		r->leaving += r->pins[i] != NULL;
	if (r->leaving == 0) {
		region_unmap(r);
		return;
	}
	for (uint32_t i = 0; i < ds->n; i++)
		if (r->pins[i])
			gpu_unpin(ds->all[i].gpu, &r->pins[i]->pin, region_on_unpinned);
}

const struct gpu_pin *device_pin(const struct device *d, const struct tier_region *region)
{
	struct device_region *r = region_find(d->devices, region);

	return r && r->pins[d->number] ? &r->pins[d->number]->pin : NULL;
}

/* ---- a device ---- */

const struct gpu_info *device_info(const struct device *d)
{
	return &d->info;
}

static void device_on_state(void *ctx, bool online, const char *why)
{
	struct device *d = ctx;
	struct list now;
	struct list *it;

	snprintf(d->why, sizeof(d->why), "%s", online ? "" : why);
	if (online)
		log_info("g1: %s is online", d->info.uuid);
	else
		log_warn("g1: %s is offline: %s", d->info.uuid, why);
	list_init(&now);
	list_splice_tail(&now, &d->users);
	while ((it = list_pop(&now))) { /* each may unwatch itself or others */
		struct device_user *user = container_of(it, struct device_user, link);

		list_add_tail(&d->users, &user->link);
		user->on_state(user, online);
	}
}

void device_watch(struct device *d, struct device_user *user)
{
	list_add_tail(&d->users, &user->link);
}

void device_unwatch(struct device_user *user)
{
	list_del(&user->link);
}

struct gpu *device_use(struct device *d)
{
	struct devices *ds = d->devices;
	struct gpu_options options = {
		.loop = ds->config.loop,
		.mailbox = ds->config.mailbox,
		.max_copies = ds->config.max_copies,
		.call_deadline_ns = ds->config.call_deadline_ns,
		.copy_deadline_ns = ds->config.copy_deadline_ns,
		.reprobe_ns = ds->config.reprobe_ns,
		.on_state = device_on_state,
		.ctx = d,
	};

	thread_assert(THREAD_LOOP);
	if (d->gpu || ds->closing)
		return d->gpu;
	memcpy(options.uuid, d->info.uuid, sizeof(options.uuid));
	if (gpu_start(&options, &d->gpu) != 0) {
		d->gpu = NULL;
		return NULL;
	}
	list_for_each(it, &ds->regions)
		region_pin(container_of(it, struct device_region, link), d);
	return d->gpu;
}

bool device_is_online(const struct device *d)
{
	return d->gpu && gpu_is_online(d->gpu);
}

const char *device_why(const struct device *d)
{
	return d->why;
}

const char *device_state(const struct device *d)
{
	return !d->gpu ? "new" : gpu_is_online(d->gpu) ? "online" : "offline";
}

void device_stat(const struct device *d, struct gpu_stat *ret_stat)
{
	if (d->gpu)
		gpu_stat(d->gpu, ret_stat);
	else
		*ret_stat = (struct gpu_stat){ 0 };
}

/* ---- the end ---- */

static void devices_free(struct devices *ds)
{
	void (*closed)(void *arg) = ds->closed;
	void *arg = ds->closed_arg;
	struct list *it;

	/* Pins ended with their devices.  Their memory stays mapped to the end of the process, in case a driver's thread that
	 * hangs in a copy goes on. */
	while ((it = list_first(&ds->regions)) || (it = list_first(&ds->gone)))
		region_free(container_of(it, struct device_region, link));
	free(ds->all);
	free(ds->which);
	free(ds);
	if (closed)
		closed(arg);
}

static void devices_on_gpu_closed(void *arg)
{
	struct devices *ds = arg;

	assert(ds->closing_gpus > 0);
	if (--ds->closing_gpus == 0)
		devices_free(ds);
}

void devices_close(struct devices *ds, void (*closed)(void *arg), void *arg)
{
	thread_assert(THREAD_LOOP);
	assert(!ds->closing);
	ds->closing = true;
	ds->listing = gpu_list_close(ds->listing);
	ds->closed = closed;
	ds->closed_arg = arg;
	ds->closing_gpus = 1; /* ours, so that none ends it before all were asked */
	for (uint32_t i = 0; i < ds->n; i++) {
		if (!ds->all[i].gpu)
			continue;
		assert(list_empty(&ds->all[i].users));
		ds->closing_gpus++;
		gpu_close(ds->all[i].gpu, devices_on_gpu_closed, ds);
	}
	devices_on_gpu_closed(ds);
}
