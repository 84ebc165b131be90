# SPDX-License-Identifier: Apache-2.0
# mypy: ignore-errors
"""Counts of the connector, into vLLM's log and its /metrics.  All are sums over the time since they were last taken."""

import threading

from . import api

# name in the data -> (series, what it is)
COUNTERS = {
    "lookups": ("lookups", "Look-ups of a request's prefix."),
    "lookup_tokens": ("lookup_tokens", "Tokens looked up: those beyond the engine's own cache."),
    "hit_tokens": ("hit_tokens", "Tokens found and loaded."),
    "hit_host_tokens": ("hit_host_tokens", "Tokens found in host memory."),
    "hit_disk_tokens": ("hit_disk_tokens", "Tokens that came up from below host memory."),
    "loads": ("loads", "Loads finished."),
    "load_blocks": ("load_blocks", "Blocks copied into the engine."),
    "load_bytes": ("load_bytes", "Bytes copied into the engine."),
    "load_seconds": ("load_seconds", "Seconds that loads took."),
    "load_failures": ("load_failures", "Blocks that could not be loaded, and are computed."),
    "store_blocks": ("store_blocks", "Blocks stored, or found stored by others."),
    "store_new_blocks": ("store_new_blocks", "Blocks stored that the node did not have."),
    "store_bytes": ("store_bytes", "Bytes copied out of the engine."),
    "store_seconds": ("store_seconds", "Seconds that stores took."),
    "store_skipped_full": ("store_skipped_full", "Blocks not stored: kvbmd had no room."),
    "store_skipped_away": ("store_skipped_away", "Blocks not stored: kvbmd was away, or did not answer in time."),
    "store_skipped_busy": ("store_skipped_busy", "Blocks not stored: too many were waiting."),
    "store_skipped_overwritten": ("store_skipped_overwritten", "Blocks not stored: the engine needed their memory first."),
    "hints": ("hints", "Actions of KV hints passed on."),
    "hints_unknown": ("hints_unknown", "Actions of KV hints passed over."),
    "reconnects": ("reconnects", "Times that kvbmd was reached again."),
}


class KvbmdStats(api.KVConnectorStats):
    """data: name -> number."""

    def reset(self):
        self.data = {}

    def aggregate(self, other):
        for name, value in (other.data if hasattr(other, "data") else other).items():
            self.data[name] = self.data.get(name, 0) + value
        return self

    def reduce(self):
        return {f"kvbmd {name}": round(value, 6) for name, value in sorted(self.data.items()) if value}

    def is_empty(self):
        return not any(self.data.values())


class Counts:
    """Added to by any thread, taken by the engine's."""

    def __init__(self):
        self._lock = threading.Lock()
        self._data = {}
        self.total = {}

    def add(self, **more):
        with self._lock:
            for name, value in more.items():
                assert name in COUNTERS, name
                self._data[name] = self._data.get(name, 0) + value
                self.total[name] = self.total.get(name, 0) + value

    def take(self):
        """KvbmdStats, or None where there is nothing new."""
        if not self._data:
            return None
        with self._lock:
            data, self._data = self._data, {}
        return KvbmdStats(data=data)


class KvbmdPromMetrics(api.KVConnectorPromMetrics):
    """Series vllm:kvbmd_*_total, by engine."""

    def __init__(self, vllm_config, metric_types, labelnames, per_engine_labelvalues):
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._series = {}
        for name, (series, text) in COUNTERS.items():
            counter = self._counter_cls(name=f"vllm:kvbmd_{series}", documentation=text, labelnames=labelnames)
            self._series[name] = {engine: counter.labels(*values) for engine, values in per_engine_labelvalues.items()}

    def observe(self, transfer_stats_data, engine_idx=0):
        for name, value in transfer_stats_data.items():
            series = self._series.get(name, {}).get(engine_idx)
            if series is not None and value > 0:
                series.inc(value)
