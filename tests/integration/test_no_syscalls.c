/* SPDX-License-Identifier: Apache-2.0 */
/* A hit makes no system call: a client under a seccomp filter that lets it do nothing but exit matches, reads and releases a million
 * times through shared memory, while another one stores and evicts.  One getpid() under that filter is death, which is shown too. */
#include <check.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/rng.h"
#include "tests/lib/cache.h"
#include "tests/lib/client_proc.h"
#include "tests/lib/daemon_proc.h"
#include "tests/lib/must.h"

#define TIMES 1000000u
#define MOST 256u
#define LEAST 16u
#define BLOCK 4096u
#define SLOTS (8u * 1024 * 1024 / BLOCK)

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

static const char *const flags[] = { "--g2.size=8M", "--g2.region_size=2M", "--g2.huge_pages=never", NULL };

static struct daemon_proc d;
static struct kvbm_model model;

/* In shared memory, because a process that may not call the system cannot tell in another way. */
static struct {
	uint64_t hits, short_prefixes;
} * told;

static void setup(void)
{
	daemon_start(&d, flags);
	model = cache_model("silent", BLOCK, 1);
}

static void teardown(void)
{
	daemon_deinit(&d);
}

static void allow_nothing_but_exit(void)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	};
	struct sock_fprog program = { .len = sizeof(filter) / sizeof(*filter), .filter = filter };

	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

/* Fills the pool, so that every region is there, and touches a block of each: mapping a region takes a message. */
static void map_everything(struct cache *c)
{
	uint64_t n = 0;
	struct kvbm_span span;
	uint8_t key[KVBM_KEY_MAX];

	for (uint64_t first = 0; first < 4 * SLOTS; first += CACHE_CHAIN)
		cache_store(c, first, CACHE_CHAIN);
	for (uint64_t i = 0; i < 4 * SLOTS; i++) {
		cache_keys(c, i, 1, key);
		if (cache_ok(c, kvbm_match(c->ns, key, 1, 0, &span)) == 0)
			continue;
		cache_check(c, &span, key);
		cache_ok(c, kvbm_release(c->ns, &span, 1));
		n++;
	}
	must_cmp(n, >, SLOTS * 9 / 10);
	for (uint64_t first = 0; first < MOST; first += CACHE_CHAIN)
		cache_store(c, first, CACHE_CHAIN);
}

static void match_read_release(struct cache *c, const uint8_t *keys, uint32_t n, struct rng *rng)
{
	struct kvbm_span spans[MOST];
	int hits = cache_ok(c, kvbm_match(c->ns, keys, n, 0, spans));

	told->hits += (uint64_t)hits;
	told->short_prefixes += (uint32_t)hits < n;
	if (hits == 0)
		return;
	for (uint32_t i = 0; i < 4; i++) {
		uint32_t at = (uint32_t)rng_below(rng, (uint64_t)hits);

		if (i == 0)
			cache_check(c, &spans[at], keys + (size_t)at * c->key_bytes);
		else
			must(kvbm_data(c->ns, &spans[at], 0));
	}
	must_eq(cache_ok(c, kvbm_release(c->ns, spans, (uint32_t)hits)), hits);
}

static void silent_main(struct client_self *self, void *arg)
{
	bool control = arg != NULL;
	uint8_t keys[MOST * KVBM_KEY_MAX];
	struct rng rng;
	struct cache c;

	cache_open(&c, d.socket, &model);
	cache_keys(&c, 0, MOST, keys);
	rng_init(&rng, 1);
	map_everything(&c);
	match_read_release(&c, keys, MOST, &rng);
	client_at(self, "warm");
	allow_nothing_but_exit();
	for (uint32_t i = 0; i < TIMES; i++) {
		/* More short ones than long ones. */
		uint64_t x = rng_below(&rng, 241), n = LEAST + x * x / 240;

		if (control && i == TIMES / 100)
			(void)syscall(SYS_getpid);
		match_read_release(&c, keys, (uint32_t)n, &rng);
	}
}

/* Drops what the other one reads, and puts it back. */
static void noisy_main(struct client_self *self, void *arg)
{
	struct rng rng;
	struct cache c;

	(void)arg;
	cache_open(&c, d.socket, &model);
	rng_init(&rng, 2);
	client_pass(self, "works");
	while (!client_told(self)) {
		uint64_t first = rng_below(&rng, 64) * CACHE_CHAIN;

		cache_store(&c, MOST + first, CACHE_CHAIN);
		for (uint64_t at = 0; at < MOST; at += CACHE_CHAIN)
			cache_store(&c, at, CACHE_CHAIN);
		if (rng_chance(&rng, 20)) {
			uint8_t keys[8 * KVBM_KEY_MAX];

			cache_keys(&c, rng_below(&rng, MOST - 8), 8, keys);
			cache_ok(&c, kvbm_admin(c.kvbm, "drop", model.name, keys, c.key_bytes, 8, NULL));
		}
	}
	cache_close(&c);
}

static int silent_run(bool control)
{
	struct client_proc silent, noisy;
	int status;

	client_start(&silent, silent_main, control ? &status : NULL);
	client_await(&silent, "warm");
	client_start(&noisy, noisy_main, NULL);
	client_await(&noisy, "works");
	client_go(&silent);
	must(waitpid(silent.pid, &status, 0) == silent.pid);
	close(silent.to);
	close(silent.from);
	client_go(&noisy);
	client_join(&noisy);
	return status;
}

START_TEST(a_million_hits_make_no_system_call)
{
	uint64_t before = daemon_metric(&d, "blocks_dropped_total");
	int status = silent_run(false);

	printf("no system calls: %u matches, %llu hits, %llu of them ended early; %llu blocks were dropped\n", TIMES,
	       (unsigned long long)told->hits, (unsigned long long)told->short_prefixes,
	       (unsigned long long)(daemon_metric(&d, "blocks_dropped_total") - before));
	must(WIFEXITED(status));
	must_eq(WEXITSTATUS(status), 0);
	must_cmp(told->hits, >, TIMES);
	must_cmp(told->short_prefixes, >, 0);
}
END_TEST

START_TEST(one_would_be_seen)
{
	int status = silent_run(true);

	must(WIFSIGNALED(status));
	must_eq(WTERMSIG(status), SIGSYS);
}
END_TEST

int main(void)
{
	Suite *s;
	TCase *t;
	SRunner *sr;
	int failed;

	if (SANITIZED) {
		printf("no_syscalls: sanitizers make system calls of their own\n");
		return 77;
	}
	told = mmap(NULL, sizeof(*told), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	must(told != MAP_FAILED);
	s = suite_create("no_syscalls");
	t = tcase_create("no_syscalls");
	suite_add_tcase(s, t);
	tcase_set_timeout(t, 240);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, a_million_hits_make_no_system_call);
	tcase_add_test(t, one_would_be_seen);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
