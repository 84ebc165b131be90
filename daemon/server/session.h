/* SPDX-License-Identifier: Apache-2.0 */
/* session.h: one connected client, what it holds, and all of them together.
 *
 * Loop thread.  Everything a session holds dies with it; slots that its process could still write wait until that process is
 * known to be dead.
 */
#ifndef KVBMD_SERVER_SESSION_H
#define KVBMD_SERVER_SESSION_H

#include <sys/types.h>

#include "base/list.h"
#include "base/sm.h"
#include "server/conn.h"
#include "server/service.h"

#define SESSION_MAX_NAMESPACES 64u
#define SESSION_NAME_MAX 64u

enum session_state { SESSION_FRESH, SESSION_OPEN, SESSION_ZOMBIE, SESSION_BURIED };

/* Sessions of one uid share its limits. */
struct user {
	struct list link;
	uint32_t uid;
	uint32_t n_sessions; /* zombies included */
	struct quota quota;
};

struct session {
	struct list link;          /* in sessions->all */
	struct sessions *sessions; /* borrows */
	struct sm sm;              /* enum session_state */
	uint64_t id;
	uint32_t uid;
	pid_t pid;
	char name[SESSION_NAME_MAX];
	struct quota_user quota;
	struct user *user;                              /* borrows; sessions->users owns */
	struct holder *holders[SESSION_MAX_NAMESPACES]; /* owns; index: the number in requests; NULL: its device was lost */
	uint32_t n_holders;
	uint64_t since_ns, requests, errors;
	struct list laters; /* owns: struct later */
	uint32_t n_laters;

	struct conn conn;
	bool has_conn; /* its memory is the loop's until on_closed */
	bool dead;     /* the process is known to have exited */
	int pidfd;     /* owns; -1: the system has none */
	bool has_watch;
	struct loop_watch pid_watch;
	struct loop_timer grave; /* a zombie without a pidfd waits for this */
	struct loop_deferred eviction;
	uint8_t closing; /* close callbacks still to come, besides the connection's */
};

struct sessions_config {
	struct conn_limits conn;
	uint32_t max_sessions, max_per_uid;
	uint64_t slots_per_session, slots_per_uid;
	uint64_t holds_per_session, holds_per_uid;
	uint64_t pins_per_session;
	uint64_t zombie_ns;         /* how long to wait where there is no pidfd */
	const uint32_t *allow_uids; /* borrows */
	uint32_t n_allow_uids;      /* 0: whom the socket's mode lets in */
};

struct sessions {
	struct loop *loop;       /* borrows */
	struct service *service; /* borrows */
	struct sessions_config config;
	struct list all;       /* owns */
	struct list users;     /* owns */
	uint32_t n, n_zombies; /* connected ones; zombies */
	uint32_t n_all;        /* these two and buried ones */
	uint64_t last_id;
	uint64_t refusal_logged_ns, n_unlogged;
};

void sessions_init(struct sessions *ss, struct loop *loop, struct service *service, const struct sessions_config *config);
/* All sessions must be gone. */
void sessions_deinit(struct sessions *ss);

/* What a re-read configuration may change: the limits of sessions to come. */
void sessions_configure(struct sessions *ss, const struct sessions_config *config);

/* A connection was accepted.  @fd is taken over; a peer that is not let in gets a reply with the reason if that can be
 * written at once. */
void sessions_adopt(struct sessions *ss, int fd);
/* The same without trying, when we are out of descriptors. */
void sessions_refuse(struct sessions *ss, int fd, enum reply_code code, const char *reason);

/* No more requests; each ends when its output is sent. */
void sessions_drain(struct sessions *ss);
/* All end now, zombies too, as if their processes were dead: only when the memory goes away as well. */
void sessions_close(struct sessions *ss);

/* A session without a connection: the first half of sessions_adopt(), for tests and fuzzing.  Outcome: REPLY_LIMIT or
 * REPLY_PERM as > 0. */
_must_check_ int session_new(struct sessions *ss, uint32_t uid, pid_t pid, struct session **ret_session);
/* What the end of its connection does.  It is freed by the loop later, when nothing of it is quarantined any more. */
void session_end(struct session *s, const char *why);

static inline bool session_is_open(const struct session *s)
{
	return s->sm.state == SESSION_OPEN;
}

/* It said hello. */
void session_open(struct session *s, const char *name);
void session_count(struct session *s, bool failed);

/* NULL: no such number. */
struct holder *session_holder(const struct session *s, uint32_t number);
bool session_has_room(const struct session *s);
/* Takes @h over. */
uint32_t session_add_holder(struct session *s, struct holder *h);

#endif
