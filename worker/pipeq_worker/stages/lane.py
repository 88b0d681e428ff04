"""What the tasks of one pipeline share with no other's: its threads up to the device, and the bytes of its inputs.

A task of many items is prepared in slices, and others come in between: whoever sends ten thousand labels waits longer,
and nobody waits for him. A slice goes on where the last one ended, on the same thread: what is begun there holds that
thread's tokenizer.
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
    """One pipeline's. Threads start when they are first needed."""

    def __init__(self, name: str, max_bytes: int, fetch_threads: int, prepare_threads: int) -> None:
        self.budget = Budget(max_bytes)
        self.fetching = ThreadPoolExecutor(fetch_threads, f"fetch-{name}")
        self.preparing = Threads(prepare_threads, f"prepare-{name}")

    def close(self) -> None:
        """What is queued does not start; what waits for room is let through, so that its thread ends."""
        self.budget.close()
        self.preparing.close()
        self.fetching.shutdown(wait=False, cancel_futures=True)


class Threads:
    """Runs steps, first come, first served; a step may say that another one shall follow on its own thread."""

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
        """Runs a step on that thread, in turn with what is new. May be called from any thread."""
        with self._changed:
            self._own[number].append(step)
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing starts any more. Returns at once."""
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
                # In turn: neither shall a long task starve nor those that come after it.
                own_first = not own_first
                step = (own if own and (own_first or not self._new) else self._new).popleft()
            try:
                step()
            except BaseException:  # a panic inside a tokenizer is no Exception
                # Without its threads a pipeline would take tasks and never prepare one.
                logger.exception("a step of %s failed", self._name, extra={"action": "stage"})
            del step  # it holds a task
