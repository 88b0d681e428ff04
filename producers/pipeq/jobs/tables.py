"""TABLES: CSV and Parquet -> records with columns. Used by readers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import IO, Any

from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, MissingPackageError, PipeqError
from pipeq.jobs.records import LINE_BYTES, NOTHING, Header, not_utf_8, refuse_utf_16

#: Rows of Parquet that are read at once.
PARQUET_ROWS = 1024


def csv_rows(file: IO[Any], delimiter: str) -> Iterator[Any]:
    """The header, the rows, the blank lines and the errors of CSV."""
    if isinstance(file.read(0), str):
        yield from _rows(csv.reader(file, delimiter=delimiter, strict=True))
        return
    text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
    try:
        # Strict: else a quote that is never closed takes the rest of the file into its cell.
        yield from _rows(csv.reader(text, delimiter=delimiter, strict=True))
    finally:
        text.detach()  # whoever opened the file closes it


def _rows(reader: Any) -> Iterator[Any]:
    """The rows of a reader of CSV. Those of several lines are counted as such: each has the number of its first one."""
    csv.field_size_limit(LINE_BYTES)
    header: list[str] | None = None
    before = 0
    while True:
        for _ in range(before + 1, reader.line_num):
            yield NOTHING
        before = reader.line_num
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield PipeqError(ErrorCode.INVALID_INPUT, f"it is no row of CSV: {error}")
            continue
        if header is None:
            header = _header(values)
            yield Header(header)
        elif (wrong := _first_byte_that_isnot_utf_8(values)) is not None:
            yield wrong
        elif not values:
            yield NOTHING
        elif len(values) != len(header):
            sentence = f"it has {shown.count(len(values), 'column')}, and the first line names {len(header)}"
            yield PipeqError(ErrorCode.INVALID_INPUT, sentence)
        else:
            yield dict(zip(header, values, strict=True))


def _header(names: list[str]) -> list[str]:
    """Checks the names of the columns."""
    refuse_utf_16("".join(names).encode("utf-8", "surrogateescape"))
    if (wrong := _first_byte_that_isnot_utf_8(names)) is not None:
        raise wrong
    if (twice := next((name for at, name in enumerate(names) if name and name in names[:at]), None)) is not None:
        sentence = f"the first line names the column {shown.line(twice, 80)!r} twice: give one another name"
        raise PipeqError(ErrorCode.INVALID_INPUT, sentence)
    return names


def _first_byte_that_isnot_utf_8(values: list[str]) -> PipeqError | None:
    if (text := ",".join(values)).isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return not_utf_8(len(text[: error.start].encode()), ord(text[error.start]) & 0xFF)
    return None


def parquet_rows(given: str | IO[bytes], name: str) -> Iterator[Any]:
    """The rows of a Parquet file.

    Raises:
        PipeqError: it is none, or pyarrow is not installed.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        sentence = "Parquet needs the package pyarrow, which is not installed: pip install 'pipeq[parquet]'"
        raise MissingPackageError(sentence) from error
    try:
        for batch in parquet.ParquetFile(given).iter_batches(PARQUET_ROWS):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own are ValueErrors
        sentence = f"{shown.uri(name)} is no Parquet: {shown.line(str(error))}"
        raise PipeqError(ErrorCode.INVALID_INPUT, sentence) from error
