"""The client: what other apps import to queue tasks and to read their results. Imports no torch and no transformers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeq.async_client import AsyncClient
    from pipeq.client import Client, NoLiveWorkerWarning
    from pipeq.contract.dead_letter import DeadLetter
    from pipeq.contract.errors import (
        ErrorCode,
        EventsTrimmedError,
        MissingPackageError,
        PipeqError,
        QueueFullError,
        ReadError,
        RedisUnavailableError,
        RedisUrlError,
        SettingsError,
        SubmitError,
        SubmitUnavailableError,
        WaitTimeoutError,
    )
    from pipeq.contract.events import Event
    from pipeq.contract.message import Output, Ref, TaskMessage
    from pipeq.contract.status import State, TaskFailedError, TaskStatus
    from pipeq.speaking import InEventLoopWarning

#: Where each public name is defined. It is imported at first use, so that `pipeq --help` need not import redis and
#: pydantic.
_HOMES = {
    "AsyncClient": "async_client",
    "Client": "client",
    "DeadLetter": "contract.dead_letter",
    "ErrorCode": "contract.errors",
    "Event": "contract.events",
    "EventsTrimmedError": "contract.errors",
    "InEventLoopWarning": "speaking",
    "MissingPackageError": "contract.errors",
    "NoLiveWorkerWarning": "client",
    "Output": "contract.message",
    "PipeqError": "contract.errors",
    "QueueFullError": "contract.errors",
    "ReadError": "contract.errors",
    "RedisUnavailableError": "contract.errors",
    "RedisUrlError": "contract.errors",
    "Ref": "contract.message",
    "SettingsError": "contract.errors",
    "State": "contract.status",
    "SubmitError": "contract.errors",
    "SubmitUnavailableError": "contract.errors",
    "TaskFailedError": "contract.status",
    "TaskMessage": "contract.message",
    "TaskStatus": "contract.status",
    "WaitTimeoutError": "contract.errors",
}

__all__ = [
    "AsyncClient",
    "Client",
    "DeadLetter",
    "ErrorCode",
    "Event",
    "EventsTrimmedError",
    "InEventLoopWarning",
    "MissingPackageError",
    "NoLiveWorkerWarning",
    "Output",
    "PipeqError",
    "QueueFullError",
    "ReadError",
    "RedisUnavailableError",
    "RedisUrlError",
    "Ref",
    "SettingsError",
    "State",
    "SubmitError",
    "SubmitUnavailableError",
    "TaskFailedError",
    "TaskMessage",
    "TaskStatus",
    "WaitTimeoutError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ImportError as error:
        from pipeq.shadowed import sentence

        if (says := sentence(error)) is None:
            raise
        raise ImportError(says, name=error.name, path=error.path) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
