"""DEVICE: batches -> forward passes, one after the other, on the only thread that uses the device.

Before: shelf, or the shelf of another process. After: finish. Which items form a batch was decided by the process that
holds the leases.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeq_worker.models.faults import is_fatal
from pipeq_worker.observe.traces import internal
from pipeq_worker.schedule.costs import Pass
from pipeq_worker.stages.infer import DeviceLostError, infer
from pipeq_worker.stages.steps import Stage, Steps
from pipeq_worker.stages.task import Item

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A batch to run."""

    number: int
    #: Whether nothing else may run in this process meanwhile.
    alone: bool
    #: Returns its items, just before it runs.
    find: Callable[[], list[Item]]
    #: Called with these items, each of which has its output or its error then.
    after: Callable[[list[Item], Ran], None]


@dataclass(frozen=True)
class Move:
    """Weights that leave the device, or come to it, between two batches."""

    move: Callable[[], None]
    number: int = 0


@dataclass
class Ran:
    """A batch that has run."""

    number: int
    #: Items that really ran, without those of cancelled tasks.
    size: int = 0
    #: Cost of its longest item, times the number of items.
    padded_cost: int = 0
    #: Share of that cost that was padding, 0 to 1.
    padding: float = 0.0
    #: When it began (monotonic clock), and how long it took.
    began: float = 0.0
    seconds: float = 0.0
    #: Its forward passes: one, unless it was halved.
    passes: list[Pass] = field(default_factory=list)
    #: Size of each part that was halved, and the code of the error.
    splits: list[tuple[int, str]] = field(default_factory=list)


class Device:
    """Owns the device's thread.

    Args:
        steps: what the thread does is noted there.
        lost: called with a reason when the device cannot be used any more.
    """

    def __init__(self, steps: Steps, lost: Callable[[str], None]) -> None:
        self._steps = steps
        self._lost = lost
        self._runs: deque[Run | Move] = deque()
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)

    def start(self) -> None:
        """Runs batches until it is closed."""
        self._thread.start()

    def run(self, run: Run | Move) -> None:
        """Runs a batch, or moves weights, after all that was given before. Returns at once."""
        with self._changed:
            self._runs.append(run)
            self._changed.notify()

    def close(self) -> None:
        """Begins no more batches. Returns at once."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._runs or self._closed)
                if self._closed:
                    return
                run = self._runs.popleft()
            try:
                self._move(run) if isinstance(run, Move) else self._run(run)
            except Exception as error:
                reason = f"a batch failed inside pipeq: {type(error).__name__}: {error}"
                if isinstance(error, DeviceLostError):
                    reason = f"the device is beyond use: {error}"
                else:
                    logger.exception("a batch failed inside pipeq", extra={"action": "batch"})
                # The process dies of this batch, so that is what its last step must have been.
                self._steps.note(Stage.FORWARD, run.number)
                self._lost(reason)
                return

    def _move(self, move: Move) -> None:
        with self._steps.step(Stage.LOAD, move.number):
            move.move()

    def _run(self, run: Run) -> None:
        found = run.find()
        items = [item for item in found if not item.task.needs_no_device]
        ran = Ran(run.number, len(items), began=time.monotonic())
        if items:
            with self._steps.step(Stage.FORWARD, run.number, alone=run.alone):
                ran.began = time.monotonic()
                self._infer(items, ran)
        ran.seconds = time.monotonic() - ran.began
        ran.padded_cost = max((item.cost for item in items), default=0) * len(items)
        ran.padding = 1 - sum(item.cost for item in items) / ran.padded_cost if ran.padded_cost else 0.0
        run.after(found, ran)

    def _infer(self, items: list[Item], ran: Ran) -> None:
        pipeline = items[0].task.pipeline
        assert pipeline is not None
        try:
            infer(pipeline, items, lambda size, code: ran.splits.append((size, code)), ran.passes.append)
        except DeviceLostError:
            raise
        except Exception as error:
            if is_fatal(error):  # kernels fail when a later call waits for them, which need not be the pass itself
                raise DeviceLostError(f"{type(error).__name__}: {error}") from error
            logger.exception("a batch failed inside pipeq", extra={"action": "batch"})
            for item in items:
                item.error = internal(error)
