"""HEARING: what the children say of tasks: items are ready, batches have run, tasks have ended. Used by the dispatcher.

Messages of a kind come together: then one lock, and one wake of who waits for it, do for all of them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Generic

from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.status import BatchInfo, Progress

from pipeq_worker.children import protocol
from pipeq_worker.children.answers import Answers
from pipeq_worker.children.crew import Crew
from pipeq_worker.children.ending import Ending
from pipeq_worker.children.inside import Inside
from pipeq_worker.children.keeper import Keeper
from pipeq_worker.children.ready_rows import items_of_rows
from pipeq_worker.children.residents import Residents
from pipeq_worker.children.runs import Runs
from pipeq_worker.children.streams import Streams
from pipeq_worker.observe.observer import Observer
from pipeq_worker.schedule.costs import Costs, Pass
from pipeq_worker.schedule.task import Item, Place, T


class Hearing(Generic[T]):
    """Called on the threads of the children.

    Args:
        crew: the children.
        inside: the tasks inside.
        ending: delivers those that have ended.
        runs, streams: what the device process has.
        answers: brings outputs to the prepare processes.
        residents: which pipelines are loaded.
        costs: what forward passes take.
        observer: told of batches.
        put: puts items of one pipeline that are ready where they wait for the device; ``are_alike`` as for
            :meth:`pipeq_worker.schedule.batcher.Batcher.put_all`.
        late: the error of a task whose time is over.
    """

    def __init__(
        self,
        crew: Crew,
        inside: Inside[T],
        ending: Ending[T],
        runs: Runs[T],
        streams: Streams[T],
        answers: Answers[T],
        residents: Residents[T],
        costs: Costs,
        observer: Observer,
        *,
        put: Callable[..., None],
        late: Callable[[T], PipeqError],
    ) -> None:
        self._crew = crew
        self._inside = inside
        self._ending = ending
        self._runs = runs
        self._streams = streams
        self._answers = answers
        self._residents = residents
        self._costs = costs
        self._observer = observer
        self._put = put
        self._late = late

    def hear(self, home: Keeper, messages: Sequence[protocol.ToHost]) -> None:
        """Hears messages of a child."""
        for kind, some in itertools.groupby(messages, type):
            if kind is protocol.Ready:
                self._ready(home, some)  # type: ignore[arg-type]
            elif kind is protocol.ReadyRows:
                self._ready_rows(home, some)  # type: ignore[arg-type]
            elif kind is protocol.Ended:
                self._ended(some)  # type: ignore[arg-type]
            else:
                for message in some:
                    self._hear_one(home, message)

    def _hear_one(self, home: Keeper, message: protocol.ToHost) -> None:
        match message:
            case protocol.Loaded() if home.number == 0:
                self._residents.loaded(message)
            case protocol.Prepared():
                with self._inside.lock:
                    self._inside.heard(message.task, Place.PREPARED)
            case protocol.Ran():
                self._ran(message)
            case protocol.Far():
                self._far(message)
            case protocol.FarRows():
                self._far_rows(message)
            case protocol.Taken():
                self._answers.taken(home, message.number)
            case protocol.Ends():
                self._crew.take_ends(message)

    def _ready(self, home: Keeper, messages: Iterable[protocol.Ready]) -> None:
        items: dict[str, list[Item[T]]] = {}
        with self._inside.lock:
            for ready in messages:
                task = self._inside.heard(ready.task, Place.PREPARED if ready.is_only else Place.PREPARING)
                if task is None:
                    continue
                task.params = ready.params or task.params
                task.ready_at = task.ready_at or time.monotonic()
                assert task.lane is not None
                # A task with deaths shares no batch.
                group = (ready.task, ready.item) if task.deaths else ready.group
                about = (group, task.lane, ready.cost, ready.nbytes, home.number, ready.where)
                items.setdefault(task.lane, []).append(Item(task, ready.task, ready.item, *about))
        for some in items.values():
            self._put(some)

    def _ready_rows(self, home: Keeper, messages: Iterable[protocol.ReadyRows]) -> None:
        # The child counts as busy with a pack until it has prepared all of its rows, so it is not given others sooner.
        items: list[list[Item[T]]] = []
        with self._inside.lock:
            for said in messages:
                if (task := self._inside.get(said.task)) is not None and task.lane is not None:
                    task.ready_at = task.ready_at or time.monotonic()
                    items.append(items_of_rows(task, home.number, said))
        for some in items:
            # While processes die with a pack, each of its items is a group of its own.
            self._put(some, are_alike=not some[0].task.deaths)

    def _ran(self, ran: protocol.Ran) -> None:
        if self._streams.ran(ran.number, ran.seconds):
            return  # it says nothing of a batch: two of all places are what the worker holds
        with self._inside.lock:  # so that no prepare process dies between the two
            batch = self._runs.ran(ran.number, ran.seconds)
            if batch and ran.outputs:
                self._answers.send(ran, batch)
        if not batch:
            return
        name = batch[0].lane
        if not ran.size:
            self._observer.batch_ran(name, 0, 0.0, 0.0, 0)
            return
        learned = self._costs.of(name, self._crew.limits(name))
        for one in ran.passes:
            learned.add(Pass(*one))
        learned.ended(0)  # each is counted when its end is heard
        for size, code in ran.splits:
            self._observer.batch_split(name, size, code)
        self._observer.batch_ran(name, ran.size, ran.padding, ran.seconds, ran.padded_cost)

    def _far(self, far: protocol.Far) -> None:
        with self._inside.lock:
            if (task := self._inside.get(far.task)) is not None:
                task.progress = Progress(done=far.done, total=far.total, unit=far.unit)

    def _far_rows(self, far: protocol.FarRows) -> None:
        items = self._runs.items_of(far.number)
        with self._inside.lock:
            for at, done, total, unit in far.rows[: len(items)]:
                task = items[at].task
                # A task of several inputs or chunks counts those.
                if not items[at].is_gone and (task.progress is None or task.progress.unit == unit):
                    task.progress = Progress(done=done, total=total, unit=unit)

    def _ended(self, messages: Iterable[protocol.Ended]) -> None:
        tasks = []
        with self._inside.lock:
            for ended in messages:
                task = self._inside.heard(ended.task, Place.PREPARED)
                if task is None:
                    continue
                if ended.error is not None:
                    # A store that was read until the last moment, for instance, is not to blame.
                    is_late = task.late_at <= time.monotonic() and ended.error.code != ErrorCode.TIMEOUT
                    task.fail(self._late(task) if is_late else ended.error.error())
                elif task.lane is not None:
                    self._inside.learn(task.lane, ended.busy_s)
                task.result_json, task.result_uri = ended.result, ended.result_uri
                task.handed_on_json, task.pack_end = ended.handed_on, ended.pack
                task.began, task.timing_ms = ended.began, ended.timing_ms
                if ended.batch is not None:
                    if (learned := self._costs.find(task.lane)) is not None:
                        learned.task_ended()
                    task.batch = BatchInfo.model_construct(size=ended.batch[0], padding=ended.batch[1])
                tasks.append(task)
        self._ending.end(tasks)
