/* SPDX-License-Identifier: Apache-2.0 */
/* info: reports about the daemon, as JSON (metrics: Prometheus text).  Owns nothing; the text goes with the reply.
 *
 * Whoever may connect may ask, but a namespace bound to uids is shown to those and to administrators only: whether a block is there is
 * its tenant's business.  kvbmctl(1) documents the members; they are added to, never renamed.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <kvbm_version.h>

#include "base/assert.h"
#include "base/metrics.h"
#include "server/service.h"
#include "server/session.h"

static void info_count(json_t *object, const char *name, uint64_t value)
{
	json_object_set_new(object, name, json_integer((json_int_t)(value > INT64_MAX ? INT64_MAX : value)));
}

static void info_text(json_t *object, const char *name, const char *text)
{
	json_t *value = json_string(text);

	json_object_set_new(object, name, value ? value : json_string("?")); /* NULL: it is not UTF-8 */
}

static void info_hex(json_t *object, const char *name, const uint8_t *bytes, size_t n)
{
	char text[2 * KEY_MAX + 1];

	assert(n <= KEY_MAX);
	for (size_t i = 0; i < n; i++)
		snprintf(text + 2 * i, 3, "%02x", bytes[i]);
	info_text(object, name, text);
}

static void info_key(json_t *object, const char *name, const struct key *key)
{
	info_hex(object, name, key->bytes, key->len);
}

static void info_hit_rate(json_t *object, uint64_t looked_up, uint64_t hits)
{
	info_count(object, "looked_up", looked_up);
	info_count(object, "hits", hits);
	info_count(object, "misses", looked_up - hits);
	json_object_set_new(object, "hit_rate", looked_up ? json_real((double)hits / (double)looked_up) : json_null());
}

static double info_seconds(uint64_t ns)
{
	return (double)ns / 1e9;
}

/* Takes @value over. */
static int info_reply(struct reply *reply, json_t *value)
{
	char *text = value ? json_dumps(value, JSON_COMPACT | JSON_REAL_PRECISION(12)) : NULL;

	json_decref(value);
	if (!text)
		return error_origin(-ENOMEM);
	kvbm__info_reply__init(&reply->body.info);
	reply->owned = text;
	reply->body.info.json = (ProtobufCBinaryData){ .data = (uint8_t *)text, .len = strlen(text) };
	reply->message.info = &reply->body.info;
	return 0;
}

static bool info_may_see(const struct request *q, const char *ns_name)
{
	return request_is_admin(q) || store_may_use(q->service->store, ns_name, q->session->uid);
}

/* ---- tiers, status ---- */

static json_t *info_tier(const struct service *service)
{
	json_t *tier = json_object();
	struct tier_stat stat;

	service->host->ops->stat(service->host, &stat);
	info_text(tier, "name", "g2");
	info_text(tier, "state", stat.populated_bytes < stat.used_bytes ? "growing" : "ok");
	info_count(tier, "size_bytes", stat.size_bytes);
	info_count(tier, "used_bytes", stat.used_bytes);
	info_count(tier, "touched_bytes", stat.populated_bytes);
	info_count(tier, "slots", metrics_get(METRIC_g2_slots));
	info_count(tier, "free", metrics_get(METRIC_g2_slots_free));
	info_count(tier, "used", metrics_get(METRIC_g2_slots_used));
	info_count(tier, "quarantined", metrics_get(METRIC_g2_slots_quarantined));
	info_count(tier, "regions", stat.regions);
	info_count(tier, "numa_nodes", stat.nodes);
	info_text(tier, "pages", stat.page_kind ? stat.page_kind : "");
	info_text(tier, "note", stat.note ? stat.note : "");
	return tier;
}

/* @paths: as in g3.path. */
static void info_paths(json_t *tier, const char *paths)
{
	json_t *list = json_array();

	for (const char *p = paths ? paths : ""; *p; p += strcspn(p, ","), p += *p == ',')
		json_array_append_new(list, json_stringn(p, strcspn(p, ",")));
	json_object_set_new(tier, "paths", list);
}

static json_t *info_lower(const struct service *service)
{
	json_t *tier = json_object();
	struct tier_lower_stat stat;

	service->lower->ops->stat(service->lower, &stat);
	info_text(tier, "name", "g3");
	info_text(tier, "state", stat.state);
	info_count(tier, "size_bytes", stat.size_bytes);
	info_count(tier, "used_bytes", stat.used_bytes);
	info_count(tier, "slots", metrics_get(METRIC_g3_slots));
	info_count(tier, "free", metrics_get(METRIC_g3_slots_free));
	info_count(tier, "used", metrics_get(METRIC_g3_slots_used));
	info_count(tier, "quarantined", metrics_get(METRIC_g3_slots_quarantined));
	info_count(tier, "drives", stat.drives);
	info_count(tier, "in_flight", stat.in_flight);
	info_count(tier, "queued", stat.queued);
	info_count(tier, "read_bytes", stat.read_bytes);
	info_count(tier, "written_bytes", stat.written_bytes);
	info_count(tier, "written_today_bytes", stat.written_today_bytes);
	info_count(tier, "write_budget_bytes", stat.budget_bytes);
	info_count(tier, "read_bytes_per_second", stat.read_bytes_per_s);
	info_count(tier, "write_bytes_per_second", stat.write_bytes_per_s);
	json_object_set_new(tier, "read_latency_seconds", json_real(info_seconds(stat.read_latency_ns)));
	json_object_set_new(tier, "write_latency_seconds", json_real(info_seconds(stat.write_latency_ns)));
	info_count(tier, "errors", stat.errors);
	info_count(tier, "checksum_errors", metrics_get(METRIC_checksum_errors));
	info_count(tier, "retired", metrics_get(METRIC_g3_slots_retired));
	info_count(tier, "scrubbed", metrics_get(METRIC_blocks_scrubbed));
	info_count(tier, "scrub_errors", metrics_get(METRIC_scrub_errors));
	info_paths(tier, service->lower_paths);
	info_text(tier, "note", stat.note ? stat.note : "");
	return tier;
}

/* What namespaces have in pools on @device. */
static void info_pools(json_t *tier, struct store *store, const char *device)
{
	uint64_t slots = 0, free_slots = 0, used = 0, quarantined = 0, bytes = 0;

	for (uint32_t i = 0; i < store_n_namespaces(store); i++) {
		struct ns_report r;

		store_report(store, i, &r);
		if (!r.device || strcmp(r.device, device) != 0)
			continue;
		slots += r.n_slots;
		free_slots += r.free;
		used += r.used + r.partial;
		quarantined += r.quarantined;
		bytes += r.used_bytes;
	}
	info_count(tier, "pool_bytes", bytes);
	info_count(tier, "slots", slots);
	info_count(tier, "free", free_slots);
	info_count(tier, "used", used);
	info_count(tier, "quarantined", quarantined);
}

static json_t *info_device(const struct service *service, const struct device *d)
{
	json_t *tier = json_object();
	const struct gpu_info *info = device_info(d);
	struct gpu_stat stat;

	device_stat(d, &stat);
	info_text(tier, "name", "g1");
	info_text(tier, "device", info->uuid);
	info_text(tier, "model", info->name);
	info_text(tier, "state", device_state(d));
	info_count(tier, "size_bytes", info->bytes);
	info_count(tier, "used_bytes", stat.device_bytes);
	info_pools(tier, service->store, info->uuid);
	info_count(tier, "in_flight", stat.copies_now);
	info_count(tier, "read_bytes", stat.down_bytes);
	info_count(tier, "written_bytes", stat.up_bytes);
	info_count(tier, "copies", stat.copies);
	info_count(tier, "batched", stat.batches);
	info_count(tier, "kernels", stat.kernels);
	info_count(tier, "losses", stat.losses);
	info_count(tier, "pins_refused", stat.pin_failures);
	info_text(tier, "note", device_why(d));
	return tier;
}

static json_t *info_all_tiers(const struct service *service, const char *name)
{
	json_t *tiers = json_array();

	if (service->devices && (!*name || strcmp(name, "g1") == 0))
		for (uint32_t i = 0; i < devices_n(service->devices); i++)
			json_array_append_new(tiers, info_device(service, devices_at(service->devices, i)));
	if (!*name || strcmp(name, "g2") == 0)
		json_array_append_new(tiers, info_tier(service));
	if (service->lower && (!*name || strcmp(name, "g3") == 0))
		json_array_append_new(tiers, info_lower(service));
	return tiers;
}

static int info_tiers(const struct request *q, const char *name, struct reply *reply)
{
	json_t *tiers;

	store_metrics(q->service->store);
	tiers = info_all_tiers(q->service, name);
	if (json_array_size(tiers) > 0)
		return info_reply(reply, tiers);
	json_decref(tiers);
	reply_fail(reply, REPLY_NOENT, "there is no tier %.63s; there is %sg2%s", name,
	           q->service->devices && devices_n(q->service->devices) > 0 ? "g1, " : "",
	           q->service->lower ? ", g3" : "");
	return 0;
}

/* The first tier that does not do what it is there for. */
static void info_health(json_t *status, const struct service *service)
{
	struct tier_lower_stat stat = { .online = true };
	char text[400];

	if (service->lower)
		service->lower->ops->stat(service->lower, &stat);
	if (stat.online) {
		info_text(status, "health", "ok");
		return;
	}
	snprintf(text, sizeof(text), "g3 is %s%s%.300s", stat.state, stat.note && *stat.note ? ": " : "",
	         stat.note ? stat.note : "");
	info_text(status, "health", text);
}

static int info_status(const struct request *q, struct reply *reply)
{
	static const struct {
		const char *name;
		enum metric metric;
	} counts[] = {
		{ "sessions", METRIC_sessions },      { "namespaces", METRIC_namespaces },
		{ "blocks", METRIC_blocks_resident }, { "stored", METRIC_blocks_stored },
		{ "dropped", METRIC_blocks_dropped }, { "deduplicated", METRIC_blocks_deduplicated },
		{ "leases", METRIC_leases },          { "pins", METRIC_pins },
		{ "requests", METRIC_requests },      { "request_errors", METRIC_request_errors },
	};
	const struct service *service = q->service;
	json_t *status = json_object();
	char boot_id[24];

	store_metrics(service->store);
	snprintf(boot_id, sizeof(boot_id), "%016" PRIx64, service->life->boot_id);
	info_health(status, service);
	info_text(status, "version", KVBM_VERSION);
	info_count(status, "pid", (uint64_t)getpid());
	info_text(status, "socket", service->socket);
	info_text(status, "boot_id", boot_id);
	json_object_set_new(status, "uptime_seconds", json_real(info_seconds(q->now_ns - service->start_ns)));
	for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
		info_count(status, counts[i].name, metrics_get(counts[i].metric));
	info_hit_rate(status, metrics_get(METRIC_blocks_looked_up),
	              metrics_get(METRIC_hits_g2) + metrics_get(METRIC_hits_g3));
	json_object_set_new(status, "tiers", info_all_tiers(service, ""));
	return info_reply(reply, status);
}

static int info_metrics(const struct request *q, struct reply *reply)
{
	size_t size;

	store_metrics(q->service->store);
	size = metrics_render(NULL, 0) + 1024; /* numbers may grow meanwhile: other threads count too */
	reply->owned = malloc(size);
	if (!reply->owned)
		return error_origin(-ENOMEM);
	metrics_render(reply->owned, size);
	kvbm__info_reply__init(&reply->body.info);
	reply->body.info.json = (ProtobufCBinaryData){ .data = (uint8_t *)reply->owned, .len = strlen(reply->owned) };
	reply->message.info = &reply->body.info;
	return 0;
}

/* ---- namespaces ---- */

static void info_model(json_t *object, const struct ns_desc *desc)
{
	info_text(object, "model", desc->model);
	info_text(object, "hash_algo", desc->hash_algo);
	json_object_set_new(object, "salted", json_boolean(desc->salt[0]));
	info_count(object, "num_layers", desc->num_layers);
	info_count(object, "page_size", desc->page_size);
	info_count(object, "inner_dim", desc->inner_dim);
	info_count(object, "outer_dim", desc->outer_dim);
	json_object_set_new(object, "confirm", json_boolean(desc->confirm));
}

static void info_ns_lower(json_t *ns, const struct ns_report *r)
{
	json_t *g3 = json_object();

	info_text(g3, "write", r->write);
	info_count(g3, "slots", r->lower_slots);
	info_count(g3, "free", r->lower_free);
	info_count(g3, "used", r->lower_used);
	info_count(g3, "writing", r->lower_writing);
	info_count(g3, "stuck", r->lower_stuck);
	info_count(g3, "retired", r->lower_retired);
	info_count(g3, "used_bytes", r->lower_bytes);
	info_count(g3, "hits", r->hits_lower);
	info_count(g3, "in_both", r->twins);
	info_count(g3, "copies_under_way", r->transfers);
	info_count(g3, "clean", r->clean);
	info_count(g3, "offloaded", r->offloaded);
	info_count(g3, "onboarded", r->onboarded);
	info_count(g3, "lost", r->lost);
	info_count(g3, "metadata_bytes", r->lower_metadata_bytes);
	json_object_set_new(ns, "g3", g3);
}

static json_t *info_namespace(const struct ns_report *r, bool whole)
{
	json_t *ns = json_object();

	info_text(ns, "name", r->name);
	if (r->device)
		info_text(ns, "device", r->device);
	if (r->offline)
		json_object_set_new(ns, "offline", json_true());
	info_count(ns, "lane_bytes", r->desc->lane_bytes);
	info_count(ns, "lanes", r->desc->lanes);
	info_count(ns, "key_bytes", r->desc->key_bytes);
	info_count(ns, "slots", r->n_slots);
	info_count(ns, "free", r->free);
	info_count(ns, "used", r->used);
	info_count(ns, "writing", r->partial);
	info_count(ns, "quarantined", r->quarantined);
	info_count(ns, "max_slots", r->max_slots);
	if (*r->write) {
		info_count(ns, "g3_max_slots", r->lower_max_slots);
		info_count(ns, "g3_slots", r->lower_slots);
		info_count(ns, "g3_used", r->lower_used);
		info_count(ns, "g3_in_both", r->twins);
		info_count(ns, "g3_writing", r->lower_writing);
		info_count(ns, "g3_draining", r->draining);
	}
	info_count(ns, "used_bytes", r->used_bytes);
	info_count(ns, "share_bytes", r->share_bytes);
	info_count(ns, "max_bytes", r->max_bytes);
	info_count(ns, "sessions", r->holders);
	info_count(ns, "pins", r->pins + r->holds);
	info_hit_rate(ns, r->looked_up, r->hits + r->hits_lower);
	info_count(ns, "stored", r->stored);
	info_count(ns, "dropped", r->dropped);
	info_count(ns, "deduplicated", r->deduplicated);
	info_hex(ns, "fingerprint", r->fingerprint, 16);
	if (!whole)
		return ns;
	info_count(ns, "aborted", r->aborted);
	info_count(ns, "regions", r->regions);
	info_count(ns, "grace", r->grace);
	info_count(ns, "metadata_bytes", r->metadata_bytes);
	if (*r->write)
		info_ns_lower(ns, r);
	info_model(ns, r->desc);
	return ns;
}

static int info_namespaces(const struct request *q, const char *name, struct reply *reply)
{
	struct store *store = q->service->store;
	json_t *list = json_array();

	for (uint32_t i = 0; i < store_n_namespaces(store); i++) {
		struct ns_report report;

		store_report(store, i, &report);
		if ((*name && strcmp(name, report.name) != 0) || !info_may_see(q, report.name))
			continue;
		json_array_append_new(list, info_namespace(&report, *name));
	}
	if (*name && json_array_size(list) == 0) {
		json_decref(list);
		reply_fail(reply, REPLY_NOENT, "there is no namespace %.63s", name);
		return 0;
	}
	return info_reply(reply, list);
}

/* ---- clients ---- */

static json_t *info_client(const struct request *q, const struct session *s, bool whole)
{
	json_t *client = json_object(), *attached = json_array();
	uint64_t looked_up = 0, hits = 0, pins = 0, writing = 0, quarantined = 0;

	for (uint32_t i = 0; i < s->n_holders; i++) {
		struct holder_report r;
		json_t *one;

		if (!s->holders[i])
			continue;
		holder_report(s->holders[i], &r);
		looked_up += r.looked_up;
		hits += r.hits > r.looked_up ? r.looked_up : r.hits;
		pins += r.pins + r.holds;
		writing += r.writing;
		quarantined += r.quarantined;
		if (!whole || !info_may_see(q, r.ns_name))
			continue;
		one = json_object();
		info_text(one, "namespace", r.ns_name);
		if (r.device)
			info_text(one, "device", r.device);
		json_object_set_new(one, "writable", json_boolean(r.writable));
		info_count(one, "writing", r.writing);
		info_count(one, "quarantined", r.quarantined);
		info_count(one, "pins", r.pins);
		info_count(one, "holds", r.holds);
		info_count(one, "looked_up", r.looked_up);
		info_count(one, "hits", r.hits);
		json_array_append_new(attached, one);
	}
	info_count(client, "session", s->id);
	info_text(client, "name", s->name);
	info_count(client, "pid", (uint64_t)s->pid);
	info_count(client, "uid", s->uid);
	info_text(client, "state", sm_name(&s->sm));
	json_object_set_new(client, "connected_seconds", json_real(info_seconds(q->now_ns - s->since_ns)));
	info_count(client, "requests", s->requests);
	info_count(client, "errors", s->errors);
	info_count(client, "namespaces", s->n_holders);
	info_count(client, "writing", writing);
	info_count(client, "quarantined", quarantined);
	info_count(client, "pins", pins);
	info_hit_rate(client, looked_up, hits);
	if (whole)
		json_object_set_new(client, "attached", attached);
	else
		json_decref(attached);
	return client;
}

/* @name: a session's number, or the name of one or more. */
static int info_clients(const struct request *q, const char *name, struct reply *reply)
{
	json_t *list = json_array();
	char number[24];

	list_for_each(it, &q->service->sessions->all) {
		const struct session *s = container_of(it, struct session, link);

		snprintf(number, sizeof(number), "%" PRIu64, s->id);
		if (s->sm.state == SESSION_BURIED || (*name && strcmp(name, s->name) != 0 && strcmp(name, number) != 0))
			continue;
		json_array_append_new(list, info_client(q, s, *name));
	}
	if (*name && json_array_size(list) == 0) {
		json_decref(list);
		reply_fail(reply, REPLY_NOENT, "there is no session with the number or name %.63s", name);
		return 0;
	}
	return info_reply(reply, list);
}

/* ---- blocks ---- */

/* The key of the request, if there is one and its namespace may be seen. */
static bool info_asked_key(const struct request *q, const Kvbm__InfoRequest *m, struct reply *reply, struct key *ret_key)
{
	if (m->key.len < KEY_MIN || m->key.len > KEY_MAX) {
		reply_fail(reply, REPLY_INVAL, "a key has %u to %u bytes, not %zu", KEY_MIN, KEY_MAX, m->key.len);
		return false;
	}
	if (!info_may_see(q, m->name)) {
		reply_fail(reply, REPLY_PERM, "uid %u may not use namespace %.63s", q->session->uid, m->name);
		return false;
	}
	for (uint32_t i = 0; i < store_n_namespaces(q->service->store); i++) {
		struct ns_report report;

		store_report(q->service->store, i, &report);
		if (strcmp(report.name, m->name) != 0)
			continue;
		if (report.desc->key_bytes != m->key.len) {
			reply_fail(reply, REPLY_INVAL, "keys of namespace %.63s have %u bytes, not %zu", m->name,
			           report.desc->key_bytes, m->key.len);
			return false;
		}
		*ret_key = key_from(m->key.data, (uint32_t)m->key.len);
		return true;
	}
	reply_fail(reply, REPLY_NOENT, "there is no namespace %.63s", m->name);
	return false;
}

static void info_block_host(json_t *block, const struct block_report *r)
{
	json_t *children = json_array();

	info_count(block, "slot", r->slot);
	info_count(block, "generation", r->generation);
	info_count(block, "region", r->region);
	info_count(block, "pins", r->pins);
	info_count(block, "holders", r->holders);
	json_object_set_new(block, "has_parent", json_boolean(r->has_parent));
	if (r->parent_present)
		info_key(block, "parent", &r->parent);
	else
		json_object_set_new(block, "parent", json_null());
	info_count(block, "children", r->children);
	for (uint32_t i = 0; i < r->n_child_slots; i++) {
		json_t *child = json_object();

		info_key(child, "key", &r->child_keys[i]);
		info_count(child, "slot", r->child_slots[i]);
		json_array_append_new(children, child);
	}
	json_object_set_new(block, "some_children", children);
}

static json_t *info_tier_names(uint8_t tiers)
{
	json_t *list = json_array();

	if (tiers & STORE_IN_G1)
		json_array_append_new(list, json_string("g1"));
	if (tiers & STORE_IN_G2)
		json_array_append_new(list, json_string("g2"));
	if (tiers & STORE_IN_G3)
		json_array_append_new(list, json_string("g3"));
	return list;
}

/* A block that is only below has no slot, and its kin are not known. */
static json_t *info_block_report(const char *ns_name, const struct block_report *r)
{
	json_t *block = json_object(), *g3;

	info_text(block, "namespace", ns_name);
	info_key(block, "key", &r->key);
	info_text(block, "state", r->state);
	json_object_set_new(block, "tiers", info_tier_names(r->tiers));
	if (r->tiers & STORE_IN_G2)
		info_block_host(block, r);
	else
		json_object_set_new(block, "has_parent", json_boolean(r->has_parent));
	if (!(r->tiers & STORE_IN_G3))
		return block;
	g3 = json_object();
	info_count(g3, "area", r->lower_area);
	info_count(g3, "place", r->lower_place);
	info_count(g3, "reads", r->lower_reads);
	json_object_set_new(block, "g3", g3);
	return block;
}

static int info_block(const struct request *q, const Kvbm__InfoRequest *m, struct reply *reply)
{
	struct block_report r;
	struct key key;

	if (!info_asked_key(q, m, reply, &key))
		return 0;
	if (store_block(q->service->store, m->name, &key, &r) != 0) {
		reply_fail(reply, REPLY_NOENT, "namespace %.63s has no such block", m->name);
		return 0;
	}
	return info_reply(reply, info_block_report(m->name, &r));
}

static const char *info_reason(enum why_reason reason)
{
	static const char *const names[WHY_N] = {
		[WHY_PRESENT] = "present",          [WHY_NEVER_STORED] = "never-stored", [WHY_DROPPED] = "dropped",
		[WHY_FLUSHED] = "flushed",          [WHY_REBALANCED] = "rebalanced",     [WHY_RELEASED] = "released",
		[WHY_ABORTED] = "aborted",          [WHY_OVER_QUOTA] = "over-quota",     [WHY_NO_SPACE] = "no-space",
		[WHY_DROPPED_LOWER] = "dropped-g3", [WHY_TIER_FAILED] = "tier-failed",
	};

	assert(reason < WHY_N && names[reason]);
	return names[reason];
}

static int info_why(const struct request *q, const Kvbm__InfoRequest *m, struct reply *reply)
{
	struct why_answer answer = { 0 };
	struct block_report block = { 0 };
	struct key key;
	json_t *why;

	if (!info_asked_key(q, m, reply, &key))
		return 0;
	if (store_why(q->service->store, m->name, &key, q->now_ns, &answer) != 0) {
		reply_fail(reply, REPLY_NOENT, "there is no namespace %.63s", m->name);
		return 0;
	}
	why = json_object();
	info_text(why, "namespace", m->name);
	info_key(why, "key", &key);
	(void)store_block(q->service->store, m->name, &key, &block); /* NOENT: it is nowhere */
	info_text(why, "reason", info_reason(answer.reason));
	json_object_set_new(why, "tiers", info_tier_names(block.tiers));
	info_text(why, "text", why_text(answer.reason));
	json_object_set_new(why, "ago_seconds", answer.ago_ns ? json_real(info_seconds(answer.ago_ns)) : json_null());
	info_count(why, "misses", answer.misses);
	json_object_set_new(why, "parent_missing", json_boolean(answer.missing_parent));
	json_object_set_new(why, "memory_seconds", json_real(info_seconds(answer.memory_ns)));
	return info_reply(reply, why);
}

int handle_info(const struct request *q, struct reply *reply)
{
	const Kvbm__InfoRequest *m = q->message;

	if (strcmp(m->topic, "metrics") == 0)
		return info_metrics(q, reply);
	if (strcmp(m->topic, "status") == 0)
		return info_status(q, reply);
	if (strcmp(m->topic, "tiers") == 0)
		return info_tiers(q, m->name, reply);
	if (strcmp(m->topic, "namespaces") == 0)
		return info_namespaces(q, m->name, reply);
	if (strcmp(m->topic, "clients") == 0)
		return info_clients(q, m->name, reply);
	if (strcmp(m->topic, "block") == 0)
		return info_block(q, m, reply);
	if (strcmp(m->topic, "why") == 0)
		return info_why(q, m, reply);
	reply_fail(reply, REPLY_INVAL,
	           "topic %.63s is unknown: status, tiers, namespaces, clients, block, why or metrics", m->topic);
	return 0;
}
