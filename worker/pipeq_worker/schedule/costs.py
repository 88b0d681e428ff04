"""COSTS: what forward passes took -> what the next ones will take, and how large a batch should be.

Before: device. After: batcher, and whoever must know how long something takes.

Each pipeline learns for itself, on its device and in the unit of its task type (tokens, frames, patches), from nothing
but the passes that run anyway. See docs/decisions/learned-costs.md.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from pipeq_worker.models.pipeline import BatchLimits
from pipeq_worker.schedule.line_fit import Line, LineFit
from pipeq_worker.schedule.memory_limit import MemoryLimit

#: Where ``max_batch_cost`` is "auto", a batch may be so large that launches take this share of its time ...
LAUNCH_SHARE = 0.03
#: ... but it is at least and at most so many times what is assumed before anything is known,
LEAST, MOST = 0.25, 8.0
#: ... and at most so many times the largest batch that has run.
STEP = 2.0
#: The launch cost stays within this factor of what is assumed. Fits of few passes can be far off.
LAUNCH_FACTOR = 16.0
#: A new limit within this factor of the old one changes nothing.
SAME = 1.1
#: The line is fitted after each of the first passes, and after every ``EVERY``-th later.
FIRST, EVERY = 16, 8
#: Passes after which one counts half as much for the mean time of a task.
HALF_LIFE = 50


@dataclass(frozen=True)
class Pass:
    """One forward pass, as the device reports it."""

    items: int
    #: Cost of the longest item, times the number of items.
    padded: int
    seconds: float
    #: Whether it had enough memory.
    fits: bool = True


class Costs:
    """The costs of all pipelines of a device. Safe for threads."""

    def __init__(self) -> None:
        self._learned: dict[Hashable, Learned] = {}
        self._lock = threading.Lock()

    def of(self, pipeline: Hashable, seed: BatchLimits) -> Learned:
        """What was learned of a pipeline; starts to learn it from ``seed`` if it is new."""
        with self._lock:
            found = self._learned.get(pipeline)
            if found is None:
                found = self._learned[pipeline] = Learned(seed)
            return found

    def find(self, pipeline: Hashable) -> Learned | None:
        """What was learned of a pipeline; None if nothing was."""
        with self._lock:
            return self._learned.get(pipeline)

    def shown(self) -> dict[Hashable, dict[str, Any]]:
        """Pipeline -> :meth:`Learned.shown`, of those that have run anything."""
        with self._lock:
            learned = dict(self._learned)
        return {name: shown for name, one in learned.items() if (shown := one.shown()) is not None}


class Learned:
    """What was learned of one pipeline. Safe for threads.

    Args:
        seed: limits of a batch before anything is known.
    """

    def __init__(self, seed: BatchLimits) -> None:
        self.seed = seed
        #: Limits of the next batch. Replaced as a whole, so it may be read without a lock.
        self.limits = seed
        self.memory = MemoryLimit()
        self._fit = LineFit(seed.launch_cost)
        self._line: Line | None = None
        self._largest = 0
        #: Seconds that all passes took beyond what was predicted for them.
        self.surprise_s = 0.0
        #: Seconds and tasks of the last passes; older ones count less.
        self._seconds = self._tasks = 0.0
        #: Their items, and the padded cost of those.
        self._items = self._padded = 0.0
        self._lock = threading.Lock()

    def add(self, one: Pass) -> None:
        """Learns from a forward pass."""
        with self._lock:
            expected = self._line.at(one.padded) if one.fits and self._line is not None else 0.0
            self.surprise_s += one.seconds - expected
            if not one.fits:
                # One item alone says nothing about batches of smaller ones.
                if one.items > 1:
                    self.memory.exceeded(one.padded)
                    self._set_limits()
                return
            self._fit.add(one.padded, one.seconds)
            self._seconds += one.seconds
            self._items += one.items
            self._padded += one.padded
            if one.items > 1:
                self.memory.passed(one.padded)
            self._largest = max(self._largest, one.padded)
            if self._fit.count <= FIRST or self._fit.count % EVERY == 0:
                self._line = self._fit.line()
            self._set_limits()

    def seed_with(self, passes: Iterable[Pass]) -> None:
        """Starts from passes of a pipeline that was loaded; no task had them. Does nothing once real ones have run."""
        with self._lock:
            if not self._fit.count:
                for one in passes:
                    self._fit.add(one.padded, one.seconds)
                self._line = self._fit.line()
                self._set_limits()

    def task_ended(self) -> None:
        """A task has had its last forward pass. It may be said some time after the pass."""
        with self._lock:
            self._tasks += 1

    def ended(self, tasks: int) -> None:
        """So many tasks have had their last forward pass. Call it after each batch, with 0 if it ended none."""
        with self._lock:
            fade = 0.5 ** (1 / HALF_LIFE)
            self._seconds *= fade
            self._items *= fade
            self._padded *= fade
            self._tasks = (self._tasks + tasks) * fade

    def predict(self, cost: int, items: int = 1) -> float | None:
        """Seconds of a forward pass of ``items`` items, the longest of which has this cost; None if it is unknown."""
        line = self._line
        return None if line is None else line.at(cost * items)

    def cost_within(self, seconds: float) -> float | None:
        """Padded cost of the largest pass that takes no longer; None if it is unknown."""
        line = self._line
        if line is None:
            return None
        return (seconds - line.launch_s) / line.cost_s if line.cost_s > 0 else math.inf

    def seconds_of_task(self) -> float | None:
        """Device time of a task in seconds, its share of its batches: the mean of the last ones; None if unknown."""
        with self._lock:
            return self._seconds / self._tasks if self._tasks else None

    def tasks_in_batch(self) -> float:
        """How many tasks like the last ones fill a batch; as many as it may have items before any pass has succeeded.

        It is not the number that a batch had: few tasks that waited would then be a reason to fetch few.
        """
        with self._lock:
            limits, items, padded, tasks = self.limits, self._items, self._padded, self._tasks
        if not tasks or not items:
            return float(limits.max_size)
        return min(limits.max_size, limits.max_cost * items / max(padded, 1.0)) * tasks / items

    def shown(self) -> dict[str, Any] | None:
        """What ``pipeq queues`` shows: seconds for each launch, unit of cost and task, and the limit in use."""
        line, task_s = self._line, self.seconds_of_task()
        if line is None:
            return None
        shown: dict[str, Any] = {
            "launch_s": float(f"{line.launch_s:.3g}"),
            "cost_s": float(f"{line.cost_s:.3g}"),
            "task_s": None if task_s is None else float(f"{task_s:.3g}"),
            "max_batch_cost": self.limits.max_cost,
        }
        if math.isfinite(self.memory.limit):
            shown["memory_limit"] = int(self.memory.limit)
        return shown

    def _set_limits(self) -> None:
        seed, line = self.seed, self._line
        launch, most = float(seed.launch_cost), float(seed.max_cost)
        if line is not None and seed.launch_cost:
            launch = _between(seed.launch_cost / LAUNCH_FACTOR, line.launch_cost(), seed.launch_cost * LAUNCH_FACTOR)
            if seed.is_auto:
                # Useful throughput at cost c is c / (launch + c) of the best that there is.
                most = _between(seed.max_cost * LEAST, launch * (1 / LAUNCH_SHARE - 1), seed.max_cost * MOST)
                most = min(most, max(seed.max_cost, self._largest * STEP))
        now = self.limits
        if max(now.launch_cost, launch) <= SAME * min(now.launch_cost, launch):
            launch = now.launch_cost
        if max(now.max_cost, most) <= SAME * min(now.max_cost, most):
            most = now.max_cost
        most = max(1.0, min(most, self.memory.limit))
        if int(most) != now.max_cost or int(launch) != now.launch_cost:
            self.limits = replace(seed, max_cost=int(most), launch_cost=int(launch))


def _between(least: float, value: float, most: float) -> float:
    return max(least, min(value, most))
