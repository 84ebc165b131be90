# SPDX-License-Identifier: Apache-2.0
"""Builds _kvbm: libkvbm's own sources and these, into one extension of the stable ABI of Python 3.9.

Needs a C compiler, libprotobuf-c with its header, and protoc-c.  Nothing of an installed libkvbm is used, so the two cannot be of different
versions.  Outside a tree (from a source distribution) the sources lie in libkvbm/, with the generated ones, and protoc-c is not needed.

In a tree it also takes kvbmd along, for managers that find none running, with the shared libraries that a machine might not have.
"""

import os
import re
import shlex
import shutil
import subprocess
import sysconfig

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
    without = () if cuda_include() else ("gpu.c",)
    return [os.path.join(folder, name) for folder in folders for name in sorted(os.listdir(folder)) if name.endswith(".c") and name not in without]


def cuda_include():
    """The CUDA toolkit's headers, for blocks in a GPU's memory; its libraries are not needed, and the driver is looked for at run time.  CUDA=0: do without."""
    folder = os.path.join(os.environ.get("CUDA_HOME") or "/usr/local/cuda", "include")
    wanted = os.environ.get("CUDA", "auto") not in ("0", "no")
    return folder if wanted and all(os.path.isfile(os.path.join(folder, name)) for name in ("cuda.h", "cudaTypedefs.h")) else None


def protobuf_archive(folder):
    """libprotobuf-c to be linked into the extension, so that the package needs none installed; None where there is no such archive, or not one for this."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    try:
        path = subprocess.check_output([*compiler, "-print-file-name=libprotobuf-c.a"], text=True).strip()
        if not os.path.isabs(path):
            return None
        # Made for programs, it goes into a library only if its symbols stay inside, which the version script sees to.
        flags = ["-shared", "-Wl,-z,text", f"-Wl,--version-script={os.path.join(HERE, '_kvbm.map')}", "-o", os.path.join(folder, "protobuf-c.so")]
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        subprocess.check_call([*compiler, *flags, "-Wl,--whole-archive", path, "-Wl,--no-whole-archive"], **quiet)
        return path
    except (OSError, subprocess.CalledProcessError):
        return None


def shared_libraries(program):
    """What a program is linked with, except the system's own: paths."""
    if not shutil.which("ldd"):
        return []
    listed = subprocess.run(["ldd", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False).stdout
    found = re.findall(r"(?m)^\s*(\S+) => (/\S+)", listed)
    return [(name, path) for name, path in found if not re.match(r"(libc|libm|libdl|librt|libpthread|libresolv|lib[alt]san)\.so|ld-linux", name)]


class BuildExt(build_ext):
    def build_extension(self, ext):
        staged = os.path.join(self.build_temp, "libkvbm")
        ext.sources = [*ext.sources, *stage(staged)]
        ext.include_dirs = [staged, os.path.join(staged, "include"), os.path.join(staged, "gen"), HERE]
        with open(os.path.join(staged, "include", "kvbm.h"), encoding="utf-8") as f:
            if re.search(r"\bkvbm_onboard\(", f.read()):
                ext.define_macros = [*ext.define_macros, ("KVBM_HAS_ONBOARD", "1")]
        cuda = cuda_include()
        if cuda:
            ext.define_macros = [*ext.define_macros, ("KVBM_HAS_CUDA", "1")]
            ext.include_dirs = [*ext.include_dirs, cuda]
        archive = protobuf_archive(staged)
        if archive:
            ext.libraries, ext.extra_objects = [], [archive]
        super().build_extension(ext)


class BuildPy(build_py):
    """Takes the daemon along: $KVBMD, the one built in this tree, or one built for it now if what that needs is there."""

    def program(self):
        built = os.environ.get("KVBMD") or os.path.join(os.environ.get("KVBM_BUILD") or os.path.join(TREE, "build"), "kvbmd")
        if os.access(built, os.X_OK) or not os.path.isfile(os.path.join(TREE, "Makefile")):
            return built
        build = os.path.abspath(os.path.join(self.get_finalized_command("build").build_temp, "daemon"))
        ours = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")}
        target = os.path.join(build, "kvbmd")
        try:
            subprocess.check_call(["make", "-C", TREE, f"-j{os.cpu_count()}", f"BUILD={build}", "SAN=", target], env=ours)
        except (OSError, subprocess.CalledProcessError) as error:
            self.warn(f"kvbmd cannot be built here ({error}), so the package has none for managers that find none running: see packaging/packages.debian")
        return target

    def run(self):
        super().run()
        if not in_tree() or getattr(self, "editable_mode", False):
            return
        program = self.program()
        if not os.access(program, os.X_OK):
            return
        for folder in ("bin", "lib"):
            os.makedirs(os.path.join(self.build_lib, "kvbmd", folder), exist_ok=True)
        shutil.copy(program, os.path.join(self.build_lib, "kvbmd", "bin", "kvbmd"))
        for name, path in shared_libraries(program):
            shutil.copy(path, os.path.join(self.build_lib, "kvbmd", "lib", name))


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
