from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass

import pytest
from pipeq_worker.schedule.task_queue import TaskQueue
from pipeq_worker.schedule.urgency import EVERY


@dataclass(eq=False)
class Waits:
    priority: int = 0
    tenant: str | None = None
    deadline: float = math.inf
    arrived: float = 0.0


def order(queue: TaskQueue[Waits]) -> list[Waits]:
    return [queue.pop() for _ in range(len(queue))]


def test_the_oldest_first_where_all_are_equal() -> None:
    queue: TaskQueue[Waits] = TaskQueue()
    tasks = [Waits(arrived=at / 10) for at in range(50)]
    for task in tasks:
        queue.add(task)
    assert order(queue) == tasks


def test_priority_then_tenant_then_deadline_then_age() -> None:
    queue: TaskQueue[Waits] = TaskQueue()
    bulk = [Waits(6, "a"), Waits(6, "b")]
    many = [Waits(3, "a", arrived=at / 10) for at in range(3)]
    other, soon = Waits(3, "b", arrived=2.0), Waits(3, "a", deadline=1.0, arrived=1.0)
    for task in (*bulk, *many, other, soon):
        queue.add(task)
    assert order(queue) == [soon, other, *many, *bulk]


def test_what_was_here_before_comes_back_to_its_place() -> None:
    queue: TaskQueue[Waits] = TaskQueue()
    early, late = Waits(arrived=1.0), Waits(arrived=2.0)
    queue.add(late)
    queue.add(early)
    assert order(queue) == [early, late]


def test_a_lower_priority_gets_its_share() -> None:
    queue: TaskQueue[Waits] = TaskQueue()
    for _ in range(400):
        queue.add(Waits(0))
        queue.add(Waits(9))
    first = Counter(queue.pop().priority for _ in range(11 * (EVERY + 1)))
    assert first == {0: 11 * EVERY, 9: 11}


@pytest.mark.parametrize("seed", range(10))
def test_none_is_lost_and_none_comes_twice(seed: int) -> None:
    rng = random.Random(seed)
    queue: TaskQueue[Waits] = TaskQueue()
    inside: set[int] = set()
    tasks: dict[int, Waits] = {}
    now = 0.0
    for at in range(3000):
        now += 0.05
        task = tasks[at] = Waits(
            rng.choice([0, 0, 0, 6]), rng.choice([None, "a", "b"]), now + rng.choice([1, math.inf]), now
        )
        queue.add(task)
        inside.add(id(task))
        if rng.random() < 0.1:
            gone = tasks[rng.randrange(at + 1)]
            queue.discard(gone)
            inside.discard(id(gone))
        elif inside:
            inside.remove(id(queue.pop()))
        assert len(queue) == len(inside)
    assert {id(task) for task in order(queue)} == inside
    queue.discard(tasks[0])
