/* SPDX-License-Identifier: Apache-2.0 */
/* Namespace.copy_pages: pages of an engine's own memory into reserved blocks, and held blocks into such pages.
 *
 * An engine keeps a block as one or several runs of bytes a layer, each at base + number of the block * stride: that is a segment, with the place of the run
 * in the lane's slice.  Segments come as packed uint64 {base, stride, offset, bytes}, numbers of blocks as packed int64.
 *
 * Owns nothing but, for the time of a call, a reference to each hold it names.  Copies without the GIL; one call copies one way.  What it cannot check is
 * that the engine's addresses are right: that is the caller's promise, as with any pointer.
 */
#include "extension.h"

#include <string.h>

struct segment {
	uint64_t base, stride, offset, bytes;
};

struct copy {
	struct hold **holds;           /* owns a reference to each that is not NULL */
	const char *blocks, *segments; /* packed; of any alignment */
	Py_ssize_t n, n_segments;
	uint32_t lane;
	bool store;
};

static struct segment segment_at(const struct copy *c, Py_ssize_t i)
{
	struct segment s;

	memcpy(&s, c->segments + i * (Py_ssize_t)sizeof(s), sizeof(s));
	return s;
}

static int64_t block_at(const struct copy *c, Py_ssize_t i)
{
	int64_t block;

	memcpy(&block, c->blocks + i * (Py_ssize_t)sizeof(block), sizeof(block));
	return block;
}

static bool copy_check(const struct copy *c, uint64_t lane_bytes)
{
	for (Py_ssize_t i = 0; i < c->n_segments; i++) {
		struct segment s = segment_at(c, i);

		if (!s.base || s.offset > lane_bytes || s.bytes > lane_bytes - s.offset) {
			PyErr_Format(PyExc_ValueError, "segment %zd has no address, or reaches beyond the block", i);
			return false;
		}
	}
	for (Py_ssize_t i = 0; i < c->n; i++) {
		if (block_at(c, i) < 0) {
			PyErr_Format(PyExc_ValueError, "block %zd has a negative number", i);
			return false;
		}
	}
	return true;
}

/* References to the holds of @list; None is passed over. */
static bool copy_begin(struct copy *c, const struct namespace_object *o, PyObject *list)
{
	for (Py_ssize_t i = 0; i < c->n; i++) {
		PyObject *object = PyList_GetItem(list, i);

		if (object == Py_None)
			continue;
		c->holds[i] = hold_object_get(object);
		if (!c->holds[i])
			return false;
		if (c->holds[i]->ns != o->ns || (c->holds[i]->state == HOLD_WRITE) != c->store) {
			PyErr_Format(PyExc_ValueError, "block %zd is of another namespace, or not one to %s", i,
			             c->store ? "write" : "read");
			return false;
		}
	}
	return true;
}

static bool copy_run(const struct copy *c)
{
	for (Py_ssize_t i = 0; i < c->n; i++) {
		char *data;

		if (!c->holds[i])
			continue;
		data = kvbm_data(c->holds[i]->ns, &c->holds[i]->span, c->lane);
		if (!data)
			return false;
		for (Py_ssize_t j = 0; j < c->n_segments; j++) {
			struct segment s = segment_at(c, j);
			char *page = (char *)(uintptr_t)(s.base + (uint64_t)block_at(c, i) * s.stride);

			if (c->store)
				memcpy(data + s.offset, page, s.bytes);
			else
				memcpy(page, data + s.offset, s.bytes);
		}
	}
	return true;
}

static void copy_end(struct copy *c)
{
	for (Py_ssize_t i = 0; c->holds && i < c->n; i++)
		if (c->holds[i])
			hold_put(c->holds[i]);
	PyMem_Free(c->holds);
}

PyObject *ns_copy_pages(PyObject *self, PyObject *args)
{
	struct namespace_object *o = (struct namespace_object *)self;
	struct session *s = o->session;
	Py_ssize_t blocks_length, segments_length;
	PyObject *list, *result = NULL;
	struct copy c = { .n = 0 };
	int store = 0;
	bool ok;

	if (!PyArg_ParseTuple(args, "Oy#y#Ip:copy_pages", &list, &c.blocks, &blocks_length, &c.segments,
	                      &segments_length, &c.lane, &store))
		return NULL;
	c.n = PyList_Size(list);
	if (c.n < 0)
		return NULL;
	c.n_segments = segments_length / (Py_ssize_t)sizeof(struct segment);
	c.store = store;
	if (blocks_length != c.n * (Py_ssize_t)sizeof(int64_t) || c.lane >= o->lanes ||
	    segments_length % (Py_ssize_t)sizeof(struct segment) != 0)
		return PyErr_Format(PyExc_ValueError,
		                    "%zd blocks want as many numbers (int64), segments of 4 numbers (uint64), and a lane "
		                    "below %u",
		                    c.n, o->lanes);
	if (!copy_check(&c, o->lane_bytes) || !session_use(s))
		return NULL;
	c.holds = PyMem_Calloc((size_t)c.n + 1, sizeof(struct hold *));
	if (!c.holds)
		PyErr_NoMemory();
	else if (copy_begin(&c, o, list)) {
		Py_BEGIN_ALLOW_THREADS;
		ok = copy_run(&c);
		Py_END_ALLOW_THREADS;
		if (ok) {
			Py_INCREF(Py_None);
			result = Py_None;
		} else {
			raise_result(s, -KVBM_E_STALE, "copy_pages");
		}
	}
	copy_end(&c);
	session_unuse(s);
	return result;
}
