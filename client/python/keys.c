/* SPDX-License-Identifier: Apache-2.0 */
/* Hashes as Python programs have them, packed into the keys of one namespace.
 *
 * A hash is bytes of exactly key_bytes, an int (big-endian; numpy's integers too), or a str of 2 * key_bytes hexadecimal digits.  Anything else, and one
 * of the wrong length, is refused with its position: a key that was cut or padded in silence would be somebody else's.
 */
#include "extension.h"

#include <string.h>

static bool key_from_buffer(PyObject *hash, uint8_t *key, uint32_t key_bytes, uint32_t i)
{
	Py_buffer b;
	bool ok;

	if (PyObject_GetBuffer(hash, &b, PyBUF_SIMPLE) < 0)
		return false;
	ok = b.len == (Py_ssize_t)key_bytes;
	if (ok)
		memcpy(key, b.buf, key_bytes);
	else
		PyErr_Format(PyExc_ValueError, "hash %u has %zd bytes, and this namespace's keys have %u", i, b.len,
		             key_bytes);
	PyBuffer_Release(&b);
	return ok;
}

static int hex_digit(char c)
{
	return c >= '0' && c <= '9'   ? c - '0'
	       : c >= 'a' && c <= 'f' ? c - 'a' + 10
	       : c >= 'A' && c <= 'F' ? c - 'A' + 10
	                              : -1;
}

static bool key_from_text(PyObject *hash, uint8_t *key, uint32_t key_bytes, uint32_t i)
{
	PyObject *ascii = PyUnicode_AsASCIIString(hash);
	char *text = NULL;
	Py_ssize_t length = 0;
	bool ok = ascii && PyBytes_AsStringAndSize(ascii, &text, &length) == 0 && length == 2 * (Py_ssize_t)key_bytes;

	for (uint32_t at = 0; ok && at < key_bytes; at++) {
		int high = hex_digit(text[2 * at]), low = hex_digit(text[2 * at + 1]);

		ok = high >= 0 && low >= 0;
		key[at] = (uint8_t)((unsigned)high << 4 | (unsigned)low);
	}
	Py_XDECREF(ascii);
	if (!ok) {
		PyErr_Clear();
		PyErr_Format(PyExc_ValueError, "hash %u is a str, but not one of %u hexadecimal digits", i, 2 * key_bytes);
	}
	return ok;
}

static bool key_from_int(PyObject *hash, uint8_t *key, uint32_t key_bytes, uint32_t i)
{
	PyObject *number = PyNumber_Index(hash), *bytes = NULL;
	char *data;
	Py_ssize_t length;
	bool ok = false;

	if (number)
		bytes = PyObject_CallMethod(number, "to_bytes", "Is", (unsigned)key_bytes, "big");
	if (bytes && PyBytes_AsStringAndSize(bytes, &data, &length) == 0 && length == (Py_ssize_t)key_bytes) {
		memcpy(key, data, key_bytes);
		ok = true;
	} else if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
		PyErr_Clear();
		PyErr_Format(PyExc_ValueError, "hash %u is negative, or does not fit into %u bytes", i, key_bytes);
	}
	Py_XDECREF(bytes);
	Py_XDECREF(number);
	return ok;
}

static bool key_from(PyObject *hash, uint8_t *key, uint32_t key_bytes, uint32_t i)
{
	if (PyBytes_Check(hash))
		return key_from_buffer(hash, key, key_bytes, i);
	if (PyUnicode_Check(hash))
		return key_from_text(hash, key, key_bytes, i);
	if (PyIndex_Check(hash) && !PyBool_Check(hash))
		return key_from_int(hash, key, key_bytes, i);
	if (PyByteArray_Check(hash) || PyMemoryView_Check(hash))
		return key_from_buffer(hash, key, key_bytes, i);
	PyErr_Format(PyExc_TypeError, "hash %u must be bytes, int or str, not %R", i, (PyObject *)Py_TYPE(hash));
	return false;
}

static PyObject *keys_list(PyObject *hashes)
{
	PyObject *list;

	if (PyBytes_Check(hashes) || PyUnicode_Check(hashes) || PyByteArray_Check(hashes)) {
		PyErr_SetString(PyExc_TypeError, "hashes is one hash, where a list of them is wanted");
		return NULL;
	}
	if (PyList_Check(hashes)) {
		Py_INCREF(hashes);
		return hashes;
	}
	list = PySequence_List(hashes);
	if (!list && PyErr_ExceptionMatches(PyExc_TypeError)) {
		PyErr_Clear();
		PyErr_Format(PyExc_TypeError, "hashes must be an iterable of bytes, int or str, not %R",
		             (PyObject *)Py_TYPE(hashes));
	}
	return list;
}

PyObject *keys_pack(PyObject *hashes, uint32_t key_bytes, uint32_t *ret_n)
{
	PyObject *list = keys_list(hashes), *packed = NULL;
	Py_ssize_t n = list ? PyList_Size(list) : 0;
	char *to = NULL;

	if (!list)
		return NULL;
	if (n > (Py_ssize_t)KVBM_MAX_KEYS)
		PyErr_Format(PyExc_ValueError, "%zd hashes are more than the %u of one call", n, KVBM_MAX_KEYS);
	else
		packed = PyBytes_FromStringAndSize(NULL, n * (Py_ssize_t)key_bytes);
	if (packed)
		to = PyBytes_AsString(packed);
	/* Converting one may run Python code, which may shorten the list. */
	for (Py_ssize_t i = 0; packed && i < n; i++) {
		PyObject *hash = PyList_GetItem(list, i);
		bool ok;

		Py_XINCREF(hash);
		ok = hash && key_from(hash, (uint8_t *)to + i * (Py_ssize_t)key_bytes, key_bytes, (uint32_t)i);
		Py_XDECREF(hash);
		if (!ok)
			Py_CLEAR(packed);
	}
	Py_DECREF(list);
	*ret_n = (uint32_t)n;
	return packed;
}

PyObject *keys_pack_method(PyObject *module, PyObject *args)
{
	unsigned key_bytes;
	PyObject *hashes;
	uint32_t n;

	(void)module;
	if (!PyArg_ParseTuple(args, "OI:pack", &hashes, &key_bytes))
		return NULL;
	if (key_bytes < 8 || key_bytes > KVBM_KEY_MAX)
		return PyErr_Format(PyExc_ValueError, "key_bytes is %u, and must be 8 to %d", key_bytes, KVBM_KEY_MAX);
	return keys_pack(hashes, key_bytes, &n);
}
