"""PREPARE: a task's decoded inputs -> items, in CPU threads. Before: decode. After: batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipeq.contract.errors import PipeqError

from pipeq_worker.models.pipeline import Prepared
from pipeq_worker.stages.task import Input, Item, Task

#: Parameters and fields whose entries each give a row for each input, or as much work as a row.
_MULTIPLIERS = frozenset(("candidate_labels", "targets", "query", "questions"))


def least_items(inputs: Iterable[Input], params: Mapping[str, Any]) -> int:
    """Lower bound of a task's rows, computed from its message: the number of inputs times their labels."""
    is_plain = _MULTIPLIERS.isdisjoint(params)
    return sum(
        # Nearly always there is none of them.
        1
        if is_plain and _MULTIPLIERS.isdisjoint(one.fields)
        else max(_entries(one.fields.get(name, params.get(name))) for name in _MULTIPLIERS)
        for one in inputs
    )


def _entries(value: Any) -> int:
    if isinstance(value, str):
        return value.count(",") + 1  # transformers splits a text of labels at commas
    return max(1, len(value)) if isinstance(value, list | dict) else 1


def items(task: Task, index: int) -> Iterator[Item]:
    """Yields the items of one input (tokens, features, chunks), so a long audio is never in memory as a whole.

    Raises:
        PipeqError: ``invalid_input`` or ``invalid_params``, naming the input.
    """
    assert task.pipeline is not None
    rows = task.pipeline.prepare(task.inputs[index].call_value, task.call_of(index))
    for chunk, row in enumerate(_located(rows, task.where(index))):
        item = Item(task, index, chunk, row.features, row.group, row.cost, row.nbytes)
        item.row.deadline, task.row = task.deadline, item.row
        yield item


def _located(rows: Iterator[Prepared], where: str) -> Iterator[Prepared]:
    """Adds the place of the input to an error's message."""
    try:
        yield from rows
    except PipeqError as error:
        if not where:
            raise
        raise error.bare(where) from error
