/* SPDX-License-Identifier: Apache-2.0 */
/* View: DLPack and the buffer protocol over a dense part of one lane's slice of a block.  kvbmd.Block and kvbmd.Layer are made of it.
 *
 * Owns a reference to a Hold, which alone keeps nothing alive that was released.  What is exported (a capsule, a tensor, a buffer) has a reference to the
 * struct hold of its own, dropped exactly once: by the deleter, or with the buffer.  It keeps its block, and not the blocks that were found with it.
 *
 * Bytes are copied only if copy=True asks for it.
 */
#include "extension.h"

#include "dlpack.h"

#ifdef KVBM_HAS_CUDA
#include <kvbm_cuda.h>
#endif
#include <stdlib.h>
#include <string.h>

#define VIEW_MAX_DIMS 8
#define VIEW_ALIGNMENT 64u

struct view_dtype {
	const char *format; /* of the buffer protocol, which knows neither bfloat16 nor float8: their bits as unsigned integers */
	struct dlpack_dtype dlpack;
};

static const struct view_dtype view_dtypes[] = {
	[KVBM_DTYPE_DEFAULT] = { "B", { DLPACK_UINT, 8, 1 } }, /* bytes as they lie */
	[KVBM_DTYPE_BF16] = { "H", { DLPACK_BFLOAT, 16, 1 } },
	[KVBM_DTYPE_FP16] = { "e", { DLPACK_FLOAT, 16, 1 } },
	[KVBM_DTYPE_FP32] = { "f", { DLPACK_FLOAT, 32, 1 } },
	[KVBM_DTYPE_FP8_E4M3] = { "B", { DLPACK_FLOAT8_E4M3FN, 8, 1 } },
	[KVBM_DTYPE_FP8_E5M2] = { "B", { DLPACK_FLOAT8_E5M2, 8, 1 } },
	[KVBM_DTYPE_INT8] = { "b", { DLPACK_INT, 8, 1 } },
};
#define VIEW_N_DTYPES (sizeof(view_dtypes) / sizeof(view_dtypes[0]))

struct view_object {
	PyObject_HEAD PyObject *hold; /* owns */
	const struct view_dtype *dtype;
	uint64_t offset, bytes; /* in the lane's slice */
	uint32_t lane;
	int ndim;
	int64_t shape[VIEW_MAX_DIMS], strides[VIEW_MAX_DIMS]; /* in elements */
	Py_ssize_t buffer_shape[VIEW_MAX_DIMS], buffer_strides[VIEW_MAX_DIMS];
};

static PyTypeObject *view_type; /* owns */

static struct view_object *view_of(PyObject *self)
{
	return (struct view_object *)self;
}

static Py_ssize_t view_itemsize(const struct view_object *v)
{
	return v->dtype->dlpack.bits / 8;
}

/* ---- made and freed ---- */

static bool view_set_shape(struct view_object *v, PyObject *shape)
{
	uint64_t bytes;

	v->ndim = (int)PyTuple_Size(shape);
	if (v->ndim < 1 || v->ndim > VIEW_MAX_DIMS) {
		PyErr_Format(PyExc_ValueError, "a shape has 1 to %d dimensions", VIEW_MAX_DIMS);
		return false;
	}
	bytes = (uint64_t)view_itemsize(v);
	for (int i = v->ndim; i-- > 0;) {
		v->shape[i] = PyLong_AsLongLong(PyTuple_GetItem(shape, i));
		if (PyErr_Occurred())
			return false;
		if (v->shape[i] < 1 || __builtin_mul_overflow(bytes, (uint64_t)v->shape[i], &v->bytes) ||
		    v->bytes > (uint64_t)PY_SSIZE_T_MAX) {
			PyErr_SetString(PyExc_ValueError, "a shape is of positive numbers, and fits into memory");
			return false;
		}
		v->strides[i] = (int64_t)(bytes / (uint64_t)view_itemsize(v));
		v->buffer_shape[i] = (Py_ssize_t)v->shape[i];
		v->buffer_strides[i] = (Py_ssize_t)bytes;
		bytes = v->bytes;
	}
	return true;
}

static PyObject *view_make(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
	allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	unsigned long long offset;
	PyObject *hold, *shape;
	struct view_object *v;
	unsigned dtype, lane;
	struct hold *h;
	bool ok;

	(void)keywords;
	if (!PyArg_ParseTuple(args, "OKOII:View", &hold, &offset, &shape, &dtype, &lane))
		return NULL;
	if (!PyTuple_Check(shape) || dtype >= VIEW_N_DTYPES) {
		PyErr_SetString(PyExc_TypeError, "a View has a shape, which is a tuple, and a dtype of this module");
		return NULL;
	}
	h = hold_object_get(hold);
	if (!h)
		return NULL;
	v = (struct view_object *)alloc(type, 0);
	if (v) {
		Py_INCREF(hold);
		v->hold = hold;
		v->dtype = &view_dtypes[dtype];
		v->offset = offset;
		v->lane = lane;
		ok = view_set_shape(v, shape);
		if (ok && (offset > h->span.length || v->bytes > h->span.length - offset)) {
			PyErr_SetString(PyExc_ValueError, "the shape reaches beyond the block");
			ok = false;
		}
		if (!ok)
			Py_CLEAR(v);
	}
	hold_put(h);
	return (PyObject *)v;
}

/* The same bytes, and nothing of a subclass.  (A Block has a reference to all that it was found with.) */
static struct view_object *view_bare(const struct view_object *v)
{
	allocfunc alloc = (allocfunc)PyType_GetSlot(view_type, Py_tp_alloc);
	struct view_object *bare = (struct view_object *)alloc(view_type, 0);

	if (!bare)
		return NULL;
	memcpy((char *)bare + sizeof(PyObject), (const char *)v + sizeof(PyObject), sizeof(*v) - sizeof(PyObject));
	Py_INCREF(bare->hold);
	return bare;
}

static void view_dealloc(PyObject *self)
{
	Py_XDECREF(view_of(self)->hold);
	object_free(self);
}

/* ---- the bytes ---- */

/* The GPU it is in the memory of; -1: the host's. */
static int view_device(const struct view_object *v)
{
	return ((const struct hold_object *)v->hold)->device;
}

/* Without the GIL: the first block of a region maps it, which asks the daemon.  NULL: it cannot be reached. */
static char *view_address(struct hold *h, const struct kvbm_span *span, uint32_t lane, int device)
{
#ifdef KVBM_HAS_CUDA
	unsigned long long address = 0;

	if (device >= 0)
		return kvbm_cuda_data(h->ns, span, lane, &address) == 0 ? (char *)(uintptr_t)address : NULL;
#endif
	(void)device;
	return kvbm_data(h->ns, span, lane);
}

/* The hold, referenced for an export, and the address of the bytes; NULL with an exception. */
static struct hold *view_open(struct view_object *v, char **ret_data, bool *ret_readonly)
{
	struct hold *h = hold_object_get(v->hold);
	struct kvbm_span span;
	char *data;
	int r;

	if (!h)
		return NULL;
	span = h->span;
	*ret_readonly = h->state != HOLD_WRITE;
	Py_BEGIN_ALLOW_THREADS;
	data = view_address(h, &span, v->lane, view_device(v));
	Py_END_ALLOW_THREADS;
	if (data) {
		*ret_data = data + v->offset;
		atomic_fetch_add(&live_views, 1);
		return h;
	}
	/* No address: only this call tells a forked child from a slot that is lost. */
	r = kvbm_match(h->ns, NULL, 0, KVBM_PEEK, NULL);
	raise_result(h->session, r == -KVBM_E_FORKED ? r : -KVBM_E_STALE, "reading a block");
	hold_put(h);
	return NULL;
}

static void view_close(struct hold *h)
{
	atomic_fetch_sub(&live_views, 1);
	hold_put(h);
}

/* ---- the buffer protocol ---- */

/* We have C's order; it is Fortran's too where one dimension counts. */
static bool view_is_fortran(const struct view_object *v)
{
	int longer = 0;

	for (int i = 0; i < v->ndim; i++)
		longer += v->shape[i] > 1;
	return longer <= 1;
}

static int view_getbuffer(PyObject *self, Py_buffer *b, int flags)
{
	struct view_object *v = view_of(self), *bare;
	struct hold *h;
	bool readonly;
	char *data;

	b->obj = NULL;
	if (view_device(v) >= 0) {
		PyErr_Format(PyExc_BufferError, "the block is in the memory of GPU %d: use DLPack", view_device(v));
		return -1;
	}
	if ((flags & PyBUF_F_CONTIGUOUS) == PyBUF_F_CONTIGUOUS && !view_is_fortran(v)) {
		PyErr_SetString(PyExc_BufferError, "the block is contiguous in C's order, not in Fortran's");
		return -1;
	}
	h = view_open(v, &data, &readonly);
	if (!h)
		return -1;
	if (readonly && flags & PyBUF_WRITABLE) {
		view_close(h);
		PyErr_SetString(PyExc_BufferError, "the block is read-only: it was committed, or found by match()");
		return -1;
	}
	bare = view_bare(v);
	if (!bare) {
		view_close(h);
		return -1;
	}
	b->obj = (PyObject *)bare;
	b->buf = data;
	b->len = (Py_ssize_t)v->bytes;
	b->itemsize = view_itemsize(v);
	b->readonly = readonly;
	b->ndim = v->ndim;
	b->format = flags & PyBUF_FORMAT ? (char *)v->dtype->format : NULL;
	b->shape = flags & PyBUF_ND ? bare->buffer_shape : NULL;
	b->strides = (flags & PyBUF_STRIDES) == PyBUF_STRIDES ? bare->buffer_strides : NULL;
	b->suboffsets = NULL;
	b->internal = h;
	return 0;
}

static void view_releasebuffer(PyObject *self, Py_buffer *b)
{
	(void)self;
	view_close(b->internal);
}

/* ---- DLPack ---- */

static struct dlpack_device view_where(const struct view_object *v)
{
	int device = view_device(v);

	return (struct dlpack_device){ device < 0 ? DLPACK_CPU : DLPACK_CUDA, device < 0 ? 0 : device };
}

/* What a consumer gets, in either form; freed by its deleter. */
struct export
{
	union {
		struct dlpack_managed managed;
		struct dlpack_versioned versioned;
	} as;
	struct hold *hold; /* owns a reference; NULL: the bytes are a copy */
	void *copy;        /* owns */
	int64_t shape[VIEW_MAX_DIMS], strides[VIEW_MAX_DIMS];
};

static void export_free(struct export *e)
{
	if (e->hold)
		view_close(e->hold);
	free(e->copy);
	free(e);
}

/* Any thread, without the GIL. */
static void export_delete(struct dlpack_managed *self)
{
	export_free(self->context);
}

static void export_delete_versioned(struct dlpack_versioned *self)
{
	export_free(self->context);
}

/* A consumer that took the tensor has renamed the capsule. */
static void capsule_destroy(PyObject *capsule)
{
	struct dlpack_managed *managed;
	struct dlpack_versioned *versioned;

	if (PyCapsule_IsValid(capsule, DLPACK_NAME)) {
		managed = PyCapsule_GetPointer(capsule, DLPACK_NAME);
		managed->deleter(managed);
	} else if (PyCapsule_IsValid(capsule, DLPACK_NAME_VERSIONED)) {
		versioned = PyCapsule_GetPointer(capsule, DLPACK_NAME_VERSIONED);
		versioned->deleter(versioned);
	}
}

struct dlpack_request {
	struct dlpack_device device; /* where the block is */
	bool versioned, copy;
};

/* (major, minor) or (type, id): 1 and both, 0 for None, -1 with an exception. */
static int request_pair(PyObject *pair, const char *name, long ret[2])
{
	if (pair == Py_None)
		return 0;
	if (!PyTuple_Check(pair) || PyTuple_Size(pair) != 2) {
		PyErr_Format(PyExc_TypeError, "%s must be None or a tuple of two integers", name);
		return -1;
	}
	for (int i = 0; i < 2; i++) {
		PyObject *number = PyNumber_Index(PyTuple_GetItem(pair, i));

		ret[i] = number ? PyLong_AsLong(number) : 0;
		Py_XDECREF(number);
		if (PyErr_Occurred())
			return -1;
	}
	return 1;
}

/* Nothing is ever under way that a consumer's stream had to wait for: what is found was written before it was published, and what is reserved has
 * not been written yet. */
static bool request_stream(PyObject *stream, int type)
{
	int overflow = 0;
	long long number = -1;

	if (stream != Py_None)
		number = PyLong_Check(stream) ? PyLong_AsLongLongAndOverflow(stream, &overflow) : -2;
	if (type == DLPACK_CPU && number == -1 && !overflow)
		return true;
	if (type == DLPACK_CUDA && (overflow > 0 || number == -1 || number > 0))
		return true;
	PyErr_SetString(PyExc_BufferError, type == DLPACK_CPU ? "stream must be None: the block is in host memory"
	                                                      : "stream must be None, -1, 1, 2 or a CUDA stream");
	return false;
}

static bool request_parse(struct dlpack_request *q, PyObject *args, PyObject *keywords)
{
	static char *names[] = { "stream", "max_version", "dl_device", "copy", NULL };
	PyObject *stream = Py_None, *max_version = Py_None, *device = Py_None, *copy = Py_None;
	long version[2], where[2];
	int r;

	if (!PyArg_ParseTupleAndKeywords(args, keywords, "|OOOO:__dlpack__", names, &stream, &max_version, &device, &copy))
		return false;
	if (!request_stream(stream, q->device.type))
		return false;
	r = request_pair(max_version, "max_version", version);
	if (r < 0)
		return false;
	q->versioned = r > 0 && version[0] >= (long)DLPACK_MAJOR;
	r = request_pair(device, "dl_device", where);
	if (r < 0)
		return false;
	if (r > 0 && (where[0] != q->device.type || where[1] != q->device.id)) {
		PyErr_Format(PyExc_BufferError, "the block is on device (%d, %d), and is not exported to (%ld, %ld)",
		             (int)q->device.type, (int)q->device.id, where[0], where[1]);
		return false;
	}
	if (copy != Py_None && !PyBool_Check(copy)) {
		PyErr_SetString(PyExc_TypeError, "copy must be None, False or True");
		return false;
	}
	q->copy = copy == Py_True;
	if (q->copy && q->device.type != DLPACK_CPU) {
		PyErr_SetString(PyExc_BufferError,
		                "the block is in a GPU's memory, and is not copied for you: clone the tensor");
		return false;
	}
	return true;
}

/* Takes over the reference to @h. */
static struct export *export_new(const struct view_object *v, struct hold *h, char *data, bool copy)
{
	struct export *e = calloc(1, sizeof(*e));

	if (e && copy)
		e->copy = aligned_alloc(VIEW_ALIGNMENT, (v->bytes + VIEW_ALIGNMENT - 1) / VIEW_ALIGNMENT * VIEW_ALIGNMENT);
	if (!e || (copy && !e->copy)) {
		free(e);
		view_close(h);
		PyErr_NoMemory();
		return NULL;
	}
	if (copy) {
		Py_BEGIN_ALLOW_THREADS;
		memcpy(e->copy, data, v->bytes);
		view_close(h);
		Py_END_ALLOW_THREADS;
	} else {
		e->hold = h;
	}
	memcpy(e->shape, v->shape, sizeof(e->shape));
	memcpy(e->strides, v->strides, sizeof(e->strides));
	return e;
}

static PyObject *view_dlpack(PyObject *self, PyObject *args, PyObject *keywords)
{
	struct view_object *v = view_of(self);
	struct dlpack_request q = { .device = view_where(v) };
	struct dlpack_tensor *t;
	struct hold *h;
	struct export *e;
	PyObject *capsule;
	bool readonly;
	char *data;

	if (!request_parse(&q, args, keywords))
		return NULL;
	h = view_open(v, &data, &readonly);
	if (!h)
		return NULL;
	/* A legacy capsule cannot say read-only: whoever gets one may write.  Then the memory itself must refuse. */
	if (readonly && !q.copy && !q.versioned && !((struct hold_object *)v->hold)->readonly_map) {
		view_close(h);
		PyErr_SetString(PyExc_BufferError,
		                "the block is read-only, which a consumer that does not pass max_version >= (1, 0) cannot be told: "
		                "use copy=True, the buffer protocol, or a BlockManager(readonly=True)");
		return NULL;
	}
	e = export_new(v, h, data, q.copy);
	if (!e)
		return NULL;
	t = q.versioned ? &e->as.versioned.tensor : &e->as.managed.tensor;
	*t = (struct dlpack_tensor){
		.data = e->copy ? e->copy : data,
		.device = q.device,
		.ndim = v->ndim,
		.dtype = v->dtype->dlpack,
		.shape = e->shape,
		.strides = e->strides,
	};
	if (q.versioned) {
		e->as.versioned.major = DLPACK_MAJOR;
		e->as.versioned.minor = DLPACK_MINOR;
		e->as.versioned.context = e;
		e->as.versioned.deleter = export_delete_versioned;
		e->as.versioned.flags = e->copy ? DLPACK_FLAG_IS_COPIED : readonly ? DLPACK_FLAG_READ_ONLY : 0;
	} else {
		e->as.managed.context = e;
		e->as.managed.deleter = export_delete;
	}
	capsule = PyCapsule_New(&e->as, q.versioned ? DLPACK_NAME_VERSIONED : DLPACK_NAME, capsule_destroy);
	if (!capsule)
		export_free(e);
	return capsule;
}

static PyObject *view_dlpack_device(PyObject *self, PyObject *unused)
{
	struct dlpack_device device = view_where(view_of(self));

	(void)unused;
	return Py_BuildValue("ii", (int)device.type, (int)device.id);
}

/* ---- the type ---- */

static PyObject *view_get_shape(PyObject *self, void *closure)
{
	struct view_object *v = view_of(self);
	PyObject *shape = PyTuple_New(v->ndim);

	(void)closure;
	for (int i = 0; shape && i < v->ndim; i++)
		PyTuple_SetItem(shape, i, PyLong_FromLongLong(v->shape[i]));
	return shape;
}

static PyObject *view_get_nbytes(PyObject *self, void *closure)
{
	(void)closure;
	return PyLong_FromUnsignedLongLong(view_of(self)->bytes);
}

static PyObject *view_get_address(PyObject *self, void *closure)
{
	struct hold *h;
	bool readonly;
	char *data;

	(void)closure;
	h = view_open(view_of(self), &data, &readonly);
	if (!h)
		return NULL;
	view_close(h);
	return PyLong_FromVoidPtr(data);
}

static PyObject *view_get_readonly(PyObject *self, void *closure)
{
	struct hold *h = hold_object_get(view_of(self)->hold);
	bool readonly;

	(void)closure;
	if (!h)
		return NULL;
	readonly = h->state != HOLD_WRITE;
	hold_put(h);
	return PyBool_FromLong(readonly);
}

static PyObject *view_get_lane(PyObject *self, void *closure)
{
	(void)closure;
	return PyLong_FromUnsignedLong(view_of(self)->lane);
}

static PyObject *view_get_hold(PyObject *self, void *closure)
{
	PyObject *hold = view_of(self)->hold;

	(void)closure;
	Py_INCREF(hold);
	return hold;
}

static PyGetSetDef view_getset[] = {
	{ "shape", view_get_shape, NULL, "elements in each dimension", NULL },
	{ "nbytes", view_get_nbytes, NULL, "bytes; they are contiguous", NULL },
	{ "data_ptr", view_get_address, NULL, "address of the first byte, good while the block is held", NULL },
	{ "readonly", view_get_readonly, NULL, "whether it may only be read", NULL },
	{ "lane", view_get_lane, NULL, "the lane whose slice this is", NULL },
	{ "_hold", view_get_hold, NULL, "the Hold behind it", NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};

static PyMethodDef view_methods[] = {
	{ "__dlpack__", (PyCFunction)(void (*)(void))view_dlpack, METH_VARARGS | METH_KEYWORDS,
	  "__dlpack__($self, /, stream=None, max_version=None, dl_device=None, copy=None)\n--\n\n"
	  "A capsule for from_dlpack() of another library, on the same bytes.  Each call makes one, for one consumer; the block stays "
	  "held until the tensor made of it is gone.  With max_version >= (1, 0) a versioned capsule, whose read-only flag is set unless the "
	  "block is reserved for writing; else a legacy one.\n\nBufferError: another device or a stream was asked for, or a legacy "
	  "capsule of a read-only block.  NotHeld: the block was released.  Stale, Gone, Forked: its bytes cannot be reached any more." },
	{ "__dlpack_device__", view_dlpack_device, METH_NOARGS,
	  "__dlpack_device__($self, /)\n--\n\n(1, 0): host memory; (2, n): that of GPU n." },
	{ NULL, NULL, 0, NULL },
};

PyObject *view_type_new(void)
{
	static PyType_Slot slots[] = {
		{ Py_tp_new, view_make },
		{ Py_tp_dealloc, view_dealloc },
		{ Py_tp_methods, view_methods },
		{ Py_tp_getset, view_getset },
		{ Py_bf_getbuffer, view_getbuffer },
		{ Py_bf_releasebuffer, view_releasebuffer },
		{ Py_tp_doc, "View(hold, offset, shape, dtype, lane)\n\nA dense part of a block." },
		{ 0, NULL },
	};
	static PyType_Spec spec = {
		.name = "kvbmd._kvbm.View",
		.basicsize = sizeof(struct view_object),
		.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
		.slots = slots,
	};

	view_type = (PyTypeObject *)PyType_FromSpec(&spec);
	Py_XINCREF(view_type);
	return (PyObject *)view_type;
}
