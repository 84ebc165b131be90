/* SPDX-License-Identifier: Apache-2.0 */
/* dispatch.h: from a frame to a handler to a reply: exactly one for each frame. */
#ifndef KVBMD_SERVER_DISPATCH_H
#define KVBMD_SERVER_DISPATCH_H

#include "server/service.h"

enum { DISPATCH_E_LAST = 1 }; /* the session is to be closed once the reply is sent */

/* Serves @frame for @session; the reply is in @out.  Fault: it could not be written (-ENOMEM, or the output is full: -ENOBUFS),
 * close the session now.  A fault of a handler is answered with INTERNAL and DISPATCH_E_LAST. */
_must_check_ int dispatch_frame(struct service *service, struct session *session, const struct wire_frame *frame,
                                uint64_t now_ns, struct wire_out *out);

/* Sends @reply to the request of @head and counts it; what dispatch_frame() ends with.  Returns as that does. */
_must_check_ int dispatch_reply(struct service *service, struct session *session, const struct wire_head *head,
                                struct reply *reply, struct wire_out *out);

/* A last word to a peer whose bytes make no frame.  Best effort. */
void dispatch_refuse(struct service *service, enum reply_code code, const char *reason, struct wire_out *out);

#endif
