/* SPDX-License-Identifier: Apache-2.0 */
/* Owns a kvbmd child, its directory, its sockets and a session that watches it.
 *
 * Invariant: d->pid is a child of ours that was not reaped, or 0.  The daemon's log is appended to over restarts.
 */
#include "tests/lib/daemon_proc.h"

#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "tests/lib/must.h"

#define MS 1000000u

/* ---- paths ---- */

void build_path(const char *name, char *ret_path, unsigned size)
{
	const char *build = getenv("KVBM_BUILD");

	must((unsigned)snprintf(ret_path, size, "%s/%s", build ? build : "build", name) < size);
}

void source_path(const char *name, char *ret_path, unsigned size)
{
	const char *source = getenv("KVBM_SOURCE");

	must((unsigned)snprintf(ret_path, size, "%s/%s", source ? source : ".", name) < size);
}

char *daemon_log(const struct daemon_proc *d)
{
	return tmpdir_read(d->log);
}

/* The end of a test that went wrong because of the daemon. */
static void __attribute__((noreturn)) daemon_fail(const struct daemon_proc *d, const char *what)
{
	char *log = daemon_log(d);
	size_t n = strlen(log), from = n > 4000 ? n - 4000 : 0;

	fprintf(stderr, "kvbmd %d: %s; the end of its log (%s):\n%s\n", (int)d->pid, what, d->log, log + from);
	free(log);
	_exit(1);
}

/* ---- life ---- */

static int socket_bind(int type, const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

	must(fd >= 0 && strlen(path) < sizeof(addr.sun_path));
	strcpy(addr.sun_path, path);
	must(bind(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0);
	return fd;
}

void daemon_init(struct daemon_proc *d, const char *config_text, const char *const *flags)
{
	unsigned n = 0;

	memset(d, 0, sizeof(*d));
	tmpdir_make(&d->dir);
	tmpdir_path(&d->dir, "kvbmd.sock", d->socket, sizeof(d->socket));
	tmpdir_path(&d->dir, "notify", d->notify, sizeof(d->notify));
	tmpdir_path(&d->dir, "log", d->log, sizeof(d->log));
	tmpdir_path(&d->dir, "kvbmd.conf", d->config, sizeof(d->config));
	tmpdir_write(&d->dir, "kvbmd.conf", config_text ? config_text : "");
	for (; flags && flags[n]; n++) {
		must(n < DAEMON_MAX_FLAGS - 1);
		d->flags[n] = flags[n];
	}
	d->listen_fd = socket_bind(SOCK_STREAM, d->socket);
	must(listen(d->listen_fd, 1024) == 0 && chmod(d->socket, 0666) == 0);
	d->notify_fd = -1;
}

void daemon_bind_itself(struct daemon_proc *d)
{
	close(d->listen_fd);
	d->listen_fd = -1;
	d->own_bind = true;
	must(unlink(d->socket) == 0);
}

#define DAEMON_MAX_ENV 512

struct daemon_env {
	const char *list[DAEMON_MAX_ENV];
	char notify[128], pid[32];
};

/* The daemon's environment: nothing of ours that means something to it.  Made without setenv(), which allocates: the test may have threads,
 * one of which may have had the allocator's lock when it forked. */
static void daemon_environment(const struct daemon_proc *d, struct daemon_env *ret_env)
{
	static const char *const dropped[] = { "KVBMD_", "NOTIFY_SOCKET=", "LISTEN_PID=", "LISTEN_FDS=", "LISTEN_FDNAMES=" };
	extern char **environ;
	unsigned n = 0;

	for (char **e = environ; *e; e++) {
		bool keep = true;

		for (unsigned i = 0; i < sizeof(dropped) / sizeof(dropped[0]); i++)
			keep = keep && strncmp(*e, dropped[i], strlen(dropped[i])) != 0;
		must(n < DAEMON_MAX_ENV - 4);
		if (keep)
			ret_env->list[n++] = *e;
	}
	snprintf(ret_env->notify, sizeof(ret_env->notify), "NOTIFY_SOCKET=%s", d->notify);
	snprintf(ret_env->pid, sizeof(ret_env->pid), "LISTEN_PID=%d", (int)getpid());
	ret_env->list[n++] = ret_env->notify;
	if (!d->own_bind) {
		ret_env->list[n++] = ret_env->pid;
		ret_env->list[n++] = "LISTEN_FDS=1";
	}
	ret_env->list[n] = NULL;
}

static void daemon_child(const struct daemon_proc *d, pid_t parent)
{
	char program[512], config[160], socket_flag[160];
	const char *argv[DAEMON_MAX_FLAGS + 4];
	struct daemon_env env;
	int log = open(d->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	unsigned n = 0;

	must(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
	if (getppid() != parent)
		_exit(1);
	build_path("kvbmd", program, sizeof(program));
	must(log >= 0 && dup2(log, 1) >= 0 && dup2(log, 2) >= 0);
	if (!d->own_bind) {
		if (d->listen_fd == 3)
			must(fcntl(3, F_SETFD, 0) == 0);
		else
			must(dup2(d->listen_fd, 3) == 3);
	}
	must(syscall(SYS_close_range, d->own_bind ? 3 : 4, ~0u, 0) == 0);
	daemon_environment(d, &env);
	snprintf(config, sizeof(config), "--config=%s", d->config);
	snprintf(socket_flag, sizeof(socket_flag), "--daemon.socket=%s", d->socket);
	argv[n++] = program;
	argv[n++] = config;
	if (d->own_bind)
		argv[n++] = socket_flag;
	for (unsigned i = 0; d->flags[i]; i++)
		argv[n++] = d->flags[i];
	argv[n] = NULL;
	execve(program, (char *const *)argv, (char *const *)env.list);
	fprintf(stderr, "%s: %s\n", program, strerror(errno));
	_exit(127);
}

void daemon_spawn(struct daemon_proc *d)
{
	pid_t parent = getpid();

	must(d->pid == 0);
	fflush(NULL);
	d->pid = fork();
	must(d->pid >= 0);
	if (d->pid == 0)
		daemon_child(d, parent);
}

int daemon_wait(struct daemon_proc *d)
{
	int pidfd = (int)syscall(SYS_pidfd_open, d->pid, 0), status;
	struct pollfd p = { .fd = pidfd, .events = POLLIN };

	must(pidfd >= 0);
	if (poll(&p, 1, DAEMON_WAIT_MS) != 1)
		daemon_fail(d, "does not end");
	close(pidfd);
	must(waitpid(d->pid, &status, 0) == d->pid);
	d->pid = 0;
	return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

bool daemon_next_message(struct daemon_proc *d, char *ret_text, unsigned size, int timeout_ms)
{
	int pidfd = (int)syscall(SYS_pidfd_open, d->pid, 0);
	struct pollfd p[2] = { { .fd = d->notify_fd, .events = POLLIN }, { .fd = pidfd, .events = POLLIN } };
	ssize_t n = -1;

	must(pidfd >= 0);
	if (poll(p, 2, timeout_ms) > 0 && (p[0].revents & POLLIN))
		n = recv(d->notify_fd, ret_text, size - 1, MSG_DONTWAIT);
	close(pidfd);
	if (n < 0)
		return false;
	ret_text[n] = '\0';
	return true;
}

static void daemon_close_notify(struct daemon_proc *d)
{
	if (d->notify_fd < 0)
		return;
	close(d->notify_fd);
	d->notify_fd = -1;
	must(unlink(d->notify) == 0);
}

void daemon_open_notify(struct daemon_proc *d)
{
	daemon_close_notify(d); /* what an earlier run left to be read is not this one's */
	d->notify_fd = socket_bind(SOCK_DGRAM, d->notify);
}

void daemon_run(struct daemon_proc *d)
{
	char text[1024], *ready, *status;

	daemon_open_notify(d);
	daemon_spawn(d);
	do {
		if (!daemon_next_message(d, text, sizeof(text), DAEMON_WAIT_MS))
			daemon_fail(d, "did not become ready");
		ready = strstr(text, "READY=1");
		status = strstr(text, "STATUS=");
		if (status)
			snprintf(d->status, sizeof(d->status), "%.*s", (int)strcspn(status, "\n"), status);
	} while (!ready);
	/* Its queue is short, and a daemon that nobody reads from would wait for us. */
	if (!d->keep_notify)
		daemon_close_notify(d);
}

void daemon_start(struct daemon_proc *d, const char *const *flags)
{
	daemon_init(d, NULL, flags);
	daemon_run(d);
}

void daemon_stop(struct daemon_proc *d)
{
	int status;

	must(kill(d->pid, SIGTERM) == 0);
	status = daemon_wait(d);
	if (status != 0) {
		fprintf(stderr, "kvbmd ended with %d after SIGTERM\n", status);
		daemon_fail(d, "did not stop cleanly");
	}
}

void daemon_kill(struct daemon_proc *d)
{
	must(kill(d->pid, SIGKILL) == 0);
	must_eq(daemon_wait(d), -SIGKILL);
}

void daemon_deinit(struct daemon_proc *d)
{
	kvbm_close(d->monitor);
	d->monitor = NULL;
	if (d->pid > 0)
		daemon_stop(d);
	if (d->listen_fd >= 0)
		close(d->listen_fd);
	daemon_close_notify(d);
	tmpdir_remove(&d->dir);
}

/* ---- looking at it ---- */

struct kvbm *daemon_monitor(struct daemon_proc *d)
{
	struct kvbm_options options = { .socket = d->socket, .name = "monitor", .timeout_ms = DAEMON_WAIT_MS };

	if (!d->monitor && kvbm_open(&options, &d->monitor) < 0)
		daemon_fail(d, "the monitor cannot connect");
	return d->monitor;
}

static char *daemon_metrics(struct daemon_proc *d)
{
	struct kvbm *monitor = daemon_monitor(d);
	char *text = NULL;
	int r;

	/* After a restart the first call may say that the old one is gone. */
	for (int attempt = 0; attempt < 3; attempt++) {
		r = kvbm_info(monitor, "metrics", NULL, NULL, 0, &text);
		if (r >= 0)
			return text;
	}
	fprintf(stderr, "metrics: %s: %s\n", kvbm_strerror(r), kvbm_error(monitor));
	daemon_fail(d, "does not answer the monitor");
}

/* "\nkvbmd_NAME 17" */
static uint64_t metric_find(const char *text, const char *name)
{
	char wanted[96];
	const char *at;
	int n = snprintf(wanted, sizeof(wanted), "kvbmd_%s ", name);

	for (at = text; (at = strstr(at, wanted)); at += n)
		if (at == text || at[-1] == '\n')
			return strtoull(at + n, NULL, 10);
	fprintf(stderr, "there is no metric kvbmd_%s\n", name);
	_exit(1);
}

uint64_t daemon_metric(struct daemon_proc *d, const char *name)
{
	char *text = daemon_metrics(d);
	uint64_t value = metric_find(text, name);

	free(text);
	return value;
}

/* Between two looks: a millisecond, so that on one core the daemon gets on with it. */
static void daemon_pause(void)
{
	(void)poll(NULL, 0, 1);
}

unsigned daemon_await_metric(struct daemon_proc *d, const char *name, uint64_t value)
{
	uint64_t start = clock_now_ns(), now = start, have = 0;

	for (; now - start < (uint64_t)DAEMON_WAIT_MS * MS; now = clock_now_ns()) {
		have = daemon_metric(d, name);
		if (have == value)
			return (unsigned)((now - start) / MS);
		daemon_pause();
	}
	fprintf(stderr, "kvbmd_%s is %" PRIu64 ", waited for %" PRIu64 "\n", name, have, value);
	daemon_fail(d, "a metric does not come to its value");
}

void daemon_baseline(struct daemon_proc *d, struct daemon_baseline *ret_baseline)
{
	char *text = daemon_metrics(d);
	struct daemon_baseline b = {
		.sessions = metric_find(text, "sessions"),
		.leases = metric_find(text, "leases"),
		.pins = metric_find(text, "pins"),
		.slots = metric_find(text, "g1_slots") + metric_find(text, "g2_slots"),
		.free = metric_find(text, "g1_slots_free") + metric_find(text, "g2_slots_free"),
		.used = metric_find(text, "g1_slots_used") + metric_find(text, "g2_slots_used"),
		.quarantined = metric_find(text, "g1_slots_quarantined") + metric_find(text, "g2_slots_quarantined"),
		.resident = metric_find(text, "blocks_resident"),
	};

	free(text);
	fdcount_take(d->pid, &b.fds);
	*ret_baseline = b;
}

/* What differs, or NULL. */
static const char *baseline_differs(const struct daemon_baseline *b, const struct daemon_baseline *now)
{
	if (now->sessions != b->sessions)
		return "sessions";
	if (now->leases != b->leases)
		return "leases";
	if (now->pins != b->pins)
		return "pins";
	if (now->quarantined != b->quarantined)
		return "quarantined slots";
	if (now->used != now->resident)
		return "slots used without a block";
	if (now->free + now->used + now->quarantined != now->slots)
		return "slots lost";
	if (now->fds.sockets != b->fds.sockets || now->fds.pidfds != b->fds.pidfds)
		return "sockets or pidfds";
	if (now->fds.pages != b->fds.pages || now->fds.page_maps != b->fds.page_maps)
		return "session pages";
	if (now->fds.memfds != b->fds.memfds || now->fds.memfd_maps != b->fds.memfd_maps)
		return "memfds or their mappings";
	if (now->fds.other != b->fds.other)
		return "other descriptors";
	return NULL;
}

static void baseline_print(const char *when, const struct daemon_baseline *b)
{
	fprintf(stderr,
	        "%s: sessions %" PRIu64 ", leases %" PRIu64 ", pins %" PRIu64 ", slots %" PRIu64 " = free %" PRIu64
	        " + used %" PRIu64 " + quarantined %" PRIu64 ", blocks %" PRIu64
	        ", sockets %u, pidfds %u, pages %u (%u mapped), memfds %u (%u mapped), other %u\n",
	        when, b->sessions, b->leases, b->pins, b->slots, b->free, b->used, b->quarantined, b->resident,
	        b->fds.sockets, b->fds.pidfds, b->fds.pages, b->fds.page_maps, b->fds.memfds, b->fds.memfd_maps,
	        b->fds.other);
}

unsigned daemon_check(struct daemon_proc *d, const struct daemon_baseline *baseline)
{
	uint64_t start = clock_now_ns(), now = start;
	struct daemon_baseline have;
	const char *differs = "";

	for (; now - start < (uint64_t)DAEMON_WAIT_MS * MS / 4; now = clock_now_ns()) {
		daemon_baseline(d, &have);
		differs = baseline_differs(baseline, &have);
		if (!differs)
			return (unsigned)((now - start) / MS);
		daemon_pause();
	}
	baseline_print("baseline", baseline);
	baseline_print("now", &have);
	daemon_fail(d, differs);
}
