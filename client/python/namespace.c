/* SPDX-License-Identifier: Apache-2.0 */
/* Namespace: the calls on blocks.  Keys come packed, holds as lists of Hold.
 *
 * Owns a reference to the session.  Invariant: while a call is under way without the GIL it has a use of the session and a reference to
 * each hold it names, so that neither close() nor release() in another thread takes anything from under it.
 */
#include "extension.h"

#include <stdlib.h>
#include <string.h>

PyTypeObject *namespace_type;

static struct namespace_object *ns_of(PyObject *self)
{
	return (struct namespace_object *)self;
}

static void ns_dealloc(PyObject *self)
{
	session_put(ns_of(self)->session);
	object_free(self);
}

/* How many keys there are; -1 with an exception. */
static Py_ssize_t ns_count(const struct namespace_object *o, Py_ssize_t length)
{
	if (length % o->key_bytes == 0 && length / o->key_bytes <= (Py_ssize_t)KVBM_MAX_KEYS)
		return length / o->key_bytes;
	PyErr_Format(PyExc_ValueError, "%zd bytes are not up to %u keys of %u bytes", length, KVBM_MAX_KEYS, o->key_bytes);
	return -1;
}

/* ---- results ---- */

static struct kvbm_span *spans_new(Py_ssize_t n)
{
	struct kvbm_span *spans = PyMem_Malloc(((size_t)n + 1) * sizeof(*spans));

	if (!spans)
		PyErr_NoMemory();
	return spans;
}

/* A list with a Hold, or None, for each span.  On failure what was given is given back. */
static PyObject *holds_list(struct namespace_object *o, const struct kvbm_span *spans, uint32_t n, uint32_t lane,
                            enum hold_state state)
{
	uint64_t joined = session_joined(o->session);
	PyObject *list = PyList_New(n);
	struct hold *lost = NULL;

	for (uint32_t i = 0; i < n; i++) {
		struct hold *h = NULL;
		PyObject *item = NULL;

		if (spans[i].slot != UINT32_MAX) {
			h = hold_new(o->session, o->ns, &spans[i], lane, state);
			if (h)
				h->joined = joined;
			if (h && list)
				item = hold_object_new(h, o);
			if (h && !item)
				hold_put_to(h, &lost);
		} else if (list) {
			Py_INCREF(Py_None);
			item = Py_None;
		}
		if (list && item)
			PyList_SetItem(list, i, item);
		else
			Py_CLEAR(list); /* with the holds that are in it */
	}
	if (!list && !PyErr_Occurred())
		PyErr_NoMemory();
	Py_BEGIN_ALLOW_THREADS;
	holds_give_back(lost);
	Py_END_ALLOW_THREADS;
	return list;
}

/* ---- reserve and match ---- */

static PyObject *ns_reserve(PyObject *self, PyObject *args)
{
	struct namespace_object *o = ns_of(self);
	struct session *s = o->session;
	PyObject *list, *result = NULL;
	const char *keys = NULL;
	Py_ssize_t n, length = 0, keyed = 0;
	struct kvbm_span *spans;
	uint32_t dropped = 0, lane;
	int wanted = 0, r;

	if (!PyArg_ParseTuple(args, "nz#i:reserve", &n, &keys, &length, &wanted))
		return NULL;
	lane = wanted < 0 ? KVBM_ALL_LANES : (uint32_t)wanted;
	if (keys && (keyed = ns_count(o, length)) < 0)
		return NULL;
	if (n < 0 || n > (Py_ssize_t)KVBM_MAX_KEYS || (keys && keyed != n))
		return PyErr_Format(PyExc_ValueError,
		                    "%zd blocks cannot be reserved in one call, or not with %zd hashes: up to %u", n,
		                    keyed, KVBM_MAX_KEYS);
	spans = spans_new(n);
	if (!spans || !session_use(s)) {
		PyMem_Free(spans);
		return NULL;
	}
	Py_BEGIN_ALLOW_THREADS;
	session_drain(s);
	r = kvbm_reserve(o->ns, lane, keys, (uint32_t)n, spans, &dropped);
	Py_END_ALLOW_THREADS;
	if (r < 0) {
		raise_result(s, r, "allocate_blocks");
	} else {
		list = holds_list(o, spans, (uint32_t)n, lane, HOLD_WRITE);
		result = list ? Py_BuildValue("NI", list, (unsigned)dropped) : NULL;
	}
	session_unuse(s);
	PyMem_Free(spans);
	return result;
}

static PyObject *ns_match(PyObject *self, PyObject *args)
{
	struct namespace_object *o = ns_of(self);
	struct session *s = o->session;
	PyObject *result = NULL;
	const char *keys;
	Py_ssize_t length, n;
	struct kvbm_span *spans;
	unsigned flags = 0;
	int r;

	if (!PyArg_ParseTuple(args, "y#|I:match", &keys, &length, &flags) || (n = ns_count(o, length)) < 0)
		return NULL;
	spans = spans_new(n);
	if (!spans || !session_use(s)) {
		PyMem_Free(spans);
		return NULL;
	}
	Py_BEGIN_ALLOW_THREADS;
	session_drain(s);
	r = kvbm_match(o->ns, keys, (uint32_t)n, flags, spans);
	Py_END_ALLOW_THREADS;
	if (r < 0)
		raise_result(s, r, "match");
	else if (flags & KVBM_PEEK)
		result = PyLong_FromLong(r);
	else
		result = holds_list(o, spans, flags & KVBM_SCATTERED ? (uint32_t)n : (uint32_t)r, 0, HOLD_READ);
	session_unuse(s);
	PyMem_Free(spans);
	return result;
}

/* ---- commit ---- */

struct commit {
	struct hold **holds; /* owns a reference to each */
	struct kvbm_span *spans;
	uint32_t n, lane;
};

static void commit_end(struct commit *c)
{
	for (uint32_t i = 0; c->holds && i < c->n; i++) {
		c->holds[i]->busy = false;
		hold_put(c->holds[i]);
	}
	PyMem_Free(c->holds);
	PyMem_Free(c->spans);
}

/* One of the list to commit.  Memory that somebody can still write is not published: its bytes could change under readers, and where another process
 * was first with the key the slot would be somebody else's at once. */
static bool commit_add(struct commit *c, const struct namespace_object *o, PyObject *object, uint32_t i)
{
	struct hold *h = hold_object_get(object);
	int views;

	if (!h)
		return false;
	views = atomic_load(&h->refs) - 2; /* the object's and ours */
	if (h->ns != o->ns)
		PyErr_Format(PyExc_ValueError, "block %u is of another block manager", i);
	else if (h->state != HOLD_WRITE)
		PyErr_Format(PyExc_ValueError, "block %u is not one to write: it was committed, or found by match()", i);
	else if (i > 0 && h->lane != c->lane)
		PyErr_Format(PyExc_ValueError, "block %u was allocated for another lane", i);
	else if (views > 0)
		PyErr_Format(PyExc_BufferError,
		             "block %u has %d live arrays, tensors or memoryviews: drop them before commit()", i, views);
	if (PyErr_Occurred()) {
		hold_put(h);
		return false;
	}
	h->busy = true;
	c->lane = h->lane;
	c->holds[i] = h;
	c->spans[i] = h->span;
	c->n = i + 1;
	return true;
}

static bool commit_begin(struct commit *c, const struct namespace_object *o, PyObject *list, Py_ssize_t n)
{
	c->holds = PyMem_Malloc(((size_t)n + 1) * sizeof(struct hold *));
	c->spans = spans_new(n);
	if (!c->holds || !c->spans) {
		PyErr_NoMemory();
		return false;
	}
	for (Py_ssize_t i = 0; i < n; i++)
		if (!commit_add(c, o, PyList_GetItem(list, i), (uint32_t)i))
			return false;
	return true;
}

/* The slots are not ours to write any more; what is not held has nothing left to give back. */
static void commit_done(struct commit *c, unsigned flags)
{
	uint64_t joined = c->n > 0 ? session_joined(c->holds[0]->session) : 0;

	for (uint32_t i = 0; i < c->n; i++) {
		bool held = flags & KVBM_HOLD && c->spans[i].slot != UINT32_MAX;

		c->holds[i]->state = held ? HOLD_READ : HOLD_NONE;
		c->holds[i]->joined = joined;
		if (held)
			c->holds[i]->span = c->spans[i];
	}
}

static PyObject *ns_commit(PyObject *self, PyObject *args)
{
	struct namespace_object *o = ns_of(self);
	struct session *s = o->session;
	struct commit c = { .n = 0 };
	const char *keys, *parent = NULL;
	Py_ssize_t length, parents_length = 0, n;
	PyObject *list, *result = NULL;
	unsigned flags = 0;
	int r;

	if (!PyArg_ParseTuple(args, "Oy#z#I:commit", &list, &keys, &length, &parent, &parents_length, &flags))
		return NULL;
	n = PyList_Size(list);
	if (n < 0)
		return NULL;
	if (length != n * (Py_ssize_t)o->key_bytes || n > (Py_ssize_t)KVBM_MAX_KEYS ||
	    (parent && parents_length != (flags & KVBM_PARENTS ? n : 1) * (Py_ssize_t)o->key_bytes))
		return PyErr_Format(PyExc_ValueError,
		                    "%zd blocks do not fit the hashes, or the parents, given with them", n);
	if (!session_use(s))
		return NULL;
	if (commit_begin(&c, o, list, n)) {
		Py_BEGIN_ALLOW_THREADS;
		session_drain(s);
		r = kvbm_commit(o->ns, c.lane, c.spans, keys, c.n, parent, flags);
		Py_END_ALLOW_THREADS;
		if (r >= 0)
			commit_done(&c, flags);
		result = r < 0 ? raise_result(s, r, "commit") : PyLong_FromLong(r);
	}
	commit_end(&c);
	session_unuse(s);
	return result;
}

/* ---- release ---- */

static PyObject *ns_release(PyObject *self, PyObject *list)
{
	struct namespace_object *o = ns_of(self);
	struct session *s = o->session;
	Py_ssize_t n = PyList_Size(list);
	struct hold *gone = NULL;

	if (n < 0)
		return NULL;
	session_get(s);
	for (Py_ssize_t i = 0; i < n; i++) {
		struct hold_object *h = (struct hold_object *)PyList_GetItem(list, i);

		if (!PyObject_TypeCheck((PyObject *)h, hold_type) || !h->hold)
			continue;
		hold_put_to(h->hold, &gone);
		h->hold = NULL;
	}
	Py_BEGIN_ALLOW_THREADS;
	holds_give_back(gone);
	Py_END_ALLOW_THREADS;
	session_put(s);
	Py_RETURN_NONE;
}

/* ---- what is where ---- */

static PyObject *ns_stat(PyObject *self, PyObject *args)
{
	struct namespace_object *o = ns_of(self);
	struct session *s = o->session;
	PyObject *result = NULL;
	const char *keys;
	Py_ssize_t length, n;
	uint32_t *tiers;
	int r;

	if (!PyArg_ParseTuple(args, "y#:stat", &keys, &length) || (n = ns_count(o, length)) < 0)
		return NULL;
	tiers = PyMem_Malloc(((size_t)n + 1) * sizeof(*tiers));
	if (!tiers || !session_use(s)) {
		PyMem_Free(tiers);
		return tiers ? NULL : PyErr_NoMemory();
	}
	Py_BEGIN_ALLOW_THREADS;
	session_drain(s);
	r = kvbm_stat(o->ns, keys, (uint32_t)n, tiers);
	Py_END_ALLOW_THREADS;
	if (r < 0)
		raise_result(s, r, "stat");
	else
		result = PyList_New(n);
	for (Py_ssize_t i = 0; result && i < n; i++)
		PyList_SetItem(result, i, PyLong_FromUnsignedLong(tiers[i]));
	session_unuse(s);
	PyMem_Free(tiers);
	return result;
}

static PyObject *ns_hint(PyObject *self, PyObject *args)
{
	struct namespace_object *o = ns_of(self);
	struct session *s = o->session;
	PyObject *result;
	const char *keys;
	Py_ssize_t length, n;
	unsigned ttl_ms = 0, priority = 0;
	int hint, r;

	if (!PyArg_ParseTuple(args, "iy#|II:hint", &hint, &keys, &length, &ttl_ms, &priority) ||
	    (n = ns_count(o, length)) < 0 || !session_use(s))
		return NULL;
	Py_BEGIN_ALLOW_THREADS;
	session_drain(s);
	r = kvbm_hint(o->ns, (enum kvbm_hint)hint, keys, (uint32_t)n, ttl_ms, priority);
	Py_END_ALLOW_THREADS;
	result = r < 0 ? raise_result(s, r, "hint") : PyLong_FromLong(r);
	session_unuse(s);
	return result;
}

/* ---- tiers below memory: where the library has them ---- */

#ifdef KVBM_HAS_ONBOARD

static PyObject *ns_onboard(PyObject *self, PyObject *args)
{
	struct namespace_object *o = ns_of(self);
	struct session *s = o->session;
	struct kvbm_onboard_options options = { .flags = KVBM_HOLD };
	PyObject *list, *result = NULL;
	const char *keys;
	Py_ssize_t length, n;
	struct kvbm_span *spans;
	unsigned tokens_per_s = 0;
	uint8_t *status;
	int r;

	if (!PyArg_ParseTuple(args, "y#|iI:onboard", &keys, &length, &options.timeout_ms, &tokens_per_s) ||
	    (n = ns_count(o, length)) < 0)
		return NULL;
	options.tokens_per_s = tokens_per_s;
	spans = spans_new(n);
	status = PyMem_Malloc((size_t)n + 1);
	if (!spans || !status || !session_use(s)) {
		PyMem_Free(spans);
		PyMem_Free(status);
		return PyErr_Occurred() ? NULL : PyErr_NoMemory();
	}
	Py_BEGIN_ALLOW_THREADS;
	session_drain(s);
	r = kvbm_onboard(o->ns, keys, (uint32_t)n, &options, status, spans);
	Py_END_ALLOW_THREADS;
	if (r < 0) {
		raise_result(s, r, "onboard");
	} else {
		list = holds_list(o, spans, (uint32_t)r, 0, HOLD_READ);
		result = list ? Py_BuildValue("Ny#", list, (const char *)status, n) : NULL;
	}
	session_unuse(s);
	PyMem_Free(spans);
	PyMem_Free(status);
	return result;
}

static PyObject *ns_prefetch(PyObject *self, PyObject *args)
{
	struct namespace_object *o = ns_of(self);
	struct session *s = o->session;
	PyObject *result;
	const char *keys;
	Py_ssize_t length, n;
	int r;

	if (!PyArg_ParseTuple(args, "y#:prefetch", &keys, &length) || (n = ns_count(o, length)) < 0 || !session_use(s))
		return NULL;
	Py_BEGIN_ALLOW_THREADS;
	session_drain(s);
	r = kvbm_prefetch(o->ns, keys, (uint32_t)n);
	Py_END_ALLOW_THREADS;
	result = r < 0 ? raise_result(s, r, "prefetch") : PyLong_FromLong(r);
	session_unuse(s);
	return result;
}

#endif

/* ---- the type ---- */

static PyObject *ns_get_fingerprint(PyObject *self, void *closure)
{
	struct namespace_object *o = ns_of(self);
	uint8_t fingerprint[16];

	(void)closure;
	if (!session_use(o->session))
		return NULL;
	kvbm_fingerprint(o->ns, fingerprint);
	session_unuse(o->session);
	return PyBytes_FromStringAndSize((const char *)fingerprint, sizeof(fingerprint));
}

static PyObject *ns_get_number(PyObject *self, void *which)
{
	struct namespace_object *o = ns_of(self);
	unsigned long long numbers[] = { o->lane_bytes, o->lanes, o->key_bytes };

	return PyLong_FromUnsignedLongLong(numbers[(uintptr_t)which]);
}

static PyGetSetDef ns_getset[] = {
	{ "fingerprint", ns_get_fingerprint, NULL, "16 bytes over everything that must agree to share blocks", NULL },
	{ "lane_bytes", ns_get_number, NULL, "bytes of one lane's slice of a block", (void *)0 },
	{ "lanes", ns_get_number, NULL, "slices of a block", (void *)1 },
	{ "key_bytes", ns_get_number, NULL, "bytes of a hash", (void *)2 },
	{ NULL, NULL, NULL, NULL, NULL },
};

static PyMethodDef ns_methods[] = {
	{ "reserve", ns_reserve, METH_VARARGS,
	  "reserve(n, keys, lane) -> (list, dropped)\n\nA Hold, or None for a block that is there, for each; lane -1: all." },
	{ "match", ns_match, METH_VARARGS, "match(keys, flags) -> list or int\n\nHolds; with PEEK how many there are." },
	{ "commit", ns_commit, METH_VARARGS, "commit(holds, keys, parent, flags) -> int\n\nHow many are new to the node." },
	{ "release", ns_release, METH_O, "release(holds)\n\nThose that were released are passed over." },
	{ "copy_pages", ns_copy_pages, METH_VARARGS,
	  "copy_pages(holds, blocks, segments, lane, store)\n\nBetween blocks and pages of an engine's own memory, see pages.c." },
	{ "adopt", ns_adopt, METH_VARARGS,
	  "adopt(device, lane, n_blocks, memories, planes, dims, run_bytes, block_stride) -> Adoption\n\n"
	  "device: a GPU's UUID.  memories: list of (64 bytes cudaIpcMemHandle, bytes of the allocation); planes: of (memory, offset); dims: of\n"
	  "(extent, stride).  The layout is that of kvbm_device.h." },
	{ "stat", ns_stat, METH_VARARGS, "stat(keys) -> list of int\n\nBits of tiers." },
	{ "hint", ns_hint, METH_VARARGS, "hint(hint, keys, ttl_ms, priority) -> int\n\nHow many were known." },
#ifdef KVBM_HAS_ONBOARD
	{ "onboard", ns_onboard, METH_VARARGS, "onboard(keys, timeout_ms, tokens_per_s) -> (holds, status bytes)" },
	{ "prefetch", ns_prefetch, METH_VARARGS, "prefetch(keys) -> int" },
#endif
	{ NULL, NULL, 0, NULL },
};

PyObject *namespace_type_new(void)
{
	static PyType_Slot slots[] = {
		{ Py_tp_dealloc, ns_dealloc },
		{ Py_tp_methods, ns_methods },
		{ Py_tp_getset, ns_getset },
		{ Py_tp_doc, "An attached namespace; made by Session.attach()." },
		{ 0, NULL },
	};
	static PyType_Spec spec = {
		.name = "kvbmd._kvbm.Namespace",
		.basicsize = sizeof(struct namespace_object),
		.flags = Py_TPFLAGS_DEFAULT,
		.slots = slots,
	};

	return PyType_FromSpec(&spec);
}
