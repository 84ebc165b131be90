/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that clients can map and cannot harm.
 *
 * Invariant: when region_open() returns, the size of the file is fixed for ever, so that no client can make the daemon
 * (or another client) fault by truncating it; and nobody of another uid can re-open it for writing.
 * Deliberately not here: budgets, NUMA, when to touch (host.c).
 *
 * The order of steps matters: size, map, mode, and the seals last, before any descriptor leaves the process.
 * F_SEAL_FUTURE_WRITE is not set on what clients write: it would forbid them that, and us to punch holes.  F_SEAL_SEAL is not set, so
 * that a region can be frozen later.
 */
#include "tier/region.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/cleanup.h"
#include "base/error.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21U << 26)
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

/* ---- what the machine has ---- */

static bool file_read(const char *sys, const char *path, char *buf, size_t size)
{
	_cleanup_(close_p) int fd = -1;
	char name[512];
	ssize_t n;

	if (snprintf(name, sizeof(name), "%s/%s", sys, path) >= (int)sizeof(name))
		return false;
	fd = open(name, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	n = read(fd, buf, size - 1);
	if (n < 0)
		return false;
	buf[n] = '\0';
	return true;
}

static uint64_t hugetlb_count(const char *sys, const char *name)
{
	char path[128], text[32];

	(void)snprintf(path, sizeof(path), "kernel/mm/hugepages/hugepages-2048kB/%s", name);
	return file_read(sys, path, text, sizeof(text)) ? strtoull(text, NULL, 10) : 0;
}

void region_system_read(const char *sys, struct region_system *ret_system)
{
	uint64_t total = hugetlb_count(sys, "nr_hugepages"), available = hugetlb_count(sys, "free_hugepages");
	uint64_t reserved = hugetlb_count(sys, "resv_hugepages"), surplus = hugetlb_count(sys, "surplus_hugepages");
	uint64_t overcommit = hugetlb_count(sys, "nr_overcommit_hugepages");
	struct region_system s = { .hugetlb_total = total * REGION_GRAIN };
	char text[128], *from, *to;

	available = available > reserved ? available - reserved : 0;
	if (overcommit > surplus)
		available += overcommit - surplus;
	s.hugetlb_free = available * REGION_GRAIN;
	/* "always within_size advise [never] deny force": the one in brackets holds. */
	if (file_read(sys, "kernel/mm/transparent_hugepage/shmem_enabled", text, sizeof(text)) &&
	    (from = strchr(text, '[')) && (to = strchr(from, ']'))) {
		*to = '\0';
		(void)snprintf(s.thp_setting, sizeof(s.thp_setting), "%s", from + 1);
		s.thp = strcmp(from + 1, "never") != 0 && strcmp(from + 1, "deny") != 0;
	}
	*ret_system = s;
}

/* ---- making one ---- */

static bool is_shortage(int error)
{
	return error == ENOMEM || error == EMFILE || error == ENFILE || error == ENOSPC || error == EAGAIN;
}

static int region_refused(int error)
{
	return is_shortage(error) ? REGION_E_NOMEM : error_origin(-error);
}

static int memfd_make(const char *name, enum region_pages pages)
{
	unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
	int fd;

	if (pages == REGION_PAGES_HUGETLB)
		flags |= MFD_HUGETLB | MFD_HUGE_2MB;
	fd = memfd_create(name, flags | MFD_NOEXEC_SEAL);
	if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
		fd = memfd_create(name, flags);
	return fd;
}

/* Maps at a multiple of 2 MiB, without which the kernel cannot use huge page table entries.  NULL with errno. */
static void *map_aligned(int fd, uint64_t size, enum region_pages pages)
{
	const int prot = PROT_READ | PROT_WRITE;
	uintptr_t hint, at;
	void *range, *base;
	int error;

	/* The pool's pages are aligned by the kernel, and reserved by this call. */
	if (pages != REGION_PAGES_THP || size < REGION_GRAIN) {
		base = mmap(NULL, size, prot, MAP_SHARED, fd, 0);
		return base == MAP_FAILED ? NULL : base;
	}
	range = mmap(NULL, size + REGION_GRAIN, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (range == MAP_FAILED)
		return NULL;
	hint = (uintptr_t)range;
	at = (hint + REGION_GRAIN - 1) / REGION_GRAIN * REGION_GRAIN;
	base = mmap((void *)at, size, prot, MAP_SHARED | MAP_FIXED, fd, 0);
	error = errno;
	if (base == MAP_FAILED) {
		(void)munmap(range, size + REGION_GRAIN);
		errno = error;
		return NULL;
	}
	/* What is left of the wider range on both sides. */
	if (at > hint)
		(void)munmap(range, at - hint);
	(void)munmap((void *)(at + size), hint + REGION_GRAIN - at);
	return base;
}

/* Only a wish each: without it the pages are what the system makes them. */
static void region_wish(void *base, uint64_t size, enum region_pages pages)
{
	if (pages != REGION_PAGES_HUGETLB)
		(void)madvise(base, size, pages == REGION_PAGES_THP ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	(void)madvise(base, size, MADV_DONTDUMP); /* a core file with everybody's context in it helps nobody */
}

void *region_map(int fd, uint64_t size, bool huge)
{
	enum region_pages pages = huge ? REGION_PAGES_THP : REGION_PAGES_SMALL;
	void *base = map_aligned(fd, size, pages);

	if (base)
		region_wish(base, size, pages); /* of the pool's pages one fails, as it should */
	return base;
}

int region_open(const char *name, uint64_t size, enum region_pages pages, struct region *ret_region)
{
	_cleanup_(close_p) int fd = -1;
	void *base;

	assert(name && size > 0 && size % (pages == REGION_PAGES_HUGETLB ? REGION_GRAIN : REGION_SMALL_PAGE) == 0);
	assert(size <= INT64_MAX - REGION_GRAIN);
	fd = memfd_make(name, pages);
	if (fd < 0) /* ENOENT and EINVAL: a kernel without huge pages of this size */
		return pages == REGION_PAGES_HUGETLB ? REGION_E_NOMEM : region_refused(errno);
	if (ftruncate(fd, (off_t)size) < 0)
		return region_refused(errno);
	base = map_aligned(fd, size, pages);
	if (!base)
		return region_refused(errno);
	region_wish(base, size, pages);
	if (fchmod(fd, 0600) < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK) < 0) {
		int r = error_origin(-errno);

		(void)munmap(base, size);
		return r;
	}
	*ret_region = (struct region){ .base = base, .size = size, .fd = steal_fd(&fd), .ro_fd = -1, .pages = pages };
	return 0;
}

int region_open_ro(struct region *region)
{
	char path[32];

	assert(region->fd >= 0);
	if (region->ro_fd >= 0)
		return 0;
	(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", region->fd);
	region->ro_fd = open(path, O_RDONLY | O_CLOEXEC);
	return region->ro_fd < 0 ? region_refused(errno) : 0;
}

int region_freeze(struct region *region)
{
	assert(region->fd >= 0 && region->base);
	if (fcntl(region->fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) < 0)
		return region_refused(errno);
	return 0;
}

/* ---- its pages ---- */

/* Linux before 5.14.  Adding nothing, atomically, is the write that cannot undo another's. */
static void touch(uint8_t *base, uint64_t size)
{
	for (uint64_t at = 0; at < size; at += REGION_SMALL_PAGE)
		(void)__atomic_fetch_add(base + at, 0, __ATOMIC_RELAXED);
}

int region_populate(void *base, uint64_t size)
{
	int r;

	assert((uintptr_t)base % REGION_SMALL_PAGE == 0);
	do
		r = madvise(base, size, MADV_POPULATE_WRITE);
	while (r < 0 && errno == EINTR);
	if (r == 0)
		return 0;
	if (errno != EINVAL)
		return -errno;
	touch(base, size);
	return 0;
}

void region_punch(const struct region *region, uint64_t offset, uint64_t size)
{
	assert(region->fd >= 0 && offset + size <= region->size);
	if (fallocate(region->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)size) < 0)
		(void)error_origin(-errno);
}

uint64_t region_resident(const struct region *region)
{
	struct stat st;
	int r = fstat(region->fd, &st);

	assert(r == 0);
	return (uint64_t)st.st_blocks * 512;
}

void region_close(struct region *region)
{
	if (region->base) {
		int r = munmap(region->base, region->size);

		assert(r == 0);
	}
	close_p(&region->fd);
	close_p(&region->ro_fd);
	*region = (struct region){ .fd = -1, .ro_fd = -1 };
}
