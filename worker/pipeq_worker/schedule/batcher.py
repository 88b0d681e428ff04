"""BATCH: ready items -> batches, by padded cost and urgency. Before: prepare. After: infer. No Celery and no torch.

The window (window.py) chooses the batches. This module lets threads put items in and take batches out, and makes those
wait that put in too much.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic

from pipeq_worker.models.pipeline import BatchLimits
from pipeq_worker.schedule.costs import Costs
from pipeq_worker.schedule.ranks import T
from pipeq_worker.schedule.window import Window

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

    def put(self, item: T, limits: BatchLimits) -> bool:
        """Adds an item; blocks while its lane is full by bytes.

        Args:
            item: the item.
            limits: those of its pipeline, from which learning starts.

        Returns:
            Whether the lane has no room for another item like it; a caller with more items should then pause.

        Raises:
            Closed: the batcher was closed.
        """
        learned = self._costs.of(item.lane, limits)
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._is_full(item, learned.limits))
            if self._closed:
                raise Closed
            self._window.add(item, learned, time.monotonic())
            self._changed.notify_all()
            return self._is_full(item, learned.limits)

    def _is_full(self, item: T, limits: BatchLimits) -> bool:
        """Whether an item has to wait outside. A lane that is empty admits one item of any size."""
        count, cost, nbytes = self._window.waiting(item.lane)
        total = nbytes + item.nbytes
        if not count or total <= self._max_bytes * ENOUGH:
            return False
        # Two batches give enough choice; holding more items only takes memory.
        has_two = count >= 2 * limits.max_size or cost >= 2 * limits.max_cost
        return has_two or total > self._max_bytes

    def take(self, *, is_idle: bool = True) -> Batch[T] | None:
        """Returns the next batch.

        Args:
            is_idle: whether the device has nothing to do. Then this waits until an item is ready, and after that at
                most ``max_wait_s``, if others are likely to join it. If the device is busy, this returns at once, and
                only a batch that waiting could not improve, or one that must go now to meet a deadline.

        Returns:
            The batch; None if there is none yet for a busy device, or if the batcher is closed.
        """
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                found = self._window.next(now, is_idle=is_idle)
                if isinstance(found, list):
                    self._changed.notify_all()
                    return Batch(found)
                if not is_idle:
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


class Closed(Exception):  # noqa: N818 - names an event, as queue.Empty does
    """The batcher was closed while a thread put an item into it."""
