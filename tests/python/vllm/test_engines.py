"""The real vLLM on the CPU, with random weights, sharing kvbmd: every answer is compared with that of an engine without a cache.

Run by `make check-vllm`, which prepares what this needs (prepare.sh) and says where in $KVBM_VLLM_PYTHON, $KVBM_VLLM_SITE and $KVBM_VLLM_BEFORE.
"""

import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import unittest
import urllib.error
import urllib.request

from tests.python.case import BUILD, Daemon, _kvbm

HERE = os.path.dirname(os.path.abspath(__file__))
PYTHON = os.environ.get("KVBM_VLLM_PYTHON")
SITE = os.environ.get("KVBM_VLLM_SITE", "")
BEFORE = os.environ.get("KVBM_VLLM_BEFORE", "")
if not PYTHON:
    print("skipped: there is no vLLM; make check-vllm prepares one")
    sys.exit(77)

START, WAIT = 180, 120
BLOCK = 32
VOCABULARY = 1024


def prompt(seed, n):
    chosen = random.Random(seed)
    return [chosen.randrange(3, VOCABULARY) for _ in range(n)]


def environment(*paths):
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("KVBM", "VLLM_", "PYTHON", "LD_PRELOAD"))}
    return {**mine, "PYTHONPATH": os.pathsep.join([*paths, SITE, HERE]), "PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}  # fmt: skip


class Factory:
    """engines.py: forks engines of one vLLM."""

    def __init__(self, folder, *paths):
        self.socket, self.log = os.path.join(folder, "engines.sock"), os.path.join(folder, "engines.log")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [PYTHON, os.path.join(HERE, "engines.py"), self.socket], env=environment(*paths), stdout=subprocess.PIPE, stderr=log, cwd=folder,
                start_new_session=True,
            )  # fmt: skip
        if not select.select([self.process.stdout], [], [], START)[0] or b"ready" not in self.process.stdout.readline():
            self.end()
            raise AssertionError(f"vLLM does not start: {self.tail()}")

    def tail(self):
        with open(self.log, encoding="utf-8", errors="replace") as f:
            return f.read()[-4000:]

    def end(self):
        """Ends it, and engines that a failed test has left."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


class Engine:
    """One engine process."""

    def __init__(self, factory, settings, **more):
        self.factory = factory
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.settimeout(WAIT)
        self.connection.connect(factory.socket)
        self.lines = self.connection.makefile("rw", encoding="utf-8")
        self.about = self.ask(environment=more, settings=settings)

    def send(self, **command):
        self.lines.write(json.dumps(command) + "\n")
        self.lines.flush()

    def receive(self):
        line = self.lines.readline()
        if not line:
            raise AssertionError(f"the engine has ended: {self.factory.tail()}")
        return json.loads(line)

    def ask(self, **command):
        self.send(**command)
        return self.receive()

    def generate(self, prompts, new=24, together=False):
        return self.ask(do="generate", prompts=prompts, new=new, together=together)

    def stats(self):
        return self.ask(do="stats")

    def end(self):
        """Shuts down as an engine does, which stores what is waiting."""
        self.ask(do="end")
        self.close()

    def close(self):
        self.lines.close()
        self.connection.close()


SHARED = {}  # folder, model, and by the paths before vLLM's a factory with what its engines answered


def setUpModule():
    folder = tempfile.TemporaryDirectory(prefix="kvbmd-vllm-")
    unittest.addModuleCleanup(folder.cleanup)
    SHARED.update(folder=folder.name, model=os.path.join(folder.name, "model"))
    subprocess.run([PYTHON, os.path.join(HERE, "model.py"), SHARED["model"]], env=environment(), check=True, timeout=WAIT)


class Base(unittest.TestCase):
    PATHS = ()
    FLAGS = ()

    @classmethod
    def setUpClass(cls):
        cls.folder, cls.model = SHARED["folder"], SHARED["model"]
        if cls.PATHS not in SHARED:
            SHARED[cls.PATHS] = Factory(tempfile.mkdtemp(dir=cls.folder), *cls.PATHS), {}
            unittest.addModuleCleanup(SHARED[cls.PATHS][0].end)
        cls.factory, cls.answers = SHARED[cls.PATHS]

    def setUp(self):
        self.daemon = Daemon(*self.FLAGS, size="64M")
        self.addCleanup(self.daemon.remove)

    def settings(self, extra=None, policy="recompute", fault=None, **more):
        settings = dict(
            model=self.model, skip_tokenizer_init=True, enforce_eager=True, dtype="float32", max_model_len=512, block_size=BLOCK, enable_prefix_caching=True,
            prefix_caching_hash_algo="sha256_cbor", seed=0, disable_log_stats=False, max_num_seqs=8,
        )  # fmt: skip
        if extra is not None:
            transfer = {"kv_connector": "KvbmdConnector", "kv_role": "kv_both", "kv_load_failure_policy": policy}
            if fault:
                transfer.update(kv_connector="FaultyConnector", kv_connector_module_path="faults")
                extra = {"fault": fault, **extra}
            settings.update(kv_transfer_config={**transfer, "kv_connector_extra_config": {"socket": self.daemon.socket, **extra}}, keep_stats=True)
        settings.update(more)
        return settings

    def engine(self, extra=None, environment=None, **more):
        """Without extra: one that has no connector."""
        engine = Engine(self.factory, self.settings(extra, **more), **(environment or {}))
        self.addCleanup(engine.close)
        return engine

    def expected(self, prompts, new=24, **more):
        """What an engine without a cache answers, each prompt by itself; asked once for each prompt."""
        key = json.dumps(more)
        missing = [p for p in prompts if (key, new, tuple(p)) not in self.answers]
        if missing:
            engine = self.engine(enable_prefix_caching=False, **more)
            for p, tokens in zip(missing, engine.generate(missing, new)["tokens"]):
                self.answers[(key, new, tuple(p))] = tokens
            engine.end()
        return [self.answers[(key, new, tuple(p))] for p in prompts]

    def fifos(self):
        paths = [os.path.join(tempfile.mkdtemp(dir=self.folder), name) for name in ("at", "go")]
        for path in paths:
            os.mkfifo(path)
        return dict(zip(("at", "go"), paths))

    def report(self, topic):
        session = _kvbm.Session(socket=self.daemon.socket)
        try:
            return json.loads(session.info(topic))
        finally:
            session.close()

    def check_nothing_left(self):
        status = self.report("status")
        self.assertEqual((status["pins"], status["leases"]), (0, 0))
        self.assertEqual([n["writing"] for n in self.report("namespaces")], [0] * len(self.report("namespaces")))


PROMPTS = [prompt(1, 300)[:256], prompt(1, 300)[:192] + prompt(2, 70), prompt(3, 20)]
HITS = [256, 256, 0]  # of the second prompt the first engine stored 192 + 64; the third is less than a block


class Sharing(Base):
    def test_one_after_the_other(self):
        want = self.expected(PROMPTS)
        first = self.engine({})
        a = first.generate(PROMPTS)
        first.end()
        second = self.engine({})
        b = second.generate(PROMPTS)
        stats = second.stats()
        second.end()
        self.assertEqual(a["tokens"], want)
        self.assertEqual(b["tokens"], want)
        self.assertEqual(a["cached"], [0, 192, 0])
        self.assertEqual(b["cached"], HITS)
        # The second prompt's first 192 are the engine's own by then.
        self.assertEqual(stats["hit_tokens"], 256 + 64)
        self.assertEqual(stats["external_hits"], 256 + 64)
        self.assertEqual(stats["load_blocks"], (256 + 64) // BLOCK)
        self.assertNotIn("load_failures", stats)
        self.check_nothing_left()

    def test_events_through_vllms_publisher(self):
        engine = self.engine({}, kv_events_config={"enable_kv_cache_events": True, "publisher": "null"})
        engine.generate(PROMPTS)
        told = (256 + 64 + 32) // BLOCK  # what is new of each; the last was filled in decoding
        for _ in range(200):  # what was stored since is told with the next step
            if engine.stats()["events"] >= told:
                break
            engine.generate(PROMPTS[2:], 2)
        self.assertEqual(engine.stats()["events"], told)
        engine.end()

    def test_side_by_side(self):
        prompts = [PROMPTS[0][: 64 * n] + prompt(10 + n, 40) for n in range(1, 5)]
        want = self.expected(prompts)
        engines = [self.engine({}) for _ in range(2)]
        for start in range(2):  # both at work at the same time, on the same prompts in another order
            for at, engine in enumerate(engines):
                engine.send(do="generate", prompts=prompts if (start + at) % 2 else prompts[::-1], new=24)
            for at, engine in enumerate(engines):
                tokens = engine.receive()["tokens"]
                self.assertEqual(tokens, want if (start + at) % 2 else want[::-1])
        for engine in engines:
            engine.end()
        self.check_nothing_left()

    def test_a_control_with_swapped_pages_differs(self):
        want = self.expected(PROMPTS)
        first = self.engine({})
        first.generate(PROMPTS)
        first.end()
        swapped = self.engine({"store": False}, fault="swap")
        got = swapped.generate(PROMPTS)
        self.assertEqual(got["cached"], HITS)
        self.assertNotEqual(got["tokens"][0], want[0])
        self.assertNotEqual(got["tokens"][1], want[1])
        self.assertEqual(got["tokens"][2], want[2])

    def test_wrong_namespaces(self):
        first = self.engine({})
        first.generate(PROMPTS)
        first.end()
        want = self.expected(PROMPTS)
        for extra, variables in (({"namespace": "other"}, {}), ({"salt": "x"}, {}), ({}, {"PYTHONHASHSEED": "1"})):
            engine = self.engine(extra, environment=variables)
            got = engine.generate(PROMPTS)
            self.assertEqual((got["tokens"], got["cached"]), (want, [0, 192, 0]), (extra, variables))
            engine.end()

    def test_22_blocks_with_preemption(self):
        prompts = [prompt(20 + n, 150) for n in range(4)]
        want = self.expected(prompts, 120)
        for caching in (True, False):
            engine = self.engine({}, num_gpu_blocks_override=22, enable_prefix_caching=caching)
            for _ in range(2):
                self.assertEqual(engine.generate(prompts, 120, together=True)["tokens"], want)
            stats = engine.stats()
            engine.end()
            self.assertGreater(stats["hit_tokens"], 0)
        self.check_nothing_left()


class Lower(Base):
    """With NVMe below host memory."""

    def setUp(self):
        self.folder_g3 = tempfile.TemporaryDirectory(prefix="kvbmd-vllm-", dir=self.folder)
        self.addCleanup(self.folder_g3.cleanup)
        type(self).FLAGS = (f"--g3.path={self.folder_g3.name}/g3", "--g3.size=256M", "--g3.write=through")
        super().setUp()

    def restart(self):
        """Once all is on NVMe; and until all that is there was found again."""
        while any(n["used"] != n["g3_in_both"] for n in self.report("namespaces")):
            threading.Event().wait(0.02)
        self.daemon.end()
        self.daemon.start()
        while self.report("status")["health"] != "ok":
            threading.Event().wait(0.02)

    def test_a_prefix_outlives_engine_and_daemon(self):
        want = self.expected(PROMPTS)
        first = self.engine({})
        first.generate(PROMPTS)
        first.end()
        self.restart()
        second = self.engine({})
        b = second.generate(PROMPTS)
        stats = second.stats()
        second.end()
        self.assertEqual((b["tokens"], b["cached"]), (want, HITS))
        self.assertEqual(stats["hit_disk_tokens"], 256 + 64)
        self.check_nothing_left()


class Trouble(Base):
    def fill(self):
        engine = self.engine({})
        engine.generate(PROMPTS)
        engine.end()

    def die_in_load(self, policy):
        self.fill()
        want, at = self.expected(PROMPTS), self.fifos()
        engine = self.engine(at, policy=policy, fault="load")
        engine.send(do="generate", prompts=PROMPTS[:1], new=24)
        with open(at["at"], "rb"):
            self.daemon.end(signal.SIGKILL)
        with open(at["go"], "wb"):
            pass
        return engine, engine.receive(), want

    def test_the_daemon_dies_in_a_load(self):
        engine, got, want = self.die_in_load("recompute")
        self.assertEqual(got["tokens"], want[:1])
        self.assertEqual(engine.stats()["load_failures"], 8)
        # It goes on without a cache.
        self.assertEqual(engine.generate(PROMPTS[1:])["tokens"], want[1:])
        engine.end()

    def test_the_daemon_dies_in_a_load_that_must_not_fail(self):
        engine, got, want = self.die_in_load("fail")
        self.assertEqual(got["finish"], ["error"])
        self.assertEqual(engine.generate(PROMPTS[1:])["tokens"], want[1:])
        engine.end()

    def test_an_engine_dies_in_a_store(self):
        want, at = self.expected(PROMPTS), self.fifos()
        engine = self.engine(at, fault="store")
        engine.send(do="generate", prompts=PROMPTS, new=24)
        with open(at["at"], "rb"):
            self.assertEqual([n["writing"] for n in self.report("namespaces")], [8])
            watch = os.pidfd_open(engine.about["pid"])
            os.kill(engine.about["pid"], signal.SIGKILL)
        self.assertTrue(select.select([watch], [], [], WAIT)[0])
        os.close(watch)
        second = self.engine({})
        got = second.generate(PROMPTS)
        self.assertEqual((got["tokens"], got["cached"]), (want, [0, 192, 0]))
        second.end()
        third = self.engine({})
        got = third.generate(PROMPTS)
        self.assertEqual((got["tokens"], got["cached"]), (want, HITS))
        third.end()
        self.check_nothing_left()

    def test_abort_in_a_load(self):
        self.fill()
        want, at = self.expected(PROMPTS), self.fifos()
        engine = self.engine({**at, "store": False}, fault="load")

        # Its next load finds the same two at the FIFOs.
        def again():
            with open(at["at"], "rb"):
                pass
            with open(at["go"], "wb"):
                pass

        self.assertEqual(engine.ask(do="abort in load", prompt=PROMPTS[0], **at)["left"], 0)
        helper = threading.Thread(target=again)
        helper.start()
        self.assertEqual(engine.generate(PROMPTS[:1])["tokens"], want[:1])
        helper.join(WAIT)
        engine.end()
        self.check_nothing_left()

    def test_a_full_pool(self):
        session = _kvbm.Session(socket=self.daemon.socket)
        self.addCleanup(session.close)
        hog, taken = session.attach(name="hog", block_bytes=1 << 20, key_bytes=16), []
        with self.assertRaises(_kvbm.NoSpace):
            while True:
                taken += hog.reserve(1, None, 0)[0]
        engine = self.engine({})
        got = engine.generate(PROMPTS)
        self.assertEqual(got["tokens"], self.expected(PROMPTS))
        engine.end()

    def test_no_daemon(self):
        self.daemon.end()
        engine = self.engine({})
        got = engine.generate(PROMPTS)
        self.assertEqual((got["tokens"], got["cached"]), (self.expected(PROMPTS), [0, 192, 0]))
        engine.end()


@unittest.skipUnless(BEFORE, "there is no vLLM of before")
class Before(Base):
    PATHS = (BEFORE,)

    def test_the_version_before(self):
        want = self.expected(PROMPTS)
        engines = []
        for _ in range(2):
            engine = self.engine({}, keep_stats=False)
            engines.append((engine.about["version"], engine.generate(PROMPTS)))
            engine.end()
        self.assertEqual([v.split("+")[0] for v, _ in engines], [os.path.basename(BEFORE).removeprefix("vllm-")] * 2)
        self.assertEqual([got["tokens"] for _, got in engines], [want, want])
        self.assertEqual([got["cached"] for _, got in engines], [[0, 192, 0], HITS])
        self.check_nothing_left()


class Server:
    """vllm serve, as README has it."""

    def __init__(self, test, *flags):
        self.log = os.path.join(tempfile.mkdtemp(dir=test.folder), "serve.log")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [
            os.path.join(os.path.dirname(PYTHON), "vllm"), "serve", test.model, "--host=127.0.0.1", f"--port={self.port}", "--dtype=float32", "--enforce-eager",
            "--max-model-len=512", f"--block-size={BLOCK}", "--max-num-seqs=8", "--seed=0", *flags,
        ]  # fmt: skip
        # The command asks for the version of a package "vllm", which the CPU's build is not called.
        named = os.path.join(os.path.dirname(self.log), "vllm-0.32.0+cpu.dist-info")
        os.mkdir(named)
        with open(os.path.join(named, "METADATA"), "w", encoding="utf-8") as f:
            f.write("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
        variables = {**environment(os.path.dirname(named)), "KVBM_SOCKET": test.daemon.socket}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, env=variables, stdout=log, stderr=log, cwd=test.folder, start_new_session=True)
        self.watch = os.pidfd_open(self.process.pid)
        test.addCleanup(self.kill)
        # Its port opens when the engine is there; until then it is its own end that is waited for.
        for _ in range(START * 5):
            if select.select([self.watch], [], [], 0.2)[0]:
                raise AssertionError(f"vllm serve has ended: {self.tail()}")
            try:
                self.get("/health")
                return
            except (urllib.error.URLError, ConnectionError):
                pass
        raise AssertionError(f"vllm serve does not come up: {self.tail()}")

    def tail(self):
        with open(self.log, encoding="utf-8", errors="replace") as f:
            return f.read()[-4000:]

    def get(self, path, body=None):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode() if body else None, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=WAIT) as response:
            return response.read().decode()

    def complete(self, tokens, model):
        body = {"model": model, "prompt": tokens, "max_tokens": 24, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        return json.loads(self.get("/v1/completions", body))["choices"][0]["token_ids"]

    def metric(self, name, label=""):
        """Sum of a series over its labels."""
        lines = [line for line in self.get("/metrics").splitlines() if line.startswith(name + "{") and label in line]
        return int(sum(float(line.rsplit(" ", 1)[1]) for line in lines))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(WAIT)

    def kill(self):
        os.close(self.watch)
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


class Serve(Base):
    def test_20_prompts_over_http_and_a_restart(self):
        flag = """--kv-transfer-config={"kv_connector":"KvbmdConnector","kv_role":"kv_both","kv_load_failure_policy":"recompute"}"""
        prompts = [prompt(100 + n % 5, 160)[: 96 + 32 * (n % 3)] + prompt(200 + n, 17 + n) for n in range(20)]
        want = self.expected(prompts)
        cached = None
        for restarted in (False, True):
            server = Server(self, flag)
            got = [server.complete(p, self.model) for p in prompts]
            self.assertEqual(got, want)
            external = server.metric("vllm:external_prefix_cache_hits_total")
            own = server.metric("vllm:prefix_cache_hits_total")
            self.assertEqual(server.metric("vllm:kvbmd_hit_tokens_total"), external)
            self.assertEqual(server.metric("vllm:kvbmd_load_failures_total"), 0)
            if not restarted:
                # All within the engine's own cache: nobody else has stored anything.
                self.assertEqual(external, 0)
            else:
                # Every whole block of every prompt is there, from its own cache or from before the restart.
                self.assertEqual(external + own, sum(len(p) - len(p) % BLOCK for p in prompts))
                self.assertEqual(server.metric("vllm:prompt_tokens_by_source_total", 'source="external_kv_transfer"'), external)
                cached = external
            server.stop()
        self.assertGreater(cached, 0)
        self.check_nothing_left()


if __name__ == "__main__":
    unittest.main()
