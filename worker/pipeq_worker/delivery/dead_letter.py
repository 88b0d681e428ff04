"""A message that cannot succeed, with the reason, as it lies in the dead-letter list of its queue."""

from __future__ import annotations

import json
import time
from typing import Any

import redis
from pipeq.contract import keys as queues

#: Entries kept in a list where the settings are out of reach.
MOST = 10_000
#: Characters that are kept of a message that cannot be read.
LETTER_CHARS = 64 * 2**10


def dead_letter(task_id: str | None, code: str, reason: str, message: Any) -> str:
    """One entry of a dead-letter list.

    Args:
        task_id: the task's id, where it can be read.
        code: one of :class:`pipeq.contract.errors.ErrorCode`.
        reason: the error's sentence.
        message: the frame as it lay on the queue; text if it is no JSON. Its task has ended: to run it again once the
            cause is mended, submit its inputs anew, under a new id.
    """
    entry = {"id": task_id, "code": str(code), "reason": reason, "failed_at": time.time(), "message": message}
    try:
        return json.dumps(entry, default=repr)
    except (ValueError, TypeError, RecursionError) as error:
        return json.dumps({**entry, "message": f"not JSON: {error}"})


def raw_frame(message: Any) -> Any:
    """The frame that a kombu message came in."""
    return getattr(message, "_raw", None) or message.serializable()


def push(client: redis.Redis, queue: str, letter: str, most: int = MOST) -> None:
    """Puts an entry onto the dead-letter list of a queue, and drops the oldest beyond ``most``."""
    with client.pipeline(transaction=False) as pipe:
        pipe.lpush(queues.dead_letter_key(queue), letter)
        pipe.ltrim(queues.dead_letter_key(queue), 0, most - 1)
        pipe.execute()
