"""INPUTS: what arguments, files and stdin become, for each kind of value that a pipeline may take."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click
import pytest
from pipeq.cli.inputs import BYTES_KINDS, TEXT_KINDS, Form, Reader
from pipeq.cli.streams import Paused
from pipeq.contract.errors import PipeqError
from pipeq.contract.message import plain
from pipeq_worker.models.task_type import Media

#: Everything that a worker may register, and None for a pipeline that nothing is known of.
KINDS = (*map(str, Media), "object", None)
OTHERS = [kind for kind in KINDS if kind not in TEXT_KINDS | BYTES_KINDS]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png", "c.wav", "notes"):
        (tmp_path / name).write_bytes(b"content of " + name.encode())
    (tmp_path / "more").mkdir()
    (tmp_path / "more/d.png").touch()
    return tmp_path


def read(
    kind: str | None, *arguments: str, form: Form = "auto", text: bool = False, files: bool = False, most: int = 1000
) -> tuple[list[Any], list[str]]:
    said: list[str] = []
    reader = Reader(lambda: kind, said.append, most, text=text, files=files, form=form)
    values = [plain(one.value) for one in reader.values(arguments) if not isinstance(one, Paused)]
    assert reader.may_be_several(arguments) or len(values) == 1
    return values, said


def refused(kind: str | None, *arguments: str, **options: Any) -> str:
    with pytest.raises(click.UsageError) as caught:
        read(kind, *arguments, **options)
    return caught.value.message


def test_the_kinds_are_those_of_the_worker() -> None:
    assert {str(one) for one in Media if one.is_bytes} == BYTES_KINDS
    assert {"text", "texts", "chat"} == TEXT_KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_a_uri_and_json_are_what_they_are_for_every_kind(kind: str | None) -> None:
    assert read(kind, "s3://b/k", "https://h/a.png", '{"a": 1}', '["x", "y"]') == (
        [{"uri": "s3://b/k"}, {"uri": "https://h/a.png"}, {"a": 1}, ["x", "y"]],
        [],
    )


@pytest.mark.parametrize("kind", sorted(TEXT_KINDS))
@pytest.mark.parametrize("text", ["a.png", "no.png", "/", "a?", "*.png", "http://h/", "[sic]", "{no json", ""])
def test_for_text_every_other_argument_is_text(kind: str, text: str) -> None:
    values, said = read(kind, text)
    assert values == [text]
    # Of a file with that name, people may have thought otherwise.
    assert bool(said) is (text == "a.png")


def test_a_text_that_names_a_file_is_said_once() -> None:
    values, said = read("text", "a.png", "b.png")
    assert values == ["a.png", "b.png"]
    (sentence,) = said
    for part in ("'a.png'", "--document", "--file", "--text"):
        assert part in sentence
    assert read("text", "a.png", text=True) == (["a.png"], [])


@pytest.mark.parametrize("kind", sorted(BYTES_KINDS))
def test_for_media_every_other_argument_is_a_file(kind: str, folder: Path) -> None:
    uris = [(folder / name).as_uri() for name in ("a.png", "b.png", "more/d.png", "notes")]
    assert read(kind, "a.png") == ([{"uri": uris[0]}], [])
    assert [one["uri"] for one in read(kind, "*.png")[0]] == uris[:2]
    assert [one["uri"] for one in read(kind, "**/*.png")[0]] == uris[:3]
    assert [one["uri"] for one in read(kind, "[ab].png", "notes")[0]] == [*uris[:2], uris[3]]
    for text in ("no.wav", "plain text", "more", "*.gif", "http://h/a.png", "", "[sic]"):
        sentence = refused(kind, text)
        assert repr(text) in sentence
        assert "was taken for the file or URI of" in sentence, "a person must see what pipeq thought"


def test_a_file_that_is_not_there_is_said_with_the_one_that_was_meant() -> None:
    assert refused("image", "a.pgn").endswith("and there is none here; did you mean 'a.png'?")
    assert refused("image", "more/dd.png").endswith("did you mean 'more/d.png'?")
    assert refused("image", "elsewhere/a.png").endswith("there is none here")
    assert refused("image", "more").endswith("is a folder: name the files in it, as in 'more/*'")


@pytest.mark.parametrize("kind", OTHERS)
def test_for_all_else_a_file_that_is_there_is_a_file(kind: str | None, folder: Path) -> None:
    assert read(kind, "notes", "some text")[0] == [{"uri": (folder / "notes").as_uri()}, "some text"]


def test_wildcards_where_nothing_is_known_of_the_pipeline(folder: Path) -> None:
    assert len(read(None, "*.png")[0]) == 2
    assert read(None, "What is a*?", "5*3")[0] == ["What is a*?", "5*3"]
    for text in ("*.gif", "./zz*", "/no/such/*"):
        assert f"{text!r} was taken for the name of a file by wildcards" in refused(None, text)


@pytest.mark.parametrize("kind", KINDS)
def test_text_and_file_say_what_is_meant_for_every_kind(kind: str | None, folder: Path) -> None:
    texts = ["a.png", "*.png", "s3://b/k", '{"a": 1}', ""]
    assert read(kind, *texts, text=True)[0] == texts
    uris = [(folder / name).as_uri() for name in ("a.png", "b.png")]
    assert [one["uri"] for one in read(kind, "[ab].png", files=True)[0]] == uris
    assert "was taken for the name of a file" in refused(kind, "no such file", files=True)


@pytest.mark.parametrize("kind", KINDS)
def test_each_form_of_content_for_every_kind(kind: str | None, folder: Path) -> None:
    Path("rows.jsonl").write_text('{"a": 1}\n\n"text"\n[1, 2]\n5\n')
    assert read(kind, "rows.jsonl", form="jsonl")[0] == [{"a": 1}, "text", [1, 2], 5]
    Path("lines.txt").write_text("a.png\r\n  \nb.png")
    lines = read(kind, "lines.txt", form="lines")[0]
    if kind in BYTES_KINDS:
        assert lines == [{"uri": (folder / name).as_uri()} for name in ("a.png", "b.png")]
    else:
        assert lines == ["a.png", "b.png"]
    Path("whole.json").write_text('{"a":\n1}')
    whole = read(kind, "whole.json", form="document")[0]
    if kind in BYTES_KINDS:
        assert whole == [{"base64": "eyJhIjoKMX0=", "media_type": "application/json"}]
    elif kind is None or kind in TEXT_KINDS:
        assert whole == ['{"a":\n1}']
    else:
        assert whole == [{"a": 1}]


@pytest.mark.parametrize("form", ["lines", "jsonl", "document"])
def test_files_of_content_may_be_named_by_wildcards(form: Form) -> None:
    for number in (2, 1):
        Path(f"part-{number}.txt").write_text(f'"{number}"')
    assert json.loads(f"[{','.join(map(json.dumps, read('text', 'part-*.txt', form=form)[0]))}]") in (
        ['"1"', '"2"'],
        ["1", "2"],
    )


@pytest.mark.parametrize("form", ["lines", "jsonl", "document"])
def test_what_cannot_be_read_names_file_and_line(form: Form) -> None:
    Path("bad").write_bytes(b'"fine"\n\xff\xfe\n')
    Path("long").write_bytes(b'"fine"\n"' + b"x" * 2000 + b'"\n')
    Path("odd").write_bytes(b'"fine"\n{"a": \n')
    line = "" if form == "document" else "line 2 of "
    assert refused("text", "bad", form=form).startswith(f"{line}bad is not UTF-8")
    with pytest.raises(PipeqError, match=rf": {line}long is larger than 1000 bytes") as caught:
        read("text", "long", form=form)
    assert caught.value.code == "input_too_large"
    if form == "jsonl":
        with pytest.raises(PipeqError, match=r": line 2 of odd is no JSON"):
            read("text", "odd", form=form)
        Path("deep").write_text("[" * 900)
        with pytest.raises(PipeqError, match=r": line 1 of deep is"):
            read("text", "deep", form=form)


def test_a_prefix_that_cannot_be_listed_is_said() -> None:
    for uri in ("gs://b/p/", "file:///data/", "hf://datasets/x/"):
        assert "only those of s3:// are listed" in refused(None, uri)


def test_what_comes_slowly_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe whose other end writes now and then: what has come is passed on before the next comes."""
    reading, writing = os.pipe()
    with open(reading, "rb") as stdin:
        monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": stdin, "isatty": lambda self: False})())
        values = Reader(lambda: "text", print, 1000, form="lines").values(["-"])
        os.write(writing, b"first\nsecond\nthi")
        found = [next(values), next(values), next(values)]
        assert [getattr(one, "value", one) for one in found] == ["first", "second", Paused.PAUSED.value]
        os.write(writing, b"rd\n")
        os.close(writing)
        assert [getattr(one, "value", one) for one in values] == ["third"]
