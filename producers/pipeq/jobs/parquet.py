"""PARQUET: rows -> a Parquet file, some at a time. Used by files. Needs the extra ``parquet``."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from typing import IO, Any

from pipeq.contract.errors import ErrorCode, MissingPackageError, PipeqError
from pipeq.jobs.csv_rows import in_order, replace

#: Rows that are written together.
ROWS = 1024


class ParquetRows:
    """Writes rows. Their types are those of the first ones that have a column; one that has none there is text.

    A Parquet file has the same columns from its beginning to its end. So rows with a column that is new begin a part of
    their own, and the parts become one file at the end.

    Args:
        file: where they go; it can be read and written anywhere.

    Raises (from the constructor):
        MissingPackageError: pyarrow is not installed.
    """

    def __init__(self, file: IO[Any]) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            sentence = "Parquet needs the package pyarrow, which is not installed: pip install 'pipeq[parquet]'"
            raise MissingPackageError(sentence) from error
        self._arrow, self._parquet = pyarrow, parquet
        self._file = file
        self._parts: list[IO[Any]] = []
        self._rows: list[dict[str, Any]] = []
        self._schema: Any = None
        self._writer: Any = None

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row."""
        self._rows.append(row)
        if len(self._rows) >= ROWS:
            self._flush()

    def name(self, columns: Sequence[str]) -> None:
        """Says which columns there are, where no rows are."""
        self._begin(self._fields(dict.fromkeys(columns)))

    def close(self) -> None:
        """Writes the rest."""
        try:
            self._flush(is_last=True)
            self._writer.close()
            if self._parts:
                self._join()
        finally:
            for part in self._parts:
                part.close()

    def _flush(self, *, is_last: bool = False) -> None:
        arrow, names = self._arrow, dict.fromkeys(name for row in self._rows for name in row)
        known = {} if self._schema is None else dict.fromkeys(self._schema.names)
        if (self._schema is None and (names or is_last)) or not names.keys() <= known.keys():
            self._begin(self._fields({name: None for name in names if name not in known}))
        if self._rows:
            try:
                self._writer.write_table(arrow.Table.from_pylist(self._rows, self._schema))
            except (arrow.ArrowInvalid, arrow.ArrowTypeError) as error:
                sentence = f"a row has values of another type than those before it, which Parquet cannot hold: {error}"
                raise PipeqError(ErrorCode.OUTPUT_FAILED, sentence) from error
        self._rows = []

    def _begin(self, new: list[Any]) -> None:
        """Begins a part, whose rows have these columns beside those that are known."""
        if self._schema is None:
            into, self._schema = self._file, self._arrow.schema(new)
        else:
            self._writer.close()
            self._parts.append(into := tempfile.TemporaryFile(prefix="pipeq-job-"))  # noqa: SIM115 - see close
            fields = {one.name: one for one in [*self._schema, *new]}
            self._schema = self._arrow.schema([fields[name] for name in in_order(dict.fromkeys(fields))])
        self._writer = self._parquet.ParquetWriter(into, self._schema)

    def _join(self) -> None:
        """Makes one file of all parts."""
        with tempfile.TemporaryFile(prefix="pipeq-job-") as whole:
            with self._parquet.ParquetWriter(whole, self._schema) as writer:
                for part in (self._file, *self._parts):
                    part.seek(0)
                    for batch in self._parquet.ParquetFile(part).iter_batches(ROWS):
                        rows = batch.to_pylist()
                        writer.write_table(self._arrow.Table.from_pylist(rows, self._schema))
            replace(self._file, whole)

    def _fields(self, names: dict[str, None]) -> list[Any]:
        arrow, found = self._arrow, []
        for name in names:
            values = [row.get(name) for row in self._rows]
            try:
                kind = arrow.array(values).type
            except (arrow.ArrowInvalid, arrow.ArrowTypeError):
                kind = arrow.string()
                for row in self._rows:
                    if row.get(name) is not None:
                        row[name] = json.dumps(row[name], default=str)
            found.append(arrow.field(name, arrow.string() if arrow.types.is_null(kind) else kind))
        return found
