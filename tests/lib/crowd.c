/* SPDX-License-Identifier: Apache-2.0 */
/* Owns up to CROWD_MAX client processes.  Reads their pipes whenever it waits, so that nobody waits for a full pipe for ever. */
#include "tests/lib/crowd.h"

#include <poll.h>
#include <sys/wait.h>

#include "tests/lib/must.h"

#define CROWD_WAIT_MS 60000

void crowd_start(struct crowd *crowd, unsigned n, client_main *main, void *arg)
{
	must(n > 0 && n <= CROWD_MAX);
	memset(crowd, 0, sizeof(*crowd));
	crowd->n = n;
	crowd->main = main;
	crowd->arg = arg;
	for (unsigned i = 0; i < n; i++)
		client_start(&crowd->procs[i], main, arg);
}

static void __attribute__((noreturn)) crowd_ended(struct client_proc *proc)
{
	int status = 0;

	(void)waitpid(proc->pid, &status, 0);
	fprintf(stderr, "client %d ended by itself, with status 0x%x\n", (int)proc->pid, (unsigned)status);
	_exit(1);
}

/* Takes what there is, at least a byte of one of them.  Returns the units. */
static uint64_t crowd_take(struct crowd *crowd)
{
	struct pollfd p[CROWD_MAX];
	uint64_t units = 0;
	char buf[4096];
	ssize_t n;

	for (unsigned i = 0; i < crowd->n; i++)
		p[i] = (struct pollfd){ .fd = crowd->procs[i].from, .events = POLLIN };
	must(poll(p, crowd->n, CROWD_WAIT_MS) > 0);
	for (unsigned i = 0; i < crowd->n; i++) {
		if (!p[i].revents)
			continue;
		n = read(p[i].fd, buf, sizeof(buf));
		if (n <= 0)
			crowd_ended(&crowd->procs[i]);
		crowd->work[i] += (uint64_t)n;
		units += (uint64_t)n;
	}
	return units;
}

void crowd_await(struct crowd *crowd, uint64_t units)
{
	for (uint64_t done = 0; done < units;)
		done += crowd_take(crowd);
}

void crowd_await_each(struct crowd *crowd, uint64_t units)
{
	uint64_t from[CROWD_MAX];
	unsigned behind;

	memcpy(from, crowd->work, sizeof(from));
	for (;;) {
		behind = 0;
		for (unsigned i = 0; i < crowd->n; i++)
			behind += crowd->work[i] - from[i] < units;
		if (!behind)
			return;
		crowd_take(crowd);
	}
}

void crowd_replace(struct crowd *crowd, unsigned i)
{
	must(i < crowd->n);
	client_kill(&crowd->procs[i]);
	crowd->work[i] = 0;
	client_start(&crowd->procs[i], crowd->main, crowd->arg);
}

void crowd_stop(struct crowd *crowd)
{
	char buf[4096];

	for (unsigned i = 0; i < crowd->n; i++)
		client_go(&crowd->procs[i]);
	for (unsigned i = 0; i < crowd->n; i++) {
		struct pollfd p = { .fd = crowd->procs[i].from, .events = POLLIN };

		do
			must(poll(&p, 1, CROWD_WAIT_MS) == 1);
		while (read(p.fd, buf, sizeof(buf)) > 0);
		client_join(&crowd->procs[i]);
	}
	crowd->n = 0;
}

bool crowd_goes_on(struct client_self *self)
{
	return !client_told(self);
}

void crowd_worked(struct client_self *self)
{
	client_tell(self, "w", 1);
}
