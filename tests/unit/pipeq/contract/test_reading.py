"""READING: any content of Redis becomes JSON of a bounded size, or nothing."""

import json
import math

import pytest
from pipeq.contract import reading
from pipeq.contract.reading import UnreadableError, json_object, json_value, number, readable

DEEP = reading.MAX_DEPTH

HOSTILE = [
    None,
    b"",
    b"no JSON",
    b"\xff\xfe\x00",
    b"\xed\xa0",
    "\ud800",
    b"[" * 50_000,
    b"[" * 50_000 + b"]" * 50_000,
    b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    b'{"a": ' + b"9" * 5000 + b"}",
    b'{"a": -' + b"9" * 400 + b"}",
    b"[" * (DEEP + 1) + b"]" * (DEEP + 1),
    b"\x00" * 10,
    '{"a": 1}'.encode("utf-16"),
]


@pytest.mark.parametrize("raw", HOSTILE)
def test_what_cannot_be_read_is_one_error(raw: bytes | str | None) -> None:
    with pytest.raises(UnreadableError):
        json_value(raw)
    assert json_object(raw) is None


@pytest.mark.parametrize("raw", [b"[1]", b'"x"', b"1", b"null", b"true", b"NaN", b"1e999"])
def test_what_is_no_object_is_nothing(raw: bytes) -> None:
    json_value(raw)
    assert json_object(raw) is None


def test_what_is_json_is_what_json_says() -> None:
    value = {"a": [1, 2.5, None, True, "ü\U0001f600"], "digits": "9" * 5000, "brackets": "[" * 5000 + '"\\', "b": {}}
    assert json_object(json.dumps(value)) == value
    assert json_object(json.dumps(value).encode()) == value
    assert json_value("[" * DEEP + "]" * DEEP)
    many: list[list[int]] = [[number] for number in range(5000)]
    assert json_value(json.dumps(many)) == many


@pytest.mark.parametrize("value", [None, True, "1", [1], {}, math.nan, math.inf, 10**400])
def test_what_is_no_finite_number_is_none(value: object) -> None:
    assert number(value) is None


def test_numbers() -> None:
    assert number(3) == 3.0
    assert number(-2.5) == -2.5


def test_lone_surrogates_become_what_can_be_printed() -> None:
    raw = b'{"a\\udc80": ["\\ud800x", "\\ud83d\\ude00", {"k": "\\uDFFF"}], "n": 1}'
    assert readable(raw) == {"a\ufffd": ["\ufffdx", "\U0001f600", {"k": "\ufffd"}], "n": 1}
    assert readable('{"a": "\U0001f600"}') == {"a": "\U0001f600"}
