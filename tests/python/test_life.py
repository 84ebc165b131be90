"""Deaths: of the daemon under a live array, of a forked child, of this process; and the life of a private kvbmd."""

import gc
import glob
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

from tests.python.case import BUILD, SMALL, WAIT, Case, Daemon, _kvbm, forked, from_dlpack, keys, kvbmd, needs_numpy, numpy, wait_end
from tests.python.capsule import Consumer


class DaemonDies(Case):
    def setUp(self):
        super().setUp()
        self.daemon = Daemon(size="16M")
        self.addCleanup(self.daemon.remove)
        self.addCleanup(gc.collect)

    def check_nothing_left(self):
        pass  # the session is closed after the daemon is removed; counted in tearDown

    def tearDown(self):
        self.doCleanups()
        gc.collect()
        self.assertEqual(_kvbm.live(), self.before[0])

    def test_live_arrays_stay_readable(self):
        bm = self.open()
        self.store(bm, keys(4))
        found = bm.match(keys(4))
        view = memoryview(found[0])
        consumer = Consumer(found[1].__dlpack__(max_version=(1, 0)))
        array = from_dlpack(found[2]) if numpy else None
        writer = bm.allocate_blocks(1)
        writing = memoryview(writer[0])
        self.daemon.end(signal.SIGKILL)
        self.assertEqual(bytes(view), b"\1" * 4096)
        self.assertEqual(consumer.bytes(4096), b"\2" * 4096)
        if numpy:
            self.assertEqual(bytes(array.tobytes()), b"\3" * 4096)
        self.assertEqual(len(bm.match(keys(4))), 0)
        for call in (bm.ping, lambda: bm.allocate_blocks(1), lambda: bm.stat(keys(1)), lambda: bm.info("status")):
            with self.assertRaises(kvbmd.Gone) as caught:
                call()
            self.assertIsInstance(caught.exception, ConnectionError)
        self.assertEqual(bytes(found[3])[:1], b"\4")  # its region was mapped
        writing.cast("B")[:] = b"x" * 4096
        with self.assertRaises(BufferError):
            writer.commit(keys(1, 50))
        self.assertEqual(bytes(writing), b"x" * 4096)
        writing.release()
        with self.assertRaises(kvbmd.Gone):
            writer.commit(keys(1, 50))
        # another daemon, with an empty cache
        self.daemon.start()
        bm.ping()
        self.assertEqual(bm.counters["reconnects"], 1)
        self.assertEqual(len(bm.match(keys(4))), 0)
        self.store(bm, keys(4), fill=100)
        self.assertEqual(bytes(bm.match(keys(4))[0])[:1], b"\x64")
        self.assertEqual(bytes(view), b"\1" * 4096)
        self.assertEqual(consumer.bytes(4096), b"\2" * 4096)
        with self.assertRaises(kvbmd.Stale):
            writer.commit(keys(1, 50))
        found.release()
        self.assertEqual(bytes(view), b"\1" * 4096)
        view.release()
        consumer.delete()

    def test_a_block_not_yet_mapped_is_lost(self):
        writer = self.open()
        self.store(writer, keys(1))
        reader = self.open()
        found = reader.match(keys(1))
        self.daemon.end(signal.SIGKILL)
        with self.assertRaises(kvbmd.Stale):
            memoryview(found[0])
        found.release()

    def test_closing_without_a_daemon(self):
        bm = self.open()
        blocks = bm.allocate_blocks(2)
        self.daemon.end(signal.SIGKILL)
        bm.close()
        self.assertFalse(blocks._holds[0].state != "released")


class Fork(Case):
    def test_a_forked_childs_calls_say_so(self):
        bm = self.open()
        self.store(bm, keys(2))
        found, blocks = bm.match(keys(2)), bm.allocate_blocks(1)
        capsule = found[0].__dlpack__(max_version=(1, 0))

        def child():
            for call in (
                lambda: bm.match(keys(2)),
                lambda: bm.allocate_blocks(1),
                lambda: bm.stat(keys(1)),
                lambda: bm.info("status"),
                lambda: blocks.commit(keys(1)),
                lambda: memoryview(found[0]),
                lambda: found[0].__dlpack__(max_version=(1, 0)),
                bm.ping,
                bm.dispatch,
            ):
                try:
                    call()
                except kvbmd.Forked as error:
                    assert error.code == 16, error.code
                else:
                    raise AssertionError(call)
            found.release()
            blocks.release()
            bm.close()
            gc.collect()
            mine = kvbmd.BlockManager(**SMALL, socket=self.daemon.socket, namespace=bm.namespace)
            assert bytes(mine.match(keys(2))[1]) == b"\2" * 4096
            mine.close()

        self.assertEqual(forked(child), 0)
        self.assertEqual(bytes(found[1]), b"\2" * 4096)
        self.assertEqual(bm.drop(keys(2)), (0, 2))  # the child let go of nothing of ours
        self.assertEqual(blocks.commit(keys(3)[2:]), 1)
        del capsule

    def test_a_child_that_just_ends(self):
        bm = self.open()
        self.store(bm, keys(1))
        found = bm.match(keys(1))
        self.assertEqual(forked(lambda: None), 0)
        self.assertEqual(bytes(found[0])[:1], b"\1")
        bm.ping()


class Embedded(unittest.TestCase):
    """A folder of our own for sockets shows what is left."""

    def setUp(self):
        gc.collect()
        self.before = (_kvbm.live(), len(os.listdir("/proc/self/fd")))
        folder = tempfile.TemporaryDirectory(prefix="kvbmd-test-")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.addCleanup(self.check_nothing_left)
        changed = {"XDG_RUNTIME_DIR": self.folder, "TMPDIR": self.folder}
        for name in ("KVBM_SOCKET", "RUNTIME_DIRECTORY", *changed):
            self.addCleanup(os.environ.__setitem__, name, os.environ[name]) if name in os.environ else self.addCleanup(os.environ.pop, name, None)
            os.environ.pop(name, None)
        os.environ.update(changed)

    def check_nothing_left(self):
        gc.collect()
        self.assertEqual(os.listdir(self.folder), [])
        self.assertEqual((_kvbm.live(), len(os.listdir("/proc/self/fd"))), self.before)

    def run_python(self, text, **more):
        environment = {**os.environ, "PYTHONPATH": os.path.join(BUILD, "python"), "KVBM_BUILD": BUILD}
        return subprocess.Popen([sys.executable, "-c", text], env=environment, stdout=subprocess.PIPE, text=True, **more)

    def test_nobody_listens_so_a_private_one_does(self):
        bm = kvbmd.BlockManager(**SMALL, host_num_blocks=32)
        daemon = bm.embedded
        self.assertEqual(sorted(os.listdir(self.folder)), [os.path.basename(daemon.socket), os.path.basename(daemon.socket) + ".lock"])
        self.assertEqual(os.stat(daemon.socket).st_mode & 0o777, 0o600)
        self.assertIsNone(daemon.child.status)
        blocks = bm.allocate_blocks(4)
        self.assertEqual(blocks.commit(keys(4)), 4)
        view = memoryview(blocks[0])
        bm.close()
        self.assertTrue(wait_end(daemon.pid))
        self.assertEqual(daemon.child.status, 0)
        self.assertEqual(view.nbytes, 4096)
        view.release()

    def test_it_has_room_for_the_blocks_that_were_asked_for(self):
        for count, shape in ((1, {}), (100, {}), (67, dict(inner_dim=1000)), (9, dict(inner_dim=40000)), (3, dict(lanes=3, lane=kvbmd.ALL_LANES, inner_dim=500))):
            with kvbmd.BlockManager(**{**SMALL, **shape}, host_num_blocks=count, embedded=True) as bm:
                self.assertEqual(len(bm.allocate_blocks(hashes=keys(count))), count)

    def test_somebody_listens_so_he_serves(self):
        daemon = Daemon()
        self.addCleanup(daemon.remove)
        os.environ["KVBM_SOCKET"] = daemon.socket
        with kvbmd.BlockManager(**SMALL) as bm:
            self.assertIsNone(bm.embedded)
            self.assertEqual(bm.info("status")["pid"], daemon.pid)
        with kvbmd.BlockManager(**SMALL, embedded=True) as bm:
            self.assertNotEqual(bm.info("status")["pid"], daemon.pid)
        del os.environ["KVBM_SOCKET"]
        os.environ["RUNTIME_DIRECTORY"] = daemon.folder + ":/nonexistent"
        with kvbmd.BlockManager(**SMALL, embedded=False) as bm:
            self.assertEqual(bm.info("status")["pid"], daemon.pid)

    def test_never_and_nowhere(self):
        with self.assertRaises(kvbmd.System) as caught:
            kvbmd.BlockManager(**SMALL, embedded=False)
        self.assertEqual(caught.exception.errno, 2)
        os.environ["KVBM_SOCKET"] = os.path.join(self.folder, "nobody.sock")
        with self.assertRaises(kvbmd.System):  # who names a socket wants that one
            kvbmd.BlockManager(**SMALL)

    def test_a_program_that_does_not_serve(self):
        for program, what in (("/bin/false", "ended at once, with status 1"), ("/bin/true", "ended at once, with status 0")):
            os.environ["KVBMD"] = program
            self.addCleanup(os.environ.pop, "KVBMD", None)
            with self.assertRaisesRegex(RuntimeError, what):
                kvbmd.BlockManager(**SMALL)
        broken = os.path.join(self.folder, "kvbmd")
        with open(broken, "w", encoding="ascii") as f:
            f.write("this is no program")
        os.chmod(broken, 0o755)
        os.environ["KVBMD"] = broken
        with self.assertRaises(OSError):
            kvbmd.BlockManager(**SMALL)
        os.unlink(broken)

    def test_bad_settings_are_in_the_text(self):
        with self.assertRaisesRegex(RuntimeError, "g2.size"):
            kvbmd.Embedded(host_bytes=1)

    def test_dropped_managers_take_their_daemon_along(self):
        bm = kvbmd.BlockManager(**SMALL, host_num_blocks=8)
        pid = bm.embedded.pid
        del bm
        gc.collect()
        self.assertTrue(wait_end(pid))

    def test_two_managers_have_two(self):
        with kvbmd.BlockManager(**SMALL, host_num_blocks=8) as one, kvbmd.BlockManager(**SMALL, host_num_blocks=8) as two:
            self.assertNotEqual(one.embedded.pid, two.embedded.pid)
            with kvbmd.BlockManager(**SMALL, namespace="third", share=one) as three:
                self.assertEqual(three.embedded.pid, one.embedded.pid)
                one.close()
                three.ping()

    def test_killed_ones_leave_no_socket(self):
        bm = kvbmd.BlockManager(**SMALL, host_num_blocks=8)
        os.kill(bm.embedded.pid, signal.SIGKILL)
        self.assertTrue(wait_end(bm.embedded.pid))
        with self.assertRaises(kvbmd.Gone):
            bm.ping()
        bm.close()

    def test_the_thread_that_opened_it_may_end(self):
        opened = []
        thread = threading.Thread(target=lambda: opened.append(kvbmd.BlockManager(**SMALL, host_num_blocks=8)))
        thread.start()
        thread.join()
        opened[0].ping()
        self.assertEqual(opened[0].allocate_blocks(1).commit(keys(1)), 1)
        opened.pop().close()

    def test_a_forked_child_ends_nothing(self):
        bm = kvbmd.BlockManager(**SMALL, host_num_blocks=8)

        def child():
            bm.close()
            daemon._finalizer()  # as at an interpreter's end

        daemon = bm.embedded
        self.assertEqual(forked(child), 0)
        bm.ping()
        bm.close()

    OPEN = "import kvbmd, os, sys, time\nbm = kvbmd.BlockManager(num_layers=1, page_size=1, inner_dim=64, host_num_blocks=8)\nprint(bm.embedded.pid, flush=True)\n"

    INTERRUPT = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\nos.kill(os.getpid(), signal.SIGINT)\n"

    def test_the_interpreters_end_is_its_end(self):
        for ending, status in (("", 0), ("sys.exit(3)", 3), ("raise SystemExit(4)", 4), ("view = memoryview(bm.allocate_blocks(1)[0])", 0), ("os._exit(5)", 5), (self.INTERRUPT, -2)):
            process = self.run_python(self.OPEN + ending, stderr=subprocess.DEVNULL)
            pid = int(process.stdout.readline())
            self.assertEqual(process.wait(WAIT), status)
            process.stdout.close()
            self.assertTrue(wait_end(pid))
            self.assertEqual(os.listdir(self.folder), [])

    def test_the_process_is_killed(self):
        for how in (signal.SIGKILL, signal.SIGTERM):
            process = self.run_python(self.OPEN + "sys.stdin.read()", stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
            pid = int(process.stdout.readline())
            process.send_signal(how)
            process.wait(WAIT)
            process.stdout.close()
            process.stdin.close()
            self.assertTrue(wait_end(pid))
            self.assertEqual(os.listdir(self.folder), [], how)

    def test_nothing_of_ours_is_inherited(self):
        os.environ["KVBMD_G2_SIZE"] = "nonsense"
        self.addCleanup(os.environ.pop, "KVBMD_G2_SIZE", None)
        with tempfile.NamedTemporaryFile() as ours:
            os.set_inheritable(ours.fileno(), True)
            with kvbmd.BlockManager(**SMALL, host_num_blocks=8) as bm:
                theirs = [os.readlink(p) for p in glob.glob(f"/proc/{bm.embedded.pid}/fd/*") if os.path.lexists(p)]
                self.assertNotIn(ours.name, theirs)
                self.assertTrue(theirs)

    def allocate_patiently(self, bm):
        """On a slow disk all memory may be on its way down for longer than the daemon waits."""
        end = time.monotonic() + WAIT
        while True:
            try:
                return bm.allocate_blocks(1)
            except kvbmd.NoSpace:
                if time.monotonic() > end:
                    raise

    def test_disk_where_there_is_one(self):
        program = os.path.join(BUILD, "kvbmd")
        sample = subprocess.run([program, "--print-sample-config"], stdout=subprocess.PIPE, check=True).stdout
        if b"[g3]" not in sample:
            with self.assertRaises(NotImplementedError):
                kvbmd.BlockManager(**SMALL, host_num_blocks=8, disk_num_blocks=100)
            return
        # 1 MiB a block, so that memory is what was asked for
        with kvbmd.BlockManager(num_layers=2, page_size=16, inner_dim=8192, host_num_blocks=8, disk_num_blocks=64) as bm:
            self.assertIn("g3", [t["name"] for t in bm.info("tiers")])
            room = bm.info("namespaces")[0]["max_slots"]
            total = 2 * room
            for i in range(total):
                with self.allocate_patiently(bm) as blocks:
                    with memoryview(blocks[0]) as view:
                        view.cast("B")[:] = bytes([i]) * view.nbytes
                    blocks.commit(keys(1, i), keys(total)[i - 1] if i else None)
            self.assertLess(bm.peek(keys(total)), total)
            found = bm.onboard(keys(4))
            self.assertEqual(found.status, [kvbmd.Status.DONE] * 4)
            self.assertEqual([bytes(block)[-1] for block in found], [0, 1, 2, 3])
            self.assertEqual(bm.prefetch(keys(8)), 8)


if __name__ == "__main__":
    unittest.main()
