"""PART: a delivery -> what pipeq adds to its task's record: the status, without the result."""

from __future__ import annotations

import time
from typing import Any

from pipeq.contract.errors import Blame
from pipeq.contract.record import Before, Part, attempt, with_lost

from pipeq_worker.delivery.delivery import Delivery
from pipeq_worker.delivery.times import submitted_at, times_of
from pipeq_worker.observe.failures import recorded


def part_of(delivery: Delivery, *, next_try_at: float | None = None) -> Part:
    """Returns the part of the task's record, and notes the times in it.

    Args:
        delivery: the task.
        next_try_at: if it has not ended but waits for its next try: until when, in seconds since the epoch.
    """
    now, before, pipeline = time.time(), delivery.before or Before(), delivery.pipeline
    retrying, delivery.told_ms = next_try_at is not None, times_of(delivery, now)
    return Part(
        pipeline=delivery.lane,
        submitted_at=submitted_at(delivery),
        due_at=next_try_at or before.due_at,
        expires_at=before.expires_at,
        message_sha256=before.message_sha256,
        started_at=delivery.started_at,
        finished_at=None if retrying else now,
        attempts=delivery.attempts,
        worker=delivery.request.hostname,
        timing_ms=delivery.told_ms,
        batch=delivery.batch,
        model=pipeline.model if pipeline else None,
        result_uri=delivery.result_uri,
        error=None if delivery.error is None else recorded(delivery.error),
        history=_history(delivery, before, now if retrying else None),
    )


def _history(delivery: Delivery, before: Before, ended_at: float | None) -> list[Any] | None:
    """The tries before this one, and this one if it ended without an end of the task; None if there is none."""
    blame = Blame.TASK if delivery.error is None else delivery.error.blame
    if ended_at and blame is Blame.NOT_TRIED:
        ended_at = None  # it was none of its tries
    if not (before.history or delivery.lost or ended_at):
        return None
    this = attempt(delivery.request.hostname, delivery.started_at, ended_at, delivery.error, delivery.told_ms)
    # The last one of those is told with the task's own end.
    lost = delivery.lost[:-1] if delivery.is_ended_by_death else delivery.lost
    history = before.history or []
    is_again = blame is not Blame.TASK and ended_at and not lost
    if is_again and history and _is_alike(history[-1], this):
        # A worker that could not do it once more; what happened before must not be pushed out.
        history = history[:-1]
    return with_lost(history, [*lost, *([this] if ended_at else [])])


def _is_alike(one: Any, this: dict[str, Any]) -> bool:
    return isinstance(one, dict) and all(one.get(name) == this.get(name) for name in ("worker", "code", "message"))
