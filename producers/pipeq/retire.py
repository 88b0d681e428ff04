"""RETIRE: empties the queue of a pipeline, and takes a pipeline off the list of known ones. Used by client.

A purge reads some messages at a time, makes the records of their tasks' ends, and has a script take off what is still
there. So Redis serves other clients in between, and a purge that is interrupted has lost nothing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from pipeq.contract import bare, keys, record, shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.reading import json_object
from pipeq.protocol import Steps, replies, scripts, single, transaction
from pipeq.queue_info import QueueInfo
from pipeq.scripts import source

#: Most messages that are read and ended together ...
CHUNK = 500
#: ... and about how many bytes of them at most.
CHUNK_BYTES = 4 * 2**20
#: Messages of the first chunk, when their size is not known yet.
FIRST_CHUNK = 16
#: How often all places are walked: workers move messages between them meanwhile.
PASSES = 3


def purge(pipeline: str, progress: Callable[[int, int], None] | None) -> Steps[int]:
    """Ends every task that waits for a pipeline; see :meth:`pipeq.Client.purge`."""
    places = list(_places(pipeline))
    total = sum((yield from _counts(places)))
    done = 0
    for _ in range(PASSES):
        waiting = yield from _counts(places)
        before = done
        for (kind, key), count in zip(places, waiting, strict=True):
            # Not until it is empty: what is submitted meanwhile is not meant.
            left, size = count, FIRST_CHUNK
            while left > 0:
                texts = yield from _read(kind, key, min(size, left))
                if not texts:
                    break
                # Those that a worker took meanwhile count, too: they are not there any more.
                left, done = left - len(texts), done + (yield from _end(kind, key, texts, pipeline))
                size = max(1, min(CHUNK, CHUNK_BYTES * len(texts) // sum(map(len, texts)), size * 4))
                if progress is not None:
                    progress(done, max(total, done))
        if done == before:
            break
    return done


def forget(queue: QueueInfo, *, force: bool) -> Steps[None]:
    """Takes a pipeline off the list of known ones; see :meth:`pipeq.Client.forget`.

    Args:
        queue: the state of its queue.
        force: whether to do so although it is needed.
    """
    name = shown.line(queue.pipeline)
    if not (yield from single("HEXISTS", keys.PIPELINES, queue.pipeline)):
        raise PipeqError(ErrorCode.UNKNOWN_PIPELINE, f"no worker has ever served {name!r}, or it is forgotten already")
    needs = (
        (queue.workers, "worker", "serving it"),
        (queue.loading, "worker", "loading it"),
        (queue.depth + queue.waiting, "message", "waiting (`pipeq purge` ends them)"),
        (queue.dead, "dead letter", "there (`pipeq dead`)"),
    )
    if (why := ", ".join(f"{shown.count(count, what)} {how}" for count, what, how in needs if count)) and not force:
        raise PipeqError(
            ErrorCode.IN_USE, f"{name!r} is still needed: {why}; force (`--force`) takes it off the list anyway"
        )
    named = (key(queue.pipeline) for key in (keys.workers_key, keys.loading_key, keys.idle_key))
    for reply in (yield from transaction((("HDEL", keys.PIPELINES, queue.pipeline), ("DEL", *named)))):
        if isinstance(reply, Exception):
            raise reply


def _places(pipeline: str) -> Iterator[tuple[str, str]]:
    """The lists, the sorted sets of fair lists, and the set of messages that are not due yet."""
    for name in keys.list_keys(pipeline):
        yield "list", name
    for name in keys.list_keys(pipeline):
        yield "set", keys.fair_key(name)
    yield "set", keys.waiting_key(pipeline)


def _counts(places: list[tuple[str, str]]) -> Steps[list[int]]:
    found = yield from replies(*(("LLEN" if kind == "list" else "ZCARD", key) for kind, key in places))
    return [count or 0 for count in found]


def _read(kind: str, key: str, most: int) -> Steps[list[bytes]]:
    """What is served next."""
    command = ("LRANGE", key, -most, -1) if kind == "list" else ("ZRANGE", key, 0, most - 1)
    (found,) = yield from replies(command)
    return found or []


def _end(kind: str, key: str, texts: list[bytes], pipeline: str) -> Steps[int]:
    """Takes messages off their place, and ends their tasks. Returns how many were still there."""
    ids = [_task_id(text, kind, key) for text in texts]
    names = [keys.record_key(task_id or "") for task_id in ids]
    marks, records = yield from replies(("HMGET", keys.RUNNING, *(one or "" for one in ids)), ("MGET", *names))
    args: list[Any] = [kind, keys.RESULT_TTL_S, time.time()]
    for text, task_id, before, mark in zip(texts, ids, records, marks or [None] * len(ids), strict=True):
        args += (hashlib.sha1(text, usedforsecurity=False).hexdigest(), task_id or "")
        args.append(record.purged(task_id, before, pipeline, mark) if task_id else "")
    (removed,) = yield from scripts(source("purge"), [([key, keys.RUNNING, *names], args)])
    if isinstance(removed, Exception):
        raise removed
    return int(removed)


def _task_id(text: bytes, kind: str, key: str) -> str | None:
    """The id in a message, wherever it lies; None if it has none that a record can have."""
    message = json_object(text[keys.FAIR_NUMBER_DIGITS :] if key.startswith(keys.fair_key("")) else text) or {}
    if kind == "set" and isinstance(inner := message.get("message"), str):
        message = json_object(inner) or {}
    found = bare.id_of(message)
    return found if keys.is_readable_id(found) else None
