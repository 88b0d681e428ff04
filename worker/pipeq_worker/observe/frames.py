"""Lets go of what an exception holds: its frames, all that their variables name, and the exceptions before it.

An exception that is kept (by a task, by Celery's account of it) keeps the frames it came through; one of them mostly
keeps the exception, so that nothing of all that is freed before the collector comes: some hundred KiB a failed task.
"""

from __future__ import annotations


def forget(error: BaseException | None) -> None:
    """Strips an exception, those that it wraps, and those that it was raised from or during, of their tracebacks."""
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
