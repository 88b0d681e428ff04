"""What becomes of a task's message: back on its queue, acknowledged, or left to whoever has it now."""

from __future__ import annotations

import logging

from celery.worker import state as celery_state

from pipeq_worker.delivery.delivery import Delivery

logger = logging.getLogger(__name__)


def put_back(delivery: Delivery) -> None:
    """Its result could not be stored: the message goes back on its queue."""
    try:
        celery_state.task_ready(delivery.request)
        delivery.request.reject(requeue=True)
    except Exception:
        logger.exception("task %s goes back when its lease lapses", delivery.id, extra={"action": "deliver"})
        if delivery.leases is not None:
            delivery.leases.release([delivery.tag])


def let_go(delivery: Delivery) -> None:
    """Its message is acknowledged, whatever Celery makes of it."""
    try:
        celery_state.task_ready(delivery.request)
        delivery.request.acknowledge()
    except Exception:
        logger.exception("task %s", delivery.id, extra={"action": "deliver"})
    if delivery.leases is not None:
        delivery.leases.acknowledge(delivery.tag)  # of no effect where that has happened


def drop(delivery: Delivery) -> None:
    """Acknowledges a task that has ended elsewhere: cancelled, expired, revoked, or finished by another worker."""
    if delivery.is_lost:
        # Somebody else has the message, or will.
        if delivery.leases is not None:
            delivery.leases.release([delivery.tag])
        celery_state.task_ready(delivery.request)
        # Of no effect in Redis, where the lease is gone; here the request is done with.
        delivery.request.acknowledge()
        return
    if delivery.is_terminated and not delivery.is_over:
        if delivery.id in celery_state.revoked:
            delivery.request.revoked()
        # Else it is a cold shutdown that cancels what is inside: unacknowledged, the message goes back on its queue.
    elif delivery.is_expired():
        delivery.request.revoked()
    else:
        celery_state.task_ready(delivery.request)
        delivery.request.acknowledge()
