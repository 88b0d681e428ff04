"""TIMES: the part to which each moment of a task belongs, in the process that has its inputs. Used by task.

    fetch -> decode -> prepare -> wait_device -> (infer -> wait_device ...) -> deliver

Each moment counts once, so that the parts add up: from the first :meth:`Times.enters` until they are told. Whoever
works on the task says which part begins. Forward passes are told when they have run, perhaps by another process, whose
monotonic clock is the same; while one runs, a moment counts as ``infer``, even if more items are prepared meanwhile.
What each part means is in :mod:`pipeq.contract.times`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from pipeq.contract.times import PARTS, rounded


class Times:
    """The times of one task. Only one thread at a time enters a part; any may tell passes."""

    __slots__ = ("_passes", "_starts", "_work")

    def __init__(self) -> None:
        #: When each part began (monotonic clock), and its name.
        self._starts: list[tuple[float, str]] = []
        #: Beginning and end of each pass.
        self._passes: list[tuple[float, float]] = []
        #: The part to go on with after a wait for the device.
        self._work = ""

    @property
    def began(self) -> float | None:
        """When work on the task began (monotonic clock); None if it did not."""
        return self._starts[0][0] if self._starts else None

    def enters(self, part: str, at: float | None = None) -> None:
        """Notes that a part begins now, or has begun at a time that is not before the last part's."""
        self._work = part
        self._begins(part, time.monotonic() if at is None else at)

    def reads(self) -> None:
        """Notes that references are read next: reading the message that names them was the beginning of that."""
        starts, self._work = self._starts, "fetch"
        if starts and starts[-1][1] == "prepare":
            starts[-1] = starts[-1][0], "fetch"
        else:
            self._begins("fetch", time.monotonic())

    def waits(self, at: float | None = None) -> None:
        """Notes that the task waits for the device, until :meth:`goes_on`."""
        self._begins("wait_device", time.monotonic() if at is None else at)

    def goes_on(self, at: float | None = None) -> None:
        """Notes that the work before the wait goes on, if there was one."""
        self._begins(self._work, time.monotonic() if at is None else at)

    def passed(self, began: float, ended: float) -> None:
        """Notes a forward pass with items of the task."""
        self._passes.append((began, ended))

    def told(self, until: float) -> dict[str, float]:
        """Returns the milliseconds of each part, in their order, from the beginning until now."""
        starts = self._starts
        if not starts:
            return {}
        spent = dict[str, float]()
        passes, at = _united(self._passes), 0
        for number, (begin, part) in enumerate(starts, 1):
            end = starts[number][0] if number < len(starts) else until
            ran = 0.0
            while at < len(passes) and passes[at][0] < end:
                ran += max(0.0, min(passes[at][1], end) - max(passes[at][0], begin))
                if passes[at][1] > end:
                    break
                at += 1
            if ran:
                spent["infer"] = spent.get("infer", 0.0) + ran
            if end > begin:
                spent[part] = spent.get(part, 0.0) + end - begin - ran
        return {part: rounded(spent[part]) for part in PARTS if part in spent}

    def _begins(self, part: str, at: float) -> None:
        starts = self._starts
        if part and (not starts or starts[-1][1] != part):
            starts.append((max(at, starts[-1][0]) if starts else at, part))


def _united(passes: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The times at which at least one pass ran, in order."""
    found: list[tuple[float, float]] = []
    for began, ended in sorted(passes):
        if found and began <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], ended)
        else:
            found.append((began, ended))
    return found
