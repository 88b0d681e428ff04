"""FAR: looks once a second at the tasks that take longer, and says how far they are. Beside the stages of a process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from pipeq.contract.status import Progress

from pipeq_worker.stages.task import Task

#: How often it is said, in seconds. A task that takes less says nothing.
FAR_S = 1.0


class Far:
    """Owns the thread ``far``.

    Args:
        tasks: the tasks that are inside.
        said: called with a task that is inside for more than a look, and has come further, and how far it is.
        also: called with each look; ends what need not wait any longer.
    """

    def __init__(
        self,
        tasks: Callable[[], Iterable[Task]],
        said: Callable[[Task, Progress], None],
        also: Callable[[], None] = lambda: None,
    ) -> None:
        self._tasks = tasks
        self._also = also
        self._said = said
        #: What was said last of each task; None of a task that has only been seen.
        self._found: dict[Task, Progress | None] = {}
        self._closing = threading.Event()

    def start(self) -> None:
        """Starts the thread."""
        threading.Thread(target=self._run, name="far", daemon=True).start()

    def close(self) -> None:
        """Ends it. Returns at once."""
        self._closing.set()

    def look(self) -> None:
        """Looks once at all tasks."""
        before, self._found = self._found, {}
        for task in self._tasks():
            if task.needs_no_device or (far := task.progress()) is None:
                continue
            self._found[task] = far if task in before else None
            if task in before and before[task] != far:
                self._said(task, far)

    def _run(self) -> None:
        while not self._closing.wait(FAR_S):
            self.look()
            self._also()
