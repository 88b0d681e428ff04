"""SHARING: what idle and busy workers tell each other through the script that takes messages. Used by reserver.

An idle worker that finds no message leaves a mark. Redis reports the mark to the busy workers (CLIENT TRACKING), and
the first of them whose script runs removes it and gives back a fair share of what it has not begun. Nobody polls. See
docs/decisions/credit.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

from pipeq_worker.leases.reserved import Wanted

#: A mark lasts this long, in seconds. That of a worker that has died makes others give back messages in vain.
MARK_S = 6
#: A mark that was not answered is set again after this, in seconds.
MARK_AGAIN_S = 2.5
#: A worker that has something to give looks for marks this often, although Redis reports them, in seconds. Its table of
#: reports is bounded.
LOOK_AGAIN_S = 10.0
#: The same if Redis cannot report them, in seconds.
LOOK_S = 1.0
#: A worker whose work lasts this long ...
LASTS_S = 0.1
#: ... first lets those that have none take messages, in seconds.
YIELD_S = 0.03


class Sharing(Protocol):
    """A worker, as its reservers see it. All queues that it does not share are left alone."""

    def shares(self, queue: str) -> bool:
        """Whether messages of a queue can be given back."""

    def takes(self, queue: str) -> bool:
        """Whether it takes messages of a shared queue now, if it has none."""

    def most(self, queue: str) -> int:
        """Most messages of a shared queue that may be inside now."""

    def is_idle(self) -> bool:
        """Whether the worker has nothing of any shared queue, and would begin a task at once."""

    def lasts_s(self) -> float:
        """How long it is busy with what it has, in seconds."""

    def spare(self, queue: str) -> int:
        """How many messages of a shared queue it could give back."""

    def give_back(self, queue: str, idle: int) -> None:
        """Gives back a fair share to so many idle workers."""


class Looks:
    """When a reserver sets the mark of an idle worker, and when it looks for marks. For use by its thread."""

    def __init__(self) -> None:
        self._marked_at: float | None = None
        #: Queue -> when it last looked. From then on, Redis reports new marks.
        self._looked_at: dict[str, float] = {}

    def reported(self) -> None:
        """Called when Redis has reported that a key has changed, or when the connection has ended."""
        self._marked_at = None
        self._looked_at.clear()

    def is_due(self, queues: Iterable[str], sharing: Sharing | None, reports: bool) -> bool:
        """Whether a worker without credit has to call the script only to look for marks.

        Args:
            queues: the queues that it takes from.
            sharing: the worker.
            reports: whether Redis reports new marks.
        """
        if sharing is None:
            return False
        since = time.monotonic() - (LOOK_AGAIN_S if reports else LOOK_S)
        late = (one for one in queues if sharing.shares(one) and self._looked_at.get(one, since) <= since)
        return any(sharing.spare(one) for one in late)

    def with_marks(self, wanted: list[Wanted], sharing: Sharing | None) -> list[Wanted]:
        """Adds to what is wanted what the worker gives, and whether it is idle."""
        if sharing is None:
            return wanted
        now = time.monotonic()
        is_idle = sharing.is_idle()
        is_marked = is_idle and (self._marked_at is None or now - self._marked_at >= MARK_AGAIN_S)
        if is_marked or not is_idle:
            self._marked_at = now if is_marked else None
        found = []
        for one in wanted:
            if sharing.shares(one.queue):
                gives = 0 if is_idle else sharing.spare(one.queue)
                if gives:
                    self._looked_at[one.queue] = now
                # What others gave would lie there, if this worker does not take it.
                takes = sharing.takes(one.queue)
                one = replace(one, gives=gives, is_idle=is_idle and takes, is_marked=is_marked and takes)
            found.append(one)
        return found

    def took(self) -> None:
        """Called when messages were taken: the script has removed the worker's mark."""
        self._marked_at = None

    def answered(self, queues: Iterable[str]) -> None:
        """Called when marks of these queues were removed: Redis reports no more of them until they are read again."""
        for queue in queues:
            self._looked_at.pop(queue, None)
