"""The two things that move through the stages: a task inside the worker, and the items it becomes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pipeq.contract import keys as queues
from pipeq.contract.errors import PipeqError
from pipeq.contract.message import TaskMessage
from pipeq.contract.reading import number
from pipeq.contract.status import BatchInfo

from pipeq_worker.leases.leases import Leases
from pipeq_worker.models.pipeline import Pipeline
from pipeq_worker.stages.accept import Input

#: More than anybody tries, and small enough for every counter.
MOST_RETRIES = 1_000_000


@dataclass(eq=False)
class Work:
    """One task inside the worker, from its reservation to its acknowledgement.

    Owned by one stage at a time; only the counting of items is shared between threads, under a lock.
    """

    id: str
    #: What Celery knows it by in the pool, in the place of a process id.
    number: int
    #: Celery's request: expiry, revocation, events, acknowledgement.
    request: Any
    #: Runs Celery's tracer on this task and returns what :attr:`acknowledge` takes.
    trace: Callable[[], Any]
    #: Tells Celery how the task ended; acknowledges the message.
    acknowledge: Callable[[Any], None]
    #: Tells Celery that the task starts, once, which makes a reserved task an active one. Returns False where it was
    #: revoked while it waited. None once it has started.
    accept: Callable[[], bool] | None = None
    received_at: float = field(default_factory=time.time)
    #: Its lease: the leases it is among, and its tag there. None and empty by another transport than ours.
    leases: Leases | None = None
    tag: str = ""

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
    #: What the task's caller reads: the pipeline's output, or where it was written.
    result: Any = None
    result_uri: str | None = None
    #: What the next task of a chain and the body of a chord get in its place, where it speaks of objects in the store.
    handed_on: Any = None
    #: The task's record as it was before the worker changed it.
    record: dict[str, Any] | None = None
    #: Set when the record says that the task has ended already: cancelled, or finished by another worker.
    is_over: bool = False
    #: Set when its lease is gone: another worker has its message, or will.
    is_lost: bool = False
    #: Set by ``revoke(terminate=True)``.
    is_terminated: bool = False
    started_at: float | None = None
    attempt: int = 0
    #: Workers that died with it in a batch.
    deaths: int = 0
    #: Whether its running mark is ours.
    is_marked: bool = False
    #: Further deliveries of the same message, which end with this one.
    again: list[Any] = field(default_factory=list)
    batch: BatchInfo | None = None
    #: Milliseconds in each stage.
    timing_ms: dict[str, float] = field(default_factory=dict)
    #: Bytes of the worker's budget it holds.
    held_bytes: int = 0
    #: What its preparation still has to give, while there is more: items, and None for something that was decoded; and
    #: the number of the thread that it runs on.
    rows: Iterator[Item | None] | None = None
    thread: int = 0
    #: Items made so far.
    items: int = 0
    #: When its record was last looked at, for whether it has ended meanwhile (monotonic).
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
    def queue(self) -> str:
        """The queue its message came from; empty where another transport than ours lets the message say nonsense."""
        queue = (self.request.delivery_info or {}).get("routing_key")
        return queue if queues.is_readable_id(queue) else ""

    @property
    def retries(self) -> int:
        """Tries that ended in a passing fault; what the message says, as far as that is a number of tries."""
        said = number(self.request.request_dict.get("retries"))
        return int(min(max(said or 0, 0), MOST_RETRIES))

    @property
    def has_next(self) -> bool:
        """Whether its result goes to another task: a link, the rest of a chain, a chord."""
        _, _, embed = self.request._payload
        return isinstance(embed, dict) and any(embed.get(name) for name in ("callbacks", "chain", "chord"))

    def is_expired(self) -> bool:
        """Whether the task's expiry has passed. Celery looks only when the message arrives."""
        expires = self.request.expires
        return expires is not None and expires < datetime.now(expires.tzinfo)

    def begins(self) -> bool:
        """Whether it may run or be delivered; False once it was withdrawn."""
        with self._lock:
            self._has_begun = not self._is_withdrawn
            return self._has_begun

    def withdraw(self) -> bool:
        """Takes it back, unless it has begun. Returns whether that was so: then its message is the caller's."""
        with self._lock:
            if self._has_begun or self._is_withdrawn:
                return False
            self._is_withdrawn = True
            return True

    def start(self) -> None:
        """Its batch begins, unless it was revoked meanwhile."""
        accept, self.accept = self.accept, None
        if accept is not None and not accept():
            self.is_terminated = True

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

    @property
    def needs_no_device(self) -> bool:
        """Whether running its items would be in vain."""
        return self.error is not None or self.is_over or self.is_lost or self.is_terminated or self._is_withdrawn


@dataclass(eq=False)
class Item:
    """One row of model input."""

    work: Work
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
        assert self.work.pipeline is not None
        return self.work.pipeline.name
