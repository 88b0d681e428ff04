"""BEGIN: tasks before their first batch -> told Celery, marked as running, or dropped. Between batcher and infer."""

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
    """What the engine is told of deliveries on their way. Nothing here raises.

    Args:
        marks: the running marks.
    """

    def __init__(self, marks: Marks) -> None:
        self._marks = marks

    def begin(self, deliveries: list[Delivery], alone: bool) -> None:
        """Marks tasks as running, unless a worker died with one and it does not run alone."""
        deliveries = [one for one in deliveries if not (alone and one.is_marked)]
        for one in deliveries:
            try:
                one.is_over = one.is_expired()
                if not one.is_over:
                    one.start()
            except Exception as error:
                # Celery keeps books of what its messages say, and stumbles over what nobody foresaw.
                logger.exception("task %s cannot begin", one.id, extra={"action": "batch"})
                sentence = f"its message cannot be worked with: {type(error).__name__}: {shown.line(str(error))}"
                one.fail(PipeqError(ErrorCode.INVALID_MESSAGE, sentence))
        deliveries = [one for one in deliveries if not one.needs_no_device]
        if not deliveries:
            return
        try:
            self._marks.begin(deliveries, alone=alone)
        except RedisError as error:
            # The marks are for those who watch; the results still find their way when Redis is back.
            outage.noticed("mark", error)
        except Exception:
            logger.exception("a batch runs without marks", extra={"action": "batch"})
        else:
            outage.over("mark")

    def look(self, deliveries: list[Delivery]) -> None:
        """Notices those that were cancelled. If Redis is away, the next look or their batch's mark will tell."""
        with suppress(RedisError):
            self._marks.look(deliveries)
