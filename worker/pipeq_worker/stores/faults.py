"""FAULTS: what kind of fault an error of a foreign library is. Used by the stores over fsspec.

The libraries have no common root of errors; most say the status of an answer of HTTP, and wrap what they caught.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeq_worker.stores.base import Fault

#: Answers that a later try may not get; all 5xx besides.
_PASSING = frozenset({408, 425, 429})


def fault_in_chain(error: BaseException, fault_of: Callable[[BaseException], Fault | None]) -> Fault:
    """The fault of an error, or of the first below it that says one: libraries wrap what they caught."""
    one: BaseException | None = error
    for _ in range(10):
        if one is None:
            break
        found = fault_of(one) or _by_status(one) or _by_class(one)
        if found is not None:
            return found
        one = one.__cause__ or one.__context__
    # What nobody knows may pass; the worker's tries are counted.
    return Fault.PASSING


def _by_status(error: BaseException) -> Fault | None:
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
            return of_status(status)
    return None


def of_status(status: int) -> Fault:
    """What an answer of HTTP is, by its status."""
    if status in _PASSING or status >= 500:
        return Fault.PASSING
    return {404: Fault.MISSING, 410: Fault.MISSING, 401: Fault.REFUSED, 403: Fault.REFUSED}.get(status, Fault.PERMANENT)


def _by_class(error: BaseException) -> Fault | None:
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return Fault.MISSING
    if isinstance(error, PermissionError):
        return Fault.REFUSED
    if isinstance(error, OSError):  # TimeoutError and ConnectionError, too
        return Fault.PASSING
    return Fault.PERMANENT if isinstance(error, ValueError | NotImplementedError | TypeError) else None
