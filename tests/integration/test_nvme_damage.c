/* SPDX-License-Identifier: Apache-2.0 */
/* tier/nvme*.c on real files that were damaged, cut off or are not ours: misses, or left alone; and what is done about it with the daemon down. */
#include <sys/stat.h>

#include "tests/integration/nvme_fixture.h"
#include "tier/nvme_file.h"

/* ---- damage ---- */

static void patch(const char *path, uint64_t offset, const void *data, size_t size)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	must(fd >= 0 && pwrite(fd, data, size, (off_t)offset) == (ssize_t)size);
	must(close(fd) == 0);
}

START_TEST(a_flipped_bit_costs_one_slot_at_most)
{
	const uint64_t slots = MIB + 4 * MIB - 63 * 64 * KIB;

	one_area();
	flip(paths[0], MIB + 100); /* first header: there is a second */
	open_and_find(63, 63);
	flip(paths[0], MIB + 8 * KIB + 5 * 128 + 50); /* record */
	open_and_find(62, 62);
	flip(paths[0], slots + 9 * 64 * KIB + 1234); /* payload */
	open_and_find(62, 61);
	flip(paths[0], 40); /* superblock */
	open_and_find(62, 61);
	flip(paths[0], 18 * MIB - 4096 + 20);
	open_and_find(62, 61);
	/* Both headers: the area. */
	flip(paths[0], MIB + 4096 + 100);
	open_and_find(0, 0);
}
END_TEST

START_TEST(swapped_slots_and_records_are_misses)
{
	const uint64_t slots = MIB + 4 * MIB - 63 * 64 * KIB, records = MIB + 8 * KIB;
	static uint8_t a[64 * 1024], b[64 * 1024];
	int fd;

	one_area();
	fd = open(paths[0], O_RDWR | O_CLOEXEC);
	must(fd >= 0);
	must(pread(fd, a, sizeof(a), (off_t)slots) == sizeof(a) &&
	     pread(fd, b, sizeof(b), (off_t)(slots + sizeof(a))) == sizeof(b));
	must(pwrite(fd, b, sizeof(b), (off_t)slots) == sizeof(b) &&
	     pwrite(fd, a, sizeof(a), (off_t)(slots + sizeof(a))) == sizeof(a));
	must(close(fd) == 0);
	open_and_find(63, 61);
	fd = open(paths[0], O_RDWR | O_CLOEXEC);
	must(fd >= 0);
	must(pread(fd, a, 128, (off_t)(records + 128 * 4)) == 128 && pread(fd, b, 128, (off_t)(records + 128 * 7)) == 128);
	must(pwrite(fd, b, 128, (off_t)(records + 128 * 4)) == 128 && pwrite(fd, a, 128, (off_t)(records + 128 * 7)) == 128);
	must(close(fd) == 0);
	open_and_find(61, 59);
}
END_TEST

START_TEST(cut_off_anywhere)
{
	uint32_t last = 63;

	one_area();
	/* The tail of the last area's end: 4 areas end at 17 MiB; slots of area 0 from its end back. */
	for (uint64_t size = 5 * MIB + 8 * KIB; size > 5 * MIB - 24 * KIB; size -= 512) {
		uint32_t right;

		must(truncate(paths[0], (off_t)size) == 0);
		open_ok();
		must_contain(nvme_owner_stat(&owner).note, "shorter");
		ck_assert_uint_eq(owner.n_slots_found, 63);
		right = nvme_owner_check_all(&owner);
		ck_assert_uint_eq(right, size >= 5 * MIB ? 63 : 62);
		ck_assert_uint_le(right, last);
		last = right;
		nvme_owner_close(&owner);
	}
	/* Records. */
	must(truncate(paths[0], MIB + 8 * KIB + 512) == 0);
	open_and_find(4, 0);
	/* Headers, superblocks but one, all of it. */
	for (uint64_t size = MIB + 8 * KIB; size > 2 * KIB;
	     size = size > 160 * KIB ? size - 124 * KIB : size - 2 * KIB - 512) {
		must(truncate(paths[0], (off_t)size) == 0);
		open_ok();
		ck_assert_uint_eq(nvme_owner_check_all(&owner), 0);
		nvme_owner_close(&owner);
	}
	must(truncate(paths[0], 0) == 0);
	open_and_find(0, 0);
}
END_TEST

/* ---- what is not ours ---- */

static void refused(int outcome)
{
	uint8_t *before = malloc(18 * MIB + 1), *after = malloc(18 * MIB + 1);
	int fd = open(paths[0], O_RDONLY | O_CLOEXEC);
	ssize_t n;

	must(before && after && fd >= 0);
	n = pread(fd, before, 18 * MIB + 1, 0);
	ck_assert_int_eq(nvme_owner_open(&owner, &config), outcome);
	must(pread(fd, after, 18 * MIB + 1, 0) == n);
	ck_assert_int_eq(memcmp(before, after, (size_t)n), 0);
	must_contain(owner.why, paths[0]);
	must(close(fd) == 0);
	free(before);
	free(after);
}

START_TEST(what_is_not_ours_is_left_alone)
{
	uint32_t version = 2;
	uint8_t zeros[4096] = { 0 };

	tmpdir_write(&dir, "g3.0", "the user's photographs");
	refused(NVME_E_FOREIGN);
	config.size = 0;
	refused(NVME_E_FOREIGN);
	config.size = 18 * MIB;
	ck_assert_int_eq(unlink(paths[0]), 0);
	one_area();
	for (uint32_t i = 0; i < 5; i++)
		patch(paths[0], nvme_super_offset(18 * MIB, i) + 8, &version, sizeof(version));
	refused(NVME_E_VERSION);
	version = 1;
	for (uint32_t i = 0; i < 5; i++)
		patch(paths[0], nvme_super_offset(18 * MIB, i) + 8, &version, sizeof(version));
	open_and_find(63, 63);
	for (uint32_t i = 0; i < 5; i++)
		flip(paths[0], nvme_super_offset(18 * MIB, i) + 70);
	refused(NVME_E_DAMAGED);
	for (uint32_t i = 0; i < 5; i++)
		patch(paths[0], nvme_super_offset(18 * MIB, i), zeros, sizeof(zeros));
	patch(paths[0], 600000, "something", 9);
	refused(NVME_E_FOREIGN);
	ck_assert_int_eq(unlink(paths[0]), 0);
	config.size = 0;
	ck_assert_int_eq(nvme_owner_open(&owner, &config), NVME_E_OPEN);
	must(mkdir(paths[0], 0700) == 0);
	ck_assert_int_eq(nvme_owner_open(&owner, &config), NVME_E_OPEN);
	must(rmdir(paths[0]) == 0 && mkfifo(paths[0], 0600) == 0);
	ck_assert_int_eq(nvme_owner_open(&owner, &config), NVME_E_OPEN);
	must(unlink(paths[0]) == 0);
	config.size = MIB;
	ck_assert_int_eq(nvme_owner_open(&owner, &config), NVME_E_SMALL);
	ck_assert_int_ne(access(paths[0], F_OK), 0);
}
END_TEST

START_TEST(a_second_daemon_is_refused)
{
	struct nvme_owner other;

	open_ok();
	nvme_owner_init(&other, 16 * MIB);
	ck_assert_int_eq(nvme_owner_open(&other, &config), NVME_E_BUSY);
	nvme_owner_close(&owner);
	ck_assert_int_eq(nvme_owner_open(&other, &config), 0);
	ck_assert_int_eq(nvme_owner_open(&owner, &config), NVME_E_BUSY);
	nvme_owner_close(&other);
	nvme_owner_deinit(&other);
}
END_TEST

/* ---- with the daemon down ---- */

static struct nvme_file_report fsck(bool repair, int outcome)
{
	struct nvme_file_ask ask = { .repair = repair };
	struct nvme_file_report report;
	char why[NVME_WHY_BYTES] = "";

	ck_assert_int_eq(nvme_file_check(paths[0], &ask, why, &report), outcome);
	return report;
}

START_TEST(damage_is_reported_and_mended)
{
	struct nvme_file_report r;

	one_area();
	r = fsck(false, 0);
	ck_assert(r.super.clean);
	ck_assert_uint_eq(r.supers_good, 5);
	ck_assert_uint_eq(r.areas_used, 1);
	ck_assert_uint_eq(r.headers_good, 2);
	ck_assert_uint_eq(r.slots, 63);
	ck_assert_uint_eq(r.records_good, 63);
	flip(paths[0], 40);
	flip(paths[0], MIB + 100);
	flip(paths[0], MIB + 8 * KIB + 5 * 128 + 50);
	r = fsck(false, 0);
	ck_assert_uint_eq(r.supers_good, 4);
	ck_assert_uint_eq(r.supers_damaged, 1);
	ck_assert_uint_eq(r.headers_damaged, 1);
	ck_assert_uint_eq(r.records_damaged, 1);
	ck_assert_uint_eq(r.repaired, 0);
	r = fsck(true, 0);
	ck_assert_uint_eq(r.repaired, 3);
	r = fsck(false, 0);
	ck_assert_uint_eq(r.supers_good, 5);
	ck_assert_uint_eq(r.headers_good, 2);
	ck_assert_uint_eq(r.records_good, 62);
	ck_assert_uint_eq(r.records_free, 1);
	open_ok();
	(void)fsck(false, NVME_E_BUSY);
	ck_assert_uint_eq(nvme_owner_check_all(&owner), 62);
	nvme_owner_close(&owner);
}
END_TEST

START_TEST(a_file_that_is_wiped_is_new)
{
	char why[NVME_WHY_BYTES];

	one_area();
	ck_assert_int_eq(nvme_file_wipe(paths[0], why), 0);
	(void)fsck(false, NVME_E_FOREIGN);
	config.size = 0;
	open_ok();
	ck_assert_uint_eq(owner.n_areas_found, 0);
	nvme_owner_close(&owner);
	ck_assert_int_eq(unlink(paths[0]), 0);
	tmpdir_write(&dir, "g3.0", "the user's photographs");
	ck_assert_int_eq(nvme_file_wipe(paths[0], why), NVME_E_FOREIGN);
}
END_TEST

static Suite *suite(void)
{
	Suite *s = suite_create("nvme_damage");
	TCase *tc = tcase_create("nvme_damage");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 60);
	tcase_add_test(tc, a_flipped_bit_costs_one_slot_at_most);
	tcase_add_test(tc, swapped_slots_and_records_are_misses);
	tcase_add_test(tc, cut_off_anywhere);
	tcase_add_test(tc, what_is_not_ours_is_left_alone);
	tcase_add_test(tc, a_second_daemon_is_refused);
	tcase_add_test(tc, damage_is_reported_and_mended);
	tcase_add_test(tc, a_file_that_is_wiped_is_new);
	suite_add_tcase(s, tc);
	return s;
}

int main(void)
{
	return nvme_run(suite());
}
