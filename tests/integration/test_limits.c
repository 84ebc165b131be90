/* SPDX-License-Identifier: Apache-2.0 */
/* Every limit gives its named outcome, and whoever keeps to his is not touched by it [28, 32]. */
#include <check.h>
#include <grp.h>
#include <stdlib.h>

#include "tests/lib/cache.h"
#include "tests/lib/client_proc.h"
#include "tests/lib/daemon_proc.h"
#include "tests/lib/must.h"
#include "tests/lib/raw.h"

#define BLOCK 4096u
#define ALL KVBM_ALL_LANES
#define NOBODY 65534u
#define SOMEBODY 4711u

static const char *const flags[] = { "--g2.size=16M",
	                             "--g2.region_size=2M",
	                             "--g2.huge_pages=never",
	                             "--limits.leases_per_session=48",
	                             "--limits.pins_per_session=64",
	                             "--limits.slots_per_session=32",
	                             "--limits.slots_per_uid=80",
	                             "--limits.namespaces=4",
	                             "--daemon.max_sessions=12",
	                             "--daemon.max_sessions_per_uid=8",
	                             NULL };

static struct daemon_proc d;
static struct daemon_baseline baseline;
static struct kvbm_model model;
static struct cache c;

static void setup(void)
{
	daemon_start(&d, flags);
	model = cache_model("limits", BLOCK, 1);
	cache_open(&c, d.socket, &model);
	for (uint64_t i = 0; i < 8; i++)
		must_eq(cache_store(&c, 32 * i, 32), 32);
	daemon_baseline(&d, &baseline);
}

static void teardown(void)
{
	must_eq(cache_verify(&c, 0, 32), 32);
	daemon_check(&d, &baseline);
	cache_close(&c);
	daemon_deinit(&d);
}

/* ---- as other users ---- */

struct visit {
	uint32_t uid;
	const char *ns;
	int open, attach; /* what is to come of it */
};

static void visitor(struct client_self *self, void *arg)
{
	const struct visit *v = arg;
	struct kvbm_options options = { .socket = d.socket, .name = "visitor", .timeout_ms = DAEMON_WAIT_MS };
	struct kvbm_model m = cache_model(v->ns, BLOCK, 1);
	struct kvbm_ns *ns;
	struct kvbm *k;

	must(setgroups(0, NULL) == 0 && setresgid(v->uid, v->uid, v->uid) == 0 && setresuid(v->uid, v->uid, v->uid) == 0);
	must_eq(kvbm_open(&options, &k), v->open);
	if (v->open == 0) {
		must_eq(kvbm_attach(k, &m, &ns), v->attach);
		must_eq(kvbm_admin(k, "flush", NULL, NULL, 0, 0, NULL), -KVBM_E_PERM);
		kvbm_close(k);
	}
	client_pass(self, "done");
}

static void visit(const struct visit *v)
{
	struct client_proc p;

	client_start(&p, visitor, (void *)v);
	client_await(&p, "done");
	client_join(&p);
}

static bool can_be_others(void)
{
	if (getuid() == 0)
		return true;
	fprintf(stderr, "only root can be other users: not tested\n");
	return false;
}

/* ---- limits ---- */

START_TEST(sessions_of_a_uid)
{
	struct kvbm_options options = { .socket = d.socket, .timeout_ms = DAEMON_WAIT_MS };
	struct visit other = { NOBODY, "limits", 0, 0 };
	struct kvbm *k[8];
	unsigned n = 0;
	int r;

	while ((r = kvbm_open(&options, &k[n])) == 0)
		must_cmp(++n, <, 8);
	must_eq(r, -KVBM_E_LIMIT);
	must_eq(n, 6); /* with the monitor and ours, eight */
	must_eq(kvbm_open(&options, &k[n]), -KVBM_E_LIMIT);
	must_eq(cache_verify(&c, 0, 32), 32);
	if (can_be_others())
		visit(&other); /* has its own */
	kvbm_close(k[0]);
	while ((r = kvbm_open(&options, &k[0])) == -KVBM_E_LIMIT)
		daemon_await_metric(&d, "sessions", 7);
	must_eq(r, 0);
	while (n > 0)
		kvbm_close(k[--n]);
}
END_TEST

START_TEST(holds_by_message)
{
	struct kvbm_span spans[64];
	uint8_t keys[64 * KVBM_KEY_MAX];
	struct cache s;

	cache_open_by_socket(&s, d.socket, &model);
	must_eq(cache_hold(&s, 0, 32, spans), 32);
	cache_keys(&s, 0, 32, keys);
	must_eq(kvbm_match(s.ns, keys, 17, 0, spans + 32), -KVBM_E_LIMIT);
	must_eq(kvbm_match(s.ns, keys, 32, KVBM_PEEK, NULL), 32); /* holds nothing */
	must_eq(kvbm_match(s.ns, keys, 16, 0, spans + 32), 16);
	must_eq(kvbm_match(s.ns, keys, 1, 0, spans + 48), -KVBM_E_LIMIT);
	must_eq(kvbm_release(s.ns, spans + 32, 16), 16);
	must_eq(kvbm_match(s.ns, keys, 16, 0, spans + 32), 16);
	must_eq(daemon_metric(&d, "pins"), 48);
	cache_close(&s);
}
END_TEST

START_TEST(pins_through_shared_memory)
{
	struct kvbm_span spans[64];
	uint8_t keys[64 * KVBM_KEY_MAX];

	must_eq(cache_hold(&c, 0, 64, spans), 64);
	cache_keys(&c, 64, 1, keys);
	must_eq(kvbm_match(c.ns, keys, 1, 0, spans), -KVBM_E_LIMIT);
	must_eq(kvbm_match(c.ns, keys, 1, KVBM_PEEK, NULL), 1);
	must_eq(daemon_metric(&d, "pins"), 64);
	must_eq(kvbm_release(c.ns, spans, 64), 64);
	must_eq(daemon_metric(&d, "sessions_evicted_total"), 0); /* the library keeps to it */
}
END_TEST

START_TEST(slots_of_a_session_and_of_a_uid)
{
	struct kvbm_span spans[3][33];
	struct cache s[3];
	uint32_t kept = 0;

	for (int i = 0; i < 3; i++)
		cache_open(&s[i], d.socket, &model);
	must_eq(kvbm_reserve(s[0].ns, ALL, NULL, 33, spans[0], NULL), -KVBM_E_LIMIT);
	must_eq(kvbm_reserve(s[0].ns, ALL, NULL, 32, spans[0], NULL), 32);
	must_eq(kvbm_reserve(s[0].ns, ALL, NULL, 1, &spans[0][32], NULL), -KVBM_E_LIMIT);
	must_eq(kvbm_reserve(s[0].ns, ALL, NULL, 0, &spans[0][32], NULL), 0);
	must_eq(kvbm_reserve(s[1].ns, ALL, NULL, 32, spans[1], NULL), 32);
	must_eq(kvbm_reserve(s[2].ns, ALL, NULL, 17, spans[2], NULL), -KVBM_E_LIMIT); /* of the uid */
	must_eq(kvbm_reserve(s[2].ns, ALL, NULL, 16, spans[2], NULL), 16);
	must_eq(cache_try_store(&c, ALL, 100000, 1), -KVBM_E_LIMIT);
	must_eq(kvbm_abort(s[1].ns, ALL, spans[1], 32), 32);
	must_eq(cache_store(&c, 100000, 1), 1);
	must_eq(kvbm_abort(s[0].ns, ALL, spans[0], 32), 32);
	must_eq(kvbm_abort(s[2].ns, ALL, spans[2], 16), 16);
	for (int i = 0; i < 3; i++)
		cache_close(&s[i]);
	must_eq(kvbm_admin(daemon_monitor(&d), "flush", "limits", NULL, 0, 0, &kept) > 0, 1);
	for (uint64_t i = 0; i < 8; i++)
		must_eq(cache_store(&c, 32 * i, 32), 32);
}
END_TEST

START_TEST(namespaces)
{
	static const char *const names[] = { "second", "third", "fourth", "fifth" };
	struct kvbm_model large = cache_model("large", UINT64_C(1) << 32, 1);
	struct kvbm_ns *ns;
	struct cache s;

	cache_open(&s, d.socket, &model);
	must_eq(kvbm_attach(s.kvbm, &large, &ns), -KVBM_E_NOSPACE);
	for (int i = 0; i < 4; i++) {
		struct kvbm_model m = cache_model(names[i], BLOCK, 1);

		must_eq(kvbm_attach(s.kvbm, &m, &ns), i < 3 ? 0 : -KVBM_E_LIMIT);
	}
	must_eq(kvbm_attach(s.kvbm, &model, &ns), 0);
	cache_close(&s);
	for (int i = 0; i < 3; i++)
		must_eq(kvbm_admin(daemon_monitor(&d), "drop", names[i], NULL, 0, 0, NULL), 0);
	must_eq(kvbm_admin(daemon_monitor(&d), "drop", names[3], NULL, 0, 0, NULL), -KVBM_E_NOENT);
	daemon_await_metric(&d, "namespaces", 1);
	cache_open(&s, d.socket, &model);
	must_eq(cache_verify(&s, 0, 32), 32);
	cache_close(&s);
}
END_TEST

START_TEST(attachments_of_a_session)
{
	struct kvbm_ns *ns;
	struct raw raw;
	int attached = 0, r = 0;
	struct cache s;

	cache_open(&s, d.socket, &model);
	while (attached < 200 && (r = kvbm_attach(s.kvbm, &model, &ns)) == 0)
		attached++;
	must_eq(r, -KVBM_E_LIMIT);
	must_eq(attached, 63);
	must_eq(cache_verify(&s, 0, 32), 32);
	cache_close(&s);
	daemon_check(&d, &baseline);
	raw_hello(&raw, d.socket);
	for (int i = 0; i < 64; i++)
		must_eq(raw_attach(&raw, "limits", BLOCK, 0), i);
	raw_close(&raw);
}
END_TEST

/* ---- who may what ---- */

START_TEST(another_fingerprint_is_refused_with_both)
{
	struct kvbm_model others[] = { cache_model("limits", BLOCK, 1),     cache_model("limits", BLOCK, 1),
		                       cache_model("limits", 2 * BLOCK, 1), cache_model("limits", BLOCK, 2),
		                       cache_model("limits", BLOCK, 1),     cache_model("limits", BLOCK, 1),
		                       cache_model("limits", BLOCK, 1) };
	uint8_t fingerprint[16];
	char have[33];
	struct kvbm_ns *ns;
	struct cache s;

	others[0].model = "another";
	others[1].salt = "tenant";
	others[4].hash_algo = "sha512";
	others[5].dtype = KVBM_DTYPE_FP16;
	others[6].key_bytes = 32;
	kvbm_fingerprint(c.ns, fingerprint);
	for (int i = 0; i < 16; i++)
		snprintf(have + 2 * (size_t)i, 3, "%02x", fingerprint[i]);
	cache_open(&s, d.socket, &model);
	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
		const char *yours;

		must_eq(kvbm_attach(s.kvbm, &others[i], &ns), -KVBM_E_MISMATCH);
		must_contain(kvbm_error(s.kvbm), have);
		yours = strstr(kvbm_error(s.kvbm), "yours is ");
		must(yours && strspn(yours + 9, "0123456789abcdef") == 32 && strncmp(yours + 9, have, 32) != 0);
	}
	must_eq(cache_verify(&s, 0, 32), 32);
	cache_close(&s);
}
END_TEST

static void setup_bound(void)
{
	static const char text[] = "[daemon]\nallow_uids = 65534\n"
				   "[g2]\nsize = 8M\nregion_size = 2M\nhuge_pages = never\n"
				   "[namespace theirs]\nuids = 65534\n"
				   "[namespace nobodys]\nuids = 1\n";

	daemon_init(&d, text, NULL);
	daemon_run(&d);
	daemon_baseline(&d, &baseline);
}

static void teardown_bound(void)
{
	daemon_check(&d, &baseline);
	daemon_deinit(&d);
}

START_TEST(uids)
{
	static const struct visit visits[] = {
		{ NOBODY, "open", 0, 0 },
		{ NOBODY, "theirs", 0, 0 },
		{ NOBODY, "nobodys", 0, -KVBM_E_PERM },
		{ SOMEBODY, "open", -KVBM_E_PERM, 0 },
	};
	struct kvbm_model theirs = cache_model("theirs", BLOCK, 1);
	struct kvbm_ns *ns;

	if (!can_be_others())
		return;
	for (size_t i = 0; i < sizeof(visits) / sizeof(visits[0]); i++)
		visit(&visits[i]);
	/* Root connects, and is bound as anybody. */
	must_eq(kvbm_attach(daemon_monitor(&d), &theirs, &ns), -KVBM_E_PERM);
	must_eq(daemon_metric(&d, "namespaces"), 2);
	daemon_baseline(&d, &baseline);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("limits");
	TCase *tc = tcase_create("limits"), *bound = tcase_create("uids");
	SRunner *sr = srunner_create(s);
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_checked_fixture(bound, setup_bound, teardown_bound);
	tcase_set_timeout(tc, 120);
	tcase_set_timeout(bound, 120);
	tcase_add_test(tc, sessions_of_a_uid);
	tcase_add_test(tc, holds_by_message);
	tcase_add_test(tc, pins_through_shared_memory);
	tcase_add_test(tc, slots_of_a_session_and_of_a_uid);
	tcase_add_test(tc, namespaces);
	tcase_add_test(tc, attachments_of_a_session);
	tcase_add_test(tc, another_fingerprint_is_refused_with_both);
	tcase_add_test(bound, uids);
	suite_add_tcase(s, tc);
	suite_add_tcase(s, bound);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed == 0 ? 0 : 1;
}
