"""Celery's Redis result backend, with results of a batch in one round trip, and each task ending once.

Named in an app's configuration as ``result_backend = "pipeq_worker:Backend+redis://..."``. It stores what Celery's
own would, so any Celery client reads it. What differs: the write checks in the same step that the task has not ended
before (cancelled by its producer, finished by another worker), and a record carries pipeq's status under the key
``pipeq``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from celery import states
from celery.backends.redis import RedisBackend
from pipeq.contract import keys, redis_url, shown
from pipeq.contract.record import LUA, OPEN_MAX_BYTES, Part, complete
from redis.exceptions import ResponseError

from pipeq_worker.delivery.worker_app import WorkerApp
from pipeq_worker.leases import lua
from pipeq_worker.leases.leases import Leases
from pipeq_worker.leases.redis_arguments import over
from pipeq_worker.observe.outage import outage

logger = logging.getLogger(__name__)

#: Most results that one call of the script stores.
AT_ONCE = 500
#: What finish.lua says in the place of "stored".
LOST, CANNOT_WAIT, NO_LETTER = -1, -2, 2


@dataclass(frozen=True)
class Retry:
    """A message that is to run again."""

    #: Seconds since the epoch.
    due: float
    waiting_key: str
    #: What goes into the set of waiting messages.
    message: str


@dataclass(frozen=True)
class Annotation:
    """What pipeq adds to the record of the task that is being traced."""

    #: The status, without the result.
    part: Part
    #: Where a copy of the message goes should the task fail, and that copy.
    dead_letter_list: str = ""
    dead_letter: str = ""
    #: Its lease, where that is on the same server: the message is then acknowledged in the same step.
    leases: Leases | None = None
    tag: str = ""
    #: What the record holds as the result, where the next task of a chain gets something else.
    stored: tuple[Any] | None = None
    #: Should it be retried: when it is due, in seconds since the epoch, where it waits, and as what.
    retry: Retry | None = None


#: Set around the tracer of one task.
annotation: ContextVar[Annotation | None] = ContextVar("annotation", default=None)


@dataclass(frozen=True)
class _Entry:
    id: str
    key: str
    record: str
    lifetime_s: int
    note: Annotation
    #: Whether the dead letter is due.
    failed: bool


@dataclass
class Buffer:
    """What :meth:`Backend.buffered` holds back; afterwards it tells which tasks had no lease any more."""

    entries: list[_Entry] = field(default_factory=list)
    #: Ids of tasks of which nothing was stored, because somebody else has them.
    lost: set[str] = field(default_factory=set)
    #: Ids of tasks of which nothing was stored, because their message cannot wait for its next try.
    cannot_wait: set[str] = field(default_factory=set)


class Backend(RedisBackend):
    """One for each thread, as Celery makes them."""

    _buffer: Buffer | None = None
    _finish_script: Any = None

    @contextmanager
    def buffered(self) -> Iterator[Buffer]:
        """Holds back what is stored inside and stores it in one round trip at the end.

        Acknowledge only after leaving it: if Redis is away it raises, and nothing was stored.
        """
        self._buffer = buffer = Buffer()
        try:
            yield buffer
        finally:
            self._buffer = None
        self._store(buffer.entries, buffer)

    def _params_from_url(self, url: str, defaults: dict[str, Any]) -> dict[str, Any]:
        """As the client and the transport read it; Celery's own reading knows fewer options."""
        if isinstance(self.app, WorkerApp):
            url = self.app.redis_url
        return over({"db": 0, **defaults}, redis_url.options(url))

    def _store_result(
        self, task_id: Any, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        """Replaces Celery's get-then-set: the script looks and writes in one step."""
        task_id = task_id.decode() if isinstance(task_id, bytes) else task_id
        key = _text(self.get_key_for_task(task_id))
        note = annotation.get()
        if note is not None and note.stored is not None and state == states.SUCCESS:
            (stored,) = note.stored
            result = self.encode_result(stored, state)
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        # Celery itself ends a task of ours before it comes to a batch: revoked, expired.
        by_celery = note is None and state in (states.REVOKED, states.FAILURE)
        complete(meta, task_id, note.part if note else None, self._before(key) if by_celery else None)
        entry = _Entry(
            id=task_id,
            key=key,
            record=_text(self.encode(meta)),
            lifetime_s=self._lifetime_s(state),
            note=note or Annotation(Part()),
            failed=state == states.FAILURE,
        )
        # What redis-py cannot send fails here, for this task, rather than in the call for all of them.
        for text in (entry.id, entry.record, entry.note.dead_letter_list, entry.note.dead_letter):
            text.encode()
        if self._buffer is None:
            self._store([entry], Buffer())
        else:
            self._buffer.entries.append(entry)
        return result

    def _store(self, entries: list[_Entry], buffer: Buffer) -> None:
        for start in range(0, len(entries), AT_ONCE):
            self.ensure(self._finish, (entries[start : start + AT_ONCE], buffer))

    def _finish(self, entries: list[_Entry], buffer: Buffer) -> None:
        if self._finish_script is None:
            self._finish_script = self.client.register_script(lua.source("finish", LUA))
        leases = next((entry.note.leases for entry in entries if entry.note.leases is not None), None)
        # Where there is none, a key that a restricted user may name; the script leaves it alone.
        redis_keys = [keys.RUNNING, *((leases.unacked_key, leases.key) if leases else (keys.UNACKED, keys.LEASES))]
        args: list[Any] = [self.app.conf.get("pipeq_dead_letter_max", 10_000)]
        for entry in entries:
            note, retry = entry.note, entry.note.retry
            redis_keys += (entry.key, note.dead_letter_list or entry.key, retry.waiting_key if retry else entry.key)
            args += (entry.id, note.tag, entry.record, entry.lifetime_s, note.dead_letter if entry.failed else "")
            args += (retry.due, retry.message) if retry else ("", "")
        reply = self._finish_script(keys=redis_keys, args=args)
        outage.over("results")
        for entry, done in zip(entries, reply, strict=True):
            if done == LOST:
                buffer.lost.add(entry.id)
            elif done == CANNOT_WAIT:
                buffer.cannot_wait.add(entry.id)
            elif done == NO_LETTER:
                where = shown.line(entry.note.dead_letter_list)
                logger.error("%s is no list: a dead letter is lost", where, extra={"action": "dead_letter"})

    def on_connection_error(self, max_retries: Any, exc: BaseException, intervals: Any, retries: Any) -> Any:
        """Called between two tries; Celery's own has a line in the log for each."""
        outage.noticed("results", exc)
        return next(intervals)

    def _lifetime_s(self, state: str) -> int:
        if state not in states.READY_STATES:
            return max(int(self.expires or 0), keys.PENDING_TTL_S)
        expires = self.expires
        if state == states.FAILURE and self.app.conf.get("result_failure_expires") is not None:
            expires = self.prepare_expires(self.app.conf.result_failure_expires)
        return int(expires or 0)

    def _before(self, key: str) -> bytes | None:
        try:
            return self.client.getrange(key, 0, OPEN_MAX_BYTES)
        except ResponseError:  # no string
            return None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
