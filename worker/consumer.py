"""Celery's consumer, which a message that is not ours neither stops nor loses.

Celery rejects what it does not understand, which on Redis drops it. Here each such message is acknowledged only after
it is in the dead-letter list of its queue, and, where it has an id, ends as a FAILURE that its producer can read.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC
from typing import Any

from celery.utils.time import maybe_iso8601
from celery.worker import state as celery_state
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.consumer.consumer import logger as celery_logger
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from producers import queues
from producers.errors import ErrorCode, PipeqError
from worker.backend import Annotation, annotation
from worker.dead_letter import dead_letter, push, raw_frame
from worker.outage import outage

logger = logging.getLogger(__name__)

#: Celery itself waits for what is due this soon, in seconds.
SOON_S = 1.0
RECONNECT_S = 0.5

#: Redis is away, or refuses.
_AWAY = (RedisError, OSError, OperationalError)


class Consumer(CeleryConsumer):
    """See the module. Named by the setting ``worker_consumer``."""

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """Celery catches three kinds of bad message; the rest (a body of the wrong shape) would stop the worker."""
        handle = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> None:
            try:
                if (reason := _broken(message)) is not None:
                    self._refuse(message, reason)
                elif not self._postpone(message):
                    handle(message)
            except _AWAY:
                # Not the message's fault. Celery's own list of such errors holds KeyError, too.
                raise
            except Exception as error:
                self._refuse(message, f"{type(error).__name__}: {error}")

        return on_task_received

    def _postpone(self, message: Any) -> bool:
        """Sends back a message that is not due yet: Celery would keep it, its memory and its credit until it is."""
        leases = getattr(message.channel, "leases", None)
        eta = _seconds(message.headers.get("eta"))
        queue = (message.delivery_info or {}).get("routing_key", "")
        # Only `pipeq worker` puts back what waits; in another app it would wait for ever.
        if queue not in (self.app.pipeq.queues if hasattr(self.app, "pipeq") else ()):
            return False
        if leases is None or eta is None or eta - time.time() < SOON_S:
            return False
        leases.postpone(message.delivery_tag, queues.waiting_key(queue), eta)
        message.ack_log_error(logger, self.connection_errors)  # here alone: in Redis it waits
        return True

    def ensure_connected(self, conn: Any) -> Any:
        """Tries until it succeeds, twice a second; Celery's own waits longer each time, and logs each time."""
        errors = conn.recoverable_connection_errors
        while True:
            celery_state.maybe_shutdown()
            try:
                conn.connect()
            except errors as error:
                outage.noticed("connect", error)
                time.sleep(RECONNECT_S)
            else:
                return conn

    def loop_args(self) -> Any:
        """Called when every part is started, so that one that Redis refuses is not said to be over meanwhile."""
        outage.over("connect")
        return super().loop_args()

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        """The connection for broadcasts broke, which Celery makes a warning with a lecture of."""
        outage.noticed("connect", exc)
        with _below_warning(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super().on_connection_error_after_connected(exc)

    def on_connection_error_before_connected(self, exc: BaseException) -> None:
        """Another try follows."""
        outage.noticed("connect", exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Neither of Celery's message protocols."""
        self._refuse(message, "it is no Celery task message")

    def on_unknown_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """A task that this worker does not have."""
        self._refuse(
            message, f"it is for the task {message.headers.get('task')!r}, this worker runs {queues.TASK_NAME!r}"
        )

    def on_invalid_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """A body or header that Celery cannot use."""
        self._refuse(message, str(exc))

    def on_decode_error(self, message: Any, exc: BaseException) -> None:
        """A body in an encoding that is not accepted."""
        self._refuse(message, f"its body cannot be decoded: {exc}")

    def _refuse(self, message: Any, reason: str) -> None:
        queue = (message.delivery_info or {}).get("routing_key") or ""
        task_id = message.headers.get("id") if isinstance(message.headers, dict) else None
        error = PipeqError(ErrorCode.INVALID_MESSAGE, f"the message is not ours: {reason}")
        logger.error("on %s: %s", queue, error, extra={"action": "dead_letter"})
        letter = dead_letter(task_id, error.code, error.message, raw_frame(message))
        key = queues.dead_letter_key(queue)
        if queues.is_readable_id(task_id):
            status = {
                "error": {"code": error.code, "message": error.message, "retryable": False},
                "finished_at": time.time(),
                "worker": self.hostname,
            }
            token = annotation.set(Annotation(status, key, letter))
            try:
                self.app.backend.mark_as_failure(task_id, error)
            finally:
                annotation.reset(token)
        else:
            push(self.app.backend.client, queue, letter, self.app.conf["pipeq_dead_letter_max"])
        message.ack_log_error(logger, self.connection_errors)


def _seconds(eta: Any) -> float | None:
    """The time of a header, in seconds since the epoch; None for none, or one that Celery shall judge."""
    if not isinstance(eta, str):
        return None
    try:
        at = maybe_iso8601(eta)
    except ValueError:
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


@contextmanager
def _below_warning() -> Iterator[None]:
    level = celery_logger.level
    celery_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        celery_logger.setLevel(level)


def _broken(message: Any) -> str | None:
    """What in one of our messages cannot be worked with; None for nothing, or for somebody else's."""
    headers = message.headers
    if not isinstance(headers, dict) or "task" not in headers:
        return "it is not in Celery's message protocol 2, which has the task's name among its headers"
    if headers["task"] != queues.TASK_NAME:
        return None
    task_id, retries = headers.get("id"), headers.get("retries")
    if not queues.is_task_id(task_id):
        return f"its id {str(task_id)[:100]!r} is not {queues.TASK_ID_WORDS}"
    if retries is not None and (not isinstance(retries, int) or isinstance(retries, bool) or retries < 0):
        return f"its number of retries is {retries!r}"
    payload = message.payload
    if not isinstance(payload, list) or len(payload) != 3 or not isinstance(payload[2], dict):
        return "its body is not [args, kwargs, embed]"
    return None
