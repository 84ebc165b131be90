/* SPDX-License-Identifier: Apache-2.0 */
/* daemon_proc.h: a real kvbmd for a test.
 *
 * The harness makes the listening socket in a directory of its own and hands it over as systemd would (LISTEN_FDS), so that it
 * outlives the daemon and connections made while it is away wait.  Readiness is READY=1 on the notify socket.  The child dies
 * with the test.  Everything here ends the test when it goes wrong, after showing the daemon's log.
 */
#ifndef TESTS_LIB_DAEMON_PROC_H
#define TESTS_LIB_DAEMON_PROC_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include <kvbm.h>

#include "tests/lib/fdcount.h"
#include "tests/lib/tmpdir.h"

#define DAEMON_MAX_FLAGS 24
#define DAEMON_WAIT_MS 60000 /* nothing takes that long: only the bound that turns a hang into a failure */

struct daemon_proc {
	struct tmpdir dir;
	char socket[108], notify[108], log[128], config[128];
	pid_t pid;     /* 0: not running */
	int listen_fd; /* owns; -1: the daemon binds by itself */
	int notify_fd; /* owns; -1 once it is ready, unless keep_notify */
	bool own_bind, keep_notify;
	const char *flags[DAEMON_MAX_FLAGS]; /* borrows; NULL-terminated */
	struct kvbm *monitor;                /* owns; a session that only looks */
	char status[256];                    /* last STATUS= before it was ready */
};

/* Directory, socket, configuration file (@config_text, may be NULL), notify socket; nothing runs yet.
 * @flags: NULL-terminated, "--section.key=value", borrowed until the end; may be NULL. */
void daemon_init(struct daemon_proc *d, const char *config_text, const char *const *flags);
/* The same with the daemon making its socket itself; before daemon_run(). */
void daemon_bind_itself(struct daemon_proc *d);
/* Starts it and waits for READY=1. */
void daemon_run(struct daemon_proc *d);
/* daemon_init() and daemon_run(). */
void daemon_start(struct daemon_proc *d, const char *const *flags);

/* Without waiting for anything; for daemons that are to refuse. */
void daemon_open_notify(struct daemon_proc *d);
void daemon_spawn(struct daemon_proc *d);
/* Waits until it is gone and returns the exit status, or minus the signal. */
int daemon_wait(struct daemon_proc *d);
/* The next message on the notify socket, or false when the daemon ended or @timeout_ms passed. */
bool daemon_next_message(struct daemon_proc *d, char *ret_text, unsigned size, int timeout_ms);

/* SIGTERM; it must exit with 0. */
void daemon_stop(struct daemon_proc *d);
/* SIGKILL, and wait. */
void daemon_kill(struct daemon_proc *d);
/* Stops it if it runs and removes everything. */
void daemon_deinit(struct daemon_proc *d);

/* The path of a program that was built: "kvbmd", "examples/quickstart". */
void build_path(const char *name, char *ret_path, unsigned size);
/* The path of a file of the source tree. */
void source_path(const char *name, char *ret_path, unsigned size);
/* The daemon's log as a string; the caller frees it. */
char *daemon_log(const struct daemon_proc *d);

/* ---- looking at it ---- */

/* The monitor's session, opened at first use.  It is part of every baseline. */
struct kvbm *daemon_monitor(struct daemon_proc *d);
/* kvbmd_<name> of "metrics"; counters with their _total. */
uint64_t daemon_metric(struct daemon_proc *d, const char *name);
/* Asks again and again until the metric has that value; it fails after DAEMON_WAIT_MS.  Returns the milliseconds it took. */
unsigned daemon_await_metric(struct daemon_proc *d, const char *name, uint64_t value);

struct daemon_baseline {
	struct fdcount fds;
	uint64_t sessions, leases, pins, resident;
	uint64_t slots, free, used, quarantined; /* of host memory and of pools on devices */
};

/* Takes stock.  The namespaces of the test must be known and have got their memory by then (daemon_warm()). */
void daemon_baseline(struct daemon_proc *d, struct daemon_baseline *ret_baseline);
/* Waits until sessions, leases, pins, quarantine, descriptors and mappings are as they were, and fails if they do not come to
 * it.  Slots: none is lost, and none is used that holds no block.  Returns the milliseconds it took. */
unsigned daemon_check(struct daemon_proc *d, const struct daemon_baseline *baseline);

#endif
