"""RESIDENTS: which pipelines' weights the device process holds, where `max_loaded_bytes` does not let it hold all.

items of a pipeline that is not loaded -> kept here -> unload, load -> loaded -> back into the window

A pipeline whose tasks wait comes when those that have been loaded for long enough leave room: first those without any
work. Loading takes much longer than a batch, so a pipeline stays for some seconds even if others wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic

from pipeq_worker.children import protocol
from pipeq_worker.schedule.task import Item, T

#: A pipeline with work stays loaded for at least so long, and for ``STAY_LOADS`` times what its loading took, in
#: seconds: so moving takes a fifth of the time at most.
STAY_S = 10.0
STAY_LOADS = 4.0
#: One without work for so long has none, and may leave, if it has also been there for as long as its loading took, in
#: seconds.
IDLE_S = 2.0


@dataclass
class Resident(Generic[T]):
    """One pipeline."""

    nbytes: int
    can_unload: bool
    #: Whether its weights are loaded, and nobody has told them to leave.
    is_loaded: bool
    #: When they came (monotonic clock), and how long that took.
    since: float
    load_s: float = 0.0
    #: When it last had work (monotonic clock).
    used: float = 0.0
    #: When it was told to come or to leave, until that has happened.
    moving_since: float | None = None
    #: Since when its tasks have waited for it.
    wanted_since: float | None = None
    #: Items that wait for it.
    items: list[Item[T]] = field(default_factory=list)

    def has_work(self, now: float) -> bool:
        """Whether it works now, or did a moment ago: tasks that come one by one leave none waiting."""
        return now - self.used < IDLE_S

    def may_leave(self, now: float) -> bool:
        """Whether it has been loaded for long enough."""
        stay_s = max(STAY_S, STAY_LOADS * self.load_s) if self.has_work(now) else max(IDLE_S, self.load_s)
        return self.is_loaded and self.can_unload and now - self.since >= stay_s


def choose(
    residents: Mapping[str, Resident[T]], waiting: Mapping[str, int], most: int, now: float
) -> tuple[str, list[str]] | None:
    """Chooses what is loaded next, and what leaves for it; None if nothing has to, or can.

    Args:
        residents: all pipelines, of which none is moving.
        waiting: tasks of each pipeline that have not ended.
        most: bytes that may be loaded at a time.
        now: the monotonic clock.
    """
    wanted = [name for name, one in residents.items() if one.wanted_since is not None and not one.is_loaded]
    if not wanted:
        return None
    name = min(wanted, key=lambda one: residents[one].wanted_since or now)
    free = most - sum(one.nbytes for one in residents.values() if one.is_loaded) - residents[name].nbytes
    able = [other for other, one in residents.items() if one.may_leave(now)]
    leaving: list[str] = []
    # The least work first, and of equals the one that came first.
    for other in sorted(
        able, key=lambda one: (residents[one].has_work(now), waiting.get(one, 0), residents[one].since)
    ):
        if free >= 0:
            break
        free += residents[other].nbytes
        leaving.append(other)
    return (name, leaving) if free >= 0 else None


class Residents(Generic[T]):
    """Decides what the device process loads and unloads. Safe for threads.

    Args:
        most: the setting `max_loaded_bytes`; None if all pipelines stay loaded.
        send: sends messages to the device process.
        put: puts an item into the window.
        runs: whether the device process has a batch of a pipeline.
        loads: called with the pipelines that have to be loaded.
    """

    def __init__(
        self,
        most: int | None,
        send: Callable[[protocol.ToChild], None],
        put: Callable[[Item[T]], None],
        runs: Callable[[str], bool],
        loads: Callable[[list[str]], None],
    ) -> None:
        self._most = most
        self._send = send
        self._put = put
        self._runs = runs
        self._loads = loads
        self._all: dict[str, Resident[T]] = {}
        #: What is being moved: the pipeline that comes, and those that leave before.
        self._coming: str | None = None
        self._leaving: list[str] = []
        self._lock = threading.Lock()

    def loaded(self, message: protocol.Loaded) -> None:
        """Notes that a pipeline is loaded, or has been and had to make room for others."""
        now = time.monotonic()
        with self._lock:
            one = self._all.get(message.name)
            if one is None:
                one = self._all[message.name] = Resident(message.weight_bytes, message.can_unload, False, now)
            one.is_loaded, one.since = message.is_resident, now
            if one.moving_since is not None:
                one.load_s = now - one.moving_since
            one.moving_since = None
            if message.is_resident:
                one.wanted_since = None
            items = [item for item in one.items if not item.is_gone] if message.is_resident else []
            one.items = [] if message.is_resident else one.items
            # What was moving has come; or the process has begun anew, and says this of all pipelines.
            self._coming, self._leaving = None, []
        for item in items:
            self._put(item)

    def may_keep(self) -> bool:
        """Whether a pipeline that is served may be without its weights."""
        return self._most is not None

    def keep(self, item: Item[T]) -> bool:
        """Keeps an item until its pipeline is loaded. Returns False if it is, so that the item may run."""
        if self._most is None:
            return False
        with self._lock:
            one = self._all.get(item.lane)
            if one is None or one.is_loaded:
                if one is not None:
                    one.used = time.monotonic()
                return False
            one.items.append(item)
            is_new = one.wanted_since is None
            one.wanted_since = one.wanted_since or time.monotonic()
        if is_new:
            self._loads([item.lane])
        return True

    def look(self, waiting: Callable[[], Mapping[str, int]]) -> None:
        """Begins or continues a move. Called once a second, and only while the device process serves.

        Args:
            waiting: returns the number of tasks of each pipeline that have not ended.
        """
        if self._most is None:
            return
        counts = waiting()
        with self._lock:
            for one in self._all.values():
                one.items = [item for item in one.items if not item.is_gone]
                if not one.items:
                    one.wanted_since = None
            for name in counts.keys() & self._all.keys():
                self._all[name].used = time.monotonic()
            if self._coming is None:
                chosen = choose(self._all, counts, self._most, time.monotonic())
                if chosen is None:
                    return
                self._coming, self._leaving = chosen
                # From now on none of their items is given to the device.
                for name in self._leaving:
                    self._all[name].is_loaded = False
            coming, leaving = self._coming, list(self._leaving)
            if self._all[coming].moving_since is not None:
                return
        if any(map(self._runs, leaving)):
            return
        with self._lock:
            self._all[coming].moving_since = time.monotonic()
        if leaving:
            self._send(protocol.Unload(leaving))
        self._send(protocol.Load([coming]))
