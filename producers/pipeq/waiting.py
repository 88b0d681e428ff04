"""WAIT: ids of tasks -> their statuses as they end. Redis' publishes wake it, so it does not poll.

If Redis goes away for a while, for a restart or a fail-over, the wait goes on until its time is over.
"""

from __future__ import annotations

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
from pipeq.protocol import Give, Hear, Listen, Sleep, Steps, Stream

#: Interval at which statuses are read again, in seconds, because a publish may be lost with a connection.
RECHECK_S = 5.0
#: Interval of the tries while Redis is away, in seconds ...
_TRY_AGAIN_S = 0.5
#: ... and time after which a wait without a time limit gives up, in seconds.
OUTAGE_S = 300.0
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
        self._pending = dict.fromkeys(task_ids)
        self._total = len(self._pending)
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        #: When Redis last answered, on the monotonic clock; None before it first did.
        self._answered_at: float | None = None

    def ended(self) -> Stream[TaskStatus]:
        """Hands out each status when its task has ended.

        Raises:
            WaitTimeoutError: some tasks did not end in time.
            redis.exceptions.RedisError: Redis did not answer at the beginning of the wait, or has been away for too
                long.
        """
        while self._pending:
            try:
                yield from self._ended_while_connected()
            except AuthenticationError:
                raise
            except (ConnectionError, TimeoutError):
                if self._answered_at is None:
                    raise
                until = self._deadline if self._deadline is not None else self._answered_at + OUTAGE_S
                if (left := until - time.monotonic()) <= 0:
                    raise
                yield Sleep(min(_TRY_AGAIN_S, left))
        return None

    def _ended_while_connected(self) -> Stream[TaskStatus]:
        channels = [keys.record_key(task_id) for task_id in self._pending]
        for start in range(0, len(channels), _CHANNELS_PER_CALL):
            yield Listen(channels[start : start + _CHANNELS_PER_CALL])
        while self._pending:
            # Read after subscribing, so that no end is missed in between.
            wake_at = time.monotonic() + RECHECK_S
            for status in (yield from self._status_many(list(self._pending))):
                if status.is_final:
                    del self._pending[status.id]
                    yield Give(status)
                elif status.expires_at is not None:
                    # While no worker runs, an expiry is not published.
                    wake_at = min(wake_at, time.monotonic() + max(status.expires_at - time.time(), 0) + 0.01)
            self._answered_at = time.monotonic()
            yield from self._published(wake_at)
            if self._pending and self._deadline is not None and time.monotonic() >= self._deadline:
                raise self._timed_out()
        return None

    def _published(self, wake_at: float) -> Stream[TaskStatus]:
        """Hands out published statuses of pending tasks until ``wake_at``, or until the wait's own end."""
        until = wake_at if self._deadline is None else min(wake_at, self._deadline)
        while self._pending and until > time.monotonic():
            for channel, data in (yield Hear(until)):
                task_id = channel.removeprefix(keys.record_key(""))
                status = record.read(task_id, data)
                if status.is_final and task_id in self._pending:
                    del self._pending[task_id]
                    yield Give(status)
        return None

    def _timed_out(self) -> WaitTimeoutError:
        left, first = len(self._pending), shown.line(next(iter(self._pending)))
        return WaitTimeoutError(
            f"{left} of {self._total} tasks had not ended after {self._timeout_s} s, for instance {first}",
        )
