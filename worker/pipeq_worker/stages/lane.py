"""LANE: what the tasks of one pipeline share only with each other: the threads before the device, and a byte budget.

A task with many items is prepared in slices, and other tasks run between them: a producer who sends ten thousand labels
waits longer, and other producers do not wait for him. A slice continues on the thread of the last one, because
preparation that has begun holds that thread's tokenizer.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from pipeq_worker.stages.budget import Budget

logger = logging.getLogger(__name__)

Step = Callable[[], None]


class Lane:
    """The threads and the budget of one pipeline. Threads start when they are first needed."""

    def __init__(self, name: str, max_bytes: int, fetch_threads: int, prepare_threads: int) -> None:
        self.budget = Budget(max_bytes)
        self.fetching = ThreadPoolExecutor(fetch_threads, f"fetch-{name}")
        self.preparing = Threads(prepare_threads, f"prepare-{name}")

    def close(self) -> None:
        """Discards queued work, and lets threads that wait for room through, so that they end."""
        self.budget.close()
        self.preparing.close()
        self.fetching.shutdown(wait=False, cancel_futures=True)


class Threads:
    """Runs steps in the order of submission. A step may ask that another step follows on its own thread."""

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._new: deque[Step] = deque()
        self._own: list[deque[Step]] = []
        self._idle = 0
        self._closed = False
        self._changed = threading.Condition()
        self._here = threading.local()

    def submit(self, step: Step) -> None:
        """Runs a step on any thread."""
        with self._changed:
            self._new.append(step)
            if self._idle < len(self._new) and len(self._own) < self._count:
                at = len(self._own)
                self._own.append(deque())
                threading.Thread(target=self._run, args=(at,), name=f"{self._name}-{at}", daemon=True).start()
            else:
                self._changed.notify()

    def here(self) -> int:
        """The number of the calling thread, for :meth:`go_on`."""
        return int(self._here.number)

    def go_on(self, number: int, step: Step) -> None:
        """Runs a step on the given thread, alternating with new steps. May be called from any thread."""
        with self._changed:
            self._own[number].append(step)
            self._changed.notify_all()

    def close(self) -> None:
        """Starts no more steps. Returns at once."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self, number: int) -> None:
        self._here.number = number
        own, own_first = self._own[number], False
        while True:
            with self._changed:
                self._idle += 1
                self._changed.wait_for(lambda: self._closed or own or self._new)
                self._idle -= 1
                if self._closed:
                    return
                # Own and new steps alternate, so that neither a long task starves nor the tasks that come after it.
                own_first = not own_first
                step = (own if own and (own_first or not self._new) else self._new).popleft()
            try:
                step()
            except BaseException:  # a panic inside a tokenizer is not an Exception
                # The thread must survive: without threads the pipeline would accept tasks and never prepare them.
                logger.exception("a step of %s failed", self._name, extra={"action": "stage"})
            del step  # it refers to a task
