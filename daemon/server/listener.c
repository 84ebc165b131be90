/* SPDX-License-Identifier: Apache-2.0 */
/* Owns the listening sockets, the lock beside one of our own, and a spare descriptor.
 *
 * A path in the file system may hold anything.  Invariants:
 * - Whoever has the lock is the only kvbmd at that path; it is the lock, not the socket, that decides between two.
 * - Removed is only a socket of our own uid on which nobody listens, or the very one that we made.
 * - Nobody can connect before owner and mode are as configured: they are set before listen().
 *
 * Does not read from connections, and does not decide who may have one.
 */
#include "server/listener.h"

#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <systemd/sd-daemon.h>

#include "base/assert.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/thread.h"

#define ACCEPTS_PER_TURN 32u
#define BACKLOG 1024
#define PAUSE_NS UINT64_C(100000000)
#define FDS_KEPT 64u /* for regions, pages and what else those who are connected need */

static void listener_on_event(struct loop_watch *w, unsigned events);

/* ---- a path of our own: the lock ---- */

static void listener_lock_path(const char *path, char ret_path[LISTENER_PATH + 8])
{
	snprintf(ret_path, LISTENER_PATH + 8, "%s.lock", path);
}

/* A predecessor removes its lock when it ends: then what we have locked is no file any more. */
static bool lock_is_in_place(int fd, const char *name)
{
	struct stat ours, there;

	return fstat(fd, &ours) == 0 && lstat(name, &there) == 0 && ours.st_dev == there.st_dev &&
	       ours.st_ino == there.st_ino;
}

static int listener_lock(struct listener *l, const char *path)
{
	char name[LISTENER_PATH + 8];
	struct stat st;

	listener_lock_path(path, name);
	for (;;) {
		_cleanup_(close_p) int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY,
		                                 0600);

		if (fd < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
			log_error("daemon.socket: its lock %s cannot be had: %s", name,
			          fd < 0 ? strerror(errno) : "it is no ordinary file");
			return LISTENER_E_REFUSED;
		}
		if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
			log_error("daemon.socket: another kvbmd has %s (its lock %s is taken)", path, name);
			return LISTENER_E_REFUSED;
		}
		if (lock_is_in_place(fd, name)) {
			l->lock_fd = steal_fd(&fd);
			return 0;
		}
	}
}

static void listener_unlock(struct listener *l)
{
	char name[LISTENER_PATH + 8];

	if (l->lock_fd < 0)
		return;
	listener_lock_path(l->path, name);
	if (lock_is_in_place(l->lock_fd, name))
		(void)unlink(name);
	close(steal_fd(&l->lock_fd));
}

/* ---- a path of our own: the socket ---- */

static bool listener_address(const char *path, struct sockaddr_un *ret_addr)
{
	size_t n = strlen(path);

	*ret_addr = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (n >= sizeof(ret_addr->sun_path))
		return false;
	memcpy(ret_addr->sun_path, path, n);
	return true;
}

/* Whether somebody listens there.  A full queue (EAGAIN) is somebody. */
static bool listener_is_served(const struct sockaddr_un *addr)
{
	_cleanup_(close_p) int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	return fd < 0 || connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0 || errno != ECONNREFUSED;
}

/* What stands in the way is removed only if it is the dead socket of a predecessor. */
static int listener_clear(const char *path, const struct sockaddr_un *addr)
{
	struct stat st;

	if (lstat(path, &st) != 0) {
		if (errno == ENOENT)
			return 0;
		log_error("daemon.socket: %s: %s", path, strerror(errno));
		return LISTENER_E_REFUSED;
	}
	if (!S_ISSOCK(st.st_mode)) {
		log_error("daemon.socket: %s is there and is no socket; it is left alone", path);
		return LISTENER_E_REFUSED;
	}
	if (st.st_uid != geteuid()) {
		log_error("daemon.socket: %s is a socket of uid %u; it is left alone", path, st.st_uid);
		return LISTENER_E_REFUSED;
	}
	if (listener_is_served(addr)) {
		log_error("daemon.socket: another server listens on %s", path);
		return LISTENER_E_REFUSED;
	}
	if (unlink(path) != 0 && errno != ENOENT)
		return error_origin(-errno);
	log_info("removed the dead socket of an earlier daemon, %s", path);
	return 0;
}

static int listener_find_group(const char *name, gid_t *ret_gid)
{
	struct group *group;

	*ret_gid = (gid_t)-1;
	if (!name[0])
		return 0;
	group = getgrnam(name);
	if (!group) {
		log_error("daemon.socket_group: there is no group %s", name);
		return LISTENER_E_CONFIG;
	}
	*ret_gid = group->gr_gid;
	return 0;
}

/* bind() gives the file the mode that the socket's own inode has, less the umask. */
static int listener_bind(int fd, const struct sockaddr_un *addr, mode_t mode)
{
	mode_t before;
	int r;

	if (fchmod(fd, mode) != 0)
		return error_origin(-errno);
	before = umask(0);
	r = bind(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0 ? 0 : -errno;
	umask(before);
	if (r < 0) {
		log_error("daemon.socket: %s cannot be made: %s", addr->sun_path, strerror(-r));
		return LISTENER_E_REFUSED;
	}
	return 0;
}

static void listener_remove(struct listener *l)
{
	struct stat st;

	if (l->ino != 0 && lstat(l->path, &st) == 0 && S_ISSOCK(st.st_mode) && st.st_dev == l->dev && st.st_ino == l->ino)
		(void)unlink(l->path);
	l->ino = 0;
}

/* The file is ours from here on. */
static int listener_own(struct listener *l, const char *path, const char *group, gid_t gid)
{
	struct stat st;

	if (lstat(path, &st) != 0 || !S_ISSOCK(st.st_mode))
		return error_origin(-ESTALE); /* somebody has replaced it already */
	l->dev = st.st_dev;
	l->ino = st.st_ino;
	if (gid != (gid_t)-1 && lchown(path, (uid_t)-1, gid) != 0) {
		log_error("daemon.socket_group: the socket cannot be given to %s: %s", group, strerror(errno));
		return LISTENER_E_CONFIG;
	}
	return 0;
}

static int listener_make(struct listener *l, const struct listener_config *config, const struct sockaddr_un *addr, gid_t gid)
{
	_cleanup_(close_p) int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int r;

	if (fd < 0)
		return error_origin(-errno);
	r = listener_clear(config->path, addr);
	if (r == 0)
		r = listener_bind(fd, addr, config->mode);
	if (r == 0)
		r = listener_own(l, config->path, config->group, gid);
	if (r == 0 && listen(fd, BACKLOG) != 0)
		r = error_origin(-errno);
	if (r == 0)
		l->sockets[l->n++].fd = steal_fd(&fd);
	return r;
}

static void listener_make_directory(struct listener *l, const char *path)
{
	char dir[LISTENER_PATH];
	char *slash;

	snprintf(dir, sizeof(dir), "%s", path);
	slash = strrchr(dir, '/');
	if (!slash || slash == dir)
		return;
	*slash = '\0';
	l->made_directory = mkdir(dir, 0755) == 0; /* if not, making the lock says why */
}

static void listener_remove_directory(struct listener *l)
{
	char *slash = strrchr(l->path, '/');

	if (!l->made_directory || !slash)
		return;
	*slash = '\0';
	(void)rmdir(l->path);
	l->made_directory = false;
}

static int listener_open_path(struct listener *l, const struct listener_config *config)
{
	struct sockaddr_un addr;
	gid_t gid;
	int r;

	if (!listener_address(config->path, &addr)) {
		log_error("daemon.socket: %s is too long for a socket", config->path);
		return LISTENER_E_CONFIG;
	}
	r = listener_find_group(config->group, &gid);
	if (r != 0)
		return r;
	strcpy(l->path, config->path);
	if (config->make_directory)
		listener_make_directory(l, config->path);
	r = listener_lock(l, config->path);
	if (r == 0)
		r = listener_make(l, config, &addr, gid);
	return r;
}

/* ---- sockets of systemd ---- */

static int listener_inherit(struct listener *l, unsigned n)
{
	struct sockaddr_un addr = { .sun_family = AF_UNSPEC };
	socklen_t len = sizeof(addr);

	l->inherited = true;
	if (n > LISTENER_MAX) {
		log_error("%u sockets were handed over, at most %u are served", n, LISTENER_MAX);
		return LISTENER_E_REFUSED;
	}
	for (unsigned i = 0; i < n; i++) {
		int fd = SD_LISTEN_FDS_START + (int)i;

		if (sd_is_socket_unix(fd, SOCK_STREAM, 1, NULL, 0) <= 0) {
			log_error("descriptor %d was handed over and is no listening stream socket of the Unix family", fd);
			return LISTENER_E_REFUSED;
		}
		l->sockets[l->n++].fd = fd;
	}
	if (getsockname(l->sockets[0].fd, (struct sockaddr *)&addr, &len) == 0 && addr.sun_path[0] == '/')
		snprintf(l->path, sizeof(l->path), "%.*s", (int)sizeof(addr.sun_path) - 1, addr.sun_path);
	else
		strcpy(l->path, "(handed over)");
	return 0;
}

/* ---- descriptors ---- */

static int spare_open(void)
{
	return open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static int listener_fd_limit(void)
{
	struct rlimit limit;
	rlim_t kept = FDS_KEPT;

	if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur > INT32_MAX)
		return INT32_MAX;
	if (kept > limit.rlim_cur / 4)
		kept = limit.rlim_cur / 4;
	return (int)(limit.rlim_cur - kept);
}

static void listener_on_pause(struct loop_timer *t)
{
	struct listener *l = container_of(t, struct listener, pause);

	for (unsigned i = 0; i < l->n; i++)
		loop_watch_set(&l->sockets[i].watch, LOOP_READABLE);
}

/* Whoever waits, waits: without this a queue that we cannot empty would keep us awake. */
static void listener_pause(struct listener *l)
{
	for (unsigned i = 0; i < l->n; i++)
		loop_watch_set(&l->sockets[i].watch, 0);
	loop_timer_start(&l->pause, PAUSE_NS, 0, listener_on_pause);
}

static void listener_say_short(struct listener *l)
{
	if (!l->short_of_fds)
		log_warn("no descriptors left for new clients: they are refused until some have gone (see LimitNOFILE)");
	l->short_of_fds = true;
}

static void listener_refuse(struct listener *l, int fd)
{
	listener_say_short(l);
	sessions_refuse(l->sessions, fd, REPLY_BUSY, "the daemon has no descriptors left for another client");
}

/* None is left at all: the spare one makes room for one peer, who is told and closed. */
static void listener_refuse_with_spare(struct listener *l, int listen_fd)
{
	int fd;

	if (l->spare_fd < 0) {
		listener_say_short(l);
		l->spare_fd = spare_open();
		return;
	}
	close(steal_fd(&l->spare_fd));
	fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd >= 0)
		listener_refuse(l, fd);
	l->spare_fd = spare_open();
}

/* ---- accepting ---- */

static void listener_on_event(struct loop_watch *w, unsigned events)
{
	struct listener_socket *s = container_of(w, struct listener_socket, watch);
	struct listener *l = s->listener;

	thread_assert(THREAD_LOOP);
	(void)events;
	for (unsigned i = 0; i < ACCEPTS_PER_TURN; i++) {
		int fd = accept4(s->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd >= l->fd_limit) {
			listener_refuse(l, fd);
			listener_pause(l);
			return;
		}
		if (fd >= 0) {
			l->short_of_fds = false;
			sessions_adopt(l->sessions, fd);
			continue;
		}
		switch (errno) {
		case EAGAIN:
			return;
		case EMFILE:
		case ENFILE:
			listener_refuse_with_spare(l, s->fd);
			listener_pause(l);
			return;
		case EINTR:
		case ECONNABORTED:
		case EPERM: /* a firewall's */
			continue;
		default: /* out of memory, most likely */
			log_warn("a client cannot be accepted: %s", strerror(errno));
			listener_pause(l);
			return;
		}
	}
}

/* ---- life ---- */

int listener_open(struct listener *l, const struct listener_config *config)
{
	int n, r;

	assert(config->path && config->group);
	*l = (struct listener){ .lock_fd = -1, .spare_fd = -1 };
	for (unsigned i = 0; i < LISTENER_MAX; i++)
		l->sockets[i] = (struct listener_socket){ .listener = l, .fd = -1 };
	n = sd_listen_fds(1);
	if (n < 0)
		return error_origin(n);
	r = n > 0 ? listener_inherit(l, (unsigned)n) : listener_open_path(l, config);
	if (r == 0) {
		l->spare_fd = spare_open();
		if (l->spare_fd < 0)
			r = error_origin(-errno);
	}
	if (r != 0)
		listener_close(l);
	return r;
}

int listener_start(struct listener *l, struct loop *loop, struct sessions *sessions)
{
	int r = 0;

	thread_assert(THREAD_LOOP);
	assert(l->n > 0 && !l->loop);
	l->loop = loop;
	l->sessions = sessions;
	l->fd_limit = listener_fd_limit();
	loop_timer_init(loop, &l->pause);
	for (unsigned i = 0; i < l->n && r == 0; i++) {
		r = loop_watch_start(loop, &l->sockets[i].watch, l->sockets[i].fd, LOOP_READABLE, listener_on_event);
		if (r < 0) {
			/* The rest has no watcher that would have to be closed. */
			while (l->n > i)
				close(steal_fd(&l->sockets[--l->n].fd));
		}
	}
	if (r < 0)
		listener_close(l);
	return error_trace(r);
}

void listener_close(struct listener *l)
{
	if (l->loop)
		loop_timer_close(&l->pause, NULL);
	for (unsigned i = 0; i < l->n; i++) {
		if (l->loop)
			loop_watch_close(&l->sockets[i].watch, NULL);
		close(steal_fd(&l->sockets[i].fd));
	}
	l->n = 0;
	l->loop = NULL;
	listener_remove(l);
	listener_unlock(l);
	listener_remove_directory(l);
	close_p(&l->spare_fd);
	l->spare_fd = -1;
}
