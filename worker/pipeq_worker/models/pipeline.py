"""What the stages need of a pipeline. Knows nothing of torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeq.contract.status import ModelInfo

from pipeq_worker.media.picture_memory import PictureMemory
from pipeq_worker.models.task_type import TaskType
from pipeq_worker.settings.read import PipelineSettings


@dataclass(frozen=True)
class BatchLimits:
    """How large a batch of a group may get."""

    max_size: int
    #: Most padded cost: the longest item times their number. A larger item runs alone.
    max_cost: int
    #: What starting a forward pass costs, in the items' unit: the larger, the more padding a fuller batch is worth.
    launch_cost: int = 64
    #: How long a ready item may wait for company while the device is idle, in seconds.
    max_wait_s: float = 0.005


@dataclass(frozen=True)
class Prepared:
    """What a pipeline makes of one row of an input: one, or one a chunk."""

    #: What :meth:`Pipeline.forward` takes.
    features: Any
    #: Rows with equal groups may share a forward pass; ``call.SOLO`` shares it with nobody.
    group: Hashable
    #: What it costs in a forward pass, in the unit of the task type.
    cost: int
    #: Bytes it holds while it waits.
    nbytes: int


class Pipeline(ABC):
    """A named, loaded pipeline. Safe to use from many threads."""

    name: str
    task_type: TaskType
    settings: PipelineSettings
    #: What computes the results.
    model: ModelInfo
    limits: BatchLimits
    #: Of the audio it takes, in hertz.
    sampling_rate: int = 16_000

    @abstractmethod
    def merge(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The pipeline's parameters, overridden by a task's.

        Raises:
            PipeqError: ``invalid_params``.
        """

    @abstractmethod
    def prepare(self, value: Any, params: Mapping[str, Any]) -> Iterator[Prepared]:
        """One decoded input -> its rows, one after the other, so that a long one is never there as a whole.

        Raises:
            PipeqError: ``invalid_input`` or ``invalid_params``.
        """

    @abstractmethod
    def forward(self, features: list[Any], params: Mapping[str, Any]) -> list[Any]:
        """One forward pass over rows of one group -> each row's output, as if it had run alone; or its error.

        Whatever the model raises comes through.
        """

    @abstractmethod
    def postprocess(self, outputs: list[Any], params: Mapping[str, Any]) -> Any:
        """The outputs of one input's rows, in order -> its result.

        Raises:
            PipeqError: ``invalid_params`` or ``inference_failed``.
        """

    def result(self, result: Any, value: Any, params: Mapping[str, Any]) -> Any:
        """The result of a task with one input, where ``pipe(x)`` wraps it differently from ``pipe([x])[0]``."""
        return result

    def picture_memory(self, params: Mapping[str, Any]) -> PictureMemory:
        """What the answer about a picture takes, for each of its pixels."""
        return PictureMemory()

    def release_memory(self) -> None:  # noqa: B027 - most have none to give back
        """Gives back what the device has no use for, before a smaller batch is tried."""

    def recover(self) -> None:  # noqa: B027 - most have nothing that a pass could leave behind
        """After a forward pass that raised: sees to it that the next one finds everything as it was.

        Raises:
            Exception: it cannot; only a new process helps.
        """
