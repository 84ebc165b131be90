"""The extension under valgrind, with everything that is refused and every death: nothing invalid is read or written, and no memory that it allocated is lost."""

import os
import shutil
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

from tests.python.case import BUILD, SOURCE, Daemon

# What is lost for good; what a library keeps to its end is reachable, or, by an interior pointer, possibly lost.
LOST = ("Leak_DefinitelyLost", "Leak_IndirectlyLost", "Leak_PossiblyLost")


def ours(error):
    """Whether a frame of the extension (libkvbm is in it) allocated, or did, it.  Python's own are not our concern, and with PYTHONMALLOC=malloc there are many."""
    frames = error.find("stack").findall("frame")
    if any(frame.findtext("fn") == "PyInit__kvbm" for frame in frames):
        return error.findtext("kind") != "Leak_PossiblyLost"  # types and exceptions live as long as the module: behind their GC headers, to valgrind
    return any("_kvbm" in (frame.findtext("obj") or "") for frame in frames)


def read(path):
    """A report's errors.  It has no end where the process became another program."""
    errors = []
    try:
        for _, element in xml.etree.ElementTree.iterparse(path):
            if element.tag == "error":
                errors.append(element)
    except xml.etree.ElementTree.ParseError:
        pass
    return errors


class Valgrind(unittest.TestCase):
    @unittest.skipUnless(shutil.which("valgrind"), "valgrind is not here")
    @unittest.skipIf("asan" in BUILD or "tsan" in BUILD, "a sanitizer is at it already")
    def test_nothing_is_lost(self):
        daemon = Daemon()
        self.addCleanup(daemon.remove)
        with tempfile.TemporaryDirectory() as folder:
            report = os.path.join(folder, "report")
            result = subprocess.run(
                ["valgrind", "--quiet", "--leak-check=full", "--show-leak-kinds=definite,indirect,possible", "--num-callers=30"]
                + ["--xml=yes", f"--xml-file={report}.%p", sys.executable, "-m", "tests.python.leaks", daemon.socket],
                cwd=SOURCE,
                env={**os.environ, "PYTHONMALLOC": "malloc", "PYTHONPATH": os.path.join(BUILD, "python"), "KVBM_NO_NUMPY": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=560,
                check=False,
            )
            self.assertEqual((result.returncode, result.stdout.split()[:1]), (0, ["done"]), result.stdout)
            reports = {int(name.rsplit(".", 1)[1]): read(os.path.join(folder, name)) for name in os.listdir(folder)}
        self.assertIn(int(result.stdout.split()[1]), reports)
        self.assertGreater(len(reports), 4)  # the children that leaks.py forks have theirs
        errors = [error for each in reports.values() for error in each]
        bad = [error for error in errors if ours(error)]
        for error in bad:
            for part in ("what", "xwhat/text"):
                print(error.findtext("kind"), error.findtext(part))
            for frame in error.find("stack").findall("frame"):
                print("   ", frame.findtext("fn"), frame.findtext("file"), frame.findtext("line"))
        lost = [error for error in bad if error.findtext("kind") in LOST]
        self.assertEqual((len(lost), len(bad)), (0, 0))


if __name__ == "__main__":
    unittest.main()
