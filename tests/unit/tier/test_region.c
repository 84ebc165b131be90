/* SPDX-License-Identifier: Apache-2.0 */
/* tier/region.c: what a client that holds the descriptors can and cannot do, pages come and go, nothing is left open.
 *
 * These tests use memfds, which are files only in name.
 */
#include "tier/region.h"

#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (UINT64_C(1) << 20)

static struct region region;

static void setup(void)
{
	ck_assert_int_eq(region_open("kvbmd-test", 4 * MIB, REGION_PAGES_SMALL, &region), 0);
	ck_assert_int_eq(region_open_ro(&region), 0);
}

static void teardown(void)
{
	region_close(&region);
}

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
		n += strstr(line, "kvbmd-test") != NULL;
	fclose(f);
	return n;
}

START_TEST(size_is_fixed_for_both_descriptors)
{
	struct stat st;

	ck_assert_int_eq(ftruncate(region.fd, 4096), -1);
	ck_assert_int_eq(errno, EPERM);
	ck_assert_int_eq(ftruncate(region.fd, 8 * (off_t)MIB), -1);
	ck_assert_int_eq(errno, EPERM);
	ck_assert_int_eq(pwrite(region.fd, "x", 1, 4 * (off_t)MIB), -1);
	ck_assert_int_eq(fallocate(region.fd, 0, 4 * (off_t)MIB, 4096), -1);
	ck_assert_int_eq(ftruncate(region.ro_fd, 0), -1);
	ck_assert_int_eq(fstat(region.ro_fd, &st), 0);
	ck_assert_int_eq(st.st_size, 4 * (off_t)MIB);
}
END_TEST

START_TEST(reader_cannot_write)
{
	void *p;

	ck_assert_ptr_eq(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, region.ro_fd, 0), MAP_FAILED);
	ck_assert_int_eq(errno, EACCES);
	p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, region.ro_fd, 0);
	ck_assert_ptr_ne(p, MAP_FAILED);
	ck_assert_int_eq(mprotect(p, 4096, PROT_READ | PROT_WRITE), -1);
	ck_assert_int_eq(errno, EACCES);
	ck_assert_int_eq(madvise(p, 4096, MADV_REMOVE), -1);
	munmap(p, 4096);
	ck_assert_int_eq(pwrite(region.ro_fd, "x", 1, 0), -1);
	ck_assert_int_eq(fallocate(region.ro_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), -1);
	ck_assert_int_eq(fcntl(region.ro_fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
}
END_TEST

START_TEST(reader_sees_what_is_written)
{
	char *p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, region.ro_fd, 0);

	ck_assert_ptr_ne(p, MAP_FAILED);
	strcpy(region.base, "a block");
	ck_assert_str_eq(p, "a block");
	munmap(p, 4096);
}
END_TEST

START_TEST(mode_and_seals)
{
	struct stat st;
	int seals = fcntl(region.fd, F_GET_SEALS);

	ck_assert_int_eq(fstat(region.fd, &st), 0);
	ck_assert_uint_eq(st.st_mode & 07777, 0600);
	ck_assert_int_eq(seals & (F_SEAL_GROW | F_SEAL_SHRINK), F_SEAL_GROW | F_SEAL_SHRINK);
	ck_assert_int_eq(seals & (F_SEAL_SEAL | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE), 0);
	ck_assert_int_eq(fcntl(region.fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	ck_assert_int_eq(fcntl(region.ro_fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	ck_assert_int_eq(fcntl(region.ro_fd, F_GETFL) & O_ACCMODE, O_RDONLY);
}
END_TEST

START_TEST(another_uid_cannot_reopen)
{
	char path[32];
	int status;
	pid_t pid;

	if (getuid() != 0)
		return; /* cannot become another */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", region.ro_fd);
	pid = fork();
	ck_assert_int_ge(pid, 0);
	if (pid == 0) {
		int r = setgid(65534) | setuid(65534);

		_exit(r != 0 ? 2 : open(path, O_RDWR) >= 0 ? 3 : errno == EACCES ? 0 : 4);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert(WIFEXITED(status));
	ck_assert_int_eq(WEXITSTATUS(status), 0);
}
END_TEST

START_TEST(pages_come_and_go)
{
	char *reader = mmap(NULL, 4 * MIB, PROT_READ, MAP_SHARED, region.ro_fd, 0);

	ck_assert_ptr_ne(reader, MAP_FAILED);
	ck_assert_uint_eq(region_resident(&region), 0);
	ck_assert_int_eq(region_populate(region.base, 2 * MIB), 0);
	ck_assert_uint_eq(region_resident(&region), 2 * MIB);
	memset(region.base, 7, 4 * MIB);
	ck_assert_uint_eq(region_resident(&region), 4 * MIB);
	ck_assert_int_eq(region_populate(region.base, 4 * MIB), 0);
	ck_assert_int_eq(reader[0], 7);
	ck_assert_int_eq(reader[4 * MIB - 1], 7);
	region_punch(&region, 0, region.size);
	ck_assert_uint_eq(region_resident(&region), 0); /* although a client maps it */
	ck_assert_int_eq(reader[0], 0);
	munmap(reader, 4 * MIB);
}
END_TEST

START_TEST(huge_is_aligned)
{
	struct region r;

	for (uint64_t size = 2 * MIB; size <= 8 * MIB; size += 2 * MIB + 4096) {
		ck_assert_int_eq(region_open("kvbmd-test-thp", size, REGION_PAGES_THP, &r), 0);
		ck_assert_uint_eq((uintptr_t)r.base % (2 * MIB), 0);
		memset(r.base, 1, size);
		region_close(&r);
	}
}
END_TEST

/* "hg": huge pages are wished for, "nh": they are not, "dd": not dumped. */
static bool mapping_has(const void *base, const char *vm_flag)
{
	FILE *f = fopen("/proc/self/smaps", "re");
	bool in = false, has = false;
	char line[512];

	ck_assert(f);
	while (fgets(line, sizeof(line), f)) {
		unsigned long from, to;

		if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
			in = (uintptr_t)base >= from && (uintptr_t)base < to;
		else if (in && strncmp(line, "VmFlags:", 8) == 0)
			has = strstr(line, vm_flag);
	}
	fclose(f);
	return has;
}

/* A page that is not there yet is made by whoever pins it first. */
START_TEST(another_mapping_has_the_same_wishes)
{
	struct region huge;
	unsigned char *other;

	ck_assert_int_eq(region_open("kvbmd-test", 4 * MIB, REGION_PAGES_THP, &huge), 0);
	other = region_map(huge.fd, huge.size, true);
	ck_assert(other && (uintptr_t)other % (2 * MIB) == 0);
	ck_assert(mapping_has(huge.base, " hg") && mapping_has(other, " hg"));
	ck_assert(mapping_has(huge.base, " dd") && mapping_has(other, " dd"));
	other[5] = 7;
	ck_assert_uint_eq(((unsigned char *)huge.base)[5], 7);
	region_close(&huge);
	ck_assert_uint_eq(other[5], 7);
	ck_assert_int_eq(munmap(other, 4 * MIB), 0);
	other = region_map(region.fd, region.size, false);
	ck_assert(other && mapping_has(other, " nh") && mapping_has(other, " dd"));
	ck_assert_int_eq(munmap(other, region.size), 0);
}
END_TEST

START_TEST(reserved_pages_or_a_refusal)
{
	struct region_system s;
	struct region r;

	region_system_read("/sys", &s);
	if (s.hugetlb_free < 4 * MIB) {
		ck_assert_int_eq(region_open("kvbmd-test", s.hugetlb_free + 4 * MIB, REGION_PAGES_HUGETLB, &r),
		                 REGION_E_NOMEM);
		return;
	}
	ck_assert_int_eq(region_open("kvbmd-test", 4 * MIB, REGION_PAGES_HUGETLB, &r), 0);
	ck_assert_int_eq(region_open_ro(&r), 0);
	ck_assert_int_eq(region_populate(r.base, 4 * MIB), 0);
	ck_assert_uint_eq(region_resident(&r), 4 * MIB);
	ck_assert_int_eq(ftruncate(r.fd, 0), -1);
	region_punch(&r, 0, r.size);
	ck_assert_uint_eq(region_resident(&r), 0);
	region_close(&r);
}
END_TEST

START_TEST(nothing_stays_open)
{
	unsigned fds = count_fds(), maps = count_maps();
	struct region r;

	for (int pages = REGION_PAGES_SMALL; pages <= REGION_PAGES_THP; pages++) {
		ck_assert_int_eq(region_open("kvbmd-test", 2 * MIB, pages, &r), 0);
		ck_assert_uint_eq(count_maps(), maps + 1);
		ck_assert_int_eq(region_open_ro(&r), 0);
		ck_assert_int_eq(region_open_ro(&r), 0);
		ck_assert_uint_eq(count_fds(), fds + 2);
		region_close(&r);
		region_close(&r);
	}
	ck_assert_uint_eq(count_fds(), fds);
	ck_assert_uint_eq(count_maps(), maps);
}
END_TEST

START_TEST(out_of_descriptors_is_an_outcome)
{
	unsigned fds = count_fds();
	struct rlimit before, limit;
	struct region r;

	ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
	limit = before;
	limit.rlim_cur = (rlim_t)dup(0) + 1; /* the lowest free one is the last that fits */
	ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
	ck_assert_int_eq(region_open("kvbmd-test", 2 * MIB, REGION_PAGES_SMALL, &r), REGION_E_NOMEM);
	close((int)limit.rlim_cur - 1);
	ck_assert_int_eq(region_open("kvbmd-test", 2 * MIB, REGION_PAGES_SMALL, &r), 0);
	ck_assert_int_eq(region_open_ro(&r), REGION_E_NOMEM);
	region_close(&r);
	ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
	ck_assert_uint_eq(count_fds(), fds);
}
END_TEST

static void sys_write(const char *dir, const char *path, const char *text)
{
	char name[256];
	FILE *f;

	snprintf(name, sizeof(name), "%s/%s", dir, path);
	f = fopen(name, "we");
	ck_assert_msg(f, "%s: %s", name, strerror(errno));
	fputs(text, f);
	fclose(f);
}

START_TEST(system_is_read)
{
	char dir[] = "/tmp/kvbmd-test-XXXXXX", command[128];
	struct region_system s;

	ck_assert(mkdtemp(dir));
	region_system_read(dir, &s);
	ck_assert(!s.thp && s.hugetlb_total == 0 && s.hugetlb_free == 0 && s.thp_setting[0] == '\0');
	snprintf(command, sizeof(command),
	         "mkdir -p %s/kernel/mm/hugepages/hugepages-2048kB %s/kernel/mm/transparent_hugepage", dir, dir);
	ck_assert_int_eq(system(command), 0);
	sys_write(dir, "kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "10\n");
	sys_write(dir, "kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "6\n");
	sys_write(dir, "kernel/mm/hugepages/hugepages-2048kB/resv_hugepages", "2\n");
	sys_write(dir, "kernel/mm/transparent_hugepage/shmem_enabled", "always within_size [advise] never deny force\n");
	region_system_read(dir, &s);
	ck_assert_uint_eq(s.hugetlb_total, 20 * MIB);
	ck_assert_uint_eq(s.hugetlb_free, 8 * MIB);
	ck_assert(s.thp);
	ck_assert_str_eq(s.thp_setting, "advise");
	sys_write(dir, "kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages", "5\n");
	sys_write(dir, "kernel/mm/hugepages/hugepages-2048kB/surplus_hugepages", "1\n");
	sys_write(dir, "kernel/mm/transparent_hugepage/shmem_enabled", "always within_size advise [never] deny force\n");
	region_system_read(dir, &s);
	ck_assert_uint_eq(s.hugetlb_free, 16 * MIB);
	ck_assert(!s.thp);
	snprintf(command, sizeof(command), "rm -r %s", dir);
	ck_assert_int_eq(system(command), 0);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("region");
	TCase *held = tcase_create("held"), *made = tcase_create("made");
	SRunner *sr = srunner_create(s);
	int failed;

	tcase_add_checked_fixture(held, setup, teardown);
	tcase_add_test(held, size_is_fixed_for_both_descriptors);
	tcase_add_test(held, reader_cannot_write);
	tcase_add_test(held, reader_sees_what_is_written);
	tcase_add_test(held, mode_and_seals);
	tcase_add_test(held, another_uid_cannot_reopen);
	tcase_add_test(held, pages_come_and_go);
	suite_add_tcase(s, held);
	tcase_add_test(held, another_mapping_has_the_same_wishes);
	tcase_add_test(made, huge_is_aligned);
	tcase_add_test(made, reserved_pages_or_a_refusal);
	tcase_add_test(made, nothing_stays_open);
	tcase_add_test(made, out_of_descriptors_is_an_outcome);
	tcase_add_test(made, system_is_read);
	suite_add_tcase(s, made);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed == 0 ? 0 : 1;
}
