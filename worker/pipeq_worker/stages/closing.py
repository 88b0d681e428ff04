"""CLOSING: items that have run -> their tasks' outputs, errors and times. Before: device. After: finish."""

from __future__ import annotations

import math
from collections import Counter

from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.status import BatchInfo

from pipeq_worker.stages.device import Ran
from pipeq_worker.stages.shelf import Shelf
from pipeq_worker.stages.task import Item, Task


def close(shelf: Shelf, items: list[Item], ran: Ran, most_bytes: float = math.inf) -> list[Task]:
    """Takes items that have run off the shelf. Returns the tasks that have none left.

    Args:
        shelf: where they lie.
        items: of one batch; each has its output or its error, unless its task needs none any more.
        ran: the batch.
        most_bytes: most bytes that the results of one task may take.
    """
    tasks = dict.fromkeys([item.task for item in items])
    over = {task for task in tasks if task.needs_no_device}
    wanted = [item for item in items if item.task not in over] if over else items
    ended = ran.began + ran.seconds
    info = BatchInfo(size=ran.size, padding=round(ran.padding, 4))
    for task in tasks:
        if task in over:
            continue
        if task.batch is None or info.size > task.batch.size:
            task.batch = info
        task.times.passed(ran.began, ended)
    share_s = ran.seconds / ran.size if ran.size else 0.0
    for item in wanted:
        item.features = None
        if item.task.pack is not None:
            item.task.pack.device_s += share_s
        if item.error is not None:
            item.task.fail_input(item.index, item.error.bare(item.task.where(item.index)))
        else:
            _keep(item, most_bytes)
    # A cancelled task's items may have been removed, and closed, meanwhile.
    counts = Counter([item.task for item in shelf.remove(items)])
    done = [task for task, count in counts.items() if task.closed(count)]
    for task in done:
        # One that has failed here is not delivered: its pass was the last that it came to.
        task.times.enters("deliver" if task.error is None else "infer", ended)
    return done


def _keep(item: Item, most_bytes: float) -> None:
    """Keeps an item's output until its task ends, unless that has too many by now."""
    task, pipeline = item.task, item.task.pipeline
    assert pipeline is not None
    task.output_bytes += pipeline.output_bytes(item.output, item.call)
    if task.output_bytes <= most_bytes:
        task.outputs[item.index][item.chunk] = item.output
        return
    error = PipeqError(
        ErrorCode.INPUT_TOO_LARGE,
        f"the results of the task would take more than {most_bytes:g} bytes, the most that this worker makes of "
        "one task ([inputs] max_decoded_bytes): send it in parts",
    )
    if task.pack is None:
        task.fail(error)
    else:
        task.pack.crowd_out(item.index, error)
