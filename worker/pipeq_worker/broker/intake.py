"""INTAKE: plain messages -> deliveries, past kombu and Celery. Before: reserver. After: dispatcher.

A message takes this way if it is plain (plain_message.py), and as long as nobody watches messages come in: no receiver
of a signal, no events of tasks, no rate limit. All others are left to kombu's and Celery's own way, which ends in
:meth:`pipeq_worker.broker.pool.TaskPool.on_apply`. Both ways find the same in a message, which
``tests/unit/pipeq_worker/broker/test_plain_message.py`` compares.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from celery import signals
from celery.worker import state as celery_state
from celery.worker import strategy
from pipeq.contract import keys

from pipeq_worker.broker import plain_message, protocol
from pipeq_worker.broker.late_request import LateRequest, Requesting
from pipeq_worker.broker.requests import facts_of_plain
from pipeq_worker.children.served import Served
from pipeq_worker.delivery.delivery import Delivery
from pipeq_worker.delivery.messages import has_events
from pipeq_worker.leases import celery_internals, frame
from pipeq_worker.leases.leases import Leases
from pipeq_worker.leases.reserved import Reserved

logger = logging.getLogger(__name__)


class Intake:
    """Takes the plain messages of a consumer.

    Args:
        consumer: Celery's.
        pipelines: those of the worker.
        take: called with deliveries; takes them into the pool.
        has: whether the pool has a task of this id already.
    """

    def __init__(
        self,
        consumer: Any,
        pipelines: Mapping[str, Served],
        take: Callable[[list[Delivery]], None],
        has: Callable[[str], bool],
    ) -> None:
        self._consumer = consumer
        self._channel = consumer.task_consumer.channel
        self._leases: Leases = self._channel.leases
        self._pipelines = pipelines
        self._take = take
        self._has = has
        app = consumer.app
        task = app.tasks[keys.TASK_NAME]
        self._common = Requesting(app, task, consumer.hostname, consumer.event_dispatcher, consumer.connection_errors)
        self._is_stock = task.Strategy == "celery.worker.strategy:default" and (
            task.Request == "celery.worker.request:Request"
        )

    def is_watched(self) -> bool:
        """Whether somebody wants to know of each message that comes in, or slows them down."""
        consumer = self._consumer
        return not self._is_stock or bool(
            has_events(self._common.eventer)
            or signals.task_received.receivers
            or consumer.on_task_message
            or (not consumer.disable_rate_limits and consumer.task_buckets[keys.TASK_NAME])
            or strategy.logger.isEnabledFor(logging.INFO)
        )

    def take(self, reserved: list[Reserved]) -> list[Reserved]:
        """Takes those messages that it can, and returns the others, in order."""
        if self.is_watched():
            return reserved
        left: list[Reserved] = []
        taken: dict[str, Delivery] = {}
        for one in reserved:
            try:
                delivery = self._delivery(one)
            except Exception:
                # A message must neither be lost nor stop the worker, and the other way refuses what cannot be used.
                logger.exception("a message takes Celery's way", extra={"action": "intake"})
                delivery = None
            if delivery is None or delivery.id in taken:
                left.append(one)
            else:
                taken[delivery.id] = delivery
        if taken:
            self._take(list(taken.values()))
        return left

    def _delivery(self, one: Reserved) -> Delivery | None:
        pipeline = self._pipelines.get(one.queue)
        if pipeline is None or (message := plain_message.read(one, self._channel.limits(one.queue))) is None:
            return None
        task_id = message.headers.id
        if self._has(task_id) or task_id in celery_state.revoked:
            return None
        request = LateRequest(task_id, self._common, partial(self._message, one))
        now = time.time()
        delivery = Delivery(
            id=task_id,
            lane=one.queue,
            message=message.body,
            pipeline=pipeline,
            queue=one.queue,
            request=request,
            trace=request.trace,
            acknowledge=request.on_success,
            received_at=now,
            leases=self._leases,
            tag=one.tag,
            pack_of=message.pack_of,
            rows=message.rows,
            **facts_of_plain(message, now),
        )
        request.runs_as(delivery)
        celery_state.task_reserved(request)
        return delivery

    def _message(self, one: Reserved) -> Any:
        """Makes kombu's message, as the other way does."""
        found = frame.read(one, self._channel.limits(one.queue))
        assert isinstance(found, dict), found
        message = self._channel.Message(found, channel=self._channel)
        protocol.broken_headers(message.headers, message.properties)
        celery_internals.set_payload(message, protocol.body_value(message.body))
        return message
