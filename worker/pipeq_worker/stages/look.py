"""LOOK: checks whether a task has been cancelled while it was in the stages. Used by preparation and device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic

from pipeq_worker.stages.task import T

#: How often a task that takes long is checked for having been cancelled, in seconds.
LOOK_S = 1.0


class Lookout(Generic[T]):
    """Checks tasks from time to time. Safe for any number of threads.

    Args:
        look: marks those tasks that have ended; never raises.
    """

    def __init__(self, look: Callable[[list[T]], None]) -> None:
        self._look = look

    def is_in_vain(self, task: T) -> bool:
        """Whether going on with a task is useless, for instance because it has just been cancelled."""
        self.again([task])
        return task.needs_no_device

    def again(self, tasks: list[T]) -> None:
        """Checks those tasks whose last check is older than ``LOOK_S``."""
        now = time.monotonic()
        late = [task for task in tasks if not task.needs_no_device and now - task.looked_at > LOOK_S]
        if late:
            for task in late:
                task.looked_at = now
            self._look(late)
