# SPDX-License-Identifier: Apache-2.0
"""A private kvbmd: found, started, and ended with its manager, this program, or this process, whichever ends first."""

from __future__ import annotations

import errno
import os
import secrets
import select
import shutil
import socket
import subprocess
import tempfile
import time
import weakref
from typing import Dict, List, Optional, Tuple

from . import _kvbm

START_SECONDS = 30.0
STOP_SECONDS = 10.0
_SOCKET_MAX = 107
_NOT_LOADED = 127  # what a dynamic loader that misses a library exits with
_NOT_ITS = ("KVBMD_", "LISTEN_", "WATCHDOG_", "NOTIFY_SOCKET")


def find_program() -> Optional[str]:
    """The kvbmd to start: $KVBMD, the one in this package, one in $PATH, or the one that was built in the tree this package lies in."""
    here = os.path.dirname(os.path.abspath(__file__))
    candidates = [os.environ.get("KVBMD"), os.path.join(here, "bin", "kvbmd"), shutil.which("kvbmd")]
    if os.environ.get("KVBM_BUILD"):
        candidates.append(os.path.join(os.environ["KVBM_BUILD"], "kvbmd"))
    # client/python/kvbmd or build/python/kvbmd, of a tree
    for up in ("../../..", "../.."):
        top = os.path.normpath(os.path.join(here, up))
        if os.path.isfile(os.path.join(top, "include", "kvbm.h")):
            candidates.append(os.path.join(top, "build", "kvbmd"))
    candidates.append(os.path.join(here, "..", "..", "kvbmd"))
    for path in candidates:
        if path and os.path.isfile(path) and os.access(path, os.X_OK):
            return os.path.abspath(path)
    return None


def _runtime_path(suffix: str) -> str:
    """A new name in the user's runtime folder, or the one for temporary files."""
    name = f"kvbmd-{os.getpid()}-{secrets.token_hex(6)}{suffix}"
    for folder in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):
        if folder and os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK):
            path = os.path.join(folder, name)
            if len(os.fsencode(path)) + len(".lock") <= _SOCKET_MAX:
                return path
    raise _kvbm.System(errno.ENOENT, "there is no folder for a socket: set TMPDIR")


def _environment(program: str) -> Dict[bytes, bytes]:
    """Ours, without what is not its own; with this package's libraries where the program does not find this machine's."""
    environment = {k: v for k, v in os.environb.items() if not k.decode("latin-1").startswith(_NOT_ITS)}
    libraries = os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib")
    if os.path.isdir(libraries):
        quiet = subprocess.DEVNULL
        tried = subprocess.run([program, "--version"], stdin=quiet, stdout=quiet, stderr=quiet, env=environment, timeout=START_SECONDS, check=False)
        if tried.returncode == _NOT_LOADED:
            before = environment.get(b"LD_LIBRARY_PATH")
            environment[b"LD_LIBRARY_PATH"] = os.fsencode(libraries) + (b":" + before if before else b"")
    return environment


def _has_disk(program: str, environment: Dict[bytes, bytes]) -> bool:
    sample = subprocess.run([program, "--print-sample-config"], stdout=subprocess.PIPE, env=environment, timeout=START_SECONDS, check=False)
    return b"[g3]" in sample.stdout


def _stop(child: "_kvbm.Child", owner: int, paths: Tuple[str, ...]) -> None:
    """Runs once: at stop(), when the object is garbage, or at the interpreter's end.  Not in a forked child."""
    if os.getpid() != owner:
        return
    child.stop(STOP_SECONDS)
    for path in paths:  # it removes its own, unless it was killed
        try:
            os.unlink(path)
        except OSError:
            pass


class Embedded:
    """A kvbmd that serves this process, with a socket of its own.

    host_bytes: memory for blocks; None: kvbmd's default, 1 GiB.  disk_bytes: a file for blocks below that, in the folder for temporary files; None: no such
    tier.  device_bytes: memory of a GPU, device, its UUID; in regions of device_region bytes.  Raises System (no program found, or it cannot be started), RuntimeError (it ended, or was not ready within 30 seconds; its last words are in the text),
    NotImplementedError (a disk tier that this kvbmd does not have).
    """

    def __init__(
        self,
        host_bytes: Optional[int] = None,
        disk_bytes: Optional[int] = None,
        device: Optional[str] = None,
        device_bytes: int = 0,
        device_region: int = 0,
    ) -> None:
        program = find_program()
        if program is None:
            raise _kvbm.System(
                errno.ENOENT, "nobody listens, and there is no kvbmd to start: set KVBMD to the program, or socket to a running one's"
            )
        self.socket = _runtime_path(".sock")
        environment = _environment(program)
        paths = [self.socket, self.socket + ".lock"]
        settings: Dict[str, str] = {
            "daemon.socket": self.socket,
            "daemon.socket_mode": "0600",
            "daemon.allow_uids": str(os.getuid()),
            "daemon.log": "warn",
        }
        if host_bytes is not None:
            settings["g2.size"] = str(host_bytes)
        settings["g1.devices"] = device or "none"
        if device is not None:
            settings["g1.size"], settings["g1.region_size"] = str(device_bytes), str(device_region)
        if disk_bytes is not None:
            if not _has_disk(program, environment):
                raise NotImplementedError(f"{program} has no disk tier: leave disk_num_blocks out")
            disk = os.path.join(tempfile.gettempdir(), os.path.basename(self.socket) + ".g3")
            paths.append(disk)
            settings["g3.path"] = disk
            settings["g3.size"] = str(disk_bytes)
        self._start(program, environment, settings, tuple(paths))

    def _start(self, program: str, environment: Dict[bytes, bytes], settings: Dict[str, str], paths: Tuple[str, ...]) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, tempfile.TemporaryFile() as log:
            notify.bind("")  # a name that the kernel chooses, of no file
            notify.setblocking(False)
            name = notify.getsockname()
            environment[b"NOTIFY_SOCKET"] = b"@" + name[1:]
            argv = [program, "--config=/dev/null"] + [f"--{key}={value}" for key, value in settings.items()]
            self.child = _kvbm.Child(
                [os.fsencode(a) for a in argv], [k + b"=" + v for k, v in environment.items()], log.fileno()
            )
            self.pid = self.child.pid
            self._finalizer = weakref.finalize(self, _stop, self.child, os.getpid(), paths)
            why = self._wait_ready(notify)
            if why:
                self.stop()
                log.seek(0)
                words = log.read()[-2000:].decode("utf-8", "replace").strip()
                raise RuntimeError(f"{program} {why}: {words or 'it said nothing'}")

    def _wait_ready(self, notify: socket.socket) -> Optional[str]:
        """None once it serves; else what happened instead."""
        poll = select.poll()
        poll.register(notify, select.POLLIN)
        poll.register(self.child.fileno(), select.POLLIN)
        end = time.monotonic() + START_SECONDS
        while True:
            left = end - time.monotonic()
            if left <= 0:
                return "was not ready in time"
            ready = [fd for fd, _ in poll.poll(left * 1000)]
            if notify.fileno() in ready:
                lines: List[bytes] = notify.recv(4096).split(b"\n")
                if b"READY=1" in lines:
                    return None
            elif ready:
                return f"ended at once, with status {self.child.status}"

    def stop(self) -> None:
        """Ends it, and removes its socket.  Again is fine; in a forked child it does nothing."""
        self._finalizer()
