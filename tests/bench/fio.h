/* SPDX-License-Identifier: Apache-2.0 */
/* fio.h: what the drive gives, as fio measures it: io_uring, O_DIRECT, registered file and buffers.
 *
 * fio (the program) may be missing: then figures that need it are left out.
 */
#ifndef TESTS_BENCH_FIO_H
#define TESTS_BENCH_FIO_H

#include <stdbool.h>
#include <stdint.h>

enum fio_memory {
	FIO_SMALL_PAGES,
	FIO_THP,    /* transparent huge pages */
	FIO_HUGETLB /* of the pool */
};

struct fio_job {
	const char *path; /* a file of @size bytes that was written before */
	uint64_t size, block;
	unsigned depth, ms;
	bool write, random;
	enum fio_memory memory;
};

struct fio_result {
	double gb_per_s, cpu_us; /* CPU time a block, of fio's own counting */
};

bool fio_is_there(void);
/* Makes the file if it is not there, and writes all of it. */
void fio_fill(const char *path, uint64_t size);
/* Ends the program if fio fails. */
struct fio_result fio_run(const struct fio_job *job);

#endif
