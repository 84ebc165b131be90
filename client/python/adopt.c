/* SPDX-License-Identifier: Apache-2.0 */
/* Adoption: an engine's own device memory, which the daemon copies from and to.  Handles come from whoever allocated the memory (kvbmd/cuda.py asks
 * the driver); no CUDA here.
 *
 * Owns a reference to the session.  Invariant: the adoption of libkvbm is named only under a use of the session, because it is freed with it.
 */
#include "extension.h"

#include <kvbm_device.h>
#include <stdlib.h>
#include <string.h>

#define HANDLE_BYTES 64
#define MAX_BLOCKS 4096

struct adoption_object {
	PyObject_HEAD struct session *session; /* owns a reference */
	struct kvbm_adoption *adoption;        /* NULL: disowned */
	uint32_t key_bytes, calls;
};

static PyTypeObject *adoption_type;

/* ---- adopt ---- */

/* What the arguments of adopt() become. */
struct adopt_arguments {
	struct kvbm_engine_blocks blocks;
	struct kvbm_memory *memories; /* owns */
	struct kvbm_plane *planes;    /* owns */
};

static bool adopt_memories(struct adopt_arguments *a, PyObject *list)
{
	Py_ssize_t n = PyList_Size(list), length;
	const char *handle;
	unsigned long long bytes;

	if (n < 0)
		return false;
	a->memories = PyMem_Calloc((size_t)n + 1, sizeof(*a->memories));
	if (!a->memories) {
		PyErr_NoMemory();
		return false;
	}
	for (Py_ssize_t i = 0; i < n; i++) {
		if (!PyArg_ParseTuple(PyList_GetItem(list, i), "y#K:memory", &handle, &length, &bytes))
			return false;
		if (length != HANDLE_BYTES) {
			PyErr_Format(PyExc_ValueError, "the handle of memory %zd has %zd bytes, not 64", i, length);
			return false;
		}
		a->memories[i] = (struct kvbm_memory){ .handle = handle, .fd = -1, .bytes = bytes };
	}
	a->blocks.memories = a->memories;
	a->blocks.n_memories = (uint32_t)n;
	return true;
}

static bool adopt_planes(struct adopt_arguments *a, PyObject *list)
{
	Py_ssize_t n = PyList_Size(list);
	unsigned long long offset;
	unsigned memory;

	if (n < 0)
		return false;
	a->planes = PyMem_Calloc((size_t)n + 1, sizeof(*a->planes));
	if (!a->planes) {
		PyErr_NoMemory();
		return false;
	}
	for (Py_ssize_t i = 0; i < n; i++) {
		if (!PyArg_ParseTuple(PyList_GetItem(list, i), "IK:plane", &memory, &offset))
			return false;
		a->planes[i] = (struct kvbm_plane){ .memory = memory, .offset = offset };
	}
	a->blocks.planes = a->planes;
	a->blocks.n_planes = (uint32_t)n;
	return true;
}

static bool adopt_dims(struct adopt_arguments *a, PyObject *list)
{
	Py_ssize_t n = PyList_Size(list);
	unsigned long long extent, stride;

	if (n < 0)
		return false;
	if (n > (Py_ssize_t)KVBM_MAX_DIMS) {
		PyErr_Format(PyExc_ValueError, "%zd dimensions, up to %u are possible", n, KVBM_MAX_DIMS);
		return false;
	}
	for (Py_ssize_t i = 0; i < n; i++) {
		if (!PyArg_ParseTuple(PyList_GetItem(list, i), "KK:dimension", &extent, &stride))
			return false;
		a->blocks.extents[i] = extent;
		a->blocks.strides[i] = stride;
	}
	a->blocks.n_dims = (uint32_t)n;
	return true;
}

static PyObject *adopt_run(struct namespace_object *o, const struct kvbm_engine_blocks *blocks)
{
	struct adoption_object *self = PyObject_New(struct adoption_object, adoption_type);
	struct session *s = o->session;
	int r;

	if (!self)
		return NULL;
	self->adoption = NULL;
	self->key_bytes = o->key_bytes;
	self->calls = 0;
	self->session = s;
	session_get(s);
	if (!session_use(s)) {
		Py_DECREF(self);
		return NULL;
	}
	Py_BEGIN_ALLOW_THREADS;
	r = kvbm_adopt(o->ns, blocks, &self->adoption);
	Py_END_ALLOW_THREADS;
	if (r < 0) {
		raise_result(s, r, "adopt");
		Py_DECREF(self);
		self = NULL;
	}
	session_unuse(s);
	return (PyObject *)self;
}

PyObject *ns_adopt(PyObject *self, PyObject *args)
{
	struct adopt_arguments a = { .memories = NULL };
	PyObject *memories, *planes, *dims, *result = NULL;
	unsigned long long n_blocks, run_bytes, block_stride;

	if (!PyArg_ParseTuple(args, "sIKO!O!O!KK:adopt", &a.blocks.device, &a.blocks.lane, &n_blocks, &PyList_Type,
	                      &memories, &PyList_Type, &planes, &PyList_Type, &dims, &run_bytes, &block_stride))
		return NULL;
	a.blocks.n_blocks = n_blocks;
	a.blocks.run_bytes = run_bytes;
	a.blocks.block_stride = block_stride;
	if (adopt_memories(&a, memories) && adopt_planes(&a, planes) && adopt_dims(&a, dims))
		result = adopt_run((struct namespace_object *)self, &a.blocks);
	PyMem_Free(a.memories);
	PyMem_Free(a.planes);
	return result;
}

/* ---- an adoption ---- */

static void adoption_disown(struct adoption_object *o)
{
	struct kvbm_adoption *adoption = o->adoption;

	o->adoption = NULL;
	if (!adoption)
		return;
	if (!session_use(o->session)) { /* closed: it went with it */
		PyErr_Clear();
		return;
	}
	Py_BEGIN_ALLOW_THREADS;
	(void)kvbm_disown(adoption);
	Py_END_ALLOW_THREADS;
	session_unuse(o->session);
}

static void adoption_dealloc(PyObject *self)
{
	struct adoption_object *o = (struct adoption_object *)self;
	PyObject *type, *value, *trace;

	PyErr_Fetch(&type, &value, &trace);
	adoption_disown(o);
	PyErr_Restore(type, value, trace);
	session_put(o->session);
	object_free(self);
}

static PyObject *adoption_close(PyObject *self, PyObject *none)
{
	struct adoption_object *o = (struct adoption_object *)self;

	(void)none;
	if (o->calls > 0) {
		PyErr_SetString(PyExc_RuntimeError, "a copy of this adoption is under way in another thread");
		return NULL;
	}
	adoption_disown(o);
	Py_INCREF(Py_None);
	return Py_None;
}

/* Arguments of a copy; blocks are those of the engine, as packed int64, and become numbers of 32 bits. */
struct copy_arguments {
	struct kvbm_copy copy;
	uint32_t *blocks; /* owns */
	PyObject *states; /* owns; bytes */
};

static bool copy_arguments(struct copy_arguments *c, const struct adoption_object *o, const char *keys,
                           Py_ssize_t keys_length, const char *blocks, Py_ssize_t blocks_length)
{
	Py_ssize_t n = keys_length / (Py_ssize_t)o->key_bytes;
	char *states;

	if (keys_length % o->key_bytes != 0 || n > MAX_BLOCKS || blocks_length != n * (Py_ssize_t)sizeof(int64_t)) {
		PyErr_Format(PyExc_ValueError, "up to %d keys of %u bytes want as many block numbers (int64)",
		             MAX_BLOCKS, o->key_bytes);
		return false;
	}
	c->blocks = PyMem_Malloc(((size_t)n + 1) * sizeof(*c->blocks));
	c->states = PyBytes_FromStringAndSize(NULL, n);
	if (!c->blocks || !c->states) {
		PyErr_NoMemory();
		return false;
	}
	for (Py_ssize_t i = 0; i < n; i++) {
		int64_t block;

		memcpy(&block, blocks + i * (Py_ssize_t)sizeof(block), sizeof(block));
		if (block < 0 || block > UINT32_MAX) {
			PyErr_Format(PyExc_ValueError, "block %zd has a number that no engine block has", i);
			return false;
		}
		c->blocks[i] = (uint32_t)block;
	}
	states = PyBytes_AsString(c->states);
	memset(states, 0, (size_t)n);
	c->copy.keys = keys;
	c->copy.blocks = c->blocks;
	c->copy.n = (uint32_t)n;
	c->copy.ret_states = (uint8_t *)states;
	return true;
}

static void copy_arguments_end(struct copy_arguments *c)
{
	PyMem_Free(c->blocks);
	Py_XDECREF(c->states);
}

/* The result, or < 0 with an exception. */
static int copy_run(struct adoption_object *o, const struct kvbm_copy *copy,
                    int (*call)(struct kvbm_adoption *adoption, const struct kvbm_copy *copy), const char *what)
{
	struct session *s = o->session;
	int r;

	if (!o->adoption) {
		raise_code(KVBM_E_STALE, "the adoption was closed");
		return -1;
	}
	if (!session_use(s))
		return -1;
	o->calls++;
	Py_BEGIN_ALLOW_THREADS;
	r = call(o->adoption, copy);
	Py_END_ALLOW_THREADS;
	o->calls--;
	if (r < 0)
		raise_result(s, r, what);
	session_unuse(s);
	return r;
}

static PyObject *adoption_store(PyObject *self, PyObject *args)
{
	struct adoption_object *o = (struct adoption_object *)self;
	Py_ssize_t keys_length, blocks_length, parents_length = 0;
	const char *keys, *blocks, *parents = NULL;
	struct copy_arguments c = { .blocks = NULL };
	PyObject *result = NULL;
	int timeout_ms = 0, r;

	if (!PyArg_ParseTuple(args, "y#y#|z#i:store", &keys, &keys_length, &blocks, &blocks_length, &parents,
	                      &parents_length, &timeout_ms))
		return NULL;
	if (parents && parents_length != keys_length && parents_length != o->key_bytes)
		return PyErr_Format(PyExc_ValueError, "%zd bytes of parents are neither one nor one for each key",
		                    parents_length);
	if (copy_arguments(&c, o, keys, keys_length, blocks, blocks_length)) {
		c.copy.parent = parents;
		c.copy.flags = parents && parents_length == keys_length && c.copy.n > 1 ? KVBM_PARENTS : 0;
		c.copy.timeout_ms = timeout_ms;
		r = copy_run(o, &c.copy, kvbm_store, "store");
		if (r >= 0)
			result = Py_BuildValue("iO", r, c.states);
	}
	copy_arguments_end(&c);
	return result;
}

static PyObject *adoption_load(PyObject *self, PyObject *args)
{
	struct adoption_object *o = (struct adoption_object *)self;
	Py_ssize_t keys_length, blocks_length;
	const char *keys, *blocks;
	struct copy_arguments c = { .blocks = NULL };
	PyObject *result = NULL;
	int timeout_ms = 0, r;

	if (!PyArg_ParseTuple(args, "y#y#|i:load", &keys, &keys_length, &blocks, &blocks_length, &timeout_ms))
		return NULL;
	if (copy_arguments(&c, o, keys, keys_length, blocks, blocks_length)) {
		c.copy.timeout_ms = timeout_ms;
		r = copy_run(o, &c.copy, kvbm_load, "load");
		if (r >= 0)
			result = Py_BuildValue("iO", r, c.states);
	}
	copy_arguments_end(&c);
	return result;
}

static PyMethodDef adoption_methods[] = {
	{ "store", adoption_store, METH_VARARGS,
	  "store(keys, blocks, parents=None, timeout_ms=0) -> (new, states)\n\n"
	  "Copies engine blocks (packed int64) into host memory and publishes them.  parents: packed, one for each key, or of the first.\n"
	  "states: a byte each, 1 new, 2 was there, 3 other lanes are missing.  The blocks must not change before it returns." },
	{ "load", adoption_load, METH_VARARGS,
	  "load(keys, blocks, timeout_ms=0) -> (hits, states)\n\n"
	  "Brings the leading blocks, from whichever tier, into engine blocks.  states: kvbmd.Status, a byte each." },
	{ "close", adoption_close, METH_NOARGS, "close()\n\nThe memory may be freed afterwards.  Twice is fine." },
	{ NULL, NULL, 0, NULL },
};

PyObject *adoption_type_new(void)
{
	static PyType_Slot slots[] = {
		{ Py_tp_dealloc, adoption_dealloc },
		{ Py_tp_methods, adoption_methods },
		{ Py_tp_doc, "An engine's own device memory; made by Namespace.adopt()." },
		{ 0, NULL },
	};
	static PyType_Spec spec = {
		.name = "kvbmd._kvbm.Adoption",
		.basicsize = sizeof(struct adoption_object),
		.flags = Py_TPFLAGS_DEFAULT,
		.slots = slots,
	};
	PyObject *type = PyType_FromSpec(&spec);

	adoption_type = (PyTypeObject *)type;
	return type;
}
