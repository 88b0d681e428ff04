"""WINDOW: ready items -> which of them run next, together. Used by batcher. Plain logic, without threads and clocks.

Which batch is next:

1. The pipelines take turns by device time and weight. A more urgent item of a pipeline lets it go first, until the
   pipeline is ``LEAD_S`` ahead of its share.
2. In the pipeline, the most urgent item (see urgency.py) is the batch's first member.
3. Those of its group whose lengths use the pass best fill the batch (see best_window.py); at equal use, the most urgent
   ones. A batch that must meet its first member's deadline gets no more than the time allows.

See docs/decisions/batching.md and docs/decisions/urgency.md.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic

from pipeq_worker.models.pipeline import BatchLimits
from pipeq_worker.schedule.arrivals import Arrivals
from pipeq_worker.schedule.best_window import best_window, use
from pipeq_worker.schedule.costs import Learned
from pipeq_worker.schedule.ranks import T, Waitings
from pipeq_worker.schedule.turns import Turns
from pipeq_worker.schedule.urgency import Waiting, by_due

#: Device time by which urgent items may bring their pipeline ahead of the others, in seconds.
LEAD_S = 5.0


@dataclass(eq=False)
class _Lane(Generic[T]):
    learned: Learned
    waiting: Waitings[T] = field(default_factory=Waitings)
    arrivals: Arrivals = field(default_factory=Arrivals)
    #: How much of what the predictions got wrong has been counted, in seconds.
    surprise_s: float = 0.0


class Window(Generic[T]):
    """The ready items of all pipelines. Not safe for threads. All times are those of the monotonic clock."""

    def __init__(self) -> None:
        self._lanes: dict[Hashable, _Lane[T]] = {}
        self._turns: Turns[Hashable] = Turns()
        self._order = 0

    def __len__(self) -> int:
        return sum(lane.waiting.count for lane in self._lanes.values())

    def add(self, item: T, learned: Learned, now: float) -> None:
        """Adds an item; ``learned`` is what was learned of its pipeline."""
        self.add_all([item], learned, now)

    def add_all(self, items: Sequence[T], learned: Learned, now: float) -> None:
        """Adds items of one pipeline, group, priority and tenant, with one deadline, as :meth:`add` does."""
        first = items[0]
        lane = self._lanes.get(first.lane)
        if lane is None:
            lane = self._lanes[first.lane] = _Lane(learned)
        if not lane.waiting.count:
            self._turns.join(first.lane)
        lane.waiting.add_all(items, now, self._order + 1)
        self._order += len(items)
        lane.arrivals.add(first.group, now, learned.limits.max_wait_s, len(items))

    def waiting(self, lane: Hashable) -> tuple[int, int, int]:
        """Number, cost and bytes of a pipeline's items."""
        found = self._lanes.get(lane)
        return (found.waiting.count, found.waiting.cost, found.waiting.nbytes) if found is not None else (0, 0, 0)

    def next(self, now: float, *, is_idle: bool) -> list[T] | float | None:
        """Removes the next batch.

        Args:
            now: the time.
            is_idle: whether the device has nothing to do. If it has, only a batch that waiting could not improve, or
                one that must go for a deadline, is taken.

        Returns:
            The batch's items, shortest first; or the time at which to ask again, unless an item comes before; or None
            if only another item, or an idle device, changes the answer.
        """
        name = self._next_lane()
        if name is None:
            return None
        lane = self._lanes[name]
        head, limits = lane.waiting.head(), lane.learned.limits
        if not lane.waiting.groups[head.item.group].is_full(limits):
            # A deadline ends the wait, so that the batch is done in time.
            until = head.item.deadline - (lane.learned.predict(head.cost) or 0.0)
            if is_idle:
                wait_s = limits.max_wait_s if lane.arrivals.is_company_likely(head.item.group) else 0.0
                until = min(until, head.since + wait_s)
            elif now > head.item.deadline:
                return None  # it is late already, and its batch may still grow
            if until > now:
                return None if math.isinf(until) else until
        return self._take(name, lane, head, now)

    def clear(self) -> list[T]:
        """Removes and returns all items."""
        left = [one.item for one in self._all()]
        self._lanes.clear()
        self._turns = Turns()
        return left

    def _all(self) -> Iterator[Waiting[T]]:
        for lane in self._lanes.values():
            for group in lane.waiting.groups.values():
                yield from group.by_cost

    def _next_lane(self) -> Hashable | None:
        names = [name for name, lane in self._lanes.items() if lane.waiting.count]
        if len(names) < 2:
            return names[0] if names else None
        heads = {name: self._lanes[name].waiting.head() for name in names}
        for name in heads:
            self._correct(name, self._lanes[name])
        times = {name: self._turns.time(name) for name in heads}
        urgent = min(head.item.priority for head in heads.values())
        latest = min(times.values()) + LEAD_S
        first = [name for name in heads if heads[name].item.priority == urgent and times[name] <= latest]
        return min(first or heads, key=lambda name: (times[name], by_due(heads[name])))

    def _correct(self, name: Hashable, lane: _Lane[T]) -> None:
        """Counts the time that passes took beyond, or below, what was predicted."""
        total = lane.learned.surprise_s
        if total != lane.surprise_s:
            self._turns.spend(name, (total - lane.surprise_s) / lane.learned.seed.weight)
            lane.surprise_s = total

    def _take(self, name: Hashable, lane: _Lane[T], head: Waiting[T], now: float) -> list[T]:
        self._turns.advance(min(self._turns.time(name) for name, lane in self._lanes.items() if lane.waiting.count))
        group, learned = lane.waiting.groups[head.item.group], lane.learned
        limits = _in_time(learned, head, now)
        start, stop = _slice(group.by_cost, group.equal(head.cost), limits)
        taken = lane.waiting.take(head, start, stop)
        taken.sort(key=lambda one: one.cost)
        self._correct(name, lane)
        spent_s = learned.predict(taken[-1].cost, len(taken)) or 0.0
        self._turns.spend(name, spent_s / learned.seed.weight)
        if not lane.waiting.count:
            self._turns.leave(name)
        return [one.item for one in taken]


def _slice(by_cost: Sequence[Waiting[T]], equal: tuple[int, int], limits: BatchLimits) -> tuple[int, int]:
    """The slice that makes best use of a pass with one of those in ``equal``, which cost as much as the head."""
    first, after = equal
    # Items of equal cost can stand in for each other, so a window with any of them will do.
    return max(_window(by_cost, at, limits) for at in {first, after - 1})[1:]


def _window(by_cost: Sequence[Waiting[T]], must: int, limits: BatchLimits) -> tuple[float, int, int]:
    """The best slice with one place in it, and how good its use of a pass is before that."""
    # Only so many on each side can be in it.
    low = max(0, must - limits.max_size)
    costs = [one.cost for one in by_cost[low : must + limits.max_size]]
    start, stop = best_window(costs, must - low, limits)
    return use(costs, (start, stop), limits), start + low, stop + low


def _in_time(learned: Learned, head: Waiting[T], now: float) -> BatchLimits:
    """The limits of a batch that is done by its first member's deadline; the usual ones if it cannot be."""
    limits = learned.limits
    if math.isinf(head.item.deadline):
        return limits
    most = learned.cost_within(head.item.deadline - now)
    # Where a pass takes the same time whatever it costs, `most` is infinite.
    return limits if most is None or most < head.cost else replace(limits, max_cost=int(min(limits.max_cost, most)))
