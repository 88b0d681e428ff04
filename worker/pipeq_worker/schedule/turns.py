"""TURNS: who comes next among several that share something, by fair queueing. Used by window and urgency.

Each sharer has a virtual time, which grows by what it takes, and the one whose time is least comes next. One that was
away starts at the present time, so it neither catches up on what it did not use nor waits for what others did. What the
present time is, is the caller's choice: the finish of what is served now (Golestani, "A self-clocked fair queueing
scheme", INFOCOM 1994), or the least time of those that wait.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

#: Sharers that are remembered although they do not wait, before those are forgotten that are not ahead of the present.
SPARE = 64


class Turns(Generic[K]):
    """The virtual times of the sharers. Not safe for threads."""

    def __init__(self) -> None:
        self._now = 0.0
        self._waiting: dict[K, float] = {}
        self._away: dict[K, float] = {}
        self._forget_at = SPARE

    def join(self, one: K) -> None:
        """It waits from now on. Nothing happens if it waits already."""
        if one not in self._waiting:
            self._waiting[one] = max(self._away.pop(one, 0.0), self._now)

    def leave(self, one: K) -> None:
        """It has nothing left that waits."""
        time = self._waiting.pop(one)
        if time > self._now:
            self._away[one] = time
        if len(self._away) > self._forget_at:
            self._away = {name: time for name, time in self._away.items() if time > self._now}
            self._forget_at = 2 * len(self._away) + SPARE

    def time(self, one: K) -> float:
        """The virtual time of one that waits."""
        return self._waiting[one]

    def spend(self, one: K, amount: float) -> None:
        """One that waits has taken this much, divided by its weight. A negative amount corrects one that was large."""
        self._waiting[one] += amount

    def advance(self, now: float) -> None:
        """Sets the present time, unless it is later already."""
        self._now = max(self._now, now)
