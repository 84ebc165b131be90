"""Consumers in ctypes, of DLPack and of the buffer protocol: what torch and numpy do, one step at a time, so that tests see each."""

import ctypes

from_name = ctypes.pythonapi.PyCapsule_GetPointer
from_name.restype = ctypes.c_void_p
from_name.argtypes = [ctypes.py_object, ctypes.c_char_p]
get_name = ctypes.pythonapi.PyCapsule_GetName
get_name.restype = ctypes.c_char_p
get_name.argtypes = [ctypes.py_object]
set_name = ctypes.pythonapi.PyCapsule_SetName
set_name.restype = ctypes.c_int
set_name.argtypes = [ctypes.py_object, ctypes.c_char_p]

# The capsule keeps the pointer, not the text.
USED = {b"dltensor": b"used_dltensor", b"dltensor_versioned": b"used_dltensor_versioned"}


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class Managed(ctypes.Structure):
    _fields_ = [("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.CFUNCTYPE(None, ctypes.c_void_p))]


class Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    ]


class Consumer:
    """Takes a capsule over as the protocol says; ValueError if somebody has done so before."""

    def __init__(self, capsule):
        name = get_name(capsule)
        if name not in USED:
            raise ValueError(f"the capsule is used: {name!r}")
        self.versioned = name == b"dltensor_versioned"
        self.address = from_name(capsule, name)
        self.managed = (Versioned if self.versioned else Managed).from_address(self.address)
        set_name(capsule, USED[name])
        self.tensor = self.managed.tensor
        self.shape = tuple(self.tensor.shape[i] for i in range(self.tensor.ndim))
        self.strides = tuple(self.tensor.strides[i] for i in range(self.tensor.ndim))
        self.flags = self.managed.flags if self.versioned else None

    def bytes(self, n):
        return ctypes.string_at(self.tensor.data, n)

    def delete(self):
        """Calls the deleter; ctypes lets go of the GIL for it, as a C++ thread would not have had it."""
        self.managed.deleter(self.address)


class Buffer(ctypes.Structure):
    """A buffer, as C asks for one with flags; released at the end of a with statement."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.POINTER(ctypes.c_ssize_t)),
        ("strides", ctypes.POINTER(ctypes.c_ssize_t)),
        ("suboffsets", ctypes.POINTER(ctypes.c_ssize_t)),
        ("internal", ctypes.c_void_p),
    ]

    def __init__(self, exporter, flags):
        super().__init__()
        self.exporter, self.flags = exporter, flags

    def __enter__(self):
        get_buffer(self.exporter, ctypes.byref(self), self.flags)
        return self

    def __exit__(self, *exc):
        release_buffer(ctypes.byref(self))


get_buffer = ctypes.pythonapi.PyObject_GetBuffer
get_buffer.argtypes = [ctypes.py_object, ctypes.POINTER(Buffer), ctypes.c_int]
release_buffer = ctypes.pythonapi.PyBuffer_Release
release_buffer.argtypes = [ctypes.POINTER(Buffer)]
release_buffer.restype = None
