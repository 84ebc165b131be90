# SPDX-License-Identifier: Apache-2.0
# mypy: ignore-errors
"""What the scheduler's part tells the workers' each step, and they it.  Pickled on the engine's hot path: flat bytes, not an object a block."""

from dataclasses import dataclass, field

from . import api


@dataclass
class Blocks:
    """Blocks of one group: packed int64 numbers in the engine, packed keys; for stores those of their parents too (zeros: a root)."""

    group: int
    numbers: bytes
    keys: bytes
    parents: bytes = b""


@dataclass
class KvbmdMetadata(api.KVConnectorMetadata):
    loads: list = field(default_factory=list)  # (request id, [Blocks])
    stores: list = field(default_factory=list)  # Blocks
    fence: bytes = b""  # packed int64: what this step may write over


@dataclass
class KvbmdWorkerMetadata(api.KVConnectorWorkerMetadata):
    stored: list = field(default_factory=list)  # (group, packed keys): each as often as lanes stored it
    unable: bool = False  # a worker cannot load or store: its pages are of a kind that it does not know

    def aggregate(self, other):
        return KvbmdWorkerMetadata(self.stored + other.stored, self.unable or other.unable)
