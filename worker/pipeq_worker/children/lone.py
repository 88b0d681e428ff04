"""LONE: of all that a host may be charged for anew, one thing at a time is on its way, so that one death charges one.

    a task with deaths        from its batch to its stored result: it is marked as running (leases/begin.lua)
    a suspect without a mark  while its end is stored (leases/hold.lua)
    suspects                  while they are received, one by one (broker/suspects.py); these come first

Used by the dispatcher, and by :mod:`.runs` and :mod:`.streams`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple

from pipeq_worker.schedule.task import T

Resume = Callable[[], None]


class _Waiting(NamedTuple):
    task: object
    is_wanted: Callable[[], bool]
    resume: Resume


class Lone(Generic[T]):
    """Safe for threads."""

    def __init__(self) -> None:
        self._task: T | None = None
        self._waiting: deque[_Waiting] = deque()
        #: Whether suspects are being received, or wait for that.
        self._has_claim = False
        self._lock = threading.Lock()

    def enter(self, task: T, is_wanted: Callable[[], bool], resume: Resume) -> bool:
        """Whether a task may go on now, until :meth:`leave`.

        Args:
            task: the task.
            is_wanted: whether what waits is still wanted.
            resume: is returned later, if it has to wait now; it enters anew.
        """
        with self._lock:
            if self._task is None and not self._has_claim:
                self._task = task
            if self._task is task:
                return True
            self._waiting.append(_Waiting(task, is_wanted, resume))
            return False

    def leave(self, tasks: Sequence[T]) -> list[Resume]:
        """Notes that tasks were delivered. Returns what goes on now."""
        if self._task is None and not self._waiting:
            return []
        with self._lock:
            if self._task is not None and not any(task is self._task for task in tasks):
                return []
            self._task = None
            return self._next()

    def claim(self) -> bool:
        """Whether suspects may be received now, until :meth:`disclaim`. If not, no other task enters meanwhile."""
        with self._lock:
            self._has_claim = True
            return self._task is None

    def disclaim(self) -> list[Resume]:
        """Notes that suspects have been received. Returns what goes on now."""
        with self._lock:
            self._has_claim = False
            return self._next()

    def _next(self) -> list[Resume]:
        """What goes on now: all that waits of one task. Should it not enter, because it ends, the next end calls."""
        if self._has_claim or self._task is not None:
            return []
        waiting = [one for one in self._waiting if one.is_wanted()]
        self._waiting = deque(one for one in waiting if one.task is not waiting[0].task)
        return [one.resume for one in waiting if one.task is waiting[0].task]
