"""TIMES: what a delivery knows of its task's times -> the parts of its life, which add up to it. For part and marks.

A child tells the parts from when it began to work on the task until it was done. Here come what was before and after
that. Of a task that no child has ended (its process died, it was dropped, Redis is told that it begins), the host
knows when a child got it, when its first item was ready, and when its first batch began; it cannot tell fetching and
decoding from preparing.
"""

from __future__ import annotations

from pipeq.contract.times import rounded, waited

from pipeq_worker.delivery.delivery import Delivery


def times_of(delivery: Delivery, ended_at: float) -> dict[str, float]:
    """Returns the milliseconds of each part, in their order.

    Without a ``submitted_at`` (most stock Celery producers say none), what was before the work is not among them.

    Args:
        delivery: the task.
        ended_at: in seconds since the epoch.
    """
    now = delivery.arrived + ended_at - delivery.received_at  # by the monotonic clock
    if delivery.began is not None:
        begin, worked = delivery.began, dict(delivery.timing_ms)
    else:
        begin, worked = _seen(delivery, now)
    times = {**_before(delivery, begin), **worked}
    left = rounded(now - begin) - sum(worked.values())
    # What fails is not delivered: the part in which it failed lasts until its end.
    last = "deliver" if delivery.error is None else next(reversed(times), "")
    if last and left > 0:
        times[last] = round(times.get(last, 0.0) + left, 3)
    elif left < 0 and "queued" in times:
        # Its two clocks were read a moment apart, so that this moment counted twice.
        times["queued"] = max(round(times["queued"] + left, 3), 0.0)
    return times


def submitted_at(delivery: Delivery) -> float | None:
    """When a task was submitted: its record has it if a client wrote that, otherwise its message may."""
    recorded = delivery.before.submitted_at if delivery.before is not None else None
    return delivery.sent_at if recorded is None else recorded


def before_batch(delivery: Delivery, now: float) -> dict[str, float]:
    """Returns the milliseconds from when a child got a task until its first batch begins now (monotonic clock)."""
    if delivery.given_at is None:
        return {}
    ready = delivery.ready_at or now
    return {"prepare": rounded(ready - delivery.given_at), "wait_device": rounded(now - ready)}


def _before(delivery: Delivery, begin: float) -> dict[str, float]:
    if (since := submitted_at(delivery)) is None:
        return {}
    received_at, arrived = delivery.received_at, delivery.arrived
    if (until := delivery.tried_until) is not None:
        over_at = received_at + until - arrived
        return waited(since, over_at, over_at, begin - until)
    # When the message of a worker that died came back on its queue is not known, but when it was taken again.
    due_at = delivery.before.due_at if delivery.before is not None else None
    if delivery.was_lost:
        due_at = received_at
    return waited(since, due_at, received_at, begin - arrived)


def _seen(delivery: Delivery, now: float) -> tuple[float, dict[str, float]]:
    """When a child got the task, and the parts from then on, as far as the host has seen them."""
    given = delivery.given_at
    if given is None:
        return now, {}
    over = delivery.over_at
    end = over if over is not None and over >= given else now
    started_at = delivery.started_at or delivery.last_started_at
    begun = None if started_at is None else delivery.arrived + started_at - delivery.received_at
    if begun is None or not given <= begun <= end:
        times = before_batch(delivery, end)
        if delivery.ready_at is None:
            del times["wait_device"]
        return given, times
    return given, {**before_batch(delivery, begun), "infer": rounded(end - begun)}
