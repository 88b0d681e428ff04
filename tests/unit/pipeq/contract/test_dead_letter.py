"""Dead letters: what a worker writes, an operator reads; whatever else lies there can be shown and dropped."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from pipeq.contract import keys
from pipeq.contract.dead_letter import DeadLetter, Letter, again, read
from pipeq.contract.message import TaskMessage
from pipeq.envelope import Envelope

QUEUE = "text-classification"
SECRET = "https://user:s3cret@h.example/a.wav?X-Amz-Signature=abcdef012345"


def frame(inputs: Any = "a fine film", **options: Any) -> dict[str, Any]:
    """What lies on a queue."""
    message = TaskMessage(pipeline=QUEUE, inputs=inputs, **options)
    envelope = Envelope("id-1", message, priority=6, submitted_at=100.0, expires_at=200.0, headers={"sent_at": 100.0})
    found = json.loads(envelope.encode(envelope.body()))
    assert isinstance(found, dict)
    return found


def letter(message: Any, **more: Any) -> DeadLetter:
    about = {"id": "id-1", "code": "timeout", "reason": "it took too long", "failed_at": 150.5, **more}
    return read(Letter(**about, message=message).encode().encode(), QUEUE)


def test_a_letter_can_be_read_by_eye() -> None:
    text = Letter(id="id-1", code="timeout", reason="r", failed_at=1.0, message=frame({"text": "ü"})).encode()
    assert json.loads(text)["version"] == 1
    assert json.loads(text)["message"]["body"][1] == {"pipeline": QUEUE, "inputs": {"text": "ü"}}
    assert "body_encoding" not in json.loads(text)["message"]["properties"]


@pytest.mark.parametrize(
    "inputs", ["x", ["a", None, 1.5, True], {"text": "x" * 1000}, [[]] * 100, "\\ud800 is no half", 10**200]
)
def test_what_was_sent_is_what_is_read_and_sent_again(inputs: Any) -> None:
    params, output = {"top_k": 2}, {"uri": "s3://results/run-1/"}
    found = letter(frame(inputs, params=params, output=output), attempts=3, worker="w1", traceback="File x")
    assert (found.inputs, found.params, found.output) == (inputs, params, "s3://results/run-1/")
    assert (found.task_id, found.pipeline, found.queue, found.code) == ("id-1", QUEUE, QUEUE, "timeout")
    assert (found.failed_at, found.attempts, found.worker, found.traceback) == (150.5, 3, "w1", "File x")
    assert found.obstacle is None
    key, text = again(found, tag="new", now=300.0)
    message = json.loads(text)
    assert key == keys.list_key(QUEUE, 6)
    before = frame(inputs, params=params, output=output)
    assert json.loads(base64.b64decode(message["body"])) == json.loads(base64.b64decode(before["body"]))
    headers, properties = message["headers"], message["properties"]
    assert headers == {**before["headers"], "expires": None, "sent_at": 300.0, "past_attempts": 3}
    assert properties["delivery_tag"] == "new"
    assert "expiration" not in properties
    assert properties["body_encoding"] == "base64"


def test_numbers_that_json_does_not_have_go_through_as_they_came() -> None:
    message = frame()
    message["body"] = base64.b64encode(b'[[], {"pipeline": "p", "inputs": NaN}, {}]').decode()
    found = letter(message)
    assert found.obstacle is None
    assert "NaN" in base64.b64decode(json.loads(again(found, tag="t", now=1.0)[1])["body"]).decode()


def test_a_body_that_is_nested_too_deep_inside_the_letter_stays_packed() -> None:
    inputs: Any = "x"
    for _ in range(190):
        inputs = [inputs]
    found = letter(frame(inputs))
    assert found.obstacle is None
    assert found.inputs == inputs


def test_a_packed_body_is_sent_again_as_it_is() -> None:
    message = frame()
    message["headers"]["compression"] = "application/x-gzip"
    found = letter(message)
    assert (found.inputs, found.obstacle) == (None, None)
    assert json.loads(again(found, tag="t", now=1.0)[1])["body"] == message["body"]


def test_the_result_of_a_chains_task_is_an_input() -> None:
    message = frame()
    message["body"] = base64.b64encode(b'[["given"], {"pipeline": "p"}, {}]').decode()
    assert letter(message).inputs == "given"
    assert letter(message).obstacle is None


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("[[[[", "no message that can be read"),
        (None, "no message that can be read"),
        ({}, "not Celery's frame"),
        ({"headers": 5, "properties": {}}, "not Celery's frame"),
        ({**frame(), "body": "no base64"}, "body of its message"),
        ({**frame(), "body": base64.b64encode(b"[1]").decode()}, "body of its message"),
        ({**frame(), "headers": {"id": "id-1", "task": "somebody.elses"}}, "'somebody.elses', not pipeq.infer"),
        ({**frame(), "headers": {"id": "another", "task": keys.TASK_NAME}}, "no valid id"),
        ({**frame(), "body": base64.b64encode(b'[[], {"inputs": 1}, {}]').decode()}, "not one of pipeq: pipeline"),
        ({**frame(), "body": base64.b64encode(b"[[], 5, {}]").decode()}, "not one of pipeq"),
    ],
)
def test_what_is_no_message_of_ours_says_so(message: Any, says: str) -> None:
    found = letter(message)
    assert found.obstacle is not None
    assert says in found.obstacle
    json.dumps(found.shown())


RAW = [
    b"",
    b"x",
    b"\xff\xfe",
    b"null",
    b"5",
    b"[]",
    b"{}",
    b"[" * 50_000,
    b'{"message": {"headers": {}}}',
    b'"\\ud800"',
]
VALUES: list[Any] = [
    None,
    True,
    -1,
    2.5,
    1e400,
    10**400,
    "",
    "x",
    "\x1b[2J",
    "\ud800",
    [],
    [[]],
    {},
    {"a": 1},
    "y" * 10**6,
]


@pytest.mark.parametrize("raw", RAW, ids=lambda raw: repr(raw[:20]))
def test_whatever_lies_there_is_read(raw: bytes) -> None:
    found = read(raw, QUEUE)
    assert found.obstacle is not None
    assert len(found.letter) == 12
    json.dumps(found.shown(), allow_nan=False)


@pytest.mark.parametrize(
    "field", ["version", "id", "code", "reason", "failed_at", "attempts", "worker", "traceback", "message"]
)
@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
def test_a_field_of_any_kind_is_read(field: str, value: Any) -> None:
    entry = json.loads(Letter(id="id-1", code="c", reason="r", failed_at=1.0, message=frame()).encode())
    found = read(json.dumps({**entry, field: value}).encode(), QUEUE)
    assert isinstance(found.code, str)
    assert isinstance(found.attempts, int)
    json.dumps(found.shown())


@pytest.mark.parametrize("where", ["headers", "properties", "body"])
@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
def test_a_part_of_the_message_of_any_kind_is_read(where: str, value: Any) -> None:
    found = letter({**frame(), where: value})
    assert found.obstacle is not None
    json.dumps(found.shown())


def test_a_message_that_is_no_json_becomes_text() -> None:
    entry = json.loads(Letter(id=None, code="c", reason="r", failed_at=1.0, message={(1, 2): 3}).encode())
    assert entry["message"].startswith("not JSON: ")


def test_secrets_are_not_shown() -> None:
    inputs = [{"uri": SECRET, "signature": "0123456789abcdef"}, f"listen to {SECRET}", {"base64": "eA" * 1000}]
    found = letter(frame(inputs, params={"a": SECRET}), reason=f"cannot read {SECRET}", traceback=SECRET)
    assert found.inputs == inputs
    for text in (json.dumps(found.shown()), repr(found)):
        for secret in ("s3cret", "abcdef012345", "0123456789abcdef", "eA" * 100):
            assert secret not in text, text
    assert "h.example/a.wav" in json.dumps(found.shown())


def test_letters_with_one_tasks_id_have_ids_of_their_own() -> None:
    assert letter(frame(), failed_at=1.0).letter != letter(frame(), failed_at=2.0).letter
