"""BATCH: ready items -> batches, by padded cost. Before: prepare. After: infer. Imports no Celery and no torch.

Items of one group may share a forward pass. A batch always holds the item that has waited longest, so that none
starves, and those items of similar length that use the pass best. A fixed batch size in arrival order wastes its work
on padding instead (79% of it on texts of log-normal length at size 32; see docs/decisions/batching.md).
"""

from __future__ import annotations

import threading
import time
from bisect import insort
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

from pipeq_worker.models.pipeline import BatchLimits
from pipeq_worker.schedule.costs import Costs, Learned


class Batchable(Protocol):
    """The attributes of an item that the batcher needs."""

    @property
    def group(self) -> Hashable:
        """Items with equal groups may share a forward pass."""

    @property
    def lane(self) -> Hashable:
        """Items of one lane share its part of the window, and wait when that is full; a group lies within a lane."""

    @property
    def cost(self) -> int:
        """Cost of the item alone, in the unit of the task type (tokens, frames, patches)."""

    @property
    def nbytes(self) -> int:
        """Bytes that the item holds while it waits."""


T = TypeVar("T", bound=Batchable)

#: Share of the window's bytes beyond which a lane is full once two batches wait in it.
ENOUGH = 0.25


@dataclass(frozen=True)
class Batch(Generic[T]):
    """Items for one forward pass, shortest first."""

    items: list[T]

    @property
    def padding(self) -> float:
        """Share of the padded cost that is padding, 0 to 1."""
        padded = self.padded_cost
        return 1 - sum(item.cost for item in self.items) / padded if padded else 0.0

    @property
    def padded_cost(self) -> int:
        """Cost of the pass: each item costs as much as the longest one."""
        return max(item.cost for item in self.items) * len(self.items)


@dataclass
class _Lane:
    """Totals of the items that wait in one lane."""

    count: int = 0
    cost: int = 0
    nbytes: int = 0

    def add(self, item: Batchable) -> None:
        self.count, self.cost, self.nbytes = self.count + 1, self.cost + item.cost, self.nbytes + item.nbytes

    def remove(self, items: Sequence[Batchable]) -> None:
        self.count -= len(items)
        self.cost -= sum(item.cost for item in items)
        self.nbytes -= sum(item.nbytes for item in items)


@dataclass(slots=True, eq=False)
class _Waiting(Generic[T]):
    item: T
    cost: int
    since: float
    order: int


_by_cost = attrgetter("cost")


@dataclass(eq=False)
class _Group(Generic[T]):
    learned: Learned
    by_cost: list[_Waiting[T]] = field(default_factory=list)
    #: Insertion-ordered, so that the first key has waited longest.
    by_age: dict[_Waiting[T], None] = field(default_factory=dict)

    def add(self, waiting: _Waiting[T]) -> None:
        insort(self.by_cost, waiting, key=_by_cost)
        self.by_age[waiting] = None

    @property
    def limits(self) -> BatchLimits:
        """Limits of the next batch."""
        return self.learned.limits

    @property
    def oldest(self) -> _Waiting[T]:
        return next(iter(self.by_age))

    @property
    def is_full(self) -> bool:
        """Whether waiting longer could not make the next batch larger."""
        if len(self.by_cost) >= self.limits.max_size:
            return True
        return self.by_cost[-1].cost * (len(self.by_cost) + 1) > self.limits.max_cost

    def take(self) -> list[T]:
        """Removes and returns the next batch's items, shortest first."""
        costs = [waiting.cost for waiting in self.by_cost]
        start, stop = best_window(costs, self.by_cost.index(self.oldest), self.limits)
        taken = self.by_cost[start:stop]
        del self.by_cost[start:stop]
        for waiting in taken:
            del self.by_age[waiting]
        return [waiting.item for waiting in taken]


def best_window(costs: list[int], must: int, limits: BatchLimits) -> tuple[int, int]:
    """Returns the slice of ``costs`` (sorted) that holds index ``must`` and makes best use of a forward pass.

    "Best" is the most useful cost for each unit of time, where the time of a pass is its padded cost plus the cost of
    launching it: ``sum(costs) / (launch_cost + longest * n)``.

    Returns:
        ``(start, stop)``; at least the item itself, even if it alone exceeds the limits.
    """
    prefix = [0]
    for cost in costs:
        prefix.append(prefix[-1] + cost)
    best, best_score = (must, must + 1), -1.0
    start = max(0, must + 1 - limits.max_size)
    for stop in range(must + 1, len(costs) + 1):
        longest = max(costs[stop - 1], 1)
        start = max(start, stop - limits.max_size)
        while start < must and longest * (stop - start) > limits.max_cost:
            start += 1
        if start > must or (stop - start > 1 and longest * (stop - start) > limits.max_cost):
            break
        # A shorter item pays off while its share of the longest exceeds the score so far. Towards shorter items the
        # shares only fall.
        score = -1.0
        for begin in range(must, start - 1, -1):
            longer = (prefix[stop] - prefix[begin]) / (limits.launch_cost + longest * (stop - begin))
            if longer <= score:
                break
            score = longer
            if score > best_score:
                best, best_score = (begin, stop), score
    return best


class Batcher(Generic[T]):
    """The window of ready items. Many threads put items in, and the device thread takes batches out.

    Args:
        max_bytes: :meth:`put` blocks while an item's lane holds this much, which slows down the thread that cuts a long
            audio into chunks.
        costs: what was learned of each lane; it sets the limits of batches.
    """

    def __init__(self, max_bytes: int, costs: Costs | None = None) -> None:
        self._max_bytes = max_bytes
        self._costs = costs or Costs()
        self._lanes: dict[Hashable, _Lane] = defaultdict(_Lane)
        self._groups: dict[Hashable, _Group[T]] = {}
        self._order = 0
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        with self._changed:
            return sum(len(group.by_cost) for group in self._groups.values())

    def put(self, item: T, limits: BatchLimits) -> bool:
        """Adds an item; blocks while its lane is full by bytes.

        Returns:
            Whether the lane has no room for another item like it; a caller with more items should then pause.

        Raises:
            Closed: the batcher was closed.
        """
        learned = self._costs.of(item.lane, limits)
        with self._changed:
            limits = learned.limits
            lane = self._lanes[item.lane]
            self._changed.wait_for(lambda: self._closed or not self._is_full(lane, item, limits))
            if self._closed:
                raise Closed
            self._order += 1
            lane.add(item)
            group = self._groups.get(item.group)
            if group is None:
                group = self._groups[item.group] = _Group(learned)
            group.add(_Waiting(item, item.cost, time.monotonic(), self._order))
            self._changed.notify_all()
            return self._is_full(lane, item, limits)

    def _is_full(self, lane: _Lane, item: T, limits: BatchLimits) -> bool:
        """Whether an item has to wait outside. A lane that is empty admits one item of any size."""
        total = lane.nbytes + item.nbytes
        if not lane.count or total <= self._max_bytes * ENOUGH:
            return False
        # Two batches give enough choice; holding more items only takes memory.
        has_two = lane.count >= 2 * limits.max_size or lane.cost >= 2 * limits.max_cost
        return has_two or total > self._max_bytes

    def take(self) -> Batch[T] | None:
        """Waits for the next batch; returns None once the batcher is closed.

        Call it when the device is idle. It returns what is ready at once, or after ``max_wait_s`` if more items could
        still join the oldest one.
        """
        with self._changed:
            while not self._closed:
                if not self._groups:
                    self._changed.wait()
                    continue
                key, group = min(self._groups.items(), key=lambda entry: entry[1].oldest.order)
                left = group.oldest.since + group.limits.max_wait_s - time.monotonic()
                if left > 0 and not group.is_full:
                    self._changed.wait(left)
                    continue
                items = group.take()
                if not group.by_cost:
                    del self._groups[key]
                self._lanes[items[0].lane].remove(items)
                self._changed.notify_all()
                return Batch(items)
            return None

    def close(self) -> list[T]:
        """Wakes all waiting threads, and returns the items that were still waiting."""
        with self._changed:
            self._closed = True
            left = [waiting.item for group in self._groups.values() for waiting in group.by_age]
            self._groups.clear()
            self._changed.notify_all()
            return left


class Closed(Exception):  # noqa: N818 - names an event, as queue.Empty does
    """The batcher was closed while a thread put an item into it."""
