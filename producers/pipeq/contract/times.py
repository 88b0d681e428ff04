"""TIMES: the parts of a task's life, which add up to it. Used by record, and by the worker, which measures them.

Each moment between ``submitted_at`` and ``finished_at`` belongs to one part. Of the tries of a task only the last one
is told in parts; what was before it is ``delayed``.

Part          From ... until
delayed       its submit; it could be taken for its last try: its delay is over, and so are earlier tries
queued        then; a worker began to work on it
fetch         then; its references are read; this and the next two include the wait for a thread
decode        then; what was read is decoded
prepare       then; all its items are made, or no more of them have room
wait_device   then; a forward pass with one of its items begins, and between two such passes
infer         while such a pass runs, whatever else is done for the task meanwhile
deliver       then; its end is stored

A task without references has no ``fetch`` and no ``decode``. A task that fails has no ``deliver`` unless it fails
there: the part in which it failed lasts until its end.

A client that ends a task (cancel, purge) knows of a worker's part only what the running mark says: see
:func:`of_ended_by_client`. Submit and end may be told by the clocks of two machines; no part is below 0, so if those
clocks differ by more than a task waited, the sum is too large by the rest of that difference.
"""

from __future__ import annotations

from pipeq.contract.reading import number

#: The parts in the order in which a task comes to them.
PARTS = ("delayed", "queued", "fetch", "decode", "prepare", "wait_device", "infer", "deliver")


def waited(submitted_at: float, due_at: float | None, until: float, more_s: float = 0.0) -> dict[str, float]:
    """Returns the milliseconds before a worker began: ``delayed``, if there were any, and ``queued``.

    Args:
        submitted_at: in seconds since the epoch, as the next two.
        due_at: when it could be taken for its last try; None if at once.
        until: when the wait ended.
        more_s: seconds of the wait after that, in its worker.
    """
    due = submitted_at if due_at is None else min(max(due_at, submitted_at), until)
    queued = {"queued": rounded(max(until - due, 0.0) + more_s)}
    return {"delayed": rounded(due - submitted_at), **queued} if due > submitted_at else queued


def of_ended_by_client(
    submitted_at: object, due_at: object, now: float, began_at: object = None, before: object = None
) -> dict[str, float] | None:
    """Returns the parts of a task that a client ends; None if its record does not say when it was submitted.

    Args:
        submitted_at: in seconds since the epoch, as the next three, and as its record has it: of any type.
        due_at: as that of :func:`waited`.
        now: when the client ends it.
        began_at: when its first batch began, if it runs, as its mark has it. All that is after that counts as
            ``infer``.
        before: what the mark says of the time before that: milliseconds of ``prepare``, which here includes ``fetch``
            and ``decode``, and of ``wait_device``.
    """
    if (submitted := number(submitted_at)) is None:
        return None
    due, began = number(due_at), number(began_at)
    if began is None:
        return waited(submitted, due, now)
    times = waited(submitted, due, began)
    for name in ("prepare", "wait_device"):
        known = number(before.get(name)) if isinstance(before, dict) else None
        if known is not None and 0 < known <= times["queued"]:
            times[name], times["queued"] = known, round(times["queued"] - known, 3)
    return {**times, "infer": rounded(max(now - began, 0.0))}


def rounded(seconds: float) -> float:
    """Seconds -> milliseconds, with three digits."""
    return round(seconds * 1000, 3)
