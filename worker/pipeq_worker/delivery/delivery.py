"""A task with a message: what Celery and the leases know it by, what its record says, and how it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pipeq.contract import keys
from pipeq.contract.reading import number
from pipeq.contract.record import Before

from pipeq_worker.leases import celery_internals
from pipeq_worker.leases.leases import Leases
from pipeq_worker.stages.task import Task

#: More than anybody tries, and small enough for every counter.
MOST_RETRIES = 1_000_000


@dataclass(eq=False, kw_only=True)
class Delivery(Task):
    """One delivery of a task to this worker, from its reservation to its acknowledgement."""

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

    #: What the task's caller reads: the pipeline's output, or where it was written.
    result: Any = None
    result_uri: str | None = None
    #: What the next task of a chain and the body of a chord get in its place, where it speaks of objects in the store.
    handed_on: Any = None
    #: What the task's record says before this worker changes it; None until it was looked up.
    before: Before | None = None
    #: Set when the record says that the task has ended already: cancelled, or finished by another worker.
    is_over: bool = False
    #: Set when its lease is gone: another worker has its message, or will.
    is_lost: bool = False
    #: Set by ``revoke(terminate=True)``.
    is_terminated: bool = False
    #: Set when what it failed with passes, and it has tries left.
    is_retried: bool = False
    attempt: int = 0
    #: Whether its running mark is ours.
    is_marked: bool = False
    #: Further deliveries of the same message, which end with this one.
    again: list[Any] = field(default_factory=list)

    @property
    def is_dropped(self) -> bool:
        """Whether its result is of no use any more: it has ended, or another worker has its message."""
        return self.is_over or self.is_lost or self.is_terminated

    @property
    def queue(self) -> str:
        """The queue its message came from; empty where another transport than ours lets the message say nonsense."""
        queue = (self.request.delivery_info or {}).get("routing_key")
        return queue if keys.is_readable_id(queue) else ""

    @property
    def retries(self) -> int:
        """Tries that ended in a passing fault; what the message says, as far as that is a number of tries."""
        said = number(self.request.request_dict.get("retries"))
        return int(min(max(said or 0, 0), MOST_RETRIES))

    @property
    def has_next(self) -> bool:
        """Whether its result goes to another task: a link, the rest of a chain, a chord."""
        embed = celery_internals.embed_of(self.request)
        return isinstance(embed, dict) and any(embed.get(name) for name in ("callbacks", "chain", "chord"))

    def is_expired(self) -> bool:
        """Whether the task's expiry has passed. Celery looks only when the message arrives."""
        expires = self.request.expires
        return expires is not None and expires < datetime.now(expires.tzinfo)

    def withdraw(self) -> bool:
        """Takes it back, unless it has begun. Only what has a lease can go back on its queue."""
        return self.leases is not None and super().withdraw()

    def start(self) -> None:
        """Its batch begins, unless it was revoked meanwhile."""
        accept, self.accept = self.accept, None
        if accept is not None and not accept():
            self.is_terminated = True
