"""KEEPING: what is left to do for a job when nobody submits to it: its files, its expiry, packs that are gone.

    finalize   all rows have ended: writes the files of results and errors, and ends the job
    expire     its time is over: ends the rows that have not ended
    recover    nothing has happened for a while: ends packs whose message is not in Redis any more

Workers find out what is due, and run this module as a process of its own, ``python -m pipeq.jobs STEP JOB
TOKEN``, so that a worker's host neither holds outcomes nor writes files. Clients that wait for a job take the same
steps. Whoever does so has a claim, which lasts for some seconds and is renewed; if it dies, another one begins anew.
Files appear when they are whole, and two that write the same file write the same rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from redis.exceptions import WatchError

from pipeq import cancelling
from pipeq.contract import job
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.job import JobState
from pipeq.envelope import new_id
from pipeq.jobs import store
from pipeq.jobs.ending import all_done, end_if_done, hset, said_ended, status_of
from pipeq.jobs.files import Asked, OutcomeFiles
from pipeq.jobs.outcomes import Read, as_completed, outcomes
from pipeq.protocol import Give, Run, Session, Sleep, Steps, Stream, single, twice

#: How often a claim is renewed, in seconds.
RENEW_S = job.CLAIM_S / 4
#: Tries to write the files of a job; after them it has failed, and its outcomes are in Redis.
TRIES = 5
#: Packs that are ended in one step, and how often those that have not ended are read: a worker sends rows on alone
#: meanwhile, but only once.
CHUNK, PASSES = 500, 5
#: How often the places are searched where a message may be, and what lies between, in seconds. A message that moves
#: while they are read may be passed over once.
SEARCHES, BETWEEN_S = 3, 1.0


class ClaimLostError(Exception):
    """Somebody else does it."""


class Claim:
    """The right to do what is left of a job.

    Args:
        job_id: the job.
        token: of one who has it already; None to take it.
    """

    def __init__(self, job_id: str, token: str | None = None) -> None:
        self._key = job.claim_key(job_id)
        self._token = token or new_id()
        self._is_given = token is not None
        self._renewed_at = 0.0

    def take(self) -> Steps[bool]:
        """Takes it, if nobody has it."""
        if self._is_given:
            return (yield from self._is_ours())
        self._renewed_at = time.monotonic()
        return bool((yield from single("SET", self._key, self._token, "NX", "EX", job.CLAIM_S)))

    def renew(self) -> Steps[None]:
        """Renews it, if it is time to.

        Raises:
            ClaimLostError: somebody else has it now.
        """
        if (now := time.monotonic()) - self._renewed_at < RENEW_S:
            return
        if not (yield from self._is_ours()):
            raise ClaimLostError
        yield from single("SET", self._key, self._token, "EX", job.CLAIM_S)
        self._renewed_at = now

    def give_back(self, after_s: float = 0.001) -> Steps[None]:
        """Lets others have it, after a time."""
        if (yield from self._is_ours()):
            yield from single("SET", self._key, self._token, "PX", max(1, int(after_s * 1000)))

    def _is_ours(self) -> Steps[bool]:
        found = yield from single("GET", self._key)
        return found is not None and found.decode("utf-8", "replace") == self._token


def filled(
    stream: Stream[list[dict[str, Any]]], files: OutcomeFiles, between: Callable[[], Steps[None]] | None = None
) -> Steps[None]:
    """Writes what a stream hands out to files.

    Args:
        stream: hands out outcomes.
        files: open.
        between: steps that are taken now and then.
    """
    answer, error = None, None
    while True:
        try:
            ask = stream.send(answer) if error is None else stream.throw(error)
        except StopIteration:
            return
        answer, error = None, None
        try:
            answer = yield Run(partial(files.write, ask.value)) if isinstance(ask, Give) else ask
        except Exception as raised:
            error = raised
        if between is not None and isinstance(ask, Give):
            yield from between()


def finalize(job_id: str, read: Read, token: str | None = None) -> Steps[bool]:
    """Writes the files of a job whose rows have all ended. Returns whether it did.

    Args:
        job_id: the job.
        read: reads the JSON of an object in the workers' store.
        token: of the claim, if somebody has taken it for this.

    Raises:
        PipeqError: they cannot be written; the job has failed if this was the last try.
    """
    claim = Claim(job_id, token)
    if not (yield from claim.take()):
        return False
    status = yield from status_of(job_id)
    if status is None or status.state is not JobState.FINALIZING or status.results is None:
        yield from single("SREM", job.FINAL, job_id)
        yield from claim.give_back()
        return False
    stream = as_completed(job_id, read) if status.order == "completed" else outcomes(job_id, read)
    try:
        asked = yield from store.columns_of(job_id)
        with OutcomeFiles(status.results, status.errors, None if asked is None else Asked(*asked)) as files:
            yield from filled(stream, files, claim.renew)
            yield from claim.renew()
    except ClaimLostError:
        return False
    except PipeqError as error:
        tries = yield from single("HINCRBY", job.job_key(job_id), "final_tries", 1)
        if tries >= TRIES or error.code == ErrorCode.INPUT_FORBIDDEN:
            yield from _close(job_id, str(JobState.FAILED), error.message)
        yield from claim.give_back(2.0**tries)
        raise
    yield from _close(job_id)
    yield from claim.give_back()
    return True


def _close(job_id: str, state: str | None = None, error: str = "") -> Steps[None]:
    """Ends a job whose files are there, or cannot be written."""
    while not (yield from twice(lambda: _session(_closed(job_id, state, error)))):
        pass
    yield said_ended(job_id)


def _session(steps: Steps[bool]) -> Steps[bool]:
    found: bool = yield Session(steps)
    return found


def _closed(job_id: str, state: str | None, error: str) -> Steps[bool]:
    key = job.job_key(job_id)
    yield from single("WATCH", key)
    is_in, then = yield from single("HMGET", key, "state", "then")
    if is_in != str(JobState.FINALIZING).encode():
        yield from single("UNWATCH")
        return True
    about = {"state": state or then or str(JobState.COMPLETED), "ended_at": time.time()}
    if error:
        about["error"] = error
    try:
        yield from all_done(
            [
                hset(key, about),
                ("EXPIRE", key, job.TTL_S),
                ("SREM", job.OPEN, job_id),
                ("SREM", job.FINAL, job_id),
            ]
        )
    except WatchError:
        return False
    return True


def stop(job_id: str, state: JobState, code: ErrorCode) -> Steps[None]:
    """Ends the rows of a job that have not ended, and the job in this state."""
    yield from store.stop(job_id, state)
    for _ in range(PASSES):
        if not (fields := (yield from store.open_fields(job_id))):
            break
        yield from _end(job_id, fields, code)
    yield from end_if_done(job_id, is_stopped=True)


def _end(job_id: str, fields: list[str], code: ErrorCode) -> Steps[None]:
    for start in range(0, len(fields), CHUNK):
        packs = [f"{job_id}-{name}" for name in fields[start : start + CHUNK]]
        # Rows that were sent on alone have no record before they begin.
        yield from cancelling.cancel(packs, force=True, reason=code)


def expire(job_id: str) -> Steps[bool]:
    """Ends a job whose time is over. Returns whether it was."""
    status = yield from status_of(job_id)
    if status is None or status.state.is_final or status.state is JobState.FINALIZING:
        return False
    if status.expires_at is None or status.expires_at > time.time():
        return False
    yield from stop(job_id, JobState.EXPIRED, ErrorCode.EXPIRED)
    return True


def recover(job_id: str) -> Steps[int]:
    """Ends the packs of a job whose messages somebody has removed from Redis. Returns how many there were.

    Needs the rights of a worker: it reads the messages that workers hold.
    """
    before = yield from status_of(job_id)
    if before is None or before.state.is_final:
        return 0
    lost = set((yield from store.open_fields(job_id)))
    for search in range(SEARCHES):
        if search:
            yield Sleep(BETWEEN_S)
        # A set: a million messages may wait there, and thousands of packs be open.
        found = set((yield from cancelling.ids_of(before.pipeline)))
        lost = {name for name in lost if f"{job_id}-{name}" not in found}
        still = set((yield from store.open_fields(job_id)))
        lost &= still
    status = yield from status_of(job_id)
    if status is not None:
        yield from store.set_fields(job_id, searched_at=time.time())
    if not lost or status is None or status.last_at != before.last_at:
        return 0  # something has happened meanwhile
    yield from _end(job_id, sorted(lost), ErrorCode.WORKER_LOST)
    return len(lost)
