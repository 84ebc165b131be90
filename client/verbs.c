/* SPDX-License-Identifier: Apache-2.0 */
/* The calls of kvbm.h on blocks: checks their arguments, then either goes through shared memory or makes one message.
 *
 * Owns nothing.  A call that is a message holds kvbm->lock to its end; view pointers change only with both locks held, so they may be
 * read under either.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/client.h"

/* ---- beginning and ending a call ---- */

/* A pool of a device that was lost: waits for the answer whether there is a new one. */
static int verb_attach_again(struct kvbm_ns *ns, uint64_t deadline_ns)
{
	struct kvbm *k = ns->kvbm;
	int r = 0;

	kvbm__attach_again(ns);
	while (ns->attaching && r >= 0) {
		r = kvbm__exchange(k);
		if (ns->attaching && r >= 0)
			r = kvbm__wait(k, deadline_ns);
	}
	return r < 0 ? r : 0;
}

int kvbm__verb_begin(struct kvbm *k, struct kvbm_ns *ns, uint64_t *ret_deadline_ns)
{
	int r;

	if (kvbm__is_forked(k))
		return -KVBM_E_FORKED;
	pthread_mutex_lock(&k->lock);
	*ret_deadline_ns = kvbm__now_ns() + (uint64_t)k->timeout_ms * 1000000u;
	r = kvbm__ready(k, *ret_deadline_ns);
	if (r == 0 && ns && kvbm__is_lost(ns))
		r = verb_attach_again(ns, *ret_deadline_ns);
	if (r == 0 && ns && !ns->view)
		r = -(ns->refused ? ns->refused : KVBM_E_GONE);
	if (r < 0)
		pthread_mutex_unlock(&k->lock);
	return r;
}

int kvbm__verb_end(struct kvbm *k, int r)
{
	kvbm__answer_drop(&k->answer);
	pthread_mutex_unlock(&k->lock);
	return r;
}

int kvbm__verb_invalid(struct kvbm *k, const char *what)
{
	if (kvbm__is_forked(k))
		return -KVBM_E_FORKED;
	pthread_mutex_lock(&k->lock);
	kvbm__fail(k, KVBM_E_INVAL, "%s", what);
	pthread_mutex_unlock(&k->lock);
	return -KVBM_E_INVAL;
}

ProtobufCBinaryData kvbm__verb_keys(const struct kvbm_ns *ns, const void *keys, uint32_t n)
{
	return (ProtobufCBinaryData){ .len = keys ? (size_t)n * ns->key_bytes : 0, .data = (uint8_t *)keys };
}

int kvbm__verb_bad_reply(struct kvbm *k)
{
	return kvbm__down(k, KVBM_E_PROTO, "the daemon's reply does not fit the request");
}

/* Spans into k->slots and k->generations.  All must be of the current view. */
static int verb_slots(struct kvbm_ns *ns, const struct kvbm_span *spans, uint32_t n)
{
	struct kvbm *k = ns->kvbm;

	for (uint32_t i = 0; i < n; i++) {
		if (kvbm__view_of(ns, &spans[i]) != ns->view)
			return kvbm__fail(k, KVBM_E_STALE, "span %u is of a daemon that has gone, or of none", i);
		k->slots[i] = spans[i].slot;
		k->generations[i] = spans[i].generation;
	}
	return 0;
}

/* @spans of the current view are no longer in use, as far as the caller said so. */
static void verb_unuse(struct kvbm_ns *ns, const struct kvbm_span *spans, uint32_t n)
{
	pthread_mutex_lock(&ns->lock);
	for (uint32_t i = 0; i < n; i++) {
		struct view *v = kvbm__view_of(ns, &spans[i]);
		struct view_region *r = v ? &v->regions[kvbm__view_region(v, spans[i].slot)] : NULL;

		if (r && r->used)
			r->used--;
	}
	kvbm__view_sweep(ns);
	pthread_mutex_unlock(&ns->lock);
}

static void verb_use(struct view *v, uint32_t slot)
{
	v->regions[kvbm__view_region(v, slot)].used++;
}

/* Spans of daemons that have gone: whoever names them in commit, abort or release is through with them. */
static void verb_unuse_retired(struct kvbm_ns *ns, const struct kvbm_span *spans, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (kvbm__view_of(ns, &spans[i]) != ns->view)
			verb_unuse(ns, &spans[i], 1);
}

/* ---- attach ---- */

static bool attach_text(const char *from, char *to, size_t size, const char **field)
{
	if (from && strlen(from) >= size)
		return false;
	strcpy(to, from ? from : "");
	*field = to;
	return true;
}

static bool attach_copy(struct kvbm_ns *ns, const struct kvbm_model *m)
{
	ns->model = *m;
	if (!attach_text(m->name, ns->name, sizeof(ns->name), &ns->model.name) ||
	    !attach_text(m->model, ns->model_text, sizeof(ns->model_text), &ns->model.model) ||
	    !attach_text(m->hash_algo, ns->hash_algo, sizeof(ns->hash_algo), &ns->model.hash_algo) ||
	    !attach_text(m->salt, ns->salt, sizeof(ns->salt), &ns->model.salt) ||
	    !attach_text(m->device, ns->device, sizeof(ns->device), &ns->model.device))
		return false;
	if (m->page_size == 0)
		ns->model.page_size = 16;
	if (m->outer_dim == 0)
		ns->model.outer_dim = 2;
	if (m->dtype == KVBM_DTYPE_DEFAULT)
		ns->model.dtype = KVBM_DTYPE_BF16;
	if (m->layout == KVBM_LAYOUT_DEFAULT)
		ns->model.layout = KVBM_LAYOUT_FULLY_CONTIGUOUS;
	if (m->lanes == 0)
		ns->model.lanes = 1;
	if (m->key_bytes == 0)
		ns->model.key_bytes = 16;
	return true;
}

/* The session is ready and has room. */
static int attach_call(struct kvbm *k, struct kvbm_ns *ns, uint64_t deadline_ns)
{
	struct pending what = { .kind = PENDING_CALL, .verb = KVBM__VERB__VERB_ATTACH };
	Kvbm__AttachRequest m;
	int r;

	kvbm__model_message(ns, &m);
	r = kvbm__call(k, &what, &m.base, deadline_ns);
	if (r < 0)
		return r;
	if (!k->answer.reply->attach || k->answer.reply->attach->fingerprint.len != 16)
		return kvbm__verb_bad_reply(k);
	memcpy(ns->fingerprint, k->answer.reply->attach->fingerprint.data, 16);
	r = kvbm__attached(ns, &k->answer);
	if (r < 0)
		return r;
	ns->lane_bytes = ns->view->lane_bytes;
	ns->lanes = ns->view->lanes;
	ns->key_bytes = ns->view->key_bytes;
	k->ns[k->n_ns++] = ns;
	return 0;
}

int kvbm_attach(struct kvbm *k, const struct kvbm_model *model, struct kvbm_ns **ret_ns)
{
	struct kvbm_ns *ns;
	uint64_t deadline;
	int r;

	if (!model || !model->name || !*model->name)
		return kvbm__verb_invalid(k, "a model needs a name");
	r = kvbm__verb_begin(k, NULL, &deadline);
	if (r < 0)
		return r;
	if (k->n_ns == CLIENT_MAX_NS)
		return kvbm__verb_end(k, kvbm__fail(k, KVBM_E_LIMIT, "a session attaches to at most %u namespaces",
		                                    CLIENT_MAX_NS));
	ns = calloc(1, sizeof(*ns));
	if (!ns)
		return kvbm__verb_end(k, kvbm__fail(k, KVBM_E_NOMEM, "out of memory"));
	ns->kvbm = k;
	pthread_mutex_init(&ns->lock, NULL);
	r = attach_copy(ns, model)
	            ? attach_call(k, ns, deadline)
	            : kvbm__fail(k, KVBM_E_INVAL, "name is longer than 63, or another text than 255, bytes");
	if (r < 0) {
		kvbm__view_free(ns->view);
		pthread_mutex_destroy(&ns->lock);
		free(ns);
		return kvbm__verb_end(k, r);
	}
	*ret_ns = ns;
	return kvbm__verb_end(k, 0);
}

/* ---- reserve, commit, abort ---- */

int kvbm_reserve(struct kvbm_ns *ns, uint32_t lane, const void *keys, uint32_t n, struct kvbm_span *ret_spans,
                 uint32_t *ret_dropped)
{
	struct kvbm *k = ns->kvbm;
	struct pending what = { .kind = PENDING_CALL, .verb = KVBM__VERB__VERB_RESERVE, .ns = ns, .lane = lane };
	Kvbm__ReserveRequest m = KVBM__RESERVE_REQUEST__INIT;
	const Kvbm__ReserveReply *reply;
	uint64_t deadline;
	int r;

	if (n > KVBM_MAX_KEYS || (n > 0 && !ret_spans))
		return kvbm__verb_invalid(k, "reserve takes up to 16384 blocks and a place for their spans");
	r = kvbm__verb_begin(k, ns, &deadline);
	if (r < 0)
		return r;
	m.ns = ns->view->number;
	m.n = n;
	m.lane = lane;
	m.keys = kvbm__verb_keys(ns, keys, n);
	r = kvbm__call(k, &what, &m.base, deadline);
	if (r < 0)
		return kvbm__verb_end(k, r);
	reply = k->answer.reply->reserve;
	if (!reply || reply->n_slots != n || reply->n_generations != n)
		return kvbm__verb_end(k, kvbm__verb_bad_reply(k));
	pthread_mutex_lock(&ns->lock);
	for (uint32_t i = 0; i < n; i++) {
		if (reply->slots[i] >= ns->view->n_slots) {
			ret_spans[i] = (struct kvbm_span){ .slot = SHM_NO_SLOT };
			continue;
		}
		kvbm__view_span(ns->view, reply->slots[i], reply->generations[i], &ret_spans[i]);
		verb_use(ns->view, reply->slots[i]);
	}
	pthread_mutex_unlock(&ns->lock);
	if (ret_dropped)
		*ret_dropped = reply->dropped;
	return kvbm__verb_end(k, (int)reply->reserved);
}

/* What was held by message becomes pins of our own, and is let go there.  Spans that name no slot are passed over; one that cannot be pinned (a
 * limit) becomes such a span. */
static void verb_own_holds(struct kvbm_ns *ns, struct kvbm_span *spans, uint32_t n)
{
	struct kvbm *k = ns->kvbm;
	struct pending what = { .kind = PENDING_IGNORE, .verb = KVBM__VERB__VERB_RELEASE, .ns = ns };
	Kvbm__ReleaseRequest m = KVBM__RELEASE_REQUEST__INIT;
	bool by_socket = k->flags & KVBM_OPEN_BY_SOCKET;
	uint32_t held = 0;
	uint64_t id;

	pthread_mutex_lock(&ns->lock);
	for (uint32_t i = 0; i < n; i++) {
		if (spans[i].slot == SHM_NO_SLOT)
			continue;
		k->slots[held] = spans[i].slot;
		k->generations[held++] = spans[i].generation;
		if (by_socket)
			verb_use(ns->view, spans[i].slot);
		else if (!kvbm__pin(ns->view, spans[i].slot))
			spans[i] = (struct kvbm_span){ .slot = SHM_NO_SLOT };
	}
	pthread_mutex_unlock(&ns->lock);
	if (by_socket || held == 0)
		return;
	/* The pins must be visible before the daemon lets go. */
	shm_fence();
	m.ns = ns->view->number;
	m.slots = k->slots;
	m.generations = k->generations;
	m.n_slots = m.n_generations = held;
	if (kvbm__post(k, &what, &m.base, &id) == 0)
		(void)kvbm__exchange(k);
}

static int commit_reply(struct kvbm_ns *ns, struct kvbm_span *spans, uint32_t n, unsigned flags)
{
	struct kvbm *k = ns->kvbm;
	struct answer answer = k->answer;
	const Kvbm__CommitReply *reply = answer.reply->commit;
	int fresh = 0;

	if (!reply || reply->n_slots != n || reply->n_generations != n || reply->states.len != n)
		return kvbm__verb_bad_reply(k);
	for (uint32_t i = 0; i < n; i++)
		if (reply->slots[i] >= ns->view->n_slots && reply->slots[i] != SHM_NO_SLOT)
			return kvbm__verb_bad_reply(k);
	memset(&k->answer, 0, sizeof(k->answer)); /* verb_own_holds() receives too */
	verb_unuse(ns, spans, n);
	for (uint32_t i = 0; i < n; i++) {
		fresh += reply->states.data[i] == 1;
		k->counters.commits_new += reply->states.data[i] == 1;
		k->counters.commits_existing += reply->states.data[i] == 2;
		if (reply->slots[i] == SHM_NO_SLOT)
			spans[i] = (struct kvbm_span){ .slot = SHM_NO_SLOT };
		else
			kvbm__view_span(ns->view, reply->slots[i], reply->generations[i], &spans[i]);
	}
	for (uint32_t i = 0; i < n && flags & KVBM_HOLD; i++)
		if (reply->states.data[i] == 3)
			spans[i] = (struct kvbm_span){ .slot = SHM_NO_SLOT }; /* other lanes are missing: nothing to hold yet */
	if (flags & KVBM_HOLD)
		verb_own_holds(ns, spans, n);
	kvbm__answer_drop(&answer);
	return fresh;
}

static int commit_send(struct kvbm_ns *ns, const Kvbm__CommitRequest *m, struct kvbm_span *spans, unsigned flags,
                       uint64_t deadline)
{
	struct kvbm *k = ns->kvbm;
	struct pending what = { .kind = PENDING_CALL,
		                .verb = KVBM__VERB__VERB_COMMIT,
		                .ns = ns,
		                .lane = m->lane,
		                .n = (uint32_t)m->n_slots };
	uint64_t id;
	int r;

	if (!(flags & KVBM_NOWAIT)) {
		r = kvbm__call(k, &what, &m->base, deadline);
		return r < 0 ? r : commit_reply(ns, spans, what.n, flags);
	}
	what.kind = PENDING_NOWAIT;
	r = kvbm__post(k, &what, &m->base, &id);
	if (r == 0)
		(void)wire_out_flush(&k->out, k->fd); /* nearly always that is all */
	while (r >= 0 && wire_out_bytes(&k->out) > 0) {
		r = kvbm__exchange(k);
		if (r >= 0 && wire_out_bytes(&k->out) > 0)
			r = kvbm__wait(k, deadline);
	}
	if (r < 0)
		return r;
	verb_unuse(ns, spans, what.n);
	return 0;
}

int kvbm_commit(struct kvbm_ns *ns, uint32_t lane, struct kvbm_span *spans, const void *keys, uint32_t n,
                const void *parent, unsigned flags)
{
	struct kvbm *k = ns->kvbm;
	Kvbm__CommitRequest m = KVBM__COMMIT_REQUEST__INIT;
	uint64_t deadline;
	int r;

	if (n > KVBM_MAX_KEYS || (n > 0 && (!spans || !keys)))
		return kvbm__verb_invalid(k, "commit takes up to 16384 blocks, with their spans and keys");
	if ((flags & ~(KVBM_HOLD | KVBM_PARENTS | KVBM_NOWAIT)) || (flags & KVBM_HOLD && flags & KVBM_NOWAIT) ||
	    (flags & KVBM_PARENTS && !parent && n > 0))
		return kvbm__verb_invalid(k, "commit: unknown flags, HOLD with NOWAIT, or PARENTS without parents");
	r = kvbm__verb_begin(k, ns, &deadline);
	if (r < 0) {
		if (r == -KVBM_E_GONE)
			verb_unuse_retired(ns, spans, n);
		return r;
	}
	r = verb_slots(ns, spans, n);
	if (r < 0) {
		verb_unuse_retired(ns, spans, n);
		return kvbm__verb_end(k, r);
	}
	m.ns = ns->view->number;
	m.lane = lane;
	m.slots = k->slots;
	m.generations = k->generations;
	m.n_slots = m.n_generations = n;
	m.keys = kvbm__verb_keys(ns, keys, n);
	m.parents = kvbm__verb_keys(ns, parent, flags & KVBM_PARENTS ? n : 1);
	m.length = ns->lane_bytes;
	m.hold = flags & KVBM_HOLD;
	r = commit_send(ns, &m, spans, flags, deadline);
	if (r == -KVBM_E_GONE)
		verb_unuse_retired(ns, spans, n);
	return kvbm__verb_end(k, r);
}

int kvbm_abort(struct kvbm_ns *ns, uint32_t lane, const struct kvbm_span *spans, uint32_t n)
{
	struct kvbm *k = ns->kvbm;
	struct pending what = { .kind = PENDING_CALL, .verb = KVBM__VERB__VERB_ABORT, .ns = ns };
	Kvbm__AbortRequest m = KVBM__ABORT_REQUEST__INIT;
	uint64_t deadline;
	int r;

	if (n > KVBM_MAX_KEYS || (n > 0 && !spans))
		return kvbm__verb_invalid(k, "abort takes up to 16384 spans");
	r = kvbm__verb_begin(k, ns, &deadline);
	if (r < 0) {
		if (r == -KVBM_E_GONE)
			verb_unuse_retired(ns, spans, n);
		return r;
	}
	r = verb_slots(ns, spans, n);
	if (r < 0) {
		verb_unuse_retired(ns, spans, n);
		return kvbm__verb_end(k, r);
	}
	m.ns = ns->view->number;
	m.lane = lane;
	m.slots = k->slots;
	m.generations = k->generations;
	m.n_slots = m.n_generations = n;
	r = kvbm__call(k, &what, &m.base, deadline);
	if (r == 0)
		verb_unuse(ns, spans, n);
	else if (r == -KVBM_E_GONE)
		verb_unuse_retired(ns, spans, n);
	return kvbm__verb_end(k, r < 0 ? r : (int)n);
}

/* ---- match and release ---- */

static int match_by_socket(struct kvbm_ns *ns, const void *keys, uint32_t n, unsigned flags, struct kvbm_span *ret_spans)
{
	struct kvbm *k = ns->kvbm;
	struct pending what = { .kind = PENDING_CALL, .verb = KVBM__VERB__VERB_MATCH, .ns = ns };
	Kvbm__MatchRequest m = KVBM__MATCH_REQUEST__INIT;
	const Kvbm__MatchReply *reply;
	uint64_t deadline;
	int r = kvbm__verb_begin(k, ns, &deadline);

	if (r < 0)
		return r;
	m.ns = ns->view->number;
	m.keys = kvbm__verb_keys(ns, keys, n);
	m.scattered = flags & KVBM_SCATTERED;
	m.hold = !(flags & KVBM_PEEK);
	r = kvbm__call(k, &what, &m.base, deadline);
	if (r < 0)
		return kvbm__verb_end(k, r);
	reply = k->answer.reply->match;
	if (!reply || reply->n_slots != reply->n_generations || reply->n_slots != (m.scattered ? n : reply->hits) ||
	    reply->n_slots > n)
		return kvbm__verb_end(k, kvbm__verb_bad_reply(k));
	pthread_mutex_lock(&ns->lock);
	for (size_t i = 0; i < reply->n_slots; i++) {
		bool here = reply->slots[i] < ns->view->n_slots;

		if (here && m.hold)
			verb_use(ns->view, reply->slots[i]);
		if (here && ret_spans)
			kvbm__view_span(ns->view, reply->slots[i], reply->generations[i], &ret_spans[i]);
		else if (ret_spans)
			ret_spans[i] = (struct kvbm_span){ .slot = SHM_NO_SLOT };
	}
	ns->counters.looked_up += n;
	ns->counters.hits += reply->hits;
	ns->counters.misses += n - reply->hits;
	pthread_mutex_unlock(&ns->lock);
	return kvbm__verb_end(k, (int)reply->hits);
}

/* The daemon has gone: no hits.  Takes a step towards it, unless another thread is busy with that. */
static int match_without_daemon(struct kvbm_ns *ns, uint32_t n, unsigned flags, struct kvbm_span *ret_spans)
{
	struct kvbm *k = ns->kvbm;

	if (pthread_mutex_trylock(&k->lock) == 0) {
		if (k->state == CLIENT_UP && !shm_daemon_alive(k->life->page))
			kvbm__down(k, KVBM_E_GONE, "the daemon has ended");
		if (k->state == CLIENT_UP && kvbm__is_lost(ns) && kvbm__now_ns() >= ns->attach_ns)
			kvbm__attach_again(ns);
		(void)kvbm__progress(k, true);
		pthread_mutex_unlock(&k->lock);
	}
	pthread_mutex_lock(&ns->lock);
	ns->counters.looked_up += n;
	ns->counters.misses += n;
	pthread_mutex_unlock(&ns->lock);
	for (uint32_t i = 0; i < n && flags & KVBM_SCATTERED && ret_spans; i++)
		ret_spans[i] = (struct kvbm_span){ .slot = SHM_NO_SLOT };
	return 0;
}

int kvbm_match(struct kvbm_ns *ns, const void *keys, uint32_t n, unsigned flags, struct kvbm_span *ret_spans)
{
	struct kvbm *k = ns->kvbm;
	struct view *v;
	int r = -KVBM_E_GONE;

	if (__builtin_expect(kvbm__is_forked(k), 0))
		return -KVBM_E_FORKED;
	if (n > KVBM_MAX_KEYS || (n > 0 && (!keys || (!ret_spans && !(flags & KVBM_PEEK)))) ||
	    (flags & ~(KVBM_SCATTERED | KVBM_PEEK)))
		return kvbm__verb_invalid(k, "match takes up to 16384 keys, a place for their spans, and known flags");
	if (k->flags & KVBM_OPEN_BY_SOCKET)
		return match_by_socket(ns, keys, n, flags, ret_spans);
	pthread_mutex_lock(&ns->lock);
	v = ns->view;
	if (v && shm_daemon_alive(v->life->page) && shm_page_is_live(v->page) &&
	    !atomic_load_explicit(&v->shm->closed, memory_order_relaxed)) {
		if (!(flags & KVBM_PEEK) && v->max_pins && v->page->pinned + n > v->max_pins)
			r = -KVBM_E_LIMIT;
		else
			r = kvbm__lookup(ns, keys, n, flags, ret_spans);
	}
	pthread_mutex_unlock(&ns->lock);
	return r == -KVBM_E_GONE ? match_without_daemon(ns, n, flags, ret_spans) : r;
}

static int release_by_socket(struct kvbm_ns *ns, const struct kvbm_span *spans, uint32_t n)
{
	struct kvbm *k = ns->kvbm;
	struct pending what = { .kind = PENDING_CALL, .verb = KVBM__VERB__VERB_RELEASE, .ns = ns };
	Kvbm__ReleaseRequest m = KVBM__RELEASE_REQUEST__INIT;
	uint64_t deadline;
	int r = kvbm__verb_begin(k, ns, &deadline);

	if (r < 0) {
		if (r == -KVBM_E_GONE)
			verb_unuse_retired(ns, spans, n);
		return r;
	}
	if (verb_slots(ns, spans, n) < 0) {
		/* Held from a daemon that has gone, which is enough to let go of it here. */
		verb_unuse_retired(ns, spans, n);
		return kvbm__verb_end(k, kvbm__fail(k, KVBM_E_NOTHELD, "held from a daemon that has gone"));
	}
	m.ns = ns->view->number;
	m.slots = k->slots;
	m.generations = k->generations;
	m.n_slots = m.n_generations = n;
	r = kvbm__call(k, &what, &m.base, deadline);
	if (r == 0)
		verb_unuse(ns, spans, n);
	else if (r == -KVBM_E_GONE)
		verb_unuse_retired(ns, spans, n);
	return kvbm__verb_end(k, r < 0 ? r : (int)n);
}

int kvbm_release(struct kvbm_ns *ns, const struct kvbm_span *spans, uint32_t n)
{
	struct kvbm *k = ns->kvbm;
	int r;

	if (__builtin_expect(kvbm__is_forked(k), 0))
		return -KVBM_E_FORKED;
	if (n > KVBM_MAX_KEYS || (n > 0 && !spans))
		return kvbm__verb_invalid(k, "release takes up to 16384 spans");
	if (k->flags & KVBM_OPEN_BY_SOCKET)
		return release_by_socket(ns, spans, n);
	pthread_mutex_lock(&ns->lock);
	r = kvbm__unpin(ns, spans, n);
	pthread_mutex_unlock(&ns->lock);
	return r;
}

/* ---- onboard and prefetch ---- */

/* Holds of the leading @hits become pins.  One that cannot (a limit) ends the prefix.  Returns the hits that are left. */
static uint32_t onboard_hold(struct kvbm_ns *ns, uint32_t hits, uint8_t *status, struct kvbm_span *spans)
{
	uint32_t kept = 0;

	verb_own_holds(ns, spans, hits);
	while (kept < hits && spans[kept].slot != SHM_NO_SLOT)
		kept++;
	for (uint32_t i = kept; i < hits; i++) {
		if (spans[i].slot != SHM_NO_SLOT)
			(void)kvbm_release(ns, &spans[i], 1);
		spans[i] = (struct kvbm_span){ .slot = SHM_NO_SLOT };
		if (status)
			status[i] = KVBM_BUSY;
	}
	return kept;
}

static int onboard_reply(struct kvbm_ns *ns, uint32_t n, bool hold, uint8_t *ret_status, struct kvbm_span *ret_spans)
{
	struct kvbm *k = ns->kvbm;
	struct answer answer = k->answer;
	const Kvbm__OnboardReply *reply = answer.reply->onboard;
	uint32_t hits;

	if (!reply || reply->statuses.len != n || reply->n_slots != n || reply->n_generations != n || reply->hits > n)
		return kvbm__verb_bad_reply(k);
	for (uint32_t i = 0; i < reply->hits; i++)
		if (reply->slots[i] >= ns->view->n_slots)
			return kvbm__verb_bad_reply(k);
	memset(&k->answer, 0, sizeof(k->answer)); /* verb_own_holds() receives too */
	if (ret_status && n > 0)
		memcpy(ret_status, reply->statuses.data, n);
	for (uint32_t i = 0; ret_spans && i < n; i++) {
		if (i < reply->hits)
			kvbm__view_span(ns->view, reply->slots[i], reply->generations[i], &ret_spans[i]);
		else
			ret_spans[i] = (struct kvbm_span){ .slot = SHM_NO_SLOT };
	}
	hits = reply->hits;
	if (hold)
		hits = onboard_hold(ns, hits, ret_status, ret_spans);
	kvbm__answer_drop(&answer);
	return (int)hits;
}

int kvbm_onboard(struct kvbm_ns *ns, const void *keys, uint32_t n, const struct kvbm_onboard_options *options,
                 uint8_t *ret_status, struct kvbm_span *ret_spans)
{
	static const struct kvbm_onboard_options none;
	struct kvbm *k = ns->kvbm;
	struct pending what = { .kind = PENDING_CALL, .verb = KVBM__VERB__VERB_ONBOARD, .ns = ns };
	Kvbm__OnboardRequest m = KVBM__ONBOARD_REQUEST__INIT;
	uint64_t deadline;
	int r;

	if (!options)
		options = &none;
	if (n > KVBM_MAX_KEYS || (n > 0 && !keys) || (options->flags & ~KVBM_HOLD) ||
	    (options->flags & KVBM_HOLD && n > 0 && !ret_spans))
		return kvbm__verb_invalid(k, "onboard takes up to 16384 keys, known flags, and with HOLD a place for spans");
	r = kvbm__verb_begin(k, ns, &deadline);
	if (r < 0)
		return r;
	m.ns = ns->view->number;
	m.keys = kvbm__verb_keys(ns, keys, n);
	m.hold = options->flags & KVBM_HOLD;
	m.timeout_ms = (uint32_t)(options->timeout_ms > 0 ? options->timeout_ms : k->timeout_ms);
	m.tokens_per_s = options->tokens_per_s;
	/* The daemon answers at its deadline; ours is for a daemon that does not. */
	deadline += m.timeout_ms * UINT64_C(1000000);
	r = kvbm__call(k, &what, &m.base, deadline);
	return kvbm__verb_end(k, r < 0 ? r : onboard_reply(ns, n, m.hold, ret_status, ret_spans));
}

int kvbm_prefetch(struct kvbm_ns *ns, const void *keys, uint32_t n)
{
	struct kvbm *k = ns->kvbm;
	struct pending what = { .kind = PENDING_IGNORE, .verb = KVBM__VERB__VERB_PREFETCH, .ns = ns };
	Kvbm__PrefetchRequest m = KVBM__PREFETCH_REQUEST__INIT;
	uint64_t deadline, id;
	int r;

	if (n > KVBM_MAX_KEYS || (n > 0 && !keys))
		return kvbm__verb_invalid(k, "prefetch takes up to 16384 keys");
	r = kvbm__verb_begin(k, ns, &deadline);
	if (r < 0)
		return r;
	m.ns = ns->view->number;
	m.keys = kvbm__verb_keys(ns, keys, n);
	r = kvbm__post(k, &what, &m.base, &id);
	if (r == 0)
		r = kvbm__exchange(k);
	return kvbm__verb_end(k, r < 0 ? r : (int)n);
}
