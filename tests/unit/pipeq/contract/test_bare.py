"""Bare messages: which objects are some, where their id is, and what the schema says of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pipeq.contract import bare, keys
from pipeq.contract.message import TaskMessage

ROOT = Path(__file__).parents[4]
BARE = {"id": "7d1f", "pipeline": "it", "inputs": "hello"}
NESTED = {"id": "another task's", "headers": {"id": "a third's"}, "fair_key": "no", "properties": 1, "body": "x"}


@pytest.mark.parametrize("gone", [None, *BARE])
def test_an_object_is_a_bare_message_or_a_frame(gone: str | None) -> None:
    message = {name: value for name, value in BARE.items() if name != gone}
    assert bare.is_bare(message)
    assert bare.id_of(message) == message.get("id")
    frame = {"headers": {"id": "7d1f"}, "properties": {}, "body": ""}
    for key in (None, *frame):
        one = {name: value for name, value in frame.items() if name != key}
        assert not bare.is_bare(one)
        assert bare.id_of(one) == (None if key == "headers" else "7d1f")
        # A task's fields decide, so that a wrong one is named as such.
        assert bare.is_bare({**one, "inputs": 1})
    assert bare.id_of({"headers": [], "body": ""}) is None


def test_an_id_is_read_from_what_lies_in_redis() -> None:
    assert bare.id_in(json.dumps(BARE)) == bare.id_in(" \t" + json.dumps(BARE)) == "7d1f"
    assert bare.id_in(json.dumps({"headers": {"id": "x"}, "properties": {}})) == "x"
    for nothing in (None, "", "[]", "no json", b"\xff", "{}", "5", '{"id": '):
        assert bare.id_in(nothing) is None


@pytest.mark.parametrize("front", ["", " ", "  \t\t\r", "\n "])
def test_of_what_is_broken_the_first_bytes_tell_the_id(front: str) -> None:
    def first(text: str) -> str | None:
        return bare.first_id((front + text).encode())

    whole = json.dumps({**BARE, "inputs": NESTED})
    # Cut anywhere behind the id, or in it.
    behind = whole.index('"7d1f"') + len('"7d1f"')
    for end in range(len(whole)):
        assert first(whole[:end]) == ("7d1f" if end >= behind else None), whole[:end]
    # The key at the top counts, wherever it stands, as long as all in front of it can be read.
    last = json.dumps({"inputs": [NESTED, '\\" {[ "id": "no"'], "pipeline": "it", "id": "7d1f"})
    assert first(last) == first(last[:-1]) == first(last[:-1] + ", }") == "7d1f"
    assert first(last.replace('"7d1f"', "7")) is None
    assert first(json.dumps({"inputs": "x" * bare.ID_WITHIN_BYTES, "id": "7d1f"})) is None
    assert first('{"id": "a\\u00e4\\"b", "inputs": [') == 'aä"b'
    assert first('{"id": "", "inputs": [') is None
    assert first('{"id": "a') is None
    # Frames, as Celery and others order their keys; and what is nothing at all.
    frame = {"body": "e30=", "headers": {"task": "pipeq.infer", "id": "of-frame"}, "properties": {"id": "no"}}
    for names in (list(frame), list(frame)[::-1], ["headers", "body", "properties"]):
        text = json.dumps({name: frame[name] for name in names})
        found = first(text[:-1])
        assert found == "of-frame", text
    assert first(json.dumps({**frame, "body": "x" * 20_000})[:-1]) == "of-frame"
    for nothing in ("", "{", "}", '"', '{"', "[]", "{}", '{"id"', '{"id":', '{"a": "\\', "[" * 9000, '"' * 9000):
        assert first(nothing) is None
    assert first('no json, but "headers": {"id": "x"}') == "x"


SCHEMA = json.loads(bare.bare_schema())
#: Field -> values that it may have, and values that it may not have.
VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    "id": (["a", "ä" * 500, "a/b c"], ["", 5, None, [], "x" * 1001]),
    "pipeline": (["it", "x" * 200], ["", 5, None, "x" * 201]),
    "inputs": ([None, 0, "x", [1], {"uri": "s3://a/b"}], []),
    "params": ([{}, {"top_k": 2}, None], [[], 5, "x"]),
    "output": ([None, {"uri": "s3://a/b/"}], [5, {}, "s3://a/b/"]),
    "custom_id": (["row 7", None], ["", 5, "x" * 501]),
    "fair_key": (["a", "x" * 200, None], ["", 5, "x" * 201]),
    "deadline_s": ([0, 1.5, None], [-1, "1", True]),
    "sent_at": ([0, 1.7e9, None], [-1, "1"]),
    "timeout_s": ([0.1, 60, None], [0, -1, "1"]),
    "expires_at": ([0, 1.7e9, None], [-1, "2030-01-01"]),
}


def test_the_schema_has_every_field_and_no_other() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert set(SCHEMA["properties"]) == {*TaskMessage.model_fields, *bare.OWN_FIELDS} == set(VALUES)
    valid = jsonschema.Draft202012Validator(SCHEMA).is_valid
    assert valid(BARE)
    for name, (good, wrong) in VALUES.items():
        for value in good:
            assert valid({**BARE, name: value}), (name, value)
        for value in wrong:
            assert not valid({**BARE, name: value}), (name, value)
        assert valid({key: value for key, value in BARE.items() if key != name}) == (name not in BARE)
    assert not valid({**BARE, "priority": 3})
    assert SCHEMA["$id"] == f"pipeq:{keys.CONTRACT_VERSION}:bare-message"


def test_the_script_that_takes_messages_has_the_same_numbers_and_keys() -> None:
    script = (ROOT / "worker/pipeq_worker/leases/reserve.lua").read_text()
    numbers = dict(re.findall(r"^local (\w+) = (\d+) ", script, re.MULTILINE))
    assert int(numbers["ID_WITHIN"]) == bare.ID_WITHIN_BYTES
    assert int(numbers["FAIR_KEY_WITHIN"]) == bare.FAIR_KEY_WITHIN_BYTES
    (table,) = re.findall(r"^local FRAME_KEYS = {(.*)}$", script, re.MULTILINE)
    assert set(re.findall(r"[\w-]+(?='?\]? = true)", table)) == bare.FRAME_KEYS
