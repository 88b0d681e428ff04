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
#: Threads that a child may have: more than it ever does, and 96 KiB that cost nothing until they are written.
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
    """The child's side. Each thread writes into a slot of its own."""

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, SIZE)
        self._used = 0
        self._lock = threading.Lock()
        self._here = threading.local()

    def begin(self, stage: Stage, number: int) -> None:
        """Notes that the calling thread begins a step."""
        _SLOT.pack_into(self._map, self._place(), stage, number, time.monotonic())

    def end(self) -> None:
        """Notes that the calling thread's step has ended."""
        _SLOT.pack_into(self._map, self._place(), 0, 0, 0.0)

    def _place(self) -> int:
        place: int | None = getattr(self._here, "place", None)
        if place is None:
            with self._lock:
                place = _HEAD.size + self._used % SLOTS * _SLOT.size
                self._used += 1
                _HEAD.pack_into(self._map, 0, min(self._used, SLOTS))
            self._here.place = place
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
