"""RATES: how fast this worker works off the tasks of each pipeline. Told in its heartbeat, for the time to drain.

A rate counts only time in which the pipeline had work, so that an idle worker does not look slow: a second at whose
beginning and end there were tasks counts whole; of any other, only the time in forward passes counts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeq_worker.observe.observer import Ended, Observer

#: The weight of what was measured halves in so much time with work, in seconds.
HALF_LIFE_S = 30.0
#: Less than this much time with work says nothing about a rate, in seconds.
ENOUGH_S = 0.05


@dataclass
class _Rate:
    #: Tasks that ended, and seconds in forward passes, since the last measurement.
    ended: int = 0
    forward_s: float = 0.0
    had_tasks: bool = False
    #: Tasks, and seconds with work, each weighted by its age.
    tasks: float = 0.0
    work_s: float = 0.0


class Rates(Observer):
    """Measures tasks a second. The heartbeat calls :meth:`measure`; the events come from any thread.

    Args:
        pipelines: the pipelines that are served; others are not counted.
    """

    def __init__(self, pipelines: Iterable[str]) -> None:
        self._rates = {name: _Rate() for name in pipelines}
        self._lock = threading.Lock()
        self._measured_at = time.monotonic()

    def batch_ran(self, pipeline: str, size: int, padding: float, seconds: float, cost: int) -> None:
        """Counts the time of the pass."""
        if (rate := self._rates.get(pipeline)) is not None:
            with self._lock:
                rate.forward_s += seconds

    def task_ended(
        self, task_id: str, pipeline: str | None, ended: Ended, code: str | None, timing_ms: Mapping[str, float]
    ) -> None:
        """Counts the task, however it ended: it takes no more time."""
        if pipeline is not None and (rate := self._rates.get(pipeline)) is not None:
            with self._lock:
                rate.ended += 1

    def measure(self, in_flight: Mapping[str, int], now: float | None = None) -> dict[str, float]:
        """Closes the time since the last call, and returns pipeline -> tasks a second, where it is known.

        Args:
            in_flight: number of tasks inside, for each pipeline.
            now: by the monotonic clock; for tests.
        """
        now = time.monotonic() if now is None else now
        with self._lock:
            passed_s, self._measured_at = now - self._measured_at, now
            for name, rate in self._rates.items():
                has_tasks = bool(in_flight.get(name))
                worked_s = passed_s if rate.had_tasks and has_tasks else min(rate.forward_s, passed_s)
                kept = 0.5 ** (worked_s / HALF_LIFE_S)
                rate.tasks, rate.work_s = rate.tasks * kept + rate.ended, rate.work_s * kept + worked_s
                rate.ended, rate.forward_s, rate.had_tasks = 0, 0.0, has_tasks
            return {name: rate.tasks / rate.work_s for name, rate in self._rates.items() if rate.work_s >= ENOUGH_S}
