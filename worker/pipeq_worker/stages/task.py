"""TASK: what moves through the stages: a task, its inputs, and the items that they become. Imports no Celery or Redis.

A task lives in the process that has its inputs. Where it came from and how it ends is the business of the process that
holds its lease, which knows it by its number (:class:`pipeq_worker.schedule.task.Task`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeq.contract.errors import Blame, PipeqError
from pipeq.contract.message import Output, Ref
from pipeq.contract.status import BatchInfo, Progress

from pipeq_worker.models.call import Call
from pipeq_worker.models.pipeline import Pipeline
from pipeq_worker.models.running import Row
from pipeq_worker.models.task_type import Media
from pipeq_worker.observe.own_faults import is_own_fault
from pipeq_worker.observe.traces import trace_of
from pipeq_worker.stages.pack import Pack
from pipeq_worker.stages.times import Times


@dataclass(eq=False)
class Slot:
    """A place inside an input whose reference is replaced: by bytes during fetch, by a value during decode."""

    #: The dictionary and its key, or the list and its index, where the value belongs.
    container: Any
    key: Any
    media: Media
    ref: Ref
    data: bytes | None = None
    #: Whether it is part of a chat, in which processors take audio as samples.
    in_chat: bool = False

    def fill(self, value: Any) -> None:
        """Puts the decoded value into its place."""
        self.container[self.key] = value
        self.data = None


@dataclass
class Input:
    """One input of a task. The stages replace its references by what they refer to."""

    fields: dict[str, Any]
    #: Whether the pipeline's call takes the value of its only field instead of an object.
    is_plain: bool
    #: Places of the references in ``fields``.
    slots: list[Slot] = field(default_factory=list)
    #: The turns of chats, each as it was read and as it was sent. An output that repeats a turn gets it as sent.
    turns: list[tuple[Any, Any]] = field(default_factory=list)

    @property
    def call_value(self) -> Any:
        """The value that the pipeline's call takes."""
        return next(iter(self.fields.values())) if self.is_plain else self.fields


@dataclass(eq=False, kw_only=True)
class Task:
    """One task, from its message to the model's outputs.

    One stage at a time owns it. Only the counting of items is shared between threads, under a lock.
    """

    id: str
    #: The number by which the process that holds its lease knows it.
    number: int = 0
    #: The name of its pipeline, and its message; see :class:`pipeq_worker.children.protocol.Prepare`.
    lane: str = ""
    body: bytes = b""
    #: Where its result goes; None if it goes to the result backend.
    destination: Output | None = None
    #: What stands in front of the result in the object that holds it, if that is to have the inputs, too.
    asked: bytes = b""
    pipeline: Pipeline | None = None
    #: Whether a process died while it worked on this task: each of its steps then runs alone in this process.
    alone: bool = False
    #: Whether its message is so small that preparing it is short, unless it refers to something.
    is_light: bool = False
    #: Whether another task gets its result, which then needs signatures.
    has_next: bool = False
    #: The pipeline's own parameters, overridden by the task's.
    call: Call = field(default_factory=Call)
    #: Of a pack: the message's parameters, which a row's own override.
    common_params: Mapping[str, Any] = field(default_factory=dict)
    #: The message's inputs, in which references to results of other tasks have been replaced by the results.
    given: Any = None
    #: One entry for each input; the stages replace its references.
    inputs: list[Input] = field(default_factory=list)
    #: Whether the producer sent a list, so that the result is a list, too.
    is_list: bool = False
    #: Its rows, if it is a pack: each of its inputs is a row then.
    pack: Pack | None = None
    #: ``id`` of a chat's turn or of a decoded part -> what the producer sent for it, for outputs that repeat it.
    echoes: dict[int, Any] = field(default_factory=dict)
    #: ``id`` of each of these -> itself.
    originals: dict[int, Any] = field(default_factory=dict)
    #: For each input the model's outputs, one for each chunk.
    outputs: list[list[Any]] = field(default_factory=list)
    #: Bytes that these will take as results.
    output_bytes: int = 0
    #: The results of the first inputs, while those of the others are being made of their outputs.
    results: list[Any] = field(default_factory=list)
    error: PipeqError | None = None
    #: Whether its result is no longer wanted.
    is_cancelled: bool = False

    #: What its caller reads, as JSON: the pipeline's output, or the URI that it was written to.
    result: bytes = b"null"
    result_uri: str | None = None
    #: What the next task of a chain or the body of a chord gets instead, as JSON, if the result refers to objects in
    #: the store.
    handed_on: bytes | None = None
    #: The largest batch that it had items in.
    batch: BatchInfo | None = None
    times: Times = field(default_factory=Times)
    #: Seconds for which threads of preparation were busy with it, without those that waited for a store.
    busy_s: float = 0.0
    #: Bytes that it holds of its pipeline's budget; and of these, what is fetched and not decoded yet.
    held_bytes: int = 0
    ahead_bytes: int = 0
    #: Number of inputs that are fetched; and when it is time to decode them first (monotonic clock).
    fetched: int = 0
    fetching_until: float | None = None
    #: The rest of its preparation while there is more: yields items, and None for each decoded value; and the number of
    #: the thread that runs it.
    rows: Iterator[Item | list[Item] | object | None] | None = None
    thread: int = 0
    #: Tasks that were accepted in the same step and may be prepared in one, too: it joins them instead of going on.
    company: list[Task] | None = None
    #: An item that was made when there was no room for it.
    held_up: Item | list[Item] | None = None
    #: Number of items prepared so far.
    items: int = 0
    #: Whether its first item is known to be its only one.
    has_one_item: bool = False
    #: When it has to be done (monotonic clock), if it has to.
    deadline: float | None = None
    #: The row of its last item, which tells how far that is.
    row: Row | None = None

    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _open_items: int = 0
    _all_prepared: bool = False
    #: Function that resumes its preparation, and the number of open items at which it is called.
    _resume: tuple[Callable[[], None], int] | None = None

    @property
    def needs_no_device(self) -> bool:
        """Whether running its items would be useless."""
        return self.error is not None or self.is_cancelled

    def progress(self) -> Progress | None:
        """How far it is: in inputs, in chunks, or, if it is one item, in the steps of its row. None if unknown."""
        with self._lock:
            all_prepared = self._all_prepared
        if self.is_list and len(self.inputs) > 1:
            # Inputs are prepared in order, so all chunks of an input are there once the next one has a chunk.
            begun = [bool(chunks) for chunks in self.outputs]
            last = len(begun) - 1 - begun[::-1].index(True) if any(begun) else -1
            complete = self.outputs if all_prepared else self.outputs[: max(last, 0)]
            done = sum(all(one is not None for one in chunks) for chunks in complete)
            return Progress(done=done, total=len(self.inputs), unit="inputs")
        if self.items > 1:
            done = sum(one is not None for chunks in self.outputs for one in chunks)
            return Progress(done=done, total=self.items if all_prepared else None, unit="chunks")
        if all_prepared and self.row is not None and self.row.done:
            return Progress(done=self.row.done, total=self.row.total, unit=self.row.unit)
        return None

    def where(self, index: int) -> str:
        """What an error of one of several inputs begins with."""
        return f"inputs[{index}]: " if self.is_list and self.pack is None else ""

    def call_of(self, index: int) -> Call:
        """The parameters of one input: those of the task, unless it is a row with its own."""
        pack = self.pack
        return self.call if pack is None or not pack.calls else pack.calls.get(index, self.call)

    def fail_input(self, index: int, error: PipeqError) -> None:
        """Ends the task, because one of its inputs failed; or only that input, if it is a row."""
        if self.pack is None:
            self.fail(error)
        else:
            self.pack.fail(index, error)

    def echo(self, value: Any, sent: Any) -> None:
        """Notes that an output that repeats ``value`` should show what was sent for it."""
        self.echoes[id(value)], self.originals[id(value)] = sent, value

    def let_go(self, one: Input) -> None:
        """Forgets the decoded values of an input whose items are made."""
        for slot in one.slots:
            value, slot.container[slot.key] = slot.container[slot.key], None
            self.echoes.pop(id(value), None)
            self.originals.pop(id(value), None)

    def opened(self, count: int = 1) -> int:
        """Counts more open items, that is, those in the batcher or on the device. Returns how many are open."""
        with self._lock:
            self._open_items += count
            return self._open_items

    def pause(self, resume: Callable[[], None]) -> None:
        """Calls ``resume`` once half of the items that are open now have been closed."""
        with self._lock:
            if self._open_items:
                self._resume = resume, self._open_items // 2
                return
        resume()

    def prepared(self) -> bool:
        """Marks that no more items will come. Returns whether none is open, that is, whether to finish the task now."""
        with self._lock:
            self._all_prepared = True
            return not self._open_items

    def closed(self, count: int = 1) -> bool:
        """Counts items that came back from the device. Returns whether none is left, that is, the task is done."""
        with self._lock:
            self._open_items -= count
            is_last = self._all_prepared and not self._open_items
            resume = None
            if self._resume is not None and self._open_items <= self._resume[1]:
                (resume, _), self._resume = self._resume, None
        if resume is not None:
            resume()
        return is_last

    def fail(self, error: PipeqError) -> None:
        """Keeps the first error's content; the task's other items need not run.

        The exception itself is not kept, because it refers to the frames that it passed through, and they refer to this
        task.
        """
        if self.error is None:
            self.error = error.bare()
            self.error.traceback = error.traceback or trace_of(error)
            if self.error.blame is Blame.TASK and is_own_fault(error):
                self.error.blame = Blame.WORKER


@dataclass(eq=False)
class Item:
    """One row of model input."""

    task: Task
    #: Index of the input that it belongs to, and index of its chunk in that input.
    index: int
    chunk: int
    #: Result of the pipeline's ``preprocess``: a mapping of names to tensors, and to values that later steps need.
    features: Any
    group: Hashable
    cost: int
    nbytes: int
    #: Its number in this process, given when it is ready.
    number: int = 0
    #: The model's output for this item, as if it had run alone; or the reason why there is none.
    output: Any = None
    error: PipeqError | None = None
    #: Whether it is still wanted while it runs, and how far it is.
    row: Row = field(default_factory=Row)

    #: How urgent it is (see schedule/batchable.py); the host knows, and here all are equal.
    priority: int = 0
    deadline: float = math.inf
    tenant: str | None = None
    arrived: float = 0.0

    @property
    def call(self) -> Call:
        """The parameters with which it runs."""
        task = self.task
        return task.call if task.pack is None or not task.pack.calls else task.call_of(self.index)

    @property
    def is_first(self) -> bool:
        """Whether it is the first item of its task."""
        return not self.index and not self.chunk

    @property
    def lane(self) -> Hashable:
        """The lane whose share of the batcher's window it takes: its pipeline's."""
        assert self.task.pipeline is not None
        return self.task.pipeline.name
