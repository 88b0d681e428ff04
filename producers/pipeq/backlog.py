"""BACKLOG: waits until there is room in a pipeline's queue. Used by submission, before a submit with ``max_backlog``.

Redis tells nobody that a queue has become shorter, so this asks again, more and more seldom. Where one submit follows
the other and there is plenty of room, none waits for that: now and then one asks on its own way how long the queue is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from redis.exceptions import RedisError

from pipeq.contract import keys, shown
from pipeq.contract.errors import QueueFullError
from pipeq.protocol import Command, Send, Sleep, Steps, tolerant, transaction

#: Seconds between two looks: the first, the factor from one to the next, and the longest.
LOOK_S, LOOK_MORE, LOOK_MOST_S = 0.02, 1.5, 1.0
#: How long a length is believed, in seconds, while the queue has no more than this share of what it may have. Whatever
#: others submit meanwhile, the limit itself is kept by asking.
BELIEVED_S, PLENTY = 0.05, 0.5
#: Age at which a submit asks for the length on its way, in seconds.
OLD_S = BELIEVED_S / 2


@dataclass
class _Known:
    """What is known of one queue."""

    #: Its length with what this client has put there since, and when Redis said so (monotonic clock).
    length: int = 0
    said_at: float = float("-inf")
    #: Tasks of this client that are on their way to it. The length may have some of them already.
    under_way: int = 0

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.said_at


class Backlogs:
    """The lengths of queues, as far as a client knows them. Safe for threads."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._lock = threading.Lock()

    def room(self, pipeline: str, tasks: int, max_backlog: int, wait_s: float | None) -> Steps[None]:
        """Returns when so many tasks fit. Others may submit at the same time, so that it is about the limit.

        Raises:
            QueueFullError: there was no room in time.
        """
        if self._has_plenty(pipeline, tasks, max_backlog):
            return
        until = None if wait_s is None else time.monotonic() + wait_s
        pause_s = LOOK_S
        while True:
            backlog = self._heard(pipeline, (yield Send((), questions=_questions(pipeline))))
            if backlog + tasks <= max_backlog:
                return
            left = float("inf") if until is None else until - time.monotonic()
            if left <= 0:
                there = shown.count(backlog, "task")
                raise QueueFullError(
                    f"max_backlog: {pipeline!r} has {there} in its queue, and at most {max_backlog} are allowed: try "
                    "later, or give full_wait_s"
                )
            yield Sleep(min(pause_s, left))
            pause_s = min(pause_s * LOOK_MORE, LOOK_MOST_S)

    def put(
        self, pipeline: str, tasks: int, commands: Sequence[Command], questions: Sequence[Command]
    ) -> Steps[list[Any]]:
        """Queues tasks with a transaction; see there. Asks for the queue's length on the way, if it is time."""
        with self._lock:
            known = self._of(pipeline)
            known.under_way += tasks
            asks = _questions(pipeline) if known.age_s > OLD_S else ()
        try:
            found = yield from transaction(commands, (*questions, *asks))
        except BaseException:
            with self._lock:
                known.under_way -= tasks
            raise
        with self._lock:
            known.under_way -= tasks
            known.length += tasks
        if not asks:
            return found
        with suppress(RedisError):  # the next submit asks, and raises that
            self._heard(pipeline, found[-len(asks) :])
        return found[: -len(asks)]

    def _heard(self, pipeline: str, replies: Sequence[Any]) -> int:
        length = sum(reply or 0 for reply in tolerant(replies))
        with self._lock:
            known = self._of(pipeline)
            known.length, known.said_at = length, time.monotonic()
        return length

    def _of(self, pipeline: str) -> _Known:
        return self._known.setdefault(pipeline, _Known())

    def _has_plenty(self, pipeline: str, tasks: int, max_backlog: int) -> bool:
        with self._lock:
            known = self._of(pipeline)
            return known.age_s <= BELIEVED_S and known.length + known.under_way + tasks <= PLENTY * max_backlog


@lru_cache(maxsize=256)
def _questions(pipeline: str) -> tuple[Command, ...]:
    """Asks for the length of everything in which tasks of a pipeline wait for a worker."""
    lists = keys.list_keys(pipeline)
    return (*(("LLEN", key) for key in lists), *(("ZCARD", keys.fair_key(key)) for key in lists))
