"""ONCE: looks which tasks of a chunk are there already, by the names that their callers gave them. Used by submitting.

A name is an id of the caller's own, or an idempotency key, under which Redis keeps the id of its task. What is read
here stands under WATCH, so that the transaction that follows does nothing if another client changes it in between.
docs/decisions/idempotency.md says when a name is free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeq.contract import keys, record, shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.record import Before
from pipeq.contract.status import State
from pipeq.protocol import Send, Steps

#: States in which a task holds no idempotency key any more.
FREE = frozenset({State.FAILED, State.CANCELLED, State.EXPIRED})


class Name(NamedTuple):
    """How a caller named a task."""

    text: str
    #: Whether it is an idempotency key; otherwise it is the task's id.
    is_key: bool
    #: The argument that it came from, for errors: ``task_ids[3]``.
    argument: str
    #: The task's pipeline, and its digest, by which another task with the same name is recognized.
    pipeline: str = ""
    sha256: str = ""


class Looked:
    """The tasks of a chunk, and what is known of them so far.

    Args:
        ids: the ids that the tasks get if they are queued.
        names: number of a task -> its name.
    """

    def __init__(self, ids: Sequence[str], names: Mapping[int, Name]) -> None:
        self.ids = ids
        self.names = names
        #: Number of a task -> the id under which it is there already.
        self.there: dict[int, str] = {}
        #: Number of a task -> an earlier one of the same name.
        self._again: dict[int, int] = {}
        first: dict[tuple[str, bool], int] = {}
        for at, name in names.items():
            if (before := first.setdefault((name.text, name.is_key), at)) != at:
                _check_same(name, ids[before], names[before].pipeline, names[before].sha256)
                self._again[at] = before
        #: The first task without a name: it is there if the transaction was executed, and only its answer was lost.
        self.plain = next((at for at in range(len(ids)) if at not in names), None)

    @property
    def new(self) -> list[int]:
        """Numbers of the tasks that are to be queued."""
        return [at for at in range(len(self.ids)) if at not in self.there and at not in self._again]

    def known_as(self) -> list[str]:
        """The ids of all tasks, once the new ones are queued."""
        ids = [self.there.get(at, task_id) for at, task_id in enumerate(self.ids)]
        for at, before in self._again.items():
            ids[at] = ids[before]
        return ids


def look(looked: Looked) -> Steps[None]:
    """Reads which of the tasks are there, in one round trip, or two if keys are held; watches all that was read.

    Args:
        looked: the tasks; learns which are there.

    Raises:
        PipeqError: ``invalid_message``: a name belongs to another task.
        redis.exceptions.RedisError: Redis is away.
    """
    names = {at: looked.names[at] for at in looked.new if at in looked.names}
    places = [keys.once_key(one.text) if one.is_key else keys.record_key(one.text) for one in names.values()]
    if looked.plain is not None:
        places.append(keys.record_key(looked.ids[looked.plain]))
    found = yield from _watched(places)
    is_done = looked.plain is not None and found.pop() is not None
    holders: dict[int, str] = {}
    for (at, name), value in zip(names.items(), found, strict=True):
        if not name.is_key and value is not None:
            _check_like(name, name.text, value)
            looked.there[at] = name.text
        elif name.is_key and value is not None and keys.is_task_id(holder := value.decode("utf-8", "replace")):
            holders[at] = holder
    if is_done:
        # All of it was queued, because a transaction is executed whole.
        looked.there |= {**dict(enumerate(looked.ids)), **looked.there, **holders}
    elif holders:
        records = yield from _watched([keys.record_key(holder) for holder in holders.values()])
        for (at, holder), value in zip(holders.items(), records, strict=True):
            # Our own id is there if only the answer was lost; the task may even have failed since.
            if holder == looked.ids[at] or _holds(holder, value):
                _check_like(names[at], holder, value)
                looked.there[at] = holder


def _watched(places: Sequence[str]) -> Steps[list[Any]]:
    # MGET returns None also for a key of another type than a string.
    watched, found = yield Send((("WATCH", *places), ("MGET", *places)), again=False)
    for reply in (watched, found):
        if isinstance(reply, Exception):
            raise reply
    return list(found)


def _holds(task_id: str, found: bytes | None) -> bool:
    """Whether a task holds its idempotency key: its record is there, and it has not ended without a result."""
    return found is not None and record.read(task_id, found).state not in FREE


def _check_like(name: Name, task_id: str, found: bytes | str | None) -> None:
    """Raises if the name belongs to another task. Records of other clients do not tell their inputs."""
    before = Before.read(found)
    if before.message_sha256 is not None:
        _check_same(name, task_id, before.pipeline or name.pipeline, before.message_sha256)


def _check_same(name: Name, task_id: str, pipeline: str, sha256: str) -> None:
    if sha256 == name.sha256:
        return
    what = "inputs, params or output" if pipeline == name.pipeline else f"pipeline, {shown.line(pipeline, 100)!r}"
    at = f"{name.argument}: " if "[" in name.argument else ""
    if name.is_key:
        sentence = (
            f"the idempotency key {shown.line(name.text)!r} belongs to task {shown.line(task_id)} with other {what}: "
            "take another key"
        )
    else:
        sentence = (
            f"the task id {shown.line(name.text)!r} belongs to a task with other {what}: take another id, or none"
        )
    raise PipeqError(ErrorCode.INVALID_MESSAGE, at + sentence)
