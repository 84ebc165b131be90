/* SPDX-License-Identifier: Apache-2.0 */
/* The command line of kvbmd and its settings: what it prints, and that every mistake ends it with 2 and a text that names the key
 * and where it stands, before anything was made.
 */
#include <check.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "tests/lib/daemon_proc.h"
#include "tests/lib/must.h"
#include "tests/lib/tmpdir.h"

#define MAX_ARGS 8

static struct tmpdir dir;
static char conf[128], out[128];

static void setup(void)
{
	tmpdir_make(&dir);
	tmpdir_path(&dir, "t.conf", conf, sizeof(conf));
	tmpdir_path(&dir, "out", out, sizeof(out));
}

static void teardown(void)
{
	tmpdir_remove(&dir);
}

/* Runs kvbmd with these arguments (NULL-terminated) until it ends; both its outputs are in ret_text, which the caller frees. */
static int kvbmd(const char *const *args, char **ret_text)
{
	const char *argv[MAX_ARGS + 2];
	char program[512];
	int status;
	pid_t pid;

	build_path("kvbmd", program, sizeof(program));
	argv[0] = program;
	for (unsigned i = 0;; i++) {
		must(i <= MAX_ARGS);
		argv[i + 1] = args[i];
		if (!args[i])
			break;
	}
	fflush(NULL);
	pid = fork();
	must(pid >= 0);
	if (pid == 0) {
		int fd = open(out, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

		must(fd >= 0 && dup2(fd, 1) >= 0 && dup2(fd, 2) >= 0);
		execv(program, (char *const *)argv);
		_exit(127);
	}
	must(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
	*ret_text = tmpdir_read(out);
	return WEXITSTATUS(status);
}

static void says(int code, const char *wanted, const char *const *args)
{
	char *text;
	int have = kvbmd(args, &text);

	must_contain(text, wanted);
	must_eq(have, code);
	free(text);
}

#define SAYS(code, wanted, ...) says((code), (wanted), (const char *const[]){ __VA_ARGS__, NULL })

/* ---- what it prints ---- */

START_TEST(help_and_version)
{
	SAYS(0, "usage: kvbmd", "--help");
	SAYS(0, "--check-config", "--help");
	SAYS(0, "kvbmd 0.", "--version");
	SAYS(0, "protocol 1.", "--version");
}
END_TEST

START_TEST(the_sample_is_the_committed_file)
{
	char path[512], *committed, *text;

	source_path("conf/kvbmd.conf", path, sizeof(path));
	committed = tmpdir_read(path);
	must_eq(kvbmd((const char *const[]){ "--print-sample-config", NULL }, &text), 0);
	ck_assert_str_eq(text, committed);
	free(text);
	free(committed);
	SAYS(0, "is right", "--check-config", "--config", path);
}
END_TEST

START_TEST(settings_in_effect_and_where_they_are_from)
{
	tmpdir_write(&dir, "t.conf", "[g2]\nsize = 3G\n[namespace a]\nshare = 25%\n");
	SAYS(0, "t.conf:2\nsize = 3G", "--print-config", "--config", conf);
	SAYS(0, "share = 25%", "--print-config", "--config", conf);
	must(setenv("KVBMD_G2_SIZE", "2G", 1) == 0);
	SAYS(0, "size = 2G", "--print-config", "--config", conf);
	SAYS(0, "size = 256M", "--print-config", "--config", conf, "--g2.size=256M", "--foreground");
}
END_TEST

/* What is printed is a file that means the same. */
START_TEST(what_is_printed_can_be_read)
{
	char *text, *again;

	tmpdir_write(&dir, "t.conf",
	             "[g2]\nsize = 3G\n[daemon]\nadmin_uids = 5\n[namespace a/b]\nshare = 25%\nuids = 1,2\n");
	must_eq(kvbmd((const char *const[]){ "--print-config", "--config", conf, NULL }, &text), 0);
	tmpdir_write(&dir, "t.conf", text);
	must_eq(kvbmd((const char *const[]){ "--print-config", "--config", conf, NULL }, &again), 0);
	must_contain(again, "share = 25%");
	must_contain(again, "admin_uids = 5");
	must_contain(again, "size = 3G");
	free(text);
	free(again);
}
END_TEST

/* ---- mistakes ---- */

START_TEST(unknown_arguments)
{
	SAYS(2, "unknown argument --sizes", "--sizes");
	SAYS(2, "unknown argument start", "start");
	SAYS(2, "unknown argument -d", "-d");
	SAYS(2, "which file? --config", "--config");
	SAYS(2, "--g2.size", "--g2.size");
	SAYS(2, "g2.szie: did you mean g2.size?", "--g2.szie=1G");
	SAYS(2, "/nowhere.conf: cannot be read", "--config=/nowhere.conf");
}
END_TEST

/* Every key of the sample with a value that it cannot have.  The line is the third. */
static const struct mistake {
	const char *section, *line, *said;
} mistakes[] = {
	{ "daemon", "socket = relative.sock", "daemon.socket" },
	{ "daemon", "socket_mode = 0999", "daemon.socket_mode" },
	{ "daemon", "socket_group = a:b", "daemon.socket_group" },
	{ "daemon", "allow_uids = me", "daemon.allow_uids" },
	{ "daemon", "admin_uids = root", "daemon.admin_uids" },
	{ "daemon", "log = loud", "daemon.log" },
	{ "daemon", "workers = 65", "daemon.workers" },
	{ "daemon", "max_sessions = 0", "daemon.max_sessions" },
	{ "daemon", "max_sessions_per_uid = many", "daemon.max_sessions_per_uid" },
	{ "daemon", "write_timeout = 30", "daemon.write_timeout" },
	{ "daemon", "stop_timeout = 2h", "daemon.stop_timeout" },
	{ "daemon", "request_timeout = 5s", "daemon.request_timeout" },
	{ "g2", "size = 1M", "g2.size" },
	{ "g2", "size = 64T", "of memory" },
	{ "g2", "region_size = 1G1", "g2.region_size" },
	{ "g2", "huge_pages = sometimes", "g2.huge_pages" },
	{ "g2", "numa = 3", "g2.numa" },
	{ "g2", "grace = 101%", "g2.grace" },
	{ "limits", "leases_per_session = 0", "limits.leases_per_session" },
	{ "limits", "pins_per_session = 0", "limits.pins_per_session" },
	{ "limits", "slots_per_session = -1", "limits.slots_per_session" },
	{ "limits", "slots_per_uid = 0", "limits.slots_per_uid" },
	{ "limits", "output_bytes = 1", "limits.output_bytes" },
	{ "limits", "frame_timeout = 1ms", "limits.frame_timeout" },
	{ "limits", "namespaces = 0", "limits.namespaces" },
	{ "limits", "why_entries = x", "limits.why_entries" },
	{ "namespace a", "share = 200%", "namespace.a.share" },
	{ "namespace a", "max = 0", "namespace.a.max" },
	{ "namespace a", "uids = vllm", "namespace.a.uids" },
	{ "g3", "size = 1G", "g3.path" },
	{ "g3", "path = relative", "g3.path" },
	{ "g3", "write = sometimes", "g3.write" },
	{ "g4", "url = dir:///tmp", "[g4]" },
};
#define N_MISTAKES (sizeof(mistakes) / sizeof(mistakes[0]))

START_TEST(every_mistake_names_key_and_line)
{
	const struct mistake *m = &mistakes[_i];
	char text[256], socket[160];

	snprintf(text, sizeof(text), "# a comment\n[%s]\n%s\n", m->section, m->line);
	tmpdir_write(&dir, "t.conf", text);
	snprintf(socket, sizeof(socket), "--daemon.socket=%s/s", dir.path);
	SAYS(2, m->said, "--config", conf);
	SAYS(2, strcmp(m->section, "g4") == 0 ? "t.conf:2: " : "t.conf:3: ", "--config", conf);
	SAYS(2, m->said, "--check-config", "--config", conf);
	if (strcmp(m->line, "socket = relative.sock") != 0)
		SAYS(2, m->said, "--config", conf, socket);
}
END_TEST

START_TEST(contradictions_name_both)
{
	tmpdir_write(&dir, "t.conf", "[g2]\nsize = 1G\n[namespace a]\nshare = 60%\n[namespace b]\nshare = 50%\n");
	SAYS(2, "t.conf:6: namespace.b.share", "--config", conf);
	tmpdir_write(&dir, "t.conf", "[daemon]\nmax_sessions = 5\nmax_sessions_per_uid = 6\n");
	SAYS(2, "t.conf:3: daemon.max_sessions_per_uid", "--config", conf);
	tmpdir_write(&dir, "t.conf", "[g2]\nsize = 4M\nregion_size = 8M\n");
	SAYS(2, "t.conf:3: g2.region_size", "--config", conf);
	tmpdir_write(&dir, "t.conf", "[g2]\nsize = 4M\nsize = 8M\n");
	SAYS(2, "t.conf:3: g2.size: was set in line 2 already", "--config", conf);
	must(setenv("KVBMD_G2_SIZES", "1G", 1) == 0);
	SAYS(2, "KVBMD_G2_SIZES", "--config=/dev/null");
}
END_TEST

int main(void)
{
	Suite *s = suite_create("command line");
	TCase *t = tcase_create("command line");
	SRunner *sr = srunner_create(s);
	int failed;

	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, help_and_version);
	tcase_add_test(t, the_sample_is_the_committed_file);
	tcase_add_test(t, settings_in_effect_and_where_they_are_from);
	tcase_add_test(t, what_is_printed_can_be_read);
	tcase_add_test(t, unknown_arguments);
	tcase_add_loop_test(t, every_mistake_names_key_and_line, 0, N_MISTAKES);
	tcase_add_test(t, contradictions_name_both);
	tcase_set_timeout(t, 120);
	suite_add_tcase(s, t);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
