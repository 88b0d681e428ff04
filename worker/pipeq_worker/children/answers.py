"""ANSWERS: brings outputs from the device process to the prepare processes, and knows when their memory is free.

The outputs lie in the device process's slab until each prepare process that has items in the batch has read its own.
Rows lie in the slab of a prepare process until their batch is over. A process that is started again after a death
begins with an empty slab, so it gets nothing to do before others have stopped reading what the dead one had written.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Generic

from pipeq_worker.children import protocol
from pipeq_worker.children.crew import Crew
from pipeq_worker.children.keeper import Keeper
from pipeq_worker.children.runs import Runs
from pipeq_worker.children.slab import Where
from pipeq_worker.schedule.task import Item, T


class Answers(Generic[T]):
    """Safe for threads.

    Args:
        crew: the children.
        runs: the batches that the device process has.
    """

    def __init__(self, crew: Crew, runs: Runs[T]) -> None:
        self._crew = crew
        self._runs = runs
        #: Number of a batch -> prepare processes that have not read its outputs.
        self._unread: dict[int, set[int]] = {}
        #: Those of a device process that is dead.
        self._stale: set[int] = set()
        #: Prepare process that has died -> batches that were running then.
        self._held: dict[int, set[int]] = {}
        self._lock = threading.Lock()

    @property
    def are_read(self) -> bool:
        """Whether nobody reads outputs of a device process that is dead."""
        return not self._stale

    def may_prepare(self, homes: Sequence[Keeper]) -> list[Keeper]:
        """Those children whose slab nobody reads from an earlier life."""
        with self._lock:
            return [one for one in homes if not self._held.get(one.number)]

    def send(self, ran: protocol.Ran, batch: Sequence[Item[T]]) -> None:
        """Sends each prepare process the outputs of its items."""
        shares: dict[int, dict[int, Where | protocol.Error]] = {}
        with self._lock:
            dead = {child for child, batches in self._held.items() if ran.number in batches}
            for batches in self._held.values():
                batches.discard(ran.number)
            for item, output in zip(batch, ran.outputs, strict=True):
                # The number of an item of a process that has died meanwhile may be another item's now.
                if item.child not in dead:
                    shares.setdefault(item.child, {})[item.number] = output
            self._unread[ran.number] = set(shares)
        for home in self._crew:
            if (items := shares.get(home.number)) is not None:
                about = (ran.number, ran.size, ran.padding, ran.began, ran.seconds)
                home.send(protocol.Outputs(*about, items))
        self._free_if_read(ran.number)

    def taken(self, home: Keeper, number: int) -> None:
        """Notes that a prepare process has read its outputs of a batch."""
        with self._lock:
            self._unread.get(number, set()).discard(home.number)
        self._free_if_read(number)

    def died(self, home: Keeper) -> None:
        """Notes that a child has died. If it is the device process, its batches must have been abandoned before."""
        if home.number == 0:
            with self._lock:
                self._stale |= {number for number, unread in self._unread.items() if unread}
                self._held.clear()
            return
        open_batches = {number for number, items in self._runs.numbers_of(home.number).items() if items}
        with self._lock:
            self._held[home.number] = open_batches
            for unread in self._unread.values():
                unread.discard(home.number)
            numbers = list(self._unread)
        for number in numbers:
            self._free_if_read(number)

    def _free_if_read(self, number: int) -> None:
        with self._lock:
            if self._unread.get(number, {0}):
                return
            del self._unread[number]
            is_stale = number in self._stale
            self._stale.discard(number)
        if not is_stale:
            self._crew.device.send(protocol.Free(number))
