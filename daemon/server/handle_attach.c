/* SPDX-License-Identifier: Apache-2.0 */
/* attach and region: how a session gets to a namespace and to its memory.
 *
 * Owns nothing.  A description is checked here, in full and by name, so that the store sees only ones that make sense.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "server/service.h"
#include "server/session.h"

#define LANE_BYTES_MAX (UINT64_C(1) << 36)

static bool name_is_valid(const char *name)
{
	size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/:-");

	return n > 0 && n <= 63 && name[n] == '\0';
}

static bool text_take(const char *from, char *to, size_t size, const char *field, struct reply *reply)
{
	if (strlen(from) >= size) {
		reply_fail(reply, REPLY_INVAL, "%s is longer than %zu bytes", field, size - 1);
		return false;
	}
	memset(to, 0, size); /* all of it goes into the fingerprint */
	strcpy(to, from);
	return true;
}

static uint32_t dtype_bytes(uint32_t dtype)
{
	switch (dtype) {
	case KVBM_DTYPE_FP32:
		return 4;
	case KVBM_DTYPE_FP8_E4M3:
	case KVBM_DTYPE_FP8_E5M2:
	case KVBM_DTYPE_INT8:
		return 1;
	default:
		return 2;
	}
}

static uint32_t or_default(uint32_t value, uint32_t otherwise)
{
	return value ? value : otherwise;
}

/* The numbers, with the defaults of kvbm.h for those a client left out. */
static bool desc_take_numbers(const Kvbm__AttachRequest *m, struct ns_desc *d, struct reply *reply)
{
	d->num_layers = m->num_layers;
	d->inner_dim = m->inner_dim;
	d->page_size = or_default(m->page_size, 16);
	d->outer_dim = or_default(m->outer_dim, 2);
	d->dtype = or_default(m->dtype, KVBM_DTYPE_BF16);
	d->layout = or_default(m->layout, KVBM_LAYOUT_FULLY_CONTIGUOUS);
	d->lanes = or_default(m->lanes, 1);
	d->key_bytes = or_default(m->key_bytes, 16);
	d->confirm = m->flags & KVBM_NS_CONFIRM;
	if (d->dtype > KVBM_DTYPE_INT8)
		reply_fail(reply, REPLY_INVAL, "dtype %u is unknown", d->dtype);
	else if (d->layout > KVBM_LAYOUT_LAYER_SEPARATE_BLOCK)
		reply_fail(reply, REPLY_INVAL, "layout %u is unknown", d->layout);
	else if (d->lanes > KVBM_MAX_LANES)
		reply_fail(reply, REPLY_INVAL, "%u lanes, at most %u are possible", d->lanes, KVBM_MAX_LANES);
	else if (d->key_bytes < KEY_MIN || d->key_bytes > KEY_MAX)
		reply_fail(reply, REPLY_INVAL, "key_bytes %u is not in %u..%u", d->key_bytes, KEY_MIN, KEY_MAX);
	else if (m->flags & ~(KVBM_NS_CONFIRM | KVBM_NS_READONLY))
		reply_fail(reply, REPLY_INVAL, "flags 0x%x has bits unknown to this daemon", m->flags);
	return reply->code == REPLY_OK;
}

/* Bytes of one lane's slice: as said, or as follows from the shape; both must agree. */
static bool desc_take_size(const Kvbm__AttachRequest *m, struct ns_desc *d, struct reply *reply)
{
	uint64_t bytes = dtype_bytes(d->dtype);
	const uint32_t factors[] = { d->num_layers, d->outer_dim, d->page_size, d->inner_dim };

	if (d->num_layers == 0) {
		bytes = m->block_bytes;
	} else {
		for (size_t i = 0; i < sizeof(factors) / sizeof(factors[0]); i++)
			if (__builtin_mul_overflow(bytes, (uint64_t)factors[i], &bytes))
				bytes = UINT64_MAX, i = sizeof(factors) / sizeof(factors[0]);
		if (m->block_bytes && m->block_bytes != bytes) {
			reply_fail(reply, REPLY_INVAL,
			           "block_bytes is %" PRIu64 ", but layers, pages and dtype make %" PRIu64,
			           m->block_bytes, bytes);
			return false;
		}
	}
	if (bytes == 0 || bytes > LANE_BYTES_MAX) {
		reply_fail(reply, REPLY_INVAL, "a lane's slice of %" PRIu64 " bytes is not in 1..2^36", bytes);
		return false;
	}
	d->lane_bytes = bytes;
	return true;
}

static bool desc_take(const Kvbm__AttachRequest *m, struct ns_desc *d, struct reply *reply)
{
	memset(d, 0, sizeof(*d)); /* padding too */
	if (!name_is_valid(m->name)) {
		reply_fail(reply, REPLY_INVAL, "the namespace's name must be 1..63 of [A-Za-z0-9._/:-]");
		return false;
	}
	return text_take(m->name, d->name, sizeof(d->name), "name", reply) &&
	       text_take(m->model, d->model, sizeof(d->model), "model", reply) &&
	       text_take(m->hash_algo, d->hash_algo, sizeof(d->hash_algo), "hash_algo", reply) &&
	       text_take(m->salt, d->salt, sizeof(d->salt), "salt", reply) && desc_take_numbers(m, d, reply) &&
	       desc_take_size(m, d, reply);
}

static void fingerprint_text(const uint8_t fingerprint[16], char ret_text[33])
{
	for (int i = 0; i < 16; i++)
		snprintf(ret_text + (size_t)i * 2, 3, "%02x", fingerprint[i]);
}

/* Which devices there are takes the driver a moment. */
static void attach_fail_device(const struct request *q, const char *name, int r, struct reply *reply)
{
	bool known = !q->service->pools_are_made || *q->service->pools_are_made;

	if (r == STORE_E_NOENT && known)
		reply_fail(reply, REPLY_NOENT,
		           "namespace %s: there are no pools on a device of that name (g1.size, g1.devices)", name);
	else
		reply_fail(reply, REPLY_BUSY, "namespace %s: its device is %s", name,
		           r == STORE_E_NOENT ? "not known yet" : "offline for now");
}

static void attach_fail(struct reply *reply, int r, const char *name, const uint8_t have[16], const uint8_t want[16])
{
	char have_text[33], want_text[33];

	if (r == STORE_E_MISMATCH) {
		fingerprint_text(have, have_text);
		fingerprint_text(want, want_text);
		reply_fail(reply, REPLY_MISMATCH, "namespace %s exists with fingerprint %s, yours is %s", name,
		           have_text, want_text);
	} else if (r == STORE_E_NOSPACE) {
		reply_fail(reply, REPLY_NOSPACE, "namespace %s: the pool has no room for its blocks or its index", name);
	} else {
		reply_fail_store(reply, r, name);
	}
}

int handle_attach(const struct request *q, struct reply *reply)
{
	const Kvbm__AttachRequest *m = q->message;
	Kvbm__AttachReply *body = &reply->body.attach;
	struct store_objects objects;
	struct ns_desc desc;
	struct holder *h;
	uint8_t have[16] = { 0 }, want[16] = { 0 };
	int r;

	if (!desc_take(m, &desc, reply))
		return 0;
	if (!session_has_room(q->session)) {
		reply_fail(reply, REPLY_LIMIT, "a session attaches to at most %u namespaces", SESSION_MAX_NAMESPACES);
		return 0;
	}
	r = store_attach(q->service->store,
	                 &(struct store_attach){ .desc = &desc,
	                                         .device = *m->device ? m->device : NULL,
	                                         .uid = q->session->uid,
	                                         .readonly = m->flags & KVBM_NS_READONLY,
	                                         .user = &q->session->quota,
	                                         .owner = q->session },
	                 &h, have, want);
	if (r < 0)
		return error_trace(r);
	if (r == STORE_E_NOENT || r == STORE_E_OFFLINE) {
		attach_fail_device(q, desc.name, r, reply);
		return 0;
	}
	if (r > 0) {
		attach_fail(reply, r, desc.name, have, want);
		return 0;
	}
	holder_objects(h, &objects);
	if (!reply_add_fd(reply, objects.index_ro_fd) || !reply_add_fd(reply, objects.records_ro_fd) ||
	    !reply_add_fd(reply, objects.page_fd)) {
		(void)holder_close(h, true); /* it has written nothing */
		return 0;
	}
	/* An engine may have memory to adopt: that of cuMemCreate() is named by descriptors. */
	if (q->session->has_conn && q->service->devices && devices_may_be(q->service->devices))
		conn_take_descriptors(&q->session->conn, true);
	kvbm__attach_reply__init(body);
	body->ns = session_add_holder(q->session, h);
	body->fingerprint = (ProtobufCBinaryData){ 16, (uint8_t *)objects.fingerprint };
	body->lane_bytes = objects.lane_bytes;
	body->writable = objects.writable;
	body->max_pins = q->session->quota.pin_limit;
	reply->message.attach = body;
	return 0;
}

int handle_region(const struct request *q, struct reply *reply)
{
	const Kvbm__RegionRequest *m = q->message;
	Kvbm__RegionReply *body = &reply->body.region;
	const struct tier_region *region;
	struct holder *h;
	bool writable;
	int r;

	if (!request_holder(q, m->ns, reply, &h, NULL))
		return 0;
	r = holder_region(h, m->serial, &region);
	if (r < 0)
		return error_trace(r);
	if (r > 0) {
		reply_fail_store(reply, r, "region");
		return 0;
	}
	writable = holder_is_writable(h);
	if (!region->handle && (region->fd < 0 || region->ro_fd < 0)) {
		reply_fail(reply, REPLY_NOENT, "the tier is simulated: its regions have no descriptors");
		return 0;
	}
	if (!region->handle && !reply_add_fd(reply, writable ? region->fd : region->ro_fd))
		return 0;
	kvbm__region_reply__init(body);
	if (holder_device(h)) {
		body->device = (char *)holder_device(h);
		if (region->handle)
			body->handle = (ProtobufCBinaryData){ 64, (uint8_t *)region->handle };
	}
	body->serial = m->serial;
	body->size = region->size;
	body->writable = writable;
	body->huge = region->huge;
	reply->message.region = body;
	return 0;
}
