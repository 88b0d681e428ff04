"""FEEDING: gives the children tasks that wait in the host: few, and together. Used by the dispatcher, under its lock.

A child gets as many tasks as it needs to stay busy, so that which of the others is next can still change. It is not
woken for every single one while the device has plenty to do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Generic

from pipeq_worker.children import protocol
from pipeq_worker.children.fed import Fed
from pipeq_worker.children.keeper import Keeper
from pipeq_worker.schedule.task import Place, T
from pipeq_worker.schedule.task_queue import TaskQueue

#: Most tasks of one pipeline that a child has and of which no item is ready yet. The others wait in the host, because a
#: child prepares in the order in which it was given them.
FEED = 256
#: What these take together, in seconds of each thread: so long may an urgent task wait for slow ones before it.
FEED_S = 0.5
#: Bytes of their messages from which on a child gets no more than its threads need. What was learned from short texts
#: says nothing of long ones, of which each may take a second.
FEED_BYTES = 2**18
#: How much the last task counts in the average of what preparing takes.
_SHARE = 0.1
#: Packs of one pipeline that a child is preparing at most.
FEED_PACKS = 2
#: Tasks that are worth waking a child for while the device has plenty to do.
TOGETHER = 16


class Feeding(Generic[T]):
    """Not safe for threads: call it with the dispatcher's lock held.

    Args:
        homes: returns the children that prepare for a pipeline, and may be given tasks now.
        has_plenty: whether the device has its batches, and a pipeline's next one is ready, too.
        threads: of a child that prepare for one pipeline.
        has_choice: whether so many of a pipeline's items are ready that more would give no better batches. Packs wait
            then, each of which brings hundreds.
        begins: called with each task that a child is given; returns when the child ends it, or None.
    """

    def __init__(
        self,
        homes: Callable[[str], Sequence[Keeper]],
        has_plenty: Callable[[str], bool],
        threads: int,
        begins: Callable[[T], float | None] = lambda _: None,
        has_choice: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._has_choice = has_choice
        self._begins = begins
        self._homes = homes
        self._has_plenty = has_plenty
        self._threads = threads
        self._queues: dict[str, TaskQueue[T]] = {}
        #: Pipeline -> seconds that a thread takes to prepare a task, once some have ended.
        self._prepare_s: dict[str, float] = {}
        #: Tasks that a child has without any item being ready.
        self._fed = Fed()
        #: Whether one of the tasks that came since the last :meth:`feed` should not wait for others.
        self._is_urgent = False

    def add(self, task: T) -> None:
        """Adds a task. One that was here before is due as before."""
        self._queue(task).add(task)
        self._is_urgent |= not task.priority or task.deadline < math.inf

    def remove(self, task: T) -> None:
        """Forgets a task, wherever it is."""
        self._fed.discard(task.ticket)
        if task.place is Place.HOST:
            self._queue(task).discard(task)

    def is_ready(self, ticket: int) -> None:
        """Notes that an item of a task is ready, or that the task has ended."""
        self._fed.discard(ticket)

    def learn(self, name: str, seconds: float) -> None:
        """Learns how long threads were busy preparing a task of a pipeline. Waiting for a store keeps none busy."""
        known = self._prepare_s.setdefault(name, seconds)
        self._prepare_s[name] = known + _SHARE * (seconds - known)

    def most(self, name: str) -> int:
        """Number of a pipeline's tasks that a child has to prepare at most: no thread waits for its next one."""
        seconds = self._prepare_s.get(name, 0.0)
        enough = FEED_S * self._threads / seconds if seconds else FEED
        return int(min(FEED, max(enough, 2 * self._threads)))

    def feed(self) -> None:
        """Gives the children what they need."""
        is_urgent, self._is_urgent = self._is_urgent, False
        for name, queue in self._queues.items():
            # What waits here is given when there is more of it, or when a batch has run.
            if not queue or (len(queue) < TOGETHER and not is_urgent and self._has_plenty(name)):
                continue
            homes = self._homes(name)
            most = self.most(name)
            rooms = [self._room(name, one.number, most) for one in homes]
            given: list[list[protocol.ToChild]] = [[] for _ in homes]
            while queue and (room := max(rooms, default=0)) > 0:
                at = rooms.index(room)
                number = homes[at].number
                if queue.head().rows and (self._fed.count(name, number) >= FEED_PACKS or self._has_choice(name)):
                    break
                task = queue.pop()
                task.child = number
                task.given()
                self._fed.add(task.ticket, name, number, len(task.message))
                rooms[at] = self._room(name, number, most)
                given[at].append(_prepare(task, self._begins(task)))
            for home, messages in zip(homes, given, strict=True):
                # Sent under the lock, so that a cancel that follows does not overtake it.
                home.gather(*messages)

    def _room(self, name: str, child: int, most: int) -> int:
        """Number of tasks that a child may be given."""
        if self._fed.nbytes(name, child) >= FEED_BYTES:
            most = min(most, 2 * self._threads)
        return most - self._fed.count(name, child)

    def _queue(self, task: T) -> TaskQueue[T]:
        return self._queues.setdefault(task.lane or "", TaskQueue())


def _prepare(task: Any, deadline: float | None) -> protocol.Prepare:
    lane, alone = task.lane or "", task.deaths > 0
    return protocol.Prepare(task.ticket, task.id, lane, task.message, alone, task.has_next, deadline)
