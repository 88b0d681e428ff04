"""RANKS: the items of one pipeline that wait for the device, in two orders: by urgency, and by cost. Used by window."""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Generic, TypeVar

from pipeq_worker.models.pipeline import BatchLimits
from pipeq_worker.schedule.batchable import Batchable
from pipeq_worker.schedule.urgency import PATIENCE_S, Urgency, Waiting, by_due

T = TypeVar("T", bound=Batchable)

_by_cost = attrgetter("cost")


@dataclass(eq=False)
class Group(Generic[T]):
    """Items that may share a forward pass, shortest first."""

    by_cost: list[Waiting[T]] = field(default_factory=list)
    #: Whether those that cost the same are in the order in which they are due.
    is_in_order: bool = True

    def add(self, one: Waiting[T]) -> None:
        """Adds one."""
        by_cost = self.by_cost
        if by_cost and by_cost[-1].cost > one.cost:
            at = bisect_right(by_cost, one.cost, key=_by_cost)
            self.is_in_order = self.is_in_order and _are_in_order(by_cost[at - 1] if at else None, one)
            by_cost.insert(at, one)
        else:
            self.is_in_order = self.is_in_order and _are_in_order(by_cost[-1] if by_cost else None, one)
            by_cost.append(one)

    def add_all(self, some: Sequence[Waiting[T]]) -> None:
        """Adds several, each due when the one before is, or later."""
        self.add(some[0])
        if some[0] is self.by_cost[-1] and all(one.cost == some[0].cost for one in some):
            self.by_cost += some[1:]  # in the order that they have
            return
        for one in some[1:]:
            self.add(one)

    def is_full(self, limits: BatchLimits) -> bool:
        """Whether waiting longer could not make the next batch larger."""
        if len(self.by_cost) >= limits.max_size:
            return True
        return self.by_cost[-1].cost * (len(self.by_cost) + 1) > limits.max_cost

    def equal(self, cost: int) -> tuple[int, int]:
        """The slice of those that cost this much."""
        return bisect_left(self.by_cost, cost, key=_by_cost), bisect_right(self.by_cost, cost, key=_by_cost)


def _are_in_order(before: Waiting[T] | None, one: Waiting[T]) -> bool:
    return before is None or before.cost != one.cost or by_due(before) <= by_due(one)


class Waitings(Generic[T]):
    """The items of one pipeline. Not safe for threads."""

    def __init__(self) -> None:
        self.count = self.cost = self.nbytes = 0
        self.groups: dict[Hashable, Group[T]] = {}
        self._urgency: Urgency[T] = Urgency()

    def add(self, item: T, now: float, order: int) -> None:
        """Adds an item."""
        self.add_all([item], now, order)

    def add_all(self, items: Sequence[T], now: float, order: int) -> None:
        """Adds items of one group and task, with consecutive numbers from ``order`` on."""
        first = items[0]
        due = min(first.deadline, first.arrived + PATIENCE_S)
        some = [Waiting(item, item.cost, now, due, at) for at, item in enumerate(items, order)]
        if (group := self.groups.get(first.group)) is None:
            group = self.groups[first.group] = Group()
        group.add_all(some)
        self._urgency.add_all(some)
        self.count += len(some)
        self.cost += sum([one.cost for one in some])
        self.nbytes += sum([item.nbytes for item in items])

    def head(self) -> Waiting[T]:
        """The item that is served next. Some item must wait."""
        return self._urgency.head()

    def take(self, head: Waiting[T], start: int, stop: int) -> list[Waiting[T]]:
        """Removes a slice of the head's group, and returns it. Of items that cost the same, the most urgent go."""
        group = self.groups[head.item.group]
        by_cost = group.by_cost
        if group.is_in_order and by_cost[0] is head and head.cost == by_cost[-1].cost and self._urgency.is_of_one:
            # The first ones are the most urgent, whichever slice it is.
            chosen = by_cost[: stop - start]
            self._urgency.serve(head, chosen)
            del by_cost[: stop - start]
        else:
            chosen = self._urgent(group, head, start, stop)
            self._urgency.serve(head, chosen)
            first, last = group.equal(chosen[0].cost)[0], group.equal(chosen[-1].cost)[1]
            by_cost[first:last] = [one for one in by_cost[first:last] if not one.is_taken]
        if not by_cost:
            del self.groups[head.item.group]
        self.count -= len(chosen)
        self.cost -= sum(one.cost for one in chosen)
        self.nbytes -= sum(one.item.nbytes for one in chosen)
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
        if self._urgency.is_of_one:
            # The head is due first of all.
            return heapq.nsmallest(number, equal, key=by_due)
        queues: dict[tuple[int, Hashable], list[Waiting[T]]] = {}
        for one in equal:
            queues.setdefault((one.item.priority, one.item.tenant), []).append(one)
        heads: list[tuple[int, float, tuple[float, int], Waiting[T], list[Waiting[T]]]] = []
        chosen = []
        for (at, _), queue in queues.items():
            time = self._urgency.time(queue[0])
            if head in queue:
                queue.remove(head)
                chosen.append(head)
                time += head.cost
            if queue:
                queue.sort(key=by_due, reverse=True)
                one = queue.pop()
                heads.append((at, time, by_due(one), one, queue))
        heapq.heapify(heads)
        while len(chosen) < number:
            at, time, _, one, queue = heads[0]
            chosen.append(one)
            if queue:
                following = queue.pop()
                heapq.heapreplace(heads, (at, time + one.cost, by_due(following), following, queue))
            else:
                heapq.heappop(heads)
        return chosen
