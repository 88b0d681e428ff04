"""DISPATCHER: takes tasks through the children of a worker. This is where its parts are joined.

    submit -> queue -> prepare (child) -> window -> begin -> forward (child) -> ended -> deliver

It holds no input: of a task it knows its place and the cost of its items. Before: the pool. After: delivery. Its parts:

    inside.py   the tasks by number                feeding.py  gives the children tasks
    hearing.py  what the children say              runs.py     gives the device batches (streams.py: items one by one)
    ending.py   tasks go to delivery, once each    losses.py   a child has died
    looking.py  what was cancelled, is not needed  timeouts.py tasks whose time is over
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Generic

from pipeq.contract.errors import PipeqError

from pipeq_worker.children import protocol
from pipeq_worker.children.answers import Answers
from pipeq_worker.children.crew import Crew
from pipeq_worker.children.deaths import Death
from pipeq_worker.children.ending import Ending
from pipeq_worker.children.feeding import Feeding
from pipeq_worker.children.hearing import Hearing
from pipeq_worker.children.hooks import Hooks
from pipeq_worker.children.inside import Inside
from pipeq_worker.children.keeper import Keeper
from pipeq_worker.children.lone import Lone
from pipeq_worker.children.looking import Looking
from pipeq_worker.children.losses import Losses
from pipeq_worker.children.process import Starter
from pipeq_worker.children.residents import Residents
from pipeq_worker.children.runs import Device, Runs
from pipeq_worker.children.served import Served
from pipeq_worker.children.streams import Streams
from pipeq_worker.children.timeouts import Timeouts, stage_of
from pipeq_worker.observe.observer import Observer
from pipeq_worker.schedule.batcher import Batcher, Closed
from pipeq_worker.schedule.costs import Costs
from pipeq_worker.schedule.task import Item, Place, T
from pipeq_worker.settings.read import Settings
from pipeq_worker.stages.threads import threads_of

#: How long results may still take to be stored when a drain ends, in seconds.
STORE_S = 2.0
#: Items of a pipeline, and batches of them, that give all the choice that good batches need.
CHOICE_ITEMS, CHOICE_BATCHES = 256, 4


def _ignore(_: Any) -> None:
    """The default, if nobody wants to know."""


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
        self._observer = observer = observer or Observer()
        #: What forward passes take, and what the next ones will.
        self.costs = Costs()
        self._window: Batcher[Item[T]] = Batcher(self.costs)
        self._lone: Lone[T] = Lone()
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
        self._timeouts: Timeouts[T] = Timeouts(
            settings,
            lambda: self._inside.in_children(),
            lambda task: self._ending.drop_late(task),
            hooks.hopeless,
        )
        feeding: Feeding[T] = Feeding(
            self._homes, self._has_plenty, threads_of(settings), self._timeouts.begins, self._has_choice
        )
        self._inside: Inside[T] = Inside(feeding)
        self._residents: Residents[T] = Residents(
            settings.max_loaded_bytes,
            self._crew.device.send,
            lambda item: self._offer([item]),
            lambda name: self._runs.is_running(name),
            loads,
        )
        device: Device[T] = Device(
            begin=hooks.begin,
            send=self._crew.device.send,
            may_run=self._may_run,
            drop=lambda task: self._ending.drop(task),
            limits=self._crew.limits,
            max_deaths=settings.max_deaths,
            observer=observer,
            hopeless=hooks.hopeless,
            lone=self._lone,
            marked=lambda tasks: self._ending.marked(tasks),
            again=lambda item: self._put([item]),
            keep=self._residents.keep,
            may_keep=self._residents.may_keep,
        )
        self._runs: Runs[T] = Runs(self._window, device)
        self._streams: Streams[T] = Streams(device, self._crew.slots)
        self._answers = Answers(self._crew, self._runs)
        self._ending: Ending[T] = Ending(
            self._inside,
            hooks.deliver,
            self._lone,
            observer,
            cancel=self._cancel,
            late=self._late,
            forget=self._runs.forget,
        )
        self._hearing: Hearing[T] = Hearing(
            self._crew,
            self._inside,
            self._ending,
            self._runs,
            self._streams,
            self._answers,
            self._residents,
            self.costs,
            observer,
            put=self._put,
            late=self._late,
        )
        self._losses: Losses[T] = Losses(
            self._inside,
            self._ending,
            self._runs,
            self._streams,
            self._answers,
            observer,
            died=hooks.died,
            cancel=self._cancel,
            max_deaths=settings.max_deaths,
        )
        self._looking: Looking[T] = Looking(
            self._inside,
            self._crew,
            self._ending,
            self._residents,
            look=hooks.look,
            idle_unload_s=settings.idle_unload_s,
            hopeless=hooks.hopeless,
        )

    # -- for the worker -----------------------------------------------------------------------------------------------

    def load(self) -> dict[str, Served]:
        """Starts the child, and waits until it serves. Returns the pipelines.

        Raises:
            PipeqError: a pipeline cannot be loaded.
        """
        return self._crew.load()

    def start(self) -> None:
        """Starts the threads that take tasks through."""
        for part in (self._runs, self._streams, self._ending, self._timeouts, self._looking):
            part.start()

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
        if not self._inside.add(tasks):
            return
        for task in tasks:
            if task.error is not None:
                self._ending.end([task])
            elif task.lane is not None:
                self._observer.task_accepted(task.id, task.lane)
        self._crew.device.wake()

    def feed(self) -> None:
        """Has tasks that were accepted begin."""
        self._inside.feed()

    def in_flight(self) -> dict[str, int]:
        """Number of tasks inside, for each pipeline."""
        return self._inside.counts()

    def running(self) -> dict[str, int]:
        """Number of those whose first batch has begun."""
        return self._inside.running()

    def hangs(self) -> str | None:
        """Says that the child hangs although it should have been ended; None if all is well."""
        return self._crew.hangs()

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
        return self._crew.device.is_serving and not self._inside.is_draining

    def spare(self, name: str) -> list[T]:
        """The tasks of a pipeline that have not begun. Those with which a process died stay here."""
        return self._inside.spare(name)

    def give_back(self, tasks: Sequence[T], most: int) -> list[T]:
        """Withdraws the first ``most`` of these tasks that have not begun; the caller owns them again."""
        with self._inside.lock:
            back = self._inside.give_back(tasks, most)
            self._cancel([task for task in back if task.place is not Place.HOST])
        return back

    def withdraw(self) -> list[T]:
        """Accepts no more tasks, and returns those that have not reached the device; the caller owns them again."""
        with self._runs.marking, self._inside.lock:
            # What lies ready for the device has not begun, either.
            for task in self._runs.recall(self._crew.device.running):
                task.starts_over()
            idle = self._inside.withdraw()
        self._cancel(idle)
        return idle

    def drain(self, timeout_s: float) -> list[T]:
        """Finishes the tasks inside, for at most ``timeout_s``, then stops.

        A forward pass that still runs then is abandoned.

        Returns:
            The tasks that were not finished.
        """
        self._inside.drain(timeout_s)
        self._window.close()
        self._runs.close()
        self._streams.close()
        self._timeouts.close()
        self._ending.settle(0 if self.is_hurried else STORE_S)
        return self._inside.all()

    def close(self) -> None:
        """Ends the children."""
        self._crew.close()

    def hurry(self) -> None:
        """Ends a drain, now or later, without waiting. May be called from any thread."""
        self._inside.hurry()

    @property
    def is_hurried(self) -> bool:
        """Whether a drain must not wait any more."""
        return self._inside.is_hurried

    # -- what the parts ask of each other -----------------------------------------------------------------------------

    def _homes(self, name: str) -> Sequence[Keeper]:
        return self._answers.may_prepare(self._crew.homes(name))

    def _has_plenty(self, name: str) -> bool:
        """Whether the device has its batches, and a pipeline's next one is ready, too."""
        return self._runs.has_enough and self._window.count(name) >= self._crew.limits(name).max_size

    def _has_choice(self, name: str) -> bool:
        """Whether more of a pipeline's items would give no better batches."""
        return self._window.count(name) >= max(CHOICE_ITEMS, CHOICE_BATCHES * self._crew.limits(name).max_size)

    def _may_run(self) -> bool:
        return self._crew.device.is_serving and self._answers.are_read

    def _put(self, items: Sequence[Item[T]], *, are_alike: bool = False) -> None:
        """Puts items of one pipeline that are ready where they wait for the device."""
        if self._crew.slots(items[0].lane):
            for item in items:
                self._streams.put(item)
        else:
            self._offer(items, are_alike=are_alike)

    def _offer(self, items: Sequence[Item[T]], *, are_alike: bool = False) -> None:
        """Puts items of one pipeline that are ready into the window."""
        with suppress(Closed):  # draining: the message goes back on its queue
            self._runs.put_ready(items, are_alike=are_alike)

    def _cancel(self, tasks: Sequence[T]) -> None:
        """Has the children stop working on tasks."""
        if not tasks:
            return
        for home in self._crew:
            if tickets := [task.ticket for task in tasks if task.child == home.number]:
                busy = [number for items in self._runs.numbers_of(home.number).values() for number in items]
                home.send(protocol.Cancel(tickets, busy))
        for stop in self._runs.stops(tasks):
            self._crew.device.send(stop)

    def _late(self, task: T) -> PipeqError:
        """The error of a task whose time is over."""
        running = self._runs.open | self._streams.open
        return self._timeouts.error(task, stage_of(task, self._crew.doing(), running))

    # -- what the children say ----------------------------------------------------------------------------------------

    def _serving(self) -> None:
        for name, served in self._crew.device.served.items():
            if not served.slots:
                self.costs.of(name, served.limits).seed_with(served.first_passes)
        self._goes_on()

    def _hear(self, home: Keeper, messages: Sequence[protocol.ToHost]) -> None:
        self._hearing.hear(home, messages)
        self._goes_on()

    def _died(self, home: Keeper, death: Death) -> None:
        self._losses.died(home, death)
        self._goes_on()

    def _goes_on(self) -> None:
        """Gives the device and the children what they can take now."""
        self._runs.poke()
        self.feed()
