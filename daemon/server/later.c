/* SPDX-License-Identifier: Apache-2.0 */
/* Replies of a later turn.  Owns nothing: laters are embedded in what handlers keep, and listed in their session.
 *
 * Invariant: a session that has ended has none; so whoever has one may use its session and its connection.
 */
#include "server/later.h"

#include "base/assert.h"
#include "base/thread.h"
#include "server/dispatch.h"
#include "server/session.h"

bool later_may(const struct request *q, struct reply *reply)
{
	if (q->session->n_laters < LATER_MAX)
		return true;
	reply_fail(reply, REPLY_LIMIT, "%u requests of this session wait already", LATER_MAX);
	return false;
}

void later_watch(struct later *l, struct session *session, void (*cancel)(struct later *l))
{
	l->session = session;
	l->cancel = cancel;
	list_add_tail(&session->laters, &l->link);
	session->n_laters++;
}

void later_begin(struct later *l, const struct request *q, struct reply *reply, void (*cancel)(struct later *l))
{
	later_watch(l, q->session, cancel);
	l->head = *q->head;
	reply->later = true;
}

void later_end(struct later *l)
{
	assert(l->session->n_laters > 0);
	list_del(&l->link);
	l->session->n_laters--;
}

void later_reply(struct later *l, struct reply *reply)
{
	struct session *s = l->session;
	int r;

	thread_assert(THREAD_LOOP);
	later_end(l);
	if (!s->has_conn) { /* a session without a connection: tests */
		reply_deinit(reply);
		return;
	}
	reply->later = false;
	r = dispatch_reply(s->sessions->service, s, &l->head, reply, &s->conn.out);
	if (r < 0)
		conn_drain(&s->conn, "cannot be answered: it does not read its replies");
	else
		conn_wake(&s->conn);
}

void later_cancel_all(struct session *s)
{
	struct list *first;

	while ((first = list_first(&s->laters))) {
		struct later *l = container_of(first, struct later, link);

		later_end(l);
		l->cancel(l);
	}
}
