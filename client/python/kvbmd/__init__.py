# SPDX-License-Identifier: Apache-2.0
"""kvbmd: one KV cache for all inference processes of a machine.

    import kvbmd

    with kvbmd.BlockManager(num_layers=32, page_size=16, inner_dim=4096) as bm:
        blocks = bm.allocate_blocks(4)          # to write, through torch.from_dlpack(block), numpy.asarray(block), ...
        blocks.commit(hashes)                   # every process of this node finds them now
        found = bm.match(hashes)                # read-only, held until released or garbage

See BlockManager, Blocks, Block and Layer.  All exceptions are KvbmError; its subclasses say what went wrong, and have the .code of kvbm.h.
"""

from ._kvbm import (
    VERSION as __version__,
    Busy,
    Closed,
    Forked,
    Gone,
    Internal,
    Invalid,
    KvbmError,
    Limit,
    Mismatch,
    NoMemory,
    NoSpace,
    NotFound,
    NotHeld,
    NotPermitted,
    Protocol,
    Stale,
    System,
    Timeout,
    Version,
)
from .blocks import ALL_LANES, Block, Blocks, DType, Hash, Layer, Status, Tier
from .embedded import Embedded, find_program
from .manager import BlockManager, default_socket

__all__ = [
    "ALL_LANES",
    "Block",
    "BlockManager",
    "Blocks",
    "Busy",
    "Closed",
    "DType",
    "Embedded",
    "Forked",
    "Gone",
    "Hash",
    "Internal",
    "Invalid",
    "KvbmError",
    "Layer",
    "Limit",
    "Mismatch",
    "NoMemory",
    "NoSpace",
    "NotFound",
    "NotHeld",
    "NotPermitted",
    "Protocol",
    "Stale",
    "Status",
    "System",
    "Tier",
    "Timeout",
    "Version",
    "__version__",
    "default_socket",
    "find_program",
]
