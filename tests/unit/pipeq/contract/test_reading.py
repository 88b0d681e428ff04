"""READING: any content of Redis becomes JSON of a bounded size, or nothing."""

import json
import math
import random
import time
from typing import Any

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


def depth_of(value: Any) -> int:
    """How deep a value nests."""
    if not isinstance(value, list | dict):
        return 0
    return 1 + max(map(depth_of, value.values() if isinstance(value, dict) else value), default=0)


def a_value(rng: random.Random, depth: int) -> Any:
    """A value with many brackets beside each other, in texts, too, and a deep place here and there."""
    if depth <= 0:
        return rng.choice([1, "", "a [text] {", 'an "escaped" \\" one', "\\\\", "ü[\n", "}]", "9" * 290])
    if rng.random() < 0.4:
        return [a_value(rng, rng.choice([0, 0, 1, depth - 1])) for _ in range(rng.randrange(4))]
    return {f'"{at}[': a_value(rng, depth - 1 if at == 0 else rng.choice([0, 1])) for at in range(rng.randrange(1, 4))}


def nested(value: Any, levels: int, rng: random.Random) -> Any:
    """The value, so many levels deeper."""
    for _ in range(levels):
        value = rng.choice([[value], {"k": value}, [[], value], {"[": {}, "v": value}])
    return value


def test_depth_is_counted_where_brackets_are_many() -> None:
    rng = random.Random(7)
    deep = 0
    for _ in range(150):
        rows = [a_value(rng, rng.choice([1, 2, 5])) for _ in range(300)]
        rows[rng.randrange(300)] = nested(a_value(rng, 3), DEEP - rng.randrange(1, 12), rng)
        raw = json.dumps(rows, ensure_ascii=rng.random() < 0.5).encode()
        if depth_of(rows) > DEEP:
            deep += 1
            with pytest.raises(UnreadableError, match="nested deeper"):
                json_value(raw)
        else:
            assert json_value(raw) == rows
    assert 20 < deep < 130


@pytest.mark.parametrize("at", range(60))
def test_a_number_is_too_long_wherever_it_stands(at: int) -> None:
    before = b"[" + b"1," * at + b" " * (at % 7)
    assert json_value(before + b"9" * reading.MAX_DIGITS + b"]")[-1] == int("9" * reading.MAX_DIGITS)
    with pytest.raises(UnreadableError, match="more than 300 digits"):
        json_value(before + b"9" * (reading.MAX_DIGITS + 1) + b"]")
    assert not reading.is_bounded(before + b"9" * (reading.MAX_DIGITS + 1))


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


def python_says(raw: bytes) -> Any:
    """What a text means by Python's json; the error's sentence if it means nothing."""
    try:
        return json.loads(raw.decode())
    except (ValueError, RecursionError):
        return "it is no JSON"


def same(found: Any, expected: Any) -> bool:
    """Whether two values are equal in value and type, NaN included."""
    if type(found) is not type(expected):
        return False
    if isinstance(found, dict):
        return list(found) == list(expected) and all(same(found[name], expected[name]) for name in found)
    if isinstance(found, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return repr(found) == repr(expected)


#: Texts on which the readers of the world differ.
DIFFERENT = [
    *"NaN -Infinity Infinity 1e400 -1e400 1e-400 -0 -0.0 1E5 01 1. .5 +1 - 0x1 tru nul True None /**/1 [ ]".split(),
    *(str(2**63), str(2**64), str(-(2**64)), "9" * 300, "-" + "9" * 300, "9007199254740993", "1" * 299 + ".5"),
    *r'"\ud800" "\udc00\ud800" "\ud83d\ude00" "\ud83d\u0041" "\u0000" "\x" "\u12" "'.split(),
    *('"\t"', '"\x7f"', '"\u2028"', '"\ud7ff\ue000"', "\ufeff1", "\x0c1", "\xa01", " \t\r\n1 \t\r\n", "1\x00"),
    *('{"a":1,"a":2}', '{"a":1,"\\u0061":2}', "{1:2}", "{'a':1}", "[1,]", '{"a":1,}', "[1 2]", "1 2"),
]


@pytest.mark.parametrize("text", DIFFERENT)
@pytest.mark.parametrize("around", ["%s", "[%s]", '{"k": [%s, 1]}'])
def test_the_fast_reader_follows_pythons_rules(text: str, around: str) -> None:
    raw = (around % text).encode("utf-8", "surrogatepass")
    expected = python_says(raw)
    try:
        found = json_value(raw)
    except UnreadableError as error:
        found = str(error)
    assert same(found, expected)


def test_damaged_messages_are_read_as_python_reads_them() -> None:
    rng = random.Random(10)
    value = {"pipeline": "ü\ud800\u2028", "inputs": [1, -0.0, 1e300, True, None, '\\"/', {"__type__": "x"}], "n": 2**70}
    texts = [json.dumps(value).encode(), json.dumps({**value, "pipeline": "ü"}, ensure_ascii=False, indent=1).encode()]
    read = 0
    for _ in range(20_000):
        raw = bytearray(rng.choice(texts))
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(raw))
            raw[at : at + rng.randrange(3)] = bytes(
                rng.choice(rb'"\\{}[]:,0123456789.eE+-uNnat \x00\x80\xed\xa0') for _ in range(rng.randrange(3))
            )
        expected = python_says(bytes(raw))
        try:
            found = json_value(bytes(raw))
            read += 1
        except UnreadableError as error:
            found = str(error)
        assert same(found, expected), bytes(raw)
    assert 1000 < read < 19_000  # both kinds were met


@pytest.mark.parametrize("end", [b"", b"\\", b"["])
def test_a_text_without_end_is_read_once(end: bytes) -> None:
    """Each of its escaped quotation marks could begin a text, too: to look from each to the end would take minutes."""
    raw = b"[" * (DEEP // 2) + b"[]," * DEEP + b'"' + b'\\"' * 200_000 + end
    began = time.process_time()
    reading.is_bounded(raw)
    with pytest.raises(UnreadableError):
        json_value(raw)
    assert time.process_time() - began < 5
