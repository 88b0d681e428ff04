"""STEPS: what each thread of this process is working on, for whoever watches it from outside; and who works alone.

A process that dies or hangs cannot say with which task. So each step of a task is written onto a board before it
begins, which the process outside reads when this one is gone. A task that was on the board when a process died may be
the cause, or may only have been there: its steps run alone from then on, so that the next death tells.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Protocol

#: A suspect that reads from or writes to a store runs beside others, but for so long beside no other suspect, in
#: seconds. A store may be slow, and the device must not wait for it.
STORE_ALONE_S = 5.0


class Stage(IntEnum):
    """What a thread does, with a task for the most part."""

    FETCH = 1
    PREPARE = 2
    FORWARD = 3
    FINISH = 4
    #: A result, or a part of one, is being written to a store.
    PLACE = 5
    #: Of no task: a pipeline is being loaded.
    LOAD = 6


#: Steps that wait for a store, which may take long while nothing is wrong here.
OF_STORES = frozenset({Stage.FETCH, Stage.PLACE})


class Board(Protocol):
    """Where steps are noted."""

    def begin(self, stage: Stage, number: int, *others: int) -> None:
        """Notes that the calling thread begins a step: of the tasks with these numbers, or, for FORWARD, of a batch."""

    def end(self) -> None:
        """Notes that the calling thread's step has ended."""


class NoBoard:
    """For a process that nobody watches."""

    def begin(self, stage: Stage, number: int, *others: int) -> None:
        """Notes nothing."""

    def end(self) -> None:
        """Notes nothing."""


class Steps:
    """Runs steps side by side, and those of tasks under suspicion alone. Safe for any number of threads."""

    def __init__(self, board: Board | None = None) -> None:
        self._board = board or NoBoard()
        self._running = 0
        self._is_alone = False
        #: The suspect's step that runs, or is the next one that does; and until when no other suspect's begins.
        self._taken: object = None
        self._taken_until = 0.0
        #: Steps that wait to run alone; others do not begin meanwhile, so that these get their turn.
        self._waiting = 0
        self._changed = threading.Condition()
        self._here = threading.local()

    @contextmanager
    def step(self, stage: Stage, number: int, *others: int, alone: bool = False) -> Iterator[None]:
        """Runs the block as a step of one task or several. One that waits for a store runs beside others."""
        self._enter(stage, alone)
        self._here.stage, self._here.alone, self._here.numbers = stage, alone, (number, *others)
        self._board.begin(stage, number, *others)
        try:
            yield
        finally:
            self._board.end()
            self._leave(stage, alone)

    def note(self, stage: Stage, number: int) -> None:
        """Notes that the calling thread's step goes on: its time counts from now."""
        self._board.begin(stage, number)

    @property
    def is_waited_for(self) -> bool:
        """Whether a step waits to run alone, so that a long one should come to its end."""
        return self._waiting > 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Lets others run while the calling thread waits inside its step for them: it is not working meanwhile."""
        stage, alone = self._here.stage, self._here.alone
        self._board.end()
        self._leave(stage, alone)
        try:
            yield
        finally:
            self._enter(stage, alone)
            self._board.begin(stage, *self._here.numbers)

    def _enter(self, stage: Stage, alone: bool) -> None:
        if stage in OF_STORES and not alone:
            return
        with self._changed:
            if alone:
                self._take(stage)
                if stage in OF_STORES:
                    return
                self._waiting += 1
                self._changed.wait_for(lambda: not self._running and not self._is_alone)
                self._waiting -= 1
                self._is_alone = True
            else:
                self._changed.wait_for(lambda: not self._is_alone and not self._waiting)
                self._running += 1

    def _take(self, stage: Stage) -> None:
        """Waits until no other suspect's step runs."""
        while (left_s := self._taken_until - time.monotonic()) > 0:
            self._changed.wait(None if left_s == math.inf else left_s)
        self._taken = self._here.own = object()
        self._taken_until = time.monotonic() + STORE_ALONE_S if stage in OF_STORES else math.inf

    def _leave(self, stage: Stage, alone: bool) -> None:
        if stage in OF_STORES and not alone:
            return
        with self._changed:
            if alone and self._taken is self._here.own:
                self._taken_until = 0.0
            if alone and stage not in OF_STORES:
                self._is_alone = False
            elif not alone:
                self._running -= 1
            if not self._running or alone:
                self._changed.notify_all()
