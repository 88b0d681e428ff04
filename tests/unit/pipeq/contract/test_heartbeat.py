"""The heartbeat: what a worker writes is read back; a heartbeat of anything else is harmless; the time to drain."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
from pipeq.contract.heartbeat import MOST, Beat, drain_s, totals

WHOLE = Beat(
    host="machine",
    pid=7,
    at=12.5,
    in_flight={"a": 3, "b": 1},
    running={"a": 2},
    rates={"a": 4.5},
    batches={"a": 7.5},
    busy={"a": 0.25},
    failed={"a": {"timeout": 3}},
    loading=["b"],
    stopping=True,
    deaf={"a": {"reason": "no consumer", "since": 1.0}},
    costs={"a": {"launch_s": 0.1, "cost_s": 0.2, "task_s": 0.3, "max_batch_cost": 4.0, "memory_limit": 5.0}},
    models={"a": {"task": "fill-mask", "name": "m", "model": "m"}},
)
VALUES: list[Any] = [None, True, 0, -1, 1e308, 10**200, "text", [], [1, {}], {}, {"a": {}}, {"a": "x"}, {"a": -1}]
VALUES += [{"a": MOST}, {"a": True}, {"a": None}, {"a": [1]}, float("nan")]


def test_what_is_written_is_read() -> None:
    assert Beat.read(WHOLE.encode()) == WHOLE
    assert Beat.read(Beat().encode()) == Beat()


@pytest.mark.parametrize(
    "raw", [None, b"", b"null", b"[]", b"{", b"\xff\xfe", b'{"pid": 1' + b"0" * 400 + b"}", b"[" * 10_000, "7"]
)
def test_what_is_no_heartbeat_says_nothing(raw: Any) -> None:
    assert Beat.read(raw) == Beat()


@pytest.mark.parametrize("name", [one.name for one in fields(Beat)])
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_of_a_wrong_type_is_as_if_it_were_not_there(name: str, value: Any) -> None:
    found = Beat.read(json.dumps({**json.loads(WHOLE.encode()), name: value}))
    for one in fields(Beat):
        if one.name != name:
            assert getattr(found, one.name) == getattr(WHOLE, one.name)
    tasks, running = totals("a", [found])
    assert 0 <= tasks < MOST
    assert 0 <= running < MOST
    assert (drain_s(10, "a", [found]) or 0) >= 0
    assert found.takes_nothing("a") is None or isinstance(found.takes_nothing("a"), str)


def test_time_to_drain() -> None:
    fast, slow, new = Beat(rates={"a": 8.0}), Beat(rates={"a": 2.0}), Beat()
    assert drain_s(0, "a", []) == 0
    assert drain_s(20, "a", [fast, slow]) == 2
    assert drain_s(20, "a", [new]) is None
    assert drain_s(20, "b", [fast]) is None
    # One whose rate is unknown counts as the average of the others.
    assert drain_s(30, "a", [fast, slow, new]) == 2


@pytest.mark.parametrize(
    ("beat", "why"),
    [
        (Beat(stopping=True), "it is stopping: it ends the tasks that run"),
        (Beat(loading=["a"]), "it is loading the pipeline"),
        (Beat(deaf={"a": {"reason": "it has no consumer"}}), "it has no consumer"),
        (Beat(loading=["b"], deaf={"b": {"reason": "x"}}), None),
    ],
)
def test_who_takes_nothing_does_not_help(beat: Beat, why: str | None) -> None:
    assert beat.takes_nothing("a") == why
    helper = Beat(rates={"a": 1.0})
    also = Beat.read(json.dumps({**json.loads(beat.encode()), "rates": {"a": 1.0}}))
    assert drain_s(10, "a", [helper, also]) == (10 if why else 5)
