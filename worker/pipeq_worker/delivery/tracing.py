"""TRACE: a task that has passed the stages -> Celery's tracer. Used by deliver.

The tracer calls the body of the Celery task, which returns the outcome of the stages or raises it. The tracer then runs
links, chords, signals and hooks, and stores the result by way of :class:`pipeq_worker.delivery.backend.Backend`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from celery.exceptions import Retry as CeleryRetry
from pipeq.contract import keys
from pipeq.contract.errors import Blame, ErrorCode, PipeqError

from pipeq_worker.delivery.backend import Annotation, Retry, annotation
from pipeq_worker.delivery.dead_letter import letter_of
from pipeq_worker.delivery.delivery import Delivery
from pipeq_worker.delivery.packs import Packs
from pipeq_worker.delivery.part import part_of
from pipeq_worker.delivery.retries import Retries
from pipeq_worker.leases.leases import Leases
from pipeq_worker.observe.frames import forget

logger = logging.getLogger(__name__)

#: What the task's body calls while the tracer runs it; it returns the result, or raises the error.
outcome: ContextVar[Callable[[], Any] | None] = ContextVar("outcome", default=None)


class Tracing:
    """Runs the tracer.

    Args:
        retries: decides whether and when a task is tried again.
        inline_max_bytes: most bytes of the outcomes of a pack that failed as a whole.
    """

    def __init__(self, retries: Retries, inline_max_bytes: int) -> None:
        self._retries = retries
        self._packs = Packs(retries, inline_max_bytes)

    def run(self, delivery: Delivery, fence: Leases | None) -> Any:
        """Runs Celery's tracer, which calls :func:`body`, and so the function in :data:`outcome`.

        Args:
            delivery: the task.
            fence: what holds its message, if the script that stores the result can check it; otherwise None.

        Returns:
            What :attr:`Delivery.acknowledge` takes.
        """
        retry, error = self.next_try(delivery), delivery.error
        pack = self._packs.ended(delivery) if retry is None else None
        note = Annotation(
            part_of(delivery, next_try_at=None if retry is None else retry.due),
            keys.dead_letter_key(delivery.queue),
            # An operator must not run a pack again: its rows have been counted.
            letter_of(delivery) if error is not None and retry is None and delivery.pack_of is None else "",
            fence,
            delivery.tag if fence is not None else "",
            None if delivery.handed_on_json is None else (delivery.result,),
            retry,
            pack,
        )

        def end() -> Any:
            if error is None:
                if pack is not None:
                    return None  # the job has the outcomes
                return delivery.result if delivery.handed_on_json is None else delivery.handed_on
            # A new exception: raising adds frames to it, and the frames refer to the other deliveries of the batch.
            problem = error.bare()
            if retry is not None:
                raise CeleryRetry(str(problem), exc=problem, when=retry.due - time.time())
            raise problem

        tokens = outcome.set(end), annotation.set(note)
        try:
            ended = delivery.trace()
            if ended[0]:  # it failed, and the next item is Celery's ExceptionInfo
                forget(ended[1].exception)
                # A copy of each frame's code, with a tuple for each instruction: some 350 KB, most for the tracer's own
                # frame. The tasks of a batch that fail together would keep theirs until all are stored.
                ended[1].tb = None
            return ended
        finally:
            outcome.reset(tokens[0])
            annotation.reset(tokens[1])

    def next_try(self, delivery: Delivery) -> Retry | None:
        """Returns the next try of a task that has failed, and notes in the delivery whether there is one."""
        retry, error = self._retries.decide(delivery), delivery.error
        delivery.is_retried = retry is not None
        if retry is None or error is None:
            return None
        what = "is for another worker" if error.blame in (Blame.WORKER, Blame.EITHER) else "retries"
        logger.log(
            # Of a store that is away, the tries that failed have said so.
            logging.DEBUG if error.blame is Blame.NOT_TRIED else logging.INFO,
            "task %s %s in %.1f s: %s",
            *(delivery.id, what, retry.due - time.time(), error),
            extra={"action": "retry", "task_id": delivery.id},
        )
        return retry


def body(*_: Any, **__: Any) -> Any:
    """The body of the Celery task ``pipeq.infer``. The stages have already run; it returns or raises their outcome."""
    end = outcome.get()
    if end is None:
        raise PipeqError(ErrorCode.INTERNAL, "pipeq.infer runs only in pipeq's own pool: start it with `pipeq worker`")
    return end()
