"""A bound on the bytes inside a worker, so that large inputs wait for each other instead of exhausting memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext


class Budget:
    """Counts bytes. A task waits only while it holds none, so two half-read tasks never wait for each other."""

    def __init__(self, limit: int) -> None:
        #: Bytes that all tasks together may hold.
        self.limit = limit
        self._used = 0
        self._closed = False
        self._changed = threading.Condition()

    @property
    def used(self) -> int:
        """Bytes that are held now."""
        return self._used

    def wait_for_room(self, waiting: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """Waits while the limit is reached. Called before a connection is opened, which would stay open meanwhile.

        Args:
            waiting: entered while there is no room.
        """
        if self._used < self.limit:
            return
        with waiting(), self._changed:
            self._changed.wait_for(lambda: self._closed or self._used < self.limit)

    def add(self, held: int, more: int, waiting: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """Adds ``more`` bytes for a task that holds ``held``; if it holds none, waits for room first.

        A task larger than the limit is admitted when no other task holds bytes.

        Args:
            held: bytes that the task holds already.
            more: bytes to add; negative to give some back.
            waiting: entered while there is no room.
        """
        if not held and more > 0 and not self._has_room(more):
            with waiting(), self._changed:
                self._changed.wait_for(lambda: self._has_room(more))
        with self._changed:
            if not held and more > 0:
                self._changed.wait_for(lambda: self._has_room(more))
            self._used += more
            if more < 0:
                self._changed.notify_all()

    def _has_room(self, more: int) -> bool:
        return self._closed or not self._used or self._used + more <= self.limit

    def close(self) -> None:
        """Lets all waiting threads through, so that they can end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
