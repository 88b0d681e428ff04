"""A bound on the bytes inside a worker, so that large inputs hold each other back and not memory."""

from __future__ import annotations

import threading


class Budget:
    """Counts bytes. A task waits only while it holds nothing, so that two half-read tasks never wait for each other."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._closed = False
        self._changed = threading.Condition()

    @property
    def used(self) -> int:
        """Bytes held now."""
        return self._used

    def wait_for_room(self) -> None:
        """Waits while the limit is reached. Called before a connection is opened, so that none waits open for long."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._used < self._limit)

    def add(self, held: int, more: int) -> None:
        """Takes ``more`` bytes for a task that holds ``held``; waits for room if that is none.

        A task larger than the limit is let in when nothing else is there.
        """
        with self._changed:
            if not held and more > 0:
                self._changed.wait_for(lambda: self._closed or not self._used or self._used + more <= self._limit)
            self._used += more
            if more < 0:
                self._changed.notify_all()

    def close(self) -> None:
        """Lets everybody through, so that threads can end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
