# SPDX-License-Identifier: Apache-2.0
# mypy: ignore-errors
"""The scheduler's part: finds a request's prefix, holds it until it was loaded, and says which blocks to store.

    looked up --placed--> loading --finished_recving--> tracked        looked up --placed without us, or gone--> tracked

What is answered as a hit is in memory and held by this process from before the answer until the load has ended, so that a load fails only with the daemon.
Blocks below host memory are brought up by a thread meanwhile; until that has answered, the engine is told to ask again, which costs it nothing.

Nothing here waits for the daemon: look-ups read shared memory, all else is the thread's.
"""

import collections
import struct
import time

from .. import _kvbm
from . import api, hints
from .desk import Desk
from .meta import Blocks, KvbmdMetadata

LOOKUP_SECONDS = 30.0  # that a held look-up may wait for its request to be placed
EVENTS_MAX = 65536  # blocks whose store is to be announced


class Lookup:
    """What was found for a request beyond its first local tokens."""

    def __init__(self, local, total):
        self.local, self.total = local, total
        self.made = time.monotonic()
        self.pending = False  # the thread has it
        self.gone = False  # nobody wants it any more
        self.hits = 0  # tokens beyond local
        self.disk = 0  # of them from below host memory
        self.parts = []  # (group, first block, [Hold])


class Tracked:
    def __init__(self, request, groups):
        self.request = request
        self.block_ids = [[] for _ in range(groups)]
        self.stored = None  # by group: blocks that need no storing; None: not asked yet
        self.lookup = None
        self.loads = 0


class Scheduler:
    def __init__(self, identity, link, counts, options, events):
        self.identity, self.link, self.counts, self.events = identity, link, counts, events
        self.loads, self.saves = options.get("load", True), options.get("store", True)
        self.tokens_per_s = int(options.get("tokens_per_s", 0))
        self.onboard_ms = int(float(options.get("onboard_timeout", 10.0)) * 1000)
        self._tracked = {}
        self._loading = {}  # request id -> Lookup
        self._new_loads = []
        self._fresh = []  # numbers of blocks that were handed out
        self._sources = {}  # request id -> (host, disk) tokens of the load just planned
        self._desk = Desk("kvbmd-lookup", 4096)

    def close(self):
        for tracked in self._tracked.values():
            self._drop(tracked)
        self._desk.close(1.0)
        for lookup in self._loading.values():
            self._release(lookup)
        self._loading.clear()

    # ---- keys ----

    def _hashes(self, request):
        """The hashes that are final, as far as the first that is none of ours."""
        hashes = request.block_hashes
        final = getattr(request, "num_publishable_block_hashes", None)
        return hashes if final is None else hashes[:final]

    def _keys(self, hashes, group, first, end):
        """Packed keys of blocks [first, end): a block's is the hash at its end."""
        step, size = group.hash_step, self.identity.key_bytes
        keys = [bytes(hashes[(i + 1) * step - 1] or b"") for i in range(first, end)]
        packed = b"".join(keys)
        if any(len(k) != size for k in keys):
            raise _kvbm.Invalid(f"a hash that has not {size} bytes")
        return packed

    def _track(self, request):
        tracked = self._tracked.get(request.request_id)
        if tracked is None:
            tracked = self._tracked[request.request_id] = Tracked(request, len(self.identity.groups))
        return tracked

    # ---- look-ups ----

    def new_request(self, request):
        self._track(request)
        for kind, payload in hints.actions_of(request):
            group = self.identity.groups[0]
            hashes = list(self._hashes(request))
            calls = hints.calls_of(kind, payload, len(hashes) // group.hash_step, group.block_tokens)
            if calls is None:
                self.counts.add(hints_unknown=1)
            elif calls and self._desk.put(lambda calls=calls, hashes=hashes: self._hint(calls, hashes)):
                self.counts.add(hints=1)

    def _hint(self, calls, hashes):
        for ns, group in zip(self.link.ns or (), self.identity.groups):
            for verb, first, end, ttl_ms, priority in calls:
                n = len(hashes) // group.hash_step
                keys = self._keys(hashes, group, min(first, n), min(end, n))
                try:
                    if verb == "prefetch" and hasattr(ns, "prefetch"):
                        ns.prefetch(keys)
                    elif verb != "prefetch":
                        ns.hint(_kvbm.HINT_RETAIN if verb == "retain" else _kvbm.HINT_RELEASE, keys, ttl_ms, priority)
                except _kvbm.KvbmError as error:
                    api.logger.debug("kvbmd: a hint was not taken: %s", error)

    def matched(self, request, local):
        """get_num_new_matched_tokens(): tokens beyond local that can be loaded; None: ask again."""
        tracked = self._track(request)
        lookup = tracked.lookup
        total = min(len(self._hashes(request)) * self.identity.hash_tokens, request.num_tokens)
        total -= total % self.identity.align
        if lookup is not None and (lookup.local != local or lookup.total != total or time.monotonic() - lookup.made > LOOKUP_SECONDS):
            self._drop(tracked)
            lookup = None
        if lookup is None:
            # After a load that failed the request is computed: the next would fail as well, and the one after that.
            again = tracked.loads > getattr(request, "num_preemptions", 0)
            if again or not self.loads or self.link.ns is None or total <= local or getattr(request, "skip_reading_prefix_cache", False):
                return 0
            lookup = tracked.lookup = self._look_up(request, local, total)
        return None if lookup.pending else lookup.hits

    def _look_up(self, request, local, total):
        lookup = Lookup(local, total)
        hashes = self._hashes(request)
        self.counts.add(lookups=1, lookup_tokens=total - local)
        self._find(lookup, hashes, False)
        if lookup.hits < total - local and self.link.has_lower and self.link.up:
            hashes, lookup.pending = list(hashes), True
            if not self._desk.put(lambda: self._find_lower(lookup, hashes)):
                lookup.pending = False
        return lookup

    def _find_lower(self, lookup, hashes):
        """In the thread: the same, with what has to be brought up first."""
        try:
            if not lookup.gone:
                self._find(lookup, hashes, True)
        finally:
            lookup.pending = False  # last: from here on it is the engine's thread that touches it, unless that has left
            if lookup.gone:
                self._release(lookup)

    def _find(self, lookup, hashes, lower):
        """Fills lookup with what is there now; what it had it keeps, or lets go if it is of no use."""
        align, before = self.identity.align, lookup.parts
        lookup.parts = []
        try:
            end = self._find_full(lookup, hashes, lower)
            end -= end % align
            while end > lookup.local and not self._find_windows(lookup, hashes, end, lower):
                end -= align
            lookup.hits = max(end - lookup.local, 0)
            self._trim(lookup)
        except (_kvbm.KvbmError, ValueError) as error:
            api.logger.debug("kvbmd: a look-up failed: %s", error)
            self._release(lookup)
        for group, _, holds in before:
            self._release_holds(group, holds)

    def _fetch(self, group, hashes, first, end, lower):
        """Holds of the leading blocks of [first, end) that are there, and how many of them had to be brought up."""
        ns, keys = self.link.ns[group.index], self._keys(hashes, group, first, end)
        holds, size = ns.match(keys), self.identity.key_bytes
        n = len(holds)
        if lower and n < end - first and hasattr(ns, "onboard"):
            try:
                holds += ns.onboard(keys[n * size :], self.onboard_ms, self.tokens_per_s)[0]
            except _kvbm.KvbmError as error:
                api.logger.debug("kvbmd: nothing was brought up: %s", error)
        return holds, len(holds) - n

    def _find_full(self, lookup, hashes, lower):
        """The groups whose blocks are all needed: tokens that each of them has."""
        end, lookup.disk = lookup.total, 0
        for group in self.identity.groups:
            if group.window:
                continue
            first = lookup.local // group.block_tokens
            holds, raised = self._fetch(group, hashes, first, end // group.block_tokens, lower)
            lookup.parts.append((group, first, holds))
            lookup.disk = max(lookup.disk, raised * group.block_tokens)
            end = min(end, (first + len(holds)) * group.block_tokens)
        return end

    def _find_windows(self, lookup, hashes, end, lower):
        """The groups of which only the last tokens before end are needed: whether they are there."""
        parts = []
        for group in self.identity.groups:
            if not group.window:
                continue
            first = max(end - group.window, 0) // group.block_tokens
            first = max(first, lookup.local // group.block_tokens)
            last = end // group.block_tokens
            holds, _ = self._fetch(group, hashes, first, last, lower)
            parts.append((group, first, holds))
            if len(holds) < last - first:
                for part in parts:
                    self._release_holds(part[0], part[2])
                return False
        lookup.parts += parts
        return True

    def _trim(self, lookup):
        """Lets go of what lies behind the end of the hit."""
        kept = []
        for group, first, holds in lookup.parts:
            n = max((lookup.local + lookup.hits) // group.block_tokens - first, 0) if lookup.hits else 0
            self._release_holds(group, holds[n:])
            kept.append((group, first, holds[:n]))
        lookup.parts = kept
        lookup.disk = min(lookup.disk, lookup.hits)

    def _release_holds(self, group, holds):
        namespaces = self.link.ns
        if holds and namespaces is not None:
            namespaces[group.index].release(holds)

    def _release(self, lookup):
        parts, lookup.parts, lookup.hits = lookup.parts, [], 0
        for group, _, holds in parts:
            self._release_holds(group, holds)

    def _drop(self, tracked):
        lookup, tracked.lookup = tracked.lookup, None
        if lookup is not None:
            lookup.gone = True
            if not lookup.pending:
                self._release(lookup)

    # ---- loads ----

    def placed(self, request, block_ids, tokens):
        """update_state_after_alloc()."""
        tracked = self._track(request)
        tracked.block_ids = [list(ids) for ids in block_ids]
        lookup = tracked.lookup
        if not tokens or lookup is None or lookup.pending or not lookup.hits:
            self._drop(tracked)
            if tokens:
                # Somebody else's load, or one that we cannot do: the engine waits for it, so it must end.
                self._new_loads.append((request.request_id, self._failed_load(tracked, tokens)))
            return
        tracked.lookup = None
        tracked.loads += 1
        end = lookup.local + min(tokens, lookup.hits)
        parts = []
        for group, first, holds in lookup.parts:
            ids = tracked.block_ids[group.index]
            last = min(-(-end // group.block_tokens), first + len(holds), len(ids))
            # In a group that looks back a window only, number 0 stands for a block outside of it.
            wanted = [i for i in range(first, last) if ids[i] or not group.window]
            if group.window and wanted:
                wanted = list(range(wanted[0], last))
            numbers = struct.pack(f"={len(wanted)}q", *(ids[i] for i in wanted))
            hashes = self._hashes(request)
            keys = self._keys(hashes, group, wanted[0], wanted[-1] + 1) if wanted else b""
            parts.append(Blocks(group.index, numbers, keys))
            self._fresh.append(numbers)
        self._new_loads.append((request.request_id, parts))
        self._loading[request.request_id] = lookup
        tokens = min(tokens, lookup.hits)
        disk = min(lookup.disk, tokens)
        self._sources[request.request_id] = (tokens - disk, disk)
        self.counts.add(hit_tokens=tokens, hit_disk_tokens=disk, hit_host_tokens=tokens - disk)

    def _failed_load(self, tracked, tokens):
        """A load of keys that nobody has: it fails for each of its blocks."""
        parts = []
        for group in self.identity.groups:
            ids = tracked.block_ids[group.index][-max(tokens // group.block_tokens, 1) :]
            parts.append(Blocks(group.index, struct.pack(f"={len(ids)}q", *ids), bytes(self.identity.key_bytes * len(ids))))
        return parts

    def sources(self, request_id):
        """(host, disk) tokens of a load just planned."""
        return self._sources.pop(request_id, None)

    def finished_loads(self, request_ids):
        for request_id in request_ids:
            lookup = self._loading.pop(request_id, None)
            if lookup is not None:
                self._release(lookup)

    # ---- stores ----

    def step(self, output):
        """build_connector_meta()."""
        meta = KvbmdMetadata(loads=self._new_loads)
        self._new_loads = []
        self._sources.clear()
        scheduled = output.num_scheduled_tokens
        for new in output.scheduled_new_reqs:
            tracked = self._tracked.get(new.req_id)
            if tracked is not None:
                tracked.block_ids = [list(ids) for ids in new.block_ids]
                self._wrote(tracked.block_ids, new.num_computed_tokens)
                self._store(meta, tracked, new.num_computed_tokens + scheduled.get(new.req_id, 0))
        cached = output.scheduled_cached_reqs
        for i, request_id in enumerate(cached.req_ids):
            tracked, fresh = self._tracked.get(request_id), cached.new_block_ids[i]
            if tracked is None:
                continue
            if request_id in _resumed(cached, i):
                tracked.block_ids = [list(ids) for ids in fresh] if fresh else [[] for _ in self.identity.groups]
                tracked.stored = None
                self._wrote(tracked.block_ids, cached.num_computed_tokens[i])
            elif fresh:
                for ids, more in zip(tracked.block_ids, fresh):
                    ids += more
                self._wrote([list(more) for more in fresh], 0)
            self._store(meta, tracked, cached.num_computed_tokens[i] + scheduled.get(request_id, 0))
        meta.fence, self._fresh = b"".join(self._fresh), []
        return meta

    def _wrote(self, block_ids, computed):
        """Blocks behind the first computed tokens are about to be written."""
        for group, ids in zip(self.identity.groups, block_ids):
            ids = ids[computed // group.block_tokens :]
            self._fresh.append(struct.pack(f"={len(ids)}q", *ids))

    def _store(self, meta, tracked, upto):
        if not self.saves or self.link.ns is None:
            return
        try:
            self._store_full(meta, tracked, upto)
        except _kvbm.KvbmError as error:
            api.logger.debug("kvbmd: blocks are not stored: %s", error)

    def _store_full(self, meta, tracked, upto):
        hashes = self._hashes(tracked.request)
        asked = tracked.stored is not None
        if not asked:
            tracked.stored = [0] * len(self.identity.groups)
        for group in self.identity.groups:
            ids = tracked.block_ids[group.index]
            full = min(upto // group.block_tokens, len(hashes) // group.hash_step, len(ids))
            first = tracked.stored[group.index]
            while full > first and hashes[full * group.hash_step - 1] is None:
                full -= 1
            if full <= first:
                continue
            if not asked:
                # What is there already, by this request's load or by others, needs no message.
                first = self.link.ns[group.index].match(self._keys(hashes, group, 0, full), _kvbm.MATCH_PEEK)
            tracked.stored[group.index] = full
            self._store_run(meta, tracked, group, hashes, [i for i in range(first, full) if ids[i] or not group.window])

    def _store_run(self, meta, tracked, group, hashes, which):
        if not which:
            return
        ids, size = tracked.block_ids[group.index], self.identity.key_bytes
        before = [bytes(size) if i == 0 else self._keys(hashes, group, i - 1, i) for i in which]
        keys = [self._keys(hashes, group, i, i + 1) for i in which]
        numbers = struct.pack(f"={len(which)}q", *(ids[i] for i in which))
        meta.stores.append(Blocks(group.index, numbers, b"".join(keys), b"".join(before)))
        if self.events is not None:
            self.events.expect(tracked.request, group, list(zip(which, keys, before)))

    # ---- ends ----

    def finished(self, request_id):
        """The request is over; a load of it that is under way is ended by finished_loads()."""
        tracked = self._tracked.pop(request_id, None)
        if tracked is not None:
            self._drop(tracked)

    def reset(self):
        """Drops this engine's namespaces, for everybody; whether all went."""
        kept = 0
        try:
            for group in self.identity.groups:
                kept += self.link.session.admin("flush", group.name)[1] if self.link.session else 0
        except _kvbm.KvbmError as error:
            api.logger.warning("kvbmd: the cache was not reset: %s", error)
            return False
        return kept == 0


def _resumed(cached, i):
    """Ids of requests whose new blocks are all they have: a set, in older vLLM a list of bools."""
    ids = getattr(cached, "resumed_req_ids", None)
    if ids is not None:
        return ids
    flags = getattr(cached, "resumed_from_preemption", None)
    return {cached.req_ids[i]} if flags and flags[i] else ()


class Events:
    """What the engine's publisher is told: blocks that are in host memory now, once all lanes have stored them; and that they are gone again."""

    def __init__(self, identity, types):
        self.identity, (self._stored, self._removed) = identity, types
        self._expected = collections.OrderedDict()  # (group, key) -> what is known of it
        self._out = []

    def expect(self, request, group, blocks):
        tokens = request.all_token_ids
        lora = getattr(request, "lora_request", None)
        for i, key, parent in blocks:
            of = list(tokens[i * group.block_tokens : (i + 1) * group.block_tokens])
            self._expected[(group.index, key)] = [0, parent, of, getattr(lora, "name", None), getattr(lora, "adapter_id", None)]
        while len(self._expected) > EVENTS_MAX:
            self._expected.popitem(last=False)

    def confirmed(self, stored):
        size = self.identity.key_bytes
        for index, keys in stored:
            for at in range(0, len(keys), size):
                key = keys[at : at + size]
                known = self._expected.get((index, key))
                if known is None:
                    continue
                known[0] += 1
                if known[0] >= self.identity.lanes:
                    del self._expected[(index, key)]
                    self._tell(index, key, known)

    def _tell(self, index, key, known):
        _, parent, tokens, lora_name, lora_id = known
        self._out.append(
            api.make_event(
                self._stored,
                block_hashes=[api.external_hash(key)],
                parent_block_hash=api.external_hash(parent) if any(parent) else None,
                token_ids=tokens,
                block_size=self.identity.groups[index].block_tokens,
                lora_id=lora_id,
                medium="CPU",
                lora_name=lora_name,
                group_idx=index,
            )
        )

    def take(self):
        out, self._out = self._out, []
        return out

    @property
    def waiting(self):
        return bool(self._expected)
