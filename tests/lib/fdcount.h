/* SPDX-License-Identifier: Apache-2.0 */
/* fdcount.h: what a process has open and mapped, by kind, from /proc. */
#ifndef TESTS_LIB_FDCOUNT_H
#define TESTS_LIB_FDCOUNT_H

#include <stdint.h>
#include <sys/types.h>

struct fdcount {
	unsigned total;
	unsigned sockets, pidfds;
	unsigned regions;    /* memfds of block memory: made ahead of need, so their number is not a test's to know */
	unsigned pages;      /* memfds of session pages */
	unsigned memfds;     /* all other memfds: index, records, life */
	unsigned other;      /* files, pipes, eventfds, epoll */
	unsigned page_maps;  /* mappings of session pages */
	unsigned memfd_maps; /* mappings of memfds that are neither region nor page */
	uint64_t resident_kib;
};

void fdcount_take(pid_t pid, struct fdcount *ret_count);

#endif
