"""PIPELINE: the interface through which the stages use a pipeline. It does not depend on torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeq.contract.status import ModelInfo

from pipeq_worker.media.picture_memory import PictureMemory
from pipeq_worker.models.call import Call
from pipeq_worker.models.foreseen import NOTHING, Foreseen
from pipeq_worker.models.running import Running
from pipeq_worker.models.stream import Stream
from pipeq_worker.models.task_type import TaskType
from pipeq_worker.settings.sections import PipelineSettings


@dataclass(frozen=True)
class BatchLimits:
    """Bounds of a batch."""

    max_size: int
    #: Most padded cost: the longest item's cost times the number of items. A larger item runs alone.
    max_cost: int
    #: Cost of starting a forward pass, in the items' unit: the larger it is, the more padding a fuller batch may have.
    launch_cost: int = 64
    #: How long a ready item may wait for others while the device is idle, in seconds.
    max_wait_s: float = 0.005
    #: Whether ``max_cost`` is only where to start, and measurements choose it from then on.
    is_auto: bool = False
    #: Its pipeline's share of the device's time, beside the weights of the others.
    weight: float = 1.0


@dataclass(frozen=True)
class Prepared:
    """One row of an input, prepared: an input gives one row, or one for each chunk."""

    #: The row's argument for :meth:`Pipeline.forward`.
    features: Any
    #: Rows with equal groups may share a forward pass; ``call.SOLO`` shares it with nobody.
    group: Hashable
    #: Cost in a forward pass, in the unit of the task type.
    cost: int
    #: Bytes that the row holds while it waits.
    nbytes: int


class Pipeline(ABC):
    """A named, loaded pipeline. Safe to use from many threads."""

    name: str
    task_type: TaskType
    settings: PipelineSettings
    #: The model that computes the results.
    model: ModelInfo
    limits: BatchLimits
    #: What decides its answers: aspect -> a short text. Other workers compare it with theirs.
    identity: Mapping[str, str] = {}
    #: The names of the parameters that a task may give.
    parameters: Sequence[str] = ()
    #: Items, padded cost and seconds of passes that have run while it was loaded.
    first_passes: Sequence[tuple[int, int, float]] = ()
    #: Sampling rate of the audio that it takes, in Hz.
    sampling_rate: int = 16_000
    #: If it runs rows one by one instead of in batches. While the stream runs, :meth:`forward` must not be called.
    stream: Stream | None = None
    #: Whether its weights are on the device. While they are not, :meth:`forward` must not be called.
    is_loaded: bool = True

    @abstractmethod
    def merge(self, params: Mapping[str, Any]) -> Call:
        """Returns the pipeline's parameters, overridden by a task's, and sorted by where they are used.

        Called once a task: its items share the result.

        Raises:
            PipeqError: ``invalid_params``.
        """

    def call(self, params: Mapping[str, Any]) -> Call:
        """Makes a call of parameters that :meth:`merge` has checked, in another process perhaps."""
        return self.merge(params)

    @abstractmethod
    def prepare(self, value: Any, call: Call) -> Iterator[Prepared]:
        """Yields the rows of one decoded input, one by one, so that a long input is never in memory as a whole.

        Raises:
            PipeqError: ``invalid_input``, or ``invalid_params`` that do not fit this input.
        """

    def foresee(self, value: Any, call: Call) -> Foreseen:
        """What one decoded input becomes, beyond what is counted while it is made."""
        return NOTHING

    def output_bytes(self, output: Any, call: Call) -> int:
        """Bytes that a row's output takes, once it is a result."""
        return 0

    #: Whether a decoded input is needed no more once its rows are prepared.
    lets_go_of_inputs: bool = False

    #: Whether :meth:`prepare_together` may be worth a try.
    prepares_together: bool = False

    def prepare_together(self, values: Sequence[Any], call: Call) -> list[Prepared] | None:
        """The row of each of several decoded inputs, in less time than :meth:`prepare` takes for them one by one.

        Returns:
            None if they must be prepared one by one: because they cannot be prepared together, or one of them fails.
        """
        return None

    @abstractmethod
    def forward(self, features: list[Any], call: Call, running: Running | None = None) -> list[Any]:
        """Runs one forward pass over rows of one group.

        Args:
            features: of the rows, as :meth:`prepare` made them.
            call: that of any of the rows: the parameters of the forward pass are equal in a group.
            running: tells between the steps of the pass which rows are not wanted any more, and is told how far the
                rows are.

        Returns for each row the output that it would have alone, or its error; for a row that is not wanted any more,
        anything. Exceptions of the model are passed through.

        Raises:
            AllStoppedError: no row is wanted any more.
        """

    @abstractmethod
    def postprocess(self, outputs: list[Any], call: Call) -> Any:
        """Turns the outputs of one input's rows, in order, into its result.

        Raises:
            PipeqError: ``inference_failed``.
        """

    def result(self, result: Any, value: Any, call: Call) -> Any:
        """The result of a task with one input, if ``pipe(x)`` has another form than ``pipe([x])[0]``."""
        return result

    def picture_memory(self, call: Call) -> PictureMemory:
        """Memory that the answer about a picture takes, for each of its pixels."""
        return PictureMemory()

    def release_memory(self) -> None:  # noqa: B027 - most have none to give back
        """Frees unused memory of the device, before a smaller batch is tried."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of its weights."""
        return 0

    @property
    def can_unload(self) -> bool:
        """Whether its weights can leave while it goes on preparing and finishing."""
        return False

    def unload(self) -> None:
        """Gives the memory of the weights back."""
        raise NotImplementedError

    def reload(self) -> None:
        """Brings the weights back, after :meth:`unload`.

        Raises:
            Exception: that is not possible; only a new process helps.
        """
        raise NotImplementedError

    def recover(self) -> None:  # noqa: B027 - most have nothing that a pass could leave behind
        """Restores the pipeline after a forward pass that raised, so that the next pass finds it unchanged.

        Raises:
            Exception: it cannot be restored; only a new process helps.
        """
