"""RETIRE: empties the queue of a pipeline, and takes a pipeline off the list of known ones. Used by client.

A purge reads some messages at a time, makes the records of their tasks' ends, and has a script take off what is still
there. So Redis serves other clients in between, and a purge that is interrupted has lost nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import redis

from pipeq.contract import bare, keys, record, shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.reading import json_object
from pipeq.queue_info import QueueInfo
from pipeq.scripts import source
from pipeq.server import replies

#: Most messages that are read and ended together ...
CHUNK = 500
#: ... and about how many bytes of them at most.
CHUNK_BYTES = 4 * 2**20
#: Messages of the first chunk, when their size is not known yet.
FIRST_CHUNK = 16
#: How often all places are walked: workers move messages between them meanwhile.
PASSES = 3


def purge(
    client: redis.Redis,
    reachable: Callable[[], AbstractContextManager[None]],
    pipeline: str,
    progress: Callable[[int, int], None] | None,
) -> int:
    """Ends every task that waits for a pipeline; see :meth:`pipeq.Client.purge`."""
    script = client.register_script(source("purge"))
    places = list(_places(pipeline))
    with reachable():
        total = sum(_counts(client, places))
    done = 0
    for _ in range(PASSES):
        with reachable():
            waiting = _counts(client, places)
        before = done
        for (kind, key), count in zip(places, waiting, strict=True):
            # Not until it is empty: what is submitted meanwhile is not meant.
            left, size = count, FIRST_CHUNK
            while left > 0:
                with reachable():
                    texts = _read(client, kind, key, min(size, left))
                    removed = _end(client, script, kind, key, texts, pipeline) if texts else 0
                if not texts:
                    break
                # Those that a worker took meanwhile count, too: they are not there any more.
                left, done = left - len(texts), done + removed
                size = max(1, min(CHUNK, CHUNK_BYTES * len(texts) // sum(map(len, texts)), size * 4))
                if progress is not None:
                    progress(done, max(total, done))
        if done == before:
            break
    return done


def forget(client: redis.Redis, queue: QueueInfo, *, force: bool) -> None:
    """Takes a pipeline off the list of known ones; see :meth:`pipeq.Client.forget`.

    Args:
        client: Redis.
        queue: the state of its queue.
        force: whether to do so although it is needed.
    """
    name = shown.line(queue.pipeline)
    if not client.hexists(keys.PIPELINES, queue.pipeline):
        raise PipeqError(ErrorCode.UNKNOWN_PIPELINE, f"no worker has ever served {name!r}, or it is forgotten already")
    needs = {
        "workers serve it": queue.workers,
        "workers load it": queue.loading,
        "messages wait (`pipeq purge` ends them)": queue.depth + queue.waiting,
        "dead letters lie there (`pipeq dead`)": queue.dead,
    }
    if (why := ", ".join(f"{count} {what}" for what, count in needs.items() if count)) and not force:
        raise PipeqError(ErrorCode.IN_USE, f"{name!r} is still needed: {why}; force it to take it off the list anyway")
    with client.pipeline() as pipe:
        pipe.hdel(keys.PIPELINES, queue.pipeline)
        pipe.delete(*(key(queue.pipeline) for key in (keys.workers_key, keys.loading_key, keys.idle_key)))
        pipe.execute()


def _places(pipeline: str) -> Iterator[tuple[str, str]]:
    """The lists, the sorted sets of fair lists, and the set of messages that are not due yet."""
    for name in keys.list_keys(pipeline):
        yield "list", name
    for name in keys.list_keys(pipeline):
        yield "set", keys.fair_key(name)
    yield "set", keys.waiting_key(pipeline)


def _counts(client: redis.Redis, places: list[tuple[str, str]]) -> list[int]:
    with client.pipeline(transaction=False) as pipe:
        for kind, key in places:
            pipe.llen(key) if kind == "list" else pipe.zcard(key)
        return [count or 0 for count in replies(pipe)]


def _read(client: redis.Redis, kind: str, key: str, most: int) -> list[bytes]:
    """What is served next."""
    with client.pipeline(transaction=False) as pipe:
        pipe.lrange(key, -most, -1) if kind == "list" else pipe.zrange(key, 0, most - 1)
        (found,) = replies(pipe)
    return found or []


def _end(client: redis.Redis, script: Any, kind: str, key: str, texts: list[bytes], pipeline: str) -> int:
    """Takes messages off their place, and ends their tasks. Returns how many were still there."""
    ids = [_task_id(text, kind, key) for text in texts]
    names = [keys.record_key(task_id or "") for task_id in ids]
    records = client.mget(names)
    args: list[Any] = [kind, keys.RESULT_TTL_S]
    for text, task_id, before in zip(texts, ids, records, strict=True):
        args += (hashlib.sha1(text, usedforsecurity=False).hexdigest(), task_id or "")
        args.append(record.purged(task_id, before, pipeline) if task_id else "")
    return int(script(keys=[key, keys.RUNNING, *names], args=args))


def _task_id(text: bytes, kind: str, key: str) -> str | None:
    """The id in a message, wherever it lies; None if it has none that a record can have."""
    message = json_object(text[keys.FAIR_NUMBER_DIGITS :] if key.startswith(keys.fair_key("")) else text) or {}
    if kind == "set" and isinstance(inner := message.get("message"), str):
        message = json_object(inner) or {}
    found = bare.id_of(message)
    return found if keys.is_readable_id(found) else None
