"""WATCHING: a job -> its status, again and again, until it has ended. Used by calls.

The end of a job is published, and wakes it; otherwise it looks now and then, for those who are told how far the job is.
If Redis goes away for a while, for a restart or a fail-over, it looks again when Redis is back.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from redis.exceptions import (
    AuthenticationError,
    ConnectionError,  # noqa: A004
    ResponseError,
    TimeoutError,  # noqa: A004
)

from pipeq.contract.job import JobStatus, job_key
from pipeq.protocol import Hear, Listen, Sleep, Steps
from pipeq.waiting import OUTAGE_S, START_S

#: How often a job is looked at, in seconds: at first, and at most.
LOOK_S, MOST_LOOK_S = 0.05, 1.0


class Watch:
    """Looks at one job.

    Args:
        job_id: the job.
        read: reads its status.
        until: when it is of no use any more, on the monotonic clock; None for never.
    """

    def __init__(self, job_id: str, read: Callable[[], Steps[JobStatus]], until: float | None) -> None:
        self._channels = [job_key(job_id)]
        self._read = read
        self._until = until
        self._may_hear = True
        self._hears = False
        self._pause_s = LOOK_S
        self._began_at = time.monotonic()
        #: When Redis last answered, on the monotonic clock; None before it first did.
        self._answered_at: float | None = None

    def status(self) -> Steps[JobStatus | None]:
        """The job's status; None while Redis is away.

        Raises:
            redis.exceptions.RedisError: Redis does not answer when this begins, or has been away for too long.
        """
        try:
            yield from self._listen()  # before it looks, so that no end is missed in between
            found = yield from self._read()
        except AuthenticationError:
            raise
        except (ConnectionError, TimeoutError):
            self._hears = False
            if self._answered_at is None:
                give_up = self._began_at + START_S
            else:
                give_up = self._answered_at + OUTAGE_S if self._until is None else self._until
            if time.monotonic() >= give_up:
                raise
            return None
        self._answered_at = time.monotonic()
        return found

    def pause(self, *, is_first: bool = False) -> Steps[None]:
        """Waits until the job is to be looked at again: at first soon, then longer from pause to pause."""
        if is_first:
            self._pause_s = LOOK_S
        until = time.monotonic() + self._pause_s
        self._pause_s = min(MOST_LOOK_S, self._pause_s * 1.3)
        if self._until is not None:
            until = min(until, self._until)
        if self._hears:
            try:
                yield Hear(until)
            except (ConnectionError, TimeoutError):
                self._hears = False  # the next look tells whether Redis is away
            else:
                return
        yield Sleep(max(0.0, until - time.monotonic()))

    def _listen(self) -> Steps[None]:
        if self._may_hear and not self._hears:
            try:
                yield Listen(self._channels)
                self._hears = True
            except ResponseError:
                self._may_hear = False  # this user has no right to it: then looking now and then must do
