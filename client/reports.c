/* SPDX-License-Identifier: Apache-2.0 */
/* The calls of kvbm.h that are messages and hold nothing: advice, where blocks are, reports, administration.  Owns nothing. */
#include <stdlib.h>
#include <string.h>

#include "client/client.h"

/* ---- hints, stat, reports ---- */

int kvbm_hint(struct kvbm_ns *ns, enum kvbm_hint hint, const void *keys, uint32_t n, uint32_t ttl_ms, uint32_t priority)
{
	struct kvbm *k = ns->kvbm;
	struct pending what = { .kind = PENDING_CALL, .verb = KVBM__VERB__VERB_HINT, .ns = ns };
	Kvbm__HintRequest m = KVBM__HINT_REQUEST__INIT;
	uint64_t deadline;
	int r;

	if (n > KVBM_MAX_KEYS || (n > 0 && !keys))
		return kvbm__verb_invalid(k, "hint takes up to 16384 keys");
	r = kvbm__verb_begin(k, ns, &deadline);
	if (r < 0)
		return r;
	m.ns = ns->view->number;
	m.hint = (uint32_t)hint;
	m.keys = kvbm__verb_keys(ns, keys, n);
	m.ttl_ms = ttl_ms;
	m.priority = priority;
	r = kvbm__call(k, &what, &m.base, deadline);
	if (r == 0)
		r = k->answer.reply->count ? (int)k->answer.reply->count->n : kvbm__verb_bad_reply(k);
	return kvbm__verb_end(k, r);
}

int kvbm_stat(struct kvbm_ns *ns, const void *keys, uint32_t n, uint32_t *ret_tiers)
{
	struct kvbm *k = ns->kvbm;
	struct pending what = { .kind = PENDING_CALL, .verb = KVBM__VERB__VERB_STAT, .ns = ns };
	Kvbm__StatRequest m = KVBM__STAT_REQUEST__INIT;
	const Kvbm__StatReply *reply;
	uint64_t deadline;
	int r, present = 0;

	if (n > KVBM_MAX_KEYS || (n > 0 && (!keys || !ret_tiers)))
		return kvbm__verb_invalid(k, "stat takes up to 16384 keys and a place for their tiers");
	r = kvbm__verb_begin(k, ns, &deadline);
	if (r < 0)
		return r;
	m.ns = ns->view->number;
	m.keys = kvbm__verb_keys(ns, keys, n);
	r = kvbm__call(k, &what, &m.base, deadline);
	if (r < 0)
		return kvbm__verb_end(k, r);
	reply = k->answer.reply->stat;
	if (!reply || reply->tiers.len != n)
		return kvbm__verb_end(k, kvbm__verb_bad_reply(k));
	for (uint32_t i = 0; i < n; i++) {
		ret_tiers[i] = reply->tiers.data[i];
		present += ret_tiers[i] != 0;
	}
	return kvbm__verb_end(k, present);
}

int kvbm_ping(struct kvbm *k)
{
	struct pending what = { .kind = PENDING_CALL, .verb = KVBM__VERB__VERB_PING };
	uint64_t deadline;
	int r = kvbm__verb_begin(k, NULL, &deadline);

	return r < 0 ? r : kvbm__verb_end(k, kvbm__call(k, &what, NULL, deadline));
}

int kvbm_info(struct kvbm *k, const char *topic, const char *name, const void *key, uint32_t key_bytes, char **ret_json)
{
	struct pending what = { .kind = PENDING_CALL, .verb = KVBM__VERB__VERB_INFO };
	Kvbm__InfoRequest m = KVBM__INFO_REQUEST__INIT;
	const Kvbm__InfoReply *reply;
	uint64_t deadline;
	char *json;
	int r;

	if (!topic || !ret_json || key_bytes > KVBM_KEY_MAX)
		return kvbm__verb_invalid(k, "info needs a topic and a place for the report");
	r = kvbm__verb_begin(k, NULL, &deadline);
	if (r < 0)
		return r;
	m.topic = (char *)topic;
	m.name = (char *)(name ? name : "");
	m.key = (ProtobufCBinaryData){ .len = key ? key_bytes : 0, .data = (uint8_t *)key };
	r = kvbm__call(k, &what, &m.base, deadline);
	if (r < 0)
		return kvbm__verb_end(k, r);
	reply = k->answer.reply->info;
	if (!reply)
		return kvbm__verb_end(k, kvbm__verb_bad_reply(k));
	json = malloc(reply->json.len + 1);
	if (!json)
		return kvbm__verb_end(k, kvbm__fail(k, KVBM_E_NOMEM, "out of memory"));
	if (reply->json.len > 0)
		memcpy(json, reply->json.data, reply->json.len);
	json[reply->json.len] = '\0';
	*ret_json = json;
	return kvbm__verb_end(k, 0);
}

int kvbm_admin(struct kvbm *k, const char *action, const char *name, const void *keys, uint32_t key_bytes, uint32_t n,
               uint32_t *ret_kept)
{
	struct pending what = { .kind = PENDING_CALL, .verb = KVBM__VERB__VERB_ADMIN };
	Kvbm__AdminRequest m = KVBM__ADMIN_REQUEST__INIT;
	uint64_t deadline;
	int r;

	if (!action || n > KVBM_MAX_KEYS || key_bytes > KVBM_KEY_MAX || (n > 0 && !keys))
		return kvbm__verb_invalid(k, "admin needs an action, and up to 16384 keys");
	r = kvbm__verb_begin(k, NULL, &deadline);
	if (r < 0)
		return r;
	m.action = (char *)action;
	m.name = (char *)(name ? name : "");
	m.keys = (ProtobufCBinaryData){ .len = (size_t)n * key_bytes, .data = (uint8_t *)keys };
	m.key_bytes = key_bytes;
	r = kvbm__call(k, &what, &m.base, deadline);
	if (r == 0 && !k->answer.reply->count)
		r = kvbm__verb_bad_reply(k);
	if (r < 0)
		return kvbm__verb_end(k, r);
	if (ret_kept)
		*ret_kept = k->answer.reply->count->kept;
	return kvbm__verb_end(k, (int)k->answer.reply->count->n);
}
