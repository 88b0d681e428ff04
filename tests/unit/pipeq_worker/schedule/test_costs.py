from __future__ import annotations

import math
import random

import pytest
from pipeq_worker.models.pipeline import BatchLimits
from pipeq_worker.schedule.costs import MOST, STEP, Costs, Learned, Pass

CPU = BatchLimits(max_size=64, max_cost=1024, launch_cost=64, is_auto=True)
GPU = BatchLimits(max_size=64, max_cost=32768, launch_cost=4096, is_auto=True)


def noisy(rng: random.Random, seconds: float) -> float:
    """Measured seconds: 5% of noise, and one pass in ten that something else slowed down."""
    slow = rng.uniform(2, 20) if rng.random() < 0.1 else 1
    return seconds * rng.lognormvariate(0, 0.05) * slow


def learn(learned: Learned, rng: random.Random, launch_s: float, cost_s: float, costs: list[int]) -> None:
    for padded in costs:
        learned.add(Pass(4, padded, noisy(rng, launch_s + cost_s * padded)))


@pytest.mark.parametrize("unit_s", [1e-7, 2e-4, 0.05])  # tokens on a GPU, tokens on a CPU, chunks of audio
@pytest.mark.parametrize("launch_cost", [4, 64, 900])
@pytest.mark.parametrize("seed", range(5))
def test_seconds_are_learned_whatever_the_unit_despite_outliers_and_a_first_pass_that_compiles(
    unit_s: float, launch_cost: float, seed: int
) -> None:
    rng = random.Random(seed)
    learned = Learned(CPU)
    learned.add(Pass(1, 12, 400 * unit_s * (launch_cost + 12)))
    learn(learned, rng, launch_cost * unit_s, unit_s, [round(8 * 250 ** rng.random()) for _ in range(300)])
    for padded in (16, 100, 1500):
        assert learned.predict(padded) == pytest.approx(unit_s * (launch_cost + padded), rel=0.2)
    assert learned.limits.launch_cost == pytest.approx(launch_cost, rel=0.3, abs=3)


def test_a_first_pass_that_compiles_is_forgotten_after_a_few() -> None:
    learned = Learned(CPU)
    learned.add(Pass(1, 20, 30.0))
    for _ in range(3):
        learned.add(Pass(1, 20, 0.01))
    assert learned.predict(20) == pytest.approx(0.01, rel=0.1)


def test_unknown_before_the_first_pass() -> None:
    learned = Learned(CPU)
    assert learned.predict(5) is None
    assert learned.seconds_of_task() is None
    assert learned.shown() is None
    assert learned.limits == CPU


@pytest.mark.parametrize("seed", [CPU, GPU])
def test_of_one_size_alone_the_assumed_ratio_stays(seed: BatchLimits) -> None:
    learned = Learned(seed)
    rng = random.Random(1)
    learn(learned, rng, 0.02, 1e-6, [seed.max_cost] * 500)
    assert learned.predict(seed.max_cost) == pytest.approx(0.02 + 1e-6 * seed.max_cost, rel=0.1)
    assert learned.limits.launch_cost == pytest.approx(seed.launch_cost, rel=0.1)


def test_a_device_that_slows_down_is_noticed() -> None:
    learned, rng = Learned(CPU), random.Random(2)
    costs = [rng.randint(8, 1000) for _ in range(400)]
    learn(learned, rng, 0.01, 1e-4, costs)
    learn(learned, rng, 0.03, 3e-4, costs)
    assert learned.predict(500) == pytest.approx(0.18, rel=0.15)


def test_nothing_breaks_on_odd_passes() -> None:
    learned = Learned(CPU)
    for padded, seconds in [(0, 0.0), (1, 0.0), (10**12, 1e-12), (1, 1e6), (5, 1e-9)] * 20:
        learned.add(Pass(1, padded, seconds))
        predicted = learned.predict(7, 3)
        assert predicted is not None
        assert math.isfinite(predicted)
        assert predicted >= 0
        assert 1 <= learned.limits.max_cost <= CPU.max_cost * MOST


@pytest.mark.parametrize("launch_cost", [0.1, 16, 64, 128, 10_000])
def test_auto_is_the_least_cost_at_which_launches_take_little_time(launch_cost: float) -> None:
    learned, rng = Learned(CPU), random.Random(3)
    for _ in range(400):
        most = learned.limits.max_cost
        learn(learned, rng, launch_cost * 1e-4, 1e-4, [rng.randint(max(1, most // 8), most)])
    most = learned.limits.max_cost
    assert CPU.max_cost / 4 <= most <= CPU.max_cost * 8
    if 16 <= launch_cost <= 128:
        assert 0.94 < most / (launch_cost + most) < 0.98


def test_auto_grows_no_faster_than_what_has_run() -> None:
    learned = Learned(CPU)
    for _ in range(100):
        learned.add(Pass(4, 800, 1.0))
        learned.add(Pass(4, 100, 0.9))
    assert learned.limits.max_cost <= 800 * STEP


def test_a_limit_of_the_settings_stays() -> None:
    learned, rng = Learned(BatchLimits(max_size=64, max_cost=500, launch_cost=64)), random.Random(4)
    learn(learned, rng, 1.0, 1e-4, [rng.randint(8, 500) for _ in range(100)])
    assert learned.limits.max_cost == 500


@pytest.mark.parametrize("fits", [300, 700, 1000, 5000])
@pytest.mark.parametrize("seed", [CPU, BatchLimits(max_size=64, max_cost=4096, launch_cost=64)])
def test_out_of_memory_teaches_a_limit_that_holds(fits: int, seed: BatchLimits) -> None:
    """A device with memory for ``fits``: full batches run for long, halved as the device halves them."""
    learned, failures = Learned(seed), 0

    def run(padded: int) -> None:
        nonlocal failures
        if padded > fits:
            failures += 1
            learned.add(Pass(8, padded, 0.01, fits=False))
            run(padded // 2)
            run(padded - padded // 2)
        else:
            learned.add(Pass(8, padded, 0.01 + 1e-5 * padded))

    split, last = 0, 0
    for at in range(20_000):
        failures = 0
        run(learned.limits.max_cost)
        if failures:
            split, last = split + 1, at
            assert fits * 0.25 <= learned.limits.max_cost <= fits
    # Once when it is met, and once when the limit has crept up to it.
    assert split <= 2
    assert last < 3000
    assert learned.limits.max_cost <= fits
    if split:
        assert learned.limits.max_cost >= fits * 0.5


def test_one_item_alone_that_fails_limits_no_batch() -> None:
    learned = Learned(CPU)
    learned.add(Pass(1, 900, 0.1, fits=False))
    assert learned.limits.max_cost == CPU.max_cost


def test_seconds_of_a_task_count_all_of_its_batches() -> None:
    learned = Learned(CPU)
    for _ in range(300):  # one task in three batches of 2 s, beside 3 of one batch each
        for ended in (1, 1, 2):
            learned.add(Pass(2, 20, 2.0))
            learned.ended(ended)
    assert learned.seconds_of_task() == pytest.approx(6 / 4, rel=0.05)


def test_pipelines_learn_apart_and_are_shown() -> None:
    costs = Costs()
    costs.of("a", CPU).add(Pass(2, 40, 0.5))
    assert costs.find("b") is None
    costs.of("b", GPU)
    costs.of("a", GPU).ended(2)
    assert costs.shown().keys() == {"a"}
    assert costs.shown()["a"].keys() == {"launch_s", "cost_s", "task_s", "max_batch_cost"}
    costs.of("a", CPU).add(Pass(2, 40, 0.5, fits=False))
    assert costs.shown()["a"]["memory_limit"] == 20


def test_tasks_that_only_fail_teach_nothing_and_break_nothing() -> None:
    learned = Costs().of("it", BatchLimits(max_size=8, max_cost=64))
    for _ in range(3):
        learned.ended(8)
    assert learned.tasks_in_batch() == 8
    assert learned.seconds_of_task() == 0
    assert learned.predict(1) is None


def test_passes_of_the_warm_up_say_what_the_first_batch_takes_and_count_for_no_task() -> None:
    learned = Learned(CPU)
    assert learned.predict(100) is None
    learned.seed_with([Pass(1, 10, 0.02), Pass(8, 80, 0.034)])
    assert learned.predict(200) == pytest.approx(0.058, rel=0.3)
    assert learned.seconds_of_task() is None
    assert learned.surprise_s == 0
    for _ in range(40):
        learned.add(Pass(4, 200, 0.5))
    assert learned.predict(200) == pytest.approx(0.5, rel=0.1)


def test_a_pipeline_that_is_loaded_again_keeps_what_was_learned() -> None:
    learned = Learned(CPU)
    learned.seed_with([])
    for _ in range(5):
        learned.add(Pass(4, 200, 0.5))
    before = learned.predict(200)
    learned.seed_with([Pass(1, 10, 9.0), Pass(8, 80, 9.0)])
    assert learned.predict(200) == before
