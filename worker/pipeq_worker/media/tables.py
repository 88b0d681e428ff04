"""DECODE of tables: CSV -> columns of text. Used by decode.

pandas reads the CSV. The task types that take tables need pandas anyway, and it handles what :mod:`csv` does not: line
ends of old Macs, cells of any size, quotes that are never closed. Only the choice of the separator is ours.
"""

from __future__ import annotations

import csv
import io
import re
from typing import Any

from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError

from pipeq_worker.media.decoded import Decoded
from pipeq_worker.media.looks import looks_like
from pipeq_worker.settings.sections import InputSettings

#: Separators, in order of preference where several would fit.
_SEPARATORS = (",", ";", "\t", "|")
#: How much of the text is examined to find the separator, in characters; small enough for :mod:`csv`'s limit on a cell.
_SAMPLE_BYTES = 2**16
#: Most columns: as many as the largest spreadsheets have.
_MAX_COLUMNS = 2**14
#: Bytes of overhead for each cell, in pandas and in Python, without its text.
_CELL_BYTES = 64
#: Characters that count as one cell. From ``_LONG_CHARACTERS`` on the count grows with the square of the length, as
#: does the time that the tokenizer takes to find numbers in a cell.
_CELL_CHARACTERS = 64
_LONG_CHARACTERS = 512
#: Byte order marks of encodings other than UTF-8, longest first.
_ENCODINGS = (
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


def check_size(columns: int, rows: int, name: str, limits: InputSettings, at_least: bool = False) -> None:
    """Refuses a table that would keep a tokenizer, and with it Python's lock, busy for minutes.

    Args:
        columns: number of columns.
        rows: number of rows below the header.
        name: the name that error messages use.
        limits: the largest table that is accepted.
        at_least: whether the table may have more rows than ``rows``.

    Raises:
        PipeqError: ``input_too_large``.
    """
    for count, what, most, key in (
        (columns, "columns", limits.max_table_columns, "max_table_columns"),
        (columns * rows, "cells or more" if at_least else "cells", limits.max_table_cells, "max_table_cells"),
    ):
        if count > most:
            raise PipeqError(
                ErrorCode.INPUT_TOO_LARGE,
                f"{name} has {count} {what}, and this worker takes {most} in one table ([inputs] {key}): send the part "
                "that the question is about",
            )


def check_cells(table: dict[str, list[str]], name: str, limits: InputSettings) -> None:
    """Refuses a table with few cells or headers that hold too much text.

    Raises:
        PipeqError: ``input_too_large``.
    """
    count = sum(_weight(len(cell)) for column in table.values() for cell in column)
    # Headers are not counted as cells, but the tokenizer reads their text, too.
    count += sum(_weight(len(header)) - 1 for header in table)
    if count > limits.max_table_cells:
        raise PipeqError(
            ErrorCode.INPUT_TOO_LARGE,
            f"{name} has the text of {count} cells (one for each {_CELL_CHARACTERS} characters, more for long cells), "
            f"and this worker takes {limits.max_table_cells} in one table ([inputs] max_table_cells): shorten them",
        )


def _weight(characters: int) -> int:
    return max(1, -(-characters // _CELL_CHARACTERS)) + (characters // _LONG_CHARACTERS) ** 2


def decode_table(data: bytes, name: str, limits: InputSettings, decoded: Decoded | None = None) -> dict[str, list[str]]:
    """Parses CSV with a header into columns, with every cell as text.

    Cells are separated by comma, semicolon, tab or bar: by the one that gives rows of equal length, or by the one that
    Excel's ``sep=;`` line names. As in pandas and in spreadsheets, a repeated header becomes ``euros`` and ``euros.1``,
    an empty header ``Unnamed: 1``, and a short row gets empty cells. A row with more cells than the header is an error.

    Raises:
        PipeqError: ``input_undecodable``; ``input_too_large``, in most cases before the cells are made.
    """
    text = _text(data, name)
    said = re.match(r"sep=(.)\r?\n", text)
    if said:
        text = text[said.end() :]
    separator = said[1] if said else _separator(text)
    if _header(text).count(separator) >= _MAX_COLUMNS:
        raise _no_table(data, name, f"its header has more than {_MAX_COLUMNS} columns")
    if decoded is not None:
        cells = sum(text.count(end) for end in (separator, "\n", "\r")) + 1
        decoded.take(len(text) + cells * _CELL_BYTES, name, 4 * len(text) + cells * _CELL_BYTES)
    try:
        columns = _read(text, separator, 1).shape[1]
        check_size(columns, 0, name, limits)
        # The header, as many rows as are allowed, and one more, which shows that there are too many.
        rows = limits.max_table_cells // columns + 2
        frame = _read(text, separator, rows)
    except (MemoryError, PipeqError):
        raise
    except Exception as error:
        # pandas names the place: "Expected 2 fields in line 3, saw 4", "EOF inside string starting at row 1".
        raise _no_table(data, name, shown.line(str(error))) from error
    if len(frame) < 2:
        raise _no_table(data, name, "it has no rows below its header")
    check_size(columns, len(frame) - 1, name, limits, len(frame) == rows)
    names = _names([str(cell) for cell in frame.iloc[0]])
    table = {column: frame[at].iloc[1:].tolist() for at, column in enumerate(names)}
    check_cells(table, name, limits)
    return table


def _text(data: bytes, name: str) -> str:
    encoding = next((encoding for mark, encoding in _ENCODINGS if data.startswith(mark)), "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        reason = f"{name} is not {encoding.removesuffix('-sig').upper()} text (byte {error.start}); it looks like "
        raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason + looks_like(data)) from error
    if "\0" in text:
        raise _no_table(data, name, "it holds zero bytes")
    return text


def _separator(text: str) -> str:
    """The separator that gives rows of equal length and most columns; else the most frequent one in the header."""
    sample = text[:_SAMPLE_BYTES]
    best, columns = "", 1
    for separator in _SEPARATORS:
        try:
            rows = list(csv.reader(io.StringIO(sample, newline=""), delimiter=separator))
        except csv.Error:
            continue
        # The sample may have cut off its last row.
        widths = {len(row) for row in (rows[:-1] if len(sample) < len(text) else rows) if row}
        if len(widths) == 1 and max(widths) > columns:
            best, columns = separator, max(widths)
    return best or max(_SEPARATORS, key=_header(text).count)


def _header(text: str) -> str:
    match = re.match(r"[^\r\n]*", text)
    return match[0] if match else ""


def _read(text: str, separator: str, rows: int) -> Any:
    import pandas

    # header=None, because with a header pandas would take surplus cells at the start of a row as its index.
    return pandas.read_csv(
        io.StringIO(text, newline=""),
        sep=separator,
        header=None,
        index_col=False,
        nrows=rows,
        dtype=object,
        na_filter=False,
        engine="c",
        low_memory=False,
    )


def _names(headers: list[str]) -> list[str]:
    taken, used, names = set(headers), set(), []
    again: dict[str, int] = {}
    for at, header in enumerate(headers):
        name = first = header or f"Unnamed: {at}"
        while name in used or (name != header and name in taken):
            again[first] = again.get(first, 0) + 1
            name = f"{first}.{again[first]}"
        used.add(name)
        names.append(name)
    return names


def _no_table(data: bytes, name: str, why: str) -> PipeqError:
    reason = f"{name} is no table, CSV with a header and rows of as many cells ({why}); "
    return PipeqError(ErrorCode.INPUT_UNDECODABLE, f"{reason}it looks like {looks_like(data)}")
