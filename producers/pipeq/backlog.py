"""BACKLOG: waits until there is room in a pipeline's queue. Used by submission, before a submit with ``max_backlog``.

Redis tells nobody that a queue has become shorter, so this asks again, more and more seldom.
"""

from __future__ import annotations

import time
from functools import lru_cache

from pipeq.contract import keys
from pipeq.contract.errors import QueueFullError
from pipeq.protocol import Command, Send, Sleep, Steps, tolerant

#: Seconds between two looks: the first, the factor from one to the next, and the longest.
LOOK_S, LOOK_MORE, LOOK_MOST_S = 0.02, 1.5, 1.0


def room(pipeline: str, tasks: int, max_backlog: int, wait_s: float | None) -> Steps[None]:
    """Returns when so many tasks fit. Others may submit at the same time, so that it is about the limit.

    Raises:
        QueueFullError: there was no room in time.
    """
    until = None if wait_s is None else time.monotonic() + wait_s
    pause_s = LOOK_S
    questions = _questions(pipeline)
    while True:
        backlog = sum(length or 0 for length in tolerant((yield Send((), questions=questions))))
        if backlog + tasks <= max_backlog:
            return
        left = float("inf") if until is None else until - time.monotonic()
        if left <= 0:
            raise QueueFullError(
                f"max_backlog: {pipeline!r} has {backlog} tasks in its queue, and at most {max_backlog} are allowed: "
                "try later, or give full_wait_s"
            )
        yield Sleep(min(pause_s, left))
        pause_s = min(pause_s * LOOK_MORE, LOOK_MOST_S)


@lru_cache(maxsize=256)
def _questions(pipeline: str) -> tuple[Command, ...]:
    """Asks for the length of everything in which tasks of a pipeline wait for a worker."""
    lists = keys.list_keys(pipeline)
    return (*(("LLEN", key) for key in lists), *(("ZCARD", keys.fair_key(key)) for key in lists))
