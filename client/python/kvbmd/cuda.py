# SPDX-License-Identifier: Apache-2.0
"""Handles for CUDA memory of this process, so that a daemon can copy from and to it: asks the driver, and links nothing.

Works on memory of cudaMalloc() and of PyTorch's caching allocator.  Memory of cuMemCreate() (PyTorch's expandable segments, vLLM's sleep mode) has no
such handle: the driver refuses, and handle_of() raises.
"""

import ctypes
from typing import NamedTuple, Optional

_MIG_UUID, _GPU_UUID = "cuDeviceGetUuid_v2", "cuDeviceGetUuid"
_DEVICE_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL


class CudaError(RuntimeError):
    """The driver refused; the text has its number for it."""


class Memory(NamedTuple):
    """One allocation of the driver's, in which an address was found."""

    device: str  #: UUID, as nvidia-smi -L shows it
    handle: bytes  #: cudaIpcMemHandle, 64 bytes
    base: int  #: address of the first byte
    nbytes: int


_driver: Optional[ctypes.CDLL] = None


def _library() -> ctypes.CDLL:
    global _driver
    if _driver is None:
        try:
            _driver = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise CudaError(f"no driver: {error}") from None
        _call("cuInit", 0)
    return _driver


def _call(name: str, *args: object) -> None:
    code = getattr(_library(), name)(*args)
    if code != 0:
        raise CudaError(f"{name}: {code}")


def _uuid(device: ctypes.c_int) -> str:
    whole, own = (ctypes.c_ubyte * 16)(), (ctypes.c_ubyte * 16)()
    _call(_MIG_UUID, ctypes.byref(own), device)
    _call(_GPU_UUID, ctypes.byref(whole), device)
    digits = bytes(own).hex()
    kind = "GPU" if bytes(own) == bytes(whole) else "MIG"
    return "-".join((kind, digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def handle_of(address: int) -> Memory:
    """The allocation that address lies in.  Raises CudaError."""
    ordinal, device = ctypes.c_int(), ctypes.c_int()
    base, nbytes, handle = ctypes.c_uint64(), ctypes.c_size_t(), (ctypes.c_ubyte * 64)()
    _call("cuPointerGetAttribute", ctypes.byref(ordinal), _DEVICE_ORDINAL, ctypes.c_uint64(address))
    _call("cuDeviceGet", ctypes.byref(device), ordinal)
    _call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(nbytes), ctypes.c_uint64(address))
    _call("cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(base.value))
    return Memory(_uuid(device), bytes(handle), base.value, nbytes.value)
