"""READERS: the threads that read references of one pipeline's tasks, and the tasks that wait for one. Used by lanes.

A thread may wait for a store for minutes. A task that waits behind it can be taken back, if its own store is away, too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from pipeq_worker.stages.task import Task


class Readers:
    """Owns the threads, which start when they are first needed.

    Args:
        threads: most of them.
        thread_name: of the threads.
    """

    def __init__(self, threads: int, thread_name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name)
        self._lock = threading.Lock()
        #: Tasks that no thread has begun with, and what one is to do.
        self._waiting: dict[Task, Callable[[], None]] = {}

    def submit(self, task: Task, call: Callable[[], None]) -> None:
        """Has a thread do the next thing for a task; of one task, there is one at a time."""
        with self._lock:
            self._waiting[task] = call
        self._pool.submit(self._run, task)

    def waiting(self) -> list[Task]:
        """The tasks that no thread has begun with."""
        with self._lock:
            return list(self._waiting)

    def take_back(self, task: Task) -> bool:
        """Takes a task back. Returns False if a thread has begun with it."""
        with self._lock:
            return self._waiting.pop(task, None) is not None

    def close(self) -> None:
        """Discards what waits. Returns at once."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, task: Task) -> None:
        with self._lock:
            call = self._waiting.pop(task, None)
        if call is not None:
            call()
