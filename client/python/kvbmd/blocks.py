# SPDX-License-Identifier: Apache-2.0
"""Blocks, as they are allocated and found: sequences of layers that other libraries read and write in place."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Iterable, Iterator, List, Optional, Tuple, Union, overload

from . import _kvbm

if TYPE_CHECKING:
    from .manager import BlockManager

Hash = Union[bytes, bytearray, memoryview, int, str]
"""A block's hash: bytes of exactly key_bytes; an int, taken big-endian; or a str of 2 * key_bytes hexadecimal digits."""

ALL_LANES = -1
"""As a manager's lane: this process writes every lane's slice."""


class DType(enum.Enum):
    """Types of elements.  numpy knows neither bfloat16 nor float8: use torch for them, or np.asarray(), which shows their bits."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"
    FP8_E4M3 = "fp8_e4m3"
    FP8_E5M2 = "fp8_e5m2"
    INT8 = "int8"
    BYTES = "bytes"  # of a manager with block_bytes: bytes as they lie

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return {"bf16": 2, "fp16": 2, "fp32": 4}.get(self.value, 1)

    @property
    def code(self) -> int:
        """The KVBM_DTYPE_* of kvbm.h."""
        return int(getattr(_kvbm, "DTYPE_" + self.name))

    @classmethod
    def of(cls, dtype: Any) -> "DType":
        """A DType, its name (any case), or numpy's or torch's type of the same name.

        Raises ValueError if there is none of that name, TypeError if it is no type at all.
        """
        if isinstance(dtype, cls):
            return dtype
        name = dtype if isinstance(dtype, str) else getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
        if not isinstance(name, str):
            raise TypeError(f"dtype must be a kvbmd.DType or a name, not {dtype!r}")
        name = name.lower().rsplit(".", 1)[-1]
        name = _DTYPE_NAMES.get(name, name)
        try:
            return cls(name)
        except ValueError:
            raise ValueError(f"dtype {dtype!r} is none of {', '.join(d.value for d in cls if d is not cls.BYTES)}") from None


_DTYPE_NAMES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "float": "fp32",
    "float8_e4m3fn": "fp8_e4m3",
    "float8_e4m3": "fp8_e4m3",
    "float8_e5m2": "fp8_e5m2",
}


class Tier(enum.IntFlag):
    """Where a block is."""

    NONE = 0
    G1 = _kvbm.TIER_G1  # the GPU's memory
    G2 = _kvbm.TIER_G2  # the host's memory
    G3 = _kvbm.TIER_G3  # local disk
    G4 = _kvbm.TIER_G4  # remote


class Status(enum.IntEnum):
    """What onboard() came to, block by block."""

    NONE = 0  # behind the first that is not DONE: not asked for
    DONE = 1  # in memory
    MISSING = 2  # nowhere on this node
    BUSY = 3  # no room in memory for the moment: worth asking again, a bounded number of times
    FAILED = 4  # could not be read: compute it
    DEADLINE = 5  # did not come in time; may still come
    RECOMPUTE = 6  # computing it is quicker


class _Bytes(_kvbm.View):
    """What blocks and layers have in common."""

    __slots__ = ("_blocks", "index")

    _blocks: "Blocks"
    index: int

    @property
    def dtype(self) -> DType:
        """Type of the elements."""
        return self._blocks._manager.dtype

    @property
    def device(self) -> str:
        """Where the bytes are: 'cpu' or 'cuda'."""
        return self._blocks._manager.device

    @property
    def device_id(self) -> int:
        """Number of the device among those this process sees; 0 for 'cpu'."""
        return self._blocks._manager.device_id


class Layer(_Bytes):
    """One layer of one block: shape (outer_dim, page_size, inner_dim), contiguous; of a manager with block_bytes (bytes,).

    It exports DLPack and the buffer protocol; see Block for what keeps its memory.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<kvbmd.Layer {self.index} {self.shape} {self.dtype.value}>"


class Block(_Bytes):
    """One lane's slice of a block: a sequence of num_layers layers, shape (num_layers, outer_dim, page_size, inner_dim), contiguous.

    Torch, numpy and others read and write it in place through from_dlpack() or the buffer protocol (np.asarray, memoryview).  It is writable
    from allocate_blocks() to commit(), and read-only after that and from match().

    What is made of it keeps the block: its memory neither moves nor is given to anybody else before release() *and* the end of the last such array.

    In a GPU's memory it exports DLPack only.  What runs on streams must be complete (torch.cuda.synchronize(), or an event) before commit(), which publishes
    what is there at that moment, and before a tensor is dropped, which lets go of the block.
    """

    __slots__ = ()

    def __len__(self) -> int:
        return self._blocks._manager._layer_count

    def __bool__(self) -> bool:
        """Whether it is still held."""
        return bool(self._hold.state != "released")

    def __getitem__(self, layer: int) -> Layer:
        """The layer of that number.  IndexError beyond the last; NotHeld after release()."""
        manager = self._blocks._manager
        at = range(manager._layer_count)[layer]
        item = Layer(self._hold, at * manager._layer_bytes, manager._layer_shape, manager._dtype_code, self.lane)
        item._blocks = self._blocks
        item.index = at
        return item

    def __iter__(self) -> Iterator[Layer]:
        return (self[i] for i in range(len(self)))

    def to_list(self) -> List[Layer]:
        """Its layers."""
        return list(self)

    @property
    def hash(self) -> Optional[bytes]:
        """The hash it was found, allocated or committed under; None before commit()."""
        return self._blocks._hash(self.index)

    @property
    def slot(self) -> Optional[int]:
        """Number of its slot in the namespace; None after release()."""
        return self._hold.slot

    @property
    def tiers(self) -> Tier:
        """Where it was when it was found."""
        return Tier(self._hold.tiers)

    @property
    def views(self) -> int:
        """Arrays, tensors and memoryviews made of it that are alive."""
        return self._hold.views

    def on_lane(self, lane: int) -> "Block":
        """The slice of another lane: of a block to read any, of one to write only those it was allocated for (ValueError)."""
        return self._blocks._block(self.index, lane)

    def __repr__(self) -> str:
        return f"<kvbmd.Block {self.index} slot={self.slot} {self._hold.state}>"


class Blocks(Sequence):  # type: ignore[type-arg]
    """Blocks of one manager, in order: what allocate_blocks(), match() and onboard() return.

    A sequence of Block; slices are Blocks of the same holds (releasing one releases the block in both).  Held until release(), the end of a with statement, or
    until it and everything made of it is garbage.  Blocks to write that were dropped like that, without release(), give their slots back with the
    manager's next call.
    """

    def __init__(self, manager: "BlockManager", holds: List[Any], keys: Optional[bytes] = None) -> None:
        self._manager = manager
        self._holds = holds
        self._keys = keys
        self._parents: Optional[bytes] = None
        self.indices: Tuple[int, ...] = tuple(range(len(holds)))
        """Position of each block among the hashes that were asked for."""
        self.dropped = 0
        """Blocks that were dropped to make room for these."""
        self.status: List[Status] = []
        """Of onboard(): what became of each hash."""
        manager._track(self)

    # ---- a sequence ----

    def __len__(self) -> int:
        return len(self._holds)

    @overload
    def __getitem__(self, index: int) -> Block: ...

    @overload
    def __getitem__(self, index: slice) -> "Blocks": ...

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        """The block of that number, None where a scattered match() found none; a slice is Blocks."""
        if isinstance(index, slice):
            return self._slice(index)
        at = range(len(self._holds))[index]
        if self._holds[at] is None:
            return None
        return self._block(at, self._manager._view_lane)

    def _block(self, at: int, lane: int) -> Block:
        manager = self._manager
        hold = self._holds[at]
        if not 0 <= lane < manager.lanes:
            raise ValueError(f"lane {lane} is not one of {manager.lanes}")
        if hold.state == "reserved" and hold.lane not in (ALL_LANES, lane):
            raise ValueError(f"the block is reserved for lane {hold.lane}, not for lane {lane}")
        block = Block(hold, 0, manager._block_shape, manager._dtype_code, lane)
        block._blocks = self
        block.index = at
        return block

    def _slice(self, index: slice) -> "Blocks":
        size = self._manager.key_bytes
        chosen = range(len(self._holds))[index]

        def cut(packed: Optional[bytes]) -> Optional[bytes]:
            return None if packed is None else b"".join(packed[i * size : (i + 1) * size] for i in chosen)

        part = Blocks(self._manager, [self._holds[i] for i in chosen], cut(self._keys))
        part._parents = cut(self._parents)
        part.indices = tuple(self.indices[i] for i in chosen)
        return part

    def to_list(self) -> List[Block]:
        """Its blocks."""
        return list(self)

    def _hash(self, at: int) -> Optional[bytes]:
        size = self._manager.key_bytes
        return None if self._keys is None else self._keys[at * size : (at + 1) * size]

    @property
    def hashes(self) -> List[Optional[bytes]]:
        """Hash of each block; None before commit() where none was given."""
        return [self._hash(i) for i in range(len(self))]

    # ---- commit and release ----

    def commit(
        self,
        hashes: Optional[Iterable[Hash]] = None,
        parent: Optional[Hash] = None,
        *,
        parents: Optional[Iterable[Optional[Hash]]] = None,
        hold: bool = True,
        wait: bool = True,
    ) -> int:
        """Publishes the blocks, which must be written: from now on every process finds them by these hashes.

        hashes: one for each block, in the order of the prompt; may be left out where they were given to allocate_blocks().  Each block's parent is the
        one before it; the first one's is parent (None: it begins a prompt).  parents gives them one by one instead (None: a root).

        The blocks stay held, now read-only; with hold=False they are released.  Where another process was first with a hash, its block is what
        is held.  With several lanes, a block that misses other lanes' slices is not held.  wait=False does not wait for the answer (and holds nothing): the manager's
        counters tell outcomes.

        No array, tensor or memoryview of the blocks may be alive: BufferError.  Nothing has changed then.

        Returns how many are new to this node.  Raises ValueError (number or length of hashes, committed already), NotHeld (released), Stale (the
        daemon's write deadline passed), Limit, Gone, Timeout, Forked, Closed.
        """
        manager = self._manager
        size = manager.key_bytes
        if hashes is None:
            if self._keys is None:
                raise TypeError("commit() needs hashes: none were given to allocate_blocks()")
            keys = self._keys
        else:
            keys = _kvbm.pack(hashes, size)
        if len(keys) != len(self) * size:
            raise ValueError(f"{len(keys) // size} hashes for {len(self)} blocks")
        flags = _kvbm.COMMIT_NOWAIT if not wait else _kvbm.COMMIT_HOLD if hold else 0
        ancestors: Optional[bytes] = None
        if parents is not None:
            if parent is not None:
                raise TypeError("either parent or parents, not both")
            ancestors = b"".join(bytes(size) if p is None else _kvbm.pack([p], size) for p in parents)
            if len(ancestors) != len(keys):
                raise ValueError(f"{len(ancestors) // size} parents for {len(self)} blocks")
        elif parent is not None:
            ancestors = _kvbm.pack([parent], size)
        elif hashes is None and self._parents is not None:
            ancestors = self._parents
        if ancestors is not None and (parent is None):
            flags |= _kvbm.COMMIT_PARENTS
        fresh: int = manager._namespace.commit(self._holds, keys, ancestors, flags)
        self._keys = keys
        return fresh

    def release(self) -> None:
        """Lets go of the blocks; those to write give their slots back.  Again is fine.

        A block with live arrays stays held until the last of them is gone; no new ones can be made (NotHeld).  In a forked child it does nothing to the
        parent's blocks.
        """
        self._manager._namespace_or_closed.release(self._holds)

    async def acommit(self, *args: Any, **keywords: Any) -> int:
        """commit(), awaited in a thread."""
        return await asyncio.to_thread(self.commit, *args, **keywords)

    async def arelease(self) -> None:
        """release(), awaited in a thread."""
        await asyncio.to_thread(self.release)

    def __enter__(self) -> "Blocks":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.release()

    async def __aenter__(self) -> "Blocks":
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self.arelease()

    def __repr__(self) -> str:
        return f"<kvbmd.Blocks of {len(self)}>"
