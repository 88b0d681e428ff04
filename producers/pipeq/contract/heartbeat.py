"""CONTRACT: a worker's heartbeat in Redis, and what follows from those of all workers. Built and read here alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode
from pipeq.contract.reading import json_object, number

#: A worker that claims more tasks, or more tasks a second, than this is not believed.
MOST = 10**9
#: What a heartbeat says of the forward passes of a pipeline: seconds of a pass, and for each unit of its padded cost;
#: device time of a task; most cost of a batch; and the limit after a batch had too little memory.
COSTS = ("launch_s", "cost_s", "task_s", "max_batch_cost", "memory_limit")
_N = TypeVar("_N", int, float)


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a worker says of itself every second."""

    #: The machine's name, and the process id of the process that holds the leases.
    host: str = ""
    pid: int = 0
    #: When it was written, in seconds since the epoch.
    at: float = 0.0
    #: Pipeline -> number of tasks inside the worker.
    in_flight: dict[str, int] = field(default_factory=dict)
    #: Pipeline -> number of those that have begun to run.
    running: dict[str, int] = field(default_factory=dict)
    #: Pipeline -> tasks a second while there is work, where it has been measured.
    rates: dict[str, float] = field(default_factory=dict)
    #: Pipeline -> items in a batch, and share of the time that the device worked for it, both of the last seconds;
    #: and code -> number of tasks that failed with it, since the worker started.
    batches: dict[str, float] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)
    failed: dict[str, dict[str, int]] = field(default_factory=dict)
    #: Pipelines that the worker is loading, again or still.
    loading: list[str] = field(default_factory=list)
    #: Whether it takes no more messages, because it stops.
    stopping: bool = False
    #: Pipeline -> why no messages are taken (``reason``, a sentence) and since when (``since``, seconds since the
    #: epoch).
    deaf: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: Pipeline -> what its forward passes take: the numbers in :data:`COSTS`.
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    #: Pipeline -> what decides its answers: aspect -> a short text (see :mod:`pipeq.contract.unlike`).
    models: dict[str, dict[str, str]] = field(default_factory=dict)
    #: Whether nobody may serve its pipelines with another model.
    strict: bool = False

    def encode(self) -> str:
        """Returns the text that is stored in Redis; what is empty is left out."""
        return json.dumps({name: value for name, value in vars(self).items() if value or name in ("in_flight", "at")})

    @classmethod
    def read(cls, raw: bytes | str | None) -> Beat:
        """Reads a heartbeat. What is missing, or is not of its type, is as if it were not there. Never raises."""
        found = json_object(raw) or {}
        loading, deaf = found.get("loading"), found.get("deaf")
        return cls(
            host=found["host"] if isinstance(found.get("host"), str) else "",
            pid=int(_within(found.get("pid")) or 0),
            at=number(found.get("at")) or 0.0,
            in_flight=_numbers(found.get("in_flight"), int),
            running=_numbers(found.get("running"), int),
            rates={name: rate for name, rate in _numbers(found.get("rates"), float).items() if rate > 0},
            batches=_numbers(found.get("batches"), float),
            busy=_numbers(found.get("busy"), float),
            failed=_failed(found.get("failed")),
            loading=[one for one in loading if isinstance(one, str)] if isinstance(loading, list) else [],
            stopping=found.get("stopping") is True,
            deaf={name: one for name, one in deaf.items() if isinstance(one, dict)} if isinstance(deaf, dict) else {},
            costs=_costs(found.get("costs")),
            models=_models(found.get("models")),
            strict=found.get("strict") is True,
        )

    def takes_nothing(self, pipeline: str) -> str | None:
        """Why the worker takes no messages of the pipeline, as a sentence; None if it does."""
        if self.stopping:
            return "it is stopping: it ends the tasks that run"
        if pipeline in self.deaf:
            return shown.line(str(self.deaf[pipeline].get("reason")))
        if pipeline in self.loading:
            return "it is loading the pipeline"
        return None


def drain_s(backlog: int, pipeline: str, workers: Iterable[Beat]) -> float | None:
    """Time to drain: how long the workers that take messages need for a backlog, in seconds.

    A worker whose rate is not known yet counts as the average of the others.

    Returns:
        0 for no backlog; None if no worker's rate is known.
    """
    if not backlog:
        return 0.0
    taking = [one for one in workers if one.takes_nothing(pipeline) is None]
    rates = [one.rates[pipeline] for one in taking if pipeline in one.rates]
    return backlog / (sum(rates) * len(taking) / len(rates)) if rates else None


def totals(pipeline: str, workers: Sequence[Beat]) -> tuple[int, int]:
    """Number of tasks inside these workers, and of those that run."""
    return sum(one.in_flight.get(pipeline, 0) for one in workers), sum(one.running.get(pipeline, 0) for one in workers)


def _costs(value: object) -> dict[str, dict[str, float]]:
    if not isinstance(value, dict):
        return {}
    found = {name: _numbers(one, float) for name, one in value.items()}
    return {name: {part: one[part] for part in COSTS if part in one} for name, one in found.items() if one}


def _failed(value: object) -> dict[str, dict[str, int]]:
    if not isinstance(value, dict):
        return {}
    found = {name: _numbers(one, int) for name, one in value.items()}
    return {name: {code: one[code] for code in ErrorCode if code in one} for name, one in found.items() if one}


def _models(value: object) -> dict[str, dict[str, str]]:
    if not isinstance(value, dict):
        return {}
    found = {pipeline: one for pipeline, one in value.items() if isinstance(one, dict)}
    texts = {
        pipeline: {name: text for name, text in one.items() if isinstance(text, str)} for pipeline, one in found.items()
    }
    return {pipeline: one for pipeline, one in texts.items() if one}


def _within(value: object) -> float | None:
    found = number(value)
    return found if found is not None and 0 <= found < MOST else None


def _numbers(value: object, kind: Callable[[float], _N]) -> dict[str, _N]:
    if not isinstance(value, dict):
        return {}
    return {name: kind(found) for name, one in value.items() if (found := _within(one)) is not None}
