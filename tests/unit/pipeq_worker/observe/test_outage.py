"""An outage of Redis is logged once, also where threads learn of it when it is over."""

from __future__ import annotations

import logging

import pytest
from pipeq_worker.observe import outage as module
from pipeq_worker.observe.observer import Observer
from pipeq_worker.observe.outage import SETTLE_S, Outage

GONE = ConnectionError("connection closed by server")


class Told(Observer):
    def __init__(self) -> None:
        self.of: list[str] = []

    def worker_could_not(self, part: str, reason: str) -> None:
        self.of.append("could not")

    def worker_can_again(self, part: str) -> None:
        self.of.append("can again")


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def outage(clock: Clock, told: Told) -> Outage:
    outage = Outage()
    outage.tell(told)
    return outage


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage().split(" (")[0] for one in caplog.records if one.levelno >= logging.WARNING]


def test_an_outage_is_told_at_once_and_once(
    outage: Outage, told: Told, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for who in ("connect", "results", "connect"):
        outage.noticed(who, GONE)
        clock.now += 0.5
    assert outage.quiet_s() == 0
    outage.over("results")
    assert said(caplog) == ["Redis does not serve"]
    outage.over("connect")
    assert said(caplog) == ["Redis does not serve", "Redis serves again"]
    assert told.of == ["could not", "can again"]
    clock.now += 3
    assert outage.quiet_s() == 3


def test_what_is_found_broken_when_it_is_over_belongs_to_it(
    outage: Outage, told: Told, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    outage.noticed("connect", GONE)
    outage.over("connect")
    clock.now += SETTLE_S / 2
    outage.noticed("results", GONE)
    assert outage.quiet_s() == 0
    outage.over("results")
    assert outage.quiet_s() == 0
    assert said(caplog) == ["Redis does not serve", "Redis serves again"]
    assert "Redis came back, but did not yet serve results" in caplog.text
    assert told.of == ["could not", "can again"]


def test_an_echo_that_lasts_is_another_outage(
    outage: Outage, told: Told, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    outage.noticed("connect", GONE)
    outage.over("connect")
    for _ in range(6):
        clock.now += SETTLE_S / 4
        outage.noticed("results", GONE)
    outage.over("results")
    assert said(caplog) == ["Redis does not serve", "Redis serves again"] * 2
    assert told.of == ["could not", "can again"] * 2


def test_a_redis_that_comes_and_goes_is_told_again_and_again(
    outage: Outage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        outage.noticed("connect", GONE)
        clock.now += SETTLE_S / 8
        outage.over("connect")
        clock.now += SETTLE_S / 8
    # 20 times within 5 times SETTLE_S.
    assert said(caplog) == ["Redis does not serve", "Redis serves again"] * 4
