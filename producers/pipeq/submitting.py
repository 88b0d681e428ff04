"""SUBMIT: envelopes -> records and messages in Redis, one transaction a chunk. Before: submission. After: a worker.

Tasks that their caller named go by way of once, which first looks whether they are there.

It uses plain commands between MULTI and EXEC, and no script. A Redis user who may run our script may run any, even an
endless one, because no rule of Redis can tell scripts apart. So a producer needs no right to run scripts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import redis
from redis.client import Pipeline
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,  # noqa: A004
    NoPermissionError,
    RedisError,
    TimeoutError,  # noqa: A004
    WatchError,
)

from pipeq.contract import events, keys
from pipeq.contract.errors import PipeqError, RedisUnavailableError, SubmitError, SubmitUnavailableError
from pipeq.contract.status import State
from pipeq.envelope import Envelope
from pipeq.once import Looked, Name, look
from pipeq.server import is_wrong_type

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
    #: Number -> how its caller named the task, of those that have a name.
    names: dict[int, Name] = field(default_factory=dict)

    def add(self, envelope: Envelope, body: str, name: Name | None = None) -> None:
        """Adds a task."""
        message = envelope.encode(body)
        if name is not None:
            self.names[len(self.ids)] = name._replace(
                pipeline=envelope.message.pipeline, sha256=envelope.message_sha256
            )
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
        #: Pipelines that were registered when they were last submitted to.
        self._known: set[str] = set()
        #: How many events are kept, as Redis said last (0: none); None if it was not asked yet, and whether it may be.
        self._kept: int | None = None
        self._may_ask = True

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
        """Queues tasks in one round trip, either all of them or none. Those with a name take two more.

        ``chunk.ids`` then has the ids under which the tasks are known: for a name that a task has already, its id.

        Raises:
            PipeqError: ``invalid_message``: another task has the name.
            redis.exceptions.RedisError: nothing was queued, as far as Redis could say.
        """
        if self._kept is None:
            self._twice(lambda: self._look(place.pipeline))
        if chunk.names:
            return self._twice(lambda: self._put_once(place, chunk))
        try:
            return self._transaction(place, chunk)
        except AuthenticationError:
            raise
        except (ConnectionError, TimeoutError):
            # Perhaps only the answer was lost; then either all records exist, or none.
            if self._redis.exists(keys.record_key(chunk.ids[0])):
                return self._look(place.pipeline)
            return self._transaction(place, chunk)

    def _put_once(self, place: Place, chunk: Chunk) -> Served:
        looked = Looked(tuple(chunk.ids), chunk.names)
        while True:
            try:
                with self._redis.pipeline() as pipe:
                    look(pipe, looked)
                    if not (new := looked.new):
                        served = self._look(place.pipeline)
                        break
                    pipe.multi()
                    served = self._fill(pipe, place, chunk, new)
                    break
            except WatchError:
                # Another client was faster with one of the names, a task has ended, or the connection broke: look
                # again.
                continue
        chunk.ids = looked.known_as()
        return served

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

    def _fill(self, pipe: Pipeline, place: Place, chunk: Chunk, new: Sequence[int] | None = None) -> Served:
        """Queues the tasks of a chunk, or only those with these numbers."""
        ids, records, messages = chunk.ids, chunk.records, chunk.messages
        if new is not None and len(new) < len(ids):
            ids, records, messages = ([column[at] for at in new] for column in (ids, records, messages))
        lifetime = keys.PENDING_TTL_S + int(place.delay_s or 0)
        for at in new or ():
            if (name := chunk.names.get(at)) is not None and name.is_key:
                pipe.set(keys.once_key(name.text), chunk.ids[at], ex=lifetime)
        for task_id, record in zip(ids, records, strict=True):
            # Not pipe.set(), whose many options take a third of the time at 500 tasks a transaction.
            pipe.execute_command(*_set(task_id, record, "EX", lifetime))  # type: ignore[no-untyped-call]
        if self._kept:
            for task_id in ids:
                event = events.command(self._kept, task_id, State.QUEUED, place.pipeline)
                pipe.execute_command(*event)  # type: ignore[no-untyped-call]
        if place.delay_s:
            # Delayed messages wait in Redis, not in a worker's memory as with Celery's countdown.
            members = [json.dumps({"list": place.list_key, "message": message}) for message in messages]
            pipe.zadd(keys.waiting_key(place.pipeline), dict.fromkeys(members, time.time() + place.delay_s))
        else:
            pipe.lpush(place.list_key, *messages)
        _ask(pipe, place.pipeline)
        if may_ask := self._may_ask:
            pipe.get(keys.EVENTS_MAX)
        found = pipe.execute(raise_on_error=False)
        if may_ask:
            self._kept = events.kept_of(found.pop())
        *_, pushed, known, live, loading = found
        if isinstance(pushed, Exception):
            self._take_back(ids)
            raise pushed
        return self._seen(place.pipeline, known, live, loading)

    def _take_back(self, ids: Sequence[str]) -> None:
        """Removes the records of tasks that could not be queued, because nobody must wait for them."""
        with self._redis.pipeline(transaction=False) as pipe:
            for task_id in ids:
                # Not DEL, for which a producer has no right.
                pipe.execute_command(*_set(task_id, "", "PX", 1))  # type: ignore[no-untyped-call]
            pipe.execute(raise_on_error=False)

    def _look(self, pipeline: str) -> Served:
        with self._redis.pipeline(transaction=False) as pipe:
            _ask(pipe, pipeline)
            pipe.get(keys.EVENTS_MAX)
            *served, kept = pipe.execute(raise_on_error=False)
        # Users of Redis made for an earlier version may not ask; in a transaction, that would refuse all of it.
        self._may_ask = not isinstance(kept, NoPermissionError)
        self._kept = events.kept_of(kept)
        return self._seen(pipeline, *served)

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
