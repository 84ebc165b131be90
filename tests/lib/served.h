/* SPDX-License-Identifier: Apache-2.0 */
/* served.h: the daemon from its frames downwards, without sockets and in the caller's time: a store over the fake tier, the
 * service, sessions that have no connection.  For unit tests of server/ and for fuzzing.
 *
 * The calling thread becomes the loop thread.
 */
#ifndef TESTS_LIB_SERVED_H
#define TESTS_LIB_SERVED_H

#include "loop/loop.h"
#include "server/dispatch.h"
#include "server/session.h"

#define SERVED_UID 4711u /* neither root nor us: no administrator */

struct served {
	struct tier *tier;   /* owns */
	struct store *store; /* owns */
	struct life life;
	struct loop *loop; /* owns */
	struct service service;
	struct sessions sessions;
	uint64_t now_ns; /* given to handlers; the caller moves it */
	uint64_t last_id;

	/* Of the last call. */
	Kvbm__Reply *reply; /* owns */
	bool last;          /* the session has to be closed now */
	unsigned n_fds;
	int fds[WIRE_MAX_FDS]; /* owns */
};

/* Limits that a test can reach: 8 sessions, 4 a uid, 64 slots, 64 holds and 64 pins a session, 128 of each a uid. */
extern const struct sessions_config served_limits;

/* 16 MiB in regions of 2; at most 4 namespaces. @policies may be NULL. */
void served_init(struct served *s, const struct store_policy *policies, uint32_t n_policies);
/* The same over a tier below, of which @with says what a struct store_config says; with real memory, and requests that wait up to 1 s.
 * Before the end nothing may be moving. */
void served_init_lower(struct served *s, const struct store_config *with);
/* Ends sessions that are left, checks every identity and that nothing is left of anything. */
void served_deinit(struct served *s);

/* The same end for the sessions only: afterwards nobody holds, writes or is charged anything. */
void served_end_all(struct served *s);
/* Lets the loop free what was buried, and zombies whose grave is due. */
void served_turn(struct served *s);

/* NULL: refused. */
struct session *served_session(struct served *s, uint32_t uid);
/* The same, having said hello. */
struct session *served_open(struct served *s, uint32_t uid);

/* One frame to dispatch_frame(); checks that exactly one reply to it came, and that it is well-formed.  Returns its code.  On
 * @s->last the caller ends the session. */
int served_frame(struct served *s, struct session *session, const struct wire_frame *frame);
int served_bytes(struct served *s, struct session *session, uint16_t verb, const void *payload, uint32_t size);
/* @message NULL: no payload. */
int served_call(struct served *s, struct session *session, uint16_t verb, const ProtobufCMessage *message);

/* A namespace of plain blocks; returns its number.  The descriptors stay in @s->fds until the next call. */
uint32_t served_attach(struct served *s, struct session *session, const char *name, uint64_t block_bytes, uint32_t lanes);

void served_forget_reply(struct served *s);

#endif
