/* SPDX-License-Identifier: Apache-2.0 */
/* From outcomes to wire codes, and from a filled reply to bytes.
 *
 * Owns nothing between requests.  Invariant: a reply has a body only when its code is REPLY_OK.  Decides nothing: which code
 * fits is the handler's word.
 */
#include "server/reply.h"

#include <endian.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <kvbm.h>

#include "base/assert.h"
#include "move/store.h"

void reply_init(struct reply *reply)
{
	reply->code = REPLY_OK;
	reply->text[0] = '\0';
	reply->last = reply->later = false;
	reply->n_fds = 0;
	reply->owned = NULL;
	kvbm__reply__init(&reply->message);
}

static void reply_drop_body(struct reply *reply)
{
	for (unsigned i = 0; i < reply->n_fds; i++)
		close(reply->fds[i]);
	reply->n_fds = 0;
	kvbm__reply__init(&reply->message);
	free(reply->owned);
	reply->owned = NULL;
}

void reply_deinit(struct reply *reply)
{
	reply_drop_body(reply);
}

void reply_fail(struct reply *reply, enum reply_code code, const char *format, ...)
{
	va_list args;

	assert(code != REPLY_OK);
	reply_drop_body(reply);
	reply->code = code;
	va_start(args, format);
	vsnprintf(reply->text, sizeof(reply->text), format, args);
	va_end(args);
	/* Names from the peer may be in it; a string field must be UTF-8, and a log line one line. */
	for (char *p = reply->text; *p; p++)
		if (*p < ' ' || *p > '~')
			*p = '?';
}

void reply_fail_store(struct reply *reply, int outcome, const char *what)
{
	static const struct {
		enum reply_code code;
		const char *text;
	} outcomes[] = {
		[STORE_E_INVAL] = { REPLY_INVAL, "does not fit the namespace (lane, length, count, or a slot named twice)" },
		[STORE_E_MISMATCH] = { REPLY_MISMATCH, "the namespace has another fingerprint" },
		[STORE_E_PERM] = { REPLY_PERM, "not allowed for this uid or session" },
		[STORE_E_LIMIT] = { REPLY_LIMIT, "a limit of this session, uid or daemon" },
		[STORE_E_NOSPACE] = { REPLY_NOSPACE, "not enough free and droppable slots" },
		[STORE_E_STALE] = { REPLY_STALE, "a slot is not this session's to write" },
		[STORE_E_NOTHELD] = { REPLY_NOTHELD, "a slot is not held by this session" },
		[STORE_E_NOENT] = { REPLY_NOENT, "no such namespace, region or block" },
		[STORE_E_OFFLINE] = { REPLY_BUSY, "its device is offline for now" },
	};

	assert(outcome > 0 && outcome != STORE_E_QUARANTINE);
	assert((size_t)outcome < sizeof(outcomes) / sizeof(outcomes[0]) && outcomes[outcome].text);
	reply_fail(reply, outcomes[outcome].code, "%s: %s", what, outcomes[outcome].text);
}

bool reply_add_fd(struct reply *reply, int borrowed_fd)
{
	int fd;

	assert(reply->n_fds < REPLY_MAX_FDS && borrowed_fd >= 0);
	fd = fcntl(borrowed_fd, F_DUPFD_CLOEXEC, 3);
	if (fd < 0) {
		reply_fail(reply, REPLY_BUSY, "the daemon is out of descriptors");
		return false;
	}
	reply->fds[reply->n_fds++] = fd;
	return true;
}

uint32_t reply_wire_code(enum reply_code code)
{
	switch (code) {
	case REPLY_OK:
		return 0;
	case REPLY_INVAL:
		return KVBM_E_INVAL;
	case REPLY_VERSION:
		return KVBM_E_VERSION;
	case REPLY_PERM:
		return KVBM_E_PERM;
	case REPLY_NOENT:
		return KVBM_E_NOENT;
	case REPLY_MISMATCH:
		return KVBM_E_MISMATCH;
	case REPLY_LIMIT:
		return KVBM_E_LIMIT;
	case REPLY_NOSPACE:
		return KVBM_E_NOSPACE;
	case REPLY_BUSY:
		return KVBM_E_BUSY;
	case REPLY_STALE:
		return KVBM_E_STALE;
	case REPLY_NOTHELD:
		return KVBM_E_NOTHELD;
	case REPLY_PROTO:
		return KVBM_E_PROTO;
	case REPLY_INTERNAL:
		return KVBM_E_INTERNAL;
	}
	assert(!"a reply code outside the enum");
	return KVBM_E_INTERNAL;
}

/* ---- to bytes ---- */

/* A reply that is no error holds the boot id and at most one body.  protobuf-c would look at each of the fields that are not set, twice,
 * and that is a third of what a no-op costs us: so the outer message is written here, by the numbers its descriptor has. */
#define TAG_BOOT_ID ((3u << 3) | 1u) /* field 3, eight bytes */
#define HEAD_MAX (1u + 8u + 5u + 5u) /* boot id, then a body's tag and length */

static const ProtobufCMessage *reply_body(const Kvbm__Reply *message, uint32_t *ret_tag)
{
	const ProtobufCMessageDescriptor *d = &kvbm__reply__descriptor;

	for (unsigned i = 0; i < d->n_fields; i++) {
		const void *at = (const uint8_t *)message + d->fields[i].offset;
		const ProtobufCMessage *body;

		if (d->fields[i].type != PROTOBUF_C_TYPE_MESSAGE)
			continue;
		body = *(const ProtobufCMessage *const *)at;
		*ret_tag = d->fields[i].id << 3 | 2u;
		if (body)
			return body;
	}
	return NULL;
}

static uint8_t *put_varint(uint8_t *p, uint32_t v)
{
	for (; v >= 0x80; v >>= 7)
		*p++ = (uint8_t)(v | 0x80);
	*p++ = (uint8_t)v;
	return p;
}

/* Writes what comes before the body's own bytes.  Returns its length. */
static size_t reply_head(uint8_t head[HEAD_MAX], uint64_t boot_id, uint32_t tag, const ProtobufCMessage *body, size_t size)
{
	uint64_t le = htole64(boot_id);
	uint8_t *p = head;

	*p++ = TAG_BOOT_ID;
	memcpy(p, &le, sizeof(le));
	p += sizeof(le);
	if (body)
		p = put_varint(put_varint(p, tag), (uint32_t)size);
	return (size_t)(p - head);
}

static int reply_send_error(struct reply *reply, const struct wire_head *head, uint64_t boot_id, struct wire_out *out)
{
	uint8_t *payload;
	size_t size;
	int r;

	assert(reply->code != REPLY_OK && reply->n_fds == 0);
	reply->message.code = reply_wire_code(reply->code);
	reply->message.error = reply->text;
	reply->message.boot_id = boot_id;
	size = kvbm__reply__get_packed_size(&reply->message);
	r = wire_out_reserve(out, (uint32_t)size, 0, &payload);
	if (r != 0)
		return r < 0 ? error_origin(r) : r;
	kvbm__reply__pack(&reply->message, payload);
	wire_out_commit(out, head, (uint32_t)size, NULL);
	return 0;
}

int reply_send(struct reply *reply, const struct wire_head *request, uint64_t boot_id, struct wire_out *out)
{
	struct wire_head head = { .verb = request->verb, .flags = WIRE_FLAG_REPLY, .id = request->id };
	uint8_t before[HEAD_MAX], *payload;
	const ProtobufCMessage *body;
	size_t size, length;
	uint32_t tag = 0;
	int r;

	if (reply->code != REPLY_OK)
		return reply_send_error(reply, &head, boot_id, out);
	body = reply_body(&reply->message, &tag);
	size = body ? protobuf_c_message_get_packed_size(body) : 0;
	if (size > WIRE_MAX_PAYLOAD - HEAD_MAX) {
		reply_fail(reply, REPLY_LIMIT, "the answer has %zu bytes, a frame holds %u", size, WIRE_MAX_PAYLOAD);
		return reply_send_error(reply, &head, boot_id, out);
	}
	length = reply_head(before, boot_id, tag, body, size);
	r = wire_out_reserve(out, (uint32_t)(length + size), reply->n_fds, &payload);
	if (r != 0)
		return r < 0 ? error_origin(r) : r;
	memcpy(payload, before, length);
	if (body)
		protobuf_c_message_pack(body, payload + length);
	wire_out_commit(out, &head, (uint32_t)(length + size), reply->fds);
	reply->n_fds = 0;
	return 0;
}
