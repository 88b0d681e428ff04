"""Runs inputs through a pipeline in batches and one by one, and reports where the answers differ."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeq.contract.errors import PipeqError

from pipeq_worker.doctor.compare import differences
from pipeq_worker.models.call import Call
from pipeq_worker.models.pipeline import BatchLimits
from pipeq_worker.models.transformers_pipeline import TransformersPipeline
from pipeq_worker.schedule.batcher import Batcher
from pipeq_worker.stages.infer import infer
from pipeq_worker.stages.task import Item, Task


@dataclass
class Report:
    """The result of :func:`check`."""

    #: Sizes of the batches that ran.
    batches: list[int] = field(default_factory=list)
    #: For each input whose answers differ: its index -> the differences, in words.
    wrong: dict[int, list[str]] = field(default_factory=dict)
    #: For each input that failed, in a batch or alone: its index -> the reason.
    failed: dict[int, str] = field(default_factory=dict)
    alone_s: float = 0.0
    batched_s: float = 0.0

    @property
    def largest_batch(self) -> int:
        """Items in the largest batch; 0 if none ran."""
        return max(self.batches, default=0)


def _silent(what: str, done: int, total: int) -> None:
    """The default, if the caller does not want to follow the progress."""


def check(
    pipeline: TransformersPipeline,
    values: list[Any],
    params: Mapping[str, Any],
    *,
    limits: BatchLimits | None = None,
    shuffle: int | None = 0,
    progress: Callable[[str, int, int], None] = _silent,
) -> Report:
    """Compares each input's answer from a batch with the answer of transformers' pipeline called for it alone.

    Args:
        pipeline: the pipeline.
        values: decoded inputs.
        params: parameters of the call, merged over the pipeline's own.
        limits: limits of the batches; by default the pipeline's own.
        shuffle: seed for the order in which items arrive, so that chunks of different inputs share batches; None keeps
            the order of the inputs.
        progress: called with the name of the step, the number of inputs or items done, and their total.

    Raises:
        PipeqError: ``invalid_params``.
    """
    report, call = Report(), pipeline.merge(params)
    began = time.monotonic()
    got = _batched(pipeline, values, call, limits or pipeline.limits, report, shuffle, progress)
    report.batched_s = time.monotonic() - began
    for index, value in enumerate(values):
        progress("one by one", index, len(values))
        began = time.monotonic()
        try:
            # Copies, because several pipelines change their arguments.
            want = pipeline.alone(copy.deepcopy(value), copy.deepcopy(dict(call.params)))
        except Exception as error:
            report.failed.setdefault(index, f"alone: {type(error).__name__}: {error}")
            continue
        finally:
            report.alone_s += time.monotonic() - began
        if index in got and (found := list(differences(got[index], want))):
            report.wrong[index] = found
    progress("one by one", len(values), len(values))
    return report


def _batched(
    pipeline: TransformersPipeline,
    values: list[Any],
    call: Call,
    limits: BatchLimits,
    report: Report,
    shuffle: int | None,
    progress: Callable[[str, int, int], None],
) -> dict[int, Any]:
    items: list[Item] = []
    task = Task(id="doctor", pipeline=pipeline, call=call)
    for index, value in enumerate(values):
        try:
            rows = list(pipeline.prepare(copy.deepcopy(value), call))
        except PipeqError as error:
            report.failed[index] = str(error)
            continue
        items += [Item(task, index, at, r.features, r.group, r.cost, r.nbytes) for at, r in enumerate(rows)]
    if shuffle is not None:
        random.Random(shuffle).shuffle(items)  # noqa: S311 - no secret
    batcher: Batcher[Item] = Batcher()
    batcher.put_all(items, limits)
    while len(batcher):
        batch = batcher.take()
        assert batch is not None
        report.batches.append(len(batch.items))
        infer(pipeline, batch.items)
        progress("in batches", len(items) - len(batcher), len(items))
    outputs: dict[int, list[Item]] = {}
    for item in sorted(items, key=lambda one: one.chunk):
        outputs.setdefault(item.index, []).append(item)
    return dict(_results(pipeline, values, call, outputs, report))


def _results(
    pipeline: TransformersPipeline,
    values: list[Any],
    call: Call,
    outputs: dict[int, list[Item]],
    report: Report,
) -> Iterable[tuple[int, Any]]:
    for index, chunks in outputs.items():
        broken = next((item.error for item in chunks if item.error is not None), None)
        if broken is not None:
            report.failed[index] = str(broken)
            continue
        try:
            result = pipeline.postprocess([item.output for item in chunks], call)
        except PipeqError as error:
            report.failed[index] = str(error)
            continue
        yield index, pipeline.result(result, values[index], call)
