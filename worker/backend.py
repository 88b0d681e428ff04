"""Celery's Redis result backend, with results of a batch in one round trip, and each task ending once.

Named in an app's configuration as ``result_backend = "worker.backend:Backend+redis://..."``. It stores what Celery's
own would, so any Celery client reads it. What differs: the write checks in the same step that the task has not ended
before (cancelled by its producer, finished by another worker), and a record carries pipeq's status under the key
``pipeq``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from celery import states
from celery.backends.redis import RedisBackend

from producers import queues
from worker import lua


@dataclass(frozen=True)
class Annotation:
    """What pipeq adds to the record of the task that is being traced."""

    #: The status, without the result.
    status: dict[str, Any]
    #: Where a copy of the message goes should the task fail, and that copy.
    dead_letter_list: str = ""
    dead_letter: str = ""


#: Set around the tracer of one task.
annotation: ContextVar[Annotation | None] = ContextVar("annotation", default=None)


@dataclass(frozen=True)
class _Entry:
    id: str
    key: str
    record: str
    lifetime_s: int
    dead_letter_list: str = ""
    dead_letter: str = ""


@dataclass
class _Buffer:
    entries: list[_Entry] = field(default_factory=list)


class Backend(RedisBackend):
    """One for each thread, as Celery makes them."""

    _buffer: _Buffer | None = None
    _finish_script: Any = None

    @contextmanager
    def buffered(self) -> Iterator[None]:
        """Holds back what is stored inside and stores it in one round trip at the end.

        Acknowledge only after leaving it: if Redis is away it raises, and nothing was stored.
        """
        self._buffer = buffer = _Buffer()
        try:
            yield
        finally:
            self._buffer = None
        if buffer.entries:
            self.ensure(self._flush, (buffer.entries,))

    def _store_result(
        self, task_id: Any, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        """Replaces Celery's get-then-set: the script looks and writes in one step."""
        task_id = task_id.decode() if isinstance(task_id, bytes) else task_id
        key = _text(self.get_key_for_task(task_id))
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        meta["task_id"] = task_id
        note = annotation.get()
        if note is not None:
            meta["pipeq"] = note.status
        elif state in (states.REVOKED, states.FAILURE) and (before := self._status_before(key)):
            # Celery itself ended one of our tasks, before it came to a batch: revoked, expired.
            before.pop("error", None)
            meta["pipeq"] = {**before, "finished_at": time.time()}
        failed = state == states.FAILURE and note is not None
        entry = _Entry(
            id=task_id,
            key=key,
            record=_text(self.encode(meta)),
            lifetime_s=self._lifetime_s(state),
            dead_letter_list=note.dead_letter_list if failed and note else "",
            dead_letter=note.dead_letter if failed and note else "",
        )
        if self._buffer is None:
            self.ensure(self._flush, ([entry],))
        else:
            self._buffer.entries.append(entry)
        return result

    def _flush(self, entries: list[_Entry]) -> None:
        if self._finish_script is None:
            self._finish_script = self.client.register_script(lua.source("finish"))
        keys = [queues.RUNNING]
        args: list[Any] = [self.app.conf.get("pipeq_dead_letter_max", 10_000)]
        for entry in entries:
            keys += (entry.key, entry.dead_letter_list)
            args += (entry.id, entry.record, entry.lifetime_s, entry.dead_letter)
        self._finish_script(keys=keys, args=args)

    def _lifetime_s(self, state: str) -> int:
        if state in states.READY_STATES:
            return int(self.expires or 0)
        return max(int(self.expires or 0), queues.PENDING_TTL_S)

    def _status_before(self, key: str) -> dict[str, Any] | None:
        raw = self.get(key)
        try:
            return dict(json.loads(raw)["pipeq"]) if raw else None
        except (ValueError, KeyError, TypeError):
            return None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
