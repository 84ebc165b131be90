"""The package as a user gets it: installed by pip into a fresh virtual environment, with the wheel's contents; its types."""

import glob
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
import venv
import zipfile

from tests.python.case import BUILD, SOURCE, kvbmd

LIMIT = 280


def run(*command, **more):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT, check=False, **more)


class Package(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="kvbmd-test-")
        cls.addClassCleanup(cls.folder.cleanup)
        cls.home = os.path.join(cls.folder.name, "venv")
        cls.python = os.path.join(cls.home, "bin", "python3")
        try:
            venv.create(cls.home, with_pip=True)
        except subprocess.CalledProcessError as error:
            raise unittest.SkipTest(f"this Python makes no virtual environments: {error}")
        pip = [cls.python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--retries", "1", "--timeout", "30"]
        tools = run(*pip, "setuptools>=64", "wheel")
        if tools.returncode:
            raise unittest.SkipTest(f"there is no package index: {tools.stdout[-200:]}")
        # pip builds in the source folder, and leaves things there
        cls.tree = os.path.join(cls.folder.name, "tree")
        for name in ("client", "proto", "include"):
            shutil.copytree(os.path.join(SOURCE, name), os.path.join(cls.tree, name), ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
        cls.built = run(
            *(cls.python, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-build-isolation", "--no-deps", "-w", cls.folder.name),
            os.path.join(cls.tree, "client", "python"),
            env={**os.environ, "KVBM_BUILD": BUILD, "PYTHONPATH": ""},
        )
        cls.wheels = glob.glob(os.path.join(cls.folder.name, "kvbmd-*.whl"))
        if cls.wheels:
            cls.installed = run(*pip, "--no-deps", *cls.wheels)

    def test_one_wheel_for_all_pythons(self):
        self.assertEqual(self.built.returncode, 0, self.built.stdout[-3000:])
        self.assertEqual(self.installed.returncode, 0, self.installed.stdout)
        (wheel,) = self.wheels
        self.assertIn(f"kvbmd-{kvbmd.__version__}-cp39-abi3-linux", os.path.basename(wheel))
        names = zipfile.ZipFile(wheel).namelist()
        for name in ("__init__.py", "manager.py", "blocks.py", "embedded.py", "_kvbm.pyi", "py.typed", "_kvbm.abi3.so", "bin/kvbmd", "vllm/__init__.py", "vllm/connector.py"):
            self.assertIn("kvbmd/" + name, names)

    def test_the_quick_start_runs_with_what_was_installed(self):
        text = (
            "import kvbmd as dynamo_llm\n"
            "bm = dynamo_llm.BlockManager(num_layers=32, page_size=16, inner_dim=4096)\n"
            "blocks = bm.allocate_blocks(4)\n"
            "for block in blocks:\n"
            "    layer = block[0]\n"
            "print(dynamo_llm.__file__, dynamo_llm.find_program(), len(blocks), layer.shape)\n"
        )
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "KVBM_SOCKET", "KVBMD", "KVBM_BUILD", "RUNTIME_DIRECTORY")}
        environment["XDG_RUNTIME_DIR"] = self.folder.name
        result = run(self.python, "-c", text, env=environment, cwd="/")
        self.assertEqual(result.returncode, 0, result.stdout)
        package = os.path.dirname(result.stdout.split()[0])
        self.assertTrue(package.startswith(self.home))
        self.assertEqual(result.stdout.split(" ", 1)[1].strip(), f"{package}/bin/kvbmd 4 (2, 16, 4096)")

    def test_the_source_distribution_is_whole(self):
        made = run(
            self.python, "-c", "import setuptools.build_meta as b, sys; print(b.build_sdist(sys.argv[1]))", self.folder.name,
            cwd=os.path.join(self.tree, "client", "python"), env={**os.environ, "PYTHONPATH": ""},
        )
        self.assertEqual(made.returncode, 0, made.stdout[-2000:])
        (archive,) = glob.glob(os.path.join(self.folder.name, "kvbmd-*.tar.gz"))
        to = os.path.join(self.folder.name, "from-source")
        built = run(
            *(self.python, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-build-isolation", "--no-deps", "-w", to, archive),
            env={**os.environ, "PROTOC_C": "/nonexistent", "PYTHONPATH": ""},
        )
        self.assertEqual(built.returncode, 0, built.stdout[-3000:])


class Types(unittest.TestCase):
    def test_everything_public_is_described(self):
        for name in kvbmd.__all__:
            thing = getattr(kvbmd, name)
            if isinstance(thing, type) and thing.__module__.startswith("kvbmd"):
                self.assertTrue(thing.__doc__, name)
                for member, value in vars(thing).items():
                    if not member.startswith("_") and (callable(value) or isinstance(value, property)):
                        self.assertTrue(value.__doc__, f"{name}.{member}")

    def test_mypy_agrees(self):
        if run(sys.executable, "-m", "mypy", "--version").returncode:
            self.skipTest("mypy is not here")
        checked = run(sys.executable, "-m", "mypy", "--strict", "--cache-dir", os.devnull, os.path.join(SOURCE, "client", "python", "kvbmd"))
        self.assertEqual(checked.returncode, 0, checked.stdout)


if __name__ == "__main__":
    unittest.main()
