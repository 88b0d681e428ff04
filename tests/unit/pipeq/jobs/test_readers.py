"""The text of a job's input: what is no UTF-8, or no CSV, is said, and never becomes other text."""

from __future__ import annotations

import codecs
import sys
from pathlib import Path
from typing import Any

import pytest
from pipeq.contract.errors import PipeqError
from pipeq.jobs.columns import columns
from pipeq.jobs.readers import source
from pipeq.jobs.records import is_record


def records(path: Path, text: bytes, kind: str | None = None) -> list[Any]:
    path.write_bytes(text)
    found = source(str(path), kind).records()
    return [record for record in found if is_record(record) or isinstance(record, PipeqError)]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", b"one\ntwo\n", ["one", "two"]),
        ("a.jsonl", b'{"inputs": "one"}\r\n', [{"inputs": "one"}]),
        ("a.csv", b"id,text\r\n1,one\r\n", [{"id": "1", "text": "one"}]),
    ],
)
def test_a_mark_of_utf_8_at_the_beginning_is_no_text(tmp_path: Path, name: str, text: bytes, expected: Any) -> None:
    assert records(tmp_path / name, codecs.BOM_UTF8 + text) == expected


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.tsv"])
@pytest.mark.parametrize("order", [codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE])
def test_utf_16_is_refused_as_what_it_is(tmp_path: Path, name: str, order: bytes) -> None:
    with pytest.raises(PipeqError, match=r"written in UTF-16.*iconv"):
        records(tmp_path / name, order + "id\n1\n".encode("utf-16-le" if order == codecs.BOM_UTF16_LE else "utf-16-be"))


@pytest.mark.parametrize(
    ("name", "text", "good"),
    [
        ("a.txt", b"caf\xe9\nok\n", "ok"),
        ("a.csv", b"text,n\ncaf\xe9,1\nok,2\n", {"text": "ok", "n": "2"}),
        ("a.jsonl", b'"caf\xe9"\n"ok"\n', "ok"),
    ],
)
def test_a_line_in_another_encoding_is_an_error_of_its_own(tmp_path: Path, name: str, text: bytes, good: Any) -> None:
    wrong, right = records(tmp_path / name, text)
    assert isinstance(wrong, PipeqError)
    if name != "a.jsonl":
        assert "not UTF-8 (byte 0xe9 after 3 others)" in wrong.message
    assert right == good


def test_names_of_columns_in_another_encoding_end_the_reading(tmp_path: Path) -> None:
    with pytest.raises(PipeqError, match="not UTF-8"):
        records(tmp_path / "a.csv", b"caf\xe9,n\n1,2\n")


def test_a_quote_that_is_never_closed_takes_no_other_rows_silently(tmp_path: Path) -> None:
    (wrong,) = records(tmp_path / "a.csv", b'id,text\n1,"never closed\n2,b\n3,c\n')
    assert isinstance(wrong, PipeqError)
    assert "no row of CSV: unexpected end of data" in wrong.message


def test_quotes_and_lines_inside_cells_are_read(tmp_path: Path) -> None:
    assert records(tmp_path / "a.csv", b'id,text\n1,"a ""q"" b\nnew"\n') == [{"id": "1", "text": 'a "q" b\nnew'}]


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipeqError, match="names the column 'text' twice"):
        records(tmp_path / "a.csv", b"id,text,text\n1,a,b\n")
    assert records(tmp_path / "a.csv", b"id,,\n1,,\n") == [{"id": "1", "": ""}]


def test_standard_input_that_is_closed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(PipeqError, match="standard input is closed"):
        source("-")


def test_a_row_of_several_lines_has_the_number_of_its_first_one(tmp_path: Path) -> None:
    text = b'id,text\r\n1,one\r\n\r\n2,"two\r\nlines, and\nthree"\n3,x,y\n"4\n",four\n5,"never closed\n'
    (tmp_path / "a.csv").write_bytes(text)
    found = {
        number: record["text"] if is_record(record) else record.message.partition(":")[0]
        for number, record in enumerate(source(str(tmp_path / "a.csv")).records(), 1)
        if is_record(record) or isinstance(record, PipeqError)
    }
    assert found == {
        2: "one",
        4: "two\r\nlines, and\nthree",
        7: "it has 3 columns, and the first line names 2",
        8: "four",
        10: "it is no row of CSV",
    }


def test_one_column_is_not_several(tmp_path: Path) -> None:
    (error,) = records(tmp_path / "a.csv", b"id,text\n1\n")
    assert error.message == "it has 1 column, and the first line names 2"


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_the_columns_of_a_table_are_known_before_its_rows(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_text("id,text\n1,one\n".replace(",", "," if kind == "csv" else "\t"))
    begun = source(str(path)).begun()
    assert begun.names == ("id", "text")
    assert [one for one in begun.records() if is_record(one)] == [{"id": "1", "text": "one"}]
    path.write_text("")
    assert source(str(path)).begun().names is None


@pytest.mark.parametrize(("given", "says"), [("s3://", "no bucket"), ("s3:///a/", "no bucket"), ("s3://b", "a bucket")])
def test_a_uri_that_names_no_object_is_said(given: str, says: str) -> None:
    with pytest.raises(PipeqError, match=f"inputs is .*{given}.*{says}"):
        source(given)


@pytest.mark.parametrize("name", ["TEXT", " text", "txt"])
def test_the_column_that_was_meant_is_said(name: str) -> None:
    with pytest.raises(PipeqError, match="did you mean 'Text'"):
        columns(name, None, None).check(("id", "Text"))


@pytest.mark.parametrize("given", ["", "  ", "a\x00b"])
def test_a_path_that_is_none_is_said(given: str) -> None:
    with pytest.raises(PipeqError, match=r"inputs is '.*', and its name does not say what it holds"):
        source(given)
