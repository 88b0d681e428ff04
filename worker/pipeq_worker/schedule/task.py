"""TASK: what the host knows of a task while it is inside: its number, its stage, and the costs of its items.

It knows nothing of what a producer sent, apart from the bytes that it passes on. In a worker the task is a
:class:`pipeq_worker.delivery.delivery.Delivery`, which adds a message's request and a lease.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, TypeVar

from pipeq.contract.errors import PipeqError
from pipeq.contract.status import BatchInfo, Progress


class Place(Enum):
    """Where a task is."""

    #: In the host, before any child has it.
    HOST = "host"
    #: In a child that prepares it.
    PREPARING = "preparing"
    #: In a child, where all its items lie ready or have run.
    PREPARED = "prepared"
    #: It has a result or an error, and is being delivered.
    ENDED = "ended"


@dataclass(eq=False, kw_only=True)
class Task:
    """One task, from its message to its result."""

    id: str
    #: The name of its pipeline; None if its message is not readable.
    lane: str | None = None
    #: Its message, for the child: see :class:`pipeq_worker.children.protocol.Prepare`.
    message: bytes = b""
    error: PipeqError | None = None
    #: Whether another task gets its result.
    has_next: bool = False
    #: Of a pack, the number of its rows; otherwise 0.
    rows: int = 0
    #: Set if it is a pack whose rows go on one by one: one of them may have killed a process, or took too long.
    is_split: bool = False
    #: How the rows of a pack ended, as its child said.
    pack_end: Any = None

    #: By which the host and its children know it, for one try in one child; a new try has a new number.
    ticket: int = 0
    #: 0 is served first, 9 last.
    priority: int = 0
    #: When it should be done, by the monotonic clock; infinite if its producer set no deadline.
    deadline: float = math.inf
    #: Tasks of equal priority are served by turns of their tenants; None if its producer named none.
    tenant: str | None = None
    #: How long a try may take from its start to its result, in seconds; its pipeline may allow less.
    timeout_s: float = math.inf
    #: When this try must be done (monotonic clock); infinite before it starts, or if it may take any time.
    late_at: float = math.inf
    #: When it came in (monotonic clock).
    arrived: float = field(default_factory=time.monotonic)
    place: Place = Place.HOST
    #: The child that has it; 0 is the device process.
    child: int = 0
    #: The parameters of its call, pickled, once a prepare process has told them.
    params: bytes = b""
    #: When it came to that place (monotonic clock).
    since: float = field(default_factory=time.monotonic)
    #: When its first batch began, in seconds since the epoch.
    started_at: float | None = None
    #: When a child was given it, and when its first item was ready there (monotonic clock); of its last try.
    given_at: float | None = None
    ready_at: float | None = None
    #: When its last try in a child that died was over, and when the one before its present try was (monotonic clock).
    over_at: float | None = None
    tried_until: float | None = None
    #: When its child began to work on it, as the child said at its end (monotonic clock).
    began: float | None = None
    #: How many processes died while they worked on it. A task with deaths runs alone.
    deaths: int = 0
    #: Whether its last try took too long and was ended with its process, so that it is one of the deaths.
    is_ended_by_death: bool = False
    #: Whether a worker's host died while it had the message.
    is_suspect: bool = False
    #: Whether its first batch runs already, and its mark is being written.
    is_marking: bool = False
    #: When it was last checked for having ended in the meantime (monotonic clock).
    looked_at: float = field(default_factory=time.monotonic)

    #: How far it is, as its child said last.
    progress: Progress | None = None

    #: What its caller reads, as JSON: the pipeline's output, or the URI that it was written to.
    result_json: bytes = b"null"
    result_uri: str | None = None
    #: What the next task of a chain or the body of a chord gets instead, as JSON, if the result refers to objects in
    #: the store.
    handed_on_json: bytes | None = None
    #: Size and padding of its largest batch.
    batch: BatchInfo | None = None
    #: Milliseconds of each part, from ``began`` until its child was done with it.
    timing_ms: dict[str, float] = field(default_factory=dict)

    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    #: Whether it has reached the device or is being delivered; and whether it was withdrawn before that.
    _has_begun: bool = False
    _is_withdrawn: bool = False

    @property
    def is_dropped(self) -> bool:
        """Whether its result is no longer wanted. Subclasses know."""
        return False

    def must_be_known(self) -> bool:
        """Whether its first batch must wait for what ``begin`` finds out: that it was cancelled, or tried before."""
        return True

    def is_expired(self) -> bool:
        """Whether nobody waits for it any more. Subclasses know."""
        return False

    @property
    def needs_no_device(self) -> bool:
        """Whether running its items would be useless."""
        return self.error is not None or self.is_split or self._is_withdrawn or self.is_dropped

    @property
    def is_waiting(self) -> bool:
        """Whether it could be withdrawn now."""
        return not (self._has_begun or self._is_withdrawn or self.place is Place.ENDED)

    def moved(self, place: Place) -> None:
        """Notes that it is somewhere else now."""
        self.place, self.since = place, time.monotonic()

    def given(self) -> None:
        """Notes that a child gets it now."""
        self.moved(Place.PREPARING)
        self.given_at, self.ready_at, self.tried_until = self.since, None, self.over_at

    def begins(self) -> bool:
        """Marks it as begun. Returns whether it may run or be delivered; False once it was withdrawn."""
        with self._lock:
            self._has_begun = not self._is_withdrawn
            return self._has_begun

    def starts_over(self) -> None:
        """Forgets its try in a child that has died."""
        with self._lock:
            self._has_begun = False
        self.started_at = self.progress = None
        self.late_at = math.inf
        self.moved(Place.HOST)
        self.over_at = self.since

    def withdraw(self) -> bool:
        """Withdraws it, unless it has begun. Returns whether it was withdrawn; it then belongs to the caller again."""
        with self._lock:
            if self._has_begun or self._is_withdrawn:
                return False
            self._is_withdrawn = True
            return True

    def split(self) -> bool:
        """Ends a pack of several rows, which then go on one by one; returns False for any other task.

        What is charged to a task (a death, a time that is over) is one row's, and must cost the others nothing.
        """
        self.is_split = self.is_split or (self.rows > 1 and self.error is None)
        return self.is_split

    def fail(self, error: PipeqError) -> None:
        """Keeps the first error's content.

        The exception itself is not kept, because it refers to the frames that it passed through, and they refer to this
        task.
        """
        if self.error is None:
            self.error = error.bare()


T = TypeVar("T", bound=Task)


@dataclass(eq=False, slots=True)
class Item(Generic[T]):
    """One row of model input, which lies ready in a child."""

    task: T
    #: The number of its task when it became ready: if the task has another one now, the item is gone.
    ticket: int
    #: Its number in the child.
    number: int
    group: Hashable
    #: Its pipeline's name: items of one lane share its part of the window.
    lane: str
    cost: int
    nbytes: int
    #: The child that prepared it; 0 is the device process.
    child: int = 0
    #: Where a prepare process has put it; None if it lies in the device process.
    where: Any = None
    #: Of a row of a pack: the parameters of its call, pickled. Those of other items are their task's.
    params: bytes = b""
    #: When it was ready (monotonic clock). Items of a large task are as young as those of later tasks.
    arrived: float = field(default_factory=time.monotonic)

    @property
    def priority(self) -> int:
        """Its task's priority."""
        return self.task.priority

    @property
    def deadline(self) -> float:
        """Its task's deadline, by the monotonic clock."""
        return self.task.deadline

    @property
    def tenant(self) -> str | None:
        """Its task's tenant."""
        return self.task.tenant

    @property
    def is_gone(self) -> bool:
        """Whether its task has ended, or has started over."""
        return self.ticket != self.task.ticket
