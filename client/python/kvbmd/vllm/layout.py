# SPDX-License-Identifier: Apache-2.0
# mypy: ignore-errors
"""Where the pages of a block lie in the engine's tensors: as runs of bytes at base + block * stride, whatever the layout is called.

Pages are opaque bytes.  Of a tensor only its address, shape, strides and element size are looked at: in the dimensions beside that of blocks,
those that lie densely are one run, and each combination of the others is a run of its own.
"""

import itertools
import struct
from dataclasses import dataclass


class BadLayout(Exception):
    """A tensor whose blocks cannot be told apart; it says why."""


@dataclass(frozen=True)
class Run:
    base: int
    stride: int  # bytes from one block to the next
    nbytes: int


def _block_dim(shape, num_blocks):
    """Which dimension counts blocks: the first, or in layouts of 2025 the one behind K and V."""
    for dim in (0, 1):
        if dim < len(shape) and shape[dim] >= num_blocks and shape[dim] % num_blocks == 0:
            return dim
    raise BadLayout(f"no dimension of {tuple(shape)} counts {num_blocks} blocks")


def runs_of(tensor, num_blocks):
    """The runs of one layer's tensor.  Blocks of the kernel that are smaller than the engine's are put together."""
    shape, size = [int(n) for n in tensor.shape], int(tensor.element_size())
    strides = [int(s) * size for s in tensor.stride()]
    at = _block_dim(shape, num_blocks)
    parts = shape[at] // num_blocks
    dims = [(strides[d], shape[d]) for d in range(len(shape)) if d != at and shape[d] > 1]
    if parts > 1:
        dims.append((strides[at], parts))
    dims.sort()
    nbytes = size
    while dims and dims[0][0] == nbytes:
        nbytes *= dims.pop(0)[1]
    if any(stride < nbytes for stride, _ in dims):
        raise BadLayout(f"elements of shape {tuple(shape)}, strides {tuple(tensor.stride())} overlap")
    base, stride = int(tensor.data_ptr()), strides[at] * parts
    offsets = (sum(i * s for i, (s, _) in zip(index, dims)) for index in itertools.product(*(range(n) for _, n in dims)))
    return [Run(base + offset, stride, nbytes) for offset in sorted(offsets)]


def segments_of(tensors, num_blocks, lane_bytes):
    """Packed segments of a group's tensors, for copy_pages(), in the order of the tensors; one that is another layer's as well counts once."""
    packed, seen, offset = [], set(), 0
    for tensor in tensors:
        runs = runs_of(tensor, num_blocks)
        if runs[0] in seen:
            continue
        seen.add(runs[0])
        for run in runs:
            packed.append(struct.pack("=4Q", run.base, run.stride, offset, run.nbytes))
            offset += run.nbytes
    if offset > lane_bytes or offset == 0:
        raise BadLayout(f"a block has {offset} bytes, and {lane_bytes} by its description")
    return b"".join(packed), offset
