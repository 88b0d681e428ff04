"""A task with its message: its identity in Celery and in the leases, its record, and how it ended."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pipeq.contract import keys
from pipeq.contract.reading import number
from pipeq.contract.record import Before

from pipeq_worker.children.served import Served
from pipeq_worker.leases import celery_internals
from pipeq_worker.leases.leases import Leases
from pipeq_worker.schedule.task import Task

#: Larger than any real number of retries, and small enough for every counter.
MOST_RETRIES = 1_000_000


@dataclass(eq=False, kw_only=True)
class Delivery(Task):
    """One delivery of a task to this worker, from its reservation to its acknowledgement."""

    #: Identifies it in Celery's pool, which expects a process id.
    number: int
    #: Celery's request, which handles expiry, revocation, events and acknowledgement.
    request: Any
    #: Runs Celery's tracer on this task and returns what :attr:`acknowledge` takes.
    trace: Callable[[], Any]
    #: Tells Celery how the task ended, and acknowledges the message.
    acknowledge: Callable[[Any], None]
    #: Tells Celery that the task starts, so that Celery counts it as active instead of reserved. Returns False if the
    #: task was revoked while it waited. None once the task has started.
    accept: Callable[[], bool] | None = None
    received_at: float = field(default_factory=time.time)
    #: The leases that hold its message, and its tag there. None and empty if another transport delivered it.
    leases: Leases | None = None
    tag: str = ""

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
    #: Set if it failed with a retryable error and has tries left.
    is_retried: bool = False
    attempt: int = 0
    #: Whether this worker wrote its running mark.
    is_marked: bool = False
    #: Further deliveries of the same message, which end with this one.
    again: list[Any] = field(default_factory=list)

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
    def queue(self) -> str:
        """The queue that its message came from; empty if that is not readable, as another transport allows."""
        queue = (self.request.delivery_info or {}).get("routing_key")
        return queue if keys.is_readable_id(queue) else ""

    @property
    def retries(self) -> int:
        """Number of tries that ended with a retryable error, as the message says; 0 if it does not say a number."""
        said = number(self.request.request_dict.get("retries"))
        return int(min(max(said or 0, 0), MOST_RETRIES))

    @property
    def has_next(self) -> bool:
        """Whether another task gets its result: a link, the next task of a chain, or the body of a chord."""
        embed = celery_internals.embed_of(self.request)
        return isinstance(embed, dict) and any(embed.get(name) for name in ("callbacks", "chain", "chord"))

    def is_expired(self) -> bool:
        """Whether the task has expired. Celery checks that only when the message arrives."""
        expires = self.request.expires
        return expires is not None and expires < datetime.now(expires.tzinfo)

    def withdraw(self) -> bool:
        """Withdraws the task unless it has begun. Only a message with a lease can go back on its queue."""
        return self.leases is not None and super().withdraw()

    def start(self) -> None:
        """Tells Celery that the task starts, unless it was revoked meanwhile."""
        accept, self.accept = self.accept, None
        if accept is not None and not accept():
            self.is_terminated = True
