"""What moves through the stages: a task, its inputs, and the items it becomes. Nothing of Celery, nothing of Redis.

Whoever gives a task to the stages knows where it came from and how it ends: in a worker a
:class:`pipeq_worker.delivery.delivery.Delivery`, which is a task with a message and a lease.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pipeq.contract.errors import PipeqError
from pipeq.contract.message import Ref, TaskMessage
from pipeq.contract.status import BatchInfo

from pipeq_worker.models.pipeline import Pipeline
from pipeq_worker.models.task_type import Media


@dataclass(eq=False)
class Slot:
    """A place inside an input for what a reference refers to: bytes after fetch, a value after decode."""

    #: What it lies in, and where: a dictionary and a key, or a list and an index.
    container: Any
    key: Any
    media: Media
    ref: Ref
    data: bytes | None = None
    #: Whether it is part of a chat: processors take audio there as samples.
    in_chat: bool = False

    def fill(self, value: Any) -> None:
        """Puts the decoded value in its place."""
        self.container[self.key] = value
        self.data = None


@dataclass
class Input:
    """One input of a task; references in it are replaced, stage by stage, by what they refer to."""

    fields: dict[str, Any]
    #: Whether the pipeline's call takes the value of the one field rather than an object.
    is_plain: bool
    #: Where in the fields there are references.
    slots: list[Slot] = field(default_factory=list)
    #: The turns of chats, each as it was read and as it was sent: an output that repeats one repeats what was sent.
    turns: list[tuple[Any, Any]] = field(default_factory=list)

    @property
    def call_value(self) -> Any:
        """What the pipeline's call takes."""
        return next(iter(self.fields.values())) if self.is_plain else self.fields


@dataclass(eq=False, kw_only=True)
class Task:
    """One task, from its message to the model's outputs.

    Owned by one stage at a time; only the counting of items is shared between threads, under a lock.
    """

    id: str
    message: TaskMessage | None = None
    pipeline: Pipeline | None = None
    #: The pipeline's own parameters, overridden by the task's.
    params: dict[str, Any] = field(default_factory=dict)
    #: The message's inputs, where results of other tasks have come back from the store.
    given: Any = None
    #: One entry an input; references are replaced by what they referred to.
    inputs: list[Input] = field(default_factory=list)
    #: Whether the producer sent a list, so that the result is one too.
    is_list: bool = False
    #: ``id`` of a turn of a chat, or of a decoded part -> what the producer sent for it, for outputs that repeat it.
    echoes: dict[int, Any] = field(default_factory=dict)
    #: For each input the model's outputs, one a chunk.
    outputs: list[list[Any]] = field(default_factory=list)
    error: PipeqError | None = None

    #: When its first batch began, in seconds since the epoch; set by whoever is told of the batch.
    started_at: float | None = None
    #: How often what ran it died with it: then it shares no batch.
    deaths: int = 0
    batch: BatchInfo | None = None
    #: Milliseconds in each stage.
    timing_ms: dict[str, float] = field(default_factory=dict)
    #: Bytes of the budget that it holds.
    held_bytes: int = 0
    #: What its preparation still has to give, while there is more: items, and None for something that was decoded; and
    #: the number of the thread that it runs on.
    rows: Iterator[Item[Any] | None] | None = None
    thread: int = 0
    #: Items made so far.
    items: int = 0
    #: When it was last looked up whether it has ended meanwhile (monotonic).
    looked_at: float = field(default_factory=time.monotonic)

    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _open_items: int = 0
    _all_prepared: bool = False
    #: What makes its preparation go on, and with how many items still open.
    _resume: tuple[Callable[[], None], int] | None = None
    #: Whether it is on the device, or has been, or is being delivered; and whether it was taken back before that.
    _has_begun: bool = False
    _is_withdrawn: bool = False

    @property
    def is_dropped(self) -> bool:
        """Whether its result is of no use any more. Whoever gave it to the stages may know."""
        return False

    @property
    def needs_no_device(self) -> bool:
        """Whether running its items would be in vain."""
        return self.error is not None or self._is_withdrawn or self.is_dropped

    def begins(self) -> bool:
        """Whether it may run or be delivered; False once it was withdrawn."""
        with self._lock:
            self._has_begun = not self._is_withdrawn
            return self._has_begun

    def withdraw(self) -> bool:
        """Takes it back, unless it has begun. Returns whether that was so: then it is the caller's again."""
        with self._lock:
            if self._has_begun or self._is_withdrawn:
                return False
            self._is_withdrawn = True
            return True

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the time spent inside to the stage's."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.add_time(stage, time.monotonic() - began)

    def add_time(self, stage: str, seconds: float) -> None:
        """Adds to a stage's time."""
        self.timing_ms[stage] = round(self.timing_ms.get(stage, 0.0) + seconds * 1000, 3)

    def opened(self) -> int:
        """One more item is on its way through the batcher. Returns how many are."""
        with self._lock:
            self._open_items += 1
            return self._open_items

    def pause(self, resume: Callable[[], None]) -> None:
        """Its preparation stops until half of the items that are on their way have come back; then it is resumed."""
        with self._lock:
            if self._open_items:
                self._resume = resume, self._open_items // 2
                return
        resume()

    def prepared(self) -> bool:
        """No more items will come. Returns whether all have come back already, that is, whether to finish now."""
        with self._lock:
            self._all_prepared = True
            return not self._open_items

    def closed(self) -> bool:
        """An item came back from the device. Returns whether it was the last, that is, whether to finish now."""
        with self._lock:
            self._open_items -= 1
            is_last = self._all_prepared and not self._open_items
            resume = None
            if self._resume is not None and self._open_items <= self._resume[1]:
                (resume, _), self._resume = self._resume, None
        if resume is not None:
            resume()
        return is_last

    def fail(self, error: PipeqError) -> None:
        """Keeps what the first error says; the task's other items need not run.

        Not the exception itself: it holds the frames that it came through, and they hold this task.
        """
        if self.error is None:
            self.error = PipeqError(error.code, error.message, error.retryable)


T = TypeVar("T", bound=Task)


@dataclass(eq=False)
class Item(Generic[T]):
    """One row of model input."""

    task: T
    #: Which of the task's inputs it belongs to, and which of that input's chunks it is.
    index: int
    chunk: int
    #: What the pipeline's ``preprocess`` made: a mapping of names to tensors and whatever it needs later.
    features: Any
    group: Hashable
    cost: int
    nbytes: int
    ready_at: float = field(default_factory=time.monotonic)
    #: The model's output for this item, as if it had run alone; or why there is none.
    output: Any = None
    error: PipeqError | None = None

    @property
    def lane(self) -> Hashable:
        """Whose share of the batcher's window it takes: its pipeline's."""
        assert self.task.pipeline is not None
        return self.task.pipeline.name
