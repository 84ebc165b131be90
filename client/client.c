/* SPDX-License-Identifier: Apache-2.0 */
/* A session's life, its texts and counters, and what a host loop needs.
 *
 * Owns struct kvbm from open to close.  Knows no message: join.c and call.c do.
 */
#include "client/client.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_TIMEOUT_MS 5000

uint64_t kvbm__now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

int kvbm__fail(struct kvbm *k, int code, const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	vsnprintf(k->error, sizeof(k->error), format, ap);
	va_end(ap);
	return -code;
}

/* ---- open ---- */

static int open_socket_path(struct kvbm *k, const char *path)
{
	static const char *const names[] = { "RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR" };
	const char *dir = "/run/kvbmd";
	size_t length;
	int n;

	if (!path)
		path = getenv("KVBM_SOCKET");
	if (path && *path) {
		n = snprintf(k->socket, sizeof(k->socket), "%s", path);
	} else {
		for (unsigned i = 2; i-- > 0;)
			if (getenv(names[i]) && *getenv(names[i]))
				dir = getenv(names[i]);
		length = strcspn(dir, ":"); /* RUNTIME_DIRECTORY may list several */
		n = snprintf(k->socket, sizeof(k->socket), "%.*s/kvbmd.sock", (int)length, dir);
	}
	if (n < 0 || (size_t)n >= sizeof(k->socket)) {
		errno = ENAMETOOLONG;
		return -KVBM_E_SYS;
	}
	return 0;
}

/* A page that a forked child finds zeroed: one load tells whose handle this is, where getpid() would be a system call. */
static int open_here(struct kvbm *k)
{
	long size = sysconf(_SC_PAGESIZE);
	void *page = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (page == MAP_FAILED)
		return -KVBM_E_NOMEM;
	if (madvise(page, (size_t)size, MADV_WIPEONFORK) != 0) {
		munmap(page, (size_t)size);
		return -KVBM_E_SYS;
	}
	k->here = page;
	*k->here = 1;
	return 0;
}

static int open_init(struct kvbm *k, const struct kvbm_options *o)
{
	int r = open_socket_path(k, o->socket);

	k->fd = k->poll_fd = -1;
	wire_in_init(&k->in);
	wire_out_init(&k->out, 2 * WIRE_MAX_FRAME);
	k->timeout_ms = o->timeout_ms > 0 ? o->timeout_ms : DEFAULT_TIMEOUT_MS;
	k->flags = o->flags;
	snprintf(k->name, sizeof(k->name), "%s", o->name && *o->name ? o->name : program_invocation_short_name);
	if (r == 0)
		r = open_here(k);
	if (r < 0)
		return r;
	k->slots = malloc(KVBM_MAX_KEYS * sizeof(*k->slots));
	k->generations = malloc(KVBM_MAX_KEYS * sizeof(*k->generations));
	if (!k->slots || !k->generations)
		return -KVBM_E_NOMEM;
	k->poll_fd = epoll_create1(EPOLL_CLOEXEC);
	return k->poll_fd < 0 ? -KVBM_E_SYS : 0;
}

int kvbm_open(const struct kvbm_options *options, struct kvbm **ret_kvbm)
{
	static const struct kvbm_options none;
	struct kvbm *k = calloc(1, sizeof(*k));
	int r, saved;

	if (!options)
		options = &none;
	if (!k)
		return -KVBM_E_NOMEM;
	if (options->flags & ~KVBM_OPEN_BY_SOCKET) {
		free(k);
		return -KVBM_E_INVAL;
	}
	pthread_mutex_init(&k->lock, NULL);
	r = open_init(k, options);
	if (r == 0) {
		pthread_mutex_lock(&k->lock);
		r = kvbm__ready(k, kvbm__now_ns() + (uint64_t)k->timeout_ms * 1000000u);
		pthread_mutex_unlock(&k->lock);
	}
	if (r < 0) {
		saved = errno;
		kvbm_close(k);
		errno = saved;
		return r;
	}
	*ret_kvbm = k;
	return 0;
}

/* ---- close ---- */

/* In a forked child the mappings are not there (MADV_DONTFORK): only what the heap holds is freed. */
static void close_namespaces(struct kvbm *k, bool forked)
{
	for (unsigned i = 0; i < k->n_ns; i++) {
		struct kvbm_ns *ns = k->ns[i];

		kvbm__adoptions_free(ns, forked);
		if (!forked) {
			kvbm__view_free(ns->view);
			while (ns->retired) {
				struct view *v = ns->retired;

				ns->retired = v->next;
				kvbm__view_free(v);
			}
			pthread_mutex_destroy(&ns->lock);
		}
		free(ns);
	}
}

void kvbm_close(struct kvbm *k)
{
	bool forked;

	if (!k)
		return;
	forked = k->here && kvbm__is_forked(k);
	if (!forked && k->fd >= 0)
		(void)wire_out_flush(&k->out, k->fd);
	close_namespaces(k, forked);
	if (!forked)
		kvbm__life_put(k->life);
	if (k->fd >= 0 && !forked)
		(void)shutdown(k->fd, SHUT_RDWR); /* a forked child's copy would keep the session */
	if (k->fd >= 0)
		close(k->fd);
	if (k->poll_fd >= 0)
		close(k->poll_fd);
	kvbm__answer_drop(&k->answer);
	wire_in_deinit(&k->in);
	wire_out_deinit(&k->out);
	if (k->here)
		munmap(k->here, (size_t)sysconf(_SC_PAGESIZE));
	if (!forked)
		pthread_mutex_destroy(&k->lock);
	free(k->slots);
	free(k->generations);
	free(k);
}

/* ---- the host loop ---- */

int kvbm_get_fd(struct kvbm *k)
{
	return k->poll_fd;
}

int kvbm_dispatch(struct kvbm *k)
{
	int r;

	if (kvbm__is_forked(k))
		return -KVBM_E_FORKED;
	pthread_mutex_lock(&k->lock);
	r = kvbm__progress(k, true);
	pthread_mutex_unlock(&k->lock);
	return r;
}

/* ---- texts and counters ---- */

const char *kvbm_strerror(int error)
{
	static const char *const texts[KVBM_E_MAX] = {
		[0] = "done",
		[KVBM_E_INVAL] = "an argument is wrong",
		[KVBM_E_VERSION] = "daemon and library speak different protocol versions",
		[KVBM_E_PERM] = "not allowed",
		[KVBM_E_NOENT] = "no such namespace or block",
		[KVBM_E_MISMATCH] = "the namespace exists with another fingerprint",
		[KVBM_E_LIMIT] = "a limit of this session or uid",
		[KVBM_E_NOSPACE] = "not enough free and droppable memory",
		[KVBM_E_BUSY] = "not now, worth asking again",
		[KVBM_E_STALE] = "the slot is no longer the caller's",
		[KVBM_E_NOTHELD] = "not held by this session",
		[KVBM_E_TIMEOUT] = "the deadline passed",
		[KVBM_E_GONE] = "the daemon is not there",
		[KVBM_E_PROTO] = "the protocol was broken",
		[KVBM_E_INTERNAL] = "a fault inside the daemon",
		[KVBM_E_NOMEM] = "out of memory",
		[KVBM_E_FORKED] = "this handle belongs to the parent process",
		[KVBM_E_SYS] = "a system call failed",
	};

	if (error < 0)
		error = error == INT32_MIN ? INT32_MAX : -error;
	return error < KVBM_E_MAX ? texts[error] : "unknown error";
}

const char *kvbm_error(const struct kvbm *k)
{
	return k && k->here && kvbm__is_forked(k) ? kvbm_strerror(KVBM_E_FORKED) : k ? k->error : "no session";
}

void kvbm_get_counters(struct kvbm *k, struct kvbm_counters *ret)
{
	if (kvbm__is_forked(k)) {
		memset(ret, 0, sizeof(*ret));
		return;
	}
	pthread_mutex_lock(&k->lock);
	*ret = k->counters;
	ret->boot_id = k->life ? k->life->boot_id : 0;
	for (unsigned i = 0; i < k->n_ns; i++) {
		pthread_mutex_lock(&k->ns[i]->lock);
		ret->looked_up += k->ns[i]->counters.looked_up;
		ret->hits += k->ns[i]->counters.hits;
		ret->misses += k->ns[i]->counters.misses;
		pthread_mutex_unlock(&k->ns[i]->lock);
	}
	pthread_mutex_unlock(&k->lock);
}

uint64_t kvbm_lane_bytes(const struct kvbm_ns *ns)
{
	return ns->lane_bytes;
}

uint32_t kvbm_ns_lanes(const struct kvbm_ns *ns)
{
	return ns->lanes;
}

uint32_t kvbm_ns_key_bytes(const struct kvbm_ns *ns)
{
	return ns->key_bytes;
}

void kvbm_fingerprint(const struct kvbm_ns *ns, uint8_t ret_fingerprint[16])
{
	memcpy(ret_fingerprint, ns->fingerprint, 16);
}
