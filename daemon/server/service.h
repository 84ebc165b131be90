/* SPDX-License-Identifier: Apache-2.0 */
/* service.h: what handlers see of the daemon, and what they are called with. */
#ifndef KVBMD_SERVER_SERVICE_H
#define KVBMD_SERVER_SERVICE_H

#include <stdbool.h>
#include <stdint.h>

#include <kvbm.h>

#include "move/store.h"
#include "server/arena.h"
#include "server/life.h"
#include "server/reply.h"
#include "tier/device.h"

struct session;
struct sessions;

/* Outputs of the request being served. */
struct scratch {
	uint32_t slots[KVBM_MAX_KEYS];
	uint32_t generations[KVBM_MAX_KEYS];
	uint8_t states[KVBM_MAX_KEYS];
};

struct service {
	struct store *store;        /* borrows */
	struct tier *host;          /* borrows */
	struct devices *devices;    /* borrows; NULL: none, ever */
	const bool *pools_are_made; /* borrows; NULL: there are none, ever */
	struct list adoptions;      /* owns: struct adoption; those of sessions that have ended too */
	struct sessions *sessions;  /* borrows; set by sessions_init() */
	const struct life *life;    /* borrows */
	const char *socket;         /* borrows; for reports */
	const uint32_t *admin_uids; /* borrows; beside 0 and our own */
	uint32_t n_admin_uids;
	uint64_t start_ns;
	uint64_t wait_ns;         /* the longest that a request may wait for copies */
	struct tier_lower *lower; /* borrows; for reports; NULL: there is none */
	const char *lower_paths;  /* borrows; with commas */
	struct arena arena;       /* owns */
	struct scratch *scratch;  /* owns */
};

/* The borrowed pointers are the caller's to fill in, before or after.  Faults only. */
_must_check_ int service_init(struct service *service);
void service_deinit(struct service *service);

struct request {
	struct service *service;
	struct session *session;
	const void *message; /* borrows: the decoded *Request; NULL for ping */
	const struct wire_head *head;
	const struct wire_frame *frame; /* its descriptors are closed after the handler: duplicate them */
	uint64_t now_ns;
};

/* A handler fills @reply (made REPLY_OK and empty by the caller) and returns 0, or a fault. */
int handle_hello(const struct request *q, struct reply *reply);
int handle_ping(const struct request *q, struct reply *reply);
int handle_attach(const struct request *q, struct reply *reply);
int handle_region(const struct request *q, struct reply *reply);
int handle_reserve(const struct request *q, struct reply *reply);
int handle_commit(const struct request *q, struct reply *reply);
int handle_abort(const struct request *q, struct reply *reply);
int handle_match(const struct request *q, struct reply *reply);
int handle_release(const struct request *q, struct reply *reply);
int handle_hint(const struct request *q, struct reply *reply);
int handle_stat(const struct request *q, struct reply *reply);
int handle_info(const struct request *q, struct reply *reply);
int handle_admin(const struct request *q, struct reply *reply);
int handle_onboard(const struct request *q, struct reply *reply);
int handle_prefetch(const struct request *q, struct reply *reply);
int handle_adopt(const struct request *q, struct reply *reply);
int handle_disown(const struct request *q, struct reply *reply);
int handle_store(const struct request *q, struct reply *reply);
int handle_load(const struct request *q, struct reply *reply);
/* The same of any namespace and for whoever wants to know when it is done.  Reply: count; kept: those that are not in memory then. */
int onboard_for_admin(const struct request *q, const char *ns_name, const ProtobufCBinaryData *keys, uint32_t n,
                      struct reply *reply);

/* What several handlers need of a request's arguments.  Each answers false after it has failed the reply. */
bool request_holder(const struct request *q, uint32_t ns, struct reply *reply, struct holder **ret_holder,
                    uint32_t *ret_key_bytes);
/* Is @keys a whole number of keys, not more than KVBM_MAX_KEYS? */
bool request_keys(const ProtobufCBinaryData *keys, uint32_t key_bytes, struct reply *reply, uint32_t *ret_n);
/* Are both lists equally long, and not longer than KVBM_MAX_KEYS? */
bool request_slots(size_t n_slots, size_t n_generations, struct reply *reply);
/* May this session administrate? */
bool request_is_admin(const struct request *q);

#endif
