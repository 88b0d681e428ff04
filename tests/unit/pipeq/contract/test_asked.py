"""The object with inputs beside the result: references, no bytes, no secrets, bounded, and read back as the result."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from pipeq.contract.asked import ASKED_MAX_BYTES, answer, asked
from pipeq.contract.message import TaskMessage


def beside(inputs: Any, **fields: Any) -> dict[str, Any]:
    whole = json.loads(asked(TaskMessage(pipeline="it", inputs=inputs, **fields), "t-1") + b'[{"a": 1}]}')
    assert answer(whole) == [{"a": 1}]
    found = whole["pipeq"]
    assert isinstance(found, dict)
    return found


def test_what_was_sent_is_there() -> None:
    inputs = [{"image": {"uri": "s3://a/b.png"}, "question": "was?"}, "ä", None, 0.5, ["x"]]
    assert beside(inputs, params={"top_k": 2}, custom_id="row 7") == {
        "version": 1, "id": "t-1", "pipeline": "it", "custom_id": "row 7", "inputs": inputs, "params": {"top_k": 2},
    }  # fmt: skip
    assert "custom_id" not in beside("x")


def test_bytes_and_secrets_are_not() -> None:
    data = b"\x00\x01" * 500
    found = beside({"image": {"base64": base64.b64encode(data).decode(), "media_type": "image/png"}})
    sha256 = hashlib.sha256(data).hexdigest()
    assert found["inputs"] == {"image": {"media_type": "image/png", "bytes": 1000, "sha256": sha256}}
    assert beside({"base64": "no base64"})["inputs"]["bytes"] is None
    secret = beside({"uri": "https://user:secret@host/a.png?signature=secret", "signature": "0" * 64})
    assert "secret" not in json.dumps(secret)
    assert "signature" not in secret["inputs"]
    assert "host/a.png" in secret["inputs"]["uri"]


@pytest.mark.parametrize("more", [0, 1, 10_000_000])
def test_it_is_bounded(more: int) -> None:
    size = len(b'{"inputs":"","params":{}}')
    found = beside("x" * (ASKED_MAX_BYTES - size + more))
    assert (found["inputs"] is None) == bool(more)
    assert found.get("left_out_bytes") == (ASKED_MAX_BYTES + more if more else None)


@pytest.mark.parametrize("value", [None, 5, [], {}, {"result": 1}, {"pipeq": {}}, {"pipeq": 1, "result": 2},
                                   {"pipeq": {}, "result": 1, "more": 1}])  # fmt: skip
def test_other_results_are_read_as_they_are(value: Any) -> None:
    assert answer(value) is value
