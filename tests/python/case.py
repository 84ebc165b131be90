"""What the tests of the Python package share: a kvbmd of their own, and counts of what is alive before and after each test.

Modules that need the extension import this first: without one they are skipped, with the reason.
"""

import gc
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import unittest

BUILD = os.path.abspath(os.environ.get("KVBM_BUILD", "build"))
SOURCE = os.path.abspath(os.environ.get("KVBM_SOURCE", "."))
if os.path.isdir(os.path.join(BUILD, "python")):
    sys.path.insert(0, os.path.join(BUILD, "python"))

try:
    import kvbmd
    from kvbmd import _kvbm
except ImportError as error:  # Python.h was not there
    print(f"skipped: the Python package is not built: {error}")
    sys.exit(77)

numpy = None
if not os.environ.get("KVBM_NO_NUMPY"):  # valgrind takes long to load it
    try:
        import numpy
    except ImportError:
        pass

SMALL = dict(num_layers=2, page_size=4, inner_dim=64, dtype="fp32")  # 4096 bytes a block
WAIT = 30


def keys(n, start=0, size=16):
    """n hashes."""
    return [(0x5EED0000 + start + i).to_bytes(size, "big") for i in range(n)]


class Daemon:
    """A kvbmd with a folder of its own, which can be killed and started again."""

    def __init__(self, *flags, size="128M"):
        self.folder = tempfile.mkdtemp(prefix="kvbmd-test-")
        self.socket = os.path.join(self.folder, "kvbmd.sock")
        self.log = os.path.join(self.folder, "log")
        self.flags = [f"--g2.size={size}", *flags]
        self.process = None
        self.start()

    def start(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, open(self.log, "ab") as log:
            notify.bind("")
            environment = {k: v for k, v in os.environ.items() if not k.startswith(("KVBMD_", "LISTEN_", "WATCHDOG_"))}
            environment["NOTIFY_SOCKET"] = "@" + notify.getsockname()[1:].decode()
            program = [os.path.join(BUILD, "kvbmd"), "--config=/dev/null", f"--daemon.socket={self.socket}", *self.flags]
            self.process = subprocess.Popen(program, env=environment, stdout=log, stderr=log)
            notify.settimeout(WAIT)
            while b"READY=1" not in notify.recv(4096).split(b"\n"):
                pass

    @property
    def pid(self):
        return self.process.pid

    def end(self, how=signal.SIGTERM):
        """Sends a signal and waits for the end."""
        if self.process:
            self.process.send_signal(how)
            self.process.wait(WAIT)
            self.process = None

    def remove(self):
        self.end()
        subprocess.run(["rm", "-rf", self.folder], check=True)


def wait_end(pid):
    """Waits until a process that need not be our child has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], WAIT)[0])
    finally:
        os.close(fd)


class Case(unittest.TestCase):
    """One daemon for all tests of a class (each with a namespace of its own); nothing stays alive after a test."""

    FLAGS = ()
    SIZE = "128M"  # each namespace takes a region of 2 MiB
    daemon = None

    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon(*cls.FLAGS, size=cls.SIZE)
        cls.addClassCleanup(cls.daemon.remove)

    def setUp(self):
        gc.collect()
        self.before = (_kvbm.live(), len(os.listdir("/proc/self/fd")))
        self.addCleanup(self.check_nothing_left)

    def check_nothing_left(self):
        gc.collect()
        after = (_kvbm.live(), len(os.listdir("/proc/self/fd")))
        self.assertEqual(after, self.before, "(sessions, holds, views), descriptors")

    def open(self, **options):
        """A manager of small blocks in this test's namespace, closed after it."""
        settings = {**SMALL, "socket": self.daemon.socket, "namespace": self.id().rsplit(".", 1)[-1][:63], **options}
        bm = kvbmd.BlockManager(**settings)
        self.addCleanup(bm.close)
        return bm

    def store(self, bm, hashes, fill=1):
        """Commits a block for each hash, of bytes that are all fill + its position, and releases them."""
        blocks = bm.allocate_blocks(len(hashes))
        for i, block in enumerate(blocks):
            with memoryview(block) as view:
                view.cast("B")[:] = bytes([(fill + i) % 256]) * block.nbytes
        self.assertEqual(blocks.commit(hashes, hold=False), len(hashes))


class Watched(Case):
    """Blocks to export, and counts of what is held because of that."""

    def reserved(self, n=1, **options):
        bm = self.open(**options)
        return bm, bm.allocate_blocks(n)

    def committed(self, **options):
        if "namespace" in options:
            options["namespace"] = self.id().rsplit(".", 1)[-1][:50] + "." + options["namespace"]
        bm = self.open(**options)
        self.store(bm, keys(2))
        return bm, bm.match(keys(2))

    def held(self):
        """Blocks that are alive."""
        return _kvbm.live()[1] - self.before[0][1]

    def views(self):
        return _kvbm.live()[2] - self.before[0][2]


def needs_numpy(test):
    return unittest.skipUnless(numpy, "numpy is not here")(test)


def from_dlpack(view):
    """numpy.from_dlpack(), or what README says is for those before 2.1, which cannot be told that a block is read-only and make all others so."""
    return numpy.from_dlpack(view) if numpy.lib.NumpyVersion(numpy.__version__) >= "2.1.0" else numpy.asarray(view)


def forked(body):
    """Runs body in a forked child; its exit status, 0 if it returned."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            body()
            status = 0
        except BaseException as error:  # the parent sees the status, and the log why
            print(f"child: {error!r}", file=sys.stderr, flush=True)
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
