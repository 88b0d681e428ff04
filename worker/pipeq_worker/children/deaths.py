"""DEATHS: how a child died, and which tasks it was working on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    #: Whether it did not answer then. If it did, no other step held Python's lock, and none but this one is to blame.
    is_deaf: bool = True


def suspected(death: Death, running: Mapping[int, list[Item[T]]], task_of: Callable[[int], T | None]) -> list[T]:
    """The tasks that may have caused a death, also those of a batch that have ended meanwhile.

    If a step took too long while the child still answered, these are the tasks of that step; otherwise all that it was
    working on.

    Args:
        death: how the child died.
        running: the batches that it had: number -> items.
        task_of: returns the task with a number; None if there is none.
    """
    late = death.overdue
    if late is not None and not death.is_deaf:
        # A step of several tasks has an entry for each.
        entries = [one for one in death.doing if (one.stage, one.since) == (late.stage, late.since)] or [late]
    else:
        entries = death.doing
    found: dict[T, Any] = {}
    for entry in entries:
        if entry.stage is Stage.FORWARD:
            # Those that have ended, too: one may be the cause, and then none of the others must count as convicted.
            found |= {item.task: None for item in running.get(entry.number, ()) if not item.is_gone}
        elif (task := task_of(entry.number)) is not None and task.place is not Place.ENDED:
            found[task] = None
    return list(found)


def convicted(death: Death, suspects: list[T]) -> T | None:
    """The task whose step took too long, if it is certain which one that was.

    Args:
        death: how the child died.
        suspects: from :func:`suspected`, before they have other numbers.
    """
    if death.overdue is None or len(suspects) != 1:
        return None
    (task,) = suspects
    # A step of a task that has ended, or was cancelled, may be the one that took too long, and is nobody's now.
    return task if death.overdue.stage is Stage.FORWARD or death.overdue.number == task.ticket else None
