"""Celery's Redis result backend, which stores the results of a batch in one round trip and ends each task only once.

Name it in an app's configuration: ``result_backend = "pipeq_worker:Backend+redis://..."``. It stores what Celery's own
backend would store, so any Celery client can read it. Two things differ: the write checks in the same step that the
task has not ended before (cancelled by its producer, or finished by another worker), and a record carries pipeq's
status under the key ``pipeq``.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from celery import states
from celery.backends.redis import RedisBackend
from pipeq.contract import events, job, keys, redis_url, shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.record import LUA, OPEN_MAX_BYTES, Part, complete, revoked_reason
from pipeq.contract.status import CELERY_STATES, State
from redis.exceptions import ResponseError

from pipeq_worker.delivery.worker_app import WorkerApp
from pipeq_worker.leases import lua
from pipeq_worker.leases.direct import Direct
from pipeq_worker.leases.leases import Leases
from pipeq_worker.leases.redis_arguments import over
from pipeq_worker.observe.failures import failures
from pipeq_worker.observe.outage import outage

logger = logging.getLogger(__name__)

#: Number of results that one call of the script stores at most.
RESULTS_PER_CALL = 500
#: What finish.lua returns for a task if it did not simply store the result.
_EVENT_STATES = {CELERY_STATES[state]: str(state) for state in (State.SUCCEEDED, State.FAILED, State.RETRYING)}
OVER, LOST, CANNOT_WAIT, NO_LETTER = 0, -1, -2, 2


@dataclass(frozen=True)
class Retry:
    """A message that is to be delivered again later."""

    #: When, in seconds since the epoch.
    due: float
    waiting_key: str
    #: The member to add to the set of waiting messages.
    message: str


@dataclass(frozen=True)
class PackStored:
    """What the end of a pack changes in its job."""

    waiting_key: str
    #: What is counted, and the messages of rows that go on alone: JSON, for the script.
    about: str
    alone: str
    #: The outcomes of its rows, or where they are: JSON.
    outcomes: bytes


@dataclass(frozen=True)
class Annotation:
    """What pipeq adds to the record of the task that Celery's tracer is running."""

    #: The task's status, without its result.
    part: Part
    #: The dead letter to store if the task fails, and its list.
    dead_letter_list: str = ""
    dead_letter: str = ""
    #: The task's lease, if it is on the same server; the script then acknowledges the message in the same step.
    leases: Leases | None = None
    tag: str = ""
    #: The result for the record, in a tuple, if the next task of a chain gets another value; None if both are the same.
    stored: tuple[Any] | None = None
    #: The message to deliver later, if the task is retried.
    retry: Retry | None = None
    #: Of a pack that ends.
    pack: PackStored | None = None


#: Set while Celery's tracer runs for a task.
annotation: ContextVar[Annotation | None] = ContextVar("annotation", default=None)


class _Entry(NamedTuple):
    """What is stored of one task, and the message that is acknowledged with it."""

    id: str
    key: str
    record: str | bytes
    lifetime_s: int
    #: Its lease, if the script can check it; otherwise None and empty.
    leases: Leases | None = None
    tag: str = ""
    #: A dead letter and its list; empty if there is none.
    letters: str = ""
    letter: str = ""
    retry: Retry | None = None
    #: How it ended, in Celery's word, and pipeq's part of its record; empty and None if only the record says so.
    state: str = ""
    part: Part | None = None
    #: Of a pack that ends.
    pack: PackStored | None = None


@dataclass
class Buffer:
    """The results that :meth:`Backend.buffered` holds back, and, after it, the tasks of which nothing was stored."""

    entries: list[_Entry] = field(default_factory=list)
    #: Ids of tasks of which nothing was stored, because they had ended before; their messages are acknowledged.
    over: set[str] = field(default_factory=set)
    #: Ids of tasks of which nothing was stored, because another worker has their message.
    lost: set[str] = field(default_factory=set)
    #: Ids of tasks of which nothing was stored, because their message could not be put into the waiting set.
    cannot_wait: set[str] = field(default_factory=set)


class Backend(RedisBackend):
    """The result backend of one thread; Celery creates one for each thread."""

    _buffer: Buffer | None = None
    _finish_script: Direct | None = None
    #: Whether events are kept, as Redis said last.
    _tells_events: bool = False

    @contextmanager
    def buffered(self) -> Iterator[Buffer]:
        """Collects the results that are stored inside the block, and stores them in one round trip at its end.

        Acknowledge only after the block: if Redis is away, its end raises, and nothing was stored.
        """
        self._buffer = buffer = Buffer()
        try:
            yield buffer
        finally:
            self._buffer = None
        self._store(buffer.entries, buffer)

    def _params_from_url(self, url: str, defaults: dict[str, Any]) -> dict[str, Any]:
        """Reads the URL as the client and the transport do; Celery's own reader knows fewer options."""
        if isinstance(self.app, WorkerApp):
            url = self.app.redis_url
        return over({"db": 0, **defaults}, redis_url.options(url))

    def _store_result(
        self, task_id: Any, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        """Replaces Celery's read and write by one step: the script checks the record and writes it."""
        task_id = task_id.decode() if isinstance(task_id, bytes) else task_id
        key = _text(self.get_key_for_task(task_id))
        note = annotation.get()
        if note is not None and note.stored is not None and state == states.SUCCESS:
            (stored,) = note.stored
            result = self.encode_result(stored, state)
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        # Celery itself ends a task of ours that was revoked or has expired before it reaches a batch.
        by_celery = note is None and state in (states.REVOKED, states.FAILURE)
        if by_celery and revoked_reason(meta) == ErrorCode.EXPIRED:
            _tell_expired(task_id, request)
        before, mark = self._before(key, task_id) if by_celery else (None, None)
        complete(meta, task_id, note.part if note else None, before, mark)
        record = _text(self.encode(meta))
        is_noted, note = note is not None, note or Annotation(Part())
        entry = _Entry(
            id=task_id,
            key=key,
            record=record,
            lifetime_s=self._lifetime_s(state),
            leases=note.leases,
            tag=note.tag,
            letters=note.dead_letter_list,
            letter=note.dead_letter if state == states.FAILURE else "",
            retry=note.retry,
            state=state,
            part=note.part if is_noted else None,
            pack=note.pack,
        )
        # A text that redis-py cannot encode fails here, for this task alone, and not in the call for the whole batch.
        for text in (task_id, record, entry.letters, entry.letter):
            text.encode()
        if self._buffer is None:
            self._store([entry], Buffer())
        else:
            self._buffer.entries.append(entry)
        return result

    def store_record(
        self,
        task_id: str,
        record: bytes,
        part: Part,
        leases: Leases | None,
        tag: str,
        retry: Retry | None = None,
        pack: PackStored | None = None,
    ) -> None:
        """Stores the record of a task that has succeeded, or waits for a try, at the end of :meth:`buffered`.

        Args:
            task_id: the task's id.
            record: from :func:`pipeq.contract.record.succeeded` or :func:`pipeq.contract.record.retrying`.
            part: what it was given.
            leases: what holds the task's message, if the script can check it; otherwise None.
            tag: the message's tag there; otherwise empty.
            retry: the message to deliver later, if it waits for a try.
            pack: what the end of a pack changes in its job.
        """
        assert self._buffer is not None
        state = states.SUCCESS if retry is None else states.RETRY
        entry = _Entry(
            task_id,
            keys.record_key(task_id),
            record,
            self._lifetime_s(state),
            leases,
            tag,
            retry=retry,
            state=state,
            part=part,
            pack=pack,
        )
        self._buffer.entries.append(entry)

    def _store(self, entries: list[_Entry], buffer: Buffer) -> None:
        for start in range(0, len(entries), RESULTS_PER_CALL):
            self.ensure(self._finish, (entries[start : start + RESULTS_PER_CALL], buffer))

    def _finish(self, entries: list[_Entry], buffer: Buffer) -> None:
        if self._finish_script is None:
            self._finish_script = Direct(self.client, lua.source("finish", LUA + events.LUA + job.lua()))
        leases = next((entry.leases for entry in entries if entry.leases is not None), None)
        # Without leases, name keys that a restricted Redis user may use; the script does not touch them.
        redis_keys = [keys.RUNNING, *((leases.unacked_key, leases.key) if leases else (keys.UNACKED, keys.LEASES))]
        args: list[Any] = [self.app.conf.get("pipeq_dead_letter_max", 10_000), len(entries), time.time()]
        for entry in entries:
            retry = entry.retry
            redis_keys += (entry.key, entry.letters or entry.key, retry.waiting_key if retry else entry.key)
            args += (entry.id, entry.tag, entry.record, entry.lifetime_s, entry.letter)
            args += (retry.due, retry.message) if retry else ("", "")
            args.append(_event(entry) if self._tells_events else "")
        for at, entry in enumerate(entries, 1):
            if (pack := entry.pack) is not None:
                redis_keys.append(pack.waiting_key)
                args += (at, pack.about, pack.outcomes, pack.alone)
        *reply, tells = self._finish_script(keys=redis_keys, args=args)
        self._tells_events = bool(tells)
        outage.over("results")
        for entry, done in zip(entries, reply, strict=True):
            if done == OVER:
                buffer.over.add(entry.id)
            elif done == LOST:
                buffer.lost.add(entry.id)
            elif done == CANNOT_WAIT:
                buffer.cannot_wait.add(entry.id)
            elif done == NO_LETTER:
                logger.error(
                    "%s is no list: a dead letter is lost", shown.line(entry.letters), extra={"action": "dead_letter"}
                )

    def on_connection_error(self, max_retries: Any, exc: BaseException, intervals: Any, retries: Any) -> Any:
        """Called between two tries. Celery's own method logs each try; this one logs the outage once."""
        outage.noticed("results", exc)
        return next(intervals)

    def _lifetime_s(self, state: str) -> int:
        if state not in states.READY_STATES:
            return max(int(self.expires or 0), keys.PENDING_TTL_S)
        expires = self.expires
        if state == states.FAILURE and self.app.conf.get("result_failure_expires") is not None:
            expires = self.prepare_expires(self.app.conf.result_failure_expires)
        return int(expires or 0)

    def _before(self, key: str, task_id: str) -> tuple[bytes | None, bytes | None]:
        """The record and the mark of a task, as far as keys of these names hold such."""
        with self.client.pipeline(transaction=False) as pipe:
            pipe.getrange(key, 0, OPEN_MAX_BYTES)
            pipe.hget(keys.RUNNING, task_id)
            record, mark = pipe.execute(raise_on_error=False)
        # An error: the key does not hold a string, or a hash.
        return (
            None if isinstance(record, ResponseError) else record,
            None if isinstance(mark, ResponseError) else mark,
        )


def _event(entry: _Entry) -> str:
    """The event of a task's end, for the script, so that it need not read a large record; empty if only that knows."""
    state, part = _EVENT_STATES.get(entry.state), entry.part
    if state is None or part is None:
        return ""
    code = "" if part.error is None else part.error.code
    return json.dumps([state, part.pipeline or "", part.attempts or "", part.worker or "", code])


def _tell_expired(task_id: str, request: Any) -> None:
    """Logs that a task expired. Celery notices it when the message arrives, and this worker before the task's batch."""
    queue = (getattr(request, "delivery_info", None) or {}).get("routing_key")
    error = PipeqError(ErrorCode.EXPIRED, "it expired before a worker began it")
    failures.failed(task_id, str(queue or ""), error, worker=getattr(request, "hostname", None), attempt=0)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
