"""What clients can do with tasks that are there: read, wait, cancel; written once, as steps. Used by both clients.

Ids -> checks -> status, waiting -> results. What stands in Redis is untrusted data: no record, mark or heartbeat can
make a method raise anything but a PipeqError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pipeq import cancelling, checks
from pipeq.contract import keys, record
from pipeq.contract.status import State, TaskFailedError, TaskStatus
from pipeq.protocol import Run, Steps, Stream, listed, replies, single
from pipeq.read_allow import ReadAllow
from pipeq.results import read_object, read_result
from pipeq.submitting import CHUNK_TASKS
from pipeq.waiting import Wait


class TaskCalls:
    """Calls that need only ids.

    Args:
        redis_url: for error messages.
        allow: which results may be read.
        max_message_bytes: larger messages are refused.
    """

    def __init__(self, redis_url: str, allow: ReadAllow, max_message_bytes: int) -> None:
        self.redis_url = redis_url
        self._allow = allow
        self._max_message_bytes = max_message_bytes

    def ping(self) -> Steps[None]:
        """Raises RedisUnavailableError unless Redis answers."""
        yield from single("PING")

    def status(self, task_id: str) -> Steps[TaskStatus]:
        """Returns all that is known about a task; its state is ``unknown`` for an id never seen or forgotten."""
        return (yield from self.status_many([task_id]))[0]

    def status_many(self, task_ids: Iterable[str]) -> Steps[list[TaskStatus]]:
        """Returns the status of each task, in order; up to 500 a round trip."""
        ids = checks.task_ids(task_ids)
        found: list[TaskStatus] = []
        for start in range(0, len(ids), CHUNK_TASKS):
            chunk = ids[start : start + CHUNK_TASKS]
            # The marks are read first: if a task ends in between, its record says so, and its mark does not count.
            marks, texts = yield from replies(
                ("HMGET", keys.RUNNING, *chunk), ("MGET", *(keys.record_key(task_id) for task_id in chunk))
            )
            found += [
                record.read(task_id, text, mark)
                for task_id, text, mark in zip(chunk, texts, marks or [None] * len(chunk), strict=True)
            ]
        return found

    def wait(self, task_id: str, timeout_s: float | None = None) -> Steps[TaskStatus]:
        """Waits until a task ends.

        Raises:
            WaitTimeoutError: it did not end in time; it goes on.
        """
        (status,) = yield from listed(self.as_completed([task_id], timeout_s))
        return status

    def as_completed(self, task_ids: Iterable[str], timeout_s: float | None = None) -> Stream[TaskStatus]:
        """Yields the status of each task when it has ended, in the order of their ends. Redis wakes it.

        If Redis goes away meanwhile, the wait goes on until its time is over, or for 5 minutes without a ``timeout_s``.

        Raises:
            WaitTimeoutError: some tasks did not end in time; they go on.
        """
        ids, timeout_s = checks.task_ids(task_ids), checks.seconds("timeout_s", timeout_s)
        return Wait(self.status_many, ids, timeout_s).ended()

    def result(self, task: str | TaskStatus, timeout_s: float | None = None) -> Steps[Any]:
        """Waits until a task ends, and returns the pipeline's output, which is fetched from the store if it lies there.

        Args:
            task: its id, or its status from :meth:`as_completed`, which saves reading it again.
            timeout_s: how long to wait, in seconds; None waits for ever.

        Raises:
            TaskFailedError: with the task's own error, or ``cancelled`` or ``expired``, and its status.
            ReadError: ``input_forbidden`` if this client may not read where the result lies; ``output_failed`` if it
                cannot be read.
            WaitTimeoutError: it did not end in time; it goes on.
        """
        timeout_s = checks.seconds("timeout_s", timeout_s)
        if isinstance(task, TaskStatus):
            status = task if task.is_final else (yield from self.wait(task.id, timeout_s))
        else:
            status = yield from self.wait(task, timeout_s)
        return (yield from self.output(status))

    def output(self, status: TaskStatus) -> Steps[Any]:
        """The output of a task that has ended, or its error."""
        if status.state is not State.SUCCEEDED:
            raise TaskFailedError(status)
        uri = status.result_uri
        return status.result if uri is None else (yield Run(lambda: read_result(uri, self._allow)))

    def read(self, part: Mapping[str, Any]) -> Steps[bytes]:
        """Returns the bytes of an object in a result (an image, audio, an array), inline or from its store.

        Raises:
            ReadError: ``input_forbidden`` if this client may not read where it lies; ``output_failed`` if it cannot be
                read.
        """
        found: bytes = yield Run(lambda: read_object(part, self._allow))
        return found

    def cancel(self, task_id: str, *, force: bool = False) -> Steps[TaskStatus]:
        """Cancels a task, unless it has ended, by a compare-and-set on its record. No worker need be running.

        A task that waits does not run any more. One that runs stops within about a second, and its result is not
        published; its status keeps ``started_at``, ``attempts`` and ``worker``. An unknown id changes nothing.

        Args:
            task_id: the task.
            force: whether to cancel an unknown id, too: a record is made that says cancelled, and a worker that takes a
                message with this id, for instance of a stock Celery producer, drops it.

        Returns:
            The status afterwards: ``cancelled``, how the task had ended before, or ``unknown``.
        """
        return (yield from self.cancel_many([task_id], force=force))[0]

    def cancel_many(
        self, task_ids: Iterable[str], *, force: bool = False, progress: Callable[[int, int], None] | None = None
    ) -> Steps[list[TaskStatus]]:
        """Cancels tasks as :meth:`cancel` does, up to 500 in four round trips.

        Args:
            task_ids: the tasks.
            force: as for :meth:`cancel`.
            progress: called with the number of tasks that are done, and of all.

        Returns:
            The status of each afterwards, in order.
        """
        ids, progress = checks.task_ids(task_ids), checks.progress(progress)
        found = yield from cancelling.cancel(ids, force=checks.flag("force", force), progress=progress)
        return [found[task_id] for task_id in ids]

    def cancel_pipeline(
        self, pipeline: str, *, progress: Callable[[int, int], None] | None = None
    ) -> Steps[list[TaskStatus]]:
        """Cancels every task of a pipeline that has not ended: waiting, delayed, or inside a worker.

        It reads the queue and what workers hold, so it needs the rights of a maintainer where Redis has users
        (``deploy/redis-users.acl``).
        Tasks that are submitted meanwhile are not cancelled.

        Args:
            pipeline: the pipeline's name.
            progress: as for :meth:`cancel_many`.

        Returns:
            The status of each of these tasks afterwards.
        """
        pipeline, progress = checks.pipeline(pipeline), checks.progress(progress)
        found = yield from cancelling.cancel_pipeline(pipeline, self.status_many, progress)
        return list(found.values())
