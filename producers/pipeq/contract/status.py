"""CONTRACT: a task's status, in one form everywhere (Python, ``--json``, HTTP).

:mod:`pipeq.contract.record` reads it from Redis.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.message import describe

#: Upper bound of a task's times, in seconds since the epoch: the end of the year 9998.
LATEST_S = 253_370_764_800
#: Seconds since the epoch.
Moment = Annotated[float, Field(ge=0, lt=LATEST_S, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class State(StrEnum):
    """The state of a task. ``succeeded``, ``failed``, ``cancelled`` and ``expired`` are final."""

    #: On the queue, or reserved by a worker but not yet in a batch.
    QUEUED = "queued"
    #: In a batch.
    RUNNING = "running"
    #: Waiting for its next try after a temporary fault.
    RETRYING = "retrying"
    #: Done; the result is there.
    SUCCEEDED = "succeeded"
    #: Cannot succeed; ``error`` says why.
    FAILED = "failed"
    #: A producer cancelled it.
    CANCELLED = "cancelled"
    #: Its expiry passed before it ran.
    EXPIRED = "expired"
    #: Never seen, or forgotten; also a task of a stock Celery producer that no worker has run yet.
    UNKNOWN = "unknown"

    @property
    def is_final(self) -> bool:
        """Whether the task will not change any more."""
        return self in FINAL


FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED})

#: Celery's name for each state, which the record uses.
CELERY_STATES = {
    State.QUEUED: "QUEUED",
    State.RUNNING: "STARTED",
    State.RETRYING: "RETRY",
    State.SUCCEEDED: "SUCCESS",
    State.FAILED: "FAILURE",
    State.CANCELLED: "REVOKED",
    State.EXPIRED: "REVOKED",
}


class ErrorInfo(BaseModel):
    """The reason why a task failed."""

    model_config = ConfigDict(frozen=True)

    #: One of :class:`pipeq.contract.errors.ErrorCode`.
    code: str = Field(min_length=1)
    #: A sentence that names the offending thing and what to do.
    message: str
    #: Whether the same task may succeed later.
    retryable: bool
    #: Where its cause was raised, if that was in a library: files, lines, code and types, but no values.
    traceback: str | None = None


class BatchInfo(BaseModel):
    """The largest batch that an item of the task ran in."""

    model_config = ConfigDict(frozen=True)

    #: Items in the batch.
    size: int = Field(ge=0, lt=2**31)
    #: Share of the batch's padded cost that was padding, 0 to 1.
    padding: Finite


class Progress(BaseModel):
    """How far a task is that runs."""

    model_config = ConfigDict(frozen=True)

    #: How many steps are done.
    done: int = Field(ge=0, lt=2**53)
    #: How many steps there are, at most; null if that is not known.
    total: int | None = Field(default=None, ge=0, lt=2**53)
    #: What a step is: ``tokens`` that are generated, ``chunks`` of an input, ``inputs`` of a list.
    unit: str = Field(min_length=1, max_length=40)


class ModelInfo(BaseModel):
    """The model that computed the result."""

    model_config = ConfigDict(frozen=True)

    #: Its name on the Hub, or the place that it was loaded from.
    id: str
    #: Its revision on the Hub.
    revision: str | None = None
    #: The type of its weights, for instance ``float16``.
    dtype: str | None = None
    #: The device that it runs on, for instance ``cuda:0``.
    device: str | None = None


class Attempt(BaseModel):
    """One try of a task: where and when it ran, and why it ended if not with a result."""

    model_config = ConfigDict(frozen=True)

    #: The worker that had it.
    worker: str | None = None
    #: When its first batch began, in seconds since the epoch; null if it did not come so far.
    started_at: Moment | None = None
    #: When it ended, in seconds since the epoch; null while it runs, and if its worker died.
    ended_at: Moment | None = None
    #: Why it has no result: a code of :class:`pipeq.contract.errors.ErrorCode`, ``worker_lost`` if its worker died.
    code: str | None = None
    #: The error's sentence, cut to 500 characters.
    message: str | None = None
    #: The last stage that it reached, of those in ``timing_ms``; null if that is not known.
    stage: str | None = None


class TaskStatus(BaseModel):
    """All that is known about a task. Times are in seconds since the epoch, durations in milliseconds."""

    model_config = ConfigDict(frozen=True)

    id: str
    state: State
    pipeline: str | None = None
    #: When the producer submitted it.
    submitted_at: Moment | None = None
    #: When its first item entered a batch.
    started_at: Moment | None = None
    finished_at: Moment | None = None
    #: When its delay ends or ended, or the wait for its next try: no worker begins it before. Null if it has none.
    due_at: Moment | None = None
    #: When it expires, if it does.
    expires_at: Moment | None = None
    #: How often a worker has begun to run it, without those that failed by a fault of the worker.
    attempts: int = Field(default=0, ge=0, lt=2**31)
    worker: str | None = None
    #: The pipeline's output, if it is stored in the record.
    result: JsonValue = None
    #: The URI of the output, if it is stored elsewhere.
    result_uri: str | None = None
    error: ErrorInfo | None = None
    #: Milliseconds in each part of its life: delayed, queued, fetch, decode, prepare, wait_device, infer, deliver. They
    #: add up to ``finished_at`` minus ``submitted_at``; what each part is: :mod:`pipeq.contract.times`.
    timing_ms: dict[str, Finite] | None = None
    #: How far it is, while it runs and takes more than a second or two.
    progress: Progress | None = None
    batch: BatchInfo | None = None
    model: ModelInfo | None = None
    #: The tries that have begun, the oldest first; the last ten and the present one.
    history: tuple[Attempt, ...] = ()

    def __init__(self, /, **fields: Any) -> None:
        """Checks the fields.

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
        # For other types the enumeration's error would show the repr, which raises for some values.
        if not isinstance(value, str):
            raise ValueError("it is no text")  # noqa: TRY004 (pydantic takes no TypeError)
        return value

    @property
    def is_final(self) -> bool:
        """Whether the task will not change any more."""
        return self.state.is_final


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
        # The error comes from a record, so it is put on one line that a terminal or a log may show.
        super().__init__(shown.line(error.code, 100), shown.line(error.message, 4000), error.retryable)
        self.args = (self.status.model_dump(mode="json"),)


def _without_result(status: TaskStatus) -> ErrorInfo:
    """The error of a task that ended without a result and without an error."""
    code, what = {
        State.CANCELLED: (ErrorCode.CANCELLED, "was cancelled"),
        State.EXPIRED: (ErrorCode.EXPIRED, "expired before a worker took it"),
    }.get(status.state, (ErrorCode.INTERNAL, f"is {status.state}"))
    return ErrorInfo(code=code, message=f"task {status.id} {what}", retryable=False)
