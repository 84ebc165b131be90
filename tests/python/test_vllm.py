"""The vLLM connector under a contract simulator (vllm_sim.py): every byte that an engine would attend to is compared."""

import json
import os
import random
import signal
import tempfile
import threading
import unittest

from tests.python.case import Case, Daemon, _kvbm

from tests.python.vllm_sim import Engine, WrongBytes  # after case, which says where the package is

from kvbmd.vllm import api, hints, layout
from kvbmd.vllm.connector import KvbmdConnector
from kvbmd.vllm.worker import Worker

WAIT = 30


def prompt(seed, n):
    chosen = random.Random(seed)
    return [chosen.randrange(1, 1000) for _ in range(n)]


def hooked(**methods):
    """A connector class whose workers have these methods instead; each gets the one it replaces first."""

    class HookedWorker(Worker):
        pass

    for name, replacement in methods.items():
        original = getattr(Worker, name)

        def method(self, *args, replacement=replacement, original=original):
            return replacement(original, self, *args)

        setattr(HookedWorker, name, method)

    class Hooked(KvbmdConnector):
        def __init__(self, vllm_config, role, kv_cache_config=None):
            super().__init__(vllm_config, role, kv_cache_config)
            if self._worker is not None:
                self._worker.close()
                self._worker = HookedWorker(self._identity, self._link, self._counts)

    return Hooked


def stored(engine):
    """Waits until all that was given to the workers' threads is stored."""
    for worker in engine.workers:
        assert worker._worker._storer.drain(WAIT)


def _info(socket, topic):
    session = _kvbm.Session(socket=socket)
    try:
        return session.info(topic)
    finally:
        session.close()


class Simulated(Case):
    SIZE = "256M"

    def engine(self, **options):
        engine = Engine(self.daemon.socket, name=self.id(), **options)
        self.addCleanup(engine.close)
        return engine

    def check_none_held(self):
        status = json.loads(_info(self.daemon.socket, "status"))
        self.assertEqual((status["pins"], status["leases"]), (0, 0))

    def check_shared(self, **options):
        """A second engine gets the first one's prefix, whole blocks of it, and answers with the same tokens."""
        first, second, text = self.engine(**options), self.engine(**options), prompt(1, 100)
        a = first.generate(text, 20)
        stored(first)
        b = second.generate(text, 20)
        self.assertEqual(a.tokens, b.tokens)
        whole = 100 - 100 % first.align
        self.assertEqual((a.cached, b.cached), (0, whole))
        self.assertEqual((first.external, second.external), (0, whole))
        self.assertEqual(second.stats["hit_tokens"], whole)
        self.assertEqual(second.stats["loads"], len(second.workers))
        return first, second


class Sharing(Simulated):
    def test_a_second_engine_gets_the_prefix(self):
        self.check_shared()

    def test_without_the_engines_own_cache(self):
        engine = self.engine(caching=False)
        text = prompt(2, 64)
        a = engine.generate(text)
        stored(engine)
        b = engine.generate(text)
        self.assertEqual(a.tokens, b.tokens)
        self.assertEqual(b.cached, 64)

    def test_the_whole_prompt_is_a_hit(self):
        first, second = self.engine(), self.engine()
        a = first.generate(prompt(3, 64))
        stored(first)
        b = second.generate(prompt(3, 64))
        self.assertEqual((b.tokens, b.cached), (a.tokens, 64))

    def test_what_was_generated_is_a_prefix_too(self):
        first, second = self.engine(), self.engine()
        a = first.generate(prompt(4, 30), 40)
        stored(first)
        b = second.generate(a.all_token_ids[:-1], 4)
        self.assertEqual(b.cached, 64)

    def test_chunks(self):
        self.check_shared(budget=24)

    def test_ranks_are_lanes(self):
        self.check_shared(tp=3)

    def test_mla_is_stored_once(self):
        first, _ = self.check_shared(tp=2, mla=True)
        name = first.scheduler._identity.groups[0].name
        (namespace,) = [n for n in json.loads(_info(self.daemon.socket, "namespaces")) if n["name"] == name]
        self.assertEqual((namespace["lanes"], namespace["used"]), (1, 14))

    def test_each_layout(self):
        for name in ("plain", "blocks-first", "kernel-blocks", "heads-first", "k-and-v"):
            with self.subTest(name):
                self.check_shared(layout=name, tp=2)

    def test_several_groups(self):
        self.check_shared(block_tokens=(8, 8), windows=(0, 20))

    def test_several_groups_of_different_blocks(self):
        self.check_shared(block_tokens=(16, 8), windows=(0, 12))

    def test_side_by_side(self):
        engines = [self.engine(num_blocks=40) for _ in range(2)]
        texts = [prompt(5, 80)[: 8 * n] + prompt(n, 20) for n in range(1, 10)]
        want = [self.engine(options={"load": False, "store": False}).generate(t, 6).tokens for t in texts]
        for i, text in enumerate(texts):
            for engine in engines:
                engine.add(f"r{i}", text, 6)
        while any(e.requests for e in engines):
            for engine in engines:
                if engine.requests:
                    engine.step()
        for engine in engines:
            got = {r.request_id: r.tokens for r in engine.done}
            self.assertEqual([got[f"r{i}"] for i in range(len(texts))], want)

    def test_other_seed_other_namespace_other_salt(self):
        first, text = self.engine(), prompt(6, 64)
        first.generate(text)
        stored(first)
        for options in (dict(seed="1"), dict(options={"namespace": "other"}), dict(options={"salt": "tenant"})):
            self.assertEqual(self.engine(**options).generate(text).cached, 0, options)
        self.assertEqual(self.engine().generate(text).cached, 64)

    def test_roles(self):
        text = prompt(7, 64)
        writer, reader = self.engine(options={"load": False}), self.engine(options={"store": False})
        self.assertEqual(reader.generate(text).cached, 0)
        stored(reader)
        self.assertEqual(writer.generate(text).cached, 0)
        stored(writer)
        self.assertEqual(self.engine(options={"store": False}).generate(text).cached, 64)


class Control(Simulated):
    def test_swapped_pages_are_noticed(self):
        first, text = self.engine(), prompt(10, 64)
        first.generate(text)
        stored(first)

        def swap(original, worker, part):
            size = worker.identity.key_bytes
            keys = [part.keys[i : i + size] for i in range(0, len(part.keys), size)]
            part.keys = b"".join(reversed(keys))
            return original(worker, part)

        with self.assertRaises(WrongBytes):
            self.engine(connector=hooked(_load_part=swap)).generate(text)

    def test_nothing_stays_held(self):
        engine = self.engine()
        for n in range(4):
            engine.generate(prompt(11, 40 + 8 * n))
            stored(engine)
        again = self.engine()
        again.generate(prompt(11, 64))
        stored(again)
        self.check_none_held()


class Trouble(Simulated):
    """A daemon for each test."""

    def setUp(self):
        super().setUp()
        self.daemon = Daemon(size="64M")
        self.addCleanup(self.daemon.remove)

    def fill(self, text, **options):
        engine = self.engine(**options)
        request = engine.generate(text, 8)
        stored(engine)
        return request.tokens

    def dying_load(self, policy, after=0, **options):
        """The daemon is killed in a load, when so many parts of it are done."""
        text = prompt(20, 64)
        want = self.fill(text, **options)

        def die(original, worker, part):
            self.daemon.end(signal.SIGKILL)
            return original(worker, part)

        engine = self.engine(connector=hooked(_load_part=die), policy=policy, **options)
        return engine, engine.generate(text, 8), want

    def test_the_daemon_dies_in_a_load(self):
        engine, request, want = self.dying_load("recompute")
        self.assertEqual((request.finish, request.tokens), ("length", want))
        self.assertEqual(engine.stats["load_failures"], 8)

    def test_the_daemon_dies_in_a_load_of_several_groups(self):
        _, request, want = self.dying_load("recompute", block_tokens=(8, 8), windows=(0, 20))
        self.assertEqual((request.finish, request.tokens), ("length", want))

    def test_the_daemon_dies_in_a_load_that_must_not_fail(self):
        _, request, _ = self.dying_load("fail")
        self.assertEqual(request.finish, "error")

    def test_a_load_lives_that_was_copied_when_the_daemon_died(self):
        text = prompt(21, 64)
        want = self.fill(text)

        def die(original, worker, *args):
            self.daemon.end(signal.SIGKILL)
            return original(worker, *args)

        # Each region was mapped before the first copy; what is held stays.
        engine = self.engine(connector=hooked(_load_done=die))
        request = engine.generate(text, 8)
        self.assertEqual((request.tokens, request.cached), (want, 64))

    def test_no_daemon_at_first(self):
        self.daemon.end()
        engine, text = self.engine(), prompt(22, 64)
        engine.generate(text)
        self.daemon.start()
        for connector in engine.connectors:
            self.until(lambda c=connector: c._link.up)
        engine.generate(text[:56] + prompt(1, 16))
        stored(engine)
        self.assertEqual(self.engine().generate(text).cached, 56)

    def test_the_daemon_comes_back(self):
        engine, text = self.engine(caching=False), prompt(23, 64)
        engine.generate(text)
        stored(engine)
        self.daemon.end(signal.SIGKILL)
        self.assertEqual(engine.generate(text).cached, 0)
        self.daemon.start()
        for connector in engine.connectors:
            self.until(lambda c=connector: c._link.up and c._link._reconnects == 1)
        self.assertEqual(engine.generate(text).cached, 0)
        stored(engine)
        self.assertEqual(engine.generate(text).cached, 64)

    def until(self, condition):
        """The link's thread looks once a second; this waits for what it sees."""
        import time

        end = time.monotonic() + WAIT
        while not condition():
            self.assertLess(time.monotonic(), end)
            threading.Event().wait(0.02)

    def test_a_daemon_that_hangs_blocks_nobody(self):
        engine, text = self.engine(options={"timeout": 2.0}), prompt(24, 64)
        os.kill(self.daemon.pid, signal.SIGSTOP)
        try:
            for n in range(6):
                engine.generate(prompt(n, 64))
            self.assertEqual(engine.stats.get("load_failures", 0), 0)
        finally:
            os.kill(self.daemon.pid, signal.SIGCONT)
        self.assertEqual(engine.generate(text).finish, "length")

    def test_a_full_pool(self):
        # 64 MiB in blocks of 512 KiB, of which another session holds most
        held = _kvbm.Session(socket=self.daemon.socket)
        self.addCleanup(held.close)
        ns = held.attach(name="hog", block_bytes=1 << 20, key_bytes=16)
        taken = []
        try:
            while True:
                taken += ns.reserve(1, None, 0)[0]
        except _kvbm.NoSpace:
            pass
        engine = self.engine()
        request = engine.generate(prompt(25, 64), 8)
        stored(engine)
        self.assertEqual(request.finish, "length")
        ns.release(taken)
        self.assertNotIn("store_skipped_away", engine.stats)


class Lower(Simulated):
    """With NVMe below memory: the engine is told to ask again until what is there is up."""

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory(prefix="kvbmd-test-")
        self.addCleanup(folder.cleanup)
        self.daemon = Daemon(f"--g3.path={folder.name}/g3", "--g3.size=256M", "--g3.write=through", size="64M")
        self.addCleanup(self.daemon.remove)

    def restart(self):
        """Once all is on NVMe; and until all that is there was found again."""
        while any(n["used"] != n["g3_in_both"] for n in json.loads(_info(self.daemon.socket, "namespaces"))):
            threading.Event().wait(0.02)
        self.daemon.end()
        self.daemon.start()
        while json.loads(_info(self.daemon.socket, "status"))["health"] != "ok":
            threading.Event().wait(0.02)

    def test_a_prefix_outlives_the_daemon(self):
        for options in (dict(block_tokens=(128,)), dict(block_tokens=(128, 128), windows=(0, 200))):
            with self.subTest(options):
                options.update(num_blocks=16, budget=200)
                first, text = self.engine(**options), prompt(60, 300)
                want = first.generate(text).tokens
                stored(first)
                first.close()
                self.restart()
                second = self.engine(**options)
                request = second.generate(text)
                self.assertEqual((request.tokens, request.cached), (want, 256))
                self.assertEqual((second.stats["hit_disk_tokens"], second.stats["hit_host_tokens"]), (256, 0))
                self.check_none_held()

    def test_abort_while_it_comes_up(self):
        first, text = self.engine(block_tokens=(128,), num_blocks=16), prompt(61, 300)
        first.generate(text)
        stored(first)
        first.close()
        self.restart()
        second = self.engine(block_tokens=(128,), num_blocks=16)
        for n in range(4):
            second.add(f"r{n}", text)
            if n % 2:
                second.step()
            second.abort(f"r{n}")
            second.run()
        self.assertTrue(second.scheduler._scheduler._desk.drain(WAIT))
        stored(second)
        self.check_none_held()


class Scheduling(Simulated):
    def test_preemption(self):
        want = {i: self.engine(options={"load": False, "store": False}).generate(prompt(i, 40), 60).tokens for i in range(4)}
        for caching in (True, False):
            engine = self.engine(num_blocks=22, caching=caching)
            for i in range(4):
                engine.add(str(i), prompt(i, 40), 60)
            engine.run()
            self.assertEqual({int(r.request_id): r.tokens for r in engine.done}, want)
            self.assertGreater(sum(r.num_preemptions for r in engine.done), 0)
            stored(engine)

    def test_abort_in_a_load(self):
        text = prompt(30, 64)
        first = self.engine()
        first.generate(text)
        stored(first)
        arrived, go = threading.Event(), threading.Event()

        def wait(original, worker, part):
            arrived.set()
            go.wait(WAIT)
            return original(worker, part)

        engine = self.engine(connector=hooked(_load_part=wait))
        engine.add("a", text)
        engine.step()
        self.assertTrue(arrived.wait(WAIT))
        engine.abort("a")
        for _ in range(3):
            engine.step()
        self.assertIn("a", engine.requests)  # its blocks are being written
        go.set()
        engine.run()
        self.assertEqual(engine.done[0].finish, "abort")
        self.assertEqual(engine.generate(text, request_id="a").finish, "length")
        stored(engine)
        self.check_none_held()

    def test_abort_before_it_is_placed(self):
        text = prompt(31, 64)
        first = self.engine()
        first.generate(text)
        stored(first)
        engine = self.engine(num_blocks=10)
        engine.add("big", prompt(32, 56), 10)
        engine.step()
        engine.add("a", text)
        engine.step()
        engine.abort("a")
        engine.run()
        stored(engine)
        self.check_none_held()

    def test_a_store_never_reads_what_was_given_away(self):
        """The storing thread stands still while the engine writes over its blocks: what is stored later must be right."""
        gate = threading.Event()

        def wait(original, worker, store):
            gate.wait(WAIT)
            return original(worker, store)

        engine = self.engine(num_blocks=12, caching=False, connector=hooked(_store=wait))
        texts = [prompt(40 + i, 64) for i in range(6)]
        want = [engine.generate(t).tokens for t in texts]
        gate.set()
        stored(engine)
        self.assertGreater(engine.workers[0]._counts.total.get("store_skipped_overwritten", 0), 0)
        again = self.engine()
        self.assertEqual([again.generate(t).tokens for t in texts], want)

    def test_seeds(self):
        for seed in range(int(os.environ.get("KVBM_VLLM_SEEDS", "30"))):
            with self.subTest(seed=seed):
                self.soak(seed)

    def soak(self, seed):
        r = random.Random(seed)
        groups = r.choice([dict(), dict(), dict(block_tokens=(8, 8), windows=(0, 20)), dict(block_tokens=(16, 8), windows=(0, 12))])
        options = dict(groups, num_blocks=r.choice([24, 40, 80]), tp=r.choice([1, 1, 2]), caching=r.random() < 0.6, budget=r.choice([16, 40, 200]))
        engines = [Engine(self.daemon.socket, name=self.id(), **options) for _ in range(2)]
        try:
            base = [prompt(seed * 100 + i, 64) for i in range(3)]
            for i in range(14):
                engine = r.choice(engines)
                text = r.choice(base)[: r.randrange(8, 65)] + prompt(r.randrange(6), r.randrange(1, 16))
                engine.add(f"{seed}-{i}", text, r.randrange(1, 30))
                for _ in range(r.randrange(8)):
                    for e in engines:
                        if e.requests:
                            e.step()
                if r.random() < 0.2:
                    engine.abort(f"{seed}-{r.randrange(i + 1)}")
            for engine in engines:
                engine.run()
                stored(engine)
        finally:
            for engine in engines:
                engine.close()


class Around(Simulated):
    def test_hints(self):
        engine = self.engine()
        known = [
            {"action_id": "1", "action_type": "kv.retain", "action_version": "1.0", "payload": {"directives": [{"start": 0, "end": 32, "priority": 90, "duration": 5}]}},
            {"action_id": "2", "action_type": "kv.prefetch", "action_version": "1.0", "payload": {}},
            {"action_id": "3", "action_type": "kv.deref", "action_version": "1.0", "payload": {}},
        ]
        unknown = [{"action_id": "4", "action_type": "kv.levitate", "action_version": "9", "payload": None}]
        engine.add("a", prompt(50, 64), hints={"protocol_version": "0.1", "message_id": "m", "actions": known + unknown})
        engine.run()
        self.assertEqual((engine.stats["hints"], engine.stats["hints_unknown"]), (3, 1))

    def test_events(self):
        """Each block once, in order, with its parent and tokens, when all ranks have stored it."""

        class Stored:
            def __init__(self, **fields):
                self.__dict__.update(fields)

        before, api.event_types = api.event_types, lambda: (Stored, Stored)
        self.addCleanup(setattr, api, "event_types", before)
        engine, text = self.engine(tp=2, events=True), prompt(52, 64)
        engine.generate(text)
        stored(engine)
        engine.generate(prompt(53, 4))  # what was stored is told with the next step
        told = [e for e in engine.all_events if e.token_ids[0] in text]
        self.assertEqual([t for e in told for t in e.token_ids][:64], text)
        self.assertEqual([e.parent_block_hash for e in told], [None] + [e.block_hashes[0] for e in told[:-1]])
        self.assertEqual({e.medium for e in told}, {"CPU"})

    def test_hints_of_any_shape(self):
        class Odd:
            kv_hints = {"actions": [None, 7, {"action_type": "kv.retain", "payload": {"directives": [1, {"start": "x", "end": -4}]}}]}
            kv_transfer_params = {"kv_hint": [[]]}

        found = hints.actions_of(Odd)
        self.assertEqual([kind for kind, _ in found], ["None", "None", "kv.retain"])
        self.assertEqual(hints.calls_of("kv.retain", found[2][1], 4, 8), [])

    def test_what_is_not_supported_says_so(self):
        with self.assertLogs(api.logger, "ERROR") as log:
            engine = self.engine(block_tokens=(8, 12), windows=(0, 0))
        self.assertIn("nothing is cached", log.output[0])
        self.assertEqual(engine.generate(prompt(51, 48)).finish, "length")

    def test_a_worker_that_cannot(self):
        """Its engine asks once in vain, and no more."""
        text = prompt(54, 64)
        first = self.engine()
        first.generate(text)
        stored(first)

        def refuse(original, worker, kv_caches, num_blocks):
            raise layout.BadLayout("for a test")

        with self.assertLogs(api.logger, "ERROR") as log:
            engine = self.engine(connector=hooked(register=refuse), caching=False)
        self.assertIn("for a test", log.output[0])
        for _ in range(3):
            self.assertEqual(engine.generate(text).finish, "length")
        self.assertEqual((engine.external, engine.stats["load_failures"]), (64, 8))

    def test_layouts_that_make_no_sense(self):
        class Tensor:
            shape, device = (3, 5), None

            def stride(self):
                return (5, 1)

            def element_size(self):
                return 2

            def data_ptr(self):
                return 4096

        with self.assertRaises(layout.BadLayout):
            layout.runs_of(Tensor(), 7)

    def test_copies_are_checked(self):
        session = _kvbm.Session(socket=self.daemon.socket)
        self.addCleanup(session.close)
        ns = session.attach(name="checked", block_bytes=4096, key_bytes=16)
        (hold,), _ = ns.reserve(1, None, 0)
        segment = b"".join(n.to_bytes(8, "little") for n in (4096, 16, 4090, 16))
        block = bytes(8)
        for holds, blocks, segments, lane in (
            ([hold], block, segment, 0),
            ([hold], block[:4], b"", 0),
            ([hold], b"\xff" * 8, b"", 0),
            ([hold], block, b"", 1),
            ([hold], block, b"x", 0),
        ):
            with self.assertRaises(ValueError):
                ns.copy_pages(holds, blocks, segments, lane, True)
        with self.assertRaises(ValueError):
            ns.copy_pages([hold], block, b"", 0, False)
        ns.copy_pages([hold, None], block * 2, b"", 0, True)
        ns.release([hold])
        with self.assertRaises(_kvbm.NotHeld):
            ns.copy_pages([hold], block, b"", 0, True)


if __name__ == "__main__":
    unittest.main()
