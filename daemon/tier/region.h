/* SPDX-License-Identifier: Apache-2.0 */
/* region.h: one range of shared memory as a sealed memfd, on the pages that were asked for.
 *
 * Loop thread, except region_populate(), region_punch() and region_close().  The struct is the caller's and owns its descriptors and its mapping.
 */
#ifndef TIER_REGION_H
#define TIER_REGION_H

#include <stdbool.h>
#include <stdint.h>

#define REGION_GRAIN (UINT64_C(2) << 20) /* a huge page */
#define REGION_SMALL_PAGE UINT64_C(4096)

enum {
	REGION_E_NOMEM = 1, /* the system refused: memory, descriptors, mappings or huge pages */
};

enum region_pages {
	REGION_PAGES_SMALL = 0,
	REGION_PAGES_THP,     /* transparent: huge where the kernel finds room */
	REGION_PAGES_HUGETLB, /* reserved by the administrator; guaranteed once mapped */
};

struct region {
	void *base; /* mapped read-write */
	uint64_t size;
	int fd;    /* read-write, sealed against growing and shrinking, mode 0600 */
	int ro_fd; /* the same opened O_RDONLY; -1 until region_open_ro() */
	enum region_pages pages;
};

/* What the machine says about huge pages of 2 MiB. */
struct region_system {
	uint64_t hugetlb_total; /* bytes in the pool */
	uint64_t hugetlb_free;  /* bytes that can still be mapped */
	bool thp;               /* memfds may have transparent ones */
	char thp_setting[16];   /* of shmem_enabled; "" if there is no such file */
};

/* Reads it under @sys, which is "/sys" outside of tests. */
void region_system_read(const char *sys, struct region_system *ret_system);

/* @size is a multiple of the grain, of 4 KiB for REGION_PAGES_SMALL.  Nothing is touched yet.  Huge pages of the pool are
 * reserved here: who could map them will not miss them later.  Outcome: REGION_E_NOMEM; -errno for what is not a shortage. */
int region_open(const char *name, uint64_t size, enum region_pages pages, struct region *ret_region);

/* A mapping beside the region's own, with the same wishes, for whoever needs one for longer; munmap() ends it.  @huge: the region is on huge pages.  NULL with errno. */
void *region_map(int fd, uint64_t size, bool huge);

/* Fills ro_fd, if it is not there yet.  Outcome: REGION_E_NOMEM. */
int region_open_ro(struct region *region);

/* Nobody can write to it any more but through the mapping that is there: not who opens it anew by whatever right, nor we by its
 * descriptor, so it cannot be punched either.  Before a descriptor leaves the process.  Outcome: REGION_E_NOMEM. */
int region_freeze(struct region *region);

/* Any thread.  Makes the pages present and writable, without changing a byte of them: clients may be writing there.
 * Returns 0 or -errno, which is not logged here. */
int region_populate(void *base, uint64_t size);

/* Any thread.  Gives the pages of a part back to the system, whoever maps them; what is read there afterwards are zeros.  Takes the
 * kernel a quarter of a second for a gigabyte of small pages. */
void region_punch(const struct region *region, uint64_t offset, uint64_t size);

/* Bytes the system has given to it now. */
uint64_t region_resident(const struct region *region);

/* Any thread.  Unmaps and closes.  Takes a closed one. */
void region_close(struct region *region);

#endif
