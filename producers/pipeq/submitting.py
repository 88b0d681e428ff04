"""SUBMIT: envelopes -> records and messages in Redis, each chunk in one transaction. Before: client. After: a worker.

It uses plain commands between MULTI and EXEC, and no script. A Redis user who may run our script may run any, even an
endless one, because no rule of Redis can tell scripts apart. So a producer needs no right to run scripts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import redis
from redis.client import Pipeline
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,  # noqa: A004
    RedisError,
    TimeoutError,  # noqa: A004
    WatchError,
)

from pipeq.contract import keys, shown
from pipeq.contract.errors import (
    ErrorCode,
    PipeqError,
    RedisUnavailableError,
    SubmitError,
    SubmitUnavailableError,
)
from pipeq.contract.record import Before
from pipeq.envelope import Envelope
from pipeq.server import is_wrong_type, replies

#: Most tasks that one transaction queues ...
CHUNK_TASKS = 500
#: ... and most bytes, so that it neither blocks Redis nor fills our memory.
CHUNK_BYTES = 4 * 2**20


@dataclass
class Chunk:
    """Tasks of one pipeline that are queued in one transaction."""

    ids: list[str] = field(default_factory=list)
    records: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    bytes: int = 0

    def add(self, envelope: Envelope, body: str) -> None:
        """Adds a task."""
        message = envelope.encode(body)
        self.ids.append(envelope.id)
        self.records.append(envelope.record())
        self.messages.append(message)
        self.bytes += len(message)

    @property
    def is_full(self) -> bool:
        """Whether it should be sent now."""
        return len(self.ids) >= CHUNK_TASKS or self.bytes >= CHUNK_BYTES


@dataclass(frozen=True)
class Served:
    """The workers of a pipeline."""

    #: Whether a worker has ever served it.
    known: bool
    #: Number of workers that serve it now, and of workers that are loading it.
    live: int
    loading: int


@dataclass(frozen=True)
class Place:
    """Where the tasks of one call go, and when."""

    pipeline: str
    list_key: str
    #: Seconds from now until they are due; None for at once.
    delay_s: float | None


@contextmanager
def submit_errors() -> Iterator[list[str]]:
    """Yields a list for the ids of queued tasks; an error inside the block becomes a SubmitError with these ids."""
    submitted: list[str] = []
    try:
        yield submitted
    except RedisUnavailableError as error:
        raise SubmitUnavailableError(error.message, error.retryable, submitted) from error.__cause__
    except PipeqError as error:
        # Raised from the cause, because a traceback would otherwise show the same sentence twice.
        raise SubmitError(error.code, error.message, error.retryable, submitted) from error.__cause__


class Submitter:
    """Writes to the queues.

    Args:
        client: must not retry commands by itself, because a transaction whose answer was lost may have been executed.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        #: Pipelines that were found to be registered, which they stay for ever.
        self._known: set[str] = set()

    def is_known(self, pipeline: str) -> bool:
        """Whether a worker has ever served the pipeline, or is loading it; one round trip unless it is known already.

        Raises:
            redis.exceptions.RedisError: Redis is away.
        """
        if pipeline in self._known:
            return True
        served = self._twice(lambda: self._look(pipeline))
        return served.known or served.loading > 0

    def put(self, place: Place, chunk: Chunk) -> Served:
        """Queues tasks with new ids in one round trip, either all of them or none.

        Raises:
            redis.exceptions.RedisError: nothing was queued, as far as Redis could say.
        """
        try:
            return self._transaction(place, chunk)
        except AuthenticationError:
            raise
        except (ConnectionError, TimeoutError):
            # Perhaps only the answer was lost; then either all records exist, or none.
            if self._redis.exists(keys.record_key(chunk.ids[0])):
                return self._look(place.pipeline)
            return self._transaction(place, chunk)

    def put_once(self, place: Place, envelope: Envelope, body: str) -> Served:
        """Queues a task with an id that the caller chose, unless it was queued before.

        Raises:
            PipeqError: ``invalid_message``: another task has the id.
            redis.exceptions.RedisError: nothing was queued, as far as Redis could say.
        """
        chunk = Chunk()
        chunk.add(envelope, body)
        return self._twice(lambda: self._put_once(place, envelope, chunk))

    def _put_once(self, place: Place, envelope: Envelope, chunk: Chunk) -> Served:
        key = keys.record_key(envelope.id)
        while True:
            with self._redis.pipeline() as pipe:
                pipe.watch(key)  # type: ignore[no-untyped-call]
                # MGET returns None also if the key holds another type than a string.
                [before] = pipe.mget([key])
                if before is not None:
                    _check_same(envelope, before)
                    break
                pipe.multi()
                try:
                    return self._fill(pipe, place, chunk)
                except WatchError:
                    # Another client was faster: read the record again.
                    continue
        return self._look(place.pipeline)

    def _twice(self, act: Callable[[], Served]) -> Served:
        """Calls ``act`` again if the connection was broken, as those of a pool are after a restart of Redis."""
        try:
            return act()
        except AuthenticationError:
            raise
        except (ConnectionError, TimeoutError):
            return act()

    def _transaction(self, place: Place, chunk: Chunk) -> Served:
        with self._redis.pipeline(transaction=True) as pipe:
            return self._fill(pipe, place, chunk)

    def _fill(self, pipe: Pipeline, place: Place, chunk: Chunk) -> Served:
        lifetime = keys.PENDING_TTL_S + int(place.delay_s or 0)
        for task_id, record in zip(chunk.ids, chunk.records, strict=True):
            # Not pipe.set(), whose many options take a third of the time at 500 tasks a transaction.
            pipe.execute_command(*_set(task_id, record, "EX", lifetime))  # type: ignore[no-untyped-call]
        if place.delay_s:
            # Delayed messages wait in Redis, not in a worker's memory as with Celery's countdown.
            members = [json.dumps({"list": place.list_key, "message": message}) for message in chunk.messages]
            pipe.zadd(keys.waiting_key(place.pipeline), dict.fromkeys(members, time.time() + place.delay_s))
        else:
            pipe.lpush(place.list_key, *chunk.messages)
        _ask(pipe, place.pipeline)
        *_, pushed, known, live, loading = pipe.execute(raise_on_error=False)
        if isinstance(pushed, Exception):
            self._take_back(chunk)
            raise pushed
        return self._seen(place.pipeline, known, live, loading)

    def _take_back(self, chunk: Chunk) -> None:
        """Removes the records of tasks that could not be queued, because nobody must wait for them."""
        with self._redis.pipeline(transaction=False) as pipe:
            for task_id in chunk.ids:
                # Not DEL, for which a producer has no right.
                pipe.execute_command(*_set(task_id, "", "PX", 1))  # type: ignore[no-untyped-call]
            pipe.execute(raise_on_error=False)

    def _look(self, pipeline: str) -> Served:
        with self._redis.pipeline(transaction=False) as pipe:
            _ask(pipe, pipeline)
            return self._seen(pipeline, *replies(pipe))

    def _seen(self, pipeline: str, known: Any, live: Any, loading: Any) -> Served:
        for reply in (known, live, loading):
            if isinstance(reply, RedisError) and not is_wrong_type(reply):
                raise reply
        # An error or None means that the key holds another type.
        counts = [reply if isinstance(reply, int) else 0 for reply in (known, live, loading)]
        if counts[0]:
            self._known.add(pipeline)
        else:
            self._known.discard(pipeline)
        return Served(bool(counts[0]), counts[1], counts[2])


def _set(task_id: str, record: str, unit: str, lifetime: int) -> tuple[str | int, ...]:
    return "SET", keys.record_key(task_id), record, unit, lifetime


def _ask(pipe: Pipeline, pipeline: str) -> None:
    alive_since = time.time() - keys.WORKER_TTL_S
    pipe.hexists(keys.PIPELINES, pipeline)
    pipe.zcount(keys.workers_key(pipeline), alive_since, "+inf")
    pipe.zcount(keys.loading_key(pipeline), alive_since, "+inf")


def _check_same(envelope: Envelope, before: bytes | str) -> None:
    """Raises if the id belongs to a task with other inputs. Records of other clients do not tell their inputs."""
    theirs = Before.read(before).message_sha256
    if theirs is not None and theirs != envelope.message_sha256:
        raise PipeqError(
            ErrorCode.INVALID_MESSAGE,
            f"the task id {shown.line(envelope.id)!r} belongs to a task with other inputs, params or output: take "
            "another id, or none",
        )
