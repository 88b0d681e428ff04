from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from pipeq_worker.models.constant_pipeline import ConstantPipeline
from pipeq_worker.schedule.costs import Pass
from pipeq_worker.settings.sections import PipelineSettings
from pipeq_worker.stages.infer import DeviceLostError, infer
from pipeq_worker.stages.task import Item, Task


class Model(ConstantPipeline):
    """A pipeline on a device that a test cannot have: one that runs out of memory, or breaks."""

    def __init__(self, fits: int = 1000, fatal: Exception | None = None, short: bool = False) -> None:
        super().__init__("model", PipelineSettings(task="constant"))
        self.fits, self.fatal, self.short = fits, fatal, short
        self.sizes: list[int] = []
        self.recovered, self.spoilt = 0, False

    def release_memory(self) -> None:
        """The stand-in keeps no memory."""

    def recover(self) -> None:
        self.recovered = self.recovered + 1
        if self.spoilt:
            raise OSError("no such model")

    def forward(self, features: list[Any], call: Any, running: Any = None) -> list[Any]:
        self.sizes.append(len(features))
        if self.fatal:
            raise self.fatal
        if len(features) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if "bad" in features:
            raise ValueError("a bad row\nwith a long story")
        return features[:-1] if self.short else [f"out {one}" for one in features]


def rows(*features: str) -> list[Item[Task]]:
    return [Item(Task(id=one), 0, 0, one, group="g", cost=1, nbytes=1) for one in features]


def codes(items: list[Item[Task]]) -> list[str | None]:
    return [item.error.code if item.error is not None else None for item in items]


@pytest.mark.parametrize("at", range(7))
def test_only_the_bad_one_fails(at: int) -> None:
    names = [str(number) for number in range(7)]
    names[at] = "bad"
    items = rows(*names)
    infer(Model(), items)
    assert [item.output for item in items] == [None if name == "bad" else f"out {name}" for name in names]
    error = items[at].error
    assert error is not None
    assert error.args == ("inference_failed", "'model' failed on this input: ValueError: a bad row", False)


def test_a_batch_that_does_not_fit_is_halved_until_it_does() -> None:
    model, items = Model(fits=2), rows(*map(str, range(8)))
    infer(model, items)
    assert all(item.error is None for item in items)
    assert max(size for size in model.sizes if size <= 2) == 2


class Full(Model):
    """Its passes hold tensors, and ask for more than there is while earlier ones hold theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.held: weakref.WeakSet[Activations] = weakref.WeakSet()
        self.still_held: list[int] = []

    def release_memory(self) -> None:
        self.still_held.append(len(self.held))

    def forward(self, features: list[Any], call: Any, running: Any = None) -> list[Any]:
        activations = Activations()
        self.held.add(activations)
        try:
            return self.layer(features, activations)
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError("as libraries wrap it") from error

    def layer(self, features: list[Any], activations: Activations) -> list[Any]:
        if len(self.held) > 1 or len(features) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [f"out {one}" for one in features]


class Activations:
    """What a pass has computed so far."""


def test_what_a_failed_pass_held_is_free_for_its_halves() -> None:
    model, items = Full(), rows(*map(str, range(8)))
    gc.disable()  # nothing here may wait for the garbage collector
    try:
        infer(model, items)
    finally:
        gc.enable()
    assert all(item.error is None for item in items)
    assert set(model.still_held) == {0}


def test_each_batch_that_is_halved_is_told() -> None:
    told: list[tuple[int, str]] = []
    infer(Model(fits=2), rows(*map(str, range(8))), lambda size, code: told.append((size, code)))
    assert told == [(8, "out_of_memory"), (4, "out_of_memory"), (4, "out_of_memory")]
    told.clear()
    infer(Model(), rows("a", "bad"), lambda size, code: told.append((size, code)))
    assert told == [(2, "inference_failed")]


def test_one_that_does_not_fit_alone_is_out_of_memory() -> None:
    items = rows("a")
    infer(Model(fits=0), items)
    assert codes(items) == ["out_of_memory"]


def test_a_model_that_loses_rows_is_an_error_of_every_item() -> None:
    items = rows("a", "b")
    infer(Model(short=True), items)
    assert codes(items) == ["inference_failed"] * 2


@pytest.mark.parametrize("error", [torch.AcceleratorError("device-side assert"), RuntimeError("CUDA error: assert")])
def test_a_broken_device_is_not_blamed_on_the_items(error: Exception) -> None:
    items = rows("a", "b")
    with pytest.raises(DeviceLostError):
        infer(Model(fatal=error), items)
    assert [item.error for item in items] == [None, None]


def test_after_each_pass_that_raised_the_model_recovers() -> None:
    """Runs before the innocent half, because the pass that raised may have left changes behind."""
    model = Model()
    infer(model, rows("a", "b", "bad", "d"))
    assert model.recovered == 3
    model.spoilt = True
    with pytest.raises(DeviceLostError, match="could not be loaded anew after a failed pass: OSError: no such model"):
        infer(model, rows("bad"))


def test_each_pass_is_reported_with_whether_it_had_enough_memory() -> None:
    passes: list[Pass] = []
    items = rows(*"abcde")
    items[4].cost = 3
    infer(Model(fits=3), items, on_pass=passes.append)
    assert [(one.items, one.padded, one.fits) for one in passes] == [(5, 15, False), (2, 2, True), (3, 9, True)]
    assert all(one.seconds >= 0 for one in passes)
    infer(Model(), rows("bad"), on_pass=passes.append)  # another fault says nothing about the time of a pass
    assert len(passes) == 3
