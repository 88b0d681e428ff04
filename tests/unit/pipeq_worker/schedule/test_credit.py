"""How many tasks a worker takes, and how many it gives back."""

from __future__ import annotations

import math

import pytest
from pipeq_worker.models.pipeline import BatchLimits
from pipeq_worker.schedule.costs import Costs, Pass
from pipeq_worker.schedule.credit import BATCHES, Credit, to_give

SEED = BatchLimits(max_size=8, max_cost=800, max_wait_s=0)


def credit(costs: Costs, most: int = 512, seconds: float = 5) -> Credit:
    return Credit(costs, lambda name: SEED, most, seconds)


def learned(
    *, task_s: float, items: int = 8, cost: int = 1, tasks: int | None = None, seed: BatchLimits = SEED
) -> Costs:
    """Costs of a pipeline whose batches of ``items`` items took so long for each task."""
    costs = Costs()
    one = costs.of("it", seed)
    for _ in range(20):
        ended = items if tasks is None else tasks
        one.add(Pass(items, cost * items, task_s * ended))
        one.ended(ended)
    return costs


def test_what_is_unknown_gets_two_batches() -> None:
    assert credit(Costs()).most("it", 0) == credit(Costs()).most("it", 100) == BATCHES * SEED.max_size
    costs = Costs()
    costs.of("it", SEED).add(Pass(8, 8, 100.0))  # no task has ended yet
    costs.of("it", SEED).ended(0)
    assert credit(costs).most("it", 5) == BATCHES * SEED.max_size


@pytest.mark.parametrize(
    ("task_s", "expected"),
    [(1e-9, 512), (0.0, 512), (0.005, 512), (0.01, 500), (0.02, 250), (0.25, 20), (0.4, 16), (1, 16), (600, 16)],
)
def test_what_is_held_lasts_for_so_long_at_most(task_s: float, expected: int) -> None:
    assert credit(learned(task_s=task_s)).most("it", 1) == pytest.approx(expected, abs=1)


def test_a_window_of_256_where_the_time_allows() -> None:
    assert credit(learned(task_s=5 / 256)).most("it", 1) >= 256


@pytest.mark.parametrize("most", [1, 2, 15, 16, 17, 512])
@pytest.mark.parametrize("task_s", [None, 0.0, 0.001, 1, 1000])
def test_never_more_than_prefetch(most: int, task_s: float | None) -> None:
    costs = Costs() if task_s is None else learned(task_s=task_s)
    for held in (0, 1, 100):
        assert 1 <= credit(costs, most).most("it", held) <= most


def test_a_worker_that_has_nothing_takes_two_batches_first() -> None:
    costs = learned(task_s=0.001)
    assert credit(costs).most("it", 0) == BATCHES * SEED.max_size
    assert credit(costs).most("it", 1) == 512


def test_a_batch_holds_what_its_cost_allows() -> None:
    """Not what it had: batches of one item, because no more came in, are no reason to take fewer."""
    assert credit(learned(task_s=100, items=1)).most("it", 1) == BATCHES * 8
    # Of items that cost 400 each, two fill a batch; of items beyond the limit, one.
    assert credit(learned(task_s=100, items=2, cost=400)).most("it", 1) == BATCHES * 2
    assert credit(learned(task_s=100, items=1, cost=4000)).most("it", 1) == BATCHES
    # Tasks of eight items each: one fills a batch. Of larger tasks, two are inside.
    assert credit(learned(task_s=100, items=8, tasks=1)).most("it", 1) == BATCHES
    assert credit(learned(task_s=100, items=8, cost=100, tasks=1)).most("it", 1) == BATCHES


def test_it_grows_and_shrinks_with_what_is_learned() -> None:
    costs = learned(task_s=1)
    one = costs.of("it", SEED)
    before = credit(costs).most("it", 1)
    for _ in range(400):
        one.add(Pass(8, 8, 0.08))
        one.ended(8)
    assert before == 16
    assert credit(costs).most("it", 1) > 300


def test_how_long_it_lasts() -> None:
    costs = learned(task_s=0.5)
    assert credit(costs).lasts_s({"it": 4}) == pytest.approx(2)
    assert credit(costs).lasts_s({"it": 0, "other": 0}) == 0
    assert credit(costs).lasts_s({"it": 1, "other": 1}) == math.inf


@pytest.mark.parametrize("held", [*range(12), 100, 512])
@pytest.mark.parametrize("idle", [1, 2, 3, 10, 100])
def test_shares_are_fair(held: int, idle: int) -> None:
    given = to_give(held, held, idle)
    left = held - given
    # The giver keeps its share, rounded up, and at least one if it has any.
    assert left == math.ceil(held / (idle + 1))
    assert left >= min(held, 1)


def test_only_what_has_not_begun_is_given() -> None:
    assert to_give(10, 3, 1) == 3
    assert to_give(2, 1, 1) == 1
    assert to_give(10, 0, 5) == 0
    # One that runs and none that waits; one that is about to begin.
    assert to_give(1, 0, 3) == to_give(1, 1, 3) == 0
