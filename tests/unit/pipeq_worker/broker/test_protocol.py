"""Every header, property and part of a body that Celery knows, with every kind of value."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from celery.app.amqp import AMQP
from celery.app.task import Context
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
