"""A message's bytes become a frame, or a reason and the id that was found; quickly, and with little memory."""

from __future__ import annotations

import base64
import bz2
import json
import lzma
import time
import tracemalloc
import zlib
from typing import Any

import pytest
from kombu import Connection
from kombu.transport.virtual import Message
from pipeq_worker.leases.frame import HEADERS_BYTES, JSON, Limits, Unreadable, as_sent, broadcast, read
from pipeq_worker.leases.reserved import Reserved

LIMITS = Limits.of_body(256 * 1024, JSON)
ID = "5f7c"


def frame(body: bytes | None = b"[[], {}, {}]", headers: Any = None, **fields: Any) -> dict[str, Any]:
    return {
        "body": None if body is None else base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": "pipeq.infer", "id": ID, **(headers or {})},
        "properties": {"body_encoding": "base64", "delivery_tag": "t", "delivery_info": {"exchange": ""}},
        **fields,
    }


def read_json(message: Any, limits: Limits = LIMITS) -> dict[str, Any] | Unreadable:
    return read(Reserved("q", "tag", json.dumps(message).encode()), limits)


def test_a_good_frame_is_told_where_it_lay() -> None:
    message = read_json(frame())
    assert isinstance(message, dict)
    assert message["properties"]["delivery_tag"] == "tag"
    assert message["properties"]["delivery_info"] == {"exchange": "", "routing_key": "q"}
    assert isinstance(read_json(frame(None, properties={})), dict)


@pytest.mark.parametrize("body", [b"[[], {}, {}]", b"", b"\xff\x00" * 1000])
def test_a_body_is_decoded_once_and_can_be_sent_again(body: bytes) -> None:
    sent = frame(body)
    message = read_json(sent)
    assert isinstance(message, dict)
    assert message["body"] == body
    assert Message(message, channel=channel_of_no_server()).body == body
    again = json.loads(json.dumps(as_sent(message)))
    assert (again["body"], again["properties"]["body_encoding"]) == (sent["body"], "base64")
    assert Message(again, channel=channel_of_no_server()).body == body
    plain = read_json({**sent, "body": "[[], {}, {}]", "properties": {}})
    assert isinstance(plain, dict)
    assert as_sent(plain) is plain


def channel_of_no_server() -> Any:
    return Connection("memory://").channel()


PACKERS = {
    "application/x-gzip": zlib.compress,
    "application/x-bz2": bz2.compress,
    "application/x-lzma": lzma.compress,
    "gzip": zlib.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


@pytest.mark.parametrize("kind", PACKERS)
def test_what_celery_packs_is_taken_and_measured_first(kind: str) -> None:
    small, large = PACKERS[kind](b"[[], {}, {}]"), PACKERS[kind](b" " * 5_000_000)
    assert isinstance(read_json(frame(small, {"compression": kind})), dict)
    assert len(large) < LIMITS.body_bytes
    tracemalloc.start()
    began = time.process_time()
    refused = read_json(frame(large, {"compression": kind}))
    took, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(refused, Unreadable)
    assert "unpacks to more, at most 262144 bytes" in refused.reason
    assert refused.task_id == ID
    assert took < 1
    assert peak < 10 * 2**20


def test_streams_one_after_the_other_are_added_up() -> None:
    many = bz2.compress(b" " * 200_000) * 20
    refused = read_json(frame(many, {"compression": "bzip2"}))
    assert isinstance(refused, Unreadable)
    assert "unpacks to more" in refused.reason


@pytest.mark.parametrize("kind", [*PACKERS, "brotli", "application/zstd", "nonsense", 5, ["gzip"], {"a": 1}, True])
def test_what_cannot_be_unpacked_is_refused(kind: Any) -> None:
    for body in (b"", b"nonsense", PACKERS.get(str(kind), bytes)(b"x" * 50_000)[:-20]):
        message = read_json(frame(body, {"compression": kind}))
        assert isinstance(message, Unreadable) or not body
    # An app that accepts any type may have more of kombu's compressions.
    more = read_json(frame(b"x", {"compression": kind}), Limits())
    assert isinstance(more, dict) == (kind in ("brotli", "application/zstd", "nonsense"))


@pytest.mark.parametrize("encoding", ["utf-8", "UTF-8", "us-ascii", "ascii", "binary", "latin-1", None])
def test_encodings_that_producers_send(encoding: Any) -> None:
    assert isinstance(read_json(frame(**{"content-encoding": encoding})), dict)


@pytest.mark.parametrize("encoding", ["punycode", "idna", "zlib", "uu", "rot13", "utf-7", "nonsense", 5, [], {"a": 1}])
def test_encodings_that_nobody_sends(encoding: Any) -> None:
    message = frame(b"a" * 200_000, **{"content-encoding": encoding, "content-type": "application/data"})
    began = time.process_time()
    for limits in (LIMITS, Limits()):
        assert isinstance(read_json(message, limits), Unreadable)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("kind", ["application/x-python-serialize", "application/data", "text/plain", "", None, 5, []])
def test_json_alone_where_it_is_asked_for(kind: Any) -> None:
    refused = read_json(frame(**{"content-type": kind}))
    assert isinstance(refused, Unreadable)
    assert "content-type" in refused.reason
    # An app may accept any type.
    assert isinstance(read_json(frame(**{"content-type": kind}), Limits()), dict) == (
        kind is None or isinstance(kind, str)
    )


def test_a_body_that_is_too_large() -> None:
    assert isinstance(read_json(frame(b" " * LIMITS.body_bytes)), dict)
    refused = read_json(frame(b" " * (LIMITS.body_bytes + 1)))
    assert isinstance(refused, Unreadable)
    assert "max_message_bytes" in refused.reason
    # The limit on whole messages has room for both.
    assert len(json.dumps(frame(b" " * LIMITS.body_bytes))) < LIMITS.message_bytes - HEADERS_BYTES // 2


@pytest.mark.parametrize("text", [b"", b"\xc3\xa4\\u00e4", b"no\nid", b'\\"q'])
def test_what_was_cut_tells_its_id(text: bytes) -> None:
    message = read(Reserved("q", "t", text + b'\n{"body": "aaa', 10**8), LIMITS)
    assert isinstance(message, Unreadable)
    assert "100000000 bytes" in message.reason
    assert message.task_id == {b"": None, b"\xc3\xa4\\u00e4": "ää", b"no\nid": "no", b'\\"q': '"q'}[text]


DEEP = [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 300 + b"]" * 300]


@pytest.mark.parametrize("deep", DEEP, ids=["lists", "objects", "closed"])
def test_brackets_anywhere(deep: bytes) -> None:
    for raw in (
        deep,
        b'{"properties": ' + deep,
        b'{"headers": {"id": "5f7c", "x": ' + deep,
        b'{"headers": {"id": "5f7c"}, "properties": {"a": ' + deep + b"}}",
    ):
        message = read(Reserved("q", "t", raw), LIMITS)
        assert isinstance(message, Unreadable)
        assert message.task_id == (ID if b"5f7c" in raw else None)
        assert isinstance(broadcast(raw, True), Unreadable)
        assert isinstance(broadcast(raw, False), Unreadable)
    for is_control in (True, False):
        assert isinstance(broadcast(json.dumps(frame(deep)), is_control), Unreadable)


WRONG = [None, True, 5, -1, 0.5, 10**400, "text", "\ud800", "", [], [1], {}, {"a": 1}, "x" * 1000]


def test_any_value_anywhere() -> None:
    """Any content of the frame, its properties and its headers gives an answer, never an exception."""
    names = [*frame(), *frame()["properties"], *frame()["headers"], "compression", "redelivered", "clock", "priority"]
    for name in names:
        for value in WRONG:
            for place in (None, "properties", "headers"):
                message = frame()
                (message if place is None else message[place])[name] = value
                for limits in (LIMITS, Limits()):
                    assert isinstance(read_json(message, limits), dict | Unreadable)
                assert isinstance(broadcast(json.dumps(message), True), dict | Unreadable)


@pytest.mark.parametrize("body", [b"[]", b"5", b'"text"', b"null", b"{", b"\xff"])
def test_the_remote_control_takes_objects(body: bytes) -> None:
    assert isinstance(broadcast(json.dumps(frame(body)), True), Unreadable)
    assert isinstance(broadcast(json.dumps(frame(b'{"method": "ping"}')), True), dict)
