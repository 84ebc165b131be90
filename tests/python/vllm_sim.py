"""An engine with vLLM's scheduler in small, and no model: it drives a connector through every call in vLLM's order, and checks each byte.

The KV of a token is a hash of all tokens up to it, of the layer and of the rank.  Before a step computes tokens, all that it would attend to is read from
the pages and compared: bytes that came from the cache and are wrong are found where they would have changed an answer.

From vLLM 0.32.0's v1/core/sched/scheduler.py and v1/worker/kv_connector_model_runner_mixin.py: the order of calls, when a request is asked for, what is told
about blocks, asynchronous loads, their failure by blocks (one group) or by requests (several), preemption, aborts, and the assertions.  Simplified: no
speculation, one step at a time.
"""

import ctypes
import hashlib
import pickle
import time
from types import SimpleNamespace

from kvbmd.vllm import api
from kvbmd.vllm.connector import KvbmdConnector

TOKEN_BYTES = 16  # of one layer
HANGS = 60  # seconds after which a run that has not ended never will


class Tensor:
    """As much of a torch tensor as the connector looks at, on memory of ours; axis() says where blocks are."""

    device = SimpleNamespace(type="cpu")
    allocate = staticmethod(lambda n: (ctypes.c_ubyte * n)())  # or memory with an address of its own, see test_vllm_device.py

    def __init__(self, shape, strides=None, base=None, offset=0):
        self.shape = tuple(shape)
        self._strides = strides or self._dense(shape)
        if base is None:
            n = 1 + sum((s - 1) * t for s, t in zip(self.shape, self._strides))
            base = self.allocate(n)
        self.memory, self.offset = base, offset

    @staticmethod
    def _dense(shape):
        strides, n = [], 1
        for size in reversed(shape):
            strides.insert(0, n)
            n *= size
        return tuple(strides)

    def stride(self):
        return self._strides

    def element_size(self):
        return 1

    def data_ptr(self):
        address = getattr(self.memory, "address", None)
        return (ctypes.addressof(self.memory) if address is None else address) + self.offset

    def at(self, *index):
        return self.offset + sum(i * s for i, s in zip(index, self._strides))

    def read(self, n, *index):
        start = self.at(*index)
        return bytes(self.memory[start : start + n])

    def write(self, data, *index):
        start = self.at(*index)
        self.memory[start : start + len(data)] = data


class Layers:
    """The tensors of one group's layers on one rank, in one of the layouts that vLLM has had; a token's KV is TOKEN_BYTES in each."""

    def __init__(self, layout, n_layers, num_blocks, block_tokens):
        self.layout, self.tokens = layout, block_tokens
        half = TOKEN_BYTES // 2
        self.tensors = []
        if layout == "blocks-first":  # BLNHC: all layers of a block lie together
            page = block_tokens * TOKEN_BYTES
            memory = Tensor.allocate(num_blocks * n_layers * page)
            for i in range(n_layers):
                strides = (n_layers * page, TOKEN_BYTES, 1)
                self.tensors.append(Tensor((num_blocks, block_tokens, TOKEN_BYTES), strides, memory, i * page))
        for _ in range(n_layers if layout != "blocks-first" else 0):
            if layout == "plain":
                self.tensors.append(Tensor((num_blocks, block_tokens, TOKEN_BYTES)))
            elif layout == "kernel-blocks":  # of half the tokens
                self.tensors.append(Tensor((2 * num_blocks, block_tokens // 2, TOKEN_BYTES)))
            elif layout == "heads-first":  # LHBNC: two heads, each with all blocks
                n = num_blocks * block_tokens * half
                self.tensors.append(Tensor((num_blocks, 2, block_tokens, half), (block_tokens * half, n, half, 1)))
            elif layout == "k-and-v":  # 2025: (2, blocks, tokens, elements)
                self.tensors.append(Tensor((2, num_blocks, block_tokens, half)))

    def _places(self, block, token):
        half = TOKEN_BYTES // 2
        if self.layout == "kernel-blocks":
            return [(TOKEN_BYTES, (2 * block + token // (self.tokens // 2), token % (self.tokens // 2), 0))]
        if self.layout == "heads-first":
            return [(half, (block, 0, token, 0)), (half, (block, 1, token, 0))]
        if self.layout == "k-and-v":
            return [(half, (0, block, token, 0)), (half, (1, block, token, 0))]
        return [(TOKEN_BYTES, (block, token, 0))]

    def read(self, layer, block, token):
        return b"".join(self.tensors[layer].read(n, *at) for n, at in self._places(block, token))

    def write(self, layer, block, token, data):
        for n, at in self._places(block, token):
            self.tensors[layer].write(data[:n], *at)
            data = data[n:]


class FullAttentionSpec(SimpleNamespace):
    dcp_sharded = True


class SlidingWindowSpec(SimpleNamespace):
    dcp_sharded = True


class Request:
    def __init__(self, engine, request_id, prompt, new_tokens, hints=None):
        self.engine, self.request_id, self.prompt, self.new_tokens = engine, request_id, list(prompt), new_tokens
        self.all_token_ids, self.chain, self.block_hashes = [], [], []
        self.num_computed_tokens = self.num_preemptions = 0
        self.status, self.finish = "waiting", None
        self.blocks = [[] for _ in engine.groups]
        self.cached = None  # tokens that were not computed, the first time
        self.kv_hints, self.kv_transfer_params, self.lora_request = hints, None, None
        self.skip_reading_prefix_cache = False
        for token in prompt:
            self.append(token)

    def append(self, token):
        before = self.chain[-1] if self.chain else self.engine.root
        self.all_token_ids.append(token)
        self.chain.append(hashlib.blake2b(before + token.to_bytes(4, "big"), digest_size=TOKEN_BYTES).digest())
        if len(self.chain) % self.engine.hash_tokens == 0:
            self.block_hashes.append(hashlib.sha256(self.chain[-1]).digest())

    @property
    def num_tokens(self):
        return len(self.all_token_ids)

    @property
    def tokens(self):
        return self.all_token_ids[len(self.prompt) :]


class Blocks:
    def __init__(self, ids):
        self.ids = ids

    def get_block_ids(self):
        return tuple(list(group) for group in self.ids)


class Engine:
    """One engine: a scheduler's connector, one of each rank's worker, pages."""

    def __init__(self, socket, *, block_tokens=(8,), windows=(0,), layers=2, num_blocks=64, tp=1, mla=False, budget=64, caching=True,
                 policy="recompute", layout="plain", seed="0", connector=KvbmdConnector, options=None, name="sim", events=False):  # fmt: skip
        self.hash_tokens = min(block_tokens)
        self.groups = [SimpleNamespace(tokens=t, window=w, free=list(range(1, num_blocks)), hashes={}, of={}) for t, w in zip(block_tokens, windows)]
        self.align = max(block_tokens)
        self.layers, self.budget, self.caching, self.policy = layers, budget, caching, policy
        self.root = hashlib.sha256(seed.encode()).digest()[:TOKEN_BYTES]
        self.requests, self.waiting, self.running, self.done = {}, [], [], []
        self.finished_ids, self.received, self.failed = set(), set(), set()
        self.swa_floor = {}
        self.steps = self.external = 0
        self.stats, self.all_events = {}, []
        self.mla = mla
        self.connectors = self._open(socket, layout, num_blocks, tp, seed, connector, options, name, events)

    def _open(self, socket, layout, num_blocks, tp, seed, connector, options, name, events):
        import os

        os.environ["PYTHONHASHSEED"] = seed
        kinds = [SlidingWindowSpec if g.window else FullAttentionSpec for g in self.groups]
        config = SimpleNamespace(num_blocks=num_blocks, kv_cache_groups=[], hash_block_size=self.hash_tokens)
        for i, (group, kind) in enumerate(zip(self.groups, kinds)):
            spec = kind(block_size=group.tokens, page_size_bytes=group.tokens * TOKEN_BYTES, sliding_window=group.window)
            config.kv_cache_groups.append(SimpleNamespace(kv_cache_spec=spec, layer_names=[f"layers.{i}.{j}" for j in range(self.layers)]))

        def vllm_config(rank):
            return SimpleNamespace(
                model_config=SimpleNamespace(model=name, use_mla=self.mla, dtype="bfloat16"),
                cache_config=SimpleNamespace(cache_dtype="auto", prefix_caching_hash_algo="sha256_cbor", kv_cache_layout=layout),
                parallel_config=SimpleNamespace(tensor_parallel_size=tp, pipeline_parallel_size=1, rank=rank),
                kv_transfer_config=SimpleNamespace(
                    kv_connector_extra_config={"socket": socket, "namespace": "sim", **(options or {})}, kv_role="kv_both", kv_load_failure_policy=self.policy
                ),
                kv_events_config=SimpleNamespace(enable_kv_cache_events=events),
                device_config=SimpleNamespace(device_type=Tensor.device.type),
            )

        self.workers = []
        for rank in range(tp):
            worker = connector(vllm_config(rank), api.KVConnectorRole.WORKER, config)
            worker.pages = [Layers(layout, self.layers, num_blocks, g.tokens) for g in self.groups]
            worker.register_kv_caches({f"layers.{i}.{j}": t for i, pages in enumerate(worker.pages) for j, t in enumerate(pages.tensors)})
            self.workers.append(worker)
        self.scheduler = connector(vllm_config(0), api.KVConnectorRole.SCHEDULER, config)
        assert not self.scheduler.requires_kv_delivery
        return [self.scheduler, *self.workers]

    def close(self):
        for connector in self.connectors:
            connector.shutdown()

    # ---- what a user does ----

    def add(self, request_id, prompt, new_tokens=4, hints=None):
        request = self.requests[request_id] = Request(self, request_id, prompt, new_tokens, hints)
        self.waiting.append(request)
        self.scheduler.on_new_request(request)
        return request

    def abort(self, request_id):
        request = self.requests.get(request_id)
        if request is not None and request.finish is None:
            self._finish(request, "abort")

    def run(self):
        """Steps until nothing is left to do.  That it comes to an end is claimed, not how soon: a busy machine's blocks come up late."""
        started = time.monotonic()
        while self.requests:
            left = [(r.request_id, r.status) for r in self.requests.values()]
            assert time.monotonic() - started < HANGS, f"not done after {HANGS} s: {left}"
            self.step()

    def generate(self, prompt, new_tokens=4, request_id=None):
        request = self.add(request_id or f"r{self.steps}-{len(self.done)}", prompt, new_tokens)
        self.run()
        return request

    # ---- blocks ----

    def _allocate(self, request, upto, external=False):
        """Blocks for the tokens up to there; False, and nothing, if there are too few."""
        wants = []
        for group, ids in zip(self.groups, request.blocks):
            need = max(-(-upto // group.tokens) - len(ids), 0)
            skipped = 0
            if external and group.window:
                skipped = max(min(max(upto - group.window, 0) // group.tokens - len(ids), need), 0)
            if len(group.free) < need - skipped:
                return False
            wants.append((skipped, need - skipped))
        for group, ids, (skipped, need) in zip(self.groups, request.blocks, wants):
            ids += [0] * skipped
            for _ in range(need):
                block = group.free.pop(0)
                key = group.of.pop(block, None)
                if key is not None:
                    group.hashes.pop(key, None)
                ids.append(block)
        return True

    def _free(self, request):
        for group, ids in zip(self.groups, request.blocks):
            group.free += [b for b in reversed(ids) if b and not self._shared(request, group, b)]
        request.blocks = [[] for _ in self.groups]

    def _shared(self, request, group, block):
        at = self.groups.index(group)
        return any(block in r.blocks[at] for r in self.requests.values() if r is not request)

    def _local_hit(self, request):
        """One group only, as far as this simulation goes: blocks of earlier requests that nobody overwrote."""
        if not self.caching or len(self.groups) > 1:
            return 0
        group, ids = self.groups[0], []
        for i in range((request.num_tokens - 1) // group.tokens):
            block = group.hashes.get(request.block_hashes[i])
            if block is None:
                break
            ids.append(block)
        request.local = ids
        return len(ids) * group.tokens

    def _take_local(self, request):
        group = self.groups[0]
        for block in request.local:
            if block in group.free:
                group.free.remove(block)
        request.blocks[0] = list(request.local)

    def _cache(self, request):
        group = self.groups[0]
        if not self.caching or len(self.groups) > 1:
            return
        for i in range(min(request.num_computed_tokens // group.tokens, len(request.block_hashes))):
            key, block = request.block_hashes[i], request.blocks[0][i]
            if key not in group.hashes and block not in group.of:
                group.hashes[key], group.of[block] = block, key

    def _leave_window(self, request):
        for group, ids in zip(self.groups, request.blocks):
            if group.window:
                for i in range(max(request.num_computed_tokens - group.window + 1, 0) // group.tokens):
                    if ids[i]:
                        group.free.append(ids[i])
                        ids[i] = 0

    # ---- the scheduler ----

    def _preempt(self):
        victim = self.running.pop()
        self._free(victim)
        victim.num_computed_tokens, victim.status = 0, "preempted"
        victim.num_preemptions += 1
        self.waiting.insert(0, victim)
        return victim

    def _schedule(self):
        budget, scheduled, new, preempted = self.budget, {}, [], False
        cached = SimpleNamespace(req_ids=[], resumed_req_ids=set(), new_block_ids=[], num_computed_tokens=[])
        for request in list(self.running):
            if request not in self.running or not budget:
                continue
            n, before = min(request.num_tokens - request.num_computed_tokens, budget), [len(ids) for ids in request.blocks]
            while request in self.running and not self._allocate(request, request.num_computed_tokens + n):
                victim, preempted = self._preempt(), True
                if scheduled.pop(victim.request_id, None):
                    i = cached.req_ids.index(victim.request_id)
                    for values in (cached.req_ids, cached.new_block_ids, cached.num_computed_tokens):
                        values.pop(i)
            if request not in self.running:
                continue
            budget -= n
            scheduled[request.request_id] = n
            fresh = tuple(ids[k:] for ids, k in zip(request.blocks, before))
            cached.req_ids.append(request.request_id)
            cached.new_block_ids.append(fresh if any(fresh) else None)
            cached.num_computed_tokens.append(request.num_computed_tokens)
        # Those that hold blocks first: vLLM keeps them in a queue of their own.
        for request in [] if preempted else sorted(self.waiting, key=lambda r: not any(r.blocks)):
            if not budget:
                break
            if not self._admit(request):
                continue
            if request.status == "no room":
                request.status = "waiting" if not request.num_preemptions else "preempted"
                break
            if request.status == "remote":
                continue
            n = min(request.num_tokens - request.num_computed_tokens, budget)
            budget -= n
            scheduled[request.request_id] = n
            self.waiting.remove(request)
            self.running.append(request)
            if request.num_preemptions:
                cached.req_ids.append(request.request_id)
                cached.resumed_req_ids.add(request.request_id)
                cached.new_block_ids.append(tuple(list(ids) for ids in request.blocks))
                cached.num_computed_tokens.append(request.num_computed_tokens)
            else:
                ids = tuple(list(ids) for ids in request.blocks)
                new.append(SimpleNamespace(req_id=request.request_id, block_ids=ids, num_computed_tokens=request.num_computed_tokens))
            request.status = "running"
        output = SimpleNamespace(scheduled_new_reqs=new, scheduled_cached_reqs=cached, num_scheduled_tokens=scheduled, finished_req_ids=self.finished_ids)
        self.finished_ids = set()
        output.kv_connector_metadata = pickle.loads(pickle.dumps(self.scheduler.build_connector_meta(output)))
        return output

    def _admit(self, request):
        """One of the waiting: whether it gets on, into an asynchronous load ("remote") or into this step."""
        if request.status == "remote":
            if request.request_id not in self.received:
                return False
            self._promote(request)
        async_load = False
        if request.num_computed_tokens == 0:
            local = self._local_hit(request)
            tokens, async_load = self.scheduler.get_num_new_matched_tokens(request, local)
            if tokens is None:
                assert not async_load
                return False
            assert tokens >= 0 and (async_load or not tokens) and local + tokens <= request.num_tokens
            assert tokens % self.align == 0, "a hit that ends within a block"
        else:
            local, tokens = request.num_computed_tokens, 0
        computed = local + tokens
        n = 0 if async_load else min(request.num_tokens - computed, self.budget)
        taken = request.num_computed_tokens == 0
        # An asynchronous load holds its blocks and cannot be preempted: only where the whole request fits, beside those that wait like it.
        fits = not async_load or self._left(request, 1) + sum(self._left(r, 1) for r in self.waiting if r is not request and any(r.blocks)) <= min(
            len(g.free) for g in self.groups
        )
        if taken and fits and len(self.groups) == 1 and local:
            self._take_local(request)
        if not fits or not self._allocate(request, computed + n, external=async_load):
            if taken:
                self._free(request)
            request.status = "no room"
            return True
        self.scheduler.update_state_after_alloc(request, Blocks(request.blocks), tokens)
        request.num_computed_tokens = computed
        if request.cached is None:
            request.cached = computed
        if async_load:
            self.external += tokens
            assert sum(self.scheduler.get_external_cache_hit_sources(request, tokens).values()) == tokens if api.HAVE_VLLM else True
            request.status = "remote"
        return True

    def _left(self, request, more):
        return max(-(-(request.num_tokens + more) // g.tokens) - len(ids) for g, ids in zip(self.groups, request.blocks))

    def _promote(self, request):
        self.received.discard(request.request_id)
        if request.request_id in self.failed:
            self.failed.discard(request.request_id)
            if not request.num_computed_tokens:
                self._free(request)
            request.cached = request.num_computed_tokens
        else:
            self._cache(request)
        if request.num_computed_tokens == request.num_tokens:
            request.num_computed_tokens -= 1
        request.status = "preempted" if request.num_preemptions else "waiting"

    def _finish(self, request, why):
        request.finish = why
        delay, params = self.scheduler.request_finished_all_groups(request, tuple(list(ids) for ids in request.blocks))
        assert delay is False and params is None
        self.finished_ids.add(request.request_id)
        loading = request.status == "remote" and request.request_id not in self.received
        for queue in (self.waiting, self.running):
            if request in queue:
                queue.remove(request)
        request.status = "finished"
        if not loading:
            self._end(request)

    def _end(self, request):
        self._free(request)
        del self.requests[request.request_id]
        self.done.append(request)

    # ---- a step ----

    def step(self):
        self.steps += 1
        output = self._schedule()
        results = [self._work(worker, rank, output) for rank, worker in enumerate(self.workers)]
        self._computed(output)
        self._update(results)
        if not output.num_scheduled_tokens and self.requests:
            time.sleep(0.001)  # as v1/engine/core.py does, for the connector's threads

    def _work(self, worker, rank, output):
        meta = output.kv_connector_metadata
        worker.handle_preemptions(meta)
        worker.bind_connector_metadata(meta)
        for request_id, n in output.num_scheduled_tokens.items():
            self._forward(worker, 0 if self.mla else rank, self.requests[request_id], n)
        worker.start_load_kv(None)
        worker.wait_for_save()
        transfer = worker.get_transfer_results(output.finished_req_ids)
        result = SimpleNamespace(
            finished_recving=transfer.finished_recving,
            failed_recving=transfer.failed_recving,
            invalid_block_ids=worker.get_block_ids_with_load_errors(),
            kv_connector_stats=worker.get_kv_connector_stats(),
            kv_connector_worker_meta=pickle.loads(pickle.dumps(worker.build_connector_worker_meta())),
        )
        worker.clear_connector_metadata()
        assert not transfer.finished_sending and transfer.failed_recving <= transfer.finished_recving
        return result

    def _kv(self, request, rank, layer, token):
        return bytes((b + 31 * layer + 7 * rank) % 256 for b in request.chain[token])

    def _forward(self, worker, rank, request, n):
        first = request.num_computed_tokens
        for at, group in enumerate(self.groups):
            ids, pages = request.blocks[at], worker.pages[at]
            since = max(first - group.window + 1, 0) if group.window else 0
            for layer in range(self.layers):
                key = layer + 100 * at
                for token in range(since, first):
                    got = pages.read(layer, ids[token // group.tokens], token % group.tokens)
                    if got != self._kv(request, rank, key, token):
                        raise WrongBytes(f"{request.request_id}: token {token} of {first}, layer {layer}, group {at}, rank {rank}")
                for token in range(first, first + n):
                    pages.write(layer, ids[token // group.tokens], token % group.tokens, self._kv(request, rank, key, token))

    def _computed(self, output):
        for request_id, n in output.num_scheduled_tokens.items():
            request = self.requests[request_id]
            request.num_computed_tokens += n
            self._cache(request)
            self._leave_window(request)
            if request.num_computed_tokens == request.num_tokens:
                request.append(int.from_bytes(request.chain[-1][:2], "big"))
                if len(request.tokens) >= request.new_tokens:
                    self._finish(request, "length")

    def _update(self, results):
        # KVOutputAggregator: a load is received when all workers have it
        finished, failed, bad, meta = set(), set(), set(), None
        for result in results:
            for request_id in result.finished_recving:
                request = self.requests[request_id]
                request.reports = getattr(request, "reports", 0) + 1
                assert request.reports <= len(self.workers), "a load was reported twice"
                if request.reports == len(self.workers):
                    request.reports = 0
                    finished.add(request_id)
            failed |= result.failed_recving
            bad |= result.invalid_block_ids
            self._count(result.kv_connector_stats)
            if result.kv_connector_worker_meta is not None:
                meta = result.kv_connector_worker_meta if meta is None else meta.aggregate(result.kv_connector_worker_meta)
        if bad:
            assert len(self.groups) == 1, "blocks reported where there are several groups: vLLM raises"
            self._invalid(bad)
        for request_id in failed:
            self._load_failed(self.requests[request_id], 0)
        self.scheduler.update_connector_output(SimpleNamespace(finished_recving=finished, kv_connector_worker_meta=meta))
        for request_id in finished:
            assert request_id in self.requests
            request = self.requests[request_id]
            if request.status == "remote":
                self.received.add(request_id)
                if request_id in self.failed and self.policy == "fail":
                    self.failed.discard(request_id)
                    self._finish(request, "error")
            else:
                assert request.status == "finished", f"a load of {request_id} ended, which is {request.status}"
                self._end(request)
        self._count(self.scheduler.get_kv_connector_stats())
        self.all_events += list(self.scheduler.take_events())

    def _invalid(self, bad):
        for request in list(self.requests.values()):
            if request.status == "remote":
                ids = request.blocks[0][: request.num_computed_tokens // self.groups[0].tokens]
                hit = [i for i, block in enumerate(ids) if block in bad]
                if hit:
                    self._load_failed(request, hit[0] * self.groups[0].tokens)

    def _load_failed(self, request, computed):
        if request.status == "remote":
            request.num_computed_tokens = computed
            self.failed.add(request.request_id)

    def _count(self, stats):
        if stats is not None and not stats.is_empty():
            again = KvbmdConnector.build_kv_connector_stats(stats.data)
            assert again.reduce()
            for name, value in again.data.items():
                self.stats[name] = self.stats.get(name, 0) + value


class WrongBytes(AssertionError):
    pass
