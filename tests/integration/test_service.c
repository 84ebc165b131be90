/* SPDX-License-Identifier: Apache-2.0 */
/* kvbmd as a service: when it says that it is ready, how it ends, what it takes over of a changed file, what it does when clients
 * or descriptors are too many, and that it does nothing when there is nothing to do.
 *
 * Clients speak the protocol by themselves (raw.h).  What is waited for are messages on the notify socket and replies.
 */
#include <check.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <kvbm.h>

#include "tests/lib/daemon_proc.h"
#include "tests/lib/must.h"
#include "tests/lib/raw.h"
#include "tests/lib/scale.h"

#define BLOCK 4096u

static const char *const small[] = { "--g2.size=16M", "--daemon.log=debug", "--g2.region_size=2M", NULL };

/* ---- a client's whole life in the protocol ---- */

static int reserve(struct raw *raw, uint32_t ns, uint8_t *keys, uint32_t n)
{
	Kvbm__ReserveRequest q = KVBM__RESERVE_REQUEST__INIT;

	q.ns = ns;
	q.n = n;
	q.keys = (ProtobufCBinaryData){ .len = (size_t)n * 16, .data = keys };
	return raw_call(raw, KVBM__VERB__VERB_RESERVE, &q.base);
}

/* Reserves a slot for the key, commits it and finds it again. */
static void store_one(struct raw *raw, uint32_t ns, uint8_t seed)
{
	Kvbm__CommitRequest commit = KVBM__COMMIT_REQUEST__INIT;
	Kvbm__MatchRequest match = KVBM__MATCH_REQUEST__INIT;
	uint32_t slot, generation;
	uint8_t key[16];

	memset(key, seed, sizeof(key));
	must_eq(reserve(raw, ns, key, 1), 0);
	must_eq(raw->reply->reserve->reserved, 1);
	slot = raw->reply->reserve->slots[0];
	generation = raw->reply->reserve->generations[0];
	commit.ns = match.ns = ns;
	commit.n_slots = commit.n_generations = 1;
	commit.slots = &slot;
	commit.generations = &generation;
	commit.keys = match.keys = (ProtobufCBinaryData){ .len = sizeof(key), .data = key };
	commit.length = BLOCK;
	must_eq(raw_call(raw, KVBM__VERB__VERB_COMMIT, &commit.base), 0);
	must_eq(raw_call(raw, KVBM__VERB__VERB_MATCH, &match.base), 0);
	must_eq(raw->reply->match->hits, 1);
}

static void serves(const char *socket)
{
	struct raw raw;

	raw_hello(&raw, socket);
	store_one(&raw, raw_attach(&raw, "service", BLOCK, 0), 1);
	raw_close(&raw);
}

static int ping(struct raw *raw)
{
	return raw_call(raw, KVBM__VERB__VERB_PING, NULL);
}

/* Requests without ever reading an answer, until nothing more goes in. */
static void stuff(struct raw *raw)
{
	uint8_t header[WIRE_HEADER_BYTES];
	ssize_t n;

	do {
		raw_header(header, KVBM__VERB__VERB_PING, 0, ++raw->id);
		n = send(raw->fd, header, sizeof(header), MSG_NOSIGNAL | MSG_DONTWAIT);
	} while (n == (ssize_t)sizeof(header) || (n < 0 && errno == EAGAIN && wire_wait(raw->fd, POLLOUT, 200) == 0));
}

static bool exists(const char *path)
{
	struct stat st;

	return lstat(path, &st) == 0;
}

/* The next messages until one has @wanted. */
static void await_message(struct daemon_proc *d, const char *wanted)
{
	char text[1024];

	do
		must(daemon_next_message(d, text, sizeof(text), DAEMON_WAIT_MS));
	while (!strstr(text, wanted));
}

static void log_has(const struct daemon_proc *d, const char *wanted)
{
	char *log = daemon_log(d);

	must_contain(log, wanted);
	free(log);
}

/* ---- start ---- */

START_TEST(ready_is_served_on_a_socket_of_its_own)
{
	struct daemon_proc d;
	struct stat st;

	daemon_init(&d, NULL, small);
	daemon_bind_itself(&d);
	daemon_run(&d);
	serves(d.socket);
	must(stat(d.socket, &st) == 0);
	must_eq(st.st_mode & 07777, 0660);
	must_contain(d.status, "16M");
	daemon_stop(&d);
	must(!exists(d.socket));
	log_has(&d, "kvbmd ");
	log_has(&d, "serves on");
	daemon_deinit(&d);
}
END_TEST

START_TEST(ready_is_served_on_an_inherited_socket)
{
	struct daemon_proc d;

	daemon_start(&d, small);
	serves(d.socket);
	daemon_stop(&d);
	must(exists(d.socket)); /* it is systemd's */
	daemon_deinit(&d);
}
END_TEST

/* Who connected before there was a daemon is served by it. */
START_TEST(a_waiting_client_is_served)
{
	Kvbm__HelloRequest hello = KVBM__HELLO_REQUEST__INIT;
	struct daemon_proc d;
	struct raw raw;

	daemon_init(&d, NULL, small);
	raw_open(&raw, d.socket);
	hello.version_major = 1;
	must(raw_send(&raw, KVBM__VERB__VERB_HELLO, &hello.base));
	daemon_run(&d);
	must(raw_receive(&raw));
	must_eq(raw.reply->code, 0);
	raw_close(&raw);
	daemon_deinit(&d);
}
END_TEST

START_TEST(more_memory_than_there_is_is_refused)
{
	struct daemon_proc d;
	char text[256];

	daemon_init(&d, "[g2]\nsize = 64T\n", NULL);
	daemon_open_notify(&d);
	daemon_spawn(&d);
	must(!daemon_next_message(&d, text, sizeof(text), DAEMON_WAIT_MS));
	must_eq(daemon_wait(&d), 2);
	log_has(&d, "g2.");
	daemon_deinit(&d);
}
END_TEST

/* ---- the end ---- */

#define N_CONNECTED 10

START_TEST(sigterm_ends_it_with_clients_connected)
{
	struct raw raws[N_CONNECTED];
	struct daemon_proc d;

	daemon_init(&d, NULL, small);
	daemon_bind_itself(&d);
	daemon_run(&d);
	for (unsigned i = 0; i < N_CONNECTED; i++) {
		uint8_t key[16] = { (uint8_t)i, 7 };
		uint32_t ns;

		raw_hello(&raws[i], d.socket);
		ns = raw_attach(&raws[i], "service", BLOCK, 0);
		store_one(&raws[i], ns, (uint8_t)(i + 1));
		must_eq(reserve(&raws[i], ns, key, 1), 0); /* and holds a slot when it comes */
	}
	daemon_stop(&d);
	for (unsigned i = 0; i < N_CONNECTED; i++) {
		must_eq(raw_await_close(&raws[i]), -1);
		raw_close(&raws[i]);
	}
	must(!exists(d.socket));
	daemon_deinit(&d);
}
END_TEST

START_TEST(sigterm_does_not_wait_for_ever_for_who_does_not_read)
{
	static const char *const flags[] = { "--g2.size=16M", "--daemon.stop_timeout=100ms",
		                             "--limits.frame_timeout=1h", NULL };
	struct daemon_proc d;
	struct raw raw;

	daemon_init(&d, NULL, flags);
	daemon_bind_itself(&d);
	daemon_run(&d);
	raw_hello(&raw, d.socket);
	stuff(&raw);
	daemon_stop(&d);
	must(!exists(d.socket));
	log_has(&d, "had to be disconnected");
	raw_close(&raw);
	daemon_deinit(&d);
}
END_TEST

START_TEST(a_second_sigterm_does_not_wait_at_all)
{
	static const char *const flags[] = { "--g2.size=16M", "--daemon.stop_timeout=1h", "--limits.frame_timeout=1h",
		                             NULL };
	struct daemon_proc d;
	struct raw raw;

	daemon_init(&d, NULL, flags);
	d.keep_notify = true;
	daemon_run(&d);
	raw_hello(&raw, d.socket);
	stuff(&raw);
	must(kill(d.pid, SIGTERM) == 0);
	await_message(&d, "STOPPING=1");
	daemon_stop(&d);
	raw_close(&raw);
	daemon_deinit(&d);
}
END_TEST

/* A block that a client has mapped stays what it was when the daemon ends. */
START_TEST(what_clients_map_outlives_the_daemon)
{
	Kvbm__RegionRequest q = KVBM__REGION_REQUEST__INIT;
	struct daemon_proc d;
	struct raw raw;
	char bytes[BLOCK], again[BLOCK], *mapped;
	uint32_t ns;
	int region;

	memset(bytes, 'x', sizeof(bytes));
	daemon_start(&d, small);
	raw_hello(&raw, d.socket);
	ns = raw_attach(&raw, "service", BLOCK, 0);
	store_one(&raw, ns, 1);
	q.ns = ns;
	q.serial = 1;
	must_eq(raw_call(&raw, KVBM__VERB__VERB_REGION, &q.base), 0);
	must(raw.n_fds > 0);
	region = dup(raw.fds[0]);
	mapped = mmap(NULL, sizeof(bytes), PROT_READ | PROT_WRITE, MAP_SHARED, region, 0);
	must(region >= 0 && mapped != MAP_FAILED);
	memcpy(mapped, bytes, sizeof(bytes)); /* write() is not for huge pages */
	daemon_stop(&d);
	must(pread(region, again, sizeof(again), 0) == (ssize_t)sizeof(again));
	must_eq(memcmp(bytes, again, sizeof(bytes)), 0);
	munmap(mapped, sizeof(bytes));
	close(region);
	raw_close(&raw);
	daemon_deinit(&d);
}
END_TEST

/* ---- reload ---- */

static void reload(struct daemon_proc *d, const char *text)
{
	tmpdir_write(&d->dir, "kvbmd.conf", text);
	must(kill(d->pid, SIGHUP) == 0);
	await_message(d, "RELOADING=1");
	await_message(d, "READY=1");
}

/* The code with which one more client is let in or not. */
static int hello_code(const char *socket, struct raw *raw)
{
	Kvbm__HelloRequest hello = KVBM__HELLO_REQUEST__INIT;

	raw_open(raw, socket);
	hello.version_major = 1;
	(void)raw_send(raw, KVBM__VERB__VERB_HELLO, &hello.base);
	must(raw_receive(raw));
	return (int)raw->reply->code;
}

START_TEST(sighup_takes_over_what_can_change)
{
	struct daemon_proc d;
	struct raw first, second;

	daemon_init(&d, "[g2]\nsize = 16M\n", NULL);
	d.keep_notify = true;
	daemon_run(&d);
	raw_hello(&first, d.socket);
	reload(&d, "[daemon]\nmax_sessions = 1\nworkers = 3\nlog = debug\n[g2]\nsize = 32M\n");
	must_eq(hello_code(d.socket, &second), KVBM_E_LIMIT);
	raw_close(&second);
	must_eq(ping(&first), 0);
	log_has(&d, "daemon.workers, g2.size");
	reload(&d, "[daemon]\nmax_sessions = 2\n[g2]\nsize = 16M\n");
	must_eq(hello_code(d.socket, &second), 0);
	raw_close(&second);
	raw_close(&first);
	daemon_deinit(&d);
}
END_TEST

START_TEST(sighup_with_a_wrong_file_changes_nothing)
{
	struct daemon_proc d;
	struct raw first, second;

	daemon_init(&d, "[daemon]\nmax_sessions = 2\n[g2]\nsize = 16M\n", NULL);
	d.keep_notify = true;
	daemon_run(&d);
	raw_hello(&first, d.socket);
	reload(&d, "[daemon]\nmax_sessions = 1\nmax_sesions = 1\n[g2]\nsize = 16M\n");
	log_has(&d, "kvbmd.conf:3: daemon.max_sesions");
	must_eq(hello_code(d.socket, &second), 0);
	must(unlink(d.config) == 0);
	must(kill(d.pid, SIGHUP) == 0);
	await_message(&d, "READY=1");
	log_has(&d, "cannot be read");
	must_eq(ping(&first), 0);
	raw_close(&second);
	raw_close(&first);
	daemon_deinit(&d);
}
END_TEST

#define SECTION "[g2]\nsize = 16M\nregion_size = 2M\n[namespace service]\n"

static int attach_code(struct raw *raw)
{
	Kvbm__AttachRequest q = KVBM__ATTACH_REQUEST__INIT;

	q.name = (char *)"service";
	q.block_bytes = BLOCK;
	q.lanes = q.dtype = q.layout = 1;
	q.key_bytes = q.page_size = 16;
	q.outer_dim = 2;
	return raw_call(raw, KVBM__VERB__VERB_ATTACH, &q.base);
}

START_TEST(sighup_changes_namespaces)
{
	enum { MORE = 2 * 512 };
	static uint8_t keys[MORE * 16];
	struct daemon_proc d;
	struct raw raw;
	uint32_t ns;

	for (uint32_t i = 0; i < MORE; i++)
		memcpy(&keys[(size_t)i * 16], &i, sizeof(i));
	daemon_init(&d, SECTION "max = 16M\n", NULL);
	d.keep_notify = true;
	daemon_run(&d);
	raw_hello(&raw, d.socket);
	ns = raw_attach(&raw, "service", BLOCK, 0);
	reload(&d, SECTION "max = 2M\n");
	must_eq(reserve(&raw, ns, keys, MORE), KVBM_E_NOSPACE);
	reload(&d, SECTION "max = 8M\nuids = 54321\n");
	must_eq(reserve(&raw, ns, keys, MORE), 0);
	must_eq(attach_code(&raw), KVBM_E_PERM);
	reload(&d, SECTION "max = 2M\n"); /* it has more, and keeps it */
	must_eq(attach_code(&raw), 0);
	must_eq(ping(&raw), 0);
	raw_close(&raw);
	daemon_deinit(&d);
}
END_TEST

START_TEST(sighup_changes_administrators)
{
	Kvbm__AdminRequest q = KVBM__ADMIN_REQUEST__INIT;
	struct daemon_proc d;
	struct raw raw;

	if (geteuid() != 0)
		return;
	daemon_init(&d, "[g2]\nsize = 16M\n", NULL);
	d.keep_notify = true;
	daemon_run(&d);
	must(seteuid(54321) == 0);
	raw_hello(&raw, d.socket);
	must(seteuid(0) == 0);
	q.action = (char *)"flush";
	must_eq(raw_call(&raw, KVBM__VERB__VERB_ADMIN, &q.base), KVBM_E_PERM);
	reload(&d, "[g2]\nsize = 16M\n[daemon]\nadmin_uids = 54321\n");
	must_eq(raw_call(&raw, KVBM__VERB__VERB_ADMIN, &q.base), 0);
	raw_close(&raw);
	daemon_deinit(&d);
}
END_TEST

/* ---- limits ---- */

#define MANY 300

START_TEST(too_many_clients_of_one_user_are_told)
{
	static struct raw raws[MANY];
	struct daemon_proc d;
	unsigned served = 0;

	daemon_start(&d, small);
	for (unsigned i = 0; i < MANY; i++) {
		int code = hello_code(d.socket, &raws[i]);

		if (code == 0) {
			must_eq(served, i);
			served++;
		} else {
			must_eq(code, KVBM_E_LIMIT);
			must_contain(raws[i].reply->error, "daemon.max_sessions_per_uid");
		}
		for (unsigned k = 0; k < raws[i].n_fds; k++)
			close(raws[i].fds[k]);
		raws[i].n_fds = 0;
	}
	must_eq(served, 256);
	for (unsigned i = 0; i < served; i++)
		must_eq(ping(&raws[i]), 0);
	log_has(&d, "refused uid");
	for (unsigned i = 0; i < MANY; i++)
		raw_close(&raws[i]);
	daemon_deinit(&d);
}
END_TEST

/* Connects until the listener refuses somebody for want of descriptors; returns how many were served.  In between may be one
 * for whom there was a descriptor to accept him with, but none to send him: he is told as well, and stays connected.  More than one where the daemon
 * has some open for a moment only, as it does at the start. */
static unsigned fill(struct daemon_proc *d, struct raw *raws, unsigned max)
{
	struct raw refused, halves[16];
	unsigned n = 0, n_halves = 0;

	for (;;) {
		must(n < max);
		if (hello_code(d->socket, &raws[n]) == 0) {
			n++;
			continue;
		}
		must_eq(raws[n].reply->code, KVBM_E_BUSY);
		must_contain(raws[n].reply->error, "descriptors");
		if (strstr(raws[n].reply->error, "another client"))
			break;
		must(n_halves < 16);
		halves[n_halves++] = raws[n];
	}
	refused = raws[n];
	must_eq(raw_await_close(&refused), -1);
	raw_close(&refused);
	while (n_halves > 0)
		raw_close(&halves[--n_halves]);
	return n;
}

static void few_descriptors(struct daemon_proc *d, struct raw *raws, unsigned max)
{
	unsigned n = fill(d, raws, max);
	struct raw raw;
	int code;

	must(n > 0);
	for (unsigned i = 0; i < n; i++)
		must_eq(ping(&raws[i]), 0);
	store_one(&raws[0], raw_attach(&raws[0], "service", BLOCK, 0), 1); /* there are some kept for this */
	for (unsigned i = 1; i < n; i++)
		raw_close(&raws[i]);
	/* The ones that left may not be gone yet for the daemon. */
	while ((code = hello_code(d->socket, &raw)) == KVBM_E_BUSY)
		raw_close(&raw);
	must_eq(code, 0);
	raw_close(&raw);
	must_eq(ping(&raws[0]), 0);
	raw_close(&raws[0]);
	log_has(d, "no descriptors left");
}

#define FDS 128

START_TEST(descriptors_are_kept_for_those_who_are_connected)
{
	static struct raw raws[FDS];
	struct rlimit few = { .rlim_cur = FDS, .rlim_max = FDS };
	struct daemon_proc d;

	daemon_init(&d, NULL, small);
	must(setrlimit(RLIMIT_NOFILE, &few) == 0);
	daemon_run(&d);
	few_descriptors(&d, raws, FDS);
	daemon_deinit(&d);
}
END_TEST

/* None at all: the kernel says EMFILE to accept(). */
START_TEST(out_of_descriptors_it_serves_on)
{
	static struct raw raws[FDS];
	struct daemon_proc d;
	struct fdcount fds;
	struct rlimit few;
	struct raw raw;
	unsigned n;

	daemon_start(&d, small);
	raw_hello(&raw, d.socket);
	store_one(&raw, raw_attach(&raw, "service", BLOCK, 0), 1);
	fdcount_take(d.pid, &fds);
	few = (struct rlimit){ .rlim_cur = fds.total + 4, .rlim_max = FDS };
	must(prlimit(d.pid, RLIMIT_NOFILE, &few, NULL) == 0);
	n = fill(&d, raws, FDS);
	for (unsigned i = 0; i < n; i++)
		must_eq(ping(&raws[i]), 0);
	must_eq(ping(&raw), 0);
	log_has(&d, "no descriptors left");
	few.rlim_cur = FDS;
	must(prlimit(d.pid, RLIMIT_NOFILE, &few, NULL) == 0);
	for (unsigned i = 0; i < n; i++)
		raw_close(&raws[i]);
	must_eq(hello_code(d.socket, &raws[0]), 0);
	raw_close(&raws[0]);
	raw_close(&raw);
	daemon_deinit(&d);
}
END_TEST

/* ---- alive, and idle ---- */

static void start_with_watchdog(struct daemon_proc *d, const char *usec)
{
	must(setenv("WATCHDOG_USEC", usec, 1) == 0);
	unsetenv("WATCHDOG_PID");
	daemon_init(d, NULL, small);
	d->keep_notify = true;
	daemon_run(d);
}

START_TEST(the_watchdog_is_fed)
{
	struct daemon_proc d;
	struct raw raw;

	start_with_watchdog(&d, "20000");
	for (unsigned i = 0; i < 5; i++)
		await_message(&d, "WATCHDOG=1");
	raw_hello(&raw, d.socket);
	for (unsigned i = 0; i < 5; i++)
		await_message(&d, "WATCHDOG=1");
	raw_close(&raw);
	daemon_deinit(&d);
}
END_TEST

/* How often the threads of a process have gone to sleep.  TSan's own thread, which wakes ten times a second, is a second
 * one of the process's name. */
static uint64_t sleeps(pid_t pid)
{
	char command[96], line[64];
	bool counts = true;
	uint64_t sum = 0;
	int task = 0;
	FILE *f;

	snprintf(command, sizeof(command), "cat /proc/%d/task/*/status", (int)pid);
	f = popen(command, "r");
	must(f);
	while (fgets(line, sizeof(line), f)) {
		if (strncmp(line, "Name:", 5) == 0)
			counts = SCALE(true, false) || strcmp(line, "Name:\tkvbmd\n") != 0;
		else if (sscanf(line, "Pid: %d", &task) == 1)
			counts = counts || task == pid;
		else if (counts && strncmp(line, "voluntary_ctxt_switches:", 24) == 0)
			sum += strtoull(line + 24, NULL, 10);
	}
	must(pclose(f) == 0 && sum > 0);
	return sum;
}

/* The watchdog is the clock here: an idle daemon wakes for it, once, and for nothing else. */
static void sleeps_between_pings(struct daemon_proc *d)
{
	enum { PINGS = 20, OTHERS = 10 };
	uint64_t before;

	/* Until memory is touched and the line about it was said for the last time. */
	await_message(d, "WATCHDOG=1");
	await_message(d, "WATCHDOG=1");
	before = sleeps(d->pid);
	for (unsigned i = 0; i < PINGS; i++)
		await_message(d, "WATCHDOG=1");
	must_cmp(sleeps(d->pid) - before, <=, PINGS + OTHERS);
}

START_TEST(idle_it_sleeps)
{
	struct daemon_proc d;
	struct raw raw;

	start_with_watchdog(&d, "100000");
	sleeps_between_pings(&d);
	raw_hello(&raw, d.socket);
	store_one(&raw, raw_attach(&raw, "service", BLOCK, 0), 1);
	sleeps_between_pings(&d); /* a client who does nothing is looked after once a second */
	raw_close(&raw);
	sleeps_between_pings(&d);
	daemon_deinit(&d);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("service");
	TCase *start = tcase_create("start"), *end = tcase_create("end"), *change = tcase_create("reload");
	TCase *limits = tcase_create("limits"), *idle = tcase_create("idle");
	SRunner *sr = srunner_create(s);
	int failed;

	tcase_add_test(start, ready_is_served_on_a_socket_of_its_own);
	tcase_add_test(start, ready_is_served_on_an_inherited_socket);
	tcase_add_test(start, a_waiting_client_is_served);
	tcase_add_test(start, more_memory_than_there_is_is_refused);
	tcase_add_test(end, sigterm_ends_it_with_clients_connected);
	tcase_add_test(end, sigterm_does_not_wait_for_ever_for_who_does_not_read);
	tcase_add_test(end, a_second_sigterm_does_not_wait_at_all);
	tcase_add_test(end, what_clients_map_outlives_the_daemon);
	tcase_add_test(change, sighup_takes_over_what_can_change);
	tcase_add_test(change, sighup_with_a_wrong_file_changes_nothing);
	tcase_add_test(change, sighup_changes_namespaces);
	tcase_add_test(change, sighup_changes_administrators);
	tcase_add_test(limits, too_many_clients_of_one_user_are_told);
	tcase_add_test(limits, descriptors_are_kept_for_those_who_are_connected);
	tcase_add_test(limits, out_of_descriptors_it_serves_on);
	tcase_add_test(idle, the_watchdog_is_fed);
	tcase_add_test(idle, idle_it_sleeps);
	for (TCase **t = (TCase *[]){ start, end, change, limits, idle, NULL }; *t; t++) {
		tcase_set_timeout(*t, 120);
		suite_add_tcase(s, *t);
	}
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
