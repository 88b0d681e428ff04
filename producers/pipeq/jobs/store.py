"""STORE: a job in Redis, from its producer's side. Before: packing. After: the workers, and finish.lua there.

A producer may be killed at any moment, and started again elsewhere. So one transaction queues packs and moves the
job's cursor, which says how far the input was read: a pack is queued if, and only if, the cursor is behind it. Two
producers of one job take turns by chance, and neither queues what the other has queued. Only producers touch the
cursor, so that a transaction does not fail because workers count rows meanwhile.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,  # noqa: A004
    TimeoutError,  # noqa: A004
    WatchError,
)

from pipeq.contract import job, keys
from pipeq.contract.job import JobState, JobStatus
from pipeq.contract.reading import json_object
from pipeq.envelope import Envelope

#: How often a connection that broke in the middle of a transaction is tried again.
TRIES = 5


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


class JobStore:
    """Talks to Redis about jobs.

    Args:
        client: must not retry commands by itself, because a transaction whose answer was lost may have been executed.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def create(self, job_id: str, fields: dict[str, Any]) -> bool:
        """Makes a job, unless there is one of this id. Returns whether it is new."""
        key, now = job.job_key(job_id), time.time()
        if not self._redis.hsetnx(key, "state", str(JobState.VALIDATING)):
            return False
        with self._redis.pipeline(transaction=True) as pipe:
            about: dict[Any, Any] = {"created_at": now, **fields}
            pipe.hset(key, mapping=about)
            pipe.expire(key, job.TTL_S)
            pipe.zadd(job.JOBS, {job_id: now})
            pipe.zremrangebyscore(job.JOBS, 0, now - 2 * job.TTL_S)
            pipe.execute()
        return True

    def fields(self, job_id: str, *names: str) -> list[str | None]:
        """Fields of a job's hash."""
        found: Any = self._redis.hmget(job.job_key(job_id), names)
        return [None if one is None else one.decode("utf-8", "replace") for one in found]

    def set(self, job_id: str, **fields: Any) -> None:
        """Sets fields of a job's hash."""
        about: dict[Any, Any] = fields
        self._redis.hset(job.job_key(job_id), mapping=about)

    def status(self, job_id: str) -> JobStatus | None:
        """What is known of a job; None if there is none."""
        found: Any = self._redis.hgetall(job.job_key(job_id))
        return job.read(job_id, found)

    def ids(self) -> list[str]:
        """The ids of all jobs that are kept, the newest first."""
        found: Any = self._redis.zrevrange(job.JOBS, 0, -1)
        return [one.decode("utf-8", "replace") for one in found]

    def cursor(self, job_id: str) -> Cursor:
        """How far a job's input is queued."""
        raw: Any = self._redis.get(cursor_key(job_id))
        found = json_object(raw) or {}
        try:
            return Cursor(int(found["lines"]), int(found["rows"]), int(found["packs"]), str(found["by"]))
        except (KeyError, TypeError, ValueError):
            return Cursor()

    def put(self, job_id: str, before: Cursor, parcel: Parcel) -> bool:
        """Queues packs in one step. Returns whether it did: not if the cursor is not where it was before.

        Raises:
            redis.exceptions.RedisError: Redis is away.
        """
        for left in reversed(range(TRIES)):
            try:
                return self._put(job_id, before, parcel)
            except AuthenticationError:
                raise
            except (ConnectionError, TimeoutError):
                if not left:
                    raise
                time.sleep(0.1)
        return False

    def _put(self, job_id: str, before: Cursor, parcel: Parcel) -> bool:
        key, cursor = job.job_key(job_id), cursor_key(job_id)
        try:
            with self._redis.pipeline(transaction=True) as pipe:
                pipe.watch(cursor)  # type: ignore[no-untyped-call]
                found = json_object(pipe.get(cursor)) or vars(Cursor())
                if found == vars(parcel.cursor):
                    return True  # only the answer was lost
                if found != vars(before):
                    return False
                pipe.multi()
                self._fill(pipe, job_id, key, before, parcel)
                pipe.set(cursor, parcel.cursor.to_json(), ex=job.TTL_S)
                pipe.execute()
        except WatchError:
            return False
        return True

    def _fill(self, pipe: Any, job_id: str, key: str, before: Cursor, parcel: Parcel) -> None:
        lists: dict[str, list[str]] = {}
        for envelope, body in zip(parcel.envelopes, parcel.bodies, strict=True):
            pipe.set(keys.record_key(envelope.id), envelope.record(), ex=keys.PENDING_TTL_S)
            name = keys.list_key(envelope.message.pipeline, envelope.priority)
            lists.setdefault(name, []).append(envelope.encode(body))
        for name, messages in lists.items():
            pipe.lpush(name, *messages)
        wrong = [one for some in parcel.wrong.values() for one in some]
        if wrong:
            texts = {f"{number}!": json.dumps(some) for number, some in parcel.wrong.items()}
            pipe.hset(job.outcomes_key(job_id), mapping=texts)
            pipe.expire(job.outcomes_key(job_id), job.TTL_S)
            pipe.hincrby(key, "failed", len(wrong))
            for one in wrong:
                pipe.hincrby(key, f"{job.CODE}{one['error']['code']}", 1)
        pipe.hincrby(key, "rows", parcel.cursor.rows - before.rows)
        pipe.hset(
            key,
            mapping={
                "packs": parcel.cursor.packs,
                "lines": parcel.cursor.lines,
                "state": str(JobState.IN_PROGRESS),
                "last_at": time.time(),
            },
        )
        pipe.expire(key, job.TTL_S)

    def seal(self, job_id: str) -> None:
        """Says that all rows are submitted, and ends the job if all of them have ended."""
        self._redis.hset(job.job_key(job_id), mapping={"sealed": "1"})
        self.end_if_done(job_id)

    def end_if_done(self, job_id: str) -> None:
        """Ends a job whose rows have all ended: its last worker could not know yet that it was the last."""
        key = job.job_key(job_id)
        while True:
            try:
                with self._redis.pipeline(transaction=True) as pipe:
                    pipe.watch(key)  # type: ignore[no-untyped-call]
                    status = job.read(job_id, pipe.hgetall(key))  # type: ignore[arg-type]
                    if status is None or not status.is_sealed or status.done < status.submitted:
                        return
                    if status.state not in (JobState.VALIDATING, JobState.IN_PROGRESS):
                        return
                    pipe.multi()
                    pipe.hset(key, mapping={"state": str(JobState.COMPLETED), "finished_at": time.time()})
                    pipe.execute()
                    return
            except WatchError:
                continue

    def outcome_fields(self, job_id: str) -> list[str]:
        """The names of the fields that hold outcomes."""
        found: Any = self._redis.hkeys(job.outcomes_key(job_id))
        return [one.decode("utf-8", "replace") for one in found]

    def outcomes(self, job_id: str, fields: Iterable[str]) -> list[bytes | None]:
        """The outcomes in these fields."""
        found: Any = self._redis.hmget(job.outcomes_key(job_id), list(fields))
        return list(found)
