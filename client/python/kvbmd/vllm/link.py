# SPDX-License-Identifier: Apache-2.0
# mypy: ignore-errors
"""One session of a process's part with kvbmd, reached and kept by a thread of its own.

The engine's threads only ever look at .ns: None until the daemon was reached for the first time.  After that the library finds the next daemon by itself; the
thread asks once a second whether there is one, so that an idle engine is back before its next request, and says in the log when it went and came.
"""

import threading
import weakref

from .. import _kvbm
from . import api

PING_SECONDS = 1.0
RETRY_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0)
REFUSED_SECONDS = 30.0
_REFUSED = (_kvbm.Mismatch, _kvbm.NotPermitted, _kvbm.Version, _kvbm.Invalid, _kvbm.Limit, _kvbm.NoSpace)


class Link:
    def __init__(self, identity, options, name, counts):
        self.ns = None  # [Namespace] by group
        self.session = None
        self.up = False
        self.has_lower = False  # there is something below host memory
        self.refused = None
        self._identity, self._name, self._counts = identity, name, counts
        self._socket = options.get("socket")
        self._timeout_ms = int(float(options.get("timeout", 5.0)) * 1000)
        self._end = threading.Event()
        self._tried = threading.Event()
        self._reconnects = 0
        # The thread must not keep alive what it works for.
        self._thread = threading.Thread(target=_run, args=(weakref.ref(self), self._end), name=f"kvbmd-{name}-link", daemon=True)
        self._thread.start()
        # A daemon that is there answers at once, and the first request should find it.  One that is not is not waited for.
        self._tried.wait(1.0)

    def close(self):
        """Ends the session; everything it holds is let go."""
        self._end.set()
        self._thread.join(10.0)
        self.ns, session, self.session = None, self.session, None
        if session is not None:
            session.close()

    # ---- the thread ----

    def _open(self):
        session = _kvbm.Session(socket=self._socket, name=self._name, timeout_ms=self._timeout_ms)
        try:
            one = self._identity
            ns = [
                session.attach(
                    name=g.name, model=one.model, block_bytes=g.lane_bytes, page_size=g.block_tokens, lanes=one.lanes,
                    key_bytes=one.key_bytes, hash_algo=one.hash_algo, salt=one.salt,
                )
                for g in one.groups
            ]  # fmt: skip
            self._look_below(session)
        except BaseException:
            session.close()
            raise
        self.session, self.ns = session, ns

    def _look_below(self, session):
        self.has_lower = '"g3"' in session.info("tiers") or '"g4"' in session.info("tiers")

    def _step(self, attempt):
        """Tries to reach the daemon, or asks whether it is there.  Returns the seconds until the next time."""
        try:
            if self.ns is None:
                self._open()
            else:
                self.session.ping()
                seen = self.session.counters()["reconnects"]
                if seen != self._reconnects:
                    self._look_below(self.session)
                    self._counts.add(reconnects=seen - self._reconnects)
                    self._reconnects = seen
            if not self.up:
                api.logger.info("kvbmd %s: connected, %s", self._name, ", ".join(g.name for g in self._identity.groups))
            self.up, self.refused = True, None
            return PING_SECONDS
        except _REFUSED as error:
            if str(error) != self.refused:
                api.logger.error("kvbmd %s: refused, nothing is cached: %s", self._name, error)
            self.up, self.refused = False, str(error)
            return REFUSED_SECONDS
        except _kvbm.KvbmError as error:
            if self.up or attempt == 0:
                api.logger.warning("kvbmd %s: not there, nothing is found until it is: %s", self._name, error)
            self.up = False
            return RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)]


def _run(ref, end):
    attempt = 0
    while not end.is_set():
        link = ref()
        if link is None:
            return
        seconds = link._step(attempt)
        attempt = 0 if link.up else attempt + 1
        link._tried.set()
        del link
        end.wait(seconds)
