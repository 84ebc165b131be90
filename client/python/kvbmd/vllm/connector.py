# SPDX-License-Identifier: Apache-2.0
# mypy: ignore-errors
"""KvbmdConnector: what vLLM calls.  Hands each call to the part of its role; what can go wrong in either ends here."""

import functools

from .. import _kvbm
from . import api, identity, layout, metrics
from .link import Link
from .meta import KvbmdMetadata
from .scheduler import Events, Scheduler
from .worker import Worker


def _never_raises(otherwise):
    """A fault of ours is one line in the log and a cache that finds nothing, not the end of the engine."""

    def wrap(method):
        @functools.wraps(method)
        def call(self, *args, **keywords):
            try:
                return method(self, *args, **keywords)
            except Exception:
                self._fault(method.__name__)
                return otherwise() if callable(otherwise) else otherwise

        return call

    return wrap


class KvbmdConnector(api.KVConnectorBase_V1, api.SupportsHMA):
    """Blocks of vLLM's KV cache in kvbmd.  Loads asynchronously only; what cannot be loaded is computed.

    kv_connector_extra_config, all optional:
        socket             path of the daemon's socket; not given: $KVBM_SOCKET, then as everywhere
        namespace, salt    engines meet only where both agree, and the model, its layout, the parallelism, the hash seed and algorithm, and vLLM's version do
        timeout            seconds that a call of a background thread waits for the daemon (5)
        onboard_timeout    seconds that a request may wait for blocks from below host memory (10)
        tokens_per_s       at which the engine computes: what would come up later than that is computed (0: never)
        load, store        false: this engine only stores, or only loads

    Set "kv_load_failure_policy": "recompute" in the transfer config: with vLLM's own default, "fail", a request whose blocks are lost between look-up and load,
    because the daemon died, ends with an error.
    """

    def __init__(self, vllm_config, role, kv_cache_config=None):
        super().__init__(vllm_config, role, kv_cache_config)
        transfer = vllm_config.kv_transfer_config
        self._options = dict(getattr(transfer, "kv_connector_extra_config", None) or {})
        self._counts = metrics.Counts()
        self._link = self._scheduler = self._worker = self._events = None
        self._faults = 0
        kv_role = getattr(transfer, "kv_role", "kv_both")
        self._options.setdefault("load", kv_role != "kv_producer")
        self._options.setdefault("store", kv_role != "kv_consumer")
        try:
            self._identity = identity.describe(vllm_config, kv_cache_config, role, self._options)
        except identity.Unsupported as error:
            self._identity = None
            api.logger.error("kvbmd: nothing is cached: %s", error)
            return
        if role == api.KVConnectorRole.SCHEDULER:
            self._open_scheduler(vllm_config)
        else:
            self._link = Link(self._identity, self._options, f"vllm-worker-{self._identity.lane}", self._counts)
            self._worker = Worker(self._identity, self._link, self._counts)

    def _open_scheduler(self, vllm_config):
        if self._identity.private:
            api.logger.warning("kvbmd: this engine's block hashes are its own: set PYTHONHASHSEED, to the same value in all, to share blocks")
        if getattr(vllm_config.kv_transfer_config, "kv_load_failure_policy", "recompute") == "fail":
            api.logger.warning('kvbmd: kv_load_failure_policy is "fail": requests will end with an error if kvbmd dies during their load')
        events = getattr(vllm_config, "kv_events_config", None)
        types = api.event_types() if events is not None and getattr(events, "enable_kv_cache_events", False) else None
        self._events = Events(self._identity, types) if types else None
        self._link = Link(self._identity, self._options, "vllm-scheduler", self._counts)
        self._scheduler = Scheduler(self._identity, self._link, self._counts, self._options, self._events)

    def _fault(self, where):
        self._faults += 1
        if self._faults <= 10:
            api.logger.exception("kvbmd: a fault in %s()", where)

    # ---- what we are ----

    @property
    def requires_kv_delivery(self):
        return False

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config):
        return False

    @classmethod
    def build_kv_connector_stats(cls, data=None):
        return metrics.KvbmdStats(data=dict(data or {}))

    @classmethod
    def build_prom_metrics(cls, vllm_config, metric_types, labelnames, per_engine_labelvalues):
        return metrics.KvbmdPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    # ---- scheduler ----

    @_never_raises(None)
    def on_new_request(self, request):
        if self._scheduler is not None:
            self._scheduler.new_request(request)

    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        tokens = self._matched(request, num_computed_tokens)
        return tokens, bool(tokens)

    @_never_raises(0)
    def _matched(self, request, num_computed_tokens):
        return 0 if self._scheduler is None else self._scheduler.matched(request, num_computed_tokens)

    def update_state_after_alloc(self, request, blocks, num_external_tokens):
        # Not caught: a load that the engine waits for and nobody does would hang its request.
        if self._scheduler is not None:
            self._scheduler.placed(request, blocks.get_block_ids(), num_external_tokens)

    def get_external_cache_hit_sources(self, request, num_external_tokens):
        planned = self._scheduler.sources(request.request_id) if self._scheduler is not None else None
        host, disk = api.hit_source("host"), api.hit_source("disk")
        if planned is None or host is None or disk is None or sum(planned) != num_external_tokens:
            return super().get_external_cache_hit_sources(request, num_external_tokens)
        return {source: n for source, n in zip((host, disk), planned) if n}

    def build_connector_meta(self, scheduler_output):
        return KvbmdMetadata() if self._scheduler is None else self._scheduler.step(scheduler_output)

    @_never_raises(None)
    def update_connector_output(self, connector_output):
        if self._scheduler is None:
            return
        self._scheduler.finished_loads(connector_output.finished_recving or ())
        meta = getattr(connector_output, "kv_connector_worker_meta", None)
        if meta is not None and meta.unable:
            self._scheduler.loads = self._scheduler.saves = False
        if self._events is not None and meta is not None:
            self._events.confirmed(meta.stored)

    def request_finished(self, request, block_ids):
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(self, request, block_ids):
        self._request_over(request)
        return False, None

    @_never_raises(None)
    def _request_over(self, request):
        if self._scheduler is not None:
            self._scheduler.finished(request.request_id)

    @_never_raises(())
    def take_events(self):
        return self._events.take() if self._events is not None else ()

    @_never_raises(False)
    def reset_cache(self):
        return self._scheduler.reset() if self._scheduler is not None else True

    # ---- worker ----

    def register_kv_caches(self, kv_caches):
        if self._worker is None:
            return
        try:
            self._worker.register(kv_caches, int(self._kv_cache_config.num_blocks))
        except layout.BadLayout as error:
            self._worker.unable = True
            api.logger.error("kvbmd: nothing is cached: %s", error)

    @_never_raises(None)
    def handle_preemptions(self, kv_connector_metadata):
        # Of early 2026: a set of request ids, which says nothing of blocks.  Then start_load_kv() comes first in the step.
        if self._worker is not None and isinstance(kv_connector_metadata, KvbmdMetadata):
            self._worker.fence(kv_connector_metadata.fence)

    def bind_connector_metadata(self, connector_metadata):
        super().bind_connector_metadata(connector_metadata)
        self.handle_preemptions(connector_metadata)

    def start_load_kv(self, forward_context, **kwargs):
        if self._worker is not None:
            for request_id, parts in self._get_connector_metadata().loads:
                self._worker.start_load(request_id, parts)

    def wait_for_layer_load(self, layer_name):
        return

    def save_kv_layer(self, layer_name, kv_layer, attn_metadata, **kwargs):
        return

    @_never_raises(None)
    def wait_for_save(self):
        if self._worker is not None and self._connector_metadata is not None:
            for blocks in self._connector_metadata.stores:
                self._worker.start_store(blocks)

    def get_finished(self, finished_req_ids):
        return None, self._worker.take_finished()[0] or None if self._worker is not None else None

    def get_transfer_results(self, finished_req_ids):
        received, failed = self._worker.take_finished() if self._worker is not None else (set(), set())
        return api.KVConnectorTransferResults(finished_sending=set(), finished_recving=received, failed_recving=failed)

    def get_block_ids_with_load_errors(self):
        return self._worker.take_bad() if self._worker is not None else set()

    def build_connector_worker_meta(self):
        return self._worker.take_meta() if self._worker is not None else None

    # ---- both ----

    @_never_raises(None)
    def get_kv_connector_stats(self):
        return self._counts.take()

    def shutdown(self):
        """Stores what is waiting, for a few seconds at most, and ends the session.  Again is fine."""
        for part in (self._worker, self._scheduler):
            if part is not None:
                try:
                    part.close()
                except Exception:
                    self._fault("shutdown")
        if self._link is not None:
            try:
                self._link.close()
            except _kvbm.KvbmError:
                pass
        self._worker = self._scheduler = self._link = None
