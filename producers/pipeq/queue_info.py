"""QUEUES: a pipeline's keys -> how much waits in its queue, and which workers serve it. Used by client.

All values under these keys are checked: a value of a wrong type counts as absent, and affects no other queue.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from pipeq.contract import bare, keys
from pipeq.contract.heartbeat import Beat, drain_s, totals
from pipeq.contract.reading import readable_object
from pipeq.contract.status import TaskStatus
from pipeq.contract.unlike import odd_ones
from pipeq.protocol import Steps, pairs, replies, single


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
    #: Those tasks inside workers that have begun to run.
    running: int = 0
    #: Time to drain: how long the live workers need for everything that waits or is inside them, in seconds, by their
    #: measured rates. None if no worker has a rate yet.
    drain_s: float | None = None
    #: Workers that are loading the pipeline, for the first time or again.
    loading: int = 0
    #: Worker -> what it has measured: ``launch_s`` and ``cost_s`` (seconds of a forward pass, and for each unit of its
    #: padded cost), ``task_s`` (device time of a task), ``max_batch_cost``, and ``memory_limit`` after a batch had too
    #: little memory. Empty before the first pass.
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    #: Worker -> what it does for the pipeline now: ``in_flight`` and ``running`` tasks, ``rate`` (tasks a second while
    #: there is work), ``batch`` (items in one) and ``busy`` (share of the time that its device works for it).
    load: dict[str, dict[str, float]] = field(default_factory=dict)
    #: Code -> tasks that failed with it at the live workers, since each of them started.
    failed: dict[str, int] = field(default_factory=dict)
    #: Worker -> how the model or the parameters with which it serves the pipeline differ from those of most workers, in
    #: words; empty if all are alike.
    unlike: dict[str, str] = field(default_factory=dict)


def registered() -> Steps[dict[str, dict[str, Any]]]:
    """Reads the known pipelines: name -> what its last worker registered, empty if that cannot be read."""
    found = yield from single("HGETALL", keys.PIPELINES)
    return {name.decode("utf-8", "replace"): readable_object(raw) or {} for name, raw in pairs(found)}


def read_queue(pipeline: str, status_many: Callable[[Iterable[str]], Steps[list[TaskStatus]]]) -> Steps[QueueInfo]:
    """Reads the state of one queue, in two or three round trips."""
    now = time.time()
    lists = keys.list_keys(pipeline)
    alive = (now - keys.WORKER_TTL_S, "+inf")
    *per_list, names, loading, dead, waiting = yield from replies(
        *(("LLEN", key) for key in lists),
        *(("LINDEX", key, -1) for key in lists),
        *(("ZCARD", keys.fair_key(key)) for key in lists),
        *(("ZRANGE", keys.fair_key(key), 0, 0) for key in lists),
        ("ZRANGEBYSCORE", keys.workers_key(pipeline), *alive),
        ("ZRANGEBYSCORE", keys.loading_key(pipeline), *alive),
        ("LLEN", keys.dead_letter_key(pipeline)),
        ("ZCARD", keys.waiting_key(pipeline)),
    )
    names = names or []
    workers = [keys.worker_key("").encode() + name for name in names]
    found = (yield from single("MGET", *workers)) if workers else []
    beats = {name: Beat.read(raw) for name, raw in zip(names, found, strict=True)}
    lengths, ends, moved, firsts = (per_list[at : at + len(lists)] for at in range(0, len(per_list), len(lists)))
    oldest = [_task_id(raw) for raw in (*ends, *(one[0][keys.FAIR_NUMBER_DIGITS :] for one in firsts if one)) if raw]
    statuses = yield from status_many(list(filter(None, oldest)))
    times = [one.submitted_at for one in statuses if one.submitted_at is not None]
    depth = sum(int(length or 0) for length in (*lengths, *moved))
    in_flight, running = totals(pipeline, list(beats.values()))
    again = {name for name, beat in beats.items() if pipeline in beat.loading}
    return QueueInfo(
        pipeline=pipeline,
        depth=depth,
        waiting=waiting or 0,
        oldest_age_s=now - min(times) if times else None,
        in_flight=in_flight,
        workers=len(names),
        dead=dead or 0,
        deaf={
            name.decode("utf-8", "replace"): reason
            for name, beat in beats.items()
            if (reason := beat.takes_nothing(pipeline)) is not None
        },
        costs={
            name.decode("utf-8", "replace"): costs
            for name, beat in beats.items()
            if (costs := beat.costs.get(pipeline))
        },
        load={name.decode("utf-8", "replace"): _load(pipeline, beat) for name, beat in beats.items() if beat.at},
        failed=dict(sum((Counter(beat.failed.get(pipeline, {})) for beat in beats.values()), Counter())),
        running=running,
        drain_s=drain_s(depth + in_flight, pipeline, beats.values()),
        # A worker that serves by now may still be registered as loading.
        loading=len((set(loading or []) - beats.keys()) | again),
        unlike=odd_ones(
            {name.decode("utf-8", "replace"): beat.models.get(pipeline, {}) for name, beat in beats.items()}
        ),
    )


def _task_id(raw: bytes) -> str | None:
    """The id in a message, if it is a valid one."""
    found = bare.id_in(raw)
    return found if keys.is_task_id(found) else None


def _load(pipeline: str, beat: Beat) -> dict[str, float]:
    found = {
        "in_flight": beat.in_flight.get(pipeline, 0),
        "running": beat.running.get(pipeline, 0),
        "rate": beat.rates.get(pipeline),
        "batch": beat.batches.get(pipeline),
        "busy": beat.busy.get(pipeline),
    }
    return {name: value for name, value in found.items() if value is not None}
