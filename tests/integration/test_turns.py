"""Large tasks take turns with small ones at the threads that fetch, prepare and finish; shown by order, not by time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pipeq_worker.models.call import Call
from pipeq_worker.models.constant_pipeline import ConstantPipeline
from pipeq_worker.models.pipeline import Prepared
from pipeq_worker.models.task_types import find
from pipeq_worker.settings.sections import PipelineSettings, ResultSettings
from pipeq_worker.stages import fetching, placing, preparation
from pipeq_worker.stages.placing import Placer
from pipeq_worker.stages.task import Task

from tests.stages import Files, Front

#: Inputs of the large task.
MANY = 400
MIB = 2**20


class Clock:
    """A clock on which each step takes as long as the test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (fetching, preparation, placing):
        monkeypatch.setattr(module, "time", clock)
    return clock


class Texts(ConstantPipeline):
    """Takes references to texts. Each takes a hundredth of a second of the clock to prepare."""

    lets_go_of_inputs = True

    def __init__(self, clock: Clock) -> None:
        super().__init__("texts", PipelineSettings(task="constant"))
        self.task_type = find("image-to-text")  # its only input is a reference
        self._clock = clock
        self.held: list[int] = []
        self.task: Task | None = None

    def prepare(self, value: Any, call: Call) -> Iterator[Prepared]:
        self._clock.now += 0.01
        if self.task is not None:
            self.held.append(self.task.held_bytes)
        yield Prepared(None, self.name, 1, 0)


def front(clock: Clock, monkeypatch: pytest.MonkeyPatch, size: int = 1, **settings: Any) -> tuple[Front, Texts]:
    """A pipeline whose pictures are the bytes themselves."""
    monkeypatch.setattr(preparation.decode, "decode", lambda media, data, *rest: data)
    files = {f"file:///{name}/{at}": bytes(size) for name in ("large", "small") for at in range(MANY)}
    reader = Files(files, lambda uri: setattr(clock, "now", clock.now + 0.01))
    pipeline = Texts(clock)
    more = {"fetch_threads": 1, "prepare_threads": 1, "inputs": {"allow": ("file:///",)}, **settings}
    return Front(pipeline, reader, **more), pipeline


def refs(name: str, count: int) -> list[dict[str, str]]:
    return [{"uri": f"file:///{name}/{at}"} for at in range(count)]


def both(one: Front, smalls: int = 5) -> tuple[Task, list[Task]]:
    """Submits a large task, and small ones once it has begun; waits for all.

    Each small one has its place in the queue of the thread that fetches before the next input is read. Otherwise this
    would be a race: reading takes no time here, and may go through hundreds of inputs before the thread that accepts
    tasks gets Python's lock.
    """
    numbers = itertools.count(2)
    small: list[Task] = []
    read = one.files._on_read
    reading = one.preparation._lanes["texts"].reading

    def on_read(uri: str) -> None:
        read(uri)
        if "large" in uri and len(small) < smalls:
            small.append(one.submit(refs("small", 1), number=next(numbers)))
            until = time.monotonic() + 60
            while small[-1] not in reading.waiting():
                assert time.monotonic() < until
                time.sleep(0.001)

    one.files._on_read = on_read
    large = one.submit(refs("large", MANY), number=1)
    one.wait([large])
    one.wait(small)
    return large, small


def test_a_small_task_is_fetched_and_prepared_while_a_large_one_is(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = front(clock, monkeypatch)
    large, small = both(one)
    assert large.error is None
    assert [task.error for task in small] == [None] * 5
    # A slice is five reads long here, so a few of those slices at most come before each of them.
    last = max(at for at, uri in enumerate(one.files.read) if "small" in uri)
    assert last < 60
    made = [item.task.number for item in one.items]
    assert made.count(1) == MANY
    # The large one is prepared after a second of fetching, and before all of it is fetched.
    assert max(at for at, number in enumerate(made) if number != 1) < 60
    one.close()


def test_a_task_is_prepared_before_all_of_it_is_fetched_and_gives_back_what_it_held(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """400 inputs of 1 MiB where all tasks together may hold 16: no more than its share is there at a time."""
    one, _ = front(clock, monkeypatch, MIB, prefetch_bytes=16 * MIB)
    most = []
    reserve = one.preparation.hold

    def hold(task: Task, more: int) -> None:
        reserve(task, more)
        most.append(task.held_bytes)

    monkeypatch.setattr(one.preparation, "hold", hold)
    monkeypatch.setattr(one.preparation._fetching, "_hold", hold)
    large, small = both(one)
    assert large.error is None
    assert len(one.items) == MANY + len(small)
    assert max(most) <= 4 * MIB
    assert one.preparation._lanes["texts"].budget.used == large.held_bytes + sum(task.held_bytes for task in small)
    assert large.held_bytes == 0
    one.close()


def test_what_a_task_refers_to_is_bounded_before_it_is_read(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many references in one input, of which no part can be prepared before all are there."""
    one, pipeline = front(clock, monkeypatch, MIB, inputs={"allow": ("file:///",), "max_decoded_bytes": 8 * MIB})
    pipeline.task_type = find("keypoint-matching")
    error = one.error({"images": refs("large", MANY)})
    assert error is not None
    assert error.code == "input_too_large"
    assert "[inputs] max_decoded_bytes" in error.message
    assert len(one.files.read) == 8
    one.close()


def test_an_error_of_a_later_input_ends_the_task_and_names_the_input(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = front(clock, monkeypatch)
    one.files.files.pop("file:///large/300")
    error = one.error(refs("large", MANY))
    assert error is not None
    assert len(one.items) < MANY
    assert one.preparation._lanes["texts"].budget.used <= 300
    one.close()


def test_results_are_made_in_turns(clock: Clock) -> None:
    """A task of many inputs is finished in slices; what is made is not made again."""

    class Slow(ConstantPipeline):
        made = 0

        def postprocess(self, outputs: list[Any], call: Call) -> Any:
            clock.now += 0.01
            Slow.made += 1
            return Slow.made

    pipeline = Slow("slow", PipelineSettings(task="constant"))
    placer = Placer(ResultSettings(), writer=None, signatures=None)  # type: ignore[arg-type] - nothing is written
    task = Task(id="large", pipeline=pipeline, is_list=True, outputs=[[None]] * 100)
    turns = 0
    while placer.convert(task, clock.now + 0.05) is None:
        turns += 1
        assert Slow.made == len(task.results) < 100
    assert turns in range(15, 25)
    assert task.error is None
    assert task.result == b"[" + b",".join(b"%d" % at for at in range(1, 101)) + b"]"
    assert (task.outputs, task.results, task.inputs) == ([], [], [])
    small = Task(id="small", pipeline=pipeline, outputs=[[None]])
    assert placer.convert(small, clock.now + 0.05) is not None
    placer.close()
