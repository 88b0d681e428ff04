"""When a worker stops taking a pipeline's tasks because of its own faults, and when it takes them again."""

from __future__ import annotations

import pytest
from pipeq.contract.errors import Blame, PipeqError
from pipeq_worker.delivery.fitness import WORKS_S, Fitness


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Worker:
    """Its fitness, and how often it gave back what it had."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.fitness = Fitness(3, 10, 30, self.clock)
        self.unfit: list[str] = []
        self.fitness.on_unfit = self.unfit.append

    def fails(self, blame: Blame = Blame.WORKER, name: str = "a", *, is_retried: bool = True) -> None:
        error = PipeqError("input_forbidden", "s3://talks/one/two.flac: the store refused this worker's credentials")
        error.blame = blame
        self.fitness.ended(name, error, is_retried=is_retried)

    def succeeds(self, name: str = "a") -> None:
        self.fitness.ended(name, None, is_retried=False)


def test_it_stops_after_some_in_a_row_and_says_why_without_the_object() -> None:
    worker = Worker()
    worker.fails()
    worker.fails(Blame.EITHER)
    assert worker.fitness.most("a") is None
    worker.fails()
    assert (worker.fitness.most("a"), worker.fitness.most("b"), worker.unfit) == (0, None, ["a"])
    (reason,) = worker.fitness.unfit().values()
    assert reason.startswith("3 tasks in a row failed by a fault of this worker (s3://talks/...: the store refused")
    # What was inside ends in the same way, and changes nothing.
    for _ in range(20):
        worker.fails()
    worker.clock.now += 10.1
    assert (worker.fitness.most("a"), worker.unfit) == (1, ["a"])


@pytest.mark.parametrize("blame", [Blame.TASK, Blame.NOT_TRIED])
def test_what_is_not_its_fault_does_not_stop_it(blame: Blame) -> None:
    worker = Worker()
    for _ in range(100):
        worker.fails(blame)
    assert worker.fitness.most("a") is None


def test_a_place_that_no_worker_may_touch_is_the_tasks_fault() -> None:
    worker = Worker()
    for _ in range(100):
        worker.fails(Blame.EITHER, is_retried=False)
    assert worker.fitness.most("a") is None


def test_one_task_is_tried_after_the_pause_which_doubles_up_to_its_bound() -> None:
    worker = Worker()
    for _ in range(3):
        worker.fails()
    for pause_s in (10, 20, 30, 30):
        worker.clock.now += pause_s - 0.1
        assert worker.fitness.most("a") == 0
        worker.clock.now += 0.2
        assert worker.fitness.most("a") == 1
        worker.fails(Blame.TASK)  # a wrong input says nothing: another one is tried
        assert worker.fitness.most("a") == 1
        worker.fails()
    worker.clock.now += 31
    worker.succeeds()
    assert (worker.fitness.most("a"), worker.fitness.unfit()) == (None, {})


def test_tasks_that_need_nothing_of_what_is_broken_keep_the_pipeline_going() -> None:
    worker = Worker()
    for _ in range(50):
        worker.succeeds()
        for _ in range(20):
            worker.fails()
        worker.clock.now += WORKS_S - 0.1
    assert worker.fitness.most("a") is None
    worker.clock.now += 0.2
    worker.fails()
    assert worker.fitness.most("a") == 0
