"""THREADS: run the steps of a stage. Short steps stay on one thread, because several would wait for Python's lock.

A step of Python takes a tenth of a millisecond for a short text, and seconds for a long recording, most of them outside
of Python's lock. Threads share the work of long steps. Of short ones each would only wait until another lets go of the
lock, and be woken for every step: then one thread does them all, while another looks every :data:`LATE_S` whether a
step has turned out to be long. In a process with a loop, that does the shortest of them itself.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

from pipeq_worker.settings.read import Settings

logger = logging.getLogger(__name__)

Step = Callable[[], None]

#: More threads than this that prepare slow each other down, waiting for the interpreter's lock.
MOST_PREPARE_THREADS = 8
#: If half of the steps take less than this, they run on one thread, in seconds.
SHORT_S = 0.002
#: Short steps that are run as one, at most, and about how long they take, in seconds.
MOST_TOGETHER, TOGETHER_S = 32, 0.01
#: A step that goes on for so long shows that others should not wait for it, in seconds.
LATE_S = 0.1
#: The number of a loop's thread, for :meth:`Threads.go_on`.
LOOP = -1
#: By how much each step moves the median.
_STEP = 1.1


def _nothing() -> None:
    """The default, if nobody wants to know."""


class Loop(Protocol):
    """Runs steps on one thread, together with what else this does."""

    @property
    def is_here(self) -> bool:
        """Whether the calling thread is that of the loop."""

    def call(self, *steps: Step, first: bool = False) -> None:
        """Runs steps there, those with ``first`` before others. May be called from any thread."""


class Threads:
    """Runs steps in the order of submission. A step may ask that another step follows on its own thread.

    Threads start when they are first needed.

    Args:
        count: of threads, at most.
        name: of the threads, for the log.
        idle: called by a thread that has worked and now finds nothing to do.
        loop: does short steps, if there is one.
        first: whether these steps come before others of the loop.
    """

    def __init__(
        self,
        count: int,
        name: str,
        idle: Callable[[], None] = _nothing,
        loop: Loop | None = None,
        *,
        first: bool = False,
    ) -> None:
        self._loop = loop
        self._is_first = first
        self._count = count
        self._name = name
        self._on_idle = idle
        self._new: deque[Step] = deque()
        #: For each thread that was started: its own steps, what wakes it, and when its step began; None if it has none.
        self._own: list[deque[Step]] = []
        self._wakes: list[threading.Condition] = []
        self._began: list[float | None] = []
        #: Threads that wait, the last one at the end: it is the first to be woken, as its memory is in the caches.
        self._waiting: list[int] = []
        #: Of these, those that look now and then whether the others are late.
        self._looking = 0
        #: About the median of what steps take, in seconds: on a busy machine the mean would tell of other processes.
        #: Until some have run they are taken for long.
        self._median_s = 10 * SHORT_S
        self._closed = False
        self._lock = threading.Lock()
        self._here = threading.local()

    def submit(self, *steps: Step, light: bool = False) -> None:
        """Runs steps on any threads. Returns at once.

        Args:
            steps: functions.
            light: whether they wait for nothing and, as far as is known, do not take longer than others.
        """
        if light and self.has_short_steps and self._loop is not None:
            self._loop.call(*(partial(self._run_here, step) for step in steps), first=self._is_first)
            return
        with self._lock:
            self._new.extend(steps)
            self._call()

    @property
    def has_short_steps(self) -> bool:
        """Whether light steps run on the loop."""
        return self._loop is not None and self._median_s < SHORT_S

    @property
    def most_together(self) -> int:
        """Number of short steps that the loop may run before it hears the host again."""
        return max(1, min(MOST_TOGETHER, int(TOGETHER_S / self._median_s)))

    def together(self, burst: Callable[[], tuple[int, int]]) -> None:
        """Runs a step of several tasks on the loop, which there must be. Returns at once.

        Args:
            burst: returns how many tasks it took, and how many of them it brought to their end.
        """
        assert self._loop is not None
        self._loop.call(partial(self._run_burst, burst), first=self._is_first)

    def here(self) -> int:
        """The number of the calling thread, for :meth:`go_on`."""
        return int(getattr(self._here, "number", LOOP))

    def go_on(self, number: int, step: Step) -> None:
        """Runs a step on the given thread, alternating with new steps. May be called from any thread."""
        if number == LOOP:
            assert self._loop is not None
            self._loop.call(partial(self._run_here, step), first=self._is_first)
            return
        with self._lock:
            self._own[number].append(step)
            self._wakes[number].notify()

    def close(self) -> None:
        """Starts no more steps. Returns at once."""
        with self._lock:
            self._closed = True
            for wake in self._wakes:
                wake.notify()

    def _run_here(self, step: Step) -> None:
        """Runs a step on the loop's thread."""
        if self._closed:
            return
        began = time.monotonic()
        try:
            step()
        finally:
            self._took(time.monotonic() - began)

    def _run_burst(self, burst: Callable[[], tuple[int, int]]) -> None:
        if self._closed:
            return
        began = time.monotonic()
        taken, ended = burst()
        # The others are measured when they go on.
        for _ in range(ended):
            self._took((time.monotonic() - began) / taken)

    def _took(self, seconds: float) -> None:
        """Learns from a step."""
        self._median_s *= _STEP if seconds > self._median_s else 1 / _STEP

    def _call(self) -> None:
        """Has one more thread run steps, or look whether it should. Call it with the lock held."""
        if not self._new or (self._looking and not self._may_share()):
            return
        if self._waiting:
            self._wakes[self._waiting[-1]].notify()
        elif len(self._own) < self._count:
            number = len(self._own)
            self._own.append(deque())
            self._wakes.append(threading.Condition(self._lock))
            self._began.append(None)
            threading.Thread(target=self._run, args=(number,), name=f"{self._name}-{number}", daemon=True).start()

    def _may_share(self) -> bool:
        """Whether one more thread may take a new step."""
        if self._median_s >= SHORT_S:
            return True
        since = min((began for began in self._began if began is not None), default=None)
        return since is None or time.monotonic() - since > LATE_S

    def _run(self, number: int) -> None:
        self._here.number = number
        own_first, spent_s = False, -1.0
        while True:
            with self._lock:
                if spent_s >= 0:
                    self._took(spent_s)
                step = self._take(number, own_first) or self._wait_for_step(number, has_to_tell=spent_s >= 0)
                if self._closed:
                    return
                self._began[number] = time.monotonic()
                self._call()
            if step is None:
                spent_s = -1.0
                self._on_idle()
                continue
            # Own and new steps alternate, so that neither a long task starves nor the tasks that come after it.
            own_first, began = not own_first, time.monotonic()
            try:
                step()
            except BaseException:  # a panic inside a tokenizer is not an Exception
                # The thread must survive: without threads the pipeline would accept tasks and never prepare them.
                logger.exception("a step of %s failed", self._name, extra={"action": "stage"})
            del step  # it refers to a task
            spent_s = time.monotonic() - began

    def _take(self, number: int, own_first: bool) -> Step | None:
        """Returns the next step of a thread; None if there is none. Call it with the lock held."""
        own = self._own[number]
        if own and (own_first or not self._new):
            return own.popleft()
        # A thread that has just ended a step counts as busy, so that it gets the next one before others wake up.
        if self._new and (self._began[number] is not None or self._may_share()):
            return self._new.popleft()
        return own.popleft() if own else None

    def _wait_for_step(self, number: int, *, has_to_tell: bool) -> Step | None:
        """Waits for a step. Returns None if it is closed, or if the thread has to tell first that it is idle."""
        self._began[number] = None
        while not self._closed:
            if has_to_tell and not self._new:
                return None
            self._wait(number)
            if (step := self._take(number, own_first=False)) is not None:
                return step
        return None

    def _wait(self, number: int) -> None:
        is_looking = any(began is not None for began in self._began)
        self._waiting.append(number)
        self._looking += is_looking
        self._wakes[number].wait(LATE_S if is_looking else None)
        self._looking -= is_looking
        self._waiting.remove(number)


def threads_of(settings: Settings) -> int:
    """Threads that prepare, for each pipeline."""
    return settings.prepare_threads or min(os.cpu_count() or 1, MOST_PREPARE_THREADS)
