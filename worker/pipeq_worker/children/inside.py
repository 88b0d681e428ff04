"""INSIDE: the tasks inside a worker, by their numbers, from their acceptance to their delivery. Used by the dispatcher.

    add -> queue -> (a child prepares it, and its batches run) -> ends -> remove

A task has a number for each try in a child. Whatever is said of it by an older number is of a try that is over.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Generic

from pipeq_worker.children.feeding import Feeding
from pipeq_worker.schedule.task import Place, T


class Inside(Generic[T]):
    """Safe for threads. Hold :attr:`lock` where several things must not change in between.

    Args:
        feeding: where tasks wait that no child has. Used with the lock held.
    """

    def __init__(self, feeding: Feeding[T]) -> None:
        self.lock = threading.RLock()
        # Of one lock, but two, so that a task that comes or goes does not wake the thread that looks once a second.
        self._changed, self._stops = threading.Condition(self.lock), threading.Condition(self.lock)
        #: Number -> task.
        self._tasks: dict[int, T] = {}
        self._numbers = itertools.count(1)
        self._feeding = feeding
        self._last_came_at = time.monotonic()
        #: No task is accepted any more.
        self.is_draining = False
        #: A drain must not wait any more.
        self.is_hurried = False
        #: No task is delivered any more, whatever happens to it.
        self.is_stopped = False

    # -- what is there ------------------------------------------------------------------------------------------------

    def get(self, number: int) -> T | None:
        """The task with this number; None if that try is over."""
        return self._tasks.get(number)

    def has(self, task: T) -> bool:
        """Whether a task is still here."""
        return self._tasks.get(task.ticket) is task

    def all(self) -> list[T]:
        """All tasks."""
        with self.lock:
            return list(self._tasks.values())

    def in_children(self) -> list[T]:
        """The tasks that a child has."""
        with self.lock:
            return [one for one in self._tasks.values() if one.place in (Place.PREPARING, Place.PREPARED)]

    def counts(self) -> dict[str, int]:
        """Number of tasks of each pipeline."""
        with self.lock:
            return Counter(task.lane for task in self._tasks.values() if task.lane is not None)

    def running(self) -> dict[str, int]:
        """Number of those whose first batch has begun."""
        with self.lock:
            began = [task.lane for task in self._tasks.values() if task.started_at is not None]
        return Counter(name for name in began if name is not None)

    def spare(self, name: str) -> list[T]:
        """The tasks of a pipeline that have not begun. Those with which a process died stay here."""
        with self.lock:
            if self.is_draining:
                return []
            return [task for task in self._tasks.values() if task.lane == name and task.is_waiting and not task.deaths]

    def is_idle_for(self, seconds: float) -> bool:
        """Whether no task has been here for so long."""
        return not self._tasks and time.monotonic() - self._last_came_at > seconds

    # -- a task's way -------------------------------------------------------------------------------------------------

    def add(self, tasks: Sequence[T]) -> bool:
        """Adds tasks; those without an error wait for a child. Returns False if none is accepted any more."""
        with self.lock:
            if self.is_draining:
                return False
            for task in tasks:
                self._number(task)
                if task.error is None:
                    self._feeding.add(task)
            self._last_came_at = time.monotonic()
        return True

    def feed(self) -> None:
        """Gives the children those that wait for one."""
        with self.lock:
            self._feeding.feed()

    def heard(self, number: int, place: Place) -> T | None:
        """Notes where a child is with a task. Returns the task, unless that try is over. Call it with the lock held."""
        task = self._tasks.get(number)
        self._feeding.is_ready(number)
        if task is not None and task.place is not place and task.place in (Place.PREPARING, Place.PREPARED):
            task.moved(place)
        return task

    def learn(self, lane: str, busy_s: float) -> None:
        """Learns how long threads were busy preparing a task. Call it with the lock held."""
        self._feeding.learn(lane, busy_s)

    def ends(self, task: T) -> bool:
        """Notes that a task has ended. Returns False if that is known, or it is gone. Call it with the lock held."""
        if self.is_stopped or task.place is Place.ENDED or not self.has(task):
            return False
        self._feeding.is_ready(task.ticket)
        task.moved(Place.ENDED)
        return True

    def feeds_no_more(self, task: T) -> None:
        """Takes a task off those that wait for a child."""
        with self.lock:
            self._feeding.remove(task)

    def remove(self, tasks: Sequence[T]) -> None:
        """Removes tasks that were delivered."""
        with self.lock:
            for task in tasks:
                self._tasks.pop(task.ticket, None)
            if not self._tasks:
                self._changed.notify_all()

    def start_over(self, tasks: Sequence[T]) -> None:
        """Has tasks begin anew in a child, by other numbers. Call it with the lock held."""
        for task in tasks:
            # Its items, its batches and whatever else was said of it belong to the old number.
            del self._tasks[task.ticket]
            self._feeding.is_ready(task.ticket)
            self._number(task)
            task.starts_over()
        for task in tasks:
            # It is due before those that came later.
            self._feeding.add(task)

    # -- back to the queue, and the end -------------------------------------------------------------------------------

    def withdraw(self) -> list[T]:
        """Accepts no more tasks, and returns those that have not begun; the caller owns them again."""
        with self.lock:
            self.is_draining = True
            idle = [task for task in self._tasks.values() if task.withdraw()]
            self._forget(idle)
            self._changed.notify_all()
        return idle

    def give_back(self, tasks: Sequence[T], most: int) -> list[T]:
        """Withdraws the first ``most`` of these tasks that have not begun; the caller owns them again."""
        with self.lock:
            able = (task for task in tasks if self.has(task) and task.withdraw())
            back = list(itertools.islice(able, most))
            self._forget(back)
        return back

    def drain(self, timeout_s: float) -> None:
        """Waits until all tasks are delivered, for at most ``timeout_s``. Those that are left are not delivered."""
        with self.lock:
            self.is_draining = True
            self._changed.wait_for(lambda: self.is_hurried or not self._tasks, timeout_s)
            self.is_stopped = True
            self._stops.notify_all()

    def hurry(self) -> None:
        """Ends a drain, now or later, without waiting."""
        with self.lock:
            self.is_hurried = True
            self._changed.notify_all()

    def wait_until_stopped(self, timeout_s: float) -> bool:
        """Waits until nothing is delivered any more, for at most ``timeout_s``. Returns whether it is so."""
        with self.lock:
            return self._stops.wait_for(lambda: self.is_stopped, timeout_s)

    def _number(self, task: T) -> None:
        task.ticket = next(self._numbers)
        self._tasks[task.ticket] = task

    def _forget(self, tasks: Sequence[T]) -> None:
        for task in tasks:
            self._tasks.pop(task.ticket, None)
            self._feeding.remove(task)
