/* SPDX-License-Identifier: Apache-2.0 */
/* admin: flush, drop, prefetch and drain, for uid 0, the daemon's own uid and daemon.admin_uids.
 *
 * What takes long is done a bit a turn, so that nobody waits for it, and is answered at the end.  Owns what such a request keeps until then; it ends
 * unfinished with its session.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "loop/loop.h"
#include "server/later.h"
#include "server/session.h"

#define ADMIN_STEP \
	1024u /* some 32 blocks; the loop takes 16 such steps between two looks at descriptors, less than 1 ms in all */

struct flushing {
	struct later later;
	struct loop_deferred deferred;
	struct store_flush flush;
	struct store *store; /* borrows */
	char what[160];      /* for the log */
};

bool request_is_admin(const struct request *q)
{
	uint32_t uid = q->session->uid;

	if (uid == 0 || uid == geteuid())
		return true;
	for (uint32_t i = 0; i < q->service->n_admin_uids; i++)
		if (q->service->admin_uids[i] == uid)
			return true;
	return false;
}

static void admin_reply(struct reply *reply, const char *what, uint32_t n, uint32_t kept)
{
	Kvbm__CountReply *body = &reply->body.count;

	log_info("%s: %u blocks, and %u that stay as they are", what, n, kept);
	kvbm__count_reply__init(body);
	body->n = n;
	body->kept = kept;
	reply->message.count = body;
}

static void flushing_on_turn(struct loop_deferred *d)
{
	struct flushing *f = container_of(d, struct flushing, deferred);
	struct reply reply;

	if (!store_flush_step(f->store, &f->flush, ADMIN_STEP)) {
		loop_defer(f->later.session->sessions->loop, d, flushing_on_turn);
		return;
	}
	reply_init(&reply);
	admin_reply(&reply, f->what, f->flush.dropped, f->flush.kept);
	later_reply(&f->later, &reply);
	free(f);
}

static void flushing_on_cancel(struct later *l)
{
	struct flushing *f = container_of(l, struct flushing, later);

	log_info("%s: %u dropped, %u in use, unfinished: its session has ended", f->what, f->flush.dropped, f->flush.kept);
	loop_deferred_cancel(&f->deferred);
	free(f);
}

/* Goes on in the turns to come what this one does not end. */
static int admin_flush(const struct request *q, const char *what, struct store_flush *flush, struct reply *reply)
{
	struct store *store = q->service->store;
	struct flushing *f;

	if (store_flush_step(store, flush, ADMIN_STEP)) {
		admin_reply(reply, what, flush->dropped, flush->kept);
		return 0;
	}
	f = calloc(1, sizeof(*f));
	if (!f)
		return error_origin(-ENOMEM);
	f->flush = *flush;
	f->store = store;
	snprintf(f->what, sizeof(f->what), "%s", what);
	later_begin(&f->later, q, reply, flushing_on_cancel);
	loop_deferred_init(&f->deferred);
	loop_defer(q->session->sessions->loop, &f->deferred, flushing_on_turn);
	return 0;
}

static int admin_drop_keys(const struct request *q, const Kvbm__AdminRequest *m, const char *what, struct reply *reply)
{
	struct store_drop a = { .name = m->name, .keys = m->keys.data, .key_bytes = m->key_bytes };
	int r;

	if (m->key_bytes < KEY_MIN || m->key_bytes > KEY_MAX) {
		reply_fail(reply, REPLY_INVAL, "key_bytes %u is not in %u..%u", m->key_bytes, KEY_MIN, KEY_MAX);
		return 0;
	}
	if (!request_keys(&m->keys, m->key_bytes, reply, &a.n))
		return 0;
	r = store_drop(q->service->store, &a);
	if (r == 0)
		admin_reply(reply, what, a.dropped, a.kept);
	return r;
}

/* The keys of @m, if they are some of one length. */
static bool admin_keys(const Kvbm__AdminRequest *m, struct reply *reply, uint32_t *ret_n)
{
	if (!m->name[0] || m->keys.len == 0) {
		reply_fail(reply, REPLY_INVAL, "%.16s needs a namespace and keys", m->action);
		return false;
	}
	if (m->key_bytes < KEY_MIN || m->key_bytes > KEY_MAX) {
		reply_fail(reply, REPLY_INVAL, "key_bytes %u is not in %u..%u", m->key_bytes, KEY_MIN, KEY_MAX);
		return false;
	}
	return request_keys(&m->keys, m->key_bytes, reply, ret_n);
}

static int admin_prefetch(const struct request *q, const Kvbm__AdminRequest *m, struct reply *reply)
{
	uint32_t n;

	return admin_keys(m, reply, &n) ? onboard_for_admin(q, m->name, &m->keys, n, reply) : 0;
}

/* Is there somewhere to write to? */
static int admin_drain(const struct request *q, const Kvbm__AdminRequest *m, const char *what, struct reply *reply)
{
	struct tier_lower *lower = q->service->lower;
	struct tier_lower_stat stat;
	uint32_t begun, cannot;
	int r;

	if (!lower) {
		reply_fail(reply, REPLY_NOENT, "there is no g3: see g3.path in kvbmd.conf");
		return 0;
	}
	lower->ops->stat(lower, &stat);
	if (!stat.online) {
		reply_fail(reply, REPLY_BUSY, "g3 is %s%s%.300s", stat.state, stat.note && *stat.note ? ": " : "",
		           stat.note ? stat.note : "");
		return 0;
	}
	r = store_drain(q->service->store, m->name[0] ? m->name : NULL, &begun, &cannot);
	if (r == 0)
		admin_reply(reply, what, begun, cannot);
	return r;
}

static int admin_do(const struct request *q, const Kvbm__AdminRequest *m, const char *what, struct reply *reply)
{
	struct store *store = q->service->store;
	bool drop = strcmp(m->action, "drop") == 0;
	struct store_flush flush;
	int r;

	if (strcmp(m->action, "prefetch") == 0)
		return admin_prefetch(q, m, reply);
	if (strcmp(m->action, "drain") == 0)
		return admin_drain(q, m, what, reply);
	if (!drop && strcmp(m->action, "flush") != 0) {
		reply_fail(reply, REPLY_INVAL, "action %.64s is unknown: flush, drop, prefetch or drain", m->action);
		return 0;
	}
	if (drop && !m->name[0]) {
		reply_fail(reply, REPLY_INVAL, "drop needs a namespace; flush drops from all");
		return 0;
	}
	if (!drop && m->keys.len > 0) {
		reply_fail(reply, REPLY_INVAL, "flush takes no keys; drop does");
		return 0;
	}
	if (m->keys.len > 0)
		return admin_drop_keys(q, m, what, reply);
	if (!later_may(q, reply))
		return 0;
	/* Drop without keys: the whole namespace goes, if nobody is attached; else its blocks that are not in use. */
	r = store_flush_begin(store, m->name[0] ? m->name : NULL, drop, &flush);
	if (r == STORE_E_LIMIT)
		r = store_flush_begin(store, m->name, false, &flush);
	return r == 0 ? admin_flush(q, what, &flush, reply) : r;
}

int handle_admin(const struct request *q, struct reply *reply)
{
	const Kvbm__AdminRequest *m = q->message;
	char what[160];
	int r;

	if (!request_is_admin(q)) {
		reply_fail(reply, REPLY_PERM, "uid %u is neither 0, nor the daemon's, nor in daemon.admin_uids",
		           q->session->uid);
		return 0;
	}
	snprintf(what, sizeof(what), "%.16s of %.63s by uid %u (pid %d)", m->action,
	         m->name[0] ? m->name : "all namespaces", q->session->uid, (int)q->session->pid);
	r = admin_do(q, m, what, reply);
	if (r < 0)
		return error_trace(r);
	if (r > 0)
		reply_fail_store(reply, r, m->action);
	return 0;
}
