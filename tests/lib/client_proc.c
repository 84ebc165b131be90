/* SPDX-License-Identifier: Apache-2.0 */
/* Owns a child and two pipes.  A step is a line of text, "go on" is one byte.
 *
 * Invariant: a child that was started is reaped by client_kill() or client_join(); if the test dies before, the kernel kills it.
 */
#include "tests/lib/client_proc.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "tests/lib/must.h"

#define CLIENT_WAIT_MS 60000
#define KEEP_FDS 3u

static void client_child(client_main *main, void *arg, int in, int out, pid_t parent)
{
	struct client_self self = { KEEP_FDS, KEEP_FDS + 1 };
	int in_copy, out_copy;

	must(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
	if (getppid() != parent)
		_exit(1);
	/* The sessions of the test must not stay open here.  First out of the way, then to their places. */
	in_copy = fcntl(in, F_DUPFD, 100);
	out_copy = fcntl(out, F_DUPFD, 100);
	must(in_copy >= 0 && out_copy >= 0);
	must(dup2(in_copy, self.in) >= 0 && dup2(out_copy, self.out) >= 0);
	must(syscall(SYS_close_range, KEEP_FDS + 2, ~0u, 0) == 0);
	signal(SIGPIPE, SIG_IGN);
	main(&self, arg);
	_exit(0);
}

void client_start(struct client_proc *c, client_main *main, void *arg)
{
	pid_t parent = getpid();
	int down[2], up[2];

	must(pipe2(down, O_CLOEXEC) == 0 && pipe2(up, O_CLOEXEC) == 0);
	fflush(NULL);
	c->pid = fork();
	must(c->pid >= 0);
	if (c->pid == 0)
		client_child(main, arg, down[0], up[1], parent);
	close(down[0]);
	close(up[1]);
	c->to = down[1];
	c->from = up[0];
}

/* ---- in the child ---- */

void client_pass(struct client_self *self, const char *step)
{
	char line[64];
	int n = snprintf(line, sizeof(line), "%s\n", step);

	must(n > 0 && (size_t)n < sizeof(line));
	must(write(self->out, line, (size_t)n) == n);
}

void client_at(struct client_self *self, const char *step)
{
	char go;

	client_pass(self, step);
	must(read(self->in, &go, 1) == 1);
}

bool client_told(struct client_self *self)
{
	struct pollfd p = { .fd = self->in, .events = POLLIN };
	char go;

	return poll(&p, 1, 0) == 1 && read(self->in, &go, 1) >= 0;
}

void client_tell(struct client_self *self, const void *data, size_t size)
{
	must(write(self->out, data, size) == (ssize_t)size);
}

/* ---- in the parent ---- */

/* False: it is gone. */
static bool client_read(struct client_proc *c, void *data, size_t size)
{
	struct pollfd p = { .fd = c->from, .events = POLLIN };
	size_t done = 0;
	ssize_t n;

	while (done < size) {
		must(poll(&p, 1, CLIENT_WAIT_MS) == 1);
		n = read(c->from, (char *)data + done, size - done);
		if (n <= 0)
			return false;
		done += (size_t)n;
	}
	return true;
}

void client_await(struct client_proc *c, const char *step)
{
	char line[64];
	size_t n = 0;

	for (;;) {
		must(n < sizeof(line));
		if (!client_read(c, &line[n], 1)) {
			fprintf(stderr, "client %d ended before it was at \"%s\"\n", (int)c->pid, step);
			_exit(1);
		}
		if (line[n] == '\n')
			break;
		n++;
	}
	line[n] = '\0';
	if (strcmp(line, step) != 0) {
		fprintf(stderr, "client %d is at \"%s\", not at \"%s\"\n", (int)c->pid, line, step);
		_exit(1);
	}
}

void client_go(struct client_proc *c)
{
	must(write(c->to, "g", 1) == 1);
}

void client_lead(struct client_proc *c, const char *step)
{
	client_go(c);
	client_await(c, step);
}

void client_result(struct client_proc *c, void *data, size_t size)
{
	must(client_read(c, data, size));
}

static int client_reap(struct client_proc *c)
{
	int status;

	must(waitpid(c->pid, &status, 0) == c->pid);
	close(c->to);
	close(c->from);
	c->pid = 0;
	return status;
}

void client_kill(struct client_proc *c)
{
	must(kill(c->pid, SIGKILL) == 0);
	(void)client_reap(c);
}

void client_join(struct client_proc *c)
{
	int status = client_reap(c);

	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
		fprintf(stderr, "a client ended with status 0x%x\n", (unsigned)status);
		_exit(1);
	}
}
