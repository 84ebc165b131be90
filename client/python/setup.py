# SPDX-License-Identifier: Apache-2.0
"""Builds _kvbm: libkvbm's own sources and these, into one extension of the stable ABI of Python 3.9.

Needs a C compiler, libprotobuf-c with its header, and protoc-c.  Nothing of an installed libkvbm is used, so the two cannot be of different
versions.  Outside a tree (from a source distribution) the sources lie in libkvbm/, with the generated ones, and protoc-c is not needed.
"""

import os
import re
import shutil
import subprocess

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = os.path.dirname(os.path.abspath(__file__))
TREE = os.path.normpath(os.path.join(HERE, "..", ".."))
STAGED = os.path.join(HERE, "libkvbm")


def in_tree():
    return os.path.isfile(os.path.join(TREE, "proto", "kvbm.proto"))


def version():
    with open(os.path.join(TREE if in_tree() else STAGED, "include", "kvbm_version.h"), encoding="utf-8") as f:
        return re.search(r'#define KVBM_VERSION "([^"]+)"', f.read()).group(1)


def stage(to):
    """Copies what the extension is built of into one folder, and generates the rest; returns the C files."""
    if in_tree():
        for folder in ("client", "proto", "include"):
            os.makedirs(os.path.join(to, folder), exist_ok=True)
            for name in sorted(os.listdir(os.path.join(TREE, folder))):
                if name.endswith((".c", ".h")):
                    shutil.copy2(os.path.join(TREE, folder, name), os.path.join(to, folder, name))
        os.makedirs(os.path.join(to, "gen"), exist_ok=True)
        proto = os.path.join(TREE, "proto")
        protoc = os.environ.get("PROTOC_C", "protoc-c")
        try:
            subprocess.check_call([protoc, f"--proto_path={proto}", f"--c_out={os.path.join(to, 'gen')}", os.path.join(proto, "kvbm.proto")])
        except FileNotFoundError:
            raise SystemExit(f"kvbmd: {protoc} is missing: apt-get install protobuf-c-compiler libprotobuf-c-dev") from None
    elif to != STAGED:
        shutil.copytree(STAGED, to, dirs_exist_ok=True)
    folders = (os.path.join(to, folder) for folder in ("client", "proto", "gen"))
    return [os.path.join(folder, name) for folder in folders for name in sorted(os.listdir(folder)) if name.endswith(".c") and name != "gpu.c"]


class BuildExt(build_ext):
    def build_extension(self, ext):
        staged = os.path.join(self.build_temp, "libkvbm")
        ext.sources = [*ext.sources, *stage(staged)]
        ext.include_dirs = [staged, os.path.join(staged, "include"), os.path.join(staged, "gen"), HERE]
        with open(os.path.join(staged, "include", "kvbm.h"), encoding="utf-8") as f:
            if re.search(r"\bkvbm_onboard\(", f.read()):
                ext.define_macros = [*ext.define_macros, ("KVBM_HAS_ONBOARD", "1")]
        super().build_extension(ext)


class BuildPy(build_py):
    """Takes the daemon along, for managers that find none running: $KVBMD, or the one built in this tree."""

    def run(self):
        super().run()
        program = os.environ.get("KVBMD") or os.path.join(os.environ.get("KVBM_BUILD") or os.path.join(TREE, "build"), "kvbmd")
        if in_tree() and os.access(program, os.X_OK) and not getattr(self, "editable_mode", False):
            to = os.path.join(self.build_lib, "kvbmd", "bin")
            os.makedirs(to, exist_ok=True)
            shutil.copy(program, os.path.join(to, "kvbmd"))


class Sdist(sdist):
    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        stage(os.path.join(base_dir, "libkvbm"))


setup(
    version=version(),
    ext_modules=[
        Extension(
            "kvbmd._kvbm",
            sorted(name for name in os.listdir(HERE) if name.endswith(".c")),
            depends=["extension.h", "dlpack.h", "_kvbm.map"],
            define_macros=[("_GNU_SOURCE", None)],
            extra_compile_args=["-std=gnu11", "-fvisibility=hidden", "-pthread", "-UNDEBUG"],
            extra_link_args=["-pthread", f"-Wl,--version-script={os.path.join(HERE, '_kvbm.map')}"],
            libraries=["protobuf-c"],
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildExt, "build_py": BuildPy, "sdist": Sdist},
    options={"bdist_wheel": {"py_limited_api": "cp39"}},
)
