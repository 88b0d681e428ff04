"""Celery's consumer, changed so that a foreign message neither stops the worker nor is lost.

Celery rejects a message that it does not understand, and on Redis a rejected message is dropped. Here, each such
message is first put into the dead-letter list of its queue, and then acknowledged. If it has an id, its task also ends
as a FAILURE that its producer can read.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC
from typing import TYPE_CHECKING, Any

from celery.utils.time import maybe_iso8601
from celery.worker import state as celery_state
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.consumer.consumer import logger as celery_logger
from kombu.exceptions import OperationalError
from pipeq.contract import keys, shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.reading import UnreadableError
from redis.exceptions import RedisError, ResponseError

from pipeq_worker.broker import protocol
from pipeq_worker.broker.serving import runtime_of
from pipeq_worker.delivery.dead_letter import raw_frame
from pipeq_worker.delivery.refuse import refuse
from pipeq_worker.delivery.retries import PREFER_OTHERS_S
from pipeq_worker.leases import celery_internals
from pipeq_worker.leases.leases import Leases
from pipeq_worker.leases.reserved import Reserved
from pipeq_worker.observe.outage import is_wrong_type, outage

if TYPE_CHECKING:
    from pipeq_worker.host.runtime import Runtime

logger = logging.getLogger(__name__)

#: Messages that are due within this time stay with Celery, which waits for them itself, in seconds.
SOON_S = 1.0
RECONNECT_S = 0.5
#: A task that is left to other workers waits for so long, in seconds; it may come back to this one.
LEAVE_S = 1.0
#: How often the event loop shows that it turns, in seconds.
PULSE_S = 1.0

#: Errors of a Redis that is away or refuses commands.
_AWAY = (RedisError, OSError, OperationalError)


class Consumer(CeleryConsumer):
    """See the module. Celery's setting ``worker_consumer`` names it."""

    #: The timer that shows that the event loop turns.
    _pulse: Any = None

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """Handles all bad messages. Celery's own handler catches three kinds; others would stop the worker."""
        handle = super().create_task_handler(*args, **kwargs)
        if (leases := getattr(self.task_consumer.channel, "leases", None)) is not None:
            self._listen(leases)

        def on_task_received(message: Any) -> None:
            try:
                if (reason := self._broken(message)) is not None:
                    self._refuse(message, reason)
                elif not self._postpone(message):
                    handle(message)
            except ResponseError as error:
                if not is_wrong_type(error):
                    raise
                # Redis refused a key that only this message needs.
                self._refuse(message, shown.line(str(error)))
            except _AWAY:
                # Not a fault of the message. Must be raised first: Celery's own list of connection errors contains
                # KeyError.
                raise
            except Exception as error:
                self._refuse(message, f"{type(error).__name__}: {shown.line(str(error))}")

        return on_task_received

    def _listen(self, leases: Leases) -> None:
        """Connects the callbacks of the leases to the pool and this consumer.

        This happens when the worker starts, because a worker that never gets a message may be the one that hangs.
        """
        leases.on_unusable, leases.worker = self._unusable, self.hostname
        if self._runtime is not None:
            leases.on_lost, leases.on_stalled = self.pool.on_lost_leases, self.pool.on_stalled
            leases.observer, dispatcher = self._runtime.observer, self._runtime.dispatcher
            leases.claim, leases.disclaim = dispatcher.claim, dispatcher.disclaim
            leases.sharing = self.pool.sharing(leases)
            leases.sees_records = leases.server.place == self._runtime.deliverer.server
            self.task_consumer.channel.intake = self.pool.intake(self).take
            leases.stalls = [self._runtime.deliverer.turns.hangs]
            self._runtime.seen.health.watch(leases.hangs)

    @property
    def _runtime(self) -> Runtime | None:
        return runtime_of(self.app)

    def _broken(self, message: Any) -> str | None:
        """Returns why a message cannot be used; None if it can."""
        headers = message.headers
        if "task" not in headers:
            return "it is not in Celery's message protocol 2, which has the task's name among its headers"
        if (reason := protocol.broken_headers(headers, message.properties)) is not None:
            return reason
        task = headers["task"]
        if task != keys.TASK_NAME:
            if task not in self.app.tasks or self._has_tasks_of_its_own():
                return None
            # Celery registers tasks of its own (celery.map, celery.chord_unlock, ...), which run whatever a message
            # says.
            return f"it is for the task {task!r}, this worker runs {keys.TASK_NAME!r} alone (see `--include`)"
        if not keys.is_task_id(headers.get("id")):
            return f"its id {str(headers.get('id'))[:100]!r} is not {keys.TASK_ID_WORDS}"
        try:
            payload = protocol.body_value(message.body)
        except (UnreadableError, ArithmeticError, AttributeError, LookupError, TypeError) as error:
            return f"its body cannot be decoded: {shown.line(str(error))}"
        # Neither kombu nor Celery decodes the body again.
        celery_internals.set_payload(message, payload)
        return protocol.broken_body(payload)

    def _has_tasks_of_its_own(self) -> bool:
        return self._runtime is None or bool(self._runtime.settings.include)

    def _postpone(self, message: Any) -> bool:
        """Puts a message that is not due here yet into the waiting set. Celery would keep it, and its credit."""
        leases = getattr(message.channel, "leases", None)
        queue = (message.delivery_info or {}).get("routing_key", "")
        # Only `pipeq worker` puts waiting messages back; in another app the message would wait for ever.
        if self._runtime is None or queue not in self._runtime.queues:
            return False
        eta = _seconds(message.headers.get("eta"))
        if eta is None or eta - time.time() < SOON_S:
            eta = self._left_until(message.headers.get(keys.FAILED_ON_HEADER), self._runtime.others(queue))
        if leases is None or eta is None:
            return False
        leases.postpone(message.delivery_tag, keys.waiting_key(queue), eta)
        message.ack_log_error(logger, self.connection_errors)  # only in this process: in Redis, the message waits
        return True

    def _left_until(self, failed_on: Any, others: frozenset[str]) -> float | None:
        """How long a task is left to other workers, because this one could not do it a moment ago; None if it is not.

        Args:
            failed_on: the workers that could not do it -> when, in seconds since the epoch.
            others: those that live.
        """
        now = time.time()
        lately = {name for name, at in (failed_on or {}).items() if abs(now - at) < PREFER_OTHERS_S}
        return now + LEAVE_S if self.hostname in lately and others - lately else None

    def ensure_connected(self, conn: Any) -> Any:
        """Connects; tries twice a second until it succeeds. Celery's own method waits longer and logs each try."""
        errors = conn.recoverable_connection_errors
        while True:
            celery_state.maybe_shutdown()
            try:
                self._turned()
                conn.connect()
            except errors as error:
                outage.noticed("connect", error)
                time.sleep(RECONNECT_S)
            else:
                return conn

    def loop_args(self) -> Any:
        """Called when all parts have started. Only then is the outage over: Redis may have refused one of them."""
        outage.over("connect")
        if self._pulse is not None:
            self._pulse.cancel()
        self._pulse = self.timer.call_repeatedly(PULSE_S, self._turned)
        return super().loop_args()

    def _turned(self) -> None:
        if self._runtime is not None:
            self._runtime.seen.health.loop.turned()

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        """Called when the connection for broadcasts breaks; logs it without Celery's long warning."""
        outage.noticed("connect", exc)
        with _below_warning(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super().on_connection_error_after_connected(exc)

    def on_connection_error_before_connected(self, exc: BaseException) -> None:
        """Called between two tries to connect."""
        outage.noticed("connect", exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Called with a message in neither of Celery's message protocols."""
        self._refuse(message, "it is no Celery task message")

    def on_unknown_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """Called with a message for a task that this worker does not have."""
        self._refuse(
            message, f"it is for the task {message.headers.get('task')!r}, this worker runs {keys.TASK_NAME!r}"
        )

    def on_invalid_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """Called with a message whose body or headers Celery cannot use."""
        self._refuse(message, str(exc))

    def on_decode_error(self, message: Any, exc: BaseException) -> None:
        """Called with a message whose body has an encoding that is not accepted."""
        self._refuse(message, f"its body cannot be decoded: {exc}")

    def _refuse(self, message: Any, reason: str) -> None:
        queue = (message.delivery_info or {}).get("routing_key") or ""
        error = PipeqError(ErrorCode.INVALID_MESSAGE, f"the message is not ours: {reason}")
        task_id = message.headers.get("id")
        refuse(self.app, self.hostname, queue, task_id, error, raw_frame(message))
        self._tell_refused(queue, task_id, error)
        message.ack_log_error(logger, self.connection_errors)

    def _tell_refused(self, queue: str, task_id: Any, error: PipeqError) -> None:
        if (runtime := self._runtime) is not None:
            runtime.observer.message_refused(queue, error.message)
            if keys.is_readable_id(task_id):
                name = queue if queue in runtime.pipelines else None
                runtime.observer.task_ended(task_id, name, "failed", error.code, {})

    def _unusable(self, one: Reserved, task_id: str, error: PipeqError, text: str, attempts: int) -> bool:
        """Ends a message that is not a kombu frame, or that workers die of, but in which an id was found."""
        refuse(self.app, self.hostname, one.queue, task_id, error, text, attempts)
        self._tell_refused(one.queue, task_id, error)
        self.task_consumer.channel.leases.acknowledge(one.tag)
        return True


def _seconds(eta: Any) -> float | None:
    """Returns the time in a header, in seconds since the epoch; None if there is none or Celery must judge it."""
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
