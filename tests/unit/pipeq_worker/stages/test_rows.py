"""What is seen of a task while its forward pass runs: that nobody wants it any more, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from pipeq_worker.models.constant_pipeline import ConstantPipeline
from pipeq_worker.models.running import AllStoppedError, Row, Running
from pipeq_worker.settings.sections import PipelineSettings
from pipeq_worker.stages.far import Far
from pipeq_worker.stages.infer import infer
from pipeq_worker.stages.task import Input, Item, Task


def item(task: Task, index: int = 0) -> Item:
    return Item(task, index, 0, f"row {index}", group="g", cost=1, nbytes=1)


#: Steps of a forward pass, and their seconds.
STEPS, STEP_S = 200, 0.01


class Steps(ConstantPipeline):
    """A pipeline whose forward pass takes steps until nobody wants it."""

    def __init__(self, at: Callable[[int], None] = lambda step: None) -> None:
        super().__init__("steps", PipelineSettings(task="constant"))
        self.recovered = 0
        #: The last step of the last pass.
        self.step = 0
        self._at = at

    def recover(self) -> None:
        self.recovered += 1

    def forward(self, features: list[Any], call: Any, running: Running | None = None) -> list[Any]:
        assert running is not None
        for self.step in range(1, STEPS + 1):
            running.check()
            running.advance([self.step] * len(features), STEPS)
            self._at(self.step)
            time.sleep(STEP_S)
        return features


def test_a_pass_whose_rows_are_all_stopped_ends_without_an_error() -> None:
    items = [item(Task(id=one)) for one in "ab"]

    def stop(step: int) -> None:
        if step >= 10:
            items[step % 2].row.stop = True

    pipeline = Steps(stop)
    infer(pipeline, items)
    # The last of them was stopped at the step before.
    assert pipeline.step == 12
    assert [(one.output, one.error) for one in items] == [(None, None)] * 2
    assert pipeline.recovered == 0, "nothing failed, so nothing is to be restored"


def test_a_row_past_its_deadline_times_out_and_the_others_do_not() -> None:
    pipeline, items = Steps(), [item(Task(id="a")), item(Task(id="b"))]
    items[0].row.deadline = time.monotonic() + STEPS * STEP_S / 10
    infer(pipeline, items)
    error = items[0].error
    assert error is not None
    assert (error.code, error.retryable) == ("timeout", False)
    assert error.message.startswith("'steps' stopped when the time of the task (`timeout_s`) was over after 200 tokens")
    assert (items[1].output, items[1].error) == ("row 0", None)

    alone = item(Task(id="c"))
    alone.row.deadline = time.monotonic() + STEPS * STEP_S / 20
    infer(pipeline, [alone])
    assert pipeline.step < STEPS
    assert alone.error is not None
    assert alone.error.code == "timeout"


def test_rows_that_are_over() -> None:
    assert Row().is_over is False
    assert Row(stop=True).is_over
    assert Row(deadline=time.monotonic() - 1).is_over
    running = Running([Row(stop=True), Row()])
    running.check()
    assert running.over() == [True, False]
    running.rows[1].stop = True
    with pytest.raises(AllStoppedError):
        running.check()
    with pytest.raises(ValueError, match="argument"):
        running.advance([1], 2)


#: A task's outputs, whether all is prepared, how far its last row is, and what is said of it.
FAR: list[tuple[list[list[Any]], bool, bool, tuple[int, int | None], Any]] = [
    ([[None]], False, False, (3, 9), None),
    ([[None]], False, True, (0, None), None),
    ([["x"], [], []], True, False, (0, None), (0, 3, "inputs")),
    ([["x"], [None], []], True, False, (0, None), (1, 3, "inputs")),
    ([["x"], [None], [None]], True, False, (0, None), (1, 3, "inputs")),
    ([["x"], ["x", None], ["x"]], True, True, (0, None), (2, 3, "inputs")),
    ([["x"], ["x"], ["x"]], True, False, (0, None), (2, 3, "inputs")),
    ([[], [], []], True, False, (0, None), (0, 3, "inputs")),
    ([["x", None, "x"]], False, False, (5, 9), (2, None, "chunks")),
    ([["x", None, "x"]], False, True, (5, 9), (2, 3, "chunks")),
    ([["x", None]], True, True, (5, 9), (1, 2, "chunks")),
    ([[None]], True, True, (5, 9), (5, 9, "tokens")),
    ([[None]], True, True, (5, None), (5, None, "tokens")),
    ([[None]], False, True, (5, 9), (5, 9, "tokens")),
]


@pytest.mark.parametrize("case", FAR, ids=str)
def test_how_far_a_task_is(case: tuple[list[list[Any]], bool, bool, tuple[int, int | None], Any]) -> None:
    outputs, is_list, all_prepared, (done, total), said = case
    task = Task(id="a", is_list=is_list, inputs=[Input({}, is_plain=True) for _ in outputs])
    task.outputs, task.items = outputs, sum(map(len, outputs))
    task.row = Row(done=done, total=total)
    task.opened()
    if all_prepared:
        assert not task.prepared()
    found = task.progress()
    assert (None if found is None else (found.done, found.total, found.unit)) == said


def test_what_takes_long_is_told_when_it_has_come_further() -> None:
    told: list[tuple[str, int]] = []
    inside = [Task(id="a"), Task(id="b"), Task(id="c")]
    for task in inside:
        task.outputs, task.items, task.row = [[None]], 1, Row(done=1)
        task.prepared()
    inside[2].row = Row()
    far = Far(lambda: inside, lambda task, progress: told.append((task.id, progress.done)))
    far.look()
    assert told == [], "it may be done before the next look"
    far.look()
    assert told == [("a", 1), ("b", 1)]
    far.look()
    assert len(told) == 2, "nothing has moved"
    assert inside[0].row is not None
    inside[0].row.done, inside[1].is_cancelled = 5, True
    far.look()
    assert told[2:] == [("a", 5)]
    del inside[0]
    far.look()
    assert len(told) == 3
