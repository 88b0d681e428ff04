"""SERVED: what the host knows of a pipeline that a child has loaded."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Self

from pipeq.contract.job import VERSION as JOBS_VERSION
from pipeq.contract.status import ModelInfo

from pipeq_worker.children import protocol
from pipeq_worker.models.pipeline import BatchLimits
from pipeq_worker.models.task_types import find
from pipeq_worker.schedule.costs import Pass


@dataclass(frozen=True)
class Served:
    """A pipeline, as the child that has loaded it describes it."""

    name: str
    #: Name of its task type.
    task_type: str
    model: ModelInfo
    limits: BatchLimits
    #: Places for items that run one by one; 0 if they run in batches.
    slots: int = 0
    #: Passes that ran while it was loaded.
    first_passes: tuple[Pass, ...] = ()
    #: What decides its answers: aspect -> a short text.
    identity: dict[str, str] = field(default_factory=dict)
    #: The names of the parameters that a task may give.
    parameters: tuple[str, ...] = ()

    @classmethod
    def of(cls, loaded: protocol.Loaded) -> Self:
        """Reads the child's message."""
        limits = BatchLimits(**{one.name: getattr(loaded, one.name) for one in fields(BatchLimits)})
        model = ModelInfo.model_validate_json(loaded.model)
        passes = tuple(Pass(*one) for one in loaded.first_passes)
        names = tuple(loaded.parameters)
        return cls(loaded.name, loaded.task_type, model, limits, loaded.slots, passes, loaded.identity, names)

    def registration(self) -> dict[str, Any]:
        """What producers may know of it: the value under its name in the hash of known pipelines."""
        row = find(self.task_type)
        takes = "object" if row.main is None else str(row.fields[row.main])
        model = self.model.model_dump()
        parameters = list(self.parameters)
        return {"task": self.task_type, "model": model, "takes": takes, "params": parameters, "jobs": JOBS_VERSION}
