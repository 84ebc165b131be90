"""The vLLM connector with its pages in a GPU's memory, which is the stand-in driver's: the daemon copies them."""

import ctypes
import os
import tempfile
import unittest
from types import SimpleNamespace

from tests.python.case import BUILD, Case

from tests.python import vllm_sim
from tests.python.test_vllm import prompt, stored

STANDIN = os.path.join(BUILD, "fakecuda", "libcuda.so.1")


class Driver:
    """As much of an engine's CUDA as the test needs."""

    def __init__(self):
        self.cu = ctypes.CDLL("libcuda.so.1")
        context, device = ctypes.c_void_p(), ctypes.c_int()
        self("cuInit", 0)
        self("cuDeviceGet", ctypes.byref(device), 0)
        self("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self("cuCtxSetCurrent", context)

    def __call__(self, name, *args):
        code = getattr(self.cu, name)(*args)
        assert code == 0, f"{name}: {code}"


class DeviceMemory:
    """Bytes of a device, read and written by slices."""

    def __init__(self, driver, n):
        address = ctypes.c_uint64()
        driver("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(n))
        self.driver, self.address = driver, address.value
        self[0:n] = bytes(n)

    def __del__(self):
        self.driver("cuMemFree_v2", ctypes.c_uint64(self.address))

    def __getitem__(self, part):
        data = ctypes.create_string_buffer(part.stop - part.start)
        self.driver("cuMemcpyDtoH_v2", data, ctypes.c_uint64(self.address + part.start), ctypes.c_size_t(len(data)))
        return data.raw

    def __setitem__(self, part, data):
        self.driver("cuMemcpyHtoD_v2", ctypes.c_uint64(self.address + part.start), bytes(data), ctypes.c_size_t(len(data)))


@unittest.skipUnless(os.path.exists(STANDIN), "no stand-in driver (CUDA toolkit)")
class DevicePages(Case):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="kvbmd-fakecuda-", dir="/dev/shm")
        cls.addClassCleanup(folder.cleanup)
        for name, value in (("FAKECUDA_DIR", folder.name), ("LD_LIBRARY_PATH", os.path.dirname(STANDIN)), ("FAKECUDA_DELAY_US", "50")):
            before = os.environ.get(name)
            os.environ[name] = value
            cls.addClassCleanup(lambda name=name, before=before: os.environ.pop(name) if before is None else os.environ.__setitem__(name, before))
        # By path for this process, which was begun without the variable; by its soname it is found afterwards.
        cls.library = ctypes.CDLL(STANDIN)
        cls.driver = Driver()
        super().setUpClass()

    def setUp(self):
        saved = vllm_sim.Tensor.allocate, vllm_sim.Tensor.device
        vllm_sim.Tensor.allocate = staticmethod(lambda n: DeviceMemory(self.driver, n))
        vllm_sim.Tensor.device = SimpleNamespace(type="cuda")
        self.addCleanup(lambda: (setattr(vllm_sim.Tensor, "allocate", staticmethod(saved[0])), setattr(vllm_sim.Tensor, "device", saved[1])))
        super().setUp()

    def engine(self, **options):
        engine = vllm_sim.Engine(self.daemon.socket, name=self.id(), **options)
        self.addCleanup(engine.close)
        return engine

    def test_the_prefix_of_another_engine(self):
        for layout in ("plain", "k-and-v", "blocks-first", "heads-first"):
            with self.subTest(layout):
                text = prompt(1, 50)
                one, other = self.engine(layout=layout), self.engine(layout=layout)
                one.generate(text)
                stored(one)
                self.assertEqual(one.external, 0)
                other.generate(text)  # each token that it attends to is compared
                self.assertEqual(other.external, 48)

    def test_the_daemon_goes_and_comes_back(self):
        text = prompt(2, 50)
        engine = self.engine()
        engine.generate(text)
        stored(engine)
        self.daemon.end(9)
        self.daemon.start()
        for part in engine.connectors:
            while not self._alive(part._link):
                pass
        another = self.engine()
        another.generate(prompt(3, 50))
        stored(another)
        engine.generate(prompt(3, 50))  # by a new adoption, in a new session
        self.assertEqual(engine.external, 48)

    @staticmethod
    def _alive(link):
        try:
            link.session.ping()
            return True
        except Exception:
            return False

    def test_memory_without_a_handle(self):
        saved = vllm_sim.Tensor.allocate
        vllm_sim.Tensor.allocate = staticmethod(lambda n: (ctypes.c_ubyte * n)())
        try:
            with self.assertLogs("kvbmd", "ERROR") as logs:
                engine = self.engine()
        finally:
            vllm_sim.Tensor.allocate = saved
        self.assertIn("no handle of the pages", "".join(logs.output))
        vllm_sim.Tensor.device = SimpleNamespace(type="cpu")
        engine.generate(prompt(4, 20))
        self.assertEqual(engine.external, 0)


if __name__ == "__main__":
    unittest.main()
