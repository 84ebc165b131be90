/* SPDX-License-Identifier: Apache-2.0 */
/* adoption.h: an engine's own device memory, as long as we may copy from and to it.
 *
 * Loop thread.  It belongs to the session that adopted it, and outlives it only until copies under way have ended and the device has let go of
 * the memory.  Its blocks in host memory are held and reserved by a holder of its own, because slots that a device still writes must stay
 * out of use even when the session, and its process, are gone.
 */
#ifndef KVBMD_SERVER_ADOPTION_H
#define KVBMD_SERVER_ADOPTION_H

#include "loop/loop.h"
#include "server/later.h"

#define ADOPTION_FLAGS 512u /* words: a page */
#define ADOPTION_MAX 16u    /* of a session */
#define ADOPTION_MAX_MEMORIES 256u
#define ADOPTION_MAX_EVENTS 64u
#define ADOPTION_ONLINE_NS (10 * UINT64_C(1000000000)) /* for a device's first context, and the import */

enum adoption_state {
	ADOPTION_WAITING,   /* for the device */
	ADOPTION_IMPORTING, /* done() of imports are to come */
	ADOPTION_READY,
	ADOPTION_LOST,    /* with its device: adopt again */
	ADOPTION_CLOSING, /* jobs, then done() of closes */
};

struct adoption;

struct adopted_memory {
	struct gpu_mem mem;
	struct adoption *adoption; /* borrows */
	bool is_open, is_asked;    /* asked: its descriptor is the device's */
};

struct adopted_event {
	struct gpu_event event;
	struct adoption *adoption; /* borrows */
	bool is_open;
};

/* A copy, or a wait for one, that has to end before the adoption can. */
struct adoption_job {
	struct list link;
	void (*lost)(struct adoption_job *job); /* the device is: answer now, end when the copy does */
};

struct adoption {
	struct list link;        /* in service->adoptions */
	struct service *service; /* borrows */
	struct later life;       /* tells the end of the session; then session is NULL */
	struct session *session; /* borrows */
	struct later asked;      /* the adopt request, while it waits */
	bool is_asked;
	enum adoption_state state;
	uint32_t id;
	struct holder *holder; /* owns */
	struct quota_user user;
	struct device *device; /* borrows */
	struct device_user watch;
	struct loop_timer late;
	uint32_t lane;
	uint64_t n_blocks;
	struct layout layout;
	struct gpu_plane *planes;        /* owns */
	struct adopted_memory *memories; /* own */
	struct adopted_event *events;
	uint32_t n_memories, n_events;
	struct tier_object flags; /* owns */
	struct gpu_pin flags_pin;
	bool is_pinned;
	struct list jobs; /* borrows: struct adoption_job */
	uint32_t open;    /* done() of the device still to come */
	int result;       /* of the imports: the first that failed */
};

/* The session's, or NULL. */
struct adoption *adoption_find(const struct request *q, uint32_t id);

/* A job is under way until adoption_job_end(), in which the adoption may go. */
void adoption_job_begin(struct adoption *a, struct adoption_job *job, void (*lost)(struct adoption_job *job));
void adoption_job_end(struct adoption *a, struct adoption_job *job);

/* Begins to wait, to import, and to answer @q; takes @a over. */
void adoption_start(struct adoption *a, const struct request *q, struct reply *reply);
/* Not used any more.  Ends once its jobs have. */
void adoption_close(struct adoption *a);
/* Of what never was started. */
void adoption_free(struct adoption *a);

/* A word of the flags, which the client writes too. */
static inline _Atomic uint64_t *adoption_flag(const struct adoption *a, uint32_t index)
{
	return (_Atomic uint64_t *)a->flags.base + index;
}

#endif
