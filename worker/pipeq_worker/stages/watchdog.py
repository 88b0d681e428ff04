"""Detects a forward pass that does not return. A thread cannot be stopped from outside; its process can."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Watchdog:
    """Calls back once if the watched block takes too long. Its thread starts with the first watch."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._on_breach: Callable[[float], None] | None = None
        self._thread: threading.Thread | None = None
        #: When the watched block began.
        self._began: float | None = None

    def late_s(self) -> float:
        """How long the watched block has gone on beyond its limit, in seconds; 0 or less if it has not."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began - self._limit_s

    @contextmanager
    def watch(self, on_breach: Callable[[float], None]) -> Iterator[None]:
        """Watches the block; ``on_breach`` gets the limit in seconds, on the watchdog's thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
            self._thread.start()
        with self._changed:
            idle = self._deadline is None
            self._began = time.monotonic()
            self._deadline, self._on_breach = self._began + self._limit_s, on_breach
            if idle:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._began = self._deadline = self._on_breach = None

    def _run(self) -> None:
        while True:
            with self._changed:
                left = None if self._deadline is None else self._deadline - time.monotonic()
                if left is None or left > 0:
                    # Wakes at this deadline, or when the next watch begins, and then checks again.
                    self._changed.wait(left)
                    continue
                breach, self._deadline = self._on_breach, None
            if breach is not None:
                breach(self._limit_s)
