/* SPDX-License-Identifier: Apache-2.0 */
/* Owns one child process and the two memory files that it writes to. */
#include "tests/lib/command.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "tests/lib/daemon_proc.h"
#include "tests/lib/must.h"

static void command_child(const struct command *c, const char *const *words, pid_t parent)
{
	char program[512];
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

	must(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
	if (getppid() != parent)
		_exit(1);
	build_path(words[0], program, sizeof(program));
	must(null >= 0 && dup2(null, 0) == 0 && dup2(c->out_fd, 1) == 1 && dup2(c->err_fd, 2) == 2);
	execv(program, (char *const *)words);
	must(!"the program can be run");
}

void command_start(struct command *c, const char *const *words)
{
	pid_t parent = getpid();

	memset(c, 0, sizeof(*c));
	c->out_fd = memfd_create("out", MFD_CLOEXEC);
	c->err_fd = memfd_create("err", MFD_CLOEXEC);
	must(c->out_fd >= 0 && c->err_fd >= 0);
	c->pid = fork();
	must(c->pid >= 0);
	if (c->pid == 0)
		command_child(c, words, parent);
}

static char *command_text(int fd)
{
	struct stat st;
	char *text;

	must(fstat(fd, &st) == 0);
	text = calloc(1, (size_t)st.st_size + 1);
	must(text);
	must_eq(pread(fd, text, (size_t)st.st_size, 0), st.st_size);
	close(fd);
	return text;
}

void command_wait(struct command *c)
{
	int status;

	must_eq(waitpid(c->pid, &status, 0), c->pid);
	c->pid = 0;
	c->code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
	c->out = command_text(c->out_fd);
	c->err = command_text(c->err_fd);
}

void command_run(struct command *c, const char *const *words)
{
	command_start(c, words);
	command_wait(c);
}

void command_ctl(struct command *c, const char *socket, const char *const *words)
{
	const char *all[COMMAND_MAX_WORDS] = { "kvbmctl", "-S", socket };
	int n = 3;

	for (; *words; words++) {
		must_cmp(n, <, COMMAND_MAX_WORDS - 1);
		all[n++] = *words;
	}
	command_run(c, all);
}

static void command_show(const struct command *c)
{
	fprintf(stderr, "exit code %d; stdout:\n%s\nstderr:\n%s\n", c->code, c->out, c->err);
}

void command_expect(const struct command *c, int code)
{
	if (c->code != code)
		command_show(c);
	must_eq(c->code, code);
}

json_t *command_json(const struct command *c)
{
	json_error_t error;
	json_t *json = json_loads(c->out, JSON_DECODE_ANY, &error);

	if (!json)
		command_show(c);
	must(json);
	return json;
}

void command_deinit(struct command *c)
{
	free(c->out);
	free(c->err);
	memset(c, 0, sizeof(*c));
}

const json_t *json_at(const json_t *json, const char *path)
{
	const json_t *at = json;
	char name[64];

	for (const char *p = path; *p;) {
		size_t n = strcspn(p, ".");

		must(n < sizeof(name));
		memcpy(name, p, n);
		name[n] = '\0';
		at = json_object_get(at, name);
		if (!at) {
			char *text = json_dumps(json, JSON_ENCODE_ANY);

			fprintf(stderr, "there is no %s in %s\n", path, text ? text : "?");
			_exit(1);
		}
		p += n + (p[n] == '.');
	}
	return at;
}

double json_number_at(const json_t *json, const char *path)
{
	const json_t *at = json_at(json, path);

	must(json_is_number(at));
	return json_number_value(at);
}
