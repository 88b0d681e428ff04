"""CONTRACT: the one error tree of pipeq.

Every failure a producer can see is a :class:`PipeqError` with a code from :class:`ErrorCode`. Its three arguments are
positional, so that Celery can store it as JSON and rebuild it in another process.
"""

from __future__ import annotations

from enum import StrEnum

from pipeq.contract import shown


class ErrorCode(StrEnum):
    """Why a task failed. Codes are part of the contract: they are added to, never renamed."""

    #: The message is not one of ours: fields missing, of the wrong type, or too large.
    INVALID_MESSAGE = "invalid_message"
    #: No worker has ever served a pipeline of this name.
    UNKNOWN_PIPELINE = "unknown_pipeline"
    #: The inputs do not fit the pipeline's task type.
    INVALID_INPUT = "invalid_input"
    #: A parameter that the pipeline does not take, or that belongs to the worker.
    INVALID_PARAMS = "invalid_params"
    #: The referenced object does not exist.
    INPUT_NOT_FOUND = "input_not_found"
    #: The worker's settings do not allow this reference (or this output).
    INPUT_FORBIDDEN = "input_forbidden"
    #: The input is larger than the worker's limits.
    INPUT_TOO_LARGE = "input_too_large"
    #: The bytes are not the text, image, audio or video they should be.
    INPUT_UNDECODABLE = "input_undecodable"
    #: The store of the input could not be reached. Retried with backoff.
    INPUT_UNAVAILABLE = "input_unavailable"
    #: The model raised on this input.
    INFERENCE_FAILED = "inference_failed"
    #: The device ran out of memory on this input alone.
    OUT_OF_MEMORY = "out_of_memory"
    #: The result could not be written where it should go. Retried with backoff.
    OUTPUT_FAILED = "output_failed"
    #: The forward pass, or a client's wait, took longer than allowed.
    TIMEOUT = "timeout"
    #: Workers died again and again while they had this task.
    WORKER_LOST = "worker_lost"
    #: The task's expiry passed before a worker took it.
    EXPIRED = "expired"
    #: A producer cancelled the task.
    CANCELLED = "cancelled"
    #: A bug in pipeq.
    INTERNAL = "internal"
    #: The worker's settings cannot be used. Never the outcome of a task.
    INVALID_SETTINGS = "invalid_settings"
    #: A part of pipeq needs a package that is not installed. Never the outcome of a task.
    MISSING_PACKAGE = "missing_package"
    #: A server of the demo or the tests did not start. Never the outcome of a task.
    NOT_RUNNING = "not_running"
    #: What stands in Redis under a task's id is no record of one. Never the outcome of a task.
    INVALID_RECORD = "invalid_record"
    #: The client cannot reach Redis. Never the outcome of a task.
    REDIS_UNAVAILABLE = "redis_unavailable"


#: Codes that name a passing fault: the worker retries these with backoff and jitter before it gives up.
RETRYABLE = frozenset({ErrorCode.INPUT_UNAVAILABLE, ErrorCode.OUTPUT_FAILED})


class PipeqError(Exception):
    """Something pipeq could not do, said in one sentence.

    Args:
        code: one of :class:`ErrorCode`.
        message: a sentence that names the offending thing and what to do.
        retryable: whether the same call may succeed later; by default, whether the code is a passing fault.
    """

    def __init__(self, code: str, message: str, retryable: bool | None = None) -> None:
        retryable = code in RETRYABLE if retryable is None else retryable
        # Foreign code raises with anything in its message, and this one goes where others read it.
        super().__init__(str(code), shown.without_environment(message), retryable)

    @property
    def code(self) -> str:
        """One of :class:`ErrorCode`."""
        return str(self.args[0])

    @property
    def message(self) -> str:
        """A sentence that names the offending thing and what to do."""
        return str(self.args[1])

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later."""
        return bool(self.args[2])

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class RedisUnavailableError(PipeqError):
    """The client cannot reach Redis."""


class WaitTimeoutError(PipeqError, TimeoutError):
    """A client's wait ended before the task did. The task goes on."""
