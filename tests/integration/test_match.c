/* SPDX-License-Identifier: Apache-2.0 */
/* What is found, what is held, what goes first [8-12, 16].  Every test runs through shared memory and by socket. */
#include <check.h>

#include "tests/lib/cache.h"
#include "tests/lib/client_proc.h"
#include "tests/lib/daemon_proc.h"
#include "tests/lib/must.h"
#include "tests/lib/scale.h"

#define BLOCK 16384u

static const unsigned modes[] = { 0, KVBM_OPEN_BY_SOCKET };
#define N_MODES ((int)(sizeof(modes) / sizeof(modes[0])))

static const char *const flags[] = { "--g2.size=8M", "--g2.region_size=2M", "--g2.huge_pages=never", NULL };

static struct daemon_proc d;
static struct daemon_baseline baseline;
static struct cache c;
static struct kvbm_model model;

static void setup(void)
{
	daemon_start(&d, flags);
	model = cache_model("match", BLOCK, 1);
	cache_open(&c, d.socket, &model);
	cache_close(&c);
	daemon_baseline(&d, &baseline);
}

static void teardown(void)
{
	if (c.kvbm)
		cache_close(&c);
	daemon_check(&d, &baseline);
	daemon_deinit(&d);
}

static void begin(int mode)
{
	cache_ok(&c, cache_try_open(&c, d.socket, &model, modes[mode]));
}

static uint32_t admin(const char *action, const uint8_t *keys, uint32_t n, uint32_t *ret_kept)
{
	int r = kvbm_admin(daemon_monitor(&d), action, "match", keys, c.key_bytes, n, ret_kept);

	must_cmp(r, >=, 0);
	return (uint32_t)r;
}

static void drop_one(uint64_t number)
{
	uint8_t key[KVBM_KEY_MAX];

	cache_keys(&c, number, 1, key);
	must_eq(admin("drop", key, 1, NULL), 1);
}

START_TEST(the_longest_prefix_ends_at_the_first_miss)
{
	uint8_t keys[10 * KVBM_KEY_MAX];
	struct kvbm_span spans[10];

	begin(_i);
	must_eq(cache_verify(&c, 0, 10), 0);
	must_eq(cache_store(&c, 0, 10), 10);
	must_eq(cache_verify(&c, 0, 10), 10);
	must_eq(cache_verify(&c, 0, 12), 10);
	drop_one(5);
	must_eq(cache_verify(&c, 0, 10), 5);
	must_eq(cache_verify(&c, 6, 10), 4);
	must_eq(cache_verify(&c, 5, 5), 0);

	/* Position by position, no stop. */
	cache_keys(&c, 0, 10, keys);
	must_eq(kvbm_match(c.ns, keys, 10, KVBM_SCATTERED, spans), 9);
	for (uint32_t i = 0; i < 10; i++) {
		if (i == 5) {
			must_eq(spans[i].slot, UINT32_MAX);
			continue;
		}
		must_eq(spans[i].tiers, KVBM_TIER_G2);
		must_eq(spans[i].length, BLOCK);
		cache_check(&c, &spans[i], keys + (size_t)i * c.key_bytes);
	}
	memmove(&spans[5], &spans[6], 4 * sizeof(spans[0]));
	must_eq(kvbm_release(c.ns, spans, 9), 9);
	must_eq(cache_ok(&c, kvbm_match(c.ns, keys, 0, 0, spans)), 0);
}
END_TEST

START_TEST(peek_holds_nothing)
{
	uint8_t keys[8 * KVBM_KEY_MAX];
	struct kvbm_span spans[8];
	uint32_t kept = 99;

	begin(_i);
	cache_store(&c, 0, 8);
	cache_keys(&c, 0, 8, keys);
	must_eq(kvbm_match(c.ns, keys, 8, KVBM_PEEK, NULL), 8);
	must_eq(kvbm_match(c.ns, keys, 8, KVBM_PEEK, spans), 8);
	must_eq(daemon_metric(&d, "pins"), 0);
	must_eq(kvbm_release(c.ns, spans, 8), -KVBM_E_NOTHELD);
	must_eq(admin("flush", NULL, 0, &kept), 8);
	must_eq(kept, 0);
	must_eq(kvbm_match(c.ns, keys, 8, KVBM_PEEK, NULL), 0);
}
END_TEST

START_TEST(what_was_held_twice_is_released_twice)
{
	struct kvbm_span spans[4], again[4], wrong[4];
	uint32_t kept;

	begin(_i);
	cache_store(&c, 0, 4);
	must_eq(cache_hold(&c, 0, 4, spans), 4);
	must_eq(cache_hold(&c, 0, 4, again), 4);
	must(memcmp(spans, again, sizeof(spans)) == 0);
	must_eq(daemon_metric(&d, "pins"), 8);
	must_eq(kvbm_release(c.ns, spans, 4), 4);
	must_eq(admin("flush", NULL, 0, &kept), 0);
	must_eq(kept, 4);
	must_eq(cache_present(&c, 0, 4), 4);

	/* One that is not held among those that are: an error that changes nothing. */
	must_eq(kvbm_release(c.ns, spans, 1), 1);
	must_eq(kvbm_release(c.ns, spans, 4), -KVBM_E_NOTHELD);
	must_eq(daemon_metric(&d, "pins"), 3);
	memcpy(wrong, spans, sizeof(wrong));
	wrong[3].generation++;
	must_eq(kvbm_release(c.ns, &wrong[1], 3), -KVBM_E_NOTHELD);
	wrong[3].slot = UINT32_MAX;
	must_eq(kvbm_release(c.ns, &wrong[1], 3), -KVBM_E_NOTHELD);
	wrong[3] = spans[2]; /* held once, named twice */
	must_eq(kvbm_release(c.ns, &wrong[1], 3), -KVBM_E_NOTHELD);
	must_eq(daemon_metric(&d, "pins"), 3);
	must_eq(kvbm_release(c.ns, &spans[1], 3), 3);
	must_eq(kvbm_release(c.ns, &spans[1], 3), -KVBM_E_NOTHELD);
	must_eq(kvbm_release(c.ns, spans, 0), 0);
	must_eq(admin("flush", NULL, 0, &kept), 4);
	must_eq(kept, 0);
}
END_TEST

/* Each session's holds are its own. */
START_TEST(nobody_releases_what_another_holds)
{
	struct kvbm_span spans[4], others[4];
	struct cache other;
	uint32_t kept;

	begin(_i);
	cache_store(&c, 0, 4);
	cache_ok(&other, cache_try_open(&other, d.socket, &model, modes[N_MODES - 1 - _i]));
	must_eq(cache_hold(&c, 0, 4, spans), 4);
	must_eq(kvbm_release(other.ns, spans, 4), -KVBM_E_NOTHELD);
	must_eq(cache_hold(&other, 0, 4, others), 4);
	must_eq(kvbm_release(c.ns, spans, 4), 4);
	must_eq(kvbm_release(c.ns, spans, 4), -KVBM_E_NOTHELD);
	must_eq(admin("flush", NULL, 0, &kept), 0);
	must_eq(kept, 4);
	cache_close(&other); /* the end of the session is a release */
	daemon_await_metric(&d, "pins", 0);
	must_eq(cache_verify(&c, 0, 4), 4);
	must_eq(admin("flush", NULL, 0, &kept), 4);
}
END_TEST

START_TEST(what_is_held_survives_pressure_that_drops_all_else)
{
	uint8_t keys[8 * KVBM_KEY_MAX];
	struct kvbm_span spans[8], now[8];
	uint32_t capacity;

	begin(_i);
	capacity = cache_capacity(&c);
	cache_store_chain(&c, 0, 24);
	must_eq(cache_hold(&c, 8, 8, spans), 8);
	cache_keys(&c, 8, 8, keys);
	cache_store_roots(&c, 1001, 2 * capacity);
	/* Their children go; what is above them is not in use, but their parents' children are. */
	must_eq(cache_present(&c, 16, 8), 0);
	must_eq(cache_present(&c, 8, 8), 8);
	for (uint32_t i = 0; i < 8; i++)
		cache_check(&c, &spans[i], keys + (size_t)i * c.key_bytes);
	must_eq(cache_hold(&c, 8, 8, now), 8);
	must(memcmp(spans, now, sizeof(spans)) == 0);
	must_eq(kvbm_release(c.ns, now, 8), 8);

	/* All the rest can be had, and not one more. */
	must_cmp(cache_make_room(&c, capacity - 8 - cache_present(&c, 0, 8)), >, 0);
	must_eq(cache_present(&c, 8, 8), 8);
	must_eq(kvbm_release(c.ns, spans, 8), 8);
	must_eq(cache_verify(&c, 8, 8), 8); /* whose last holder left stays until it is dropped */
	cache_make_room(&c, capacity);
	must_eq(cache_present(&c, 0, 24), 0);
}
END_TEST

START_TEST(leaves_go_before_their_parents)
{
	uint32_t capacity;

	begin(_i);
	capacity = cache_capacity(&c);
	cache_store_chain(&c, 0, capacity);
	must_eq(cache_verify(&c, capacity - 64, 64), 64); /* used last, and yet its leaves are all there is to drop */
	must_eq(cache_make_room(&c, 10), 10);
	must_eq(cache_verify(&c, capacity - 64, 64), 54);
	must_eq(cache_present(&c, 0, 64), 64);
	must_eq(cache_make_room(&c, 74), 64); /* ten are free already */
	must_eq(cache_present(&c, capacity - 74 - 64, 64), 64);
	must_eq(cache_present(&c, capacity - 74, 64), 0);
}
END_TEST

START_TEST(the_least_recently_used_goes_first)
{
	uint32_t capacity, half;

	begin(_i);
	capacity = cache_capacity(&c);
	half = capacity / 2;
	cache_store_roots(&c, 1, capacity);
	for (uint32_t i = 0; i < half; i++)
		must_eq(cache_verify(&c, 1 + 2ull * i, 1), 1);
	must_eq(cache_make_room(&c, capacity - half - 2), capacity - half - 2);
	must_eq(cache_present_roots(&c, 1, half), half);
	must_eq(cache_present_roots(&c, 1 + 2ull * half, capacity - half), 2);
}
END_TEST

static int hint(enum kvbm_hint what, uint64_t number, uint32_t ttl_ms, uint32_t priority)
{
	uint8_t key[KVBM_KEY_MAX];

	cache_keys(&c, number, 1, key);
	return cache_ok(&c, kvbm_hint(c.ns, what, key, 1, ttl_ms, priority));
}

START_TEST(released_by_hint_goes_first_and_a_touch_rescues)
{
	uint32_t capacity;

	begin(_i);
	capacity = cache_capacity(&c);
	cache_store_roots(&c, 1, capacity - 1);
	/* The four newest. */
	for (uint32_t i = capacity - 5; i < capacity - 1; i++)
		must_eq(hint(KVBM_HINT_RELEASE, 1 + 2ull * i, 0, 0), 1);
	must_eq(hint(KVBM_HINT_RELEASE, 2, 0, 0), 0);               /* unknown */
	must_eq(cache_verify(&c, 1 + 2ull * (capacity - 5), 1), 1); /* still found */
	must_eq(cache_store(&c, 100001, 1), 1);                     /* time passes in commits */
	must_eq(hint(KVBM_HINT_TOUCH, 1 + 2ull * (capacity - 5), 0, 0), 1);
	must_eq(cache_verify(&c, 1 + 2ull * (capacity - 4), 1), 1);
	must_eq(cache_make_room(&c, 2), 2);
	must_eq(cache_present_roots(&c, 1 + 2ull * (capacity - 5), 4), 2);
	must_eq(cache_present_roots(&c, 1 + 2ull * (capacity - 5), 2), 2); /* the touched ones */
	must_eq(cache_present_roots(&c, 1, capacity - 5), capacity - 5);
}
END_TEST

START_TEST(what_is_retained_goes_last)
{
	uint32_t capacity;

	begin(_i);
	capacity = cache_capacity(&c);
	cache_store_roots(&c, 1, capacity);
	for (uint32_t i = 0; i < 4; i++)
		must_eq(hint(KVBM_HINT_RETAIN, 1 + 2ull * i, 60000, 50), 1);
	must_eq(cache_make_room(&c, capacity - 4), capacity - 4);
	must_eq(cache_present_roots(&c, 1, 4), 4);
	must_eq(cache_make_room(&c, capacity), 4); /* advice: rather than to refuse, they go too */
	must_eq(cache_present_roots(&c, 1, 4), 0);
}
END_TEST

START_TEST(bad_arguments_change_nothing)
{
	uint8_t keys[8 * KVBM_KEY_MAX];
	struct kvbm_span spans[8];

	begin(_i);
	cache_store(&c, 0, 8);
	cache_keys(&c, 0, 8, keys);
	must_eq(kvbm_match(c.ns, keys, KVBM_MAX_KEYS + 1, 0, spans), -KVBM_E_INVAL);
	must_eq(kvbm_match(c.ns, keys, 8, 1u << 20, spans), -KVBM_E_INVAL);
	must_eq(kvbm_match(c.ns, keys, 8, 0, NULL), -KVBM_E_INVAL);
	must_eq(kvbm_match(c.ns, NULL, 8, 0, spans), -KVBM_E_INVAL);
	must_eq(kvbm_hint(c.ns, (enum kvbm_hint)77, keys, 8, 0, 0), -KVBM_E_INVAL);
	must_eq(kvbm_hint(c.ns, KVBM_HINT_RETAIN, keys, 8, 10, 101), -KVBM_E_INVAL);
	must_eq(daemon_metric(&d, "pins"), 0);
	must_eq(cache_verify(&c, 0, 8), 8);
}
END_TEST

static int peer_mode;

/* Stores its own chain on top of what the other has, and reads the other's. */
static void peer(struct client_self *self, void *arg)
{
	uint64_t mine = *(const uint64_t *)arg, theirs = 1000 - mine;
	struct cache p;

	cache_ok(&p, cache_try_open(&p, d.socket, &model, modes[peer_mode]));
	must_eq(cache_store(&p, mine, 32), 32);
	client_at(self, "stored");
	must_eq(cache_verify(&p, theirs, 32), 32);
	must_eq(cache_store(&p, theirs + 32, 16), 16); /* goes on where the other ended */
	client_at(self, "went on");
	must_eq(cache_verify(&p, mine, 48), 48);
	cache_close(&p);
}

START_TEST(two_processes_find_each_others_prefixes)
{
	uint64_t first = 200, second = 800;
	struct client_proc a, b;

	peer_mode = _i;
	client_start(&a, peer, &first);
	client_start(&b, peer, &second);
	client_await(&a, "stored");
	client_await(&b, "stored");
	client_go(&a);
	client_go(&b);
	client_await(&a, "went on");
	client_await(&b, "went on");
	client_go(&a);
	client_go(&b);
	client_join(&a);
	client_join(&b);
	begin(_i);
	must_eq(cache_verify(&c, 200, 48), 48);
	must_eq(cache_verify(&c, 800, 48), 48);
}
END_TEST

static void churn(struct client_self *self, void *arg)
{
	struct cache p;

	(void)arg;
	cache_open(&p, d.socket, &model);
	client_pass(self, "begins");
	for (uint64_t first = 100000; !client_told(self); first += 128)
		cache_store(&p, first, 64);
	cache_close(&p);
}

/* Found and right, or a clean miss. */
START_TEST(match_races_with_eviction)
{
	unsigned rounds = SCALE(3000, 400), hits = 0, misses = 0;
	struct client_proc writer;

	begin(_i);
	client_start(&writer, churn, NULL);
	client_await(&writer, "begins");
	for (unsigned i = 0; i < rounds; i++) {
		uint64_t first = 2 + 128ull * (i / 4 % 16); /* a few times running, then not for long */
		uint32_t n = cache_verify(&c, first, 16);

		hits += n;
		misses += n < 16;
		if (n < 16)
			cache_ok(&c, cache_try_store(&c, KVBM_ALL_LANES, first + n, 16 - n));
	}
	client_go(&writer);
	client_join(&writer);
	must_cmp(hits, >, 0);
	must_cmp(misses, >, 0);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("match");
	TCase *tc = tcase_create("match");
	SRunner *sr = srunner_create(s);
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 120);
	tcase_add_loop_test(tc, the_longest_prefix_ends_at_the_first_miss, 0, N_MODES);
	tcase_add_loop_test(tc, peek_holds_nothing, 0, N_MODES);
	tcase_add_loop_test(tc, what_was_held_twice_is_released_twice, 0, N_MODES);
	tcase_add_loop_test(tc, nobody_releases_what_another_holds, 0, N_MODES);
	tcase_add_loop_test(tc, what_is_held_survives_pressure_that_drops_all_else, 0, N_MODES);
	tcase_add_loop_test(tc, leaves_go_before_their_parents, 0, N_MODES);
	tcase_add_loop_test(tc, the_least_recently_used_goes_first, 0, N_MODES);
	tcase_add_loop_test(tc, released_by_hint_goes_first_and_a_touch_rescues, 0, N_MODES);
	tcase_add_loop_test(tc, what_is_retained_goes_last, 0, N_MODES);
	tcase_add_loop_test(tc, bad_arguments_change_nothing, 0, N_MODES);
	tcase_add_loop_test(tc, two_processes_find_each_others_prefixes, 0, N_MODES);
	tcase_add_loop_test(tc, match_races_with_eviction, 0, N_MODES);
	suite_add_tcase(s, tc);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed == 0 ? 0 : 1;
}
