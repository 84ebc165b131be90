/* SPDX-License-Identifier: Apache-2.0 */
/* What a dead daemon's records say: exactly what it had acknowledged, whenever it died.
 *
 * At random moments: a daemon is killed while clients commit and drop; a bystander that kept the mappings then compares records and
 * index with the clients' journals.  At every moment: a process that registers, drops and pardons is stopped after each
 * instruction, and looked at.  And who holds blocks of a dead daemon reads on.
 *
 * KVBM_RECORDS_ROUNDS: how many daemons are killed (12).
 */
#include <check.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <xxhash.h>

#include "base/rng.h"
#include "tests/lib/cache.h"
#include "tests/lib/client_proc.h"
#include "tests/lib/daemon_proc.h"
#include "tests/lib/fault.h"
#include "tests/lib/must.h"
#include "tests/lib/raw.h"
#include "tests/unit/block/fixture.h"

#define CLIENTS 3u
#define EACH 400u /* numbers a client owns; all of them fit */
#define NUMBERS (CLIENTS * EACH)
#define BATCH 24u
#define BLOCK 4096u
#define KEY 16u

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

static const char *const flags[] = { "--g2.size=8M", "--g2.region_size=2M", "--g2.huge_pages=never", NULL };

static struct daemon_proc d;
static struct kvbm_model model;

/* ---- records and index as anybody can read them ---- */

static bool record_is_right(const struct shm_record *rec)
{
	uint32_t tail[2] = { atomic_load(&((struct shm_record *)rec)->generation), rec->key_bytes };

	/* As proto/shm.h says. */
	return rec->check == (uint32_t)XXH3_64bits_withSeed(rec, 48, XXH3_64bits(tail, sizeof(tail)));
}

static uint8_t record_state(const struct shm_record *rec)
{
	return atomic_load(&((struct shm_record *)rec)->state);
}

/* An index of our own out of records alone. */
struct rebuilt {
	struct index ix; /* owns lines, behind */
	uint32_t n;
};

static void rebuild(struct rebuilt *b, const struct shm_record *records, uint32_t n_slots, const struct index *like)
{
	*b = (struct rebuilt){ .ix = *like };
	b->ix.lines = aligned_alloc(64, b->ix.n_lines * sizeof(struct shm_line));
	b->ix.behind = calloc(1, index_behind_bytes(b->ix.n_lines));
	must(b->ix.lines && b->ix.behind);
	memset(b->ix.lines, 0, b->ix.n_lines * sizeof(struct shm_line));
	for (uint32_t s = 0; s < n_slots; s++) {
		struct shm_hash h;

		if (record_state(&records[s]) != SHM_REGISTERED)
			continue;
		must(record_is_right(&records[s]));
		must_eq(records[s].key_bytes, b->ix.key_bytes);
		h = index_hash(&b->ix, records[s].key);
		must(!index_find(&b->ix, records[s].key, h)); /* no block twice */
		must_eq(index_insert(&b->ix, h, atomic_load(&((struct shm_record *)&records[s])->generation), s), 0);
		b->n++;
	}
}

static uint32_t find_slot(const struct index *ix, const uint8_t *key)
{
	const struct shm_entry *e = index_find(ix, key, index_hash(ix, key));

	return e ? e->slot : NS_NONE;
}

/* ---- random moments ---- */

enum said { ABSENT = 0, COMMITTING, PRESENT, DROPPING };

/* Shared by clients and test: what was asked for, and what was acknowledged. */
struct journal {
	_Atomic uint64_t done; /* requests acknowledged */
	_Atomic uint8_t said[NUMBERS];
};

static struct journal *journal;

static void say(uint64_t first, uint32_t n, enum said what)
{
	for (uint32_t i = 0; i < n; i++)
		atomic_store(&journal->said[first + i], (uint8_t)what);
}

static void writer_main(struct client_self *self, void *arg)
{
	uint64_t base = *(uint64_t *)arg;
	uint8_t keys[BATCH * KVBM_KEY_MAX];
	struct rng rng;
	struct cache c;
	int r;

	(void)self;
	cache_open(&c, d.socket, &model);
	rng_init(&rng, (uint64_t)getpid());
	for (;;) {
		uint32_t n = 1 + (uint32_t)rng_below(&rng, BATCH);
		uint64_t first = base + rng_below(&rng, EACH - n);
		uint8_t have = atomic_load(&journal->said[first]);
		uint32_t same = 0;

		while (same < n && atomic_load(&journal->said[first + same]) == have)
			same++;
		say(first, same, have == ABSENT ? COMMITTING : DROPPING);
		cache_keys(&c, first, same, keys);
		if (have == ABSENT)
			r = cache_try_store(&c, KVBM_ALL_LANES, first, same);
		else
			r = kvbm_admin(c.kvbm, "drop", model.name, keys, KEY, same, NULL);
		if (r != (int)same)
			break;
		say(first, same, have == ABSENT ? PRESENT : ABSENT);
		atomic_fetch_add(&journal->done, 1);
	}
	must_eq(r, -KVBM_E_GONE);
}

/* What a bystander keeps of a daemon. */
struct kept {
	const struct shm_ns *shm; /* owns the mappings */
	const struct shm_record *records;
	size_t shm_size, records_size;
	struct index ix; /* borrows from them */
};

static const void *keep(int fd, size_t *ret_size)
{
	struct stat st;
	void *p;

	must(fstat(fd, &st) == 0);
	p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
	must(p != MAP_FAILED);
	*ret_size = (size_t)st.st_size;
	return p;
}

static void keep_all(struct kept *kept, struct raw *raw)
{
	raw_hello(raw, d.socket);
	raw_attach(raw, model.name, BLOCK, 0);
	must_eq(raw->n_fds, 3);
	kept->shm = keep(raw->fds[0], &kept->shm_size);
	kept->records = keep(raw->fds[1], &kept->records_size);
	kept->ix = (struct index){ .lines = (struct shm_line *)((char *)kept->shm + kept->shm->lines_offset),
		                   .keys = kept->records->key,
		                   .key_stride = sizeof(struct shm_record),
		                   .n_lines = kept->shm->n_lines,
		                   .salt = { kept->shm->salt[0], kept->shm->salt[1] },
		                   .key_bytes = KEY };
}

/* The parent as cache_try_store() gave it: the block before it, whoever stored that. */
static void check_number(const struct cache *names, const struct kept *kept, const struct rebuilt *b, uint64_t number,
                         uint64_t seen[4])
{
	enum said said = atomic_load(&journal->said[number]);
	uint8_t key[KVBM_KEY_MAX], parent[KVBM_KEY_MAX];
	uint32_t slot;

	cache_keys(names, number, 1, key);
	slot = find_slot(&b->ix, key);
	if (said == PRESENT)
		must(slot != NS_NONE);
	if (said == ABSENT)
		must(slot == NS_NONE);
	seen[said] += slot != NS_NONE;
	if (slot == NS_NONE)
		return;
	cache_keys(names, number - 1, 1, parent);
	must(kept->records[slot].parent == (number ? index_hash(&b->ix, parent).tag : 0));
	/* The dead daemon's own index had not lost it either. */
	if (said == PRESENT)
		must_eq(find_slot(&kept->ix, key), slot);
}

static void compare(const struct kept *kept, uint64_t ret_seen[4])
{
	const struct cache names = { .key_bytes = KEY };
	uint64_t seen[4] = { 0 };
	struct rebuilt b;

	rebuild(&b, kept->records, kept->shm->n_slots, &kept->ix);
	for (uint64_t n = 0; n < NUMBERS; n++)
		check_number(&names, kept, &b, n, seen);
	must_eq(seen[COMMITTING] + seen[PRESENT] + seen[DROPPING], b.n); /* and nothing else is there */
	for (int i = 0; i < 4; i++)
		ret_seen[i] += seen[i];
	free(b.ix.behind);
	free(b.ix.lines);
}

static uint64_t rounds(void)
{
	const char *text = getenv("KVBM_RECORDS_ROUNDS");

	return text ? strtoull(text, NULL, 10) : 12;
}

static void kill_once(struct rng *rng, uint64_t ret_seen[4])
{
	struct client_proc clients[CLIENTS];
	struct kept kept;
	struct raw raw;
	uint64_t until;

	memset(journal, 0, sizeof(*journal));
	daemon_run(&d);
	keep_all(&kept, &raw);
	for (unsigned i = 0; i < CLIENTS; i++) {
		uint64_t base = (uint64_t)i * EACH;

		client_start(&clients[i], writer_main, &base);
	}
	until = 20 + rng_below(rng, 600);
	while (atomic_load(&journal->done) < until)
		sched_yield();
	for (volatile uint64_t spin = rng_below(rng, 50000); spin > 0; spin--)
		;
	daemon_kill(&d);
	for (unsigned i = 0; i < CLIENTS; i++)
		client_kill(&clients[i]);
	compare(&kept, ret_seen);
	munmap((void *)kept.shm, kept.shm_size);
	munmap((void *)kept.records, kept.records_size);
	raw_close(&raw);
}

START_TEST(records_say_what_was_acknowledged)
{
	uint64_t seen[4] = { 0 }, n = rounds();
	struct rng rng;

	journal = mmap(NULL, sizeof(*journal), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	must(journal != MAP_FAILED);
	rng_init(&rng, (uint64_t)getpid());
	model = cache_model("records", BLOCK, 1);
	daemon_init(&d, NULL, flags);
	for (uint64_t i = 0; i < n; i++)
		kill_once(&rng, seen);
	printf("records: %llu daemons killed; %llu acknowledged blocks found, %llu whose commit was under way, %llu whose "
	       "drop was\n",
	       (unsigned long long)n, (unsigned long long)seen[PRESENT], (unsigned long long)seen[COMMITTING],
	       (unsigned long long)seen[DROPPING]);
	must_cmp(seen[PRESENT], >, 0);
	daemon_deinit(&d);
}
END_TEST

/* ---- every moment ---- */

#define STEP_SLOTS 16u
#define STEP_KEYS 12u
#define STEP_MAX 200000u

static struct fixture f;
static struct holder holder;

static void stepped(void)
{
	uint32_t slot;

	fixture_store(&holder, STEP_KEYS + 1, 3);
	slot = fixture_find(&f, 1);
	block_condemn(&f.ns, slot);
	block_pardon(&f.ns, slot);
	for (uint32_t k = 1; k <= 6; k++) {
		fixture_drop(&f, fixture_find(&f, k));
		fixture_store(&holder, STEP_KEYS + 1 + k, k);
	}
}

/* Of a stopped process: its records and index lines at the addresses that are ours too. */
static void peek(pid_t pid, struct shm_record *records, struct shm_line *lines)
{
	size_t rs = STEP_SLOTS * sizeof(*records), ls = f.ns.index.n_lines * sizeof(*lines);
	struct iovec to[2] = { { records, rs }, { lines, ls } };
	struct iovec from[2] = { { f.ns.records, rs }, { f.ns.index.lines, ls } };

	must(process_vm_readv(pid, to, 2, from, 2, 0) == (ssize_t)(rs + ls));
}

/* Every registered record is right, no key is there twice, and what nobody touches can be found. */
static void look(const struct shm_record *records, struct shm_line *lines)
{
	struct index ix = f.ns.index;
	uint8_t key[KEY_MAX];
	struct rebuilt b;

	ix.keys = records->key;
	ix.lines = lines;
	rebuild(&b, records, STEP_SLOTS, &ix);
	must_cmp(b.n, >=, STEP_KEYS - 1);
	for (uint32_t k = 7; k <= STEP_KEYS; k++) {
		fixture_key(k, key);
		must(find_slot(&b.ix, key) != NS_NONE);
		must_eq(find_slot(&ix, key), find_slot(&b.ix, key));
	}
	/* Whatever the index names is a registered block of that key. */
	for (uint64_t i = 0; i < ix.n_lines * SHM_LINE_ENTRIES; i++) {
		struct shm_entry e = lines[i / SHM_LINE_ENTRIES].entries[i % SHM_LINE_ENTRIES];

		if (e.generation == 0 || e.generation == UINT32_MAX)
			continue;
		must_eq(record_state(&records[e.slot]), SHM_REGISTERED);
		must_eq(e.generation, atomic_load(&((struct shm_record *)&records[e.slot])->generation));
		must(e.tag == index_hash(&ix, records[e.slot].key).tag);
	}
	free(b.ix.behind);
	free(b.ix.lines);
}

START_TEST(records_are_right_after_every_instruction)
{
	struct shm_record before[STEP_SLOTS] = { 0 }, records[STEP_SLOTS];
	struct shm_line *lines;
	uint64_t steps = 0, changes = 0;
	int status;
	pid_t pid;

	fixture_open(&f, fixture_desc(1, KEY), 1, STEP_SLOTS);
	fixture_holder(&f, &holder, false);
	for (uint32_t k = 1; k <= STEP_KEYS; k++)
		fixture_store(&holder, k, k - 1);
	lines = aligned_alloc(64, f.ns.index.n_lines * sizeof(*lines));
	must(lines);
	pid = fork();
	must(pid >= 0);
	if (pid == 0) {
		must(ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0);
		raise(SIGSTOP);
		stepped();
		_exit(0);
	}
	must(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status));
	must(ptrace(PTRACE_SETOPTIONS, pid, NULL, PTRACE_O_EXITKILL) == 0);
	for (;; steps++) {
		must(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) == 0);
		must(waitpid(pid, &status, 0) == pid);
		if (!WIFSTOPPED(status))
			break;
		must_eq(WSTOPSIG(status), SIGTRAP);
		must_cmp(steps, <, STEP_MAX);
		peek(pid, records, lines);
		changes += memcmp(records, before, sizeof(records)) != 0;
		memcpy(before, records, sizeof(records));
		look(records, lines);
	}
	must(WIFEXITED(status));
	must_eq(WEXITSTATUS(status), 0);
	printf("records: %llu instructions, %llu of them changed a record\n", (unsigned long long)steps,
	       (unsigned long long)changes);
	must_cmp(changes, >, 50);
	free(lines);
	fixture_empty(&f);
	fixture_holder_close(&holder);
	fixture_close(&f);
}
END_TEST

/* ---- who holds, reads on ---- */

START_TEST(holders_of_a_dead_daemon_read_on)
{
	struct kvbm_span held[32];
	uint8_t keys[32 * KVBM_KEY_MAX];
	struct kvbm_counters counters;
	struct cache c;

	model = cache_model("records", 65536, 1);
	daemon_start(&d, flags);
	cache_open(&c, d.socket, &model);
	must_eq(cache_store(&c, 0, 32), 32);
	must_eq(cache_verify(&c, 0, 32), 32); /* its regions are mapped */
	must_eq(cache_hold(&c, 0, 32, held), 32);
	cache_keys(&c, 0, 32, keys);
	daemon_kill(&d);
	must_eq(cache_verify(&c, 0, 32), 0);
	for (uint32_t i = 0; i < 32; i++)
		cache_check(&c, &held[i], keys + i * KEY);
	daemon_run(&d);
	/* The next message joins the new one; old and new stand side by side. */
	must_eq(cache_store(&c, 100, 32), 32);
	must_eq(cache_verify(&c, 100, 32), 32);
	must_eq(cache_verify(&c, 0, 32), 0);
	kvbm_get_counters(c.kvbm, &counters);
	must_eq(counters.reconnects, 1);
	must_eq(daemon_metric(&d, "pins"), 0);
	for (uint32_t i = 0; i < 32; i++)
		cache_check(&c, &held[i], keys + i * KEY);
	must_eq(kvbm_release(c.ns, held, 32), 32);
	must(!kvbm_data(c.ns, &held[0], 0));
	cache_close(&c);
	daemon_deinit(&d);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("records");
	TCase *t = tcase_create("records");
	SRunner *sr;
	int failed;

	suite_add_tcase(s, t);
	tcase_set_timeout(t, (double)(60 + rounds() * 5));
	tcase_add_test(t, records_say_what_was_acknowledged);
	tcase_add_test(t, holders_of_a_dead_daemon_read_on);
	if (!SANITIZED && fault_can_trace()) /* there, some of the instructions are the sanitizer's */
		tcase_add_test(t, records_are_right_after_every_instruction);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
