/* SPDX-License-Identifier: Apache-2.0 */
/* reply.h: what a handler answers, and how it gets onto the wire.
 *
 * A handler fills a struct reply that dispatch made with reply_init(): a code, for errors a text, and on success at most one body
 * with pointers to memory that lives until the handler's caller has packed it (request arena, scratch).
 */
#ifndef KVBMD_SERVER_REPLY_H
#define KVBMD_SERVER_REPLY_H

#include <stdint.h>

#include "base/error.h"
#include "kvbm.pb-c.h"
#include "proto/wire.h"

enum reply_code {
	REPLY_OK = 0,
	REPLY_INVAL,
	REPLY_VERSION,
	REPLY_PERM,
	REPLY_NOENT,
	REPLY_MISMATCH,
	REPLY_LIMIT,
	REPLY_NOSPACE,
	REPLY_BUSY,
	REPLY_STALE,
	REPLY_NOTHELD,
	REPLY_PROTO,
	REPLY_INTERNAL,
};

#define REPLY_MAX_FDS 4u
#define REPLY_TEXT_MAX 384u

struct reply {
	enum reply_code code;
	char text[REPLY_TEXT_MAX];
	bool last;              /* the connection is closed once this is sent */
	bool later;             /* nothing is sent now: the handler has kept what it needs (later.h) */
	int fds[REPLY_MAX_FDS]; /* owns */
	unsigned n_fds;
	char *owned; /* owns; a report, freed with the reply */
	Kvbm__Reply message;
	union {
		Kvbm__HelloReply hello;
		Kvbm__AttachReply attach;
		Kvbm__RegionReply region;
		Kvbm__ReserveReply reserve;
		Kvbm__CommitReply commit;
		Kvbm__MatchReply match;
		Kvbm__CountReply count;
		Kvbm__StatReply stat;
		Kvbm__InfoReply info;
		Kvbm__OnboardReply onboard;
		Kvbm__AdoptReply adopt;
		Kvbm__StoreReply store;
		Kvbm__LoadReply load;
	} body;
};

void reply_init(struct reply *reply);
/* Closes descriptors that were not sent, frees what it owns. */
void reply_deinit(struct reply *reply);

/* Sets code and text, takes back a body that was set. */
void reply_fail(struct reply *reply, enum reply_code code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* The outcome of a store_*() or holder_*() call (> 0), with the text belonging to it. */
void reply_fail_store(struct reply *reply, int outcome, const char *what);

/* Adds a duplicate of @borrowed_fd.  On -EMFILE and the like the reply becomes REPLY_BUSY and false is returned. */
bool reply_add_fd(struct reply *reply, int borrowed_fd);

/* KVBM_E_* of a code; 0 for REPLY_OK. */
uint32_t reply_wire_code(enum reply_code code);

/* Packs it into @out.  On success the descriptors are @out's.  Outcome: WIRE_E_FULL, the peer has to be disconnected.  A
 * reply that no frame can hold is sent as REPLY_LIMIT instead. */
_must_check_ int reply_send(struct reply *reply, const struct wire_head *request, uint64_t boot_id, struct wire_out *out);

#endif
