"""COMPANY: light tasks that have come together share a step; what cannot be shared is done for each alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq_worker.models.call import Call
from pipeq_worker.models.constant_pipeline import ConstantPipeline
from pipeq_worker.models.pipeline import Prepared
from pipeq_worker.stages import company
from pipeq_worker.stages.company import Company
from pipeq_worker.stages.steps import Stage, Steps
from pipeq_worker.stages.task import Input, Task
from pipeq_worker.stages.threads import MOST_TOGETHER, Threads

from tests.unit.pipeq_worker.stages.test_parts import ListLoop


class Noted:
    """A board that remembers which tasks shared a step."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, ...]] = []

    def begin(self, stage: Stage, number: int, *others: int) -> None:
        self.steps.append((number, *others))

    def end(self) -> None:
        pass


class Together(ConstantPipeline):
    """Prepares texts together, unless one of them is ``alone`` or ``broken``."""

    def __init__(self) -> None:
        self.name = "it"
        self.calls: list[list[str]] = []

    def prepare_together(self, values: Sequence[Any], call: Call) -> list[Prepared] | None:
        self.calls.append(list(values))
        if "broken" in values:
            raise RuntimeError("broken")
        return None if "alone" in values else [Prepared(value, "g", len(value), 1) for value in values]


class Bench:
    """A company, with what it calls."""

    def __init__(self) -> None:
        self.loop, self.board, self.pipeline = ListLoop(), Noted(), Together()
        self.threads = Threads(1, "it", loop=self.loop)
        self.threads._median_s = 0.0001
        self.alone: list[str] = []
        self.prepared: list[str] = []
        self.made: list[tuple[str, Any]] = []
        self.calls: dict[str, Call] = {}
        self.company = Company(
            self.threads,
            Steps(self.board),
            alone=lambda task: self.alone.append(task.id),
            accept=self.accept,
            prepare=lambda task: self.prepared.append(task.id),
            go_on=lambda task: self.made.append((task.id, task.held_up.features if task.held_up else None)),
        )

    def accept(self, task: Task) -> None:
        inputs, params = json.loads(task.body)
        if inputs == "refused":
            task.fail(PipeqError(ErrorCode.INVALID_INPUT, "no"))
            return
        values = inputs if isinstance(inputs, list) else [inputs]
        task.pipeline, task.is_list = self.pipeline, isinstance(inputs, list)
        task.call = self.calls.setdefault(str(params), Call())
        task.inputs = [Input({"text": value}, True) for value in values]
        assert task.company is not None
        task.company.append(task)

    def run(self, inputs: Sequence[Any], params: Mapping[str, Any] | None = None) -> None:
        for at, value in enumerate(inputs):
            body = json.dumps([value, (params or {}).get(str(value), {})]).encode()
            self.company.add(Task(id=str(value), number=at + 1, body=body))
        while self.loop.steps:
            self.loop.steps.pop(0)()


def test_tasks_that_wait_share_a_step_and_a_call() -> None:
    bench = Bench()
    bench.run(["a", "b", "c"])
    assert bench.board.steps == [(1, 2, 3)]
    assert bench.pipeline.calls == [["a", "b", "c"]]
    assert bench.made == [("a", "a"), ("b", "b"), ("c", "c")]
    assert bench.alone == bench.prepared == []


def test_one_that_waits_alone_goes_the_usual_way() -> None:
    bench = Bench()
    bench.run(["a"])
    assert bench.alone == ["a"]
    assert bench.pipeline.calls == []


def test_other_parameters_make_another_call_and_lists_none() -> None:
    bench = Bench()
    bench.run(["a", "b", ["x", "y"], "c", "d", "e"], {"b": {"top_k": 1}, "d": {"top_k": 1}, "e": {"top_k": 2}})
    assert bench.pipeline.calls == [["a", "c"], ["b", "d"]]
    assert bench.prepared == ["['x', 'y']", "e"]


@pytest.mark.parametrize("bad", ["alone", "broken"])
def test_if_they_cannot_be_prepared_together_each_is_prepared_alone(bad: str) -> None:
    bench = Bench()
    bench.run(["a", bad, "c"])
    assert bench.prepared == ["a", bad, "c"]
    assert bench.made == []


def test_one_that_is_refused_leaves_the_others_as_they_are() -> None:
    bench = Bench()
    bench.run(["a", "refused", "c"])
    assert bench.made == [("a", "a"), ("c", "c")]


def test_a_step_is_bounded_in_x(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.run([str(at) for at in range(MOST_TOGETHER + 5)])
    assert [len(one) for one in bench.board.steps] == [MOST_TOGETHER, 5]
    monkeypatch.setattr(company, "MOST_BYTES", 40)
    bench = Bench()
    bench.run(["aaaa", "bbbb", "cccc", "dddd", "eeee"])
    assert [len(one) for one in bench.board.steps] == [3, 2]


def test_long_texts_leave_the_loop_although_they_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them counts with its share of the step, and accepting one is not taken for all that it needs."""
    now = [0.0]
    monkeypatch.setattr("pipeq_worker.stages.threads.time.monotonic", lambda: now[0])
    bench = Bench()
    real = bench.pipeline.prepare_together

    def slow(values: Sequence[Any], call: Call) -> list[Prepared] | None:
        now[0] += 0.005 * len(values)
        return real(values, call)

    bench.pipeline.prepare_together = slow  # type: ignore[method-assign]
    for _ in range(60):
        bench.run(["a", "b"])
    assert not bench.threads.has_short_steps
