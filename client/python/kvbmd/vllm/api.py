# SPDX-License-Identifier: Apache-2.0
# mypy: ignore-errors
"""The classes of vLLM that the connector derives from, makes or returns; where there is no vLLM, stand-ins of the same shape, for tests.

vLLM's connector interface has no version: what came or went between releases is asked for here, once, by name.
"""

import logging

try:
    from vllm.distributed.kv_transfer.kv_connector.v1 import base as _base

    HAVE_VLLM = True
except ImportError:
    _base = None
    HAVE_VLLM = False

if HAVE_VLLM:
    from vllm.distributed.kv_transfer.kv_connector.v1 import metrics as _metrics

    KVConnectorBase_V1 = _base.KVConnectorBase_V1
    KVConnectorMetadata = _base.KVConnectorMetadata
    KVConnectorRole = _base.KVConnectorRole
    SupportsHMA = getattr(_base, "SupportsHMA", object)
    KVConnectorWorkerMetadata = getattr(_base, "KVConnectorWorkerMetadata", object)
    KVConnectorTransferResults = getattr(_base, "KVConnectorTransferResults", None)
    KVConnectorStats = _metrics.KVConnectorStats
    KVConnectorPromMetrics = getattr(_metrics, "KVConnectorPromMetrics", object)
    try:
        from vllm.logger import init_logger

        logger = init_logger("vllm.kvbmd")
    except ImportError:
        logger = logging.getLogger("kvbmd.vllm")
else:
    import enum
    from dataclasses import dataclass, field

    logger = logging.getLogger("kvbmd.vllm")

    class KVConnectorRole(enum.Enum):
        SCHEDULER = 0
        WORKER = 1

    class KVConnectorMetadata:
        pass

    class KVConnectorWorkerMetadata:
        pass

    class SupportsHMA:
        pass

    class KVConnectorPromMetrics:
        pass

    @dataclass
    class KVConnectorTransferResults:
        finished_sending: set = field(default_factory=set)
        finished_recving: set = field(default_factory=set)
        failed_recving: set = field(default_factory=set)

    @dataclass
    class KVConnectorStats:
        data: dict = field(default_factory=dict)

    class KVConnectorBase_V1:
        def __init__(self, vllm_config, role, kv_cache_config=None):
            self._connector_metadata = None
            self._vllm_config = vllm_config
            self._kv_transfer_config = vllm_config.kv_transfer_config
            self._kv_cache_config = kv_cache_config
            self._role = role

        @property
        def role(self):
            return self._role

        def bind_connector_metadata(self, connector_metadata):
            self._connector_metadata = connector_metadata

        def clear_connector_metadata(self):
            self._connector_metadata = None

        def _get_connector_metadata(self):
            assert self._connector_metadata is not None
            return self._connector_metadata


def hash_seed():
    """What vLLM's first parent hash is made of: processes share blocks only if they agree on it.  None: nobody else has it."""
    import os

    if HAVE_VLLM:
        try:
            from vllm.v1.core import kv_cache_utils

            # A vLLM of before that function takes random bytes unless the variable is set.
            if not hasattr(kv_cache_utils, "resolve_none_hash_seed"):
                return os.environ.get("PYTHONHASHSEED")
            return os.environ.get("PYTHONHASHSEED", getattr(kv_cache_utils, "DEFAULT_NONE_HASH_SEED", None))
        except ImportError:
            pass
    return os.environ.get("PYTHONHASHSEED")


def external_hash(block_hash):
    """A block hash as vLLM's events have it."""
    try:
        from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

        return maybe_convert_block_hash(block_hash)
    except ImportError:
        return block_hash


def event_types():
    """(BlockStored, BlockRemoved) of vLLM, or None."""
    try:
        from vllm.distributed.kv_events import BlockRemoved, BlockStored

        return BlockStored, BlockRemoved
    except ImportError:
        return None


def make_event(kind, **fields):
    """An event with those of the fields that this vLLM's has."""
    known = getattr(kind, "__struct_fields__", None)
    return kind(**{k: v for k, v in fields.items() if known is None or k in known})


def hit_source(name):
    """'host' or 'disk' of vLLM's CacheHitSource; None where it has none."""
    try:
        from vllm.v1.metrics.cache_hit_source import CacheHitSource

        return CacheHitSource(name)
    except (ImportError, ValueError):
        return None


def current_stream():
    """The engine's CUDA stream in this thread; None where there is no torch with CUDA."""
    try:
        import torch
    except ImportError:
        return None
    return torch.cuda.current_stream() if torch.cuda.is_available() else None


def version():
    if not HAVE_VLLM:
        return "none"
    try:
        import vllm

        return str(vllm.__version__)
    except Exception:
        return "unknown"
