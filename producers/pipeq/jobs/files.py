"""FILES: the outcomes of a job -> a file of results and a file of errors. Before: outcomes.

Each is written beside its place, and renamed when it is whole, so that nobody reads half of one. An object in a store
is gathered in a temporary file, and appears when it is sent. JSON lines, CSV or Parquet, as the name says; with the
columns of the input, if it is at hand (:class:`Beside`), or as far as the outcomes have it (:class:`Asked`).
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, Protocol, Self
from urllib.parse import unquote_to_bytes

from pipeq import uploading
from pipeq.contract import schemes, shown
from pipeq.contract.errors import ErrorCode, PipeqError, ReadError
from pipeq.contract.extras import require
from pipeq.contract.writing import to_json
from pipeq.envelope import new_id
from pipeq.jobs.parquet import ParquetRows
from pipeq.jobs.readers import NOTHING, Source


class Beside:
    """The records of a job's input, which go beside the outcomes of their lines.

    Args:
        source: the job's input, read once more from its beginning.
    """

    def __init__(self, source: Source) -> None:
        self._records = enumerate(source.records(), 1)
        self._last: tuple[int, Any] = (0, NOTHING)

    def of(self, outcome: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of an outcome's line. Lines are asked for in the order of the input."""
        line = outcome.get("line")
        if not isinstance(line, int):
            return {}
        while self._last[0] < line:
            try:
                self._last = next(self._records)
            except StopIteration:
                raise PipeqError(
                    ErrorCode.INVALID_INPUT, f"inputs has no line {line}, and the job has: it is another input"
                ) from None
        number, record = self._last
        if number != line or record is NOTHING or isinstance(record, PipeqError):
            return {}
        return dict(record) if isinstance(record, Mapping) else {"inputs": record}


class Asked:
    """What was asked, which ``include_inputs`` puts into the outcomes, as columns of the names that the input has.

    Args:
        fields: as :class:`.columns.Columns` has them.
        row_id: the column with the rows' names.
        params: parameter -> column with its value.
    """

    def __init__(self, fields: Mapping[str, str], row_id: str | None, params: Mapping[str, str]) -> None:
        self._fields = fields
        self._id = row_id
        self._params = params
        # Of a row that has failed without a worker that had read it, only its line and its name are known.
        names = [*fields.values(), *([row_id] if row_id else []), *params.values()] or ["inputs"]
        self._nothing: dict[str, Any] = dict.fromkeys(names)

    def of(self, outcome: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of an outcome."""
        found, inputs, params = dict(self._nothing), outcome.get("inputs"), outcome.get("params") or {}
        for name, column in self._fields.items():
            found[column] = inputs if name == "" else inputs.get(name) if isinstance(inputs, dict) else None
        if not self._fields:
            found["inputs"] = inputs
        for name, column in self._params.items():
            found[column] = params.get(name)
        if self._id is not None:
            found[self._id] = outcome.get("custom_id")
        return found


class _Columns(Protocol):
    """The columns beside an outcome: :class:`Beside`, :class:`Asked`."""

    def of(self, outcome: Mapping[str, Any]) -> dict[str, Any]: ...


class _Format(Protocol):
    """How rows are written to an open file."""

    def write(self, row: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class _JsonLines:
    def __init__(self, file: IO[Any]) -> None:
        self._file = file

    def write(self, row: dict[str, Any]) -> None:
        try:
            text = to_json(row, is_finite=True)
        except (TypeError, ValueError):  # columns of the input that JSON has no form for
            text = json.dumps(row, default=str).encode()
        self._file.write(text + b"\n")

    def close(self) -> None:
        """Has nothing left."""


class _Csv:
    def __init__(self, file: IO[Any], delimiter: str) -> None:
        self._file = file
        self._delimiter = delimiter
        self._names: list[str] | None = None

    def write(self, row: dict[str, Any]) -> None:
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter=self._delimiter)
        if self._names is None:
            self._names = list(row)
            writer.writerow(self._names)
        writer.writerow(["" if (value := row.get(name)) is None else _cell(value) for name in self._names])
        self._file.write(text.getvalue().encode("utf-8", "replace"))

    def close(self) -> None:
        """Has nothing left."""


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False, default=str)


class OutcomeFile:
    """One file that is being written; use it as a context manager.

    Args:
        place: a path, a ``file://`` URI, or one of a store.
        beside: the columns that go beside; None for line and name alone.
    """

    def __init__(self, place: str, beside: _Columns | None = None) -> None:
        self.place = place
        self.rows = 0
        self._beside = beside
        scheme = schemes.of(place)
        if scheme and scheme not in uploading.SCHEMES:
            sentence = f"{shown.uri(place)} is neither a path of this machine nor {schemes.listed(uploading.SCHEMES)}"
            raise PipeqError(ErrorCode.INVALID_INPUT, sentence)
        self._is_remote = scheme not in ("", "file")
        if self._is_remote:
            require(scheme)
        if scheme == "file":
            place = os.fsdecode(unquote_to_bytes(place.removeprefix("file://")))
        self._path = os.path.abspath(place if scheme else os.path.expanduser(place))
        self._end = os.path.splitext(place.lower())[1]
        self._file: IO[Any]
        self._format: _Format

    def __enter__(self) -> OutcomeFile:
        try:
            if self._is_remote:
                import tempfile  # here, because few need it

                self._file = tempfile.NamedTemporaryFile("w+b", prefix="pipeq-job-")
            else:
                # A name of its own: two may write the same file, on machines that share a disk.
                self._part = f"{self._path}.{new_id()[:8]}.part"
                self._file = open(self._part, "wb")
        except OSError as error:
            raise _cannot(self.place, error) from error
        if self._end in (".csv", ".tsv"):
            self._format = _Csv(self._file, "\t" if self._end == ".tsv" else ",")
        else:
            self._format = ParquetRows(self._file) if self._end == ".parquet" else _JsonLines(self._file)
        return self

    def write(self, outcome: dict[str, Any]) -> None:
        """Adds the outcome of a row."""
        self.rows += 1
        try:
            self._format.write(self._row(outcome))
        except OSError as error:
            raise _cannot(self.place, error) from error

    def _row(self, outcome: dict[str, Any]) -> dict[str, Any]:
        is_flat = self._end in (".csv", ".tsv", ".parquet")
        if not is_flat and not isinstance(self._beside, Beside):
            return outcome
        beside = None if self._beside is None else self._beside.of(outcome)
        row = {"line": outcome.get("line"), "custom_id": outcome.get("custom_id")} if beside is None else beside
        if not is_flat:
            return row | {name: value for name, value in outcome.items() if name in ("result", "error")}
        error, result = outcome.get("error") or {}, outcome.get("result")
        said = result if isinstance(result, str) else None if error else json.dumps(result, ensure_ascii=False)
        return row | {"result": said, "code": error.get("code"), "message": error.get("message")}

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._file.close()
            if not self._is_remote:
                with suppress(OSError):
                    os.unlink(self._part)

    def _finish(self) -> None:
        try:
            self._format.close()
            self._file.flush()
            if not self._is_remote:
                os.fsync(self._file.fileno())
                os.replace(self._part, self._path)
                return
            try:
                uploading.writer_of(schemes.of(self.place))(self.place, Path(self._file.name))
            except PipeqError:
                raise
            except Exception as error:  # each library has its own errors, without a common base class
                raise OSError(str(error)) from error
        except Exception as error:
            if isinstance(error, PipeqError):
                raise
            raise _cannot(self.place, error) from error


class OutcomeFiles:
    """A file of results, and one of errors; use it as a context manager.

    Args:
        results: a path, a ``file://`` URI, or one of a store.
        errors: the same; None to write errors beside results, in one file.
        beside: the columns that go beside the outcomes; None for line and name alone.
    """

    def __init__(self, results: str, errors: str | None, beside: _Columns | None = None) -> None:
        self._good = OutcomeFile(results, beside)
        self._bad = None if errors is None else OutcomeFile(errors, beside)
        #: How many of each are written.
        self.succeeded = self.failed = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for one in self._files():
                stack.enter_context(one)
            self._stack = stack.pop_all()
        return self

    def _files(self) -> Iterator[OutcomeFile]:
        yield self._good
        if self._bad is not None:
            yield self._bad

    def __exit__(self, *about: Any) -> None:
        self._stack.__exit__(*about)

    def write(self, outcomes: Iterable[dict[str, Any]]) -> None:
        """Adds outcomes."""
        for one in outcomes:
            is_error = "error" in one
            self.failed, self.succeeded = self.failed + is_error, self.succeeded + (not is_error)
            (self._bad if is_error and self._bad is not None else self._good).write(one)


def _cannot(place: str, error: Exception) -> ReadError:
    says = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ReadError(ErrorCode.OUTPUT_FAILED, f"cannot write {shown.uri(place)}: {shown.line(says)}", False)
