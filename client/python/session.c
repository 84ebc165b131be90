/* SPDX-License-Identifier: Apache-2.0 */
/* Session: a connection to a daemon, what it is asked that is about no namespace, and attaching to one.
 *
 * Owns the object's reference to struct session.  An object that is collected unclosed closes it.
 */
#include "extension.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct session_object {
	PyObject_HEAD struct session *session; /* owns a reference */
};

static struct session *session_of(PyObject *self)
{
	return ((struct session_object *)self)->session;
}

bool session_use(struct session *s)
{
	if (!s || atomic_load(&s->closed)) {
		raise_code(0, "the client is closed");
		return false;
	}
	atomic_fetch_add(&s->users, 1);
	return true;
}

/* ---- open and close ---- */

static PyObject *session_make(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
	static char *names[] = { "socket", "name", "timeout_ms", "by_socket", NULL };
	allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	struct kvbm_options options = { .timeout_ms = 0 };
	struct kvbm *kvbm = NULL;
	int by_socket = 0, r, saved;
	PyObject *self;

	if (!PyArg_ParseTupleAndKeywords(args, keywords, "|zzip:Session", names, &options.socket, &options.name,
	                                 &options.timeout_ms, &by_socket))
		return NULL;
	self = alloc(type, 0);
	if (!self)
		return NULL;
	options.flags = by_socket ? KVBM_OPEN_BY_SOCKET : 0;
	Py_BEGIN_ALLOW_THREADS;
	errno = 0;
	r = kvbm_open(&options, &kvbm);
	saved = errno;
	Py_END_ALLOW_THREADS;
	errno = saved;
	if (r < 0)
		raise_result(NULL, r, "open");
	else if (!(((struct session_object *)self)->session = session_new(kvbm, by_socket))) {
		kvbm_close(kvbm);
		PyErr_NoMemory();
	}
	if (!session_of(self)) {
		Py_DECREF(self);
		return NULL;
	}
	return self;
}

static void session_dealloc(PyObject *self)
{
	struct session *s = session_of(self);

	if (s) {
		Py_BEGIN_ALLOW_THREADS;
		session_close(s);
		Py_END_ALLOW_THREADS;
		session_put(s);
	}
	object_free(self);
}

static PyObject *session_close_method(PyObject *self, PyObject *unused)
{
	struct session *s = session_of(self);

	(void)unused;
	Py_BEGIN_ALLOW_THREADS;
	session_close(s);
	Py_END_ALLOW_THREADS;
	Py_RETURN_NONE;
}

/* ---- calls ---- */

static PyObject *session_ping(PyObject *self, PyObject *unused)
{
	struct session *s = session_of(self);
	PyObject *result = NULL;
	int r;

	(void)unused;
	if (!session_use(s))
		return NULL;
	Py_BEGIN_ALLOW_THREADS;
	session_drain(s);
	r = kvbm_ping(s->kvbm);
	Py_END_ALLOW_THREADS;
	result = r < 0 ? raise_result(s, r, "ping") : PyLong_FromLong(r);
	session_unuse(s);
	return result;
}

static PyObject *session_dispatch(PyObject *self, PyObject *unused)
{
	struct session *s = session_of(self);
	PyObject *result = NULL;
	int r;

	(void)unused;
	if (!session_use(s))
		return NULL;
	Py_BEGIN_ALLOW_THREADS;
	r = kvbm_dispatch(s->kvbm);
	Py_END_ALLOW_THREADS;
	result = r < 0 ? raise_result(s, r, "dispatch") : PyLong_FromLong(r);
	session_unuse(s);
	return result;
}

static PyObject *session_fileno(PyObject *self, PyObject *unused)
{
	struct session *s = session_of(self);
	PyObject *result;

	(void)unused;
	if (!session_use(s))
		return NULL;
	result = PyLong_FromLong(kvbm_get_fd(s->kvbm));
	session_unuse(s);
	return result;
}

static PyObject *session_info(PyObject *self, PyObject *args)
{
	struct session *s = session_of(self);
	const char *topic, *name = NULL, *key = NULL;
	Py_ssize_t key_bytes = 0;
	PyObject *result = NULL;
	char *json = NULL;
	int r;

	if (!PyArg_ParseTuple(args, "s|zz#:info", &topic, &name, &key, &key_bytes) || !session_use(s))
		return NULL;
	if (key_bytes > KVBM_KEY_MAX)
		key_bytes = KVBM_KEY_MAX + 1; /* refused by the library */
	Py_BEGIN_ALLOW_THREADS;
	session_drain(s);
	r = kvbm_info(s->kvbm, topic, name, key, (uint32_t)key_bytes, &json);
	Py_END_ALLOW_THREADS;
	result = r < 0 ? raise_result(s, r, "info") : PyUnicode_FromString(json);
	free(json);
	session_unuse(s);
	return result;
}

static PyObject *session_admin(PyObject *self, PyObject *args)
{
	struct session *s = session_of(self);
	const char *action, *name = NULL, *keys = NULL;
	Py_ssize_t length = 0;
	unsigned key_bytes = 0;
	PyObject *result = NULL;
	uint32_t kept = 0;
	int r;

	if (!PyArg_ParseTuple(args, "s|zz#I:admin", &action, &name, &keys, &length, &key_bytes) || !session_use(s))
		return NULL;
	Py_BEGIN_ALLOW_THREADS;
	session_drain(s);
	r = kvbm_admin(s->kvbm, action, name, keys, key_bytes, key_bytes ? (uint32_t)(length / key_bytes) : 0, &kept);
	Py_END_ALLOW_THREADS;
	result = r < 0 ? raise_result(s, r, action) : Py_BuildValue("iI", r, (unsigned)kept);
	session_unuse(s);
	return result;
}

static PyObject *session_counters(PyObject *self, PyObject *unused)
{
	struct session *s = session_of(self);
	struct kvbm_counters c;

	(void)unused;
	if (!session_use(s))
		return NULL;
	Py_BEGIN_ALLOW_THREADS;
	kvbm_get_counters(s->kvbm, &c);
	Py_END_ALLOW_THREADS;
	session_unuse(s);
	return Py_BuildValue("{sKsKsKsKsKsKsKsK}", "looked_up", (unsigned long long)c.looked_up, "hits",
	                     (unsigned long long)c.hits, "misses", (unsigned long long)c.misses, "commits_new",
	                     (unsigned long long)c.commits_new, "commits_existing", (unsigned long long)c.commits_existing,
	                     "commits_failed", (unsigned long long)c.commits_failed, "reconnects",
	                     (unsigned long long)c.reconnects, "boot_id", (unsigned long long)c.boot_id);
}

/* ---- attach ---- */

static PyObject *namespace_make(struct session *s, struct kvbm_ns *ns, bool readonly, int device)
{
	struct namespace_object *o = PyObject_New(struct namespace_object, namespace_type);

	if (!o)
		return NULL;
	session_get(s);
	o->session = s;
	o->ns = ns;
	o->key_bytes = kvbm_ns_key_bytes(ns);
	o->lanes = kvbm_ns_lanes(ns);
	o->lane_bytes = kvbm_lane_bytes(ns);
	o->readonly = readonly;
	o->device = device;
	return (PyObject *)o;
}

static PyObject *session_attach(PyObject *self, PyObject *args, PyObject *keywords)
{
	static char *names[] = { "name",      "model", "block_bytes", "num_layers", "page_size", "inner_dim",
		                 "outer_dim", "dtype", "layout",      "lanes",      "key_bytes", "hash_algo",
		                 "salt",      "flags", "device",      "ordinal",    NULL };
	struct session *s = session_of(self);
	struct kvbm_model m = { .name = NULL };
	unsigned long long block_bytes = 0;
	unsigned num_layers = 0, page_size = 0, inner_dim = 0, outer_dim = 0, lanes = 0, key_bytes = 0, flags = 0;
	int dtype = 0, layout = 0, ordinal = -1, r;
	struct kvbm_ns *ns = NULL;
	PyObject *result;

	if (!PyArg_ParseTupleAndKeywords(args, keywords, "s|zKIIIIiiIIzzIzi:attach", names, &m.name, &m.model,
	                                 &block_bytes, &num_layers, &page_size, &inner_dim, &outer_dim, &dtype, &layout,
	                                 &lanes, &key_bytes, &m.hash_algo, &m.salt, &flags, &m.device, &ordinal) ||
	    !session_use(s))
		return NULL;
	m.block_bytes = block_bytes;
	m.num_layers = num_layers;
	m.page_size = page_size;
	m.inner_dim = inner_dim;
	m.outer_dim = outer_dim;
	m.dtype = (enum kvbm_dtype)dtype;
	m.layout = (enum kvbm_layout)layout;
	m.lanes = lanes;
	m.key_bytes = key_bytes;
	m.flags = flags;
	Py_BEGIN_ALLOW_THREADS;
	session_drain(s);
	r = kvbm_attach(s->kvbm, &m, &ns);
	Py_END_ALLOW_THREADS;
	result = r < 0 ? raise_result(s, r, "attach") : namespace_make(s, ns, flags & KVBM_NS_READONLY, ordinal);
	session_unuse(s);
	return result;
}

/* ---- the type ---- */

static PyObject *session_get_closed(PyObject *self, void *closure)
{
	(void)closure;
	return PyBool_FromLong(atomic_load(&session_of(self)->closed));
}

static PyGetSetDef session_getset[] = {
	{ "closed", session_get_closed, NULL, "whether close() was called", NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};

static PyMethodDef session_methods[] = {
	{ "close", session_close_method, METH_NOARGS,
	  "close()\n\nEnds the session.  Where arrays made of its blocks are alive, their memory stays until the last is gone." },
	{ "ping", session_ping, METH_NOARGS, "ping()\n\nA round trip that does nothing." },
	{ "dispatch", session_dispatch, METH_NOARGS, "dispatch() -> int\n\nTakes replies that nobody waits for." },
	{ "fileno", session_fileno, METH_NOARGS, "fileno() -> int\n\nPoll it for input, then dispatch()." },
	{ "info", session_info, METH_VARARGS, "info(topic, namespace=None, key=None) -> str\n\nA report, as JSON." },
	{ "admin", session_admin, METH_VARARGS,
	  "admin(action, namespace=None, keys=None, key_bytes=0) -> (dropped, kept)\n\n'flush' or 'drop'." },
	{ "counters", session_counters, METH_NOARGS, "counters() -> dict\n\nCounts since the session was opened." },
	{ "attach", (PyCFunction)(void (*)(void))session_attach, METH_VARARGS | METH_KEYWORDS,
	  "attach(name, ...) -> Namespace\n\nSee struct kvbm_model." },
	{ NULL, NULL, 0, NULL },
};

PyObject *session_type_new(void)
{
	static PyType_Slot slots[] = {
		{ Py_tp_new, session_make },
		{ Py_tp_dealloc, session_dealloc },
		{ Py_tp_methods, session_methods },
		{ Py_tp_getset, session_getset },
		{ Py_tp_doc, "Session(socket=None, name=None, timeout_ms=0, by_socket=False)\n\nA connection to a kvbmd." },
		{ 0, NULL },
	};
	static PyType_Spec spec = {
		.name = "kvbmd._kvbm.Session",
		.basicsize = sizeof(struct session_object),
		.flags = Py_TPFLAGS_DEFAULT,
		.slots = slots,
	};

	return PyType_FromSpec(&spec);
}
