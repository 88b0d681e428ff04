"""A bare message gets the frame that Celery would have sent, or a reason that its producer can read."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pipeq.contract import keys
from pipeq.contract.bare import HEADER_OF
from pipeq.contract.reading import MAX_DEPTH
from pipeq_worker.broker import protocol
from pipeq_worker.leases.frame import JSON, Limits, Unreadable, as_sent, read
from pipeq_worker.leases.reserved import Reserved

LIMITS = Limits.of_body(10_000, JSON, takes_bare=True)
BARE: dict[str, Any] = {"id": "7d1f", "pipeline": "it", "inputs": ["ä", {"uri": "s3://a/b"}]}


def read_bare(message: Any, limits: Limits = LIMITS, front: str = "", **place: Any) -> dict[str, Any] | Unreadable:
    raw = message if isinstance(message, bytes) else json.dumps(message).encode()
    return read(Reserved("it", "tag", front.encode() + raw, **place), limits)


def test_it_gets_a_frame_of_celerys_protocol() -> None:
    more = {"params": {"top_k": 1}, "output": {"uri": "s3://r/"}, "fair_key": "a", "deadline_s": 5, "timeout_s": 9}
    frame = read_bare({**BARE, **more, "sent_at": 1.5})
    assert isinstance(frame, dict)
    headers, properties = frame["headers"], frame["properties"]
    assert protocol.broken_headers(dict(headers), dict(properties)) is None
    assert (headers["id"], headers["task"], headers["root_id"]) == ("7d1f", keys.TASK_NAME, "7d1f")
    assert {name: headers[name] for name in HEADER_OF} == {
        "fair_key": "a", "deadline_s": 5, "timeout_s": 9, "sent_at": 1.5,
    }  # fmt: skip
    assert properties["delivery_tag"] == "tag"
    assert properties["delivery_info"] == {"exchange": "", "routing_key": "it"}
    payload = protocol.body_value(frame["body"])
    assert protocol.broken_body(payload) is None
    assert payload[1] == {name: value for name, value in {**BARE, **more}.items() if name not in ("id", *HEADER_OF)}
    # As it goes on in a retry or a dead letter, it is a frame for good.
    again = read_bare(as_sent(frame))
    assert isinstance(again, dict)
    assert again["body"] == frame["body"]


@pytest.mark.parametrize("at", range(len(keys.PRIORITY_STEPS)))
def test_its_list_tells_its_priority(at: int) -> None:
    frame = read_bare(BARE, list_index=at)
    assert isinstance(frame, dict)
    assert frame["properties"]["priority"] == keys.PRIORITY_STEPS[at]


def test_one_that_was_delivered_before_says_so() -> None:
    for front in ("", " ", "  \t\r"):
        frame = read_bare(BARE, front=front)
        assert isinstance(frame, dict)
        assert frame["headers"].get("redelivered", False) == bool(front)


def test_when_it_expires() -> None:
    for at in (0, 1_800_000_000, 1_800_000_000.123456, 253_370_764_799):
        frame = read_bare({**BARE, "expires_at": at})
        assert isinstance(frame, dict)
        assert datetime.fromisoformat(frame["headers"]["expires"]).timestamp() == pytest.approx(at, abs=1e-5)
        assert datetime.fromisoformat(frame["headers"]["expires"]).tzinfo == UTC
    for wrong in ("2030-01-01", -1, 1e300, True, [], {}):
        refused = read_bare({**BARE, "expires_at": wrong})
        assert isinstance(refused, Unreadable)
        assert refused.task_id == "7d1f"
        assert f"its `expires_at` is {json.dumps(wrong)}, not a number of seconds since the epoch" == refused.reason


@pytest.mark.parametrize("wrong", [None, 5, 0.5, True, [], {}, "", "x" * 1001, "\ud800"])
def test_an_id_that_is_none(wrong: Any) -> None:
    refused = read_bare({**BARE, "id": wrong})
    assert isinstance(refused, Unreadable)
    assert refused.reason.startswith("its `id` is ")
    assert refused.reason.endswith(f", not {keys.TASK_ID_WORDS}")
    missing = read_bare({name: value for name, value in BARE.items() if name != "id"})
    assert isinstance(missing, Unreadable)
    assert missing.task_id is None
    assert missing.reason.startswith("it has no `id`")


def test_what_is_too_large_or_too_deep() -> None:
    refused = read_bare({**BARE, "inputs": "x" * 10_001})
    assert isinstance(refused, Unreadable)
    assert "max_message_bytes" in refused.reason
    assert refused.task_id == "7d1f"
    whole = b'{"id":"7d1f","pipeline":"it","inputs":%b}'
    for deep, is_read in ((MAX_DEPTH - 2, True), (MAX_DEPTH - 1, False), (MAX_DEPTH, False), (5000, False)):
        found = read_bare(whole % (b"[" * deep + b"]" * deep))
        assert isinstance(found, dict) == is_read, deep
        assert is_read or (isinstance(found, Unreadable) and found.task_id == "7d1f" and "nested" in found.reason)


def test_values_that_later_stages_refuse_stay_as_they_are() -> None:
    for value in (b"NaN", b'"\\ud800"', b"1e999", b"9" * 200):
        frame = read_bare(b'{"id":"7d1f","pipeline":"it","inputs":[%b]}' % value)
        assert isinstance(frame, dict)
        assert str(json.loads(frame["body"])[1]["inputs"]) == str(json.loads(b"[%b]" % value))


def test_null_params_are_none() -> None:
    frame = read_bare({**BARE, "params": None})
    assert isinstance(frame, dict)
    assert "params" not in json.loads(frame["body"])[1]


def test_only_where_it_is_meant() -> None:
    """On a queue of ordinary Celery tasks it is a mistake, and stays one."""
    refused = read_bare(BARE, Limits.of_body(10_000, JSON))
    assert isinstance(refused, Unreadable)
    assert "it has no properties" in refused.reason
    assert refused.task_id == "7d1f"
