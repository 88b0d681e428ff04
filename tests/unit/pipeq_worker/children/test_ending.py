"""When tasks that have ended are delivered."""

from __future__ import annotations

import time
from typing import Any

from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq_worker.children.ending import Ending
from pipeq_worker.children.inside import Inside
from pipeq_worker.children.lone import Lone
from pipeq_worker.observe.observer import Observer
from pipeq_worker.schedule.task import Task


class NoFeeding:
    """Nobody waits for a child."""

    def add(self, task: Task) -> None: ...
    def is_ready(self, number: int) -> None: ...
    def remove(self, task: Task) -> None: ...


def test_the_end_of_a_task_is_delivered_after_its_mark_is_written() -> None:
    """If its mark came later, the task would look like one that runs, for ever."""
    inside: Inside[Task] = Inside(NoFeeding())  # type: ignore[arg-type]
    delivered: list[Task] = []
    ending: Ending[Task] = Ending(
        inside,
        delivered.extend,
        Lone(),
        Observer(),
        cancel=lambda tasks: None,
        late=lambda task: PipeqError(ErrorCode.TIMEOUT, "late"),
        forget=lambda ticket: None,
    )
    ending.start()
    one, other, third = (Task(id=name) for name in ("one", "other", "third"))
    inside.add([one, other, third])
    one.is_marking = third.is_marking = True
    ending.end([one, other])
    wait_for(lambda: delivered == [other])
    ending.marked([one, third])
    wait_for(lambda: delivered == [other, one])
    # What ends later is delivered at once, and nothing twice.
    ending.marked([one])
    ending.end([one, third])
    wait_for(lambda: delivered == [other, one, third])
    time.sleep(0.05)
    assert delivered == [other, one, third]
    ending.settle(0)


def wait_for(is_so: Any) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.002)
