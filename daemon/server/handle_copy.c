/* SPDX-License-Identifier: Apache-2.0 */
/* store and load: blocks of an engine's own device memory into host memory, and back.
 *
 * Owns what such a request keeps while it lasts.  A request is answered once: when its copy is done, or before that when the device is lost.
 * Invariant: slots of host memory that a copy names stay reserved (store) or held (load) until the copy has ended, whoever else has gone.
 *
 *   store   reserve (perhaps wait for room) -> copy down -> commit -> reply
 *   load    onboard and hold                -> copy up   -> release -> reply
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "move/onboard.h"
#include "server/adoption.h"
#include "server/session.h"

#define COPY_NS (5 * CLOCK_NS_PER_S) /* to wait for @before and for blocks, where the client does not say */
#define COPY_MAX_NS (15 * CLOCK_NS_PER_S)

struct copying {
	struct later later;
	bool is_asked; /* the reply is still to go */
	struct adoption_job job;
	struct adoption *adoption; /* borrows */
	struct loop *loop;         /* borrows */
	struct gpu_copy copy;
	struct store_wait wait; /* store */
	struct store_onboard o; /* load */
	uint32_t n, n_copied;   /* keys; of them to be copied */
	uint32_t n_parents, dropped;
	bool is_waiting, is_onboarding, is_copying, all;
	uint32_t key_bytes;
	/* n each, in @bytes */
	struct gpu_block *gpu_blocks;
	uint32_t *blocks, *slots, *generations;
	uint8_t *keys, *parents, *states;
	_Alignas(16) uint8_t bytes[];
};

/* What both requests have. */
struct copy_request {
	const ProtobufCBinaryData *keys, *parents;
	size_t n_blocks;
	const uint32_t *blocks;
	const Kvbm__Sync *before, *after;
	uint32_t adoption, timeout_ms;
};

/* ---- the end ---- */

static void copying_free(struct copying *c)
{
	struct adoption *a = c->adoption;

	assert(!c->is_waiting && !c->is_onboarding && !c->is_copying && !c->is_asked);
	adoption_job_end(a, &c->job); /* may free @a */
	free(c);
}

/* Nothing was copied: whoever waits for the flag is told what it would be told by the device. */
static void copy_signal(const struct adoption *a, const struct gpu_sync *after, bool done)
{
	if (after->kind == GPU_SYNC_FLAG)
		atomic_store_explicit(adoption_flag(a, (uint32_t)(after->offset / sizeof(uint64_t))),
		                      done ? after->value : GPU_FLAG_FAILED, memory_order_release);
}

static void copying_signal(struct copying *c, bool done)
{
	copy_signal(c->adoption, &c->copy.after, done);
}

static void copying_reply(struct copying *c, struct reply *reply)
{
	if (!c->is_asked) {
		reply_deinit(reply);
		return;
	}
	c->is_asked = false;
	later_reply(&c->later, reply);
}

static void copying_refuse(struct copying *c, int r)
{
	static const struct {
		enum reply_code code;
		const char *text;
	} why[] = {
		[GPU_E_LOST] = { REPLY_STALE, "the device is lost: adopt again when it is back" },
		[GPU_E_FULL] = { REPLY_BUSY, "g1.depth requests are copied for already" },
		[GPU_E_NOMEM] = { REPLY_BUSY, "the device has no memory left" },
		[GPU_E_REFUSED] = { REPLY_INVAL,
		                    "the driver refused: a range that is not there, or host memory that cannot be pinned" },
		[GPU_E_UNSUPPORTED] = { REPLY_INVAL, "this device cannot do that" },
		[GPU_E_LATE] = { REPLY_BUSY, "what the copy was to wait for did not happen in time" },
	};
	struct reply reply;

	reply_init(&reply);
	reply_fail(&reply, why[r].code, "%s", why[r].text);
	copying_reply(c, &reply);
}

static void copying_on_lost(struct adoption_job *job)
{
	copying_refuse(container_of(job, struct copying, job), GPU_E_LOST);
}

static void copying_on_cancel(struct later *l)
{
	struct copying *c = container_of(l, struct copying, later);

	c->is_asked = false;
	if (c->is_copying) {
		gpu_copy_cancel(&c->copy); /* its end frees @c */
		return;
	}
	if (c->is_waiting)
		store_wait_cancel(&c->wait);
	if (c->is_onboarding)
		store_onboard_cancel(&c->o);
	c->is_waiting = c->is_onboarding = false;
	copying_free(c);
}

/* ---- the beginning ---- */

static bool copy_sync(const struct adoption *a, const Kvbm__Sync *m, const char *what, struct gpu_sync *ret,
                      struct reply *reply)
{
	*ret = (struct gpu_sync){ .kind = GPU_SYNC_NONE };
	if (!m || m->kind == 0)
		return true;
	if (m->kind == 1 && m->index < ADOPTION_FLAGS && m->value < GPU_FLAG_FAILED) {
		*ret = (struct gpu_sync){ .kind = GPU_SYNC_FLAG,
			                  .pin = &a->flags_pin,
			                  .offset = m->index * sizeof(uint64_t),
			                  .value = m->value };
		return true;
	}
	if (m->kind == 2 && m->index < a->n_events) {
		*ret = (struct gpu_sync){ .kind = GPU_SYNC_EVENT, .event = &a->events[m->index].event };
		return true;
	}
	reply_fail(reply, REPLY_INVAL, "%s names no flag below %u, no event of the adoption, or a value beyond 2^63-2",
	           what, ADOPTION_FLAGS);
	return false;
}

static struct copying *copying_alloc(const struct copy_request *m, uint32_t n, uint32_t key_bytes)
{
	size_t each = sizeof(struct gpu_block) + sizeof(struct onboard_want) + 3 * sizeof(uint32_t) + 2 * key_bytes + 1;
	struct copying *c = calloc(1, sizeof(*c) + n * each + 1);
	uint8_t *at;

	if (!c)
		return NULL;
	at = c->bytes;
	c->gpu_blocks = (struct gpu_block *)at;
	c->o.wants = (struct onboard_want *)(at += n * sizeof(struct gpu_block));
	c->blocks = (uint32_t *)(at += n * sizeof(struct onboard_want));
	c->slots = (uint32_t *)(at += n * sizeof(uint32_t));
	c->generations = (uint32_t *)(at += n * sizeof(uint32_t));
	c->keys = at += n * sizeof(uint32_t);
	c->parents = at += n * key_bytes;
	c->states = at + n * key_bytes;
	c->n = n;
	c->key_bytes = key_bytes;
	if (n > 0) {
		memcpy(c->keys, m->keys->data, (size_t)n * key_bytes);
		memcpy(c->blocks, m->blocks, n * sizeof(uint32_t));
	}
	return c;
}

/* False: the reply has failed. */
static bool copy_check(const struct request *q, const struct copy_request *m, const struct adoption *a,
                       uint32_t key_bytes, struct reply *reply, uint32_t *ret_n)
{
	if (a->state != ADOPTION_READY) {
		reply_fail(reply, REPLY_STALE, "adoption %u ended with its device: adopt again", m->adoption);
		return false;
	}
	if (!request_keys(m->keys, key_bytes, reply, ret_n) || !later_may(q, reply))
		return false;
	if (*ret_n != m->n_blocks || *ret_n > GPU_COPY_MAX_BLOCKS) {
		reply_fail(reply, REPLY_INVAL, "%u keys and %zu blocks: as many of each, at most %u", *ret_n,
		           m->n_blocks, GPU_COPY_MAX_BLOCKS);
		return false;
	}
	for (uint32_t i = 0; i < *ret_n; i++) {
		if (m->blocks[i] >= a->n_blocks) {
			reply_fail(reply, REPLY_INVAL, "block %u is none of the engine's", m->blocks[i]);
			return false;
		}
	}
	return true;
}

/* NULL: the reply has failed, and the flag told so, or *ret_r is a fault. */
static struct copying *copying_new(const struct request *q, const struct copy_request *m, struct reply *reply, int *ret_r)
{
	struct adoption *a = adoption_find(q, m->adoption);
	uint64_t wait = m->timeout_ms ? m->timeout_ms * (uint64_t)CLOCK_NS_PER_MS : COPY_NS;
	struct store_objects objects;
	struct gpu_sync before, after;
	struct copying *c;
	uint32_t n;

	*ret_r = 0;
	if (!a) {
		reply_fail(reply, REPLY_NOENT, "adoption %u is not of this session", m->adoption);
		return NULL;
	}
	if (!copy_sync(a, m->after, "after", &after, reply))
		return NULL;
	holder_objects(a->holder, &objects);
	if (!copy_sync(a, m->before, "before", &before, reply) || !copy_check(q, m, a, objects.key_bytes, reply, &n)) {
		copy_signal(a, &after, false);
		return NULL;
	}
	c = copying_alloc(m, n, objects.key_bytes);
	if (!c) {
		*ret_r = error_origin(-ENOMEM);
		return NULL;
	}
	c->adoption = a;
	c->loop = q->session->sessions->loop;
	c->copy = (struct gpu_copy){ .layout = &a->layout,
		                     .planes = a->planes,
		                     .blocks = c->gpu_blocks,
		                     .before = before,
		                     .after = after,
		                     .wait_ns = wait < COPY_MAX_NS ? wait : COPY_MAX_NS };
	c->is_asked = true;
	list_init(&c->wait.link);
	later_begin(&c->later, q, reply, copying_on_cancel);
	adoption_job_begin(a, &c->job, copying_on_lost);
	return c;
}

/* Adds the copy of key @i, whose slot is known.  false: host memory that no device knows. */
static bool copying_add(struct copying *c, uint32_t i)
{
	const struct adoption *a = c->adoption;
	const struct tier_region *region;
	struct gpu_block *b = &c->gpu_blocks[c->n_copied];

	if (!holder_slot(a->holder, c->slots[i], a->lane, &region, &b->offset))
		return false;
	b->pin = device_pin(a->device, region);
	b->block = c->blocks[i];
	c->n_copied += b->pin != NULL;
	return b->pin != NULL;
}

static int copying_start(struct copying *c, enum gpu_direction direction, void (*done)(struct gpu_copy *copy, int r))
{
	int r;

	c->copy.direction = direction;
	c->copy.n_blocks = c->n_copied;
	c->copy.done = done;
	r = c->adoption->state == ADOPTION_READY ? gpu_copy_start(device_use(c->adoption->device), &c->copy) : GPU_E_LOST;
	c->is_copying = r == 0;
	if (r != 0)
		copying_signal(c, false);
	return r;
}

/* ---- store ---- */

/* Of the keys those that have a slot, which are first in slots, generations, keys, parents from here on. */
static void storing_pack(struct copying *c)
{
	uint32_t to = 0;

	for (uint32_t i = 0; i < c->n; i++) {
		c->states[i] = STORE_EXISTED;
		if (c->slots[i] == STORE_NO_SLOT)
			continue;
		c->states[i] = 0; /* until its commit */
		c->slots[to] = c->slots[i];
		c->generations[to] = c->generations[i];
		c->blocks[to] = c->blocks[i];
		memmove(c->keys + (size_t)to * c->key_bytes, c->keys + (size_t)i * c->key_bytes, c->key_bytes);
		memmove(c->parents + (size_t)to * c->key_bytes, c->parents + (size_t)i * c->key_bytes, c->key_bytes);
		to++;
	}
	c->n_copied = 0;
	for (uint32_t i = 0; i < to; i++)
		if (!copying_add(c, i))
			break;
}

static void storing_abort(struct copying *c, uint32_t n)
{
	if (n > 0)
		(void)store_abort(c->adoption->holder, c->adoption->lane, c->slots, c->generations, n);
}

static void storing_reply(struct copying *c, const uint8_t *states)
{
	Kvbm__StoreReply *body;
	struct reply reply;
	uint32_t from = 0;

	for (uint32_t i = 0; i < c->n; i++)
		if (c->states[i] == 0)
			c->states[i] = states[from++];
	reply_init(&reply);
	body = &reply.body.store;
	kvbm__store_reply__init(body);
	body->states = (ProtobufCBinaryData){ c->n, c->states };
	body->dropped = c->dropped;
	reply.message.store = body;
	copying_reply(c, &reply);
}

static void storing_on_done(struct gpu_copy *copy, int r)
{
	struct copying *c = container_of(copy, struct copying, copy);
	struct scratch *scratch = c->adoption->service->scratch;
	struct store_objects objects;
	struct store_commit args = { .slots_in = c->slots,
		                     .generations_in = c->generations,
		                     .keys = c->keys,
		                     .parents = c->parents,
		                     .n = c->n_copied,
		                     .n_parents = c->n_copied,
		                     .lane = c->adoption->lane,
		                     .now_ns = loop_now_ns(c->loop),
		                     .slots = scratch->slots,
		                     .generations = scratch->generations,
		                     .states = scratch->states };
	struct reply reply;

	c->is_copying = false;
	holder_objects(c->adoption->holder, &objects);
	args.length = objects.lane_bytes;
	if (r != 0) {
		storing_abort(c, c->n_copied);
		copying_refuse(c, r);
	} else if (!c->is_asked) { /* its engine is gone, and may have been writing when it went */
		storing_abort(c, c->n_copied);
	} else if ((r = store_commit(c->adoption->holder, &args)) == 0) {
		storing_reply(c, scratch->states);
	} else {
		storing_abort(c, c->n_copied);
		reply_init(&reply);
		if (r < 0)
			reply_fail(&reply, REPLY_INTERNAL, "store: a fault inside the daemon (%d); its log says more", r);
		else
			reply_fail_store(&reply, r, "store");
		copying_reply(c, &reply);
	}
	copying_free(c);
}

/* Reserves and begins to copy.  true: it waits or is copied; else @c has been answered, and is to be freed. */
static bool storing_go(struct copying *c, bool late)
{
	struct adoption *a = c->adoption;
	struct store_reserve args = { .keys = c->keys,
		                      .n = c->n,
		                      .lane = a->lane,
		                      .now = late,
		                      .now_ns = loop_now_ns(c->loop),
		                      .slots = c->slots,
		                      .generations = c->generations };
	struct reply reply;
	int r = a->state == ADOPTION_READY ? store_reserve(a->holder, &args) : 0;

	if (a->state != ADOPTION_READY) { /* and was answered when the device went */
		copying_signal(c, false);
		return false;
	}
	if (r == STORE_E_WAIT) {
		c->is_waiting = true;
		store_wait(a->holder, &c->wait, args.wanted);
		return true;
	}
	if (r != 0) {
		copying_signal(c, false);
		reply_init(&reply);
		if (r < 0)
			reply_fail(&reply, REPLY_INTERNAL, "store: a fault inside the daemon (%d); its log says more", r);
		else
			reply_fail_store(&reply, r, "store");
		copying_reply(c, &reply);
		return false;
	}
	c->dropped = args.dropped;
	storing_pack(c);
	if (args.reserved == 0) {
		copying_signal(c, true);
		storing_reply(c, NULL);
		return false;
	}
	r = c->n_copied == args.reserved ? copying_start(c, GPU_DOWN, storing_on_done) : GPU_E_REFUSED;
	if (r == 0)
		return true;
	copying_signal(c, false);
	storing_abort(c, args.reserved);
	copying_refuse(c, r);
	return false;
}

static void storing_on_room(struct store_wait *w, bool late)
{
	struct copying *c = container_of(w, struct copying, wait);

	c->is_waiting = false;
	if (!storing_go(c, late))
		copying_free(c);
}

/* One parent a key, as store_commit() takes them for a choice among the keys. */
static void storing_parents(struct copying *c, const ProtobufCBinaryData *parents)
{
	size_t n = parents->len / c->key_bytes;

	if (n == c->n && c->n != 1) {
		memcpy(c->parents, parents->data, parents->len);
		return;
	}
	if (n == 1)
		memcpy(c->parents, parents->data, c->key_bytes); /* else zero: a root */
	if (c->n > 1)
		memcpy(c->parents + c->key_bytes, c->keys, (size_t)(c->n - 1) * c->key_bytes);
}

int handle_store(const struct request *q, struct reply *reply)
{
	const Kvbm__StoreRequest *m = q->message;
	struct copying *c;
	int r;

	c = copying_new(q,
	                &(struct copy_request){ .keys = &m->keys,
	                                        .blocks = m->blocks,
	                                        .n_blocks = m->n_blocks,
	                                        .before = m->before,
	                                        .after = m->after,
	                                        .adoption = m->adoption,
	                                        .timeout_ms = m->timeout_ms },
	                reply, &r);
	if (!c)
		return r;
	if (m->parents.len % c->key_bytes != 0 ||
	    (m->parents.len > c->key_bytes && m->parents.len != (size_t)c->n * c->key_bytes)) {
		struct reply refusal;

		reply_init(&refusal);
		reply_fail(&refusal, REPLY_INVAL,
		           "%zu bytes of parents are neither none, nor one, nor one for each of %u keys",
		           m->parents.len, c->n);
		copying_signal(c, false);
		copying_reply(c, &refusal);
		copying_free(c);
		return 0;
	}
	storing_parents(c, &m->parents);
	c->wait.deadline_ns = q->now_ns + q->service->wait_ns;
	c->wait.cb = storing_on_room;
	if (!storing_go(c, false))
		copying_free(c);
	return 0;
}

/* ---- load ---- */

static void loading_reply(struct copying *c, uint32_t hits)
{
	Kvbm__LoadReply *body;
	struct reply reply;

	reply_init(&reply);
	body = &reply.body.load;
	kvbm__load_reply__init(body);
	body->hits = hits;
	body->statuses = (ProtobufCBinaryData){ c->n, c->states };
	reply.message.load = body;
	copying_reply(c, &reply);
}

static void loading_release(struct copying *c)
{
	if (c->o.hits > 0)
		(void)store_release(c->adoption->holder, c->slots, c->generations, c->o.hits);
}

static void loading_on_done(struct gpu_copy *copy, int r)
{
	struct copying *c = container_of(copy, struct copying, copy);

	c->is_copying = false;
	loading_release(c);
	if (r != 0)
		copying_refuse(c, r);
	else
		loading_reply(c, c->n_copied);
	copying_free(c);
}

/* The blocks are in host memory, as far as they can be.  true: they are copied; else as storing_go(). */
static bool loading_go(struct copying *c)
{
	uint32_t wanted = c->all && c->o.hits < c->n ? 0 : c->o.hits;
	int r;

	while (c->n_copied < wanted && copying_add(c, c->n_copied))
		;
	if (wanted == 0) {
		copying_signal(c, c->n == 0 || !c->all);
		loading_release(c);
		loading_reply(c, 0);
		return false;
	}
	r = c->n_copied == wanted ? copying_start(c, GPU_UP, loading_on_done) : GPU_E_REFUSED;
	if (r == 0)
		return true;
	copying_signal(c, false);
	loading_release(c);
	copying_refuse(c, r);
	return false;
}

static void loading_on_onboarded(struct store_onboard *o)
{
	struct copying *c = container_of(o, struct copying, o);

	c->is_onboarding = false;
	if (!loading_go(c))
		copying_free(c);
}

int handle_load(const struct request *q, struct reply *reply)
{
	const Kvbm__LoadRequest *m = q->message;
	struct copying *c;
	int r;

	c = copying_new(q,
	                &(struct copy_request){ .keys = &m->keys,
	                                        .blocks = m->blocks,
	                                        .n_blocks = m->n_blocks,
	                                        .before = m->before,
	                                        .after = m->after,
	                                        .adoption = m->adoption,
	                                        .timeout_ms = m->timeout_ms },
	                reply, &r);
	if (!c)
		return r;
	c->all = m->all;
	c->o = (struct store_onboard){ .keys = c->keys,
		                       .n = c->n,
		                       .hold = true,
		                       .now_ns = q->now_ns,
		                       .deadline_ns = q->now_ns + c->copy.wait_ns,
		                       .status = c->states,
		                       .slots = c->slots,
		                       .generations = c->generations,
		                       .wants = c->o.wants,
		                       .done = loading_on_onboarded };
	if (m->tokens_per_s)
		c->o.recompute_ns = holder_block_tokens(c->adoption->holder) * CLOCK_NS_PER_S / m->tokens_per_s;
	if (store_onboard(c->adoption->holder, &c->o) != 0)
		c->is_onboarding = true;
	else if (!loading_go(c))
		copying_free(c);
	return 0;
}
