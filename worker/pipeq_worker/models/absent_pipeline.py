"""ABSENT: stands for a pipeline that was served, and that a new device process cannot load any more.

Its model's files went away, for instance. The other pipelines are served as before. Its tasks fail by the worker's own
fault, so they go to other workers, and this one takes fewer and fewer of them (delivery/fitness.py). Each that it still
tries has it try to load the pipeline again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipeq.contract.errors import Blame, ErrorCode, PipeqError
from pipeq.contract.status import ModelInfo

from pipeq_worker.models.call import Call
from pipeq_worker.models.pipeline import BatchLimits, Pipeline, Prepared
from pipeq_worker.models.running import Running
from pipeq_worker.settings.sections import PipelineSettings

#: Loading is tried this often at most, in seconds: it keeps the device from the other pipelines.
AGAIN_S = 10.0


class Absent(Pipeline):
    """Every call to it fails. Safe to use from many threads.

    Args:
        name: of the pipeline.
        settings: its section of the settings.
        reason: why it cannot be loaded, in a sentence.
        again: called when it is time to try to load it again; returns at once, and calls :meth:`failed` if it fails.
    """

    def __init__(self, name: str, settings: PipelineSettings, reason: str, again: Callable[[], None]) -> None:
        self.name = name
        self.settings = settings
        self.model = ModelInfo(id=settings.model or name)
        self.limits = BatchLimits(1, 1)
        self._again = again
        self.failed(reason)

    def failed(self, reason: str) -> None:
        """Notes that it cannot be loaded now."""
        self._reason = reason
        self._due = time.monotonic() + AGAIN_S

    def merge(self, params: Mapping[str, Any]) -> Call:
        raise self._error()

    def call(self, params: Mapping[str, Any]) -> Call:
        # Of rows that a prepare process has prepared; their pass fails.
        return Call(params)

    def prepare(self, value: Any, call: Call) -> Iterator[Prepared]:
        raise self._error()

    def forward(self, features: list[Any], call: Call, running: Running | None = None) -> list[Any]:
        raise self._error()

    def postprocess(self, outputs: list[Any], call: Call) -> Any:
        raise self._error()

    def _error(self) -> PipeqError:
        if time.monotonic() > self._due:
            self._due = float("inf")
            self._again()
        sentence = f"{self.name!r} cannot run here, because it cannot be loaded any more: {self._reason}"
        error = PipeqError(ErrorCode.INFERENCE_FAILED, sentence)
        error.blame = Blame.WORKER
        return error
