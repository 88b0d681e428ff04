"""CONTINUOUS: items of a pipeline with a stream -> the stream, one by one. For such pipelines in place of device.py.

    run() -> a free place? -> Stream.submit ... -> an output or an error -> ran, done

Which item comes when is decided by the process that holds the leases, as for batches. If the stream breaks, it is
started again and gets what was inside once more, one item at a time, so that only the one that breaks it fails.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.status import BatchInfo

from pipeq_worker.models.faults import is_fatal, is_out_of_memory
from pipeq_worker.models.pipeline import Pipeline
from pipeq_worker.models.stream import StreamLostError
from pipeq_worker.observe.frames import forget
from pipeq_worker.stages.device import Ran, Run
from pipeq_worker.stages.infer import late_error
from pipeq_worker.stages.steps import Stage, Steps
from pipeq_worker.stages.task import Item

logger = logging.getLogger(__name__)

#: How often it is noted that the stream moves, in seconds.
NOTE_S = 1.0


class StreamStage:
    """Feeds the stream of one pipeline. Owns the thread ``stream-<pipeline>``.

    Args:
        pipeline: a pipeline with a stream.
        steps: the stream is noted there as one forward pass for as long as anything is inside.
        after: called with each item that has its output or its error, and its run.
        lost: as that of :class:`pipeq_worker.stages.device.Device`.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        steps: Steps,
        after: Callable[[list[Item], Ran], None],
        lost: Callable[[str], None],
    ) -> None:
        assert pipeline.stream is not None
        self._pipeline, self._stream = pipeline, pipeline.stream
        self._steps, self._after, self._lost = steps, after, lost
        self._changed = threading.Condition()
        self._waiting: deque[Run] = deque()
        #: Items inside, with the number of their run and the time at which they went in.
        self._inside: dict[Item, tuple[int, float]] = {}
        #: Why the stream broke, and what was inside, until it is started again; what was then runs alone.
        self._broken: StreamLostError | None = None
        self._fallen_out: list[tuple[int, Item]] = []
        self._suspects: deque[tuple[int, Item]] = deque()
        self._closed = False

    def start(self) -> None:
        """Starts the stream, and takes items."""
        self._stream.start()
        name = self._pipeline.name
        threading.Thread(target=self._work, name=f"stream-{name}", daemon=True).start()

    def run(self, run: Run) -> None:
        """Runs an item as soon as there is a place. Returns at once."""
        with self._changed:
            self._waiting.append(run)
            self._changed.notify_all()

    def close(self) -> None:
        """Begins no more items, and ends the stream. What is inside is abandoned."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._stream.stop()

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting or self._suspects or self._broken)
                if self._closed:
                    return
                first = self._suspects[0][0] if self._suspects else self._waiting[0].number if self._waiting else 0
                alone = bool(self._waiting) and self._waiting[0].alone
            try:
                # A task under suspicion runs when nothing else does, so the stream runs empty before it.
                with ExitStack() as inside:
                    inside.enter_context(self._steps.step(Stage.FORWARD, first, alone=alone))
                    self._run_until_empty(alone=alone)
            except Exception as error:
                logger.exception("a stream is beyond use", extra={"action": "stream"})
                reason = f"{type(error).__name__}: {error}".partition("\n")[0]
                # The process dies of what was inside, so that is what its last step must have been.
                self._steps.note(Stage.FORWARD, self._fallen_out[0][0] if self._fallen_out else self._oldest() or first)
                self._lost(f"the stream of {self._pipeline.name!r} is beyond use: {reason}")
                return

    def _run_until_empty(self, *, alone: bool) -> None:
        """Lets items in until none is inside, and either none waits or another one has to run alone."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._can_go_on(alone), NOTE_S)
                if self._closed:
                    return
                broken = self._broken if not self._inside else None
                entering = [] if self._broken is not None else self._next(alone)
                if not self._inside and not entering and broken is None:
                    return
            if broken is not None:
                self._mend(broken)
            for number, item in entering:
                self._enter(number, item)
            oldest = self._oldest()
            if oldest is not None and self._stream.still_s() < NOTE_S:
                # Whoever watches from outside sees how long the stream has made no step.
                self._steps.note(Stage.FORWARD, oldest)

    def _can_go_on(self, alone: bool) -> bool:
        if not self._inside:
            return True
        return self._broken is None and bool(self._peek(alone))

    def _peek(self, alone: bool) -> bool:
        """Whether an item may enter now."""
        if self._suspects:
            return not self._inside
        if not self._waiting or len(self._inside) >= self._stream.slots:
            return False
        if alone:
            return not self._inside and self._waiting[0].alone
        return not self._waiting[0].alone and not self._steps.is_waited_for

    def _next(self, alone: bool) -> list[tuple[int, Item]]:
        """The items that enter now, with the numbers of their runs."""
        found: list[tuple[int, Item]] = []
        while self._peek(alone) and len(self._inside) + len(found) < self._stream.slots:
            if self._suspects:
                return [self._suspects.popleft()]
            run = self._waiting.popleft()
            items = [item for item in run.find() if not item.task.needs_no_device]
            found += [(run.number, item) for item in items]
            if not items:
                self._after([], Ran(run.number))
            if alone:
                break
        return found

    def _enter(self, number: int, item: Item) -> None:
        with self._changed:
            self._inside[item] = number, time.monotonic()
            size = len(self._inside)
        task = item.task
        if task.batch is None or size > task.batch.size:
            task.batch = BatchInfo(size=size, padding=0.0)
        self._stream.submit(item.features, item.call, item.row, partial(self._came_out, item))

    def _oldest(self) -> int | None:
        with self._changed:
            return next((number for number, _ in self._inside.values()), None)

    # -- out of the stream --------------------------------------------------------------------------------------------

    def _came_out(self, item: Item, outcome: Any) -> None:
        """Called by the stream, on a thread of its own."""
        if isinstance(outcome, StreamLostError):
            with self._changed:
                number, _ = self._inside.pop(item)
                self._fallen_out.append((number, item))
                # One that entered a moment too late is not told why.
                if self._broken is None or self._broken.__cause__ is None:
                    self._broken = outcome
                self._changed.notify_all()
            return
        if item.row.is_over:
            item.error = late_error(self._pipeline, item)
        elif isinstance(outcome, PipeqError):
            item.error = outcome
        else:
            item.output = outcome
        self._end(item)

    def _end(self, item: Item) -> None:
        with self._changed:
            number, began = self._inside.pop(item)
            self._changed.notify_all()
        ran = Ran(number, 1, padded_cost=item.cost, began=began, seconds=time.monotonic() - began)
        self._after([item], ran)

    # -- when the stream breaks ---------------------------------------------------------------------------------------

    def _mend(self, broken: StreamLostError) -> None:
        """Starts the stream again.

        Raises:
            Exception: that is not possible; only a new process helps.
        """
        pipeline, cause = self._pipeline, broken.__cause__
        error = cause if isinstance(cause, Exception) else broken
        if is_fatal(error):
            raise error
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        code = ErrorCode.INFERENCE_FAILED
        if is_out_of_memory(error) or isinstance(error, MemoryError):
            code = ErrorCode.OUT_OF_MEMORY
            forget(broken)  # the frames of the step hold its tensors
            pipeline.release_memory()
        logger.error("%s: its stream broke: %s", pipeline.name, reason, extra={"action": "stream"})
        with self._changed:
            fallen, self._fallen_out = self._fallen_out, []
            if len(fallen) > 1:
                self._suspects.extend(fallen)
                if code is ErrorCode.OUT_OF_MEMORY:
                    self._stream.slots = max(1, len(fallen) // 2)
            else:
                self._inside.update({item: (number, time.monotonic()) for number, item in fallen})
        if len(fallen) > 1:
            logger.info("%s: trying %d items one by one", pipeline.name, len(fallen), extra={"action": "split"})
        for _, item in fallen if len(fallen) == 1 else ():
            item.error = PipeqError(code, f"{pipeline.name!r} failed on this input: {reason}")
            self._end(item)
        pipeline.recover()
        self._stream.start()
        with self._changed:
            self._broken = None
