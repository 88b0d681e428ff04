"""PART: a delivery -> what pipeq adds to its task's record: the status, without the result."""

from __future__ import annotations

import time
from typing import Any

from pipeq.contract.record import Before, Part, attempt, with_lost

from pipeq_worker.delivery.delivery import Delivery
from pipeq_worker.observe.failures import recorded


def part_of(delivery: Delivery, *, retrying: bool = False) -> Part:
    """Returns the part of the task's record; ``retrying`` if it waits for its next try instead of having ended."""
    now, before, pipeline = time.time(), delivery.before or Before(), delivery.pipeline
    return Part(
        pipeline=delivery.lane,
        submitted_at=before.submitted_at,
        expires_at=before.expires_at,
        message_sha256=before.message_sha256,
        started_at=delivery.started_at,
        finished_at=None if retrying else now,
        attempts=delivery.attempts,
        worker=delivery.request.hostname,
        timing_ms=timing_of(delivery),
        batch=delivery.batch,
        model=pipeline.model if pipeline else None,
        result_uri=delivery.result_uri,
        error=None if delivery.error is None else recorded(delivery.error),
        history=_history(delivery, before, now if retrying else None),
    )


def _history(delivery: Delivery, before: Before, ended_at: float | None) -> list[Any] | None:
    """The tries before this one, and this one if it ended without an end of the task; None if there is none."""
    if not (before.history or delivery.lost or ended_at):
        return None
    this = attempt(delivery.request.hostname, delivery.started_at, ended_at, delivery.error, delivery.timing_ms)
    return with_lost(before.history, [*delivery.lost, *([this] if ended_at else [])])


def timing_of(delivery: Delivery) -> dict[str, float]:
    """Returns the milliseconds in each stage, and first those in the queue, if its producer said when it submitted."""
    submitted_at = delivery.before.submitted_at if delivery.before is not None else None
    queue = {"queue": round((delivery.received_at - submitted_at) * 1000, 3)} if submitted_at else {}
    return {**queue, **delivery.timing_ms}
