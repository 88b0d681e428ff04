"""Health: each part that hangs is named and the worker is not live; loading, stopping or cut off it is not ready."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from pipeq_worker.host import health as module
from pipeq_worker.host.health import Health


@pytest.fixture(autouse=True)
def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets so many seconds pass, on a clock of the test: that of a busy machine runs on between two lines of it."""
    now = [1000.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def serving(**options: object) -> Health:
    health = Health(["a", "b"], 0.1, **options)  # type: ignore[arg-type]
    for name in ("a", "b"):
        health.loaded(name)
    health.serves()
    turn(health)
    return health


def turn(health: Health) -> None:
    for pulse in (health.loop, health.heartbeat, health.redis):
        pulse.turned()


def test_loading_then_starting_then_ready() -> None:
    health = Health(["a", "b"], 60)
    assert (health.dead(), health.not_ready()) == ([], ["loading " + ", ".join(health.loading())])
    assert set(health.loading()) == {"a", "b"}
    health.loaded("a")
    assert health.not_ready() == ["loading b"]
    health.loaded("b")
    assert health.not_ready() == ["the worker is starting"]
    health.serves()
    assert health.not_ready() == ["Redis does not answer"]
    turn(health)
    assert health.not_ready() == health.dead() == []
    health.loads(["b"])
    assert (health.dead(), health.not_ready(), health.loading()) == ([], ["loading b"], ["b"])


@pytest.mark.parametrize("part", ["loop", "heartbeat"])
def test_a_loop_that_does_not_turn(part: str, passes: Callable[[float], None]) -> None:
    health = serving()
    passes(0.15)
    other = {"loop": health.heartbeat, "heartbeat": health.loop}[part]
    other.turned()
    health.redis.turned()
    (said,) = health.dead()
    assert said.endswith(" has not turned for 0 s")
    assert health.not_ready() == [said]
    turn(health)
    assert health.dead() == []


def test_a_part_that_hangs() -> None:
    health = serving()
    state: list[str | None] = [None]

    def hangs() -> str | None:
        return state[0]

    health.watch(hangs)
    health.watch(hangs)
    assert health.dead() == []
    state[0] = "the device does not answer"
    assert health.dead() == health.not_ready() == ["the device does not answer"]


def test_a_loop_that_waits_for_redis_does_not_hang(passes: Callable[[float], None]) -> None:
    away = [0.0]
    health = serving(quiet_s=lambda: away[0])
    passes(0.15)
    assert health.dead() == []
    away[0] = 0.05
    assert health.dead() == []
    away[0] = 0.11
    assert len(health.dead()) == 2


def test_redis_away_is_not_ready_and_live(monkeypatch: pytest.MonkeyPatch, passes: Callable[[float], None]) -> None:
    monkeypatch.setattr(module, "REDIS_S", 0.05)
    health = Health([], 60)
    health.serves()
    turn(health)
    assert health.not_ready() == []
    passes(0.06)
    assert (health.dead(), health.not_ready()) == ([], ["Redis does not answer"])


def test_it_is_not_ready_only_if_no_queue_is_taken_from() -> None:
    health = serving()
    deaf = {"a": "it has no consumer"}
    health.hears(lambda: deaf)
    assert health.not_ready() == []
    deaf["b"] = "WRONGTYPE"
    assert health.not_ready() == [
        "no messages are taken from a: it has no consumer",
        "no messages are taken from b: WRONGTYPE",
    ]
    assert health.dead() == []


def test_stopping_is_not_ready_and_live_until_it_takes_too_long(passes: Callable[[float], None]) -> None:
    health = serving()
    health.watch(lambda: "its thread has ended")
    health.stops(0.05)
    health.stops(1000)
    assert (health.is_stopping, health.dead(), health.not_ready()) == (True, [], ["the worker is stopping"])
    passes(0.06)
    assert health.dead() == ["the worker should have ended 0 s ago"]
