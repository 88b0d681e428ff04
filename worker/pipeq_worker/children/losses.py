"""LOSSES: what follows when a child has died: some tasks are charged, all that it had start over.

    child died -> its suspects (deaths.py) are charged -> what it had gets new numbers and waits for a child again

Used by the dispatcher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic

from pipeq.contract.errors import ErrorCode, PipeqError

from pipeq_worker.children.answers import Answers
from pipeq_worker.children.deaths import Death, convicted, suspected
from pipeq_worker.children.ending import Ending
from pipeq_worker.children.inside import Inside
from pipeq_worker.children.keeper import Keeper
from pipeq_worker.children.runs import Runs
from pipeq_worker.children.streams import Streams
from pipeq_worker.observe.observer import Observer
from pipeq_worker.schedule.task import Place, T


class Losses(Generic[T]):
    """Called on the threads of the children.

    Args:
        inside: the tasks inside.
        ending: ends those that have died too often.
        runs, streams: what the device process had.
        answers: knows whose memory is still read.
        observer: told of the death.
        died: see :class:`pipeq_worker.children.hooks.Hooks`.
        cancel: has the children that live stop working on tasks.
        max_deaths: the setting.
    """

    def __init__(
        self,
        inside: Inside[T],
        ending: Ending[T],
        runs: Runs[T],
        streams: Streams[T],
        answers: Answers[T],
        observer: Observer,
        *,
        died: Callable[[list[T]], None],
        cancel: Callable[[Sequence[T]], None],
        max_deaths: int,
    ) -> None:
        self._inside = inside
        self._ending = ending
        self._runs = runs
        self._streams = streams
        self._answers = answers
        self._observer = observer
        self._died = died
        self._cancel = cancel
        self._max_deaths = max_deaths

    def died(self, home: Keeper, death: Death) -> None:
        """Counts a death for the tasks that the child was working on; what it had starts over in another one."""
        with self._runs.marking, self._inside.lock:
            running = self._runs.abandon() | self._streams.abandon() if home.number == 0 else {}
            suspects = suspected(death, running, self._inside.get)
            late = convicted(death, suspects)
            suspects = [task for task in suspects if task.place is not Place.ENDED]
            lost = [task for task in self._inside.in_children() if task.child == home.number or task in suspects]
            # What a prepare process still has of a task that killed the device process.
            self._cancel([task for task in lost if task.child != home.number])
            for task in lost:
                self._runs.forget(task.ticket)
            self._inside.start_over(lost)
            for task in suspects:
                task.deaths += 1
            self._answers.died(home)
            for items in running.values():
                self._runs.put_back(items)
        self._observer.child_died(death.reason, [task.id for task in suspects])
        if suspects:
            self._died(suspects)
        for task in suspects:
            if task.split():
                pass  # the death is one row's, and that will show
            elif task is late:
                task.is_ended_by_death = task.error is None
                task.fail(PipeqError(ErrorCode.TIMEOUT, death.reason))
            elif task.deaths >= self._max_deaths:
                sentence = f"{task.deaths} processes died while they worked on this task"
                task.fail(PipeqError(ErrorCode.WORKER_LOST, sentence))
            if task.needs_no_device:
                self._ending.drop(task)
