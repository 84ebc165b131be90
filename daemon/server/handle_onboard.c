/* SPDX-License-Identifier: Apache-2.0 */
/* onboard and prefetch: bringing blocks up from below host memory, for somebody who waits, or ahead of need.
 *
 * Owns what such a request keeps while it lasts: a copy of its keys, and the places for its answers.  Ends with the reply or with the session.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "move/onboard.h"
#include "server/later.h"
#include "server/session.h"

#define ONBOARD_NS (5 * CLOCK_NS_PER_S) /* where the client does not say */
#define ONBOARD_MAX_NS (60 * CLOCK_NS_PER_S)
#define PREFETCH_NS (10 * CLOCK_NS_PER_S) /* what has not come by then is not needed any more */
#define ADMIN_NS (4 * CLOCK_NS_PER_S)     /* somebody sits before it */

struct onboarding {
	struct later later;
	struct store_onboard o;
	struct service *service;
	uint8_t bytes[]; /* wants, slots, generations, keys, status */
};

static struct onboarding *onboarding_new(const struct request *q, const ProtobufCBinaryData *keys, uint32_t n)
{
	size_t want = sizeof(struct onboard_want);
	struct onboarding *b = malloc(sizeof(*b) + n * (want + 2 * sizeof(uint32_t) + 1) + keys->len);
	uint8_t *at;

	if (!b)
		return NULL;
	memset(b, 0, sizeof(*b));
	b->service = q->service;
	at = b->bytes;
	b->o.wants = (struct onboard_want *)at;
	b->o.slots = (uint32_t *)(at += n * want);
	b->o.generations = (uint32_t *)(at += n * sizeof(uint32_t));
	b->o.keys = at += n * sizeof(uint32_t);
	if (keys->len > 0)
		memcpy(at, keys->data, keys->len);
	b->o.status = at + keys->len;
	b->o.n = n;
	b->o.now_ns = q->now_ns;
	return b;
}

static void onboard_reply(const struct store_onboard *o, struct reply *reply)
{
	Kvbm__OnboardReply *body = &reply->body.onboard;

	kvbm__onboard_reply__init(body);
	body->hits = o->hits;
	body->statuses = (ProtobufCBinaryData){ o->n, o->status };
	body->slots = o->slots;
	body->generations = o->generations;
	body->n_slots = body->n_generations = o->n;
	reply->message.onboard = body;
}

static void onboard_on_done(struct store_onboard *o)
{
	struct onboarding *b = container_of(o, struct onboarding, o);
	struct reply reply;

	reply_init(&reply);
	onboard_reply(o, &reply);
	later_reply(&b->later, &reply);
	free(b);
}

static void onboard_on_cancel(struct later *l)
{
	struct onboarding *b = container_of(l, struct onboarding, later);

	store_onboard_cancel(&b->o);
	free(b);
}

int handle_onboard(const struct request *q, struct reply *reply)
{
	const Kvbm__OnboardRequest *m = q->message;
	uint64_t wait = m->timeout_ms * (uint64_t)CLOCK_NS_PER_MS;
	struct onboarding *b;
	struct holder *h;
	uint32_t key_bytes, n;

	if (!request_holder(q, m->ns, reply, &h, &key_bytes) || !request_keys(&m->keys, key_bytes, reply, &n) ||
	    !later_may(q, reply))
		return 0;
	b = onboarding_new(q, &m->keys, n);
	if (!b)
		return error_origin(-ENOMEM);
	if (wait == 0)
		wait = ONBOARD_NS;
	if (wait > ONBOARD_MAX_NS)
		wait = ONBOARD_MAX_NS;
	b->o.deadline_ns = q->now_ns + wait;
	b->o.hold = m->hold;
	b->o.recompute_ns = m->tokens_per_s ? holder_block_tokens(h) * CLOCK_NS_PER_S / m->tokens_per_s : 0;
	b->o.done = onboard_on_done;
	if (store_onboard(h, &b->o) != 0) {
		later_begin(&b->later, q, reply, onboard_on_cancel);
		return 0;
	}
	onboard_reply(&b->o, reply);
	reply->owned = (char *)b; /* the body lies in it */
	return 0;
}

/* ---- ahead of need ---- */

static void prefetch_on_done(struct store_onboard *o)
{
	struct onboarding *b = container_of(o, struct onboarding, o);

	later_end(&b->later);
	free(b);
}

int handle_prefetch(const struct request *q, struct reply *reply)
{
	const Kvbm__PrefetchRequest *m = q->message;
	Kvbm__CountReply *body = &reply->body.count;
	struct onboarding *b;
	struct holder *h;
	uint32_t key_bytes, n;

	if (!request_holder(q, m->ns, reply, &h, &key_bytes) || !request_keys(&m->keys, key_bytes, reply, &n) ||
	    !later_may(q, reply))
		return 0;
	b = onboarding_new(q, &m->keys, n);
	if (!b)
		return error_origin(-ENOMEM);
	b->o.deadline_ns = q->now_ns + PREFETCH_NS;
	b->o.prefetch = true;
	b->o.done = prefetch_on_done;
	if (store_onboard(h, &b->o) == 0)
		free(b);
	else
		later_watch(&b->later, q->session, onboard_on_cancel);
	kvbm__count_reply__init(body);
	body->n = n;
	reply->message.count = body;
	return 0;
}

/* ---- for an administrator ---- */

static void admin_reply(const struct store_onboard *o, struct reply *reply)
{
	Kvbm__CountReply *body = &reply->body.count;

	kvbm__count_reply__init(body);
	body->n = o->hits;
	body->kept = o->n - o->hits;
	reply->message.count = body;
}

static void admin_on_done(struct store_onboard *o)
{
	struct onboarding *b = container_of(o, struct onboarding, o);
	struct reply reply;

	reply_init(&reply);
	admin_reply(o, &reply);
	later_reply(&b->later, &reply);
	free(b);
}

int onboard_for_admin(const struct request *q, const char *ns_name, const ProtobufCBinaryData *keys, uint32_t n,
                      struct reply *reply)
{
	struct onboarding *b;
	int r;

	if (!later_may(q, reply))
		return 0;
	b = onboarding_new(q, keys, n);
	if (!b)
		return error_origin(-ENOMEM);
	b->o.deadline_ns = q->now_ns + ADMIN_NS;
	b->o.prefetch = true;
	b->o.done = admin_on_done;
	r = store_prefetch(q->service->store, ns_name, n ? (uint32_t)(keys->len / n) : 0, &b->o);
	if (r == STORE_E_WAIT) {
		later_begin(&b->later, q, reply, onboard_on_cancel);
		return 0;
	}
	if (r == 0)
		admin_reply(&b->o, reply);
	free(b);
	return r;
}
