/* SPDX-License-Identifier: Apache-2.0 */
/* The table of verbs.
 *
 * Owns nothing.  Invariant: one reply for one frame, whatever the handler does; no handler sees a message that did not decode, and
 * none but hello's sees a session that did not say hello.  Knows no verb's meaning.
 */
#include "server/dispatch.h"

#include <errno.h>
#include <stdlib.h>

#include "base/assert.h"
#include "base/metrics.h"
#include "base/thread.h"
#include "server/session.h"

/* A decoded request is at most its frame once more, and its packed lists once more; the rest is protobuf-c's bookkeeping of
 * fields, which an honest request has a dozen of. */
#define ARENA_BYTES (2u * WIRE_MAX_PAYLOAD + 64u * 1024u)

static const struct verb {
	const char *name;
	const ProtobufCMessageDescriptor *type; /* NULL: the payload is not looked at */
	int (*handle)(const struct request *q, struct reply *reply);
} verbs[] = {
	[KVBM__VERB__VERB_HELLO] = { "hello", &kvbm__hello_request__descriptor, handle_hello },
	[KVBM__VERB__VERB_ATTACH] = { "attach", &kvbm__attach_request__descriptor, handle_attach },
	[KVBM__VERB__VERB_REGION] = { "region", &kvbm__region_request__descriptor, handle_region },
	[KVBM__VERB__VERB_RESERVE] = { "reserve", &kvbm__reserve_request__descriptor, handle_reserve },
	[KVBM__VERB__VERB_COMMIT] = { "commit", &kvbm__commit_request__descriptor, handle_commit },
	[KVBM__VERB__VERB_ABORT] = { "abort", &kvbm__abort_request__descriptor, handle_abort },
	[KVBM__VERB__VERB_MATCH] = { "match", &kvbm__match_request__descriptor, handle_match },
	[KVBM__VERB__VERB_RELEASE] = { "release", &kvbm__release_request__descriptor, handle_release },
	[KVBM__VERB__VERB_HINT] = { "hint", &kvbm__hint_request__descriptor, handle_hint },
	[KVBM__VERB__VERB_STAT] = { "stat", &kvbm__stat_request__descriptor, handle_stat },
	[KVBM__VERB__VERB_PING] = { "ping", NULL, handle_ping },
	[KVBM__VERB__VERB_INFO] = { "info", &kvbm__info_request__descriptor, handle_info },
	[KVBM__VERB__VERB_ADMIN] = { "admin", &kvbm__admin_request__descriptor, handle_admin },
	[KVBM__VERB__VERB_ONBOARD] = { "onboard", &kvbm__onboard_request__descriptor, handle_onboard },
	[KVBM__VERB__VERB_PREFETCH] = { "prefetch", &kvbm__prefetch_request__descriptor, handle_prefetch },
	[KVBM__VERB__VERB_ADOPT] = { "adopt", &kvbm__adopt_request__descriptor, handle_adopt },
	[KVBM__VERB__VERB_DISOWN] = { "disown", &kvbm__disown_request__descriptor, handle_disown },
	[KVBM__VERB__VERB_STORE] = { "store", &kvbm__store_request__descriptor, handle_store },
	[KVBM__VERB__VERB_LOAD] = { "load", &kvbm__load_request__descriptor, handle_load },
};
#define N_VERBS (sizeof(verbs) / sizeof(verbs[0]))

int service_init(struct service *service)
{
	int r;

	list_init(&service->adoptions);
	service->scratch = malloc(sizeof(*service->scratch));
	if (!service->scratch)
		return error_origin(-ENOMEM);
	r = arena_init(&service->arena, ARENA_BYTES);
	if (r < 0) {
		free(service->scratch);
		service->scratch = NULL;
	}
	return error_trace(r);
}

void service_deinit(struct service *service)
{
	arena_deinit(&service->arena);
	free(service->scratch);
	service->scratch = NULL;
}

/* The verb's entry, when this session may use it now. */
static const struct verb *dispatch_verb(const struct session *session, uint16_t number, struct reply *reply)
{
	if (number != KVBM__VERB__VERB_HELLO && !session_is_open(session)) {
		reply_fail(reply, REPLY_PROTO, "the first request must be hello, not verb %u", number);
		reply->last = true;
		return NULL;
	}
	if (number >= N_VERBS || !verbs[number].handle) {
		reply_fail(reply, REPLY_INVAL, "verb %u is unknown to this daemon", number);
		return NULL;
	}
	return &verbs[number];
}

static bool dispatch_decode(struct arena *arena, const struct verb *v, const struct wire_frame *frame,
                            struct reply *reply, const void **ret_message)
{
	arena_reset(arena);
	*ret_message = NULL;
	if (!v->type)
		return true;
	*ret_message = protobuf_c_message_unpack(v->type, &arena->allocator, frame->length, frame->payload);
	if (*ret_message)
		return true;
	metrics_add(METRIC_frames_bad, 1);
	reply_fail(reply, REPLY_PROTO, "the %s request does not decode", v->name);
	reply->last = true;
	return false;
}

int dispatch_reply(struct service *service, struct session *session, const struct wire_head *head, struct reply *reply,
                   struct wire_out *out)
{
	bool last = reply->last, failed;
	int r;

	if (reply->later) {
		reply_deinit(reply);
		return 0;
	}
	r = reply_send(reply, head, service->life->boot_id, out);

	failed = reply->code != REPLY_OK;
	metrics_add(failed ? METRIC_request_errors : METRIC_requests_ok, 1);
	session_count(session, failed);
	reply_deinit(reply);
	if (r != 0)
		return r < 0 ? error_trace(r) : -ENOBUFS;
	return last ? DISPATCH_E_LAST : 0;
}

int dispatch_frame(struct service *service, struct session *session, const struct wire_frame *frame, uint64_t now_ns,
                   struct wire_out *out)
{
	struct request q = { .service = service, .session = session, .now_ns = now_ns, .head = &frame->head, .frame = frame };
	const struct verb *v;
	struct reply reply;
	int r;

	thread_assert(THREAD_LOOP);
	metrics_add(METRIC_requests, 1);
	reply_init(&reply);
	v = dispatch_verb(session, frame->head.verb, &reply);
	if (v && dispatch_decode(&service->arena, v, frame, &reply, &q.message)) {
		r = v->handle(&q, &reply);
		assert(r <= 0);
		if (r < 0) {
			reply_fail(&reply, REPLY_INTERNAL, "%s: a fault inside the daemon (%d); its log says more",
			           v->name, r);
			reply.last = true;
		}
	}
	return dispatch_reply(service, session, &frame->head, &reply, out);
}

void dispatch_refuse(struct service *service, enum reply_code code, const char *reason, struct wire_out *out)
{
	struct wire_head head = { 0 };
	struct reply reply;

	reply_init(&reply);
	reply_fail(&reply, code, "%s", reason);
	if (reply_send(&reply, &head, service->life->boot_id, out) != 0)
		metrics_add(METRIC_request_errors, 1);
	reply_deinit(&reply);
}

/* ---- arguments ---- */

bool request_holder(const struct request *q, uint32_t ns, struct reply *reply, struct holder **ret_holder,
                    uint32_t *ret_key_bytes)
{
	struct store_objects objects;
	struct holder *h = session_holder(q->session, ns);

	if (!h) {
		reply_fail(reply, REPLY_NOENT, "namespace number %u is not attached by this session", ns);
		return false;
	}
	if (ret_key_bytes) {
		holder_objects(h, &objects);
		*ret_key_bytes = objects.key_bytes;
	}
	*ret_holder = h;
	return true;
}

bool request_keys(const ProtobufCBinaryData *keys, uint32_t key_bytes, struct reply *reply, uint32_t *ret_n)
{
	assert(key_bytes >= KEY_MIN && key_bytes <= KEY_MAX);
	if (keys->len % key_bytes != 0) {
		reply_fail(reply, REPLY_INVAL, "%zu bytes are not a whole number of keys of %u", keys->len, key_bytes);
		return false;
	}
	if (keys->len / key_bytes > KVBM_MAX_KEYS) {
		reply_fail(reply, REPLY_INVAL, "%zu keys, a call takes %u", keys->len / key_bytes, KVBM_MAX_KEYS);
		return false;
	}
	*ret_n = (uint32_t)(keys->len / key_bytes);
	return true;
}

bool request_slots(size_t n_slots, size_t n_generations, struct reply *reply)
{
	if (n_slots != n_generations) {
		reply_fail(reply, REPLY_INVAL, "%zu slots but %zu generations", n_slots, n_generations);
		return false;
	}
	if (n_slots > KVBM_MAX_KEYS) {
		reply_fail(reply, REPLY_INVAL, "%zu slots, a call takes %u", n_slots, KVBM_MAX_KEYS);
		return false;
	}
	return true;
}
