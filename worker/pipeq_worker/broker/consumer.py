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
from typing import TYPE_CHECKING, Any

from celery.utils.time import maybe_iso8601
from celery.worker import state as celery_state
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.consumer.consumer import logger as celery_logger
from kombu.exceptions import OperationalError
from kombu.utils import json as kombu_json
from pipeq.contract import keys as queues
from pipeq.contract import shown
from pipeq.contract.reading import UnreadableError, json_value
from redis.exceptions import RedisError, ResponseError

from pipeq_worker.broker import protocol
from pipeq_worker.broker.serving import runtime_of
from pipeq_worker.delivery.dead_letter import raw_frame
from pipeq_worker.delivery.refuse import refuse
from pipeq_worker.leases import celery_internals
from pipeq_worker.leases.leases import Leases
from pipeq_worker.leases.reserved import Reserved
from pipeq_worker.observe.outage import is_wrong_type, outage

if TYPE_CHECKING:
    from pipeq_worker.host.runtime import Runtime

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
                # A key that this message alone needs.
                self._refuse(message, shown.line(str(error)))
            except _AWAY:
                # Not the message's fault. Celery's own list of such errors holds KeyError, too.
                raise
            except Exception as error:
                self._refuse(message, f"{type(error).__name__}: {shown.line(str(error))}")

        return on_task_received

    def _listen(self, leases: Leases) -> None:
        """Has the leases tell the pool and this consumer what happens, from the start of the worker on.

        A worker that never gets a message may be the one that hangs.
        """
        leases.on_unreadable = self._unreadable
        if self._runtime is not None:
            leases.on_lost, leases.on_stalled = self.pool.on_lost_leases, self.pool.on_stalled

    @property
    def _runtime(self) -> Runtime | None:
        return runtime_of(self.app)

    def _broken(self, message: Any) -> str | None:
        """What in a message cannot be worked with; None for nothing."""
        headers = message.headers
        if "task" not in headers:
            return "it is not in Celery's message protocol 2, which has the task's name among its headers"
        if (reason := protocol.broken_headers(headers, message.properties)) is not None:
            return reason
        task = headers["task"]
        if task != queues.TASK_NAME:
            if task not in self.app.tasks or self._has_tasks_of_its_own():
                return None
            # Celery brings some along (celery.map, celery.chord_unlock, ...), which run whatever they are told to.
            return f"it is for the task {task!r}, this worker runs {queues.TASK_NAME!r} alone (see `--include`)"
        if not queues.is_task_id(headers.get("id")):
            return f"its id {str(headers.get('id'))[:100]!r} is not {queues.TASK_ID_WORDS}"
        try:
            # As kombu would read it, but to a depth that nothing here is surprised by. It does not read it again.
            payload = json_value(message.body, kombu_json.object_hook)
        except (UnreadableError, ArithmeticError, AttributeError, LookupError, TypeError) as error:
            return f"its body cannot be decoded: {shown.line(str(error))}"
        celery_internals.set_payload(message, payload)
        return protocol.broken_body(payload)

    def _has_tasks_of_its_own(self) -> bool:
        return self._runtime is None or bool(self._runtime.settings.include)

    def _postpone(self, message: Any) -> bool:
        """Sends back a message that is not due yet: Celery would keep it, its memory and its credit until it is."""
        leases = getattr(message.channel, "leases", None)
        eta = _seconds(message.headers.get("eta"))
        queue = (message.delivery_info or {}).get("routing_key", "")
        # Only `pipeq worker` puts back what waits; in another app it would wait for ever.
        if self._runtime is None or queue not in self._runtime.queues:
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
        reason = f"the message is not ours: {reason}"
        refuse(self.app, self.hostname, queue, message.headers.get("id"), reason, raw_frame(message))
        message.ack_log_error(logger, self.connection_errors)

    def _unreadable(self, one: Reserved, task_id: str, reason: str, text: str) -> bool:
        """A message that is no frame of kombu's, in which an id was found all the same."""
        refuse(self.app, self.hostname, one.queue, task_id, reason, text)
        self.task_consumer.channel.leases.acknowledge(one.tag)
        return True


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
