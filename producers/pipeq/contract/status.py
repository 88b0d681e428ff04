"""CONTRACT: a task's status, one shape everywhere (Python, ``--json``, HTTP).

The status rides in Celery's own record of the task (``celery-task-meta-<id>``) under the key ``pipeq``, which Celery
ignores, so that ``AsyncResult`` and pipeq read the same record.
"""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from pipeq.contract import keys as queues
from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.message import describe
from pipeq.contract.reading import UnreadableError, readable, readable_object

#: Seconds since the epoch, up to the year 9999.
Moment = Annotated[float, Field(ge=0, lt=253_370_764_800, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class State(StrEnum):
    """Where a task is. ``succeeded``, ``failed``, ``cancelled`` and ``expired`` are final."""

    #: On the queue, or reserved by a worker but not yet in a batch.
    QUEUED = "queued"
    #: In a batch.
    RUNNING = "running"
    #: A passing fault; waits for its next try.
    RETRYING = "retrying"
    #: Done; the result is there.
    SUCCEEDED = "succeeded"
    #: Cannot succeed; ``error`` says why.
    FAILED = "failed"
    #: A producer took it back.
    CANCELLED = "cancelled"
    #: Its expiry passed before it ran.
    EXPIRED = "expired"
    #: Never seen, or forgotten. Also: queued by a stock Celery producer and not yet taken by a worker.
    UNKNOWN = "unknown"

    @property
    def is_final(self) -> bool:
        """Whether the task will not change any more."""
        return self in FINAL


FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED})

#: Celery's word for each state in the record's ``status`` field.
CELERY_STATES = {
    State.QUEUED: "QUEUED",
    State.RUNNING: "STARTED",
    State.RETRYING: "RETRY",
    State.SUCCEEDED: "SUCCESS",
    State.FAILED: "FAILURE",
    State.CANCELLED: "REVOKED",
    State.EXPIRED: "REVOKED",
}
_STATES = {word: state for state, word in CELERY_STATES.items() if state is not State.EXPIRED}


class ErrorInfo(BaseModel):
    """Why a task failed."""

    model_config = ConfigDict(frozen=True)

    code: str = Field(min_length=1)
    message: str
    retryable: bool


class BatchInfo(BaseModel):
    """The largest batch that an item of the task ran in."""

    model_config = ConfigDict(frozen=True)

    #: Items in the batch.
    size: int = Field(ge=0, lt=2**31)
    #: Share of the batch's padded cost that was padding, 0 to 1.
    padding: Finite


class ModelInfo(BaseModel):
    """What computed the result."""

    model_config = ConfigDict(frozen=True)

    id: str
    revision: str | None = None
    dtype: str | None = None
    device: str | None = None


class TaskStatus(BaseModel):
    """What is known of a task. Times are seconds since the epoch, durations are milliseconds."""

    model_config = ConfigDict(frozen=True)

    id: str
    state: State
    pipeline: str | None = None
    #: When the producer submitted it.
    submitted_at: Moment | None = None
    #: When its first item entered a batch.
    started_at: Moment | None = None
    finished_at: Moment | None = None
    #: When it expires, if it does.
    expires_at: Moment | None = None
    #: Times a worker has begun to run it.
    attempts: int = Field(default=0, ge=0, lt=2**31)
    worker: str | None = None
    #: The pipeline's output, where it is stored in the record.
    result: JsonValue = None
    #: Where the output is, where it is stored elsewhere.
    result_uri: str | None = None
    error: ErrorInfo | None = None
    #: Milliseconds in each stage: queue, fetch, decode, prepare, batch, infer, deliver.
    timing_ms: dict[str, Finite] | None = None
    batch: BatchInfo | None = None
    model: ModelInfo | None = None

    def __init__(self, /, **fields: Any) -> None:
        """Takes what is known.

        Raises:
            PipeqError: ``invalid_record``, naming the field.
        """
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise PipeqError(ErrorCode.INVALID_RECORD, f"the status is not valid: {describe(error)}") from error

    @field_validator("state", mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        # Of anything else an enumeration would show the repr, which some values do not have.
        if not isinstance(value, str):
            raise ValueError("it is no text")  # noqa: TRY004 (pydantic takes no TypeError)
        return value

    @property
    def is_final(self) -> bool:
        """Whether the task will not change any more."""
        return self.state.is_final

    @classmethod
    def read(cls, task_id: str, record: bytes | str | None, mark: bytes | str | None = None) -> Self:
        """What stands in Redis under a task's id -> its status, whatever stands there.

        A record that cannot be read gives ``unknown``, or ``running`` where a mark says so, and the error
        ``invalid_record``.

        Args:
            task_id: the task's id.
            record: the bytes under ``celery-task-meta-<id>``; None where there is nothing.
            mark: the bytes of the task's field in ``pipeq:running``; None where there is none.
        """
        known_mark = readable_object(mark)
        if record is None:
            return cls.from_record(task_id, None, known_mark)
        try:
            fields = readable(record)
        except UnreadableError as error:
            return cls._unreadable(task_id, str(error), known_mark)
        if not isinstance(fields, dict):
            return cls._unreadable(task_id, "it is no JSON object", known_mark)
        return cls.from_record(task_id, fields, known_mark)

    @classmethod
    def from_record(
        cls, task_id: str, record: dict[str, Any] | None, mark: dict[str, Any] | None = None, now: float | None = None
    ) -> Self:
        """Reads Celery's record of a task, overlaid with its running mark. Fields of a wrong type are left out.

        Args:
            task_id: the task's id.
            record: what ``celery-task-meta-<id>`` holds; None where there is nothing.
            mark: the task's entry in ``pipeq:running``; None where there is none.
            now: seconds since the epoch; a queued task past its expiry reads ``expired`` even when no worker runs.
        """
        if record is None and mark is None:
            return cls(id=task_id, state=State.UNKNOWN)
        if record is not None and not isinstance(record.get("status"), str):
            return cls._unreadable(task_id, "its `status` is no text", mark)
        record = record or {}
        ours: dict[str, Any] = found if isinstance(found := record.get("pipeq"), dict) else {}
        state: State = _STATES.get(record.get("status", ""), State.QUEUED)
        if state is State.CANCELLED and _revoked_reason(record) == "expired":
            state = State.EXPIRED
        fields = {name: ours[name] for name in cls.model_fields if name in ours}
        fields |= {"id": task_id, "state": state}
        if state is State.SUCCEEDED:
            if ours.get("result_uri") is None:
                fields["result"] = record.get("result")
        elif state is State.FAILED:
            fields["error"] = ours.get("error") or _foreign_error(record)
        elif not state.is_final and mark is not None:
            fields |= _running(mark)
        status, dropped = cls._of_what_fits(fields)
        if state is State.SUCCEEDED and dropped & {"result", "result_uri"}:
            return cls._unreadable(task_id, f"its {' and '.join(sorted(dropped))} cannot be read", None)
        if state is State.FAILED and status.error is None:
            # That it failed is certain.
            return status.model_copy(update={"error": _invalid(task_id, "what it says of the error cannot be read")})
        # Only a number that was judged can be compared.
        if status.state is State.QUEUED and (status.expires_at or float("inf")) < (now or time.time()):
            return status.model_copy(update={"state": State.EXPIRED})
        return status

    @classmethod
    def _of_what_fits(cls, fields: dict[str, Any]) -> tuple[Self, set[str]]:
        """The status without the fields that are of a wrong type, and their names."""
        try:
            return cls(**fields), set()
        except PipeqError as error:
            cause = error.__cause__
        found = cause.errors(include_url=False, include_input=False) if isinstance(cause, ValidationError) else []
        wrong = {str(item["loc"][0]) for item in found}
        return cls(**{name: value for name, value in fields.items() if name not in wrong}), wrong

    @classmethod
    def _unreadable(cls, task_id: str, why: str, mark: dict[str, Any] | None) -> Self:
        fields: dict[str, Any] = {"id": task_id, "state": State.UNKNOWN, "error": _invalid(task_id, why)}
        return cls._of_what_fits(fields | (_running(mark) if mark is not None else {}))[0]


class TaskFailedError(PipeqError):
    """The task failed, was cancelled or expired: ``code``, ``message`` and ``retryable`` are the task's own.

    Args:
        status: the task's, or its JSON form, which is what Celery stores.
    """

    #: All that is known of the task.
    status: TaskStatus

    def __init__(self, status: TaskStatus | dict[str, Any]) -> None:
        self.status = status if isinstance(status, TaskStatus) else TaskStatus(**status)
        error = self.status.error or _without_result(self.status)
        # From a record: on one line that a terminal or a log may show.
        super().__init__(shown.line(error.code, 100), shown.line(error.message, 4000), error.retryable)
        self.args = (self.status.model_dump(mode="json"),)


def _without_result(status: TaskStatus) -> ErrorInfo:
    """Why a task that ended without an error has no result."""
    code, what = {
        State.CANCELLED: (ErrorCode.CANCELLED, "was cancelled"),
        State.EXPIRED: (ErrorCode.EXPIRED, "expired before a worker took it"),
    }.get(status.state, (ErrorCode.INTERNAL, f"is {status.state}"))
    return ErrorInfo(code=code, message=f"task {status.id} {what}", retryable=False)


def _running(mark: dict[str, Any]) -> dict[str, Any]:
    """What the mark of a running task lays over its record."""
    return {
        "state": State.RUNNING,
        "worker": mark.get("worker"),
        "attempts": mark.get("attempt", 1),
        "started_at": mark.get("since"),
    }


def _invalid(task_id: str, why: str) -> ErrorInfo:
    key = queues.record_key(shown.line(task_id))
    return ErrorInfo(code=ErrorCode.INVALID_RECORD, message=f"{key} in Redis is no record: {why}", retryable=False)


def _revoked_reason(record: dict[str, Any]) -> str:
    """Celery stores the reason of a revocation as the argument of a TaskRevokedError."""
    result = record.get("result")
    message = result.get("exc_message") if isinstance(result, dict) else None
    return str(message[0]) if isinstance(message, list | tuple) and message else str(message or "")


def _foreign_error(record: dict[str, Any]) -> dict[str, Any]:
    """A failure that Celery itself stored, for instance a task that no worker knows."""
    result = record.get("result")
    if isinstance(result, dict) and "exc_type" in result:
        message = result.get("exc_message")
        text = " ".join(str(part) for part in message) if isinstance(message, list | tuple) else str(message)
        return {"code": ErrorCode.INTERNAL, "message": f"{result['exc_type']}: {text}", "retryable": False}
    return {"code": ErrorCode.INTERNAL, "message": str(result), "retryable": False}
