"""INFER: a batch of items -> an output or an error for each, in the same order. Before: batch. After: deliver."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeq.contract.errors import Blame, ErrorCode, PipeqError

from pipeq_worker.models.faults import is_fatal, is_out_of_memory
from pipeq_worker.models.pipeline import Pipeline
from pipeq_worker.models.running import ADVICE, AllStoppedError, Running
from pipeq_worker.observe.frames import forget
from pipeq_worker.observe.own_faults import is_own_fault
from pipeq_worker.observe.traces import trace_of
from pipeq_worker.schedule.costs import Pass
from pipeq_worker.stages.task import Item

logger = logging.getLogger(__name__)


class DeviceLostError(Exception):
    """From now on the device returns only errors; only a new process helps."""


def _ignore(*_: object) -> None:
    """The default of the callbacks."""


def infer(
    pipeline: Pipeline,
    items: Sequence[Item],
    on_split: Callable[[int, str], None] = _ignore,
    on_pass: Callable[[Pass], None] = _ignore,
) -> None:
    """Runs one batch, and sets each item's output or error.

    A batch that raises is halved until only the offending item fails; one that exceeds the device's memory is halved
    until it fits. An item whose row is stopped meanwhile gets neither; one whose deadline passes gets an error.

    Args:
        pipeline: runs the pass.
        items: one or more of one group.
        on_split: called with the size and the error's code of each batch that is halved.
        on_pass: called with each forward pass that came to an end, or had too little memory.

    Raises:
        DeviceLostError: a fault after which the process cannot use the device, such as an assertion inside a CUDA
            kernel.
    """
    began, padded = time.monotonic(), max(item.cost for item in items) * len(items)
    try:
        running = Running([item.row for item in items])
        outputs = pipeline.forward([item.features for item in items], items[0].call, running)
        if len(outputs) != len(items):
            raise RuntimeError(f"the model gave {len(outputs)} outputs for {len(items)} items")  # noqa: TRY301
    except AllStoppedError:
        for item in items:
            item.error = late_error(pipeline, item)
    except Exception as error:
        if is_fatal(error):
            raise DeviceLostError(f"{type(error).__name__}: {error}") from error
        if isinstance(error, PipeqError) and error.blame is Blame.WORKER:
            for item in items:
                item.error = error.bare()
            return
        if is_own_fault(error) or isinstance(error, FileNotFoundError):
            # Its halves would fail, too. A pass opens no file that a task names: weights on disk went away.
            _recover(pipeline)
            for item in items:
                item.error = _own_error(pipeline, error)
            return
        failure = _Failure(type(error).__name__, str(error).strip().partition("\n")[0], trace_of(error))
        is_full = is_out_of_memory(error)
        # The frames of the pass hold its tensors, which would leave no room for the halves.
        forget(error)
        if is_full:
            pipeline.release_memory()
            failure.code = ErrorCode.OUT_OF_MEMORY
            on_pass(Pass(len(items), padded, time.monotonic() - began, fits=False))
        _recover(pipeline)
        _halve(pipeline, items, failure, on_split, on_pass)
    else:
        over = running.over()
        if not any(over):  # otherwise it took less than such a pass takes
            on_pass(Pass(len(items), padded, time.monotonic() - began))
        for item, output, is_over in zip(items, outputs, over, strict=True):
            if is_over:
                item.error = late_error(pipeline, item)
            elif isinstance(output, PipeqError):
                item.error = output
            else:
                item.output = output


def _own_error(pipeline: Pipeline, error: Exception) -> PipeqError:
    text = str(error).strip().partition("\n")[0]
    found = PipeqError(ErrorCode.INFERENCE_FAILED, f"{pipeline.name!r} cannot run here: {type(error).__name__}: {text}")
    found.traceback, found.blame = trace_of(error), Blame.WORKER
    return found


def late_error(pipeline: Pipeline, item: Item) -> PipeqError | None:
    """The error of an item whose row is over: there is one if its deadline passed. Of a stopped item nobody reads."""
    row = item.row
    if not row.is_late:
        return None
    far = f" after {row.done} {row.unit}" if row.done else ""
    sentence = f"{pipeline.name!r} stopped when the time of the task (`timeout_s`) was over{far}: {ADVICE}"
    return PipeqError(ErrorCode.TIMEOUT, sentence)


def _recover(pipeline: Pipeline) -> None:
    """Restores the pipeline before another pass, so that innocent items are not affected by the failed pass."""
    try:
        pipeline.recover()
    except Exception as error:
        sentence = f"{pipeline.name!r} could not be loaded anew after a failed pass: {type(error).__name__}: {error}"
        raise DeviceLostError(sentence) from error


@dataclass
class _Failure:
    """What is left of an exception of a pass."""

    kind: str
    #: The first line of its message.
    text: str
    trace: str
    code: ErrorCode = ErrorCode.INFERENCE_FAILED


def _halve(
    pipeline: Pipeline,
    items: Sequence[Item],
    failure: _Failure,
    on_split: Callable[[int, str], None],
    on_pass: Callable[[Pass], None],
) -> None:
    if len(items) > 1:
        on_split(len(items), failure.code)
        logger.info(
            "a batch of %d for %s raised %s, trying its halves",
            len(items),
            pipeline.name,
            failure.kind,
            extra={"action": "split", "pipeline": pipeline.name},
        )
        middle = len(items) // 2
        infer(pipeline, items[:middle], on_split, on_pass)
        infer(pipeline, items[middle:], on_split, on_pass)
        return
    sentence = f"{pipeline.name!r} failed on this input: {failure.kind}: {failure.text}"
    items[0].error = PipeqError(failure.code, sentence)
    items[0].error.traceback = failure.trace
