"""Stores a prefix of four blocks, finds it again and reads it where it lies.  A second run finds what the first one stored."""

import kvbmd
import numpy as np

bm = kvbmd.BlockManager(num_layers=2, page_size=16, inner_dim=128, namespace="quickstart.py")
hashes = [0x1000, 0x2000, 0x3000, 0x4000]  # your engine's own: bytes, int or hex, of a block and all before it

found = bm.match(hashes)  # the longest prefix that is here, held until it is released or garbage
for block, want in zip(found, hashes):
    kv = np.asarray(block)  # no copy: (layers, K and V, tokens, elements), read-only
    assert kv.shape == (2, 2, 16, 128) and (kv == np.float16(want)).all()

missing = hashes[len(found) :]
blocks = bm.allocate_blocks(len(missing))  # a slot for each block that has to be computed
for block, value in zip(blocks, missing):
    np.asarray(block)[:] = value  # your KV data; torch.from_dlpack(block), or of one layer, block[0], sees the same bytes
blocks.commit(missing, parent=hashes[len(found) - 1] if found else None)  # now every process finds them

print(f"{len(found)} found, {len(blocks)} stored")
bm.close()
