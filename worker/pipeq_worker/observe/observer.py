"""OBSERVERS: the interface that is told what happens to tasks and batches: implemented by the log, and by users.

A user's observer is a class derived from :class:`Observer`, behind an entry point of the group ``pipeq.observers``. The
worker makes one instance of it, without arguments, when it starts:

    [project.entry-points."pipeq.observers"]
    mine = "my_package:MyObserver"
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError

from pipeq_worker.observe.aside import Aside

logger = logging.getLogger(__name__)

#: The group of entry points for users' own observers.
GROUP = "pipeq.observers"

#: How a task left this worker. ``retrying``: it waits for its next try. ``dropped``: its result is no longer wanted,
#: because the task was cancelled, has expired, or belongs to another worker now.
Ended = Literal["succeeded", "failed", "retrying", "dropped"]


class Observer:
    """The base class of observers. Its methods do nothing; override those that you need.

    A user's own observer has a thread of its own, which calls its methods one after the other, in the order of the
    events, soon after they happened (aside.py). If one takes long, only the events that follow wait, and beyond some
    thousands are left out. An exception that a method raises is logged once, and nothing else happens.
    """

    def task_accepted(self, task_id: str, pipeline: str) -> None:
        """Called when a task has come in, and its message can be read. Inputs and parameters are checked later."""

    def stage_ended(self, task_id: str, pipeline: str, stage: str, seconds: float) -> None:
        """Called when a task has passed a stage.

        Args:
            task_id: the task's id.
            pipeline: its pipeline's name.
            stage: ``fetch``, ``decode``, ``prepare``, ``batch`` (its wait for one), ``infer`` or ``deliver``.
            seconds: the time in the stage, summed over all of the task's inputs and items.
        """

    def batch_began(self, pipeline: str, size: int) -> None:
        """Called before a forward pass of ``size`` items."""

    def batch_ran(self, pipeline: str, size: int, padding: float, seconds: float, cost: int) -> None:
        """Called after a forward pass, also after one that failed.

        Args:
            pipeline: the pipeline's name.
            size: number of items in the batch; 0 if all of its tasks were cancelled before it ran.
            padding: share of the batch's cost that was padding, 0 to 1.
            seconds: duration of the forward pass; if the batch was halved, of all passes together.
            cost: padded cost of the batch, in the unit of the task type (tokens, frames, patches).
        """

    def batch_split(self, pipeline: str, size: int, code: str) -> None:
        """Called when a batch of ``size`` items failed, and its halves are tried.

        ``code`` is ``inference_failed`` or ``out_of_memory``.
        """

    def child_died(self, reason: str, task_ids: list[str]) -> None:
        """Called when a child process has died, or was ended because it hung, while it worked on these tasks."""

    def task_ended(
        self, task_id: str, pipeline: str | None, ended: Ended, code: str | None, timing_ms: Mapping[str, float]
    ) -> None:
        """Called when a task has left this worker.

        Args:
            task_id: the task's id.
            pipeline: its pipeline's name; None if the message named none that could be read.
            ended: how it left.
            code: the code of its error, one of :class:`pipeq.ErrorCode`, if it failed or is retried.
            timing_ms: milliseconds in each stage.
        """

    def message_refused(self, queue: str, reason: str) -> None:
        """Called when a message from this queue cannot be used; it is among the dead letters now."""

    def leases_lapsed(self, messages: int) -> None:
        """Called when this worker has put back messages of workers that are gone."""

    def leases_lost(self, messages: int) -> None:
        """Called when leases of this worker lapsed although it lives; the work on their messages is dropped."""

    def given_back(self, messages: int) -> None:
        """Called when this worker has put messages back on their queues that it held and has not ended."""

    def worker_could_not(self, what: str, reason: str) -> None:
        """Called once when the worker cannot do something that it should: reach Redis, take messages from a queue."""

    def worker_can_again(self, what: str) -> None:
        """Called once when the worker can do it again."""


class Observers(Observer):
    """Passes each event on to several observers. One that raises is logged once, and the others are still called.

    Args:
        listeners: called on the worker's threads, several at a time; they must not block.
        own: the user's, each called on a thread of its own.
    """

    def __init__(self, listeners: Iterable[Observer], own: Iterable[Observer] = ()) -> None:
        listeners, self._asides = list(listeners), [(one, Aside(type(one).__name__)) for one in own]
        for name in EVENTS:
            called = [getattr(one, name) for one in listeners if _overrides(one, name)]
            called += [
                aside.later(_passed_on([getattr(one, name)])) for one, aside in self._asides if _overrides(one, name)
            ]
            setattr(self, name, _passed_on(called))

    def close(self, timeout_s: float) -> None:
        """Waits until the users' observers have been told everything, for at most so many seconds together."""
        until = time.monotonic() + timeout_s
        for _, aside in self._asides:
            aside.close(until - time.monotonic())


#: The names of an observer's methods.
EVENTS = tuple(name for name in vars(Observer) if not name.startswith("_"))


def _overrides(observer: Observer, name: str) -> bool:
    return getattr(type(observer), name) is not getattr(Observer, name)


def _passed_on(methods: list[Callable[..., None]]) -> Callable[..., None]:
    broken: set[int] = set()

    def tell(*args: Any) -> None:
        for at, method in enumerate(methods):
            try:
                method(*args)
            except (Exception, SystemExit):  # the latter would end the thread, and nobody would hear of it
                if at not in broken:
                    broken.add(at)
                    logger.exception("an observer fails: %r", method, extra={"action": "observer"})

    return tell


def of_entry_points() -> list[Observer]:
    """Makes the users' own observers.

    Raises:
        PipeqError: ``invalid_settings``, naming the entry point that cannot be used.
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
