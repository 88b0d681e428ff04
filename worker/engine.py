"""The stages and the threads between them. Before: pool. After: deliver. Knows nothing of Celery.

    accept -> fetch -> decode -> prepare -> | batch -> infer | -> deliver
    prepare    fetch   prepare threads       device thread       deliver threads

CPU threads prepare the next batch and finish the last while the device runs this one. Tasks inside are bounded by
Celery's prefetch, their bytes by a :class:`Budget`, prepared items by the batcher. Up to the device each pipeline has a
:class:`_Lane` of its own, so that one with a slow store or huge inputs holds up no other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from redis.exceptions import RedisError

from producers import shown
from producers.errors import ErrorCode, PipeqError
from producers.status import BatchInfo
from worker import decode, prepare
from worker.batcher import Batch, Batcher, Closed
from worker.budget import Budget
from worker.fetch import Fetcher, ref_name
from worker.infer import DeviceLostError, infer
from worker.inputs import read_inputs
from worker.marks import Marks
from worker.outage import outage
from worker.pipelines import Pipeline
from worker.settings import Settings
from worker.watchdog import Watchdog
from worker.work import Item, Work

logger = logging.getLogger(__name__)

#: Prepared items that may wait for the device, in bytes: a window of 256 images, or an hour of audio in chunks.
WINDOW_BYTES = 256 * 2**20
DELIVER_THREADS = 2


class Engine:
    """Takes tasks through the stages.

    Args:
        pipelines: the loaded pipelines by name.
        settings: the worker's settings.
        fetcher: reads references.
        marks: the running marks.
        deliver: called with tasks that are through; acknowledges them.
        on_lost: called with a reason, and the tasks in the batch, when the device hangs or is beyond use.
    """

    def __init__(
        self,
        pipelines: dict[str, Pipeline],
        settings: Settings,
        fetcher: Fetcher,
        marks: Marks,
        deliver: Callable[[list[Work]], None],
        on_lost: Callable[[str, list[Work]], None],
        prepare_threads: int,
    ) -> None:
        self._pipelines = pipelines
        self._settings = settings
        self._fetcher = fetcher
        self._marks = marks
        self._deliver = deliver
        self._on_lost = on_lost
        self._works: set[Work] = set()
        self._changed = threading.Condition()
        #: Set when the stages end: what is still inside goes back on its queue, whatever becomes of it here.
        self._closed = False
        #: Set when nothing is to be waited for any more.
        self._hurried = False
        self._device_ended = False
        #: Set when nobody waits for results any more, not even for those of the last batch.
        self._ended = False
        #: Calls of ``deliver`` that are under way or scheduled.
        self._finishing = 0
        share = max(1, settings.prefetch_bytes // len(pipelines))
        self._lanes = {name: _Lane(name, share, settings.fetch_threads, prepare_threads) for name in pipelines}
        #: For what names no pipeline of ours; it only fails.
        self._no_lane = next(iter(self._lanes.values()))
        self._batcher: Batcher[Item] = Batcher(min(WINDOW_BYTES // len(pipelines), share))
        self._watchdog = Watchdog(settings.hard_timeout_s)
        self._delivering = ThreadPoolExecutor(DELIVER_THREADS, "deliver")
        self._device = threading.Thread(target=self._run_device, name="device", daemon=True)

    def start(self) -> None:
        """Starts the device thread; the others start with the first task."""
        self._device.start()

    def submit(self, work: Work) -> None:
        """Takes a task in. Returns at once. Once the stages have ended, its message is left unacknowledged."""
        with self._changed:
            if not self._closed:
                self._works.add(work)
                self._lane(work).preparing.submit(self._guarded, work, self._accept)

    def in_flight(self) -> dict[str, int]:
        """Tasks inside, by pipeline."""
        counts: dict[str, int] = {}
        with self._changed:
            for work in self._works:
                if work.pipeline is not None:
                    counts[work.pipeline.name] = counts.get(work.pipeline.name, 0) + 1
        return counts

    def drain(self, timeout_s: float, *, wait_for_device: bool = True) -> list[Work]:
        """Finishes what fits into ``timeout_s`` and the batch that is on the device; stops.

        Args:
            timeout_s: how long to go on.
            wait_for_device: whether the batch on the device may finish; no, if it never will.

        Returns:
            The tasks that were not finished; they are not acknowledged.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._hurried or not self._works, timeout_s)
            self._closed = True
        self._batcher.close()
        for lane in self._lanes.values():
            lane.close()
        with self._changed:
            if wait_for_device:
                # The forward pass cannot be interrupted; its results are worth the wait.
                limit_s = self._settings.hard_timeout_s
                self._changed.wait_for(lambda: self._hurried or self._device_ended, limit_s)
            self._changed.wait_for(lambda: self._hurried or not self._finishing)
            self._ended = True
            self._delivering.shutdown(wait=False)
            return list(self._works)

    def hurry(self) -> None:
        """Ends a drain, now or later, without waiting for anything. May be called from any thread."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    # -- stages, in the order of the data's way -----------------------------------------------------------------------

    def _accept(self, work: Work) -> None:
        message = work.message
        assert message is not None
        pipeline = self._pipelines.get(message.pipeline)
        if pipeline is None:
            raise PipeqError(
                ErrorCode.UNKNOWN_PIPELINE,
                f"this worker serves no pipeline {message.pipeline!r} (it serves {', '.join(sorted(self._pipelines))})",
            )
        work.pipeline = pipeline
        work.params = pipeline.merge(message.params)
        work.inputs, work.is_list = read_inputs(pipeline.task_type, message.inputs)
        work.outputs = [[] for _ in work.inputs]
        work.echoes = {id(read): sent for one in work.inputs for read, sent in one.turns}
        if any(one.slots for one in work.inputs):
            self._lane(work).fetching.submit(self._guarded, work, self._fetch)
        else:
            self._prepare(work)

    def _fetch(self, work: Work) -> None:
        self._lane(work).budget.wait_for_room()
        for at, one in enumerate(work.inputs):
            for slot in one.slots:
                with work.timed("fetch"), _located(work, at):
                    slot.data = self._fetcher.fetch(slot.ref, lambda size: self._hold(work, size))
        self._lane(work).preparing.submit(self._guarded, work, self._prepare)

    def _prepare(self, work: Work) -> None:
        with work.timed("decode"):
            self._decode(work)
        assert work.pipeline is not None
        began = time.monotonic()
        for item in prepare.items(work):
            work.add_time("prepare", time.monotonic() - began)
            if work.needs_no_device:
                break
            work.outputs[item.index].append(None)
            work.opened()
            try:
                self._batcher.put(item, work.pipeline.limits)
            except Closed:
                return  # draining: the message goes back on its queue
            began = time.monotonic()
        if work.prepared():
            self._finish_here(work)

    def _decode(self, work: Work) -> None:
        assert work.pipeline is not None
        for at, one in enumerate(work.inputs):
            for slot in one.slots:
                assert slot.data is not None
                with _located(work, at):
                    name, rate = ref_name(slot.ref), work.pipeline.sampling_rate
                    decoded = decode.decode(slot.media, slot.data, name, self._settings.inputs, rate, slot.in_chat)
                self._hold(work, _nbytes(decoded) - len(slot.data))
                slot.fill(decoded)
                work.echoes[id(decoded)] = slot.ref.model_dump(exclude_none=True)

    def _run_device(self) -> None:
        try:
            self._run_batches()
        finally:
            with self._changed:
                self._device_ended = True
                self._changed.notify_all()

    def _run_batches(self) -> None:
        while (batch := self._batcher.take()) is not None:
            works = list(dict.fromkeys(item.work for item in batch.items))
            try:
                self._run_batch(batch, works)
            except DeviceLostError:
                return
            except Exception as error:
                logger.exception("a batch failed inside pipeq", extra={"action": "batch"})
                for work in works:
                    work.fail(PipeqError(ErrorCode.INTERNAL, f"{type(error).__name__}: {error}"))
            done = [item.work for item in batch.items if item.work.closed()]
            if done:
                self._finish_later(done)

    def _run_batch(self, batch: Batch[Item], works: list[Work]) -> None:
        began = time.monotonic()
        self._begin([work for work in works if work.started_at is None and not work.needs_no_device])
        together = [item for item in batch.items if not item.work.deaths and not item.work.needs_no_device]
        if together:
            self._run_items(Batch(together), began)
        # Whoever was there when a worker died runs alone, marked only while it does: it takes nobody with it again.
        for item in batch.items:
            work = item.work
            if work.deaths and not work.needs_no_device:
                if work.deaths >= self._settings.max_deaths:
                    sentence = f"{work.deaths} workers died while they had this task in a batch"
                    work.fail(PipeqError(ErrorCode.WORKER_LOST, sentence))
                    continue
                if not work.is_marked:
                    self._begin([work], alone=True)
                if not work.needs_no_device:
                    self._run_items(Batch([item]), began)

    def _begin(self, works: list[Work], *, alone: bool = False) -> None:
        """Marks tasks as running, unless a worker died with one and it does not run alone."""
        for work in works:
            try:
                work.is_over = work.is_expired()
                if not work.is_over:
                    work.start()
            except Exception as error:
                # Celery keeps books of what its messages say, and stumbles over what nobody foresaw.
                logger.exception("task %s cannot begin", work.id, extra={"action": "batch"})
                sentence = f"its message cannot be worked with: {type(error).__name__}: {shown.line(str(error))}"
                work.fail(PipeqError(ErrorCode.INVALID_MESSAGE, sentence))
        works = [work for work in works if not work.needs_no_device]
        if not works:
            return
        try:
            self._marks.begin(works, alone=alone)
        except RedisError as error:
            # The marks are for those who watch; the results still find their way when Redis is back.
            outage.noticed("mark", error)
        except Exception:
            logger.exception("a batch runs without marks", extra={"action": "batch"})
        else:
            outage.over("mark")

    def _run_items(self, batch: Batch[Item], began: float) -> None:
        items, pipeline = batch.items, batch.items[0].work.pipeline
        assert pipeline is not None
        info = BatchInfo(size=len(items), padding=round(batch.padding, 4))
        works = list(dict.fromkeys(item.work for item in items))
        started = time.monotonic()
        try:
            with self._watchdog.watch(lambda after: self._on_lost(_stuck(pipeline, items, after), works)):
                infer(pipeline, items)
        except DeviceLostError as error:
            self._on_lost(f"the device is beyond use: {error}", works)
            raise
        spent = time.monotonic() - started
        for work in works:
            if work.batch is None or info.size > work.batch.size:
                work.batch = info
            work.add_time("infer", spent)
        for item in items:
            item.work.add_time("batch", began - item.ready_at)
            if item.error is not None:
                where = f"inputs[{item.index}]: " if item.work.is_list else ""
                item.work.fail(PipeqError(item.error.code, where + item.error.message, item.error.retryable))
            else:
                item.work.outputs[item.index][item.chunk] = item.output
        logger.debug(
            "batch of %d, %.0f%% padding, %.1f ms",
            info.size,
            info.padding * 100,
            spent * 1000,
            extra={"action": "batch", "pipeline": pipeline.name, "size": info.size, "ms": spent * 1000},
        )

    def _finish_later(self, works: list[Work]) -> None:
        with self._changed:
            if not self._ended:
                self._finishing += 1
                self._delivering.submit(self._finish, works)

    def _finish_here(self, work: Work) -> None:
        """On the thread that found that a task needs no device, or that the device was faster than it."""
        with self._changed:
            self._finishing += 1
        self._finish([work])

    def _finish(self, works: list[Work]) -> None:
        try:
            self._deliver(works)
        except Exception:
            logger.exception("%d tasks could not be delivered", len(works), extra={"action": "deliver"})
        for work in works:
            self._hold(work, -work.held_bytes)
        with self._changed:
            self._works.difference_update(works)
            self._finishing -= 1
            if not self._works or not self._finishing:
                self._changed.notify_all()

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _guarded(self, work: Work, stage: Callable[[Work], None]) -> None:
        """Runs a stage; its error ends the task, not the thread."""
        try:
            if self._closed:
                return
            if not work.needs_no_device:
                stage(work)
                return
        except PipeqError as error:
            work.fail(error)
        except BaseException as error:  # a panic inside a tokenizer is no Exception
            if self._closed:
                return
            logger.exception("stage %s failed on task %s", stage.__name__, work.id, extra={"action": "stage"})
            work.fail(PipeqError(ErrorCode.INTERNAL, f"{type(error).__name__}: {error}"))
        if work.prepared():
            self._finish_here(work)

    def _lane(self, work: Work) -> _Lane:
        return self._lanes.get(work.message.pipeline, self._no_lane) if work.message else self._no_lane

    def _hold(self, work: Work, more: int) -> None:
        self._lane(work).budget.add(work.held_bytes, more)
        work.held_bytes += more


class _Lane:
    """What the tasks of one pipeline share with no other's: bytes of inputs, and the threads up to the device."""

    def __init__(self, name: str, max_bytes: int, fetch_threads: int, prepare_threads: int) -> None:
        self.budget = Budget(max_bytes)
        # Threads start when they are first needed.
        self.fetching = ThreadPoolExecutor(fetch_threads, f"fetch-{name}")
        self.preparing = ThreadPoolExecutor(prepare_threads, f"prepare-{name}")

    def close(self) -> None:
        """What is queued does not start; what waits for room is let through, so that its thread ends."""
        self.budget.close()
        self.preparing.shutdown(wait=False, cancel_futures=True)
        self.fetching.shutdown(wait=False, cancel_futures=True)


class _located:  # noqa: N801 - reads as a statement
    """Says in an error which of several inputs it is about."""

    def __init__(self, work: Work, index: int) -> None:
        self._where = f"inputs[{index}]: " if work.is_list else ""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._where and isinstance(error, PipeqError):
            raise PipeqError(error.code, self._where + error.message, error.retryable) from error


def _nbytes(decoded: Any) -> int:
    if hasattr(decoded, "nbytes"):
        return int(decoded.nbytes)
    if isinstance(decoded, dict):
        return sum(len(cell) for column in decoded.values() for cell in column)
    return len(decoded) if isinstance(decoded, str) else decoded.width * decoded.height * 3


def _stuck(pipeline: Pipeline, items: list[Item], after_s: float) -> str:
    return f"a forward pass of {len(items)} items through {pipeline.name!r} took over hard_timeout_s ({after_s:g} s)"
