"""BATCH: ready items -> batches, by padded cost and urgency. Before: prepare. After: infer. No Celery and no torch.

The window (window.py) chooses the batches. This module lets threads put items in and take batches out. How many items
there are at most is decided where they lie (stages/shelf.py).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic

from pipeq_worker.models.pipeline import BatchLimits
from pipeq_worker.schedule.costs import Costs
from pipeq_worker.schedule.ranks import T
from pipeq_worker.schedule.window import Window


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


class Batcher(Generic[T]):
    """The window of ready items. Many threads put items in, and the device thread takes batches out.

    Args:
        costs: what was learned of each lane; it sets the limits of batches.
    """

    def __init__(self, costs: Costs | None = None) -> None:
        self._costs = costs or Costs()
        self._window: Window[T] = Window()
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        with self._changed:
            return len(self._window)

    def count(self, lane: Hashable) -> int:
        """Number of a pipeline's items that are ready."""
        with self._changed:
            return self._window.waiting(lane)[0]

    def put(self, item: T, limits: BatchLimits) -> None:
        """Adds an item. Returns at once.

        Args:
            item: the item.
            limits: those of its pipeline, from which learning starts.

        Raises:
            Closed: the batcher was closed.
        """
        self.put_all([item], limits)

    def put_all(self, items: Sequence[T], limits: BatchLimits, *, are_alike: bool = False) -> None:
        """Adds items of one pipeline, as :meth:`put` does.

        Args:
            items: the items.
            limits: those of their pipeline.
            are_alike: whether they are of one group, and have the same priority, tenant and deadline.
        """
        if not items:
            return
        with self._changed:
            self._add(items, limits, are_alike=are_alike)
            self._changed.notify_all()

    def put_and_take(self, items: Sequence[T], limits: BatchLimits, *, are_alike: bool = False) -> Batch[T] | None:
        """Adds items, as :meth:`put_all` does, and returns the batch that a device without work runs now.

        Returns:
            The batch; None if it waits for company. Then the threads that take batches are woken.
        """
        with self._changed:
            now = self._add(items, limits, are_alike=are_alike)
            found = self._window.next(now, is_idle=True)
            if not isinstance(found, list) or len(self._window):
                self._changed.notify_all()
            return Batch(found) if isinstance(found, list) else None

    def _add(self, items: Sequence[T], limits: BatchLimits, *, are_alike: bool) -> float:
        """Adds items, with the lock held. Returns the time."""
        if self._closed:
            raise Closed
        learned, now = self._costs.of(items[0].lane, limits), time.monotonic()
        for some in (items,) if are_alike else _alike(items):
            self._window.add_all(some, learned, now)
        return now

    def take(self, *, is_idle: Callable[[], bool] = lambda: True) -> Batch[T] | None:
        """Returns the next batch.

        Args:
            is_idle: returns whether the device has nothing to do. Then this waits until an item is ready, and after
                that at most ``max_wait_s``, if others are likely to join it. If the device is busy, or has become it
                meanwhile, this returns, and only a batch that waiting could not improve, or one that must go now to
                meet a deadline.

        Returns:
            The batch; None if there is none yet for a busy device, or if the batcher is closed.
        """
        with self._changed:
            while not self._closed:
                now, has_time = time.monotonic(), is_idle()
                found = self._window.next(now, is_idle=has_time)
                if isinstance(found, list):
                    return Batch(found)
                if not has_time:
                    return None
                self._changed.wait(None if found is None else max(0.0, found - now))
            return None

    def close(self) -> list[T]:
        """Wakes all waiting threads, and returns the items that were still waiting."""
        with self._changed:
            self._closed = True
            left = self._window.clear()
            self._changed.notify_all()
            return left


def _alike(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Those that follow each other and differ in nothing that decides who goes first."""
    if len(items) == 1:
        yield items
        return
    for _, some in itertools.groupby(items, lambda one: (one.group, one.priority, one.tenant, one.deadline)):
        yield list(some)


class Closed(Exception):  # noqa: N818 - names an event, as queue.Empty does
    """The batcher was closed while a thread put an item into it."""
