/* SPDX-License-Identifier: Apache-2.0 */
/* hello and ping: who is there, and which protocol both speak.  Owns nothing. */
#include <inttypes.h>
#include <string.h>

#include <kvbm_version.h>

#include "server/service.h"
#include "server/session.h"

int handle_hello(const struct request *q, struct reply *reply)
{
	const Kvbm__HelloRequest *m = q->message;
	Kvbm__HelloReply *body = &reply->body.hello;

	if (session_is_open(q->session)) {
		reply_fail(reply, REPLY_INVAL, "hello was said already");
		return 0;
	}
	if (m->version_major != KVBM_PROTO_MAJOR) {
		reply_fail(reply, REPLY_VERSION, "the daemon speaks protocol %d.%d, the client %u.%u", KVBM_PROTO_MAJOR,
		           KVBM_PROTO_MINOR, m->version_major, m->version_minor);
		reply->last = true;
		return 0;
	}
	if (strlen(m->name) >= SESSION_NAME_MAX) {
		reply_fail(reply, REPLY_INVAL, "the client's name is longer than %u bytes", SESSION_NAME_MAX - 1);
		return 0;
	}
	if (!reply_add_fd(reply, q->service->life->ro_fd))
		return 0;
	session_open(q->session, m->name[0] ? m->name : "?");
	kvbm__hello_reply__init(body);
	body->version_major = KVBM_PROTO_MAJOR;
	body->version_minor = KVBM_PROTO_MINOR;
	body->session = q->session->id;
	body->server = "kvbmd " KVBM_VERSION;
	reply->message.hello = body;
	return 0;
}

int handle_ping(const struct request *q, struct reply *reply)
{
	(void)q;
	(void)reply;
	return 0;
}
