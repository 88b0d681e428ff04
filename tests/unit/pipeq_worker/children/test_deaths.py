"""Who is charged with the death of a child, from what its threads were doing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pipeq_worker.children.board import Entry
from pipeq_worker.children.deaths import Death, convicted, suspected
from pipeq_worker.children.lone import Lone
from pipeq_worker.schedule.task import Item, Place, Task
from pipeq_worker.stages.steps import Stage


class House:
    """Tasks 1 to 6 inside; 4, 5 and 6 are in batch 9."""

    def __init__(self) -> None:
        self.tasks = {ticket: Task(id=str(ticket), ticket=ticket, place=Place.PREPARING) for ticket in range(1, 7)}
        self.running = {9: [item_of(self.tasks[ticket]) for ticket in (4, 5, 6)]}

    def charged(self, *doing: Entry, late: Entry | None = None, is_deaf: bool = True) -> tuple[list[int], int | None]:
        """Tickets of the suspects, and of the one that is convicted."""
        death = Death("died", list(doing), late, is_deaf)
        found = suspected(death, self.running, self.tasks.get)
        one = convicted(death, found)
        return [task.ticket for task in found], None if one is None else one.ticket


def item_of(task: Task, number: int = 1) -> Item[Task]:
    return Item(task, task.ticket, number, "group", "it", 1, 1)


@pytest.fixture
def house() -> House:
    return House()


FETCH, PREPARE, FORWARD, FINISH = (
    Entry(stage, number, float(number))
    for stage, number in ((Stage.FETCH, 1), (Stage.PREPARE, 2), (Stage.FORWARD, 9), (Stage.FINISH, 3))
)


def test_whatever_it_was_working_on_may_have_killed_it(house: House) -> None:
    assert house.charged() == ([], None)
    assert house.charged(FETCH, PREPARE, FORWARD, FINISH) == ([1, 2, 4, 5, 6, 3], None)
    assert house.charged(PREPARE) == ([2], None)


def test_if_it_still_answered_the_step_that_took_too_long_is_to_blame(house: House) -> None:
    everything = (FETCH, PREPARE, FORWARD, FINISH)
    assert house.charged(*everything, late=PREPARE, is_deaf=False) == ([2], 2)
    assert house.charged(*everything, late=FORWARD, is_deaf=False) == ([4, 5, 6], None)
    # A step of several tasks has an entry for each.
    together = [Entry(Stage.PREPARE, number, 7.0) for number in (1, 2, 3)]
    assert house.charged(*together, FORWARD, late=together[0], is_deaf=False) == ([1, 2, 3], None)


def test_if_it_did_not_answer_any_step_may_hold_the_lock(house: House) -> None:
    assert house.charged(FETCH, PREPARE, late=PREPARE) == ([1, 2], None)
    assert house.charged(PREPARE, late=PREPARE) == ([2], 2)
    del house.running[9][1:]
    assert house.charged(FORWARD, late=FORWARD) == ([4], 4)
    assert house.charged(FETCH, FORWARD, late=FORWARD) == ([1, 4], None)


def test_no_neighbour_of_one_that_has_ended_is_convicted(house: House) -> None:
    # The step of a task whose time was over goes on.
    del house.tasks[2]
    assert house.charged(PREPARE, late=PREPARE) == ([], None)
    assert house.charged(PREPARE, FINISH, late=PREPARE) == ([3], None)
    house.tasks[4].moved(Place.ENDED)
    del house.running[9][2:]
    assert house.charged(FORWARD, late=FORWARD) == ([4, 5], None)


class Gate:
    """Tasks that want to go on alone."""

    def __init__(self, count: int) -> None:
        self.lone: Lone[Task] = Lone()
        self.tasks = [Task(id=str(at)) for at in range(count)]
        self.unwanted: set[int] = set()

    def enter(self, at: int) -> bool:
        return self.lone.enter(self.tasks[at], lambda: at not in self.unwanted, lambda: self.went_on.append(at))

    def after(self, resumes: list[Callable[[], None]]) -> list[int]:
        """Which go on."""
        self.went_on: list[int] = []
        for resume in resumes:
            resume()
        return self.went_on

    def leave(self, *at: int) -> list[int]:
        return self.after(self.lone.leave([self.tasks[one] for one in at]))


def test_one_suspect_at_a_time_is_on_its_way_to_delivery() -> None:
    gate = Gate(3)
    assert gate.leave(0) == []
    assert gate.enter(0)
    assert gate.enter(0)
    assert [gate.enter(at) for at in (1, 2, 1)] == [False] * 3
    assert gate.leave(1, 2) == []
    assert gate.leave(0) == [1, 1]
    assert gate.enter(1)
    assert gate.enter(1)
    assert not gate.enter(0)
    assert gate.leave(1) == [2]
    # It has ended before it could enter, so the next end calls the others.
    assert gate.leave(2) == [0]


def test_what_is_not_wanted_any_more_does_not_wait() -> None:
    gate = Gate(4)
    assert gate.enter(0)
    assert not any(map(gate.enter, (1, 2, 3)))
    gate.unwanted = {1, 2}
    assert gate.leave(0) == [3]


def test_messages_that_are_received_come_first() -> None:
    gate = Gate(3)
    assert gate.lone.claim()
    assert not gate.enter(0)
    assert gate.after(gate.lone.disclaim()) == [0]
    assert gate.enter(0)
    assert not gate.lone.claim()
    assert gate.enter(0), "it goes on with what it has"
    assert not gate.enter(1)
    assert gate.leave(0) == [], "its successor waits"
    assert gate.lone.claim()
    assert gate.after(gate.lone.disclaim()) == [1]
