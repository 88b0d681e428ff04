"""FED: the tasks that children have, their number and their bytes for each pipeline and child. Used by feeding."""

from __future__ import annotations

from collections import Counter


class Fed:
    """A set of tickets that knows its size for each pipeline, so that nobody counts them for every message."""

    def __init__(self) -> None:
        self._lanes: dict[int, tuple[tuple[str, int], int]] = {}
        self._counts: Counter[tuple[str, int]] = Counter()
        self._bytes: Counter[tuple[str, int]] = Counter()

    def add(self, ticket: int, lane: str, child: int, nbytes: int) -> None:
        """Notes that a child has a task of a pipeline, whose message has so many bytes."""
        if ticket not in self._lanes:
            self._lanes[ticket] = (lane, child), nbytes
            self._counts[lane, child] += 1
            self._bytes[lane, child] += nbytes

    def discard(self, ticket: int) -> None:
        """Notes that it has it no more, or is further with it; does nothing if it was not given."""
        if (found := self._lanes.pop(ticket, None)) is not None:
            lane, nbytes = found
            self._counts[lane] -= 1
            self._bytes[lane] -= nbytes

    def count(self, lane: str, child: int) -> int:
        """Number of the pipeline's tasks that a child has."""
        return self._counts[lane, child]

    def nbytes(self, lane: str, child: int) -> int:
        """Bytes of their messages."""
        return self._bytes[lane, child]
