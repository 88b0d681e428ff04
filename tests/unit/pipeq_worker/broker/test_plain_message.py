"""PLAIN MESSAGE: each message that takes the short way means the same along kombu's and Celery's own."""

from __future__ import annotations

import base64
import copy
import json
import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import Celery, Task
from celery.worker.request import Request
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.transport.virtual import base as kombu
from pipeq.contract import keys, pack
from pipeq.contract.bare import FRAME_KEYS, OWN_FIELDS
from pipeq.contract.errors import PipeqError
from pipeq.contract.message import TaskMessage
from pipeq.contract.pack import PackMessage
from pipeq_worker.broker import plain_message, protocol
from pipeq_worker.broker.late_request import LateRequest, Requesting
from pipeq_worker.broker.plain_message import Headers, PlainMessage, Properties
from pipeq_worker.broker.requests import facts_of_plain, facts_of_request
from pipeq_worker.leases import celery_internals, frame
from pipeq_worker.leases.frame import JSON, Limits
from pipeq_worker.leases.reserved import Reserved
from pipeq_worker.stages.accept import read_message

LIMITS = Limits.of_body(10_000, JSON, takes_bare=True)
FIELDS = {"pipeline": "it", "inputs": "hello"}
EMBED: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
#: What pipeq's client and a stock Celery producer send.
HEADERS: dict[str, Any] = {
    "lang": "py", "task": keys.TASK_NAME, "id": "t-1", "shadow": None, "eta": None, "expires": None, "group": None,
    "group_index": None, "retries": 0, "timelimit": [None, None], "root_id": "t-1", "parent_id": None,
    "argsrepr": "()", "kwargsrepr": "{}", "origin": "gen1@host", "ignore_result": False,
    "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {},
}  # fmt: skip
PROPERTIES: dict[str, Any] = {
    "correlation_id": "t-1", "reply_to": "r", "delivery_mode": 2, "priority": 0, "body_encoding": "base64",
    "delivery_info": {"exchange": "", "routing_key": "it"}, "delivery_tag": "d",
}  # fmt: skip
#: Values of every kind of JSON, at and beyond the limits of the fields.
VALUES: list[Any] = [
    None, True, False, 0, 1, 2, 3, 9, 255, 256, -1, 2**53, 2**53 + 1, 10**40, 0.5, -0.5, 1e308, "", "a", "x" * 201,
    "x" * 1001, "é" * 600, "utf-8", "base64", "zlib", "2030-01-01T00:00:00", [], [1], ["a"], [None, None], [1, 2],
    [1.5, None], [1, 2, 3], ["a", "b"], {}, {"a": 1}, {"task": "x"}, [{"task": "x"}], "\u2028",
]  # fmt: skip


def body_of(args: Any = (), fields: Any = None, embed: Any = None) -> bytes:
    return json.dumps([list(args), FIELDS if fields is None else fields, EMBED if embed is None else embed]).encode()


def raw_of(
    headers: Any = None, properties: Any = None, body: bytes | None = None, frame_fields: dict[str, Any] | None = None
) -> bytes:
    whole = {
        "body": base64.b64encode(body_of() if body is None else body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": HEADERS if headers is None else headers,
        "properties": PROPERTIES if properties is None else properties,
        **(frame_fields or {}),
    }
    return json.dumps(whole).encode()


class Channel:
    """As much of kombu's as its messages use."""

    def decode_body(self, body: Any, encoding: str | None = None) -> Any:
        return base64.b64decode(body) if encoding == "base64" else body


@pytest.fixture(scope="module")
def common() -> Requesting:
    app = Celery("it", set_as_current=False)

    class Infer(Task):
        name = keys.TASK_NAME

        def run(self) -> None:
            """Is not called."""

    return Requesting(app, app.register_task(Infer()), "w1@host", None, (OSError,))


def by_celery(one: Reserved, common: Requesting) -> tuple[Request, TaskMessage | PackMessage]:
    """What the other way makes of a message. Any refusal fails the test."""
    read = frame.read(one, LIMITS)
    assert isinstance(read, dict), read
    message = kombu.Message(read, channel=Channel())
    assert protocol.broken_headers(message.headers, message.properties) is None
    payload = protocol.body_value(message.body)
    celery_internals.set_payload(message, payload)
    assert protocol.broken_body(payload) is None
    request = Request(
        message, app=common.app, task=common.task, hostname=common.hostname, connection_errors=common.connection_errors
    )
    assert not request.args
    return request, pack.parse(payload[1])


def public(request: Request) -> dict[str, Any]:
    """What everybody can read of a request."""
    names = [name for name, value in vars(Request).items() if isinstance(value, property)]
    found = {name: getattr(request, name) for name in [*names, "id", "name", "time_limits", "acknowledged"]}
    for name in ("on_ack", "on_reject", "message"):
        del found[name]
    found["request_dict"] = {**found["request_dict"], "ignore_result": False}
    return {**found, "ignore_result": False, "info": request.info(), "embed": celery_internals.embed_of(request)}


@contextmanager
def still(monkeypatch: pytest.MonkeyPatch) -> Iterator[float]:
    """The clocks stand, so that two deadlines can be compared."""
    now, monotonic = time.time(), time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now)
        patch.setattr(time, "monotonic", lambda: monotonic)
        yield now


def check(raw: bytes, common: Requesting, monkeypatch: pytest.MonkeyPatch) -> PlainMessage | None:
    """Compares both ways, if the short one takes the message."""
    one = Reserved("it", "tag", raw)
    if (plain := plain_message.read(one, LIMITS)) is None:
        return None
    try:
        message: TaskMessage | PackMessage | str = read_message(plain.body)
    except PipeqError as error:
        message = str(error)
    request: Request | None
    expected: TaskMessage | PackMessage | str
    try:
        request, expected = by_celery(one, common)
    except PipeqError as error:
        request, expected = None, str(error)
    assert message == expected
    if isinstance(expected, PackMessage):
        assert (plain.pack_of, plain.rows) == (expected.of, len(expected.rows))
    if request is None:
        return plain
    with still(monkeypatch) as now:
        facts, known = facts_of_request(request), facts_of_plain(plain, now)
    # What the short way does not say has the value that a delivery has by itself.
    rest = {"queue": "it", "expiry": math.inf, "has_next": False, "has_followers": False}
    assert {**rest, **known} == facts
    assert plain.headers.id == request.id

    late = LateRequest(plain.headers.id, common, lambda: request.message)
    assert (late.id, late.name, late.hostname, late.eventer) == (request.id, request.name, request.hostname, None)
    assert not late.is_filled
    assert public(late) == public(request)
    assert late.is_filled
    return plain


def test_the_usual_message_takes_the_short_way(common: Requesting, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = check(raw_of(), common, monkeypatch)
    assert plain is not None
    assert json.loads(plain.body) == [[], FIELDS, EMBED]


def test_all_fields_of_the_protocol_are_looked_at() -> None:
    assert {one.encode_name for one in plain_message.msgspec.structs.fields(Headers)} == set(protocol.HEADERS)
    typed = {one.encode_name for one in plain_message.msgspec.structs.fields(Properties)}
    assert typed == {*protocol.PROPERTIES, "body_encoding"}
    assert plain_message.read(Reserved("it", "tag", raw_of()), LIMITS).headers.task == keys.TASK_NAME  # type: ignore[union-attr]


@pytest.mark.parametrize("name", [*protocol.HEADERS, *sorted(HEADERS), "traceparent", "hostname", "args", "_children"])
def test_each_value_of_each_header(name: str, common: Requesting, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in VALUES:
        check(raw_of({**HEADERS, name: value}), common, monkeypatch)
    check(raw_of({key: value for key, value in HEADERS.items() if key != name}), common, monkeypatch)


@pytest.mark.parametrize("name", [*protocol.PROPERTIES, *PROPERTIES, "expires", "other"])
def test_each_value_of_each_property(name: str, common: Requesting, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in VALUES:
        check(raw_of(properties={**PROPERTIES, name: value}), common, monkeypatch)
    check(raw_of(properties={key: value for key, value in PROPERTIES.items() if key != name}), common, monkeypatch)


@pytest.mark.parametrize("name", ["body", "content-type", "content-encoding", "headers", "properties", "extra"])
def test_each_value_of_each_field_of_the_frame(name: str, common: Requesting, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in VALUES:
        check(raw_of(frame_fields={name: value}), common, monkeypatch)
    whole = json.loads(raw_of())
    whole.pop(name, None)
    check(json.dumps(whole).encode(), common, monkeypatch)


@pytest.mark.parametrize("name", ["pipeline", "inputs", "params", "output", "other"])
def test_each_value_of_each_field_of_a_task(name: str, common: Requesting, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in [*VALUES, "it", {"uri": "s3://a/b"}, {"uri": "no"}]:
        check(raw_of(body=body_of(fields={**FIELDS, name: value})), common, monkeypatch)
    fields = {key: value for key, value in FIELDS.items() if key != name}
    check(raw_of(body=body_of(fields=fields)), common, monkeypatch)


@pytest.mark.parametrize("name", [*EMBED, "other"])
def test_what_has_followers_takes_celerys_way(name: str) -> None:
    for value in [one for one in VALUES if one is not None]:
        raw = raw_of(body=body_of(embed={**EMBED, name: value}))
        assert plain_message.read(Reserved("it", "tag", raw), LIMITS) is None


BODIES = [
    b"", b"null", b"{}", b"[]", b"[[],{}]", b"[[],{},{}]", b"[[],{},{},1]", body_of([1]), body_of(fields=[]),
    b'[[],{"pipeline":"it","inputs":NaN},{}]', b'[[],{"pipeline":"it","inputs":1e999},{}]',
    b'[[],{"pipeline":"it","inputs":"\\ud800"},{}]', b'[[],{"pipeline":"it","inputs":"\xff"},{}]',
    b'[[],{"pipeline":"it","inputs":' + b"9" * 400 + b"},{}]",
    b'[[],{"pipeline":"it","inputs":' + b"[" * 5000 + b"},{}]",
    b'[[],{"pipeline":"it","inputs":' + b"[" * 300 + b"]" * 300 + b"},{}]",
    b'[[],{"pipeline":"it","inputs":{"__type__":"uuid","__value__":"x"}},{}]',
    b'[[],{"pipeline":"it","inputs":{"\\u005f_type__":"uuid","__value__":"x"}},{}]',
    b'[[],{"pipeline":"it","inputs":1,"inputs":2},{}]', b'[[],{"pipeline":"it","inputs":tru},{}]',
    b'[[],{"pipeline":"it","inputs":"' + b"a" * 10_001 + b'"},{}]', body_of() + b" ", b"\xef\xbb\xbf" + body_of(),
    body_of().decode().encode("utf-16"), body_of()[:-1],
]  # fmt: skip


#: The size from which on the rows of a body are only counted: the usual one, and none.
SIZES = (plain_message.LARGE_BYTES, 0)


@pytest.mark.parametrize("large_bytes", SIZES)
@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_odd_bodies(body: bytes, common: Requesting, monkeypatch: pytest.MonkeyPatch, large_bytes: int) -> None:
    monkeypatch.setattr(plain_message, "LARGE_BYTES", large_bytes)
    check(raw_of(body=body), common, monkeypatch)
    for text in ("!!" + base64.b64encode(body).decode(), base64.b64encode(body).decode()[:-1], "é"):
        check(raw_of(frame_fields={"body": text}), common, monkeypatch)


def test_what_was_delivered_before_or_is_too_large_takes_celerys_way() -> None:
    assert plain_message.read(Reserved("it", "tag", b" " + raw_of()), LIMITS) is None
    assert plain_message.read(Reserved("it", "tag", b"t\n" + raw_of(), too_large=1), LIMITS) is None
    assert plain_message.read(Reserved("other", "tag", raw_of()), LIMITS) is None


BARE = {"id": "t-1", **FIELDS}


def test_a_bare_message_takes_the_short_way(common: Requesting, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = check(json.dumps(BARE).encode(), common, monkeypatch)
    assert plain is not None
    assert json.loads(plain.body) == [[], FIELDS, EMBED]
    for at, priority in enumerate(keys.PRIORITY_STEPS):
        found = plain_message.read(Reserved("it", "tag", json.dumps(BARE).encode(), list_index=at), LIMITS)
        assert found is not None
        assert found.priority == priority
    assert plain_message.read(Reserved("it", "tag", json.dumps(BARE).encode()), Limits.of_body(10_000, JSON)) is None
    assert plain_message.read(Reserved("it", "tag", b" " + json.dumps(BARE).encode()), LIMITS) is None


@pytest.mark.parametrize("name", [*TaskMessage.model_fields, *sorted(OWN_FIELDS), *sorted(FRAME_KEYS), "eta", "other"])
def test_each_value_of_each_field_of_a_bare_message(
    name: str, common: Requesting, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = 0
    for value in [*VALUES, "it", {"uri": "s3://a/b"}, {"uri": "no"}]:
        taken += check(json.dumps({**BARE, name: value}).encode(), common, monkeypatch) is not None
    check(json.dumps({key: value for key, value in BARE.items() if key != name}).encode(), common, monkeypatch)
    assert taken or name not in {*TaskMessage.model_fields, *OWN_FIELDS}


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_odd_bare_messages(body: bytes, common: Requesting, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = body.removeprefix(b"[[],").removesuffix(b",{}]")
    check(b'{"id": "t-1",' + fields[1:], common, monkeypatch)
    check(body, common, monkeypatch)


def damaged(raw: bytes, rng: random.Random) -> bytes:
    at, other = rng.randrange(len(raw)), rng.randrange(256)
    how = rng.randrange(4)
    if how == 0:
        return raw[:at] + bytes([other]) + raw[at + 1 :]
    if how == 1:
        return raw[:at] + bytes([other]) + raw[at:]
    if how == 2:
        return raw[:at] + raw[at + rng.randrange(1, 9) :]
    piece = rng.choice(
        [b"\\q", b"\\ud800", b"\n", b"\x00", b"1e999", b"NaN", b"tru", b",", b'":"', b"\xc1", b"\\", b"01"]
    )
    return raw[:at] + piece + raw[at:]


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_of_frames_and_bodies(seed: int, common: Requesting, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, taken = random.Random(seed), 0
    headers = {**HEADERS, "traceparent": "an é of others", "baggage": {"a": ["b", 1.5, None]}}
    body = body_of(
        fields={**FIELDS, "inputs": {"text": "an é", "more": [1, 2.5, None, True, "x"]}, "params": {"a": "b"}}
    )
    for _ in range(1500):
        taken += check(damaged(raw_of(headers, body=body), rng), common, monkeypatch) is not None
        taken += check(raw_of(headers, body=damaged(body, rng)), common, monkeypatch) is not None
        taken += check(damaged(json.dumps({"fair_key": "é", **BARE}).encode(), rng), common, monkeypatch) is not None
    assert taken > 100


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_random_changes(data: st.DataObject, common: Requesting) -> None:
    headers, properties = copy.deepcopy(HEADERS), copy.deepcopy(PROPERTIES)
    fields, embed = dict(FIELDS), dict(EMBED)
    for part in (headers, properties, fields, embed):
        for name in data.draw(st.lists(st.sampled_from([*part, "other"]), max_size=2)):
            part[name] = data.draw(JSONS | st.sampled_from(VALUES))
    with pytest.MonkeyPatch.context() as monkeypatch:
        check(raw_of(headers, properties, body_of(fields=fields, embed=embed)), common, monkeypatch)


def test_a_request_keeps_what_was_noted_before_it_was_filled(common: Requesting) -> None:
    request, _ = by_celery(Reserved("it", "tag", raw_of()), common)
    made = []

    def make() -> Any:
        made.append(1)
        return request.message

    late = LateRequest("t-1", common, make)
    late.acknowledged, late.worker_pid, late.time_start = True, 7, 8.0
    assert late.args == []
    assert (late.acknowledged, late.worker_pid, late.time_start) == (True, 7, 8.0)
    late.fill()
    assert made == [1]
    with pytest.raises(AttributeError, match="no_such_field"):
        _ = late.no_such_field


@pytest.mark.parametrize("seed", range(2))
def test_random_damage_of_packs(seed: int, common: Requesting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their rows are not read, only counted; nothing is accepted that Celery's way would refuse."""
    rng, taken = random.Random(seed), 0
    rows = [{"inputs": "a", "line": 1, "custom_id": "x"}, {"inputs": {"n": [1, 2.5, None]}, "params": {"top_k": 1}}]
    body = body_of(fields={"pipeline": "it", "rows": rows * 30, "job": {"id": "j", "pack": 3}})
    assert len(body) > plain_message.LARGE_BYTES
    for _ in range(1500):
        taken += check(raw_of(body=damaged(body, rng)), common, monkeypatch) is not None
    assert taken > 100


@pytest.mark.parametrize("large_bytes", SIZES)
@pytest.mark.parametrize("name", ["pipeline", "rows", "job", "params", "output", "include_inputs", "inputs", "other"])
def test_each_value_of_each_field_of_a_pack(
    name: str, common: Requesting, monkeypatch: pytest.MonkeyPatch, large_bytes: int
) -> None:
    monkeypatch.setattr(plain_message, "LARGE_BYTES", large_bytes)
    fields: dict[str, Any] = {
        "pipeline": "it",
        "rows": [{"inputs": "a", "line": 1, "custom_id": "x"}, {"inputs": "b", "params": {"top_k": 1}}],
        "job": {"id": "j", "pack": 3},
    }
    found = check(raw_of(body=body_of(fields=fields)), common, monkeypatch)
    assert found is not None
    assert found.rows == 2
    more: list[Any] = [
        {"id": "j", "pack": 3, "row": 1}, {"id": "j", "pack": -1}, {"id": "", "pack": 1}, {"id": "j"},
        {"id": "j", "pack": True}, {"id": "j", "pack": 1, "x": 1}, [{"inputs": None}], [{"inputs": 1}] * 1001,
        [{"line": 1}], [{"inputs": 1, "line": -1}], [{"inputs": 1, "custom_id": "x" * 501}], [{"inputs": 1, "x": 1}],
    ]  # fmt: skip
    for value in [*VALUES, *more]:
        check(raw_of(body=body_of(fields={**fields, name: value})), common, monkeypatch)
    if name in fields:
        check(raw_of(body=body_of(fields={one: fields[one] for one in fields if one != name})), common, monkeypatch)
