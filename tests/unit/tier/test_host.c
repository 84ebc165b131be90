/* SPDX-License-Identifier: Apache-2.0 */
/* tier/host.c: the budget to the byte, memory prepared in the background, drops under running jobs, everything given back.
 *
 * A real loop and real workers; they are waited for by turning the loop, which sleeps until something is done.
 */
#include "tier/host.h"

#include <check.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/thread.h"
#include "loop/loop.h"
#include "loop/mailbox.h"
#include "loop/worker.h"

#define MIB (UINT64_C(1) << 20)

static struct loop *loop;
static struct mailbox *mailbox;
static struct worker_pool *pool;
static struct tier *t;
static unsigned fds;

static unsigned count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned n = 0;

	ck_assert(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static unsigned count_maps(void)
{
	FILE *f = fopen("/proc/self/maps", "re");
	char line[512];
	unsigned n = 0;

	ck_assert(f);
	while (fgets(line, sizeof(line), f))
		n += strstr(line, "kvbmd-") != NULL;
	fclose(f);
	return n;
}

static uint64_t resident(int fd)
{
	struct stat st;

	ck_assert_int_eq(fstat(fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static void setup(void)
{
	thread_set_role(THREAD_LOOP);
	ck_assert_int_eq(loop_new(&loop), 0);
	ck_assert_int_eq(mailbox_new(loop, &mailbox), 0);
	ck_assert_int_eq(worker_pool_new(mailbox, 2, 64, &pool), 0);
	loop_turn(loop, false);
	fds = count_fds();
	t = NULL;
}

static void on_closed(void *arg)
{
	*(bool *)arg = true;
	loop_stop(loop);
}

static void tier_close(void)
{
	bool closed = false;

	host_close(t, on_closed, &closed);
	ck_assert(!closed);
	loop_run(loop);
	ck_assert(closed);
	t = NULL;
}

static void teardown(void)
{
	bool closed = false;

	if (t)
		tier_close();
	ck_assert_uint_eq(count_fds(), fds);
	ck_assert_uint_eq(count_maps(), 0);
	worker_pool_close(pool, on_closed, &closed);
	loop_run(loop);
	ck_assert(closed);
	mailbox_close(mailbox, NULL, NULL);
	loop = loop_free(loop);
	thread_set_role(THREAD_NONE);
}

static void tier_open(uint64_t size, uint64_t region_size)
{
	struct host_config config = { .size = size,
		                      .region_size = region_size,
		                      .huge = HOST_HUGE_AUTO,
		                      .numa = true,
		                      .loop = loop,
		                      .workers = pool };

	ck_assert_int_eq(host_new(&config, &t), 0);
}

static struct tier_stat stat_of(void)
{
	struct tier_stat st;

	t->ops->stat(t, &st);
	return st;
}

static void wait_populated(uint64_t bytes)
{
	while (stat_of().populated_bytes < bytes)
		loop_turn(loop, true);
	ck_assert_uint_eq(stat_of().populated_bytes, bytes);
}

static struct tier_region make(uint64_t size, uint64_t expected)
{
	struct tier_region region;

	ck_assert_int_eq(t->ops->region_make(t, size, 1, 1, size, &region), 0);
	ck_assert_uint_eq(region.size, expected);
	return region;
}

START_TEST(sizes_are_rounded_and_chosen)
{
	tier_open(100 * MIB + 5, 0);
	ck_assert_uint_eq(stat_of().size_bytes, 100 * MIB);
	ck_assert_uint_eq(t->ops->grain(t), 2 * MIB);
	ck_assert_uint_eq(t->ops->region_size(t), 2 * MIB);
	tier_close();
	tier_open(130 * MIB, 0);
	ck_assert_uint_eq(t->ops->region_size(t), 4 * MIB);
	tier_close();
	tier_open(130 * MIB, 5 * MIB);
	ck_assert_uint_eq(t->ops->region_size(t), 6 * MIB);
	tier_close();
	tier_open(4 * MIB, 64 * MIB);
	ck_assert_uint_eq(t->ops->region_size(t), 4 * MIB);
}
END_TEST

START_TEST(budget_is_exact)
{
	struct tier_region r[8], none;
	unsigned n = 0;

	tier_open(14 * MIB, 4 * MIB);
	ck_assert_uint_eq(t->ops->room(t), 14 * MIB);
	r[n++] = make(4 * MIB, 4 * MIB);
	r[n++] = make(3 * MIB, 4 * MIB); /* rounded up to the grain */
	r[n++] = make(1, 2 * MIB);
	ck_assert_uint_eq(t->ops->room(t), 4 * MIB);
	ck_assert_int_eq(t->ops->region_make(t, 6 * MIB, 5 * MIB, 1, 6 * MIB, &none), TIER_E_FULL);
	r[n++] = make(64 * MIB, 4 * MIB); /* the largest that is left */
	ck_assert_uint_eq(t->ops->room(t), 0);
	ck_assert_int_eq(t->ops->region_make(t, 2 * MIB, 1, 1, 2 * MIB, &none), TIER_E_FULL);
	ck_assert_uint_eq(stat_of().used_bytes, 14 * MIB);
	ck_assert_uint_eq(stat_of().regions, 4);
	for (unsigned i = 0; i < n; i++)
		memset(r[i].base, (int)i + 1, r[i].size);
	while (n > 0)
		t->ops->region_drop(t, &r[--n]);
	ck_assert_int_eq(r[0].fd, -1);
	ck_assert_uint_eq(t->ops->room(t), 14 * MIB);
	ck_assert_uint_eq(stat_of().regions, 0);
}
END_TEST

START_TEST(all_of_it_is_touched_in_the_background)
{
	struct tier_region r;

	tier_open(38 * MIB, 8 * MIB);
	ck_assert_uint_eq(stat_of().populated_bytes, 0);
	wait_populated(38 * MIB);
	r = make(8 * MIB, 8 * MIB);
	ck_assert_uint_eq(resident(r.fd), 8 * MIB);
	ck_assert_uint_eq(stat_of().populated_bytes, 38 * MIB);
	ck_assert(*r.present);
	t->ops->region_drop(t, &r);
	ck_assert_uint_eq(stat_of().populated_bytes, 30 * MIB);
	wait_populated(38 * MIB); /* another one takes its place */
}
END_TEST

struct other {
	struct job job;
	bool done;
	int fd;
	uint64_t before, left; /* what the system has given to it, in its turn */
};

static void other_run(struct job *job)
{
	struct other *other = container_of(job, struct other, job);

	other->left = resident(other->fd);
}

static void other_done(struct job *job)
{
	container_of(job, struct other, job)->done = true;
}

/* A job of somebody else that is given to the workers now. */
static struct other other_job(int fd)
{
	struct other other = { .job = { .run = other_run, .done = other_done }, .fd = fd };

	ck_assert_int_eq(worker_submit(pool, &other.job), 0);
	other.before = resident(fd); /* not before: who knows when we go on */
	while (!other.done)
		loop_turn(loop, true);
	return other;
}

/* Checksums of blocks that come up go to the same workers; memory is touched for minutes where there is much of it. */
START_TEST(others_wait_for_little_of_it)
{
	struct tier_region r;
	struct other other;
	bool closed = false;
	int fd;

	worker_pool_close(pool, on_closed, &closed);
	loop_run(loop);
	ck_assert_int_eq(worker_pool_new(mailbox, 1, 64, &pool), 0); /* so that the order is certain */
	tier_open(256 * MIB, 256 * MIB);
	r = make(256 * MIB, 256 * MIB);
	fd = dup(r.ro_fd);
	ck_assert(!*r.present);
	for (unsigned i = 0; i < 8; i++) {
		other = other_job(fd);
		ck_assert_uint_le(other.left, other.before + 2 * 2 * MIB); /* the step it was at, and one begun in this moment */
	}
	wait_populated(256 * MIB);
	ck_assert_uint_eq(resident(fd), 256 * MIB);
	ck_assert(*r.present);
	t->ops->region_drop(t, &r);
	other = other_job(fd);
	ck_assert_uint_ge(other.left + 2 * 16 * MIB, other.before);
	wait_populated(256 * MIB);
	ck_assert_uint_eq(resident(fd), 0);
	close(fd);
}
END_TEST

START_TEST(other_sizes_take_the_place_of_prepared_ones)
{
	struct tier_region a, b;

	tier_open(32 * MIB, 4 * MIB);
	wait_populated(32 * MIB);
	a = make(18 * MIB, 18 * MIB);
	b = make(14 * MIB, 14 * MIB);
	wait_populated(32 * MIB);
	ck_assert_uint_eq(resident(a.fd), 18 * MIB);
	ck_assert_uint_eq(resident(b.fd), 14 * MIB);
	t->ops->region_drop(t, &a);
	a = make(2 * MIB, 2 * MIB);
	t->ops->region_drop(t, &b);
	wait_populated(32 * MIB);
	t->ops->region_drop(t, &a);
}
END_TEST

static void drop_gives_back(uint64_t size)
{
	struct tier_region r;
	unsigned char *client;
	int fd;

	tier_open(size, size);
	r = make(size, size);
	memset(r.base, 9, size);
	fd = dup(r.ro_fd);
	client = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
	ck_assert_ptr_ne(client, MAP_FAILED);
	ck_assert_uint_eq(client[5 * MIB], 9);
	t->ops->region_drop(t, &r);
	wait_populated(size); /* its successor, which is not touched before */
	ck_assert_uint_eq(resident(fd), 0);
	ck_assert_uint_eq(client[5 * MIB], 0);
	munmap(client, size);
	close(fd);
	tier_close();
}

START_TEST(drop_gives_memory_back_although_a_client_maps_it)
{
	drop_gives_back(8 * MIB);  /* on the loop */
	drop_gives_back(64 * MIB); /* by a worker */
}
END_TEST

static void leaves(uint64_t size, bool touched)
{
	struct tier_region r;
	struct tier_object o;
	unsigned char *client, *other;

	tier_open(size, size);
	r = make(size, size);
	if (touched)
		wait_populated(size);
	memset(r.base, 9, size);
	ck_assert_int_eq(t->ops->object_make(t, "object", 8192, false, &o), 0);
	memset(o.base, 8, 8192);
	client = mmap(NULL, size, PROT_READ, MAP_SHARED, r.ro_fd, 0);
	other = mmap(NULL, 8192, PROT_READ, MAP_SHARED, o.ro_fd, 0);
	ck_assert(client != MAP_FAILED && other != MAP_FAILED);
	host_leave(t);
	t->ops->object_drop(t, &o);
	t->ops->region_drop(t, &r);
	tier_close();
	for (uint64_t at = 0; at < size; at += 4096)
		ck_assert_uint_eq(client[at], 9);
	ck_assert_uint_eq(other[8191], 8);
	munmap(client, size);
	munmap(other, 8192);
}

START_TEST(at_the_end_clients_keep_what_they_map)
{
	leaves(8 * MIB, true);  /* on the loop */
	leaves(64 * MIB, true); /* by a worker */
	leaves(64 * MIB, false);
}
END_TEST

START_TEST(drop_while_being_touched)
{
	struct tier_region r[16];

	tier_open(64 * MIB, 4 * MIB);
	for (unsigned round = 0; round < 20; round++) {
		for (unsigned i = 0; i < 16; i++)
			r[i] = make(4 * MIB, 4 * MIB);
		if (round % 3 == 0)
			loop_turn(loop, true);
		for (unsigned i = 0; i < 16; i++)
			t->ops->region_drop(t, &r[i]);
		if (round % 2 == 0)
			loop_turn(loop, false);
	}
	wait_populated(64 * MIB);
}
END_TEST

/* Big enough that workers give the pages back, too. */
START_TEST(big_ones_come_and_go)
{
	struct tier_region r[4];

	tier_open(160 * MIB, 40 * MIB);
	for (unsigned round = 0; round < 12; round++) {
		for (unsigned i = 0; i < 4; i++)
			r[i] = make(round % 3 == 2 ? 30 * MIB : 40 * MIB, round % 3 == 2 ? 30 * MIB : 40 * MIB);
		for (unsigned i = 0; i < round % 4; i++)
			loop_turn(loop, false); /* whatever is there: there may be nothing to wait for */
		for (unsigned i = 0; i < 4; i++)
			t->ops->region_drop(t, &r[i]);
		if (round % 2 == 0)
			loop_turn(loop, false);
	}
	wait_populated(160 * MIB);
	r[0] = make(40 * MIB, 40 * MIB);
	t->ops->region_drop(t, &r[0]);
}
END_TEST

START_TEST(close_while_being_touched)
{
	for (unsigned turns = 0; turns < 6; turns++) {
		tier_open(256 * MIB, 16 * MIB);
		for (unsigned i = 0; i < turns; i++)
			loop_turn(loop, true);
		tier_close();
		ck_assert_uint_eq(count_maps(), 0);
	}
}
END_TEST

START_TEST(touching_does_not_write)
{
	struct tier_region r;
	uint8_t *p;

	tier_open(32 * MIB, 32 * MIB);
	r = make(32 * MIB, 32 * MIB);
	p = r.base;
	for (uint64_t i = 0; i < r.size; i += 512) /* while the workers touch it */
		p[i] = (uint8_t)(i >> 9 | 1);
	wait_populated(32 * MIB);
	for (uint64_t i = 0; i < r.size; i += 512)
		ck_assert_uint_eq(p[i], (uint8_t)(i >> 9 | 1));
	t->ops->region_drop(t, &r);
}
END_TEST

START_TEST(lanes_may_be_any)
{
	struct tier_region r;

	tier_open(32 * MIB, 32 * MIB);
	for (uint32_t lanes = 1; lanes <= TIER_MAX_LANES; lanes *= 2) {
		ck_assert_int_eq(t->ops->region_make(t, 32 * MIB, 1, lanes, 32 * MIB / lanes, &r), 0);
		memset(r.base, 1, r.size);
		t->ops->region_drop(t, &r);
	}
	/* smaller than asked for, the area with it; and no lanes at all */
	ck_assert_int_eq(t->ops->region_make(t, 64 * MIB, 1, 2, 32 * MIB, &r), 0);
	ck_assert_uint_eq(r.size, 32 * MIB);
	t->ops->region_drop(t, &r);
	ck_assert_int_eq(t->ops->region_make(t, 2 * MIB, 1, 0, 0, &r), 0);
	t->ops->region_drop(t, &r);
}
END_TEST

START_TEST(start_is_quick_whatever_the_size)
{
	uint64_t before = clock_now_ns(), took;

	tier_open(UINT64_C(8) << 30, 0);
	took = clock_now_ns() - before;
	ck_assert_uint_eq(t->ops->region_size(t), 128 * MIB);
	ck_assert_msg(took < 500 * CLOCK_NS_PER_MS, "%llu ms", (unsigned long long)(took / CLOCK_NS_PER_MS));
	tier_close();
}
END_TEST

START_TEST(workers_that_are_busy_are_asked_again)
{
	struct worker_pool *narrow;
	struct worker_pool *wide = pool;
	struct tier_region a, b;
	bool closed = false;

	ck_assert_int_eq(worker_pool_new(mailbox, 1, 1, &narrow), 0);
	pool = narrow;
	tier_open(64 * MIB, 32 * MIB);
	pool = wide;
	a = make(32 * MIB, 32 * MIB);
	b = make(32 * MIB, 32 * MIB);
	wait_populated(64 * MIB);
	t->ops->region_drop(t, &a);
	t->ops->region_drop(t, &b);
	wait_populated(64 * MIB);
	tier_close();
	worker_pool_close(narrow, on_closed, &closed);
	loop_run(loop);
}
END_TEST

START_TEST(objects)
{
	struct tier_object page, index;
	uint8_t *reader, *client;
	char path[64];
	int fd;

	tier_open(4 * MIB, 0);
	ck_assert_int_eq(t->ops->object_make(t, "kvbmd-page", 100 * MIB + 12, true, &page), 0);
	ck_assert_int_eq(t->ops->object_make(t, "kvbmd-index", 3 * MIB, false, &index), 0);
	ck_assert_uint_eq(page.size, 100 * MIB + 12);
	ck_assert_uint_eq(resident(page.fd), 0);
	ck_assert_uint_eq(t->ops->room(t), 4 * MIB); /* not of the budget */
	((uint8_t *)page.base)[50 * MIB] = 1;
	ck_assert_uint_eq(resident(page.fd), 4096);
	((uint8_t *)index.base)[3 * MIB - 1] = 2;
	reader = mmap(NULL, index.size, PROT_READ, MAP_SHARED, index.ro_fd, 0);
	ck_assert_ptr_ne(reader, MAP_FAILED);
	ck_assert_uint_eq(reader[3 * MIB - 1], 2);
	ck_assert_ptr_eq(mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, index.ro_fd, 0), MAP_FAILED);
	ck_assert_int_eq(ftruncate(page.fd, 0), -1);
	/* Root, and a client of our own uid, can open it anew. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", index.ro_fd);
	fd = open(path, O_RDWR | O_CLOEXEC);
	ck_assert_int_ge(fd, 0);
	ck_assert_ptr_eq(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
	ck_assert_int_eq(write(fd, "x", 1), -1);
	close(fd);
	((uint8_t *)index.base)[3 * MIB - 1] = 3;
	ck_assert_uint_eq(reader[3 * MIB - 1], 3);
	client = mmap(NULL, page.size, PROT_READ | PROT_WRITE, MAP_SHARED, page.fd, 0);
	ck_assert_ptr_ne(client, MAP_FAILED);
	t->ops->object_drop(t, &page);
	t->ops->object_drop(t, &index);
	ck_assert_ptr_eq(index.base, NULL);
	ck_assert_uint_eq(reader[3 * MIB - 1], 3);
	ck_assert_uint_eq(client[50 * MIB], 1); /* its client may still have pins in it to let go of */
	munmap(reader, 3 * MIB);
	munmap(client, 100 * MIB + 12);
}
END_TEST

START_TEST(state_is_told)
{
	struct tier_stat st;

	tier_open(4 * MIB, 0);
	st = stat_of();
	ck_assert(st.huge_wanted);
	ck_assert_uint_ge(st.nodes, 1);
	ck_assert(strcmp(st.page_kind, "hugetlb") == 0 ? st.note[0] == '\0' : st.note[0] != '\0');
	ck_assert_int_eq(st.huge, strcmp(st.page_kind, "4k") != 0);
}
END_TEST

START_TEST(impossible_wishes_are_refused)
{
	struct host_config config = { .size = UINT64_C(1) << 46, .huge = HOST_HUGE_REQUIRE, .loop = loop, .workers = pool };
	struct tier *none;

	ck_assert_int_eq(host_new(&config, &none), HOST_E_HUGE);
	config = (struct host_config){ .size = MIB, .loop = loop, .workers = pool };
	ck_assert_int_lt(host_new(&config, &none), 0);
}
END_TEST

START_TEST(works_without_a_loop)
{
	struct host_config config = { .size = 8 * MIB, .huge = HOST_HUGE_NEVER };
	struct tier_region r;
	struct tier *bare;

	ck_assert_int_eq(host_new(&config, &bare), 0);
	ck_assert_int_eq(bare->ops->region_make(bare, 8 * MIB, 8 * MIB, 4, 2 * MIB, &r), 0);
	ck_assert(!r.huge);
	memset(r.base, 3, r.size);
	bare->ops->region_drop(bare, &r);
	ck_assert_ptr_eq(host_free(bare), NULL);
	ck_assert_ptr_eq(host_free(NULL), NULL);
}
END_TEST

/* With k descriptors left, for each k: all or nothing. */
START_TEST(every_descriptor_can_be_the_last)
{
	struct host_config config = { .size = 8 * MIB, .huge = HOST_HUGE_NEVER };
	struct rlimit before, limit;
	struct tier_region r;
	struct tier_object o;
	struct tier *bare;
	int lowest, n = 0;

	ck_assert_int_eq(host_new(&config, &bare), 0);
	ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
	lowest = dup(0);
	close(lowest);
	for (int k = 0; k <= 2; k++) {
		limit = before;
		limit.rlim_cur = (rlim_t)(lowest + k);
		ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
		if (bare->ops->region_make(bare, 4 * MIB, 1, 1, 4 * MIB, &r) == 0) {
			bare->ops->region_drop(bare, &r);
			n++;
		}
		ck_assert_uint_eq(bare->ops->room(bare), 8 * MIB);
		if (bare->ops->object_make(bare, "kvbmd-index", MIB, false, &o) == 0) {
			bare->ops->object_drop(bare, &o);
			n++;
		}
		ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
		ck_assert_uint_eq(count_maps(), 0);
	}
	ck_assert_int_eq(n, 2); /* both need two */
	ck_assert_ptr_eq(host_free(bare), NULL);
}
END_TEST

START_TEST(closing_with_a_region_out_aborts)
{
	tier_open(4 * MIB, 0);
	make(2 * MIB, 2 * MIB);
	host_close(t, NULL, NULL);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("host");
	TCase *tc = tcase_create("host");
	SRunner *sr = srunner_create(s);
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 60);
	tcase_add_test(tc, sizes_are_rounded_and_chosen);
	tcase_add_test(tc, budget_is_exact);
	tcase_add_test(tc, all_of_it_is_touched_in_the_background);
	tcase_add_test(tc, others_wait_for_little_of_it);
	tcase_add_test(tc, other_sizes_take_the_place_of_prepared_ones);
	tcase_add_test(tc, drop_gives_memory_back_although_a_client_maps_it);
	tcase_add_test(tc, at_the_end_clients_keep_what_they_map);
	tcase_add_test(tc, drop_while_being_touched);
	tcase_add_test(tc, big_ones_come_and_go);
	tcase_add_test(tc, close_while_being_touched);
	tcase_add_test(tc, touching_does_not_write);
	tcase_add_test(tc, lanes_may_be_any);
	tcase_add_test(tc, start_is_quick_whatever_the_size);
	tcase_add_test(tc, workers_that_are_busy_are_asked_again);
	tcase_add_test(tc, objects);
	tcase_add_test(tc, state_is_told);
	tcase_add_test(tc, impossible_wishes_are_refused);
	tcase_add_test(tc, works_without_a_loop);
	tcase_add_test(tc, every_descriptor_can_be_the_last);
	tcase_add_test_raise_signal(tc, closing_with_a_region_out_aborts, SIGABRT);
	suite_add_tcase(s, tc);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed == 0 ? 0 : 1;
}
