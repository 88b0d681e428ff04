"""RATES: how fast this worker works off the tasks of each pipeline, how full its batches are, and what fails.

Told in its heartbeat, for the time to drain and for ``pipeq top``.

A rate counts only time in which the pipeline had work, so that an idle worker does not look slow: a second at whose
beginning and end there were tasks counts whole; of any other, only the time in forward passes counts.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pipeq.contract.errors import ErrorCode

from pipeq_worker.observe.observer import Ended, Observer

#: The weight of what was measured halves in so much time with work, in seconds.
HALF_LIFE_S = 30.0
#: The same for sizes of batches and shares of the device, which count all time.
LATELY_S = 5.0
#: Less than this much time with work says nothing about a rate, in seconds.
ENOUGH_S = 0.05
#: Fewer weighted batches than this are as none: the last one was long ago.
_NOTHING = 0.01
_CODES = frozenset(map(str, ErrorCode))


@dataclass
class _Rate:
    #: Tasks that ended, and seconds in forward passes, since the last measurement.
    ended: int = 0
    forward_s: float = 0.0
    had_tasks: bool = False
    #: Items and batches since the last measurement.
    items: int = 0
    batches: int = 0
    #: Code -> tasks that failed with it since the worker started.
    failed: Counter[str] = field(default_factory=Counter)
    #: Tasks, and seconds with work, each weighted by its age.
    tasks: float = 0.0
    work_s: float = 0.0
    #: Items, batches, seconds in forward passes, and seconds, each weighted by its age.
    lately_items: float = 0.0
    lately_batches: float = 0.0
    lately_forward_s: float = 0.0
    lately_s: float = 0.0


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
        """Counts the time of the pass, and its items."""
        if (rate := self._rates.get(pipeline)) is not None:
            with self._lock:
                rate.forward_s += seconds
                rate.items += size
                rate.batches += size > 0

    def task_ended(
        self, task_id: str, pipeline: str | None, ended: Ended, code: str | None, timing_ms: Mapping[str, float]
    ) -> None:
        """Counts the task, however it ended: it takes no more time."""
        if pipeline is not None and (rate := self._rates.get(pipeline)) is not None:
            with self._lock:
                rate.ended += 1
                if ended == "failed" and code in _CODES:
                    rate.failed[str(code)] += 1

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
                _note_lately(rate, passed_s)
                kept = 0.5 ** (worked_s / HALF_LIFE_S)
                rate.tasks, rate.work_s = rate.tasks * kept + rate.ended, rate.work_s * kept + worked_s
                rate.ended, rate.forward_s, rate.had_tasks = 0, 0.0, has_tasks
                rate.items = rate.batches = 0
            return {name: rate.tasks / rate.work_s for name, rate in self._rates.items() if rate.work_s >= ENOUGH_S}

    def lately(self) -> tuple[dict[str, float], dict[str, float]]:
        """Returns pipeline -> items in a batch, and pipeline -> share of the time in forward passes, as measured last.

        A pipeline that ran nothing for a while is left out.
        """
        with self._lock:
            ran = {name: rate for name, rate in self._rates.items() if rate.lately_batches > _NOTHING}
            sizes = {name: round(rate.lately_items / rate.lately_batches, 2) for name, rate in ran.items()}
            return sizes, {name: round(rate.lately_forward_s / rate.lately_s, 3) for name, rate in ran.items()}

    def failed(self) -> dict[str, dict[str, int]]:
        """Returns pipeline -> code -> tasks that failed with it, since the worker started."""
        with self._lock:
            return {name: dict(rate.failed) for name, rate in self._rates.items() if rate.failed}


def _note_lately(rate: _Rate, passed_s: float) -> None:
    kept = 0.5 ** (passed_s / LATELY_S)
    rate.lately_s = rate.lately_s * kept + passed_s
    rate.lately_forward_s = min(rate.lately_forward_s * kept + rate.forward_s, rate.lately_s)
    rate.lately_items = rate.lately_items * kept + rate.items
    rate.lately_batches = rate.lately_batches * kept + rate.batches
