"""FITNESS: how tasks ended -> which pipelines this worker is able to serve now. Before: deliver. After: the reserver.

A worker that lacks something (credentials, room on a disk, file handles) fails tasks faster than another one does them,
and would take most of what waits. So after a few such tasks in a row it takes none of that pipeline, for a pause; then
it tries one. If that ends well it is fit again, otherwise the next pause is twice as long (a circuit breaker). See
docs/decisions/own-faults.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from pipeq.contract.errors import Blame, PipeqError

from pipeq_worker.observe.own_faults import without_object

#: A pipeline of which a task has succeeded here so recently is served, whatever happens to others of its tasks, in
#: seconds: what they need is broken, and not the worker.
WORKS_S = 5.0


def _ignore(_: str) -> None:
    """Nobody need know."""


@dataclass
class _Pipeline:
    #: Tasks that failed in a row by a fault of the worker.
    faults: int = 0
    #: The first of those faults, in a sentence; and, while the worker is not fit, the pause and its end.
    reason: str = ""
    pause_s: float = 0.0
    until: float | None = None


class Fitness:
    """Safe for any number of threads.

    Args:
        most: faults of the worker's own in a row before it stops taking a pipeline's tasks.
        pause_s: how long it then takes none, in seconds ...
        most_pause_s: ... and at most.
        now: the clock, for tests.
    """

    def __init__(
        self, most: int, pause_s: float, most_pause_s: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most
        self._pause_s = pause_s
        self._most_pause_s = max(pause_s, most_pause_s)
        self._now = now
        self._lock = threading.Lock()
        #: The pipelines of which the last task failed by a fault of the worker.
        self._pipelines: dict[str, _Pipeline] = {}
        #: Pipeline -> when a task of it succeeded here last.
        self._worked_at: dict[str, float] = {}
        #: Called with a pipeline that the worker is not fit for any more: others should have what waits here.
        self.on_unfit: Callable[[str], None] = _ignore

    def ended(self, name: str, error: PipeqError | None, *, is_retried: bool) -> None:
        """Notes how a task of a pipeline ended here.

        Args:
            name: the pipeline.
            error: why it failed; None if it succeeded.
            is_retried: whether it is tried again. A task that no worker may do is its own fault after all.
        """
        if error is None:
            self._worked_at[name] = self._now()
            if name in self._pipelines:
                with self._lock:
                    self._pipelines.pop(name, None)
            return
        # An input that is wrong, or a store that is away, says nothing about the worker.
        if is_retried and error.blame in (Blame.WORKER, Blame.EITHER) and self._fails(name, error.message):
            self.on_unfit(name)

    def most(self, name: str) -> int | None:
        """Most tasks of a pipeline that may be inside now: none during a pause, one after it; None for no bound."""
        one = self._pipelines.get(name)
        until = None if one is None else one.until
        if until is None:
            return None
        return 0 if self._now() < until else 1

    def unfit(self) -> dict[str, str]:
        """Pipeline -> why the worker takes none of its tasks, in a sentence."""
        with self._lock:
            return {name: one.reason for name, one in self._pipelines.items() if one.until is not None}

    def _fails(self, name: str, sentence: str) -> bool:
        """Returns whether the worker has just become unfit."""
        with self._lock:
            one, now = self._pipelines.setdefault(name, _Pipeline()), self._now()
            one.faults += 1
            one.reason = one.reason or sentence
            if one.until is not None:
                # During the pause, what was inside ends; after it, this was the one task that was tried.
                if now >= one.until:
                    one.pause_s = min(2 * one.pause_s, self._most_pause_s)
                    one.until = now + one.pause_s
                return False
            if one.faults < self._most or now - self._worked_at.get(name, float("-inf")) < WORKS_S:
                return False
            one.pause_s, one.until = self._pause_s, now + self._pause_s
            one.reason = (
                f"{one.faults} tasks in a row failed by a fault of this worker ({without_object(one.reason)}); it "
                "tries one task now and then, and takes more when that succeeds"
            )
            return True
