"""FAULTS: finds the kind of fault of another library's error. Used by the stores over fsspec.

The libraries' errors have no common base class. Most carry an HTTP status, and wrap the error that caused them.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeq_worker.stores.base import Fault

#: HTTP statuses of errors that may be temporary, in addition to all 5xx.
_PASSING = frozenset({408, 425, 429})


def fault_in_chain(error: BaseException, fault_of: Callable[[BaseException], Fault | None]) -> Fault:
    """Returns the fault of an error, or else of the first of its causes with a known fault."""
    one: BaseException | None = error
    for _ in range(10):
        if one is None:
            break
        found = fault_of(one) or _by_status(one) or _by_class(one)
        if found is not None:
            return found
        one = one.__cause__ or one.__context__
    # An unknown error may be temporary; the worker limits the number of tries.
    return Fault.PASSING


def _by_status(error: BaseException) -> Fault | None:
    status = _status_of(error)
    return None if status is None else of_status(status)


def _status_of(error: BaseException) -> int | None:
    """The HTTP status of an error that carries one, from 400."""
    for holder, field in (
        (error, "status_code"),
        (getattr(error, "response", None), "status_code"),
        (error, "code"),
        (error, "status"),
    ):
        status = getattr(holder, field, None)
        if isinstance(status, str) and status.isascii() and status.isdigit():
            status = int(status)
        if isinstance(status, int) and 400 <= status < 600:
            return status
    return None


def is_forbidden(error: BaseException) -> bool:
    """Whether a refusal is about the place: the store knows who asks. Otherwise it is about the credentials."""
    one: BaseException | None = error
    for _ in range(10):
        if one is None:
            break
        if isinstance(one, PermissionError) or _status_of(one) == 403 or str(one).startswith("Forbidden"):
            return True
        one = one.__cause__ or one.__context__
    return False


def of_status(status: int) -> Fault:
    """Returns the fault for an HTTP status of 400 or more."""
    if status in _PASSING or status >= 500:
        return Fault.PASSING
    return {404: Fault.MISSING, 410: Fault.MISSING, 401: Fault.REFUSED, 403: Fault.REFUSED}.get(status, Fault.PERMANENT)


def _by_class(error: BaseException) -> Fault | None:
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return Fault.MISSING
    if isinstance(error, PermissionError):
        return Fault.REFUSED
    if isinstance(error, OSError):  # includes TimeoutError and ConnectionError
        return Fault.PASSING
    return Fault.PERMANENT if isinstance(error, ValueError | NotImplementedError | TypeError) else None
