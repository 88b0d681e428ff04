"""LOOKING: once a second, which tasks that take long were cancelled, and what nobody needs. Used by the dispatcher."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Generic

from pipeq_worker.children.crew import Crew
from pipeq_worker.children.ending import Ending
from pipeq_worker.children.guarded import guarded
from pipeq_worker.children.inside import Inside
from pipeq_worker.children.residents import Residents
from pipeq_worker.schedule.task import Place, T

#: How often a task that takes long is checked for having been cancelled, in seconds.
LOOK_S = 1.0


class Looking(Generic[T]):
    """Owns the thread ``look``, which ends when no task is delivered any more.

    Args:
        inside: the tasks inside.
        crew: the children.
        ending: ends the tasks that are not wanted any more.
        residents: which pipelines are loaded.
        look: see :class:`pipeq_worker.children.hooks.Hooks`.
        idle_unload_s: the setting.
        hopeless: called with a sentence if the thread breaks.
    """

    def __init__(
        self,
        inside: Inside[T],
        crew: Crew,
        ending: Ending[T],
        residents: Residents[T],
        *,
        look: Callable[[list[T]], None],
        idle_unload_s: float | None,
        hopeless: Callable[[str], None],
    ) -> None:
        self._inside = inside
        self._crew = crew
        self._ending = ending
        self._residents = residents
        self._look = look
        self._idle_s = idle_unload_s or math.inf
        self._hopeless = hopeless

    def start(self) -> None:
        """Looks until nothing is delivered any more."""
        threading.Thread(target=guarded(self._run, self._hopeless), name="look", daemon=True).start()

    def _run(self) -> None:
        while not self._inside.wait_until_stopped(LOOK_S):
            now = time.monotonic()
            with self._inside.lock:
                late = [task for task in self._inside.all() if _takes_long(task, now)]
                for task in late:
                    task.looked_at = now
                # Under the lock, so that no task is given to it any more.
                unwanted = self._crew.device.unload() if self._inside.is_idle_for(self._idle_s) else None
            if unwanted is not None:
                unwanted.close()
            elif self._crew.device.is_serving:
                self._residents.look(self._inside.counts)
            if late:
                self._look(late)
                for task in late:
                    if task.needs_no_device:
                        self._ending.drop(task)


def _takes_long(task: T, now: float) -> bool:
    """Whether a task is due to be looked at. One that lies ready is looked at when its batch begins."""
    if now - max(task.looked_at, task.since) < LOOK_S:
        return False
    return task.place is Place.PREPARING or (task.place is Place.PREPARED and task.started_at is not None)
