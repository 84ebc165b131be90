/* SPDX-License-Identifier: Apache-2.0 */
/* later.h: a request whose reply comes in a later turn.
 *
 * Loop thread.  Embedded in what a handler keeps of such a request.  It ends exactly once: by later_reply(), or by cancel() when the session ends first.
 */
#ifndef KVBMD_SERVER_LATER_H
#define KVBMD_SERVER_LATER_H

#include "server/service.h"

#define LATER_MAX 64u /* of one session at a time */

struct later {
	struct list link; /* in session->laters */
	struct session *session;
	struct wire_head head;
	void (*cancel)(struct later *l); /* lets go of everything; frees what it is embedded in */
};

/* Has the session room for one more?  false: the reply has failed with LIMIT. */
bool later_may(const struct request *q, struct reply *reply);

/* The request of @q will be answered by later_reply().  @reply: dispatch's, which then sends nothing. */
void later_begin(struct later *l, const struct request *q, struct reply *reply, void (*cancel)(struct later *l));

/* The same for what is not a request's any more: it is only to be told when the session ends. */
void later_watch(struct later *l, struct session *session, void (*cancel)(struct later *l));
void later_end(struct later *l);

/* Sends @reply and forgets @l, whose memory is the caller's again.  May end the session, never inline. */
void later_reply(struct later *l, struct reply *reply);

void later_cancel_all(struct session *s);

#endif
