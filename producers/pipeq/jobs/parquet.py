"""PARQUET: rows -> a Parquet file, some at a time. Used by files. Needs the extra ``parquet``."""

from __future__ import annotations

import json
from typing import IO, Any

from pipeq.contract.errors import ErrorCode, MissingPackageError, PipeqError

#: Rows that are written together.
ROWS = 1024


class ParquetRows:
    """Writes rows. Their types are those of the first ones; a column that has none there is text.

    Args:
        file: where they go.

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
        self._rows: list[dict[str, Any]] = []
        self._schema: Any = None
        self._writer: Any = None

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row."""
        self._rows.append(row)
        if len(self._rows) >= ROWS:
            self._flush()

    def close(self) -> None:
        """Writes the rest."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        arrow = self._arrow
        if self._writer is None:
            names = dict.fromkeys(name for row in self._rows for name in row)
            found = arrow.Table.from_pylist(self._rows, arrow.schema(self._fields(names)))
            self._schema = found.schema
            self._writer = self._parquet.ParquetWriter(self._file, self._schema)
            self._writer.write_table(found)
        elif self._rows:
            try:
                self._writer.write_table(arrow.Table.from_pylist(self._rows, self._schema))
            except (arrow.ArrowInvalid, arrow.ArrowTypeError) as error:
                sentence = f"a row has values of another type than those before it, which Parquet cannot hold: {error}"
                raise PipeqError(ErrorCode.OUTPUT_FAILED, sentence) from error
        self._rows = []

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
