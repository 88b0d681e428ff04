"""CANCEL: ids of tasks -> records that say cancelled, unless the tasks have ended, with or without a worker.

A worker drops the message of a task whose record says so when it would begin it, and stops it within a second if it
runs. The messages themselves stay where they are: only workers may take them off their lists.

A task may be a pack of a job; then its rows are counted in the same transaction. Whoever ends a pack changes its record
in the same step as its place among the open ones, so that it is enough to watch the record.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any

from redis.exceptions import NoPermissionError, WatchError

from pipeq.contract import bare, events, job, keys, record
from pipeq.contract.errors import ErrorCode
from pipeq.contract.reading import json_object
from pipeq.contract.status import State, TaskStatus
from pipeq.jobs.ending import end_if_done
from pipeq.protocol import (
    Command,
    Send,
    Session,
    Steps,
    pairs,
    replies,
    single,
    tolerant,
    transaction,
    twice,
)

#: Most tasks that one transaction cancels.
CHUNK_TASKS = 500
#: Messages that are read together, to find the tasks of a pipeline.
_PAGE = 200
#: How often the keys of a pipeline are read at most: a message may move from one that is still to be read to one that
#: was read already.
_PASSES = 5


def cancel(
    ids: Iterable[str],
    *,
    force: bool,
    progress: Callable[[int, int], None] | None = None,
    reason: ErrorCode = ErrorCode.CANCELLED,
) -> Steps[dict[str, TaskStatus]]:
    """Cancels tasks by a compare-and-set on their records.

    Args:
        ids: the tasks.
        force: whether an unknown id gets a record, too, so that a message that has it is dropped.
        progress: called with the number of tasks that are done, and of all.
        reason: another one for packs of a job, such as ``expired``.

    Returns:
        The status of each task afterwards.
    """
    left, size = list(dict.fromkeys(ids)), CHUNK_TASKS
    total, jobs = len(left), dict[str, None]()
    found: dict[str, TaskStatus] = {}
    while left:
        some = left[:size]
        try:
            found |= yield from twice(partial(_session, some, force, jobs, reason))
        except WatchError:
            # A record was changed meanwhile, perhaps by a result. Fewer records change less often.
            size = max(1, size // 4)
            continue
        left, size = left[size:], min(CHUNK_TASKS, size * 2)
        if progress is not None:
            progress(total - len(left), total)
    for job_id in jobs:
        yield from end_if_done(job_id)
    return found


def _session(ids: Sequence[str], force: bool, jobs: dict[str, None], reason: ErrorCode) -> Steps[dict[str, TaskStatus]]:
    found: dict[str, TaskStatus] = yield Session(_cancel(ids, force, jobs, reason))
    return found


def _cancel(ids: Sequence[str], force: bool, jobs: dict[str, None], reason: ErrorCode) -> Steps[dict[str, TaskStatus]]:
    """Cancels tasks in one transaction, and notes the jobs whose packs are among them."""
    names = [keys.record_key(task_id) for task_id in ids]
    found, texts = {}, {}
    marks, raws, kept, packs = yield from _watched(ids, names)
    for task_id, raw, mark in zip(ids, raws, marks, strict=True):
        # A pack whose time is over still has to be counted: nobody may see its message any more.
        at = float("-inf") if task_id in packs else None
        status = found[task_id] = record.read(task_id, raw, mark, now=at)
        is_unknown = status.state is State.UNKNOWN and raw is None
        if not status.is_final and (force or not is_unknown):
            texts[task_id] = record.cancelled(task_id, raw, mark, reason)
    if not texts:
        yield from single("UNWATCH")
        return found
    commands: list[Command] = []
    for task_id, text in texts.items():
        key = keys.record_key(task_id)
        # Kept as long as the message may wait on its queue, because only this record tells a worker to drop it.
        commands += (("SET", key, text, "EX", keys.PENDING_TTL_S), ("PUBLISH", key, text))
        if kept:
            now = record.read(task_id, text)
            commands.append(events.command(kept, task_id, now.state, now.pipeline, now.attempts, now.worker))
        if (rows := packs.get(task_id)) is not None and (pack := job.pack_of(task_id)) is not None:
            commands += job.ended_by_client(task_id, rows, time.time(), reason)
            jobs[pack[0]] = None
    tolerant((yield from transaction(commands)))
    return found | {task_id: record.read(task_id, text) for task_id, text in texts.items()}


def _watched(ids: Sequence[str], names: Sequence[str]) -> Steps[tuple[list[Any], list[Any], int, dict[str, bytes]]]:
    """The marks and the records, which are watched from now on, how many events are kept, and the rows of packs."""
    packs = [(task_id, pack) for task_id in ids if (pack := job.pack_of(task_id)) is not None]
    # MGET returns None also if a key holds another type than a string.
    watched, marks, raws, kept, *open_ = yield Send(
        (
            ("WATCH", *names),
            ("HMGET", keys.RUNNING, *ids),
            ("MGET", *names),
            ("GET", keys.EVENTS_MAX),
            *(("HMGET", job.open_key(job_id), field) for _, (job_id, field) in packs),
        ),
        again=False,
    )
    tolerant((watched, marks, raws))
    # Users of Redis that were made for an earlier version may not ask for the events, or for packs.
    is_told = not isinstance(kept, NoPermissionError)
    rows = {
        task_id: reply[0]
        for (task_id, _), reply in zip(packs, open_, strict=True)
        if not isinstance(reply, Exception) and reply[0] is not None
    }
    marks = [None] * len(ids) if isinstance(marks, Exception) else marks
    return marks, raws, events.kept_of(kept) if is_told else 0, rows


def cancel_pipeline(
    pipeline: str,
    status_many: Callable[[Iterable[str]], Steps[list[TaskStatus]]],
    progress: Callable[[int, int], None] | None = None,
) -> Steps[dict[str, TaskStatus]]:
    """Cancels every task of a pipeline that was submitted before this call: waiting, delayed, or inside a worker.

    Returns:
        The status of each of them afterwards.
    """
    began = time.time()
    found: dict[str, TaskStatus] = {}
    for turn in range(_PASSES):
        ids = yield from ids_of(pipeline)
        new = [task_id for task_id in dict.fromkeys(ids) if task_id not in found]
        if turn:
            # What was submitted meanwhile is not meant.
            statuses = yield from status_many(new)
            new = [one.id for one in statuses if one.submitted_at is not None and one.submitted_at < began]
        if not new:
            break
        # A message is there, so its task is, too, although a stock Celery producer writes no record.
        found |= yield from cancel(new, force=True, progress=progress)
    return found


def ids_of(pipeline: str) -> Steps[list[str]]:
    """The ids of a pipeline's messages; some perhaps twice. A key of another type counts as empty."""
    ids: list[str] = []
    for name in keys.list_keys(pipeline):
        # New messages are pushed at the beginning, and taken from the end, so that none is passed over.
        for start in count(0, _PAGE):
            (page,) = yield from replies(("LRANGE", name, start, start + _PAGE - 1))
            ids += _ids_in(page or ())
            if len(page or ()) < _PAGE:
                break
        ids += yield from _scanned("ZSCAN", keys.fair_key(name), lambda member, _: member[keys.FAIR_NUMBER_DIGITS :])
    ids += yield from _scanned("ZSCAN", keys.waiting_key(pipeline), _waiting)
    lists = {name.encode() for name in keys.list_keys(pipeline)}
    ids += yield from _scanned("HSCAN", keys.UNACKED, lambda _, entry: _held(entry, lists))
    return ids


def _waiting(member: bytes, _: Any) -> str | None:
    """The message of an entry that waits for its time."""
    message = (json_object(member) or {}).get("message")
    return message if isinstance(message, str) else None


def _held(entry: bytes, lists: set[bytes]) -> bytes | None:
    """The message of an entry inside a worker, if it came from one of these lists."""
    length, _, rest = entry.partition(b":")
    size = int(length) if length.isdigit() and len(length) < 9 else 0
    return rest[size:] if rest[:size] in lists else None


def _scanned(command: str, key: str, message: Callable[[bytes, bytes], bytes | str | None]) -> Steps[list[str]]:
    """The ids of the messages that a function finds in each member of a sorted set, or name and value of a hash."""
    cursor: Any = 0
    found: list[str] = []
    while True:
        (page,) = yield from replies((command, key, cursor, "COUNT", _PAGE))
        if page is None:
            return found
        cursor, items = page
        found += _ids_in(filter(None, (message(*pair) for pair in pairs(items))))
        if int(cursor) == 0:
            return found


def _ids_in(messages: Iterable[bytes | str]) -> Iterator[str]:
    for message in messages:
        if keys.is_task_id(found := bare.id_in(message)):
            yield found
