/* SPDX-License-Identifier: Apache-2.0 */
/* Getting to the daemon, and to it again after it went away.
 *
 *   DOWN     no connection         JOINING  hello and an attach for each namespace are under way       UP  all are answered
 *
 *   DOWN -> JOINING  join_start         JOINING -> UP  kvbm__joined, the last reply        any -> DOWN  kvbm__down
 *
 * Nothing here waits but kvbm__ready(): a match that finds the daemon gone takes a step and goes on with no hits.  All requests of
 * a join are sent at once, so that it costs one round trip.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "client/client.h"

#include <kvbm_version.h>

/* ---- the life page ---- */

static struct life *life_new(int fd, uint64_t boot_id)
{
	struct life *life;
	struct stat st;
	void *page;

	if (fd < 0 || fstat(fd, &st) != 0 || st.st_size < (off_t)sizeof(struct shm_life))
		return NULL;
	page = mmap(NULL, sizeof(struct shm_life), PROT_READ, MAP_SHARED, fd, 0);
	if (page == MAP_FAILED)
		return NULL;
	(void)madvise(page, sizeof(struct shm_life), MADV_DONTFORK);
	life = calloc(1, sizeof(*life));
	if (!life || ((struct shm_life *)page)->magic != SHM_MAGIC || ((struct shm_life *)page)->version != SHM_VERSION) {
		munmap(page, sizeof(struct shm_life));
		free(life);
		return NULL;
	}
	life->page = page;
	life->boot_id = boot_id;
	life->refs = 1;
	return life;
}

void kvbm__life_put(struct life *life)
{
	if (!life || --life->refs > 0)
		return;
	munmap((void *)life->page, sizeof(struct shm_life));
	free(life);
}

/* ---- down ---- */

int kvbm__down(struct kvbm *k, int code, const char *why)
{
	if (k->state == CLIENT_DOWN)
		return -code;
	if (k->state == CLIENT_JOINING || k->join_error == 0)
		k->join_error = code;
	k->state = CLIENT_DOWN;
	/* A forked child may have a copy: without these two it would keep the session and its place in the epoll. */
	(void)epoll_ctl(k->poll_fd, EPOLL_CTL_DEL, k->fd, NULL);
	(void)shutdown(k->fd, SHUT_RDWR);
	close(k->fd);
	k->fd = -1;
	wire_in_deinit(&k->in);
	wire_out_deinit(&k->out);
	kvbm__forget_pending(k);
	for (unsigned i = 0; i < k->n_ns; i++) {
		k->ns[i]->attaching = false;
		pthread_mutex_lock(&k->ns[i]->lock);
		kvbm__view_retire(k->ns[i]);
		pthread_mutex_unlock(&k->ns[i]->lock);
	}
	k->retry_ms = k->retry_ms ? k->retry_ms * 2 : CLIENT_RETRY_MIN_MS;
	if (k->retry_ms > CLIENT_RETRY_MAX_MS)
		k->retry_ms = CLIENT_RETRY_MAX_MS;
	k->retry_ns = kvbm__now_ns() + k->retry_ms * 1000000ull;
	return kvbm__fail(k, code, "%s", why && *why ? why : kvbm_strerror(code));
}

/* ---- joining ---- */

static int join_connect(struct kvbm *k)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct epoll_event event = { .events = EPOLLIN | EPOLLRDHUP };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), saved;

	if (fd < 0)
		return -KVBM_E_SYS;
	memcpy(address.sun_path, k->socket, sizeof(address.sun_path));
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0 ||
	    epoll_ctl(k->poll_fd, EPOLL_CTL_ADD, fd, &event) != 0) {
		saved = errno;
		close(fd);
		errno = saved;
		return -KVBM_E_SYS;
	}
	k->fd = fd;
	return 0;
}

void kvbm__model_message(const struct kvbm_ns *ns, Kvbm__AttachRequest *m)
{
	kvbm__attach_request__init(m);
	m->name = (char *)ns->model.name;
	m->model = (char *)ns->model.model;
	m->hash_algo = (char *)ns->model.hash_algo;
	m->salt = (char *)ns->model.salt;
	m->block_bytes = ns->model.block_bytes;
	m->num_layers = ns->model.num_layers;
	m->page_size = ns->model.page_size;
	m->inner_dim = ns->model.inner_dim;
	m->outer_dim = ns->model.outer_dim;
	m->dtype = (uint32_t)ns->model.dtype;
	m->layout = (uint32_t)ns->model.layout;
	m->lanes = ns->model.lanes;
	m->key_bytes = ns->model.key_bytes;
	m->flags = ns->model.flags;
	m->device = (char *)ns->model.device;
}

bool kvbm__is_lost(const struct kvbm_ns *ns)
{
	return *ns->model.device && (!ns->view || atomic_load_explicit(&ns->view->shm->closed, memory_order_relaxed));
}

void kvbm__attach_again(struct kvbm_ns *ns)
{
	struct pending p = { .kind = PENDING_ATTACH, .verb = KVBM__VERB__VERB_ATTACH, .ns = ns };
	Kvbm__AttachRequest attach;
	uint64_t id;

	if (ns->attaching)
		return;
	pthread_mutex_lock(&ns->lock);
	kvbm__view_retire(ns);
	pthread_mutex_unlock(&ns->lock);
	kvbm__model_message(ns, &attach);
	ns->attach_ns = kvbm__now_ns() + CLIENT_RETRY_MAX_MS * 1000000ull;
	ns->attaching = kvbm__post(ns->kvbm, &p, &attach.base, &id) == 0;
}

static int join_post(struct kvbm *k)
{
	Kvbm__HelloRequest hello = KVBM__HELLO_REQUEST__INIT;
	struct pending p = { .kind = PENDING_HELLO, .verb = KVBM__VERB__VERB_HELLO };
	uint64_t id;
	int r;

	hello.version_major = KVBM_PROTO_MAJOR;
	hello.version_minor = KVBM_PROTO_MINOR;
	hello.name = k->name;
	r = kvbm__post(k, &p, &hello.base, &id);
	for (unsigned i = 0; i < k->n_ns && r == 0; i++) {
		Kvbm__AttachRequest attach;

		p = (struct pending){ .kind = PENDING_ATTACH, .verb = KVBM__VERB__VERB_ATTACH, .ns = k->ns[i] };
		kvbm__model_message(k->ns[i], &attach);
		r = kvbm__post(k, &p, &attach.base, &id);
	}
	return r;
}

static int join_start(struct kvbm *k)
{
	int r = join_connect(k);

	if (r < 0) {
		int saved = errno;

		k->retry_ms = k->retry_ms ? k->retry_ms * 2 : CLIENT_RETRY_MIN_MS;
		if (k->retry_ms > CLIENT_RETRY_MAX_MS)
			k->retry_ms = CLIENT_RETRY_MAX_MS;
		k->retry_ns = kvbm__now_ns() + k->retry_ms * 1000000ull;
		kvbm__fail(k, KVBM_E_SYS, "%s: %s", k->socket, strerror(saved));
		errno = saved;
		return r;
	}
	k->state = CLIENT_JOINING;
	k->join_error = 0;
	k->join_left = 1 + k->n_ns;
	r = join_post(k);
	if (r < 0 && k->state != CLIENT_DOWN)
		r = kvbm__down(k, -r, "cannot say hello");
	return r;
}

static int joined_hello(struct kvbm *k, struct answer *a)
{
	struct life *life;
	int fd;

	if (a->reply->code != 0)
		return kvbm__down(k, a->reply->code < KVBM_E_MAX ? (int)a->reply->code : KVBM_E_PROTO, a->reply->error);
	if (!a->reply->hello || a->reply->hello->version_major != KVBM_PROTO_MAJOR)
		return kvbm__down(k, KVBM_E_VERSION, "the daemon's hello has another version");
	fd = kvbm__answer_take_fd(a, 0);
	life = life_new(fd, a->reply->boot_id);
	if (fd >= 0)
		close(fd);
	if (!life)
		return kvbm__down(k, KVBM_E_PROTO, "the daemon's life page is not one");
	if (k->life)
		k->counters.reconnects++;
	kvbm__life_put(k->life);
	k->life = life;
	return 0;
}

int kvbm__attached(struct kvbm_ns *ns, struct answer *a)
{
	struct kvbm *k = ns->kvbm;
	const char *why = "the daemon's answer to attach has no body";
	int fds[3];
	struct view *v = NULL;

	if (a->reply->attach && k->life) {
		for (unsigned i = 0; i < 3; i++)
			fds[i] = kvbm__answer_take_fd(a, i);
		v = kvbm__view_new(fds, a->reply->attach, k->life, &why);
	}
	if (!v)
		return kvbm__fail(k, KVBM_E_PROTO, "%s", why);
	pthread_mutex_lock(&ns->lock);
	ns->epochs = (ns->epochs + 1) & CLIENT_EPOCH_MASK;
	v->epoch = ns->epochs;
	v->tier = *ns->model.device ? KVBM_TIER_G1 : KVBM_TIER_G2;
	ns->view = v;
	ns->refused = 0;
	pthread_mutex_unlock(&ns->lock);
	return 0;
}

int kvbm__joined(struct kvbm *k, const struct pending *p, struct answer *a)
{
	int r = 0;

	if (p->ns)
		p->ns->attaching = false;
	if (p->kind == PENDING_HELLO) {
		r = joined_hello(k, a);
		if (r < 0)
			return r;
	} else if (a->reply->code != 0) {
		/* The others go on; calls on this one are told why. */
		p->ns->refused = a->reply->code < KVBM_E_MAX ? (int)a->reply->code : KVBM_E_PROTO;
		kvbm__fail(k, p->ns->refused, "attaching to %s again: %s", p->ns->name, a->reply->error);
	} else {
		r = kvbm__attached(p->ns, a);
		if (r < 0)
			return kvbm__down(k, -r, k->error);
	}
	if (k->state == CLIENT_JOINING && --k->join_left == 0) {
		k->state = CLIENT_UP;
		k->retry_ms = 0;
	}
	return 0;
}

/* ---- progress ---- */

int kvbm__progress(struct kvbm *k, bool may_connect)
{
	if (k->state == CLIENT_DOWN) {
		if (!may_connect || kvbm__now_ns() < k->retry_ns)
			return 0;
		if (join_start(k) < 0)
			return 0;
	}
	return kvbm__exchange(k);
}

int kvbm__ready(struct kvbm *k, uint64_t deadline_ns)
{
	bool first = k->life == NULL;
	int r;

	/* A daemon that went away is noticed here, and not by a request that then cannot be told to have been served. */
	if (k->state == CLIENT_UP && !shm_daemon_alive(k->life->page))
		kvbm__down(k, KVBM_E_GONE, "the daemon has ended");
	while (k->state != CLIENT_UP) {
		if (k->state == CLIENT_DOWN) {
			r = join_start(k);
			/* So many connect at this moment that the daemon's queue is full: a socket of its own has no event for that. */
			if (r == -KVBM_E_SYS && errno == EAGAIN && kvbm__now_ns() < deadline_ns) {
				(void)poll(NULL, 0, CLIENT_RETRY_MIN_MS);
				continue;
			}
			if (r < 0)
				return first || r != -KVBM_E_SYS ? r : -KVBM_E_GONE;
		}
		r = kvbm__exchange(k);
		if (r < 0)
			return k->join_error ? -k->join_error : r;
		if (k->state == CLIENT_UP)
			break;
		r = kvbm__wait(k, deadline_ns);
		if (r < 0)
			return kvbm__down(k, first ? KVBM_E_TIMEOUT : KVBM_E_GONE,
			                  "the daemon does not answer hello in time");
	}
	return 0;
}
