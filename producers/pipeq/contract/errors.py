"""CONTRACT: the errors of pipeq, in one tree.

Every failure that a producer can see is a :class:`PipeqError` with a code from :class:`ErrorCode`. Below it there is a
class for each kind of failure that a caller may want to catch; :class:`pipeq.TaskFailedError` is in status.py, beside
the status that it holds. The arguments of each class are positional and JSON, because Celery and pickle restore an
error from its ``args``. docs/errors.md is generated from this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from pipeq.contract import shown


class ErrorCode(StrEnum):
    """Why a task failed. Codes are part of the contract: new ones may be added, but none is renamed."""

    #: The message is not a valid message of pipeq: fields are missing, of the wrong type, or too large.
    INVALID_MESSAGE = "invalid_message"
    #: No worker has ever served a pipeline of this name.
    UNKNOWN_PIPELINE = "unknown_pipeline"
    #: The inputs do not fit the pipeline's task type.
    INVALID_INPUT = "invalid_input"
    #: A parameter is not one of the pipeline's, or only the worker may set it.
    INVALID_PARAMS = "invalid_params"
    #: The referenced object does not exist.
    INPUT_NOT_FOUND = "input_not_found"
    #: The worker's settings do not allow this reference (or this output).
    INPUT_FORBIDDEN = "input_forbidden"
    #: The input is larger than the worker's limits.
    INPUT_TOO_LARGE = "input_too_large"
    #: The bytes are not a readable text, image, audio or video of the expected kind.
    INPUT_UNDECODABLE = "input_undecodable"
    #: The store of the input could not be reached. Retried with backoff.
    INPUT_UNAVAILABLE = "input_unavailable"
    #: The model raised an error on this input.
    INFERENCE_FAILED = "inference_failed"
    #: The device ran out of memory on this input alone.
    OUT_OF_MEMORY = "out_of_memory"
    #: The result could not be written to its place. Retried with backoff.
    OUTPUT_FAILED = "output_failed"
    #: The task (``timeout_s``), one step of it, or a client's wait took longer than allowed.
    TIMEOUT = "timeout"
    #: Several workers died while running this task.
    WORKER_LOST = "worker_lost"
    #: The task's expiry passed before a worker took it.
    EXPIRED = "expired"
    #: A producer cancelled the task.
    CANCELLED = "cancelled"
    #: An operator emptied the queue while the task waited there (``pipeq purge``).
    PURGED = "purged"
    #: A bug in pipeq.
    INTERNAL = "internal"
    #: The worker's settings cannot be used. Never the outcome of a task.
    INVALID_SETTINGS = "invalid_settings"
    #: A part of pipeq needs a package that is not installed. Never the outcome of a task.
    MISSING_PACKAGE = "missing_package"
    #: A server of the demo or the tests did not start. Never the outcome of a task.
    NOT_RUNNING = "not_running"
    #: The text that Redis holds under a task's id is not a valid record. Never the outcome of a task.
    INVALID_RECORD = "invalid_record"
    #: There is no job of this id, or it was forgotten. Never the outcome of a task.
    UNKNOWN_JOB = "unknown_job"
    #: The pipeline is still needed, so it is not forgotten. Never the outcome of a task.
    IN_USE = "in_use"
    #: The stream of events is off. Never the outcome of a task.
    EVENTS_OFF = "events_off"
    #: Events were removed from the stream before they were read. Never the outcome of a task.
    EVENTS_TRIMMED = "events_trimmed"
    #: The queue has its `max_backlog`, so nothing more is submitted. Never the outcome of a task.
    QUEUE_FULL = "queue_full"
    #: The client cannot reach Redis. Never the outcome of a task.
    REDIS_UNAVAILABLE = "redis_unavailable"


#: Codes of temporary faults: the worker retries these with backoff and jitter before it gives up.
RETRYABLE: Final = frozenset({ErrorCode.INPUT_UNAVAILABLE, ErrorCode.OUTPUT_FAILED})


class Blame(StrEnum):
    """Whose fault an error is. In a worker only: it decides what happens to the task, and is in no record."""

    #: The task's, or that of something that both need: a store that does not answer.
    TASK = "task"
    #: The worker's: no credentials, a full disk, too many open files. Another worker gets the task.
    WORKER = "worker"
    #: One of the two: this worker may not touch the place that the task names. Another worker gets the task, and if
    #: all of them are refused, it is the task's.
    EITHER = "either"
    #: Nobody's yet: the task was not tried, because what it needs has just failed for others, again and again.
    NOT_TRIED = "not_tried"


#: The status with which an HTTP server answers, for each code (RFC 9110). 4xx: the same request would fail again. 5xx:
#: the fault is not the caller's; 503 is for faults that may be temporary.
HTTP_STATUS: Final[dict[ErrorCode, int]] = {
    ErrorCode.INVALID_MESSAGE: 400,
    ErrorCode.UNKNOWN_PIPELINE: 404,
    # The request is well-formed, but cannot be carried out.
    ErrorCode.INVALID_INPUT: 422,
    ErrorCode.INVALID_PARAMS: 422,
    # Not 404, because the missing object is one that an input refers to, not the one that the request's URL names.
    ErrorCode.INPUT_NOT_FOUND: 422,
    ErrorCode.INPUT_FORBIDDEN: 403,
    ErrorCode.INPUT_TOO_LARGE: 413,
    ErrorCode.INPUT_UNDECODABLE: 422,
    ErrorCode.INPUT_UNAVAILABLE: 503,
    ErrorCode.INFERENCE_FAILED: 500,
    ErrorCode.OUT_OF_MEMORY: 507,
    ErrorCode.OUTPUT_FAILED: 503,
    ErrorCode.TIMEOUT: 504,
    ErrorCode.WORKER_LOST: 500,
    # The task existed, but will never have a result.
    ErrorCode.EXPIRED: 410,
    ErrorCode.CANCELLED: 410,
    ErrorCode.PURGED: 410,
    ErrorCode.INTERNAL: 500,
    ErrorCode.INVALID_SETTINGS: 500,
    ErrorCode.MISSING_PACKAGE: 501,
    ErrorCode.NOT_RUNNING: 503,
    ErrorCode.INVALID_RECORD: 500,
    ErrorCode.UNKNOWN_JOB: 404,
    ErrorCode.IN_USE: 409,
    ErrorCode.EVENTS_OFF: 409,
    ErrorCode.EVENTS_TRIMMED: 410,
    # Not 429, since the caller itself may have asked for little.
    ErrorCode.QUEUE_FULL: 503,
    ErrorCode.REDIS_UNAVAILABLE: 503,
}


class PipeqError(Exception):
    """A failure of pipeq, described in one sentence. An argument that cannot be used raises this class itself.

    Args:
        code: one of :class:`ErrorCode`.
        message: a sentence that names the cause and what to do.
        retryable: whether the same call may succeed later; by default, whether the code is that of a temporary fault.
    """

    #: One of :class:`ErrorCode`.
    code: str
    #: A sentence that names the cause and what to do.
    message: str
    #: Whether the same call may succeed later.
    retryable: bool
    #: In a worker: where its cause was raised, as text; empty if there is none.
    traceback: str = ""
    #: In a worker: whose fault it is.
    blame: Blame = Blame.TASK

    def __init__(self, code: str, message: str, retryable: bool | None = None) -> None:
        self.code = str(code) if isinstance(code, str) else shown.value(code)
        # Errors of other libraries may contain anything, and other people can read this message.
        self.message = shown.without_environment(message if isinstance(message, str) else shown.value(message))
        self.retryable = self.code in RETRYABLE if retryable is None else bool(retryable)
        super().__init__(self.code, self.message, self.retryable)

    @property
    def http_status(self) -> int:
        """The status that an HTTP server answers with, see :data:`HTTP_STATUS`; 500 for an unknown code."""
        return _HTTP_STATUS_OF.get(self.code, 500)

    def bare(self, where: str = "") -> PipeqError:
        """Returns a copy that refers to no frames and no other exceptions, with ``where`` before its message."""
        copy = PipeqError(self.code, where + self.message, self.retryable)
        copy.traceback, copy.blame = self.traceback, self.blame
        return copy

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


#: The statuses by text, because a code may come from a record of a later version.
_HTTP_STATUS_OF: Final = {str(code): status for code, status in HTTP_STATUS.items()}


class SettingsError(PipeqError):
    """Settings, arguments of a client or variables of the environment cannot be used."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.INVALID_SETTINGS, message)
        self.args = (self.message,)


class RedisUrlError(SettingsError, ValueError):
    """The Redis URL cannot be used."""


class MissingPackageError(PipeqError):
    """A part of pipeq needs a package that is not installed. The message says what to install."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.MISSING_PACKAGE, message)
        self.args = (self.message,)


class RedisUnavailableError(PipeqError):
    """Redis cannot be reached, or refuses a command. ``retryable`` says whether the same call may succeed later."""

    def __init__(self, message: str, retryable: bool = True) -> None:
        super().__init__(ErrorCode.REDIS_UNAVAILABLE, message, retryable)
        self.args = (self.message, self.retryable)


class SubmitError(PipeqError):
    """A submit was refused, or ended before all of its tasks were queued. ``code`` says why.

    Args:
        code: as for :class:`PipeqError`; so are ``message`` and ``retryable``.
        submitted: ids of the tasks that this call had queued before, in the order of their inputs; they stay queued.
    """

    #: Ids of the tasks that the call had queued before it failed, in the order of their inputs; they stay queued.
    submitted: tuple[str, ...]

    def __init__(self, code: str, message: str, retryable: bool | None = None, submitted: Sequence[str] = ()) -> None:
        # Not super(): for a SubmitUnavailableError that is RedisUnavailableError, which takes other arguments.
        PipeqError.__init__(self, code, message, retryable)
        self.submitted = tuple(submitted)
        self.args = (self.code, self.message, self.retryable, list(self.submitted))


class SubmitUnavailableError(SubmitError, RedisUnavailableError):
    """Redis could not be reached during a submit: both a :class:`SubmitError` and a :class:`RedisUnavailableError`."""

    def __init__(self, message: str, retryable: bool = True, submitted: Sequence[str] = ()) -> None:
        SubmitError.__init__(self, ErrorCode.REDIS_UNAVAILABLE, message, retryable, submitted)
        self.args = (self.message, self.retryable, list(self.submitted))


class QueueFullError(SubmitError):
    """The pipeline's queue has as many tasks as the submit's ``max_backlog`` allows. Later there may be room."""

    def __init__(self, message: str, submitted: Sequence[str] = ()) -> None:
        super().__init__(ErrorCode.QUEUE_FULL, message, True, submitted)
        self.args = (self.message, list(self.submitted))


class ReadError(PipeqError):
    """A result, or an object in it, cannot be read (``output_failed``) or is not allowed (``input_forbidden``)."""


class EventsTrimmedError(PipeqError):
    """Events were removed from the stream before they were read, so statuses must be read anew."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.EVENTS_TRIMMED, message)
        self.args = (self.message,)


class WaitTimeoutError(PipeqError, TimeoutError):
    """A client stopped waiting before the task ended. The task goes on."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.TIMEOUT, message)
        self.args = (self.message,)
