"""Connectors with a fault built in, for vLLM to load by module path.  kv_connector_extra_config says which:

fault "swap"     each load puts the right pages in reverse order
fault "load"     each load stops before it copies, and
fault "store"    each store after it has reserved, before it copies: opens the FIFO "at" for writing, which tells the test, then "go" for reading
"""

from kvbmd.vllm.connector import KvbmdConnector
from kvbmd.vllm.worker import Worker


class FaultyWorker(Worker):
    options = {}

    def _pause(self):
        with open(self.options["at"], "wb"):
            pass
        with open(self.options["go"], "rb"):
            pass

    def _load_part(self, part):
        if self.options["fault"] == "swap":
            size = self.identity.key_bytes
            part.keys = b"".join(reversed([part.keys[i : i + size] for i in range(0, len(part.keys), size)]))
        if self.options["fault"] == "load":
            self._pause()
        return super()._load_part(part)

    def _copy(self, ns, holds, numbers, group, store):
        if store and self.options["fault"] == "store":
            self._pause()
        return super()._copy(ns, holds, numbers, group, store)


class FaultyConnector(KvbmdConnector):
    def __init__(self, vllm_config, role, kv_cache_config=None):
        super().__init__(vllm_config, role, kv_cache_config)
        if self._worker is not None:
            self._worker.close()
            self._worker = FaultyWorker(self._identity, self._link, self._counts)
            self._worker.options = self._options
