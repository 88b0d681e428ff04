"""The task type ``constant``: a pipeline without a model, for trying out, measuring and stress-testing all the rest."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.status import ModelInfo

from pipeq_worker.models import identity
from pipeq_worker.models.call import Call
from pipeq_worker.models.params.rules import Number, UnfitError, display
from pipeq_worker.models.pipeline import BatchLimits, Pipeline, Prepared
from pipeq_worker.models.running import Running
from pipeq_worker.models.task_types import find
from pipeq_worker.settings.sections import PipelineSettings

#: The result of every task.
RESULT = "constant"
LONGEST_S = 86_400
#: A pass of many seconds looks this often whether anybody still wants it.
STEP_S = 0.05


class ConstantPipeline(Pipeline):
    """Accepts any input and returns :data:`RESULT`. The parameter ``seconds`` (0) is the duration of a forward pass."""

    prepares_together = True
    parameters = ("seconds",)

    def __init__(self, name: str, settings: PipelineSettings) -> None:
        self.name = name
        self.task_type = find(settings.task or name)
        self.settings = settings
        self.model = ModelInfo(id=RESULT)
        self.identity = identity.of_settings(settings, self.task_type.name, RESULT, None, None)
        #: The call of a task without parameters: nearly all have none.
        self._plain: Call | None = None
        self.limits = BatchLimits(
            max_size=settings.max_batch_size,
            max_cost=settings.max_batch_size if settings.max_batch_cost == "auto" else settings.max_batch_cost,
            max_wait_s=settings.max_wait_ms / 1000,
            weight=settings.weight,
        )

    def merge(self, params: Mapping[str, Any]) -> Call:
        if params:
            return self._merged(params)
        if self._plain is None:
            self._plain = self._merged({})
        return self._plain

    def _merged(self, params: Mapping[str, Any]) -> Call:
        merged = {"seconds": 0, **self.settings.params, **params}
        seconds = merged["seconds"]
        for name in merged.keys() - {"seconds"}:
            sentence = f"{self.name!r} takes no parameter {display(name)}; it takes: seconds"
            raise PipeqError(ErrorCode.INVALID_PARAMS, sentence)
        try:
            checked = Number(0, LONGEST_S).check(0 if seconds is None else seconds, {}, "seconds")
        except UnfitError as error:
            sentence = f"parameter 'seconds' of {self.name!r} is {display(seconds)}, {error.sentence}"
            raise PipeqError(ErrorCode.INVALID_PARAMS, sentence) from None
        return Call({"seconds": checked}, key=checked)

    def prepare(self, value: Any, call: Call) -> Iterator[Prepared]:
        yield from self.prepare_together([value], call)

    def prepare_together(self, values: Sequence[Any], call: Call) -> list[Prepared]:
        return [Prepared(None, (self.name, call.key), 1, 0)] * len(values)

    def forward(self, features: list[Any], call: Call, running: Running | None = None) -> list[Any]:
        until = time.monotonic() + call.params["seconds"]
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, STEP_S))
            if running is not None:
                running.check()
        return [RESULT] * len(features)

    def postprocess(self, outputs: list[Any], call: Call) -> Any:
        return outputs[0]


def load_constant_pipeline(name: str, settings: PipelineSettings) -> ConstantPipeline:
    """Makes the pipeline; there is nothing to load."""
    pipeline = ConstantPipeline(name, settings)
    pipeline.merge({})
    return pipeline
