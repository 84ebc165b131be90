/* SPDX-License-Identifier: Apache-2.0 */
/* Hold: the object that stands for one held or reserved block.
 *
 * Owns one reference to its struct hold, until it is released or collected.  Views made of it have references of their own: the block stays
 * held until the last of all of them is gone.
 */
#include "extension.h"

PyTypeObject *hold_type;

void object_free(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);
	freefunc free_slot = (freefunc)PyType_GetSlot(type, Py_tp_free);

	free_slot(self);
	Py_DECREF(type);
}

PyObject *hold_object_new(struct hold *h, const struct namespace_object *o)
{
	struct hold_object *self = PyObject_New(struct hold_object, hold_type);

	if (!self)
		return NULL;
	self->hold = h;
	self->device = o->device;
	/* Of a GPU's memory nobody knows: not every driver maps it read-only. */
	self->readonly_map = o->readonly && o->device < 0;
	return (PyObject *)self;
}

struct hold *hold_object_get(PyObject *object)
{
	struct hold *h;

	if (!PyObject_TypeCheck(object, hold_type)) {
		PyErr_Format(PyExc_TypeError, "a Hold is wanted, not %R", (PyObject *)Py_TYPE(object));
		return NULL;
	}
	h = ((struct hold_object *)object)->hold;
	if (!h || h->state == HOLD_NONE) {
		raise_code(KVBM_E_NOTHELD, "the block was released");
		return NULL;
	}
	if (h->busy) {
		PyErr_SetString(PyExc_RuntimeError, "the block is being committed by another thread");
		return NULL;
	}
	atomic_fetch_add(&h->refs, 1);
	return h;
}

static void hold_dealloc(PyObject *self)
{
	struct hold_object *o = (struct hold_object *)self;

	if (o->hold)
		hold_put(o->hold);
	object_free(self);
}

static PyObject *hold_get_state(PyObject *self, void *closure)
{
	static const char *const names[] = { "released", "held", "reserved" };
	const struct hold *h = ((struct hold_object *)self)->hold;

	(void)closure;
	return PyUnicode_FromString(names[h ? h->state : HOLD_NONE]);
}

static PyObject *hold_get_slot(PyObject *self, void *closure)
{
	const struct hold *h = ((struct hold_object *)self)->hold;

	(void)closure;
	if (!h || h->state == HOLD_NONE)
		Py_RETURN_NONE;
	return PyLong_FromUnsignedLong(h->span.slot);
}

static PyObject *hold_get_tiers(PyObject *self, void *closure)
{
	const struct hold *h = ((struct hold_object *)self)->hold;

	(void)closure;
	return PyLong_FromUnsignedLong(h && h->state != HOLD_NONE ? h->span.tiers : 0);
}

static PyObject *hold_get_views(PyObject *self, void *closure)
{
	struct hold *h = ((struct hold_object *)self)->hold;

	(void)closure;
	return PyLong_FromLong(h ? atomic_load(&h->refs) - 1 : 0);
}

static PyObject *hold_get_lane(PyObject *self, void *closure)
{
	const struct hold *h = ((struct hold_object *)self)->hold;

	(void)closure;
	return PyLong_FromLongLong(h && h->lane != KVBM_ALL_LANES ? (long long)h->lane : -1);
}

static PyGetSetDef hold_getset[] = {
	{ "state", hold_get_state, NULL, "'reserved' (writable), 'held' (readable) or 'released'", NULL },
	{ "slot", hold_get_slot, NULL, "number of its slot in the namespace; None when released", NULL },
	{ "tiers", hold_get_tiers, NULL, "bits of the tiers it was in when it was found", NULL },
	{ "views", hold_get_views, NULL, "exported arrays, tensors and memoryviews that are alive", NULL },
	{ "lane", hold_get_lane, NULL, "the lane it was reserved for; -1: all", NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};

PyObject *hold_type_new(void)
{
	static PyType_Slot slots[] = {
		{ Py_tp_dealloc, hold_dealloc },
		{ Py_tp_getset, hold_getset },
		{ Py_tp_doc, "One block that is held for reading or reserved for writing; ends by Namespace.release()." },
		{ 0, NULL },
	};
	static PyType_Spec spec = {
		.name = "kvbmd._kvbm.Hold",
		.basicsize = sizeof(struct hold_object),
		.flags = Py_TPFLAGS_DEFAULT,
		.slots = slots,
	};

	return PyType_FromSpec(&spec);
}
