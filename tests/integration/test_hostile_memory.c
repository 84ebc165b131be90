/* SPDX-License-Identifier: Apache-2.0 */
/* What clients can do with the memory they are given: scribbled session pages [28], attacks on every descriptor, as root and as
 * another uid, and looking for what is another namespace's [6, 32]. */
#include <check.h>
#include <fcntl.h>
#include <grp.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include "base/rng.h"
#include "proto/shm_pin.h"
#include "tests/lib/cache.h"
#include "tests/lib/client_proc.h"
#include "tests/lib/daemon_proc.h"
#include "tests/lib/must.h"
#include "tests/lib/raw.h"
#include "tests/lib/scale.h"

#define BLOCK 16384u
#define NOBODY 65534u
#define PIN_LIMIT 64u

static const char *const flags[] = { "--g2.size=8M", "--g2.region_size=2M", "--g2.huge_pages=never",
	                             "--limits.pins_per_session=64", NULL };

static struct daemon_proc d;
static struct daemon_baseline baseline;
static struct cache honest; /* in a namespace of its own */

static void setup(void)
{
	struct kvbm_model model = cache_model("honest", BLOCK, 1), victim = cache_model("victim", BLOCK, 1);
	struct cache c;

	daemon_start(&d, flags);
	cache_open(&honest, d.socket, &model);
	must_eq(cache_store(&honest, 0, 32), 32);
	cache_open(&c, d.socket, &victim);
	must_eq(cache_store(&c, 0, 8), 8);
	cache_close(&c);
	daemon_await_metric(&d, "sessions", 2);
	daemon_baseline(&d, &baseline);
}

static void teardown(void)
{
	must_eq(cache_verify(&honest, 0, 32), 32);
	daemon_check(&d, &baseline);
	cache_close(&honest);
	daemon_deinit(&d);
}

/* ---- session pages ---- */

enum { FD_INDEX, FD_RECORDS, FD_PAGE };

static void *map(int fd, int prot, size_t *ret_size)
{
	struct stat st;
	void *p;

	must(fstat(fd, &st) == 0);
	p = mmap(NULL, (size_t)st.st_size, prot, MAP_SHARED, fd, 0);
	must(p != MAP_FAILED);
	*ret_size = (size_t)st.st_size;
	return p;
}

/* A session in "victim" that maps its page. */
static struct shm_page *page_open(struct raw *raw, size_t *ret_size)
{
	raw_hello(raw, d.socket);
	(void)raw_attach(raw, "victim", BLOCK, 0);
	return map(raw->fds[FD_PAGE], PROT_READ | PROT_WRITE, ret_size);
}

/* The namespace's memory can all be had again. */
static void victim_has_room(void)
{
	struct kvbm_model model = cache_model("victim", BLOCK, 1);
	struct cache c;

	cache_open(&c, d.socket, &model);
	cache_make_room(&c, 128);
	must_eq(cache_store(&c, 500, 64), 64);
	must_eq(cache_verify(&c, 500, 64), 64);
	cache_close(&c);
}

START_TEST(noise_in_a_page_harms_its_owner_only)
{
	struct shm_page *page;
	struct raw raw;
	struct rng rng;
	size_t size;

	rng_init(&rng, 28);
	for (int i = 0; i < SCALE(20, 5); i++) {
		page = page_open(&raw, &size);
		rng_fill(&rng, page, size);
		if (i % 2)
			atomic_store(&page->pinned, 0); /* or else it is noticed at once */
		(void)raw_call(&raw, KVBM__VERB__VERB_PING, NULL);
		must_eq(cache_store(&honest, 1000 + 64 * (uint64_t)i, 16), 16);
		(void)daemon_metric(&d, "pins");
		raw_close(&raw);
		munmap(page, size);
		daemon_check(&d, &baseline);
	}
	victim_has_room();
}
END_TEST

START_TEST(who_claims_too_many_pins_is_warned_and_disconnected)
{
	uint64_t evicted = daemon_metric(&d, "sessions_evicted_total");
	struct shm_page *page;
	struct raw raw;
	size_t size;
	char *log;

	page = page_open(&raw, &size);
	for (uint32_t s = 0; s < 64; s++)
		atomic_store(&page->pins[s], 2);
	atomic_store(&page->pinned, PIN_LIMIT + 1);
	must_eq(raw_await_close(&raw), -1);
	must_eq(daemon_metric(&d, "sessions_evicted_total"), evicted + 1);
	log = daemon_log(&d);
	must_contain(log, "pins");
	free(log);
	/* Its page is still there and says the same, and nobody asks it any more. */
	victim_has_room();
	daemon_await_metric(&d, "pins", 0);
	raw_close(&raw);
	munmap(page, size);
}
END_TEST

/* It pins everything and claims nothing: believed until memory is short. */
START_TEST(who_hides_its_pins_is_found_out)
{
	struct kvbm_model model = cache_model("victim", BLOCK, 1);
	struct shm_page *page;
	struct cache c;
	struct raw raw;
	size_t size;

	cache_open(&c, d.socket, &model);
	cache_store_chain(&c, 0, cache_capacity(&c));
	page = page_open(&raw, &size);
	for (uint32_t g = 0; g < SHM_GROUP_WORDS; g++)
		atomic_store(&page->groups[g], UINT32_MAX);
	for (uint32_t s = 0; sizeof(*page) + (s + 1) * sizeof(page->pins[0]) <= size; s++)
		atomic_store(&page->pins[s], 1);
	must_eq(cache_ok(&c, kvbm_ping(c.kvbm)), 0);
	must_cmp(cache_try_store(&c, KVBM_ALL_LANES, 100000, 1), <=, 0); /* there is no room, which is the alarm */
	must_eq(raw_await_close(&raw), -1);
	must_eq(cache_store(&c, 100000, 8), 8);
	cache_close(&c);
	raw_close(&raw);
	munmap(page, size);
	must_cmp(kvbm_admin(daemon_monitor(&d), "flush", "victim", NULL, 0, 0, NULL), >, 0);
}
END_TEST

/* ---- descriptors ---- */

static void become(uint32_t uid)
{
	if (uid == 0)
		return;
	must(setgroups(0, NULL) == 0 && setresgid(uid, uid, uid) == 0 && setresuid(uid, uid, uid) == 0);
	must(prctl(PR_SET_DUMPABLE, 1) == 0); /* or /proc/self/fd would not even be its own */
}

static bool writes(int fd, size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (p != MAP_FAILED)
		return true;
	p = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
	if (p != MAP_FAILED && mprotect(p, size, PROT_READ | PROT_WRITE) == 0)
		return true;
	if (p != MAP_FAILED && madvise(p, size, MADV_REMOVE) == 0)
		return true;
	return pwrite(fd, "x", 1, 0) == 1 || fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == 0;
}

static bool resizes(int fd, size_t size)
{
	return ftruncate(fd, 0) == 0 || ftruncate(fd, (off_t)(2 * size)) == 0 || fallocate(fd, 0, (off_t)size, 4096) == 0;
}

static int open_anew(int fd)
{
	char path[64];
	int again;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	again = open(path, O_RDWR | O_CLOEXEC);
	if (again >= 0)
		return again;
	(void)fchmod(fd, 0666);
	again = open(path, O_RDWR | O_CLOEXEC);
	return again >= 0 ? again : openat(fd, "", O_RDWR | O_CLOEXEC);
}

enum may { MAY_READ, MAY_WRITE, MAY_WRITE_ANEW };

static void attack(const char *name, int fd, enum may may)
{
	struct stat before, after;
	int again;

	must(fstat(fd, &before) == 0);
	if (may != MAY_WRITE && writes(fd, (size_t)before.st_size)) {
		fprintf(stderr, "%s: written\n", name);
		_exit(1);
	}
	if (resizes(fd, (size_t)before.st_size)) {
		fprintf(stderr, "%s: resized\n", name);
		_exit(1);
	}
	again = open_anew(fd);
	if (again >= 0) {
		if (may == MAY_READ && writes(again, (size_t)before.st_size)) {
			fprintf(stderr, "%s: written after being opened anew\n", name);
			_exit(1);
		}
		if (resizes(again, (size_t)before.st_size)) {
			fprintf(stderr, "%s: resized after being opened anew\n", name);
			_exit(1);
		}
		close(again);
	}
	must(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) != 0); /* the daemon maps it */
	must(fstat(fd, &after) == 0 && after.st_size == before.st_size);
}

struct attacker {
	uint32_t uid;
	bool writer;
};

static const struct attacker attackers[] = { { NOBODY, false }, { NOBODY, true }, { 0, false }, { 0, true } };
#define N_ATTACKERS ((int)(sizeof(attackers) / sizeof(attackers[0])))

static void attack_all(struct client_self *self, void *arg)
{
	const struct attacker *who = arg;
	Kvbm__RegionRequest request = KVBM__REGION_REQUEST__INIT;
	enum may region = who->writer ? MAY_WRITE : who->uid ? MAY_READ : MAY_WRITE_ANEW;
	const struct shm_ns *shm;
	unsigned regions = 0;
	struct raw raw;
	size_t size;

	become(who->uid);
	raw_hello(&raw, d.socket);
	must_eq(raw.n_fds, 1);
	attack("life page", raw.fds[0], MAY_READ);
	request.ns = raw_attach(&raw, "victim", BLOCK, who->writer ? 0 : KVBM_NS_READONLY);
	must_eq(raw.n_fds, 3);
	must_eq(raw.reply->attach->writable, who->writer);
	shm = map(raw.fds[FD_INDEX], PROT_READ, &size);
	attack("index", raw.fds[FD_INDEX], MAY_READ);
	attack("records", raw.fds[FD_RECORDS], MAY_READ);
	attack("page", raw.fds[FD_PAGE], MAY_WRITE);
	for (uint32_t r = 0; r < shm->n_regions; r++) {
		request.serial = atomic_load(&shm->regions[r].serial);
		if (request.serial == 0)
			continue;
		must_eq(raw_call(&raw, KVBM__VERB__VERB_REGION, &request.base), 0);
		must_eq(raw.reply->region->writable, who->writer);
		attack("region", raw.fds[0], region);
		regions++;
	}
	must_cmp(regions, >, 0);
	raw_close(&raw);
	client_at(self, "done");
}

START_TEST(descriptors_give_no_more_than_they_should)
{
	struct kvbm_model model = cache_model("victim", BLOCK, 1);
	struct attacker who = attackers[_i];
	struct client_proc p;
	struct cache c;

	if (getuid() != 0 && who.uid != getuid()) {
		fprintf(stderr, "only root can be other users: not tested\n");
		return;
	}
	client_start(&p, attack_all, &who);
	client_await(&p, "done");
	client_go(&p);
	client_join(&p);
	daemon_check(&d, &baseline);
	cache_open(&c, d.socket, &model);
	if (!who.writer)
		must_eq(cache_verify(&c, 0, 8), 8);
	else
		cache_make_room(&c, 8);
	cache_close(&c);
}
END_TEST

/* A writer is trusted with its own namespace's memory.  What it spoils there is nobody else's. */
static void spoil(struct client_self *self, void *arg)
{
	Kvbm__RegionRequest request = KVBM__REGION_REQUEST__INIT;
	struct raw raw;
	size_t size;
	void *p;

	(void)arg;
	if (getuid() == 0)
		become(NOBODY);
	raw_hello(&raw, d.socket);
	request.ns = raw_attach(&raw, "victim", BLOCK, 0);
	for (request.serial = 0; request.serial < 100; request.serial++) {
		if (raw_call(&raw, KVBM__VERB__VERB_REGION, &request.base) != 0)
			continue;
		p = map(raw.fds[0], PROT_READ | PROT_WRITE, &size);
		memset(p, 0x5a, size);
		(void)fallocate(raw.fds[0], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096);
		(void)fcntl(raw.fds[0], F_ADD_SEALS, F_SEAL_FUTURE_WRITE);
		munmap(p, size);
	}
	client_at(self, "done");
}

START_TEST(spoiled_memory_is_the_spoilers_own)
{
	struct kvbm_model other = cache_model("other", 3 * BLOCK, 2);
	struct client_proc p;
	struct cache c;

	client_start(&p, spoil, NULL);
	client_await(&p, "done");
	must_eq(cache_verify(&honest, 0, 32), 32);
	client_kill(&p);
	daemon_check(&d, &baseline);
	/* The memory comes back when others want it, and is made anew for them. */
	must_cmp(kvbm_admin(daemon_monitor(&d), "drop", "victim", NULL, 0, 0, NULL), >=, 0);
	cache_open(&c, d.socket, &other);
	must_eq(cache_store(&c, 0, 16), 16);
	must_eq(cache_verify(&c, 0, 16), 16);
	cache_close(&c);
	must_cmp(kvbm_admin(daemon_monitor(&d), "drop", "other", NULL, 0, 0, NULL), >=, 0);
	daemon_await_metric(&d, "namespaces", 1);
	daemon_baseline(&d, &baseline);
}
END_TEST

/* ---- other namespaces ---- */

struct secret {
	pid_t daemon;
	uint8_t key[16], bytes[64];
};

static void search(const char *where, int fd, const struct secret *secret)
{
	size_t size;
	void *p = map(fd, PROT_READ, &size);

	if (memmem(p, size, secret->bytes, sizeof(secret->bytes)) || memmem(p, size, secret->key, sizeof(secret->key))) {
		fprintf(stderr, "%s: another namespace's\n", where);
		_exit(1);
	}
	munmap(p, size);
}

static void look_around(struct client_self *self, void *arg)
{
	const struct secret *secret = arg;
	Kvbm__RegionRequest request = KVBM__REGION_REQUEST__INIT;
	Kvbm__MatchRequest match = KVBM__MATCH_REQUEST__INIT;
	unsigned regions = 0;
	char path[64];
	struct raw raw;

	if (getuid() == 0)
		become(NOBODY);
	raw_hello(&raw, d.socket);
	search("life page", raw.fds[0], secret);
	request.ns = match.ns = raw_attach(&raw, "victim", BLOCK, 0);
	search("index", raw.fds[FD_INDEX], secret);
	search("records", raw.fds[FD_RECORDS], secret);
	search("page", raw.fds[FD_PAGE], secret);
	for (request.serial = 0; request.serial < 1000; request.serial++) {
		int code = raw_call(&raw, KVBM__VERB__VERB_REGION, &request.base);

		must(code == 0 || code == KVBM_E_NOENT);
		if (code == 0) {
			search("region", raw.fds[0], secret);
			regions++;
		}
	}
	must_cmp(regions, >, 0);
	match.keys = (ProtobufCBinaryData){ 16, (uint8_t *)secret->key };
	must_eq(raw_call(&raw, KVBM__VERB__VERB_MATCH, &match.base), 0);
	must_eq(raw.reply->match->hits, 0);
	for (uint32_t ns = 1; ns < 100; ns++) {
		request.ns = ns;
		request.serial = 1;
		must_eq(raw_call(&raw, KVBM__VERB__VERB_REGION, &request.base), KVBM_E_NOENT);
	}
	/* Around the socket. */
	snprintf(path, sizeof(path), "/proc/%d/mem", (int)secret->daemon);
	must(open(path, O_RDONLY) < 0);
	for (int fd = 0; fd < 64; fd++) {
		snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)secret->daemon, fd);
		must(open(path, O_RDONLY) < 0);
	}
	raw_close(&raw);
	client_at(self, "done");
}

START_TEST(another_namespace_is_nowhere_to_be_seen)
{
	struct secret secret = { .daemon = d.pid };
	struct kvbm_span spans[1];
	struct client_proc p;

	cache_keys(&honest, 20, 1, secret.key); /* "victim" has no such key */
	must_eq(cache_hold(&honest, 20, 1, spans), 1);
	memcpy(secret.bytes, kvbm_data(honest.ns, &spans[0], 0), sizeof(secret.bytes));
	must_eq(kvbm_release(honest.ns, spans, 1), 1);
	client_start(&p, look_around, &secret);
	client_await(&p, "done");
	client_go(&p);
	client_join(&p);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("hostile memory");
	TCase *tc = tcase_create("memory");
	SRunner *sr = srunner_create(s);
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 120);
	tcase_add_test(tc, noise_in_a_page_harms_its_owner_only);
	tcase_add_test(tc, who_claims_too_many_pins_is_warned_and_disconnected);
	tcase_add_test(tc, who_hides_its_pins_is_found_out);
	tcase_add_loop_test(tc, descriptors_give_no_more_than_they_should, 0, N_ATTACKERS);
	tcase_add_test(tc, spoiled_memory_is_the_spoilers_own);
	tcase_add_test(tc, another_namespace_is_nowhere_to_be_seen);
	suite_add_tcase(s, tc);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed == 0 ? 0 : 1;
}
