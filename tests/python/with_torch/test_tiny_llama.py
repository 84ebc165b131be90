"""client/examples/tiny_llama.py: as README has it run, and with pages that are another prompt's, which must be noticed."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
import venv

from tests.python.case import BUILD, SOURCE, Case, kvbmd

try:
    import torch
except ImportError as error:
    print(f"skipped: {error}: name an interpreter that has it, make check-torch PYTHON=...")
    sys.exit(77)

EXAMPLE = os.path.join(SOURCE, "client", "examples", "tiny_llama.py")
LIMIT = 500


def load_example():
    spec = importlib.util.spec_from_file_location("tiny_llama", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Printed(Case):
    """What it says, run as a program."""

    def check_table(self, text):
        rows = {line[:20].strip(): line[20:].split() for line in text.splitlines()}
        self.assertEqual(rows["pages found"], ["0", "15"])
        self.assertEqual(rows["tokens computed"], ["1000", "40"])
        self.assertRegex(text, r"(?m)^time to first token +[\d.]+ ms +[\d.]+ ms   [\d.]+ times sooner$")
        without, found, verdict = rows["logits (sha256)"]
        self.assertEqual((without, verdict), (found, "identical"))

    def test_with_a_daemon_that_runs(self):
        environment = {**os.environ, "KVBM_SOCKET": self.daemon.socket, "PYTHONPATH": os.path.join(BUILD, "python")}
        for _ in range(2):  # what is there already changes nothing
            result = subprocess.run([sys.executable, EXAMPLE], env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
            self.assertEqual((result.returncode, result.stderr), (0, ""), result.stdout)
            self.check_table(result.stdout)

    def test_as_readme_has_it(self):
        """Its two commands, in a fresh virtual environment that finds this interpreter's torch, and in a copy of the tree."""
        with open(os.path.join(SOURCE, "README.md"), encoding="utf-8") as readme:
            commands = re.search(r"(?m)^((?:    .*\n)*    python3? client/examples/tiny_llama.py.*\n)", readme.read()).group(1)
        with tempfile.TemporaryDirectory(prefix="kvbmd-test-") as folder:
            home, tree = os.path.join(folder, "venv"), os.path.join(folder, "tree")
            venv.create(home, with_pip=True)
            (site,) = [os.path.join(r, "site-packages") for r, d, _ in os.walk(home) if "site-packages" in d]
            with open(os.path.join(site, "ours.pth"), "w", encoding="utf-8") as f:
                f.write(os.path.dirname(os.path.dirname(torch.__file__)) + "\n")
            for name in ("client", "proto", "include"):
                ignore = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
                shutil.copytree(os.path.join(SOURCE, name), os.path.join(tree, name), ignore=ignore)
            environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "KVBM_SOCKET", "KVBMD", "RUNTIME_DIRECTORY")}
            environment.update(KVBM_BUILD=BUILD, XDG_RUNTIME_DIR=folder, PATH=os.path.join(home, "bin") + ":" + environment["PATH"])
            result = subprocess.run(["sh", "-ec", commands], cwd=tree, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
            if re.search("No matching distribution|ConnectionError|NewConnectionError", result.stderr + result.stdout):
                self.skipTest("there is no package index")
            self.assertEqual(result.returncode, 0, result.stdout[-2000:] + result.stderr[-2000:])
            self.check_table(result.stdout)


class Answers(Case):
    """The same functions, called in this process."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        cls.addClassCleanup(torch.set_num_threads, threads)
        cls.tiny = load_example()
        cls.model = cls.tiny.Llama()

    def setUp(self):
        super().setUp()
        self.cache = kvbmd.BlockManager(**self.tiny.MODEL, socket=self.daemon.socket, namespace=self.id().rsplit(".", 1)[-1])
        self.addCleanup(self.cache.close)

    def prompt(self, n, seed=1):
        return torch.randint(self.tiny.VOCABULARY, (n,), generator=torch.Generator().manual_seed(seed)).tolist()

    def answer(self, prompt, count=4, look_up=True):
        result = self.tiny.answer(self.model, self.cache, prompt, count, look_up)
        return result["pages"], result["logits"], result["tokens"]

    def test_every_length_of_hit_gives_the_same_logits(self):
        page = self.tiny.PAGE
        for length in (1, page - 1, page, page + 1, 3 * page):
            prompt = self.prompt(length, seed=length)
            (none, logits, tokens), (some, again, tokens_again) = self.answer(prompt, look_up=False), self.answer(prompt)
            self.assertEqual((none, some), (0, (length - 1) // page))
            self.assertEqual((again, tokens_again), (logits, tokens), length)

    def test_the_next_turn_finds_what_decoding_stored(self):
        page = self.tiny.PAGE
        prompt = self.prompt(page + 40)
        _, _, tokens = self.answer(prompt, count=30)  # fills its second page
        chat = prompt + tokens + self.prompt(50, seed=2)
        self.assertEqual(self.answer(chat)[0], 2)
        first, second = self.tiny.hashes_of(chat)[:2]
        self.assertEqual(self.cache.info("block", second)["parent"], first.hex())

    def test_swapped_pages_are_noticed(self):
        """The control: equal logits show something only if other KV gives others."""
        prompt = self.prompt(3 * self.tiny.PAGE)
        _, logits, _ = self.answer(prompt, look_up=False)
        hashes = self.tiny.hashes_of(prompt)[:2]
        with self.cache.match(hashes) as found:
            pages = [torch.from_dlpack(block).clone() for block in found]
        self.assertEqual(self.cache.drop(hashes), (2, 0))
        with self.cache.allocate_blocks(2) as blocks:
            for block, other in zip(blocks, reversed(pages)):
                torch.from_dlpack(block).copy_(other)
            blocks.commit(hashes)
        hits, swapped, _ = self.answer(prompt)
        self.assertEqual(hits, 2)
        self.assertNotEqual(swapped, logits)


if __name__ == "__main__":
    unittest.main()
