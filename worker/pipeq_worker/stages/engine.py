"""ENGINE: joins the stages. Before: the pool. After: delivery. Imports no Celery, Redis, leases or records.

    accept -> fetch -> decode -> prepare -> | batch -> infer | -> deliver
              preparation.py                  device.py           deliver threads

CPU threads prepare the next batch and finish the last one while the device runs the current one. Celery's prefetch
bounds the tasks inside, a :class:`Budget` their bytes, and the batcher the prepared items.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic

from pipeq_worker.models.pipeline import Pipeline
from pipeq_worker.observe.observer import Observer
from pipeq_worker.schedule.batcher import Batcher
from pipeq_worker.schedule.costs import Costs
from pipeq_worker.settings.read import Settings
from pipeq_worker.stages.device import Device
from pipeq_worker.stages.fetch import Fetcher
from pipeq_worker.stages.look import Lookout
from pipeq_worker.stages.preparation import Preparation, share_of
from pipeq_worker.stages.task import Item, T

logger = logging.getLogger(__name__)

#: Most bytes of prepared items that wait for the device: a window of 256 images, or an hour of audio in chunks.
WINDOW_BYTES = 256 * 2**20
DELIVER_THREADS = 2
#: How long results may still take to be stored when the stages end, in seconds.
STORE_S = 2.0


class Engine(Generic[T]):
    """Takes tasks through the stages.

    Args:
        pipelines: the loaded pipelines by name.
        settings: the worker's settings.
        fetcher: reads references.
        begin: called with tasks before their first batch, and with whether a task runs alone; never raises.
        look: marks those tasks that have ended in the meantime; never raises.
        deliver: called with tasks that have passed the stages; ends them.
        on_lost: called with a reason, and the tasks in the batch, when the device hangs or cannot be used any more.
        prepare_threads: number of threads for each pipeline.
        observer: told what happens to tasks and batches.
    """

    def __init__(
        self,
        pipelines: dict[str, Pipeline],
        settings: Settings,
        fetcher: Fetcher,
        *,
        begin: Callable[[list[T], bool], None],
        look: Callable[[list[T]], None],
        deliver: Callable[[list[T]], None],
        on_lost: Callable[[str, list[T]], None],
        prepare_threads: int,
        observer: Observer | None = None,
    ) -> None:
        observer = observer or Observer()
        self._deliver = deliver
        self._tasks: set[T] = set()
        self._changed = threading.Condition()
        #: Set once no more tasks are accepted.
        self._draining = False
        #: Set once a drain must not wait any more.
        self._hurried = False
        #: Set once no more results are delivered, not even those of the last batch.
        self._ended = False
        #: Number of calls of ``deliver`` that are running or scheduled.
        self._finishing = 0
        window = min(WINDOW_BYTES // len(pipelines), share_of(settings, len(pipelines)))
        #: What forward passes take, and what the next ones will.
        self.costs = Costs()
        self._batcher: Batcher[Item[T]] = Batcher(window, self.costs)
        lookout = Lookout(look)
        self._preparation = Preparation(
            pipelines, settings, fetcher, self._batcher, lookout, self._finish_here, prepare_threads, observer
        )
        self._device = Device(
            self._batcher,
            self.costs,
            begin,
            lookout,
            self._finish_later,
            on_lost,
            settings.max_deaths,
            settings.hard_timeout_s,
            observer,
        )
        self._delivering = ThreadPoolExecutor(DELIVER_THREADS, "deliver")

    def start(self) -> None:
        """Starts the device thread; the other threads start with the first task."""
        self._device.start()

    def submit(self, task: T) -> None:
        """Accepts a task, and returns at once. Once the stages are ending, the task is ignored."""
        with self._changed:
            if not self._draining:
                self._tasks.add(task)
                self._preparation.submit(task)

    def in_flight(self) -> dict[str, int]:
        """Number of tasks inside, for each pipeline."""
        with self._changed:
            return Counter(task.pipeline.name for task in self._tasks if task.pipeline is not None)

    def running(self) -> dict[str, int]:
        """Number of those whose first batch has begun."""
        with self._changed:
            began = [task for task in self._tasks if task.started_at is not None]
        return Counter(task.pipeline.name for task in began if task.pipeline is not None)

    def hangs(self) -> str | None:
        """Says that the device hangs or its thread has ended; None if all is well."""
        return self._device.hangs()

    def withdraw(self) -> list[T]:
        """Accepts no more tasks, and returns those that have not reached the device; the caller owns them again."""
        with self._changed:
            self._draining = True
            idle = [task for task in self._tasks if task.withdraw()]
            self._tasks.difference_update(idle)
            self._changed.notify_all()
        return idle

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
        self._preparation.close()
        self._batcher.close()
        with self._changed:
            self._changed.wait_for(lambda: self._hurried or not self._finishing, STORE_S)
            self._ended = True
            self._delivering.shutdown(wait=False)
            return list(self._tasks)

    def hurry(self) -> None:
        """Ends a drain, now or later, without waiting. May be called from any thread."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    @property
    def is_hurried(self) -> bool:
        """Whether a drain must not wait any more."""
        return self._hurried

    def _finish_later(self, tasks: list[T]) -> None:
        """Delivers tasks on another thread. Called on the device's thread, which must not wait for it."""
        with self._changed:
            if not self._ended:
                self._finishing += 1
                self._delivering.submit(self._finish, tasks)

    def _finish_here(self, task: T) -> None:
        """Delivers a task on the calling thread: it needs no device, or its last item has already run."""
        with self._changed:
            self._finishing += 1
        self._finish([task])

    def _finish(self, tasks: list[T]) -> None:
        try:
            self._deliver([task for task in tasks if task.begins()])
        except Exception:
            logger.exception("%d tasks could not be delivered", len(tasks), extra={"action": "deliver"})
        for task in tasks:
            self._preparation.hold(task, -task.held_bytes)
        with self._changed:
            self._tasks.difference_update(tasks)
            self._finishing -= 1
            if not self._tasks or not self._finishing:
                self._changed.notify_all()
