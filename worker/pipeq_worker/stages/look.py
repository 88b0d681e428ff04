"""LOOK: has a task ended while it was on its way, because somebody cancelled it? Used by preparation and device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic

from pipeq_worker.stages.task import T

#: How often it is looked up whether a task that takes long has been cancelled, in seconds.
LOOK_S = 1.0


class Lookout(Generic[T]):
    """Asks now and then. For any number of threads.

    Args:
        look: marks those of the tasks that have ended; never raises.
    """

    def __init__(self, look: Callable[[list[T]], None]) -> None:
        self._look = look

    def is_in_vain(self, task: T) -> bool:
        """Whether going on is of no use, also because the task was cancelled a moment ago."""
        self.again([task])
        return task.needs_no_device

    def again(self, tasks: list[T]) -> None:
        """Looks at those that nobody has looked at for a while."""
        now = time.monotonic()
        late = [task for task in tasks if not task.needs_no_device and now - task.looked_at > LOOK_S]
        if late:
            for task in late:
                task.looked_at = now
            self._look(late)
