"""DELIVER: outputs -> result, stored, published, acknowledged. Before: infer. After: nothing.

Celery's own tracer runs for each task, so Celery itself handles links, chords, events and signals. The results of a
batch are stored in one round trip; their messages are acknowledged only after that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

import redis
from celery import Celery
from celery.exceptions import Retry as CeleryRetry
from celery.worker import state as celery_state
from kombu.exceptions import OperationalError
from pipeq.contract import keys, shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.record import OPEN_MAX_BYTES, Before, Part
from redis.exceptions import RedisError

from pipeq_worker.delivery.backend import Annotation, Buffer, Retry, annotation
from pipeq_worker.delivery.dead_letter import dead_letter, raw_frame
from pipeq_worker.delivery.delivery import Delivery
from pipeq_worker.delivery.messages import drop, let_go, put_back
from pipeq_worker.delivery.retries import Retries
from pipeq_worker.leases.leases import Leases
from pipeq_worker.leases.server import place
from pipeq_worker.observe.frames import forget
from pipeq_worker.observe.observer import Ended, Observer
from pipeq_worker.observe.outage import outage
from pipeq_worker.settings.read import Settings

logger = logging.getLogger(__name__)

#: Errors of a Redis that is away or refuses commands.
_AWAY = (RedisError, OSError, OperationalError)

#: What the task's body calls while the tracer runs it; it returns the result, or raises the error.
outcome: ContextVar[Callable[[], Any] | None] = ContextVar("outcome", default=None)


class Deliverer:
    """Ends tasks: stores their results and acknowledges their messages. Safe to call from several threads."""

    def __init__(
        self,
        app: Celery,
        settings: Settings,
        retries: Retries,
        client: redis.Redis,
        observer: Observer,
    ) -> None:
        self._app = app
        self._settings = settings
        self._retries = retries
        self._redis = client
        self._observer = observer
        self._server = place(client.connection_pool.connection_kwargs)

    def deliver(self, deliveries: list[Delivery]) -> None:
        """Stores, publishes and acknowledges tasks that have passed all other stages.

        Each task ends or goes back on its queue. A fault of one task does not affect the others.
        """
        self._claim(deliveries)
        for delivery in deliveries:
            if delivery.is_dropped:
                self._end(delivery, drop)
        deliveries = [delivery for delivery in deliveries if not delivery.is_dropped]
        if not deliveries:
            return
        try:
            traced, broken, stored = self._publish(deliveries)
        except Exception:
            # Redis did not accept the results for minutes. The tasks go back on their queues and free this worker's
            # places.
            for delivery in deliveries:
                put_back(delivery)
            raise
        # Only after the results are stored: a crash in between repeats work, but never loses it.
        for delivery, ended in traced:
            if delivery.id in stored.lost:
                delivery.is_lost = True
                self._end(delivery, drop)
            elif delivery.id in stored.cannot_wait:
                sentence = f"it cannot wait for its next try: {keys.waiting_key(delivery.queue)} is no sorted set"
                broken.append((delivery, PipeqError(ErrorCode.INTERNAL, sentence)))
            else:
                self._end(delivery, partial(self._acknowledge, ended=ended))
        for delivery, cause in broken:
            self._end(delivery, partial(self._give_up, cause=cause))

    def _publish(
        self, deliveries: list[Delivery]
    ) -> tuple[list[tuple[Delivery, Any]], list[tuple[Delivery, Exception]], Buffer]:
        """Stores the results. Returns Celery's outcome of each task, tasks that it cannot end, and what was stored."""
        self._read_records(deliveries)
        traced: list[tuple[Delivery, Any]] = []
        broken: list[tuple[Delivery, Exception]] = []
        for delivery in deliveries:
            if (leases := self._fence(delivery)) is not None:
                leases.end([delivery.tag])
        with self._app.backend.buffered() as stored:
            for delivery in deliveries:
                try:
                    traced.append((delivery, self._trace(delivery)))
                except Exception as problem:
                    logger.exception("task %s cannot be ended", delivery.id, extra={"action": "deliver"})
                    forget(problem)
                    broken.append((delivery, problem))
        return traced, broken, stored

    def _acknowledge(self, delivery: Delivery, ended: Any) -> None:
        if (leases := self._fence(delivery)) is not None:
            # The script that stored the result has acknowledged the message, too.
            leases.release([delivery.tag])
        delivery.acknowledge(ended)

    def _end(self, delivery: Delivery, step: Callable[[Delivery], None]) -> None:
        """Takes the last step of one task. If it fails, the task still ends, and the others go on."""
        try:
            step(delivery)
        except Exception as cause:
            try:
                if not delivery.is_lost:
                    self._give_up(delivery, cause)
            except Exception:
                logger.exception("task %s", delivery.id, extra={"action": "deliver"})
            let_go(delivery)
        self._tell(delivery)

    def _tell(self, delivery: Delivery) -> None:
        name = delivery.pipeline.name if delivery.pipeline is not None else None
        if name is not None and "deliver" in delivery.timing_ms:
            self._observer.stage_ended(delivery.id, name, "deliver", delivery.timing_ms["deliver"] / 1000)
        ended: Ended = "succeeded" if delivery.error is None else "retrying" if delivery.is_retried else "failed"
        code = delivery.error.code if delivery.error is not None else None
        if delivery.is_dropped:
            ended, code = "dropped", None
        self._observer.task_ended(delivery.id, name, ended, code, _timing(delivery))

    def _claim(self, deliveries: list[Delivery]) -> None:
        """Renews the leases now, so that the tracer runs links and chords only for tasks that are still ours."""
        tags = [delivery.tag for delivery in deliveries if delivery.leases is not None and not delivery.is_lost]
        leases = next((delivery.leases for delivery in deliveries if delivery.leases is not None), None)
        if leases is None or not tags:
            return
        try:
            leases.lose(leases.renew(tags))
        except RedisError as error:
            outage.noticed("claim", error)
        else:
            outage.over("claim")

    def _fence(self, delivery: Delivery) -> Leases | None:
        """Returns the task's leases if the script that stores the result can check them, being on the same server."""
        leases = delivery.leases
        return leases if leases is not None and leases.server.place == self._server else None

    def _read_records(self, deliveries: list[Delivery]) -> None:
        """Reads the records of the tasks that never reached a batch; those of the others were read there."""
        unread = [delivery for delivery in deliveries if delivery.before is None]
        if not unread:
            return
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                for delivery in unread:
                    pipe.getrange(keys.record_key(delivery.id), 0, OPEN_MAX_BYTES)
                # For a key that does not hold a string, the reply is an error.
                records = pipe.execute(raise_on_error=False)
        except RedisError:
            records = [None] * len(unread)
        for delivery, record in zip(unread, records, strict=True):
            delivery.before = Before.read(record)

    def _trace(self, delivery: Delivery) -> Any:
        """Runs Celery's tracer, which calls :func:`body`, and so the function in :data:`outcome`."""
        retry, fence, error = self._next_try(delivery), self._fence(delivery), delivery.error
        delivery.is_retried = retry is not None
        note = Annotation(
            _part(delivery, retrying=retry is not None),
            keys.dead_letter_key(delivery.queue),
            _dead_letter(delivery) if delivery.error is not None and retry is None else "",
            fence,
            delivery.tag if fence is not None else "",
            None if delivery.handed_on_json is None else (delivery.result,),
            retry,
        )

        def end() -> Any:
            if error is None:
                return delivery.result if delivery.handed_on_json is None else delivery.handed_on
            # A new exception: raising adds frames to it, and the frames refer to the other deliveries of the batch.
            problem = PipeqError(error.code, error.message, error.retryable)
            if retry is not None:
                raise CeleryRetry(str(problem), exc=problem, when=retry.due - time.time())
            raise problem

        tokens = outcome.set(end), annotation.set(note)
        try:
            ended = delivery.trace()
            if ended[0]:  # it failed, and the next item is Celery's ExceptionInfo
                forget(ended[1].exception)
            return ended
        finally:
            outcome.reset(tokens[0])
            annotation.reset(tokens[1])

    def _give_up(self, delivery: Delivery, cause: Exception) -> None:
        """Fails a task that Celery cannot end because of its message; its links and callbacks do not run."""
        logger.error("task %s cannot be ended: %r", delivery.id, cause, extra={"action": "deliver"})
        if not isinstance(cause, PipeqError):
            sentence = f"its message cannot be worked with: {type(cause).__name__}: {shown.line(str(cause))}"
            cause = PipeqError(ErrorCode.INVALID_MESSAGE, sentence)
        delivery.error, delivery.is_retried = PipeqError(cause.code, cause.message, cause.retryable), False
        letter = Annotation(
            _part(delivery, retrying=False), keys.dead_letter_key(delivery.queue), _dead_letter(delivery)
        )
        # The message is acknowledged afterwards, whether or not the failure was stored; if Redis is away it goes back.
        token = annotation.set(letter)
        try:
            self._app.backend.mark_as_failure(delivery.id, delivery.error)
        except _AWAY:
            put_back(delivery)
            return
        finally:
            annotation.reset(token)
        celery_state.task_ready(delivery.request)
        delivery.request.acknowledge()

    def _next_try(self, delivery: Delivery) -> Retry | None:
        error = delivery.error
        if error is None or not error.retryable or delivery.retries + 1 >= self._settings.max_attempts:
            return None
        retry = self._retries.next_try(delivery)
        delay_s = retry.due - time.time()
        logger.info("task %s retries in %.1f s: %s", delivery.id, delay_s, error, extra={"action": "retry"})
        return retry


def body(*_: Any, **__: Any) -> Any:
    """The body of the Celery task ``pipeq.infer``. The stages have already run; it returns or raises their outcome."""
    end = outcome.get()
    if end is None:
        raise PipeqError(ErrorCode.INTERNAL, "pipeq.infer runs only in pipeq's own pool: start it with `pipeq worker`")
    return end()


def _part(delivery: Delivery, *, retrying: bool) -> Part:
    """Returns the part of the task's record that pipeq adds to Celery's: its status, without the result."""
    now, before, pipeline = time.time(), delivery.before or Before(), delivery.pipeline
    return Part(
        pipeline=pipeline.name if pipeline else (delivery.message.pipeline if delivery.message else None),
        submitted_at=before.submitted_at,
        expires_at=before.expires_at,
        message_sha256=before.message_sha256,
        started_at=delivery.started_at,
        finished_at=None if retrying else now,
        attempts=delivery.attempt or delivery.retries + 1,
        worker=delivery.request.hostname,
        timing_ms=_timing(delivery),
        batch=delivery.batch,
        model=pipeline.model if pipeline else None,
        result_uri=delivery.result_uri,
        error=delivery.error,
    )


def _timing(delivery: Delivery) -> dict[str, float]:
    """Returns the milliseconds in each stage, and first those in the queue, if its producer said when it submitted."""
    submitted_at = delivery.before.submitted_at if delivery.before is not None else None
    queue = {"queue": round((delivery.received_at - submitted_at) * 1000, 3)} if submitted_at else {}
    return {**queue, **delivery.timing_ms}


def _dead_letter(delivery: Delivery) -> str:
    assert delivery.error is not None
    return dead_letter(delivery.id, delivery.error.code, delivery.error.message, raw_frame(delivery.request.message))
