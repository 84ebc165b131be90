/* SPDX-License-Identifier: Apache-2.0 */
/* server/handle_*.c: what each request does, and each way in which it is refused. */
#include <check.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <kvbm_version.h>

#include "block/lease.h"
#include "server/session.h"
#include "tests/lib/fake_tier.h"
#include "tests/lib/fdcount.h"
#include "tests/lib/served.h"

#define BLOCK 65536u
#define KB 16u
#define MAX 32u

static struct served served;
static struct session *session;
static unsigned fds_before;

static unsigned fds_open(void)
{
	struct fdcount c;

	fdcount_take(getpid(), &c);
	return c.total;
}

static void setup(void)
{
	static const uint32_t mine[] = { SERVED_UID + 1 };
	static const struct store_policy policy = { .name = "theirs", .max_bytes = UINT64_MAX, .uids = mine, .n_uids = 1 };

	served_init(&served, NULL, 0); /* what libraries keep open once and for all */
	served_deinit(&served);
	fds_before = fds_open();
	served_init(&served, &policy, 1);
	session = served_open(&served, SERVED_UID);
}

static void teardown(void)
{
	served_deinit(&served);
	ck_assert_uint_eq(fds_open(), fds_before);
}

/* ---- shorthand ---- */

/* What the last reservation, commit or match was answered. */
static uint32_t slots[MAX], generations[MAX], n_slots;
static uint8_t keys[MAX * KB];

static ProtobufCBinaryData keys_from(uint8_t first, uint32_t n)
{
	memset(keys, 0, sizeof(keys));
	for (uint32_t i = 0; i < n; i++) {
		keys[i * KB] = (uint8_t)(first + i);
		keys[i * KB + 5] = 1;
	}
	return (ProtobufCBinaryData){ (size_t)n * KB, keys };
}

static void keep(size_t n, const uint32_t *s, const uint32_t *g)
{
	ck_assert_uint_le(n, MAX);
	n_slots = (uint32_t)n;
	if (n == 0)
		return;
	memcpy(slots, s, n * sizeof(*s));
	memcpy(generations, g, n * sizeof(*g));
}

static int reserve(uint32_t ns, uint8_t first, uint32_t n, uint32_t lane)
{
	Kvbm__ReserveRequest m = KVBM__RESERVE_REQUEST__INIT;
	int code;

	m.ns = ns;
	m.n = n;
	m.lane = lane;
	if (first)
		m.keys = keys_from(first, n);
	code = served_call(&served, session, KVBM__VERB__VERB_RESERVE, &m.base);
	if (code == 0)
		keep(served.reply->reserve->n_slots, served.reply->reserve->slots, served.reply->reserve->generations);
	return code;
}

static int commit(uint32_t ns, uint8_t first, uint32_t lane, bool hold)
{
	Kvbm__CommitRequest m = KVBM__COMMIT_REQUEST__INIT;
	int code;

	m.ns = ns;
	m.lane = lane;
	m.n_slots = m.n_generations = n_slots;
	m.slots = slots;
	m.generations = generations;
	m.keys = keys_from(first, n_slots);
	m.length = BLOCK;
	m.hold = hold;
	code = served_call(&served, session, KVBM__VERB__VERB_COMMIT, &m.base);
	if (code == 0)
		keep(served.reply->commit->n_slots, served.reply->commit->slots, served.reply->commit->generations);
	return code;
}

static int match(uint32_t ns, uint8_t first, uint32_t n, bool scattered, bool hold)
{
	Kvbm__MatchRequest m = KVBM__MATCH_REQUEST__INIT;
	int code;

	m.ns = ns;
	m.keys = keys_from(first, n);
	m.scattered = scattered;
	m.hold = hold;
	code = served_call(&served, session, KVBM__VERB__VERB_MATCH, &m.base);
	if (code == 0)
		keep(served.reply->match->n_slots, served.reply->match->slots, served.reply->match->generations);
	return code;
}

static int release(uint32_t ns, uint32_t n)
{
	Kvbm__ReleaseRequest m = KVBM__RELEASE_REQUEST__INIT;

	m.ns = ns;
	m.n_slots = m.n_generations = n;
	m.slots = slots;
	m.generations = generations;
	return served_call(&served, session, KVBM__VERB__VERB_RELEASE, &m.base);
}

static int give_up(uint32_t ns, uint32_t lane)
{
	Kvbm__AbortRequest m = KVBM__ABORT_REQUEST__INIT;

	m.ns = ns;
	m.lane = lane;
	m.n_slots = m.n_generations = n_slots;
	m.slots = slots;
	m.generations = generations;
	return served_call(&served, session, KVBM__VERB__VERB_ABORT, &m.base);
}

static uint32_t attach(void)
{
	return served_attach(&served, session, "ns", BLOCK, 1);
}

/* ---- hello ---- */

START_TEST(hello_is_said_once)
{
	Kvbm__HelloRequest m = KVBM__HELLO_REQUEST__INIT;

	m.version_major = KVBM_PROTO_MAJOR;
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_HELLO, &m.base), KVBM_E_INVAL);
	ck_assert(!served.last);
}
END_TEST

START_TEST(hello_tells_who_is_there)
{
	struct session *fresh = served_session(&served, SERVED_UID);
	Kvbm__HelloRequest m = KVBM__HELLO_REQUEST__INIT;
	char name[SESSION_NAME_MAX + 1];

	memset(name, 'n', sizeof(name));
	name[SESSION_NAME_MAX] = '\0';
	m.version_major = KVBM_PROTO_MAJOR;
	m.version_minor = 77; /* newer ones say more, not less */
	m.features = UINT64_MAX;
	m.name = name;
	ck_assert_int_eq(served_call(&served, fresh, KVBM__VERB__VERB_HELLO, &m.base), KVBM_E_INVAL);
	ck_assert(!served.last);
	name[SESSION_NAME_MAX - 1] = '\0';
	name[3] = '\n';
	ck_assert_int_eq(served_call(&served, fresh, KVBM__VERB__VERB_HELLO, &m.base), 0);
	ck_assert_uint_eq(served.reply->hello->version_major, KVBM_PROTO_MAJOR);
	ck_assert_uint_eq(served.reply->hello->version_minor, KVBM_PROTO_MINOR);
	ck_assert_uint_eq(served.reply->hello->features, 0);
	ck_assert_uint_eq(served.reply->hello->session, fresh->id);
	ck_assert_str_eq(served.reply->hello->server, "kvbmd " KVBM_VERSION);
	ck_assert_uint_eq(served.n_fds, 1);
	ck_assert_int_eq(fcntl(served.fds[0], F_GETFL) & O_ACCMODE, O_RDONLY);
	ck_assert_int_eq(fresh->name[3], '?');
}
END_TEST

/* ---- attach and region ---- */

START_TEST(attach_gives_three_objects)
{
	ck_assert_uint_eq(attach(), 0);
	ck_assert_uint_eq(served.reply->attach->fingerprint.len, 16);
	ck_assert_uint_eq(served.reply->attach->lane_bytes, BLOCK);
	ck_assert(served.reply->attach->writable);
	ck_assert_int_eq(fcntl(served.fds[0], F_GETFL) & O_ACCMODE, O_RDONLY);
	ck_assert_int_eq(fcntl(served.fds[1], F_GETFL) & O_ACCMODE, O_RDONLY);
	ck_assert_int_eq(fcntl(served.fds[2], F_GETFL) & O_ACCMODE, O_RDWR);
	ck_assert_uint_eq(attach(), 1); /* once more is another part in it */
	ck_assert_uint_eq(store_n_namespaces(served.store), 1);
}
END_TEST

static const struct bad_attach {
	const char *name;
	uint64_t block_bytes;
	uint32_t layers, page, inner, outer, dtype, layout, lanes, key_bytes, flags;
	int code;
} bad_attaches[] = {
	{ .name = "", .block_bytes = 1, .code = KVBM_E_INVAL },
	{ .name = "a b", .block_bytes = 1, .code = KVBM_E_INVAL },
	{ .name = "0123456789012345678901234567890123456789012345678901234567890123", .block_bytes = 1, .code = KVBM_E_INVAL },
	{ .name = "n", .block_bytes = 0, .code = KVBM_E_INVAL },
	{ .name = "n", .block_bytes = UINT64_MAX, .code = KVBM_E_INVAL },
	{ .name = "n", .block_bytes = (UINT64_C(1) << 36) + 1, .code = KVBM_E_INVAL },
	{ .name = "n", .block_bytes = UINT64_C(1) << 36, .code = KVBM_E_NOSPACE },
	{ .name = "n", .block_bytes = 1, .lanes = 65, .code = KVBM_E_INVAL },
	{ .name = "n", .block_bytes = 1, .lanes = UINT32_MAX, .code = KVBM_E_INVAL },
	{ .name = "n", .block_bytes = 1, .key_bytes = 7, .code = KVBM_E_INVAL },
	{ .name = "n", .block_bytes = 1, .key_bytes = 33, .code = KVBM_E_INVAL },
	{ .name = "n", .block_bytes = 1, .dtype = 7, .code = KVBM_E_INVAL },
	{ .name = "n", .block_bytes = 1, .layout = 4, .code = KVBM_E_INVAL },
	{ .name = "n", .block_bytes = 1, .flags = 4, .code = KVBM_E_INVAL },
	{ .name = "n", .layers = UINT32_MAX, .page = UINT32_MAX, .inner = UINT32_MAX, .outer = UINT32_MAX, .code = KVBM_E_INVAL },
	{ .name = "n", .layers = 2, .inner = 0, .code = KVBM_E_INVAL },
	{ .name = "n", .layers = 2, .inner = 64, .block_bytes = 1, .code = KVBM_E_INVAL },
	{ .name = "theirs", .block_bytes = 1, .code = KVBM_E_PERM },
};

START_TEST(attach_is_checked_by_field)
{
	const struct bad_attach *b = &bad_attaches[_i];
	Kvbm__AttachRequest m = KVBM__ATTACH_REQUEST__INIT;

	m.name = (char *)b->name;
	m.block_bytes = b->block_bytes;
	m.num_layers = b->layers;
	m.page_size = b->page;
	m.inner_dim = b->inner;
	m.outer_dim = b->outer;
	m.dtype = b->dtype;
	m.layout = b->layout;
	m.lanes = b->lanes;
	m.key_bytes = b->key_bytes;
	m.flags = b->flags;
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_ATTACH, &m.base), b->code);
	ck_assert(!served.last);
	ck_assert_uint_eq(session->n_holders, 0);
	ck_assert_uint_eq(store_n_namespaces(served.store), 0);
}
END_TEST

START_TEST(texts_of_attach_have_a_length)
{
	Kvbm__AttachRequest m = KVBM__ATTACH_REQUEST__INIT;
	char text[200];
	char **const fields[] = { &m.model, &m.hash_algo, &m.salt };
	static const size_t longest[] = { 127, 31, 63 };

	memset(text, 't', sizeof(text));
	m.name = "ns";
	m.block_bytes = 64;
	for (int i = 0; i < 3; i++) {
		char *had = *fields[i];

		text[longest[i] + 1] = '\0';
		*fields[i] = text;
		ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_ATTACH, &m.base), KVBM_E_INVAL);
		text[longest[i] + 1] = 't';
		*fields[i] = had;
	}
}
END_TEST

/* A client that fills in the defaults meets one that leaves them out; and the shape says what the bytes say. */
START_TEST(defaults_are_those_of_the_header)
{
	Kvbm__AttachRequest m = KVBM__ATTACH_REQUEST__INIT;
	uint8_t fingerprint[16];

	m.name = "ns";
	m.num_layers = 2;
	m.inner_dim = 64;
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_ATTACH, &m.base), 0);
	ck_assert_uint_eq(served.reply->attach->lane_bytes, 2 * 2 * 16 * 64 * 2);
	memcpy(fingerprint, served.reply->attach->fingerprint.data, 16);
	m.block_bytes = 2 * 2 * 16 * 64 * 2;
	m.page_size = 16;
	m.outer_dim = 2;
	m.dtype = KVBM_DTYPE_BF16;
	m.layout = KVBM_LAYOUT_FULLY_CONTIGUOUS;
	m.lanes = 1;
	m.key_bytes = 16;
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_ATTACH, &m.base), 0);
	ck_assert_mem_eq(served.reply->attach->fingerprint.data, fingerprint, 16);
	m.dtype = KVBM_DTYPE_FP16; /* as large, and not the same */
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_ATTACH, &m.base), KVBM_E_MISMATCH);
	ck_assert_ptr_nonnull(strstr(served.reply->error, "exists with fingerprint "));
}
END_TEST

START_TEST(attach_has_limits)
{
	static const char *const names[] = { "a", "b", "c", "d", "e" };
	Kvbm__AttachRequest m = KVBM__ATTACH_REQUEST__INIT;

	for (int i = 0; i < 4; i++)
		served_attach(&served, session, names[i], BLOCK, 1);
	m.name = "e";
	m.block_bytes = BLOCK;
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_ATTACH, &m.base), KVBM_E_LIMIT);
	while (session->n_holders < SESSION_MAX_NAMESPACES)
		served_attach(&served, session, "a", BLOCK, 1);
	m.name = "a";
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_ATTACH, &m.base), KVBM_E_LIMIT);
	ck_assert(!served.last);
}
END_TEST

/* Each allocation of the tier that an attach makes is refused once. */
START_TEST(attach_survives_refused_memory)
{
	Kvbm__AttachRequest m = KVBM__ATTACH_REQUEST__INIT;
	int failures = 0, code;

	m.name = "ns";
	m.block_bytes = BLOCK;
	for (uint32_t k = 1;; k++) {
		fake_tier_fail_after(served.tier, k, 1);
		code = served_call(&served, session, KVBM__VERB__VERB_ATTACH, &m.base);
		if (code == 0)
			break;
		ck_assert_int_eq(code, KVBM_E_NOSPACE);
		ck_assert_uint_eq(session->n_holders, 0);
		store_check(served.store);
		failures++;
	}
	fake_tier_fail_after(served.tier, 1, 0);
	ck_assert_int_eq(failures, 2 + (store_n_namespaces(served.store) > 0));
}
END_TEST

/* Descriptors run out at each of the three that attach sends. */
START_TEST(attach_survives_missing_descriptors)
{
	Kvbm__AttachRequest m = KVBM__ATTACH_REQUEST__INIT;
	struct rlimit had, few;

	served_attach(&served, session, "ns", BLOCK, 1); /* so that the page is all that is made */
	served_forget_reply(&served);
	ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &had), 0);
	m.name = "ns";
	m.block_bytes = BLOCK;
	for (unsigned k = 0; k < 3; k++) {
		int next = dup(STDERR_FILENO);

		close(next);
		few = (struct rlimit){ (rlim_t)next + 2 + k, had.rlim_max };
		ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &few), 0);
		ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_ATTACH, &m.base), KVBM_E_BUSY);
		ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &had), 0);
		ck_assert_uint_eq(session->n_holders, 1);
		store_check(served.store);
	}
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_ATTACH, &m.base), 0);
}
END_TEST

static int region(uint32_t ns, uint32_t serial)
{
	Kvbm__RegionRequest m = KVBM__REGION_REQUEST__INIT;

	m.ns = ns;
	m.serial = serial;
	return served_call(&served, session, KVBM__VERB__VERB_REGION, &m.base);
}

START_TEST(regions_come_writable_or_not)
{
	Kvbm__AttachRequest m = KVBM__ATTACH_REQUEST__INIT;

	ck_assert_uint_eq(attach(), 0);
	m.name = "ns";
	m.block_bytes = BLOCK;
	m.flags = KVBM_NS_READONLY;
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_ATTACH, &m.base), 0);
	ck_assert(!served.reply->attach->writable);
	ck_assert_int_eq(region(0, 1), KVBM_E_NOENT);
	ck_assert_int_eq(reserve(1, 0, 1, KVBM_ALL_LANES), KVBM_E_PERM);
	ck_assert_int_eq(reserve(0, 0, 1, KVBM_ALL_LANES), 0);
	ck_assert_int_eq(region(0, 1), 0);
	ck_assert_uint_eq(served.n_fds, 1);
	ck_assert_uint_eq(served.reply->region->size, 2u << 20);
	ck_assert(served.reply->region->writable);
	ck_assert_int_eq(fcntl(served.fds[0], F_GETFL) & O_ACCMODE, O_RDWR);
	ck_assert_int_eq(region(1, 1), 0);
	ck_assert(!served.reply->region->writable);
	ck_assert_int_eq(fcntl(served.fds[0], F_GETFL) & O_ACCMODE, O_RDONLY);
	ck_assert_int_eq(region(0, 0), KVBM_E_NOENT);
	ck_assert_int_eq(region(0, 2), KVBM_E_NOENT);
	ck_assert_int_eq(region(0, UINT32_MAX), KVBM_E_NOENT);
}
END_TEST

/* ---- reserve, commit, abort ---- */

START_TEST(blocks_get_in)
{
	ck_assert_uint_eq(attach(), 0);
	ck_assert_int_eq(reserve(0, 1, 8, KVBM_ALL_LANES), 0);
	ck_assert_uint_eq(served.reply->reserve->reserved, 8);
	ck_assert_uint_eq(served.reply->reserve->dropped, 0);
	ck_assert_int_eq(commit(0, 1, KVBM_ALL_LANES, false), 0);
	ck_assert_uint_eq(served.reply->commit->states.len, 8);
	for (int i = 0; i < 8; i++)
		ck_assert_uint_eq(served.reply->commit->states.data[i], STORE_NEW);
	ck_assert_int_eq(reserve(0, 5, 8, KVBM_ALL_LANES), 0);
	ck_assert_uint_eq(served.reply->reserve->reserved, 4);
	for (int i = 0; i < 8; i++)
		ck_assert_int_eq(slots[i] == STORE_NO_SLOT, i < 4);
	ck_assert_uint_eq(session->quota.session.used[QUOTA_SLOTS], 4);
}
END_TEST

START_TEST(reserve_is_checked)
{
	Kvbm__ReserveRequest m = KVBM__RESERVE_REQUEST__INIT;

	ck_assert_uint_eq(attach(), 0);
	ck_assert_int_eq(reserve(0, 0, 0, KVBM_ALL_LANES), 0);
	ck_assert_int_eq(reserve(0, 0, 1, 0), 0);
	ck_assert_int_eq(reserve(0, 0, 1, 1), KVBM_E_INVAL);
	m.n = 3;
	m.lane = KVBM_ALL_LANES;
	m.keys = keys_from(1, 2);
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_RESERVE, &m.base), KVBM_E_INVAL);
	m.n = 2;
	m.keys.len--;
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_RESERVE, &m.base), KVBM_E_INVAL);
	ck_assert_uint_eq(served_attach(&served, session, "lanes", 4096, 2), 1);
	ck_assert_int_eq(reserve(1, 0, 1, 0), KVBM_E_INVAL); /* several lanes need keys to meet */
	ck_assert_int_eq(reserve(1, 1, 1, 2), KVBM_E_INVAL);
}
END_TEST

START_TEST(commit_is_checked)
{
	Kvbm__CommitRequest m = KVBM__COMMIT_REQUEST__INIT;

	ck_assert_uint_eq(attach(), 0);
	ck_assert_int_eq(reserve(0, 0, 2, KVBM_ALL_LANES), 0);
	m.lane = KVBM_ALL_LANES;
	m.slots = slots;
	m.generations = generations;
	m.length = BLOCK;
	m.n_slots = 2;
	m.n_generations = 1;
	m.keys = keys_from(1, 2);
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_COMMIT, &m.base), KVBM_E_INVAL);
	m.n_generations = 2;
	m.keys.len = KB;
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_COMMIT, &m.base), KVBM_E_INVAL);
	m.keys = keys_from(1, 2);
	m.parents = (ProtobufCBinaryData){ 3 * KB, keys };
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_COMMIT, &m.base), KVBM_E_INVAL);
	m.parents.len = KB - 1;
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_COMMIT, &m.base), KVBM_E_INVAL);
	m.parents.len = 0;
	m.length = BLOCK - 1;
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_COMMIT, &m.base), KVBM_E_INVAL);
	m.length = BLOCK;
	generations[1]++;
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_COMMIT, &m.base), KVBM_E_STALE);
	generations[1]--;
	slots[1] = slots[0];
	generations[1] = generations[0];
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_COMMIT, &m.base), KVBM_E_INVAL);
	ck_assert_uint_eq(session->quota.session.used[QUOTA_SLOTS], 2); /* nothing has changed */
	store_check(served.store);
}
END_TEST

START_TEST(the_second_writer_gets_the_canonical_slot)
{
	uint32_t first;

	ck_assert_uint_eq(attach(), 0);
	ck_assert_int_eq(reserve(0, 0, 1, KVBM_ALL_LANES), 0);
	ck_assert_int_eq(commit(0, 9, KVBM_ALL_LANES, false), 0);
	first = slots[0];
	ck_assert_int_eq(reserve(0, 0, 1, KVBM_ALL_LANES), 0);
	ck_assert_uint_ne(slots[0], first);
	ck_assert_int_eq(commit(0, 9, KVBM_ALL_LANES, true), 0);
	ck_assert_uint_eq(served.reply->commit->states.data[0], STORE_EXISTED);
	ck_assert_uint_eq(slots[0], first);
	ck_assert_uint_eq(session->quota.session.used[QUOTA_HOLDS], 1);
	ck_assert_int_eq(release(0, 1), 0);
	ck_assert_uint_eq(session->quota.session.used[QUOTA_HOLDS], 0);
	ck_assert_uint_eq(session->quota.session.used[QUOTA_SLOTS], 0);
}
END_TEST

START_TEST(lanes_are_complete_together)
{
	uint32_t slot;

	ck_assert_uint_eq(served_attach(&served, session, "lanes", BLOCK, 2), 0);
	ck_assert_int_eq(reserve(0, 1, 1, 0), 0);
	slot = slots[0];
	ck_assert_int_eq(commit(0, 1, 0, false), 0);
	ck_assert_uint_eq(served.reply->commit->states.data[0], STORE_LANES_MISSING);
	ck_assert_int_eq(match(0, 1, 1, false, false), 0);
	ck_assert_uint_eq(served.reply->match->hits, 0);
	ck_assert_int_eq(reserve(0, 1, 1, 1), 0);
	ck_assert_uint_eq(slots[0], slot);
	ck_assert_int_eq(commit(0, 1, 1, false), 0);
	ck_assert_uint_eq(served.reply->commit->states.data[0], STORE_NEW);
	ck_assert_int_eq(match(0, 1, 1, false, false), 0);
	ck_assert_uint_eq(served.reply->match->hits, 1);
}
END_TEST

START_TEST(a_deadline_makes_it_stale)
{
	ck_assert_uint_eq(attach(), 0);
	ck_assert_int_eq(reserve(0, 1, 3, KVBM_ALL_LANES), 0);
	served.now_ns += UINT64_C(10000000000);
	store_tick(served.store, served.now_ns);
	ck_assert_uint_eq(session->quota.session.used[QUOTA_SLOTS], 3); /* it may still be writing */
	ck_assert_int_eq(commit(0, 1, KVBM_ALL_LANES, false), KVBM_E_STALE);
	ck_assert_uint_eq(session->quota.session.used[QUOTA_SLOTS], 0);
}
END_TEST

START_TEST(aborted_is_given_back)
{
	ck_assert_uint_eq(attach(), 0);
	ck_assert_int_eq(reserve(0, 1, 3, KVBM_ALL_LANES), 0);
	ck_assert_int_eq(give_up(0, 5), KVBM_E_INVAL);
	ck_assert_int_eq(give_up(0, KVBM_ALL_LANES), 0);
	ck_assert_uint_eq(served.reply->count->n, 3);
	ck_assert_int_eq(give_up(0, KVBM_ALL_LANES), KVBM_E_STALE);
	ck_assert_uint_eq(session->quota.session.used[QUOTA_SLOTS], 0);
}
END_TEST

START_TEST(no_room_drops_nothing)
{
	struct ns_report r;

	ck_assert_uint_eq(served_attach(&served, session, "big", 2u << 20, 1), 0); /* 8 slots in all */
	ck_assert_int_eq(reserve(0, 0, 9, KVBM_ALL_LANES), KVBM_E_NOSPACE);
	ck_assert_int_eq(reserve(0, 0, 8, KVBM_ALL_LANES), 0);
	ck_assert_int_eq(reserve(0, 0, 1, KVBM_ALL_LANES), KVBM_E_NOSPACE);
	store_report(served.store, 0, &r);
	ck_assert_uint_eq(r.dropped, 0);
	ck_assert_uint_eq(session->quota.session.used[QUOTA_SLOTS], 8);
}
END_TEST

/* ---- match, release, hint, stat ---- */

static void eight_blocks(void)
{
	ck_assert_uint_eq(attach(), 0);
	ck_assert_int_eq(reserve(0, 1, 8, KVBM_ALL_LANES), 0);
	ck_assert_int_eq(commit(0, 1, KVBM_ALL_LANES, false), 0);
}

START_TEST(prefixes_and_scattered_matches)
{
	eight_blocks();
	ck_assert_int_eq(match(0, 1, 12, false, false), 0);
	ck_assert_uint_eq(served.reply->match->hits, 8);
	ck_assert_uint_eq(n_slots, 8);
	ck_assert_int_eq(match(0, 0, 12, false, false), 0); /* key 0 is not there */
	ck_assert_uint_eq(served.reply->match->hits, 0);
	ck_assert_int_eq(match(0, 0, 12, true, false), 0);
	ck_assert_uint_eq(served.reply->match->hits, 8);
	ck_assert_uint_eq(n_slots, 12);
	ck_assert_uint_eq(slots[0], STORE_NO_SLOT);
	ck_assert_uint_ne(slots[1], STORE_NO_SLOT);
	ck_assert_uint_eq(slots[11], STORE_NO_SLOT);
	ck_assert_uint_eq(session->quota.session.used[QUOTA_HOLDS], 0);
}
END_TEST

START_TEST(holds_are_counted_and_limited)
{
	eight_blocks();
	for (int i = 0; i < 8; i++)
		ck_assert_int_eq(match(0, 1, 8, false, true), 0);
	ck_assert_uint_eq(session->quota.session.used[QUOTA_HOLDS], 64);
	ck_assert_int_eq(match(0, 1, 1, false, true), KVBM_E_LIMIT);
	ck_assert_int_eq(match(0, 1, 8, false, false), 0);
	ck_assert_int_eq(release(0, 8), 0);
	ck_assert_uint_eq(served.reply->count->n, 8);
	ck_assert_uint_eq(session->quota.session.used[QUOTA_HOLDS], 56);
	ck_assert_int_eq(match(0, 1, 1, false, true), 0);
}
END_TEST

START_TEST(release_is_all_or_nothing)
{
	eight_blocks();
	ck_assert_int_eq(match(0, 1, 4, false, true), 0);
	generations[3]++;
	ck_assert_int_eq(release(0, 4), KVBM_E_NOTHELD);
	generations[3]--;
	slots[2] = UINT32_MAX;
	ck_assert_int_eq(release(0, 4), KVBM_E_NOTHELD);
	slots[2] = slots[1]; /* named twice, held once */
	generations[2] = generations[1];
	ck_assert_int_eq(release(0, 4), KVBM_E_NOTHELD);
	ck_assert_uint_eq(session->quota.session.used[QUOTA_HOLDS], 4);
	ck_assert_int_eq(match(0, 1, 4, false, false), 0);
	ck_assert_int_eq(release(0, 4), 0);
	ck_assert_int_eq(release(0, 4), KVBM_E_NOTHELD);
}
END_TEST

START_TEST(hints_are_checked_and_counted)
{
	Kvbm__HintRequest m = KVBM__HINT_REQUEST__INIT;

	eight_blocks();
	m.keys = keys_from(5, 8);
	for (m.hint = 0; m.hint < 6; m.hint++) {
		bool good = m.hint >= 1 && m.hint <= 3;

		m.priority = 100;
		m.ttl_ms = UINT32_MAX;
		ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_HINT, &m.base), good ? 0 : KVBM_E_INVAL);
		ck_assert(!good || served.reply->count->n == 4);
		m.priority = 101;
		ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_HINT, &m.base), KVBM_E_INVAL);
	}
	store_check(served.store);
}
END_TEST

START_TEST(stat_shows_tiers)
{
	Kvbm__StatRequest m = KVBM__STAT_REQUEST__INIT;

	eight_blocks();
	m.keys = keys_from(7, 4);
	ck_assert_int_eq(served_call(&served, session, KVBM__VERB__VERB_STAT, &m.base), 0);
	ck_assert_uint_eq(served.reply->stat->tiers.len, 4);
	ck_assert_mem_eq(served.reply->stat->tiers.data, "\2\2\0\0", 4);
}
END_TEST

/* ---- admin ---- */

static int admin(struct session *s, const char *action, const char *name, ProtobufCBinaryData k, uint32_t key_bytes)
{
	Kvbm__AdminRequest m = KVBM__ADMIN_REQUEST__INIT;

	m.action = (char *)action;
	m.name = (char *)name;
	m.keys = k;
	m.key_bytes = key_bytes;
	return served_call(&served, s, KVBM__VERB__VERB_ADMIN, &m.base);
}

START_TEST(only_administrators_drop)
{
	static const uint32_t admins[] = { SERVED_UID };
	const ProtobufCBinaryData none = { 0 };

	eight_blocks();
	ck_assert_int_eq(admin(session, "flush", "", none, 0), KVBM_E_PERM);
	served.service.admin_uids = admins;
	served.service.n_admin_uids = 1;
	ck_assert_int_eq(match(0, 1, 3, false, true), 0);
	ck_assert_int_eq(admin(session, "flush", "ns", none, 0), 0);
	ck_assert_uint_eq(served.reply->count->n, 5);
	ck_assert_uint_eq(served.reply->count->kept, 3);
}
END_TEST

START_TEST(flush_and_drop)
{
	struct session *root = served_open(&served, 0);
	const ProtobufCBinaryData none = { 0 };

	eight_blocks();
	ck_assert_int_eq(admin(root, "flush", "nobody", none, 0), KVBM_E_NOENT);
	ck_assert_int_eq(admin(root, "flush", "ns", keys_from(1, 1), KB), KVBM_E_INVAL);
	ck_assert_int_eq(admin(root, "burn", "ns", none, 0), KVBM_E_INVAL);
	ck_assert_int_eq(admin(root, "drop", "", keys_from(1, 1), KB), KVBM_E_INVAL);
	ck_assert_int_eq(admin(root, "drop", "nobody", keys_from(1, 1), KB), KVBM_E_NOENT);
	ck_assert_int_eq(admin(root, "drop", "ns", keys_from(1, 1), 7), KVBM_E_INVAL);
	ck_assert_int_eq(admin(root, "drop", "ns", keys_from(1, 2), 8), KVBM_E_INVAL);
	ck_assert_int_eq(admin(root, "drop", "ns", keys_from(7, 4), KB), 0);
	ck_assert_uint_eq(served.reply->count->n, 2);
	ck_assert_int_eq(admin(root, "drop", "ns", none, 0), 0); /* somebody is attached: only its blocks go */
	ck_assert_uint_eq(served.reply->count->n, 6);
	ck_assert_uint_eq(store_n_namespaces(served.store), 1);
	session_end(session, NULL);
	ck_assert_int_eq(admin(root, "drop", "ns", none, 0), 0);
	ck_assert_uint_eq(store_n_namespaces(served.store), 0);
}
END_TEST

static TCase *joining(void)
{
	TCase *tc = tcase_create("joining");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, hello_is_said_once);
	tcase_add_test(tc, hello_tells_who_is_there);
	tcase_add_test(tc, attach_gives_three_objects);
	tcase_add_loop_test(tc, attach_is_checked_by_field, 0, (int)(sizeof(bad_attaches) / sizeof(bad_attaches[0])));
	tcase_add_test(tc, texts_of_attach_have_a_length);
	tcase_add_test(tc, defaults_are_those_of_the_header);
	tcase_add_test(tc, attach_has_limits);
	tcase_add_test(tc, attach_survives_refused_memory);
	tcase_add_test(tc, attach_survives_missing_descriptors);
	tcase_add_test(tc, regions_come_writable_or_not);
	return tc;
}

static TCase *blocks(void)
{
	TCase *tc = tcase_create("blocks");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, blocks_get_in);
	tcase_add_test(tc, reserve_is_checked);
	tcase_add_test(tc, commit_is_checked);
	tcase_add_test(tc, the_second_writer_gets_the_canonical_slot);
	tcase_add_test(tc, lanes_are_complete_together);
	tcase_add_test(tc, a_deadline_makes_it_stale);
	tcase_add_test(tc, aborted_is_given_back);
	tcase_add_test(tc, no_room_drops_nothing);
	tcase_add_test(tc, prefixes_and_scattered_matches);
	tcase_add_test(tc, holds_are_counted_and_limited);
	tcase_add_test(tc, release_is_all_or_nothing);
	tcase_add_test(tc, hints_are_checked_and_counted);
	tcase_add_test(tc, stat_shows_tiers);
	tcase_add_test(tc, only_administrators_drop);
	tcase_add_test(tc, flush_and_drop);
	return tc;
}

int main(void)
{
	Suite *suite = suite_create("handlers");
	SRunner *runner;
	int failed;

	suite_add_tcase(suite, joining());
	suite_add_tcase(suite, blocks());
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
