"""QUEUE: tasks that no child has yet -> the most urgent one. Used by the dispatcher."""

from __future__ import annotations

import itertools
from typing import Generic

from pipeq_worker.schedule.urgency import U, Urgency, Waiting, waiting


class TaskQueue(Generic[U]):
    """The tasks of one pipeline that wait in the host. Not safe for threads."""

    def __init__(self) -> None:
        self._urgency: Urgency[U] = Urgency()
        self._entries: dict[U, Waiting[U]] = {}
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, task: U) -> None:
        """Adds a task. One that was here before is due as before, so it comes before those that came later."""
        one = waiting(task, 1, task.arrived, next(self._numbers))
        self._entries[task] = one
        self._urgency.add(one)

    def head(self) -> U:
        """The most urgent task, which stays. Some task must wait."""
        return self._urgency.head().item

    def pop(self) -> U:
        """Removes and returns the most urgent task. Some task must wait."""
        head = self._urgency.head()
        self._urgency.serve(head, [head])
        del self._entries[head.item]
        return head.item

    def discard(self, task: U) -> None:
        """Removes a task, if it waits."""
        if (one := self._entries.pop(task, None)) is not None:
            self._urgency.remove(one)
