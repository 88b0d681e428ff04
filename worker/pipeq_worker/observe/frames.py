"""Frees what a kept exception holds: its frames with all their variables, and the exceptions before it.

An exception that is kept (by a task, or by Celery) keeps the frames that it passed through. One of those frames usually
refers to the exception in turn, so that all of it, some hundred KiB for each failed task, would wait for the garbage
collector.
"""

from __future__ import annotations


def forget(error: BaseException | None) -> None:
    """Removes the tracebacks of an exception, of those that it wraps, and of those in its cause and context."""
    seen: set[int] = set()
    left = [error]
    while left:
        one = left.pop()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        # `exc` of billiard's ExceptionWithTraceback and of Celery's Retry.
        left += [one.__cause__, one.__context__, getattr(one, "exc", None)]
        one.__traceback__ = one.__cause__ = one.__context__ = None
