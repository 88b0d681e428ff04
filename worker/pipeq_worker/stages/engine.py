"""The stages and the threads between them. Before: pool. After: deliver. Knows nothing of Celery.

    accept -> fetch -> decode -> prepare -> | batch -> infer | -> deliver
    prepare    fetch   prepare threads       device thread       deliver threads

CPU threads prepare the next batch and finish the last while the device runs this one. Tasks inside are bounded by
Celery's prefetch, their bytes by a :class:`Budget`, prepared items by the batcher. Up to the device each pipeline has a
:class:`Lane` of its own, so that one with a slow store or huge inputs holds up no other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.status import BatchInfo
from redis.exceptions import RedisError

from pipeq_worker.delivery.marks import Marks
from pipeq_worker.media.decoded import Decoded
from pipeq_worker.models.pipeline import Pipeline
from pipeq_worker.observe.outage import outage
from pipeq_worker.settings.read import Settings
from pipeq_worker.stages import decode, prepare
from pipeq_worker.stages.accept import Slot, read_inputs
from pipeq_worker.stages.batcher import Batch, Batcher, Closed
from pipeq_worker.stages.fetch import Fetcher, ref_name
from pipeq_worker.stages.infer import DeviceLostError, infer
from pipeq_worker.stages.lane import Lane
from pipeq_worker.stages.task import Item, Work
from pipeq_worker.stages.watchdog import Watchdog
from pipeq_worker.stores.signed import looks_like_result

logger = logging.getLogger(__name__)

#: Prepared items that may wait for the device, in bytes: a window of 256 images, or an hour of audio in chunks.
WINDOW_BYTES = 256 * 2**20
DELIVER_THREADS = 2
#: How long one task may keep a thread that others of its pipeline wait for, in seconds.
SLICE_S = 0.05
#: Items of one task that may be on their way at once, in batches: those of others come in between.
OPEN_BATCHES = 8
#: How often it is looked up whether a task that takes long has been cancelled, in seconds.
LOOK_S = 1.0
#: How long results that are being stored may still take when the stages end, in seconds.
STORE_S = 2.0


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
        #: Set when nothing is taken in any more.
        self._draining = False
        #: Set when the stages end: what is still inside goes back on its queue, whatever becomes of it here.
        self._closed = False
        #: Set when nothing is to be waited for any more.
        self._hurried = False
        #: Set when nobody waits for results any more, not even for those of the last batch.
        self._ended = False
        #: Calls of ``deliver`` that are under way or scheduled.
        self._finishing = 0
        share = max(1, settings.prefetch_bytes // len(pipelines))
        self._lanes = {name: Lane(name, share, settings.fetch_threads, prepare_threads) for name in pipelines}
        #: For what names no pipeline of ours; it only fails.
        self._no_lane = next(iter(self._lanes.values()))
        self._batcher: Batcher[Item] = Batcher(min(WINDOW_BYTES // len(pipelines), share))
        self._watchdog = Watchdog(settings.hard_timeout_s)
        #: Held for a step of preparation whose inputs are large once they are decoded.
        self._large = threading.Lock()
        self._delivering = ThreadPoolExecutor(DELIVER_THREADS, "deliver")
        self._device = threading.Thread(target=self._run_device, name="device", daemon=True)

    def start(self) -> None:
        """Starts the device thread; the others start with the first task."""
        self._device.start()

    def submit(self, work: Work) -> None:
        """Takes a task in. Returns at once. Once the stages are ending, its message is left unacknowledged."""
        with self._changed:
            if not self._draining:
                self._works.add(work)
                self._lane(work).preparing.submit(partial(self._guarded, work, self._accept))

    def in_flight(self) -> dict[str, int]:
        """Tasks inside, by pipeline."""
        counts: dict[str, int] = {}
        with self._changed:
            for work in self._works:
                if work.pipeline is not None:
                    counts[work.pipeline.name] = counts.get(work.pipeline.name, 0) + 1
        return counts

    def withdraw(self) -> list[Work]:
        """Takes nothing in any more, and gives up what has not come to the device: its messages are the caller's."""
        with self._changed:
            self._draining = True
            idle = [work for work in self._works if work.leases is not None and work.withdraw()]
            self._works.difference_update(idle)
            self._changed.notify_all()
        return idle

    def drain(self, timeout_s: float) -> list[Work]:
        """Finishes what is inside, for ``timeout_s`` at most; stops. A forward pass that goes on is left behind.

        Returns:
            The tasks that were not finished; they are not acknowledged.
        """
        with self._changed:
            self._draining = True
            self._changed.wait_for(lambda: self._hurried or not self._works, timeout_s)
            self._closed = True
        self._batcher.close()
        for lane in self._lanes.values():
            lane.close()
        with self._changed:
            self._changed.wait_for(lambda: self._hurried or not self._finishing, STORE_S)
            self._ended = True
            self._delivering.shutdown(wait=False)
            return list(self._works)

    def hurry(self) -> None:
        """Ends a drain, now or later, without waiting for anything. May be called from any thread."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    @property
    def is_hurried(self) -> bool:
        """Whether nothing is to be waited for any more."""
        return self._hurried

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
        work.given = message.inputs
        if any(map(looks_like_result, work.given if isinstance(work.given, list) else [work.given])):
            self._lane(work).fetching.submit(self._guarded, work, self._fetch_results)
        else:
            self._read(work)

    def _fetch_results(self, work: Work) -> None:
        """What comes before this task in a chain, or in the header of a chord, and went to the store, comes back."""
        if not work.held_bytes:
            self._lane(work).budget.wait_for_room()
        if isinstance(work.given, list):
            work.given = [self._fetch_result(work, one) for one in work.given]
        else:
            work.given = self._fetch_result(work, work.given)
        self._lane(work).preparing.submit(partial(self._guarded, work, self._read))

    def _fetch_result(self, work: Work, value: Any) -> Any:
        if self._is_in_vain(work) or (ref := self._fetcher.result_ref(value)) is None:
            return value
        with work.timed("fetch"):
            return self._fetcher.fetch_result(ref, lambda size: self._hold(work, size))

    def _read(self, work: Work) -> None:
        pipeline = work.pipeline
        assert pipeline is not None
        work.inputs, work.is_list = read_inputs(pipeline.task_type, work.given, self._settings.inputs)
        work.outputs = [[] for _ in work.inputs]
        work.echoes = {id(read): sent for one in work.inputs for read, sent in one.turns}
        self._check_items(prepare.least_items(work.inputs, work.params))
        if any(one.slots for one in work.inputs):
            self._lane(work).fetching.submit(self._guarded, work, self._fetch)
        else:
            self._prepare(work)

    def _fetch(self, work: Work) -> None:
        lane, until = self._lane(work), time.monotonic() + SLICE_S
        if not work.held_bytes:
            lane.budget.wait_for_room()
        for at, slot in [(at, slot) for at, one in enumerate(work.inputs) for slot in one.slots if slot.data is None]:
            if self._is_in_vain(work):
                break
            if time.monotonic() > until:
                # Others wait behind this one for a thread.
                lane.fetching.submit(self._guarded, work, self._fetch)
                return
            with work.timed("fetch"), _located(work, at):
                slot.data = self._fetcher.fetch(slot.ref, lambda size: self._hold(work, size))
        lane.preparing.submit(partial(self._guarded, work, self._prepare))

    def _prepare(self, work: Work) -> None:
        work.rows, work.thread = self._rows(work), self._lane(work).preparing.here()
        self._go_on(work)

    def _rows(self, work: Work) -> Iterator[Item | None]:
        """Decodes and prepares, in as many steps as there are: None for something decoded, then the items."""
        assert work.pipeline is not None
        answer = work.pipeline.picture_memory(work.params)
        most = self._settings.inputs.max_decoded_bytes
        decoded = Decoded(most, lambda more: self._hold(work, more), self._large, answer)
        try:
            for at, slot in [(at, slot) for at, one in enumerate(work.inputs) for slot in one.slots]:
                with work.timed("decode"):
                    self._decode(work, at, slot, decoded)
                decoded.end()
                yield None
            for item in prepare.items(work):
                # Before others have their turn on this thread: they may be large, too.
                decoded.end()
                yield item
        finally:
            decoded.end()

    def _go_on(self, work: Work) -> None:
        """Takes a task through the next slice of its preparation."""
        pipeline, rows, began = work.pipeline, work.rows, time.monotonic()
        assert pipeline is not None
        assert rows is not None
        until, is_full = began + SLICE_S, False
        for item in rows:
            if item is not None:
                work.add_time("prepare", time.monotonic() - began)
            if self._is_in_vain(work):
                break
            if item is not None:
                work.items += 1
                self._check_items(work.items)
                work.outputs[item.index].append(None)
                many = work.opened() >= OPEN_BATCHES * pipeline.limits.max_size
                try:
                    is_full = self._batcher.put(item, pipeline.limits) or many
                except Closed:
                    return  # draining: the message goes back on its queue
            began = time.monotonic()
            if is_full or began > until:
                go_on = partial(
                    self._lane(work).preparing.go_on, work.thread, partial(self._guarded, work, self._go_on)
                )
                if is_full:
                    work.pause(go_on)
                else:
                    go_on()
                return
        work.rows = None
        if work.prepared():
            self._finish_here(work)

    def _check_items(self, count: int) -> None:
        if count > (most := self._settings.max_items):
            raise PipeqError(
                ErrorCode.INPUT_TOO_LARGE,
                f"the task makes {count} items or more (inputs, times their labels or chunks), and this worker takes "
                f"{most} (`max_items`): send it in parts",
            )

    def _is_in_vain(self, work: Work) -> bool:
        """Whether going on is of no use, also because the task was cancelled a moment ago."""
        if not work.needs_no_device and time.monotonic() - work.looked_at > LOOK_S:
            self._look([work])
        return work.needs_no_device

    def _look(self, works: list[Work]) -> None:
        for work in works:
            work.looked_at = time.monotonic()
        with suppress(RedisError):  # the next look, or the mark of its batch, will tell
            self._marks.look(works)

    def _decode(self, work: Work, at: int, slot: Slot, decoded: Decoded) -> None:
        assert work.pipeline is not None
        assert slot.data is not None
        with _located(work, at):
            name, rate = ref_name(slot.ref), work.pipeline.sampling_rate
            limits = self._settings.inputs
            value = decode.decode(slot.media, slot.data, name, limits, rate, slot.in_chat, decoded)
        if not decode.keeps_its_bytes(value):
            self._hold(work, -len(slot.data))
        slot.fill(value)
        work.echoes[id(value)] = slot.ref.model_dump(exclude_none=True, exclude={"signature"})

    def _run_device(self) -> None:
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
        # One of many items runs in many batches: it may have been cancelled since the first.
        late = [work for work in works if not work.needs_no_device and began - work.looked_at > LOOK_S]
        if late:
            self._look(late)
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
        works = [work for work in works if work.begins()]
        for work in works:
            work.looked_at = time.monotonic()
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
            self._deliver([work for work in works if work.begins()])
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
        work.rows = None
        if work.prepared():
            self._finish_here(work)

    def _lane(self, work: Work) -> Lane:
        return self._lanes.get(work.message.pipeline, self._no_lane) if work.message else self._no_lane

    def _hold(self, work: Work, more: int) -> None:
        self._lane(work).budget.add(work.held_bytes, more)
        work.held_bytes += more


class _located:  # noqa: N801 - reads as a statement
    """Says in an error which of several inputs it is about."""

    def __init__(self, work: Work, index: int) -> None:
        self._where = f"inputs[{index}]: " if work.is_list else ""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._where and isinstance(error, PipeqError):
            raise PipeqError(error.code, self._where + error.message, error.retryable) from error


def _stuck(pipeline: Pipeline, items: list[Item], after_s: float) -> str:
    return f"a forward pass of {len(items)} items through {pipeline.name!r} took over hard_timeout_s ({after_s:g} s)"
