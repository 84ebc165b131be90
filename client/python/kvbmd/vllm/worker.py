# SPDX-License-Identifier: Apache-2.0
# mypy: ignore-errors
"""The worker's part: copies blocks between the engine's pages and kvbmd, by threads of its own.

A load is held, copied and let go in one go; what of it cannot be had is reported, and the engine computes it.  Each load is reported finished exactly once, and
not before its copying has ended.

A store reads pages that the engine may give to somebody else as soon as the step is over.  So each step begins with fence(): stores whose pages it may
write over are dropped if they have not begun to copy, and waited for if they have, which is a copy in memory and nothing that depends on the daemon.
"""

import struct
import threading
import time

from .. import _kvbm
from . import api, layout
from .desk import Desk
from .device import DevicePages
from .meta import KvbmdWorkerMetadata

STORE_BATCH = 32  # blocks that are reserved, copied and committed together
STORES_MAX = 512  # batches waiting
LOADS_MAX = 65536
QUEUED, COPYING, DONE, DROPPED = range(4)


def numbers_of(packed):
    return struct.unpack(f"={len(packed) // 8}q", packed)


class _Store:
    def __init__(self, blocks, mark):
        self.blocks, self.mark = blocks, mark
        self.touches = frozenset(numbers_of(blocks.numbers))
        self.state = QUEUED


class Worker:
    def __init__(self, identity, link, counts):
        self.identity, self.link, self.counts = identity, link, counts
        self.segments = None  # packed, by group
        self.device = None  # DevicePages: they are in a GPU's memory
        self.slice_bytes = []
        self._cond = threading.Condition()
        self._stores = set()  # not DONE
        self._stored = []
        self.unable = False  # said once
        self._finished, self._bad, self._failed = set(), set(), set()
        self._loader = Desk("kvbmd-load", LOADS_MAX)
        self._storer = Desk("kvbmd-store", STORES_MAX)

    # ---- the engine's thread ----

    def register(self, kv_caches, num_blocks):
        """The engine's tensors by layer.  Raises BadLayout."""
        segments, kinds, device = [], set(), None
        for group in self.identity.groups:
            tensors = [kv_caches[name] for name in group.layers if name in kv_caches]
            for tensor in tensors:
                if not hasattr(tensor, "data_ptr"):
                    raise layout.BadLayout("a layer whose cache is several tensors")
                kinds.add(str(getattr(getattr(tensor, "device", None), "type", "cpu")))
            if not tensors:
                raise layout.BadLayout(f"none of group {group.index}'s layers has a tensor here")
            packed, used = layout.segments_of(tensors, num_blocks, group.lane_bytes)
            if kinds not in ({"cpu"}, {"cuda"}):
                raise layout.BadLayout(f"pages on {', '.join(sorted(kinds))}: they must be in the host's memory or on one CUDA device")
            if kinds == {"cuda"}:
                device = device or DevicePages(num_blocks)
                device.add(packed)
                if used != group.lane_bytes:
                    raise layout.BadLayout(f"a block has {used} bytes, and {group.lane_bytes} by its description")
            segments.append(packed)
            self.slice_bytes.append(used)
        self.segments, self.device = segments, device

    def fence(self, packed):
        """Before the engine writes over these blocks: no store reads them any more when this returns."""
        if not self._stores or not packed:
            return
        blocks = numbers_of(packed)
        with self._cond:
            hit = [s for s in self._stores if not s.touches.isdisjoint(blocks)]
            for store in hit:
                if store.state == QUEUED:
                    store.state = DROPPED
                    self._stores.discard(store)
                    self.counts.add(store_skipped_overwritten=len(store.touches))
            self._cond.wait_for(lambda: all(s.state != COPYING for s in hit))

    def start_load(self, request_id, parts):
        mark = self.device.mark() if self.device is not None else None
        if self.segments is None or self.link.ns is None or not self._loader.put(lambda: self._load(request_id, parts, mark)):
            self._load_done(request_id, [set(numbers_of(p.numbers)) for p in parts])

    def start_store(self, blocks):
        if self.segments is None or not self.identity.writes:
            return
        size, n = self.identity.key_bytes, len(blocks.numbers) // 8
        if self.link.ns is None:
            self.counts.add(store_skipped_away=n)
            return
        mark = self.device.mark() if self.device is not None else None
        for i in range(0, n, STORE_BATCH):
            j = min(i + STORE_BATCH, n)
            part = type(blocks)(blocks.group, blocks.numbers[8 * i : 8 * j], blocks.keys[size * i : size * j], blocks.parents[size * i : size * j])
            store = _Store(part, mark)
            with self._cond:
                self._stores.add(store)
            if not self._storer.put(lambda store=store: self._store(store)):
                with self._cond:
                    self._stores.discard(store)
                self.counts.add(store_skipped_busy=j - i)

    def take_finished(self):
        """Ids of requests whose loads ended, each once; and, of several groups, those of them that failed."""
        if not self._finished:
            return set(), set()
        with self._cond:
            finished, self._finished = self._finished, set()
            failed, self._failed = self._failed, set()
        return finished, failed

    def take_bad(self):
        """Of one group: numbers of blocks that were not loaded."""
        if not self._bad:
            return set()
        with self._cond:
            bad, self._bad = self._bad, set()
        return bad

    def take_meta(self):
        if not self._stored and not self.unable:
            return None
        with self._cond:
            stored, self._stored = self._stored, []
        unable, self.unable = self.unable, False
        return KvbmdWorkerMetadata(stored, unable)

    def close(self):
        """Ends the threads; stores that are waiting get a few seconds, if there is anybody to give them to."""
        self._storer.close(10.0 if self.link.up else 0.1)
        self._loader.close(1.0)
        if self.device is not None:
            self.device.close()

    # ---- the loading thread ----

    def _load(self, request_id, parts, mark):
        began = time.monotonic()
        if mark is not None:
            mark.synchronize()
        bad = [self._load_part(p) for p in parts]
        blocks = sum(len(p.numbers) // 8 for p in parts) - sum(map(len, bad))
        nbytes = sum((len(p.numbers) // 8 - len(b)) * self.slice_bytes[p.group] for p, b in zip(parts, bad))
        self.counts.add(loads=1, load_blocks=blocks, load_bytes=nbytes, load_seconds=time.monotonic() - began)
        self._load_done(request_id, bad)

    def _load_part(self, part):
        """Returns the numbers of the blocks that were not loaded."""
        numbers, holds = numbers_of(part.numbers), []
        namespaces = self.link.ns
        if namespaces is None:
            return set(numbers)
        ns = namespaces[part.group]
        try:
            if self.device is not None:
                return set(numbers[self.device.load(ns, part.group, self.identity.lane, part) :])
            holds = ns.match(part.keys)
            self._copy(ns, holds, part.numbers[: 8 * len(holds)], part.group, False)
            return set(numbers[len(holds) :])
        except _kvbm.KvbmError as error:
            api.logger.warning("kvbmd: a load failed, its blocks are computed: %s", error)
            return set(numbers)
        finally:
            ns.release(holds)

    def _load_done(self, request_id, bad):
        with self._cond:
            if any(bad):
                self.counts.add(load_failures=sum(map(len, bad)))
                if len(self.identity.groups) == 1:
                    self._bad |= bad[0]
                else:
                    self._failed.add(request_id)
            self._finished.add(request_id)

    def _copy(self, ns, holds, numbers, group, store):
        ns.copy_pages(holds, numbers, self.segments[group], self.identity.lane, store)

    # ---- the storing thread ----

    def _store(self, store):
        began = time.monotonic()
        blocks, n = store.blocks, len(store.touches)
        namespaces, holds = self.link.ns, []
        ns = namespaces[blocks.group] if namespaces else None
        try:
            if ns is None or store.state == DROPPED:
                self._store_end(store)
                return
            if self.device is not None:
                self._store_device(ns, store, began)
                return
            holds = self._reserve(ns, blocks)
            kept, numbers = len(holds), blocks.numbers[: 8 * len(holds)]
            ns.copy_pages(holds, numbers, b"", self.identity.lane, True)  # maps what is not mapped yet, which may take a message
            with self._cond:
                if store.state == DROPPED:
                    return
                store.state = COPYING
            try:
                self._copy(ns, holds, numbers, blocks.group, True)
            finally:
                self._store_end(store)
            new = self._commit(ns, holds, blocks)
            nbytes = sum(h is not None for h in holds) * self.slice_bytes[blocks.group]
            self.counts.add(store_blocks=kept, store_new_blocks=new, store_bytes=nbytes, store_seconds=time.monotonic() - began)
            if kept < n:
                self.counts.add(store_skipped_full=n - kept)
            with self._cond:
                self._stored.append((blocks.group, blocks.keys[: self.identity.key_bytes * kept]))
        except _kvbm.NoSpace:
            self.counts.add(store_skipped_full=n)
        except _kvbm.KvbmError as error:
            if self.link.up:
                api.logger.debug("kvbmd: a store failed: %s", error)
            self.counts.add(store_skipped_away=n)
        finally:
            self._store_end(store)
            if ns is not None:
                ns.release([h for h in holds if h is not None])

    def _store_device(self, ns, store, began):
        blocks, n = store.blocks, len(store.touches)
        store.mark.synchronize()
        with self._cond:
            if store.state == DROPPED:
                return
            store.state = COPYING
        try:
            new = self.device.store(ns, blocks.group, self.identity.lane, blocks)
        finally:
            self._store_end(store)
        self.counts.add(store_blocks=n, store_new_blocks=new, store_bytes=n * self.slice_bytes[blocks.group], store_seconds=time.monotonic() - began)
        with self._cond:
            self._stored.append((blocks.group, blocks.keys))

    def _reserve(self, ns, blocks):
        """Holds for all of the blocks, or for as many of the first as there is room for."""
        n, size = len(blocks.numbers) // 8, self.identity.key_bytes
        while True:
            try:
                return ns.reserve(n, blocks.keys[: size * n], self.identity.lane)[0]
            except _kvbm.NoSpace:
                if n == 1:
                    raise
                n //= 2

    def _store_end(self, store):
        with self._cond:
            if store.state != DROPPED:
                store.state = DONE
            self._stores.discard(store)
            self._cond.notify_all()

    def _commit(self, ns, holds, blocks):
        size = self.identity.key_bytes
        mine = [i for i, h in enumerate(holds) if h is not None]
        if not mine:
            return 0
        keys = b"".join(blocks.keys[size * i : size * (i + 1)] for i in mine)
        parents = b"".join(blocks.parents[size * i : size * (i + 1)] for i in mine)
        return ns.commit([holds[i] for i in mine], keys, parents, _kvbm.COMMIT_PARENTS)
