"""STORE: a job in Redis, from its producer's side. Before: packing. After: the workers, and finish.lua there.

A producer may be killed at any moment, and started again elsewhere. So one transaction queues packs and moves the
job's cursor, which says how far the input was read: a pack is queued if, and only if, the cursor is behind it. Two
producers of one job take turns by chance, and neither queues what the other has queued. Only producers touch the
cursor, so that a transaction does not fail because workers count rows meanwhile.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from redis.exceptions import WatchError

from pipeq.contract import job, keys
from pipeq.contract.job import JobState, JobStatus
from pipeq.contract.reading import json_object
from pipeq.envelope import Envelope
from pipeq.protocol import Command, Session, Steps, pairs, single, transaction, twice


@dataclass(frozen=True)
class Cursor:
    """How far the input of a job has been read and queued."""

    lines: int = 0
    rows: int = 0
    packs: int = 0
    #: Whoever moved it last, to know whether a transaction whose answer was lost was done.
    by: str = ""

    def to_json(self) -> str:
        """The text in Redis."""
        return json.dumps(vars(self))


def cursor_key(job_id: str) -> str:
    """String: JSON of a :class:`Cursor`."""
    return f"pipeq:job-cursor:{job_id}"


@dataclass(frozen=True)
class Parcel:
    """Packs that are queued in one step, with the outcomes of lines between them that are no rows."""

    envelopes: Sequence[Envelope]
    bodies: Sequence[str]
    #: Number of a pack -> outcomes of the lines before it that cannot be used; they count as rows that have failed.
    wrong: dict[int, list[dict[str, Any]]]
    #: How far the input is read afterwards.
    cursor: Cursor


# -- a job's record ---------------------------------------------------------------------------------------------------


def create(job_id: str, fields: Mapping[str, Any]) -> Steps[bool]:
    """Makes a job, unless there is one of this id. Returns whether it is new."""
    key, now = job.job_key(job_id), time.time()
    if not (yield from single("HSETNX", key, "state", str(JobState.VALIDATING))):
        return False
    yield from _done(
        [
            _hset(key, {"created_at": now, **fields}),
            ("EXPIRE", key, job.TTL_S),
            ("ZADD", job.JOBS, now, job_id),
            ("ZREMRANGEBYSCORE", job.JOBS, 0, now - 2 * job.TTL_S),
        ]
    )
    return True


def spec_of(job_id: str) -> Steps[str | None]:
    """What a job was made of."""
    (found,) = yield from single("HMGET", job.job_key(job_id), "spec")
    return None if found is None else found.decode("utf-8", "replace")


def set_fields(job_id: str, **fields: Any) -> Steps[None]:
    """Sets fields of a job's hash."""
    yield from single(*_hset(job.job_key(job_id), fields))


def status_of(job_id: str) -> Steps[JobStatus | None]:
    """What is known of a job; None if there is none."""
    return job.read(job_id, dict(pairs((yield from single("HGETALL", job.job_key(job_id))))))


def ids() -> Steps[list[str]]:
    """The ids of all jobs that are kept, the newest first."""
    found = yield from single("ZREVRANGE", job.JOBS, 0, -1)
    return [one.decode("utf-8", "replace") for one in found]


# -- its packs --------------------------------------------------------------------------------------------------------


def cursor_of(job_id: str) -> Steps[Cursor]:
    """How far a job's input is queued."""
    return _cursor((yield from single("GET", cursor_key(job_id))))


def _cursor(raw: bytes | None) -> Cursor:
    found = json_object(raw) or {}
    try:
        return Cursor(int(found["lines"]), int(found["rows"]), int(found["packs"]), str(found["by"]))
    except (KeyError, TypeError, ValueError):
        return Cursor()


def put(job_id: str, before: Cursor, parcel: Parcel) -> Steps[bool]:
    """Queues packs in one step. Returns whether it did: not if the cursor is not where it was before.

    It may be sent twice, because the cursor says whether it was done.
    """
    return (yield from twice(partial(_session, _put(job_id, before, parcel))))


def _session(steps: Steps[bool]) -> Steps[bool]:
    found: bool = yield Session(steps)
    return found


def _put(job_id: str, before: Cursor, parcel: Parcel) -> Steps[bool]:
    key = cursor_key(job_id)
    yield from single("WATCH", key)
    found = _cursor((yield from single("GET", key)))
    if found != before:
        yield from single("UNWATCH")
        return found == parcel.cursor  # then only the answer was lost
    commands = _queued(job_id, before, parcel)
    try:
        yield from _done([*commands, ("SET", key, parcel.cursor.to_json(), "EX", job.TTL_S)])
    except WatchError:
        return False
    return True


def _queued(job_id: str, before: Cursor, parcel: Parcel) -> list[Command]:
    key, commands = job.job_key(job_id), list[Command]()
    lists: dict[str, list[str]] = {}
    for envelope, body in zip(parcel.envelopes, parcel.bodies, strict=True):
        commands.append(("SET", keys.record_key(envelope.id), envelope.record(), "EX", keys.PENDING_TTL_S))
        name = keys.list_key(envelope.message.pipeline, envelope.priority)
        lists.setdefault(name, []).append(envelope.encode(body))
    commands += [("LPUSH", name, *messages) for name, messages in lists.items()]
    wrong = [one for some in parcel.wrong.values() for one in some]
    if wrong:
        texts = {f"{number}!": json.dumps(some) for number, some in parcel.wrong.items()}
        commands += [
            _hset(job.outcomes_key(job_id), texts),
            ("EXPIRE", job.outcomes_key(job_id), job.TTL_S),
            ("HINCRBY", key, "failed", len(wrong)),
        ]
        codes = Counter(one["error"]["code"] for one in wrong)
        commands += [("HINCRBY", key, f"{job.CODE}{code}", count) for code, count in codes.items()]
    about = {
        "packs": parcel.cursor.packs,
        "lines": parcel.cursor.lines,
        "state": str(JobState.IN_PROGRESS),
        "last_at": time.time(),
    }
    return [
        *commands,
        ("HINCRBY", key, "rows", parcel.cursor.rows - before.rows),
        _hset(key, about),
        ("EXPIRE", key, job.TTL_S),
    ]


# -- its end ----------------------------------------------------------------------------------------------------------


def seal(job_id: str) -> Steps[None]:
    """Says that all rows are submitted, and ends the job if all of them have ended."""
    yield from set_fields(job_id, sealed="1")
    yield from end_if_done(job_id)


def end_if_done(job_id: str) -> Steps[None]:
    """Ends a job whose rows have all ended: its last worker could not know yet that it was the last."""
    while not (yield from twice(partial(_session, _end_if_done(job_id)))):
        pass


def _end_if_done(job_id: str) -> Steps[bool]:
    key = job.job_key(job_id)
    yield from single("WATCH", key)
    status = yield from status_of(job_id)
    is_open = status is not None and status.state in (JobState.VALIDATING, JobState.IN_PROGRESS)
    if status is None or not is_open or not status.is_sealed or status.done < status.submitted:
        yield from single("UNWATCH")
        return True
    try:
        yield from _done([_hset(key, {"state": str(JobState.COMPLETED), "ended_at": time.time()})])
    except WatchError:
        return False
    return True


def outcome_fields(job_id: str) -> Steps[list[str]]:
    """The names of the fields that hold outcomes."""
    found = yield from single("HKEYS", job.outcomes_key(job_id))
    return [one.decode("utf-8", "replace") for one in found]


def outcomes(job_id: str, fields: Iterable[str]) -> Steps[list[bytes | None]]:
    """The outcomes in these fields."""
    return list((yield from single("HMGET", job.outcomes_key(job_id), *fields)))


def _hset(key: str, fields: Mapping[str, Any]) -> Command:
    return ("HSET", key, *(part for pair in fields.items() for part in pair))


def _done(commands: Sequence[Command]) -> Steps[None]:
    """Executes commands together; raises the first error of one of them."""
    for reply in (yield from transaction(commands)):
        if isinstance(reply, Exception):
            raise reply
