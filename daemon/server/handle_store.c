/* SPDX-License-Identifier: Apache-2.0 */
/* reserve, commit, abort: how blocks get in.  No allocation, outputs are in the service's scratch, but for a reserve that waits: it keeps its
 * keys until it is answered or its session ends. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "move/onboard.h"
#include "server/later.h"
#include "server/session.h"

/* A reserve that waits for copies: its arguments, for trying again. */
struct reserving {
	struct later later;
	struct store_wait wait;
	struct service *service;
	struct holder *holder;
	uint32_t n, lane;
	bool keyed;
	uint8_t keys[];
};

static void reserve_reply(const struct store_reserve *args, struct reply *reply)
{
	Kvbm__ReserveReply *body = &reply->body.reserve;

	kvbm__reserve_reply__init(body);
	body->n_slots = body->n_generations = args->n;
	body->slots = args->slots;
	body->generations = args->generations;
	body->reserved = args->reserved;
	body->dropped = args->dropped;
	reply->message.reserve = body;
}

static void reserve_on_cancel(struct later *l)
{
	struct reserving *b = container_of(l, struct reserving, later);

	store_wait_cancel(&b->wait);
	free(b);
}

static void reserve_on_room(struct store_wait *w, bool late)
{
	struct reserving *b = container_of(w, struct reserving, wait);
	struct scratch *scratch = b->service->scratch;
	struct store_reserve args = { .keys = b->keyed ? b->keys : NULL,
		                      .n = b->n,
		                      .lane = b->lane,
		                      .now = late,
		                      .now_ns = loop_now_ns(b->later.session->sessions->loop),
		                      .slots = scratch->slots,
		                      .generations = scratch->generations };
	struct reply reply;
	int r = store_reserve(b->holder, &args);

	if (r == STORE_E_WAIT) {
		store_wait(b->holder, w, args.wanted);
		return;
	}
	reply_init(&reply);
	if (r < 0)
		reply_fail(&reply, REPLY_INTERNAL, "reserve: a fault inside the daemon (%d); its log says more", r);
	else if (r > 0)
		reply_fail_store(&reply, r, "reserve");
	else
		reserve_reply(&args, &reply);
	later_reply(&b->later, &reply);
	free(b);
}

static int reserve_wait(const struct request *q, struct holder *h, const struct store_reserve *args, struct reply *reply)
{
	const Kvbm__ReserveRequest *m = q->message;
	struct reserving *b = malloc(sizeof(*b) + m->keys.len);

	if (!b)
		return error_origin(-ENOMEM);
	memset(b, 0, sizeof(*b));
	b->service = q->service;
	b->holder = h;
	b->n = m->n;
	b->lane = m->lane;
	b->keyed = m->keys.len > 0;
	if (b->keyed)
		memcpy(b->keys, m->keys.data, m->keys.len);
	b->wait.deadline_ns = q->now_ns + q->service->wait_ns;
	b->wait.cb = reserve_on_room;
	later_begin(&b->later, q, reply, reserve_on_cancel);
	store_wait(h, &b->wait, args->wanted);
	return 0;
}

int handle_reserve(const struct request *q, struct reply *reply)
{
	const Kvbm__ReserveRequest *m = q->message;
	struct scratch *scratch = q->service->scratch;
	struct store_reserve args = { .n = m->n,
		                      .lane = m->lane,
		                      .now_ns = q->now_ns,
		                      .slots = scratch->slots,
		                      .generations = scratch->generations };
	struct holder *h;
	uint32_t key_bytes, n;
	int r;

	if (!request_holder(q, m->ns, reply, &h, &key_bytes) || !request_keys(&m->keys, key_bytes, reply, &n))
		return 0;
	if (m->n > KVBM_MAX_KEYS || (m->keys.len > 0 && n != m->n)) {
		reply_fail(reply, REPLY_INVAL, "n is %u with %u keys; at most %u", m->n, n, KVBM_MAX_KEYS);
		return 0;
	}
	args.keys = m->keys.len > 0 ? m->keys.data : NULL;
	r = store_reserve(h, &args);
	if (r == STORE_E_WAIT)
		return later_may(q, reply) ? reserve_wait(q, h, &args, reply) : 0;
	if (r < 0)
		return error_trace(r);
	if (r > 0) {
		reply_fail_store(reply, r, "reserve");
		return 0;
	}
	reserve_reply(&args, reply);
	return 0;
}

static bool commit_check(const Kvbm__CommitRequest *m, uint32_t key_bytes, struct reply *reply, uint32_t *ret_n,
                         uint32_t *ret_n_parents)
{
	uint32_t n;

	if (!request_slots(m->n_slots, m->n_generations, reply) || !request_keys(&m->keys, key_bytes, reply, &n) ||
	    !request_keys(&m->parents, key_bytes, reply, ret_n_parents))
		return false;
	if (n != m->n_slots) {
		reply_fail(reply, REPLY_INVAL, "%zu slots but %u keys", m->n_slots, n);
		return false;
	}
	if (*ret_n_parents > 1 && *ret_n_parents != n) {
		reply_fail(reply, REPLY_INVAL, "%u blocks but %u parents", n, *ret_n_parents);
		return false;
	}
	*ret_n = n;
	return true;
}

int handle_commit(const struct request *q, struct reply *reply)
{
	const Kvbm__CommitRequest *m = q->message;
	Kvbm__CommitReply *body = &reply->body.commit;
	struct scratch *scratch = q->service->scratch;
	struct store_commit args = { .slots_in = m->slots,
		                     .generations_in = m->generations,
		                     .keys = m->keys.data,
		                     .lane = m->lane,
		                     .length = m->length,
		                     .now_ns = q->now_ns,
		                     .hold = m->hold,
		                     .slots = scratch->slots,
		                     .generations = scratch->generations,
		                     .states = scratch->states };
	struct holder *h;
	uint32_t key_bytes;
	int r;

	if (!request_holder(q, m->ns, reply, &h, &key_bytes) ||
	    !commit_check(m, key_bytes, reply, &args.n, &args.n_parents))
		return 0;
	args.parents = args.n_parents > 0 ? m->parents.data : NULL;
	r = store_commit(h, &args);
	if (r < 0)
		return error_trace(r);
	if (r > 0) {
		reply_fail_store(reply, r, "commit");
		return 0;
	}
	kvbm__commit_reply__init(body);
	body->n_slots = body->n_generations = args.n;
	body->slots = scratch->slots;
	body->generations = scratch->generations;
	body->states = (ProtobufCBinaryData){ args.n, scratch->states };
	reply->message.commit = body;
	return 0;
}

int handle_abort(const struct request *q, struct reply *reply)
{
	const Kvbm__AbortRequest *m = q->message;
	Kvbm__CountReply *body = &reply->body.count;
	struct holder *h;
	int r;

	if (!request_holder(q, m->ns, reply, &h, NULL) || !request_slots(m->n_slots, m->n_generations, reply))
		return 0;
	r = store_abort(h, m->lane, m->slots, m->generations, (uint32_t)m->n_slots);
	if (r < 0)
		return error_trace(r);
	if (r > 0) {
		reply_fail_store(reply, r, "abort");
		return 0;
	}
	kvbm__count_reply__init(body);
	body->n = (uint32_t)m->n_slots;
	reply->message.count = body;
	return 0;
}
