"""READY ROWS: what a child says of the rows of a pack -> items, in the host. Used by the dispatcher."""

from __future__ import annotations

from collections.abc import Sequence

from pipeq_worker.children import protocol
from pipeq_worker.schedule.task import Item, T


def items_of_rows(task: T, child: int, said: protocol.ReadyRows) -> list[Item[T]]:
    """What the host knows of items of a pack.

    Args:
        task: the pack.
        child: the child that said so.
        said: what it said.
    """
    lane = task.lane or ""
    wheres: Sequence[object] = said.wheres or [None] * len(said.items)
    return [
        Item(
            task,
            said.task,
            number,
            (said.task, number) if task.deaths else said.group,
            lane,
            cost,
            nbytes,
            child,
            where,
            said.params,
        )
        for number, cost, nbytes, where in zip(said.items, said.costs, said.nbytes, wheres, strict=True)
    ]
