"""Every header, property and part of a body that Celery knows, with every kind of value."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import pytest
from celery import Celery
from celery.app.amqp import AMQP
from celery.app.task import Context
from kombu.utils import json as kombu_json
from pipeq.contract.reading import UnreadableError
from pipeq_worker.broker import protocol

WRONG: list[Any] = [True, 5, -1, 0.5, 10**400, float("inf"), "text", "\ud800", [], [1], [None], {}, {"a": 1}]
#: The values above that are right.
RIGHT: dict[str, list[Any]] = {
    "text": ["text"],
    "a count": [5],
    "true or false": [True],
    "a list of texts": [[]],
    "an object": [{}, {"a": 1}],
    "a list of two numbers": [],
    "a number from 0 to 255": [5],
    "1 or 2": [],
    "a list of signatures": [[]],
    "a signature": [{}, {"a": 1}],
    "a list of at most 100 names": [[]],
    "an object of at most 100 names, with seconds since the epoch": [{}, {"a": 1}],
    "a text of 1 to 200 characters": ["text"],
    "a number of seconds from 0": [5, 0.5],
    "a number of seconds above 0": [5, 0.5],
    "a number of seconds since the epoch": [5, 0.5],
}


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_each_with_a_value_of_each_kind(value: Any) -> None:
    for name, (words, _) in protocol.HEADERS.items():
        reason = protocol.broken_headers({name: value}, {})
        assert (reason is None) == (value in RIGHT[words]) or isinstance(value, bool) != (words == "true or false"), (
            name
        )
        assert reason is None or name in reason
    for name, (words, _) in protocol.PROPERTIES.items():
        reason = protocol.broken_headers({}, {name: value})
        assert reason is None or (name in reason and value not in RIGHT[words]), name
    for name in protocol.EMBED:
        reason = protocol.broken_body([[], {}, {name: value}])
        assert reason is None or name in reason
    assert protocol.broken_body(value)
    for at in range(3):
        body: list[Any] = [[], {}, {}]
        body[at] = value
        assert (protocol.broken_body(body) is None) == (value in ([[], [1], [None]] if at == 0 else [{}, {"a": 1}]))


@pytest.mark.parametrize(("key", "is_right"), [("", False), ("x", True), ("ü" * 200, True), ("x" * 201, False)])
def test_a_tenants_name_is_short_text(key: str, is_right: bool) -> None:
    assert (protocol.broken_headers({"fair_key": key}, {}) is None) == is_right


def test_what_celery_sends_is_right() -> None:
    app = Celery()
    message = AMQP(app).as_task_v2(
        "id", "name", args=[1], kwargs={"a": 1}, countdown=5, expires=10, retries=3, group_id="g", group_index=1,
        time_limit=5, soft_time_limit=2.5, shadow="shown", root_id="r", parent_id="p", ignore_result=True,
        reply_to="q", replaced_task_nesting=1, stamped_headers=["s"], s="1", chain=[app.signature("x")],
        callbacks=[app.signature("y")], chord=app.signature("z"),
    )  # fmt: skip
    assert protocol.broken_headers(message.headers, message.properties) is None
    args, kwargs, embed = message.body
    assert protocol.broken_body([list(args), kwargs, embed]) is None
    assert protocol.HEADERS.keys() >= {name for name in message.headers if name != "s"} - {"stamps"}


def test_headers_that_would_replace_celerys_own_attributes_are_taken_out() -> None:
    names = [name for name in vars(Context) if name not in protocol.HEADERS]
    headers = {**dict.fromkeys(names, 5), "mine": 1}
    assert protocol.broken_headers(headers, {}) is None
    assert headers == {"mine": 1}


#: A value of each type that kombu's JSON adds.
TYPES = [
    *(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), date(2026, 1, 2), time(3, 4), Decimal("1.5"), uuid.UUID(int=7)),
    *(b"text", b"\xff\x00"),
]


@pytest.mark.parametrize("value", TYPES, ids=lambda value: type(value).__name__)
def test_a_body_keeps_kombus_types(value: Any) -> None:
    text = kombu_json.dumps([[], {"inputs": {"a": [value]}}, {}])
    assert protocol.body_value(text.encode()) == [[], {"inputs": {"a": [value]}}, {}]
    assert protocol.body_value(text) == [[], {"inputs": {"a": [value]}}, {}]
    # JSON has several ways to write a letter.
    for at, letter in enumerate("__type__"):
        name = "__type__"[:at] + f"\\u{ord(letter):04X}" + "__type__"[at + 1 :]
        assert protocol.body_value(text.replace("__type__", name).encode()) == [[], {"inputs": {"a": [value]}}, {}]


def test_a_body_without_them_is_plain_json() -> None:
    value = [[], {"inputs": "Grüße __value__ \\u005f \U0001f600", "n": 1}, {"callbacks": None}]
    assert protocol.body_value(kombu_json.dumps(value).encode()) == value
    for bad in (None, b"", b"[", b"\xff", b'"x"x', b'{"__type__": "none", "__value__": 1}'):
        with pytest.raises(UnreadableError):
            protocol.body_value(bad)
