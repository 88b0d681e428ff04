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
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from redis.exceptions import WatchError

from pipeq.contract import job, keys
from pipeq.contract.job import JobState
from pipeq.contract.pack import PackMessage
from pipeq.contract.reading import json_object
from pipeq.envelope import Envelope, new_id
from pipeq.jobs.ending import all_done, end_if_done, hset
from pipeq.protocol import Command, Session, Steps, single, twice

_T = TypeVar("_T")
#: Fields that one call reads of those that came.
DONE_FIELDS = 1000


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
    """Makes a job, unless there is one of this id. Returns whether it is new.

    Its state is ``validating`` until it ends: that rows are queued, or that it is to stop, other fields say, so that
    nobody overwrites what somebody else has said.
    """
    # Again, if somebody else makes it at this moment.
    while (is_new := (yield from twice(lambda: _session(_create(job_id, fields))))) is None:
        pass
    return is_new


def _create(job_id: str, fields: Mapping[str, Any]) -> Steps[bool | None]:
    """Its fields come with its state: an answer may be lost, or the process be killed, between any two steps."""
    key, now = job.job_key(job_id), time.time()
    yield from single("WATCH", key)
    (state,) = yield from single("HMGET", key, "state")
    if state is not None:
        yield from single("UNWATCH")
        return False
    try:
        yield from all_done(
            [
                hset(key, {"state": str(JobState.VALIDATING), "created_at": now, **fields}),
                ("EXPIRE", key, job.TTL_S),
                ("ZADD", job.JOBS, now, job_id),
                ("SADD", job.OPEN, job_id),
                ("ZREMRANGEBYSCORE", job.JOBS, 0, now - 2 * job.TTL_S),
            ]
        )
    except WatchError:
        return None
    return True


def spec_of(job_id: str) -> Steps[str | None]:
    """What a job was made of."""
    (found,) = yield from single("HMGET", job.job_key(job_id), "spec")
    return None if found is None else found.decode("utf-8", "replace")


def columns_of(job_id: str) -> Steps[tuple[dict[str, str], str | None, dict[str, str]] | None]:
    """The columns that a job was made of, if its outcomes have their values: fields, the rows' names, parameters."""
    (found,) = yield from single("HMGET", job.job_key(job_id), "columns")
    try:
        fields, row_id, params = json.loads(found or b"")
        return dict(fields), row_id if isinstance(row_id, str) else None, dict(params)
    except (TypeError, ValueError):
        return None


def set_fields(job_id: str, **fields: Any) -> Steps[None]:
    """Sets fields of a job's hash."""
    yield from single(*hset(job.job_key(job_id), fields))


def ids() -> Steps[list[str]]:
    """The ids of all jobs that are kept, the newest first."""
    found = yield from single("ZREVRANGE", job.JOBS, 0, -1)
    return [one.decode("utf-8", "replace") for one in found]


# -- its packs --------------------------------------------------------------------------------------------------------


def cursor_of(job_id: str) -> Steps[Cursor]:
    """How far a job's input is queued."""
    return _cursor((yield from single("GET", job.cursor_key(job_id))))


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
    return (yield from twice(lambda: _session(_put(job_id, before, parcel))))


def _session(steps: Steps[_T]) -> Steps[_T]:
    found: _T = yield Session(steps)
    return found


def _put(job_id: str, before: Cursor, parcel: Parcel) -> Steps[bool]:
    key = job.cursor_key(job_id)
    yield from single("WATCH", key)
    found = _cursor((yield from single("GET", key)))
    if found != before:
        yield from single("UNWATCH")
        return found == parcel.cursor  # then only the answer was lost
    commands = _queued(job_id, before, parcel)
    try:
        yield from all_done([*commands, ("SET", key, parcel.cursor.to_json(), "EX", job.TTL_S)])
    except WatchError:
        return False
    return True


def _queued(job_id: str, before: Cursor, parcel: Parcel) -> list[Command]:
    key, commands = job.job_key(job_id), list[Command]()
    lists: dict[str, list[str]] = {}
    opened: dict[str, str] = {}
    for envelope, body in zip(parcel.envelopes, parcel.bodies, strict=True):
        commands.append(("SET", keys.record_key(envelope.id), envelope.record(), "EX", keys.PENDING_TTL_S))
        name = keys.list_key(envelope.message.pipeline, envelope.priority)
        lists.setdefault(name, []).append(envelope.encode(body))
        message = envelope.message
        if isinstance(message, PackMessage):
            opened[message.of.field] = job.rows_text((row.line, row.custom_id) for row in message.rows)
    commands += [("LPUSH", name, *messages) for name, messages in lists.items()]
    if opened:
        commands += [hset(job.open_key(job_id), opened), ("EXPIRE", job.open_key(job_id), job.TTL_S)]
    wrong = [one for some in parcel.wrong.values() for one in some]
    if wrong:
        texts = {f"{number}!": json.dumps(some) for number, some in parcel.wrong.items()}
        commands += [
            hset(job.outcomes_key(job_id), texts),
            ("EXPIRE", job.outcomes_key(job_id), job.TTL_S),
            ("RPUSH", job.done_key(job_id), *texts),
            ("EXPIRE", job.done_key(job_id), job.TTL_S),
            ("HINCRBY", key, "failed", len(wrong)),
        ]
        codes = Counter(one["error"]["code"] for one in wrong)
        commands += [("HINCRBY", key, f"{job.CODE}{code}", count) for code, count in codes.items()]
    about = {
        "packs": parcel.cursor.packs,
        "lines": parcel.cursor.lines,
        "last_at": time.time(),
    }
    return [
        *commands,
        ("HINCRBY", key, "rows", parcel.cursor.rows - before.rows),
        hset(key, about),
        ("EXPIRE", key, job.TTL_S),
    ]


# -- its end ----------------------------------------------------------------------------------------------------------


def seal(job_id: str) -> Steps[None]:
    """Says that all rows are submitted, and ends the job if all of them have ended."""
    yield from set_fields(job_id, sealed="1")
    yield from end_if_done(job_id)


def fail(job_id: str, error: str) -> Steps[None]:
    """Says that the input of a job cannot be read. What is queued goes on, and a further submit may read the rest."""
    (sealed,) = yield from single("HMGET", job.job_key(job_id), "sealed")
    if sealed is None:
        yield from set_fields(job_id, state=str(JobState.FAILED), error=error, ended_at=time.time())
        yield from single("SREM", job.OPEN, job_id)


def go_on(job_id: str) -> Steps[None]:
    """Takes back what :func:`fail` has said, because the job is submitted again."""
    (state, sealed) = yield from single("HMGET", job.job_key(job_id), "state", "sealed")
    if state == str(JobState.FAILED).encode() and sealed is None:
        yield from all_done(
            [
                hset(job.job_key(job_id), {"state": str(JobState.VALIDATING)}),
                ("HDEL", job.job_key(job_id), "error", "ended_at"),
                ("SADD", job.OPEN, job_id),
            ]
        )


def stop(job_id: str, state: JobState) -> Steps[None]:
    """Has a job end in this state once the rows that are queued have ended; no further ones are queued."""
    yield from set_fields(job_id, stop=str(state))
    # A producer that has read the cursor before cannot queue anything now, and one that reads it later sees the state.
    cursor = yield from cursor_of(job_id)
    yield from single("SET", job.cursor_key(job_id), replace(cursor, by=new_id()).to_json(), "EX", job.TTL_S)
    yield from set_fields(job_id, sealed="1")


def open_fields(job_id: str) -> Steps[list[str]]:
    """The packs that have not ended."""
    found = yield from single("HKEYS", job.open_key(job_id))
    return [one.decode("utf-8", "replace") for one in found]


def done_fields(job_id: str, start: int) -> Steps[list[str]]:
    """The fields of the outcomes that came, from this one on, in the order in which they did."""
    found = yield from single("LRANGE", job.done_key(job_id), start, start + DONE_FIELDS - 1)
    return [one.decode("utf-8", "replace") for one in found]


def outcome_fields(job_id: str) -> Steps[list[str]]:
    """The names of the fields that hold outcomes."""
    found = yield from single("HKEYS", job.outcomes_key(job_id))
    return [one.decode("utf-8", "replace") for one in found]


def outcomes(job_id: str, fields: Iterable[str]) -> Steps[list[bytes | None]]:
    """The outcomes in these fields."""
    return list((yield from single("HMGET", job.outcomes_key(job_id), *fields)))


def forget_outcomes(job_id: str, field: str) -> Steps[None]:
    """Removes the outcomes in one field."""
    yield from single("HDEL", job.outcomes_key(job_id), field)
