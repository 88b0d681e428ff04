"""ENDING: a job whose rows have all ended -> its last state. Used by store, and by whoever cancels packs.

Mostly finish.lua does this, with the last row. But a client may cancel the last row, or say that there are no more of
them when all have ended. It may also die before that, so everybody who looks at such a job ends it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from redis.exceptions import WatchError

from pipeq.contract import job
from pipeq.contract.errors import ErrorCode
from pipeq.contract.job import JobState, JobStatus
from pipeq.protocol import Command, Send, Session, Steps, pairs, single, transaction, twice


def status_of(job_id: str) -> Steps[JobStatus | None]:
    """What is known of a job; None if there is none."""
    return job.read(job_id, dict(pairs((yield from single("HGETALL", job.job_key(job_id))))))


def is_done(status: JobStatus) -> bool:
    """Whether a job could end: all of its rows are submitted, and have ended."""
    is_open = status.state in (JobState.VALIDATING, JobState.IN_PROGRESS, JobState.CANCELLING)
    return is_open and status.is_sealed and status.done >= status.submitted


def end_if_done(job_id: str, *, is_stopped: bool = False) -> Steps[None]:
    """Ends a job whose rows have all ended, as ``end_job`` of ``pipeq/contract/job.lua`` does.

    Args:
        job_id: the job.
        is_stopped: whether none of its rows goes on, whatever the counts say: somebody may have removed its keys.
    """
    while not (yield from twice(lambda: _session(_end_if_done(job_id, is_stopped)))):
        pass


def _session(steps: Steps[bool]) -> Steps[bool]:
    found: bool = yield Session(steps)
    return found


def _end_if_done(job_id: str, is_stopped: bool) -> Steps[bool]:
    key, now = job.job_key(job_id), time.time()
    yield from single("WATCH", key)
    status = yield from status_of(job_id)
    if status is None or not (is_done(status) or (is_stopped and status.state is JobState.CANCELLING)):
        yield from single("UNWATCH")
        return True
    (stop,) = yield from single("HMGET", key, "stop")
    has_expired = str(ErrorCode.EXPIRED) in status.codes
    last = stop or str(JobState.EXPIRED if has_expired else JobState.COMPLETED)
    if status.results is None:
        commands = [hset(key, {"state": last, "ended_at": now}), ("SREM", job.OPEN, job_id)]
    else:
        about = {"state": str(JobState.FINALIZING), "then": last, "rows_ended_at": now}
        commands = [hset(key, about), ("SADD", job.FINAL, job_id)]
    try:
        yield from all_done([*commands, ("EXPIRE", key, job.TTL_S)])
    except WatchError:
        return False
    yield said_ended(job_id)
    return True


def said_ended(job_id: str) -> Send:
    """Wakes those who wait for a job. A user without this channel is refused, and they find out a little later."""
    return Send((("PUBLISH", job.job_key(job_id), "ended"),))


def hset(key: str, fields: Mapping[str, Any]) -> Command:
    """The command that sets these fields of a hash."""
    return ("HSET", key, *(part for pair in fields.items() for part in pair))


def all_done(commands: Sequence[Command]) -> Steps[None]:
    """Executes commands together; raises the first error of one of them."""
    for reply in (yield from transaction(commands)):
        if isinstance(reply, Exception):
            raise reply
