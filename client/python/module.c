/* SPDX-License-Identifier: Apache-2.0 */
/* The module _kvbm: its types, its constants, and the exceptions that results of libkvbm become.
 *
 * Owns the exception classes, which live as long as the process: one for each code of enum kvbm_error, all under KvbmError, and under the
 * builtin exception that means the same where there is one.
 */
#include "extension.h"

#include <errno.h>
#ifdef KVBM_HAS_CUDA
#include <kvbm_cuda.h>
#endif
#include <kvbm_version.h>
#include <string.h>

struct error_row {
	const char *name, *builtin, *doc;
};

/* By code; [0] is what has none. */
static const struct error_row error_rows[KVBM_E_MAX] = {
	[0] = { "Closed", "ValueError", "The block manager was closed." },
	[KVBM_E_INVAL] = { "Invalid", "ValueError", "An argument is wrong." },
	[KVBM_E_VERSION] = { "Version", NULL, "Daemon and library speak different protocol versions." },
	[KVBM_E_PERM] = { "NotPermitted", "PermissionError", "This user may not do that." },
	[KVBM_E_NOENT] = { "NotFound", "LookupError", "There is no such namespace or block." },
	[KVBM_E_MISMATCH] = { "Mismatch", NULL, "The namespace exists with another model, layout, dtype or salt." },
	[KVBM_E_LIMIT] = { "Limit", NULL, "A limit of this session or user." },
	[KVBM_E_NOSPACE] = { "NoSpace", "MemoryError", "Too few blocks are free or droppable; none was dropped." },
	[KVBM_E_BUSY] = { "Busy", NULL, "Not now, but worth asking again." },
	[KVBM_E_STALE] = { "Stale", NULL,
	                   "The slot is no longer this client's: its write deadline passed, or its daemon has gone." },
	[KVBM_E_NOTHELD] = { "NotHeld", "ValueError", "The block was released." },
	[KVBM_E_TIMEOUT] = { "Timeout", "TimeoutError", "The deadline passed; the request may still take effect." },
	[KVBM_E_GONE] = { "Gone", "ConnectionError", "The daemon went away; the next call tries to reach it again." },
	[KVBM_E_PROTO] = { "Protocol", NULL, "The daemon broke the protocol." },
	[KVBM_E_INTERNAL] = { "Internal", NULL, "A fault inside the daemon; its log says more." },
	[KVBM_E_NOMEM] = { "NoMemory", "MemoryError", "This process, or the daemon, is out of memory." },
	[KVBM_E_FORKED] = { "Forked", NULL,
	                    "The block manager belongs to the parent process: a forked child opens its own." },
	[KVBM_E_SYS] = { "System", "OSError", "A system call failed; errno says which way." },
};

static PyObject *error_base, *errors[KVBM_E_MAX]; /* own */

/* ---- raising ---- */

PyObject *raise_code(int code, const char *text)
{
	if (code < 0 || code >= KVBM_E_MAX)
		code = KVBM_E_INTERNAL;
	PyErr_SetString(errors[code], text);
	return NULL;
}

PyObject *raise_result(struct session *s, int r, const char *what)
{
	int saved = errno, code = r < 0 && r > -KVBM_E_MAX ? -r : KVBM_E_INTERNAL;
	const char *name = kvbm_strerror(code), *text = s && s->kvbm ? kvbm_error(s->kvbm) : "";
	PyObject *arguments;

	if (code == KVBM_E_SYS && saved != 0) {
		arguments = Py_BuildValue("is", saved, *text ? text : strerror(saved));
		if (arguments)
			PyErr_SetObject(errors[code], arguments);
		Py_XDECREF(arguments);
	} else if (*text && strcmp(text, name) != 0) {
		PyErr_Format(errors[code], "%s: %s: %s", what, name, text);
	} else {
		PyErr_Format(errors[code], "%s: %s", what, name);
	}
	return NULL;
}

/* ---- exceptions ---- */

static PyObject *error_new(int code)
{
	const struct error_row *row = &error_rows[code];
	PyObject *builtins = PyImport_ImportModule("builtins"), *bases = NULL, *members = NULL, *error = NULL, *builtin;
	char name[64];

	builtin = row->builtin && builtins ? PyObject_GetAttrString(builtins, row->builtin) : NULL;
	if (builtin)
		bases = PyTuple_Pack(2, error_base, builtin);
	else if (!PyErr_Occurred())
		bases = PyTuple_Pack(1, error_base);
	members = Py_BuildValue("{si}", "code", code);
	PyOS_snprintf(name, sizeof(name), "kvbmd.%s", row->name);
	if (bases && members)
		error = PyErr_NewExceptionWithDoc(name, row->doc, bases, members);
	Py_XDECREF(members);
	Py_XDECREF(bases);
	Py_XDECREF(builtin);
	Py_XDECREF(builtins);
	return error;
}

static int errors_add(PyObject *module)
{
	PyObject *members = Py_BuildValue("{si}", "code", 0);

	error_base = members ? PyErr_NewExceptionWithDoc("kvbmd.KvbmError",
	                                                 "What went wrong between this process and kvbmd; code is the KVBM_E_* of "
	                                                 "kvbm.h, 0 where there is none.",
	                                                 NULL, members)
	                     : NULL;
	Py_XDECREF(members);
	if (!error_base || PyModule_AddObject(module, "KvbmError", error_base) < 0)
		return -1;
	Py_INCREF(error_base);
	for (int code = 0; code < KVBM_E_MAX; code++) {
		errors[code] = error_new(code);
		if (!errors[code] || PyModule_AddObject(module, error_rows[code].name, errors[code]) < 0)
			return -1;
		Py_INCREF(errors[code]);
	}
	return 0;
}

/* ---- the module ---- */

static PyObject *module_live(PyObject *module, PyObject *unused)
{
	(void)module;
	(void)unused;
	return Py_BuildValue("iii", atomic_load(&live_sessions), atomic_load(&live_holds), atomic_load(&live_views));
}

#ifdef KVBM_HAS_CUDA

static PyObject *module_cuda_uuid(PyObject *module, PyObject *args)
{
	char uuid[KVBM_CUDA_UUID_CHARS];
	int ordinal, r;

	(void)module;
	if (!PyArg_ParseTuple(args, "i:cuda_uuid", &ordinal))
		return NULL;
	Py_BEGIN_ALLOW_THREADS;
	r = kvbm_cuda_uuid(ordinal, uuid);
	Py_END_ALLOW_THREADS;
	if (r == -KVBM_E_NOENT)
		return raise_code(KVBM_E_NOENT, "CUDA finds no driver, or no device");
	if (r < 0)
		return PyErr_Format(PyExc_ValueError, "CUDA has no device %d in this process", ordinal);
	return PyUnicode_FromString(uuid);
}

#endif

static PyMethodDef module_methods[] = {
	{ "pack", keys_pack_method, METH_VARARGS,
	  "pack(hashes, key_bytes) -> bytes\n\nPacked keys of hashes: each bytes, int (big-endian) or hexadecimal str." },
	{ "live", module_live, METH_NOARGS,
	  "live() -> (sessions, holds, views)\n\nWhat of this process is alive: for tests and for finding leaks." },
#ifdef KVBM_HAS_CUDA
	{ "cuda_uuid", module_cuda_uuid, METH_VARARGS, "cuda_uuid(ordinal) -> str\n\nThe UUID of a GPU, as kvbmd names it." },
#endif
	{ NULL, NULL, 0, NULL },
};

static const struct {
	const char *name;
	long value;
} module_constants[] = {
	{ "MATCH_SCATTERED", KVBM_SCATTERED },
	{ "MATCH_PEEK", KVBM_PEEK },
	{ "COMMIT_HOLD", KVBM_HOLD },
	{ "COMMIT_PARENTS", KVBM_PARENTS },
	{ "COMMIT_NOWAIT", KVBM_NOWAIT },
	{ "NS_CONFIRM", KVBM_NS_CONFIRM },
	{ "NS_READONLY", KVBM_NS_READONLY },
	{ "DTYPE_BYTES", KVBM_DTYPE_DEFAULT },
	{ "DTYPE_BF16", KVBM_DTYPE_BF16 },
	{ "DTYPE_FP16", KVBM_DTYPE_FP16 },
	{ "DTYPE_FP32", KVBM_DTYPE_FP32 },
	{ "DTYPE_FP8_E4M3", KVBM_DTYPE_FP8_E4M3 },
	{ "DTYPE_FP8_E5M2", KVBM_DTYPE_FP8_E5M2 },
	{ "DTYPE_INT8", KVBM_DTYPE_INT8 },
	{ "LAYOUT_FULLY_CONTIGUOUS", KVBM_LAYOUT_FULLY_CONTIGUOUS },
	{ "LAYOUT_LAYER_SEPARATE_OUTER", KVBM_LAYOUT_LAYER_SEPARATE_OUTER },
	{ "LAYOUT_LAYER_SEPARATE_BLOCK", KVBM_LAYOUT_LAYER_SEPARATE_BLOCK },
	{ "HINT_RELEASE", KVBM_HINT_RELEASE },
	{ "HINT_RETAIN", KVBM_HINT_RETAIN },
	{ "HINT_TOUCH", KVBM_HINT_TOUCH },
	{ "TIER_G1", KVBM_TIER_G1 },
	{ "TIER_G2", KVBM_TIER_G2 },
	{ "TIER_G3", KVBM_TIER_G3 },
	{ "TIER_G4", KVBM_TIER_G4 },
	{ "KEY_MAX", KVBM_KEY_MAX },
	{ "MAX_KEYS", KVBM_MAX_KEYS },
	{ "MAX_LANES", KVBM_MAX_LANES },
};

static int module_add_type(PyObject *module, const char *name, PyObject *type, PyTypeObject **ret_type)
{
	if (!type)
		return -1;
	if (ret_type) {
		Py_INCREF(type);
		*ret_type = (PyTypeObject *)type;
	}
	return PyModule_AddObject(module, name, type);
}

static int module_fill(PyObject *module)
{
	for (size_t i = 0; i < sizeof(module_constants) / sizeof(module_constants[0]); i++)
		if (PyModule_AddIntConstant(module, module_constants[i].name, module_constants[i].value) < 0)
			return -1;
	if (PyModule_AddStringConstant(module, "VERSION", KVBM_VERSION) < 0 || errors_add(module) < 0 ||
	    module_add_type(module, "Session", session_type_new(), NULL) < 0 ||
	    module_add_type(module, "Namespace", namespace_type_new(), &namespace_type) < 0 ||
	    module_add_type(module, "Hold", hold_type_new(), &hold_type) < 0 ||
	    module_add_type(module, "View", view_type_new(), NULL) < 0 ||
	    module_add_type(module, "Child", child_type_new(), NULL) < 0 ||
	    module_add_type(module, "Adoption", adoption_type_new(), NULL) < 0)
		return -1;
	return 0;
}

static struct PyModuleDef module_def = {
	PyModuleDef_HEAD_INIT,
	.m_name = "kvbmd._kvbm",
	.m_doc = "The C half of kvbmd: libkvbm for Python.  Use the package, not this.",
	.m_size = -1,
	.m_methods = module_methods,
};

PyMODINIT_FUNC PyInit__kvbm(void);

PyMODINIT_FUNC PyInit__kvbm(void)
{
	PyObject *module = PyModule_Create(&module_def);

	if (module && module_fill(module) < 0)
		Py_CLEAR(module);
	return module;
}
