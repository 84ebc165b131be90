/* SPDX-License-Identifier: Apache-2.0 */
/* Runs fio and reads its JSON. */
#include "tests/bench/fio.h"

#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>

#include "tests/bench/bench.h"

#define FILL_BYTES (UINT64_C(4) << 20)

bool fio_is_there(void)
{
	return system("fio --version >/dev/null 2>&1") == 0;
}

void fio_fill(const char *path, uint64_t size)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
	uint64_t *block = NULL, state = 1;

	must(fd >= 0 && size % FILL_BYTES == 0);
	must(posix_memalign((void **)&block, FILL_BYTES, FILL_BYTES) == 0);
	for (uint64_t i = 0; i < FILL_BYTES / sizeof(*block); i++)
		block[i] = bench_random(&state);
	must(posix_fallocate(fd, 0, (off_t)size) == 0);
	for (uint64_t at = 0; at < size; at += FILL_BYTES)
		must(pwrite(fd, block, FILL_BYTES, (off_t)at) == (ssize_t)FILL_BYTES);
	must(fsync(fd) == 0 && close(fd) == 0);
	free(block);
}

static double number_of(const json_t *object, const char *member)
{
	const json_t *value = json_object_get(object, member);

	must(json_is_number(value));
	return json_number_value(value);
}

struct fio_result fio_run(const struct fio_job *j)
{
	static const char *const kinds[] = { "read", "write", "randread", "randwrite" };
	struct fio_result result;
	const json_t *job, *way;
	char command[1000];
	json_t *root;
	FILE *out;

	/* fio has no word for transparent huge pages, but its C library has.  A time is only understood with its unit. */
	must((size_t)snprintf(command, sizeof(command),
	                      "GLIBC_TUNABLES=glibc.malloc.hugetlb=%d fio --name=kvbm --filename=%s --filesize=%llu --bs=%llu"
	                      " --rw=%s --iodepth=%u --ioengine=io_uring --fixedbufs=1 --registerfiles=1 --direct=1"
	                      " --mem=%s --iomem_align=2m --norandommap=1 --randrepeat=0 --time_based=1 --runtime=%ums"
	                      " --output-format=json",
	                      j->memory == FIO_THP, j->path, (unsigned long long)j->size, (unsigned long long)j->block,
	                      kinds[2 * j->random + j->write], j->depth,
	                      j->memory == FIO_HUGETLB ? "mmaphuge" : "malloc", j->ms) < sizeof(command));
	out = popen(command, "re");
	must(out);
	root = json_loadf(out, JSON_DISABLE_EOF_CHECK, NULL);
	must(pclose(out) == 0 && root);
	job = json_array_get(json_object_get(root, "jobs"), 0);
	way = json_object_get(job, j->write ? "write" : "read");
	must(job && way && number_of(job, "error") == 0 && number_of(way, "total_ios") > 0);
	result.gb_per_s = number_of(way, "bw_bytes") / 1e9;
	result.cpu_us = (number_of(job, "usr_cpu") + number_of(job, "sys_cpu")) / 100 * number_of(job, "job_runtime") *
	                1e3 / number_of(way, "total_ios");
	json_decref(root);
	return result;
}
