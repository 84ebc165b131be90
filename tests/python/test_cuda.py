"""Blocks in a GPU's memory, as DLPack shows them: on the stand-in driver of tests/fakecuda, or, with KVBM_CUDA=real (`make check-gpu`), on a device.

A few calls of the driver write and read what the addresses show; where there is torch with CUDA it does so too.
"""

import ctypes
import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest

from tests.python.capsule import Consumer
from tests.python.case import BUILD, SMALL, SOURCE, WAIT, Daemon, Watched, _kvbm, forked, keys, kvbmd, wait_end

STANDIN = os.path.join(BUILD, "fakecuda")

if os.environ.get("KVBM_CUDA") != "real" and os.path.isdir(STANDIN) and STANDIN not in os.environ.get("LD_LIBRARY_PATH", ""):
    if not hasattr(sys, "orig_argv"):
        print("skipped: this Python cannot start itself again with the stand-in driver")
        sys.exit(77)
    path = ":".join(filter(None, (STANDIN, os.environ.get("LD_LIBRARY_PATH"))))  # which the loader reads at the start, and no more
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "LD_LIBRARY_PATH": path})

try:
    import torch
except ImportError:
    torch = None

CUDA = 2  # DLPack's number of it


class Driver:
    """Just enough of CUDA's driver API, in the primary context of device 0."""

    def __init__(self):
        library = ctypes.CDLL("libcuda.so.1")

        def find(name, version, *types):
            found = ctypes.c_void_p()
            if library.cuGetProcAddress_v2(name.encode(), ctypes.byref(found), version, ctypes.c_uint64(0), None):
                raise OSError(f"the driver has no {name}")
            return ctypes.CFUNCTYPE(ctypes.c_int, *types)(found.value)

        pointer, address, size = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t
        self.check(find("cuInit", 2000, ctypes.c_uint)(0))
        context = ctypes.c_void_p()
        self.check(find("cuDevicePrimaryCtxRetain", 7000, pointer, ctypes.c_int)(ctypes.addressof(context), 0))
        self.check(find("cuCtxSetCurrent", 4000, pointer)(context))
        self.to_device = find("cuMemcpyHtoD", 3020, address, ctypes.c_char_p, size)
        self.to_host = find("cuMemcpyDtoH", 3020, pointer, address, size)

    def check(self, result):
        if result:
            raise OSError(f"CUDA error {result}")

    def write(self, address, data):
        self.check(self.to_device(address, data, len(data)))

    def read(self, address, n):
        buffer = ctypes.create_string_buffer(n)
        self.check(self.to_host(ctypes.addressof(buffer), address, n))
        return buffer.raw


def ready():
    """The driver's few calls, or why there are none."""
    if not hasattr(_kvbm, "cuda_uuid"):
        return "this package was built without the CUDA toolkit"
    try:
        _kvbm.cuda_uuid(0)
        return Driver()
    except (kvbmd.NotFound, OSError) as error:
        return str(error)


if "FAKECUDA_DIR" not in os.environ:  # of no meaning to a real driver
    standin = tempfile.TemporaryDirectory(prefix="kvbmd-test-", dir="/dev/shm")
    os.environ["FAKECUDA_DIR"] = standin.name
driver = ready()
if isinstance(driver, str):
    print(f"skipped: {driver}")
    sys.exit(77)


class Cuda(Watched):
    FLAGS = ("--g1.size=16M", "--g1.region_size=2M")

    def check_nothing_left(self):
        gc.collect()
        self.assertEqual(_kvbm.live(), self.before[0])  # a driver keeps descriptors as it likes

    def open(self, **options):
        return super().open(**{"device": "cuda", "timeout": float(WAIT), **options})

    def store(self, bm, hashes, fill=1):
        blocks = bm.allocate_blocks(len(hashes))
        for i, block in enumerate(blocks):
            driver.write(block.data_ptr, bytes([(fill + i) % 256]) * block.nbytes)
        self.assertEqual(blocks.commit(hashes, hold=False), len(hashes))

    def test_capsules_say_on_which_device(self):
        bm, blocks = self.reserved()
        block, layer = blocks[0], blocks[0][1]
        self.assertEqual((bm.device, bm.device_id, block.device, block.device_id), ("cuda", 0, "cuda", 0))
        self.assertEqual((block.__dlpack_device__(), layer.__dlpack_device__()), ((CUDA, 0), (CUDA, 0)))
        for version in (None, (1, 0)):
            for view, shape in ((block, (2, 2, 4, 64)), (layer, (2, 4, 64))):
                consumer = Consumer(view.__dlpack__(max_version=version, stream=1, dl_device=(CUDA, 0)))
                t = consumer.tensor
                self.assertEqual((t.device_type, t.device_id, t.data, t.byte_offset), (CUDA, 0, view.data_ptr, 0))
                self.assertEqual((consumer.shape, consumer.flags), (shape, None if version is None else 0))
                consumer.delete()
        self.assertEqual(layer.data_ptr - block.data_ptr, 2048)
        self.assertEqual(block.data_ptr % 256, 0)

    def test_what_is_written_is_found_by_another_manager_and_read_in_place(self):
        bm, found = self.committed()
        again = self.open().match(keys(3))
        self.assertEqual((len(again), again[0].readonly, again[0].tiers & kvbmd.Tier.G1), (2, True, kvbmd.Tier.G1))
        consumer = Consumer(again[1].__dlpack__(max_version=(1, 0)))
        self.assertEqual((consumer.flags, driver.read(consumer.tensor.data, 4096)), (1, b"\2" * 4096))
        consumer.delete()
        with self.assertRaisesRegex(BufferError, "max_version"):
            again[0].__dlpack__()
        with self.assertRaises(BufferError):  # not every driver can map it read-only
            self.open(readonly=True).match(keys(1))[0].__dlpack__()
        self.assertEqual(len(found), 2)

    def test_another_process_reads_the_same_memory(self):
        bm, _ = self.committed()
        text = (
            "from tests.python.test_cuda import *\n"
            "bm = kvbmd.BlockManager(**SMALL, device='cuda', socket=sys.argv[1], namespace=sys.argv[2])\n"
            "found = bm.match(keys(2))\n"
            "print([driver.read(b.data_ptr, 4096) == bytes([1 + i]) * 4096 for i, b in enumerate(found)])\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", text, self.daemon.socket, bm.namespace],
            env={**os.environ, "PYTHONPATH": os.path.join(BUILD, "python")}, cwd=SOURCE, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        self.assertEqual((result.returncode, result.stdout), (0, "[True, True]\n"), result.stderr)

    def test_what_cannot_be_is_refused(self):
        _, blocks = self.reserved()
        block = blocks[0]
        for arguments in (dict(stream=0), dict(stream=-2), dict(stream="x"), dict(dl_device=(1, 0)), dict(dl_device=(CUDA, 1)), dict(copy=True)):
            with self.assertRaises(BufferError, msg=str(arguments)):
                block.__dlpack__(**arguments)
        for arguments in (dict(stream=None), dict(stream=-1), dict(stream=2), dict(stream=2**63), dict(dl_device=(CUDA, 0)), dict(copy=False)):
            block.__dlpack__(**arguments)
        with self.assertRaisesRegex(BufferError, "GPU 0: use DLPack"):
            memoryview(block)
        for options in (dict(device="cuda:99"), dict(device="cuda", device_id=99), dict(device="cuda:1", device_id=2), dict(device="cuda:x"), dict(device="tpu")):
            with self.assertRaises(ValueError, msg=str(options)):
                self.open(**options)
        with self.assertRaises(ValueError):
            self.open(device="cpu", embedded=True, socket=None, device_num_blocks=4)
        self.assertEqual(self.views(), 0)

    def test_released_blocks_stay_until_the_last_tensor_goes(self):
        bm, found = self.committed()
        consumer = Consumer(found[0].__dlpack__(max_version=(1, 0)))
        del found
        gc.collect()
        self.assertEqual((self.views(), self.held()), (1, 1))
        bm.close()
        self.assertEqual(driver.read(consumer.tensor.data, 4096), b"\1" * 4096)
        consumer.delete()
        self.assertEqual(_kvbm.live(), self.before[0])

    def test_what_is_committed_goes_to_host_memory_and_comes_back(self):
        bm, found = self.committed()
        found.release()
        host = super().open(namespace=bm.namespace)
        end = time.monotonic() + WAIT
        while host.peek(keys(2)) < 2 and time.monotonic() < end:
            bm.ping()
        with host.match(keys(2)) as copies:
            self.assertEqual([bytes(b) for b in copies], [b"\1" * 4096, b"\2" * 4096])
        with host.allocate_blocks(hashes=keys(1, 50)) as blocks:
            memoryview(blocks[0]).cast("B")[:] = b"h" * 4096
            blocks.commit()
        with bm.onboard(keys(1, 50)) as up:
            self.assertEqual((up.status, up[0].device), ([kvbmd.Status.DONE], "cuda"))
            self.assertEqual(driver.read(up[0].data_ptr, 4096), b"h" * 4096)

    def test_a_private_daemon_lends_what_was_asked_for(self):
        for count in (1, 9, 40):
            with kvbmd.BlockManager(**SMALL, device="cuda", embedded=True, host_num_blocks=8, device_num_blocks=count, timeout=WAIT) as bm:
                blocks = bm.allocate_blocks(count)
                self.assertEqual(blocks[-1].__dlpack_device__(), (CUDA, 0))

    def test_a_daemon_that_dies_under_a_live_tensor(self):
        daemon = Daemon("--g1.size=16M", "--g1.region_size=2M", size="16M")
        self.addCleanup(daemon.remove)
        bm = self.open(socket=daemon.socket)
        self.store(bm, keys(2))
        found = bm.match(keys(2))
        consumer = Consumer(found[0].__dlpack__(max_version=(1, 0)))
        pid = daemon.pid
        daemon.end(signal.SIGKILL)
        self.assertTrue(wait_end(pid))
        self.assertEqual(len(bm.match(keys(2))), 0)
        with self.assertRaises(kvbmd.Gone):
            bm.allocate_blocks(1)
        consumer.delete()  # its memory was the daemon's: what reads it then is CUDA's affair
        found.release()
        bm.close()

    def test_a_forked_child(self):
        bm, found = self.committed()
        consumer = Consumer(found[0].__dlpack__(max_version=(1, 0)))

        def child():
            with self.assertRaises(kvbmd.Forked):
                found[0].__dlpack__(max_version=(1, 0))
            consumer.delete()
            found.release()

        self.assertEqual(forked(child), 0)
        self.assertEqual(driver.read(consumer.tensor.data, 4096), b"\1" * 4096)
        self.assertEqual(bm.drop(keys(1))[1], 1)
        consumer.delete()


if torch and torch.cuda.is_available():

    class Torch(Cuda):
        """The same with torch's CUDA loaded, and seen by it."""

        def test_torch_sees_the_same_bytes(self):
            bm, blocks = self.reserved(2)
            tensor = torch.from_dlpack(blocks[0])
            self.assertEqual((tensor.device, tensor.data_ptr(), tuple(tensor.shape)), (torch.device("cuda", 0), blocks[0].data_ptr, (2, 2, 4, 64)))
            tensor.fill_(2.5)
            torch.cuda.synchronize()
            self.assertEqual(driver.read(blocks[0].data_ptr, 4), b"\0\0\x20\x40")
            del tensor
            blocks.commit(keys(2))
            again = torch.from_dlpack(bm.match(keys(1))[0])
            self.assertEqual(float(again.sum()), 2.5 * 1024)


if __name__ == "__main__":
    unittest.main()
