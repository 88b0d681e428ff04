"""LOOP: hears the host and runs short steps, both on one thread of a prepare process.

A step of a short text takes a fraction of a millisecond. Given to another thread it would cost more than that: the
other thread is woken, takes Python's lock, gives it back, and a third one is woken to tell the host. Here a prepare
process reads all that has come, works it off, and answers in one write. Steps that are long, or may wait for something,
run on threads (:mod:`pipeq_worker.stages.threads`).
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections import deque
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Loop:
    """Runs steps on the thread that calls :meth:`run`."""

    def __init__(self) -> None:
        self._steps: deque[Callable[[], None]] = deque()
        self._first: deque[Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread: int | None = None

    @property
    def is_here(self) -> bool:
        """Whether the calling thread is that of the loop."""
        return threading.get_ident() == self._thread

    def call(self, *steps: Callable[[], None], first: bool = False) -> None:
        """Runs steps on the loop's thread. Returns at once. May be called from any thread.

        Args:
            steps: functions.
            first: whether they come before those that are not.
        """
        (self._first if first else self._steps).extend(steps)
        if not self.is_here:
            os.eventfd_write(self._wake, 1)

    def run(self, descriptor: int, hear: Callable[[], bool], after: Callable[[bool], None]) -> None:
        """Runs until there is nothing more to hear.

        Args:
            descriptor: becomes readable when there is something to hear.
            hear: hears it; returns False at its end.
            after: called after each step, and before waiting; with whether nothing is left to do.
        """
        self._thread = threading.get_ident()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            steps = self._first or self._steps
            after(not steps)
            for ready, _ in poll.poll(0 if steps else None):
                if ready == self._wake:
                    os.eventfd_read(self._wake)
                elif not hear():
                    return
            if steps := self._first or self._steps:
                _run(steps.popleft())


def _run(step: Callable[[], None]) -> None:
    try:
        step()
    except BaseException:  # a panic inside a tokenizer is not an Exception
        # The loop must survive: without it the process would accept tasks and never prepare them.
        logger.exception("a step failed", extra={"action": "stage"})
