/* SPDX-License-Identifier: Apache-2.0 */
/* The daemon's own socket in a directory where other things may be: what it refuses, what it replaces, what it leaves alone. */
#include <check.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "tests/lib/daemon_proc.h"
#include "tests/lib/must.h"
#include "tests/lib/raw.h"

static const char *const small[] = { "--g2.size=16M", NULL };

static void own_bind(struct daemon_proc *d, const char *const *flags)
{
	daemon_init(d, NULL, flags);
	daemon_bind_itself(d);
}

static void serves(const char *socket)
{
	struct raw raw;

	raw_hello(&raw, socket);
	raw_close(&raw);
}

static void log_has(const struct daemon_proc *d, const char *wanted)
{
	char *log = daemon_log(d);

	must_contain(log, wanted);
	free(log);
}

/* It ends by itself, without having been ready, and says why. */
static void refuses(struct daemon_proc *d, int code, const char *why)
{
	char text[256];

	daemon_open_notify(d);
	daemon_spawn(d);
	must(!daemon_next_message(d, text, sizeof(text), DAEMON_WAIT_MS));
	must_eq(daemon_wait(d), code);
	log_has(d, why);
}

static bool exists(const char *path)
{
	struct stat st;

	return lstat(path, &st) == 0;
}

static int listen_at(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	must(fd >= 0 && strlen(path) < sizeof(addr.sun_path));
	strcpy(addr.sun_path, path);
	must(bind(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0 && listen(fd, 4) == 0);
	return fd;
}

/* ---- two of them ---- */

START_TEST(a_second_daemon_is_refused)
{
	struct daemon_proc first, second;

	own_bind(&first, small);
	daemon_run(&first);
	own_bind(&second, small);
	strcpy(second.socket, first.socket);
	refuses(&second, 1, "another kvbmd");
	serves(first.socket);
	daemon_deinit(&second);
	daemon_deinit(&first);
}
END_TEST

START_TEST(another_server_is_left_alone)
{
	struct daemon_proc d;
	struct stat before, after;
	int fd;

	own_bind(&d, small);
	fd = listen_at(d.socket);
	must(lstat(d.socket, &before) == 0);
	refuses(&d, 1, "another server listens");
	must(lstat(d.socket, &after) == 0 && before.st_ino == after.st_ino);
	close(fd);
	daemon_deinit(&d);
}
END_TEST

/* A predecessor that was killed leaves socket and lock. */
START_TEST(after_a_kill_it_starts_again)
{
	struct daemon_proc d;

	own_bind(&d, small);
	daemon_run(&d);
	daemon_kill(&d);
	must(exists(d.socket));
	daemon_run(&d);
	serves(d.socket);
	daemon_stop(&d);
	must(!exists(d.socket));
	daemon_deinit(&d);
}
END_TEST

/* Many start at once on a socket that a killed one left: one serves, whoever that is. */
START_TEST(of_many_one_serves)
{
	enum { MANY = 6 };
	struct daemon_proc first, others[MANY];
	unsigned ready = 0, ended = 0;
	char text[1024];

	own_bind(&first, small);
	daemon_run(&first);
	daemon_kill(&first);
	for (unsigned i = 0; i < MANY; i++) {
		own_bind(&others[i], small);
		strcpy(others[i].socket, first.socket);
		daemon_open_notify(&others[i]);
	}
	for (unsigned i = 0; i < MANY; i++)
		daemon_spawn(&others[i]);
	for (unsigned i = 0; i < MANY; i++) {
		if (daemon_next_message(&others[i], text, sizeof(text), DAEMON_WAIT_MS)) {
			must_contain(text, "READY=1");
			ready++;
		} else {
			must_eq(daemon_wait(&others[i]), 1);
			ended++;
		}
	}
	must_eq(ready, 1);
	must_eq(ended, MANY - 1);
	serves(first.socket);
	for (unsigned i = 0; i < MANY; i++)
		daemon_deinit(&others[i]);
	must(!exists(first.socket));
	daemon_deinit(&first);
}
END_TEST

/* ---- planted ---- */

static void plant_file(struct daemon_proc *d)
{
	tmpdir_write(&d->dir, "kvbmd.sock", "precious");
}

static void plant_directory(struct daemon_proc *d)
{
	must(mkdir(d->socket, 0755) == 0);
}

static void plant_fifo(struct daemon_proc *d)
{
	must(mkfifo(d->socket, 0600) == 0);
}

static void plant_link_to_file(struct daemon_proc *d)
{
	tmpdir_write(&d->dir, "target", "precious");
	must(symlink("target", d->socket) == 0);
}

static void plant_link_to_nothing(struct daemon_proc *d)
{
	must(symlink("target", d->socket) == 0);
}

/* Of a daemon that is gone: without the link it would be replaced. */
static void plant_link_to_socket(struct daemon_proc *d)
{
	char target[128];

	tmpdir_path(&d->dir, "target", target, sizeof(target));
	close(listen_at(target));
	must(symlink("target", d->socket) == 0);
}

static void plant_foreign_socket(struct daemon_proc *d)
{
	close(listen_at(d->socket));
	must(lchown(d->socket, 54321, 54321) == 0);
}

static const struct planted {
	void (*plant)(struct daemon_proc *d);
	const char *said;
	bool needs_root;
} planted[] = {
	{ plant_file, "is no socket", false },
	{ plant_directory, "is no socket", false },
	{ plant_fifo, "is no socket", false },
	{ plant_link_to_file, "is no socket", false },
	{ plant_link_to_nothing, "is no socket", false },
	{ plant_link_to_socket, "is no socket", false },
	{ plant_foreign_socket, "socket of uid 54321", true },
};
#define N_PLANTED (sizeof(planted) / sizeof(planted[0]))

START_TEST(what_is_planted_is_left_alone)
{
	const struct planted *p = &planted[_i];
	struct stat before, after, target, still;
	struct daemon_proc d;
	char path[128];
	bool has_target;

	if (p->needs_root && geteuid() != 0)
		return;
	own_bind(&d, small);
	tmpdir_path(&d.dir, "target", path, sizeof(path));
	p->plant(&d);
	has_target = lstat(path, &target) == 0;
	must(lstat(d.socket, &before) == 0);
	refuses(&d, 1, p->said);
	must(lstat(d.socket, &after) == 0);
	must(before.st_ino == after.st_ino && before.st_mode == after.st_mode && before.st_size == after.st_size);
	must(before.st_ctim.tv_sec == after.st_ctim.tv_sec && before.st_ctim.tv_nsec == after.st_ctim.tv_nsec);
	must_eq(exists(path), has_target); /* nothing is made through a link, and nothing removed */
	if (has_target)
		must(lstat(path, &still) == 0 && still.st_ino == target.st_ino && still.st_size == target.st_size);
	daemon_deinit(&d);
}
END_TEST

START_TEST(a_planted_lock_is_not_followed)
{
	struct daemon_proc d;
	char lock[160], target[128];

	own_bind(&d, small);
	snprintf(lock, sizeof(lock), "%s.lock", d.socket);
	tmpdir_path(&d.dir, "target", target, sizeof(target));
	must(symlink(target, lock) == 0);
	refuses(&d, 1, "daemon.socket: its lock");
	must(!exists(target));
	must(unlink(lock) == 0 && mkfifo(lock, 0600) == 0);
	refuses(&d, 1, "no ordinary file");
	must(exists(lock) && !exists(d.socket));
	daemon_deinit(&d);
}
END_TEST

START_TEST(what_took_its_place_is_not_removed)
{
	struct daemon_proc d;
	char *text;

	own_bind(&d, small);
	daemon_run(&d);
	must(unlink(d.socket) == 0);
	plant_file(&d);
	daemon_stop(&d);
	text = tmpdir_read(d.socket);
	ck_assert_str_eq(text, "precious");
	free(text);
	daemon_deinit(&d);
}
END_TEST

/* ---- whose, and how ---- */

START_TEST(mode_and_group_are_as_configured)
{
	static const char *flags[] = { "--g2.size=16M", "--daemon.socket_mode=0606", "--daemon.socket_group=daemon", NULL };
	struct group *group = getgrnam("daemon");
	struct daemon_proc d;
	struct stat st;

	if (geteuid() != 0 || !group)
		flags[2] = NULL;
	own_bind(&d, flags);
	(void)umask(0077); /* of whoever started it: does not matter */
	daemon_run(&d);
	must(lstat(d.socket, &st) == 0);
	must_eq(st.st_mode & 07777, 0606);
	must_eq(st.st_gid, flags[2] ? group->gr_gid : getegid());
	daemon_deinit(&d);
}
END_TEST

START_TEST(an_unknown_group_is_refused_by_name)
{
	static const char *const flags[] = { "--g2.size=16M", "--daemon.socket_group=no-such-group", NULL };
	struct daemon_proc d;

	own_bind(&d, flags);
	refuses(&d, 2, "daemon.socket_group: there is no group no-such-group");
	must(!exists(d.socket));
	daemon_deinit(&d);
}
END_TEST

START_TEST(no_directory_is_said)
{
	struct daemon_proc d;

	own_bind(&d, small);
	strcat(d.socket, "/there/is/none");
	refuses(&d, 1, "No such file or directory");
	daemon_deinit(&d);
}
END_TEST

/* What is handed over must be a socket to listen on. */
START_TEST(a_wrong_inheritance_is_refused)
{
	struct daemon_proc d;

	daemon_init(&d, NULL, small);
	close(d.listen_fd);
	d.listen_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	must(d.listen_fd >= 0);
	refuses(&d, 1, "descriptor 3 was handed over");
	daemon_deinit(&d);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("socket");
	TCase *t = tcase_create("socket");
	SRunner *sr = srunner_create(s);
	int failed;

	tcase_add_test(t, a_second_daemon_is_refused);
	tcase_add_test(t, another_server_is_left_alone);
	tcase_add_test(t, after_a_kill_it_starts_again);
	tcase_add_test(t, of_many_one_serves);
	tcase_add_loop_test(t, what_is_planted_is_left_alone, 0, N_PLANTED);
	tcase_add_test(t, a_planted_lock_is_not_followed);
	tcase_add_test(t, what_took_its_place_is_not_removed);
	tcase_add_test(t, mode_and_group_are_as_configured);
	tcase_add_test(t, an_unknown_group_is_refused_by_name);
	tcase_add_test(t, no_directory_is_said);
	tcase_add_test(t, a_wrong_inheritance_is_refused);
	tcase_set_timeout(t, 120);
	suite_add_tcase(s, t);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
