"""DESTINATION: a message's output -> where its task's result goes. Before: accept. After: placing."""

from __future__ import annotations

from pipeq.contract.asked import asked
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.message import Output, TaskMessage
from pipeq.contract.pack import PackMessage

from pipeq_worker.stages.task import Task


def destination_of(task: Task, message: TaskMessage | PackMessage) -> Output | None:
    """Sets and returns where the result goes, with the fields of its name filled in, and sets what stands in front.

    Raises:
        PipeqError: ``invalid_message``: this task has no such name, or cannot have its inputs beside its result.
    """
    if isinstance(message, PackMessage):
        task.destination = message.output
        return message.output
    task.destination = output = message.destination(task.id)
    if output is not None and output.include_inputs:
        if task.has_next:
            raise PipeqError(
                ErrorCode.INVALID_MESSAGE,
                "output: `include_inputs` is for people who read the result, and another task reads this one's: leave "
                "it out",
            )
        task.asked = asked(message, task.id)
    return output
