/* SPDX-License-Identifier: Apache-2.0 */
/* A session that the daemon ends while its client does not look at its socket: the client must not go on finding blocks through
 * shared memory that nobody keeps for it any more. */
#include <check.h>
#include <poll.h>
#include <stdlib.h>

#include "client/client.h"
#include "tests/lib/cache.h"
#include "tests/lib/daemon_proc.h"
#include "tests/lib/must.h"

#define BLOCK 65536u

static const char *const flags[] = { "--g2.size=16M", NULL };
static struct daemon_proc d;
static struct cache cache;

/* The daemon disconnects who has more pins than it may; here it is made to believe so. */
static void be_evicted(void)
{
	struct shm_page *page = cache.ns->view->page;
	uint64_t pinned = page->pinned;
	struct pollfd p = { .fd = kvbm_get_fd(cache.kvbm), .events = POLLIN };

	(void)daemon_monitor(&d);
	ck_assert(shm_page_is_live(page));
	page->pinned = UINT64_MAX;
	must(poll(&p, 1, DAEMON_WAIT_MS) == 1);
	(void)daemon_metric(&d, "sessions"); /* answered after the end of the session was dealt with */
	page->pinned = pinned;
	ck_assert(!shm_page_is_live(page));
}

static void setup(void)
{
	struct kvbm_model model = cache_model("ns", BLOCK, 1);

	daemon_start(&d, flags);
	cache_open(&cache, d.socket, &model);
	must_eq(cache_store(&cache, 1, 8), 8);
}

static void teardown(void)
{
	cache_close(&cache);
	daemon_deinit(&d);
}

START_TEST(finds_nothing_through_a_page_that_is_not_read)
{
	struct kvbm_span spans[8];
	uint8_t keys[8 * KVBM_KEY_MAX];
	int hits;

	cache_keys(&cache, 1, 8, keys);
	be_evicted();
	hits = kvbm__lookup(cache.ns, keys, 8, 0, spans);
	ck_assert_int_eq(hits, 0);
	ck_assert_uint_eq(cache.ns->view->page->pinned, 0);
	for (uint32_t s = 0; s < cache.ns->view->n_slots; s++)
		ck_assert_uint_eq(shm_pin_count(cache.ns->view->page->pins[s]), 0);
}
END_TEST

START_TEST(gives_no_address_of_what_is_not_held_any_more)
{
	struct kvbm_span spans[8];

	ck_assert_uint_eq(cache_hold(&cache, 1, 8, spans), 8);
	ck_assert_ptr_nonnull(kvbm_data(cache.ns, &spans[0], 0));
	be_evicted();
	ck_assert_ptr_null(kvbm_data(cache.ns, &spans[0], 0));
	ck_assert_int_eq(kvbm_release(cache.ns, spans, 8), 8); /* it lets go of them all the same */
}
END_TEST

/* Their slots are long somebody else's, and still the release counts: or the old session's regions stayed mapped for ever. */
START_TEST(lets_go_of_what_was_overwritten_meanwhile)
{
	struct kvbm_model model = cache_model("ns", BLOCK, 1);
	struct kvbm_span spans[8];
	struct cache other;

	ck_assert_uint_eq(cache_hold(&cache, 1, 8, spans), 8);
	be_evicted();
	cache_open(&other, d.socket, &model);
	cache_store_roots(&other, 1001, cache_capacity(&other));
	cache_close(&other);
	(void)cache_try_verify(&cache, 1, 8); /* notices */
	must_eq(kvbm_ping(cache.kvbm), 0);
	ck_assert_ptr_nonnull(cache.ns->retired);
	ck_assert_ptr_null(kvbm_data(cache.ns, &spans[0], 0));
	ck_assert_int_eq(kvbm_release(cache.ns, spans, 8), 8);
	ck_assert_ptr_null(cache.ns->retired);
	ck_assert_int_eq(kvbm_release(cache.ns, spans, 8), -KVBM_E_NOTHELD);
}
END_TEST

START_TEST(attaches_again_and_finds_them)
{
	struct kvbm_counters counters;

	be_evicted();
	(void)cache_try_verify(&cache, 1, 8); /* notices */
	must_eq(kvbm_ping(cache.kvbm), 0);
	ck_assert_uint_eq(cache_verify(&cache, 1, 8), 8);
	kvbm_get_counters(cache.kvbm, &counters);
	ck_assert_uint_eq(counters.reconnects, 1);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("ended");
	TCase *tc = tcase_create("ended");
	SRunner *runner;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 120);
	tcase_add_test(tc, finds_nothing_through_a_page_that_is_not_read);
	tcase_add_test(tc, gives_no_address_of_what_is_not_held_any_more);
	tcase_add_test(tc, lets_go_of_what_was_overwritten_meanwhile);
	tcase_add_test(tc, attaches_again_and_finds_them);
	suite_add_tcase(suite, tc);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
