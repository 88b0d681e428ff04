"""RUNNING: the rows of a forward pass while it runs: whose answers are still wanted, and how far each is.

    the stages: Row, Running -> Pipeline.forward(features, call, running) -> the code that drives the model
    another thread: row.stop = True;  row.done, row.total      the driver: running.over();  running.advance(...)

A row that is over (stopped, or past its deadline) need not be computed any more; what the pass returns for it is not
used. The other rows of the pass are not changed. Imports no torch, no Celery and no Redis.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

#: What to do about a task whose time was over.
ADVICE = "give it more time, or less to do"


class AllStoppedError(Exception):
    """Ends a forward pass none of whose rows is wanted any more."""


@dataclass(eq=False)
class Row:
    """One row of a forward pass. Plain attributes, each written by one thread and read by any."""

    #: Set by whoever learns that the row's answer is not wanted any more.
    stop: bool = False
    #: When it has to be done, by the monotonic clock, in seconds; None if it may take as long as it takes.
    deadline: float | None = None
    #: How many steps were made, and of how many; None if that is not known.
    done: int = 0
    total: int | None = None
    #: What a step is.
    unit: str = "tokens"

    @property
    def is_late(self) -> bool:
        """Whether its deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    @property
    def is_over(self) -> bool:
        """Whether going on with it is useless."""
        return self.stop or self.is_late


class Running:
    """The rows of one forward pass, in the order of its features."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)

    def over(self) -> list[bool]:
        """Which rows need not go on."""
        return [row.is_over for row in self.rows]

    def check(self) -> None:
        """Between two steps of a pass: ends it if no row needs to go on.

        Raises:
            AllStoppedError: all rows are over.
        """
        if all(row.is_over for row in self.rows):
            raise AllStoppedError

    def advance(self, done: Sequence[int], total: int | None) -> None:
        """Tells how far each row is."""
        for row, steps in zip(self.rows, done, strict=True):
            row.done, row.total = steps, total
