"""PREPARATION: the stages before the device, and the threads that run them. Before: stages. After: shelf.

    accept -> fetch -> decode -> prepare
    prepare   fetch    prepare threads

Each pipeline has a :class:`Lane` of its own, so that a slow store or huge inputs of one pipeline do not delay the
others. A task with many inputs or items is prepared in slices, and other tasks run between them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.pack import PackMessage

from pipeq_worker.media.decoded import Decoded
from pipeq_worker.models.pipeline import Pipeline
from pipeq_worker.observe.traces import internal
from pipeq_worker.settings.read import Settings
from pipeq_worker.stages import decode, prepare
from pipeq_worker.stages.accept import read_inputs, read_message
from pipeq_worker.stages.bounds import check_input, check_items
from pipeq_worker.stages.company import Company
from pipeq_worker.stages.destination import destination_of
from pipeq_worker.stages.fetch import Fetcher, ref_name
from pipeq_worker.stages.fetching import SLICE_S, Fetching
from pipeq_worker.stages.lane import Lane
from pipeq_worker.stages.located import located
from pipeq_worker.stages.pack_rows import PackRows, read_rows
from pipeq_worker.stages.shelf import Shelf
from pipeq_worker.stages.steps import Stage, Steps
from pipeq_worker.stages.task import Item, Slot, Task
from pipeq_worker.stages.threads import LOOP, Loop, threads_of

logger = logging.getLogger(__name__)

#: How long one task may keep the loop while everything else waits for it, in seconds.
LOOP_SLICE_S = 0.01
_END, _FETCH = object(), object()
#: Most items of one task between preparation and the device's answer, in batches; items of other tasks fit in between.
OPEN_BATCHES = 8


class Preparation:
    """Takes tasks from their messages to items on the shelf.

    Args:
        pipelines: the loaded pipelines by name.
        settings: the worker's settings.
        fetcher: reads references.
        shelf: receives the items.
        steps: what the threads do is noted there.
        ready: called with items of a task, once they lie on the shelf.
        prepared: called with a task whose items are all made, unless it was known to have only one.
        finish: called with a task that needs no device, or whose items have all run.
        check_output: raises if a producer may not have output written to a URI.
        loop: prepares what is short, if there is one.
    """

    def __init__(
        self,
        pipelines: dict[str, Pipeline],
        settings: Settings,
        fetcher: Fetcher,
        shelf: Shelf,
        steps: Steps,
        *,
        ready: Callable[[list[Item]], None],
        prepared: Callable[[Task], None],
        finish: Callable[[Task], None],
        check_output: Callable[[str], None],
        loop: Loop | None = None,
    ) -> None:
        self._pipelines = pipelines
        self._settings = settings
        self._shelf = shelf
        self._steps = steps
        self._ready = ready
        self._prepared = prepared
        self._finish = finish
        self._check_output = check_output
        prepare_threads = threads_of(settings)
        share = share_of(settings, len(pipelines))
        self._lanes = {name: Lane(name, share, settings.fetch_threads, prepare_threads, loop) for name in pipelines}
        #: For tasks that name none of our pipelines; they only fail.
        self._no_lane = next(iter(self._lanes.values()))
        most = settings.inputs.max_decoded_bytes
        self._fetching = Fetching(fetcher, most, settings.max_items, self._lane, self.hold, self._steps.paused)
        self._fetcher = fetcher
        #: Held during a step of preparation whose decoded inputs are large.
        self._large = threading.Lock()
        self._closed = False
        self._has_loop = loop is not None
        self._companies: dict[str, Company] = {}
        for pipeline in pipelines.values():
            self.replaced(pipeline)

    def replaced(self, pipeline: Pipeline) -> None:
        """Notes that a pipeline is there, or stands in the place of another one of its name."""
        if self._has_loop and pipeline.prepares_together:
            self._companies[pipeline.name] = Company(
                self._lanes[pipeline.name].preparing,
                self._steps,
                alone=lambda task: self._guarded(task, self._accept),
                accept=lambda task: self._safely(task, self._accept),
                prepare=lambda task: self._submit(task, self._prepare),
                go_on=lambda task: self._safely(task, self._go_on),
            )

    def submit(self, task: Task) -> None:
        """Accepts a task. Returns at once."""
        lane = self._lane(task)
        company = self._companies.get(lane.name)
        if company is not None and task.is_light and not task.alone and lane.preparing.has_short_steps:
            company.add(task)
        else:
            self._submit(task, self._accept)

    def close(self) -> None:
        """Stops all preparation. Returns at once."""
        self._closed = True
        for lane in self._lanes.values():
            lane.close()

    def hold(self, task: Task, more: int) -> None:
        """Counts bytes that a task takes, or, if negative, gives back."""
        self._lane(task).budget.add(task.held_bytes, more, self._steps.paused)
        task.held_bytes += more

    def look(self) -> None:
        """Ends tasks that wait for a thread, and whose store is known to be away: it may keep all threads for long."""
        for lane in self._lanes.values():
            for task in lane.reading.waiting():
                if task.pack is not None:
                    continue  # its rows may need different stores, and each finds out for itself
                try:
                    self._check_stores(task, waits=True)
                except PipeqError as error:
                    if lane.reading.take_back(task):
                        task.fail(error)
                        self._end(task)

    # -- stages, in the order of the data's way -----------------------------------------------------------------------

    def _accept(self, task: Task) -> None:
        task.times.enters("prepare")
        message = read_message(task.body)
        # Not needed any more, and it may be large.
        task.body = b""
        pipeline = self._pipelines.get(message.pipeline)
        if pipeline is None:
            raise PipeqError(
                ErrorCode.UNKNOWN_PIPELINE,
                f"this worker serves no pipeline {message.pipeline!r} (it serves {', '.join(sorted(self._pipelines))})",
            )
        task.pipeline = pipeline
        if (place := destination_of(task, message)) is not None:
            self._check_output(place.uri)
        task.call = pipeline.merge(message.params)
        if isinstance(message, PackMessage):
            task.common_params = message.params
            read_rows(task, message, self._settings, self._check_output)
            self._go_to_inputs(task)
            return
        task.given = message.inputs
        if self._fetching.has_results(task):
            task.times.reads()
            self._lane(task).reading.submit(task, partial(self._from_store, task, self._fetch_results))
        else:
            self._read(task)

    def _fetch_results(self, task: Task) -> None:
        if self._fetching.fetch_results(task):
            task.times.enters("prepare")
            self._lane(task).preparing.submit(partial(self._guarded, task, self._read))
        else:
            self._lane(task).reading.submit(task, partial(self._from_store, task, self._fetch_results))

    def _read(self, task: Task) -> None:
        pipeline = task.pipeline
        assert pipeline is not None
        task.inputs, task.is_list = read_inputs(pipeline.task_type, task.given, self._settings.inputs)
        task.outputs = [[] for _ in task.inputs]
        for one in task.inputs:
            for read, sent in one.turns:
                task.echo(read, sent)
        check_items(prepare.least_items(task.inputs, task.call.params), self._settings)
        self._go_to_inputs(task)

    def _go_to_inputs(self, task: Task) -> None:
        if any(one.slots for one in task.inputs):
            task.times.reads()
            if task.pack is None:
                self._check_stores(task)
            self._fetch_soon(task)
        elif task.company is not None:
            task.company.append(task)
        else:
            self._prepare(task)

    def _fetch(self, task: Task) -> None:
        lane = self._lane(task)
        if not self._fetching.fetch(task):
            # Other tasks wait for this thread.
            self._fetch_soon(task)
            return
        task.times.enters("decode")
        if task.rows is None:
            lane.preparing.submit(partial(self._guarded, task, self._prepare))
        else:
            lane.preparing.go_on(task.thread, partial(self._guarded, task, self._go_on))

    def _prepare(self, task: Task) -> None:
        task.rows, task.thread = self._rows(task), self._lane(task).preparing.here()
        self._go_on(task)

    def _rows(self, task: Task) -> Iterator[Item | list[Item] | object | None]:
        """Decodes and prepares step by step.

        Yields:
            For each input None after each decoded value, then its items; before it :data:`_FETCH` if it is not there
            yet.
        """
        assert task.pipeline is not None
        if task.pack is not None:
            yield from PackRows(task, self._settings, _FETCH, self._decode, self._decoded, self.hold).items()
            return
        decoded = self._decoded(task, 0)
        releases = task.is_list and task.pipeline.lets_go_of_inputs
        try:
            for at, one in enumerate(task.inputs):
                if one.slots and at >= task.fetched:
                    yield _FETCH
                before = task.held_bytes - sum(len(slot.data or b"") for slot in one.slots)
                for slot in one.slots:
                    task.times.enters("decode")
                    self._decode(task, at, slot, decoded)
                    decoded.end()
                    yield None
                task.times.enters("prepare")
                with located(task, at):
                    check_input(task, at, one, decoded, self._settings)
                for item in prepare.items(task, at):
                    # Ended before other tasks get this thread, because they may be large, too.
                    decoded.end()
                    yield item
                decoded.end()
                if one.slots and releases:
                    # Its items have what they need of it.
                    task.let_go(one)
                    self.hold(task, before - task.held_bytes)
        finally:
            decoded.end()

    def _decoded(self, task: Task, at: int) -> Decoded:
        """What counts the decoded bytes of a task, or of one row of a pack."""
        assert task.pipeline is not None
        answer, most = task.pipeline.picture_memory(task.call_of(at)), self._settings.inputs.max_decoded_bytes
        return Decoded(most, lambda more: self.hold(task, more), self._large, answer)

    def _decode(self, task: Task, at: int, slot: Slot, decoded: Decoded) -> None:
        assert task.pipeline is not None
        assert slot.data is not None
        with located(task, at):
            name, rate = ref_name(slot.ref), task.pipeline.sampling_rate
            limits = self._settings.inputs
            value = decode.decode(slot.media, slot.data, name, limits, rate, slot.in_chat, decoded)
        task.ahead_bytes -= len(slot.data)
        if not decode.keeps_its_bytes(value):
            self.hold(task, -len(slot.data))
        slot.fill(value)
        task.echo(value, slot.ref.model_dump(exclude_none=True, exclude={"signature"}))

    def _go_on(self, task: Task) -> None:
        """Runs the next slice of a task's preparation."""
        pipeline, rows, began = task.pipeline, task.rows, time.monotonic()
        assert pipeline is not None
        assert rows is not None
        task.times.goes_on()
        go_on = partial(self._lane(task).preparing.go_on, task.thread, partial(self._guarded, task, self._go_on))
        until, first = began + (LOOP_SLICE_S if task.thread == LOOP else SLICE_S), True
        while True:
            if first and self._shelf.is_full(pipeline.name, pipeline.limits):
                # Nothing is made that could not lie anywhere.
                task.times.waits()
                self._shelf.when_room(pipeline.name, pipeline.limits, go_on)
                return
            first = False
            held_up, task.held_up = task.held_up, None
            item = held_up or next(rows, _END)
            if held_up is None:
                task.busy_s += time.monotonic() - began
            if item is _END or task.needs_no_device:
                break
            if item is _FETCH:
                task.times.enters("fetch")
                self._fetch_soon(task)
                return
            if isinstance(item, Item | list):
                items = item if isinstance(item, list) else [item]
                if held_up is None:
                    task.items += len(items)
                    if task.pack is None:
                        check_items(task.items, self._settings)
                    if self._shelf.is_full(pipeline.name, pipeline.limits):
                        task.held_up = item
                        task.times.waits()
                        self._shelf.when_room(pipeline.name, pipeline.limits, go_on)
                        return
                for one in items:
                    task.outputs[one.index].append(None)
                has_many = task.opened(len(items)) >= OPEN_BATCHES * pipeline.limits.max_size
                self._shelf.put(*items)
                self._ready(items)
                if has_many:
                    task.times.waits()
                    task.pause(go_on)
                    return
            began = time.monotonic()
            if began > until:
                go_on()
                return
        self._end(task)

    def _fetch_soon(self, task: Task) -> None:
        lane = self._lane(task)
        is_remote = any(slot.ref.uri is not None for one in task.inputs[task.fetched :] for slot in one.slots)
        if is_remote:
            lane.reading.submit(task, partial(self._from_store, task, self._fetch))
        else:
            lane.unpacking.submit(task, partial(self._guarded, task, self._fetch))

    def _check_stores(self, task: Task, *, waits: bool = False) -> None:
        """Raises if the store that a task reads from next is known to be away. Most tasks use one store."""
        slots = (slot for one in task.inputs[task.fetched :] for slot in one.slots if slot.data is None)
        if (slot := next(slots, None)) is not None:
            self._fetcher.check(slot.ref, waits=waits)

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _submit(self, task: Task, stage: Callable[[Task], None]) -> None:
        """Runs a stage soon, in a step of its own."""
        self._lane(task).preparing.submit(partial(self._guarded, task, stage), light=task.is_light)

    def _from_store(self, task: Task, stage: Callable[[Task], None]) -> None:
        """Runs a stage that reads from a store. To load its library is no part of it."""
        self._fetcher.wait_until_warm()
        self._guarded(task, stage)

    def _guarded(self, task: Task, stage: Callable[[Task], None]) -> None:
        """Runs a stage as a step."""
        if self._closed or task.needs_no_device:
            self._safely(task, stage)
            return
        what = Stage.FETCH if stage in (self._fetch, self._fetch_results) else Stage.PREPARE
        with self._steps.step(what, task.number, alone=task.alone):
            self._safely(task, stage)

    def _safely(self, task: Task, stage: Callable[[Task], None]) -> None:
        """Runs a stage. An error ends the task, not the thread."""
        try:
            if self._closed:
                return
            if not task.needs_no_device:
                stage(task)
                return
        except PipeqError as error:
            task.fail(error)
        except BaseException as error:  # a panic inside a tokenizer is not an Exception
            if self._closed:
                return
            task.fail(internal(error))
        self._end(task)

    def _end(self, task: Task) -> None:
        """Marks a task's preparation as complete."""
        task.rows, now = None, time.monotonic()
        # Before the last pass can end elsewhere; if there is none, this wait has no length.
        task.times.waits(now)
        if task.prepared():
            if task.error is None:
                task.times.enters("deliver", now)
            else:
                task.times.goes_on(now)
            self._finish(task)
        elif not task.has_one_item:
            self._prepared(task)

    def _lane(self, task: Task) -> Lane:
        return self._lanes.get(task.lane, self._no_lane)


def share_of(settings: Settings, pipelines: int) -> int:
    """Bytes of inputs that each of ``pipelines`` pipelines may hold."""
    return max(1, settings.prefetch_bytes // pipelines)
