/* SPDX-License-Identifier: Apache-2.0 */
/* server/life.c: the page that tells clients without a system call whether the daemon lives. */
#include "server/life.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/lib/fdcount.h"

static struct life life;

static const struct shm_life *page_map(int fd)
{
	void *p = mmap(NULL, SHM_ALIGN, PROT_READ, MAP_SHARED, fd, 0);

	ck_assert_ptr_ne(p, MAP_FAILED);
	return p;
}

START_TEST(is_alive_until_it_is_not)
{
	const struct shm_life *seen;
	struct fdcount before, after;

	fdcount_take(getpid(), &before);
	ck_assert_int_eq(life_init(&life), 0);
	ck_assert_uint_ne(life.boot_id, 0);
	seen = page_map(life.ro_fd);
	ck_assert_uint_eq(seen->magic, SHM_MAGIC);
	ck_assert_uint_eq(seen->version, SHM_VERSION);
	ck_assert_uint_eq(seen->boot_id, life.boot_id);
	ck_assert(shm_daemon_alive(seen));
	life_deinit(&life);
	ck_assert(!shm_daemon_alive(seen));
	life_deinit(&life);
	fdcount_take(getpid(), &after);
	ck_assert_uint_eq(after.total, before.total);
}
END_TEST

/* Neither a descriptor that clients get, nor the way through /proc, lets anybody write or shrink it; root included. */
START_TEST(nobody_else_can_write_it)
{
	char path[64];
	int fd;

	ck_assert_int_eq(life_init(&life), 0);
	ck_assert_ptr_eq(mmap(NULL, SHM_ALIGN, PROT_READ | PROT_WRITE, MAP_SHARED, life.ro_fd, 0), MAP_FAILED);
	ck_assert_int_eq(errno, EACCES);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", life.ro_fd);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd >= 0) {
		ck_assert_ptr_eq(mmap(NULL, SHM_ALIGN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
		ck_assert_int_eq(errno, EPERM);
		ck_assert_int_eq(write(fd, "x", 1), -1);
		ck_assert_int_eq(ftruncate(fd, 0), -1);
		close(fd);
	}
	ck_assert_int_eq(fcntl(life.fd, F_ADD_SEALS, F_SEAL_WRITE), -1); /* sealed against further seals */
	life_deinit(&life);
}
END_TEST

/* A "daemon" that waits to be killed, and says through @out when its page is there. */
static void be_daemon(int out)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	struct iovec iov = { "x", 1 };
	struct msghdr msg = { .msg_iov = &iov,
		              .msg_iovlen = 1,
		              .msg_control = control.bytes,
		              .msg_controllen = sizeof(control.bytes) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	if (life_init(&life) != 0)
		_exit(1);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &life.ro_fd, sizeof(int));
	if (sendmsg(out, &msg, 0) != 1)
		_exit(2);
	pause();
	_exit(3);
}

static int take_fd(int in)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	char byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = { .msg_iov = &iov,
		              .msg_iovlen = 1,
		              .msg_control = control.bytes,
		              .msg_controllen = sizeof(control.bytes) };
	int fd;

	ck_assert_int_eq(recvmsg(in, &msg, 0), 1);
	ck_assert_ptr_nonnull(CMSG_FIRSTHDR(&msg));
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(int));
	return fd;
}

START_TEST(a_killed_daemon_is_marked_by_the_kernel)
{
	const struct shm_life *seen;
	int pair[2], status, fd;
	pid_t pid;

	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	pid = fork();
	ck_assert_int_ge(pid, 0);
	if (pid == 0)
		be_daemon(pair[1]);
	fd = take_fd(pair[0]);
	seen = page_map(fd);
	ck_assert(shm_daemon_alive(seen));
	ck_assert_int_eq(kill(pid, SIGKILL), 0);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert(WIFSIGNALED(status));
	ck_assert(!shm_daemon_alive(seen));
	ck_assert(seen->life_word & SHM_OWNER_DIED);
	close(fd);
	close(pair[0]);
	close(pair[1]);
}
END_TEST

static void *thread_main(void *arg)
{
	ck_assert_int_eq(life_init(arg), 0);
	return NULL;
}

/* What counts is the thread that owns the state, not the process. */
START_TEST(a_thread_that_ends_is_a_dead_daemon)
{
	pthread_t thread;

	ck_assert_int_eq(pthread_create(&thread, NULL, thread_main, &life), 0);
	ck_assert_int_eq(pthread_join(thread, NULL), 0);
	ck_assert(!shm_daemon_alive(life.page));
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("life");
	TCase *tc = tcase_create("life");
	SRunner *runner;
	int failed;

	tcase_add_test(tc, is_alive_until_it_is_not);
	tcase_add_test(tc, nobody_else_can_write_it);
	tcase_add_test(tc, a_killed_daemon_is_marked_by_the_kernel);
	tcase_add_test(tc, a_thread_that_ends_is_a_dead_daemon);
	suite_add_tcase(suite, tc);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
