"""The client: enqueue tasks, poll them by id, read their results, take them back.

Everything a client writes goes through one Lua script, so that a task's record and its message come to be together.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources
from typing import Any, Self

from redis.exceptions import AuthenticationError, ConnectionError, RedisError, TimeoutError  # noqa: A004

from producers import queues
from producers.envelope import Envelope, new_id
from producers.errors import ErrorCode, PipeqError, RedisUnavailableError, WaitTimeoutError
from producers.message import TaskMessage, plain
from producers.redis_url import connect, without_password
from producers.results import read_object, read_result
from producers.status import State, TaskStatus

#: One script call queues at most this many tasks ...
CHUNK_TASKS = 500
#: ... or this many bytes, so that it neither holds Redis up nor fills our memory.
CHUNK_BYTES = 4 * 2**20
#: Nothing is delayed, or expires, later than this, in seconds.
LONGEST_S = 10 * 366 * 86400
#: A wait looks again this often, in seconds, in case a notification was lost with a connection.
RECHECK_S = 5.0


class NoLiveWorkerWarning(UserWarning):
    """The pipeline is known, but no worker serves it now: the task waits until one comes back."""


@dataclass(frozen=True)
class QueueInfo:
    """One pipeline's queue, as ``pipeq queues`` shows it."""

    pipeline: str
    #: Messages that wait to be taken, and those that wait for their next try.
    depth: int
    waiting: int
    #: Seconds since the oldest message was submitted; None for an empty queue or a stock Celery producer.
    oldest_age_s: float | None
    #: Tasks inside workers.
    in_flight: int
    workers: int
    #: Messages in the dead-letter list.
    dead: int


class Client:
    """A producer's connection to pipeq. Safe to share between threads; use one for each process.

    Args:
        redis_url: ``redis://``, ``rediss://`` or ``unix://``; by default PIPEQ_REDIS_URL, then localhost.
        max_message_bytes: larger messages are refused with ``input_too_large``; workers have the same limit.

    Every method raises RedisUnavailableError where Redis cannot be reached.
    """

    def __init__(self, redis_url: str | None = None, *, max_message_bytes: int = queues.MAX_MESSAGE_BYTES) -> None:
        self.redis_url = redis_url or os.environ.get("PIPEQ_REDIS_URL") or "redis://localhost:6379/0"
        self.max_message_bytes = max_message_bytes
        self._reply_to = new_id()
        self._redis = connect(self.redis_url)
        self._submit = self._redis.register_script(_script("submit.lua"))
        self._compare_and_set = self._redis.register_script(_script("compare_and_set.lua"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections. The client can be used again; it then reconnects."""
        self._redis.close()

    def ping(self) -> None:
        """Raises RedisUnavailableError unless Redis answers."""
        with self._reachable():
            self._redis.ping()

    # -- writing ------------------------------------------------------------------------------------------------------

    def submit(
        self,
        pipeline: str,
        inputs: Any,
        *,
        params: Mapping[str, Any] | None = None,
        output: str | None = None,
        task_id: str | None = None,
        priority: int = queues.DEFAULT_PRIORITY,
        expires_s: float | None = None,
        delay_s: float | None = None,
        headers: Mapping[str, Any] | None = None,
        check: bool = True,
    ) -> str:
        """Queues one task, in one round trip.

        Args:
            pipeline: the pipeline's name; its task type unless the worker named it otherwise.
            inputs: a value, an object of named values, or a list of either; :class:`Ref` for what is stored elsewhere.
            params: parameters of the pipeline's call, for this task alone.
            output: an ``s3://`` or ``file://`` URI where the result goes; one that ends in ``/`` is a prefix.
            task_id: an id of your own; submitting one that has a record already changes nothing.
            priority: 0 is served first, 9 last.
            expires_s: seconds from now after which no worker shall begin.
            delay_s: seconds from now before which no worker shall begin.
            headers: more message headers, for instance ``traceparent``.
            check: whether a pipeline that no worker ever served is refused.

        Returns:
            The task's id.

        Raises:
            PipeqError: ``unknown_pipeline``, ``input_too_large``, ``invalid_input`` or ``invalid_message``.

        Warns:
            NoLiveWorkerWarning: no worker serves the pipeline now.
        """
        ids = self._submit_all(
            pipeline, [(inputs, task_id)], params, output, priority, expires_s, delay_s, headers, check
        )
        return ids[0]

    def submit_many(
        self,
        pipeline: str,
        inputs: Iterable[Any],
        *,
        params: Mapping[str, Any] | None = None,
        output: str | None = None,
        priority: int = queues.DEFAULT_PRIORITY,
        expires_s: float | None = None,
        delay_s: float | None = None,
        headers: Mapping[str, Any] | None = None,
        check: bool = True,
    ) -> list[str]:
        """Queues one task for each item of ``inputs``: any iterable, read as it goes; up to 500 tasks a round trip.

        ``output`` must be a prefix (end in ``/``). Other arguments are as for :meth:`submit`.

        Returns:
            The ids, in the order of the inputs.

        Raises:
            PipeqError: as :meth:`submit`; the tasks before the offending chunk stay queued, and ``submitted`` on the
                error holds their ids.
        """
        if output is not None and not output.endswith("/"):
            raise PipeqError(ErrorCode.INVALID_MESSAGE, f"output {output!r} would hold many results: end it in '/'")
        items = ((item, None) for item in inputs)
        return self._submit_all(pipeline, items, params, output, priority, expires_s, delay_s, headers, check)

    def _submit_all(
        self,
        pipeline: str,
        items: Iterable[tuple[Any, str | None]],
        params: Mapping[str, Any] | None,
        output: str | None,
        priority: int,
        expires_s: float | None,
        delay_s: float | None,
        headers: Mapping[str, Any] | None,
        check: bool,
    ) -> list[str]:
        list_key = _list_key(pipeline, priority)
        _check_seconds("expires_s", expires_s)
        _check_seconds("delay_s", delay_s)
        shared = {"params": plain(dict(params or {})), "output": {"uri": output} if output else None}
        submitted: list[str] = []
        chunk = _Chunk()
        live: int | None = None
        try:
            for inputs, task_id in items:
                _check_id(task_id)
                now = time.time()
                envelope = Envelope(
                    id=task_id or new_id(),
                    message=TaskMessage.parse({"pipeline": pipeline, "inputs": plain(inputs), **shared}),
                    priority=priority,
                    submitted_at=now,
                    expires_at=None if expires_s is None else now + expires_s,
                    headers=headers or {},
                    reply_to=self._reply_to,
                )
                body = envelope.body()
                if len(body) > self.max_message_bytes:
                    raise _too_large(len(body), self.max_message_bytes)
                chunk.add(envelope, body)
                if chunk.is_full:
                    live = self._flush(pipeline, list_key, chunk, check, delay_s)
                    submitted += chunk.ids
                    chunk = _Chunk()
            if chunk.ids:
                live = self._flush(pipeline, list_key, chunk, check, delay_s)
                submitted += chunk.ids
        except PipeqError as error:
            error.submitted = submitted  # type: ignore[attr-defined]
            raise
        if live == 0 and check:
            warnings.warn(
                f"no worker serves {pipeline!r} now: the tasks wait on their queue until one does",
                NoLiveWorkerWarning,
                stacklevel=3,
            )
        return submitted

    def _flush(self, pipeline: str, list_key: str, chunk: _Chunk, check: bool, delay_s: float | None) -> int:
        waiting = queues.waiting_key(pipeline)
        keys = [queues.PIPELINES, queues.workers_key(pipeline), list_key, waiting, *map(queues.record_key, chunk.ids)]
        alive_since = time.time() - queues.WORKER_TTL_S
        lifetime = queues.PENDING_TTL_S + int(delay_s or 0)
        # Whatever waits does so in Redis, not in a worker's memory as Celery's countdown does.
        due = time.time() + delay_s if delay_s else 0
        args = [pipeline, int(check), alive_since, lifetime, due, *chunk.records_and_messages]
        with self._reachable():
            live = self._submit(keys=keys, args=args)
        if live == -1:
            known = ", ".join(sorted(self.pipelines())) or "none yet"
            raise PipeqError(
                ErrorCode.UNKNOWN_PIPELINE,
                f"no worker has ever served {pipeline!r} (known: {known}); start one with `pipeq worker {pipeline}`, "
                "or pass check=False to queue it all the same",
            )
        return int(live)

    def cancel(self, task_id: str) -> TaskStatus:
        """Takes a task back, unless it has ended: a compare-and-set on its record, so no worker need be up.

        A task that is in a batch may still be computed, but its result is not published. An id without a record (one
        that a stock Celery producer queued) gets one that says cancelled, and a worker drops its message.

        Returns:
            The status afterwards: ``cancelled``, or how the task had ended before.
        """
        key = queues.record_key(task_id)
        while True:
            with self._reachable():
                raw = self._redis.get(key)
            before = _decode(raw)
            status = TaskStatus.from_record(task_id, before)
            if status.is_final:
                return status
            record = {
                "status": "REVOKED",
                # Celery reads a revocation's reason from here.
                "result": {
                    "exc_type": "TaskRevokedError",
                    "exc_message": ["cancelled"],
                    "exc_module": "celery.exceptions",
                },
                "traceback": None,
                "children": (before or {}).get("children", []),
                "date_done": datetime.now(UTC).isoformat(),
                "task_id": task_id,
                "pipeq": {**_without_error((before or {}).get("pipeq") or {}), "finished_at": time.time()},
            }
            # Kept as long as the message may wait on its queue: only this record tells a worker to drop it.
            args = [raw or b"", json.dumps(record), queues.PENDING_TTL_S]
            with self._reachable():
                if self._compare_and_set(keys=[key], args=args):
                    return TaskStatus.from_record(task_id, record)

    # -- reading ------------------------------------------------------------------------------------------------------

    def status(self, task_id: str) -> TaskStatus:
        """What is known of a task; state ``unknown`` for an id never seen or forgotten."""
        return self.status_many([task_id])[0]

    def status_many(self, task_ids: Iterable[str]) -> list[TaskStatus]:
        """The status of each task, in order; up to 500 a round trip."""
        ids = list(task_ids)
        found: list[TaskStatus] = []
        for start in range(0, len(ids), CHUNK_TASKS):
            chunk = ids[start : start + CHUNK_TASKS]
            with self._reachable(), self._redis.pipeline(transaction=False) as pipe:
                pipe.mget([queues.record_key(task_id) for task_id in chunk])
                pipe.hmget(queues.RUNNING, chunk)
                records, marks = pipe.execute()
            found += [
                TaskStatus.from_record(task_id, _decode(record), _decode(mark))
                for task_id, record, mark in zip(chunk, records, marks, strict=True)
            ]
        return found

    def wait(self, task_id: str, timeout_s: float | None = None) -> TaskStatus:
        """Waits until a task ends.

        Raises:
            WaitTimeoutError: it did not end in time; it goes on.
        """
        return next(self.as_completed([task_id], timeout_s))

    def as_completed(self, task_ids: Iterable[str], timeout_s: float | None = None) -> Iterator[TaskStatus]:
        """Yields the status of each task when it has ended, first come first served. Woken by Redis, not by polling.

        Raises:
            WaitTimeoutError: some did not end in time; they go on.
        """
        pending = dict.fromkeys(task_ids)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        channels = [queues.record_key(task_id) for task_id in pending]
        with self._reachable(), self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:  # type: ignore[no-untyped-call]
            for start in range(0, len(channels), CHUNK_TASKS):
                pubsub.subscribe(*channels[start : start + CHUNK_TASKS])
            while pending:
                # Looked at only after subscribing, so that no task can end unseen in between.
                wake_at = time.monotonic() + RECHECK_S
                for status in self.status_many(pending):
                    if status.is_final:
                        del pending[status.id]
                        yield status
                    elif status.expires_at is not None:
                        # Nobody publishes an expiry while no worker runs.
                        wake_at = min(wake_at, time.monotonic() + max(status.expires_at - time.time(), 0) + 0.01)
                while pending and (left := min(wake_at, deadline or wake_at) - time.monotonic()) > 0:
                    message = pubsub.get_message(timeout=left)
                    if message is None or message["type"] != "message":
                        continue
                    task_id = message["channel"].decode().removeprefix(queues.record_key(""))
                    status = TaskStatus.from_record(task_id, _decode(message["data"]))
                    if status.is_final and task_id in pending:
                        del pending[task_id]
                        yield status
                if pending and deadline is not None and time.monotonic() >= deadline:
                    first = next(iter(pending))
                    raise WaitTimeoutError(
                        ErrorCode.TIMEOUT,
                        f"{len(pending)} of {len(channels)} tasks had not ended after {timeout_s} s, "
                        f"for instance {first}",
                    )

    def result(self, task: str | TaskStatus, timeout_s: float | None = None) -> Any:
        """Waits until a task ends and returns the pipeline's output, fetched from the store where it lies there.

        Args:
            task: its id; or its status, as :meth:`as_completed` yields it, which need not be looked up again.
            timeout_s: how long to wait; for ever where it is absent.

        Raises:
            PipeqError: the task's own error, ``cancelled`` or ``expired``.
            WaitTimeoutError: it did not end in time; it goes on.
        """
        status = task if isinstance(task, TaskStatus) and task.is_final else self.wait(_id(task), timeout_s)
        if status.error is not None:
            raise status.error.to_exception()
        if status.state is State.CANCELLED:
            raise PipeqError(ErrorCode.CANCELLED, f"task {status.id} was cancelled")
        if status.state is State.EXPIRED:
            raise PipeqError(ErrorCode.EXPIRED, f"task {status.id} expired before a worker took it")
        return status.result if status.result_uri is None else read_result(status.result_uri)

    def read(self, part: Mapping[str, Any]) -> bytes:
        """The bytes of an object in a result (an image, audio, an array), wherever they are.

        Raises:
            PipeqError: ``output_failed``, when it cannot be read.
        """
        return read_object(part)

    def pipelines(self) -> dict[str, dict[str, Any]]:
        """Every pipeline that a worker has ever served: name -> task type and model."""
        with self._reachable():
            found = self._redis.hgetall(queues.PIPELINES)
        return {_text(name): json.loads(info) for name, info in found.items()}

    def queues(self) -> list[QueueInfo]:
        """Depth, age and workers of every known pipeline's queue."""
        return [self._queue(name) for name in sorted(self.pipelines())]

    def _queue(self, pipeline: str) -> QueueInfo:
        now = time.time()
        lists = queues.list_keys(pipeline)
        with self._reachable(), self._redis.pipeline(transaction=False) as pipe:
            for key in lists:
                pipe.llen(key)
            for key in lists:
                pipe.lindex(key, -1)
            pipe.zrangebyscore(queues.workers_key(pipeline), now - queues.WORKER_TTL_S, "+inf")
            pipe.llen(queues.dead_letter_key(pipeline))
            pipe.zcard(queues.waiting_key(pipeline))
            *per_list, workers, dead, waiting = pipe.execute()
        with self._reachable():
            beats = self._redis.mget([queues.worker_key(w.decode()) for w in workers]) if workers else []
        in_flight = sum((_decode(beat) or {}).get("in_flight", {}).get(pipeline, 0) for beat in beats)
        oldest = [_message_id(raw) for raw in per_list[len(lists) :] if raw]
        times = [s.submitted_at for s in self.status_many(filter(None, oldest)) if s.submitted_at is not None]
        return QueueInfo(
            pipeline=pipeline,
            depth=sum(per_list[: len(lists)]),
            waiting=waiting,
            oldest_age_s=now - min(times) if times else None,
            in_flight=in_flight,
            workers=len(workers),
            dead=dead,
        )

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            raise RedisUnavailableError(
                ErrorCode.REDIS_UNAVAILABLE, f"{without_password(self.redis_url)} refuses the password: {error}"
            ) from error
        except (ConnectionError, TimeoutError) as error:
            raise RedisUnavailableError(
                ErrorCode.REDIS_UNAVAILABLE,
                f"cannot reach Redis at {without_password(self.redis_url)}: {error}",
                True,
            ) from error
        except RedisError as error:
            raise RedisUnavailableError(
                ErrorCode.REDIS_UNAVAILABLE, f"Redis at {without_password(self.redis_url)} answers: {error}"
            ) from error


@dataclass
class _Chunk:
    """Tasks that are queued together."""

    ids: list[str] = field(default_factory=list)
    records_and_messages: list[str] = field(default_factory=list)
    bytes: int = 0

    def add(self, envelope: Envelope, body: str) -> None:
        message = envelope.encode(body)
        self.ids.append(envelope.id)
        self.records_and_messages += (envelope.record(), message)
        self.bytes += len(message)

    @property
    def is_full(self) -> bool:
        return len(self.ids) >= CHUNK_TASKS or self.bytes >= CHUNK_BYTES


def _too_large(size: int, limit: int) -> PipeqError:
    return PipeqError(
        ErrorCode.INPUT_TOO_LARGE,
        f"the message is {size} bytes, at most {limit} are allowed: put the input on S3 and submit a Ref to it",
    )


def _script(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _text(raw: bytes | str) -> str:
    """redis-py is typed for both; ours does not decode."""
    return raw.decode() if isinstance(raw, bytes) else raw


def _decode(raw: bytes | str | None) -> dict[str, Any] | None:
    """JSON of a record or a mark; None for nothing."""
    return json.loads(raw) if raw else None


def _check_id(task_id: str | None) -> None:
    if task_id is not None and not queues.is_task_id(task_id):
        raise PipeqError(ErrorCode.INVALID_MESSAGE, f"the task id {task_id!r} is not {queues.TASK_ID_WORDS}")


def _list_key(pipeline: str, priority: int) -> str:
    try:
        return queues.list_key(pipeline, priority)
    except (ValueError, TypeError) as error:
        raise PipeqError(ErrorCode.INVALID_MESSAGE, f"priority {priority!r} is not 0 (first) to 9 (last)") from error


def _check_seconds(name: str, seconds: float | None) -> None:
    if seconds is not None and not (isinstance(seconds, int | float) and abs(seconds) <= LONGEST_S):
        raise PipeqError(ErrorCode.INVALID_MESSAGE, f"{name} is {seconds!r}, not a number of seconds within ten years")


def _without_error(status: dict[str, Any]) -> dict[str, Any]:
    """A retrying task's status without the fault it was to be retried for."""
    return {name: value for name, value in status.items() if name != "error"}


def _message_id(raw: bytes) -> str | None:
    try:
        return str(json.loads(raw)["headers"]["id"])
    except (ValueError, KeyError, TypeError):
        return None


def _id(task: str | TaskStatus) -> str:
    return task if isinstance(task, str) else task.id
