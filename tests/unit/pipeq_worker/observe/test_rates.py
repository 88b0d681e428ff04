"""Rates: tasks a second while there is work, whether the worker is busy or mostly idle."""

from __future__ import annotations

import time

import pytest
from pipeq_worker.observe.rates import HALF_LIFE_S, Rates


class Clock:
    """Measures once a second, as the heartbeat does."""

    def __init__(self) -> None:
        self.rates = Rates(["a", "b"])
        self.now = time.monotonic()

    def second(self, ended: int, forward_s: float, in_flight: int, pipeline: str = "a") -> float | None:
        for _ in range(ended):
            self.rates.task_ended("t", pipeline, "succeeded", None, {})
        if forward_s:
            self.rates.batch_ran(pipeline, 1, 0.0, forward_s, 1)
        self.now += 1
        return self.rates.measure({pipeline: in_flight}, self.now).get(pipeline)


def test_a_busy_worker() -> None:
    clock = Clock()
    for _ in range(20):
        found = clock.second(ended=50, forward_s=0.4, in_flight=100)
    # The rest of each second goes into something else, and is no less needed.
    assert found == pytest.approx(50, rel=0.1)


def test_an_idle_worker_is_not_slow() -> None:
    clock = Clock()
    for _ in range(20):
        found = clock.second(ended=2, forward_s=0.1, in_flight=0)
    assert found == pytest.approx(20, rel=0.05)
    for _ in range(1000):
        assert clock.second(ended=0, forward_s=0, in_flight=0) == found


def test_a_change_of_speed_shows_within_a_half_life() -> None:
    clock = Clock()
    for _ in range(200):
        clock.second(ended=100, forward_s=1, in_flight=10)
    for _ in range(round(HALF_LIFE_S)):
        found = clock.second(ended=10, forward_s=1, in_flight=10)
    assert found == pytest.approx(55, rel=0.1)


def test_nothing_is_known_before_anything_has_run() -> None:
    clock = Clock()
    assert clock.second(ended=0, forward_s=0, in_flight=0) is None
    clock.rates.task_ended("t", "no such pipeline", "failed", None, {})
    clock.rates.task_ended("t", None, "failed", None, {})
    clock.rates.batch_ran("no such pipeline", 1, 0.0, 1.0, 1)
    assert clock.rates.measure({"no such pipeline": 3}, clock.now + 1) == {}


def test_pipelines_are_apart() -> None:
    clock = Clock()
    for _ in range(10):
        clock.second(ended=10, forward_s=1, in_flight=5, pipeline="a")
        found = clock.rates.measure({"a": 5}, clock.now)
    assert set(found) == {"a"}


def test_batches_and_the_share_of_the_device_are_those_of_the_last_seconds() -> None:
    clock = Clock()
    rates = clock.rates
    assert rates.lately() == ({}, {})
    for _ in range(30):
        rates.batch_ran("a", 8, 0.0, 0.25, 8)
        rates.batch_ran("a", 4, 0.0, 0.25, 4)
        # All of its tasks were cancelled before it ran.
        rates.batch_ran("a", 0, 0.0, 0.0, 0)
        rates.batch_ran("stranger", 4, 0.0, 0.25, 4)
        clock.second(ended=0, forward_s=0, in_flight=1)
    sizes, shares = rates.lately()
    assert sizes == {"a": pytest.approx(6)}
    assert shares == {"a": pytest.approx(0.5, rel=0.05)}
    for _ in range(120):
        clock.second(ended=0, forward_s=0, in_flight=0)
    assert rates.lately() == ({}, {})


def test_failures_are_counted_by_their_codes() -> None:
    rates = Rates(["a", "b"])
    for ended, code in (("failed", "timeout"), ("failed", "timeout"), ("retrying", "timeout"), ("failed", "no code")):
        rates.task_ended("t", "a", ended, code, {})  # type: ignore[arg-type]
    rates.task_ended("t", "stranger", "failed", "timeout", {})
    rates.task_ended("t", None, "failed", "timeout", {})
    assert rates.failed() == {"a": {"timeout": 2}}
