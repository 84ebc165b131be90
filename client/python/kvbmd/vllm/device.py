# SPDX-License-Identifier: Apache-2.0
# mypy: ignore-errors
"""Pages in a GPU's memory: the daemon copies them, on streams of its own, once the engine has let it open its allocations.

Order.  What a copy reads was written by the engine's stream, and what it writes may still be read there.  So the engine's thread marks its stream when it asks
for a copy, and our thread waits for that mark before it asks the daemon; the daemon answers when the bytes are there.  Nothing of this holds up the engine.
"""

import struct

from .. import _kvbm, cuda
from . import api
from .layout import BadLayout


class _NoMark:
    def synchronize(self):
        return


class DevicePages:
    """Of all groups on one device; segments are those of layout.segments_of()."""

    def __init__(self, num_blocks):
        self.num_blocks = num_blocks
        self._groups = []  # (memories, planes, nbytes, stride)
        self._adoptions = {}  # by group: (namespace, adoption)
        self.device = None

    def add(self, packed):
        """A group's segments.  Raises BadLayout."""
        try:
            self._add(packed)
        except cuda.CudaError as error:
            raise BadLayout(f"the driver gives no handle of the pages: {error}") from None

    def _add(self, packed):
        runs = list(struct.iter_unpack("=4Q", packed))
        sizes, strides = {nbytes for *_, nbytes in runs}, {stride for _, stride, *_ in runs}
        if len(sizes) != 1 or len(strides) != 1:
            raise BadLayout("layers of different sizes in one group, on a GPU")
        memories, planes, index = [], [], {}
        for base, *_ in runs:
            memory = cuda.handle_of(base)
            if self.device not in (None, memory.device):
                raise BadLayout("pages on several GPUs")
            self.device = memory.device
            if memory.base not in index:
                index[memory.base] = len(memories)
                memories.append((memory.handle, memory.nbytes))
            planes.append((index[memory.base], base - memory.base))
        self._groups.append((memories, planes, sizes.pop(), strides.pop()))

    def mark(self):
        """In the engine's thread: everything its stream was given so far.  synchronize() waits for it."""
        stream = api.current_stream()
        return stream.record_event() if stream is not None else _NoMark()

    def _adoption(self, ns, group, lane):
        known = self._adoptions.get(group)
        if known is not None and known[0] is ns:
            return known[1]
        memories, planes, nbytes, stride = self._groups[group]
        adoption = ns.adopt(self.device, lane, self.num_blocks, memories, planes, [(len(planes), 0)], nbytes, stride)
        self._adoptions[group] = (ns, adoption)
        return adoption

    def _copy(self, ns, group, lane, run):
        try:
            return run(self._adoption(ns, group, lane))
        except _kvbm.Stale:
            self._adoptions.pop(group, None)  # with the device, or the daemon: once more
            return run(self._adoption(ns, group, lane))

    def store(self, ns, group, lane, blocks):
        """Returns how many are new."""
        return self._copy(ns, group, lane, lambda a: a.store(blocks.keys, blocks.numbers, blocks.parents))[0]

    def load(self, ns, group, lane, part):
        """Returns how many of the leading ones were loaded."""
        return self._copy(ns, group, lane, lambda a: a.load(part.keys, part.numbers))[0]

    def close(self):
        for _, adoption in self._adoptions.values():
            adoption.close()
        self._adoptions.clear()
