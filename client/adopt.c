/* SPDX-License-Identifier: Apache-2.0 */
/* An engine's own device memory: adopt, store, load.  Knows no CUDA: handles and descriptors are the caller's.
 *
 * Owns the mapping of each adoption's flags.  Invariant: an adoption is used only on the connection that made it; whoever attaches again is another
 * session to the daemon, and would name somebody else's number.
 */
#include <errno.h>
#include <kvbm_device.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/client.h"

#define HANDLE_BYTES 64u
#define MAX_MEMORIES 256u
#define MAX_PLANES 1024u
#define MAX_EVENTS 64u
#define MAX_BLOCKS 4096u
#define ADOPT_MS 12000u /* the daemon gives a device 10 s */

struct kvbm_adoption {
	struct kvbm_adoption *next; /* in ns->adoptions */
	struct kvbm_ns *ns;         /* borrows */
	uint32_t id, epoch;         /* epoch: of the view it was made with */
	uint64_t *flags;            /* owns the mapping */
	size_t flags_bytes;
	uint32_t n_flags;
};

/* What an adopt request points to. */
struct adopt_message {
	Kvbm__AdoptRequest request;
	Kvbm__AdoptMemory memories[MAX_MEMORIES], *memory_list[MAX_MEMORIES];
	Kvbm__AdoptPlane planes[MAX_PLANES], *plane_list[MAX_PLANES];
	ProtobufCBinaryData events[MAX_EVENTS];
	uint64_t extents[KVBM_MAX_DIMS], strides[KVBM_MAX_DIMS];
	int fds[WIRE_MAX_FDS];
	unsigned n_fds;
};

static void adoption_free(struct kvbm_adoption *a, bool forked)
{
	if (a->flags && !forked)
		munmap(a->flags, a->flags_bytes);
	free(a);
}

void kvbm__adoptions_free(struct kvbm_ns *ns, bool forked)
{
	while (ns->adoptions) {
		struct kvbm_adoption *a = ns->adoptions;

		ns->adoptions = a->next;
		adoption_free(a, forked);
	}
}

/* ---- adopt ---- */

static const char *adopt_invalid(const struct kvbm_engine_blocks *b)
{
	unsigned fds = 0;

	if (!b->device || !b->memories || b->n_memories == 0 || b->n_memories > MAX_MEMORIES || !b->planes ||
	    b->n_planes == 0 || b->n_planes > MAX_PLANES)
		return "adopt takes a device, 1..256 memories and 1..1024 planes";
	if (b->n_dims > KVBM_MAX_DIMS || b->n_events > MAX_EVENTS || (b->n_events > 0 && !b->events))
		return "adopt takes up to 6 dimensions and 64 events";
	for (uint32_t i = 0; i < b->n_memories; i++)
		fds += b->memories[i].handle == NULL;
	return fds > WIRE_MAX_FDS ? "adopt takes up to 16 memories by descriptor" : NULL;
}

static struct adopt_message *adopt_message_new(const struct kvbm_ns *ns, const struct kvbm_engine_blocks *b)
{
	struct adopt_message *m = calloc(1, sizeof(*m));
	Kvbm__AdoptRequest *q;

	if (!m)
		return NULL;
	q = &m->request;
	kvbm__adopt_request__init(q);
	q->ns = ns->view->number;
	q->device = (char *)b->device;
	q->lane = b->lane;
	q->n_blocks = b->n_blocks;
	for (uint32_t i = 0; i < b->n_memories; i++) {
		Kvbm__AdoptMemory *memory = m->memory_list[i] = &m->memories[i];

		kvbm__adopt_memory__init(memory);
		memory->bytes = b->memories[i].bytes;
		if (b->memories[i].handle)
			memory->handle = (ProtobufCBinaryData){ HANDLE_BYTES, (uint8_t *)b->memories[i].handle };
		else
			m->fds[m->n_fds++] = b->memories[i].fd;
	}
	for (uint32_t i = 0; i < b->n_planes; i++) {
		m->plane_list[i] = &m->planes[i];
		kvbm__adopt_plane__init(&m->planes[i]);
		m->planes[i].memory = b->planes[i].memory;
		m->planes[i].offset = b->planes[i].offset;
	}
	for (uint32_t i = 0; i < b->n_events; i++)
		m->events[i] = (ProtobufCBinaryData){ HANDLE_BYTES, (uint8_t *)b->events + (size_t)i * HANDLE_BYTES };
	memcpy(m->extents, b->extents, sizeof(m->extents));
	memcpy(m->strides, b->strides, sizeof(m->strides));
	q->n_memories = b->n_memories;
	q->memories = m->memory_list;
	q->n_planes = b->n_planes;
	q->planes = m->plane_list;
	q->n_extents = q->n_strides = b->n_dims;
	q->extents = m->extents;
	q->strides = m->strides;
	q->run_bytes = b->run_bytes;
	q->block_stride = b->block_stride;
	q->n_events = b->n_events;
	q->events = m->events;
	return m;
}

/* The reply is in k->answer. */
static int adopt_reply(struct kvbm_ns *ns, struct kvbm_adoption *a)
{
	struct kvbm *k = ns->kvbm;
	const Kvbm__AdoptReply *reply = k->answer.reply->adopt;
	int fd = kvbm__answer_take_fd(&k->answer, 0);
	struct stat st;
	void *p;

	if (!reply || fd < 0 || fstat(fd, &st) != 0 || (uint64_t)st.st_size < reply->n_flags * sizeof(uint64_t)) {
		if (fd >= 0)
			close(fd);
		return kvbm__verb_bad_reply(k);
	}
	p = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (p == MAP_FAILED)
		return kvbm__fail(k, KVBM_E_SYS, "the flags cannot be mapped: %s", strerror(errno));
	(void)madvise(p, (size_t)st.st_size, MADV_DONTFORK);
	a->flags = p;
	a->flags_bytes = (size_t)st.st_size;
	a->n_flags = reply->n_flags;
	a->id = reply->id;
	a->epoch = ns->view->epoch;
	return 0;
}

int kvbm_adopt(struct kvbm_ns *ns, const struct kvbm_engine_blocks *blocks, struct kvbm_adoption **ret_adoption)
{
	struct kvbm *k = ns->kvbm;
	struct pending what = { .kind = PENDING_CALL, .verb = KVBM__VERB__VERB_ADOPT, .ns = ns };
	const char *wrong = adopt_invalid(blocks);
	struct adopt_message *m;
	struct kvbm_adoption *a;
	uint64_t deadline;
	int r;

	if (wrong)
		return kvbm__verb_invalid(k, wrong);
	r = kvbm__verb_begin(k, ns, &deadline);
	if (r < 0)
		return r;
	m = adopt_message_new(ns, blocks);
	a = calloc(1, sizeof(*a));
	if (!m || !a) {
		r = kvbm__fail(k, KVBM_E_NOMEM, "out of memory");
	} else {
		a->ns = ns;
		what.fds = m->fds;
		what.n_fds = m->n_fds;
		r = kvbm__call(k, &what, &m->request.base, deadline + ADOPT_MS * UINT64_C(1000000));
		if (r == 0)
			r = adopt_reply(ns, a);
	}
	free(m);
	if (r == 0) {
		a->next = ns->adoptions;
		ns->adoptions = a;
		*ret_adoption = a;
	} else {
		free(a);
	}
	return kvbm__verb_end(k, r);
}

static bool adoption_is_current(const struct kvbm_adoption *a)
{
	return a->ns->view && a->ns->view->epoch == a->epoch;
}

int kvbm_disown(struct kvbm_adoption *a)
{
	struct pending what = { .kind = PENDING_CALL, .verb = KVBM__VERB__VERB_DISOWN };
	Kvbm__DisownRequest m = KVBM__DISOWN_REQUEST__INIT;
	struct kvbm_adoption **at;
	struct kvbm *k;
	uint64_t deadline;
	int r = 0;

	if (!a)
		return 0;
	k = a->ns->kvbm;
	if (kvbm__is_forked(k))
		return -KVBM_E_FORKED;
	pthread_mutex_lock(&k->lock);
	what.ns = a->ns;
	deadline = kvbm__now_ns() + (uint64_t)k->timeout_ms * 1000000u;
	m.id = a->id;
	if (k->state == CLIENT_UP && adoption_is_current(a)) /* otherwise it went with its session */
		r = kvbm__call(k, &what, &m.base, deadline);
	for (at = &a->ns->adoptions; *at != a; at = &(*at)->next)
		;
	*at = a->next;
	adoption_free(a, false);
	return kvbm__verb_end(k, r);
}

uint64_t *kvbm_adoption_flags(struct kvbm_adoption *adoption)
{
	return adoption->flags;
}

/* ---- store and load ---- */

static const char *copy_invalid(const struct kvbm_copy *c, unsigned flags)
{
	if (c->n > MAX_BLOCKS || (c->n > 0 && (!c->keys || !c->blocks)))
		return "a copy takes up to 4096 keys, with a block for each";
	if (c->flags & ~flags || (c->flags & KVBM_PARENTS && !c->parent && c->n > 0))
		return "a copy with unknown flags, or PARENTS without parents";
	if (c->flags & KVBM_NOWAIT && c->after.kind != KVBM_SYNC_FLAG)
		return "NOWAIT takes a flag for @after, or nobody could know the outcome";
	return NULL;
}

static Kvbm__Sync *copy_sync(const struct kvbm_sync *s, Kvbm__Sync *ret)
{
	if (s->kind == KVBM_SYNC_NONE)
		return NULL;
	kvbm__sync__init(ret);
	ret->kind = (uint32_t)s->kind;
	ret->index = s->index;
	ret->value = s->value;
	return ret;
}

/* 0: k->answer has the reply; 1: it does not wait for one. */
static int copy_send(struct kvbm_adoption *a, uint16_t verb, const ProtobufCMessage *message, const struct kvbm_copy *c,
                     uint64_t deadline)
{
	struct kvbm *k = a->ns->kvbm;
	struct pending what = { .kind = PENDING_CALL, .verb = verb, .ns = a->ns };
	uint64_t id;
	int r;

	if (!adoption_is_current(a))
		return kvbm__fail(k, KVBM_E_STALE, "the session that adopted this memory has ended: adopt again");
	if (!(c->flags & KVBM_NOWAIT)) {
		/* The daemon answers in time; ours is for one that does not. */
		deadline += (c->timeout_ms > 0 ? (uint64_t)c->timeout_ms : 5000u) * 1000000u;
		return kvbm__call(k, &what, message, deadline);
	}
	what.kind = PENDING_IGNORE;
	r = kvbm__post(k, &what, message, &id);
	while (r >= 0 && wire_out_bytes(&k->out) > 0) {
		r = kvbm__exchange(k);
		if (r >= 0 && wire_out_bytes(&k->out) > 0)
			r = kvbm__wait(k, deadline);
	}
	return r < 0 ? r : 1;
}

int kvbm_store(struct kvbm_adoption *a, const struct kvbm_copy *c)
{
	struct kvbm *k = a->ns->kvbm;
	Kvbm__StoreRequest m = KVBM__STORE_REQUEST__INIT;
	const char *wrong = copy_invalid(c, KVBM_NOWAIT | KVBM_PARENTS);
	const Kvbm__StoreReply *reply;
	Kvbm__Sync before, after;
	uint64_t deadline;
	int r, fresh = 0;

	if (wrong)
		return kvbm__verb_invalid(k, wrong);
	r = kvbm__verb_begin(k, a->ns, &deadline);
	if (r < 0)
		return r;
	m.adoption = a->id;
	m.keys = kvbm__verb_keys(a->ns, c->keys, c->n);
	m.parents = kvbm__verb_keys(a->ns, c->parent, c->flags & KVBM_PARENTS ? c->n : 1);
	m.n_blocks = c->n;
	m.blocks = (uint32_t *)c->blocks;
	m.before = copy_sync(&c->before, &before);
	m.after = copy_sync(&c->after, &after);
	m.timeout_ms = c->timeout_ms > 0 ? (uint32_t)c->timeout_ms : 0;
	r = copy_send(a, KVBM__VERB__VERB_STORE, &m.base, c, deadline);
	if (r != 0)
		return kvbm__verb_end(k, r < 0 ? r : 0);
	reply = k->answer.reply->store;
	if (!reply || reply->states.len != c->n)
		return kvbm__verb_end(k, kvbm__verb_bad_reply(k));
	for (uint32_t i = 0; i < c->n; i++) {
		fresh += reply->states.data[i] == 1;
		k->counters.commits_existing += reply->states.data[i] == 2;
		if (c->ret_states)
			c->ret_states[i] = reply->states.data[i];
	}
	k->counters.commits_new += (uint64_t)fresh;
	return kvbm__verb_end(k, fresh);
}

int kvbm_load(struct kvbm_adoption *a, const struct kvbm_copy *c)
{
	struct kvbm *k = a->ns->kvbm;
	Kvbm__LoadRequest m = KVBM__LOAD_REQUEST__INIT;
	const char *wrong = copy_invalid(c, KVBM_NOWAIT | KVBM_ALL);
	const Kvbm__LoadReply *reply;
	Kvbm__Sync before, after;
	uint64_t deadline;
	int r;

	if (wrong)
		return kvbm__verb_invalid(k, wrong);
	r = kvbm__verb_begin(k, a->ns, &deadline);
	if (r < 0)
		return r;
	m.adoption = a->id;
	m.keys = kvbm__verb_keys(a->ns, c->keys, c->n);
	m.n_blocks = c->n;
	m.blocks = (uint32_t *)c->blocks;
	m.before = copy_sync(&c->before, &before);
	m.after = copy_sync(&c->after, &after);
	m.timeout_ms = c->timeout_ms > 0 ? (uint32_t)c->timeout_ms : 0;
	m.tokens_per_s = c->tokens_per_s;
	m.all = c->flags & KVBM_ALL;
	r = copy_send(a, KVBM__VERB__VERB_LOAD, &m.base, c, deadline);
	if (r != 0)
		return kvbm__verb_end(k, r < 0 ? r : 0);
	reply = k->answer.reply->load;
	if (!reply || reply->statuses.len != c->n || reply->hits > c->n)
		return kvbm__verb_end(k, kvbm__verb_bad_reply(k));
	if (c->ret_states && c->n > 0)
		memcpy(c->ret_states, reply->statuses.data, c->n);
	return kvbm__verb_end(k, (int)reply->hits);
}
