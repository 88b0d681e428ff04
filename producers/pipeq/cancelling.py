"""CANCEL: ids of tasks -> records that say cancelled, unless the tasks have ended, with or without a worker.

A worker drops the message of a task whose record says so when it would begin it, and stops it within a second if it
runs. The messages themselves stay where they are: only workers may take them off their lists.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any

import redis
from redis.client import Pipeline
from redis.exceptions import NoPermissionError, ResponseError, WatchError

from pipeq.contract import bare, events, keys, record
from pipeq.contract.reading import json_object
from pipeq.contract.status import State, TaskStatus
from pipeq.server import is_wrong_type, replies

#: Most tasks that one transaction cancels.
CHUNK_TASKS = 500
#: Messages that are read together, to find the tasks of a pipeline.
_PAGE = 200
#: How often the keys of a pipeline are read at most: a message may move from one that is still to be read to one that
#: was read already.
_PASSES = 5


def cancel(
    client: redis.Redis, ids: Iterable[str], *, force: bool, progress: Callable[[int, int], None] | None = None
) -> dict[str, TaskStatus]:
    """Cancels tasks by a compare-and-set on their records.

    Args:
        client: Redis.
        ids: the tasks.
        force: whether an unknown id gets a record, too, so that a message that has it is dropped.
        progress: called with the number of tasks that are done, and of all.

    Returns:
        The status of each task afterwards.
    """
    left, size = list(dict.fromkeys(ids)), CHUNK_TASKS
    total = len(left)
    found: dict[str, TaskStatus] = {}
    while left:
        some = left[:size]
        try:
            found |= _cancel(client, some, force)
        except WatchError:
            # A record was changed meanwhile, perhaps by a result. Fewer records change less often.
            size = max(1, size // 4)
            continue
        left, size = left[size:], min(CHUNK_TASKS, size * 2)
        if progress is not None:
            progress(total - len(left), total)
    return found


def _cancel(client: redis.Redis, ids: Sequence[str], force: bool) -> dict[str, TaskStatus]:
    names = [keys.record_key(task_id) for task_id in ids]
    found, texts = {}, {}
    with client.pipeline() as pipe:
        pipe.watch(*names)  # type: ignore[no-untyped-call]
        marks = _marks(pipe, ids)
        *raws, kept = _records(pipe, names)
        for task_id, raw, mark in zip(ids, raws, marks, strict=True):
            status = found[task_id] = record.read(task_id, raw, mark)
            is_unknown = status.state is State.UNKNOWN and raw is None
            if not status.is_final and (force or not is_unknown):
                texts[task_id] = record.cancelled(task_id, raw, mark)
        if texts:
            pipe.multi()
            for task_id, text in texts.items():
                # Kept as long as the message may wait on its queue, because only this record tells a worker to drop it.
                pipe.set(keys.record_key(task_id), text, ex=keys.PENDING_TTL_S)
                pipe.publish(keys.record_key(task_id), text)
                if kept:
                    now = record.read(task_id, text)
                    event = events.command(kept, task_id, now.state, now.pipeline, now.attempts, now.worker)
                    pipe.execute_command(*event)  # type: ignore[no-untyped-call]
            replies(pipe)
    return found | {task_id: record.read(task_id, text) for task_id, text in texts.items()}


def _records(pipe: Pipeline, names: Sequence[str]) -> list[Any]:
    """The records, and how many events are kept."""
    # MGET returns None also if a key holds another type than a string.
    try:
        *found, kept = pipe.mget([*names, keys.EVENTS_MAX])
    except NoPermissionError:  # users of Redis that were made for an earlier version
        return [*pipe.mget(names), 0]
    return [*found, events.kept_of(kept)]


def _marks(pipe: Pipeline, ids: Sequence[str]) -> list[Any]:
    try:
        return pipe.hmget(keys.RUNNING, ids)
    except ResponseError as error:
        if not is_wrong_type(error):
            raise
        return [None] * len(ids)


def cancel_pipeline(
    client: redis.Redis,
    pipeline: str,
    status_many: Callable[[Iterable[str]], list[TaskStatus]],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, TaskStatus]:
    """Cancels every task of a pipeline that was submitted before this call: waiting, delayed, or inside a worker.

    Returns:
        The status of each of them afterwards.
    """
    began = time.time()
    found: dict[str, TaskStatus] = {}
    for turn in range(_PASSES):
        new = [task_id for task_id in dict.fromkeys(_ids_of(client, pipeline)) if task_id not in found]
        if turn:
            # What was submitted meanwhile is not meant.
            new = [one.id for one in status_many(new) if one.submitted_at is not None and one.submitted_at < began]
        if not new:
            break
        # A message is there, so its task is, too, although a stock Celery producer writes no record.
        found |= cancel(client, new, force=True, progress=progress)
    return found


def _ids_of(client: redis.Redis, pipeline: str) -> Iterator[str]:
    """The ids of a pipeline's messages; some perhaps twice. A key of another type counts as empty."""
    for name in keys.list_keys(pipeline):
        # New messages are pushed at the beginning, and taken from the end, so that none is passed over.
        for start in count(0, _PAGE):
            page = _or_nothing(client.lrange, name, start, start + _PAGE - 1) or []
            yield from _ids_in(page)
            if len(page) < _PAGE:
                break
        fair = _scanned(client.zscan, keys.fair_key(name))
        yield from _ids_in(member[keys.FAIR_NUMBER_DIGITS :] for member in fair)
    for member in _scanned(client.zscan, keys.waiting_key(pipeline)):
        message = (json_object(member) or {}).get("message")
        yield from _ids_in([message] if isinstance(message, str) else [])
    lists = {name.encode() for name in keys.list_keys(pipeline)}
    for entry in _scanned(client.hscan, keys.UNACKED):
        length, _, rest = entry.partition(b":")
        size = int(length) if length.isdigit() and len(length) < 9 else 0
        if rest[:size] in lists:
            yield from _ids_in([rest[size:]])


def _scanned(scan: Callable[..., Any], key: str) -> Iterator[bytes]:
    """The members of a sorted set, or the values of a hash."""
    cursor = 0
    while True:
        page = _or_nothing(scan, key, cursor, count=_PAGE)
        if page is None:
            return
        cursor, items = page
        yield from items.values() if isinstance(items, dict) else (member for member, _ in items)
        if not cursor:
            return


def _or_nothing(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return call(*args, **kwargs)
    except ResponseError as error:
        if not is_wrong_type(error):
            raise
        return None


def _ids_in(messages: Iterable[bytes | str]) -> Iterator[str]:
    for message in messages:
        if keys.is_task_id(found := bare.id_in(message)):
            yield found
