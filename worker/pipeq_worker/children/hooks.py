"""HOOKS: what the stages of a worker call when something has happened to tasks. The host says what they do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from pipeq_worker.schedule.task import T


@dataclass(frozen=True, kw_only=True)
class Hooks(Generic[T]):
    """Called on threads of the stages. None of them raises.

    Attributes:
        begin: called with tasks before their first batch, and with whether a task runs alone; sets ``started_at`` and
            ``deaths``, and marks dropped tasks.
        look: marks those tasks that have ended in the meantime, and tells how far the others are.
        deliver: called with tasks that have ended; ends them.
        died: called with tasks with which a child has just died; ``deaths`` counts it already.
        hopeless: called with a sentence when no child can be had any more.
    """

    begin: Callable[[list[T], bool], None]
    look: Callable[[list[T]], None]
    deliver: Callable[[list[T]], None]
    died: Callable[[list[T]], None]
    hopeless: Callable[[str], None]
