/* SPDX-License-Identifier: Apache-2.0 */
/* From outcomes to wire codes, and from a filled reply to bytes.
 *
 * Owns nothing between requests.  Invariant: a reply has a body only when its code is REPLY_OK.  Decides nothing: which code
 * fits is the handler's word.
 */
#include "server/reply.h"

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

int reply_send(struct reply *reply, const struct wire_head *request, uint64_t boot_id, struct wire_out *out)
{
	struct wire_head head = { .verb = request->verb, .flags = WIRE_FLAG_REPLY, .id = request->id };
	uint8_t *payload;
	size_t size;
	int r;

	for (;;) {
		reply->message.code = reply_wire_code(reply->code);
		reply->message.error = reply->text;
		reply->message.boot_id = boot_id;
		size = kvbm__reply__get_packed_size(&reply->message);
		if (size <= WIRE_MAX_PAYLOAD)
			break;
		assert(reply->code == REPLY_OK);
		reply_fail(reply, REPLY_LIMIT, "the answer has %zu bytes, a frame holds %u", size, WIRE_MAX_PAYLOAD);
	}
	r = wire_out_reserve(out, (uint32_t)size, reply->n_fds, &payload);
	if (r != 0)
		return r < 0 ? error_origin(r) : r;
	kvbm__reply__pack(&reply->message, payload);
	wire_out_commit(out, &head, (uint32_t)size, reply->fds);
	reply->n_fds = 0;
	return 0;
}
