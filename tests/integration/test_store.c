/* SPDX-License-Identifier: Apache-2.0 */
/* How blocks get in: reserve, write, commit, abort [1-5, 7].  Writers of the same keys and of lanes: test_store_together.c. */
#include <check.h>
#include <poll.h>
#include <stdlib.h>

#include "tests/lib/cache.h"
#include "tests/lib/daemon_proc.h"
#include "tests/lib/must.h"
#include "tests/lib/raw.h"

#define BLOCK 16384u
#define ALL KVBM_ALL_LANES

static const char *const flags[] = { "--g2.size=8M", "--g2.region_size=2M", "--g2.huge_pages=never",
	                             "--daemon.write_timeout=100ms", NULL };

static struct daemon_proc d;
static struct daemon_baseline baseline;
static struct cache c;
static struct kvbm_model model;

/* A deadline that only the test that wants it will see pass. */
static void setup(void)
{
	const char *const patient[] = { flags[0], flags[1], flags[2], NULL };

	daemon_start(&d, patient);
	model = cache_model("store", BLOCK, 1);
	cache_open(&c, d.socket, &model);
	daemon_baseline(&d, &baseline);
}

/* Huge pages, where this machine gives them. */
static void setup_huge(void)
{
	const char *const huge[] = { flags[0], flags[1], NULL };

	daemon_start(&d, huge);
	model = cache_model("store", BLOCK, 1);
	cache_open(&c, d.socket, &model);
	daemon_baseline(&d, &baseline);
}

static void setup_hasty(void)
{
	daemon_start(&d, flags);
	model = cache_model("store", BLOCK, 1);
	cache_open(&c, d.socket, &model);
	daemon_baseline(&d, &baseline);
}

static void teardown(void)
{
	daemon_check(&d, &baseline);
	cache_close(&c);
	daemon_deinit(&d);
}

static uint32_t reserve(uint64_t first, uint32_t n, struct kvbm_span *spans, uint8_t *keys)
{
	cache_keys(&c, first, n, keys);
	return (uint32_t)cache_ok(&c, kvbm_reserve(c.ns, ALL, keys, n, spans, NULL));
}

static void fill(const struct kvbm_span *spans, const uint8_t *keys, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		cache_fill(&c, &spans[i], keys + (size_t)i * c.key_bytes, 0);
}

START_TEST(reserve_is_all_or_nothing)
{
	struct kvbm_span held[64], spans[64];
	uint32_t capacity = cache_capacity(&c), dropped = 77;

	cache_store_chain(&c, 0, capacity);
	must_cmp(capacity, >, 64);
	/* All but the last ten of the chain are in use, by their descendant. */
	must_eq(cache_hold(&c, capacity - 11, 1, held), 1);
	must_eq(kvbm_reserve(c.ns, ALL, NULL, 11, spans, &dropped), -KVBM_E_NOSPACE);
	must_eq(dropped, 77);
	must_eq(cache_verify(&c, capacity - 64, 64), 64);
	must_eq(kvbm_reserve(c.ns, ALL, NULL, 0, spans, &dropped), 0);
	must_eq(dropped, 0);
	must_eq(kvbm_reserve(c.ns, ALL, NULL, 10, spans, &dropped), 10);
	must_eq(dropped, 10);
	must_eq(kvbm_reserve(c.ns, ALL, NULL, 1, spans + 10, &dropped), -KVBM_E_NOSPACE);
	must_eq(kvbm_abort(c.ns, ALL, spans, 4), 4);
	/* Free ones first. */
	must_eq(kvbm_reserve(c.ns, ALL, NULL, 4, spans, &dropped), 4);
	must_eq(dropped, 0);
	must_eq(kvbm_release(c.ns, held, 1), 1);
	must_eq(kvbm_reserve(c.ns, ALL, NULL, 3, spans + 10, &dropped), 3);
	must_eq(dropped, 3);
	must_eq(kvbm_abort(c.ns, ALL, spans, 13), 13);
	must_eq(cache_present(&c, capacity - 64, 64), 64 - 13);
}
END_TEST

START_TEST(present_and_repeated_keys_are_told)
{
	uint8_t keys[8 * KVBM_KEY_MAX];
	struct kvbm_span spans[8];

	cache_store(&c, 100, 3);
	must_eq(reserve(100, 6, spans, keys), 3);
	for (uint32_t i = 0; i < 6; i++)
		must_eq(spans[i].slot == UINT32_MAX, i < 3);
	must_eq(kvbm_abort(c.ns, ALL, &spans[3], 3), 3);

	memcpy(keys + 5 * (size_t)c.key_bytes, keys + 3 * (size_t)c.key_bytes, c.key_bytes);
	must_eq(kvbm_reserve(c.ns, ALL, keys, 6, spans, NULL), 2);
	must(spans[3].slot != UINT32_MAX && spans[4].slot != UINT32_MAX && spans[5].slot == UINT32_MAX);
	must_eq(kvbm_abort(c.ns, ALL, &spans[3], 2), 2);
	must_eq(reserve(100, 3, spans, keys), 0);
}
END_TEST

/* Visible when committed and not before; immutable from then on. */
START_TEST(a_block_appears_with_its_commit)
{
	struct kvbm_span spans[4], again[4];
	uint8_t keys[4 * KVBM_KEY_MAX];

	must_eq(reserve(10, 4, spans, keys), 4);
	fill(spans, keys, 4);
	must_eq(cache_verify(&c, 10, 4), 0);
	must_eq(cache_present(&c, 10, 4), 0);
	must_eq(kvbm_commit(c.ns, ALL, spans, keys, 4, NULL, KVBM_HOLD), 4);
	must_eq(cache_verify(&c, 10, 4), 4);
	must_eq(daemon_metric(&d, "pins"), 4);
	/* No longer its slots to write. */
	must_eq(kvbm_commit(c.ns, ALL, spans, keys, 4, NULL, 0), -KVBM_E_STALE);
	must_eq(kvbm_abort(c.ns, ALL, spans, 4), -KVBM_E_STALE);
	must_eq(cache_hold(&c, 10, 4, again), 4);
	must(memcmp(again, spans, sizeof(spans)) == 0);
	must_eq(kvbm_release(c.ns, again, 4), 4);
	must_eq(kvbm_release(c.ns, spans, 4), 4);
	must_eq(kvbm_release(c.ns, spans, 4), -KVBM_E_NOTHELD);
}
END_TEST

START_TEST(a_refused_commit_leaves_the_slots_with_the_caller)
{
	uint8_t keys[8 * KVBM_KEY_MAX], zero[KVBM_KEY_MAX] = { 0 };
	struct kvbm_span spans[8], wrong[8], theirs[1];
	struct cache other;

	cache_open(&other, d.socket, &model);
	must_eq(kvbm_reserve(other.ns, ALL, NULL, 1, theirs, NULL), 1);
	must_eq(reserve(20, 4, spans, keys), 4);
	fill(spans, keys, 4);

	must_eq(kvbm_commit(c.ns, 1, spans, keys, 4, NULL, 0), -KVBM_E_INVAL); /* there is lane 0 only */
	must_eq(kvbm_commit(c.ns, 64, spans, keys, 4, NULL, 0), -KVBM_E_INVAL);
	memcpy(wrong, spans, sizeof(wrong));
	wrong[3] = wrong[0];
	must_eq(kvbm_commit(c.ns, ALL, wrong, keys, 4, NULL, 0), -KVBM_E_INVAL); /* a slot named twice */
	memcpy(wrong, spans, sizeof(wrong));
	wrong[2].generation--;
	must_eq(kvbm_commit(c.ns, ALL, wrong, keys, 4, NULL, 0), -KVBM_E_STALE);
	wrong[2] = theirs[0];
	must_eq(kvbm_commit(c.ns, ALL, wrong, keys, 4, NULL, 0), -KVBM_E_STALE);
	wrong[2].slot = 0xfffffff0u;
	must_eq(kvbm_commit(c.ns, ALL, wrong, keys, 4, NULL, 0), -KVBM_E_STALE);
	memcpy(keys + 4 * (size_t)c.key_bytes, keys, 4 * (size_t)c.key_bytes);
	memcpy(keys + 6 * (size_t)c.key_bytes, zero, c.key_bytes);
	must_eq(kvbm_commit(c.ns, ALL, spans, keys + 4 * (size_t)c.key_bytes, 4, NULL, 0), -KVBM_E_INVAL);
	must_eq(kvbm_commit(c.ns, ALL, spans, keys, KVBM_MAX_KEYS + 1, NULL, 0), -KVBM_E_INVAL);
	must_eq(kvbm_commit(c.ns, ALL, spans, keys, 4, NULL, KVBM_HOLD | KVBM_NOWAIT), -KVBM_E_INVAL);
	must_eq(kvbm_commit(c.ns, ALL, spans, keys, 4, NULL, 1u << 20), -KVBM_E_INVAL);

	must_eq(daemon_metric(&d, "leases"), baseline.leases + 5);
	must_eq(cache_present(&c, 20, 4), 0);
	must_eq(kvbm_commit(c.ns, ALL, spans, keys, 4, NULL, 0), 4);
	must_eq(cache_verify(&c, 20, 4), 4);
	must_eq(kvbm_abort(other.ns, ALL, theirs, 1), 1);
	cache_close(&other);
}
END_TEST

/* What libkvbm would not let through. */
START_TEST(a_wrong_length_is_refused)
{
	Kvbm__CommitRequest commit = KVBM__COMMIT_REQUEST__INIT;
	Kvbm__ReserveRequest reservation = KVBM__RESERVE_REQUEST__INIT;
	uint8_t key[16] = "a key, 16 bytes";
	uint32_t slot, generation;
	struct raw raw;

	raw_hello(&raw, d.socket);
	commit.ns = reservation.ns = raw_attach(&raw, "store", BLOCK, 0);
	reservation.n = 1;
	reservation.lane = ALL;
	must_eq(raw_call(&raw, KVBM__VERB__VERB_RESERVE, &reservation.base), 0);
	slot = raw.reply->reserve->slots[0];
	generation = raw.reply->reserve->generations[0];
	commit.lane = ALL;
	commit.n_slots = commit.n_generations = 1;
	commit.slots = &slot;
	commit.generations = &generation;
	commit.keys = (ProtobufCBinaryData){ 16, key };
	for (uint64_t length = 0; length <= 2 * BLOCK; length += BLOCK / 2) {
		if (length == BLOCK)
			continue;
		commit.length = length;
		must_eq(raw_call(&raw, KVBM__VERB__VERB_COMMIT, &commit.base), KVBM_E_INVAL);
	}
	commit.length = BLOCK;
	commit.n_generations = 0;
	must_eq(raw_call(&raw, KVBM__VERB__VERB_COMMIT, &commit.base), KVBM_E_INVAL);
	commit.n_generations = 1;
	must_eq(raw_call(&raw, KVBM__VERB__VERB_COMMIT, &commit.base), 0);
	must_eq(raw.reply->commit->states.data[0], 1);
	raw_close(&raw);
}
END_TEST

START_TEST(abort_gives_back_all_or_nothing)
{
	struct kvbm_span spans[6];
	uint8_t keys[6 * KVBM_KEY_MAX];
	struct cache other;

	cache_open(&other, d.socket, &model);
	must_eq(reserve(30, 6, spans, keys), 6);
	must_eq(kvbm_abort(other.ns, ALL, spans, 6), -KVBM_E_STALE);
	must_eq(kvbm_abort(c.ns, ALL, spans, 2), 2);
	must_eq(kvbm_abort(c.ns, ALL, spans, 6), -KVBM_E_STALE);
	must_eq(daemon_metric(&d, "leases"), baseline.leases + 4);
	must_eq(kvbm_abort(c.ns, 3, &spans[2], 4), -KVBM_E_INVAL);
	must_eq(kvbm_abort(c.ns, ALL, &spans[2], 0), 0);
	must_eq(kvbm_abort(c.ns, ALL, &spans[2], 4), 4);
	must_eq(kvbm_abort(c.ns, ALL, &spans[2], 4), -KVBM_E_STALE);
	must_eq(daemon_metric(&d, "leases"), baseline.leases);
	must_eq(cache_present(&c, 30, 6), 0);
	cache_close(&other);
}
END_TEST

/* The flags of the mapping that @address is in. */
static void mapping_flags(const void *address, char *ret, size_t size)
{
	FILE *f = fopen("/proc/self/smaps", "re");
	char line[512];
	bool in = false;

	must(f);
	ret[0] = '\0';
	while (!ret[0] && fgets(line, sizeof(line), f)) {
		unsigned long from, to;

		if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
			in = (uintptr_t)address >= from && (uintptr_t)address < to;
		else if (in && strncmp(line, "VmFlags:", 8) == 0)
			snprintf(ret, size, "%s", line);
	}
	must(ret[0]);
	fclose(f);
}

/* What is not there yet is made by whoever writes to it first: on small pages for good, if that did not wish for huge ones. */
START_TEST(a_client_wishes_for_the_daemons_pages)
{
	struct kvbm_span span;
	char *report, vm_flags[512];
	uint8_t key[64];

	must_eq(reserve(0, 1, &span, key), 1);
	mapping_flags(kvbm_data(c.ns, &span, 0), vm_flags, sizeof(vm_flags));
	cache_ok(&c, kvbm_info(c.kvbm, "tiers", "g2", NULL, 0, &report));
	must(strstr(report, "\"pages\""));
	if (strstr(report, "\"thp\""))
		must(strstr(vm_flags, " hg"));
	else
		must(!strstr(vm_flags, " hg"));
	free(report);
	must_eq(kvbm_abort(c.ns, ALL, &span, 1), 1);
}
END_TEST

/* After the deadline the slots are nobody's, but their writer may still be at it: free once it says, or is gone. */
START_TEST(a_missed_deadline)
{
	struct kvbm_span spans[8];
	uint8_t keys[8 * KVBM_KEY_MAX];
	struct cache other;

	must_eq(reserve(40, 8, spans, keys), 8);
	fill(spans, keys, 8);
	daemon_await_metric(&d, "g2_slots_quarantined", 8);
	must_eq(daemon_metric(&d, "blocks_expired_total"), 8);
	must_eq(kvbm_commit(c.ns, ALL, spans, keys, 4, NULL, 0), -KVBM_E_STALE);
	must_eq(cache_present(&c, 40, 8), 0);
	must_eq(daemon_metric(&d, "g2_slots_quarantined"), 4); /* to commit was to say so */
	must_eq(kvbm_abort(c.ns, ALL, &spans[4], 4), 4);
	must_eq(daemon_metric(&d, "g2_slots_quarantined"), 0);

	/* A session that leaves while its process lives: still not known. */
	cache_open(&other, d.socket, &model);
	must_eq(kvbm_reserve(other.ns, ALL, NULL, 3, spans, NULL), 3);
	daemon_await_metric(&d, "g2_slots_quarantined", 3);
	must_eq(kvbm_abort(other.ns, ALL, spans, 3), 3);
	cache_close(&other);
}
END_TEST

/* Each in time does not mean all at the same time: later reservations have later deadlines. */
START_TEST(who_keeps_to_the_deadline_is_not_hurried)
{
	for (uint64_t i = 0; i < 200; i++)
		must_eq(cache_store(&c, 1000 + 64 * i, 32), 32);
	must_eq(daemon_metric(&d, "blocks_expired_total"), 0);
}
END_TEST

START_TEST(commits_without_waiting_are_counted)
{
	struct kvbm_counters counters;
	struct kvbm_span spans[4];
	uint8_t keys[4 * KVBM_KEY_MAX];
	struct pollfd p = { .fd = kvbm_get_fd(c.kvbm), .events = POLLIN };
	struct cache other;

	must(p.fd >= 0);
	cache_open(&other, d.socket, &model);
	for (uint64_t i = 0; i < 10; i++) {
		must_eq(reserve(100 + 4 * i, 4, spans, keys), 4);
		fill(spans, keys, 4);
		if (i == 9)
			cache_store(&other, 136, 2); /* somebody else is first with two of them */
		must_cmp(kvbm_commit(c.ns, ALL, spans, keys, 4, NULL, KVBM_NOWAIT), >=, 0);
	}
	must_cmp(kvbm_commit(c.ns, ALL, spans, keys, 4, NULL, KVBM_NOWAIT), >=, 0); /* stale: will fail */
	/* Calls in between took some of the outcomes. */
	for (;;) {
		kvbm_get_counters(c.kvbm, &counters);
		if (counters.commits_new + counters.commits_existing + counters.commits_failed == 44)
			break;
		must_eq(poll(&p, 1, DAEMON_WAIT_MS), 1);
		cache_ok(&c, kvbm_dispatch(c.kvbm));
	}
	must_eq(counters.commits_new, 38);
	must_eq(counters.commits_existing, 2);
	must_eq(counters.commits_failed, 4);
	must_eq(cache_ok(&c, kvbm_dispatch(c.kvbm)), 0);
	must_eq(cache_verify(&c, 100, 40), 40);
	cache_close(&other);
}
END_TEST

/* A call that waits takes the outcomes on its way. */
START_TEST(waiting_calls_and_commits_without_waiting_mix)
{
	struct kvbm_counters counters;
	struct kvbm_span spans[2];
	uint8_t keys[2 * KVBM_KEY_MAX];

	for (uint64_t i = 0; i < 50; i++) {
		must_eq(reserve(500 + 2 * i, 2, spans, keys), 2);
		fill(spans, keys, 2);
		must_cmp(kvbm_commit(c.ns, ALL, spans, keys, 2, NULL, KVBM_NOWAIT), >=, 0);
		must_eq(cache_present(&c, 500 + 2 * i, 2), 2); /* a later request finds it done */
	}
	cache_ok(&c, kvbm_ping(c.kvbm));
	kvbm_get_counters(c.kvbm, &counters);
	must_eq(counters.commits_new, 100);
	must_eq(cache_verify(&c, 500, 64), 64);
}
END_TEST

START_TEST(a_reader_cannot_write)
{
	struct kvbm_model readonly = model;
	struct kvbm_span spans[4];
	struct cache reader;
	uint8_t *data;

	cache_store(&c, 0, 4);
	readonly.flags = KVBM_NS_READONLY;
	cache_open(&reader, d.socket, &readonly);
	must_eq(kvbm_reserve(reader.ns, ALL, NULL, 1, spans, NULL), -KVBM_E_PERM);
	must_eq(cache_hold(&reader, 0, 4, spans), 4);
	data = kvbm_data(reader.ns, &spans[0], 0);
	must(data);
	must_eq(cache_verify(&reader, 0, 4), 4);
	must_eq(kvbm_release(reader.ns, spans, 4), 4);
	cache_close(&reader);
}
END_TEST

static TCase *tests(const char *name, void (*up)(void))
{
	TCase *tc = tcase_create(name);

	tcase_add_checked_fixture(tc, up, teardown);
	tcase_set_timeout(tc, 120);
	return tc;
}

int main(void)
{
	Suite *s = suite_create("store");
	TCase *tc = tests("store", setup), *huge = tests("huge pages", setup_huge),
	      *hasty = tests("deadline", setup_hasty);
	SRunner *sr = srunner_create(s);
	int failed;

	tcase_add_test(tc, reserve_is_all_or_nothing);
	tcase_add_test(tc, present_and_repeated_keys_are_told);
	tcase_add_test(tc, a_block_appears_with_its_commit);
	tcase_add_test(tc, a_refused_commit_leaves_the_slots_with_the_caller);
	tcase_add_test(tc, a_wrong_length_is_refused);
	tcase_add_test(tc, abort_gives_back_all_or_nothing);
	tcase_add_test(tc, commits_without_waiting_are_counted);
	tcase_add_test(tc, waiting_calls_and_commits_without_waiting_mix);
	tcase_add_test(tc, a_reader_cannot_write);
	tcase_add_test(tc, a_client_wishes_for_the_daemons_pages);
	tcase_add_test(huge, a_client_wishes_for_the_daemons_pages);
	tcase_add_test(hasty, a_missed_deadline);
	tcase_add_test(hasty, who_keeps_to_the_deadline_is_not_hurried);
	suite_add_tcase(s, tc);
	suite_add_tcase(s, huge);
	suite_add_tcase(s, hasty);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed == 0 ? 0 : 1;
}
