"""The stages, joined. Before: the pool. After: delivery. Knows nothing of Celery, Redis, leases or records.

    accept -> fetch -> decode -> prepare -> | batch -> infer | -> deliver
              preparation.py                  device.py           deliver threads

CPU threads prepare the next batch and finish the last while the device runs this one. Tasks inside are bounded by
Celery's prefetch, their bytes by a :class:`Budget`, prepared items by the batcher.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic

from pipeq_worker.models.pipeline import Pipeline
from pipeq_worker.observe.observer import Observer
from pipeq_worker.settings.read import Settings
from pipeq_worker.stages.batcher import Batcher
from pipeq_worker.stages.device import Device
from pipeq_worker.stages.fetch import Fetcher
from pipeq_worker.stages.look import Lookout
from pipeq_worker.stages.preparation import Preparation, share_of
from pipeq_worker.stages.task import Item, T

logger = logging.getLogger(__name__)

#: Prepared items that may wait for the device, in bytes: a window of 256 images, or an hour of audio in chunks.
WINDOW_BYTES = 256 * 2**20
DELIVER_THREADS = 2
#: How long results that are being stored may still take when the stages end, in seconds.
STORE_S = 2.0


class Engine(Generic[T]):
    """Takes tasks through the stages.

    Args:
        pipelines: the loaded pipelines by name.
        settings: the worker's settings.
        fetcher: reads references.
        begin: told of tasks before their first batch, and whether the one among them runs alone; never raises.
        look: marks those of the tasks that have ended meanwhile; never raises.
        deliver: called with tasks that are through; ends them.
        on_lost: called with a reason, and the tasks in the batch, when the device hangs or is beyond use.
        prepare_threads: of each pipeline.
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
        #: Set when nothing is taken in any more.
        self._draining = False
        #: Set when nothing is to be waited for any more.
        self._hurried = False
        #: Set when nobody waits for results any more, not even for those of the last batch.
        self._ended = False
        #: Calls of ``deliver`` that are under way or scheduled.
        self._finishing = 0
        window = min(WINDOW_BYTES // len(pipelines), share_of(settings, len(pipelines)))
        self._batcher: Batcher[Item[T]] = Batcher(window)
        lookout = Lookout(look)
        self._preparation = Preparation(
            pipelines, settings, fetcher, self._batcher, lookout, self._finish_here, prepare_threads, observer
        )
        self._device = Device(
            self._batcher,
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
        """Starts the device thread; the others start with the first task."""
        self._device.start()

    def submit(self, task: T) -> None:
        """Takes a task in. Returns at once. Once the stages are ending, it is left alone."""
        with self._changed:
            if not self._draining:
                self._tasks.add(task)
                self._preparation.submit(task)

    def in_flight(self) -> dict[str, int]:
        """Tasks inside, by pipeline."""
        counts: dict[str, int] = {}
        with self._changed:
            for task in self._tasks:
                if task.pipeline is not None:
                    counts[task.pipeline.name] = counts.get(task.pipeline.name, 0) + 1
        return counts

    def withdraw(self) -> list[T]:
        """Takes nothing in any more, and gives up what has not come to the device: it is the caller's again."""
        with self._changed:
            self._draining = True
            idle = [task for task in self._tasks if task.withdraw()]
            self._tasks.difference_update(idle)
            self._changed.notify_all()
        return idle

    def drain(self, timeout_s: float) -> list[T]:
        """Finishes what is inside, for ``timeout_s`` at most; stops. A forward pass that goes on is left behind.

        Returns:
            The tasks that were not finished.
        """
        with self._changed:
            self._draining = True
            self._changed.wait_for(lambda: self._hurried or not self._tasks, timeout_s)
        # What is still inside is not ended any more, whatever becomes of it here.
        self._preparation.close()
        self._batcher.close()
        with self._changed:
            self._changed.wait_for(lambda: self._hurried or not self._finishing, STORE_S)
            self._ended = True
            self._delivering.shutdown(wait=False)
            return list(self._tasks)

    def hurry(self) -> None:
        """Ends a drain, now or later, without waiting for anything. May be called from any thread."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    @property
    def is_hurried(self) -> bool:
        """Whether nothing is to be waited for any more."""
        return self._hurried

    def _finish_later(self, tasks: list[T]) -> None:
        """From the device's thread, which has better things to do."""
        with self._changed:
            if not self._ended:
                self._finishing += 1
                self._delivering.submit(self._finish, tasks)

    def _finish_here(self, task: T) -> None:
        """On the thread that found that a task needs no device, or that the device was faster than it."""
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
