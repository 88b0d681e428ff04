"""What clients can submit one by one; written once, as steps. All calls of both clients.

Arguments -> checks, submission -> submitting -> Redis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pipeq import wanted
from pipeq.bulk_calls import BulkCalls, NoLiveWorkerWarning
from pipeq.contract import keys
from pipeq.protocol import Steps, reachable
from pipeq.submitting import submit_errors

__all__ = ["Calls", "NoLiveWorkerWarning"]

_T = TypeVar("_T")


class Calls(BulkCalls):
    """All calls of a client."""

    def of_jobs(self, make: Callable[..., _T]) -> _T:
        """Makes the calls about jobs, which are imported only where somebody asks for them."""
        return make(self.pipelines, self._allow, self._max_message_bytes, self._store)

    def submit(
        self,
        pipeline: str,
        inputs: Any,
        *,
        params: Mapping[str, Any] | None = None,
        output: str | Mapping[str, Any] | None = None,
        task_id: str | None = None,
        idempotency_key: str | None = None,
        custom_id: str | None = None,
        priority: int = keys.DEFAULT_PRIORITY,
        expires_s: float | None = None,
        delay_s: float | None = None,
        deadline_s: float | None = None,
        timeout_s: float | None = None,
        fair_key: str | None = None,
        max_backlog: int | None = None,
        full_wait_s: float | None = 0.0,
        headers: Mapping[str, Any] | None = None,
        check: bool = True,
    ) -> Steps[str]:
        """Queues one task, in one round trip; the first submit to a pipeline takes one more, a task with a name two.

        Args:
            pipeline: the pipeline's name; its task type unless the worker named it otherwise.
            inputs: a value, an object of named values, or a list of either; :class:`Ref` for input that is stored
                elsewhere. Bytes, PIL pictures, numpy's pictures (uint8) and ``{"array", "sampling_rate"}`` are sent
                inside the message, or uploaded where they are too large and the client has ``upload``. A path is a
                file that the workers can open, too; with ``upload``, one of this machine.
            params: parameters of the pipeline's call, for this task only.
            output: a URI for the result, such as ``s3://results/``; one that ends in ``/`` is a prefix. It may have
                fields: ``s3://results/{date}/{stem}-{id}.json``. ``{"uri": ..., "include_inputs": True}`` writes inputs
                and parameters beside the result.
            task_id: an id of your own; submitting the same task again while its record lives changes nothing, however
                it ended. Anyone who knows an id can read and cancel the task, so choose one that cannot be guessed.
            idempotency_key: a name of this submit, such as ``invoices/17``, which all producers share. While a task
                with this key waits, runs or has succeeded, submitting it again returns its id and changes nothing; one
                that failed, expired or was cancelled frees its key. With other inputs, params, output or pipeline it
                is an error. Redis keeps it as long as the task's record: a day after its end, 7 days at most.
            custom_id: what you call the task, for ``{custom_id}`` in ``output``; others may have the same.
            priority: 0 is served first, 9 last. The default of :meth:`submit_many` is 6.
            expires_s: seconds from now after which no worker may begin the task.
            delay_s: seconds from now before which no worker may begin the task.
            deadline_s: a wish: seconds from now within which the task should be done. Among tasks of equal priority
                that a worker holds, the one with the next deadline goes first. A task that is late still runs.
            timeout_s: seconds that a try of the task may take, from when a worker begins to read and prepare its inputs
                to its result. Then it fails as ``timeout``, and what worked on it stops. The time in the queue does
                not count (``expires_s`` limits that). Workers may be set to allow a pipeline's tasks less.
            fair_key: whose task it is, for instance a customer. Of tasks with equal priority, those of different keys
                take turns, so that many tasks of one do not delay those of another.
            max_backlog: about how many tasks may wait in the queue afterwards, of all priorities. If there are as many
                already, it raises QueueFullError.
            full_wait_s: seconds to wait for room in that case; 0 raises at once, None waits for ever.
            headers: additional message headers, for instance ``traceparent``.
            check: whether to refuse a pipeline that no worker has ever served.

        Returns:
            The task's id.

        Raises:
            SubmitError: ``unknown_pipeline``, ``input_too_large``, ``invalid_input``, ``invalid_params`` or
                ``invalid_message``; a QueueFullError if there is no room; a SubmitUnavailableError if Redis cannot be
                reached.

        Warns:
            NoLiveWorkerWarning: no worker serves the pipeline now.
        """
        given = locals()
        with submit_errors() as submitted, reachable(self.redis_url):
            tasks = wanted.one(inputs, params, task_id, idempotency_key, custom_id)
            call = wanted.call(given, is_many=False)
            served = yield from self._submissions.run(submitted, call, tasks)
            self._note(call, served)
        return submitted[0]
