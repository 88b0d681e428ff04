"""CSV as people write it: every column is kept, and a file that is no table is refused with the reason."""

from __future__ import annotations

import pytest
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq_worker.media.decoded import Decoded
from pipeq_worker.media.tables import decode_table
from pipeq_worker.settings.sections import InputSettings

PLAIN = {"city": ["Bern", "Rom"], "euros": ["5", "7"]}
#: Larger than the defaults, because these tests are about the form of CSV, not its size.
LARGE = InputSettings(max_table_cells=10**6, max_table_columns=100_000)


def decode(data: bytes, name: str, decoded: Decoded | None = None) -> dict[str, list[str]]:
    return decode_table(data, name, LARGE, decoded)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("last", ["", "end"])
def test_separators_line_ends_and_encodings(separator: str, end: str, encoding: str, last: str) -> None:
    rows = (["city", "euros"], ["Bern", "5"], ["Rom", "7"])
    text = end.join(separator.join(row) for row in rows) + (end if last else "")
    data = text.encode(encoding)
    assert decode(b"\xfe\xff" + data if encoding == "utf-16-be" else data, "x") == PLAIN


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("euros,euros\n1,2\n", {"euros": ["1"], "euros.1": ["2"]}),
        ("a,a,a.1,a\n1,2,3,4\n", {"a": ["1"], "a.2": ["2"], "a.1": ["3"], "a.3": ["4"]}),
        ("a,,\n1,2,3\n", {"a": ["1"], "Unnamed: 1": ["2"], "Unnamed: 2": ["3"]}),
        (",a\n0,1\n", {"Unnamed: 0": ["0"], "a": ["1"]}),
        # Numbers, dates and words for nothing stay as they are.
        ("a,b\n007,1e5\nNA,null\n ,2024-01-02\n", {"a": ["007", "NA", " "], "b": ["1e5", "null", "2024-01-02"]}),
        ("a,b\n,\n", {"a": [""], "b": [""]}),
        ('a,b\n"1,5","say ""hi""\nthere"\n', {"a": ["1,5"], "b": ['say "hi"\nthere']}),
        ("preis;menge\n1,5;2,5\n3,0;4\n", {"preis": ["1,5", "3,0"], "menge": ["2,5", "4"]}),
        ("a,b\n1|2,3|4\n", {"a": ["1|2"], "b": ["3|4"]}),
        ("sep=;\na;b\n1,2;3\n", {"a": ["1,2"], "b": ["3"]}),
        ("sep=|\r\na|b\r\n1|3\r\n", {"a": ["1"], "b": ["3"]}),
        ("a;b;c\n1;2\n3\n", {"a": ["1", "3"], "b": ["2", ""], "c": ["", ""]}),
        ("only\n1\n2\n", {"only": ["1", "2"]}),
        ("a,b\n\n1,2\n\n\n", {"a": ["1"], "b": ["2"]}),
        ("ä,ß\n東京,🦊\n", {"ä": ["東京"], "ß": ["🦊"]}),
        ("x\n" + "y" * 300_000 + "\n", {"x": ["y" * 300_000]}),
        ('x,z\n"' + "y" * 300_000 + '",1\n', {"x": ["y" * 300_000], "z": ["1"]}),
    ],
)
def test_what_people_write(text: str, table: dict[str, list[str]]) -> None:
    assert decode(text.encode(), "x") == table


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "No columns|looks like nothing"),
        (b"a,b\n", "no rows below its header"),
        (b"a,b\n1,2,3\n", "line 2, saw 3"),
        (b'a,b\n1,"2\n', "EOF inside string"),
        (b"a,b\n1,\x002\n", "zero bytes"),
        ("grün,b\n1,2\n".encode("latin-1"), "is not UTF-8 text"),
        (b"\xff\xfea", "is not UTF-16 text"),
        (b"\x89PNG\r\n\x1a\n\0\0", "PNG image"),
        (b"a,b\n" * 3 + b'"', "EOF inside string"),
    ],
)
def test_what_is_no_table_says_why(data: bytes, why: str) -> None:
    with pytest.raises(PipeqError, match=why) as caught:
        decode(data, "s3://b/k")
    assert caught.value.code == ErrorCode.INPUT_UNDECODABLE
    assert "s3://b/k" in caught.value.message


def test_very_wide_tables() -> None:
    wide = b",".join([b"a"] * 4_000)
    table = decode(wide + b"\n" + wide, "x")
    assert list(table)[:2] == ["a", "a.1"]
    assert len(table) == 4_000
    wide = b",".join([b"a"] * 20_000)
    with pytest.raises(PipeqError, match="more than 16384 columns") as caught:
        decode(wide + b"\n" + wide, "x")
    assert caught.value.code == ErrorCode.INPUT_UNDECODABLE


def test_cells_are_counted_before_they_are_made() -> None:
    with pytest.raises(PipeqError, match="max_decoded_bytes") as caught:
        decode(b",\n" * 100_000, "x", Decoded(10_000_000))
    assert caught.value.code == ErrorCode.INPUT_TOO_LARGE


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"a\n" + b"1\n" * 40_000, r"s3://b/k has 4097 cells or more, .* takes 4096 .*\[inputs\] max_table_cells"),
        (b"a,b\n" + b"1,2\n" * 2049, r"has 4098 cells or more, .* takes 4096 .*max_table_cells"),
        (b",".join([b"a"] * 513) + b"\n1\n", r"has 513 columns, .* takes 512 .*\[inputs\] max_table_columns"),
        (b"a\n" + b"x" * 40_000, r"text of 6709 cells.* takes 4096 .*max_table_cells"),
        (b"x" * 40_000 + b"\n1\n", r"text of 6709 cells.* takes 4096 .*max_table_cells"),
    ],
    ids=["rows", "cells", "columns", "characters", "header"],
)
def test_a_table_that_would_hold_a_thread_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(PipeqError, match=why) as caught:
        decode_table(data, "s3://b/k", InputSettings())
    assert caught.value.code == ErrorCode.INPUT_TOO_LARGE


@pytest.mark.parametrize(
    "data", [b"a\n" + b"1\n" * 4096, b"a,b\n" + b"1,2\n" * 2048, b"a\n" + (b"x" * 64 + b"\n") * 4096]
)
def test_a_table_of_as_many_cells_as_the_settings_say(data: bytes) -> None:
    assert decode_table(data, "x", InputSettings())["a"]
