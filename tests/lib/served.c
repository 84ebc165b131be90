/* SPDX-License-Identifier: Apache-2.0 */
/* Owns one of each object the daemon has between its sockets and its memory.  Everything that is wrong ends the process: a unit
 * test or a fuzzer then says where. */
#include "tests/lib/served.h"

#include <stdlib.h>
#include <unistd.h>

#include <kvbm_version.h>

#include "base/assert.h"
#include "base/log.h"
#include "base/thread.h"
#include "tests/lib/fake_tier.h"

#define MS UINT64_C(1000000)

const struct sessions_config served_limits = {
	.conn = { .timeout_ns = 5000 * MS, .output_bytes = 4 * WIRE_MAX_FRAME },
	.max_sessions = 8,
	.max_per_uid = 4,
	.slots_per_session = 64,
	.slots_per_uid = 128,
	.holds_per_session = 64,
	.holds_per_uid = 128,
	.pins_per_session = 64,
	.zombie_ns = 0,
};

static void served_start(struct served *s, const struct store_config *with)
{
	struct store_config config = { .policies = with->policies,
		                       .n_policies = with->n_policies,
		                       .lower = with->lower,
		                       .calculator = with->calculator,
		                       .max_transfers = with->max_transfers,
		                       .low_percent = with->low_percent,
		                       .write = with->write,
		                       .max_namespaces = 4,
		                       .grace_percent = 10,
		                       .why_entries = 64,
		                       .write_timeout_ns = 1000 * MS };
	int r;

	thread_set_role(THREAD_LOOP);
	*s = (struct served){ .now_ns = 1000 * MS };
	s->tier = fake_tier_new(UINT64_C(16) << 20, UINT64_C(2) << 20, with->lower != NULL);
	fake_tier_give_fds(s->tier);
	r = life_init(&s->life);
	assert(r == 0);
	config.host = s->tier;
	config.boot_id = s->life.boot_id;
	r = store_new(&config, &s->store);
	assert(r == 0);
	r = loop_new(&s->loop);
	assert(r == 0);
	s->service = (struct service){ .store = s->store,
		                       .host = s->tier,
		                       .life = &s->life,
		                       .wait_ns = 1000 * MS,
		                       .socket = "/nowhere/kvbmd.sock" };
	r = service_init(&s->service);
	assert(r == 0);
	sessions_init(&s->sessions, s->loop, &s->service, &served_limits);
}

void served_init(struct served *s, const struct store_policy *policies, uint32_t n_policies)
{
	served_start(s, &(struct store_config){ .policies = policies, .n_policies = n_policies });
}

void served_init_lower(struct served *s, const struct store_config *with)
{
	served_start(s, with);
}

void served_forget_reply(struct served *s)
{
	if (s->reply)
		kvbm__reply__free_unpacked(s->reply, NULL);
	s->reply = NULL;
	while (s->n_fds > 0)
		close(s->fds[--s->n_fds]);
}

void served_turn(struct served *s)
{
	loop_turn(s->loop, false);
}

/* What is left once nobody is connected: blocks, and nothing else. */
static void served_check_idle(struct served *s)
{
	struct ns_report r;

	assert(s->sessions.n == 0 && s->sessions.n_zombies == 0 && list_empty(&s->sessions.users));
	for (uint32_t i = 0; i < store_n_namespaces(s->store); i++) {
		store_report(s->store, i, &r);
		assert(r.holders == 0 && r.partial == 0 && r.quarantined == 0 && r.pins == 0 && r.holds == 0);
		assert(r.free + r.used == r.n_slots);
	}
	assert(store_next_ns(s->store) == UINT64_MAX || store_n_namespaces(s->store) > 0);
	assert(fake_tier_objects(s->tier) == 2 * store_n_namespaces(s->store));
}

void served_end_all(struct served *s)
{
	served_forget_reply(s);
	store_check(s->store);
	sessions_close(&s->sessions);
	for (int i = 0; i < 16 && s->sessions.n_all > 0; i++)
		served_turn(s);
	assert(s->sessions.n_all == 0);
	store_check(s->store);
	served_check_idle(s);
}

void served_deinit(struct served *s)
{
	struct ns_report r;
	uint32_t dropped;
	int code;

	served_end_all(s);
	while (store_n_namespaces(s->store) > 0) {
		store_report(s->store, 0, &r);
		code = store_remove(s->store, r.name, &dropped);
		assert(code == 0);
	}
	assert(fake_tier_regions(s->tier) == 0 && fake_tier_objects(s->tier) == 0);
	sessions_deinit(&s->sessions);
	service_deinit(&s->service);
	s->loop = loop_free(s->loop);
	s->store = store_free(s->store);
	life_deinit(&s->life);
	s->tier = fake_tier_free(s->tier);
	thread_set_role(THREAD_NONE);
}

/* ---- calls ---- */

struct session *served_session(struct served *s, uint32_t uid)
{
	struct session *session;
	int r = session_new(&s->sessions, uid, getpid(), &session);

	assert(r == 0 || r == REPLY_LIMIT);
	return r == 0 ? session : NULL;
}

struct session *served_open(struct served *s, uint32_t uid)
{
	Kvbm__HelloRequest m = KVBM__HELLO_REQUEST__INIT;
	struct session *session = served_session(s, uid);

	if (!session)
		return NULL;
	m.version_major = KVBM_PROTO_MAJOR;
	m.version_minor = KVBM_PROTO_MINOR;
	m.name = "test";
	if (served_call(s, session, KVBM__VERB__VERB_HELLO, &m.base) != 0)
		assert(!"hello is refused");
	return session;
}

static uint64_t bytes_number(const uint8_t *p, unsigned n)
{
	uint64_t v = 0;

	while (n-- > 0)
		v = v << 8 | p[n];
	return v;
}

/* The one frame in @out, taken apart. */
static void served_take(struct served *s, struct wire_out *out, const struct wire_frame *request)
{
	const uint8_t *p = out->buf + out->head;
	size_t size = wire_out_bytes(out);

	assert(size >= WIRE_HEADER_BYTES && bytes_number(p, 4) == WIRE_MAGIC);
	assert(bytes_number(p + 8, 4) == size - WIRE_HEADER_BYTES); /* one frame, and nothing behind it */
	assert(bytes_number(p + 4, 2) == request->head.verb && bytes_number(p + 6, 2) == WIRE_FLAG_REPLY);
	assert(bytes_number(p + 16, 8) == request->head.id);
	assert(out->n_marks <= 1 && (out->n_marks == 1) == (bytes_number(p + 12, 2) > 0));
	s->n_fds = out->n_marks ? out->marks[0].n_fds : 0;
	assert(s->n_fds == bytes_number(p + 12, 2));
	for (unsigned i = 0; i < s->n_fds; i++)
		s->fds[i] = out->marks[0].fds[i];
	if (out->n_marks)
		out->marks[0].n_fds = 0; /* ours now */
	s->reply = kvbm__reply__unpack(NULL, size - WIRE_HEADER_BYTES, p + WIRE_HEADER_BYTES);
	assert(s->reply && s->reply->boot_id == s->life.boot_id && s->reply->code < KVBM_E_MAX);
	assert((s->reply->code == 0) == (s->reply->error[0] == '\0'));
	assert(s->reply->code == 0 || s->n_fds == 0);
}

int served_frame(struct served *s, struct session *session, const struct wire_frame *frame)
{
	struct wire_out out;
	int r;

	served_forget_reply(s);
	wire_out_init(&out, served_limits.conn.output_bytes);
	r = dispatch_frame(&s->service, session, frame, s->now_ns, &out);
	assert(r == 0 || r == DISPATCH_E_LAST);
	s->last = r == DISPATCH_E_LAST;
	served_take(s, &out, frame);
	wire_out_deinit(&out);
	return (int)s->reply->code;
}

int served_bytes(struct served *s, struct session *session, uint16_t verb, const void *payload, uint32_t size)
{
	struct wire_frame frame = { .head = { .verb = verb, .id = ++s->last_id << 40 }, .payload = payload, .length = size };

	return served_frame(s, session, &frame);
}

int served_call(struct served *s, struct session *session, uint16_t verb, const ProtobufCMessage *message)
{
	size_t size = message ? protobuf_c_message_get_packed_size(message) : 0;
	uint8_t *payload = malloc(size + 1);
	int r;

	assert(payload && size <= WIRE_MAX_PAYLOAD);
	if (message)
		protobuf_c_message_pack(message, payload);
	r = served_bytes(s, session, verb, payload, (uint32_t)size);
	free(payload);
	return r;
}

uint32_t served_attach(struct served *s, struct session *session, const char *name, uint64_t block_bytes, uint32_t lanes)
{
	Kvbm__AttachRequest m = KVBM__ATTACH_REQUEST__INIT;
	int r;

	m.name = (char *)name;
	m.block_bytes = block_bytes;
	m.lanes = lanes;
	r = served_call(s, session, KVBM__VERB__VERB_ATTACH, &m.base);
	assert(r == 0 && s->n_fds == 3);
	return s->reply->attach->ns;
}
