"""The same memory, seen by PyTorch: `make check-torch PYTHON=...`, with an interpreter that has torch and numpy."""

import gc
import os
import signal
import subprocess
import sys
import threading
import unittest

from tests.python.case import BUILD, Daemon, Watched, _kvbm, forked, from_dlpack, keys, kvbmd, numpy

try:
    import torch
except ImportError as error:
    print(f"skipped: {error}: name an interpreter that has it, make check-torch PYTHON=...")
    sys.exit(77)

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)


def run_python(text, *arguments):
    """A process of its own, for what must not happen to us."""
    environment = {**os.environ, "PYTHONPATH": os.path.join(BUILD, "python"), "KVBM_BUILD": BUILD}
    return subprocess.run([sys.executable, "-c", text, *arguments], env=environment, capture_output=True, text=True, timeout=240, check=False)


class InPlace(Watched):
    def test_torch_and_numpy_see_the_same_bytes_without_a_copy(self):
        bm, blocks = self.reserved(2)
        for view in (blocks[0], blocks[1][1]):
            tensor, array = torch.from_dlpack(view), from_dlpack(view)
            self.assertEqual((tensor.data_ptr(), array.ctypes.data), (view.data_ptr, view.data_ptr))
            self.assertEqual((tuple(tensor.shape), array.shape), (view.shape, view.shape))
            self.assertTrue(tensor.is_contiguous())
            tensor.copy_(torch.arange(tensor.numel(), dtype=torch.float32).view(tensor.shape))
            self.assertEqual(array.ravel()[-1], tensor.numel() - 1)
            numpy.asarray(view)[0, 0] = -1
            self.assertEqual(float(tensor[0, 0].max()), -1)
            del tensor, array
        blocks.commit(keys(2))
        found = bm.match(keys(2))
        for view in (found[0], found[1][1]):
            tensor, array = torch.from_dlpack(view), from_dlpack(view)
            self.assertEqual((tensor.data_ptr(), array.ctypes.data), (view.data_ptr, view.data_ptr))
            self.assertEqual((bytes(tensor.numpy().tobytes()), array.flags.writeable), (array.tobytes(), False))
            self.assertEqual(float(tensor[0, 0].max()), -1)

    def test_what_one_process_stores_another_one_sees(self):
        bm, blocks = self.reserved(dtype="bf16")
        torch.from_dlpack(blocks[0]).copy_(torch.arange(1024, dtype=torch.float32).view(2, 2, 4, 64))
        blocks.commit(keys(1))
        result = run_python(
            "import kvbmd, sys, torch\n"
            "bm = kvbmd.BlockManager(num_layers=2, page_size=4, inner_dim=64, dtype=torch.bfloat16, socket=sys.argv[1], namespace=sys.argv[2])\n"
            "tensor = torch.from_dlpack(bm.match([bytes.fromhex(sys.argv[3])])[0])\n"
            "print(torch.equal(tensor, torch.arange(1024.0).view(2, 2, 4, 64).bfloat16()))\n",
            self.daemon.socket, bm.namespace, keys(1)[0].hex(),
        )
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "True\n", ""))

    def test_each_dtype_is_torchs(self):
        for dtype in DTYPES:
            bm = self.open(dtype=dtype, namespace=str(dtype))
            blocks = bm.allocate_blocks(1)
            tensor = torch.from_dlpack(blocks[0])
            self.assertEqual((tensor.dtype, tensor.data_ptr(), tuple(tensor.shape)), (dtype, blocks[0].data_ptr, (2, 2, 4, 64)))
            want = torch.linspace(-3, 3, 1024).view(2, 2, 4, 64).to(dtype)
            tensor.copy_(want)
            del tensor
            blocks.commit(keys(1))
            with bm.match(keys(1)) as found:
                tensor = torch.from_dlpack(found[0])
                self.assertTrue(torch.equal(tensor.view(torch.uint8), want.view(torch.uint8)), dtype)
                self.assertEqual(bytes(found[0]), want.view(torch.uint8).numpy().tobytes())
                del tensor

    def test_blocks_of_bytes_are_uint8(self):
        _, blocks = self.reserved(dtype=None, block_bytes=4096)
        tensor = torch.from_dlpack(blocks[0])
        self.assertEqual((tensor.dtype, tuple(tensor.shape)), (torch.uint8, (2, 2048)))
        tensor.view(torch.bfloat16).fill_(1)  # as an engine with a layout of its own does
        self.assertEqual(bytes(blocks[0])[:2], b"\x80\x3f")

    def test_numbers_and_devices_of_torch(self):
        bm = self.open(dtype=torch.float32, device=torch.device("cpu"))
        hashes = torch.tensor([3, 2**40])
        bm.allocate_blocks(2).commit(list(hashes))
        self.assertEqual(bm.peek([3, 2**40]), 2)
        for bad in ([torch.tensor(1.5)], [torch.tensor([1, 2])]):
            with self.assertRaises(TypeError):
                bm.match(bad)
        if not torch.cuda.is_available():
            with self.assertRaises((kvbmd.NotFound, NotImplementedError)):
                self.open(device=torch.device("cuda", 0))

    def test_capsules_of_both_forms(self):
        bm, blocks = self.reserved()
        for version in (None, (1, 0), (1, 3)):
            tensor = torch.utils.dlpack.from_dlpack(blocks[0].__dlpack__(max_version=version))
            self.assertEqual((tensor.data_ptr(), blocks[0].views), (blocks[0].data_ptr, 1))
            del tensor
            self.assertEqual(blocks[0].views, 0)

    def test_a_capsule_is_for_one_consumer(self):
        _, blocks = self.reserved()
        for version in (None, (1, 0)):
            capsule = blocks[0].__dlpack__(max_version=version)
            tensor = torch.utils.dlpack.from_dlpack(capsule)
            with self.assertRaises((RuntimeError, BufferError)):
                torch.utils.dlpack.from_dlpack(capsule)
            del capsule
            tensor.fill_(2)
            self.assertEqual((blocks[0].views, bytes(blocks[0])[:4]), (1, b"\0\0\0\x40"))
            del tensor
            self.assertEqual(blocks[0].views, 0)

    def test_a_copy_holds_nothing(self):
        _, found = self.committed()
        for tensor in (torch.utils.dlpack.from_dlpack(found[0].__dlpack__(copy=True)), torch.from_dlpack(found[0]).clone()):
            self.assertEqual(self.views(), 0)
            tensor.fill_(9)
            self.assertEqual(bytes(found[0]), b"\1" * 4096)

    def test_torch_asks_for_copies_and_devices(self):
        _, found = self.committed()
        try:
            tensor = torch.from_dlpack(found[0], device="cpu", copy=True)
        except TypeError:
            self.skipTest("this torch has no such arguments")
        self.assertNotEqual(tensor.data_ptr(), found[0].data_ptr)
        self.assertEqual(torch.from_dlpack(found[0], device="cpu", copy=False).data_ptr(), found[0].data_ptr)
        with self.assertRaises((BufferError, RuntimeError, ValueError, AssertionError)):
            torch.from_dlpack(found[0], device="cuda")
        del tensor

    def test_memory_mapped_readonly_faults_on_a_write(self):
        bm, _ = self.committed()
        result = run_python(
            "import kvbmd, resource, sys, torch\n"
            "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
            "bm = kvbmd.BlockManager(num_layers=2, page_size=4, inner_dim=64, dtype='fp32', socket=sys.argv[1], namespace=sys.argv[2], readonly=True)\n"
            "tensor = torch.from_dlpack(bm.match([bytes.fromhex(sys.argv[3])])[0])\n"
            "print(bytes(tensor.numpy().tobytes()) == b'\\1' * 4096, flush=True)\n"
            "tensor.fill_(0)\n",
            self.daemon.socket, bm.namespace, keys(1)[0].hex(),
        )
        self.assertEqual(result.stdout, "True\n")
        self.assertNotEqual(result.returncode, 0)
        self.assertEqual(bytes(bm.match(keys(1))[0]), b"\1" * 4096)


class Holding(Watched):
    def test_a_part_of_a_tensor_keeps_the_block(self):
        bm, found = self.committed()
        tensor = torch.from_dlpack(found[0])[0].transpose(0, 1)[1:, :, ::2]
        found.release()
        del found
        gc.collect()
        self.assertEqual((self.views(), self.held(), bm.drop(keys(1))), (1, 1, (0, 1)))
        array = tensor.numpy()
        del tensor
        self.assertEqual((self.views(), set(array.tobytes())), (1, {1}))
        del array
        self.assertEqual((self.views(), self.held(), bm.drop(keys(1))), (0, 0, (1, 0)))

    def test_many_tensors_and_none_is_left(self):
        _, found = self.committed()
        tensors = [torch.from_dlpack(found[i % 2]) for i in range(1000)]
        self.assertEqual((self.views(), found[0].views), (1000, 500))
        del tensors
        self.assertEqual(self.views(), 0)

    def test_the_last_reference_goes_in_a_thread_of_torchs(self):
        """Autograd's threads drop what was saved for backward, without the GIL."""
        bm, found = self.committed()
        weight = torch.ones(2, 2, 4, 64, requires_grad=True)
        products = [(weight * torch.from_dlpack(found[i % 2])).sum() for i in range(50)]
        found.release()
        self.assertEqual(self.held(), 2)
        threads = [threading.Thread(target=lambda part: [p.backward() for p in part], args=(products[i::4],)) for i in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        del products, threads
        gc.collect()
        self.assertEqual((self.views(), self.held()), (0, 0))
        self.assertGreater(float(weight.grad.sum()), 0)

    def test_tensors_that_can_be_written_are_not_committed(self):
        bm, blocks = self.reserved(2)
        tensor = torch.from_dlpack(blocks[1][0])
        with self.assertRaisesRegex(BufferError, "block 1 has 1 live"):
            blocks.commit(keys(2))
        tensor.fill_(1)
        del tensor
        self.assertEqual(blocks.commit(keys(2)), 2)

    def test_a_tensor_outlives_the_client(self):
        bm, found = self.committed()
        tensor, writing = torch.from_dlpack(found[1]), torch.from_dlpack(bm.allocate_blocks(1)[0])
        bm.close()
        with self.assertRaises(kvbmd.NotHeld):
            torch.from_dlpack(found[0])
        self.assertEqual(bytes(tensor.numpy().tobytes()), b"\2" * 4096)
        writing.fill_(1)
        del tensor, writing
        gc.collect()
        self.assertEqual(_kvbm.live(), self.before[0])

    def test_a_released_block_makes_no_tensor(self):
        _, found = self.committed()
        block, layer = found[0], found[1][0]
        found.release()
        for view in (block, layer):
            with self.assertRaises(kvbmd.NotHeld):
                torch.from_dlpack(view)

    def test_garbage_in_a_circle(self):
        _, found = self.committed()
        circle = [torch.from_dlpack(found[0])]
        circle.append(circle)
        del circle
        gc.collect()
        self.assertEqual(self.views(), 0)


class Deaths(Watched):
    def test_a_daemon_that_dies_under_live_tensors(self):
        daemon = Daemon(size="16M")
        self.addCleanup(daemon.remove)
        bm = self.open(socket=daemon.socket)
        self.store(bm, keys(2))
        found, blocks = bm.match(keys(2)), bm.allocate_blocks(1)
        tensor, writing = torch.from_dlpack(found[0]), torch.from_dlpack(blocks[0])
        daemon.end(signal.SIGKILL)
        self.assertEqual(bytes(tensor.numpy().tobytes()), b"\1" * 4096)
        writing.fill_(3)
        self.assertEqual(float(writing.sum()), 3.0 * 1024)
        self.assertEqual(len(bm.match(keys(2))), 0)
        with self.assertRaises(kvbmd.Gone):
            bm.allocate_blocks(1)
        daemon.start()
        bm.ping()
        self.store(bm, keys(2), fill=7)
        again = torch.from_dlpack(bm.match(keys(1))[0])
        self.assertEqual((bytes(tensor.numpy().tobytes()), bytes(again.numpy().tobytes())), (b"\1" * 4096, b"\7" * 4096))
        del tensor, writing
        self.assertEqual(bm.drop(keys(1)), (0, 1))  # the old tensor's end is not the new one's
        del again
        self.assertEqual(bm.drop(keys(1)), (1, 0))
        with self.assertRaises(kvbmd.Stale):
            blocks.commit(keys(1, 9))
        found.release()
        bm.close()

    def test_a_forked_child_with_our_tensors(self):
        bm, found = self.committed()
        tensors = [torch.from_dlpack(found[0])]

        def drop_them():
            with self.assertRaises(kvbmd.Forked):
                torch.from_dlpack(found[1])
            tensors.clear()
            gc.collect()

        def look_at_them():
            import resource

            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            tensors[0].sum()

        self.assertEqual(forked(drop_them), 0)
        self.assertEqual(forked(lambda: None), 0)
        self.assertNotEqual(forked(look_at_them), 0)  # not mapped there, as README says
        self.assertEqual((self.views(), bytes(tensors[0].numpy().tobytes())), (1, b"\1" * 4096))
        self.assertEqual(bm.drop(keys(1)), (0, 1))

    def test_an_interpreter_that_ends_with_live_tensors(self):
        for ending in ("", "bm.close()", "blocks.release()", "import os; os._exit(0)", "torch.keep = tensors", "bm.embedded.stop()"):
            result = run_python(
                "import kvbmd, torch\n"
                "bm = kvbmd.BlockManager(num_layers=2, page_size=4, inner_dim=64, host_num_blocks=8, embedded=True)\n"
                "blocks = bm.allocate_blocks(2)\n"
                "blocks[:1].commit([1])\n"
                "tensors = [torch.from_dlpack(blocks[0]), torch.from_dlpack(blocks[1])]\n"
                "tensors.append(tensors)\n" + ending
            )
            self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "", ""), ending)


if __name__ == "__main__":
    unittest.main()
