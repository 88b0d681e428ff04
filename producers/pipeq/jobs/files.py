"""FILES: the outcomes of a job -> a file of results and a file of errors. Before: outcomes.

Each is written beside its place, and renamed when it is whole, so that nobody reads half of one. An object in a store
is gathered in a temporary file, and appears when it is sent. JSON lines, CSV or Parquet, as the name says; with the
columns of the input, if it is at hand (:class:`Beside`), or as far as the outcomes have it (:class:`Asked`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, Protocol, Self

from pipeq import uploading
from pipeq.contract import schemes
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.extras import require
from pipeq.contract.writing import to_json
from pipeq.envelope import new_id
from pipeq.jobs import places
from pipeq.jobs.csv_rows import LAST, CsvRows
from pipeq.jobs.parquet import ParquetRows
from pipeq.jobs.readers import Source
from pipeq.jobs.records import NOTHING, Header, is_record


class Beside:
    """The records of a job's input, which go beside the outcomes of their lines.

    Args:
        source: the job's input, read once more from its beginning.
    """

    def __init__(self, source: Source) -> None:
        self._records = enumerate(source.records(), 1)
        self._last: tuple[int, Any] = (0, NOTHING)
        #: What was read in search of a line with columns, and the columns that it has. A table has them in its first
        #: row, also if that is of a line without.
        self._ahead: deque[tuple[int, Any]] = deque()
        self._nothing: dict[str, Any] | None = None

    def of(self, outcome: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of an outcome's line. Lines are asked for in the order of the input."""
        line = outcome.get("line")
        if self._nothing is None:
            self._nothing = self._names()
        if not isinstance(line, int):
            return self._nothing
        while self._last[0] < line:
            try:
                self._last = self._ahead.popleft() if self._ahead else next(self._records)
            except StopIteration:
                raise PipeqError(
                    ErrorCode.INVALID_INPUT, f"inputs has no line {line}, and the job has: it is another input"
                ) from None
        number, record = self._last
        return self._nothing if number != line or not is_record(record) else _columns(record)

    def _names(self) -> dict[str, Any]:
        for number, record in self._records:
            self._ahead.append((number, record))
            if type(record) is Header:
                return dict.fromkeys(record)
            if is_record(record):
                return dict.fromkeys(_columns(record))
        return {}


def _columns(record: Any) -> dict[str, Any]:
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

    def name(self, columns: Sequence[str]) -> None: ...

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

    def name(self, columns: Sequence[str]) -> None:
        """Has no columns."""

    def close(self) -> None:
        """Has nothing left."""


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
        #: Where it goes on this machine; None in a store. And what is written first, and renamed at the end.
        self._path = places.local_path(place)
        self._part: str | None = None
        if self._path is None:
            require(schemes.of(place))
        self._end = os.path.splitext(place.lower())[1]
        self._is_flat = self._end in (".csv", ".tsv", ".parquet")
        #: A pipe or a terminal, to which a table goes at the end: all of its columns are known only then.
        self._is_late = self._is_flat and self._path is not None and places.is_stream(self._path)
        self._file: IO[Any]
        self._format: _Format

    def __enter__(self) -> OutcomeFile:
        try:
            if self._path is None or self._is_late:
                import tempfile  # here, because few need it

                self._file = tempfile.NamedTemporaryFile("w+b", prefix="pipeq-job-")
            elif places.is_stream(self._path):
                self._file = open(self._path, "wb")
            else:
                # A name of its own: two may write the same file, on machines that share a disk.
                self._part = f"{self._path}.{new_id()[:8]}.part"
                self._file = open(self._part, "w+b")
        except OSError as error:
            places.cannot(self.place, error)
        try:
            self._format = self._made()
        except BaseException:
            self._close()
            raise
        return self

    def _made(self) -> _Format:
        if self._end in (".csv", ".tsv"):
            return CsvRows(self._file, "\t" if self._end == ".tsv" else ",")
        return ParquetRows(self._file) if self._end == ".parquet" else _JsonLines(self._file)

    def write(self, outcome: dict[str, Any]) -> None:
        """Adds the outcome of a row."""
        self.rows += 1
        try:
            self._format.write(self._row(outcome))
        except OSError as error:
            places.cannot(self.place, error)

    def _row(self, outcome: dict[str, Any]) -> dict[str, Any]:
        is_flat = self._is_flat
        if not is_flat and not isinstance(self._beside, Beside):
            return outcome
        beside = None if self._beside is None else self._beside.of(outcome)
        row = {"line": outcome.get("line"), "custom_id": outcome.get("custom_id")} if beside is None else beside
        own = LAST if is_flat else ("result", "error")
        if not row.keys().isdisjoint(own):  # a column of the input, which must not be lost
            row = {f"input_{name}" if name in own else name: value for name, value in row.items()}
        line, is_bare = outcome.get("line"), all(value is None for value in row.values())
        if not is_flat:
            row = {"line": line, "custom_id": outcome.get("custom_id")} if is_bare else row
            return row | {name: value for name, value in outcome.items() if name in ("result", "error")}
        error, result = outcome.get("error") or {}, outcome.get("result")
        said = result if isinstance(result, str) else None if error else json.dumps(result, ensure_ascii=False)
        message = f"line {line}: {error.get('message')}" if error and is_bare else error.get("message")
        return row | {"result": said, "code": error.get("code"), "message": message}

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._close()

    def _close(self) -> None:
        # To close a file writes what is left in its buffer: if that cannot be written, it was said before.
        with suppress(OSError):
            self._file.close()
        if self._part is not None:
            with suppress(OSError):
                os.unlink(self._part)

    def _finish(self) -> None:
        try:
            if self._is_flat and not self.rows:
                self._format.name(list(self._row({})))  # a table has the names of its columns also without rows
            self._format.close()
            self._file.flush()
            if self._part is not None and self._path is not None:
                os.fsync(self._file.fileno())
                os.replace(self._part, self._path)
            if self._is_late and self._path is not None:
                self._file.seek(0)
                with open(self._path, "wb") as stream:
                    shutil.copyfileobj(self._file, stream)
            if self._path is not None:
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
            places.cannot(self.place, error)


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
