"""BOARD: shared memory in which a child notes what each of its threads is doing. The host reads it, also afterwards.

A process that was killed can say nothing, and one that holds Python's lock for ever neither; memory that both have
mapped still tells. Times are of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from dataclasses import dataclass

from pipeq_worker.stages.steps import Stage

#: Number of slots that were ever taken.
_HEAD = struct.Struct("=Q")
#: Stage (0: none), number of the task or batch, and when it began.
_SLOT = struct.Struct("=QQd")
#: Slots of a child: more than its threads ever need, and 96 KiB that cost nothing until they are written.
SLOTS = 4096
SIZE = _HEAD.size + SLOTS * _SLOT.size


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
        self._map = mmap.mmap(descriptor, SIZE)
        self._used = 0
        self._lock = threading.Lock()
        self._here = threading.local()

    def begin(self, stage: Stage, number: int, *others: int) -> None:
        """Notes that the calling thread begins a step, of one task or of several."""
        places, now = self._places(), time.monotonic()
        _SLOT.pack_into(self._map, places[0], stage, number, now)
        for at, other in enumerate(others, 1):
            if at == len(places):
                places.append(self._new_place())
            _SLOT.pack_into(self._map, places[at], stage, other, now)
        self._here.count = max(self._here.count, 1 + len(others))

    def end(self) -> None:
        """Notes that the calling thread's step has ended."""
        for place in self._places()[: self._here.count]:
            _SLOT.pack_into(self._map, place, 0, 0, 0.0)
        self._here.count = 0

    def _places(self) -> list[int]:
        places: list[int] | None = getattr(self._here, "places", None)
        if places is None:
            places = self._here.places = [self._new_place()]
            self._here.count = 0
        return places

    def _new_place(self) -> int:
        with self._lock:
            place = _HEAD.size + self._used % SLOTS * _SLOT.size
            self._used += 1
            _HEAD.pack_into(self._map, 0, min(self._used, SLOTS))
        return place


class Reader:
    """The host's side."""

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, SIZE, prot=mmap.PROT_READ)

    def read(self) -> list[Entry]:
        """What each thread that is in a step is doing."""
        (used,) = _HEAD.unpack_from(self._map, 0)
        slots = (_SLOT.unpack_from(self._map, _HEAD.size + at * _SLOT.size) for at in range(min(used, SLOTS)))
        return [Entry(Stage(stage), number, since) for stage, number, since in slots if 0 < stage <= len(Stage)]

    def close(self) -> None:
        """Gives the memory back."""
        self._map.close()
