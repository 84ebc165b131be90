"""The package as a user gets it: installed by pip into a fresh virtual environment, with the wheel's contents; its types."""

import glob
import os
import re
import shutil
import subprocess
import tempfile
import unittest
import venv
import zipfile

from tests.python.case import BUILD, SOURCE, kvbmd

LIMIT = 500


def run(*command, **more):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT, check=False, **more)


def snippets(path, language):
    """The fenced blocks of a document."""
    with open(os.path.join(SOURCE, path), encoding="utf-8") as f:
        return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", f.read())


class Package(unittest.TestCase):
    """Installed with the command that README prints, in a fresh virtual environment, from a copy of the tree in which nothing was built."""

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
        cls.tree = os.path.join(cls.folder.name, "tree")
        for name in ("client", "proto", "include", "daemon", "packaging"):
            shutil.copytree(os.path.join(SOURCE, name), os.path.join(cls.tree, name), ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
        shutil.copy(os.path.join(SOURCE, "Makefile"), cls.tree)
        ours = ("PYTHONPATH", "KVBM_SOCKET", "KVBM_BUILD", "KVBM_SOURCE", "KVBMD", "RUNTIME_DIRECTORY", "SAN", "BUILD", "CC", "LD_PRELOAD")
        cls.environment = {k: v for k, v in os.environ.items() if k not in ours}
        cls.environment.update(
            PATH=os.path.join(cls.home, "bin") + ":" + cls.environment["PATH"], XDG_RUNTIME_DIR=cls.folder.name, CFLAGS="-O0",
            PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_RETRIES="1", PIP_DEFAULT_TIMEOUT="30",
        )  # fmt: skip
        with open(os.path.join(SOURCE, "README.md"), encoding="utf-8") as readme:
            quick_start = readme.read().split("\n## Quick start in Python\n")[1]
            command = re.search(r"(?m)^    (pip install ./client/python.*)$", quick_start).group(1)
        cls.installed = run("sh", "-ec", command, cwd=cls.tree, env=cls.environment)
        if cls.installed.returncode and re.search("No matching distribution|ConnectionError|NewConnectionError|getaddrinfo", cls.installed.stdout):
            raise unittest.SkipTest(f"there is no package index: {cls.installed.stdout[-200:]}")

    def setUp(self):
        self.assertEqual(self.installed.returncode, 0, self.installed.stdout[-3000:])

    def run_installed(self, *arguments, **more):
        return run(self.python, *arguments, env={**self.environment, **more}, cwd="/")

    @property
    def package(self):
        (package,) = glob.glob(os.path.join(self.home, "lib", "python3*", "site-packages", "kvbmd"))
        return package

    def test_it_needs_no_library_but_the_systems(self):
        needed = run("ldd", os.path.join(self.package, "_kvbm.abi3.so")).stdout
        self.assertIn("libc.so", needed)
        self.assertNotIn("libkvbm", needed)
        if os.path.isfile("/usr/lib/x86_64-linux-gnu/libprotobuf-c.a"):
            self.assertNotIn("protobuf", needed)
        carried = os.listdir(os.path.join(self.package, "lib"))
        self.assertTrue([name for name in carried if name.startswith("libuv.so")], carried)
        self.assertFalse([name for name in carried if name.startswith(("libc.so", "ld-linux"))], carried)

    def test_what_readme_prints_runs(self):
        count = 0
        for path in ("README.md", "client/python/README.md"):
            for text in snippets(path, "python"):
                result = self.run_installed("-W", "error", "-c", text)
                self.assertEqual(result.returncode, 0, path + ":\n" + text + result.stdout)
                count += 1
        self.assertEqual(count, 2)

    def test_a_private_daemon_where_its_libraries_are_not(self):
        """As on a machine that has only Python: what it is linked with is hidden from it, in a mount namespace."""
        hidden = [os.path.realpath(path) for name in ("libuv.so.1", "libinih.so.1", "libprotobuf-c.so.1") for path in glob.glob(f"/lib/*/{name}")]
        hide = " && ".join(f"mount --bind /dev/null {path}" for path in hidden)
        if os.geteuid() != 0 or not hidden or run("unshare", "-m", "sh", "-c", hide).returncode:
            self.skipTest("only root can hide libraries")
        text = "import kvbmd; bm = kvbmd.BlockManager(host_num_blocks=2); print(len(bm.allocate_blocks(2)))"
        script = f'{hide} || exit 3; "{self.package}/bin/kvbmd" --version >/dev/null 2>&1; test $? = 127 || exit 4; exec "{self.python}" -c "{text}"'
        result = run("unshare", "-m", "sh", "-c", script, env=self.environment)
        self.assertEqual((result.returncode, result.stdout), (0, "2\n"))

    def test_one_wheel_for_all_pythons(self):
        built = run(
            *(self.python, "-m", "pip", "wheel", "--no-deps", "-w", self.folder.name, os.path.join(self.tree, "client", "python")),
            env={**self.environment, "KVBM_BUILD": BUILD},
        )
        self.assertEqual(built.returncode, 0, built.stdout[-3000:])
        (wheel,) = glob.glob(os.path.join(self.folder.name, "kvbmd-*.whl"))
        self.assertIn(f"kvbmd-{kvbmd.__version__}-cp39-abi3-linux", os.path.basename(wheel))
        names = zipfile.ZipFile(wheel).namelist()
        for name in ("__init__.py", "manager.py", "blocks.py", "embedded.py", "_kvbm.pyi", "py.typed", "_kvbm.abi3.so", "bin/kvbmd", "vllm/__init__.py", "vllm/connector.py"):
            self.assertIn("kvbmd/" + name, names)

    def test_the_block_managers_quick_start_finds_what_was_installed(self):
        result = self.run_installed(
            "-c",
            "import kvbmd as dynamo_llm\n"
            "bm = dynamo_llm.BlockManager(num_layers=32, page_size=16, inner_dim=4096)\n"
            "blocks = bm.allocate_blocks(4)\n"
            "for block in blocks:\n"
            "    layer = block[0]\n"
            "print(dynamo_llm.__file__, dynamo_llm.find_program(), len(blocks), layer.shape)\n",
        )
        self.assertEqual(result.returncode, 0, result.stdout)
        self.assertEqual(result.stdout.strip(), f"{self.package}/__init__.py {self.package}/bin/kvbmd 4 (2, 16, 4096)")

    def test_the_source_distribution_is_whole(self):
        tools = run(self.python, "-m", "pip", "install", "--quiet", "setuptools>=64", "wheel", env=self.environment)
        self.assertEqual(tools.returncode, 0, tools.stdout)
        made = run(
            *(self.python, "-c", "import setuptools.build_meta as b, sys; print(b.build_sdist(sys.argv[1]))", self.folder.name),
            cwd=os.path.join(self.tree, "client", "python"),
            env=self.environment,
        )
        self.assertEqual(made.returncode, 0, made.stdout[-2000:])
        (archive,) = glob.glob(os.path.join(self.folder.name, "kvbmd-*.tar.gz"))
        to = os.path.join(self.folder.name, "from-source")
        built = run(
            *(self.python, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", to, archive),
            env={**self.environment, "PROTOC_C": "/nonexistent"},
        )
        self.assertEqual(built.returncode, 0, built.stdout[-3000:])

    def test_mypy_agrees(self):
        """With the package, with its stubs as against the extension, and with programs that use what is installed."""
        tools = run(self.python, "-m", "pip", "install", "--quiet", "mypy", env=self.environment)
        self.assertEqual(tools.returncode, 0, tools.stdout)
        strict = ("-m", "mypy", "--strict", "--cache-dir", os.path.join(self.folder.name, "mypy"))
        allowed = os.path.join(self.folder.name, "allowed")
        with open(allowed, "w", encoding="utf-8") as f:
            f.write("kvbmd._kvbm.View.__buffer__\n")  # Python has that name for it from 3.12 on
            f.write("kvbmd._kvbm.cuda_uuid\n")  # with the CUDA toolkit
        for command in (
            (*strict, os.path.join(SOURCE, "client", "python", "kvbmd")),
            (*strict, os.path.join(SOURCE, "client", "examples", "quickstart.py")),
            ("-m", "mypy.stubtest", "kvbmd._kvbm", "--ignore-disjoint-bases", "--ignore-unused-allowlist", "--allowlist", allowed),
        ):
            checked = run(self.python, *command, env=self.environment, cwd=self.folder.name)
            self.assertEqual(checked.returncode, 0, checked.stdout)


class Types(unittest.TestCase):
    def test_everything_public_is_described(self):
        for name in kvbmd.__all__:
            thing = getattr(kvbmd, name)
            if isinstance(thing, type) and thing.__module__.startswith("kvbmd"):
                self.assertTrue(thing.__doc__, name)
                for member, value in vars(thing).items():
                    if not member.startswith("_") and (callable(value) or isinstance(value, property)):
                        self.assertTrue(value.__doc__, f"{name}.{member}")


if __name__ == "__main__":
    unittest.main()
