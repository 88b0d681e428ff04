"""BEGIN: tells Celery that tasks start, and marks them as running, or drops them. Between batcher and infer."""

from __future__ import annotations

import logging
from contextlib import suppress

from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError
from redis.exceptions import RedisError

from pipeq_worker.delivery.delivery import Delivery
from pipeq_worker.delivery.marks import Marks
from pipeq_worker.observe.outage import outage

logger = logging.getLogger(__name__)


class Beginning:
    """Handles deliveries that the engine is about to run. No method raises.

    Args:
        marks: the running marks.
    """

    def __init__(self, marks: Marks) -> None:
        self._marks = marks

    def begin(self, deliveries: list[Delivery], alone: bool) -> None:
        """Marks tasks as running. If a worker died while running a task, it is marked only when it runs alone."""
        deliveries = [one for one in deliveries if not (alone and one.is_marked)]
        for one in deliveries:
            try:
                one.is_over = one.is_expired()
                if not one.is_over:
                    one.start()
            except Exception as error:
                # Celery acts on fields of the message here, and may fail on values that the earlier checks let through.
                logger.exception("task %s cannot begin", one.id, extra={"action": "batch", "task_id": one.id})
                sentence = f"its message cannot be worked with: {type(error).__name__}: {shown.line(str(error))}"
                one.fail(PipeqError(ErrorCode.INVALID_MESSAGE, sentence))
        deliveries = [one for one in deliveries if not one.needs_no_device]
        if not deliveries:
            return
        try:
            self._marks.begin(deliveries, alone=alone)
        except RedisError as error:
            # The marks only inform observers. The results can still be stored when Redis is back.
            outage.noticed("mark", error)
        except Exception:
            logger.exception("a batch runs without marks", extra={"action": "batch"})
        else:
            outage.over("mark")
            for leases in {one.leases for one in deliveries if one.is_lost and one.leases is not None}:
                leases.lose(one.tag for one in deliveries if one.is_lost and one.leases is leases)

    def died(self, deliveries: list[Delivery]) -> None:
        """Notes that a process of this worker has died with these tasks."""
        for one in deliveries:
            one.is_marked = False
        try:
            self._marks.died(deliveries)
        except RedisError as error:
            # This worker counts them itself; only if it died, too, would the next one not know.
            outage.noticed("mark", error)

    def look(self, deliveries: list[Delivery]) -> None:
        """Finds the deliveries whose tasks were cancelled. If Redis is away, a later check finds them."""
        with suppress(RedisError):
            self._marks.look(deliveries)
