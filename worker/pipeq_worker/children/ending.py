"""ENDING: tasks that have ended, with a result or an error, go to delivery, once each. Used by the dispatcher.

a child has ended a task, its time is over, or it is not wanted -> ended -> delivered -> gone
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Generic

from pipeq.contract.errors import PipeqError

from pipeq_worker.children.delivering import Delivering
from pipeq_worker.children.inside import Inside
from pipeq_worker.children.lone import Lone
from pipeq_worker.observe.observer import Observer
from pipeq_worker.schedule.task import Place, T

#: Stages whose times are told to observers, in the order of a task's way.
_STAGES = ("fetch", "decode", "prepare", "wait_device", "infer")


class Ending(Generic[T]):
    """Owns the threads ``deliver``.

    Args:
        inside: the tasks inside.
        deliver: see :class:`pipeq_worker.children.hooks.Hooks`.
        lone: lets suspects end one at a time.
        observer: told how long the stages took.
        cancel: has the children stop working on tasks.
        late: the error of a task whose time is over.
        forget: called with the number of each task that is gone.
    """

    def __init__(
        self,
        inside: Inside[T],
        deliver: Callable[[list[T]], None],
        lone: Lone[T],
        observer: Observer,
        *,
        cancel: Callable[[Sequence[T]], None],
        late: Callable[[T], PipeqError],
        forget: Callable[[int], None],
    ) -> None:
        self._inside = inside
        self._lone = lone
        self._observer = observer
        self._cancel = cancel
        self._late = late
        self._forget = forget
        self._delivering: Delivering[T] = Delivering(deliver, self._delivered)
        #: Those whose marks are still being written.
        self._unmarked: set[T] = set()

    def start(self) -> None:
        """Starts the threads that deliver."""
        self._delivering.start()

    def settle(self, timeout_s: float) -> None:
        """Waits until everything is delivered, for at most ``timeout_s``; delivers nothing more then."""
        self._delivering.settle(timeout_s)

    def end(self, tasks: Iterable[T]) -> None:
        """Delivers tasks soon."""
        with self._inside.lock:
            ending = [task for task in tasks if self._inside.ends(task)]
            unmarked = {task for task in ending if task.is_marking}
            self._unmarked |= unmarked
        for task in ending:
            if task.lane is not None:
                for stage in _STAGES:
                    if stage in task.timing_ms:
                        self._observer.stage_ended(task.id, task.lane, stage, task.timing_ms[stage] / 1000)
        if unmarked:
            ending = [task for task in ending if task not in unmarked]
        # What a host died with, and has no mark, because it never reached a batch.
        suspects = [task for task in ending if task.is_suspect and task.started_at is None]
        if rest := [task for task in ending if task not in suspects] if suspects else ending:
            self._delivering.put(rest)
        for task in suspects:
            self._deliver_alone(task)

    def marked(self, tasks: Sequence[T]) -> None:
        """Delivers those that have ended while they were being marked."""
        with self._inside.lock:
            for task in tasks:
                task.is_marking = False
            ended = [task for task in tasks if task in self._unmarked]
            self._unmarked.difference_update(ended)
        if ended:
            self._delivering.put(ended)

    def drop(self, task: T) -> None:
        """Ends a task that needs no more work: cancelled, expired, or failed here. The child stops working on it."""
        is_inside = task.place in (Place.PREPARING, Place.PREPARED)
        self._inside.feeds_no_more(task)
        self.end([task])
        if is_inside:
            self._cancel([task])

    def drop_late(self, task: T) -> None:
        """Ends a task whose time is over. What works on it is told to stop, and its result is not waited for."""
        with self._inside.lock:
            if task.late_at > time.monotonic() or task.place is Place.ENDED:
                return
            if not task.split():
                task.fail(self._late(task))
        self.drop(task)

    def _deliver_alone(self, task: T) -> None:
        if self._lone.enter(task, lambda: True, lambda: self._deliver_alone(task)):
            self._delivering.put([task])

    def _delivered(self, tasks: list[T]) -> None:
        with self._inside.lock:
            self._inside.remove(tasks)
            for task in tasks:
                self._forget(task.ticket)
        for resume in self._lone.leave(tasks):
            resume()
