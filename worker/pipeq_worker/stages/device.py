"""DEVICE: batches -> forward passes, one after the other, on the only thread that uses the device.

Before: batcher. After: delivery. A task with which a worker has died runs alone, and is marked as running only while it
does, so that other tasks cannot die with it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Generic

from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.status import BatchInfo

from pipeq_worker.models.pipeline import Pipeline
from pipeq_worker.observe.observer import Observer
from pipeq_worker.schedule.batcher import Batch, Batcher
from pipeq_worker.schedule.costs import Costs
from pipeq_worker.stages.infer import DeviceLostError, infer
from pipeq_worker.stages.look import Lookout
from pipeq_worker.stages.task import Item, T
from pipeq_worker.stages.watchdog import Watchdog

logger = logging.getLogger(__name__)


class Device(Generic[T]):
    """Owns the device's thread.

    Args:
        batcher: the source of batches.
        costs: learns what forward passes take.
        begin: called with tasks before their first batch, and with whether a task runs alone; sets ``started_at`` and
            ``deaths``, and marks dropped tasks; never raises.
        lookout: checks which tasks have been cancelled.
        done: called with tasks that have no items left to run.
        on_lost: called with a reason, and the tasks in the batch, when the device hangs or cannot be used any more.
        max_deaths: a task with which this many workers died is not run again.
        hard_timeout_s: a forward pass that takes longer counts as hanging.
        observer: told of batches, and of the ends of stages.
    """

    def __init__(
        self,
        batcher: Batcher[Item[T]],
        costs: Costs,
        begin: Callable[[list[T], bool], None],
        lookout: Lookout[T],
        done: Callable[[list[T]], None],
        on_lost: Callable[[str, list[T]], None],
        max_deaths: int,
        hard_timeout_s: float,
        observer: Observer,
    ) -> None:
        self._batcher = batcher
        self._costs = costs
        self._begin_them = begin
        self._lookout = lookout
        self._done = done
        self._on_lost = on_lost
        self._max_deaths = max_deaths
        self._observer = observer
        self._watchdog = Watchdog(hard_timeout_s)
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    def start(self) -> None:
        """Runs batches until the batcher is closed."""
        self._thread.start()

    def hangs(self) -> str | None:
        """Says that a forward pass runs although it should have been ended, or that the thread has ended."""
        if not self._thread.is_alive():
            return "the device's thread has ended"
        late_s = self._watchdog.late_s()
        return f"a forward pass should have ended {late_s:.0f} s ago" if late_s > 0 else None

    def _run(self) -> None:
        while (batch := self._batcher.take()) is not None:
            tasks = _tasks_of(batch.items)
            try:
                self._run_batch(batch, tasks)
            except DeviceLostError:
                return
            except Exception as error:
                logger.exception("a batch failed inside pipeq", extra={"action": "batch"})
                for task in tasks:
                    task.fail(PipeqError(ErrorCode.INTERNAL, f"{type(error).__name__}: {error}"))
            done = [item.task for item in batch.items if item.task.closed()]
            if (learned := self._costs.find(batch.items[0].lane)) is not None:
                learned.ended(len(done))
            if done:
                self._tell(done)
                self._done(done)

    def _run_batch(self, batch: Batch[Item[T]], tasks: list[T]) -> None:
        began = time.monotonic()
        self._begin([task for task in tasks if task.started_at is None and not task.needs_no_device], alone=False)
        # A task with many items runs in many batches, and may have been cancelled since the first one.
        self._lookout.again(tasks)
        together = [item for item in batch.items if not item.task.deaths and not item.task.needs_no_device]
        if together:
            self._run_items(Batch(together), began)
        for item in batch.items:
            task = item.task
            if task.deaths and not task.needs_no_device:
                if task.deaths >= self._max_deaths:
                    sentence = f"{task.deaths} workers died while they had this task in a batch"
                    task.fail(PipeqError(ErrorCode.WORKER_LOST, sentence))
                    continue
                self._begin([task], alone=True)
                if not task.needs_no_device:
                    self._run_items(Batch([item]), began)

    def _begin(self, tasks: list[T], *, alone: bool) -> None:
        tasks = [task for task in tasks if task.begins()]
        for task in tasks:
            task.looked_at = time.monotonic()
        if tasks:
            self._begin_them(tasks, alone)

    def _run_items(self, batch: Batch[Item[T]], began: float) -> None:
        items, pipeline = batch.items, batch.items[0].task.pipeline
        assert pipeline is not None
        info = BatchInfo(size=len(items), padding=round(batch.padding, 4))
        tasks = _tasks_of(items)
        self._observer.batch_began(pipeline.name, info.size)
        started = time.monotonic()
        try:
            with self._watchdog.watch(lambda after: self._on_lost(_stuck(pipeline, items, after), tasks)):
                learned = self._costs.of(pipeline.name, pipeline.limits)
                infer(pipeline, items, partial(self._observer.batch_split, pipeline.name), learned.add)
        except DeviceLostError as error:
            self._on_lost(f"the device is beyond use: {error}", tasks)
            raise
        spent = time.monotonic() - started
        for task in tasks:
            if task.batch is None or info.size > task.batch.size:
                task.batch = info
            task.add_time("infer", spent)
        for item in items:
            item.task.add_time("batch", began - item.ready_at)
            if item.error is not None:
                where = f"inputs[{item.index}]: " if item.task.is_list else ""
                item.task.fail(PipeqError(item.error.code, where + item.error.message, item.error.retryable))
            else:
                item.task.outputs[item.index][item.chunk] = item.output
        self._observer.batch_ran(pipeline.name, info.size, info.padding, spent, batch.padded_cost)

    def _tell(self, tasks: list[T]) -> None:
        for task in tasks:
            for stage in ("batch", "infer"):
                if task.pipeline is not None and stage in task.timing_ms:
                    self._observer.stage_ended(task.id, task.pipeline.name, stage, task.timing_ms[stage] / 1000)


def _tasks_of(items: list[Item[T]]) -> list[T]:
    return list(dict.fromkeys(item.task for item in items))


def _stuck(pipeline: Pipeline, items: list[Item[Any]], after_s: float) -> str:
    return f"a forward pass of {len(items)} items through {pipeline.name!r} took over hard_timeout_s ({after_s:g} s)"
