"""BATCH ITEMS: what the items of a batch, and their tasks, are asked for when it starts. Used by runs."""

from __future__ import annotations

from collections.abc import Sequence

from pipeq_worker.children import protocol
from pipeq_worker.schedule.task import Item, T


def message(number: int, items: list[Item[T]], alone: bool) -> protocol.ToChild:
    """What tells the device process to run a batch."""
    first = items[0]
    if first.where is None:
        return protocol.Forward(number, [item.number for item in items], alone)
    rows = [protocol.Row(item.where, item.cost) for item in items]
    return protocol.ForwardRows(number, first.lane, first.params or first.task.params, rows, alone)


def is_wanted(item: Item[T]) -> bool:
    """Whether an item still needs the device."""
    return not item.is_gone and not item.task.needs_no_device


def is_new(task: T) -> bool:
    """Whether a task may begin before it is marked."""
    if task.started_at is not None or task.needs_no_device or task.must_be_known():
        return False
    return not task.is_expired()


def tasks_of(items: Sequence[Item[T]]) -> list[T]:
    """The tasks of items, each once."""
    return list(dict.fromkeys([item.task for item in items]))


def wanted(items: list[Item[T]], tasks: list[T]) -> list[Item[T]]:
    """Those items whose tasks, which are these, need the device; a task is asked once, though it has many items."""
    over = {task for task in tasks if task.needs_no_device}
    return [item for item in items if item.task not in over] if over else items
