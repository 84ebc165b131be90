/* SPDX-License-Identifier: Apache-2.0 */
/* admin: flush and drop, for uid 0, the daemon's own uid and daemon.admin_uids.  Owns nothing. */
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "server/service.h"
#include "server/session.h"

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

static int admin_flush(const struct request *q, const Kvbm__AdminRequest *m, struct reply *reply, uint32_t *ret_dropped,
                       uint32_t *ret_kept)
{
	if (m->keys.len > 0) {
		reply_fail(reply, REPLY_INVAL, "flush takes no keys; drop does");
		return 0;
	}
	return store_flush(q->service->store, m->name[0] ? m->name : NULL, ret_dropped, ret_kept);
}

/* Without keys the whole namespace goes, if nobody is attached; else its blocks that are not in use. */
static int admin_drop(const struct request *q, const Kvbm__AdminRequest *m, struct reply *reply, uint32_t *ret_dropped,
                      uint32_t *ret_kept)
{
	struct store_drop a = { .name = m->name, .keys = m->keys.data, .key_bytes = m->key_bytes };
	int r;

	if (!m->name[0]) {
		reply_fail(reply, REPLY_INVAL, "drop needs a namespace; flush drops from all");
		return 0;
	}
	if (m->keys.len == 0) {
		r = store_remove(q->service->store, m->name, ret_dropped);
		if (r == STORE_E_LIMIT)
			r = store_flush(q->service->store, m->name, ret_dropped, ret_kept);
		return r;
	}
	if (m->key_bytes < KEY_MIN || m->key_bytes > KEY_MAX) {
		reply_fail(reply, REPLY_INVAL, "key_bytes %u is not in %u..%u", m->key_bytes, KEY_MIN, KEY_MAX);
		return 0;
	}
	if (!request_keys(&m->keys, m->key_bytes, reply, &a.n))
		return 0;
	r = store_drop(q->service->store, &a);
	*ret_dropped = a.dropped;
	*ret_kept = a.kept;
	return r;
}

int handle_admin(const struct request *q, struct reply *reply)
{
	const Kvbm__AdminRequest *m = q->message;
	Kvbm__CountReply *body = &reply->body.count;
	uint32_t dropped = 0, kept = 0;
	int r;

	if (!request_is_admin(q)) {
		reply_fail(reply, REPLY_PERM, "uid %u is neither 0, nor the daemon's, nor in daemon.admin_uids",
		           q->session->uid);
		return 0;
	}
	if (strcmp(m->action, "flush") == 0) {
		r = admin_flush(q, m, reply, &dropped, &kept);
	} else if (strcmp(m->action, "drop") == 0) {
		r = admin_drop(q, m, reply, &dropped, &kept);
	} else {
		reply_fail(reply, REPLY_INVAL, "action %.64s is unknown: flush or drop", m->action);
		r = 0;
	}
	if (r < 0)
		return error_trace(r);
	if (r > 0)
		reply_fail_store(reply, r, m->action);
	if (reply->code != REPLY_OK)
		return 0;
	log_info("%s of %.63s by uid %u (pid %d): %u dropped, %u in use", m->action,
	         m->name[0] ? m->name : "all namespaces", q->session->uid, (int)q->session->pid, dropped, kept);
	kvbm__count_reply__init(body);
	body->n = dropped;
	body->kept = kept;
	reply->message.count = body;
	return 0;
}
