"""RUNS: takes batches out of the window, tells that their tasks begin, and gives them to the child.

A task with which a process has died runs alone, and is marked as running only while it does, so that other tasks cannot
die with it.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Generic

from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError

from pipeq_worker.children import protocol
from pipeq_worker.children.batch_items import is_new, is_wanted, message, tasks_of, wanted
from pipeq_worker.children.guarded import guarded
from pipeq_worker.children.lone import Lone
from pipeq_worker.children.marking import Marking
from pipeq_worker.models.pipeline import BatchLimits
from pipeq_worker.observe.observer import Observer
from pipeq_worker.observe.traces import internal
from pipeq_worker.schedule.batcher import Batch, Batcher, Closed
from pipeq_worker.schedule.task import Item, T

logger = logging.getLogger(__name__)

#: Batches that the device process has at once: one that runs, and the next; more, up to the second number, if starting
#: one takes so long (its marks are written to Redis) that the device would wait for it. Each one delays what is urgent.
AHEAD, MOST_AHEAD = 2, 4
#: How much the last batch counts in the averages that decide this.
_SHARE = 0.2
#: How fast a batch that took long to start is forgotten.
_FADE = 0.1


@dataclass(frozen=True, kw_only=True)
class Device(Generic[T]):
    """What it takes to start something on the device, for runs and streams.

    Attributes:
        begin: see :class:`pipeq_worker.children.hooks.Hooks`.
        send: sends messages to the device process.
        may_run: whether that process takes batches now; :meth:`Runs.poke` tells that this has changed.
        drop: ends a task that has failed, or is not wanted any more.
        limits: returns the limits of a pipeline's batches.
        max_deaths: the setting.
        observer: told of batches that begin.
        hopeless: called with a sentence if the thread breaks.
        lone: lets tasks with which a process has died run one at a time.
        marked: called with tasks that run while they were being marked, when they are.
        again: puts an item that had to wait for that where items wait for the device.
        keep: keeps an item whose pipeline is not loaded, and returns whether it did.
        may_keep: whether there can be such items.
    """

    begin: Callable[[list[T], bool], None]
    send: Callable[..., None]
    may_run: Callable[[], bool]
    drop: Callable[[T], None]
    limits: Callable[[str], BatchLimits]
    max_deaths: int
    observer: Observer
    hopeless: Callable[[str], None]
    lone: Lone[T]
    marked: Callable[[list[T]], None]
    again: Callable[[Item[T]], None]
    keep: Callable[[Item[T]], bool] = lambda _: False
    may_keep: Callable[[], bool] = lambda: True


class Runs(Generic[T]):
    """Owns the thread that starts batches.

    Args:
        window: the items that are ready.
        device: what it works with.
    """

    def __init__(self, window: Batcher[Item[T]], device: Device[T]) -> None:
        self._window = window
        self._device = device
        #: Number -> items of each batch that the child has.
        self._open: dict[int, list[Item[T]]] = {}
        self._numbers = itertools.count(1)
        #: Ticket of each task that has begun -> the number of its first batch.
        self._first: dict[int, int] = {}
        #: Counts the children that have died.
        self._life = 0
        #: What it takes to start a batch, and to run one, in seconds.
        self._start_s = self._run_s = 0.0
        self._closed = False
        #: Set when the window or the batches that run have changed; and whether the thread waits for that.
        self._has_news = False
        self._wants_news = True
        self._changed = threading.Condition()
        self._marks: Marking[T] = Marking(self._mark, self._drop_unneeded, device.hopeless)
        #: See :class:`.marking.Marking`.
        self.marking = self._marks.lock

    def start(self) -> None:
        """Starts batches until the window is closed."""
        self._marks.start()
        threading.Thread(target=guarded(self._run, self._device.hopeless), name="runs", daemon=True).start()

    @property
    def has_enough(self) -> bool:
        """Whether the device has as many batches as it gets."""
        more = round(self._start_s / self._run_s) if self._run_s else 0
        return len(self._open) >= min(AHEAD + more, MOST_AHEAD)

    def ran(self, number: int, seconds: float) -> list[Item[T]]:
        """Notes that a batch has run, and for how long. Returns its items; none if it was not of these runs."""
        with self._changed:
            items = self._open.pop(number, [])
            if not items:
                return items
            self._run_s += _SHARE * (seconds - self._run_s)
            for item in items:
                self._first[item.ticket] = 0  # from now on the task has really begun
            self._has_news = True
            self._changed.notify_all()
        return items

    def recall(self, running: Set[int]) -> list[T]:
        """Takes batches back that the device has not begun. Returns their tasks, none of which has begun elsewhere.

        Args:
            running: numbers of batches that the device has begun.
        """
        found: list[T] = []
        with self._changed:
            for number, items in list(self._open.items()):
                if number not in running and all(self._first.get(item.ticket) == number for item in items):
                    del self._open[number]
                    found += tasks_of(items)
        return found

    def forget(self, ticket: int) -> None:
        """Notes that a task has ended."""
        with self._changed:
            self._first.pop(ticket, None)

    def numbers_of(self, child: int) -> dict[int, list[int]]:
        """Number of each open batch -> its items of a child."""
        with self._changed:
            return {
                number: [item.number for item in items if item.where is not None and item.child == child]
                for number, items in self._open.items()
            }

    def items_of(self, number: int) -> list[Item[T]]:
        """The items of an open batch."""
        with self._changed:
            return self._open.get(number, [])

    @property
    def open(self) -> dict[int, list[Item[T]]]:
        """The batches that the child has: number -> items."""
        with self._changed:
            return dict(self._open)

    def is_running(self, lane: str) -> bool:
        """Whether the child has a batch of a pipeline."""
        with self._changed:
            return any(item.lane == lane for items in self._open.values() for item in items[:1])

    def stops(self, tasks: Sequence[T]) -> list[protocol.Stop]:
        """What tells the device process that the rows of these tasks are not wanted any more."""
        unwanted, found = set(map(id, tasks)), []
        with self._changed:
            for number, items in self._open.items():
                rows = [at for at, one in enumerate(items) if one.where is not None and id(one.task) in unwanted]
                if rows:
                    found.append(protocol.Stop(number, rows))
        return found

    def abandon(self) -> dict[int, list[Item[T]]]:
        """Forgets the batches of a child that has died, and returns them."""
        with self._changed:
            lost, self._open = self._open, {}
            self._life += 1
            self._changed.notify_all()
        return lost

    def close(self) -> None:
        """Starts no more batches. Returns at once."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._marks.close()

    def put_ready(self, items: Sequence[Item[T]], *, are_alike: bool = False) -> None:
        """Puts items of one pipeline that are ready into the window; see :meth:`.batcher.Batcher.put_all`.

        If the device has nothing to do, their batch begins on the calling thread: to wake another one takes longer.

        Raises:
            Closed: the window was closed.
        """
        limits = self._device.limits(items[0].lane)
        if self._may_start_here(items) and self.marking.acquire(blocking=False):
            self._put_here(items, limits, are_alike=are_alike)
        else:
            self._window.put_all(items, limits, are_alike=are_alike)

    def poke(self) -> None:
        """Notes that the window has changed."""
        with self._changed:
            self._has_news = True
            # For a device that has enough to do it is early enough when a batch has run.
            if self._wants_news:
                self._changed.notify_all()

    def _run(self) -> None:
        while (batch := self._wait_for_batch()) is not None:
            began = time.monotonic()
            try:
                self._start_batch(batch.items)
                took_s = time.monotonic() - began
                # One that takes long is remembered, because the next one may.
                self._start_s = max(took_s, self._start_s + _FADE * (took_s - self._start_s))
            except Exception as error:
                self._failed(tasks_of(batch.items), error)

    def _failed(self, tasks: Sequence[T], error: Exception) -> None:
        logger.exception("a batch failed inside pipeq", extra={"action": "batch"})
        for task in tasks:
            task.fail(internal(error))
            self._device.drop(task)

    def _wait_for_batch(self) -> Batch[Item[T]] | None:
        """Waits until the device needs a batch, and there is one. Returns None once this is closed."""
        while True:
            with self._changed:
                self._changed.wait_for(self._is_needed)
                if self._closed:
                    return None
                self._has_news = False
            # The batch after the one that runs lies ready when that is over. But a batch that can still become
            # better waits, as the device is not waiting for it.
            if (batch := self._window.take(is_idle=lambda: not self._open)) is not None:
                return batch
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._has_news)

    def _is_needed(self) -> bool:
        self._wants_news = not self.has_enough
        return self._closed or (not self.has_enough and self._device.may_run())

    def _start_batch(self, items: list[Item[T]]) -> None:
        life = self._life
        items = self._left(items)
        tasks = tasks_of(items)
        if any(task.is_marking for task in tasks):
            with self.marking:  # their first batch runs, and they are marked once
                pass
        if tasks and all(map(is_new, tasks)):
            with self.marking:
                self._mark(self._give_unmarked(items, tasks, life))
            self._drop_unneeded(tasks)
            return
        self._begin([task for task in tasks if task.started_at is None and not task.needs_no_device], alone=False)
        for task in tasks:
            if task.needs_no_device or (task.deaths and task.split()):
                self._device.drop(task)
        items = wanted(items, tasks)
        if not any(task.deaths for task in tasks):
            if items:
                self._give(items, life, alone=False)
            return
        if together := [item for item in items if not item.task.deaths]:
            self._give(together, life, alone=False)
        for item in items:
            if item.task.deaths and not item.task.needs_no_device:
                self._start_alone(item, life)

    def _left(self, items: list[Item[T]]) -> list[Item[T]]:
        """Those that have not gone, and whose pipeline is loaded."""
        found = [item for item in items if item.ticket == item.task.ticket]
        return [item for item in found if not self._device.keep(item)] if self._device.may_keep() else found

    def _give_unmarked(self, items: list[Item[T]], tasks: list[T], life: int) -> list[T]:
        """Gives the device a batch of new tasks, which are marked while it runs. Returns those that begin with it.

        If the host dies before they are marked, they are suspects, like all that it had. Their ends are stored after
        their marks.
        """
        begun = [task for task in tasks if task.begins()]
        for task in begun:
            task.is_marking = True
        try:
            self._give(wanted(items, tasks), life, alone=False)
        except BaseException:
            self._device.marked(begun)
            raise
        return begun

    def _mark(self, begun: list[T]) -> None:
        """Marks tasks that the device has. Called with :attr:`marking` held."""
        try:
            if begun:
                self._device.begin(begun, False)
        finally:
            self._device.marked(begun)

    def _drop_unneeded(self, tasks: list[T]) -> None:
        for task in tasks:
            if task.needs_no_device:
                self._device.drop(task)

    def _may_start_here(self, items: Sequence[Item[T]]) -> bool:
        """Whether the device has nothing to do, these are the only items, and they need no answer of Redis before."""
        is_idle = not (self._open or self._closed) and self._device.may_run()
        return is_idle and not len(self._window) and all(map(is_new, tasks_of(items)))

    def _put_here(self, items: Sequence[Item[T]], limits: BatchLimits, *, are_alike: bool) -> None:
        life, tasks, begun = self._life, list[T](), list[T]()
        try:
            batch = self._window.put_and_take(items, limits, are_alike=are_alike)
            if batch is not None and (left := self._left(batch.items)):
                tasks = tasks_of(left)
                begun = self._give_unmarked(left, tasks, life)
        except Closed:
            raise
        except Exception as error:
            self._failed(tasks, error)
        finally:
            self._marks.soon(begun, tasks)

    def _start_alone(self, item: Item[T], life: int) -> None:
        task = item.task
        if task.deaths >= self._device.max_deaths:
            sentence = f"{shown.count(task.deaths, 'worker')} died with this task in a batch"
            task.fail(PipeqError(ErrorCode.WORKER_LOST, sentence))
        elif not task.needs_no_device:
            if not self._device.lone.enter(task, partial(is_wanted, item), partial(self._device.again, item)):
                return
            self._begin([task], alone=True)
        if task.needs_no_device:
            self._device.drop(task)
        else:
            self._give([item], life, alone=True)

    def put_back(self, items: list[Item[T]]) -> None:
        """Puts items back into the window that the device has not got, or has not run."""
        for item in items:
            if item.where is not None and not item.is_gone:
                with suppress(Closed):
                    self._window.put(item, self._device.limits(item.lane))

    def _begin(self, tasks: list[T], *, alone: bool) -> None:
        tasks = [task for task in tasks if task.begins()]
        if tasks:
            self._device.begin(tasks, alone)

    def _give(self, items: list[Item[T]], life: int, *, alone: bool) -> None:
        with self._changed:
            # If the child has died since the batch was taken, items that lay in it are gone, and the others wait again.
            if life != self._life or not self._device.may_run():
                self.put_back(items)
                return
            # Where the rows of a prepare process lay that has died since, another one may write soon.
            items = self._left(items)
            if not items:
                return
            number = next(self._numbers)
            self._open[number] = items
            for ticket in {item.ticket for item in items}:
                self._first.setdefault(ticket, number)
            # Under the lock, so that its end, or the death of the child, is told after it.
            self._device.observer.batch_began(items[0].lane, len(items))
            # Sent under the lock, so that it cannot reach the child that comes after that one.
            self._device.send(message(number, items, alone))
