/* SPDX-License-Identifier: Apache-2.0 */
/* One request, one reply, a deadline.
 *
 * Owns the table of requests without a reply.  Invariant: a reply finds exactly one entry, and an entry ends with its reply or with the
 * connection.  A call that stops waiting leaves its entry as LATE, so that what the daemon still gives is given back.
 * Knows no verb's meaning but for that.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/client.h"

void kvbm__answer_drop(struct answer *a)
{
	if (a->reply)
		kvbm__reply__free_unpacked(a->reply, NULL);
	for (unsigned i = 0; i < a->n_fds; i++)
		if (a->fds[i] >= 0)
			close(a->fds[i]);
	memset(a, 0, sizeof(*a));
}

int kvbm__answer_take_fd(struct answer *a, unsigned i)
{
	int fd = i < a->n_fds ? a->fds[i] : -1;

	if (fd >= 0)
		a->fds[i] = -1;
	return fd;
}

void kvbm__forget_pending(struct kvbm *k)
{
	for (unsigned i = 0; i < k->n_pending; i++)
		if (k->pending[i].kind == PENDING_NOWAIT && k->pending[i].verb == KVBM__VERB__VERB_COMMIT)
			k->counters.commits_failed += k->pending[i].n;
	k->n_pending = 0;
}

int kvbm__wait(struct kvbm *k, uint64_t deadline_ns)
{
	struct pollfd p = { .fd = k->fd, .events = POLLIN | (wire_out_bytes(&k->out) ? POLLOUT : 0) };
	uint64_t now;
	int r;

	/* Not wire_wait(), which would ask for the time once more. */
	do {
		now = kvbm__now_ns();
		if (now >= deadline_ns)
			return -KVBM_E_TIMEOUT;
		r = poll(&p, 1, (int)((deadline_ns - now + 999999u) / 1000000u));
	} while (r < 0 && errno == EINTR);
	return r == 0 ? -KVBM_E_TIMEOUT : 0; /* an error shows at the next read */
}

/* ---- requests ---- */

static int post_once(struct kvbm *k, const struct pending *what, const ProtobufCMessage *message)
{
	struct wire_head head = { .verb = what->verb, .id = k->last_id + 1 };
	size_t size = message ? protobuf_c_message_get_packed_size(message) : 0;
	int fds[WIRE_MAX_FDS];
	uint8_t *room;
	int r;

	if (what->n_fds > WIRE_MAX_FDS)
		return kvbm__fail(k, KVBM_E_INVAL, "%u descriptors, a request takes %u", what->n_fds, WIRE_MAX_FDS);
	if (size > WIRE_MAX_PAYLOAD)
		return kvbm__fail(k, KVBM_E_INVAL, "a request of %zu bytes is larger than a frame", size);
	if (k->n_pending == CLIENT_MAX_PENDING)
		return -KVBM_E_BUSY;
	r = wire_out_reserve(&k->out, (uint32_t)size, what->n_fds, &room);
	if (r != 0)
		return r == WIRE_E_FULL ? -KVBM_E_BUSY : kvbm__fail(k, KVBM_E_NOMEM, "out of memory");
	for (unsigned i = 0; i < what->n_fds; i++) {
		fds[i] = fcntl(what->fds[i], F_DUPFD_CLOEXEC, 3);
		if (fds[i] >= 0)
			continue;
		r = kvbm__fail(k, KVBM_E_SYS, "descriptor %d cannot be sent: %s", what->fds[i], strerror(errno));
		while (i-- > 0)
			close(fds[i]);
		return r;
	}
	if (message)
		protobuf_c_message_pack(message, room);
	wire_out_commit(&k->out, &head, (uint32_t)size, fds);
	k->pending[k->n_pending] = *what;
	k->pending[k->n_pending++].id = ++k->last_id;
	return 0;
}

int kvbm__post(struct kvbm *k, const struct pending *what, const ProtobufCMessage *message, uint64_t *ret_id)
{
	uint64_t deadline = 0;
	int r = post_once(k, what, message);

	/* Too many are under way: the daemon must answer some first. */
	while (r == -KVBM_E_BUSY) {
		if (deadline == 0)
			deadline = kvbm__now_ns() + (uint64_t)k->timeout_ms * 1000000u;
		r = kvbm__exchange(k);
		if (r >= 0)
			r = post_once(k, what, message);
		if (r == -KVBM_E_BUSY && kvbm__wait(k, deadline) < 0)
			return kvbm__fail(k, KVBM_E_TIMEOUT, "the daemon does not answer %u earlier requests",
			                  k->n_pending);
	}
	if (r == 0)
		*ret_id = k->last_id;
	return r;
}

/* ---- replies ---- */

/* The caller of @p has gone: holds and reservations that came too late go back. */
static void reply_give_back(struct kvbm *k, const struct pending *p, const Kvbm__Reply *reply)
{
	Kvbm__AbortRequest abort_request = KVBM__ABORT_REQUEST__INIT;
	Kvbm__ReleaseRequest release = KVBM__RELEASE_REQUEST__INIT;
	Kvbm__DisownRequest disown = KVBM__DISOWN_REQUEST__INIT;
	struct pending ignore = { .kind = PENDING_IGNORE, .verb = KVBM__VERB__VERB_RELEASE };
	const ProtobufCMessage *message = &release.base;
	uint32_t *slots = NULL, *generations = NULL;
	size_t n = 0, kept = 0;

	if (!p->ns || !p->ns->view || reply->code != 0)
		return;
	if (reply->adopt) {
		disown.id = reply->adopt->id;
		ignore.verb = KVBM__VERB__VERB_DISOWN;
		(void)post_once(k, &ignore, &disown.base);
		return;
	}
	if (reply->reserve) {
		slots = reply->reserve->slots;
		generations = reply->reserve->generations;
		n = reply->reserve->n_slots < reply->reserve->n_generations ? reply->reserve->n_slots
		                                                            : reply->reserve->n_generations;
	} else if (reply->match) {
		slots = reply->match->slots;
		generations = reply->match->generations;
		n = reply->match->n_slots < reply->match->n_generations ? reply->match->n_slots
		                                                        : reply->match->n_generations;
	}
	if (reply->onboard && reply->onboard->hits <= reply->onboard->n_slots) {
		slots = reply->onboard->slots;
		generations = reply->onboard->generations;
		n = reply->onboard->hits <= reply->onboard->n_generations ? reply->onboard->hits : 0;
	}
	for (size_t i = 0; i < n; i++) {
		if (slots[i] == SHM_NO_SLOT)
			continue;
		slots[kept] = slots[i];
		generations[kept++] = generations[i];
	}
	if (kept == 0)
		return;
	if (reply->reserve) {
		ignore.verb = KVBM__VERB__VERB_ABORT;
		abort_request.ns = p->ns->view->number;
		abort_request.lane = p->lane;
		abort_request.slots = slots;
		abort_request.generations = generations;
		abort_request.n_slots = abort_request.n_generations = kept;
		message = &abort_request.base;
	} else {
		release.ns = p->ns->view->number;
		release.slots = slots;
		release.generations = generations;
		release.n_slots = release.n_generations = kept;
	}
	(void)post_once(k, &ignore, message); /* at worst the write deadline, or the session's end, does it */
}

static void reply_count(struct kvbm *k, const struct pending *p, const Kvbm__Reply *reply)
{
	const Kvbm__CommitReply *c = reply->commit;

	if (reply->code != 0 || !c) {
		k->counters.commits_failed += p->n;
		return;
	}
	for (size_t i = 0; i < c->states.len; i++) {
		k->counters.commits_new += c->states.data[i] == 1;
		k->counters.commits_existing += c->states.data[i] == 2;
	}
}

/* 0, or -KVBM_E_* when the connection had to end. */
static int reply_take(struct kvbm *k, struct wire_frame *frame)
{
	struct answer a = { .reply = kvbm__reply__unpack(NULL, frame->length, frame->payload) };
	struct pending p = { 0 };
	int r = 0;

	a.n_fds = frame->n_fds;
	for (unsigned i = 0; i < frame->n_fds; i++)
		a.fds[i] = wire_frame_take_fd(frame, i);
	for (unsigned i = 0; i < k->n_pending && !p.id; i++) {
		if (k->pending[i].id != frame->head.id)
			continue;
		p = k->pending[i];
		memmove(&k->pending[i], &k->pending[i + 1], (--k->n_pending - i) * sizeof(p));
	}
	if (!a.reply || !(frame->head.flags & WIRE_FLAG_REPLY)) {
		r = kvbm__down(k, KVBM_E_PROTO, "the daemon sent what is no reply");
	} else if (p.id && p.id == k->waits_for) {
		k->answer = a;
		return 0;
	} else if (p.kind == PENDING_HELLO || p.kind == PENDING_ATTACH) {
		r = kvbm__joined(k, &p, &a);
	} else if (p.kind == PENDING_NOWAIT) {
		reply_count(k, &p, a.reply);
	} else if (p.kind == PENDING_LATE) {
		reply_give_back(k, &p, a.reply);
	} else if (!p.id) {
		/* A last word: it does not let us in, or our bytes made no frame. */
		int code = a.reply->code > 0 && a.reply->code < KVBM_E_MAX ? (int)a.reply->code : KVBM_E_PROTO;

		r = kvbm__down(k, code, a.reply->error);
	}
	kvbm__answer_drop(&a);
	return r;
}

/* Takes what has come.  Replies taken, or -KVBM_E_*. */
static int replies_take(struct kvbm *k)
{
	struct wire_frame frame;
	int r, replies = 0;

	for (;;) {
		r = wire_in_read(&k->in, k->fd);
		if (r == WIRE_E_AGAIN)
			return replies;
		if (r != 0 && r != WIRE_E_FULL)
			return r == WIRE_E_BAD ? kvbm__down(k, KVBM_E_PROTO, wire_in_reason(&k->in))
			                       : kvbm__down(k, KVBM_E_GONE, "the daemon closed the connection");
		while ((r = wire_in_next(&k->in, &frame)) == 0) {
			replies++;
			r = reply_take(k, &frame);
			wire_frame_close(&frame);
			if (r < 0)
				return r;
		}
		if (r == WIRE_E_BAD)
			return kvbm__down(k, KVBM_E_PROTO, wire_in_reason(&k->in));
		if (!wire_in_may_have_more(&k->in))
			return replies;
	}
}

/* What the daemon said before it left counts, even where we can no longer write.  But descriptors that it does not take will never be gone. */
static int exchange_flush(struct kvbm *k)
{
	return wire_out_flush(&k->out, k->fd) == -EPERM
	               ? kvbm__down(k, KVBM_E_PERM, "the daemon takes no descriptors: it knows of no device")
	               : 0;
}

int kvbm__exchange(struct kvbm *k)
{
	if (k->state == CLIENT_DOWN)
		return -KVBM_E_GONE;
	if (exchange_flush(k) < 0)
		return -KVBM_E_PERM;
	return replies_take(k);
}

/* The same for a call, which has nothing else to do: waits first, since a reply is never there yet.  In poll(), not in a read of a blocking
 * socket: that one is woken for nothing when the daemon takes the request in. */
static int exchange_wait(struct kvbm *k, uint64_t deadline_ns)
{
	int r, waited;

	if (k->state == CLIENT_DOWN)
		return -KVBM_E_GONE;
	if (exchange_flush(k) < 0)
		return -KVBM_E_PERM;
	waited = kvbm__wait(k, deadline_ns);
	r = replies_take(k);
	return r != 0 ? r : waited;
}

/* ---- calls ---- */

static int call_outcome(struct kvbm *k)
{
	const Kvbm__Reply *reply = k->answer.reply;
	int code = (int)reply->code;

	if (code == 0)
		return 0;
	if (code < 0 || code >= KVBM_E_MAX)
		code = KVBM_E_INTERNAL;
	kvbm__fail(k, code, "%s", reply->error && *reply->error ? reply->error : kvbm_strerror(code));
	kvbm__answer_drop(&k->answer);
	return -code;
}

int kvbm__call(struct kvbm *k, const struct pending *what, const ProtobufCMessage *message, uint64_t deadline_ns)
{
	uint64_t id;
	int r;

	assert(k->state == CLIENT_UP && what->kind == PENDING_CALL && k->waits_for == 0);
	r = kvbm__post(k, what, message, &id);
	if (r < 0)
		return r;
	k->waits_for = id;
	do
		r = exchange_wait(k, deadline_ns);
	while (r >= 0 && !k->answer.reply);
	k->waits_for = 0;
	if (k->answer.reply && r < 0 && (what->ns || what->verb == KVBM__VERB__VERB_ATTACH)) {
		/* It answered and left at once: slots and namespaces of the answer went with it. */
		kvbm__answer_drop(&k->answer);
		return r;
	}
	if (k->answer.reply)
		return call_outcome(k);
	for (unsigned i = 0; i < k->n_pending; i++)
		if (k->pending[i].id == id)
			k->pending[i].kind = PENDING_LATE;
	if (r == -KVBM_E_TIMEOUT)
		return kvbm__fail(k, KVBM_E_TIMEOUT, "no reply within the deadline");
	return r;
}
