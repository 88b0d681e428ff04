"""The stages before the device, in this process: a message -> the items that it becomes, or its error."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

from pipeq.contract.errors import PipeqError
from pipeq.contract.message import Ref
from pipeq_worker.models.pipeline import Pipeline
from pipeq_worker.settings.read import Settings
from pipeq_worker.stages.preparation import Preparation
from pipeq_worker.stages.shelf import Shelf
from pipeq_worker.stages.steps import Steps
from pipeq_worker.stages.task import Item, Task

#: How long a task may take here, in seconds.
ENDS_S = 200


class Files:
    """Reads references from a dictionary, and notes what is read, in order."""

    def __init__(self, files: dict[str, bytes], on_read: Callable[[str], None] = lambda uri: None) -> None:
        self.files = files
        self.read: list[str] = []
        self._on_read = on_read

    def check(self, ref: Ref, *, waits: bool = False) -> None:
        """Never away."""

    def wait_until_warm(self) -> None:
        """It has no library."""

    def fetch(self, ref: Ref, reserve: Callable[[int], None]) -> bytes:
        assert ref.uri is not None
        data = self.files[ref.uri]
        reserve(len(data))
        self.read.append(ref.uri)
        self._on_read(ref.uri)
        return data

    def result_ref(self, value: Any) -> None:
        return None


class Front:
    """Prepares tasks of one pipeline. Items are taken off the shelf as soon as they lie there.

    Args:
        pipeline: what prepares.
        files: what references refer to.
        ready: called with each item.
        settings: the worker's, by keyword.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        files: Files | None = None,
        ready: Callable[[Item], None] = lambda item: None,
        **settings: Any,
    ) -> None:
        self.files = files or Files({})
        self.items: list[Item] = []
        self._on_ready = ready
        self._ended = threading.Condition()
        self._done: set[int] = set()
        self._pipeline = pipeline
        self._shelf = Shelf(2**40)
        self.preparation = Preparation(
            {pipeline.name: pipeline},
            Settings(**settings),
            self.files,  # type: ignore[arg-type] - it reads references, too
            self._shelf,
            Steps(),
            ready=self._take,
            prepared=lambda task: None,
            finish=self._end,
            check_output=lambda uri: None,
        )

    def submit(self, inputs: Any, params: dict[str, Any] | None = None, number: int = 1) -> Task:
        """Has a message prepared. Returns at once."""
        message = {"pipeline": self._pipeline.name, "inputs": inputs, "params": params or {}}
        task = Task(id=f"task {number}", number=number, lane=self._pipeline.name, body=json.dumps(message).encode())
        self.preparation.submit(task)
        return task

    def wait(self, tasks: Sequence[Task]) -> None:
        """Waits until tasks have ended."""
        with self._ended:
            assert self._ended.wait_for(lambda: all(one.number in self._done for one in tasks), ENDS_S)

    def error(self, inputs: Any, params: dict[str, Any] | None = None) -> PipeqError | None:
        """What a message ends with."""
        task = self.submit(inputs, params)
        self.wait([task])
        return task.error

    def close(self) -> None:
        self.preparation.close()

    def _take(self, items: list[Item]) -> None:
        for item in items:
            self.items.append(item)
            self._on_ready(item)
            item.features = None
            self._shelf.remove([item])
            if item.task.closed():
                self._end(item.task)

    def _end(self, task: Task) -> None:
        with self._ended:
            self._done.add(task.number)
            self._ended.notify_all()
