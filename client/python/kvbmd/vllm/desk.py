# SPDX-License-Identifier: Apache-2.0
# mypy: ignore-errors
"""A thread with a bounded list of things to do, for what an engine's own thread must not wait for."""

import collections
import threading

from . import api


class Desk:
    def __init__(self, name, limit):
        self._limit = limit
        self._todo = collections.deque()
        self._cond = threading.Condition()
        self._end = self._busy = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, job):
        """Queues a callable; False, and nothing, where too many are waiting."""
        with self._cond:
            if self._end or len(self._todo) >= self._limit:
                return False
            self._todo.append(job)
            self._cond.notify_all()
        return True

    def drain(self, seconds):
        """Waits until nothing is left to do; whether that came in time."""
        with self._cond:
            return self._cond.wait_for(lambda: not self._todo and not self._busy, seconds)

    def close(self, seconds):
        """Waits for what is queued, but not longer than that, and ends."""
        self.drain(seconds)
        with self._cond:
            self._end = True
            self._todo.clear()
            self._cond.notify_all()
        self._thread.join(max(seconds, 6.0))  # what it is at ends by then: calls have deadlines

    def _run(self):
        while True:
            with self._cond:
                self._busy = False
                self._cond.notify_all()
                self._cond.wait_for(lambda: self._todo or self._end)
                if self._end:
                    return
                job, self._busy = self._todo.popleft(), True
            try:
                job()
            except Exception:
                api.logger.exception("kvbmd: a fault in the connector")
            job = None  # with what it refers to
