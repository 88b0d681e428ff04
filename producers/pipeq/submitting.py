"""SUBMIT: envelopes -> records and messages in Redis, one transaction a chunk. Before: submission. After: a worker.

Tasks that their caller named go by way of once, which first looks whether they are there.

It uses plain commands between MULTI and EXEC, and no script. A Redis user who may run our script may run any, even an
endless one, because no rule of Redis can tell scripts apart. So a producer needs no right to run scripts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import (
    AuthenticationError,
    ConnectionError,  # noqa: A004
    NoPermissionError,
    RedisError,
    TimeoutError,  # noqa: A004
    WatchError,
)

from pipeq.backlog import Backlogs
from pipeq.contract import events, keys
from pipeq.contract.errors import PipeqError, QueueFullError, RedisUnavailableError, SubmitError, SubmitUnavailableError
from pipeq.contract.status import State
from pipeq.envelope import Envelope
from pipeq.once import Looked, Name, look
from pipeq.protocol import Command, Send, Session, Steps, is_wrong_type, single, transaction, twice

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
    #: Whether the call limits the queue's length.
    is_limited: bool = False


@contextmanager
def submit_errors() -> Iterator[list[str]]:
    """Yields a list for the ids of queued tasks; an error inside the block becomes a SubmitError with these ids."""
    submitted: list[str] = []
    try:
        yield submitted
    except QueueFullError as error:
        raise QueueFullError(error.message, submitted) from None
    except RedisUnavailableError as error:
        raise SubmitUnavailableError(error.message, error.retryable, submitted) from error.__cause__
    except PipeqError as error:
        # Raised from the cause, because a traceback would otherwise show the same sentence twice.
        raise SubmitError(error.code, error.message, error.retryable, submitted) from error.__cause__


class Submitter:
    """Says what goes to the queues.

    Args:
        backlogs: what is known of their lengths.
    """

    def __init__(self, backlogs: Backlogs) -> None:
        self._backlogs = backlogs
        #: Pipelines that were registered when they were last submitted to.
        self._known: set[str] = set()
        #: How many events are kept, as Redis said last (0: none); None if it was not asked yet, and whether it may be.
        self._kept: int | None = None
        self._may_ask = True

    def is_known(self, pipeline: str) -> Steps[bool]:
        """Whether a worker has ever served the pipeline, or is loading it; one round trip unless it is known already.

        Raises:
            redis.exceptions.RedisError: Redis is away.
        """
        if pipeline in self._known:
            return True
        served = yield from self._look(pipeline)
        return served.known or served.loading > 0

    def put(self, place: Place, chunk: Chunk) -> Steps[Served]:
        """Queues tasks in one round trip, either all of them or none. Those with a name take one or two more.

        ``chunk.ids`` then has the ids under which the tasks are known: for a name that a task has already, its id.

        Raises:
            PipeqError: ``invalid_message``: another task has the name.
            redis.exceptions.RedisError: nothing was queued, as far as Redis could say.
        """
        if self._kept is None:
            yield from self._look(place.pipeline)
        if chunk.names:
            return (yield from twice(lambda: self._put_once(place, chunk)))
        try:
            return (yield from self._fill(place, chunk))
        except AuthenticationError:
            raise
        except (ConnectionError, TimeoutError):
            # Perhaps only the answer was lost; then either all records exist, or none.
            if (yield from single("EXISTS", keys.record_key(chunk.ids[0]))):
                return (yield from self._look(place.pipeline))
            return (yield from self._fill(place, chunk))

    def _put_once(self, place: Place, chunk: Chunk) -> Steps[Served]:
        looked = Looked(tuple(chunk.ids), chunk.names)
        while True:
            try:
                served = yield Session(self._look_and_fill(place, chunk, looked))
                break
            except WatchError:
                # Another client was faster with one of the names, or a task has ended: look again.
                continue
        chunk.ids = looked.known_as()
        return served if served is not None else (yield from self._look(place.pipeline))

    def _look_and_fill(self, place: Place, chunk: Chunk, looked: Looked) -> Steps[Served | None]:
        yield from look(looked)
        if new := looked.new:
            return (yield from self._fill(place, chunk, new))
        yield from single("UNWATCH")
        return None

    def _fill(self, place: Place, chunk: Chunk, new: Sequence[int] | None = None) -> Steps[Served]:
        """Queues the tasks of a chunk, or only those with these numbers."""
        ids, records, messages = chunk.ids, chunk.records, chunk.messages
        if new is not None and len(new) < len(ids):
            ids, records, messages = ([column[at] for at in new] for column in (ids, records, messages))
        lifetime = keys.PENDING_TTL_S + int(place.delay_s or 0)
        commands: list[Command] = []
        for at in new or ():
            if (name := chunk.names.get(at)) is not None and name.is_key:
                commands.append(("SET", keys.once_key(name.text), chunk.ids[at], "EX", lifetime))
        for task_id, record in zip(ids, records, strict=True):
            commands.append(("SET", keys.record_key(task_id), record, "EX", lifetime))
        if self._kept:
            commands += (events.command(self._kept, task_id, State.QUEUED, place.pipeline) for task_id in ids)
        if place.delay_s:
            # Delayed messages wait in Redis, not in a worker's memory as with Celery's countdown.
            due = time.time() + place.delay_s
            members = [json.dumps({"list": place.list_key, "message": message}) for message in messages]
            commands.append(
                ("ZADD", keys.waiting_key(place.pipeline), *(part for one in members for part in (due, one)))
            )
        else:
            commands.append(("LPUSH", place.list_key, *messages))
        questions = _questions(place.pipeline)
        if may_ask := self._may_ask:
            questions = (*questions, ("GET", keys.EVENTS_MAX))
        if place.is_limited:
            found = yield from self._backlogs.put(place.pipeline, len(ids), commands, questions)
        else:
            found = yield from transaction(commands, questions)
        if may_ask:
            self._kept = events.kept_of(found.pop())
        *_, pushed, known, live, loading = found
        if isinstance(pushed, Exception):
            yield from self._take_back(ids)
            raise pushed
        return self._seen(place.pipeline, known, live, loading)

    def _take_back(self, ids: Sequence[str]) -> Steps[None]:
        """Removes the records of tasks that could not be queued, because nobody must wait for them."""
        # Not DEL, for which a producer has no right.
        yield Send([("SET", keys.record_key(task_id), "", "PX", 1) for task_id in ids])

    def _look(self, pipeline: str) -> Steps[Served]:
        *served, kept = yield Send((), questions=(*_questions(pipeline), ("GET", keys.EVENTS_MAX)))
        # Users of Redis made for an earlier version may not ask.
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


def _questions(pipeline: str) -> tuple[Command, ...]:
    """Asks for the workers of a pipeline."""
    # Tenths of a second, so that calls of the same moment ask the same.
    alive_since = int((time.time() - keys.WORKER_TTL_S) * 10) / 10
    return (
        ("HEXISTS", keys.PIPELINES, pipeline),
        ("ZCOUNT", keys.workers_key(pipeline), alive_since, "+inf"),
        ("ZCOUNT", keys.loading_key(pipeline), alive_since, "+inf"),
    )
