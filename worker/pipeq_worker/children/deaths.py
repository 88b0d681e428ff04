"""DEATHS: how a child died, and which tasks it was working on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeq_worker.children import board
from pipeq_worker.schedule.task import Item, Place, T
from pipeq_worker.stages.steps import Stage


@dataclass(frozen=True)
class Death:
    """How a child died."""

    #: A sentence that begins with a verb.
    reason: str
    #: What its threads were doing.
    doing: list[board.Entry]
    #: What took too long, if that is why it was ended.
    overdue: board.Entry | None


def suspected(death: Death, running: Mapping[int, list[Item[T]]], tasks: Mapping[int, T]) -> list[T]:
    """The tasks that may have caused a death.

    Those that only were read from a store count if there are no others. If a forward pass took too long, only those in
    its batch count.

    Args:
        death: how the child died.
        running: the batches that it had: number -> items.
        tasks: ticket -> task, of all tasks inside.
    """
    if death.overdue is not None and death.overdue.stage is Stage.FORWARD:
        entries = [death.overdue]
    else:
        entries = [one for one in death.doing if one.stage is not Stage.FETCH] or death.doing
    found: dict[T, Any] = {}
    for entry in entries:
        if entry.stage is Stage.FORWARD:
            found |= {item.task: None for item in running.get(entry.number, ()) if not item.is_gone}
        elif (task := tasks.get(entry.number)) is not None and task.place is not Place.ENDED:
            found[task] = None
    return list(found)
