"""FED: the tasks that children have, and how many they are for each pipeline and child. Used by feeding."""

from __future__ import annotations

from collections import Counter


class Fed:
    """A set of tickets that knows its size for each pipeline, so that nobody counts them for every message."""

    def __init__(self) -> None:
        self._lanes: dict[int, tuple[str, int]] = {}
        self._counts: Counter[tuple[str, int]] = Counter()

    def add(self, ticket: int, lane: str, child: int) -> None:
        """Notes that a child has a task of a pipeline."""
        if ticket not in self._lanes:
            self._lanes[ticket] = (lane, child)
            self._counts[lane, child] += 1

    def discard(self, ticket: int) -> None:
        """Notes that it has it no more, or is further with it; does nothing if it was not given."""
        if (lane := self._lanes.pop(ticket, None)) is not None:
            self._counts[lane] -= 1

    def count(self, lane: str, child: int) -> int:
        """Number of the pipeline's tasks that a child has."""
        return self._counts[lane, child]
