"""Items into a stream and out of it, whatever the stream does. The stream is the test's own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from pipeq.contract.errors import PipeqError
from pipeq_worker.models.constant_pipeline import ConstantPipeline
from pipeq_worker.models.running import Row
from pipeq_worker.models.stream import Done, Stream, StreamLostError
from pipeq_worker.settings.sections import PipelineSettings
from pipeq_worker.stages.closing import close
from pipeq_worker.stages.continuous import StreamStage
from pipeq_worker.stages.device import Ran, Run
from pipeq_worker.stages.shelf import Shelf
from pipeq_worker.stages.steps import Stage, Steps
from pipeq_worker.stages.task import Item, Task


class Slow(Stream):
    """A row takes 30 ms; one of ``bad`` breaks the stream with everything inside, one of ``refused`` fails alone.

    The first time, one of ``bad company`` does so when others are beside it.
    """

    def __init__(self, slots: int, error: Exception) -> None:
        self.slots, self._error = slots, error
        self.starts, self.most, self.beside = 0, 0, list[tuple[str, int]]()
        self._inside: dict[Done, str] = {}
        self._lock = threading.Lock()
        self.is_lost = False

    def start(self) -> None:
        self.starts += 1
        self.is_lost = False

    def submit(self, features: Any, call: Any, row: Row, done: Done) -> None:
        with self._lock:
            is_lost = self.is_lost
            if not is_lost:
                self._inside[done] = features
                self.most = max(self.most, len(self._inside))
                self.beside.append((features, len(self._inside)))
        if is_lost:
            done(StreamLostError())
            return
        threading.Timer(0.03, self._end, (features, row, done)).start()

    def _end(self, features: str, row: Row, done: Done) -> None:
        with self._lock:
            if done not in self._inside:
                return
            # It waits for company, which does not leave before: on a busy machine, timers run out in any order.
            is_early = len(self._inside) < 2 if features == "bad company" else "bad company" in self._inside.values()
            if self.starts < 2 and is_early:
                threading.Timer(0.03, self._end, (features, row, done)).start()
                return
            ended = {done: self._inside.pop(done)}
            if features.startswith("bad"):
                ended |= self._inside
                self._inside, self.is_lost = {}, True
        for at, one in enumerate(ended):
            if self.is_lost and features.startswith("bad"):
                error = StreamLostError()
                # As who enters when it is lost already, the last one is not told why.
                error.__cause__ = self._error if at < max(1, len(ended) - 1) else None
                one(error)
            elif features.startswith("refused"):
                one(PipeqError("invalid_input", "it is too long"))
            else:
                one(None if row.is_over else f"out {features}")

    def still_s(self) -> float:
        return 0.0

    def stop(self) -> None:
        """Nothing of it stays."""


class LastSteps:
    """A board that tells what stands on it."""

    def __init__(self) -> None:
        self.steps: dict[int, tuple[Stage, int]] = {}

    def begin(self, stage: Stage, number: int) -> None:
        self.steps[threading.get_ident()] = stage, number

    def end(self) -> None:
        self.steps.pop(threading.get_ident(), None)


class Stages:
    def __init__(self, slots: int = 4, error: Exception | None = None) -> None:
        self.pipeline = ConstantPipeline("it", PipelineSettings(task="constant"))
        self.stream = self.pipeline.stream = Slow(slots, error or RuntimeError("a bad row\nwith a long story"))
        self.board = LastSteps()
        self.shelf, self.steps = Shelf(2**30), Steps(self.board)
        self.done: list[Task] = []
        self.ran: list[Ran] = []
        self.lost: list[str] = []
        self._changed = threading.Condition()
        self.stage = StreamStage(self.pipeline, self.steps, self._after, self.lost.append)
        self.stage.start()

    def _after(self, items: list[Item], ran: Ran) -> None:
        with self._changed:
            self.ran.append(ran)
            self.done += close(self.shelf, items, ran)
            self._changed.notify_all()

    def run(self, *names: str, alone: bool = False) -> list[Task]:
        tasks = []
        for name in names:
            task = Task(id=name, pipeline=self.pipeline, outputs=[[None]])
            item = Item(task, 0, 0, name, "g", 1, 1)
            task.times.enters("prepare")
            task.opened()
            task.prepared()
            self.shelf.put(item)
            self.stage.run(Run(item.number, alone, partial(self.shelf.find, [item.number]), self._after))
            tasks.append(task)
        return tasks

    def wait(self, tasks: list[Task]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: set(tasks) <= set(self.done), 20)


@pytest.fixture
def stages() -> Iterator[Stages]:
    made = Stages()
    yield made
    made.stage.close()


def outcome(task: Task) -> Any:
    return task.outputs[0][0] if task.error is None else task.error.code


def test_items_go_in_as_soon_as_there_is_a_place(stages: Stages) -> None:
    tasks = stages.run(*map(str, range(30)))
    stages.wait(tasks)
    assert [outcome(task) for task in tasks] == [f"out {at}" for at in range(30)]
    assert stages.stream.most == 4
    assert sorted(one.number for one in stages.ran) == list(range(1, 31))
    assert len(stages.done) == 30
    assert all("infer" in task.times.told(time.monotonic()) for task in tasks)
    assert max(task.batch.size for task in tasks if task.batch is not None) == 4


def test_an_item_that_is_refused_fails_alone(stages: Stages) -> None:
    tasks = stages.run("a", "refused", "b")
    stages.wait(tasks)
    assert [outcome(task) for task in tasks] == ["out a", "invalid_input", "out b"]
    assert stages.stream.starts == 1


@pytest.mark.parametrize("at", range(6))
def test_what_breaks_the_stream_fails_alone(stages: Stages, at: int) -> None:
    names = [str(number) for number in range(6)]
    names[at] = "bad"
    tasks = stages.run(*names)
    stages.wait(tasks)
    assert [outcome(task) for task in tasks] == [
        "inference_failed" if name == "bad" else f"out {name}" for name in names
    ]
    error = tasks[at].error
    assert error is not None
    assert error.message == "'it' failed on this input: RuntimeError: a bad row"
    assert stages.stream.beside[-1][1] >= 1
    later = stages.run("later", "too")
    stages.wait(later)
    assert [outcome(task) for task in later] == ["out later", "out too"]
    assert not stages.lost


def test_too_little_memory_leaves_fewer_places(stages: Stages) -> None:
    stages.stage.close()
    stages = Stages(slots=8, error=torch.OutOfMemoryError("no memory"))
    tasks = stages.run("bad company", *map(str, range(7)))
    stages.wait(tasks)
    assert outcome(tasks[0]) == "out_of_memory"
    assert [outcome(task) for task in tasks[1:]] == [f"out {at}" for at in range(7)]
    assert stages.stream.slots < 8
    stages.stage.close()


def test_a_broken_device_is_told_and_blamed_on_nobody(stages: Stages) -> None:
    stages.stage.close()
    stages = Stages(error=torch.AcceleratorError("device-side assert"))
    tasks = stages.run("bad", "a")
    until = time.monotonic() + 10
    while not stages.lost:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert "the stream of 'it' is beyond use: AcceleratorError" in stages.lost[0]
    assert not any(task.error for task in tasks)
    assert tasks[0] not in stages.done
    # From the board the host reads which items the process died of: one of them tells all that ran beside it.
    ((stage, number),) = stages.board.steps.values()
    assert stage is Stage.FORWARD
    assert [item.number for item in stages.shelf.find([number])] == [number]


def test_an_item_under_suspicion_is_alone_in_the_process(stages: Stages) -> None:
    before = stages.run(*map(str, range(9)))
    (alone,) = stages.run("suspect", alone=True)
    after = stages.run(*map(str, range(9, 12)))
    stages.wait([*before, alone, *after])
    assert ("suspect", 1) in stages.stream.beside
    assert stages.stream.beside[9] == ("suspect", 1)
    assert outcome(alone) == "out suspect"


def test_other_steps_that_must_be_alone_get_their_turn(stages: Stages) -> None:
    tasks = stages.run(*map(str, range(200)))
    while not stages.done:
        time.sleep(0.001)
    with stages.steps.step(Stage.PREPARE, 1, alone=True):
        ended = len(stages.done)
        assert ended < 200
        time.sleep(0.1)
        assert len(stages.done) == ended
    stages.wait(tasks)


def test_a_cancelled_item_does_not_go_in(stages: Stages) -> None:
    running = stages.run(*"abcd")
    (waiting,) = stages.run("e")
    waiting.is_cancelled = True
    stages.wait(running)
    until = time.monotonic() + 10
    while len(stages.ran) < 5:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert "e" not in [name for name, _ in stages.stream.beside]
