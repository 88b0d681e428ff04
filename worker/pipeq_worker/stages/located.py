"""LOCATED: says in an error which of a task's inputs it is about. Used by preparation."""

from __future__ import annotations

from pipeq.contract.errors import PipeqError

from pipeq_worker.stages.task import Task


class located:  # noqa: N801 - reads as a statement
    """Adds the index of the input to an error's message, if the task has several."""

    def __init__(self, task: Task, index: int) -> None:
        self._where = task.where(index)

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._where and isinstance(error, PipeqError):
            raise error.bare(self._where) from error
