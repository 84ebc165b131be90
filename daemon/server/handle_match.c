/* SPDX-License-Identifier: Apache-2.0 */
/* match, release, stat, hint: how blocks are found and held by message.  Owns nothing; no allocation: outputs are in the
 * service's scratch. */
#include "server/service.h"
#include "server/session.h"

int handle_match(const struct request *q, struct reply *reply)
{
	const Kvbm__MatchRequest *m = q->message;
	Kvbm__MatchReply *body = &reply->body.match;
	struct scratch *scratch = q->service->scratch;
	struct store_match args = { .keys = m->keys.data,
		                    .scattered = m->scattered,
		                    .hold = m->hold,
		                    .now_ns = q->now_ns,
		                    .slots = scratch->slots,
		                    .generations = scratch->generations };
	struct holder *h;
	uint32_t key_bytes;
	int r;

	if (!request_holder(q, m->ns, reply, &h, &key_bytes) || !request_keys(&m->keys, key_bytes, reply, &args.n))
		return 0;
	r = store_match(h, &args);
	if (r < 0)
		return error_trace(r);
	if (r > 0) {
		reply_fail_store(reply, r, "match");
		return 0;
	}
	kvbm__match_reply__init(body);
	body->hits = args.hits;
	body->n_slots = body->n_generations = m->scattered ? args.n : args.hits;
	body->slots = scratch->slots;
	body->generations = scratch->generations;
	reply->message.match = body;
	return 0;
}

int handle_release(const struct request *q, struct reply *reply)
{
	const Kvbm__ReleaseRequest *m = q->message;
	Kvbm__CountReply *body = &reply->body.count;
	struct holder *h;
	int r;

	if (!request_holder(q, m->ns, reply, &h, NULL) || !request_slots(m->n_slots, m->n_generations, reply))
		return 0;
	r = store_release(h, m->slots, m->generations, (uint32_t)m->n_slots);
	if (r < 0)
		return error_trace(r);
	if (r > 0) {
		reply_fail_store(reply, r, "release");
		return 0;
	}
	kvbm__count_reply__init(body);
	body->n = (uint32_t)m->n_slots;
	reply->message.count = body;
	return 0;
}

int handle_hint(const struct request *q, struct reply *reply)
{
	const Kvbm__HintRequest *m = q->message;
	Kvbm__CountReply *body = &reply->body.count;
	struct store_hint_args args = { .keys = m->keys.data, .ttl_ms = m->ttl_ms, .priority = m->priority, .now_ns = q->now_ns };
	struct holder *h;
	uint32_t key_bytes, known;
	int r;

	if (!request_holder(q, m->ns, reply, &h, &key_bytes) || !request_keys(&m->keys, key_bytes, reply, &args.n))
		return 0;
	if (m->hint < STORE_HINT_RELEASE || m->hint > STORE_HINT_TOUCH || m->priority > 100) {
		reply_fail(reply, REPLY_INVAL, "hint %u with priority %u is unknown", m->hint, m->priority);
		return 0;
	}
	args.hint = (enum store_hint)m->hint;
	r = store_hint(h, &args, &known);
	if (r < 0)
		return error_trace(r);
	if (r > 0) {
		reply_fail_store(reply, r, "hint");
		return 0;
	}
	kvbm__count_reply__init(body);
	body->n = known;
	reply->message.count = body;
	return 0;
}

int handle_stat(const struct request *q, struct reply *reply)
{
	const Kvbm__StatRequest *m = q->message;
	Kvbm__StatReply *body = &reply->body.stat;
	struct scratch *scratch = q->service->scratch;
	struct holder *h;
	uint32_t key_bytes, n, present;

	if (!request_holder(q, m->ns, reply, &h, &key_bytes) || !request_keys(&m->keys, key_bytes, reply, &n))
		return 0;
	store_stat(h, m->keys.data, n, scratch->states, &present);
	kvbm__stat_reply__init(body);
	body->tiers = (ProtobufCBinaryData){ n, scratch->states };
	reply->message.stat = body;
	return 0;
}
