/* SPDX-License-Identifier: Apache-2.0 */
/* tier/nvme*.c on real files: what is written comes back, after a close and after a death; the capacity is one.  Damage is in
 * test_nvme_damage.c, power cuts are in test_nvme_power.c.
 */
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/rng.h"
#include "tests/integration/nvme_fixture.h"
#include "tier/nvme_file.h"
#include "tier/nvme_state.h"

START_TEST(every_slot_comes_back)
{
	uint32_t area, n;

	open_ok();
	ck_assert(owner.clean);
	area = nvme_owner_area(&owner, 64 * KIB, 1);
	n = owner.areas[area].n_slots;
	ck_assert_uint_eq(n, 63);
	fill_all(area, 1000);
	ck_assert_uint_eq(nvme_owner_check_all(&owner), n);
	nvme_owner_close(&owner);
	open_ok();
	ck_assert(owner.clean);
	ck_assert_uint_eq(owner.n_areas_found, 1);
	ck_assert_uint_eq(owner.n_slots_found, n);
	ck_assert_uint_eq(nvme_owner_check_all(&owner), n);
	nvme_owner_close(&owner);
}
END_TEST

START_TEST(every_number_of_lanes)
{
	open_ok();
	for (uint32_t lanes = 1; lanes <= TIER_MAX_LANES; lanes++) {
		uint32_t area = nvme_owner_area(&owner, 4 * KIB, lanes);

		fill_all(area, lanes * 100000);
		ck_assert_uint_eq(nvme_owner_check_all(&owner), owner.areas[area].n_slots);
		nvme_owner_settle(&owner);
		nvme_owner_drop(&owner, area);
	}
	nvme_owner_close(&owner);
}
END_TEST

/* Slices side by side in memory are one operation. */
START_TEST(lanes_side_by_side)
{
	uint32_t area;

	owner.lane_area = 8 * KIB;
	open_ok();
	area = nvme_owner_area(&owner, 8 * KIB, 8);
	fill_all(area, 5);
	ck_assert_uint_eq(nvme_owner_check_all(&owner), owner.areas[area].n_slots);
	nvme_owner_close(&owner);
	owner.lane_area = owner.region.size / TIER_MAX_LANES;
	open_ok();
	ck_assert_uint_eq(owner.n_slots_found, nvme_owner_check_all(&owner));
	nvme_owner_close(&owner);
}
END_TEST

START_TEST(several_drives)
{
	static const uint32_t counts[] = { 2, 3, 7, NVME_DRIVES_MAX };

	for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
		uint32_t area, n;

		for (uint32_t d = 0; d < counts[i]; d++)
			(void)unlink(paths[d]);
		config.n_paths = counts[i];
		config.size = counts[i] * 4 * MIB;
		config.area_size = counts[i] * MIB;
		open_ok();
		ck_assert_uint_eq(nvme_owner_stat(&owner).drives, counts[i]);
		area = nvme_owner_area(&owner, 16 * KIB, 2);
		n = owner.areas[area].n_slots;
		ck_assert_uint_eq(n % counts[i], 0);
		fill_all(area, i * 1000);
		nvme_owner_close(&owner);
		open_ok();
		ck_assert_uint_eq(owner.n_slots_found, n);
		ck_assert_uint_eq(nvme_owner_check_all(&owner), n);
		nvme_owner_close(&owner);
		for (uint32_t d = 0; d < counts[i]; d++) {
			struct stat st;

			ck_assert_int_eq(stat(paths[d], &st), 0);
			ck_assert_int_eq(st.st_size, 4 * MIB);
		}
	}
}
END_TEST

static void put_some(uint32_t area, uint32_t from, uint32_t to)
{
	for (uint32_t p = from; p < to; p++)
		ck_assert_int_eq(nvme_owner_put(&owner, area, p, p), 0);
}

static uint64_t blocks_since(uint64_t *written)
{
	uint64_t now = nvme_owner_stat(&owner).written_bytes, n = (now - *written) / (4 * KIB);

	*written = now;
	return n;
}

/* Records are not written one by one, however long they may wait for each other, but with 15 others; a place that was set free ahead of need costs no
 * write of its own before it is overwritten, one that was not does. */
START_TEST(records_wait_for_each_other)
{
	uint64_t written;
	uint32_t area;

	config.record_delay_ns = 3600 * CLOCK_NS_PER_S;
	open_ok();
	written = nvme_owner_stat(&owner).written_bytes;
	area = nvme_owner_area(&owner, 4 * KIB, 1);
	put_some(area, 0, 15);
	ck_assert_uint_eq(blocks_since(&written), 15 + 2); /* headers */
	put_some(area, 15, 16);
	nvme_owner_settle(&owner);
	ck_assert_uint_eq(blocks_since(&written), 1 + 1);
	for (uint32_t p = 0; p < 16; p++)
		nvme_owner_forget(&owner, area, p);
	put_some(area, 16, 32);
	nvme_owner_settle(&owner);
	ck_assert_uint_eq(blocks_since(&written), 16 + 1);
	put_some(area, 0, 16);
	nvme_owner_settle(&owner);
	ck_assert_uint_eq(blocks_since(&written), 16 + 1);
	nvme_owner_forget(&owner, area, 20);
	put_some(area, 20, 21);
	ck_assert_uint_eq(blocks_since(&written), 1 + 1);
	nvme_owner_close(&owner);
	open_ok();
	ck_assert_uint_eq(owner.n_slots_found, 32);
	ck_assert_uint_eq(nvme_owner_check_all(&owner), 32);
	nvme_owner_close(&owner);
}
END_TEST

START_TEST(drives_of_another_order_number_or_set)
{
	const char *first = path_list[0];

	config.n_paths = 2;
	open_ok();
	nvme_owner_close(&owner);
	path_list[0] = path_list[1];
	path_list[1] = first;
	ck_assert_int_eq(nvme_owner_open(&owner, &config), NVME_E_CHANGED);
	path_list[1] = path_list[0];
	path_list[0] = first;
	config.n_paths = 1;
	ck_assert_int_eq(nvme_owner_open(&owner, &config), NVME_E_CHANGED);
	config.n_paths = 3;
	ck_assert_int_eq(nvme_owner_open(&owner, &config), NVME_E_CHANGED);
	ck_assert_int_ne(access(paths[2], F_OK), 0); /* not left behind */
	config.n_paths = 2;
	config.size *= 2;
	ck_assert_int_eq(nvme_owner_open(&owner, &config), NVME_E_CHANGED);
	must_contain(owner.why, "18M");
	config.size = 0;
	open_ok();
	nvme_owner_close(&owner);
	ck_assert_int_eq(unlink(paths[1]), 0);
	ck_assert_int_eq(nvme_owner_open(&owner, &config), NVME_E_OPEN);
	/* The same one twice. */
	path_list[1] = path_list[0];
	ck_assert_int_eq(nvme_owner_open(&owner, &config), NVME_E_BUSY);
}
END_TEST

START_TEST(what_is_forgotten_or_dropped_is_not_found)
{
	uint32_t a, b;

	open_ok();
	a = nvme_owner_area(&owner, 64 * KIB, 1);
	b = nvme_owner_area(&owner, 32 * KIB, 2);
	fill_all(a, 1);
	fill_all(b, 1000);
	for (uint32_t p = 0; p < owner.areas[a].n_slots; p += 2)
		nvme_owner_forget(&owner, a, p);
	nvme_owner_drop(&owner, b);
	nvme_owner_close(&owner);
	open_ok();
	ck_assert_uint_eq(owner.n_areas_found, 1);
	ck_assert_uint_eq(owner.n_slots_found, 31);
	for (uint32_t p = 0; p < owner.areas[a].n_slots; p++)
		ck_assert_int_eq(owner.areas[a].slots[p].present, p % 2);
	ck_assert_uint_eq(nvme_owner_check_all(&owner), 31);
	nvme_owner_close(&owner);
	/* Areas given up by their owner are free, then and later. */
	owner.refuse_areas = true;
	open_ok();
	ck_assert_uint_eq(owner.n_areas_found, 1);
	ck_assert_uint_eq(owner.n_slots_found, 0);
	ck_assert_uint_eq(owner.t->ops->areas_free(owner.t), owner.t->ops->areas(owner.t));
	nvme_owner_close(&owner);
	owner.refuse_areas = false;
	open_ok();
	ck_assert_uint_eq(owner.n_areas_found, 0);
	nvme_owner_close(&owner);
}
END_TEST

START_TEST(capacity_is_never_exceeded)
{
	uint64_t written = 0, n = 0;
	struct stat st;

	open_ok();
	ck_assert_uint_eq(owner.t->ops->areas(owner.t), 4);
	for (uint32_t i = 0; i < 4; i++)
		(void)nvme_owner_area(&owner, 64 * KIB, 1);
	{
		struct tier_area_shape shape = { .lane_bytes = 4096, .lanes = 1 };
		struct tier_owner who = { .length = 1 };
		struct tier_area area;

		ck_assert_int_eq(owner.t->ops->area_make(owner.t, &shape, &who, &area), TIER_E_FULL);
	}
	while (written < 3 * config.size) {
		ck_assert_int_eq(nvme_owner_put(&owner, (uint32_t)(n % 4), (uint32_t)(n / 4 % 63), n), 0);
		written += 64 * KIB;
		n++;
		ck_assert_int_eq(stat(paths[0], &st), 0);
		ck_assert_int_eq(st.st_size, 18 * MIB);
	}
	ck_assert_uint_eq(nvme_owner_check_all(&owner), 4 * 63);
	ck_assert_uint_ge(nvme_owner_stat(&owner).written_bytes, 3 * config.size);
	nvme_owner_close(&owner);
	ck_assert_int_eq(stat(paths[0], &st), 0);
	ck_assert_int_eq(st.st_size, 18 * MIB);
	ck_assert_int_le(st.st_blocks * 512, 18 * MIB + 64 * KIB);
}
END_TEST

START_TEST(a_daily_budget_of_writes)
{
	uint32_t area;

	config.write_budget_bytes = 10 * 64 * KIB;
	open_ok();
	area = nvme_owner_area(&owner, 64 * KIB, 1);
	for (uint32_t p = 0; p < 9; p++)
		ck_assert_int_eq(nvme_owner_put(&owner, area, p, p), 0);
	/* What is written about them counts too. */
	nvme_owner_settle(&owner);
	ck_assert_int_eq(nvme_owner_put(&owner, area, 9, 9), TIER_E_FULL);
	ck_assert_uint_eq(nvme_owner_check_all(&owner), 9);
	ck_assert_uint_eq(nvme_owner_stat(&owner).budget_bytes, config.write_budget_bytes);
	ck_assert_uint_ge(nvme_owner_stat(&owner).written_today_bytes, 9 * 64 * KIB);
	/* Tomorrow there is another one. */
	nvme_of(owner.t)->today_since_ns -= 24 * 3600 * CLOCK_NS_PER_S;
	ck_assert_uint_eq(nvme_owner_stat(&owner).written_today_bytes, 0);
	ck_assert_int_eq(nvme_owner_put(&owner, area, 9, 9), 0);
	ck_assert_uint_eq(nvme_owner_check_all(&owner), 10);
	nvme_owner_close(&owner);
}
END_TEST

/* One that takes neither fallocate nor O_DIRECT. */
START_TEST(filesystems_that_cannot_do_everything)
{
	char mountpoint[128], file[160];
	uint32_t area;

	tmpdir_path(&dir, "ram", mountpoint, sizeof(mountpoint));
	must(mkdir(mountpoint, 0700) == 0);
	if (mount("none", mountpoint, "ramfs", 0, NULL) != 0) {
		fprintf(stderr, "no right to mount: fall-backs are not tested\n");
		return;
	}
	must(snprintf(file, sizeof(file), "%s/g3", mountpoint) > 0);
	path_list[0] = file;
	open_ok();
	must_contain(nvme_owner_stat(&owner).note, "the filesystem reserves nothing");
	must_contain(nvme_owner_stat(&owner).note, "no O_DIRECT here");
	area = nvme_owner_area(&owner, 64 * KIB, 1);
	fill_all(area, 1);
	ck_assert_uint_eq(nvme_owner_check_all(&owner), 63);
	nvme_owner_close(&owner);
	open_and_find(63, 63);
	must(umount2(mountpoint, MNT_DETACH) == 0);
}
END_TEST

START_TEST(the_queue_is_bounded_and_who_is_wanted_has_most_of_it)
{
	uint32_t area, n;

	config.queue = 16;
	config.depth = 2;
	open_ok();
	area = nvme_owner_area(&owner, 4 * KIB, 1);
	put_some(area, 900, 901); /* or they would wait for its header */
	for (n = 0; nvme_owner_write(&owner, area, n, n, n) == 0; n++)
		;
	ck_assert_uint_eq(n, 2 + 12); /* in the background: three quarters */
	ck_assert_uint_eq(nvme_owner_stat(&owner).queued, 12);
	ck_assert_uint_eq(nvme_owner_stat(&owner).in_flight, 2);
	nvme_owner_wait(&owner);
	ck_assert_uint_eq(owner.n_ok, 1 + n);
	nvme_owner_close(&owner);
}
END_TEST

START_TEST(each_drive_has_its_share_in_flight)
{
	uint32_t area, n;

	config.n_paths = 3;
	config.size = 12 * MIB;
	config.area_size = 3 * MIB;
	config.queue = 16;
	config.depth = 2;
	open_ok();
	area = nvme_owner_area(&owner, 4 * KIB, 1);
	put_some(area, 500, 501);
	for (n = 0; nvme_owner_write(&owner, area, n, n, n) == 0; n++)
		;
	ck_assert_uint_eq(nvme_owner_stat(&owner).in_flight, 3 * 2);
	nvme_owner_wait(&owner);
	ck_assert_uint_eq(owner.n_ok, 1 + n);
	nvme_owner_close(&owner);
}
END_TEST

/* What a drive has beyond that only waits there, and whatever is urgent behind it. */
START_TEST(of_large_copies_fewer_are_in_flight)
{
	uint32_t area, large;

	config.size = 128 * MIB;
	config.area_size = 30 * MIB;
	owner.lane_area = owner.region.size;
	open_ok();
	area = nvme_owner_area(&owner, 6 * MIB, 1);
	put_some(area, 0, 1); /* or they would wait for its header */
	for (uint32_t n = 0; n < 4; n++)
		ck_assert_int_eq(nvme_owner_write(&owner, area, n, n, n), 0);
	ck_assert_uint_eq(nvme_owner_stat(&owner).in_flight, 2); /* 12 of 16 MiB */
	ck_assert_uint_eq(nvme_owner_stat(&owner).queued, 2);
	nvme_owner_wait(&owner);
	ck_assert_uint_eq(owner.n_ok, 1 + 4);
	ck_assert_uint_eq(nvme_owner_check_all(&owner), 4);
	/* One that is larger than that alone. */
	large = nvme_owner_area(&owner, 20 * MIB, 1);
	ck_assert_int_eq(nvme_owner_put(&owner, large, 0, 1), 0);
	ck_assert_uint_eq(nvme_owner_check_all(&owner), 5);
	nvme_owner_close(&owner);
}
END_TEST

/* KiB this process has pinned. */
static unsigned long pinned(void)
{
	FILE *f = fopen("/proc/self/status", "re");
	unsigned long kib = 0;
	char line[256];

	must(f);
	while (fgets(line, sizeof(line), f))
		(void)sscanf(line, "VmPin: %lu kB", &kib);
	fclose(f);
	return kib;
}

/* Before, the loop would make the pages, 64 MiB at a time, while everybody waits. */
START_TEST(memory_is_registered_when_it_is_there)
{
	bool present = false, may_pin = mlock(owner.region.base, owner.region.size) == 0;
	unsigned long before;
	uint32_t area;

	munlock(owner.region.base, owner.region.size);
	owner.region.present = &present;
	open_ok();
	before = pinned();
	area = nvme_owner_area(&owner, 4 * KIB, 1);
	for (uint64_t end = clock_now_ns() + 100 * CLOCK_NS_PER_MS; clock_now_ns() < end;) {
		put_some(area, 0, 4);
		ck_assert_uint_eq(pinned(), before);
	}
	ck_assert_uint_eq(nvme_owner_check_all(&owner), 4);
	present = true;
	while (may_pin && pinned() == before) /* some users may pin too little for it */
		loop_turn(owner.loop, true);
	ck_assert_uint_eq(nvme_owner_check_all(&owner), 4);
	nvme_owner_close(&owner);
}
END_TEST

/* ---- death ---- */

/* The child writes and tells each byte by byte; the parent kills it at some byte. */
static void child(int fd)
{
	struct rng rng;
	uint32_t areas[2];

	rng_init(&rng, (uint64_t)getpid());
	must(nvme_owner_open(&owner, &config) == 0);
	must(nvme_owner_check_all(&owner) <= owner.n_slots_found);
	while (owner.t->ops->areas_free(owner.t) > 2)
		(void)nvme_owner_area(&owner, 16 * KIB, 2);
	for (uint32_t i = 0, n = 0; i < NVME_OWNER_AREAS && n < 2; i++)
		if (owner.areas[i].used)
			areas[n++] = i;
	for (uint64_t seed = (uint64_t)getpid() << 20;; seed++) {
		uint32_t area = areas[rng_below(&rng, 2)];
		uint32_t place = (uint32_t)rng_below(&rng, owner.areas[area].n_slots);

		must(write(fd, ".", 1) == 1);
		if (nvme_owner_is_writing(&owner, area, place))
			continue;
		if (rng_chance(&rng, 10))
			nvme_owner_forget(&owner, area, place);
		else if (owner.in_flight < 12)
			must(nvme_owner_write(&owner, area, place, seed, (uint32_t)(seed % 12)) == 0);
		else
			loop_turn(owner.loop, true);
	}
}

START_TEST(killed_at_any_moment)
{
	struct rng rng;
	uint64_t found = 0;
	unsigned rounds = 60;

	rng_init(&rng, 7);
	open_ok();
	nvme_owner_close(&owner);
	for (unsigned i = 0; i < rounds; i++) {
		uint64_t bytes = 1 + rng_below(&rng, 400);
		int pipe_fds[2], status;
		char byte;
		pid_t pid;

		must(pipe2(pipe_fds, O_CLOEXEC) == 0);
		pid = fork();
		must(pid >= 0);
		if (pid == 0) {
			/* A loop of its own: the parent's descriptors are not for two. */
			nvme_owner_init(&owner, 32 * MIB);
			child(pipe_fds[1]);
		}
		must(close(pipe_fds[1]) == 0);
		for (uint64_t n = 0; n < bytes && read(pipe_fds[0], &byte, 1) == 1; n++)
			;
		must(kill(pid, SIGKILL) == 0 && waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
		must(close(pipe_fds[0]) == 0);
		open_ok();
		found += nvme_owner_check_all(&owner); /* dies of a lie */
		if (i % 4 != 0) {
			nvme_owner_close(&owner);
			continue;
		}
		/* And it goes on. */
		for (uint32_t a = 0; a < NVME_OWNER_AREAS; a++)
			if (owner.areas[a].used)
				ck_assert_int_eq(nvme_owner_put(&owner, a, 0, i), 0);
		nvme_owner_close(&owner);
	}
	ck_assert_uint_gt(found, rounds);
}
END_TEST

START_TEST(a_full_filesystem_is_an_outcome)
{
	struct stat st;

	config.size = UINT64_C(1) << 58;
	config.area_size = 0;
	ck_assert_int_eq(nvme_owner_open(&owner, &config), NVME_E_SPACE);
	ck_assert_int_ne(stat(paths[0], &st), 0); /* nothing is left behind */
	/* Nor made longer. */
	tmpdir_write(&dir, "g3.0", "");
	ck_assert_int_eq(nvme_owner_open(&owner, &config), NVME_E_SPACE);
	ck_assert_int_eq(stat(paths[0], &st), 0);
	ck_assert_int_eq(st.st_size, 0);
}
END_TEST

START_TEST(shapes_it_cannot_take)
{
	struct tier_area_shape shape = { .lane_bytes = 4096, .lanes = 1 };

	open_ok();
	ck_assert_uint_eq(owner.t->ops->area_slots(owner.t, &shape), 991);
	shape.lane_bytes = 4095;
	ck_assert_uint_eq(owner.t->ops->area_slots(owner.t, &shape), 0);
	shape.lane_bytes = 4 * MIB;
	ck_assert_uint_eq(owner.t->ops->area_slots(owner.t, &shape), 0);
	shape.lane_bytes = 2 * MIB;
	ck_assert_uint_eq(owner.t->ops->area_slots(owner.t, &shape), 1);
	shape.lanes = 65;
	ck_assert_uint_eq(owner.t->ops->area_slots(owner.t, &shape), 0);
	nvme_owner_close(&owner);
}
END_TEST

/* ---- block devices ---- */

/* The device of paths[1], an image, in @ret; false: this machine or user has none. */
static bool loop_device(char *ret, size_t size)
{
	char command[256];
	FILE *f;
	bool have;

	must(snprintf(command, sizeof(command), "losetup -f --show %s 2>/dev/null", paths[1]) > 0);
	f = popen(command, "re");
	have = f && fgets(ret, (int)size, f);
	if (f)
		(void)pclose(f);
	if (have)
		ret[strcspn(ret, "\n")] = '\0';
	return have;
}

START_TEST(a_block_device)
{
	char device[128], command[256];
	uint32_t area;

	tmpdir_write(&dir, "g3.1", "");
	must(truncate(paths[1], 18 * MIB) == 0);
	if (!loop_device(device, sizeof(device))) {
		fprintf(stderr, "no loop devices here: block devices are not tested\n");
		return;
	}
	path_list[0] = device;
	config.size = 36 * MIB;
	ck_assert_int_eq(nvme_owner_open(&owner, &config), NVME_E_SMALL);
	config.size = 0;
	open_ok();
	ck_assert_int_eq(owner.t->ops->areas(owner.t), 4);
	area = nvme_owner_area(&owner, 64 * KIB, 1);
	fill_all(area, 5);
	ck_assert_int_eq(nvme_file_wipe(device, owner.why), NVME_E_BUSY);
	nvme_owner_close(&owner);
	open_and_find(63, 63);
	ck_assert_int_eq(nvme_file_wipe(device, owner.why), 0);
	open_and_find(0, 0);
	must(snprintf(command, sizeof(command), "losetup -d %s", device) > 0);
	must(system(command) == 0);
}
END_TEST

static Suite *suite(void)
{
	Suite *s = suite_create("nvme");
	TCase *tc = tcase_create("nvme");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 60);
	tcase_add_test(tc, every_slot_comes_back);
	tcase_add_test(tc, every_number_of_lanes);
	tcase_add_test(tc, lanes_side_by_side);
	tcase_add_test(tc, several_drives);
	tcase_add_test(tc, records_wait_for_each_other);
	tcase_add_test(tc, drives_of_another_order_number_or_set);
	tcase_add_test(tc, what_is_forgotten_or_dropped_is_not_found);
	tcase_add_test(tc, capacity_is_never_exceeded);
	tcase_add_test(tc, a_daily_budget_of_writes);
	tcase_add_test(tc, filesystems_that_cannot_do_everything);
	tcase_add_test(tc, the_queue_is_bounded_and_who_is_wanted_has_most_of_it);
	tcase_add_test(tc, each_drive_has_its_share_in_flight);
	tcase_add_test(tc, of_large_copies_fewer_are_in_flight);
	tcase_add_test(tc, memory_is_registered_when_it_is_there);
	tcase_add_test(tc, killed_at_any_moment);
	tcase_add_test(tc, a_full_filesystem_is_an_outcome);
	tcase_add_test(tc, shapes_it_cannot_take);
	tcase_add_test(tc, a_block_device);
	suite_add_tcase(s, tc);
	return s;
}

int main(void)
{
	return nvme_run(suite());
}
