/* SPDX-License-Identifier: Apache-2.0 */
/* nvme_fixture.h: an owner of things in tier/nvme*.c on real files, of 18 MiB in areas of 4 MiB unless the test says otherwise. */
#ifndef TESTS_INTEGRATION_NVME_FIXTURE_H
#define TESTS_INTEGRATION_NVME_FIXTURE_H

#include <check.h>
#include <fcntl.h>
#include <stdlib.h>

#include "base/thread.h"
#include "tests/lib/must.h"
#include "tests/lib/nvme_owner.h"
#include "tests/lib/tmpdir.h"
#include "tier/nvme_format.h"

#define KIB UINT64_C(1024)
#define MIB (KIB * KIB)

static struct tmpdir dir;
static struct nvme_owner owner;
static char paths[NVME_DRIVES_MAX][128];
static const char *path_list[NVME_DRIVES_MAX];
static struct nvme_config config;

static inline void setup(void)
{
	thread_set_role(THREAD_LOOP);
	tmpdir_make(&dir);
	for (uint32_t i = 0; i < NVME_DRIVES_MAX; i++) {
		char name[16];

		must(snprintf(name, sizeof(name), "g3.%u", i) > 0);
		tmpdir_path(&dir, name, paths[i], sizeof(paths[i]));
		path_list[i] = paths[i];
	}
	config = (struct nvme_config){ .paths = path_list,
		                       .n_paths = 1,
		                       .size = 18 * MIB,
		                       .area_size = 4 * MIB,
		                       .grace_ns = UINT64_MAX,
		                       .record_delay_ns = 1,
		                       .boot_id = { 1, 2, 3 } };
	nvme_owner_init(&owner, 32 * MIB);
}

static inline void teardown(void)
{
	nvme_owner_deinit(&owner);
	tmpdir_remove(&dir);
	thread_set_role(THREAD_NONE);
}

static inline void open_ok(void)
{
	int r = nvme_owner_open(&owner, &config);

	if (r != 0)
		fprintf(stderr, "%s\n", owner.why);
	ck_assert_int_eq(r, 0);
	ck_assert_uint_eq(owner.n_strangers, 0);
}

static inline void fill_all(uint32_t area, uint64_t seed)
{
	for (uint32_t p = 0; p < owner.areas[area].n_slots; p++)
		ck_assert_int_eq(nvme_owner_put(&owner, area, p, seed + p), 0);
}

static inline void flip(const char *path, uint64_t offset)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	uint8_t byte;

	must(fd >= 0 && pread(fd, &byte, 1, (off_t)offset) == 1);
	byte ^= 0x10;
	must(pwrite(fd, &byte, 1, (off_t)offset) == 1);
	must(close(fd) == 0);
}

/* One area of 63 slots, all of them written, and closed. */
static inline void one_area(void)
{
	uint32_t area;

	open_ok();
	area = nvme_owner_area(&owner, 64 * KIB, 1);
	ck_assert_uint_eq(area, 0);
	fill_all(area, 77);
	nvme_owner_close(&owner);
}

static inline void open_and_find(uint32_t found, uint32_t right)
{
	open_ok();
	ck_assert_uint_eq(owner.n_slots_found, found);
	ck_assert_uint_eq(nvme_owner_check_all(&owner), right);
	nvme_owner_close(&owner);
}

static inline int nvme_run(Suite *s)
{
	SRunner *sr = srunner_create(s);
	int failed;

	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

#endif
