/* SPDX-License-Identifier: Apache-2.0 */
/* Owns sessions, the holders they have in the store, and the per-uid counts.
 *
 * Life of a session
 *   0 none      1 FRESH   connected; only hello is served      2 OPEN    said hello
 *   3 ZOMBIE    the connection is gone, slots of it are in quarantine, its process may still write them
 *   4 BURIED    owns nothing; freed when the loop has given back all its memory
 *
 * 0->1   session_new (sessions_adopt)       1->2  session_open (hello)
 * 12->3  session_end: a holder_close() said QUARANTINE          12->4  session_end: none did
 * 3->4   the pidfd fires; without a pidfd after zombie_ns; sessions_close         4->0  session_try_free
 *
 * Who acts when a client dies, in this order: conn (EOF, or the pidfd through conn_hangup: requests that arrived still
 * count) -> session_end -> holder_close of each namespace -> session_bury -> quota given back.
 *
 * Invariant: a session's quota outlives its holders.  A session is never freed from inside a callback of its connection.
 */
#include "server/session.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/thread.h"
#include "server/dispatch.h"
#include "server/later.h"

#define REFUSAL_LOG_NS UINT64_C(1000000000)

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5 */
#endif

static const struct sm_state session_states[] = {
	[SESSION_FRESH] = { "fresh", TO(SESSION_OPEN) | TO(SESSION_ZOMBIE) | TO(SESSION_BURIED), false },
	[SESSION_OPEN] = { "open", TO(SESSION_ZOMBIE) | TO(SESSION_BURIED), false },
	[SESSION_ZOMBIE] = { "zombie", TO(SESSION_BURIED), false },
	[SESSION_BURIED] = { "buried", 0, true },
};

static bool session_invariant(const struct sm *sm, int prev)
{
	const struct session *s = container_of(sm, struct session, sm);

	(void)prev;
	return sm->state != SESSION_BURIED || s->n_holders == 0;
}

/* ---- uids ---- */

static struct user *user_get(struct sessions *ss, uint32_t uid)
{
	struct user *u;

	list_for_each(it, &ss->users) {
		u = container_of(it, struct user, link);
		if (u->uid == uid)
			return u;
	}
	u = calloc(1, sizeof(*u));
	if (!u)
		return NULL;
	u->uid = uid;
	u->quota.limit[QUOTA_SLOTS] = ss->config.slots_per_uid;
	u->quota.limit[QUOTA_HOLDS] = ss->config.holds_per_uid;
	u->quota.limit[QUOTA_SESSIONS] = ss->config.max_per_uid;
	list_add_tail(&ss->users, &u->link);
	return u;
}

static void user_put(struct user *u)
{
	if (u->n_sessions > 0)
		return;
	for (int k = 0; k < QUOTA_N; k++)
		assert(u->quota.used[k] == 0);
	list_del(&u->link);
	free(u);
}

/* ---- the end ---- */

static void session_try_free(struct session *s)
{
	if (s->sm.state != SESSION_BURIED || s->has_conn || s->closing > 0)
		return;
	s->sessions->n_all--;
	list_del(&s->link);
	free(s);
}

static void session_on_watch_closed(struct loop_watch *w)
{
	struct session *s = container_of(w, struct session, pid_watch);

	s->closing--;
	session_try_free(s);
}

static void session_on_grave_closed(struct loop_timer *t)
{
	struct session *s = container_of(t, struct session, grave);

	s->closing--;
	session_try_free(s);
}

/* Nothing is left of it but memory. */
static void session_bury(struct session *s)
{
	if (s->sm.state == SESSION_ZOMBIE)
		s->sessions->n_zombies--;
	sm_move(&s->sm, SESSION_BURIED);
	quota_return(&s->quota, QUOTA_SESSIONS, 1);
	for (int k = 0; k < QUOTA_N; k++)
		assert(s->quota.session.used[k] == 0);
	s->user->n_sessions--;
	user_put(s->user);
	s->user = NULL;
	s->quota.uid = NULL;
	loop_deferred_cancel(&s->eviction);
	s->closing = 1;
	loop_timer_close(&s->grave, session_on_grave_closed);
	if (s->has_watch) {
		s->closing++;
		loop_watch_close(&s->pid_watch, session_on_watch_closed);
	}
	if (s->pidfd >= 0)
		close(steal_fd(&s->pidfd));
}

static bool pidfd_is_dead(int pidfd)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };

	return pidfd >= 0 && poll(&p, 1, 0) == 1 && (p.revents & POLLIN);
}

/* The process is gone: what waited for that is free. */
static void session_process_died(struct session *s)
{
	assert(s->sm.state == SESSION_ZOMBIE);
	for (uint32_t i = 0; i < s->n_holders; i++)
		if (s->holders[i])
			holder_dead(s->holders[i]);
	s->n_holders = 0;
	session_bury(s);
}

static void session_on_grave(struct loop_timer *t)
{
	struct session *s = container_of(t, struct session, grave);

	log_warn("session %" PRIu64 " (%s, pid %d): no way to learn that it is dead; its slots are free after waiting",
	         s->id, s->name, (int)s->pid);
	session_process_died(s);
}

void session_end(struct session *s, const char *why)
{
	uint32_t kept = 0;

	thread_assert(THREAD_LOOP);
	assert(s->sm.state == SESSION_FRESH || s->sm.state == SESSION_OPEN);
	loop_deferred_cancel(&s->eviction);
	later_cancel_all(s);
	s->dead = s->dead || pidfd_is_dead(s->pidfd);
	for (uint32_t i = 0; i < s->n_holders; i++) {
		if (s->holders[i] && holder_close(s->holders[i], s->dead) == STORE_E_QUARANTINE) {
			assert(!s->dead);
			s->holders[kept++] = s->holders[i];
		}
	}
	s->n_holders = kept;
	s->sessions->n--;
	metrics_add(METRIC_sessions_closed, 1);
	metrics_set(METRIC_sessions, s->sessions->n);
	if (why)
		log_info("session %" PRIu64 " (%s, pid %d, uid %u) closed: %s", s->id, s->name, (int)s->pid, s->uid, why);
	else
		log_debug("session %" PRIu64 " (%s, pid %d, uid %u) left", s->id, s->name, (int)s->pid, s->uid);
	if (kept == 0) {
		session_bury(s);
		return;
	}
	sm_move(&s->sm, SESSION_ZOMBIE);
	s->sessions->n_zombies++;
	if (!s->has_watch)
		loop_timer_start(&s->grave, s->sessions->config.zombie_ns, 0, session_on_grave);
}

static void session_on_pidfd(struct loop_watch *w, unsigned events)
{
	struct session *s = container_of(w, struct session, pid_watch);

	(void)events;
	loop_watch_set(w, 0); /* it stays readable for ever */
	s->dead = true;
	if (s->sm.state == SESSION_ZOMBIE)
		session_process_died(s);
	else if (s->sm.state != SESSION_BURIED && s->has_conn)
		conn_hangup(&s->conn); /* a child may still have the socket open: we do not wait for it */
}

/* ---- connection ---- */

static int session_on_frame(struct conn *c, const struct wire_frame *frame)
{
	struct session *s = container_of(c, struct session, conn);
	int r = dispatch_frame(s->sessions->service, s, frame, loop_now_ns(s->sessions->loop), &c->out);

	if (r == DISPATCH_E_LAST) {
		metrics_add(METRIC_sessions_evicted, 1);
		return CONN_E_LAST;
	}
	return r;
}

static void session_on_bad(struct conn *c, const char *reason)
{
	struct session *s = container_of(c, struct session, conn);

	metrics_add(METRIC_sessions_evicted, 1);
	dispatch_refuse(s->sessions->service, REPLY_PROTO, reason, &c->out);
}

static void session_on_gone(struct conn *c, const char *why)
{
	session_end(container_of(c, struct session, conn), why);
}

static void session_on_conn_closed(struct conn *c)
{
	struct session *s = container_of(c, struct session, conn);

	s->has_conn = false;
	session_try_free(s);
}

static const struct conn_ops session_conn_ops = {
	.on_frame = session_on_frame,
	.on_bad = session_on_bad,
	.on_gone = session_on_gone,
	.on_closed = session_on_conn_closed,
};

/* ---- birth ---- */

int session_new(struct sessions *ss, uint32_t uid, pid_t pid, struct session **ret_session)
{
	struct session *s;
	struct user *u;

	thread_assert(THREAD_LOOP);
	/* Zombies count too: their memory does. */
	if (ss->n + ss->n_zombies >= ss->config.max_sessions)
		return REPLY_LIMIT;
	s = calloc(1, sizeof(*s));
	if (!s)
		return error_origin(-ENOMEM);
	u = user_get(ss, uid);
	if (!u) {
		free(s);
		return error_origin(-ENOMEM);
	}
	s->quota = (struct quota_user){ .uid = &u->quota, .pin_limit = ss->config.pins_per_session };
	s->quota.session.limit[QUOTA_SLOTS] = ss->config.slots_per_session;
	s->quota.session.limit[QUOTA_HOLDS] = ss->config.holds_per_session;
	s->quota.session.limit[QUOTA_SESSIONS] = 1;
	if (quota_charge(&s->quota, QUOTA_SESSIONS, 1) != 0) {
		free(s);
		user_put(u);
		return REPLY_LIMIT;
	}
	u->n_sessions++;
	s->user = u;
	s->sessions = ss;
	s->id = ++ss->last_id;
	s->uid = uid;
	s->pid = pid;
	s->pidfd = -1;
	s->since_ns = loop_now_ns(ss->loop);
	strcpy(s->name, "?");
	sm_init(&s->sm, session_states, SESSION_FRESH, session_invariant);
	loop_timer_init(ss->loop, &s->grave);
	loop_deferred_init(&s->eviction);
	list_init(&s->laters);
	list_add_tail(&ss->all, &s->link);
	ss->n_all++;
	ss->n++;
	metrics_add(METRIC_sessions_accepted, 1);
	metrics_set(METRIC_sessions, ss->n);
	*ret_session = s;
	return 0;
}

/* A descriptor of the peer's process.  SO_PEERPIDFD names the very process that connected; pidfd_open() could name another one
 * that got its number since, which then only makes us wait longer. */
static void session_watch_process(struct session *s, int fd)
{
	socklen_t len = sizeof(s->pidfd);
	int r;

	if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &s->pidfd, &len) != 0)
		s->pidfd = (int)syscall(SYS_pidfd_open, s->pid, 0);
	if (s->pidfd < 0) {
		s->pidfd = -1;
		return;
	}
	r = loop_watch_start(s->sessions->loop, &s->pid_watch, s->pidfd, LOOP_READABLE, session_on_pidfd);
	if (r < 0) {
		close(steal_fd(&s->pidfd));
		return;
	}
	s->has_watch = true;
}

static bool sessions_allow(const struct sessions *ss, uint32_t uid)
{
	if (ss->config.n_allow_uids == 0 || uid == 0 || uid == geteuid())
		return true;
	for (uint32_t i = 0; i < ss->config.n_allow_uids; i++)
		if (ss->config.allow_uids[i] == uid)
			return true;
	return false;
}

/* One line each, but not more than one a second: who is refused tries again. */
static void sessions_log_refusal(struct sessions *ss, int fd, const char *reason)
{
	uint64_t now = loop_now_ns(ss->loop);
	struct ucred cred = { .pid = 0, .uid = UINT32_MAX };
	socklen_t len = sizeof(cred);

	if (ss->refusal_logged_ns != 0 && now - ss->refusal_logged_ns < REFUSAL_LOG_NS) {
		ss->n_unlogged++;
		return;
	}
	(void)getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len);
	if (ss->n_unlogged > 0)
		log_warn("%" PRIu64 " more clients were refused", ss->n_unlogged);
	log_warn("refused uid %u (pid %d): %s", cred.uid, (int)cred.pid, reason);
	ss->refusal_logged_ns = now;
	ss->n_unlogged = 0;
}

void sessions_refuse(struct sessions *ss, int fd, enum reply_code code, const char *reason)
{
	struct wire_out out;

	metrics_add(METRIC_sessions_refused, 1);
	sessions_log_refusal(ss, fd, reason);
	wire_out_init(&out, 4096);
	dispatch_refuse(ss->service, code, reason, &out);
	(void)wire_out_flush(&out, fd); /* a fresh socket takes that much; if not, the peer sees it closed */
	wire_out_deinit(&out);
	close(fd);
}

void sessions_adopt(struct sessions *ss, int fd)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);
	struct session *s;
	int r;

	thread_assert(THREAD_LOOP);
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) != 0) {
		sessions_refuse(ss, fd, REPLY_INTERNAL, "the kernel does not say who you are");
		return;
	}
	if (!sessions_allow(ss, cred.uid)) {
		sessions_refuse(ss, fd, REPLY_PERM, "your uid is not in daemon.allow_uids");
		return;
	}
	r = session_new(ss, cred.uid, cred.pid, &s);
	if (r != 0) {
		sessions_refuse(ss, fd, r > 0 ? (enum reply_code)r : REPLY_BUSY,
		                r > 0 ? "there are as many clients as may be: daemon.max_sessions, daemon.max_sessions_per_uid"
		                      : "the daemon is out of memory");
		return;
	}
	session_watch_process(s, fd);
	r = conn_init(&s->conn, ss->loop, fd, &ss->config.conn, &session_conn_ops);
	if (r < 0)
		session_end(s, "cannot be watched");
	else
		s->has_conn = true;
}

/* ---- what handlers ask ---- */

void session_open(struct session *s, const char *name)
{
	size_t n = 0;

	assert(strlen(name) < SESSION_NAME_MAX);
	for (; name[n]; n++)
		s->name[n] = name[n] >= ' ' && name[n] <= '~' ? name[n] : '?';
	s->name[n] = '\0';
	sm_move(&s->sm, SESSION_OPEN);
	log_debug("session %" PRIu64 " is %s, pid %d, uid %u", s->id, s->name, (int)s->pid, s->uid);
}

void session_count(struct session *s, bool failed)
{
	s->requests++;
	s->errors += failed;
}

struct holder *session_holder(const struct session *s, uint32_t number)
{
	return number < s->n_holders ? s->holders[number] : NULL;
}

/* The first number that nobody has; one whose device was lost is nobody's. */
static uint32_t session_free_number(const struct session *s)
{
	uint32_t i = 0;

	while (i < s->n_holders && s->holders[i])
		i++;
	return i;
}

bool session_has_room(const struct session *s)
{
	return session_free_number(s) < SESSION_MAX_NAMESPACES;
}

uint32_t session_add_holder(struct session *s, struct holder *h)
{
	uint32_t i = session_free_number(s);

	assert(s->sm.state == SESSION_OPEN && session_has_room(s));
	s->holders[i] = h;
	s->n_holders += i == s->n_holders;
	return i;
}

/* ---- all of them ---- */

static void session_on_eviction(struct loop_deferred *d)
{
	struct session *s = container_of(d, struct session, eviction);

	metrics_add(METRIC_sessions_evicted, 1);
	conn_close(&s->conn, "holds more pins than it may");
}

/* The store is in the middle of something, perhaps of a request of this very session: not now. */
static void sessions_on_pins(void *ctx, void *owner, uint64_t pins)
{
	struct sessions *ss = ctx;
	struct session *s = owner;

	if ((s->sm.state != SESSION_FRESH && s->sm.state != SESSION_OPEN) || !s->has_conn)
		return;
	log_warn("session %" PRIu64 " (%s, pid %d) has %" PRIu64 " pins, %" PRIu64 " are allowed: disconnecting it",
	         s->id, s->name, (int)s->pid, pins, s->quota.pin_limit);
	loop_defer(ss->loop, &s->eviction, session_on_eviction);
}

/* The rest of the session goes on. */
static void sessions_on_lost(void *ctx, void *owner, struct holder *h)
{
	struct session *s = owner;

	(void)ctx;
	for (uint32_t i = 0; i < s->n_holders; i++)
		if (s->holders[i] == h)
			s->holders[i] = NULL;
	(void)holder_close(h, true);
}

void sessions_init(struct sessions *ss, struct loop *loop, struct service *service, const struct sessions_config *config)
{
	*ss = (struct sessions){ .loop = loop, .service = service, .config = *config };
	list_init(&ss->all);
	list_init(&ss->users);
	service->sessions = ss;
	store_on_pins(service->store, sessions_on_pins, ss);
	store_on_lost(service->store, sessions_on_lost, ss);
}

void sessions_deinit(struct sessions *ss)
{
	assert(list_empty(&ss->all) && list_empty(&ss->users));
	assert(ss->n == 0 && ss->n_zombies == 0 && ss->n_all == 0);
}

void sessions_configure(struct sessions *ss, const struct sessions_config *config)
{
	ss->config = *config;
	list_for_each(it, &ss->users) {
		struct user *u = container_of(it, struct user, link);

		u->quota.limit[QUOTA_SLOTS] = config->slots_per_uid;
		u->quota.limit[QUOTA_HOLDS] = config->holds_per_uid;
		u->quota.limit[QUOTA_SESSIONS] = config->max_per_uid;
	}
}

void sessions_drain(struct sessions *ss)
{
	list_for_each(it, &ss->all) {
		struct session *s = container_of(it, struct session, link);

		if (s->has_conn)
			conn_drain(&s->conn, NULL);
	}
}

void sessions_close(struct sessions *ss)
{
	/* Nothing is freed inline: sessions go when the loop has given their memory back. */
	list_for_each(it, &ss->all) {
		struct session *s = container_of(it, struct session, link);

		s->dead = true;
		if (s->sm.state == SESSION_ZOMBIE)
			session_process_died(s);
		else if (s->has_conn)
			conn_close(&s->conn, NULL);
		else if (s->sm.state != SESSION_BURIED)
			session_end(s, NULL);
	}
}
