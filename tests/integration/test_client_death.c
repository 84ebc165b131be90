/* SPDX-License-Identifier: Apache-2.0 */
/* Clients that are killed, in every state: what was theirs is gone at once, nothing is lost, nobody else notices [29]. */
#include <check.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "tests/lib/cache.h"
#include "tests/lib/client_proc.h"
#include "tests/lib/daemon_proc.h"
#include "tests/lib/fault.h"
#include "tests/lib/must.h"
#include "tests/lib/raw.h"
#include "tests/lib/scale.h"

#define BLOCK 16384u
#define ALL KVBM_ALL_LANES
#define GONE_MS 100 /* in the middle; on a busy machine a single one may take longer */

static const char *const flags[] = { "--g2.size=16M", "--g2.region_size=2M", "--g2.huge_pages=never", NULL };

static struct daemon_proc d;
static struct daemon_baseline baseline;
static struct kvbm_model model;
static struct cache bystander; /* holds blocks all the time */
static struct kvbm_span bystander_spans[16];
static uint8_t bystander_keys[16 * KVBM_KEY_MAX];

static void setup(void)
{
	daemon_start(&d, flags);
	model = cache_model("mortal", BLOCK, 1);
	cache_open(&bystander, d.socket, &model);
	must_eq(cache_store(&bystander, 0, 32), 32);
	must_eq(cache_hold(&bystander, 0, 16, bystander_spans), 16);
	cache_keys(&bystander, 0, 16, bystander_keys);
	daemon_baseline(&d, &baseline);
}

static void teardown(void)
{
	must_eq(kvbm_release(bystander.ns, bystander_spans, 16), 16);
	cache_close(&bystander);
	daemon_deinit(&d);
}

/* Returns the milliseconds until all was as before. */
static unsigned all_as_before(void)
{
	unsigned ms = daemon_check(&d, &baseline);

	for (uint32_t i = 0; i < 16; i++)
		cache_check(&bystander, &bystander_spans[i], bystander_keys + (size_t)i * bystander.key_bytes);
	must_eq(cache_verify(&bystander, 0, 32), 32);
	return ms;
}

/* ---- states ---- */

static void idle(struct client_self *self, void *arg)
{
	struct cache c;

	(void)arg;
	cache_open(&c, d.socket, &model);
	client_at(self, "there");
}

static void reader(struct client_self *self, void *arg)
{
	struct kvbm_span spans[16];
	struct cache c;

	(void)arg;
	cache_open(&c, d.socket, &model);
	must_eq(cache_hold(&c, 8, 16, spans), 16);
	client_at(self, "there");
}

static void reader_by_socket(struct client_self *self, void *arg)
{
	struct kvbm_span spans[16];
	struct cache c;

	(void)arg;
	cache_open_by_socket(&c, d.socket, &model);
	must_eq(cache_hold(&c, 8, 16, spans), 16);
	must_eq(cache_hold(&c, 8, 16, spans), 16);
	client_at(self, "there");
}

static void writer(struct client_self *self, void *arg)
{
	struct kvbm_span spans[20];
	uint8_t keys[20 * KVBM_KEY_MAX];
	struct cache c;

	(void)arg;
	cache_open(&c, d.socket, &model);
	cache_keys(&c, 5000, 20, keys);
	must_eq(cache_ok(&c, kvbm_reserve(c.ns, ALL, keys, 20, spans, NULL)), 20);
	for (uint32_t i = 0; i < 10; i++)
		cache_fill(&c, &spans[i], keys + (size_t)i * c.key_bytes, 0);
	client_at(self, "there");
}

static void committer(struct client_self *self, void *arg)
{
	struct kvbm_span spans[20];
	uint8_t keys[20 * KVBM_KEY_MAX];
	struct cache c;

	(void)arg;
	cache_open(&c, d.socket, &model);
	cache_keys(&c, 6000, 20, keys);
	must_cmp(cache_ok(&c, kvbm_reserve(c.ns, ALL, NULL, 20, spans, NULL)), ==, 20);
	for (uint32_t i = 0; i < 20; i++)
		cache_fill(&c, &spans[i], keys + (size_t)i * c.key_bytes, 0);
	cache_ok(&c, kvbm_commit(c.ns, ALL, spans, keys, 10, NULL, KVBM_HOLD)); /* half of them: the others stay leased */
	client_at(self, "there");
}

static void silent(struct client_self *self, void *arg)
{
	struct raw raw;

	(void)arg;
	raw_open(&raw, d.socket);
	client_at(self, "there");
}

static void greeted(struct client_self *self, void *arg)
{
	struct raw raw;

	(void)arg;
	raw_hello(&raw, d.socket);
	client_at(self, "there");
}

static void in_a_header(struct client_self *self, void *arg)
{
	uint8_t header[WIRE_HEADER_BYTES];
	struct raw raw;

	(void)arg;
	raw_hello(&raw, d.socket);
	raw_header(header, KVBM__VERB__VERB_MATCH, 100, 7);
	must(raw_write(&raw, header, 11));
	client_at(self, "there");
}

static void in_a_payload(struct client_self *self, void *arg)
{
	uint8_t frame[WIRE_HEADER_BYTES + 50] = { 0 };
	struct raw raw;

	(void)arg;
	raw_hello(&raw, d.socket);
	raw_header(frame, KVBM__VERB__VERB_MATCH, 100, 7);
	must(raw_write(&raw, frame, sizeof(frame)));
	client_at(self, "there");
}

/* Requests on their way, replies never read: what was asked for may still be done, but nothing of it may last. */
static void in_a_hurry(struct client_self *self, void *arg)
{
	Kvbm__ReserveRequest reservation = KVBM__RESERVE_REQUEST__INIT;
	struct raw raw;

	(void)arg;
	raw_hello(&raw, d.socket);
	reservation.ns = raw_attach(&raw, "mortal", BLOCK, 0);
	reservation.n = 5;
	reservation.lane = ALL;
	for (int i = 0; i < 20; i++)
		must(raw_send(&raw, KVBM__VERB__VERB_RESERVE, &reservation.base));
	client_at(self, "there");
}

/* The request to attach is sent, the descriptors are in the socket when it dies. */
static void in_attach(struct client_self *self, void *arg)
{
	Kvbm__AttachRequest attach = KVBM__ATTACH_REQUEST__INIT;
	struct raw raw;

	(void)arg;
	raw_hello(&raw, d.socket);
	attach.name = (char *)"mortal";
	attach.block_bytes = BLOCK;
	attach.lanes = 1;
	attach.key_bytes = 16;
	attach.page_size = 16;
	attach.outer_dim = 2;
	attach.dtype = 1;
	attach.layout = 1;
	for (int i = 0; i < 10; i++)
		must(raw_send(&raw, KVBM__VERB__VERB_ATTACH, &attach.base));
	client_at(self, "there");
}

static const struct {
	const char *name;
	client_main *main;
} states[] = {
	{ "idle", idle },
	{ "holding through shared memory", reader },
	{ "holding by socket", reader_by_socket },
	{ "between reserve and commit", writer },
	{ "half committed and holding", committer },
	{ "connected, silent", silent },
	{ "greeted", greeted },
	{ "in a header", in_a_header },
	{ "in a payload", in_a_payload },
	{ "with replies unread", in_a_hurry },
	{ "during attach", in_attach },
};
#define N_STATES ((int)(sizeof(states) / sizeof(states[0])))

static int by_size(const void *a, const void *b)
{
	return (int)*(const unsigned *)a - (int)*(const unsigned *)b;
}

START_TEST(killed_in_this_state)
{
	unsigned ms[16], rounds = SCALE(16, 6);
	struct client_proc p;

	for (unsigned i = 0; i < rounds; i++) {
		client_start(&p, states[_i].main, NULL);
		client_await(&p, "there");
		client_kill(&p);
		ms[i] = all_as_before();
	}
	qsort(ms, rounds, sizeof(ms[0]), by_size);
	printf("%s: gone after %u ms (median), %u ms (longest)\n", states[_i].name, ms[rounds / 2], ms[rounds - 1]);
	must_cmp(ms[rounds / 2], <=, SCALE(GONE_MS, 10 * GONE_MS));
}
END_TEST

START_TEST(killed_all_at_once)
{
	struct client_proc procs[N_STATES];

	for (int round = 0; round < SCALE(10, 3); round++) {
		for (int i = 0; i < N_STATES; i++)
			client_start(&procs[i], states[i].main, NULL);
		for (int i = 0; i < N_STATES; i++)
			client_await(&procs[i], "there");
		for (int i = 0; i < N_STATES; i++)
			client_kill(&procs[i]);
		all_as_before();
	}
}
END_TEST

/* ---- at every system call ---- */

static void session(void *arg)
{
	const unsigned *open_flags = arg;
	struct kvbm_span spans[4], held[8];
	uint8_t keys[4 * KVBM_KEY_MAX];
	struct cache c;

	fault_begin();
	cache_ok(&c, cache_try_open(&c, d.socket, &model, *open_flags));
	must_eq(cache_hold(&c, 0, 8, held), 8);
	for (uint32_t i = 0; i < 8; i++)
		must(kvbm_data(c.ns, &held[i], 0));
	cache_keys(&c, 7000 + 100 * *open_flags, 4, keys);
	if (cache_ok(&c, kvbm_reserve(c.ns, ALL, NULL, 4, spans, NULL)) == 4) {
		for (uint32_t i = 0; i < 4; i++)
			cache_fill(&c, &spans[i], keys + (size_t)i * c.key_bytes, 0);
		cache_ok(&c, kvbm_commit(c.ns, ALL, spans, keys, 4, NULL, KVBM_HOLD));
		cache_ok(&c, kvbm_release(c.ns, spans, 4));
	}
	must_eq(cache_ok(&c, kvbm_reserve(c.ns, ALL, NULL, 4, spans, NULL)), 4);
	must_eq(kvbm_abort(c.ns, ALL, spans, 2), 2);
	must_eq(cache_ok(&c, kvbm_release(c.ns, held, 8)), 8);
	cache_close(&c);
}

START_TEST(killed_at_every_system_call)
{
	unsigned open_flags = _i ? KVBM_OPEN_BY_SOCKET : 0, k = 1;

	if (!fault_can_trace())
		return;
	for (; fault_kill_at(session, &open_flags, k); k++)
		all_as_before();
	all_as_before();
	must_cmp(k, >, 20);
	printf("killed at each of %u system calls\n", k - 1);
}
END_TEST

/* ---- children that inherit the socket ---- */

/* Leaves a child behind that has all of its descriptors, and its handle. */
static void leaves_a_child(struct client_self *self, void *arg)
{
	struct kvbm_span spans[8], held[8];
	int down[2], up[2];
	struct cache c;
	pid_t pid;
	char ready;

	(void)arg;
	cache_open(&c, d.socket, &model);
	must_eq(kvbm_reserve(c.ns, ALL, NULL, 8, spans, NULL), 8);
	must_eq(cache_hold(&c, 0, 8, held), 8);
	must(pipe(down) == 0 && pipe(up) == 0);
	pid = fork();
	must(pid >= 0);
	if (pid == 0) {
		alarm(60); /* not for ever, should the test be gone */
		must_eq(kvbm_ping(c.kvbm), -KVBM_E_FORKED);
		must_eq(kvbm_release(c.ns, held, 8), -KVBM_E_FORKED);
		must(write(up[1], "r", 1) == 1);
		must(read(down[0], &ready, 1) == -1); /* it is killed there */
	}
	must(read(up[0], &ready, 1) == 1);
	client_pass(self, "there");
	client_tell(self, &pid, sizeof(pid));
	client_at(self, "waits");
}

START_TEST(its_child_still_has_the_socket)
{
	struct client_proc p;
	pid_t child;

	for (int i = 0; i < 5; i++) {
		client_start(&p, leaves_a_child, NULL);
		client_await(&p, "there");
		client_result(&p, &child, sizeof(child));
		must_eq(daemon_metric(&d, "leases"), baseline.leases + 8);
		must_eq(daemon_metric(&d, "pins"), baseline.pins + 8);
		client_kill(&p); /* the owner, not the child */
		must(kill(child, 0) == 0);
		all_as_before();
		must(kill(child, SIGKILL) == 0);
		all_as_before();
	}
}
END_TEST

/* The owner closes its session while a child has a copy of everything. */
static void closes_before_its_child(struct client_self *self, void *arg)
{
	struct kvbm_span spans[8], held[8];
	struct cache c;
	pid_t pid;

	(void)arg;
	cache_open(&c, d.socket, &model);
	must_eq(kvbm_reserve(c.ns, ALL, NULL, 8, spans, NULL), 8);
	must_eq(kvbm_abort(c.ns, ALL, spans, 8), 8);
	must_eq(cache_hold(&c, 0, 8, held), 8);
	pid = fork();
	must(pid >= 0);
	if (pid == 0) {
		alarm(60);
		for (;;)
			pause();
	}
	cache_close(&c);
	client_at(self, "closed");
	must(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid);
}

START_TEST(a_close_counts_whoever_has_a_copy)
{
	struct client_proc p;

	client_start(&p, closes_before_its_child, NULL);
	client_await(&p, "closed");
	all_as_before();
	client_go(&p);
	client_join(&p);
	all_as_before();
}
END_TEST

/* A child that only had a copy dies, or closes its copy: the owner goes on. */
static void survives_its_child(struct client_self *self, void *arg)
{
	struct kvbm_span held[8];
	struct cache c;
	pid_t pid;

	(void)arg;
	cache_open(&c, d.socket, &model);
	must_eq(cache_hold(&c, 0, 8, held), 8);
	for (int i = 0; i < 2; i++) {
		pid = fork();
		must(pid >= 0);
		if (pid == 0) {
			if (i == 0)
				kvbm_close(c.kvbm);
			_exit(0);
		}
		must(waitpid(pid, NULL, 0) == pid);
		cache_ok(&c, kvbm_ping(c.kvbm));
	}
	must_eq(cache_verify(&c, 0, 8), 8);
	client_at(self, "there");
	must_eq(kvbm_release(c.ns, held, 8), 8);
	cache_close(&c);
}

START_TEST(the_death_of_a_child_is_not_that_of_its_parent)
{
	struct client_proc p;

	client_start(&p, survives_its_child, NULL);
	client_await(&p, "there");
	must_eq(daemon_metric(&d, "pins"), baseline.pins + 8);
	client_go(&p);
	client_join(&p);
	all_as_before();
}
END_TEST

int main(void)
{
	Suite *s = suite_create("client death");
	TCase *tc = tcase_create("death");
	SRunner *sr = srunner_create(s);
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 240);
	tcase_add_loop_test(tc, killed_in_this_state, 0, N_STATES);
	tcase_add_test(tc, killed_all_at_once);
	tcase_add_loop_test(tc, killed_at_every_system_call, 0, 2);
	tcase_add_test(tc, its_child_still_has_the_socket);
	tcase_add_test(tc, a_close_counts_whoever_has_a_copy);
	tcase_add_test(tc, the_death_of_a_child_is_not_that_of_its_parent);
	suite_add_tcase(s, tc);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed == 0 ? 0 : 1;
}
