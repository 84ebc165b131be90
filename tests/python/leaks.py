"""What test_leaks.py runs under valgrind: each way of getting, exporting and losing blocks, a few times, and what is refused."""

import gc
import os
import sys

from tests.python.capsule import Consumer
from tests.python.case import SMALL, _kvbm, forked, keys, kvbmd


def use(bm, start):
    hashes = keys(3, start)
    blocks = bm.allocate_blocks(3)
    Consumer(blocks[0].__dlpack__()).delete()
    blocks[1].__dlpack__()
    with memoryview(blocks[2]) as view:
        view.cast("B")[:] = b"x" * 4096
        try:
            blocks.commit(hashes)
        except BufferError:
            pass
    blocks.commit(hashes)
    found = bm.match(hashes)
    late = Consumer(found[0][1].__dlpack__(max_version=(1, 0)))
    found[1].__dlpack__(max_version=(1, 0), copy=True)
    found.release()
    for call in (lambda: found[0], lambda: bm.match([b"short"]), lambda: bm.allocate_blocks(10**9), lambda: bm.info("nonsense")):
        try:
            call()
        except (kvbmd.KvbmError, ValueError):
            pass
    bm.stat(hashes)
    bm.allocate_blocks(2)
    bm.allocate_blocks(hashes=keys(4, start))
    late.delete()
    return blocks


def main():
    before = _kvbm.live()
    for by_socket in (False, True):
        bm = kvbmd.BlockManager(**SMALL, socket=sys.argv[1], by_socket=by_socket)
        for i in range(3):
            use(bm, 10 * i + 1000 * by_socket)
        view = memoryview(bm.match(keys(1, 1000 * by_socket))[0])
        assert forked(lambda: None) == 0
        bm.close()
        view.release()
    for _ in range(2):
        bm = kvbmd.BlockManager(**SMALL, embedded=True, host_num_blocks=8)
        use(bm, 0)
        del bm
    try:
        kvbmd.BlockManager(**SMALL, socket="/nonexistent")
    except kvbmd.System:
        pass
    gc.collect()
    assert _kvbm.live() == before, (_kvbm.live(), before)
    print("done", os.getpid(), flush=True)


main()
