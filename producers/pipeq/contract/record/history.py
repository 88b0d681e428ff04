"""The tries of a task, as its record and its mark have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.status import State

#: Earlier tries that a record keeps, the newest ...
HISTORY_MAX = 10
#: ... and most characters of the error's sentence of each.
HISTORY_CHARS = 500
#: Stages in the order in which a task comes to them; the last one in its times is where a try ended. Records of earlier
#: versions call the wait for the device "batch".
_STAGES = ("fetch", "decode", "prepare", "batch", "wait_device", "infer", "deliver")


def attempt(
    worker: object,
    started_at: object,
    ended_at: object,
    error: PipeqError | None = None,
    timing_ms: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Returns one try as the history has it."""
    found = {"worker": worker, "started_at": started_at, "ended_at": ended_at}
    if error is not None:
        found |= {"code": error.code, "message": shown.line(error.message, HISTORY_CHARS)}
    found["stage"] = next((stage for stage in reversed(_STAGES) if stage in (timing_ms or ())), None)
    return {name: value for name, value in found.items() if value is not None}


def with_lost(history: object, more: Sequence[Any]) -> list[Any]:
    """Returns a history with further tries at its end, without the oldest ones beyond the bound."""
    return [*(history if isinstance(history, list) else ()), *more][-HISTORY_MAX:]


def last_attempt(part: Mapping[str, Any], state: State) -> list[dict[str, Any]]:
    """Returns the last try of a task that has ended, if its record has it in its own fields alone; none if not."""
    worker, started_at = part.get("worker"), part.get("started_at")
    if worker is None and started_at is None:
        return []
    error, timing = part.get("error"), part.get("timing_ms")
    history = part.get("history")
    if isinstance(history, list) and history and isinstance(before := history[-1], dict):
        lost = ErrorCode.WORKER_LOST
        if state is State.FAILED and isinstance(error, dict) and error.get("code") == lost == before.get("code"):
            return []  # it failed because of the tries before
        if state in (State.CANCELLED, State.EXPIRED) and any(
            isinstance(one, dict) and (one.get("worker"), one.get("started_at")) == (worker, started_at)
            for one in history
        ):
            return []  # it ended while it waited: these fields are of a try that the history has, before lost ones
    found = attempt(worker, started_at, part.get("finished_at"), None, timing if isinstance(timing, dict) else None)
    if isinstance(error, dict):
        message = error.get("message")
        found |= {"code": error.get("code"), "message": message[:HISTORY_CHARS] if isinstance(message, str) else None}
    elif state in (State.CANCELLED, State.EXPIRED):
        found["code"] = str(state)
    return [found]
