"""URGENCY: who is the most urgent of those that wait. Used by ranks, and by the queue of tasks that no child has yet.

First the priority, where each lower one still gets a share; then the tenants take turns; then the one that is due
first. It is due at its deadline, or ``PATIENCE_S`` after its arrival if that is sooner. So without deadlines the oldest
comes first, and no stream of items with deadlines delays another one for long.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

from pipeq_worker.schedule.turns import SPARE, Turns

#: What has no deadline is due so long after its arrival, in seconds.
PATIENCE_S = 10.0
#: A waiting priority comes first once after so many times that a more urgent one did.
EVERY = 10


class Urgent(Protocol):
    """What is served by urgency: an item or a task. See batchable.py."""

    @property
    def priority(self) -> int: ...  # noqa: D102
    @property
    def deadline(self) -> float: ...  # noqa: D102
    @property
    def tenant(self) -> Hashable: ...  # noqa: D102
    @property
    def arrived(self) -> float: ...  # noqa: D102


U = TypeVar("U", bound=Urgent)


@dataclass(slots=True, eq=False)
class Waiting(Generic[U]):
    """One that waits."""

    item: U
    cost: int
    #: When it was put in, and when it is due, by the monotonic clock.
    since: float
    due: float
    order: int
    is_taken: bool = False


#: The order of equals: who is due first, and among those who came first.
by_due = attrgetter("due", "order")


def waiting(item: U, cost: int, now: float, order: int) -> Waiting[U]:
    """Makes the entry of one that begins to wait now."""
    return Waiting(item, cost, now, min(item.deadline, item.arrived + PATIENCE_S), order)


@dataclass(eq=False)
class _Tenant(Generic[U]):
    #: Each with when it is due and its number. Those that were taken in the meantime are dropped when they come to the
    #: front.
    heap: list[tuple[float, int, Waiting[U]]] = field(default_factory=list)
    count: int = 0
    #: Its place among the tenants: its time, and its first one's due and number. It may be later than that by now.
    place: tuple[float, float, int, Hashable] | None = None


@dataclass(eq=False)
class _Priority(Generic[U]):
    tenants: dict[Hashable, _Tenant[U]] = field(default_factory=dict)
    turns: Turns[Hashable] = field(default_factory=Turns)
    #: The places of the tenants. Those that are none any more are dropped when they come to the front.
    places: list[tuple[float, float, int, Hashable]] = field(default_factory=list)
    #: How often a more urgent one came first while it waited.
    passed_over: int = 0


class Urgency(Generic[U]):
    """Those that wait, by urgency. Not safe for threads."""

    def __init__(self) -> None:
        self._priorities: dict[int, _Priority[U]] = {}

    def add(self, one: Waiting[U]) -> None:
        """Adds one."""
        # Not setdefault(), which would make new ones each time, for as much as all the rest takes.
        if (priority := self._priorities.get(one.item.priority)) is None:
            priority = self._priorities[one.item.priority] = _Priority()
        name = one.item.tenant
        if (tenant := priority.tenants.get(name)) is None:
            tenant = priority.tenants[name] = _Tenant()
        priority.turns.join(name)
        heapq.heappush(tenant.heap, (one.due, one.order, one))
        tenant.count += 1
        if tenant.heap[0][-1] is one:
            tenant.place = (priority.turns.time(name), one.due, one.order, name)
            heapq.heappush(priority.places, tenant.place)
            if len(priority.places) > SPARE + 2 * len(priority.tenants):
                priority.places = [other.place for other in priority.tenants.values() if other.place is not None]
                heapq.heapify(priority.places)

    def add_all(self, some: Sequence[Waiting[U]]) -> None:
        """Adds several of one priority and tenant, which are due at the same time."""
        first, *others = some
        self.add(first)
        tenant = self._priorities[first.item.priority].tenants[first.item.tenant]
        for one in others:
            heapq.heappush(tenant.heap, (one.due, one.order, one))
        tenant.count += len(others)

    def head(self) -> Waiting[U]:
        """The most urgent one. Some must wait."""
        waiting = {at: one for at, one in self._priorities.items() if one.tenants}
        # Nearly always there is one of each, and nothing to compare.
        at = (
            next(iter(waiting))
            if len(waiting) == 1
            else min(waiting, key=lambda at: (waiting[at].passed_over < EVERY, at))
        )
        priority = waiting[at]
        if len(priority.tenants) == 1:
            (only,) = priority.tenants.values()
            return _first(only)[-1]
        return _first(_next(priority))[-1]

    @property
    def is_of_one(self) -> bool:
        """Whether all that wait have one priority and one tenant, so that nobody's turn counts."""
        return sum(len(one.tenants) for one in self._priorities.values()) == 1

    def time(self, one: Waiting[U]) -> float:
        """The virtual time of the tenant of one that waits."""
        return self._priorities[one.item.priority].turns.time(one.item.tenant)

    def serve(self, head: Waiting[U], taken: Sequence[Waiting[U]]) -> None:
        """Removes some that are served with the head, and counts that as its priority's and as their tenants' turn."""
        served = self._priorities[head.item.priority]
        finish = self.time(head) + head.cost
        if self.is_of_one:
            self._remove_all(served, head.item.tenant, taken)
        else:
            for one in taken:
                self._priorities[one.item.priority].turns.spend(one.item.tenant, one.cost)
                self.remove(one)
        served.turns.advance(finish)
        served.passed_over = 0
        for at, priority in self._priorities.items():
            if not priority.tenants:
                priority.passed_over = 0
            elif at > head.item.priority:
                priority.passed_over += 1

    def _remove_all(self, priority: _Priority[U], name: Hashable, taken: Sequence[Waiting[U]]) -> None:
        """Removes some that are served, where all that wait have this priority and tenant."""
        for one in taken:
            one.is_taken = True
        priority.turns.spend(name, sum([one.cost for one in taken]))
        tenant = priority.tenants[name]
        tenant.count -= len(taken)
        if not tenant.count:
            del priority.tenants[name]
            priority.turns.leave(name)

    def remove(self, one: Waiting[U]) -> None:
        """Removes one that is not served."""
        one.is_taken = True
        priority = self._priorities[one.item.priority]
        tenant = priority.tenants[one.item.tenant]
        tenant.count -= 1
        if not tenant.count:
            del priority.tenants[one.item.tenant]
            priority.turns.leave(one.item.tenant)

    def __iter__(self) -> Iterator[Waiting[U]]:
        for priority in self._priorities.values():
            for tenant in priority.tenants.values():
                yield from (one for *_, one in tenant.heap if not one.is_taken)


def _next(priority: _Priority[U]) -> _Tenant[U]:
    """The tenant whose turn it is; of two with the same time, the one whose first one is due first.

    As many tenants as producers like may wait, so they are not all compared. A tenant's place becomes earlier only when
    something is added, and then it is a new one.
    """
    places = priority.places
    while True:
        *_, name = place = places[0]
        tenant = priority.tenants.get(name)
        if tenant is None or tenant.place is not place:
            heapq.heappop(places)
            continue
        due, order, _ = _first(tenant)
        now = (priority.turns.time(name), due, order, name)
        if now == place:
            return tenant
        tenant.place = now
        heapq.heapreplace(places, now)


def _first(tenant: _Tenant[U]) -> tuple[float, int, Waiting[U]]:
    heap = tenant.heap
    while heap[0][-1].is_taken:
        heapq.heappop(heap)
    return heap[0]
