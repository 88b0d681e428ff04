"""QUEUES: a pipeline's keys -> how much waits in its queue, and which workers serve it. Used by client.

All values under these keys are checked: a value of a wrong type counts as absent, and affects no other queue.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import redis

from pipeq.contract import keys, shown
from pipeq.contract.reading import json_object, number, readable_object
from pipeq.contract.status import TaskStatus
from pipeq.server import replies

#: A worker that claims more tasks than this is not believed.
_MOST_IN_FLIGHT = 10**9
#: The numbers in a heartbeat about what a pipeline's forward passes take.
COSTS = ("launch_s", "cost_s", "task_s", "max_batch_cost", "memory_limit")


@dataclass(frozen=True)
class QueueInfo:
    """One pipeline's queue, as ``pipeq queues`` shows it."""

    pipeline: str
    #: Messages that wait to be taken, and messages that wait for their next try.
    depth: int
    waiting: int
    #: Seconds since the oldest message was submitted; None for an empty queue or a stock Celery producer.
    oldest_age_s: float | None
    #: Tasks inside workers.
    in_flight: int
    workers: int
    #: Messages in the dead-letter list.
    dead: int
    #: Worker -> why it takes no messages although it serves the pipeline; empty if all is well.
    deaf: dict[str, str] = field(default_factory=dict)
    #: Worker -> what it has measured: ``launch_s`` and ``cost_s`` (seconds of a forward pass, and for each unit of its
    #: padded cost), ``task_s`` (device time of a task), ``max_batch_cost``, and ``memory_limit`` after a batch had too
    #: little memory. Empty before the first pass.
    costs: dict[str, dict[str, float]] = field(default_factory=dict)


def registered(found: Mapping[bytes | str, bytes | str]) -> dict[str, dict[str, Any]]:
    """Parses the hash of known pipelines: name -> what its last worker registered, empty if that cannot be read."""
    # redis-py's types allow both; our connections do not decode.
    named = ((name.decode("utf-8", "replace") if isinstance(name, bytes) else name, raw) for name, raw in found.items())
    return {name: readable_object(raw) or {} for name, raw in named}


def read_queue(
    client: redis.Redis, pipeline: str, status_many: Callable[[Iterable[str]], list[TaskStatus]]
) -> QueueInfo:
    """Reads the state of one queue, in two or three round trips."""
    now = time.time()
    lists = keys.list_keys(pipeline)
    with client.pipeline(transaction=False) as pipe:
        for key in lists:
            pipe.llen(key)
        for key in lists:
            pipe.lindex(key, -1)
        pipe.zrangebyscore(keys.workers_key(pipeline), now - keys.WORKER_TTL_S, "+inf")
        pipe.llen(keys.dead_letter_key(pipeline))
        pipe.zcard(keys.waiting_key(pipeline))
        *per_list, workers, dead, waiting = replies(pipe)
    workers = workers or []
    beats = client.mget([keys.worker_key("").encode() + name for name in workers]) if workers else []
    named = list(zip([name.decode("utf-8", "replace") for name in workers], beats, strict=True))
    oldest = [_task_id(raw) for raw in per_list[len(lists) :] if raw]
    times = [s.submitted_at for s in status_many(filter(None, oldest)) if s.submitted_at is not None]
    return QueueInfo(
        pipeline=pipeline,
        depth=sum(int(length or 0) for length in per_list[: len(lists)]),
        waiting=waiting or 0,
        oldest_age_s=now - min(times) if times else None,
        in_flight=sum(_in_flight(beat, pipeline) for beat in beats),
        workers=len(workers),
        dead=dead or 0,
        deaf={name: reason for name, beat in named if (reason := _deaf(beat, pipeline)) is not None},
        costs={name: costs for name, beat in named if (costs := _costs(beat, pipeline))},
    )


def _in_flight(beat: bytes | str | None, pipeline: str) -> int:
    counts = (json_object(beat) or {}).get("in_flight")
    count = number(counts.get(pipeline)) if isinstance(counts, dict) else None
    return int(count) if count is not None and 0 <= count < _MOST_IN_FLIGHT else 0


def _deaf(beat: bytes | str | None, pipeline: str) -> str | None:
    """Why a worker takes no messages of the pipeline; None if it does."""
    deaf = (json_object(beat) or {}).get("deaf")
    about = deaf.get(pipeline) if isinstance(deaf, dict) else None
    return shown.line(str(about.get("reason"))) if isinstance(about, dict) else None


def _costs(beat: bytes | str | None, pipeline: str) -> dict[str, float]:
    costs = (json_object(beat) or {}).get("costs")
    about = costs.get(pipeline) if isinstance(costs, dict) else None
    found = {name: number(about.get(name)) for name in COSTS} if isinstance(about, dict) else {}
    return {name: value for name, value in found.items() if value is not None and value >= 0}


def _task_id(raw: bytes) -> str | None:
    """The id in a message's headers, if it is a valid one."""
    headers = (json_object(raw) or {}).get("headers")
    found = headers.get("id") if isinstance(headers, dict) else None
    return found if keys.is_task_id(found) else None
