"""What happens to tasks and batches in a worker, told to whoever listens: the log, and a user's own observers.

A user's observer is a class of this shape behind an entry point of the group ``pipeq.observers``; the worker makes one
of it, without arguments, when it starts:

    [project.entry-points."pipeq.observers"]
    mine = "my_package:MyObserver"
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError

logger = logging.getLogger(__name__)

#: Entry points of users' own observers.
GROUP = "pipeq.observers"

#: How a task left this worker. ``retrying``: it waits for its next try. ``dropped``: its result is of no use any more,
#: as it was cancelled, has expired, or is another worker's.
Ended = Literal["succeeded", "failed", "retrying", "dropped"]


class Observer:
    """Does nothing; override what you want to know.

    Called on the worker's own threads, several at a time: be quick, block on nothing. What a method raises is logged
    once, and the task goes on.
    """

    def task_accepted(self, task_id: str, pipeline: str) -> None:
        """A task came in, and its message is one that the pipeline takes."""

    def stage_ended(self, task_id: str, pipeline: str, stage: str, seconds: float) -> None:
        """A task is through a stage.

        Args:
            task_id: the task's.
            pipeline: its pipeline's name.
            stage: ``fetch``, ``decode``, ``prepare``, ``batch`` (its wait for one), ``infer`` or ``deliver``.
            seconds: what it took, all of the task's inputs and items together.
        """

    def batch_ran(self, pipeline: str, size: int, padding: float, seconds: float) -> None:
        """A forward pass is over.

        Args:
            pipeline: the pipeline's name.
            size: items in the batch.
            padding: share of its cost that was padding, 0 to 1.
            seconds: what it took.
        """

    def child_died(self, reason: str, task_ids: list[str]) -> None:
        """The device hangs or is beyond use, and the process that has it ends: with these tasks in the batch."""

    def task_ended(
        self, task_id: str, pipeline: str | None, ended: Ended, code: str | None, timing_ms: Mapping[str, float]
    ) -> None:
        """A task left this worker.

        Args:
            task_id: the task's.
            pipeline: its pipeline's name; None where the message named none that can be read.
            ended: how.
            code: its error's, of :class:`pipeq.ErrorCode`, where it failed or is retried.
            timing_ms: milliseconds in each stage.
        """

    def worker_could_not(self, what: str, reason: str) -> None:
        """The worker cannot do something that it should: reach Redis, take messages from a queue. Said once."""

    def worker_can_again(self, what: str) -> None:
        """What it could not do, it can."""


class Observers(Observer):
    """Passes on what happens to each of several; one that raises is said once and disturbs nobody."""

    def __init__(self, listeners: Iterable[Observer]) -> None:
        listeners = list(listeners)
        for name in EVENTS:
            plain = getattr(Observer, name)
            wanted = [one for one in listeners if getattr(type(one), name) is not plain]
            setattr(self, name, _passed_on([getattr(one, name) for one in wanted]))


#: The methods of an observer.
EVENTS = tuple(name for name in vars(Observer) if not name.startswith("_"))


def _passed_on(methods: list[Callable[..., None]]) -> Callable[..., None]:
    broken: set[int] = set()

    def tell(*args: Any) -> None:
        for at, method in enumerate(methods):
            try:
                method(*args)
            except Exception:
                if at not in broken:
                    broken.add(at)
                    logger.exception("an observer fails: %r", method, extra={"action": "observer"})

    return tell


def of_entry_points() -> list[Observer]:
    """Users' own observers.

    Raises:
        PipeqError: ``invalid_settings``, naming the entry point that does not give one.
    """
    return [_load(one) for one in entry_points(group=GROUP)]


def _load(entry: EntryPoint) -> Observer:
    try:
        observer = entry.load()()
    except Exception as error:
        sentence = f"the observer {entry.name!r} ({entry.value}) cannot be made: {type(error).__name__}: {error}"
        raise PipeqError(ErrorCode.INVALID_SETTINGS, shown.line(sentence, 500)) from error
    if missing := [name for name in EVENTS if not callable(getattr(observer, name, None))]:
        sentence = f"the observer {entry.name!r} ({entry.value}) has no method {missing[0]!r}: derive it from Observer"
        raise PipeqError(ErrorCode.INVALID_SETTINGS, sentence)
    return observer
