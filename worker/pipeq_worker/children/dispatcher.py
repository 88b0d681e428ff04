"""DISPATCHER: takes tasks through a child: which goes in, which items run together, what happens when the child dies.

    submit -> queue -> prepare (child) -> window -> begin -> forward (child) -> ended -> deliver

It holds no input: of a task it knows its place and the cost of its items. Before: the pool. After: delivery.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic

from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.status import BatchInfo, Progress

from pipeq_worker.children import protocol
from pipeq_worker.children.answers import Answers
from pipeq_worker.children.crew import Crew
from pipeq_worker.children.deaths import Death, convicted, suspected
from pipeq_worker.children.delivering import Delivering
from pipeq_worker.children.feeding import Feeding
from pipeq_worker.children.guarded import guarded
from pipeq_worker.children.keeper import Keeper
from pipeq_worker.children.lone import Lone
from pipeq_worker.children.process import Starter
from pipeq_worker.children.residents import Residents
from pipeq_worker.children.runs import Runs
from pipeq_worker.children.served import Served
from pipeq_worker.children.streams import Streams
from pipeq_worker.children.timeouts import Timeouts, stage_of
from pipeq_worker.models.pipeline import BatchLimits
from pipeq_worker.observe.observer import Observer
from pipeq_worker.schedule.batcher import Batcher, Closed
from pipeq_worker.schedule.costs import Costs, Pass
from pipeq_worker.schedule.task import Item, Place, T
from pipeq_worker.settings.read import Settings
from pipeq_worker.stages.threads import threads_of

logger = logging.getLogger(__name__)

#: How often a task that takes long is checked for having been cancelled, in seconds.
LOOK_S = 1.0
#: How long results may still take to be stored when a drain ends, in seconds.
STORE_S = 2.0
#: Stages whose times are told to observers, in the order of a task's way.
_STAGES = ("fetch", "decode", "prepare", "wait_device", "infer")


def _ignore(_: Any) -> None:
    """The default, if nobody wants to know."""


@dataclass(frozen=True, kw_only=True)
class Hooks(Generic[T]):
    """What the dispatcher calls, on its threads. None of them raises.

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


class Dispatcher(Generic[T]):
    """Owns the tasks inside a worker, from their acceptance to their delivery.

    Args:
        settings: the worker's settings.
        start: starts a child.
        hooks: what is called.
        observer: told what happens to tasks and batches.
        loads: called with the pipelines that have to be loaded again.
        loaded: called with each pipeline that is loaded.
    """

    def __init__(
        self,
        settings: Settings,
        start: Starter,
        hooks: Hooks[T],
        observer: Observer | None = None,
        *,
        loads: Callable[[Sequence[str]], None] = _ignore,
        loaded: Callable[[str], None] = _ignore,
    ) -> None:
        self._settings = settings
        self._hooks = hooks
        self._observer = observer or Observer()
        #: Ticket -> task.
        self._tasks: dict[int, T] = {}
        self._tickets = itertools.count(1)
        self._timeouts: Timeouts[T] = Timeouts(settings, self._in_children, self._late, hooks.hopeless)
        self._feeding: Feeding[T] = Feeding(self._homes, self._has_plenty, threads_of(settings), self._timeouts.begins)
        # Of one lock, but two, so that a task that comes or goes does not wake the thread that looks once a second.
        lock = threading.RLock()
        self._changed, self._ends = threading.Condition(lock), threading.Condition(lock)
        self._last_task_at = time.monotonic()
        self._draining = False
        self._hurried = False
        self._stopped = False
        #: What forward passes take, and what the next ones will.
        self.costs = Costs()
        self._window: Batcher[Item[T]] = Batcher(self.costs)
        self._delivering: Delivering[T] = Delivering(hooks.deliver, self._delivered)
        self._crew = Crew(
            settings,
            start,
            heard=self._hear,
            serving=self._serving,
            died=self._died,
            hopeless=hooks.hopeless,
            loads=loads,
            loaded=loaded,
        )
        self._residents: Residents[T] = Residents(
            settings.max_loaded_bytes,
            self._crew.device.send,
            self._offer,
            lambda name: self._runs.is_running(name),
            loads,
        )
        self._lone: Lone[T] = Lone()
        self._runs: Runs[T] = Runs(
            self._window,
            hooks.begin,
            self._crew.device.send,
            self._may_run,
            self._drop,
            self._limits,
            settings,
            self._observer,
            hooks.hopeless,
            self._residents.keep,
            self._lone,
            self._put_again,
        )
        self._streams: Streams[T] = Streams(
            hooks.begin,
            self._crew.device.send,
            self._may_run,
            self._drop,
            self._limits,
            settings,
            self._observer,
            hooks.hopeless,
            lambda name: self._crew.device.served[name].slots,
            self._lone,
            self._put_again,
        )
        self._answers = Answers(self._crew, self._runs)

    # -- for the worker -----------------------------------------------------------------------------------------------

    def load(self) -> dict[str, Served]:
        """Starts the child, and waits until it serves. Returns the pipelines.

        Raises:
            PipeqError: a pipeline cannot be loaded.
        """
        return self._crew.load()

    def start(self) -> None:
        """Starts the threads that take tasks through."""
        self._runs.start()
        self._streams.start()
        self._delivering.start()
        self._timeouts.start()
        threading.Thread(target=guarded(self._look, self._hooks.hopeless), name="look", daemon=True).start()

    @property
    def pids(self) -> list[tuple[str, int]]:
        """Role and process id of each child that lives."""
        return self._crew.pids

    def submit(self, task: T) -> None:
        """Accepts a task, and returns at once. Once the stages are ending, the task is ignored."""
        self.accept([task])
        self.feed()

    def accept(self, tasks: Sequence[T]) -> None:
        """Accepts tasks that begin at the next :meth:`feed`: one call for many tasks costs less."""
        with self._changed:
            if self._draining:
                return
            for task in tasks:
                task.ticket = next(self._tickets)
                self._tasks[task.ticket] = task
                if task.error is None:
                    self._feeding.add(task)
            self._last_task_at = time.monotonic()
        for task in tasks:
            if task.error is not None:
                self._end(task)
            elif task.lane is not None:
                self._observer.task_accepted(task.id, task.lane)
        self._crew.device.wake()

    def in_flight(self) -> dict[str, int]:
        """Number of tasks inside, for each pipeline."""
        with self._changed:
            return Counter(task.lane for task in self._tasks.values() if task.lane is not None)

    def running(self) -> dict[str, int]:
        """Number of those whose first batch has begun."""
        with self._changed:
            began = [task.lane for task in self._tasks.values() if task.started_at is not None]
        return Counter(name for name in began if name is not None)

    def hangs(self) -> str | None:
        """Says that the child hangs although it should have been ended; None if all is well."""
        return self._crew.hangs()

    def withdraw(self) -> list[T]:
        """Accepts no more tasks, and returns those that have not reached the device; the caller owns them again."""
        with self._changed:
            self._draining = True
            # What lies ready for the device has not begun, either.
            for task in self._runs.recall(self._crew.device.running):
                task.starts_over()
            idle = [task for task in self._tasks.values() if task.withdraw()]
            for task in idle:
                self._forget(task)
            self._changed.notify_all()
        self._cancel(idle)
        return idle

    def claim(self) -> bool:
        """Whether messages under suspicion may be received now, until :meth:`disclaim`; see :mod:`.lone`."""
        return self._lone.claim()

    def disclaim(self) -> None:
        """Notes that they were received."""
        for resume in self._lone.disclaim():
            resume()

    @property
    def is_open(self) -> bool:
        """Whether a task that is submitted now begins soon."""
        return self._crew.device.is_serving and not self._draining

    def spare(self, name: str) -> list[T]:
        """The tasks of a pipeline that have not begun. Those with which a process died stay here."""
        with self._changed:
            if self._draining:
                return []
            return [task for task in self._tasks.values() if task.lane == name and task.is_waiting and not task.deaths]

    def give_back(self, tasks: Sequence[T], most: int) -> list[T]:
        """Withdraws the first ``most`` of these tasks that have not begun; the caller owns them again."""
        with self._changed:
            able = (task for task in tasks if self._tasks.get(task.ticket) is task and task.withdraw())
            back = list(itertools.islice(able, most))
            inside = [task for task in back if task.place is not Place.HOST]
            for task in back:
                self._forget(task)
            if inside:
                self._cancel(inside)
        return back

    def drain(self, timeout_s: float) -> list[T]:
        """Finishes the tasks inside, for at most ``timeout_s``, then stops.

        A forward pass that still runs then is abandoned.

        Returns:
            The tasks that were not finished.
        """
        with self._changed:
            self._draining = True
            self._changed.wait_for(lambda: self._hurried or not self._tasks, timeout_s)
            # Tasks that are still inside are not delivered any more, whatever happens to them here.
            self._stopped = True
            self._ends.notify_all()
        self._window.close()
        self._runs.close()
        self._streams.close()
        self._timeouts.close()
        self._delivering.settle(0 if self._hurried else STORE_S)
        with self._changed:
            return list(self._tasks.values())

    def close(self) -> None:
        """Ends the children."""
        self._crew.close()

    def hurry(self) -> None:
        """Ends a drain, now or later, without waiting. May be called from any thread."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    @property
    def is_hurried(self) -> bool:
        """Whether a drain must not wait any more."""
        return self._hurried

    # -- into the child -----------------------------------------------------------------------------------------------

    def feed(self) -> None:
        """Has tasks that were accepted begin."""
        with self._changed:
            self._feeding.feed()

    def _homes(self, name: str) -> Sequence[Keeper]:
        return self._answers.may_prepare(self._crew.homes(name))

    def _has_plenty(self, name: str) -> bool:
        """Whether the device has its batches, and a pipeline's next one is ready, too."""
        return self._runs.has_enough and self._window.count(name) >= self._limits(name).max_size

    def _cancel(self, tasks: Sequence[T]) -> None:
        """Has the children stop working on tasks."""
        for home in self._crew:
            if tickets := [task.ticket for task in tasks if task.child == home.number]:
                busy = [number for items in self._runs.numbers_of(home.number).values() for number in items]
                home.send(protocol.Cancel(tickets, busy))
        for stop in self._runs.stops(tasks):
            self._crew.device.send(stop)

    def _serving(self) -> None:
        for name, served in self._crew.device.served.items():
            if not served.slots:
                self.costs.of(name, served.limits).seed_with(served.first_passes)
        self._runs.poke()
        self.feed()

    def _may_run(self) -> bool:
        return self._crew.device.is_serving and self._answers.are_read

    def _forget(self, task: T) -> None:
        """Removes a task. Call it with the lock held."""
        self._tasks.pop(task.ticket, None)
        self._feeding.remove(task)

    # -- out of the child ---------------------------------------------------------------------------------------------

    def _hear(self, home: Keeper, messages: Sequence[protocol.ToHost]) -> None:
        """Hears messages of a child, on its thread."""
        # Messages of a kind come together: then one lock, and one wake of who waits for it, do for all of them.
        for kind, some in itertools.groupby(messages, type):
            if kind is protocol.Ready:
                self._ready(home, some)  # type: ignore[arg-type]
            elif kind is protocol.Ended:
                self._ended(some)  # type: ignore[arg-type]
            else:
                for message in some:
                    self._hear_one(home, message)
        self._runs.poke()
        self.feed()

    def _hear_one(self, home: Keeper, message: protocol.ToHost) -> None:
        match message:
            case protocol.Loaded() if home.number == 0:
                self._residents.loaded(message)
            case protocol.Prepared():
                with self._changed:
                    self._unfed(message.task, Place.PREPARED)
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

    def _unfed(self, ticket: int, place: Place) -> T | None:
        """Notes that the child is further with a task. Returns the task, unless it is not ours any more.

        Call it with the lock held.
        """
        task = self._tasks.get(ticket)
        self._feeding.is_ready(ticket)
        if task is not None and task.place is not place and task.place in (Place.PREPARING, Place.PREPARED):
            task.moved(place)
        return task

    def _ready(self, home: Keeper, messages: Iterable[protocol.Ready]) -> None:
        items: dict[str, list[Item[T]]] = {}
        with self._changed:
            for ready in messages:
                task = self._unfed(ready.task, Place.PREPARED if ready.is_only else Place.PREPARING)
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

    def _put(self, items: Sequence[Item[T]]) -> None:
        """Puts items of a pipeline that are ready where they wait for the device."""
        if self._crew.device.served[items[0].lane].slots:
            for item in items:
                self._streams.put(item)
        else:
            self._offer(*items)

    def _put_again(self, item: Item[T]) -> None:
        self._put([item])

    def _offer(self, *items: Item[T]) -> None:
        """Puts items of a pipeline that are ready into the window."""
        with suppress(Closed):  # draining: the message goes back on its queue
            self._window.put_all(items, self._limits(items[0].lane))

    def _limits(self, name: str) -> BatchLimits:
        return self._crew.device.served[name].limits

    def _ran(self, ran: protocol.Ran) -> None:
        if self._streams.ran(ran.number, ran.seconds):
            return  # it says nothing of a batch: two of all places are what the worker holds
        with self._changed:  # so that no prepare process dies between the two
            batch = self._runs.ran(ran.number, ran.seconds)
            if batch and ran.outputs:
                self._answers.send(ran, batch)
        if not batch:
            return
        name = batch[0].lane
        if not ran.size:
            self._observer.batch_ran(name, 0, 0.0, 0.0, 0)
            return
        learned = self.costs.of(name, self._limits(name))
        for one in ran.passes:
            learned.add(Pass(*one))
        learned.ended(0)  # each is counted when its end is heard
        for size, code in ran.splits:
            self._observer.batch_split(name, size, code)
        self._observer.batch_ran(name, ran.size, ran.padding, ran.seconds, ran.padded_cost)

    def _far(self, far: protocol.Far) -> None:
        with self._changed:
            if (task := self._tasks.get(far.task)) is not None:
                task.progress = Progress(done=far.done, total=far.total, unit=far.unit)

    def _far_rows(self, far: protocol.FarRows) -> None:
        items = self._runs.items_of(far.number)
        with self._changed:
            for at, done, total, unit in far.rows[: len(items)]:
                task = items[at].task
                # A task of several inputs or chunks counts those.
                if not items[at].is_gone and (task.progress is None or task.progress.unit == unit):
                    task.progress = Progress(done=done, total=total, unit=unit)

    def _ended(self, messages: Iterable[protocol.Ended]) -> None:
        tasks = []
        with self._changed:
            for ended in messages:
                task = self._unfed(ended.task, Place.PREPARED)
                if task is None:
                    continue
                if ended.error is not None:
                    # A store that was read until the last moment, for instance, is not to blame.
                    is_late = task.late_at <= time.monotonic() and ended.error.code != ErrorCode.TIMEOUT
                    task.fail(self._late_error(task) if is_late else ended.error.error())
                elif task.lane is not None:
                    self._feeding.learn(task.lane, ended.busy_s)
                task.result_json, task.result_uri = ended.result, ended.result_uri
                task.handed_on_json = ended.handed_on
                task.began, task.timing_ms = ended.began, ended.timing_ms
                if ended.batch is not None:
                    if (learned := self.costs.find(task.lane)) is not None:
                        learned.task_ended()
                    task.batch = BatchInfo.model_construct(size=ended.batch[0], padding=ended.batch[1])
                tasks.append(task)
        self._end(*tasks)

    def _end(self, *tasks: T) -> None:
        """Delivers tasks soon."""
        with self._changed:
            ending = [task for task in tasks if self._ends_now(task)]
        for task in ending:
            if task.lane is not None:
                for stage in _STAGES:
                    if stage in task.timing_ms:
                        self._observer.stage_ended(task.id, task.lane, stage, task.timing_ms[stage] / 1000)
        # What a host died with, and has no mark, because it never reached a batch.
        suspects = [task for task in ending if task.is_suspect and task.started_at is None]
        if rest := [task for task in ending if task not in suspects] if suspects else ending:
            self._delivering.put(rest)
        for task in suspects:
            self._deliver_alone(task)

    def _deliver_alone(self, task: T) -> None:
        if self._lone.enter(task, lambda: True, lambda: self._deliver_alone(task)):
            self._delivering.put([task])

    def _ends_now(self, task: T) -> bool:
        """Notes that a task has ended, unless that is known, or it is not ours any more. Call it with the lock held."""
        if self._stopped or task.place is Place.ENDED or self._tasks.get(task.ticket) is not task:
            return False
        self._feeding.is_ready(task.ticket)
        task.moved(Place.ENDED)
        return True

    def _drop(self, task: T) -> None:
        """Ends a task that needs no more work: cancelled, expired, or failed here. The child stops working on it."""
        is_inside = task.place in (Place.PREPARING, Place.PREPARED)
        with self._changed:
            self._feeding.remove(task)
        self._end(task)
        if is_inside:
            self._cancel([task])

    def _in_children(self) -> list[T]:
        with self._changed:
            return [one for one in self._tasks.values() if one.place in (Place.PREPARING, Place.PREPARED)]

    def _late(self, task: T) -> None:
        """Ends a task whose time is over. What works on it is told to stop, and its result is not waited for."""
        with self._changed:
            if task.late_at > time.monotonic() or task.place is Place.ENDED:
                return
            task.fail(self._late_error(task))
        self._drop(task)

    def _late_error(self, task: T) -> PipeqError:
        running = self._runs.open | self._streams.open
        return self._timeouts.error(task, stage_of(task, self._crew.doing(), running))

    def _delivered(self, tasks: list[T]) -> None:
        with self._changed:
            for task in tasks:
                self._tasks.pop(task.ticket, None)
                self._runs.forget(task.ticket)
            if not self._tasks:
                self._changed.notify_all()
        for resume in self._lone.leave(tasks):
            resume()

    def _look(self) -> None:
        """Finds out which tasks that take long have been cancelled, on a thread of its own."""
        while True:
            with self._changed:
                if self._ends.wait_for(lambda: self._stopped, LOOK_S):
                    return
                now = time.monotonic()
                # A task that lies ready is looked at when its batch begins.
                late = [
                    task
                    for task in self._tasks.values()
                    if now - max(task.looked_at, task.since) >= LOOK_S
                    and (
                        task.place is Place.PREPARING or (task.place is Place.PREPARED and task.started_at is not None)
                    )
                ]
                for task in late:
                    task.looked_at = now
                is_idle = not self._tasks and now - self._last_task_at > (self._settings.idle_unload_s or math.inf)
                # Under the lock, so that no task is given to it any more.
                unwanted = self._crew.device.unload() if is_idle else None
            if unwanted is not None:
                unwanted.close()
            elif self._crew.device.is_serving:
                self._residents.look(self.in_flight)
            if late:
                self._hooks.look(late)
                for task in late:
                    if task.needs_no_device:
                        self._drop(task)

    # -- when a child dies --------------------------------------------------------------------------------------------

    def _died(self, home: Keeper, death: Death) -> None:
        """Counts a death for the tasks that the child was working on; what it had starts over in another one."""
        with self._changed:
            running = self._runs.abandon() | self._streams.abandon() if home.number == 0 else {}
            suspects = suspected(death, running, self._tasks)
            late = convicted(death, suspects)
            suspects = [task for task in suspects if task.place is not Place.ENDED]
            inside = [task for task in self._tasks.values() if task.place in (Place.PREPARING, Place.PREPARED)]
            lost = [task for task in inside if task.child == home.number or task in suspects]
            # What a prepare process still has of a task that killed the device process.
            self._cancel([task for task in lost if task.child != home.number])
            for task in lost:
                # Its items, its batches and whatever else was said of it belong to the old number.
                del self._tasks[task.ticket]
                self._feeding.is_ready(task.ticket)
                self._runs.forget(task.ticket)
                task.ticket = next(self._tickets)
                self._tasks[task.ticket] = task
                task.starts_over()
            for task in lost:
                # It is due before those that came later.
                self._feeding.add(task)
            for task in suspects:
                task.deaths += 1
            self._answers.died(home)
            for items in running.values():
                self._runs.put_back(items)
        self._observer.child_died(death.reason, [task.id for task in suspects])
        if suspects:
            self._hooks.died(suspects)
        for task in suspects:
            if task is late:
                task.fail(PipeqError(ErrorCode.TIMEOUT, death.reason))
            elif task.deaths >= self._settings.max_deaths:
                sentence = f"{task.deaths} processes died while they worked on this task"
                task.fail(PipeqError(ErrorCode.WORKER_LOST, sentence))
            if task.error is not None:
                self._drop(task)
        self._runs.poke()
        self.feed()
