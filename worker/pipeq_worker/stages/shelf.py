"""SHELF: prepared items, while they wait for the device. Before: prepare. After: infer. Imports no Celery and no torch.

Which of them run together is decided elsewhere, by their numbers; here they only lie. A lane that is full makes the
tasks that would add to it wait, and no thread waits with them.
"""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

from pipeq_worker.models.pipeline import BatchLimits
from pipeq_worker.stages.task import Item

#: Share of a lane's bytes beyond which it is full once two batches wait in it.
ENOUGH = 0.25


@dataclass
class _Lane:
    """Totals of the items that lie in one lane, and what waits for room in it."""

    count: int = 0
    cost: int = 0
    nbytes: int = 0
    waiting: deque[tuple[Callable[[], None], BatchLimits]] = field(default_factory=deque)


class Shelf:
    """The prepared items of this process. Safe for any number of threads.

    Args:
        max_bytes: a lane that holds this much is full.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._items: dict[int, Item] = {}
        self._lanes: dict[Hashable, _Lane] = defaultdict(_Lane)
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def put(self, *items: Item) -> None:
        """Adds items, and gives each its number."""
        with self._lock:
            for item in items:
                item.number = next(self._numbers)
                self._items[item.number] = item
                lane = self._lanes[item.lane]
                lane.count, lane.cost, lane.nbytes = lane.count + 1, lane.cost + item.cost, lane.nbytes + item.nbytes

    def is_full(self, name: Hashable, limits: BatchLimits) -> bool:
        """Whether the lane has enough: a task with more items for it should wait."""
        with self._lock:
            return self._is_full(self._lanes[name], limits)

    def when_room(self, name: Hashable, limits: BatchLimits, resume: Callable[[], None]) -> None:
        """Calls ``resume`` once the lane is not full any more, in the order of the calls; at once if it is not now."""
        with self._lock:
            lane = self._lanes[name]
            if self._is_full(lane, limits) or lane.waiting:
                lane.waiting.append((resume, limits))
                return
        resume()

    def find(self, numbers: Iterable[int]) -> list[Item]:
        """The items with these numbers, without those that were removed meanwhile."""
        with self._lock:
            return [self._items[number] for number in numbers if number in self._items]

    def remove(self, items: Iterable[Item]) -> list[Item]:
        """Takes items off the shelf, which makes room. Returns those that were on it."""
        resumed: list[Callable[[], None]] = []
        with self._lock:
            removed = [item for item in items if self._items.pop(item.number, None) is not None]
            # Those of a batch are of one lane.
            names = {task: task.pipeline.name for task in {item.task for item in removed} if task.pipeline is not None}
            lanes = set(names.values())
            for name in lanes:
                some = removed if len(lanes) == 1 else [item for item in removed if names[item.task] == name]
                lane = self._lanes[name]
                lane.count -= len(some)
                lane.cost -= sum([item.cost for item in some])
                lane.nbytes -= sum([item.nbytes for item in some])
            for name in lanes:
                resumed += self._let_on(self._lanes[name])
        for resume in resumed:
            resume()
        return removed

    def remove_of(self, tasks: Iterable[object]) -> list[Item]:
        """Takes all items of these tasks off the shelf, and returns them."""
        ids = {id(task) for task in tasks}
        with self._lock:
            items = [item for item in self._items.values() if id(item.task) in ids]
        return self.remove(items)

    def _let_on(self, lane: _Lane) -> list[Callable[[], None]]:
        """Those that may go on now: as many as there are items missing, so that one free place wakes one task."""
        resumed: list[Callable[[], None]] = []
        while lane.waiting and not self._is_full(lane, lane.waiting[0][1]) and len(resumed) < self._room(lane):
            resumed.append(lane.waiting.popleft()[0])
        return resumed

    def _room(self, lane: _Lane) -> int:
        """About how many more items fit into the lane: more are let on when these have come."""
        return max(1, (self._max_bytes - lane.nbytes) * lane.count // lane.nbytes) if lane.nbytes > 0 else 64

    def _is_full(self, lane: _Lane, limits: BatchLimits) -> bool:
        # A lane that is empty takes one item of any size.
        if not lane.count or lane.nbytes <= self._max_bytes * ENOUGH:
            return False
        # Two batches give enough choice; holding more items only takes memory.
        has_two = lane.count >= 2 * limits.max_size or lane.cost >= 2 * limits.max_cost
        return has_two or lane.nbytes > self._max_bytes
