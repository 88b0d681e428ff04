"""What happens to a task's message: it goes back on its queue, is acknowledged, or is left to its new holder.

In Redis, the script that stores a result acknowledges the message in the same step. Celery must still be told.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from celery.utils.saferepr import saferepr
from celery.worker import state as celery_state

from pipeq_worker.delivery.delivery import Delivery

logger = logging.getLogger(__name__)


def put_back(delivery: Delivery) -> None:
    """Puts a message back on its queue, because its result could not be stored."""
    try:
        celery_state.task_ready(delivery.request)
        delivery.request.reject(requeue=True)
    except Exception:
        logger.exception(
            "task %s goes back when its lease lapses", delivery.id, extra={"action": "deliver", "task_id": delivery.id}
        )
        if delivery.leases is not None:
            delivery.leases.release([delivery.tag])


def tell(delivery: Delivery, ended: Any) -> None:
    """Tells Celery how a task ended by its tracer; Celery acknowledges the message if that has not been done."""
    delivery.acknowledge(ended)


def tell_success(delivery: Delivery, *, is_acknowledged: bool) -> None:
    """Tells Celery that a task has succeeded, as the end of its tracer would.

    Args:
        delivery: the task.
        is_acknowledged: whether its message is acknowledged in Redis.
    """
    request = delivery.request
    if not is_acknowledged or has_events(request.eventer):
        runtime_s = time.time() - (delivery.started_at or delivery.received_at)
        delivery.acknowledge((0, saferepr(delivery.result, request.task.resultrepr_maxsize), runtime_s))
        return
    # Without events this is all of it. Celery would wake its event loop for each message, to acknowledge it there.
    celery_state.task_ready(request, successful=True)
    _acknowledged(request)


def tell_put_off(delivery: Delivery, *, is_acknowledged: bool) -> None:
    """Tells Celery that a task, which nobody has tried, waits in Redis.

    Args:
        delivery: the task.
        is_acknowledged: whether its message is acknowledged in Redis.
    """
    request = delivery.request
    celery_state.task_ready(request)
    if is_acknowledged:
        _acknowledged(request)
    else:
        request.acknowledge()


def _acknowledged(request: Any) -> None:
    if not request.acknowledged:
        request.acknowledged = True
        # kombu does not know of a message that nobody has asked for.
        if getattr(request, "is_filled", True):
            request.message.ack_log_error(logger, request.connection_errors)


def has_events(eventer: Any) -> bool:
    """Whether events of tasks are sent: by ``enable_events``, for instance. Heartbeats of workers always are."""
    return eventer is not None and eventer.enabled and (not eventer.groups or "task" in eventer.groups)


def let_go(delivery: Delivery) -> None:
    """Acknowledges a message even if Celery fails to."""
    try:
        celery_state.task_ready(delivery.request)
        delivery.request.acknowledge()
    except Exception:
        logger.exception("task %s", delivery.id, extra={"action": "deliver", "task_id": delivery.id})
    if delivery.leases is not None:
        delivery.leases.acknowledge(delivery.tag)  # does nothing if it was acknowledged above


def drop(delivery: Delivery) -> None:
    """Acknowledges a task that has ended elsewhere: cancelled, expired, revoked, or finished by another worker."""
    if delivery.is_lost:
        # Another worker has the message, or will have it.
        if delivery.leases is not None:
            delivery.leases.release([delivery.tag])
        celery_state.task_ready(delivery.request)
        # Changes nothing in Redis, where the lease is gone, but ends the request in this process.
        delivery.request.acknowledge()
        return
    if delivery.is_terminated and not delivery.is_over:
        if delivery.id in celery_state.revoked:
            delivery.request.revoked()
        # Otherwise a cold shutdown cancels what is inside: unacknowledged, the message goes back on its queue.
    elif delivery.is_expired():
        delivery.request.revoked()
    else:
        celery_state.task_ready(delivery.request)
        delivery.request.acknowledge()
