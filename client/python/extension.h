/* SPDX-License-Identifier: Apache-2.0 */
/* extension.h: inside _kvbm, the C half of the kvbmd package.  What users see is in kvbmd/ (Python).
 *
 *   module.c     the module: types, constants, exceptions
 *   keys.c       hashes as Python has them, into packed keys
 *   session.c    Session: a connection, what it is asked that is about no namespace
 *   namespace.c  Namespace: the calls on blocks
 *   pages.c      Namespace.copy_pages: between blocks and an engine's own memory
 *   adopt.c      Adoption, Namespace.adopt: an engine's own device memory
 *   hold.c       a block that is held or reserved; what is given back, when, and by whom.  Knows no Python
 *   handle.c     Hold: the object that stands for one
 *   view.c       View: DLPack and the buffer protocol over a part of a hold
 *   child.c      Child: a kvbmd of our own
 *
 * Stable ABI of Python 3.9: one binary for all later versions.
 *
 * Threads: objects belong to whoever has the GIL.  Calls of libkvbm are made without it.  struct session and struct hold are counted atomically,
 * because a consumer's deleter may run in any thread, without the GIL, after the interpreter's end.
 */
#ifndef KVBM_PYTHON_EXTENSION_H
#define KVBM_PYTHON_EXTENSION_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x03090000
#include <Python.h>
#include <kvbm.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* The buffer protocol came into the stable ABI with 3.11, as it had been in the unstable one since 3.9: same structure, same slots. */
typedef struct {
	void *buf;
	PyObject *obj;
	Py_ssize_t len, itemsize;
	int readonly, ndim;
	char *format;
	Py_ssize_t *shape, *strides, *suboffsets;
	void *internal;
} Py_buffer;
int PyObject_GetBuffer(PyObject *object, Py_buffer *view, int flags);
void PyBuffer_Release(Py_buffer *view);
#ifndef Py_bf_getbuffer
#define Py_bf_getbuffer 1
#define Py_bf_releasebuffer 2
#endif
#define PyBUF_SIMPLE 0
#define PyBUF_WRITABLE 0x0001
#define PyBUF_FORMAT 0x0004
#define PyBUF_ND 0x0008
#define PyBUF_STRIDES (0x0010 | PyBUF_ND)
#define PyBUF_F_CONTIGUOUS (0x0040 | PyBUF_STRIDES)

/* ---- hold.c ---- */

/* Invariant: kvbm is open while users > 0; that is until close() and the end of the last hold and of the last call. */
struct session {
	struct kvbm *kvbm;
	atomic_int refs;  /* of this memory */
	atomic_int users; /* being open, calls under way, holds */
	atomic_bool closed;
	bool by_socket;
	struct hold *_Atomic late; /* what nobody needs any more, but takes a message to give back */
};

enum hold_state {
	HOLD_NONE = 0, /* of no slot any more */
	HOLD_READ,     /* as by kvbm_match() */
	HOLD_WRITE,    /* as by kvbm_reserve() */
};

/* One block.  refs: the Hold object until it is released, each view, each call that uses it. */
struct hold {
	struct session *session; /* owns a reference and a use */
	struct kvbm_ns *ns;
	atomic_int refs;
	struct hold *next;
	/* with the GIL, or when refs is 0 */
	struct kvbm_span span;
	uint64_t joined; /* session_joined() when it was given */
	uint32_t lane;
	enum hold_state state;
	bool busy; /* being committed */
};

struct session *session_new(struct kvbm *kvbm, bool by_socket);
void session_get(struct session *s);
void session_put(struct session *s); /* any thread, GIL or not */
void session_unuse(struct session *s);
/* Gives back what views left behind.  Without the GIL; may wait. */
void session_drain(struct session *s);
/* Nothing more is asked of it.  Without the GIL; may wait. */
void session_close(struct session *s);

/* Which of the session's connections, one after the other, is the present one. */
uint64_t session_joined(struct session *s);

struct hold *hold_new(struct session *s, struct kvbm_ns *ns, const struct kvbm_span *span, uint32_t lane,
                      enum hold_state state);
/* Drops a reference.  The last one gives the block back, at once where that takes no message, else at the next call.  Any thread, GIL or not; waits
 * only after session_close(). */
void hold_put(struct hold *h);
/* Drops a reference; the last one pushes the hold to *list, for holds_give_back(). */
void hold_put_to(struct hold *h, struct hold **list);
/* Frees the list.  Without the GIL; may wait. */
void holds_give_back(struct hold *list);
/* How many open sessions, holds and exported views there are in this process: what tests count. */
extern atomic_int live_sessions, live_holds, live_views;

/* ---- keys.c ---- */

/* An iterable of hashes as packed keys; NULL with an exception.  *ret_n: how many. */
PyObject *keys_pack(PyObject *hashes, uint32_t key_bytes, uint32_t *ret_n);
PyObject *keys_pack_method(PyObject *module, PyObject *args);

/* ---- module.c ---- */

/* Raises what a negative result stands for; returns NULL.  @what: the name of the call. */
PyObject *raise_result(struct session *s, int r, const char *what);
PyObject *raise_code(int code, const char *text);
/* Begins a call: false, with an exception, when the session is closed.  Ends with session_unuse(). */
bool session_use(struct session *s);

/* ---- types ---- */

struct namespace_object {
	PyObject_HEAD struct session *session; /* owns a reference */
	struct kvbm_ns *ns;                    /* valid while the session has a user */
	uint32_t key_bytes, lanes;
	uint64_t lane_bytes;
	bool readonly;
	int device; /* the GPU whose memory it is in, as CUDA numbers them in this process; -1: host memory */
};

struct hold_object {
	PyObject_HEAD struct hold *hold; /* owns a reference; NULL: released */
	bool readonly_map;               /* its memory is mapped without the right to write */
	int device;                      /* as its namespace's */
};

/* Types are made once and live with the module. */
extern PyTypeObject *hold_type, *namespace_type;
PyObject *session_type_new(void);
PyObject *namespace_type_new(void);
PyObject *hold_type_new(void);
PyObject *view_type_new(void);
PyObject *child_type_new(void);
PyObject *adoption_type_new(void);

/* ---- adopt.c ---- */

PyObject *ns_adopt(PyObject *self, PyObject *args);

/* ---- pages.c ---- */

PyObject *ns_copy_pages(PyObject *self, PyObject *args);

/* ---- handle.c ---- */

PyObject *hold_object_new(struct hold *h, const struct namespace_object *o);
/* A new reference to the hold behind a Hold that was not released; else NULL with an exception. */
struct hold *hold_object_get(PyObject *object);
/* The end of a heap type's instance. */
void object_free(PyObject *self);

#endif
