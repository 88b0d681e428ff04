"""What other apps import to enqueue tasks and to read their results. Loads no torch and no transformers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from producers.client import Client, NoLiveWorkerWarning
    from producers.errors import ErrorCode, PipeqError, RedisUnavailableError, WaitTimeoutError
    from producers.message import Output, Ref, TaskMessage
    from producers.status import State, TaskStatus

#: Where each name lives. It is imported when it is first used, so that `pipeq --help` waits for neither redis nor
#: pydantic.
_HOMES = {
    "Client": "client",
    "ErrorCode": "errors",
    "NoLiveWorkerWarning": "client",
    "Output": "message",
    "PipeqError": "errors",
    "RedisUnavailableError": "errors",
    "Ref": "message",
    "State": "status",
    "TaskMessage": "message",
    "TaskStatus": "status",
    "WaitTimeoutError": "errors",
}

__all__ = [
    "Client",
    "ErrorCode",
    "NoLiveWorkerWarning",
    "Output",
    "PipeqError",
    "RedisUnavailableError",
    "Ref",
    "State",
    "TaskMessage",
    "TaskStatus",
    "WaitTimeoutError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
