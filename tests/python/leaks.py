"""What test_leaks.py runs under valgrind: each way of getting, exporting and losing blocks, a few times, and each thing that is refused."""

import contextlib
import gc
import os
import select
import signal
import sys

from tests.python.capsule import Consumer
from tests.python.case import SMALL, WAIT, _kvbm, keys, kvbmd


@contextlib.contextmanager
def refused(*errors):
    """Must raise one of them, and what the traceback holds goes."""
    try:
        yield
    except errors:
        return
    raise AssertionError(f"none of {errors}")


def forked(body):
    """Runs body in a child, and whether it returned.  The child ends as another program: valgrind would list all of Python's memory, as lost by it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            body()
            os.write(writing, b"returned")
        finally:
            os.execv("/bin/true", ["true"])
    os.close(writing)
    os.waitpid(pid, 0)
    with os.fdopen(reading, "rb") as words:
        return words.read() == b"returned"


def use(bm, start):
    hashes = keys(3, start)
    blocks = bm.allocate_blocks(3)
    Consumer(blocks[0].__dlpack__()).delete()
    blocks[1].__dlpack__()
    with memoryview(blocks[2]) as view:
        view.cast("B")[:] = b"x" * 4096
        with refused(BufferError):
            blocks.commit(hashes)
    blocks.commit(hashes)
    found = bm.match(hashes)
    late = Consumer(found[0][1].__dlpack__(max_version=(1, 0)))
    found[1].__dlpack__(max_version=(1, 0), copy=True)
    found.release()
    bm.stat(hashes)
    bm.allocate_blocks(2)
    bm.allocate_blocks(hashes=keys(4, start))
    late.delete()
    return blocks


def wrong_arguments(bm):
    for hashes, error in (
        ([b"short"], ValueError), ([b"x" * 17], ValueError), (["zz" * 16], ValueError), ([-1], ValueError), ([1 << 128], ValueError),
        ([1.5], TypeError), ([None], TypeError), ([True], TypeError), ([keys(1)[0], [1]], TypeError), (b"x" * 16, TypeError), (7, TypeError),
        ([1] * 16385, ValueError),
    ):  # fmt: skip
        for call in (bm.match, bm.stat, lambda h: bm.allocate_blocks(hashes=h)):
            with refused(error):
                call(hashes)
    with refused(kvbmd.Limit, kvbmd.NoSpace, ValueError):
        bm.allocate_blocks(10**9)
    with refused(kvbmd.KvbmError):
        bm.info("nonsense")
    block = bm.allocate_blocks(1)[0]
    for arguments in (dict(stream=1), dict(dl_device=(2, 0))):
        with refused(BufferError):
            block.__dlpack__(**arguments)
    for arguments in (dict(max_version=1), dict(max_version=("a", 0)), dict(copy="yes"), dict(nonsense=1)):
        with refused(TypeError):
            block.__dlpack__(**arguments)


def used_up_lease(bm):
    blocks = bm.allocate_blocks(2)
    block, layer = blocks[0], blocks[0][1]
    blocks.release()
    blocks.release()
    for call in (lambda: memoryview(block), layer.__dlpack__, lambda: block.data_ptr, lambda: block[0], lambda: blocks.commit(keys(2))):
        with refused(kvbmd.NotHeld):
            call()
    blocks = bm.allocate_blocks(1)
    blocks.commit(keys(1, 500))
    with refused(ValueError):
        blocks.commit(keys(1, 500))
    with refused(BufferError):
        blocks[0].__dlpack__()


def second_consumer(bm):
    blocks = bm.allocate_blocks(1)
    for version in (None, (1, 0)):
        capsule = blocks[0].__dlpack__(max_version=version)
        one = Consumer(capsule)
        with refused(ValueError):
            Consumer(capsule)
        del capsule
        two = Consumer(blocks[0].__dlpack__(max_version=version))
        one.delete()
        two.delete()


def closed_client(bm):
    blocks, view = bm.match(keys(1)), memoryview(bm.match(keys(1))[0])
    writing = Consumer(bm.allocate_blocks(1)[0].__dlpack__())
    bm.close()
    bm.close()
    for call in (bm.ping, bm.dispatch, lambda: bm.match(keys(1)), lambda: bm.allocate_blocks(1), lambda: bm.stat(keys(1)), lambda: bm.info("status")):
        with refused(kvbmd.Closed):
            call()
    with refused(kvbmd.NotHeld):
        blocks[0]
    blocks.release()
    view.release()
    writing.delete()


def fork(bm):
    found, blocks = bm.match(keys(1)), bm.allocate_blocks(1)
    capsule, consumer = found[0].__dlpack__(max_version=(1, 0)), Consumer(bm.allocate_blocks(1)[0].__dlpack__())

    def child():
        for call in (bm.ping, lambda: bm.match(keys(1)), lambda: bm.allocate_blocks(1), lambda: blocks.commit(keys(1)), lambda: memoryview(found[0])):
            with refused(kvbmd.Forked):
                call()
        found.release()
        consumer.delete()
        bm.close()

    assert forked(child)
    assert forked(lambda: None)
    consumer.delete()
    del capsule


def daemon_dies():
    bm = kvbmd.BlockManager(**SMALL, embedded=True, host_num_blocks=8)
    use(bm, 0)
    found, blocks = bm.match(keys(2)), bm.allocate_blocks(1)
    consumer, view, writing = Consumer(found[0].__dlpack__(max_version=(1, 0))), memoryview(found[1]), memoryview(blocks[0])
    os.kill(bm.embedded.pid, signal.SIGKILL)
    assert select.select([bm.embedded.child.fileno()], [], [], WAIT)[0]
    assert len(bm.match(keys(2))) == 0
    for call in (bm.ping, lambda: bm.allocate_blocks(1), lambda: bm.stat(keys(1))):
        with refused(kvbmd.Gone):
            call()
    with refused(BufferError):
        blocks.commit(keys(1))
    writing.cast("B")[:] = view.cast("B")
    writing.release()
    with refused(kvbmd.Gone):
        blocks.commit(keys(1))
    found.release()
    assert consumer.bytes(4096) and bytes(view)
    bm.close()
    consumer.delete()
    view.release()


def main():
    before = _kvbm.live()
    for by_socket in (False, True):
        bm = kvbmd.BlockManager(**SMALL, socket=sys.argv[1], by_socket=by_socket)
        for i in range(2):
            use(bm, 10 * i + 1000 * by_socket)
        bm.allocate_blocks(1).commit(keys(1))
        wrong_arguments(bm)
        used_up_lease(bm)
        second_consumer(bm)
        fork(bm)
        closed_client(bm)
    for _ in range(2):
        bm = kvbmd.BlockManager(**SMALL, embedded=True, host_num_blocks=8)
        use(bm, 0)
        del bm
    daemon_dies()
    with refused(kvbmd.System):
        kvbmd.BlockManager(**SMALL, socket="/nonexistent")
    gc.collect()
    assert _kvbm.live() == before, (_kvbm.live(), before)
    print("done", os.getpid(), flush=True)


main()
