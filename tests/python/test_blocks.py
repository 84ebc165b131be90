"""Blocks: allocated, written, committed, found, released; their hashes; what is refused, and how."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import unittest

from tests.python.case import BUILD, SOURCE, Case, _kvbm, keys, kvbmd, needs_numpy, numpy


class Store(Case):
    def test_what_is_stored_is_found_by_another_manager(self):
        writer, reader = self.open(), self.open()
        self.store(writer, keys(4))
        found = reader.match(keys(5))
        self.assertEqual(len(found), 4)
        for i, block in enumerate(found):
            self.assertEqual(bytes(memoryview(block).cast("B")), bytes([1 + i]) * 4096)
            self.assertEqual(block.hash, keys(4)[i])
            self.assertTrue(block.readonly)
            self.assertEqual(block.tiers, kvbmd.Tier.G2)
        self.assertEqual(reader.peek(keys(5)), 4)
        self.assertEqual(reader.stat(keys(5)), [kvbmd.Tier.G2] * 4 + [kvbmd.Tier.NONE])

    def test_a_hash_is_bytes_or_int_or_hex(self):
        bm = self.open()
        self.store(bm, keys(3))
        as_int = [int.from_bytes(k, "big") for k in keys(3)]
        as_hex = [k.hex() for k in keys(3)]
        for hashes in (keys(3), as_int, as_hex, [h.upper() for h in as_hex], [bytearray(k) for k in keys(3)], iter(keys(3)), tuple(as_int)):
            self.assertEqual(bm.peek(hashes), 3)
        self.assertEqual(bm.peek([memoryview(keys(1)[0]), as_int[1], as_hex[2]]), 3)

    @needs_numpy
    def test_a_hash_is_numpys_integer(self):
        bm = self.open(key_bytes=8)
        hashes = numpy.array([2**63 + 1, 7], dtype=numpy.uint64)
        self.store(bm, list(hashes))
        self.assertEqual(bm.peek([2**63 + 1, 7]), 2)
        self.assertEqual(bm.peek(hashes), 2)

    def test_wrong_hashes_are_refused_by_name(self):
        bm = self.open()
        for bad, error in (
            ([b"short"], ValueError),
            ([b"x" * 17], ValueError),
            (["zz" * 16], ValueError),
            (["ab"], ValueError),
            (["\u00e4" * 32], ValueError),
            ([-1], ValueError),
            ([1 << 128], ValueError),
            ([1.5], TypeError),
            ([None], TypeError),
            ([True], TypeError),
            ([[1]], TypeError),
            (b"x" * 16, TypeError),
            ("ab" * 16, TypeError),
            (7, TypeError),
            (None, TypeError),
            ([1] * 16385, ValueError),
        ):
            for call in (bm.match, bm.peek, bm.stat, lambda h: bm.allocate_blocks(hashes=h) if h is not None else bm.match(h)):
                with self.assertRaises(error, msg=repr(bad)[:60]):
                    call(bad)
        self.assertEqual(len(bm.match([])), 0)
        self.assertEqual(bm.stat([]), [])

    def test_blocks_are_a_sequence(self):
        bm = self.open()
        blocks = bm.allocate_blocks(4)
        self.assertEqual(len(blocks), 4)
        self.assertEqual([b.index for b in blocks], [0, 1, 2, 3])
        self.assertEqual(blocks[-1].index, 3)
        self.assertEqual(len(blocks[1:3]), 2)
        self.assertEqual(blocks[1:3].indices, (1, 2))
        with self.assertRaises(IndexError):
            blocks[4]
        block = blocks[0]
        self.assertEqual((len(block), block.shape, block.nbytes), (2, (2, 2, 4, 64), 4096))
        self.assertEqual([layer.shape for layer in block], [(2, 4, 64)] * 2)
        self.assertEqual((block[-1].index, len(block.to_list())), (1, 2))
        with self.assertRaises(IndexError):
            block[2]
        self.assertEqual(block[1].data_ptr - block[0].data_ptr, 2048)
        self.assertEqual((block.dtype, block.device, block.device_id), (kvbmd.DType.FP32, "cpu", 0))
        self.assertIn("reserved", repr(block))

    def test_slices_commit_parts(self):
        bm = self.open()
        blocks = bm.allocate_blocks(4)
        self.assertEqual(blocks[:2].commit(keys(2)), 2)
        self.assertEqual(bm.peek(keys(4)), 2)
        self.assertEqual(blocks[2:].commit(keys(4)[2:], parent=keys(2)[1]), 2)
        self.assertEqual(bm.peek(keys(4)), 4)
        with self.assertRaisesRegex(ValueError, "committed"):
            blocks.commit(keys(4))

    def test_commit_keeps_the_blocks_readable(self):
        bm = self.open()
        blocks = bm.allocate_blocks(2)
        memoryview(blocks[1]).cast("B")[0] = 77
        blocks.commit(keys(2))
        self.assertEqual(memoryview(blocks[1]).cast("B")[0], 77)
        self.assertTrue(blocks[1].readonly)
        self.assertEqual(blocks.hashes, keys(2))

    def test_the_first_to_commit_wins(self):
        one, two = self.open(), self.open()
        first, second = one.allocate_blocks(1), two.allocate_blocks(1)
        memoryview(first[0]).cast("B")[0] = 1
        memoryview(second[0]).cast("B")[0] = 2
        self.assertEqual(first.commit(keys(1)), 1)
        self.assertEqual(second.commit(keys(1)), 0)
        self.assertEqual(memoryview(second[0]).cast("B")[0], 1)
        self.assertEqual(two.counters["commits_existing"], 1)

    def test_allocating_by_hash_leaves_out_what_is_there(self):
        bm = self.open()
        self.store(bm, keys(2))
        blocks = bm.allocate_blocks(hashes=keys(4))
        self.assertEqual((len(blocks), blocks.indices, blocks.hashes), (2, (2, 3), keys(4)[2:]))
        self.assertEqual(blocks.commit(), 2)
        self.assertEqual(bm.peek(keys(4)), 4)
        self.assertEqual(bm.info("block", keys(4)[2])["parent"], keys(4)[1].hex())
        self.assertEqual(len(bm.allocate_blocks(hashes=keys(4))), 0)

    def test_commit_checks_its_arguments(self):
        bm, other = self.open(), self.open(namespace="another")
        blocks = bm.allocate_blocks(2)
        for arguments, error in (
            ((keys(1),), ValueError),
            ((keys(3),), ValueError),
            ((), TypeError),
            (([1.0, 2],), TypeError),
            ((keys(2), b"short"), ValueError),
        ):
            with self.assertRaises(error):
                blocks.commit(*arguments)
        with self.assertRaises(TypeError):
            blocks.commit(keys(2), keys(1)[0], parents=[None, None])
        with self.assertRaises(ValueError):
            blocks.commit(keys(2), parents=[None])
        with self.assertRaisesRegex(ValueError, "another block manager"):
            other._ns.commit(blocks._holds, b"".join(keys(2)), None, 0)
        with self.assertRaises(RuntimeError):  # twice the same
            bm._ns.commit([blocks._holds[0]] * 2, b"".join(keys(2)), None, 0)
        self.assertEqual(blocks.commit(keys(2), parents=[None, keys(1)[0]]), 2)

    def test_scattered_match_has_holes(self):
        bm = self.open()
        self.store(bm, keys(3))
        bm.drop([keys(3)[2]])
        found = bm.match([keys(3)[0], keys(9)[8], keys(3)[1]], scattered=True)
        self.assertEqual([b is None for b in found], [False, True, False])
        self.assertEqual(memoryview(found[2]).cast("B")[0], 2)

    def test_commit_without_waiting_is_counted(self):
        bm = self.open()
        blocks = bm.allocate_blocks(2)
        self.assertEqual(blocks.commit(keys(2), wait=False), 0)
        bm.ping()
        bm.dispatch()
        self.assertEqual(bm.counters["commits_new"], 2)
        self.assertFalse(blocks[0] if blocks._holds[0].state != "released" else False)

    def test_lanes_meet_in_one_block(self):
        rank = [self.open(lanes=2, lane=i) for i in range(2)]
        with self.assertRaisesRegex(ValueError, "say which"):
            self.open(lanes=2)
        blocks = [bm.allocate_blocks(hashes=keys(2)) for bm in rank]
        for i in range(2):
            for block in blocks[i]:
                self.assertEqual(block.lane, i)
                memoryview(block).cast("B")[:] = bytes([i + 1]) * 4096
        with self.assertRaises(ValueError):
            blocks[0][0].on_lane(1)
        self.assertEqual(blocks[0].commit(), 0)
        self.assertFalse(blocks[0]._holds[0].state == "held")
        self.assertEqual(rank[0].peek(keys(2)), 0)
        self.assertEqual(blocks[1].commit(), 2)
        found = rank[0].match(keys(2))
        self.assertEqual([bytes(memoryview(found[1].on_lane(i)).cast("B")[:2]) for i in range(2)], [b"\1\1", b"\2\2"])
        with self.assertRaises(ValueError):
            found[0].on_lane(2)
        both = self.open(lanes=2, lane=kvbmd.ALL_LANES)
        mine = both.allocate_blocks(hashes=keys(1, 100))
        memoryview(mine[0].on_lane(1)).cast("B")[0] = 9
        self.assertEqual(mine.commit(), 1)

    def test_blocks_of_bytes(self):
        bm = self.open(num_layers=3, block_bytes=3 * 1000, dtype=None, page_size=16, inner_dim=1)
        block = bm.allocate_blocks(1)[0]
        self.assertEqual((block.shape, block[2].shape, bm.lane_bytes), ((3, 1000), (1000,), 3000))
        with self.assertRaises(ValueError):
            self.open(num_layers=3, block_bytes=1000, dtype=None)
        with self.assertRaises(ValueError):
            self.open(block_bytes=1000, dtype="fp16")

    def test_hints_drop_and_reports(self):
        bm = self.open()
        self.store(bm, keys(3))
        self.assertEqual(bm.hint("retain", keys(4), ttl=1.5, priority=100), 3)
        self.assertEqual(bm.hint("touch", keys(1)), 1)
        self.assertEqual(bm.hint("release", []), 0)
        with self.assertRaises(ValueError):
            bm.hint("pray", keys(1))
        with bm.match(keys(1)):
            self.assertEqual(bm.drop(keys(3)), (2, 1))
        self.assertEqual(bm.drop(), (1, 0))
        self.assertEqual(bm.info("why", keys(1)[0])["key"], keys(1)[0].hex())
        self.assertTrue(bm.info("status"))
        with self.assertRaises(kvbmd.Invalid):
            bm.info("nonsense")

    def test_managers_share_a_connection(self):
        one = self.open()
        two = kvbmd.BlockManager(**{"num_layers": 1, "page_size": 1, "inner_dim": 8}, namespace="shared", share=one)
        self.assertEqual(_kvbm.live()[0] - self.before[0][0], 1)
        one.close()
        self.assertEqual(two.allocate_blocks(1).commit(keys(1)), 1)
        two.close()
        with self.assertRaises(kvbmd.Closed):
            kvbmd.BlockManager(share=one)

    def test_by_socket_is_the_same(self):
        bm = self.open(by_socket=True)
        self.store(bm, keys(3))
        with bm.match(keys(3)) as found:
            self.assertEqual(memoryview(found[2]).cast("B")[0], 3)
        found = bm.match(keys(3))
        del found
        bm.ping()
        self.assertEqual(bm.drop(keys(3)), (3, 0))


class Limits(Case):
    FLAGS = ("--limits.pins_per_session=4", "--limits.slots_per_session=8", "--limits.namespaces=2")
    SIZE = "2M"

    def test_the_pool_the_pins_and_the_slots_have_ends(self):
        bm = self.open(inner_dim=2048)  # 128 KiB a block, 16 of them
        self.assertIsInstance(bm, kvbmd.BlockManager)
        with self.assertRaises(kvbmd.Limit) as caught:
            bm.allocate_blocks(9)
        self.assertEqual(caught.exception.code, 6)
        for start in range(0, 16, 8):
            bm.allocate_blocks(8).commit(keys(8, start), hold=False)
        with bm.match(keys(4)):
            with self.assertRaises(kvbmd.Limit):
                bm.match(keys(1))
        held = bm.match(keys(4))
        reserved = bm.allocate_blocks(8)
        with self.assertRaises(kvbmd.Limit):
            bm.allocate_blocks(8)
        self.assertEqual(reserved.dropped, 8)
        held.release()
        reserved.release()
        with self.assertRaises(ValueError):
            bm.allocate_blocks(16385)

    def test_no_space_drops_nothing(self):
        two = [self.open(inner_dim=2048, namespace="pool") for _ in range(2)]
        blocks = [bm.allocate_blocks(8) for bm in two]
        third = self.open(inner_dim=2048, namespace="pool")
        with self.assertRaises(kvbmd.NoSpace) as caught:
            third.allocate_blocks(1)
        self.assertIsInstance(caught.exception, MemoryError)
        blocks[0].release()
        self.assertEqual(len(third.allocate_blocks(1)), 1)

    def test_a_block_larger_than_the_memory(self):
        with self.assertRaises(kvbmd.NoSpace):
            self.open(inner_dim=1 << 20)


class Wrong(Case):
    def test_arguments_of_a_manager(self):
        for options, error in (
            (dict(num_layers=0), ValueError),
            (dict(num_layers="32"), TypeError),
            (dict(num_layers=True), TypeError),
            (dict(page_size=-1), ValueError),
            (dict(inner_dim=1.5), TypeError),
            (dict(dtype="fp13"), ValueError),
            (dict(dtype="bytes"), ValueError),
            (dict(device="cuda"), (kvbmd.NotFound, NotImplementedError)),
            (dict(device="tpu"), ValueError),
            (dict(device="cuda:x"), ValueError),
            (dict(device_num_blocks=4, embedded=True, socket=None), ValueError),
            (dict(device_id=1), ValueError),
            (dict(key_bytes=7), ValueError),
            (dict(key_bytes=33), ValueError),
            (dict(lanes=65), ValueError),
            (dict(lanes=2, lane=2), ValueError),
            (dict(layout="sideways"), ValueError),
            (dict(namespace=3), TypeError),
            (dict(namespace=""), kvbmd.Invalid),
            (dict(namespace="has spaces"), kvbmd.Invalid),
            (dict(timeout=0), ValueError),
            (dict(timeout="5"), TypeError),
            (dict(embedded=True), ValueError),
            (dict(socket=7), TypeError),
            (dict(salt=b"x"), TypeError),
            (dict(nonsense=1), TypeError),
        ):
            with self.assertRaises(error, msg=repr(options)):
                self.open(**options)

    def test_dtypes_by_many_names(self):
        self.assertIs(kvbmd.DType.of("BFloat16"), kvbmd.DType.BF16)
        self.assertIs(kvbmd.DType.of("torch.float8_e4m3fn"), kvbmd.DType.FP8_E4M3)
        self.assertIs(kvbmd.DType.of(kvbmd.DType.INT8), kvbmd.DType.INT8)
        self.assertEqual([d.itemsize for d in kvbmd.DType], [2, 2, 4, 1, 1, 1, 1])
        if numpy:
            self.assertIs(kvbmd.DType.of(numpy.float16), kvbmd.DType.FP16)
            self.assertIs(kvbmd.DType.of(numpy.dtype("float32")), kvbmd.DType.FP32)

    def test_another_description_is_a_mismatch(self):
        self.open()
        for other in (dict(inner_dim=128), dict(dtype="int8"), dict(salt="x"), dict(model="m"), dict(hash_algo="h"), dict(key_bytes=32), dict(confirm=True)):
            with self.assertRaises(kvbmd.Mismatch) as caught:
                self.open(**other)
            self.assertEqual(caught.exception.code, 5)

    def test_nobody_at_the_socket(self):
        for embedded in (None, False):
            with self.assertRaises(kvbmd.System) as caught:
                self.open(socket="/nonexistent/kvbmd.sock", embedded=embedded)
            self.assertIsInstance(caught.exception, OSError)
            self.assertEqual(caught.exception.errno, 2)
            self.assertIn("/nonexistent/kvbmd.sock", str(caught.exception))

    def test_a_used_up_lease(self):
        bm = self.open()
        blocks = bm.allocate_blocks(2)
        block, layer = blocks[0], blocks[0][1]
        blocks.release()
        blocks.release()
        self.assertFalse(block)
        for call in (
            lambda: memoryview(block),
            lambda: layer.__dlpack__(),
            lambda: block.data_ptr,
            lambda: block[0],
            lambda: blocks[1],
            lambda: blocks.commit(keys(2)),
            lambda: block.readonly,
        ):
            with self.assertRaises(kvbmd.NotHeld) as caught:
                call()
            self.assertEqual(caught.exception.code, 10)
            self.assertIsInstance(caught.exception, ValueError)
        self.assertIsNone(block.slot)

    def test_a_closed_client(self):
        bm = self.open()
        blocks = bm.allocate_blocks(1)
        bm.close()
        bm.close()
        self.assertTrue(bm.closed)
        for call in (
            lambda: bm.allocate_blocks(1),
            lambda: bm.match(keys(1)),
            lambda: bm.stat(keys(1)),
            lambda: bm.hint("touch", keys(1)),
            lambda: bm.info("status"),
            lambda: bm.fingerprint,
            lambda: bm.counters,
            lambda: bm.fileno(),
            lambda: blocks.commit(keys(1)),
            bm.ping,
            bm.dispatch,
        ):
            with self.assertRaises(kvbmd.Closed) as caught:
                call()
            self.assertIsInstance(caught.exception, kvbmd.KvbmError)
        with self.assertRaises(kvbmd.NotHeld):
            blocks[0]
        blocks.release()

    def test_a_deadline_that_passed(self):
        self.daemon.remove()
        type(self).daemon = type(self.daemon)("--daemon.write_timeout=1s")
        self.addClassCleanup(self.daemon.remove)
        bm = self.open()
        blocks = bm.allocate_blocks(2)
        while bm.info("clients")[0]["writing"]:
            pass
        with self.assertRaises(kvbmd.Stale) as caught:
            blocks.commit(keys(2))
        self.assertEqual(caught.exception.code, 9)
        blocks.release()

    def test_exceptions_are_one_family(self):
        codes = {}
        for name in kvbmd.__all__:
            error = getattr(kvbmd, name)
            if isinstance(error, type) and issubclass(error, BaseException):
                self.assertTrue(issubclass(error, kvbmd.KvbmError), name)
                self.assertTrue(error.__doc__)
                codes[name] = error.code
        self.assertEqual(sorted(c for c in codes.values() if c), list(range(1, 18)))


class Life(Case):
    def test_context_managers(self):
        with self.open() as bm:
            with bm.allocate_blocks(2) as blocks:
                blocks.commit(keys(2))
                with bm.match(keys(2)) as found:
                    self.assertEqual(len(found), 2)
                self.assertEqual(bm.drop(keys(2)), (0, 2))
            self.assertEqual(bm.drop(keys(2)), (2, 0))
        self.assertTrue(bm.closed)

    def test_garbage_lets_go(self):
        bm = self.open()
        self.store(bm, keys(2))
        found = bm.match(keys(2))
        block = found[0]
        del found
        gc.collect()
        self.assertEqual(bm.drop(keys(2))[1], 2)  # a block keeps its blocks
        del block
        gc.collect()
        self.assertEqual(bm.drop(keys(2))[1], 0)

    def test_dropped_reservations_come_back_with_the_next_call(self):
        bm = self.open()
        free = bm.info("tiers")
        for _ in range(100):
            bm.allocate_blocks(64)
        bm.ping()
        self.assertEqual(_kvbm.live()[1], self.before[0][1])
        self.assertTrue(free)

    def test_a_manager_that_is_dropped_ends(self):
        bm = self.open()
        blocks = bm.allocate_blocks(3)
        self._cleanups = [c for c in self._cleanups if c[0] != bm.close]
        del bm
        del blocks
        gc.collect()
        self.assertEqual(_kvbm.live(), self.before[0])

    def test_threads_share_a_manager(self):
        bm = self.open()
        errors = []

        def work(number):
            try:
                for i in range(50):
                    mine = keys(2, 1000 * number + 2 * i)
                    with bm.allocate_blocks(2) as blocks:
                        for block in blocks:
                            memoryview(block).cast("B")[:] = bytes([number]) * 4096
                        blocks.commit(mine)
                    with bm.match(mine) as found:
                        for block in found:
                            if bytes(memoryview(block).cast("B")) != bytes([number]) * 4096:
                                raise AssertionError("bytes of another block")
                    bm.stat(mine)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(errors, [])

    def test_close_while_others_call(self):
        bm = self.open()
        self.store(bm, keys(4))
        ended = []

        def work():
            while True:
                try:
                    bm.match(keys(4))
                    bm.stat(keys(4))
                except kvbmd.Closed:
                    ended.append(True)
                    return

        threads = [threading.Thread(target=work) for _ in range(4)]
        for t in threads:
            t.start()
        bm.stat(keys(4))
        bm.close()
        for t in threads:
            t.join()
        self.assertEqual(len(ended), 4)


class Asyncio(Case):
    def test_everything_can_be_awaited(self):
        async def run():
            async with self.open() as bm:
                blocks = await bm.aallocate_blocks(2)
                self.assertEqual(await blocks.acommit(keys(2)), 2)
                both = await asyncio.gather(bm.amatch(keys(2)), bm.amatch(keys(1)))
                self.assertEqual([len(b) for b in both], [2, 1])
                self.assertEqual(await bm.astat(keys(1)), [kvbmd.Tier.G2])
                self.assertEqual(await bm.ahint("touch", keys(2)), 2)
                await bm.aping()
                await both[0].arelease()
                async with await bm.amatch(keys(1)) as found:
                    self.assertEqual(len(found), 1)
                with self.assertRaises(ValueError):
                    await bm.amatch([b"short"])
            with self.assertRaises(kvbmd.Closed):
                await bm.amatch(keys(1))

        asyncio.run(run())

    def test_a_loop_watches_the_session(self):
        async def run():
            bm = self.open()
            blocks = bm.allocate_blocks(1)
            loop, done = asyncio.get_running_loop(), asyncio.Event()

            def readable():
                bm.dispatch()
                if bm.counters["commits_new"]:
                    done.set()

            loop.add_reader(bm.fileno(), readable)
            blocks.commit(keys(1), wait=False)
            if not bm.counters["commits_new"]:
                await asyncio.wait_for(done.wait(), 30)
            loop.remove_reader(bm.fileno())
            bm.close()

        asyncio.run(run())


class Tiers(Case):
    def test_onboard_and_prefetch_where_they_are(self):
        bm = self.open()
        self.store(bm, keys(2))
        if not hasattr(bm._ns, "onboard"):
            for call in (bm.onboard, bm.prefetch):
                with self.assertRaises(NotImplementedError):
                    call(keys(2))
            self.skipTest("there are no tiers below memory")
        found = bm.onboard(keys(3), timeout=5.0)
        self.assertEqual(len(found), 2)
        self.assertEqual(found.status[:3], [kvbmd.Status.DONE] * 2 + [kvbmd.Status.MISSING])
        self.assertEqual(memoryview(found[1]).cast("B")[0], 2)
        self.assertEqual(bm.prefetch(keys(2)), 2)


class QuickStart(Case):
    def test_the_block_managers_own_quick_start_with_its_import_changed(self):
        text = (
            "import kvbmd as dynamo_llm\n"
            "\n"
            "# Create block manager\n"
            "block_manager = dynamo_llm.BlockManager(\n"
            "    num_layers=32,\n"
            "    page_size=16,\n"
            "    inner_dim=4096\n"
            ")\n"
            "\n"
            "# Allocate blocks\n"
            "blocks = block_manager.allocate_blocks(4)\n"
            "\n"
            "# Use blocks for inference\n"
            "for block in blocks:\n"
            "    # Access layer data\n"
            "    layer_data = block[0]  # Get first layer\n"
            "    # Process layer...\n"
        )
        environment = {k: v for k, v in os.environ.items() if k not in ("KVBM_SOCKET", "RUNTIME_DIRECTORY")}
        environment["XDG_RUNTIME_DIR"] = self.daemon.folder + "/nobody"
        os.makedirs(environment["XDG_RUNTIME_DIR"], exist_ok=True)
        environment["PYTHONPATH"] = os.path.join(BUILD, "python")
        result = subprocess.run([sys.executable, "-W", "error", "-c", text], env=environment, capture_output=True, text=True, timeout=120)
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "", ""))
        self.assertEqual(os.listdir(environment["XDG_RUNTIME_DIR"]), [])

    def test_readme_prints_the_example(self):
        with open(os.path.join(SOURCE, "README.md")) as readme, open(os.path.join(SOURCE, "client/examples/quickstart.py")) as example:
            self.assertIn("```python\n" + example.read() + "```\n", readme.read())

    @needs_numpy
    def test_the_example_finds_what_it_stored(self):
        environment = {**os.environ, "KVBM_SOCKET": self.daemon.socket, "PYTHONPATH": os.path.join(BUILD, "python")}
        said = []
        for _ in range(2):
            result = subprocess.run(
                [sys.executable, os.path.join(SOURCE, "client/examples/quickstart.py")], env=environment, capture_output=True, text=True, timeout=120
            )
            self.assertEqual((result.returncode, result.stderr), (0, ""))
            said.append(result.stdout.strip())
        self.assertEqual(said, ["0 found, 4 stored", "4 found, 0 stored"])


if __name__ == "__main__":
    unittest.main()
