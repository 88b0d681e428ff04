"""BOARD: shared memory in which a child notes what each of its threads is doing. The host reads it, also afterwards.

A process that was killed can say nothing, and one that holds Python's lock for ever neither; memory that both have
mapped still tells. Times are of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from dataclasses import dataclass

from pipeq_worker.stages.steps import Stage

#: The memory is words of 8 bytes: how many slots were ever taken, then the slots. A word is written and read at once.
_WORD = 8
#: The words of a slot: stage (0: none), number of the task or batch, and when it began. The stage is written last and
#: cleared first, because the host may look at any moment: what stands beside a stage is never half written.
_STAGE, _NUMBER, _SINCE, _WORDS = 0, 1, 2, 3
#: Slots of a child: more than its threads ever need, and 96 KiB that cost nothing until they are written.
SLOTS = 4096
SIZE = _WORD * (1 + SLOTS * _WORDS)


@dataclass(frozen=True)
class Entry:
    """What one thread is doing."""

    stage: Stage
    #: Number of a task or, in :attr:`Stage.FORWARD`, of a batch.
    number: int
    #: When it began, by the monotonic clock.
    since: float


def make() -> int:
    """Makes the memory. Returns its file descriptor, which a child inherits."""
    descriptor = os.memfd_create("pipeq-board")
    os.truncate(descriptor, SIZE)
    return descriptor


class Writer:
    """The child's side. Each thread writes into slots of its own: one for each task of its step."""

    def __init__(self, descriptor: int) -> None:
        memory = memoryview(mmap.mmap(descriptor, SIZE))
        self._words, self._times = memory.cast("Q"), memory.cast("d")
        self._used = 0
        self._lock = threading.Lock()
        self._here = threading.local()

    def begin(self, stage: Stage, number: int, *others: int) -> None:
        """Notes that the calling thread begins a step, of one task or of several."""
        places, now = self._places(), time.monotonic()
        while len(places) <= len(others):
            places.append(self._new_place())
        for place, one in zip(places, (number, *others), strict=False):
            self._times[place + _SINCE] = now
            self._words[place + _NUMBER] = one
            self._words[place + _STAGE] = stage
        self._here.count = max(self._here.count, 1 + len(others))

    def end(self) -> None:
        """Notes that the calling thread's step has ended."""
        for place in self._places()[: self._here.count]:
            self._words[place + _STAGE] = 0
        self._here.count = 0

    def _places(self) -> list[int]:
        places: list[int] | None = getattr(self._here, "places", None)
        if places is None:
            places = self._here.places = [self._new_place()]
            self._here.count = 0
        return places

    def _new_place(self) -> int:
        with self._lock:
            place = 1 + self._used % SLOTS * _WORDS
            self._used += 1
            self._words[0] = min(self._used, SLOTS)
        return place


class Reader:
    """The host's side."""

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, SIZE, prot=mmap.PROT_READ)
        self._memory = memoryview(self._map)
        self._words, self._times = self._memory.cast("Q"), self._memory.cast("d")

    def read(self) -> list[Entry]:
        """What each thread that is in a step is doing."""
        found = []
        for place in range(1, 1 + min(self._words[0], SLOTS) * _WORDS, _WORDS):
            if 0 < (stage := self._words[place + _STAGE]) <= len(Stage):
                entry = Entry(Stage(stage), self._words[place + _NUMBER], self._times[place + _SINCE])
                found.append(entry)
        return found

    def close(self) -> None:
        """Gives the memory back."""
        for view in (self._words, self._times, self._memory):
            view.release()
        self._map.close()
