"""A task with its message: its identity in Celery and in the leases, its record, and how it ended."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeq.contract.errors import ErrorCode
from pipeq.contract.pack import PackOf
from pipeq.contract.record import Before

from pipeq_worker.children.served import Served
from pipeq_worker.leases.leases import Leases
from pipeq_worker.schedule.task import Task

#: How long a task counts as waiting after a look at its record, in seconds. In a backlog it may be cancelled meanwhile.
KNOWN_S = 0.1


@dataclass(eq=False, kw_only=True)
class Delivery(Task):
    """One delivery of a task to this worker, from its reservation to its acknowledgement."""

    #: Identifies it in Celery's pool, which expects a process id.
    number: int = 0
    #: Celery's request, which handles expiry, revocation, events and acknowledgement. Of a plain message, it reads the
    #: message only when somebody asks for its content: see :mod:`pipeq_worker.broker.late_request`.
    request: Any
    #: Runs Celery's tracer on this task and returns what :attr:`acknowledge` takes.
    trace: Callable[[], Any]
    #: Tells Celery how the task ended, and acknowledges the message.
    acknowledge: Callable[[Any], None]
    #: Tells Celery that the task starts, so that Celery counts it as active instead of reserved. Returns False if the
    #: task was revoked while it waited. None once the task has started.
    accept: Callable[[], bool] | None = None
    received_at: float = field(default_factory=time.time)
    #: The queue that its message came from; empty if that is not readable, as another transport allows.
    queue: str = ""
    #: Number of tries that ended with a retryable error, as the message says.
    retries: int = 0
    #: Number of times that workers had begun to run it before an operator took it out of the dead letters.
    past_attempts: int = 0
    #: How many processes had died in its earlier tries while they worked on it; :attr:`deaths` begins with them.
    past_deaths: int = 0
    #: When its first try failed, in seconds since the epoch; None if it is the first try.
    retrying_since: float | None = None
    #: How often it waited without having been tried by a worker that could do it.
    put_off: int = 0
    #: When it was submitted, in seconds since the epoch, as its message says; None if it does not.
    sent_at: float | None = None
    #: Names of workers that may not touch the place that it names.
    refused_by: tuple[str, ...] = ()
    #: Workers that could not do it, by a fault of their own -> when that was, in seconds since the epoch.
    failed_on: Mapping[str, float] = field(default_factory=dict)
    #: When it expires, in seconds since the epoch. Celery checks that only when the message arrives.
    expiry: float = math.inf
    #: Celery's ids of the group that it belongs to, and of the task that started it.
    group_id: str | None = None
    parent_id: str | None = None
    #: Whether anything follows from its end: a link, an error link, the rest of a chain, a chord.
    has_followers: bool = False
    #: The leases that hold its message, and its tag there. None and empty if another transport delivered it.
    leases: Leases | None = None
    tag: str = ""

    #: Of a pack: where it belongs.
    pack_of: PackOf | None = None

    #: Its pipeline; None if this worker does not serve it, or if its message is not readable.
    pipeline: Served | None = None
    #: What the task's record said before this worker changed it; None until it is read.
    before: Before | None = None
    #: Set if the record says that the task has ended already: cancelled, or finished by another worker.
    is_over: bool = False
    #: Set when its lease is lost: another worker has its message, or will have it.
    is_lost: bool = False
    #: Set by ``revoke(terminate=True)``.
    is_terminated: bool = False
    #: Set if it failed, and is tried again: by this worker or by another one.
    is_retried: bool = False
    #: Whether another worker died with it before this one took it.
    was_lost: bool = False
    #: Milliseconds of the parts of its life, as its record has them; empty before its end.
    told_ms: dict[str, float] = field(default_factory=dict)
    #: Whether this try counts among its attempts: not if it failed by a fault of this worker, or was not tried at all.
    counts: bool = True
    attempt: int = 0
    #: Its tries that ended with the death of a worker or of a process, for its history; the last one's start.
    lost: Sequence[Any] = ()
    last_started_at: float | None = None
    #: Whether this worker wrote its running mark.
    is_marked: bool = False
    #: Further deliveries of the same message, which end with this one.
    again: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.deaths = self.past_deaths

    @property
    def result(self) -> Any:
        """What the task's caller reads: the pipeline's output, or the URI that it was written to."""
        return json.loads(self.result_json)

    @property
    def handed_on(self) -> Any:
        """What the next task of a chain or the body of a chord gets; None if it gets the result."""
        return None if self.handed_on_json is None else json.loads(self.handed_on_json)

    @property
    def is_dropped(self) -> bool:
        """Whether its result is no longer needed: the task has ended, or another worker has its message."""
        return self.is_over or self.is_lost or self.is_terminated

    @property
    def attempts_before(self) -> int:
        """Number of tries before this one: those with a retryable error, and those of the task's earlier lives."""
        return self.retries + self.past_attempts

    @property
    def attempts(self) -> int:
        """Number of times that a worker has begun to run the task, this one included."""
        is_counted = self.is_ended_by_death or (self.error is not None and self.error.code == ErrorCode.WORKER_LOST)
        is_none = not self.counts or (is_counted and self.deaths)
        return self.attempts_before + self.deaths + (0 if is_none else 1)

    def is_expired(self) -> bool:
        """Whether the task has expired."""
        return self.expiry < time.time()

    def must_be_known(self) -> bool:
        """Whether Redis may know something that keeps it from the device; not if it was new a moment ago."""
        is_new = self.leases is not None and self.leases.is_new(self.tag)
        # A row of a pack that goes on alone, for instance, is new, and may have deaths.
        was_tried = self.attempts_before or self.put_off or self.deaths or self.rows
        return not is_new or bool(was_tried) or time.monotonic() - self.arrived > KNOWN_S

    def withdraw(self) -> bool:
        """Withdraws the task unless it has begun. Only a message with a lease can go back on its queue."""
        return self.leases is not None and super().withdraw()

    def starts_over(self) -> None:
        """Forgets its try in a child that has died, but for the history."""
        self.last_started_at = self.started_at
        super().starts_over()

    def terminate(self, signum: Any = None) -> None:
        """``revoke(terminate=True)``: the task is dropped at its next stage. Celery has recorded the revocation."""
        self.is_terminated = True

    def let_lapse(self) -> None:
        """Leaves the message and the mark as they stand: it is charged as if this worker had died with it."""
        self.is_marked = False
        if self.leases is not None:
            self.leases.release([self.tag])

    def start(self) -> None:
        """Tells Celery that the task starts, unless it was revoked meanwhile."""
        accept, self.accept = self.accept, None
        if accept is not None and not accept():
            self.is_terminated = True
