"""WAIT: ids of tasks -> their statuses as they end. Redis' publishes wake it, so it does not poll.

If Redis goes away for a while, for a restart or a fail-over, the wait goes on until its time is over.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

from redis.exceptions import (
    AuthenticationError,
    ConnectionError,  # noqa: A004
    TimeoutError,  # noqa: A004
)

from pipeq.contract import keys, record, shown
from pipeq.contract.errors import WaitTimeoutError
from pipeq.contract.status import TaskStatus
from pipeq.protocol import Give, Hear, Listen, Sleep, Steps, Stream, Unlisten

#: Interval at which statuses are read again, in seconds, because a publish may be lost with a connection.
RECHECK_S = 5.0
#: Interval of the tries while Redis is away, in seconds ...
_TRY_AGAIN_S = 0.5
#: ... and time after which a wait without a time limit gives up, in seconds.
OUTAGE_S = 300.0
#: The same for a Redis that has not answered this wait yet: it may have been started a moment ago, or not be there.
START_S = 3.0
#: Channels that are subscribed to before Redis has confirmed them; it holds no more than its buffer takes.
_CHANNELS_PER_CALL = 5000


class Wait:
    """One wait for several tasks."""

    def __init__(
        self,
        status_many: Callable[[Iterable[str]], Steps[list[TaskStatus]]],
        task_ids: Iterable[str],
        timeout_s: float | None,
    ) -> None:
        self._status_many = status_many
        self._pending: dict[str, None] = {}
        self._total = 0
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._began_at = time.monotonic()
        #: Pending tasks whose channels are subscribed to.
        self._heard: set[str] = set()
        #: When the statuses of all are read again, on the monotonic clock.
        self._look_at = 0.0
        #: When Redis last answered, on the monotonic clock; None before it first did.
        self._answered_at: float | None = None
        self.add(task_ids)

    def add(self, task_ids: Iterable[str]) -> None:
        """Waits for more tasks."""
        before = len(self._pending)
        self._pending.update(dict.fromkeys(task_ids))
        self._total += len(self._pending) - before

    def ended(self) -> Stream[TaskStatus]:
        """Hands out each status when its task has ended.

        Raises:
            WaitTimeoutError: some tasks did not end in time.
            redis.exceptions.RedisError: Redis does not answer when the wait begins, or has been away for too long.
        """
        while self._pending:
            for status in (yield from self.some()):
                yield Give(status)
        return None

    def some(self, wait_s: float | None = None) -> Steps[list[TaskStatus]]:
        """Waits until at least one more task has ended, or for some seconds. Returns the statuses of those.

        Raises:
            WaitTimeoutError: see :meth:`ended`.
            redis.exceptions.RedisError: see there.
        """
        give_up = None if wait_s is None else time.monotonic() + wait_s
        while True:
            try:
                return (yield from self._some(give_up))
            except AuthenticationError:
                raise
            except (ConnectionError, TimeoutError):
                self._heard.clear()
                if self._answered_at is None:
                    until = min(self._began_at + START_S, self._deadline or math.inf)
                else:
                    until = self._deadline if self._deadline is not None else self._answered_at + OUTAGE_S
                if (left := until - time.monotonic()) <= 0:
                    raise
                yield Sleep(min(_TRY_AGAIN_S, left))

    def _some(self, give_up: float | None) -> Steps[list[TaskStatus]]:
        new = [task_id for task_id in self._pending if task_id not in self._heard] if self._is_behind else []
        for start in range(0, len(new), _CHANNELS_PER_CALL):
            some = new[start : start + _CHANNELS_PER_CALL]
            yield Listen([keys.record_key(task_id) for task_id in some])
            self._heard.update(some)
        # Read after subscribing, so that no end is missed in between.
        found = (yield from self._read(new)) if new else []
        while self._pending and not found:
            now = time.monotonic()
            if now >= self._look_at:
                self._look_at = now + RECHECK_S
                if found := (yield from self._read(list(self._pending))):
                    break
            if self._deadline is not None and time.monotonic() >= self._deadline:
                raise self._timed_out()
            if give_up is not None and time.monotonic() >= give_up:
                break
            until = min(time_at for time_at in (self._look_at, self._deadline, give_up) if time_at is not None)
            heard = yield Hear(until)
            found = self._final(record.read(channel.removeprefix(keys.record_key("")), data) for channel, data in heard)
        if found:
            yield Unlisten([keys.record_key(status.id) for status in found])
        return found

    @property
    def _is_behind(self) -> bool:
        return len(self._heard) < len(self._pending)

    def _read(self, ids: list[str]) -> Steps[list[TaskStatus]]:
        statuses = yield from self._status_many(ids)
        self._answered_at = now = time.monotonic()
        if len(ids) == len(self._pending):
            self._look_at = now + RECHECK_S
        for status in statuses:
            if not status.is_final and status.expires_at is not None:
                # While no worker runs, an expiry is not published.
                self._look_at = min(self._look_at, now + max(status.expires_at - time.time(), 0) + 0.01)
        return self._final(statuses)

    def _final(self, statuses: Iterable[TaskStatus]) -> list[TaskStatus]:
        """Those that have ended, which are waited for no more."""
        found = []
        for status in statuses:
            if status.is_final and status.id in self._pending:
                del self._pending[status.id]
                self._heard.discard(status.id)
                found.append(status)
        return found

    def _timed_out(self) -> WaitTimeoutError:
        left, first = len(self._pending), shown.line(next(iter(self._pending)))
        return WaitTimeoutError(
            f"{left} of {self._total} tasks had not ended after {self._timeout_s} s, for instance {first}",
        )
