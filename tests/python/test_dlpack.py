"""What other libraries see of blocks: DLPack, versioned and legacy, and the buffer protocol; and what keeps the memory they see."""

import gc
import threading
import unittest

from tests.python.case import Watched, _kvbm, from_dlpack, keys, kvbmd, needs_numpy, numpy
from tests.python.capsule import Buffer, Consumer

READ_ONLY, COPIED = 1, 2


class Capsules(Watched):
    def test_a_legacy_capsule_says_what_is_there(self):
        _, blocks = self.reserved()
        for view, shape, strides in ((blocks[0], (2, 2, 4, 64), (512, 256, 64, 1)), (blocks[0][1], (2, 4, 64), (256, 64, 1))):
            consumer = Consumer(view.__dlpack__())
            self.assertFalse(consumer.versioned)
            t = consumer.tensor
            self.assertEqual((t.data, t.byte_offset, t.device_type, t.device_id), (view.data_ptr, 0, 1, 0))
            self.assertEqual((t.code, t.bits, t.lanes), (2, 32, 1))
            self.assertEqual((consumer.shape, consumer.strides), (shape, strides))
            consumer.delete()
        self.assertEqual(view.__dlpack_device__(), (1, 0))

    def test_a_versioned_capsule_has_the_read_only_flag(self):
        _, blocks = self.reserved()
        for version in ((1, 0), (1, 3), (2, 0)):
            consumer = Consumer(blocks[0].__dlpack__(max_version=version))
            self.assertEqual((consumer.versioned, consumer.managed.major, consumer.flags), (True, 1, 0))
            consumer.delete()
        consumer = Consumer(blocks[0].__dlpack__(max_version=(0, 9)))
        self.assertFalse(consumer.versioned)
        consumer.delete()
        _, found = self.committed(namespace="other")
        consumer = Consumer(found[0].__dlpack__(max_version=(1, 0)))
        self.assertEqual(consumer.flags, READ_ONLY)
        self.assertEqual(consumer.bytes(4096), b"\1" * 4096)
        consumer.delete()

    def test_each_dtype_has_its_code(self):
        for dtype, code in (("bf16", (4, 16)), ("fp16", (2, 16)), ("fp8_e4m3", (10, 8)), ("fp8_e5m2", (12, 8)), ("int8", (0, 8))):
            _, blocks = self.reserved(dtype=dtype, namespace=dtype)
            consumer = Consumer(blocks[0].__dlpack__())
            self.assertEqual((consumer.tensor.code, consumer.tensor.bits), code)
            consumer.delete()
        _, blocks = self.reserved(dtype=None, block_bytes=4096, namespace="bytes")
        consumer = Consumer(blocks[0].__dlpack__())
        self.assertEqual((consumer.tensor.code, consumer.tensor.bits, consumer.shape), (1, 8, (2, 2048)))
        consumer.delete()

    def test_read_only_and_legacy_do_not_go_together(self):
        _, found = self.committed()
        with self.assertRaisesRegex(BufferError, "max_version"):
            found[0].__dlpack__()
        reader = self.open(readonly=True)
        consumer = Consumer(reader.match(keys(1))[0].__dlpack__())  # its memory refuses writes by itself
        self.assertEqual(consumer.bytes(2), b"\1\1")
        consumer.delete()
        with self.assertRaises(kvbmd.KvbmError):
            reader.allocate_blocks(1)

    def test_a_copy_holds_nothing(self):
        bm, found = self.committed()
        for version in (None, (1, 0)):
            consumer = Consumer(found[0].__dlpack__(max_version=version, copy=True))
            self.assertNotEqual(consumer.tensor.data, found[0].data_ptr)
            self.assertEqual(consumer.tensor.data % 64, 0)
            self.assertEqual(consumer.flags, COPIED if version else None)
            self.assertEqual((self.views(), found[0].views), (0, 0))
            self.assertEqual(consumer.bytes(4096), b"\1" * 4096)
            consumer.delete()
        self.assertTrue(bm)

    def test_what_cannot_be_is_refused(self):
        _, blocks = self.reserved()
        block = blocks[0]
        for arguments, error in (
            (dict(stream=1), BufferError),
            (dict(stream="x"), BufferError),
            (dict(dl_device=(2, 0)), BufferError),
            (dict(dl_device=(1, 1)), BufferError),
            (dict(dl_device=1), TypeError),
            (dict(max_version=1), TypeError),
            (dict(max_version=("a", 0)), TypeError),
            (dict(copy="yes"), TypeError),
            (dict(nonsense=1), TypeError),
        ):
            with self.assertRaises(error, msg=str(arguments)):
                block.__dlpack__(**arguments)
        for arguments in (dict(stream=None), dict(stream=-1), dict(dl_device=(1, 0)), dict(copy=False), dict(dl_device=None, copy=None)):
            block.__dlpack__(**arguments)
        self.assertEqual(self.views(), 0)

    def test_the_deleter_lets_go_once(self):
        _, blocks = self.reserved()
        capsule = blocks[0].__dlpack__()
        self.assertEqual((self.views(), blocks[0].views), (1, 1))
        consumer = Consumer(capsule)
        del capsule  # used: its end is not the tensor's
        self.assertEqual(self.views(), 1)
        consumer.delete()
        self.assertEqual((self.views(), blocks[0].views), (0, 0))

    def test_a_capsule_that_nobody_takes_lets_go(self):
        _, blocks = self.reserved()
        for version in (None, (1, 0)):
            capsule = blocks[0].__dlpack__(max_version=version)
            self.assertEqual(self.views(), 1)
            del capsule
            self.assertEqual(self.views(), 0)

    def test_a_second_consumer_of_a_capsule_is_turned_away(self):
        _, blocks = self.reserved()
        capsule = blocks[0].__dlpack__()
        one = Consumer(capsule)
        with self.assertRaises(ValueError):
            Consumer(capsule)
        two = Consumer(blocks[0].__dlpack__())  # of the block there may be any number
        self.assertEqual((self.views(), one.tensor.data), (2, two.tensor.data))
        one.delete()
        self.assertEqual(two.bytes(1), two.bytes(1))
        two.delete()

    def test_released_blocks_stay_until_the_last_view_goes(self):
        bm, found = self.committed()
        one, two = Consumer(found[0].__dlpack__(max_version=(1, 0))), memoryview(found[0][1])
        found.release()
        self.assertEqual(self.held(), 1)
        with self.assertRaises(kvbmd.NotHeld):
            found[0]
        self.assertEqual(bm.drop(keys(2)), (1, 1))
        self.assertEqual(one.bytes(4096), b"\1" * 4096)
        one.delete()
        self.assertEqual(bm.drop(keys(1)), (0, 1))
        two.release()
        self.assertEqual(self.held(), 0)
        self.assertEqual(bm.drop(keys(1)), (1, 0))

    def test_reservations_stay_until_the_last_view_goes(self):
        bm, blocks = self.reserved(2)
        view = memoryview(blocks[0])
        blocks.release()
        self.assertEqual(bm.info("clients")[0]["writing"], 1)
        view.release()
        self.assertEqual(bm.info("clients")[0]["writing"], 0)

    def test_memory_outlives_the_client(self):
        bm, found = self.committed()
        consumer = Consumer(found[1].__dlpack__(max_version=(1, 0)))
        bm.close()
        self.assertEqual(_kvbm.live()[0] - self.before[0][0], 1)
        self.assertEqual(consumer.bytes(4096), b"\2" * 4096)
        consumer.delete()
        self.assertEqual(_kvbm.live(), self.before[0])

    def test_a_writer_that_outlives_the_client_gives_its_slot_back(self):
        bm, blocks = self.reserved()
        consumer = Consumer(blocks[0].__dlpack__())
        bm.close()
        watcher = self.open()

        def mine():
            return next(n for n in watcher.info("namespaces") if n["name"] == watcher.namespace)

        self.assertEqual(mine()["writing"], 1)
        consumer.delete()
        self.assertEqual((mine()["writing"], mine()["quarantined"]), (0, 0))

    def test_deleters_run_in_any_thread(self):
        _, found = self.committed()
        consumers = [Consumer(found[i % 2].__dlpack__(max_version=(1, 0))) for i in range(200)]
        found.release()
        self.assertEqual((self.views(), self.held()), (200, 2))
        threads = [threading.Thread(target=lambda part: [c.delete() for c in part], args=(consumers[i::4],)) for i in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual((self.views(), self.held()), (0, 0))

    def test_blocks_that_are_seen_are_not_committed(self):
        bm, blocks = self.reserved(2)
        view = memoryview(blocks[1])
        with self.assertRaisesRegex(BufferError, "block 1 has 1 live"):
            blocks.commit(keys(2))
        self.assertEqual(bm.peek(keys(2)), 0)
        view.release()
        self.assertEqual(blocks.commit(keys(2)), 2)

    def test_buffers_in_the_order_asked_for(self):
        """C and either order are what it is; Fortran's it is only where one dimension counts.  (PyBUF_*_CONTIGUOUS of CPython.)"""
        _, blocks = self.reserved(page_size=1)
        c, fortran, either = 0x20 | 0x18, 0x40 | 0x18, 0x80 | 0x18
        with Buffer(blocks[0], c) as b:
            self.assertEqual((b.ndim, b.len, b.strides[0]), (4, 1024, 512))
        with Buffer(blocks[0], either):
            pass
        with self.assertRaisesRegex(BufferError, "Fortran"):
            Buffer(blocks[0], fortran).__enter__()
        self.assertEqual(self.views(), 0)
        _, blocks = self.reserved(dtype=None, block_bytes=4096, num_layers=1, namespace="flat")
        with Buffer(blocks[0][0], fortran) as b:
            self.assertEqual((b.ndim, b.shape[0], b.strides[0]), (1, 4096, 1))
        with Buffer(blocks[0], 0) as b:  # PyBUF_SIMPLE: bytes, and nothing about them
            self.assertEqual((b.len, bool(b.shape), bool(b.strides), b.format), (4096, False, False, None))

    def test_what_is_made_of_a_block_keeps_that_block_alone(self):
        for make in (memoryview, lambda block: memoryview(block[1]), lambda block: Consumer(block.__dlpack__(max_version=(1, 0)))):
            bm, found = self.committed(namespace=str(len(self._cleanups)))
            one = make(found[1])
            del found
            gc.collect()
            self.assertEqual((self.views(), self.held(), bm.drop(keys(2))), (1, 1, (1, 1)))
            one.delete() if isinstance(one, Consumer) else one.release()
            self.assertEqual((self.views(), self.held(), bm.drop(keys(2))), (0, 0, (1, 0)))

    def test_garbage_in_a_circle(self):
        _, blocks = self.reserved()
        circle = [blocks[0].__dlpack__()]
        circle.append(circle)
        del circle
        gc.collect()
        self.assertEqual(self.views(), 0)

    def test_buffers(self):
        _, blocks = self.reserved()
        with memoryview(blocks[0]) as view:
            self.assertEqual((view.shape, view.strides, view.format, view.itemsize), ((2, 2, 4, 64), (2048, 1024, 256, 4), "f", 4))
            self.assertEqual((view.readonly, view.nbytes, view.c_contiguous), (False, 4096, True))
            view[1, 1, 3, 63] = 2.5
        with memoryview(blocks[0][1]) as view:
            self.assertEqual(view[1, 3, 63], 2.5)
        _, found = self.committed(namespace="other")
        with memoryview(found[0]) as view:
            self.assertTrue(view.readonly)
            with self.assertRaises(TypeError):
                view[0, 0, 0, 0] = 1
        self.assertEqual(bytes(found[1])[:3], b"\2\2\2")
        with open("/dev/zero", "rb") as zeros:
            self.assertEqual(zeros.readinto(blocks[0]), 4096)
            with self.assertRaises((BufferError, TypeError)):
                zeros.readinto(found[0])


@needs_numpy
class Numpy(Capsules):
    """The same memory, seen by numpy.  (The tests above run again here with numpy loaded.)"""

    def test_numpy_writes_and_reads_in_place(self):
        bm, blocks = self.reserved(2)
        seen = getattr(numpy, "from_dlpack", numpy.asarray)  # there from 1.23 on
        array = seen(blocks[0])
        self.assertEqual((array.shape, array.dtype, array.flags.c_contiguous), ((2, 2, 4, 64), numpy.float32, True))
        self.assertEqual(array.ctypes.data, blocks[0].data_ptr)
        if array.flags.writeable:
            array[...] = 3
        else:  # numpy before 2.1 makes what comes through a legacy capsule read-only
            numpy.asarray(blocks[0])[...] = 3
        layer = seen(blocks[0][1])
        self.assertEqual((layer.shape, float(layer.sum())), ((2, 4, 64), 3.0 * 512))
        del array, layer
        blocks.commit(keys(2))
        again = from_dlpack(bm.match(keys(1))[0])
        self.assertFalse(again.flags.writeable)
        self.assertEqual(float(again.max()), 3)
        with self.assertRaises(ValueError):
            again[0] = 1

    def test_numpy_arrays_keep_the_block(self):
        bm, found = self.committed()
        part = from_dlpack(found[0])[1, 0, 2]
        del found
        gc.collect()
        self.assertEqual((self.views(), self.held()), (1, 1))
        self.assertEqual(bm.drop(keys(1)), (0, 1))
        del part
        self.assertEqual((self.views(), self.held()), (0, 0))

    def test_numpy_asks_for_a_copy(self):
        if numpy.lib.NumpyVersion(numpy.__version__) < "2.1.0":
            self.skipTest("this numpy has no copy argument")
        _, found = self.committed()
        array = numpy.from_dlpack(found[0], copy=True, device="cpu")
        array[...] = 5
        self.assertEqual(self.views(), 0)
        self.assertEqual(bytes(found[0])[:1], b"\1")

    def test_numpy_into_a_block(self):
        """The other way round: what numpy exports is what a block takes."""
        _, blocks = self.reserved()
        numpy.copyto(numpy.asarray(blocks[0][0]), numpy.arange(512, dtype=numpy.float32).reshape(2, 4, 64))
        self.assertEqual(float(numpy.asarray(blocks[0][0])[1, 3, 63]), 511)

    def test_bits_of_what_numpy_does_not_know(self):
        _, blocks = self.reserved(dtype="bf16")
        with self.assertRaises((RuntimeError, BufferError, AttributeError)):
            numpy.from_dlpack(blocks[0])
        self.assertEqual(numpy.asarray(blocks[0]).dtype, numpy.uint16)


if __name__ == "__main__":
    unittest.main()
