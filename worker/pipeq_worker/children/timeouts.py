"""TIMEOUTS: ends tasks at the moment when their time is over, in whatever stage they are. Used by the dispatcher.

    a child is given the task: its time begins -> ... -> its time is over -> failed: timeout, and the child stops

The clock is the host's, which works on nothing itself: so it also ends tasks whose child does not come back. The child
is told the time, too, so that reads of stores and rows of a pass end by themselves. Why: docs/decisions/timeouts.md.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic

from pipeq.contract.errors import ErrorCode, PipeqError

from pipeq_worker.children import board
from pipeq_worker.children.guarded import guarded
from pipeq_worker.children.streams import FIRST as STREAMED
from pipeq_worker.models.running import ADVICE
from pipeq_worker.schedule.task import Item, Place, T
from pipeq_worker.settings.read import Settings
from pipeq_worker.stages.steps import Stage

#: So much later a child ends what it works on by itself: the host comes first, because it knows in which stage a task
#: is, in seconds.
GRACE_S = 0.25
#: What a task is in, while a thread of a child works on it.
_STAGES = {
    Stage.FETCH: "its inputs were being read",
    Stage.PREPARE: "its inputs were being prepared",
    Stage.FORWARD: "it was in a forward pass",
    Stage.FINISH: "its result was being made",
    Stage.PLACE: "its result was being written to a store",
}


class Timeouts(Generic[T]):
    """Owns the thread ``timeouts``.

    Args:
        settings: the worker's settings, for ``timeout_s`` of each pipeline.
        inside: returns the tasks inside.
        late: ends a task whose time is over.
        hopeless: called with a sentence if the thread breaks.
    """

    def __init__(
        self,
        settings: Settings,
        inside: Callable[[], Sequence[T]],
        late: Callable[[T], None],
        hopeless: Callable[[str], None],
    ) -> None:
        self._limits = {name: one.timeout_s or math.inf for name, one in settings.pipelines.items()}
        self._inside = inside
        self._late = late
        self._hopeless = hopeless
        #: When the thread looks next. Tasks that have ended by then cost nothing.
        self._next_at = math.inf
        self._closed = False
        self._changed = threading.Condition()

    def start(self) -> None:
        """Ends tasks whose time is over until this is closed."""
        threading.Thread(target=guarded(self._run, self._hopeless), name="timeouts", daemon=True).start()

    def close(self) -> None:
        """Ends no more tasks. Returns at once."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def limit_s(self, task: T) -> float:
        """How long a try of a task may take: what it or its pipeline says, whichever is less; infinite if neither.

        Each row of a pack may take so long.
        """
        return min(task.timeout_s, self._limits.get(task.lane or "", math.inf)) * max(1, task.rows)

    def begins(self, task: T) -> float | None:
        """Notes that a try begins. Returns when its child should end it, by the monotonic clock; None for never."""
        if (limit_s := self.limit_s(task)) == math.inf:
            return None
        task.late_at = time.monotonic() + limit_s
        if task.late_at < self._next_at:
            with self._changed:
                self._next_at = task.late_at
                self._changed.notify()
        return task.late_at + GRACE_S

    def error(self, task: T, stage: str) -> PipeqError:
        """The error of a task whose time is over, and that was in this stage."""
        return PipeqError(
            ErrorCode.TIMEOUT, f"the task took over its timeout_s ({self.limit_s(task):g} s): {stage}; {ADVICE}"
        )

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (left_s := self._next_at - time.monotonic()) > 0:
                    self._changed.wait(min(left_s, threading.TIMEOUT_MAX))
                if self._closed:
                    return
                self._next_at = math.inf
            now = time.monotonic()
            ends = {task: task.late_at for task in self._inside() if task.late_at < math.inf}
            for task, end in ends.items():
                if end <= now:
                    self._late(task)
            with self._changed:
                self._next_at = min([self._next_at, *(end for end in ends.values() if end > now)])


def stage_of(task: Any, doing: Iterable[board.Entry], running: Mapping[int, Sequence[Item[Any]]]) -> str:
    """Says in words in which stage a task is.

    Args:
        task: the task.
        doing: what the threads of all children are doing.
        running: the batches that the device process has: number -> items.
    """
    own = [number for number, items in running.items() if any(item.task is task for item in items)]
    seen = {
        one.stage for one in doing if (one.number in own if one.stage is Stage.FORWARD else one.number == task.ticket)
    }
    if any(number >= STREAMED for number in own):
        seen.add(Stage.FORWARD)  # what is inside a stream runs; the board names only the oldest of it
    if seen:
        said = _STAGES[max(seen)]
    elif task.place is Place.PREPARING:
        said = "it waited for a thread, or for memory, to prepare its inputs"
    elif own or task.started_at is None:
        said = "it waited for the device"
    else:
        said = "its result was being made or stored"
    far = task.progress
    if far is None:
        return said
    return f"{said}, after {far.done} {f'of {far.total} ' if far.total is not None else ''}{far.unit}"
