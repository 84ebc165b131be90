/* SPDX-License-Identifier: Apache-2.0 */
/* Hostile clients: frames of any content, from several sessions of several uids, into dispatch_frame() over a real store.
 *
 * Input: byte 0 says how the rest is read.  Even: a list of operations, each a byte and its arguments; a session remembers the
 * slots it was given, so that a commit often means something.  Odd: pieces {u8 session, u16 length, bytes} of streams.
 * Held, besides what the code asserts itself: one well-formed reply for each frame (served_frame()); every identity of the
 * store after each few operations; and when the input ends, nothing is held, charged, open or allocated.
 */
#include <stdlib.h>
#include <unistd.h>

#include <kvbm_version.h>

#include "base/assert.h"
#include "base/log.h"
#include "block/lease.h"
#include "tests/lib/fake_tier.h"
#include "tests/lib/served.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define N_SESSIONS 6u
#define N_KNOWN 24u
#define MAX_BATCH 40u
#define MS UINT64_C(1000000)

struct peer {
	struct session *session; /* borrows; NULL: not connected */
	struct wire_in in;
	uint32_t n_known, slots[N_KNOWN], generations[N_KNOWN];
};

static struct served served;
static struct peer peers[N_SESSIONS];

/* The rest of the input; zeros when it is at its end. */
static const uint8_t *at;
static size_t left;

static uint32_t byte(void)
{
	if (left == 0)
		return 0;
	left--;
	return *at++;
}

static uint32_t word(void)
{
	uint32_t v = byte();

	v = v << 8 | byte();
	v = v << 8 | byte();
	return v << 8 | byte();
}

/* ---- sessions ---- */

static void peer_end(struct peer *p, bool dead)
{
	if (!p->session)
		return;
	p->session->dead = dead;
	session_end(p->session, NULL);
	p->session = NULL;
	p->n_known = 0;
	wire_in_deinit(&p->in);
}

static bool peer_start(struct peer *p, uint32_t uid)
{
	if (p->session)
		return true;
	p->session = served_session(&served, uid);
	wire_in_init(&p->in);
	return p->session != NULL;
}

/* What came is fed to the session as the connection would; a frame that ends it ends it. */
static void peer_frames(struct peer *p)
{
	struct wire_frame frame;
	int r;

	while ((r = wire_in_next(&p->in, &frame)) == 0) {
		served_frame(&served, p->session, &frame);
		if (served.last) {
			peer_end(p, false);
			return;
		}
	}
	if (r == WIRE_E_BAD)
		peer_end(p, false);
}

static void peer_feed(struct peer *p, const uint8_t *bytes, size_t size)
{
	size_t taken;

	while (p->session && size > 0) {
		if (wire_in_feed(&p->in, bytes, size, NULL, 0, &taken) != 0) {
			peer_end(p, false);
			return;
		}
		bytes += taken;
		size -= taken;
		peer_frames(p);
	}
}

/* ---- the structured half ---- */

/* A request packed and framed; some bytes of it may be damaged on the way. */
static void peer_send(struct peer *p, uint16_t verb, const ProtobufCMessage *m, uint32_t damage)
{
	static uint64_t id;
	size_t size = m ? protobuf_c_message_get_packed_size(m) : 0;
	uint8_t *frame = calloc(1, WIRE_HEADER_BYTES + size);
	uint32_t magic = WIRE_MAGIC, length = (uint32_t)size;

	assert(frame);
	id++;
	memcpy(frame, &magic, 4);
	memcpy(frame + 4, &verb, 2);
	memcpy(frame + 8, &length, 4);
	memcpy(frame + 16, &id, 8);
	if (m)
		protobuf_c_message_pack(m, frame + WIRE_HEADER_BYTES);
	for (; size > 0 && damage > 0; damage--) {
		uint32_t place = word();

		frame[WIRE_HEADER_BYTES + place % size] = (uint8_t)(place >> 24);
	}
	served_forget_reply(&served);
	peer_feed(p, frame, WIRE_HEADER_BYTES + size);
	free(frame);
}

static uint32_t pick_ns(void)
{
	uint32_t b = byte();

	return b < 250 ? b % 3 : word();
}

/* Keys from a small alphabet, so that they meet.  Key sizes of the namespaces: see peer_attach(). */
static ProtobufCBinaryData pick_keys(const struct peer *p, uint32_t ns, uint32_t n, uint8_t *buf)
{
	struct holder *h = session_holder(p->session, ns);
	uint32_t kb = h ? h->ns->desc->key_bytes : 16, cut = byte();

	memset(buf, 0, (size_t)n * kb);
	for (uint32_t i = 0; i < n; i++) {
		buf[(size_t)i * kb] = (uint8_t)byte();
		buf[(size_t)i * kb + kb - 1] = buf[(size_t)i * kb] & 3;
	}
	return (ProtobufCBinaryData){ (size_t)n * kb - (cut == 7 && n > 0), buf };
}

static uint32_t pick_lane(void)
{
	uint32_t b = byte();

	return b < 128 ? KVBM_ALL_LANES : b < 250 ? b % 3 : word();
}

/* Slots that it was given, or others. */
static uint32_t pick_slots(const struct peer *p, uint32_t *slots, uint32_t *generations)
{
	uint32_t how = byte(), n = how & 7 ? p->n_known : byte() % MAX_BATCH;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t k = how & 8 ? byte() % N_KNOWN : i;

		slots[i] = k < p->n_known ? p->slots[k] : how & 16 ? word() : byte();
		generations[i] = k < p->n_known ? p->generations[k] : byte();
	}
	return n;
}

static void remember(struct peer *p, size_t n, const uint32_t *slots, const uint32_t *generations)
{
	p->n_known = 0;
	for (size_t i = 0; i < n && p->n_known < N_KNOWN; i++) {
		if (slots[i] == STORE_NO_SLOT)
			continue;
		p->slots[p->n_known] = slots[i];
		p->generations[p->n_known++] = generations[i];
	}
}

static void peer_hello(struct peer *p, uint32_t damage)
{
	Kvbm__HelloRequest m = KVBM__HELLO_REQUEST__INIT;
	uint32_t b = byte();

	m.version_major = b == 1 ? word() : KVBM_PROTO_MAJOR;
	m.name = b & 2 ? "a name longer than it may be, which is to be refused, as everything is that does not fit" : "x";
	peer_send(p, KVBM__VERB__VERB_HELLO, &m.base, damage);
}

static void peer_attach(struct peer *p, uint32_t damage)
{
	static const uint32_t sizes[] = { 65536, 4096, 100, 700000, 3u << 20, 1 };
	static const uint32_t key_bytes[] = { 16, 8, 32, 0, 7, 33 };
	static char *const names[] = { "a", "b", "c", "shared", "mine", "e", "f", "not a name!", "" };
	Kvbm__AttachRequest m = KVBM__ATTACH_REQUEST__INIT;
	uint32_t which = byte(), b = byte();

	/* A name mostly comes with the same description, so that sessions meet. */
	m.name = names[which % 9];
	m.block_bytes = sizes[(which + (b == 1)) % 6];
	m.lanes = which % 3 + (b == 2) * word();
	m.key_bytes = key_bytes[(which + (b == 3)) % 3 + (b == 4) * 3];
	m.flags = b & 16 ? KVBM_NS_READONLY : 0;
	if (b >= 240) {
		m.num_layers = byte();
		m.page_size = word();
		m.inner_dim = byte();
		m.outer_dim = byte();
		m.dtype = byte() % 8;
		m.layout = byte() % 5;
		m.block_bytes = b & 1 ? 0 : m.block_bytes;
	}
	peer_send(p, KVBM__VERB__VERB_ATTACH, &m.base, damage);
}

static void peer_reserve(struct peer *p, uint32_t damage)
{
	Kvbm__ReserveRequest m = KVBM__RESERVE_REQUEST__INIT;
	uint8_t keys[MAX_BATCH * KEY_MAX];
	uint32_t b = byte();

	m.ns = pick_ns();
	m.n = b % MAX_BATCH;
	m.lane = pick_lane();
	if (b & 0xc0)
		m.keys = pick_keys(p, m.ns, m.n, keys);
	if (byte() == 1)
		m.n = word();
	peer_send(p, KVBM__VERB__VERB_RESERVE, &m.base, damage);
	if (p->session && served.reply && served.reply->reserve)
		remember(p, served.reply->reserve->n_slots, served.reply->reserve->slots,
		         served.reply->reserve->generations);
}

static void peer_commit(struct peer *p, uint32_t damage)
{
	Kvbm__CommitRequest m = KVBM__COMMIT_REQUEST__INIT;
	uint32_t slots[MAX_BATCH], generations[MAX_BATCH], n, b = byte();
	uint8_t keys[MAX_BATCH * KEY_MAX], parents[MAX_BATCH * KEY_MAX];
	struct holder *h;

	m.ns = pick_ns();
	m.lane = pick_lane();
	n = pick_slots(p, slots, generations);
	m.slots = slots;
	m.generations = generations;
	m.n_slots = n;
	m.n_generations = n - (b == 255 && n > 0);
	m.keys = pick_keys(p, m.ns, n - (b == 254 && n > 0), keys);
	if (b & 1)
		m.parents = pick_keys(p, m.ns, b & 2 ? n : 1, parents);
	h = session_holder(p->session, m.ns);
	m.length = h && b != 253 ? h->ns->desc->lane_bytes : word();
	m.hold = b & 4;
	peer_send(p, KVBM__VERB__VERB_COMMIT, &m.base, damage);
	if (p->session && served.reply && served.reply->commit)
		remember(p, served.reply->commit->n_slots, served.reply->commit->slots, served.reply->commit->generations);
}

static void peer_abort_or_release(struct peer *p, bool release, uint32_t damage)
{
	Kvbm__ReleaseRequest rm = KVBM__RELEASE_REQUEST__INIT;
	Kvbm__AbortRequest am = KVBM__ABORT_REQUEST__INIT;
	uint32_t slots[MAX_BATCH], generations[MAX_BATCH];

	am.ns = rm.ns = pick_ns();
	am.lane = pick_lane();
	am.n_slots = am.n_generations = rm.n_slots = rm.n_generations = pick_slots(p, slots, generations);
	am.slots = rm.slots = slots;
	am.generations = rm.generations = generations;
	if (release)
		peer_send(p, KVBM__VERB__VERB_RELEASE, &rm.base, damage);
	else
		peer_send(p, KVBM__VERB__VERB_ABORT, &am.base, damage);
}

static void peer_match(struct peer *p, uint32_t damage)
{
	Kvbm__MatchRequest m = KVBM__MATCH_REQUEST__INIT;
	uint8_t keys[MAX_BATCH * KEY_MAX];
	uint32_t b = byte();

	m.ns = pick_ns();
	m.keys = pick_keys(p, m.ns, b % MAX_BATCH, keys);
	m.scattered = b & 64;
	m.hold = b & 128;
	peer_send(p, KVBM__VERB__VERB_MATCH, &m.base, damage);
	if (m.hold && p->session && served.reply && served.reply->match)
		remember(p, served.reply->match->n_slots, served.reply->match->slots, served.reply->match->generations);
}

static void peer_hint_or_stat(struct peer *p, bool hint, uint32_t damage)
{
	Kvbm__HintRequest hm = KVBM__HINT_REQUEST__INIT;
	Kvbm__StatRequest sm = KVBM__STAT_REQUEST__INIT;
	uint8_t keys[MAX_BATCH * KEY_MAX];
	uint32_t b = byte();

	hm.ns = sm.ns = pick_ns();
	hm.keys = sm.keys = pick_keys(p, hm.ns, b % MAX_BATCH, keys);
	hm.hint = byte() % 5;
	hm.ttl_ms = b & 64 ? word() : byte();
	hm.priority = byte() % 110;
	if (hint)
		peer_send(p, KVBM__VERB__VERB_HINT, &hm.base, damage);
	else
		peer_send(p, KVBM__VERB__VERB_STAT, &sm.base, damage);
}

static void peer_ask(struct peer *p, uint32_t damage)
{
	static char *const topics[] = { "status", "namespaces", "clients", "tiers",   "block",
		                        "why",    "metrics",    "",        "nonsense" };
	static char *const actions[] = { "flush", "drop", "drop", "nonsense" };
	static char *const names[] = { "a", "b", "c", "shared", "", "nobody" };
	Kvbm__InfoRequest im = KVBM__INFO_REQUEST__INIT;
	Kvbm__AdminRequest am = KVBM__ADMIN_REQUEST__INIT;
	uint8_t keys[MAX_BATCH * KEY_MAX];
	uint32_t b = byte();

	im.name = am.name = names[byte() % 6];
	im.topic = topics[byte() % 9];
	am.action = actions[byte() % 4];
	am.key_bytes = b & 64 ? byte() : 16;
	im.key = pick_keys(p, pick_ns(), 1, keys);
	if (b & 1) {
		am.keys = pick_keys(p, 0, b % MAX_BATCH, keys);
		peer_send(p, KVBM__VERB__VERB_ADMIN, &am.base, damage);
	} else {
		peer_send(p, KVBM__VERB__VERB_INFO, &im.base, damage);
	}
}

/* The client writes what it likes into its own page. */
static void peer_scribble(struct peer *p)
{
	struct holder *h = session_holder(p->session, byte() % 3);
	uint32_t n = byte() % 16;

	if (!h)
		return;
	h->page->looked_up = word();
	h->page->hits = word();
	h->page->pinned = byte();
	h->page->groups[0] = byte();
	for (uint32_t i = 0; i < n; i++)
		h->page->pins[word() % (h->ns->geo.n_regions << h->ns->geo.shift)] = byte() & 1 ? word() : 0;
}

static void operation(void)
{
	static const uint32_t uids[] = { 0, SERVED_UID, SERVED_UID + 1, SERVED_UID + 2 };
	uint32_t op = byte(), damage = op >= 200 ? 1 + op % 5 : 0;
	struct peer *p = &peers[op % N_SESSIONS];

	op = byte() % 18;
	if (op < 2 || !p->session) {
		if (peer_start(p, uids[byte() % 4]))
			peer_hello(p, damage);
		return;
	}
	switch (op) {
	case 2:
		peer_end(p, byte() & 1);
		break;
	case 3:
		served.now_ns += byte() * 10 * MS;
		store_tick(served.store, served.now_ns);
		break;
	case 4:
		served_turn(&served);
		break;
	case 5:
		peer_scribble(p);
		break;
	case 6:
		fake_tier_fail_after(served.tier, byte() % 8 + 1, byte() % 4);
		break;
	case 7:
	case 8:
		peer_attach(p, damage);
		break;
	case 9:
	case 10:
		peer_reserve(p, damage);
		break;
	case 11:
	case 12:
		peer_commit(p, damage);
		break;
	case 13:
		peer_abort_or_release(p, byte() & 1, damage);
		break;
	case 14:
		peer_match(p, damage);
		break;
	case 15:
		peer_hint_or_stat(p, byte() & 1, damage);
		break;
	case 16:
		peer_ask(p, damage);
		break;
	default:
		peer_send(p, (uint16_t)word(), NULL, 0);
	}
}

/* ---- the raw half ---- */

static void piece(void)
{
	struct peer *p = &peers[byte() % N_SESSIONS];
	size_t size = byte() << 8;

	size += byte();
	size = size < left ? size : left;
	if (peer_start(p, SERVED_UID + (uint32_t)(p - peers) % 2))
		peer_feed(p, at, size);
	at += size;
	left -= size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const uint32_t mine[] = { SERVED_UID };
	static const struct store_policy policies[] = {
		{ .name = "shared", .share_bytes = 4u << 20, .max_bytes = 8u << 20 },
		{ .name = "mine", .max_bytes = UINT64_MAX, .uids = mine, .n_uids = 1 },
	};
	int lowest = dup(STDERR_FILENO), again;
	bool raw;

	close(lowest);
	log_set_level("error");
	at = data;
	left = size;
	raw = byte() & 1;
	served_init(&served, policies, 2);
	for (unsigned n = 0; left > 0 && n < 4000; n++) {
		if (raw)
			piece();
		else
			operation();
		if (n % 8 == 7)
			store_check(served.store);
	}
	fake_tier_fail_after(served.tier, 1, 0);
	for (unsigned i = 0; i < N_SESSIONS; i++)
		peer_end(&peers[i], i & 1);
	served_deinit(&served);
	again = dup(STDERR_FILENO);
	assert(again == lowest); /* nothing is left open */
	close(again);
	return 0;
}
