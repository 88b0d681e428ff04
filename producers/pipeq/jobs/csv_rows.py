"""CSV ROWS: rows -> a CSV file, one by one; a column that comes late gets its place in all rows. Used by files."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

#: The columns that are ours, behind those of the input.
LAST = ("result", "code", "message")


class CsvRows:
    """Writes rows.

    Lines of JSON may have other keys each, so all columns are known at the end alone: rows stand there with those that
    were known, and are written once more if there are others.

    Args:
        file: where they go; it can be read and written anywhere.
        delimiter: between cells.
    """

    def __init__(self, file: IO[Any], delimiter: str) -> None:
        self._file = file
        self._delimiter = delimiter
        #: The names of columns -> their places in the rows.
        self._names: dict[str, None] = {}
        self._is_short = False

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row."""
        if not self._names:
            self.name(list(row))
        elif not row.keys() <= self._names.keys():
            self._names |= dict.fromkeys(row)
            self._is_short = True
        self._add(["" if (value := row.get(name)) is None else _cell(value) for name in self._names])

    def name(self, columns: Sequence[str]) -> None:
        """Says which columns there are, before the first row or in its place."""
        self._names = dict.fromkeys(columns)
        self._add(columns)

    def _add(self, cells: Sequence[Any]) -> None:
        self._file.write(self._line(cells))

    def _line(self, cells: Sequence[Any]) -> bytes:
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=self._delimiter).writerow(cells)
        return text.getvalue().encode("utf-8", "replace")

    def close(self) -> None:
        """Writes rows once more that lack columns."""
        if not self._is_short:
            return
        names = in_order(self._names)
        places = [list(self._names).index(name) for name in names]
        with tempfile.TemporaryFile(prefix="pipeq-job-") as whole:
            whole.write(self._line(names))
            for cells in self._written():
                cells += [""] * (len(names) - len(cells))
                whole.write(self._line([cells[at] for at in places]))
            replace(self._file, whole)

    def _written(self) -> Iterator[list[str]]:
        self._file.seek(0)
        text = io.TextIOWrapper(self._file, "utf-8", newline="")
        csv.field_size_limit(2**31 - 1)  # a result may be long
        try:
            rows = csv.reader(text, delimiter=self._delimiter)
            next(rows)
            yield from rows
        finally:
            text.detach()


def in_order(names: dict[str, None]) -> list[str]:
    """The names of columns, ours at the end."""
    return [name for name in names if name not in LAST] + [name for name in LAST if name in names]


def replace(file: IO[Any], whole: IO[bytes]) -> None:
    """Puts what another file holds into a file, in the place of all that it has."""
    whole.seek(0)
    file.seek(0)
    file.truncate()
    shutil.copyfileobj(whole, file, 2**20)


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False, default=str)
