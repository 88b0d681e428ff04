"""STREAMS: gives the child items of pipelines that run them one by one, each as soon as there is a place.

It is to such pipelines what :mod:`.runs` is to those that run batches: tasks are marked as running first, and a task
with which a process has died is alone in its pipeline's stream.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable

from pipeq_worker.children.guarded import guarded
from pipeq_worker.children.runs import Device, Runs
from pipeq_worker.observe.traces import internal
from pipeq_worker.schedule.batcher import Batcher
from pipeq_worker.schedule.task import Item, T
from pipeq_worker.schedule.task_queue import TaskQueue

logger = logging.getLogger(__name__)

#: Numbers of runs from here on are not those of batches.
FIRST = 2**40


class Streams(Runs[T]):
    """Owns the thread ``streams``.

    Args:
        device: what it works with.
        slots: the number of places of a pipeline.
    """

    def __init__(self, device: Device[T], slots: Callable[[str], int]) -> None:
        super().__init__(Batcher(), device)
        self._numbers = itertools.count(FIRST)
        self._slots = slots
        #: Lane -> items that wait for a place, the most urgent first, and those that wait to be alone.
        self._waiting: dict[str, TaskQueue[Item[T]]] = {}
        self._alone: dict[str, deque[Item[T]]] = {}

    def start(self) -> None:
        """Gives the child items until this is closed."""
        threading.Thread(target=guarded(self._run, self._device.hopeless), name="streams", daemon=True).start()

    def put(self, item: Item[T]) -> None:
        """Adds an item that is ready."""
        with self._changed:
            self._waiting.setdefault(item.lane, TaskQueue()).add(item)
            self._changed.notify_all()

    def abandon(self) -> dict[int, list[Item[T]]]:
        """Forgets the items of a child that has died. Returns for each run that was open all that ran beside it."""
        with self._changed:
            self._waiting, self._alone = {}, {}
            lost = super().abandon()
        lanes: dict[str, list[Item[T]]] = {}
        for (item,) in lost.values():
            lanes.setdefault(item.lane, []).append(item)
        return {number: lanes[item.lane] for number, (item,) in lost.items()}

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or any(map(self._has_work, {**self._waiting, **self._alone}))
                )
                if self._closed:
                    return
                life = self._life
                lone, items = self._next()
            try:
                for item in lone:
                    self._start_alone(item, life)
                if items:
                    self._enter(items, life)
            except Exception as error:
                logger.exception("items failed inside pipeq", extra={"action": "stream"})
                for item in [*lone, *items]:
                    item.task.fail(internal(error))
                    self._device.drop(item.task)

    def _inside(self, lane: str) -> list[Item[T]]:
        return [item for items in self._open.values() for item in items if item.lane == lane]

    def _has_work(self, lane: str) -> bool:
        inside = self._inside(lane)
        if self._alone.get(lane) or any(item.task.deaths for item in inside):
            return not inside
        return bool(self._waiting.get(lane)) and len(inside) < self._slots(lane)

    def _next(self) -> tuple[list[Item[T]], list[Item[T]]]:
        """The items to start alone, and those to start beside others: of each lane the one or the other."""
        lone: list[Item[T]] = []
        items: list[Item[T]] = []
        for lane in {**self._waiting, **self._alone}:
            if not self._has_work(lane):
                continue
            if self._alone.get(lane):
                lone.append(self._alone[lane].popleft())
                continue
            waiting = self._waiting[lane]
            count = min(len(waiting), self._slots(lane) - len(self._inside(lane)))
            items += [waiting.pop() for _ in range(count)]
        return [item for item in lone if not item.is_gone], [item for item in items if not item.is_gone]

    def _enter(self, items: list[Item[T]], life: int) -> None:
        tasks = list(dict.fromkeys(item.task for item in items))
        self._begin([task for task in tasks if task.started_at is None and not task.needs_no_device], alone=False)
        for task in tasks:
            if task.needs_no_device or (task.deaths and task.split()):
                self._device.drop(task)
        for item in items:
            if item.task.needs_no_device:
                continue
            if item.task.deaths:
                with self._changed:
                    if life == self._life:
                        self._alone.setdefault(item.lane, deque()).append(item)
            else:
                self._give([item], life, alone=False)
