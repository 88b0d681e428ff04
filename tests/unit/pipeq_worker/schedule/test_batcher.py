from __future__ import annotations

import math
import random
import threading
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from pipeq_worker.models.pipeline import BatchLimits
from pipeq_worker.schedule import batcher as module
from pipeq_worker.schedule.batcher import Batch, Batcher, Closed
from pipeq_worker.schedule.best_window import best_window

from tests.waiting import within

LIMITS = BatchLimits(max_size=8, max_cost=100, launch_cost=10, max_wait_s=0.0)


@dataclass(eq=False)
class Row:
    cost: int
    group: str = "a"
    nbytes: int = 1
    lane: str = "a"
    priority: int = 0
    deadline: float = math.inf
    tenant: str | None = None
    arrived: float = field(default_factory=time.monotonic)


def test_a_batch_holds_similar_lengths_and_the_oldest() -> None:
    batcher: Batcher[Row] = Batcher()
    rows = [Row(50), Row(3), Row(48), Row(4), Row(5)]
    for row in rows:
        batcher.put(row, LIMITS)
    first, second = batcher.take(), batcher.take()
    assert first is not None
    assert second is not None
    assert [row.cost for row in first.items] == [48, 50]
    assert [row.cost for row in second.items] == [3, 4, 5]


def test_no_batch_is_over_its_limits_and_none_is_lost() -> None:
    rng = random.Random(0)
    batcher: Batcher[Row] = Batcher()
    rows = [Row(rng.randint(1, 120)) for _ in range(500)]
    for row in rows:
        batcher.put(row, LIMITS)
    seen = []
    while len(seen) < len(rows):
        batch = batcher.take()
        assert batch is not None
        costs = [row.cost for row in batch.items]
        assert len(costs) <= LIMITS.max_size
        assert len(costs) == 1 or max(costs) * len(costs) <= LIMITS.max_cost
        seen += batch.items
    assert {id(row) for row in seen} == {id(row) for row in rows}
    assert len(batcher) == 0


def test_the_oldest_is_never_overtaken_for_long() -> None:
    """The long item is in the very next batch, however many short ones keep coming."""
    batcher: Batcher[Row] = Batcher()
    long = Row(90)
    batcher.put(long, LIMITS)
    for _ in range(100):
        batcher.put(Row(2), LIMITS)
    batch = batcher.take()
    assert batch is not None
    assert long in batch.items


@pytest.mark.parametrize("seed", range(30))
def test_the_window_is_the_best_there_is(seed: int) -> None:
    rng = random.Random(seed)
    costs = sorted(rng.randint(1, 60) for _ in range(rng.randint(1, 25)))
    must = rng.randrange(len(costs))
    limits = BatchLimits(
        max_size=rng.randint(1, 10), max_cost=rng.choice([60, 120, 400]), launch_cost=rng.choice([0, 8, 64])
    )

    def score(start: int, stop: int) -> float:
        return sum(costs[start:stop]) / (limits.launch_cost + costs[stop - 1] * (stop - start))

    allowed = [
        (start, stop)
        for start in range(must + 1)
        for stop in range(must + 1, len(costs) + 1)
        if stop - start == 1
        or (stop - start <= limits.max_size and costs[stop - 1] * (stop - start) <= limits.max_cost)
    ]
    assert score(*best_window(costs, must, limits)) == pytest.approx(max(score(*window) for window in allowed))


def test_an_item_over_the_limit_runs_alone() -> None:
    assert best_window([5, 500], 1, LIMITS) == (1, 2)


def test_groups_do_not_mix_and_take_turns_by_age() -> None:
    batcher: Batcher[Row] = Batcher()
    for group in "abab":
        batcher.put(Row(5, group), LIMITS)
    taken = [batcher.take(), batcher.take()]
    assert [[row.group for row in batch.items] for batch in taken if batch] == [["a", "a"], ["b", "b"]]


class Clock:
    """The batcher's. It stands still until it is told to go on: a busy machine may be late with anything."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic()
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))

    def taken(self, batcher: Batcher[Row], *company: Row) -> Batch[Row] | None:
        """Takes a batch. Meanwhile company comes, and then more time passes than an item waits for some."""

        def later() -> None:
            for row in company:
                batcher.put(row, WAITS)
            self.now += 1.25 * WAITS.max_wait_s

        passing = threading.Timer(0.05, later)
        passing.start()
        batch = batcher.take()
        passing.join()
        return batch


#: Limits with which an item waits for company.
WAITS = BatchLimits(max_size=8, max_cost=100, max_wait_s=0.2)


def test_idle_waits_for_company(monkeypatch: pytest.MonkeyPatch) -> None:
    batcher: Batcher[Row] = Batcher()
    clock = Clock(monkeypatch)
    batcher.put(Row(5), WAITS)
    batch = clock.taken(batcher, Row(5))
    assert batch is not None
    assert len(batch.items) == 2


def test_idle_does_not_wait_long() -> None:
    batcher: Batcher[Row] = Batcher()
    began = time.monotonic()
    batcher.put(Row(5), WAITS)
    with within(2):
        assert batcher.take() is not None
    assert time.monotonic() - began >= 0.2


def test_a_full_batch_does_not_wait() -> None:
    batcher: Batcher[Row] = Batcher()
    limits = BatchLimits(max_size=2, max_cost=100, max_wait_s=60)
    batcher.put(Row(5), limits)
    batcher.put(Row(5), limits)
    assert batcher.take() is not None


def test_close_wakes_everybody_and_returns_the_rest() -> None:
    batcher: Batcher[Row] = Batcher()
    taken: list[Batch[Row] | None] = []
    take = threading.Thread(target=lambda: taken.append(batcher.take()))
    take.start()
    assert batcher.close() == []
    take.join(5)
    assert taken == [None]
    with pytest.raises(Closed):
        batcher.put(Row(1), LIMITS)


def test_padding() -> None:
    assert Batch([Row(5), Row(10)]).padding == 0.25


def test_a_lone_item_does_not_wait_once_company_was_not_seen() -> None:
    batcher: Batcher[Row] = Batcher()
    limits = BatchLimits(max_size=8, max_cost=100, max_wait_s=0.1)
    batcher.put(Row(5), limits)
    batcher.take()  # of the first item nothing is known: it waits
    waited = []
    for _ in range(3):
        time.sleep(0.15)
        batcher.put(Row(5), limits)
        began = time.monotonic()
        batch = batcher.take()
        waited.append(time.monotonic() - began)
        assert batch is not None
        assert len(batch.items) == 1
    # On a busy machine this process itself may not run for as long.
    assert sorted(waited)[1] < 0.05


def test_company_is_waited_for_again_when_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    batcher: Batcher[Row] = Batcher()
    clock = Clock(monkeypatch)
    for _ in range(3):
        batcher.put(Row(5), WAITS)
        clock.taken(batcher)
    for _ in range(3):
        batcher.put(Row(5), WAITS)
    batch = clock.taken(batcher, Row(5))
    assert batch is not None
    assert len(batch.items) == 4


def test_a_busy_device_gets_only_what_cannot_become_better() -> None:
    batcher: Batcher[Row] = Batcher()
    limits = BatchLimits(max_size=2, max_cost=100, max_wait_s=60)
    assert batcher.take(is_idle=lambda: False) is None
    batcher.put(Row(5), limits)
    assert batcher.take(is_idle=lambda: False) is None
    batcher.put(Row(5), limits)
    batch = batcher.take(is_idle=lambda: False)
    assert batch is not None
    assert len(batch.items) == 2
    batcher.close()
    assert batcher.take(is_idle=lambda: False) is None


def test_a_wait_ends_for_a_deadline() -> None:
    batcher: Batcher[Row] = Batcher()
    limits = BatchLimits(max_size=8, max_cost=100, max_wait_s=60)
    began = time.monotonic()
    batcher.put(Row(5, deadline=began + 0.2), limits)
    with within(2):
        assert batcher.take() is not None
    assert time.monotonic() - began > 0.1
