"""ASIDE: calls a user's observer on a thread of its own, so that one which never returns stops nothing else.

event -> queue of at most MOST calls -> thread "observer" -> the user's method
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

logger = logging.getLogger(__name__)

#: Calls that wait at most; those that come then are left out.
MOST = 10_000
#: A call that takes longer than this is told of, in seconds.
SLOW_S = 60.0


class Aside:
    """Calls functions one after the other, on a thread that starts with the first call. Safe for any number of threads.

    Args:
        name: of the observer, for the log.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        #: When the call that runs began; None if none does.
        self._since: float | None = None
        self._left_out = 0
        self._is_said = False

    def later(self, function: Callable[..., None]) -> Callable[..., None]:
        """Returns a function that has this one called soon, with the same arguments, and returns at once."""

        def call(*args: Any) -> None:
            if self._thread is None:
                self._start()
            since = self._since
            if not self._is_said and since is not None and time.monotonic() - since > SLOW_S:
                self._has_waited(time.monotonic() - since)
            if self._calls.qsize() < MOST:
                self._calls.put((function, args))
            else:
                self._leave_out()

        return call

    def close(self, timeout_s: float) -> None:
        """Waits until all that waits has been called, for at most so many seconds."""
        if self._thread is not None:
            self._calls.put(None)
            self._thread.join(max(0.0, timeout_s))

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="observer", daemon=True)
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            function, args = call
            self._since = time.monotonic()
            function(*args)
            self._since = None
            if self._calls.empty():
                self._has_caught_up()
        self._has_caught_up()

    # What is said and counted is so under the lock: else two threads say the same, or what is left out while the
    # observer catches up is never said.

    def _has_waited(self, seconds: float) -> None:
        with self._lock:
            if not self._is_said:
                self._say(f"has not returned from a call for {seconds:.0f} s, and its events wait")

    def _leave_out(self) -> None:
        with self._lock:
            if not self._left_out:
                self._say(f"is slower than its events: {MOST} wait, and further ones are left out")
            self._left_out += 1

    def _has_caught_up(self) -> None:
        with self._lock:
            if not self._is_said:
                return
            left_out, self._left_out, self._is_said = self._left_out, 0, False
            logger.warning(
                "the observer %s is told of events again; %d were left out",
                *(self._name, left_out),
                extra={"action": "observer"},
            )

    def _say(self, what: str) -> None:
        self._is_said = True
        logger.error("the observer %s %s", self._name, what, extra={"action": "observer"})
