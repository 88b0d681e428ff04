"""DELIVERING: hands tasks that have ended to delivery, all that wait at once: their results then travel together."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic

from pipeq_worker.schedule.task import T

logger = logging.getLogger(__name__)

DELIVER_THREADS = 2
#: Most tasks that are delivered together.
MOST = 256


class Delivering(Generic[T]):
    """Owns the threads that deliver.

    Args:
        deliver: called with tasks that have ended.
        delivered: called with them afterwards, whatever happened.
    """

    def __init__(self, deliver: Callable[[list[T]], None], delivered: Callable[[list[T]], None]) -> None:
        self._deliver = deliver
        self._delivered = delivered
        self._waiting: deque[T] = deque()
        self._busy = 0
        self._closed = False
        # Of one lock, but two, so that the end of a delivery wakes no thread that waits for tasks.
        lock = threading.RLock()
        self._changed, self._settled = threading.Condition(lock), threading.Condition(lock)

    def start(self) -> None:
        """Starts the threads."""
        for _ in range(DELIVER_THREADS):
            threading.Thread(target=self._run, name="deliver", daemon=True).start()

    def put(self, tasks: list[T]) -> None:
        """Delivers tasks soon. Returns at once."""
        with self._changed:
            if not self._closed:
                self._waiting.extend(tasks)
                self._changed.notify()

    def settle(self, timeout_s: float) -> None:
        """Waits until everything is delivered, for at most ``timeout_s``; delivers nothing more then."""
        with self._changed:
            self._settled.wait_for(lambda: not self._waiting and not self._busy, timeout_s)
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                tasks = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
                self._busy += 1
            try:
                self._deliver([task for task in tasks if task.begins()])
            except Exception:
                logger.exception("%d tasks could not be delivered", len(tasks), extra={"action": "deliver"})
            self._delivered(tasks)
            with self._changed:
                self._busy -= 1
                self._settled.notify_all()
