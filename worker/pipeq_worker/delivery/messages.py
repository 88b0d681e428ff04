"""What happens to a task's message: it goes back on its queue, is acknowledged, or is left to its new holder."""

from __future__ import annotations

import logging

from celery.worker import state as celery_state

from pipeq_worker.delivery.delivery import Delivery

logger = logging.getLogger(__name__)


def put_back(delivery: Delivery) -> None:
    """Puts a message back on its queue, because its result could not be stored."""
    try:
        celery_state.task_ready(delivery.request)
        delivery.request.reject(requeue=True)
    except Exception:
        logger.exception("task %s goes back when its lease lapses", delivery.id, extra={"action": "deliver"})
        if delivery.leases is not None:
            delivery.leases.release([delivery.tag])


def let_go(delivery: Delivery) -> None:
    """Acknowledges a message even if Celery fails to."""
    try:
        celery_state.task_ready(delivery.request)
        delivery.request.acknowledge()
    except Exception:
        logger.exception("task %s", delivery.id, extra={"action": "deliver"})
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
