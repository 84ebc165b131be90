#!/usr/bin/env python3
"""What LMCache's raw-block L2 adapter does with io_uring on a file: bench_nvme asks it for rounds, beside fio and the tier.

    lmcache_io.py FILE BYTES      the file is there, of at least that size

Says "ready VERSION", or why not.  Then for each line "store|load BLOCK DEPTH MILLISECONDS": "GB/s CPU-us-a-block".  DEPTH objects are under way in
two tasks, in memory on huge pages that is registered with the ring.  When the file is full, the oldest objects are deleted.
"""

import ctypes
import importlib.metadata
import logging
import mmap
import os
import resource
import select
import sys
import time

TASKS = 2
MEMORY = 64 << 20
META = 1 << 20


def imports():
    logging.disable(logging.WARNING)
    os.environ.setdefault("LMCACHE_LOG_LEVEL", "ERROR")
    os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")
    import torch
    from lmcache.v1.distributed.api import ObjectKey
    from lmcache.v1.distributed.internal_api import L1MemoryDesc
    from lmcache.v1.distributed.l2_adapters import raw_block_l2_adapter as adapter
    from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj
    import lmcache_rust_raw_block_io  # noqa: F401

    class Names:
        pass

    names = Names()
    for name, value in list(locals().items()):
        setattr(names, name, value)
    return names


class Memory:
    def __init__(self, lm):
        self.map = mmap.mmap(-1, MEMORY + (2 << 20))
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        skip = -base % (2 << 20)
        self.address = base + skip
        libc = ctypes.CDLL(None, use_errno=True)
        libc.madvise(ctypes.c_void_p(self.address), ctypes.c_size_t(MEMORY), 14)  # MADV_HUGEPAGE
        ctypes.memset(self.address, 0x5A, MEMORY)
        self.tensor = lm.torch.frombuffer(self.map, dtype=lm.torch.uint8, offset=skip, count=MEMORY)


class Store:
    def __init__(self, lm, path, size, memory, block, depth):
        config = lm.adapter.RawBlockL2AdapterConfig(
            device_path=path,
            slot_bytes=block + 4096,
            capacity_bytes=size,
            meta_total_bytes=META,
            meta_enable_periodic=False,
            load_checkpoint_on_init=False,
            io_engine="io_uring",
        )
        desc = lm.L1MemoryDesc(
            ptr=memory.address, size=MEMORY, align_bytes=4096, stable_registration_size=MEMORY
        )
        self.lm, self.block, self.depth = lm, block, depth
        self.adapter = lm.adapter.RawBlockL2Adapter(config, desc)
        self.objects = [self.object(memory, i) for i in range(depth)]
        self.slots = (size - META) // (block + 4096) - depth
        self.first = self.next = self.read = 0

    def object(self, memory, i):
        shape = self.lm.torch.Size([self.block])
        meta = self.lm.MemoryObjMetadata(
            shape=shape,
            dtype=self.lm.torch.uint8,
            address=i * self.block,
            phy_size=self.block,
            ref_count=1,
            fmt=self.lm.MemoryFormat.BINARY,
        )
        return self.lm.TensorMemoryObj(memory.tensor[i * self.block : (i + 1) * self.block], meta, None)

    def key(self, number):
        return self.lm.ObjectKey(chunk_hash=number.to_bytes(32, "little"), model_name="bench", kv_rank=0)

    def keys(self, store, n):
        if store:
            keys = [self.key(i) for i in range(self.next, self.next + n)]
            self.next += n
            if self.next - self.first > self.slots:
                self.adapter.delete([self.key(i) for i in range(self.first, self.first + n)])
                self.first += n
            return keys
        if self.read < self.first or self.read + n > self.next:
            self.read = self.first
        keys = [self.key(i) for i in range(self.read, self.read + n)]
        self.read += n
        return keys

    def begin(self, store, group):
        keys = self.keys(store, len(group))
        if store:
            return self.adapter.submit_store_task(keys, group)
        return self.adapter.submit_load_task(keys, group)

    def ended(self, store, running):
        """Of the tasks that run, those that have ended."""
        if store:
            done = self.adapter.pop_completed_store_tasks()
            for result in done.values():
                assert result.is_successful(), "a store failed"
            return list(done)
        done = []
        for task, group in running.items():
            bitmap = self.adapter.query_load_result(task)
            if bitmap is not None:
                assert bitmap.popcount() == len(group), "a load failed"
                done.append(task)
        return done

    def round(self, store, ms):
        fd = self.adapter.get_store_event_fd() if store else self.adapter.get_load_event_fd()
        each = self.depth // TASKS
        blocks = 0
        start, cpu = time.monotonic(), cpu_seconds()
        end = start + ms / 1e3
        running = {}
        for i in range(TASKS):
            group = self.objects[i * each : (i + 1) * each]
            running[self.begin(store, group)] = group
        while running:
            select.select([fd], [], [])
            os.read(fd, 8)
            for task in self.ended(store, running):
                group = running.pop(task)
                blocks += len(group)
                if time.monotonic() < end:
                    running[self.begin(store, group)] = group
        seconds = time.monotonic() - start
        return blocks * self.block / 1e9 / seconds, (cpu_seconds() - cpu) * 1e6 / blocks

    def close(self):
        self.adapter.close()


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main():
    path, size = sys.argv[1], int(sys.argv[2])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # others say things, too
    try:
        lm = imports()
    except Exception as e:  # noqa: BLE001
        print(f"no {e}".splitlines()[0], file=out, flush=True)
        return 0
    memory, store = Memory(lm), None
    print("ready", importlib.metadata.version("lmcache"), file=out, flush=True)
    for line in sys.stdin:
        way, block, depth, ms = line.split()
        block, depth = int(block), int(depth)
        if not store or (store.block, store.depth) != (block, depth):
            if store:
                store.close()
            store = Store(lm, path, size, memory, block, depth)
            while store.next < store.slots:  # all of it once
                store.round(True, 50)
        rate, cpu = store.round(way == "store", int(ms))
        print(f"{rate:.6f} {cpu:.3f}", file=out, flush=True)
    if store:
        store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
