"""MARKING: marks tasks that the device has already as running, on a thread of its own. Used by runs.

The thread that hears what is ready gives it to a device that has nothing to do, and must not wait for Redis then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic

from pipeq_worker.children.guarded import guarded
from pipeq_worker.schedule.task import T


class Marking(Generic[T]):
    """Owns the thread ``marks``.

    Args:
        mark: marks tasks, with :attr:`lock` held.
        after: called then with all tasks of their batch.
        hopeless: called with a sentence if the thread breaks.
    """

    def __init__(
        self, mark: Callable[[list[T]], None], after: Callable[[list[T]], None], hopeless: Callable[[str], None]
    ) -> None:
        self._mark = mark
        self._after = after
        self._hopeless = hopeless
        #: Held while tasks are being marked that run already. Whoever has tasks start over, or withdraws them, holds
        #: it, so that no mark is written after that. Taken before all other locks.
        self.lock = threading.Lock()
        self._given: SimpleQueue[tuple[list[T], list[T]] | None] = SimpleQueue()
        self._has_ended = False

    def start(self) -> None:
        """Marks tasks until it is closed."""
        threading.Thread(target=guarded(self._run, self._hopeless), name="marks", daemon=True).start()

    def close(self) -> None:
        """Ends the thread. Returns at once."""
        self._given.put(None)

    def soon(self, begun: list[T], tasks: list[T]) -> None:
        """Marks tasks that begin with a batch, of all that it has. Returns at once.

        The caller has taken the lock, which is released then.
        """
        self._given.put((begun, tasks))
        if self._has_ended:
            self._mark_rest()

    def _run(self) -> None:
        try:
            while (given := self._given.get()) is not None:
                self._mark_one(*given)
        finally:  # if it breaks, too, nobody must wait for the lock for ever
            self._has_ended = True
            self._mark_rest()

    def _mark_rest(self) -> None:
        while True:
            try:
                given = self._given.get_nowait()
            except Empty:
                return
            if given is not None:
                self._mark_one(*given)

    def _mark_one(self, begun: list[T], tasks: list[T]) -> None:
        try:
            self._mark(begun)
        finally:
            self.lock.release()
        self._after(tasks)
