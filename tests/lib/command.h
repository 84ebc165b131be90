/* SPDX-License-Identifier: Apache-2.0 */
/* command.h: a program that was built, run as a user runs it: words in; exit code, stdout and stderr out. */
#ifndef TESTS_LIB_COMMAND_H
#define TESTS_LIB_COMMAND_H

#include <jansson.h>
#include <sys/types.h>

#define COMMAND_MAX_WORDS 40

struct command {
	pid_t pid; /* 0: ended */
	int out_fd, err_fd;
	int code;        /* exit code, or minus the signal; valid once it has ended */
	char *out, *err; /* own; valid once it has ended */
};

/* Runs @words (NULL-terminated; the first is the program's name in the build folder) and waits for its end. */
void command_run(struct command *c, const char *const *words);
/* The same with @socket after -S. */
void command_ctl(struct command *c, const char *socket, const char *const *words);

/* Without waiting; then command_wait(). */
void command_start(struct command *c, const char *const *words);
void command_wait(struct command *c);

/* Ends the test, after showing what it printed, unless the exit code is @code. */
void command_expect(const struct command *c, int code);
/* stdout as JSON, which it must be, and nothing else; the caller owns it. */
json_t *command_json(const struct command *c);
void command_deinit(struct command *c);

/* The member at "a.b.c" of @json, which must be there; borrowed.  A number of it. */
const json_t *json_at(const json_t *json, const char *path);
double json_number_at(const json_t *json, const char *path);

#endif
