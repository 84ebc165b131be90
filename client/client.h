/* SPDX-License-Identifier: Apache-2.0 */
/* client.h: inside libkvbm.
 *
 *   client.c   a session's life: open, close, texts, counters, the host loop's descriptor
 *   join.c     getting to the daemon, again and again: connect, hello, attach; what its replies mean
 *   call.c     one request, one reply, a deadline; replies that nobody waits for
 *   view.c     a namespace's objects as mapped from one daemon: index, records, session page, regions
 *   lookup.c   match and release through shared memory
 *   verbs.c    the calls of kvbm.h that are messages
 *   reports.c  those of them that hold nothing: advice, reports, administration
 *   adopt.c    those on an engine's own device memory
 *
 * Threads: kvbm->lock covers the connection and is held while a message is under way; ns->lock covers a namespace's view, and is
 * all that a match or release through shared memory takes.  Both: kvbm->lock first.
 *
 * A daemon that goes away takes its connection with it, not the memory: its views are retired, and stay mapped as far as something is
 * held or written in them.  A span says by its region number which view it belongs to.
 */
#ifndef KVBM_CLIENT_H
#define KVBM_CLIENT_H

#include <kvbm.h>
#include <pthread.h>
#include <stdbool.h>

#include "kvbm.pb-c.h"
#include "proto/shm_pin.h"
#include "proto/wire.h"

#define CLIENT_MAX_NS 64u      /* namespaces a session attaches to, at most; the daemon's limit */
#define CLIENT_MAX_PENDING 64u /* requests without a reply yet, at most */
#define CLIENT_TEXT_MAX 512u
#define CLIENT_RETRY_MIN_MS 10u
#define CLIENT_RETRY_MAX_MS 1000u

/* A span's region number is epoch << CLIENT_REGION_BITS | (index of the region + 1). */
#define CLIENT_REGION_BITS 20u
#define CLIENT_REGION_MASK ((1u << CLIENT_REGION_BITS) - 1u)
#define CLIENT_EPOCH_MASK 0xfffu

/* The page that tells whether a daemon lives, shared by what came from that daemon. */
struct life {
	const struct shm_life *page; /* owns the mapping */
	uint64_t boot_id;
	unsigned refs;
};

struct view_region {
	void *base; /* owns; NULL: not mapped; of a pool: an address on its device */
	void (*unmap)(void *mapping);
	void *mapping; /* owns; what unmap() takes; NULL: host memory */
	uint64_t size, lane_area;
	uint32_t serial;
	uint32_t used; /* slots of it that the caller has reserved, or holds by message */
	uint64_t held; /* once retired: pins of it that are left */
};

/* A namespace as one daemon gave it to us. */
struct view {
	struct view *next; /* in ns->retired */
	struct life *life; /* owns a reference */
	uint32_t epoch;
	uint32_t number; /* of the namespace in this connection's requests */
	bool writable, retired;
	uint32_t tier; /* KVBM_TIER_* of its slots */
	uint64_t max_pins;
	/* owns the mappings */
	const struct shm_ns *shm;
	const struct shm_record *records;
	struct shm_page *page;
	size_t shm_size, records_size, page_size;
	/* copies of what the header says, checked once */
	const struct shm_line *lines;
	uint64_t n_lines, salt[2], lane_bytes, lane_stride;
	uint32_t n_slots, n_regions, shift, group_shift, lanes, key_bytes;
	bool confirm;
	struct view_region *regions; /* owns */
};

struct kvbm_ns {
	struct kvbm *kvbm; /* borrows */
	struct kvbm_model model;
	char name[64], model_text[256], hash_algo[64], salt[256], device[64]; /* what model points to */
	/* as first attached */
	uint8_t fingerprint[16];
	uint64_t lane_bytes;
	uint32_t lanes, key_bytes;
	pthread_mutex_t lock;
	struct view *view;    /* owns; NULL: not attached now */
	struct view *retired; /* owns */
	int refused;          /* KVBM_E_* of the last attach, when view is NULL and the daemon there; 0 */
	bool attaching;       /* a pool: to the one of its device's next life; kvbm->lock */
	uint64_t attach_ns;   /* not before, where nobody waits for it */
	uint32_t epochs;
	struct kvbm_adoption *adoptions; /* owns */
	struct kvbm_counters counters;   /* of calls through shared memory; under lock */
};

enum pending_kind {
	PENDING_CALL = 1, /* somebody waits */
	PENDING_NOWAIT,   /* a commit whose outcome is counted */
	PENDING_IGNORE,
	PENDING_LATE, /* nobody waits any more: what it holds or reserves has to be given back */
	PENDING_HELLO,
	PENDING_ATTACH, /* attaching again */
};

struct pending {
	uint64_t id;
	enum pending_kind kind;
	uint16_t verb;
	struct kvbm_ns *ns; /* borrows; may be NULL */
	uint32_t lane, n;
	const int *fds; /* borrows until it is queued: sent along, duplicated */
	unsigned n_fds;
};

enum client_state { CLIENT_DOWN = 0, CLIENT_JOINING, CLIENT_UP };

struct answer {
	Kvbm__Reply *reply;    /* owns */
	int fds[WIRE_MAX_FDS]; /* owns; -1 where taken */
	unsigned n_fds;
};

struct kvbm {
	char socket[108], name[64];
	int timeout_ms;
	unsigned flags;
	uint8_t *here; /* owns a page that is zero in a forked child */
	pthread_mutex_t lock;

	enum client_state state;
	int fd;      /* owns; -1: down */
	int poll_fd; /* owns; an epoll of fd: what the host loop watches */
	struct wire_in in;
	struct wire_out out;
	uint64_t last_id;
	struct pending pending[CLIENT_MAX_PENDING];
	unsigned n_pending;
	uint64_t waits_for;   /* id of the call under way; 0: none */
	struct answer answer; /* to it */
	unsigned join_left;   /* replies still to come before UP */
	int join_error;       /* KVBM_E_* of a refused join */
	uint64_t retry_ns;    /* not before */
	unsigned retry_ms;
	struct life *life; /* owns a reference; of the daemon we are, or were last, connected to */

	struct kvbm_ns *ns[CLIENT_MAX_NS]; /* owns */
	unsigned n_ns;
	uint32_t *slots, *generations; /* owns; KVBM_MAX_KEYS each: arguments of the message being made */
	struct kvbm_counters counters;
	char error[CLIENT_TEXT_MAX];
};

uint64_t kvbm__now_ns(void);
static inline bool kvbm__is_forked(const struct kvbm *k)
{
	return *(volatile uint8_t *)k->here == 0;
}

/* Sets the text of the last failure; returns -code. */
int kvbm__fail(struct kvbm *k, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* ---- join.c; kvbm->lock is held ---- */

/* Makes progress without waiting, and starts to join if it is time.  0, or -KVBM_E_* if the connection has just ended. */
int kvbm__progress(struct kvbm *k, bool may_connect);
/* Waits until the session is up, or the deadline. */
int kvbm__ready(struct kvbm *k, uint64_t deadline_ns);
/* A reply to hello or to attaching again. 0, or -KVBM_E_* when the connection had to end. */
int kvbm__joined(struct kvbm *k, const struct pending *p, struct answer *a);
/* The connection is over.  Returns -code. */
int kvbm__down(struct kvbm *k, int code, const char *why);
void kvbm__life_put(struct life *life);
void kvbm__model_message(const struct kvbm_ns *ns, Kvbm__AttachRequest *ret_message);
/* Of a pool: its device was lost, and what was in it with it; or that was so before, and it is not attached yet. */
bool kvbm__is_lost(const struct kvbm_ns *ns);
/* Attaches to the pool of the device's next life, without waiting; the session is up. */
void kvbm__attach_again(struct kvbm_ns *ns);
/* A view out of an attach reply. 0 or -KVBM_E_*. */
int kvbm__attached(struct kvbm_ns *ns, struct answer *a);

/* ---- call.c; kvbm->lock is held ---- */

/* Queues a request. 0 and *ret_id, or -KVBM_E_*. */
int kvbm__post(struct kvbm *k, const struct pending *what, const ProtobufCMessage *message, uint64_t *ret_id);
/* Sends and receives what is possible without waiting.  Returns replies taken or -KVBM_E_GONE/PROTO. */
int kvbm__exchange(struct kvbm *k);
/* Waits for more input, or output; 0 or -KVBM_E_TIMEOUT. */
int kvbm__wait(struct kvbm *k, uint64_t deadline_ns);
/* A request and its reply, which is in k->answer on 0 until kvbm__answer_drop().  -KVBM_E_* also when the reply says so.  The session
 * must be ready. */
int kvbm__call(struct kvbm *k, const struct pending *what, const ProtobufCMessage *message, uint64_t deadline_ns);
void kvbm__answer_drop(struct answer *a);
int kvbm__answer_take_fd(struct answer *a, unsigned i);
/* Nobody waits for anything any more. */
void kvbm__forget_pending(struct kvbm *k);

/* ---- verbs.c: how a call that is a message begins and ends ---- */

/* Locks the session for a message.  On failure it is unlocked again. */
int kvbm__verb_begin(struct kvbm *k, struct kvbm_ns *ns, uint64_t *ret_deadline_ns);
/* Drops the answer and unlocks.  Returns @r. */
int kvbm__verb_end(struct kvbm *k, int r);
/* Of arguments, before verb_begin. */
int kvbm__verb_invalid(struct kvbm *k, const char *what);
int kvbm__verb_bad_reply(struct kvbm *k);
ProtobufCBinaryData kvbm__verb_keys(const struct kvbm_ns *ns, const void *keys, uint32_t n);

/* ---- adopt.c ---- */

/* @forked: their mappings are not there. */
void kvbm__adoptions_free(struct kvbm_ns *ns, bool forked);

/* ---- view.c ---- */

/* Takes the descriptors.  NULL: what they show is not as it must be; *ret_why says what. */
struct view *kvbm__view_new(const int fds[3], const Kvbm__AttachReply *reply, struct life *life, const char **ret_why);
void kvbm__view_free(struct view *v);
/* Harmless when it is not mapped. */
void kvbm__region_unmap(struct view_region *r);
/* ns->lock is held: the current view becomes a retired one, or goes at once when nothing of it is in use. */
void kvbm__view_retire(struct kvbm_ns *ns);
/* ns->lock is held: retired views that nothing is used of any more go. */
void kvbm__view_sweep(struct kvbm_ns *ns);
struct view *kvbm__view_retired(struct kvbm_ns *ns, const struct kvbm_span *span);

static inline uint32_t kvbm__view_region(const struct view *v, uint32_t slot)
{
	return slot >> v->shift;
}

/* Does @span name a slot of @v? */
static inline bool kvbm__view_has(const struct view *v, const struct kvbm_span *span)
{
	return span->slot < v->n_slots &&
	       span->region == (v->epoch << CLIENT_REGION_BITS | (kvbm__view_region(v, span->slot) + 1));
}

/* ns->lock is held.  The view a span belongs to, if it is there and names a slot of it; else NULL. */
static inline struct view *kvbm__view_of(struct kvbm_ns *ns, const struct kvbm_span *span)
{
	struct view *v = ns->view;

	return v && kvbm__view_has(v, span) ? v : kvbm__view_retired(ns, span);
}

static inline void kvbm__view_span(const struct view *v, uint32_t slot, uint32_t generation, struct kvbm_span *ret)
{
	uint32_t region = kvbm__view_region(v, slot);

	*ret = (struct kvbm_span){
		.slot = slot,
		.generation = generation,
		.region = v->epoch << CLIENT_REGION_BITS | (region + 1),
		.tiers = v->tier,
		.offset = (uint64_t)(slot - (region << v->shift)) * v->lane_stride,
		.length = v->lane_bytes,
	};
}

/* ---- lookup.c; ns->lock is held ---- */

int kvbm__lookup(struct kvbm_ns *ns, const uint8_t *keys, uint32_t n, unsigned flags, struct kvbm_span *ret_spans);
/* Outcome: -KVBM_E_NOTHELD. */
int kvbm__unpin(struct kvbm_ns *ns, const struct kvbm_span *spans, uint32_t n);
/* Pins what is known to be held otherwise.  false: not beyond a limit. */
bool kvbm__pin(struct view *v, uint32_t slot);

#endif
