"""Dead letters: a message that cannot succeed, and the reason, as stored in the dead-letter list of its queue."""

from __future__ import annotations

import time
from typing import Any

import redis
from pipeq.contract import keys
from pipeq.contract.dead_letter import Letter

from pipeq_worker.delivery.delivery import Delivery
from pipeq_worker.leases.frame import as_sent
from pipeq_worker.observe.traces import for_record

#: Length of a dead-letter list where the settings are not available.
MOST = 10_000
#: Number of characters that are kept of a message that cannot be read.
LETTER_CHARS = 64 * 2**10


def dead_letter(
    task_id: str | None,
    code: str,
    reason: str,
    message: Any,
    *,
    worker: str | None = None,
    attempts: int = 0,
    traceback: str | None = None,
) -> str:
    """Returns one entry of a dead-letter list, as JSON.

    Args:
        task_id: the task's id; None if it cannot be read.
        code: one of :class:`pipeq.contract.errors.ErrorCode`.
        reason: the error's sentence.
        message: the frame as it was on the queue; text if it is not JSON.
        worker: this worker's name.
        attempts: how often a worker has begun to run the task.
        traceback: where the cause was raised.
    """
    return Letter(
        id=task_id,
        code=str(code),
        reason=reason,
        failed_at=time.time(),
        attempts=attempts,
        worker=worker,
        traceback=traceback or None,
        message=message,
    ).encode()


def letter_of(delivery: Delivery) -> str:
    """Returns the dead letter of a task that has failed."""
    error = delivery.error
    assert error is not None
    return dead_letter(
        delivery.id,
        error.code,
        error.message,
        raw_frame(delivery.request.message),
        worker=delivery.request.hostname,
        attempts=delivery.attempts,
        traceback=for_record(error.traceback),
    )


def raw_frame(message: Any) -> dict[str, Any]:
    """Returns the frame that a kombu message arrived in."""
    frame = getattr(message, "_raw", None)
    return message.serializable() if frame is None else as_sent(frame)


def push(client: redis.Redis, queue: str, letter: str, most: int = MOST) -> None:
    """Adds an entry to the dead-letter list of a queue, and removes the oldest entries beyond ``most``."""
    with client.pipeline(transaction=False) as pipe:
        pipe.lpush(keys.dead_letter_key(queue), letter)
        pipe.ltrim(keys.dead_letter_key(queue), 0, most - 1)
        pipe.execute()
