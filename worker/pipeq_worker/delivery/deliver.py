"""DELIVER: outputs -> result, stored, published, acknowledged. Before: infer. After: nothing.

Celery's own tracer runs for each task, so links, chords, events and signals stay Celery's; the results of a batch are
stored in one round trip, and only then acknowledged.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import redis
from celery import Celery
from celery.exceptions import Retry as CeleryRetry
from celery.worker import state as celery_state
from kombu.exceptions import OperationalError
from pipeq.contract import keys as queues
from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.reading import json_object, number
from redis.exceptions import RedisError

from pipeq_worker.delivery.backend import Annotation, Buffer, Retry, annotation
from pipeq_worker.delivery.dead_letter import dead_letter, raw_frame
from pipeq_worker.delivery.marks import LONGEST_OPEN
from pipeq_worker.delivery.outputs import Object, convert
from pipeq_worker.delivery.retries import Retries
from pipeq_worker.leases.leases import Leases, place
from pipeq_worker.observe.frames import forget
from pipeq_worker.observe.outage import outage
from pipeq_worker.settings.read import ResultSettings, Settings
from pipeq_worker.stages.task import Work
from pipeq_worker.stores.signed import Signatures, objects_of, sign_objects
from pipeq_worker.stores.store import Store

logger = logging.getLogger(__name__)

#: Without a store, results up to this size stay in the record, in bytes.
INLINE_LIMIT = 8 * 2**20
UPLOAD_THREADS = 16
RESULT_TYPE = "application/json"
#: Redis is away, or refuses.
_AWAY = (RedisError, OSError, OperationalError)

#: What the task's body does while the tracer runs it: returns the result, or raises.
outcome: ContextVar[Callable[[], Any] | None] = ContextVar("outcome", default=None)


@dataclass(frozen=True)
class _Upload:
    """Something to be written to the store: a task's result, or an object that it speaks of."""

    work: Work
    uri: str
    data: bytes
    media_type: str

    def is_result(self) -> bool:
        return self.media_type == RESULT_TYPE

    def is_part(self) -> bool:
        return self.media_type != RESULT_TYPE


class Deliverer:
    """Ends tasks. Safe to call from several threads."""

    def __init__(
        self,
        app: Celery,
        settings: Settings,
        store: Store,
        retries: Retries,
        client: redis.Redis,
        signatures: Signatures,
    ) -> None:
        self._app = app
        self._settings = settings
        self._store = store
        self._retries = retries
        self._redis = client
        self._signatures = signatures
        self._server = place(client.connection_pool.connection_kwargs)
        self._uploads = ThreadPoolExecutor(UPLOAD_THREADS, "upload")

    def close(self) -> None:
        """Call when nothing is delivered any more."""
        self._uploads.shutdown(wait=False, cancel_futures=True)

    def deliver(self, works: list[Work]) -> None:
        """Stores, publishes and acknowledges tasks that are through all other stages.

        Each ends, or goes back on its queue: nothing that one of them holds is of consequence for another.
        """
        self._claim(works)
        for work in works:
            if _is_gone(work):
                self._end(work, _drop)
        works = [work for work in works if not _is_gone(work)]
        if not works:
            return
        try:
            traced, broken, stored = self._publish(works)
        except Exception:
            # Redis would not have the results for minutes. Rather than keep a place in this worker they go back.
            for work in works:
                _put_back(work)
            raise
        # Strictly after the results are stored: a crash in between repeats work, never loses it.
        for work, ended in traced:
            if work.id in stored.lost:
                work.is_lost = True
                self._end(work, _drop)
            elif work.id in stored.cannot_wait:
                sentence = f"it cannot wait for its next try: {queues.waiting_key(work.queue)} is no sorted set"
                broken.append((work, PipeqError(ErrorCode.INTERNAL, sentence)))
            else:
                self._end(work, partial(self._acknowledge, ended=ended))
        for work, cause in broken:
            self._end(work, partial(self._give_up, cause=cause))

    def _publish(self, works: list[Work]) -> tuple[list[tuple[Work, Any]], list[tuple[Work, Exception]], Buffer]:
        """Stores the results. Returns what Celery's tracer says of each, what it cannot end, and what was stored."""
        self._read_records(works)
        uploads = [upload for work in works for upload in self._complete(work)]
        # A result is written after the objects it speaks of.
        for kind in (_Upload.is_part, _Upload.is_result):
            list(self._uploads.map(self._upload, filter(kind, uploads)))
        traced: list[tuple[Work, Any]] = []
        broken: list[tuple[Work, Exception]] = []
        for work in works:
            if (leases := self._fence(work)) is not None:
                leases.end([work.tag])
        with self._app.backend.buffered() as stored:
            for work in works:
                try:
                    traced.append((work, self._trace(work)))
                except Exception as problem:
                    logger.exception("task %s cannot be ended", work.id, extra={"action": "deliver"})
                    forget(problem)
                    broken.append((work, problem))
        return traced, broken, stored

    def _acknowledge(self, work: Work, ended: Any) -> None:
        if (leases := self._fence(work)) is not None:
            # The script that stored the result has acknowledged the message, too.
            leases.release([work.tag])
        work.acknowledge(ended)

    def _end(self, work: Work, step: Callable[[Work], None]) -> None:
        """Takes the last step of one task. One that fails is no reason to keep the task, nor its neighbours."""
        try:
            step(work)
        except Exception as cause:
            try:
                if not work.is_lost:
                    self._give_up(work, cause)
            except Exception:
                logger.exception("task %s", work.id, extra={"action": "deliver"})
            _let_go(work)

    def _claim(self, works: list[Work]) -> None:
        """Renews the leases now, so that links and chords, which the tracer fires, are fired for what is still ours."""
        tags = [work.tag for work in works if work.leases is not None and not work.is_lost]
        leases = next((work.leases for work in works if work.leases is not None), None)
        if leases is None or not tags:
            return
        try:
            leases.lose(leases.renew(tags))
        except RedisError as error:
            outage.noticed("claim", error)
        else:
            outage.over("claim")

    def _fence(self, work: Work) -> Leases | None:
        """The leases, where the script that stores the result can look at them."""
        leases = work.leases
        return leases if leases is not None and leases.server.place == self._server else None

    def _read_records(self, works: list[Work]) -> None:
        """Those that never came to a batch have not been looked up yet."""
        unread = [work for work in works if work.record is None]
        if not unread:
            return
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                for work in unread:
                    pipe.getrange(queues.record_key(work.id), 0, LONGEST_OPEN)
                # Of a key that holds no string the reply is an error.
                records = pipe.execute(raise_on_error=False)
        except RedisError:
            records = [None] * len(unread)
        for work, record in zip(unread, records, strict=True):
            work.record = (json_object(record) if isinstance(record, bytes) else None) or {}

    def _complete(self, work: Work) -> list[_Upload]:
        """Turns outputs into the result. Returns what is to be uploaded, what does not stay in the record."""
        if work.error is not None:
            return []
        try:
            with work.timed("deliver"):
                assert work.pipeline is not None
                return self._place(work, *convert(_value(work), work.echoes, work.pipeline.task_type.audio_key))
        except PipeqError as error:
            work.fail(error)
        except Exception as error:
            logger.exception("task %s", work.id, extra={"action": "deliver"})
            work.fail(PipeqError(ErrorCode.INTERNAL, f"{type(error).__name__}: {error}"))
        finally:
            work.outputs, work.inputs, work.echoes, work.given = [], [], {}, None
        return []

    def _place(self, work: Work, value: Any, objects: list[Object]) -> list[_Upload]:
        """Decides what stays in the record, what goes into the store, and under which names."""
        results, message = self._settings.results, work.message
        asked = message.output.object_uri(work.id) if message is not None and message.output is not None else None
        place = asked or (
            f"{results.store.rstrip('/')}/{queues.object_name(work.id)}.json" if results.store is not None else None
        )
        uploads: list[_Upload] = []
        inline = sum(one.inline_size for one in objects)
        if objects and place is not None and (asked is not None or inline > results.inline_max_bytes):
            for one in objects:
                one.put_at(objects_of(place) + one.name)
                uploads.append(_Upload(work, one.entry["uri"], one.data, one.media_type))
        else:
            if place is None:
                _check_inline(inline, results)
            for one in objects:
                one.put_inline()
        data = encode(value)
        if place is not None and (asked is not None or len(data) > results.inline_max_bytes):
            return [*uploads, _Upload(work, place, data, RESULT_TYPE)]
        _check_inline(len(data), results)
        work.result = json.loads(data)
        if uploads and work.has_next:
            work.handed_on = json.loads(data)
            assert place is not None
            sign_objects(work.handed_on, place, self._signatures)
        return uploads

    def _upload(self, upload: _Upload) -> None:
        work, uri = upload.work, upload.uri
        if work.error is not None:
            return
        try:
            with work.timed("deliver"):
                self._store.put(uri, upload.data, upload.media_type)
            if upload.is_result():
                work.result = {"uri": uri}
                work.result_uri = uri
                if work.has_next:
                    sha256 = hashlib.sha256(upload.data).hexdigest()
                    signature = self._signatures.sign(uri, "result", sha256)
                    work.handed_on = {"uri": uri, "sha256": sha256, "signature": signature}
        except PipeqError as error:
            work.fail(error)
        except Exception as error:
            logger.exception("task %s: cannot write %s", work.id, uri, extra={"action": "deliver"})
            work.fail(
                PipeqError(ErrorCode.OUTPUT_FAILED, f"cannot write {shown.uri(uri)}: {shown.line(str(error))}", False)
            )

    def _trace(self, work: Work) -> Any:
        """Runs Celery's tracer, whose body is :attr:`outcome`."""
        retry, fence, error = self._next_try(work), self._fence(work), work.error
        note = Annotation(
            _status(work, retrying=retry is not None),
            queues.dead_letter_key(work.queue),
            _dead_letter(work) if work.error is not None and retry is None else "",
            fence,
            work.tag if fence is not None else "",
            None if work.handed_on is None else (work.result,),
            retry,
        )

        def end() -> Any:
            if error is None:
                return work.result if work.handed_on is None else work.handed_on
            # A new one: what is raised gets frames, and they hold all that is delivered beside it.
            problem = PipeqError(error.code, error.message, error.retryable)
            if retry is not None:
                raise CeleryRetry(str(problem), exc=problem, when=retry.due - time.time())
            raise problem

        tokens = outcome.set(end), annotation.set(note)
        try:
            ended = work.trace()
            if ended[0]:  # failed; then Celery's ExceptionInfo follows
                forget(ended[1].exception)
            return ended
        finally:
            outcome.reset(tokens[0])
            annotation.reset(tokens[1])

    def _give_up(self, work: Work, cause: Exception) -> None:
        """Celery cannot end this task, because of something in its message: it fails without links and callbacks."""
        logger.error("task %s cannot be ended: %r", work.id, cause, extra={"action": "deliver"})
        if not isinstance(cause, PipeqError):
            sentence = f"its message cannot be worked with: {type(cause).__name__}: {shown.line(str(cause))}"
            cause = PipeqError(ErrorCode.INVALID_MESSAGE, sentence)
        work.error = PipeqError(cause.code, cause.message, cause.retryable)
        letter = Annotation(_status(work, retrying=False), queues.dead_letter_key(work.queue), _dead_letter(work))
        # The message is acknowledged afterwards, whatever became of it here.
        token = annotation.set(letter)
        try:
            self._app.backend.mark_as_failure(work.id, work.error)
        except _AWAY:
            _put_back(work)
            return
        finally:
            annotation.reset(token)
        celery_state.task_ready(work.request)
        work.request.acknowledge()

    def _next_try(self, work: Work) -> Retry | None:
        error = work.error
        if error is None or not error.retryable or work.retries + 1 >= self._settings.max_attempts:
            return None
        retry = self._retries.next_try(work)
        delay_s = retry.due - time.time()
        logger.info("task %s retries in %.1f s: %s", work.id, delay_s, error, extra={"action": "retry"})
        return retry


def body(*_: Any, **__: Any) -> Any:
    """The body of the Celery task ``pipeq.infer``; its arguments have become an outcome by the time it runs."""
    end = outcome.get()
    if end is None:
        raise PipeqError(ErrorCode.INTERNAL, "pipeq.infer runs only in pipeq's own pool: start it with `pipeq worker`")
    return end()


def encode(value: Any) -> bytes:
    """A converted output as JSON."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise PipeqError(
            ErrorCode.INFERENCE_FAILED, "the model's output holds NaN or infinity; is its dtype too narrow?"
        ) from error


def _value(work: Work) -> Any:
    """The outputs of a task's items -> its result."""
    pipeline = work.pipeline
    assert pipeline is not None
    results = [pipeline.postprocess(outputs, work.params) for outputs in work.outputs]
    if work.is_list:
        return results
    return pipeline.result(results[0], work.inputs[0].call_value, work.params)


def _check_inline(size: int, results: ResultSettings) -> None:
    limit = max(INLINE_LIMIT, results.inline_max_bytes)
    if size > limit:
        raise PipeqError(
            ErrorCode.OUTPUT_FAILED,
            f"the result is {size} bytes, at most {limit} stay inline: set `store` in [results] of the worker's "
            'settings, for instance store = "s3://results/", or submit the task with an output',
            False,
        )


def _status(work: Work, *, retrying: bool) -> dict[str, Any]:
    """The task's status as its record keeps it, without the result."""
    now = time.time()
    before = (work.record or {}).get("pipeq")
    before = before if isinstance(before, dict) else {}
    submitted_at = number(before.get("submitted_at"))
    timing = {"queue": round((work.received_at - submitted_at) * 1000, 3)} if submitted_at else {}
    status: dict[str, Any] = {
        "pipeline": work.pipeline.name if work.pipeline else (work.message.pipeline if work.message else None),
        "submitted_at": submitted_at,
        "expires_at": number(before.get("expires_at")),
        # By it a client knows another task that was given the same id.
        "message_sha256": before.get("message_sha256"),
        "started_at": work.started_at,
        "finished_at": None if retrying else now,
        "attempts": work.attempt or work.retries + 1,
        "worker": work.request.hostname,
        "timing_ms": {**timing, **work.timing_ms},
        "batch": work.batch.model_dump() if work.batch else None,
        "model": work.pipeline.model.model_dump() if work.pipeline else None,
        "result_uri": work.result_uri,
    }
    if work.error is not None:
        error = work.error
        status["error"] = {"code": error.code, "message": error.message, "retryable": error.retryable}
    return {name: value for name, value in status.items() if value is not None}


def _dead_letter(work: Work) -> str:
    assert work.error is not None
    return dead_letter(work.id, work.error.code, work.error.message, raw_frame(work.request.message))


def _is_gone(work: Work) -> bool:
    return work.is_over or work.is_lost or work.is_terminated


def _put_back(work: Work) -> None:
    """Its result could not be stored: the message goes back on its queue."""
    try:
        celery_state.task_ready(work.request)
        work.request.reject(requeue=True)
    except Exception:
        logger.exception("task %s goes back when its lease lapses", work.id, extra={"action": "deliver"})
        if work.leases is not None:
            work.leases.release([work.tag])


def _let_go(work: Work) -> None:
    """Its message is acknowledged, whatever Celery makes of it."""
    try:
        celery_state.task_ready(work.request)
        work.request.acknowledge()
    except Exception:
        logger.exception("task %s", work.id, extra={"action": "deliver"})
    if work.leases is not None:
        work.leases.acknowledge(work.tag)  # of no effect where that has happened


def _drop(work: Work) -> None:
    """Acknowledges a task that has ended elsewhere: cancelled, expired, revoked, or finished by another worker."""
    if work.is_lost:
        # Somebody else has the message, or will.
        if work.leases is not None:
            work.leases.release([work.tag])
        celery_state.task_ready(work.request)
        # Of no effect in Redis, where the lease is gone; here the request is done with.
        work.request.acknowledge()
        return
    if work.is_terminated and not work.is_over:
        if work.id in celery_state.revoked:
            work.request.revoked()
        # Else it is a cold shutdown that cancels what is inside: unacknowledged, the message goes back on its queue.
    elif work.is_expired():
        work.request.revoked()
    else:
        celery_state.task_ready(work.request)
        work.request.acknowledge()
