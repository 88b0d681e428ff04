"""The client: queues tasks, reads their statuses and results by id, and cancels them.

Arguments -> checks -> submitting (Redis); ids -> status, waiting -> results. What stands in Redis is untrusted data: no
record, mark or heartbeat can make a method raise anything but a PipeqError.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Self

from pipeq import cancelling, checks, submission
from pipeq.contract import keys, record
from pipeq.contract.errors import RedisUrlError
from pipeq.contract.events import KEPT_MOST, Event
from pipeq.contract.redis_url import connect
from pipeq.contract.status import State, TaskFailedError, TaskStatus
from pipeq.dead import Choice, DeadLetters
from pipeq.events import Events, chosen, keep
from pipeq.queue_info import QueueInfo, read_queue, registered
from pipeq.read_allow import ReadAllow
from pipeq.results import read_object, read_result
from pipeq.retire import forget, purge
from pipeq.server import reachable, replies
from pipeq.submission import Call, Submissions
from pipeq.submitting import CHUNK_TASKS, Submitter, submit_errors
from pipeq.waiting import Wait


class NoLiveWorkerWarning(UserWarning):
    """No worker serves the pipeline now. The task waits until a worker has loaded the pipeline."""


class Client:
    """A producer's connection to pipeq. Threads may share one; use one for each process.

    Args:
        redis_url: ``redis://``, ``rediss://`` or ``unix://``; by default PIPEQ_REDIS_URL, then localhost.
        allow: prefixes below which :meth:`result` and :meth:`read` may open files and objects, such as
            ``s3://results/``, your workers' store; by default those of PIPEQ_CLIENT_ALLOW. The outputs of this client's
            own submits are added.
        max_message_bytes: larger messages are refused with ``input_too_large``; workers have the same limit.

    Every method raises RedisUnavailableError if Redis cannot be reached, and PipeqError (``invalid_message``,
    ``invalid_input``, ``invalid_params``) for an argument that cannot be used.

    Raises (from the constructor):
        SettingsError: naming the argument; a RedisUrlError for the URL.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        allow: Iterable[str] | str | None = None,
        max_message_bytes: int = keys.MAX_MESSAGE_BYTES,
    ) -> None:
        self.redis_url = redis_url or os.environ.get("PIPEQ_REDIS_URL") or "redis://localhost:6379/0"
        self.max_message_bytes = checks.max_bytes(max_message_bytes)
        self._allow = ReadAllow(allow)
        if not isinstance(self.redis_url, str):
            raise RedisUrlError(f"redis_url is a {type(redis_url).__name__}, not a text")
        try:
            self._redis = connect(self.redis_url)
            self._writing = connect(self.redis_url, retries=0)
        except ValueError as error:
            raise RedisUrlError(str(error)) from None
        submitter = Submitter(self._writing)
        self._submissions = Submissions(submitter, self._reachable, self.pipelines, self.max_message_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections. The client can be used again; it then reconnects."""
        self._redis.close()
        self._writing.close()

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
        idempotency_key: str | None = None,
        priority: int = keys.DEFAULT_PRIORITY,
        expires_s: float | None = None,
        delay_s: float | None = None,
        deadline_s: float | None = None,
        timeout_s: float | None = None,
        fair_key: str | None = None,
        headers: Mapping[str, Any] | None = None,
        check: bool = True,
    ) -> str:
        """Queues one task, in one round trip; the first submit to a pipeline takes one more, a task with a name two.

        Args:
            pipeline: the pipeline's name; its task type unless the worker named it otherwise.
            inputs: a value, an object of named values, or a list of either; :class:`Ref` for input that is stored
                elsewhere.
            params: parameters of the pipeline's call, for this task only.
            output: a URI for the result, such as ``s3://results/``; one that ends in ``/`` is a prefix.
            task_id: an id of your own; submitting the same task again while its record lives changes nothing, however
                it ended. Anyone who knows an id can read and cancel the task, so choose one that cannot be guessed.
            idempotency_key: a name of this submit, such as ``invoices/17``, which all producers share. While a task
                with this key waits, runs or has succeeded, submitting it again returns its id and changes nothing; one
                that failed, expired or was cancelled frees its key. With other inputs, params, output or pipeline it
                is an error. Redis keeps it as long as the task's record: a day after its end, 7 days at most.
            priority: 0 is served first, 9 last.
            expires_s: seconds from now after which no worker may begin the task.
            delay_s: seconds from now before which no worker may begin the task.
            deadline_s: a wish: seconds from now within which the task should be done. Among tasks of equal priority
                that a worker holds, the one with the next deadline goes first. A task that is late still runs.
            timeout_s: seconds that a try of the task may take, from when a worker begins to read and prepare its inputs
                to its result. Then it fails as ``timeout``, and what worked on it stops. The time in the queue does
                not count (``expires_s`` limits that). Workers may be set to allow a pipeline's tasks less.
            fair_key: whose task it is, for instance a customer. Of tasks with equal priority, those of different keys
                take turns, so that many tasks of one do not delay those of another.
            headers: additional message headers, for instance ``traceparent``.
            check: whether to refuse a pipeline that no worker has ever served.

        Returns:
            The task's id.

        Raises:
            SubmitError: ``unknown_pipeline``, ``input_too_large``, ``invalid_input``, ``invalid_params`` or
                ``invalid_message``; a SubmitUnavailableError if Redis cannot be reached.

        Warns:
            NoLiveWorkerWarning: no worker serves the pipeline now.
        """
        with submit_errors() as submitted:
            wanted = submission.one(inputs, params, task_id, idempotency_key)
            call = submission.call(
                pipeline,
                output,
                priority,
                expires_s,
                delay_s,
                deadline_s,
                fair_key,
                timeout_s,
                headers,
                check=check,
                is_many=False,
            )
            self._submit(submitted, call, wanted)
        return submitted[0]

    def submit_many(
        self,
        pipeline: str,
        inputs: Iterable[Any],
        *,
        params: Mapping[str, Any] | Iterable[Mapping[str, Any] | None] | None = None,
        output: str | None = None,
        task_ids: Iterable[str | None] | None = None,
        idempotency_keys: Iterable[str | None] | None = None,
        priority: int = keys.DEFAULT_PRIORITY,
        expires_s: float | None = None,
        delay_s: float | None = None,
        deadline_s: float | None = None,
        timeout_s: float | None = None,
        fair_key: str | None = None,
        headers: Mapping[str, Any] | None = None,
        check: bool = True,
    ) -> list[str]:
        """Queues one task for each item of ``inputs``, up to 500 tasks a round trip.

        ``inputs`` may be any iterable, and is read lazily. ``output`` must be a prefix (end in ``/``). ``params`` are
        for all tasks, or an iterable with those of each. ``task_ids`` and ``idempotency_keys`` have a name for each
        task, or None for a task without one; named tasks take two more round trips for each 500. The other arguments
        are as for :meth:`submit`.

        Returns:
            The ids, in the order of the inputs. Inputs with equal names are one task, and have equal ids.

        Raises:
            SubmitError: as :meth:`submit` raises, with the position, as in ``task_ids[3]``; ``invalid_message`` if an
                argument has more or fewer values than ``inputs``; ``invalid_input`` if ``inputs`` itself raises. The
                tasks before the offending chunk stay queued; the error's ``submitted`` has their ids.
        """
        with submit_errors() as submitted:
            wanted = submission.many(inputs, params, task_ids, idempotency_keys)
            call = submission.call(
                pipeline,
                output,
                priority,
                expires_s,
                delay_s,
                deadline_s,
                fair_key,
                timeout_s,
                headers,
                check=check,
                is_many=True,
            )
            self._submit(submitted, call, wanted)
        return submitted

    def _submit(self, submitted: list[str], call: Call, wanted: Iterable[submission.Wanted]) -> None:
        served = self._submissions.run(submitted, call, wanted)
        if call.output is not None:
            self._allow.remember(call.output)
        if served is not None and served.live == 0 and call.check:
            says = (
                f"a worker is loading {call.pipeline!r} now: the tasks wait on their queue until it is ready"
                if served.loading
                else f"no worker serves {call.pipeline!r} now: the tasks wait on their queue until one does"
            )
            warnings.warn(says, NoLiveWorkerWarning, stacklevel=3)

    def cancel(self, task_id: str, *, force: bool = False) -> TaskStatus:
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
        return self.cancel_many([task_id], force=force)[0]

    def cancel_many(
        self, task_ids: Iterable[str], *, force: bool = False, progress: Callable[[int, int], None] | None = None
    ) -> list[TaskStatus]:
        """Cancels tasks as :meth:`cancel` does, up to 500 in four round trips.

        Args:
            task_ids: the tasks.
            force: as for :meth:`cancel`.
            progress: called with the number of tasks that are done, and of all.

        Returns:
            The status of each afterwards, in order.
        """
        ids, progress = checks.task_ids(task_ids), checks.progress(progress)
        with self._reachable():
            found = cancelling.cancel(self._redis, ids, force=checks.flag("force", force), progress=progress)
        return [found[task_id] for task_id in ids]

    def cancel_pipeline(self, pipeline: str, *, progress: Callable[[int, int], None] | None = None) -> list[TaskStatus]:
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
        with self._reachable():
            return list(cancelling.cancel_pipeline(self._redis, pipeline, self.status_many, progress).values())

    # -- reading ------------------------------------------------------------------------------------------------------

    def status(self, task_id: str) -> TaskStatus:
        """Returns all that is known about a task; its state is ``unknown`` for an id never seen or forgotten."""
        return self.status_many([task_id])[0]

    def status_many(self, task_ids: Iterable[str]) -> list[TaskStatus]:
        """Returns the status of each task, in order; up to 500 a round trip."""
        ids = checks.task_ids(task_ids)
        found: list[TaskStatus] = []
        for start in range(0, len(ids), CHUNK_TASKS):
            chunk = ids[start : start + CHUNK_TASKS]
            with self._reachable(), self._redis.pipeline(transaction=False) as pipe:
                # The marks are read first: if a task ends in between, its record says so, and its mark does not count.
                pipe.hmget(keys.RUNNING, chunk)
                pipe.mget([keys.record_key(task_id) for task_id in chunk])
                marks, texts = replies(pipe)
            found += [
                record.read(task_id, text, mark)
                for task_id, text, mark in zip(chunk, texts, marks or [None] * len(chunk), strict=True)
            ]
        return found

    def wait(self, task_id: str, timeout_s: float | None = None) -> TaskStatus:
        """Waits until a task ends.

        Raises:
            WaitTimeoutError: it did not end in time; it goes on.
        """
        return next(self.as_completed([task_id], timeout_s))

    def as_completed(self, task_ids: Iterable[str], timeout_s: float | None = None) -> Iterator[TaskStatus]:
        """Yields the status of each task when it has ended, in the order of their ends. Redis wakes it.

        If Redis goes away meanwhile, the wait goes on until its time is over, or for 5 minutes without a ``timeout_s``.

        Raises:
            WaitTimeoutError: some tasks did not end in time; they go on.
        """
        ids, timeout_s = checks.task_ids(task_ids), checks.seconds("timeout_s", timeout_s)
        return Wait(self._redis, self._reachable, self.status_many, ids, timeout_s).ended()

    def result(self, task: str | TaskStatus, timeout_s: float | None = None) -> Any:
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
            status = task if task.is_final else self.wait(task.id, timeout_s)
        else:
            status = self.wait(task, timeout_s)
        if status.state is not State.SUCCEEDED:
            raise TaskFailedError(status)
        return status.result if status.result_uri is None else read_result(status.result_uri, self._allow)

    def read(self, part: Mapping[str, Any]) -> bytes:
        """Returns the bytes of an object in a result (an image, audio, an array), inline or from its store.

        Raises:
            ReadError: ``input_forbidden`` if this client may not read where it lies; ``output_failed`` if it cannot be
                read.
        """
        return read_object(part, self._allow)

    def pipelines(self) -> dict[str, dict[str, Any]]:
        """Every pipeline that a worker has ever served: name -> task type and model; empty if that cannot be read."""
        with self._reachable():
            return registered(self._redis.hgetall(keys.PIPELINES))

    def queues(self) -> list[QueueInfo]:
        """Depth, age and workers of the queues of all known pipelines."""
        with self._reachable():
            return [read_queue(self._redis, name, self.status_many) for name in sorted(self.pipelines())]

    def queue(self, pipeline: str) -> QueueInfo:
        """Depth, age and workers of one queue, whether or not its pipeline is known."""
        pipeline = checks.pipeline(pipeline)
        with self._reachable():
            return read_queue(self._redis, pipeline, self.status_many)

    def events(
        self,
        after: str | None = None,
        *,
        pipelines: Iterable[str] | None = None,
        states: Iterable[State | str] | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[Event]:
        """Yields state changes of all tasks, as they happen. For apps that want to be told instead of asking.

        The stream is off until :meth:`keep_events` switches it on. Reading it needs the rights of an operator. If Redis
        goes away meanwhile, the reading goes on afterwards, for up to 5 minutes.

        Args:
            after: the id of an event, after which it begins: of the last one that you have dealt with, for instance.
                ``"0"`` for the oldest one that is kept; None for what happens from now on.
            pipelines: names of the pipelines that are meant; None for all.
            states: the states that are meant, such as ``("succeeded", "failed")``; None for all.
            timeout_s: seconds without such an event after which it ends; None waits for ever.

        Raises:
            EventsTrimmedError: events were removed before they were read.
            PipeqError: ``events_off``.
        """
        after = None if after is None else checks.texts("after", [after])[0]
        wanted = chosen(
            None if pipelines is None else frozenset(map(checks.pipeline, checks.texts("pipelines", pipelines))),
            None if states is None else checks.states(states),
        )
        timeout_s = checks.seconds("timeout_s", timeout_s)
        return iter(Events(self._redis, self._reachable, after, wanted, timeout_s))

    # -- for operators ------------------------------------------------------------------------------------------------

    def dead(
        self,
        pipeline: str | None = None,
        *,
        ids: Iterable[str] | None = None,
        code: str | Iterable[str] | None = None,
        older_than_s: float | None = None,
        newer_than_s: float | None = None,
    ) -> DeadLetters:
        """Chooses dead letters: tasks that failed, and messages that could not be read. What is given must all be true.

        ``for letter in client.dead("asr", code="timeout")`` reads them; ``client.dead(ids=[id]).retry()`` sends a task
        again under its id, and ``client.dead(older_than_s=7 * 86400).drop()`` removes letters for good.

        Args:
            pipeline: the pipeline's name; None for all that a worker has ever served.
            ids: ids of tasks, or letters' own (:attr:`DeadLetter.letter`).
            code: one of :class:`ErrorCode`, or several.
            older_than_s: how long ago the task failed at least, in seconds.
            newer_than_s: how long ago it failed at most, in seconds.
        """
        choice = Choice.of(pipeline, ids, code, older_than_s, newer_than_s)
        return DeadLetters(self._redis, self._reachable, self.pipelines, choice)

    def purge(self, pipeline: str, *, progress: Callable[[int, int], None] | None = None) -> int:
        """Ends every task that waits for a pipeline: on its lists, with a delay, or between two tries.

        Each is ``cancelled`` then, with the error ``purged``. Tasks inside workers go on. Other clients are served in
        between, also while a million messages are purged.

        Args:
            pipeline: its name.
            progress: called with the number of messages done, and of all that were there at first.

        Returns:
            The number of messages that were taken off.
        """
        return purge(self._redis, self._reachable, checks.pipeline(pipeline), checks.progress(progress))

    def forget(self, pipeline: str, *, force: bool = False) -> None:
        """Takes a retired pipeline off the list of known ones: :meth:`submit` refuses it then.

        Args:
            pipeline: its name.
            force: also while a worker serves it or messages wait. Its messages and dead letters stay, and a worker that
                serves it puts it back on the list within seconds.

        Raises:
            PipeqError: ``unknown_pipeline``: it is not on the list; ``in_use``: why it is still needed.
        """
        queue = self.queue(pipeline)
        with self._reachable():
            forget(self._redis, queue, force=checks.flag("force", force))

    def keep_events(self, count: int | None = None) -> int:
        """Switches the stream of events on, for all workers and clients of this Redis, or off.

        A client learns of it with its next submit, so that the events of the first call after that may be missing.

        Args:
            count: about how many events are kept, the newest; 0 switches the stream off and removes it; None changes
                nothing.

        Returns:
            How many events are kept; 0 if the stream is off.
        """
        count = None if count is None else checks.count("count", count, KEPT_MOST)
        with self._reachable():
            return keep(self._redis, count)

    def _reachable(self) -> AbstractContextManager[None]:
        return reachable(self.redis_url)
