"""Reads a record and a mark: as a status, or what is needed before the record is changed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pipeq.contract import keys, shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.reading import UnreadableError, json_object, number, readable, readable_object
from pipeq.contract.record.fields import ENDED, lost_of, part_of
from pipeq.contract.record.history import attempt, last_attempt, with_lost
from pipeq.contract.status import CELERY_STATES, LATEST_S, Attempt, ErrorInfo, State, TaskStatus

_STATES = {word: state for state, word in CELERY_STATES.items() if state is not State.EXPIRED}


@dataclass(frozen=True, slots=True)
class Before:
    """The fields of an existing record that are needed before it is changed."""

    #: Whether the task has ended; its record then does not change.
    has_ended: bool = False
    #: As in :class:`Part`.
    submitted_at: float | None = None
    due_at: float | None = None
    expires_at: float | None = None
    message_sha256: str | None = None
    pipeline: str | None = None
    history: list[Any] | None = None

    @classmethod
    def read(cls, reply: object) -> Before:
        """Reads a reply of Redis. An error (the key does not hold a string) and an invalid record give an empty one."""
        fields = json_object(reply) if isinstance(reply, bytes | str) else None
        if fields is None:
            return _NOTHING
        status, part = fields.get("status"), part_of(fields)
        sha256, pipeline = part.get("message_sha256"), part.get("pipeline")
        return cls(
            isinstance(status, str) and status in ENDED,
            _moment(part.get("submitted_at")),
            _moment(part.get("due_at")),
            _moment(part.get("expires_at")),
            sha256 if isinstance(sha256, str) else None,
            pipeline if isinstance(pipeline, str) else None,
            history if isinstance(history := part.get("history"), list) else None,
        )


_NOTHING = Before()


def _moment(value: object) -> float | None:
    found = number(value)
    return found if found is not None and 0 <= found < LATEST_S else None


def read(
    task_id: str, record: bytes | str | None, mark: bytes | str | None = None, *, now: float | None = None
) -> TaskStatus:
    """Returns the status of a task, for any text that Redis holds under its id.

    A record that cannot be read gives ``unknown``, or ``running`` if a mark says so, and the error
    ``invalid_record``. Fields of a wrong type are left out.

    Args:
        task_id: the task's id.
        record: the bytes under ``celery-task-meta-<id>``; None if there are none.
        mark: the bytes of the task's field in ``pipeq:running``; None if there are none. Read it before the
            record, so that a task that ends in between is seen to have ended.
        now: seconds since the epoch. A queued task past its expiry reads ``expired`` even if no worker runs.
    """
    running = running_of(mark)
    if record is None:
        return _of_what_fits({"id": task_id, "state": State.UNKNOWN} | running)[0]
    try:
        fields = readable(record)
    except UnreadableError as error:
        return _unreadable(task_id, str(error), running)
    if not isinstance(fields, dict):
        return _unreadable(task_id, "it is no JSON object", running)
    if not isinstance(fields.get("status"), str):
        return _unreadable(task_id, "its `status` is no text", running)
    return _status(task_id, fields, running, time.time() if now is None else now)


def _status(task_id: str, record: dict[str, Any], running: dict[str, Any], now: float) -> TaskStatus:
    part = part_of(record)
    # Celery's other states (PENDING, RECEIVED) mean that a task waits.
    state: State = _STATES.get(record["status"], State.QUEUED)
    if state is State.CANCELLED and revoked_reason(record) == "expired":
        state = State.EXPIRED
    fields = {name: part[name] for name in TaskStatus.model_fields if name in part}
    fields |= {"id": task_id, "state": state}
    if state.is_final:
        fields["history"] = _attempts(part.get("history"), last_attempt(part, state))
    if state is State.SUCCEEDED:
        if part.get("result_uri") is None:
            fields["result"] = record.get("result")
    elif state is State.FAILED:
        fields["error"] = part.get("error") or _foreign_error(record)
    elif not state.is_final:
        fields |= running
        fields["history"] = _attempts(part.get("history"), running.get("history", ()))
    status, dropped = _of_what_fits(fields)
    if state is State.SUCCEEDED and dropped & {"result", "result_uri"}:
        return _unreadable(task_id, f"its {' and '.join(sorted(dropped))} cannot be read", {})
    if state is State.FAILED and status.error is None:
        # The failure itself is certain.
        return status.model_copy(update={"error": _invalid(task_id, "what it says of the error cannot be read")})
    # Only a number that was checked can be compared.
    if status.state is State.QUEUED and (status.expires_at or float("inf")) < now:
        return status.model_copy(update={"state": State.EXPIRED})
    return status


def _of_what_fits(fields: dict[str, Any]) -> tuple[TaskStatus, set[str]]:
    """Returns the status without the fields of a wrong type, and the names of these fields."""
    try:
        return TaskStatus(**fields), set()
    except PipeqError as error:
        cause = error.__cause__
    found = cause.errors(include_url=False, include_input=False) if isinstance(cause, ValidationError) else []
    wrong = {str(item["loc"][0]) for item in found}
    return TaskStatus(**{name: value for name, value in fields.items() if name not in wrong}), wrong


def running_of(mark: bytes | str | None) -> dict[str, Any]:
    """Returns the fields of a status that a mark replaces while a task runs; none if the mark names no worker."""
    fields = readable_object(mark) or {}
    worker = fields.get("worker")
    if not isinstance(worker, str) or not worker:
        # It went back on its queue after deaths: the tries that ended so count.
        return {"history": lost, "attempts": fields.get("attempt", 1)} if (lost := lost_of(mark)) else {}
    return {
        "state": State.RUNNING,
        "worker": worker,
        "attempts": fields.get("attempt", 1),
        "started_at": fields.get("since"),
        "progress": fields.get("progress"),
        "history": [*lost_of(mark), attempt(worker, fields.get("since"), None)],
    }


def _attempts(earlier: object, last: Sequence[Any]) -> list[Attempt]:
    """Returns the tries that can be read."""
    found = []
    for one in with_lost(earlier, ()) + list(last):
        try:
            found.append(Attempt(**one))
        except (ValidationError, TypeError):
            continue
    return found


def _unreadable(task_id: str, why: str, running: dict[str, Any]) -> TaskStatus:
    return _of_what_fits({"id": task_id, "state": State.UNKNOWN, "error": _invalid(task_id, why)} | running)[0]


def _invalid(task_id: str, why: str) -> ErrorInfo:
    key = keys.record_key(shown.line(task_id))
    return ErrorInfo(code=ErrorCode.INVALID_RECORD, message=f"{key} in Redis is no record: {why}", retryable=False)


def revoked_reason(record: dict[str, Any]) -> str:
    """Returns the reason of a revocation, which Celery stores as the argument of a TaskRevokedError."""
    result = record.get("result")
    message = result.get("exc_message") if isinstance(result, dict) else None
    return str(message[0]) if isinstance(message, list | tuple) and message else str(message or "")


def _foreign_error(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the error of a failure that Celery itself stored, for instance of a task that no worker knows."""
    result = record.get("result")
    if isinstance(result, dict) and "exc_type" in result:
        message = result.get("exc_message")
        text = " ".join(str(part) for part in message) if isinstance(message, list | tuple) else str(message)
        return {"code": ErrorCode.INTERNAL, "message": f"{result['exc_type']}: {text}", "retryable": False}
    return {"code": ErrorCode.INTERNAL, "message": str(result), "retryable": False}
