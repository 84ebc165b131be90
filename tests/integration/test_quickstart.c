/* SPDX-License-Identifier: Apache-2.0 */
/* The C quick start of README: it is the file that is built, it is short, it compiles against an installed tree as README says, and it does
 * what it says.  The header is one for C++ too. */
#include <check.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "tests/lib/daemon_proc.h"
#include "tests/lib/must.h"
#include "tests/lib/scale.h"

#define HEADING "## Quick start in C"

static struct tmpdir dir;
static struct daemon_proc d;

static void setup(void)
{
	static const char *const flags[] = { "--g2.size=64M", NULL };

	tmpdir_make(&dir);
	daemon_start(&d, flags);
}

static void teardown(void)
{
	daemon_deinit(&d);
	tmpdir_remove(&dir);
}

static char *source(const char *name)
{
	char path[512], *text;

	source_path(name, path, sizeof(path));
	text = tmpdir_read(path);
	must(text && *text);
	return text;
}

/* A shell command with DIR, SOURCE, BUILD and KVBM_SOCKET set; its output is the caller's. */
static int shell(const char *command, char **ret_output)
{
	char text[2048], path[128], build[512], from[512];
	int status;

	build_path("", build, sizeof(build));
	source_path("", from, sizeof(from));
	tmpdir_path(&dir, "output", path, sizeof(path));
	must((size_t)snprintf(text, sizeof(text), "exec >%s 2>&1; DIR=%s SOURCE=%s BUILD=%s; export KVBM_SOCKET=%s; %s",
	                      path, dir.path, from, build, d.socket, command) < sizeof(text));
	status = system(text);
	*ret_output = tmpdir_read(path);
	if (status != 0)
		fprintf(stderr, "%s: status 0x%x:\n%s\n", command, (unsigned)status, *ret_output);
	return status;
}

static void run(const char *command, const char *expected)
{
	char *output;

	must_eq(shell(command, &output), 0);
	must_contain(output, expected);
	free(output);
}

START_TEST(readme_shows_the_file)
{
	char *readme = source("README.md"), *file = source("client/examples/quickstart.c"), *block, *end;
	unsigned lines = 0;

	block = strstr(readme, HEADING);
	must(block);
	block = strstr(block, "```c\n");
	must(block);
	block += 5;
	end = strstr(block, "\n```");
	must(end);
	end[1] = '\0';
	must(strcmp(block, file) == 0);
	for (const char *p = file; *p; p++)
		lines += *p == '\n';
	must_cmp(lines, <, 40);
	free(readme);
	free(file);
}
END_TEST

START_TEST(it_runs)
{
	run("$BUILD/examples/quickstart", "0 found, 4 stored\n");
	run("$BUILD/examples/quickstart", "block 3 is here: \"hash of tok 0-63\"\n4 found, 0 stored\n");
}
END_TEST

/* What is built is installed as it is ("-o all"): nothing is built anew here. */
START_TEST(it_compiles_against_an_installed_tree)
{
#ifdef SCALE_SANITIZED
	fprintf(stderr, "a library with sanitizers is not one to install: not tested\n");
#else
	run("env -u MAKEFLAGS -u MAKELEVEL make -s --no-print-directory -C $SOURCE -o all install BUILD=$BUILD DESTDIR=$DIR/root "
	    "prefix=/opt/kvbm",
	    "");
	run("export PKG_CONFIG_PATH=$DIR/root/opt/kvbm/lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$DIR/root; "
	    "cp $SOURCE/client/examples/quickstart.c $DIR && cd $DIR && "
	    "${CC:-cc} -std=c99 -Wall -Wextra -Wpedantic -Werror quickstart.c $(pkg-config --cflags --libs kvbm) -o quickstart && "
	    "LD_LIBRARY_PATH=$DIR/root/opt/kvbm/lib ./quickstart",
	    "0 found, 4 stored\n");
#endif
}
END_TEST

START_TEST(the_header_is_cplusplus_too)
{
	static const char text[] = "#include <kvbm.h>\n#include <kvbm_version.h>\n"
				   "int main() { struct kvbm_model model = {}; model.name = \"x\";\n"
				   "kvbm *k = nullptr; kvbm_close(k); return kvbm_strerror(KVBM_E_INVAL) && model.name ? 0 : 1; }\n";

	tmpdir_write(&dir, "header.cc", text);
#ifdef SCALE_SANITIZED
	run("c++ -std=c++11 -Wall -Wextra -Wpedantic -Werror -I$SOURCE/include -fsyntax-only $DIR/header.cc", "");
#else
	run("c++ -std=c++11 -Wall -Wextra -Wpedantic -Werror -I$SOURCE/include $DIR/header.cc -o $DIR/header -L$BUILD -lkvbm && "
	    "LD_LIBRARY_PATH=$BUILD $DIR/header",
	    "");
#endif
}
END_TEST

int main(void)
{
	Suite *s = suite_create("quickstart");
	TCase *tc = tcase_create("quickstart");
	SRunner *sr = srunner_create(s);
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 120);
	tcase_add_test(tc, readme_shows_the_file);
	tcase_add_test(tc, it_runs);
	tcase_add_test(tc, it_compiles_against_an_installed_tree);
	tcase_add_test(tc, the_header_is_cplusplus_too);
	suite_add_tcase(s, tc);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed == 0 ? 0 : 1;
}
