/* SPDX-License-Identifier: Apache-2.0 */
/* client_proc.h: client processes of a test, which the test leads step by step.
 *
 * A client is a forked child that runs one function.  It tells the step it has reached and waits there until it is told to go
 * on, so that "killed between reserve and commit" is a place and not a moment.  It inherits no descriptor of the test but
 * stderr, and dies with it.
 */
#ifndef TESTS_LIB_CLIENT_PROC_H
#define TESTS_LIB_CLIENT_PROC_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct client_proc {
	pid_t pid; /* 0: gone */
	int to, from;
};

/* What the child has of it. */
struct client_self {
	int in, out;
};

typedef void client_main(struct client_self *self, void *arg);

void client_start(struct client_proc *c, client_main *main, void *arg);

/* ---- in the child ---- */

/* "I am at @step", then waits for client_go(). */
void client_at(struct client_self *self, const char *step);
/* "I am at @step", and goes on. */
void client_pass(struct client_self *self, const char *step);
/* True once the parent said client_go() since the last time; never waits. */
bool client_told(struct client_self *self);
/* A result for client_result(). */
void client_tell(struct client_self *self, const void *data, size_t size);

/* ---- in the parent ---- */

/* Waits until it is at @step. */
void client_await(struct client_proc *c, const char *step);
void client_go(struct client_proc *c);
/* client_go() and wait for the next step. */
void client_lead(struct client_proc *c, const char *step);
void client_result(struct client_proc *c, void *data, size_t size);
/* SIGKILL, and reaped. */
void client_kill(struct client_proc *c);
/* It ends by itself, with status 0. */
void client_join(struct client_proc *c);

#endif
