"""PREPARE: a task's decoded inputs -> items, in CPU threads. Before: decode. After: batch."""

from __future__ import annotations

from collections.abc import Iterator

from producers.errors import PipeqError
from worker.pipelines import Prepared
from worker.work import Item, Work


def items(work: Work) -> Iterator[Item]:
    """Tokenizes, extracts features, cuts chunks: one item at a time, so that a long audio is never there as a whole.

    Raises:
        PipeqError: ``invalid_input`` or ``invalid_params``, naming the input.
    """
    assert work.pipeline is not None
    for index, one in enumerate(work.inputs):
        rows = work.pipeline.prepare(one.call_value, work.params)
        for chunk, row in enumerate(_located(rows, f"inputs[{index}]" if work.is_list else "")):
            yield Item(work, index, chunk, row.features, row.group, row.cost, row.nbytes)


def _located(rows: Iterator[Prepared], where: str) -> Iterator[Prepared]:
    """Says in an error which of several inputs it is about."""
    try:
        yield from rows
    except PipeqError as error:
        if not where:
            raise
        raise PipeqError(error.code, f"{where}: {error.message}", error.retryable) from error
