"""Which tasks children are given, and when."""

from __future__ import annotations

from typing import Any

import pytest
from pipeq_worker.children import protocol
from pipeq_worker.children.feeding import FEED, FEED_BYTES, FEED_PACKS, TOGETHER, Feeding
from pipeq_worker.schedule.task import Place, Task


class Home:
    """A child that notes what it gets in one go."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.got: list[list[int]] = []

    def gather(self, *messages: protocol.Prepare) -> None:
        if messages:
            self.got.append([one.number for one in messages])


class House:
    """Two children, and a device that has plenty to do or not."""

    def __init__(self, children: int = 2) -> None:
        self.homes: list[Any] = [Home(number) for number in range(1, children + 1)]
        self.has_plenty = False
        self.feeding: Feeding[Task] = Feeding(lambda _: self.homes, lambda _: self.has_plenty, threads=2)
        self._tickets = 0

    def add(self, count: int, **about: Any) -> list[Task]:
        tasks = []
        for _ in range(count):
            self._tickets += 1
            tasks.append(Task(id="x", lane="it", ticket=self._tickets, **{"message": b"{}", "priority": 6, **about}))
            self.feeding.add(tasks[-1])
        return tasks


def test_children_get_equal_shares_in_one_message_each_and_no_more_than_they_need() -> None:
    place = House()
    tasks = place.add(3 * FEED)
    place.feeding.feed()
    assert [[len(got) for got in home.got] for home in place.homes] == [[FEED], [FEED]]
    assert sum(task.place is Place.PREPARING for task in tasks) == 2 * FEED
    place.feeding.feed()
    assert [len(home.got) for home in place.homes] == [1, 1]
    for task in tasks[:10]:
        place.feeding.is_ready(task.ticket)
    place.feeding.feed()
    assert sum(len(got) for home in place.homes for got in home.got) == 2 * FEED + 10


def test_a_few_tasks_wait_for_company_while_the_device_has_plenty() -> None:
    place = House(1)
    place.has_plenty = True
    place.add(TOGETHER - 1)
    place.feeding.feed()
    assert not place.homes[0].got
    place.add(1)
    place.feeding.feed()
    assert [len(got) for got in place.homes[0].got] == [TOGETHER]
    place.add(1)
    place.feeding.feed()
    assert len(place.homes[0].got) == 1
    place.has_plenty = False
    place.feeding.feed()
    assert len(place.homes[0].got) == 2


@pytest.mark.parametrize("about", [{"priority": 0}, {"deadline": 5.0}])
def test_what_is_urgent_waits_for_nobody(about: dict[str, Any]) -> None:
    place = House(1)
    place.has_plenty = True
    place.add(3)
    place.feeding.feed()
    (urgent,) = place.add(1, **about)
    place.feeding.feed()
    assert place.homes[0].got[0][0] == urgent.ticket


def test_a_task_that_is_removed_is_not_given_and_makes_room() -> None:
    place = House(1)
    first, second = place.add(2)
    place.feeding.remove(first)
    place.feeding.feed()
    assert place.homes[0].got == [[second.ticket]]
    place.add(2 * FEED)
    place.feeding.feed()
    assert [len(got) for got in place.homes[0].got] == [1, FEED - 1]
    place.feeding.remove(second)
    place.feeding.feed()
    assert [len(got) for got in place.homes[0].got] == [1, FEED - 1, 1]


@pytest.mark.parametrize(("seconds", "most"), [(0.0, FEED), (0.0004, FEED), (0.1, 10), (0.5, 4), (30.0, 4)])
def test_what_is_slow_to_prepare_is_given_in_small_numbers_so_that_what_is_urgent_does_not_wait(
    seconds: float, most: int
) -> None:
    place = House(1)
    place.feeding.learn("it", seconds)
    place.add(2 * FEED)
    place.feeding.feed()
    assert [len(got) for got in place.homes[0].got] == [most]


def test_long_messages_are_given_in_small_numbers_though_those_before_were_quickly_prepared() -> None:
    place = House(1)
    place.feeding.learn("it", 0.0001)
    tasks = place.add(40, message=b"x" * (FEED_BYTES // 3))
    place.feeding.feed()
    assert [len(got) for got in place.homes[0].got] == [4], "two for each thread"
    (urgent,) = place.add(1, priority=0)
    place.feeding.is_ready(tasks[0].ticket)
    place.feeding.feed()
    assert place.homes[0].got[1:] == [[urgent.ticket]]
    for task in tasks[1:4]:
        place.feeding.is_ready(task.ticket)
    place.feeding.feed()
    assert len(place.homes[0].got[2]) == 3


def test_of_packs_a_child_has_no_more_than_it_may_whatever_their_bytes() -> None:
    place = House(1)
    place.add(5, rows=3, message=b"x" * FEED_BYTES)
    place.feeding.feed()
    assert [len(got) for got in place.homes[0].got] == [FEED_PACKS]


def test_what_preparing_takes_is_learned_slowly() -> None:
    feeding = House(1).feeding
    feeding.learn("it", 0.1)
    feeding.learn("it", 10.0)
    assert feeding.most("it") == 4
    for _ in range(200):
        feeding.learn("it", 0.0002)
    assert feeding.most("it") == FEED
