"""The contract of a message: what is accepted, and what is refused in which words."""

import json
from pathlib import Path
from typing import Any

import pytest
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.message import Output, Ref, TaskMessage, json_schema, plain

ROOT = Path(__file__).parents[4]
FULL = {
    "pipeline": "document-question-answering",
    "inputs": {"image": {"uri": "s3://scans/invoice.png"}, "question": "What is the invoice number?"},
    "params": {"top_k": 1},
    "output": {"uri": "s3://results/invoices/"},
}


def test_a_message_survives_its_kwargs() -> None:
    message = TaskMessage.parse(FULL)
    assert message.to_kwargs() == FULL
    assert TaskMessage.parse(json.loads(json.dumps(message.to_kwargs()))) == message


def test_defaults_are_left_out() -> None:
    assert TaskMessage.parse({"pipeline": "asr", "inputs": "x"}).to_kwargs() == {"pipeline": "asr", "inputs": "x"}


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"pipeline": "asr"}, "inputs"),
        ({"inputs": "x"}, "pipeline"),
        ({"pipeline": "", "inputs": "x"}, "pipeline"),
        ({"pipeline": "p" * 201, "inputs": "x"}, "pipeline"),
        ({"pipeline": "asr", "inputs": "x", "priorty": 3}, "priorty"),
        ({"pipeline": "asr", "inputs": "x", "params": [1]}, "params"),
        ({"pipeline": "asr", "inputs": "x", "output": {"uri": "ftp://h/x"}}, "output.uri"),
        ({"pipeline": "asr", "inputs": "x", "output": {"url": "s3://b/x"}}, "output.url"),
        ({"pipeline": "asr", "inputs": object()}, "inputs"),
        (["asr", "x"], "list"),
        (None, "NoneType"),
        ({1: 2}, "keywords"),
    ],
)
def test_anything_else_is_an_invalid_message_that_names_the_field(fields: Any, names: str) -> None:
    with pytest.raises(PipeqError) as caught:
        TaskMessage.parse(fields)
    assert caught.value.code == ErrorCode.INVALID_MESSAGE
    assert names in caught.value.message


@pytest.mark.parametrize("uri", ["s3://talks/a.flac", "file:///data/a.png", "https://images.example.org/a.png"])
def test_a_ref_names_where_the_bytes_are(uri: str) -> None:
    assert plain(Ref(uri)) == {"uri": uri}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"uri": "s3://b/k", "base64": "AAAA"},
        {"uri": "http://h/x"},
        {"uri": "/data/a.png"},
        {"uri": "a.png"},
        {"base64": "not base64!"},
        {"base64": "AAA"},
        {"uri": "s3://b/k", "sha256": "abc"},
        {"uri": "s3://b/k", "etag": "abc"},
    ],
)
def test_other_refs_are_refused(fields: dict[str, str]) -> None:
    with pytest.raises(PipeqError, match="the reference is not valid") as caught:
        Ref(**fields)
    assert caught.value.code == ErrorCode.INVALID_INPUT


def test_a_ref_carries_small_bytes_but_does_not_show_them() -> None:
    ref = Ref.from_bytes(b"\x00\xff" * 9, "image/png")
    assert plain(ref) == {"base64": "AP8A/wD/AP8A/wD/AP8A/wD/", "media_type": "image/png"}
    assert "AP8A" not in repr(ref)


def test_a_path_becomes_an_absolute_file_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    uri = (tmp_path / "a b.png").as_uri()
    assert Ref.from_path("a b.png") == Ref(uri)
    assert plain(Path("a b.png")) == {"uri": uri}
    assert "a%20b.png" in uri


def test_plain_reaches_refs_anywhere() -> None:
    value = [{"image": Ref("s3://b/k"), "boxes": ((1, 2.5), None)}, True]
    assert plain(value) == [{"image": {"uri": "s3://b/k"}, "boxes": [[1, 2.5], None]}, True]


@pytest.mark.parametrize(("value", "says"), [(b"bytes", "Ref.from_bytes"), ({1, 2}, "set"), (object(), "object")])
def test_what_is_no_json_is_invalid_input(value: object, says: str) -> None:
    with pytest.raises(PipeqError, match=says) as caught:
        plain({"image": value})
    assert caught.value.code == ErrorCode.INVALID_INPUT


@pytest.mark.parametrize(
    ("value", "is_ref"),
    [
        ({"uri": "s3://b/k"}, True),
        ({"base64": "AAAA"}, True),
        ({"path": "a"}, False),
        ("s3://b/k", False),
        (None, False),
    ],
)
def test_a_ref_is_an_object_with_uri_or_base64(value: object, is_ref: bool) -> None:
    assert Ref.is_ref(value) is is_ref


def test_an_output_prefix_gets_an_object_for_each_task() -> None:
    assert Output(uri="s3://results/a/").object_uri("id-1") == "s3://results/a/id-1.json"
    assert Output(uri="s3://results/a.json").object_uri("id-1") == "s3://results/a.json"


@pytest.mark.parametrize("code", list(ErrorCode))
def test_an_error_is_rebuilt_from_its_arguments(code: ErrorCode) -> None:
    # Celery stores an exception's args as JSON, and calls its class with them.
    error = PipeqError(code, "the sentence")
    again = PipeqError(*json.loads(json.dumps(error.args)))
    assert (again.code, again.message, again.retryable) == (code, "the sentence", error.retryable)
    assert str(again) == f"{code}: the sentence"


def test_the_exported_schema_is_current() -> None:
    assert (ROOT / "docs" / "message.schema.json").read_text(encoding="utf-8") == json_schema(), "run `make docs`"


def test_a_reference_to_what_somebody_typed(tmp_path: Path) -> None:
    assert Ref.of("s3://b/a.png").uri == "s3://b/a.png"
    assert Ref.of("a.png").uri == (Path.cwd() / "a.png").as_uri()
    assert Ref.of(tmp_path / "a.png").uri == (tmp_path / "a.png").as_uri()
