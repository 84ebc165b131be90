# SPDX-License-Identifier: Apache-2.0
"""BlockManager: what an engine has of kvbmd."""

from __future__ import annotations

import asyncio
import errno
import json
import operator
import os
import time
import weakref
from typing import Any, Dict, Iterable, List, Optional, Tuple

from . import _kvbm
from .blocks import ALL_LANES, Blocks, DType, Hash, Status, Tier
from .embedded import Embedded

_LAYOUTS = {
    "fully_contiguous": _kvbm.LAYOUT_FULLY_CONTIGUOUS,
    "layer_separate_outer": _kvbm.LAYOUT_LAYER_SEPARATE_OUTER,
    "layer_separate_block": _kvbm.LAYOUT_LAYER_SEPARATE_BLOCK,
}
_HINTS = {"release": _kvbm.HINT_RELEASE, "retain": _kvbm.HINT_RETAIN, "touch": _kvbm.HINT_TOUCH}
_NOBODY_LISTENS = (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR)
_REGION_GRAIN = 2 << 20
_PAGE = 4096


def _number(name: str, value: Any, least: int, most: int) -> int:
    """An int in a range: TypeError, ValueError."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not a bool")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, not {type(value).__name__}") from None
    if not least <= number <= most:
        raise ValueError(f"{name} is {number}, and must be {least} to {most}")
    return number


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    return value


def _milliseconds(name: str, seconds: Any) -> int:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {type(seconds).__name__}")
    if not 0.001 <= seconds <= 86400:
        raise ValueError(f"{name} is {seconds} seconds, and must be 0.001 to 86400")
    return int(seconds * 1000)


def default_socket() -> str:
    """Where a manager without socket= looks: $KVBM_SOCKET, or kvbmd.sock in $RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR or /run/kvbmd."""
    if os.environ.get("KVBM_SOCKET"):
        return os.environ["KVBM_SOCKET"]
    folder = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0] or os.environ.get("XDG_RUNTIME_DIR") or "/run/kvbmd"
    return os.path.join(folder, "kvbmd.sock")


class _Connection:
    """A session, and the daemon that was started for it, as long as one of its managers is open."""

    def __init__(self, options: Dict[str, Any], embedded: Optional[bool], sizes: Dict[str, Any]) -> None:
        self.embedded: Optional[Embedded] = None
        self.users = 1
        socket = options["socket"]
        if embedded and socket is not None:
            raise ValueError("either embedded=True or a socket, not both")
        if not embedded:
            try:
                self.session = _kvbm.Session(**options)
                return
            except _kvbm.System as error:
                elsewhere = socket is not None or os.environ.get("KVBM_SOCKET")
                if embedded is False or elsewhere or error.errno not in _NOBODY_LISTENS:
                    error.filename = socket or default_socket()
                    raise
        self.embedded = Embedded(**sizes)
        try:
            self.session = _kvbm.Session(**{**options, "socket": self.embedded.socket})
        except BaseException:
            self.embedded.stop()
            raise

    def put(self) -> None:
        self.users -= 1
        if self.users == 0:
            self.session.close()
            if self.embedded:
                self.embedded.stop()


class BlockManager:
    """A cache of KV blocks, shared by all processes of this node that describe their model alike.

    num_layers, page_size (tokens a block), inner_dim (elements a token and layer, of one lane: heads x head size), outer_dim (2: K and V; 1: MLA), dtype
        shape of a block: (num_layers, outer_dim, page_size, inner_dim) elements, which are num_layers * outer_dim * page_size * inner_dim * itemsize bytes a lane.
        dtype is a DType, its name, or numpy's or torch's; FP16 if not given.
    block_bytes: bytes of one lane's slice, for layouts of your own: blocks are then bytes of shape (num_layers, block_bytes / num_layers), and what
        is in them is not compared with others': say it in model.
    lanes, lane: tensor-parallel ranks that each write a slice of every block, and which of them this process is; ALL_LANES: all.
    device: 'cpu'; or 'cuda', 'cuda:1' or torch's, for blocks in the memory of that GPU (or of device_id), of which the daemon must lend some (g1.size).  What is committed
        there is copied to the namespace of the same name in host memory, and onboard() brings it up from there and from below.  Exported by DLPack only.
    namespace, model, salt, hash_algo, layout, key_bytes (of a hash, 8 to 32): what else must agree to share blocks; put adapters and tenants into salt.
    readonly: never allocates; memory is then mapped so that it cannot be written.  confirm: look-ups also compare whole keys.
    socket: path of the daemon's socket; None: see default_socket().  by_socket: match and release by message, not through shared memory.
    timeout: seconds a call may wait for the daemon.  name: shown by `kvbmctl clients`.
    embedded: None: if no socket is given, none is in $KVBM_SOCKET, and nobody listens at the default one, a private kvbmd is started, and ended with this
        manager or process.  True: always.  False: never.
    host_num_blocks, disk_num_blocks, device_num_blocks: blocks that a private kvbmd has room for in memory (default: 1 GiB), on disk (default: none) and on the GPU
        (default, if device is one: 64).
        A daemon that runs already has its own settings.
    share: another manager, whose connection (and private kvbmd) to use for a further namespace.

    Raises ValueError, TypeError (an argument), Mismatch (the namespace exists with another description), System (no daemon there; errno), Timeout, Version, NotPermitted,
    Limit (namespaces), NoSpace (a block is larger than the memory), and what Embedded raises.

    Threads may share a manager.  A forked child may not: its calls raise Forked; it opens a manager of its own.  When the daemon goes away, match() finds nothing,
    other calls raise Gone and reach the next daemon as soon as there is one, and the bytes of held blocks stay readable.
    """

    def __init__(
        self,
        num_layers: int = 32,
        page_size: int = 16,
        inner_dim: int = 4096,
        *,
        dtype: Any = None,
        outer_dim: int = 2,
        block_bytes: Optional[int] = None,
        lanes: int = 1,
        lane: Optional[int] = None,
        device: Any = "cpu",
        device_id: int = 0,
        socket: Optional[str] = None,
        namespace: str = "default",
        model: str = "",
        salt: str = "",
        hash_algo: str = "",
        key_bytes: int = 16,
        layout: str = "fully_contiguous",
        readonly: bool = False,
        confirm: bool = False,
        by_socket: bool = False,
        name: Optional[str] = None,
        timeout: float = 5.0,
        embedded: Optional[bool] = None,
        host_num_blocks: Optional[int] = None,
        disk_num_blocks: Optional[int] = None,
        device_num_blocks: Optional[int] = None,
        share: Optional["BlockManager"] = None,
    ) -> None:
        self._connection: Optional[_Connection] = None
        self._blocks: "weakref.WeakSet[Blocks]" = weakref.WeakSet()
        self._pid = os.getpid()
        self._set_shape(
            _number("num_layers", num_layers, 1, 1 << 20),
            _number("outer_dim", outer_dim, 1, 1 << 20),
            _number("page_size", page_size, 1, 1 << 20),
            _number("inner_dim", inner_dim, 1, 1 << 31),
            dtype,
            block_bytes,
        )
        self._set_lane(_number("lanes", lanes, 1, _kvbm.MAX_LANES), lane)
        self._set_device(device, device_id)
        if layout not in _LAYOUTS:
            raise ValueError(f"layout {layout!r} is none of {', '.join(_LAYOUTS)}")
        self.key_bytes = _number("key_bytes", key_bytes, 8, _kvbm.KEY_MAX)
        self.namespace = _text("namespace", namespace)
        description: Dict[str, Any] = dict(
            name=self.namespace,
            model=_text("model", model),
            block_bytes=self.lane_bytes if block_bytes is not None else 0,
            num_layers=self.num_layers if block_bytes is None else 0,
            page_size=self.page_size,
            inner_dim=self.inner_dim if block_bytes is None else 0,
            outer_dim=self.outer_dim,
            dtype=self._dtype_code,
            layout=_LAYOUTS[layout],
            lanes=self.lanes,
            key_bytes=self.key_bytes,
            hash_algo=_text("hash_algo", hash_algo),
            salt=_text("salt", salt),
            flags=(_kvbm.NS_READONLY if readonly else 0) | (_kvbm.NS_CONFIRM if confirm else 0),
        )
        options = dict(
            socket=None if socket is None else os.fspath(socket),
            name=name,
            timeout_ms=_milliseconds("timeout", timeout),
            by_socket=bool(by_socket),
        )
        self._connection = self._connect(options, embedded, (host_num_blocks, disk_num_blocks, device_num_blocks), share)
        try:
            self._ns = self._attach(description, timeout)
        except BaseException:
            self.close()
            raise

    def _set_shape(self, layers: int, outer: int, page: int, inner: int, dtype: Any, block_bytes: Optional[int]) -> None:
        self.num_layers, self.outer_dim, self.page_size, self.inner_dim = layers, outer, page, inner
        if block_bytes is None:
            self.dtype = DType.of(DType.FP16 if dtype is None else dtype)
            if self.dtype is DType.BYTES:
                raise ValueError("dtype 'bytes' is of a manager with block_bytes")
            self._layer_shape: Tuple[int, ...] = (outer, page, inner)
            self._layer_bytes = outer * page * inner * self.dtype.itemsize
        else:
            if dtype is not None:
                raise ValueError("either block_bytes, whose blocks are bytes, or dtype")
            self.dtype = DType.BYTES
            size = _number("block_bytes", block_bytes, 1, 1 << 46)
            if size % layers:
                raise ValueError(f"block_bytes {size} is not divisible by num_layers {layers}")
            self._layer_bytes = size // layers
            self._layer_shape = (self._layer_bytes,)
        self._dtype_code = self.dtype.code
        self._layer_count = layers
        self._block_shape = (layers, *self._layer_shape)
        self.lane_bytes = self._layer_bytes * layers

    def _set_lane(self, lanes: int, lane: Optional[int]) -> None:
        self.lanes = lanes
        if lane is None:
            if lanes > 1:
                raise ValueError(f"of {lanes} lanes, say which this process writes: lane=0 to {lanes - 1}, or kvbmd.ALL_LANES")
            lane = 0
        self.lane = _number("lane", lane, ALL_LANES, lanes - 1)
        self._view_lane = max(self.lane, 0)

    def _set_device(self, device: Any, device_id: int) -> None:
        kind, colon, number = str(device).partition(":")
        if kind not in ("cpu", "cuda") or (colon and not number.isdecimal()):
            raise ValueError(f"device {device!r} is neither 'cpu' nor 'cuda' nor 'cuda:n'")
        self.device, self.device_id = kind, int(number) if colon else _number("device_id", device_id, 0, 1 << 16)
        if device_id not in (0, self.device_id) or (kind == "cpu" and self.device_id != 0):
            raise ValueError(f"device {device!r} and device_id {device_id!r} do not go together")
        self._uuid: Optional[str] = None
        if kind == "cuda":
            if not hasattr(_kvbm, "cuda_uuid"):
                raise NotImplementedError("this kvbmd was built without the CUDA toolkit: device must be 'cpu'")
            self._uuid = _kvbm.cuda_uuid(self.device_id)

    def _attach(self, description: Dict[str, Any], timeout: float) -> Any:
        session = self._connection.session if self._connection else None
        end = time.monotonic() + timeout
        while session is not None:
            try:
                return session.attach(**description, device=self._uuid, ordinal=self.device_id if self._uuid else -1)
            except _kvbm.Busy:  # a daemon that has just started is still asking the driver
                if self._uuid is None or time.monotonic() > end:
                    raise
                time.sleep(0.01)

    def _sizes(self, host: Optional[int], disk: Optional[int], device: Optional[int]) -> Dict[str, Any]:
        """What a private kvbmd is given, so that not only bytes but whole blocks find room in each of its regions."""
        sizes: Dict[str, Any] = {}
        stride = -(-self.lane_bytes // _PAGE) * _PAGE * self.lanes if self.lane_bytes >= _PAGE else -(-self.lane_bytes // 64) * 64 * self.lanes

        def region(count: int, regions: int) -> int:
            least = -(-count // regions) * stride + (self.lanes - 1) * _PAGE
            return -(-least // _REGION_GRAIN) * _REGION_GRAIN

        if host is not None:
            count = _number("host_num_blocks", host, 1, 1 << 31)
            sizes["host_bytes"] = region(count, 64) * min(64, count)
        if disk is not None:
            sizes["disk_bytes"] = _number("disk_num_blocks", disk, 1, 1 << 40) * (stride + _PAGE) + (64 << 20)
        if device is not None and self._uuid is None:
            raise ValueError("device_num_blocks is for a manager with device='cuda'")
        if self._uuid is not None:
            count = _number("device_num_blocks", 64 if device is None else device, 1, 1 << 31)
            each = region(count, 16)
            sizes.update(device=self._uuid, device_bytes=each * min(16, count), device_region=each)
        return sizes

    def _connect(
        self, options: Dict[str, Any], embedded: Optional[bool], counts: Tuple[Optional[int], ...], share: Optional["BlockManager"]
    ) -> _Connection:
        if share is not None:
            if options["socket"] is not None or embedded or any(count is not None for count in counts):
                raise ValueError("share= brings its own daemon: no socket, embedded or numbers of blocks with it")
            connection = share._connection
            if connection is None:
                raise _kvbm.Closed("the block manager to share with is closed")
            connection.users += 1
            return connection
        return _Connection(options, embedded, self._sizes(*counts))

    # ---- life ----

    @property
    def _namespace_or_closed(self) -> Any:
        return self._ns

    @property
    def _namespace(self) -> Any:
        if self._connection is None:
            raise _kvbm.Closed("the block manager is closed")
        return self._ns

    @property
    def _session(self) -> Any:
        if self._connection is None:
            raise _kvbm.Closed("the block manager is closed")
        return self._connection.session

    def _track(self, blocks: Blocks) -> None:
        self._blocks.add(blocks)

    def close(self) -> None:
        """Releases all blocks, ends the session, and the private kvbmd if there is one.  Again is fine; every other call then raises Closed.

        The memory of blocks that arrays or tensors were made of stays readable until the last of those is gone.
        """
        connection, self._connection = self._connection, None
        if connection is None:
            return
        for blocks in list(self._blocks):
            self._ns.release(blocks._holds)
        connection.put()

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._connection is None

    def __enter__(self) -> "BlockManager":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    async def __aenter__(self) -> "BlockManager":
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await asyncio.to_thread(self.close)

    def __del__(self) -> None:
        connection = getattr(self, "_connection", None)
        if connection is not None:
            self._connection = None
            connection.put()

    @property
    def embedded(self) -> Optional[Embedded]:
        """The private kvbmd (its pid, its socket); None where another one serves."""
        return self._connection.embedded if self._connection else None

    @property
    def block_size(self) -> int:
        """Tokens of a block: page_size."""
        return self.page_size

    @property
    def fingerprint(self) -> bytes:
        """16 bytes over all that must agree to share blocks."""
        self._session
        return bytes(self._ns.fingerprint)

    # ---- blocks ----

    def _keys(self, hashes: Iterable[Hash]) -> bytes:
        return bytes(_kvbm.pack(hashes, self.key_bytes))

    def allocate_blocks(
        self, n: Optional[int] = None, hashes: Optional[Iterable[Hash]] = None, parent: Optional[Hash] = None
    ) -> Blocks:
        """Reserves blocks to write: n, or those of hashes that this node does not have (as of now, and each once).

        With hashes (required with several lanes) the result's indices say which of them its blocks are for, and its commit() needs no arguments; parent is the
        block before the first.  What is not committed within the daemon's write deadline (30 s) is taken back.  All or nothing.

        Raises NoSpace (nothing was dropped), Limit, ValueError (n, or hashes), TypeError, Gone, Timeout, Forked, Closed.
        """
        namespace = self._namespace
        if hashes is None:
            if parent is not None:
                raise TypeError("parent goes with hashes")
            holds, dropped = namespace.reserve(_number("n", n, 0, _kvbm.MAX_KEYS), None, self.lane)
            blocks = Blocks(self, holds)
            blocks.dropped = dropped
            return blocks
        keys, size = self._keys(hashes), self.key_bytes
        count = len(keys) // size
        if n is not None and _number("n", n, 0, _kvbm.MAX_KEYS) != count:
            raise ValueError(f"n is {n}, but there are {count} hashes: leave it out")
        before = (self._keys([parent]) if parent is not None else bytes(size)) + keys
        holds, dropped = namespace.reserve(count, keys, self.lane)
        places = [i for i, hold in enumerate(holds) if hold is not None]

        def cut(packed: bytes) -> bytes:
            return b"".join(packed[i * size : (i + 1) * size] for i in places)

        blocks = Blocks(self, [holds[i] for i in places], cut(keys))
        blocks._parents = cut(before)
        blocks.indices = tuple(places)
        blocks.dropped = dropped
        return blocks

    def match(self, hashes: Iterable[Hash], *, scattered: bool = False) -> Blocks:
        """The longest prefix of hashes that is in memory on this node, as read-only Blocks, held until they are released or garbage.

        scattered: every hash is looked up, and the result has None where there is no block.  No message is sent (except with by_socket), and none is
        waited for: without a daemon nothing is found.  Raises ValueError, TypeError (hashes), Limit (blocks held), Forked, Closed.
        """
        keys = self._keys(hashes)
        holds = self._namespace.match(keys, _kvbm.MATCH_SCATTERED if scattered else 0)
        return Blocks(self, holds, keys[: len(holds) * self.key_bytes])

    def peek(self, hashes: Iterable[Hash]) -> int:
        """How long match()'s prefix would be, holding nothing."""
        return int(self._namespace.match(self._keys(hashes), _kvbm.MATCH_PEEK))

    def stat(self, hashes: Iterable[Hash]) -> List[Tier]:
        """Where each block is (Tier.NONE: nowhere), holding nothing.  Raises as match(), and Gone, Timeout."""
        return [Tier(t) for t in self._namespace.stat(self._keys(hashes))]

    def onboard(self, hashes: Iterable[Hash], *, timeout: Optional[float] = None, tokens_per_s: int = 0) -> Blocks:
        """Brings the leading blocks that are on this node, but below memory, up into it, and waits for them: match() with patience.

        timeout: seconds for what is still to come then; None: the manager's.  tokens_per_s: at which the engine would compute; what would come later than that is not
        waited for.  The result's status tells for each hash what became of it.

        Raises as match(), Gone, Timeout, and NotImplementedError where this package was built without tiers below memory.
        """
        namespace = self._namespace
        if not hasattr(namespace, "onboard"):
            raise NotImplementedError("this kvbmd has no tiers below memory")
        keys = self._keys(hashes)
        holds, status = namespace.onboard(
            keys, 0 if timeout is None else _milliseconds("timeout", timeout), _number("tokens_per_s", tokens_per_s, 0, (1 << 32) - 1)
        )
        blocks = Blocks(self, holds, keys[: len(holds) * self.key_bytes])
        blocks.status = [Status(s) for s in status]
        return blocks

    def prefetch(self, hashes: Iterable[Hash]) -> int:
        """onboard() ahead of need: returns at once, holds nothing.  Returns how many were asked for.  Raises as onboard()."""
        namespace = self._namespace
        if not hasattr(namespace, "prefetch"):
            raise NotImplementedError("this kvbmd has no tiers below memory")
        return int(namespace.prefetch(self._keys(hashes)))

    def hint(self, hint: str, hashes: Iterable[Hash], *, ttl: float = 0.0, priority: int = 0) -> int:
        """Advice, which the daemon may ignore: 'release' (will hardly be used again), 'retain' (keep for ttl seconds, priority 0 to 100), 'touch'.

        Returns how many of the blocks were known.  Raises ValueError, TypeError, Gone, Timeout, Forked, Closed.
        """
        if hint not in _HINTS:
            raise ValueError(f"hint {hint!r} is none of {', '.join(_HINTS)}")
        return int(
            self._namespace.hint(
                _HINTS[hint], self._keys(hashes), _milliseconds("ttl", ttl) if ttl else 0, _number("priority", priority, 0, 100)
            )
        )

    # ---- the daemon ----

    def ping(self) -> None:
        """A round trip that does nothing.  Raises Gone, Timeout, Forked, Closed."""
        self._session.ping()

    def info(self, topic: str, hash: Optional[Hash] = None) -> Any:
        """A report: 'status', 'namespaces', 'clients', 'tiers', or about a hash 'block' and 'why'; as `kvbmctl --json` prints it."""
        key = None if hash is None else self._keys([hash])
        report: str = self._session.info(_text("topic", topic), self.namespace if topic in ("block", "why") else None, key)
        return json.loads(report)

    def drop(self, hashes: Optional[Iterable[Hash]] = None) -> Tuple[int, int]:
        """Drops these blocks, or all of the namespace, for every process; needs the daemon's permission (NotPermitted).

        Returns how many were dropped, and how many are in use and were not.
        """
        if hashes is None:
            dropped, kept = self._session.admin("flush", self.namespace)
        else:
            keys = self._keys(hashes)
            if not keys:
                return 0, 0
            dropped, kept = self._session.admin("drop", self.namespace, keys, self.key_bytes)
        return dropped, kept

    @property
    def counters(self) -> Dict[str, int]:
        """Counts since the session was opened: looked_up, hits, misses, commits_new, commits_existing, commits_failed, reconnects; and the daemon's boot_id."""
        return dict(self._session.counters())

    def fileno(self) -> int:
        """For an event loop: when it is readable, call dispatch()."""
        return int(self._session.fileno())

    def dispatch(self) -> int:
        """Notices a daemon that went away, and collects the outcomes of commit(wait=False).  Returns how many replies there were."""
        return int(self._session.dispatch())

    # ---- asyncio ----

    async def aallocate_blocks(self, *args: Any, **keywords: Any) -> Blocks:
        """allocate_blocks(), awaited in a thread."""
        return await asyncio.to_thread(self.allocate_blocks, *args, **keywords)

    async def amatch(self, hashes: Iterable[Hash], *, scattered: bool = False) -> Blocks:
        """match(), awaited in a thread."""
        return await asyncio.to_thread(self.match, hashes, scattered=scattered)

    async def astat(self, hashes: Iterable[Hash]) -> List[Tier]:
        """stat(), awaited in a thread."""
        return await asyncio.to_thread(self.stat, hashes)

    async def aonboard(self, hashes: Iterable[Hash], *, timeout: Optional[float] = None, tokens_per_s: int = 0) -> Blocks:
        """onboard(), awaited in a thread."""
        return await asyncio.to_thread(self.onboard, hashes, timeout=timeout, tokens_per_s=tokens_per_s)

    async def aprefetch(self, hashes: Iterable[Hash]) -> int:
        """prefetch(), awaited in a thread."""
        return await asyncio.to_thread(self.prefetch, hashes)

    async def ahint(self, hint: str, hashes: Iterable[Hash], *, ttl: float = 0.0, priority: int = 0) -> int:
        """hint(), awaited in a thread."""
        return await asyncio.to_thread(self.hint, hint, hashes, ttl=ttl, priority=priority)

    async def aping(self) -> None:
        """ping(), awaited in a thread."""
        await asyncio.to_thread(self.ping)

    def __repr__(self) -> str:
        state = "closed" if self._connection is None else "private kvbmd" if self.embedded else "open"
        return f"<kvbmd.BlockManager {self.namespace!r} {state}, blocks of {self.lanes} x {self.lane_bytes} bytes>"
