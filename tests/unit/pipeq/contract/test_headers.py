"""The schema of our headers says what a worker takes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pipeq.contract.headers import headers_schema
from pipeq_worker.broker import protocol

PROPERTIES: dict[str, dict[str, Any]] = json.loads(headers_schema())["properties"]
VALUES = [None, True, 0, -1, 2.5, 10**300, "", "x", "ü" * 200, "x" * 201, [], {}]


def allows(rules: dict[str, Any], value: Any) -> bool:
    """What JSON Schema says, for the few keywords that are used."""
    if value is None:
        return "null" in rules["type"]
    if isinstance(value, str):
        return "string" in rules["type"] and rules["minLength"] <= len(value) <= rules["maxLength"]
    if isinstance(value, list):
        return "array" in rules["type"] and len(value) <= rules["maxItems"]
    if isinstance(value, dict):
        return "object" in rules["type"] and len(value) <= rules["maxProperties"]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and "integer" in rules["type"]:
        return isinstance(value, int) and rules["minimum"] <= value <= rules["maximum"]
    if not is_number or "number" not in rules["type"]:
        return False
    return value > rules["exclusiveMinimum"] if "exclusiveMinimum" in rules else value >= rules["minimum"]


@pytest.mark.parametrize("name", PROPERTIES)
@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
def test_the_schema_and_the_worker_agree(name: str, value: Any) -> None:
    assert (protocol.broken_headers({name: value}, {}) is None) == allows(PROPERTIES[name], value)


@pytest.mark.parametrize(
    ("value", "is_right"),
    [(["w"] * 100, True), (["w"] * 101, False), (["x" * 301], False), ([5], False), ([None], False)],
)
def test_names_of_workers(value: list[Any], is_right: bool) -> None:
    assert (protocol.broken_headers({"refused_by": value}, {}) is None) == is_right


@pytest.mark.parametrize(
    ("value", "is_right"),
    [
        ({"w": 1.5}, True),
        ({str(at): 1 for at in range(100)}, True),
        ({str(at): 1 for at in range(101)}, False),
        ({"x" * 301: 1}, False),
        ({"w": -1}, False),
        ({"w": None}, False),
        ({"w": "1"}, False),
    ],
)
def test_names_of_workers_with_times(value: dict[str, Any], is_right: bool) -> None:
    assert (protocol.broken_headers({"failed_on": value}, {}) is None) == is_right
