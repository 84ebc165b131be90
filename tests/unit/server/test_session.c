/* SPDX-License-Identifier: Apache-2.0 */
/* server/session.c: who is let in, what ends a session, and that everything it had ends with it. */
#include "server/session.h"

#include <check.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/metrics.h"
#include "block/lease.h"
#include "tests/lib/fake_device.h"
#include "tests/lib/fdcount.h"
#include "tests/lib/raw.h"
#include "tests/lib/served.h"

#define MS UINT64_C(1000000)
#define BLOCK 65536u

static struct served served;
static struct fdcount before;

static void setup(void)
{
	served_init(&served, NULL, 0); /* what libraries keep open once and for all */
	served_deinit(&served);
	fdcount_take(getpid(), &before);
	served_init(&served, NULL, 0);
}

static void teardown(void)
{
	struct fdcount after;

	served_deinit(&served);
	fdcount_take(getpid(), &after);
	ck_assert_uint_eq(after.total, before.total);
}

static struct ns_report report(void)
{
	struct ns_report r;

	ck_assert_uint_eq(store_n_namespaces(served.store), 1);
	store_report(served.store, 0, &r);
	return r;
}

static int reserve(struct session *s, uint32_t n)
{
	Kvbm__ReserveRequest m = KVBM__RESERVE_REQUEST__INIT;

	m.n = n;
	m.lane = KVBM_ALL_LANES;
	return served_call(&served, s, KVBM__VERB__VERB_RESERVE, &m.base);
}

/* @n blocks with keys of their own. */
static void store(struct session *s, uint8_t first, uint32_t n)
{
	Kvbm__CommitRequest m = KVBM__COMMIT_REQUEST__INIT;
	uint32_t slots[16], generations[16];
	uint8_t keys[16 * 16] = { 0 };

	ck_assert_uint_le(n, 16);
	ck_assert_int_eq(reserve(s, n), 0);
	memcpy(slots, served.reply->reserve->slots, n * sizeof(*slots));
	memcpy(generations, served.reply->reserve->generations, n * sizeof(*generations));
	for (uint32_t i = 0; i < n; i++) {
		keys[(size_t)i * 16] = (uint8_t)(first + i);
		keys[(size_t)i * 16 + 1] = 1;
	}
	m.lane = KVBM_ALL_LANES;
	m.n_slots = m.n_generations = n;
	m.slots = slots;
	m.generations = generations;
	m.keys = (ProtobufCBinaryData){ (size_t)n * 16, keys };
	m.length = BLOCK;
	ck_assert_int_eq(served_call(&served, s, KVBM__VERB__VERB_COMMIT, &m.base), 0);
}

static void await_graves(void)
{
	while (served.sessions.n_zombies)
		loop_turn(served.loop, true);
}

/* ---- who is let in ---- */

START_TEST(a_uid_has_so_many_sessions)
{
	struct session *s[4];

	for (int i = 0; i < 4; i++)
		ck_assert_ptr_nonnull(s[i] = served_session(&served, 1));
	ck_assert_ptr_null(served_session(&served, 1));
	ck_assert_ptr_nonnull(served_session(&served, 2));
	session_end(s[2], NULL);
	ck_assert_ptr_nonnull(served_session(&served, 1));
	ck_assert_ptr_null(served_session(&served, 1));
}
END_TEST

START_TEST(all_uids_together_have_so_many)
{
	struct session *s = NULL;

	for (uint32_t i = 0; i < 8; i++)
		ck_assert_ptr_nonnull(s = served_session(&served, i));
	ck_assert_ptr_null(served_session(&served, 99));
	session_end(s, NULL);
	ck_assert_ptr_nonnull(served_session(&served, 99));
	served_end_all(&served);
	ck_assert(list_empty(&served.sessions.users));
}
END_TEST

START_TEST(a_new_configuration_holds_for_known_uids)
{
	struct sessions_config c = served_limits;

	ck_assert_ptr_nonnull(served_session(&served, 1));
	ck_assert_ptr_nonnull(served_session(&served, 1));
	c.max_per_uid = 2;
	sessions_configure(&served.sessions, &c);
	ck_assert_ptr_null(served_session(&served, 1));
	c.max_per_uid = 3;
	sessions_configure(&served.sessions, &c);
	ck_assert_ptr_nonnull(served_session(&served, 1));
}
END_TEST

/* ---- a device goes ---- */

static int attach_pool(struct session *s, const char *device)
{
	Kvbm__AttachRequest m = KVBM__ATTACH_REQUEST__INIT;

	m.name = (char *)"ns";
	m.block_bytes = BLOCK;
	m.device = (char *)device;
	return served_call(&served, s, KVBM__VERB__VERB_ATTACH, &m.base);
}

static int reserve_in(struct session *s, uint32_t ns, uint32_t n)
{
	Kvbm__ReserveRequest m = KVBM__RESERVE_REQUEST__INIT;

	m.ns = ns;
	m.n = n;
	m.lane = KVBM_ALL_LANES;
	return served_call(&served, s, KVBM__VERB__VERB_RESERVE, &m.base);
}

START_TEST(a_session_outlives_a_device)
{
	struct tier_device *device = fake_device_new(UINT64_C(8) << 20, UINT64_C(2) << 20, false);
	struct session *s = served_open(&served, 1);

	ck_assert_int_eq(store_pool_add(served.store, "GPU-1", device), 0);
	ck_assert_int_eq(attach_pool(s, "GPU-2"), KVBM_E_NOENT);
	ck_assert_int_eq(attach_pool(s, "GPU-1"), KVBM_E_BUSY);
	ck_assert_uint_eq(store_n_namespaces(served.store), 0);
	ck_assert_uint_eq(served_attach(&served, s, "ns", BLOCK, 1), 0);
	fake_device_set_online(device, true);
	ck_assert_int_eq(attach_pool(s, "GPU-1"), 0);
	ck_assert_uint_eq(served.reply->attach->ns, 1);
	ck_assert_int_eq(reserve_in(s, 1, 4), 0);
	fake_device_set_online(device, false);
	ck_assert_int_eq(reserve_in(s, 1, 1), KVBM_E_NOENT);
	ck_assert_int_eq(reserve_in(s, 0, 1), 0);
	ck_assert_uint_eq(s->quota.session.used[QUOTA_SLOTS], 1);
	ck_assert_int_eq(attach_pool(s, "GPU-1"), KVBM_E_BUSY);
	fake_device_set_online(device, true);
	ck_assert_int_eq(attach_pool(s, "GPU-1"), 0);
	ck_assert_uint_eq(served.reply->attach->ns, 1);
	ck_assert_int_eq(reserve_in(s, 1, 4), 0);
	served_end_all(&served);
	served_deinit(&served);
	fake_device_free(device);
	served_init(&served, NULL, 0);
}
END_TEST

START_TEST(slots_are_limited_by_session_and_uid)
{
	struct session *a = served_open(&served, 1), *b = served_open(&served, 1), *c = served_open(&served, 1);

	served_attach(&served, a, "ns", BLOCK, 1);
	served_attach(&served, b, "ns", BLOCK, 1);
	served_attach(&served, c, "ns", BLOCK, 1);
	ck_assert_int_eq(reserve(a, 65), KVBM_E_LIMIT);
	ck_assert_int_eq(reserve(a, 64), 0);
	ck_assert_int_eq(reserve(a, 1), KVBM_E_LIMIT);
	ck_assert_int_eq(reserve(b, 64), 0);
	ck_assert_int_eq(reserve(c, 1), KVBM_E_LIMIT); /* 128 for the uid */
	session_end(b, NULL);
	/* b's process may still write into them: they count until it is known dead. */
	ck_assert_int_eq(reserve(c, 1), KVBM_E_LIMIT);
	ck_assert_uint_eq(report().quarantined, 64);
	await_graves();
	ck_assert_uint_eq(report().quarantined, 0);
	ck_assert_int_eq(reserve(c, 1), 0);
}
END_TEST

/* ---- its end ---- */

START_TEST(a_zombie_counts_until_its_grave_is_due)
{
	struct session *s = NULL;

	for (uint32_t i = 0; i < 8; i++)
		ck_assert_ptr_nonnull(s = served_open(&served, i));
	served_attach(&served, s, "ns", BLOCK, 1);
	ck_assert_int_eq(reserve(s, 3), 0);
	session_end(s, "test");
	ck_assert_int_eq(s->sm.state, SESSION_ZOMBIE);
	ck_assert_uint_eq(served.sessions.n_zombies, 1);
	ck_assert_ptr_null(served_session(&served, 99));
	await_graves();
	ck_assert_ptr_nonnull(served_session(&served, 99));
	ck_assert_uint_eq(report().holders, 0);
}
END_TEST

START_TEST(what_is_known_dead_leaves_no_zombie)
{
	struct session *s = served_open(&served, 1);

	served_attach(&served, s, "ns", BLOCK, 1);
	ck_assert_int_eq(reserve(s, 3), 0);
	s->dead = true;
	session_end(s, NULL);
	ck_assert_uint_eq(served.sessions.n_zombies, 0);
	ck_assert_uint_eq(report().quarantined, 0);
	ck_assert_uint_eq(report().free, report().n_slots);
}
END_TEST

static struct tier_ops watched;
static void (*real_object_drop)(struct tier *t, struct tier_object *object);
static int live_at_the_end;

static void watch_object_drop(struct tier *t, struct tier_object *object)
{
	live_at_the_end = shm_page_is_live(object->base);
	real_object_drop(t, object);
}

/* Its client still has the page mapped, and must not take its pins for good any more. */
START_TEST(a_page_says_that_its_session_has_ended)
{
	struct session *s = served_open(&served, 1);

	served_attach(&served, s, "ns", BLOCK, 1);
	ck_assert(shm_page_is_live(session_holder(s, 0)->page));
	watched = *served.tier->ops;
	real_object_drop = watched.object_drop;
	watched.object_drop = watch_object_drop;
	served.tier->ops = &watched;
	live_at_the_end = -1;
	session_end(s, "test");
	ck_assert_int_eq(live_at_the_end, 0);
}
END_TEST

/* ---- pins ---- */

static struct session *evicted;
static uint64_t evicted_pins;

static void note_pins(void *ctx, void *owner, uint64_t pins)
{
	(void)ctx;
	evicted = owner;
	evicted_pins = pins;
}

START_TEST(more_pins_than_allowed_are_noticed)
{
	struct session *s = served_open(&served, 1);

	store_on_pins(served.store, note_pins, NULL);
	evicted = NULL;
	served_attach(&served, s, "ns", BLOCK, 1);
	session_holder(s, 0)->page->pinned = 64;
	store_tick(served.store, served.now_ns);
	ck_assert_ptr_null(evicted);
	session_holder(s, 0)->page->pinned = 65;
	store_tick(served.store, served.now_ns);
	ck_assert_ptr_eq(evicted, s);
	ck_assert_uint_eq(evicted_pins, 65);
}
END_TEST

/* Fills all of the memory with blocks of @writer, and pins them all in @liar's page. */
static void fill_and_pin(struct session *writer, struct session *liar)
{
	struct holder *h = session_holder(liar, 0);

	for (uint32_t i = 0; i < h->ns->geo.max_slots; i++) {
		Kvbm__CommitRequest m = KVBM__COMMIT_REQUEST__INIT;
		uint32_t slot, generation;
		uint8_t key[16] = { (uint8_t)(i + 1) };

		ck_assert_int_eq(reserve(writer, 1), 0);
		slot = served.reply->reserve->slots[0];
		generation = served.reply->reserve->generations[0];
		m.lane = KVBM_ALL_LANES;
		m.n_slots = m.n_generations = 1;
		m.slots = &slot;
		m.generations = &generation;
		m.keys = (ProtobufCBinaryData){ 16, key };
		m.length = 2u << 20;
		ck_assert_int_eq(served_call(&served, writer, KVBM__VERB__VERB_COMMIT, &m.base), 0);
		ck_assert(shm_page_raise(h->page, slot, h->ns->group_shift, 0, 1));
	}
}

/* A page that claims nothing and pins everything is found out when room is short, be it for another namespace. */
START_TEST(a_lying_page_is_noticed_when_memory_is_short)
{
	struct session *writer = served_open(&served, 1), *liar = served_open(&served, 2),
		       *asking = served_open(&served, 1);

	store_on_pins(served.store, note_pins, NULL);
	evicted = NULL;
	served_attach(&served, writer, "ns", 2u << 20, 1); /* 8 slots */
	served_attach(&served, liar, "ns", 2u << 20, 1);
	served_attach(&served, asking, _i ? "other" : "ns", 2u << 20, 1);
	liar->quota.pin_limit = 4;
	fill_and_pin(writer, liar);
	for (int i = 0; i < 5; i++)
		store_tick(served.store, served.now_ns);
	ck_assert_ptr_null(evicted);
	ck_assert_int_eq(reserve(asking, 1), KVBM_E_NOSPACE);
	for (int i = 0; i < 3; i++)
		store_tick(served.store, served.now_ns);
	ck_assert_ptr_eq(evicted, liar);
	ck_assert_uint_eq(evicted_pins, 8);
	session_end(liar, "holds more pins than it may");
	ck_assert_int_eq(reserve(asking, 1), 0);
}
END_TEST

/* ---- over a socket ---- */

static void turns(int n)
{
	while (n-- > 0)
		served_turn(&served);
}

static void adopt(struct raw *raw)
{
	int pair[2];

	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	memset(raw, 0, sizeof(*raw));
	wire_in_init(&raw->in);
	raw->fd = pair[1];
	sessions_adopt(&served.sessions, pair[0]);
}

static void say_hello(struct raw *raw)
{
	Kvbm__HelloRequest m = KVBM__HELLO_REQUEST__INIT;

	m.version_major = 1;
	ck_assert(raw_send(raw, KVBM__VERB__VERB_HELLO, &m.base));
	turns(2);
	ck_assert(raw_receive(raw));
	ck_assert_uint_eq(raw->reply->code, 0);
	ck_assert_uint_eq(raw->n_fds, 1);
	ck_assert_uint_eq(raw->reply->boot_id, served.life.boot_id);
}

START_TEST(a_session_over_a_socket)
{
	struct raw raw;

	adopt(&raw);
	ck_assert_uint_eq(served.sessions.n, 1);
	say_hello(&raw);
	ck_assert(raw_send(&raw, KVBM__VERB__VERB_PING, NULL));
	turns(2);
	ck_assert(raw_receive(&raw));
	raw_close(&raw);
	turns(3);
	ck_assert_uint_eq(served.sessions.n_all, 0);
}
END_TEST

START_TEST(who_is_one_too_many_is_told)
{
	struct raw raw[5];

	for (int i = 0; i < 5; i++)
		adopt(&raw[i]);
	ck_assert_uint_eq(served.sessions.n, 4);
	ck_assert_int_eq(raw_await_close(&raw[4]), KVBM_E_LIMIT);
	for (int i = 0; i < 5; i++)
		raw_close(&raw[i]);
	turns(3);
	ck_assert_uint_eq(served.sessions.n_all, 0);
}
END_TEST

START_TEST(garbage_gets_a_last_word)
{
	uint8_t garbage[WIRE_HEADER_BYTES] = "GET / HTTP/1.1\r\n";
	struct raw raw;

	adopt(&raw);
	ck_assert(raw_write(&raw, garbage, sizeof(garbage)));
	turns(3);
	ck_assert_int_eq(raw_await_close(&raw), KVBM_E_PROTO);
	raw_close(&raw);
	turns(3);
	ck_assert_uint_eq(served.sessions.n_all, 0);
}
END_TEST

START_TEST(another_version_is_refused_and_closed)
{
	Kvbm__HelloRequest m = KVBM__HELLO_REQUEST__INIT;
	struct raw raw;

	adopt(&raw);
	m.version_major = 2;
	ck_assert(raw_send(&raw, KVBM__VERB__VERB_HELLO, &m.base));
	turns(3);
	ck_assert_int_eq(raw_await_close(&raw), KVBM_E_VERSION);
	raw_close(&raw);
}
END_TEST

START_TEST(drain_ends_all)
{
	struct raw raw[3];

	for (int i = 0; i < 3; i++)
		adopt(&raw[i]);
	say_hello(&raw[0]);
	sessions_drain(&served.sessions);
	turns(3);
	ck_assert_uint_eq(served.sessions.n_all, 0);
	for (int i = 0; i < 3; i++) {
		ck_assert_int_eq(raw_await_close(&raw[i]), -1);
		raw_close(&raw[i]);
	}
}
END_TEST

START_TEST(too_many_pins_end_it_outside_of_the_store)
{
	struct session *s;
	struct raw raw;

	adopt(&raw);
	say_hello(&raw);
	s = container_of(list_first(&served.sessions.all), struct session, link);
	served_attach(&served, s, "ns", BLOCK, 1);
	session_holder(s, 0)->page->pinned = 1u << 20;
	store_tick(served.store, served.now_ns);
	ck_assert_int_eq(s->sm.state, SESSION_OPEN);
	turns(3);
	ck_assert_uint_eq(served.sessions.n_all, 0);
	ck_assert_int_eq(raw_await_close(&raw), -1);
	raw_close(&raw);
}
END_TEST

/* ---- processes that die ---- */

struct child {
	pid_t pid;
	int listener, go;
	char name[32];
};

/* What the child does: says hello, attaches, reserves 5 slots, and waits to be killed; @fork_too leaves a process that keeps the socket. */
static void child_main(const struct child *c, bool fork_too)
{
	Kvbm__ReserveRequest m = KVBM__RESERVE_REQUEST__INIT;
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct raw raw = { 0 };

	wire_in_init(&raw.in);
	memcpy(addr.sun_path + 1, c->name, strlen(c->name));
	raw.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (raw.fd < 0 || connect(raw.fd, (struct sockaddr *)&addr,
	                          (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(c->name))) != 0)
		_exit(1);
	Kvbm__HelloRequest hello = KVBM__HELLO_REQUEST__INIT;
	hello.version_major = 1;
	if (raw_call(&raw, KVBM__VERB__VERB_HELLO, &hello.base) != 0)
		_exit(2);
	m.ns = raw_attach(&raw, "ns", BLOCK, 0);
	m.n = 5;
	m.lane = KVBM_ALL_LANES;
	if (raw_call(&raw, KVBM__VERB__VERB_RESERVE, &m.base) != 0)
		_exit(3);
	if (fork_too && fork() == 0) {
		char byte;

		_exit((int)read(c->go, &byte, 1)); /* until the test closes its end */
	}
	for (;;)
		pause();
}

static void child_start(struct child *c, bool fork_too)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int go[2], fd;

	snprintf(c->name, sizeof(c->name), "kvbmd-test-%d", (int)getpid());
	memcpy(addr.sun_path + 1, c->name, strlen(c->name));
	c->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	ck_assert_int_eq(bind(c->listener, (struct sockaddr *)&addr,
	                      (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(c->name))),
	                 0);
	ck_assert_int_eq(listen(c->listener, 4), 0);
	ck_assert_int_eq(pipe2(go, O_CLOEXEC), 0);
	fflush(NULL);
	c->pid = fork();
	ck_assert_int_ge(c->pid, 0);
	if (c->pid == 0) {
		c->go = go[0];
		close(go[1]);
		child_main(c, fork_too);
	}
	close(go[0]);
	c->go = go[1];
	fd = accept4(c->listener, NULL, NULL, SOCK_CLOEXEC);
	ck_assert_int_ge(fd, 0);
	sessions_adopt(&served.sessions, fd);
	while (store_n_namespaces(served.store) == 0 || report().partial < 5)
		loop_turn(served.loop, true);
}

static void child_end(struct child *c)
{
	int status;

	ck_assert_int_eq(waitpid(c->pid, &status, 0), c->pid);
	ck_assert(WIFSIGNALED(status));
	while (served.sessions.n_all > 0)
		loop_turn(served.loop, true);
	ck_assert_uint_eq(report().quarantined, 0);
	ck_assert_uint_eq(report().partial, 0);
	ck_assert_uint_eq(report().holders, 0);
	ck_assert_uint_eq(report().free, report().n_slots);
	close(c->go);
	close(c->listener);
}

START_TEST(a_killed_client_leaves_nothing)
{
	struct child c;

	child_start(&c, false);
	ck_assert_int_eq(kill(c.pid, SIGKILL), 0);
	child_end(&c);
}
END_TEST

/* A child of the client has the socket too, so its end is not seen on it: the process itself is watched. */
START_TEST(a_killed_client_whose_child_keeps_the_socket)
{
	struct child c;

	child_start(&c, true);
	ck_assert_int_eq(kill(c.pid, SIGKILL), 0);
	child_end(&c);
}
END_TEST

/* The connection goes, the process stays: its slots wait for it. */
START_TEST(a_disconnected_client_is_a_zombie_until_it_dies)
{
	struct session *s;
	struct child c;

	child_start(&c, false);
	s = container_of(list_first(&served.sessions.all), struct session, link);
	conn_close(&s->conn, "test");
	turns(5);
	ck_assert_uint_eq(served.sessions.n_zombies, 1);
	ck_assert_uint_eq(report().quarantined, 5);
	ck_assert_uint_eq(report().holders, 0);
	ck_assert_int_eq(kill(c.pid, SIGKILL), 0);
	child_end(&c);
	ck_assert_uint_eq(served.sessions.n_zombies, 0);
}
END_TEST

START_TEST(stored_blocks_outlive_their_writer)
{
	struct session *s = served_open(&served, 1);

	served_attach(&served, s, "ns", BLOCK, 1);
	store(s, 1, 10);
	ck_assert_int_eq(reserve(s, 4), 0);
	session_end(s, NULL);
	await_graves();
	ck_assert_uint_eq(report().used, 10);
	ck_assert_uint_eq(report().quarantined, 0);
}
END_TEST

static TCase *without_sockets(void)
{
	TCase *tc = tcase_create("sessions");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, a_uid_has_so_many_sessions);
	tcase_add_test(tc, all_uids_together_have_so_many);
	tcase_add_test(tc, a_new_configuration_holds_for_known_uids);
	tcase_add_test(tc, a_session_outlives_a_device);
	tcase_add_test(tc, slots_are_limited_by_session_and_uid);
	tcase_add_test(tc, a_zombie_counts_until_its_grave_is_due);
	tcase_add_test(tc, what_is_known_dead_leaves_no_zombie);
	tcase_add_test(tc, a_page_says_that_its_session_has_ended);
	tcase_add_test(tc, more_pins_than_allowed_are_noticed);
	tcase_add_loop_test(tc, a_lying_page_is_noticed_when_memory_is_short, 0, 2);
	tcase_add_test(tc, stored_blocks_outlive_their_writer);
	return tc;
}

static TCase *with_sockets(void)
{
	TCase *tc = tcase_create("sockets");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, a_session_over_a_socket);
	tcase_add_test(tc, who_is_one_too_many_is_told);
	tcase_add_test(tc, garbage_gets_a_last_word);
	tcase_add_test(tc, another_version_is_refused_and_closed);
	tcase_add_test(tc, drain_ends_all);
	tcase_add_test(tc, too_many_pins_end_it_outside_of_the_store);
	tcase_add_test(tc, a_killed_client_leaves_nothing);
	tcase_add_test(tc, a_killed_client_whose_child_keeps_the_socket);
	tcase_add_test(tc, a_disconnected_client_is_a_zombie_until_it_dies);
	return tc;
}

int main(void)
{
	Suite *suite = suite_create("session");
	SRunner *runner;
	int failed;

	suite_add_tcase(suite, without_sockets());
	suite_add_tcase(suite, with_sockets());
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
