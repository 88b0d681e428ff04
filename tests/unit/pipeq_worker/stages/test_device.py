"""What stays on the board when the device is beyond use: from it the host reads what the process died of."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from pipeq_worker.models.constant_pipeline import ConstantPipeline
from pipeq_worker.settings.sections import PipelineSettings
from pipeq_worker.stages.device import Device, Run
from pipeq_worker.stages.steps import Stage, Steps
from pipeq_worker.stages.task import Item, Task

from tests.unit.pipeq_worker.stages.test_continuous import LastSteps


class Broken(ConstantPipeline):
    """The fault is noticed in the pass, or by the call that gives memory back after it."""

    def __init__(self, error: Exception, later: Exception | None = None) -> None:
        super().__init__("it", PipelineSettings(task="constant"))
        self._error, self._later = error, later

    def forward(self, features: list[Any], call: Any, running: Any = None) -> list[Any]:
        raise self._error

    def release_memory(self) -> None:
        if self._later is not None:
            raise self._later


STICKY = torch.AcceleratorError("CUDA error: device-side assert triggered")


@pytest.mark.parametrize(
    "pipeline",
    [Broken(STICKY), Broken(torch.OutOfMemoryError("CUDA out of memory"), later=STICKY)],
    ids=["in the pass", "after it"],
)
def test_the_batch_that_broke_the_device_stays_on_the_board(pipeline: Broken) -> None:
    board, lost, said = LastSteps(), threading.Event(), list[str]()

    def lose(reason: str) -> None:
        said.append(reason)
        said.append(str(list(board.steps.values())))
        lost.set()

    device = Device(Steps(board), lose)
    device.start()
    task = Task(id="a", pipeline=pipeline)
    device.run(Run(7, False, lambda: [Item(task, 0, 0, 1, "g", 1, 1)], lambda *_: None))
    assert lost.wait(10)
    assert said[0] == "the device is beyond use: AcceleratorError: CUDA error: device-side assert triggered"
    assert said[1] == str([(Stage.FORWARD, 7)])
