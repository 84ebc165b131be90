/* SPDX-License-Identifier: Apache-2.0 */
/* Sessions and holds, counted: who ends what, and when.
 *
 * Owns the life of struct session and struct hold.  Invariants: kvbm_close() is called once, when nothing of the session is in use any more,
 * because its mappings are what live arrays point to; a hold is given back once, by whoever drops its last reference.
 * Knows no Python, takes no lock of its own, so that a deleter may call it from anywhere, a forked child included.
 *
 * Giving back what is held for reading takes no message.  A reserved slot, or any hold of a session by socket, takes one, and a deleter must not
 * wait: such holds go to session->late, and the session's next call, or its end, gives them back.  Until then, at the latest until the daemon's
 * write deadline, their slots stay reserved.  Only the views that outlive close() are waited for: the end of a session with slots reserved would
 * leave these in quarantine for as long as this process lives.
 */
#include "extension.h"

#include <assert.h>
#include <stdlib.h>

#define GIVE_BACK_BATCH 256u

atomic_int live_sessions, live_holds, live_views;

/* ---- sessions ---- */

struct session *session_new(struct kvbm *kvbm, bool by_socket)
{
	struct session *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->kvbm = kvbm;
	s->by_socket = by_socket;
	atomic_init(&s->refs, 1);
	atomic_init(&s->users, 1);
	atomic_fetch_add(&live_sessions, 1);
	return s;
}

void session_get(struct session *s)
{
	atomic_fetch_add(&s->refs, 1);
}

void session_put(struct session *s)
{
	if (!s || atomic_fetch_sub(&s->refs, 1) > 1)
		return;
	assert(atomic_load(&s->users) == 0);
	free(s);
}

void session_unuse(struct session *s)
{
	if (atomic_fetch_sub(&s->users, 1) > 1)
		return;
	kvbm_close(s->kvbm);
	s->kvbm = NULL;
	atomic_fetch_sub(&live_sessions, 1);
}

static void holds_free(struct hold *list)
{
	while (list) {
		struct hold *h = list;
		struct session *s = h->session;

		list = h->next;
		free(h);
		atomic_fetch_sub(&live_holds, 1);
		session_unuse(s);
		session_put(s);
	}
}

void session_drain(struct session *s)
{
	if (atomic_load_explicit(&s->late, memory_order_relaxed))
		holds_give_back(atomic_exchange(&s->late, NULL));
}

void session_close(struct session *s)
{
	if (atomic_exchange(&s->closed, true))
		return;
	session_get(s);
	holds_give_back(atomic_exchange(&s->late, NULL));
	session_unuse(s);
	session_put(s);
}

/* ---- holds ---- */

struct hold *hold_new(struct session *s, struct kvbm_ns *ns, const struct kvbm_span *span, uint32_t lane,
                      enum hold_state state)
{
	struct hold *h = calloc(1, sizeof(*h));

	if (!h)
		return NULL;
	session_get(s);
	atomic_fetch_add(&s->users, 1);
	h->session = s;
	h->ns = ns;
	h->span = *span;
	h->lane = lane;
	h->state = state;
	atomic_init(&h->refs, 1);
	atomic_fetch_add(&live_holds, 1);
	return h;
}

static void hold_push_late(struct hold *h)
{
	struct session *s = h->session;
	struct hold *first = atomic_load(&s->late);

	session_get(s);
	do {
		h->next = first;
	} while (!atomic_compare_exchange_weak(&s->late, &first, h));
	/* Whoever closed it may have looked before we pushed. */
	if (atomic_load(&s->closed))
		holds_give_back(atomic_exchange(&s->late, NULL));
	session_put(s);
}

void hold_put(struct hold *h)
{
	if (atomic_fetch_sub(&h->refs, 1) > 1)
		return;
	h->next = NULL;
	if (h->state == HOLD_NONE) {
		holds_free(h);
	} else if (h->state == HOLD_READ && !h->session->by_socket) {
		(void)kvbm_release(h->ns, &h->span, 1); /* fails where a daemon, or a fork, has ended the hold before us */
		holds_free(h);
	} else {
		hold_push_late(h);
	}
}

void hold_put_to(struct hold *h, struct hold **list)
{
	if (atomic_fetch_sub(&h->refs, 1) > 1)
		return;
	h->next = *list;
	*list = h;
}

/* The number of the connection that spans of now come from. */
uint64_t session_joined(struct session *s)
{
	struct kvbm_counters counters;

	kvbm_get_counters(s->kvbm, &counters);
	return counters.reconnects;
}

static int give_back(const struct hold *like, const struct kvbm_span *spans, uint32_t n)
{
	if (like->state == HOLD_NONE)
		return 0;
	return like->state == HOLD_READ ? kvbm_release(like->ns, spans, n) : kvbm_abort(like->ns, like->lane, spans, n);
}

/* Moves what goes with the first of *list into one call from there to *ret_batch. */
static uint32_t give_back_gather(struct hold **list, struct hold **ret_batch, struct kvbm_span *spans)
{
	const struct hold *like = *list;
	struct hold **at = list;
	uint32_t n = 0;

	*ret_batch = NULL;
	while (*at && n < GIVE_BACK_BATCH) {
		struct hold *h = *at;

		if (h->ns != like->ns || h->state != like->state || h->lane != like->lane || h->joined != like->joined) {
			at = &h->next;
			continue;
		}
		*at = h->next;
		h->next = *ret_batch;
		*ret_batch = h;
		spans[n++] = h->span;
	}
	return n;
}

void holds_give_back(struct hold *list)
{
	struct kvbm_span spans[GIVE_BACK_BATCH];
	struct hold *batch;

	while (list) {
		uint32_t n = give_back_gather(&list, &batch, spans);
		int r = give_back(batch, spans, n);

		/* All or nothing, but one that the daemon has taken back must not keep the others.  (Where the connection is another one now, the
		 * library is through with all of them already, and must not be told twice.) */
		if (n > 1 && (r == -KVBM_E_STALE || r == -KVBM_E_NOTHELD) && session_joined(batch->session) == batch->joined)
			for (uint32_t i = 0; i < n; i++)
				(void)give_back(batch, &spans[i], 1);
		holds_free(batch);
	}
}
