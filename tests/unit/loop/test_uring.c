/* SPDX-License-Identifier: Apache-2.0 */
/* loop/uring.c: everything submitted is answered once, with its count, never inline; more than the kernel takes waits.
 *
 * On memfds: no files of the filesystem.  Skipped where there is no io_uring.
 */
#include "loop/uring.h"

#include <check.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/thread.h"

#define BLOCK 4096u
#define FILE_BLOCKS 64u
#define MANY 3000u

static struct loop *loop;
static struct uring *ring;
static int fd;
static uint32_t file, answered;
static bool inline_is_wrong;
static uint8_t *memory;

struct one {
	struct uring_op op;
	int result;
	unsigned times;
};

static void on_done(struct uring_op *op, int r)
{
	struct one *o = container_of(op, struct one, op);

	ck_assert(!inline_is_wrong);
	o->result = r;
	o->times++;
	answered++;
	loop_stop(loop);
}

static void on_closed(void *arg)
{
	*(bool *)arg = true;
	loop_stop(loop);
}

static void ring_open(uint32_t entries, uint32_t buffers)
{
	struct uring_config config = { .loop = loop, .entries = entries, .files = 2, .buffers = buffers };

	ck_assert_int_eq(uring_new(&config, &ring), 0);
	ck_assert_int_eq(ring->ops->file_add(ring, fd, &file), 0);
}

static void ring_shut(void)
{
	bool closed = false;

	ring->ops->close(ring, on_closed, &closed);
	ck_assert(!closed);
	while (!closed)
		loop_turn(loop, true);
}

static void setup(void)
{
	thread_set_role(THREAD_LOOP);
	ck_assert_int_eq(loop_new(&loop), 0);
	fd = memfd_create("file", MFD_CLOEXEC);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(ftruncate(fd, FILE_BLOCKS * BLOCK), 0);
	memory = mmap(NULL, FILE_BLOCKS * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ck_assert(memory != MAP_FAILED);
	answered = 0;
	inline_is_wrong = false;
}

static void teardown(void)
{
	ring_shut();
	ck_assert_int_eq(munmap(memory, FILE_BLOCKS * BLOCK), 0);
	ck_assert_int_eq(close(fd), 0);
	loop = loop_free(loop);
	thread_set_role(THREAD_NONE);
}

static void submit(struct one *o, enum uring_kind kind, uint32_t block, uint32_t blocks, uint32_t buffer)
{
	*o = (struct one){ .op = { .cb = on_done,
		                   .kind = kind,
		                   .file = file,
		                   .buffer = buffer,
		                   .base = memory + (size_t)(block % FILE_BLOCKS) * BLOCK,
		                   .length = blocks * BLOCK,
		                   .offset = (uint64_t)block * BLOCK } };
	inline_is_wrong = true;
	ring->ops->submit(ring, &o->op);
	inline_is_wrong = false;
}

static void wait_for(uint32_t n)
{
	while (answered < n)
		loop_turn(loop, true);
	ck_assert_uint_eq(answered, n);
}

static void write_and_read(uint32_t buffer)
{
	struct one o;

	memset(memory, 0xab, 2 * BLOCK);
	submit(&o, URING_WRITE, 0, 2, buffer);
	wait_for(1);
	ck_assert_int_eq(o.result, 2 * BLOCK);
	memset(memory, 0, 2 * BLOCK);
	submit(&o, URING_READ, 0, 2, buffer);
	wait_for(2);
	ck_assert_int_eq(o.result, 2 * BLOCK);
	ck_assert_uint_eq(memory[0], 0xab);
	ck_assert_uint_eq(memory[2 * BLOCK - 1], 0xab);
	submit(&o, URING_FLUSH, 0, 0, URING_NO_BUFFER);
	wait_for(3);
	ck_assert_int_eq(o.result, 0);
}

START_TEST(what_is_written_is_read)
{
	ring_open(8, 4);
	write_and_read(URING_NO_BUFFER);
}
END_TEST

START_TEST(through_registered_memory)
{
	uint32_t buffer, others[8];
	struct one o;
	int r;

	ring_open(8, 3);
	r = ring->ops->buffer_add(ring, memory, FILE_BLOCKS * BLOCK, &buffer);
	if (r == URING_E_REFUSED) {
		ck_assert_str_ne(ring->ops->note(ring), "");
		fprintf(stderr, "not tested: %s\n", ring->ops->note(ring));
		return;
	}
	ck_assert_int_eq(r, 0);
	write_and_read(buffer);
	/* All numbers, then one more; a number that was given back is given out. */
	ck_assert_int_eq(ring->ops->buffer_add(ring, memory, BLOCK, &others[0]), 0);
	ck_assert_int_eq(ring->ops->buffer_add(ring, memory, BLOCK, &others[1]), 0);
	ck_assert_int_eq(ring->ops->buffer_add(ring, memory, BLOCK, &others[2]), URING_E_FULL);
	ring->ops->buffer_drop(ring, others[0]);
	ck_assert_int_eq(ring->ops->buffer_add(ring, memory + BLOCK, BLOCK, &others[2]), 0);
	ck_assert_uint_eq(others[2], others[0]);
	/* Memory that is not in it is refused by the kernel, not read. */
	submit(&o, URING_READ, 2, 1, others[2]);
	wait_for(4);
	ck_assert_int_eq(o.result, -EFAULT);
	ring->ops->buffer_drop(ring, buffer);
	submit(&o, URING_READ, 2, 1, buffer);
	wait_for(5);
	ck_assert_int_eq(o.result, -EFAULT);
}
END_TEST

START_TEST(memory_that_cannot_be_registered_is_an_outcome)
{
	void *nowhere = mmap(NULL, BLOCK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint32_t buffer;

	ck_assert(nowhere != MAP_FAILED);
	ring_open(8, 3);
	ck_assert_int_eq(ring->ops->buffer_add(ring, nowhere, BLOCK, &buffer), URING_E_REFUSED);
	ck_assert_str_ne(ring->ops->note(ring), "");
	munmap(nowhere, BLOCK);
}
END_TEST

START_TEST(counts_and_errors_are_told)
{
	struct one o;

	ring_open(8, 0);
	submit(&o, URING_READ, FILE_BLOCKS - 1, 2, URING_NO_BUFFER); /* across the end */
	wait_for(1);
	ck_assert_int_eq(o.result, BLOCK);
	submit(&o, URING_READ, FILE_BLOCKS + 3, 1, URING_NO_BUFFER);
	wait_for(2);
	ck_assert_int_eq(o.result, 0);
	o = (struct one){ .op = { .cb = on_done,
		                  .kind = URING_READ,
		                  .file = file,
		                  .buffer = URING_NO_BUFFER,
		                  .base = (void *)64,
		                  .length = BLOCK } };
	ring->ops->submit(ring, &o.op);
	wait_for(3);
	ck_assert_int_eq(o.result, -EFAULT);
}
END_TEST

START_TEST(more_than_the_kernel_takes)
{
	struct one *all = calloc(MANY, sizeof(*all));

	ck_assert_ptr_nonnull(all);
	ring_open(8, 0);
	for (uint32_t i = 0; i < MANY; i++)
		submit(&all[i], URING_WRITE, i % FILE_BLOCKS, 1, URING_NO_BUFFER);
	ck_assert_uint_eq(answered, 0);
	wait_for(MANY);
	for (uint32_t i = 0; i < MANY; i++) {
		ck_assert_uint_eq(all[i].times, 1);
		ck_assert_int_eq(all[i].result, BLOCK);
	}
	free(all);
}
END_TEST

static struct one chained;

static void on_chained(struct uring_op *op, int r)
{
	ck_assert_int_eq(r, BLOCK);
	if (++answered < 100)
		ring->ops->submit(ring, op);
	loop_stop(loop);
}

/* To submit costs the loop some microseconds each: others get their turns in between, and nothing is forgotten. */
START_TEST(many_take_many_turns)
{
	struct one all[FILE_BLOCKS];
	uint32_t before;

	ring_open(256, 0);
	for (uint32_t i = 0; i < FILE_BLOCKS; i++)
		submit(&all[i], URING_READ, i, 1, URING_NO_BUFFER);
	while (answered < FILE_BLOCKS) {
		before = answered;
		loop_turn(loop, true);
		ck_assert_uint_le(answered - before, 8);
	}
	for (uint32_t i = 0; i < FILE_BLOCKS; i++)
		ck_assert_int_eq(all[i].result, BLOCK);
}
END_TEST

/* And of large ones longer. */
START_TEST(of_large_ones_each_has_its_turn)
{
	enum { LARGE = 1 << 20, N = 6 };
	void *room = malloc(LARGE);
	struct one all[N] = { 0 };

	ck_assert_ptr_nonnull(room);
	ring_open(256, 0);
	for (uint32_t i = 0; i < N; i++) {
		all[i].op = (struct uring_op){ .cb = on_done,
			                       .kind = URING_READ,
			                       .file = file,
			                       .buffer = URING_NO_BUFFER,
			                       .base = room,
			                       .length = LARGE };
		ring->ops->submit(ring, &all[i].op);
	}
	/* A turn has two ends: before it waits, and when loop_turn() returns. */
	loop_turn(loop, false);
	(void)poll(NULL, 0, 50);
	loop_turn(loop, false);
	ck_assert_uint_le(answered, 3);
	while (answered < N)
		loop_turn(loop, true);
	for (uint32_t i = 0; i < N; i++)
		ck_assert_int_eq(all[i].result, (int)(FILE_BLOCKS * BLOCK)); /* there is no more */
	free(room);
}
END_TEST

START_TEST(the_same_is_submitted_again_from_its_callback)
{
	ring_open(8, 0);
	submit(&chained, URING_WRITE, 1, 1, URING_NO_BUFFER);
	chained.op.cb = on_chained;
	wait_for(100);
}
END_TEST

START_TEST(files_are_bounded)
{
	uint32_t other;

	ring_open(8, 0);
	ck_assert_int_eq(ring->ops->file_add(ring, fd, &other), 0);
	ck_assert_uint_ne(other, file);
	ck_assert_int_eq(ring->ops->file_add(ring, fd, &other), URING_E_FULL);
}
END_TEST

START_TEST(closing_leaves_what_is_in_flight)
{
	static struct one o[4];
	int pipe_fds[2];

	ring_open(8, 0);
	ck_assert_int_eq(pipe(pipe_fds), 0);
	ck_assert_int_eq(ring->ops->file_add(ring, pipe_fds[0], &file), 0);
	for (unsigned i = 0; i < 4; i++)
		submit(&o[i], URING_READ, 0, 1, URING_NO_BUFFER);
	for (unsigned i = 0; i < 3; i++)
		loop_turn(loop, false);
	ring_shut();
	ck_assert_uint_eq(answered, 0);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
	ring_open(8, 0); /* for teardown */
}
END_TEST

static bool have_uring(void)
{
	struct uring_config config = { .entries = 8, .files = 1, .buffers = 0 };
	bool closed = false, have;

	thread_set_role(THREAD_LOOP);
	if (loop_new(&loop) != 0)
		abort();
	config.loop = loop;
	have = uring_new(&config, &ring) == 0;
	if (have) {
		ring->ops->close(ring, on_closed, &closed);
		while (!closed)
			loop_turn(loop, true);
	}
	loop = loop_free(loop);
	thread_set_role(THREAD_NONE);
	return have;
}

static Suite *suite(void)
{
	Suite *s = suite_create("uring");
	TCase *tc = tcase_create("uring");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, what_is_written_is_read);
	tcase_add_test(tc, through_registered_memory);
	tcase_add_test(tc, memory_that_cannot_be_registered_is_an_outcome);
	tcase_add_test(tc, counts_and_errors_are_told);
	tcase_add_test(tc, more_than_the_kernel_takes);
	tcase_add_test(tc, many_take_many_turns);
	tcase_add_test(tc, of_large_ones_each_has_its_turn);
	tcase_add_test(tc, the_same_is_submitted_again_from_its_callback);
	tcase_add_test(tc, files_are_bounded);
	tcase_add_test(tc, closing_leaves_what_is_in_flight);
	suite_add_tcase(s, tc);
	return s;
}

int main(void)
{
	SRunner *sr;
	int failed;

	if (!have_uring()) {
		fprintf(stderr, "no io_uring here: skipped\n");
		return 77;
	}
	sr = srunner_create(suite());
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
