"""RANKS: the items of one pipeline that wait for the device, in two orders: by urgency, and by cost. Used by window.

Urgency: first the priority, where each lower one still gets a share of the batches; then the tenants take turns; then
the item that is due first. An item is due at its deadline, or ``PATIENCE_S`` after its arrival if that is sooner. So
without deadlines the oldest comes first, and no stream of items with deadlines delays another one for long.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Hashable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Generic, TypeVar

from pipeq_worker.models.pipeline import BatchLimits
from pipeq_worker.schedule.batchable import Batchable
from pipeq_worker.schedule.turns import Turns

T = TypeVar("T", bound=Batchable)

#: An item without a deadline is due so long after its arrival, in seconds.
PATIENCE_S = 10.0
#: A waiting priority gets one batch for so many batches of more urgent ones.
EVERY = 10


@dataclass(slots=True, eq=False)
class Waiting(Generic[T]):
    """An item in the window."""

    item: T
    cost: int
    #: When it was put in, and when it is due, by the monotonic clock.
    since: float
    due: float
    order: int
    is_taken: bool = False

    def __lt__(self, other: Waiting[T]) -> bool:
        return (self.due, self.order) < (other.due, other.order)


_by_cost = attrgetter("cost")


@dataclass(eq=False)
class Group(Generic[T]):
    """Items that may share a forward pass, shortest first."""

    by_cost: list[Waiting[T]] = field(default_factory=list)

    def is_full(self, limits: BatchLimits) -> bool:
        """Whether waiting longer could not make the next batch larger."""
        if len(self.by_cost) >= limits.max_size:
            return True
        return self.by_cost[-1].cost * (len(self.by_cost) + 1) > limits.max_cost

    def equal(self, cost: int) -> tuple[int, int]:
        """The slice of those that cost this much."""
        return bisect_left(self.by_cost, cost, key=_by_cost), bisect_right(self.by_cost, cost, key=_by_cost)


@dataclass(eq=False)
class _Tenant(Generic[T]):
    #: Those that were taken in the meantime are dropped when they come to the front.
    heap: list[Waiting[T]] = field(default_factory=list)
    count: int = 0


@dataclass(eq=False)
class _Priority(Generic[T]):
    tenants: dict[Hashable, _Tenant[T]] = field(default_factory=dict)
    turns: Turns[Hashable] = field(default_factory=Turns)
    #: Batches of more urgent items for which it waited.
    passed_over: int = 0


class Waitings(Generic[T]):
    """The items of one pipeline. Not safe for threads."""

    def __init__(self) -> None:
        self.count = self.cost = self.nbytes = 0
        self.groups: dict[Hashable, Group[T]] = {}
        self._priorities: dict[int, _Priority[T]] = {}

    def add(self, item: T, now: float, order: int) -> None:
        """Adds an item."""
        one = Waiting(item, item.cost, now, min(item.deadline, item.arrived + PATIENCE_S), order)
        insort(self.groups.setdefault(item.group, Group()).by_cost, one, key=_by_cost)
        priority = self._priorities.setdefault(item.priority, _Priority())
        tenant = priority.tenants.setdefault(item.tenant, _Tenant())
        priority.turns.join(item.tenant)
        heapq.heappush(tenant.heap, one)
        tenant.count += 1
        self.count, self.cost, self.nbytes = self.count + 1, self.cost + item.cost, self.nbytes + item.nbytes

    def head(self) -> Waiting[T]:
        """The item that is served next. Some item must wait."""
        waiting = {at: one for at, one in self._priorities.items() if one.tenants}
        at = min(waiting, key=lambda at: (waiting[at].passed_over < EVERY, at))
        priority = waiting[at]
        tenant = min(priority.tenants, key=lambda name: (priority.turns.time(name), self._first(priority, name)))
        return self._first(priority, tenant)

    def _first(self, priority: _Priority[T], tenant: Hashable) -> Waiting[T]:
        heap = priority.tenants[tenant].heap
        while heap[0].is_taken:
            heapq.heappop(heap)
        return heap[0]

    def take(self, head: Waiting[T], start: int, stop: int) -> list[Waiting[T]]:
        """Removes a slice of the head's group, and returns it. Of items that cost the same, the most urgent go."""
        group = self.groups[head.item.group]
        chosen = self._urgent(group, head, start, stop)
        for one in chosen:
            one.is_taken = True
        first, last = group.equal(chosen[0].cost)[0], group.equal(chosen[-1].cost)[1]
        group.by_cost[first:last] = [one for one in group.by_cost[first:last] if not one.is_taken]
        if not group.by_cost:
            del self.groups[head.item.group]
        self._settle(head, chosen)
        return chosen

    def _urgent(self, group: Group[T], head: Waiting[T], start: int, stop: int) -> list[Waiting[T]]:
        low, high = (group.equal(group.by_cost[at].cost) for at in (start, stop - 1))
        if low == high:
            return self._most_urgent(group.by_cost[low[0] : low[1]], stop - start, head)
        return [
            *self._most_urgent(group.by_cost[low[0] : low[1]], low[1] - start, head),
            *group.by_cost[low[1] : high[0]],
            *self._most_urgent(group.by_cost[high[0] : high[1]], stop - high[0], head),
        ]

    def _most_urgent(self, equal: list[Waiting[T]], number: int, head: Waiting[T]) -> list[Waiting[T]]:
        """So many of some items that cost the same: the head, then by priority, by the tenants' turns, and when due."""
        if number == len(equal):
            return equal
        queues: dict[tuple[int, Hashable], list[Waiting[T]]] = {}
        for one in equal:
            queues.setdefault((one.item.priority, one.item.tenant), []).append(one)
        heads: list[tuple[int, float, Waiting[T], list[Waiting[T]]]] = []
        chosen = []
        for (at, tenant), queue in queues.items():
            time = self._priorities[at].turns.time(tenant)
            if head in queue:
                queue.remove(head)
                chosen.append(head)
                time += head.cost
            if queue:
                queue.sort(reverse=True)
                heads.append((at, time, queue.pop(), queue))
        heapq.heapify(heads)
        while len(chosen) < number:
            at, time, one, queue = heads[0]
            chosen.append(one)
            if queue:
                heapq.heapreplace(heads, (at, time + one.cost, queue.pop(), queue))
            else:
                heapq.heappop(heads)
        return chosen

    def _settle(self, head: Waiting[T], taken: list[Waiting[T]]) -> None:
        """Counts what was taken: as its tenants' use, and as a batch of the head's priority."""
        served = self._priorities[head.item.priority]
        finish = served.turns.time(head.item.tenant) + head.cost
        for one in taken:
            priority = self._priorities[one.item.priority]
            priority.turns.spend(one.item.tenant, one.cost)
            tenant = priority.tenants[one.item.tenant]
            tenant.count -= 1
            if not tenant.count:
                del priority.tenants[one.item.tenant]
                priority.turns.leave(one.item.tenant)
            self.count, self.cost, self.nbytes = (
                self.count - 1,
                self.cost - one.item.cost,
                self.nbytes - one.item.nbytes,
            )
        served.turns.advance(finish)
        served.passed_over = 0
        for at, priority in self._priorities.items():
            if not priority.tenants:
                priority.passed_over = 0
            elif at > head.item.priority:
                priority.passed_over += 1
