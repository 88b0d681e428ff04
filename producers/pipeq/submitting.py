"""SUBMIT: envelopes -> records and messages in Redis, each chunk in one transaction. Before: client. After: a worker.

Plain commands between MULTI and EXEC, no script: a Redis user who may run scripts may run any, one without an end among
them, and no rule of Redis tells ours from others. So a producer needs no right to any.
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

#: One transaction queues at most this many tasks ...
CHUNK_TASKS = 500
#: ... or this many bytes, so that it neither holds Redis up nor fills our memory.
CHUNK_BYTES = 4 * 2**20


@dataclass
class Chunk:
    """Tasks of one pipeline that are queued together."""

    ids: list[str] = field(default_factory=list)
    records: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    bytes: int = 0

    def add(self, envelope: Envelope, body: str) -> None:
        """One more task."""
        message = envelope.encode(body)
        self.ids.append(envelope.id)
        self.records.append(envelope.record())
        self.messages.append(message)
        self.bytes += len(message)

    @property
    def is_full(self) -> bool:
        """Whether it is time to send it."""
        return len(self.ids) >= CHUNK_TASKS or self.bytes >= CHUNK_BYTES


@dataclass(frozen=True)
class Served:
    """Who serves a pipeline now."""

    #: Whether a worker has ever served it.
    known: bool
    #: Workers that do, and workers that are loading it.
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
    """Gives a list for the ids of what gets queued inside; turns an error into a SubmitError that holds them."""
    submitted: list[str] = []
    try:
        yield submitted
    except RedisUnavailableError as error:
        raise SubmitUnavailableError(error.message, error.retryable, submitted) from error.__cause__
    except PipeqError as error:
        # Not from the error itself: a traceback would say the same sentence twice.
        raise SubmitError(error.code, error.message, error.retryable, submitted) from error.__cause__


class Submitter:
    """Writes to the queues.

    Args:
        client: of connections that try nothing twice by themselves: a transaction whose answer was lost may have been
            carried out.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        #: Pipelines that some worker was seen to have served: that never ends.
        self._known: set[str] = set()

    def is_known(self, pipeline: str) -> bool:
        """Whether a worker has ever served the pipeline, or is loading it; a round trip where we have not seen it yet.

        Raises:
            redis.exceptions.RedisError: Redis is away.
        """
        if pipeline in self._known:
            return True
        served = self._twice(lambda: self._look(pipeline))
        return served.known or served.loading > 0

    def put(self, place: Place, chunk: Chunk) -> Served:
        """Queues tasks under new ids, in one round trip: all of them, or none.

        Raises:
            redis.exceptions.RedisError: nothing was queued, as far as Redis could say.
        """
        try:
            return self._transaction(place, chunk)
        except AuthenticationError:
            raise
        except (ConnectionError, TimeoutError):
            # Only the answer may be lost: then the records are there, all or none of them.
            if self._redis.exists(keys.record_key(chunk.ids[0])):
                return self._look(place.pipeline)
            return self._transaction(place, chunk)

    def put_once(self, place: Place, envelope: Envelope, body: str) -> Served:
        """Queues a task under an id of the caller's own, unless it was queued before.

        Raises:
            PipeqError: ``invalid_message``, where another task has the id.
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
                # MGET: nothing, too, where something stands that is no record.
                [before] = pipe.mget([key])
                if before is not None:
                    _check_same(envelope, before)
                    break
                pipe.multi()
                try:
                    return self._fill(pipe, place, chunk)
                except WatchError:
                    # Somebody else was first: look again.
                    continue
        return self._look(place.pipeline)

    def _twice(self, act: Callable[[], Served]) -> Served:
        """Once more where the connection had broken, as those of a pool do when Redis restarts."""
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
            # Not pipe.set(): at 500 a transaction its many options take a third of the time.
            pipe.execute_command(*_set(task_id, record, "EX", lifetime))  # type: ignore[no-untyped-call]
        if place.delay_s:
            # Whatever waits does so in Redis, not in a worker's memory as Celery's countdown does.
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
        """The queue's key holds something else: records of tasks that lie on no queue would be waited for."""
        with self._redis.pipeline(transaction=False) as pipe:
            for task_id in chunk.ids:
                # Not DEL, which a producer has no right to.
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
        # An error or None: something else stands under the key.
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
    """Raises where the id belongs to a task with other inputs. Records from elsewhere do not say what theirs were."""
    theirs = Before.read(before).message_sha256
    if theirs is not None and theirs != envelope.message_sha256:
        raise PipeqError(
            ErrorCode.INVALID_MESSAGE,
            f"the task id {shown.line(envelope.id)!r} belongs to a task with other inputs, params or output: take "
            "another id, or none",
        )
