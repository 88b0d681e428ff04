"""PARTIAL: outcomes as they come -> a file beside the result, from which a later run goes on. Used by `pipeq run`.

Its first line says what it belongs to; each further one is the outcome of a row. It is only ever added to, so that
whatever is killed costs the last line at most. In memory is only where the outcome of each line stands.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.reading import json_object
from pipeq.contract.writing import to_json


class PartialFile:
    """The outcomes of a run that may have been interrupted; use it as a context manager.

    Args:
        path: where it is.
        about: what it belongs to: plain values.

    Raises (from ``with``):
        PipeqError: it belongs to something else, or cannot be written.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path
        self._about = dict(about)
        #: Number of a line -> where its outcome begins in the file.
        self._places: dict[int, int] = {}
        self.failed = 0
        self._file: IO[bytes]

    def __enter__(self) -> Self:
        try:
            self._file = open(self.path, "a+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file.seek(0)
            self._read()
        except BlockingIOError as error:
            self._file.close()
            sentence = f"another process writes {shown.line(str(self.path))}: wait until it ends, or choose another OUT"
            raise PipeqError(ErrorCode.IN_USE, sentence) from error
        except OSError as error:
            raise _cannot(self.path, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        if not self._places:
            self.path.unlink(missing_ok=True)
        with suppress(OSError):  # to close it writes what is left: if that cannot be written, it was said before
            self._file.close()

    def _read(self) -> None:
        """Reads what an earlier run has left, and removes a line that it did not finish."""
        first = self._file.readline()
        end, has_rows, about = len(first), bool(self._file.readline()), json_object(first)
        is_of_none = about is not None and about.keys() == self._about.keys() and not has_rows
        if first.endswith(b"\n") and (about == self._about or not is_of_none):
            if about != self._about:
                self._file.close()
                raise PipeqError(
                    ErrorCode.INVALID_INPUT,
                    f"{shown.line(str(self.path))} is of a run with another input or other options: remove it to begin "
                    "anew, or choose another OUT",
                )
            self._file.seek(end)
            for line in self._file:
                outcome = json_object(line) if line.endswith(b"\n") else None
                if outcome is None or not isinstance(outcome.get("line"), int):
                    break
                self._note(outcome, end)
                end += len(line)
            self._file.truncate(end)
        else:
            self._file.truncate(0)
            self._file.write(json.dumps(self._about).encode() + b"\n")
            self._file.flush()
        self._file.seek(0, os.SEEK_END)

    def _note(self, outcome: Mapping[str, Any], at: int) -> None:
        self.failed += "error" in outcome and outcome["line"] not in self._places
        self._places[outcome["line"]] = at

    def __contains__(self, line: object) -> bool:
        return line in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add(self, outcome: Mapping[str, Any]) -> None:
        """Adds the outcome of a row."""
        at = self._file.tell()
        try:
            self._file.write(to_json(outcome, is_finite=True) + b"\n")
        except OSError as error:
            raise _cannot(self.path, error) from error
        self._note(outcome, at)

    def forget_failed(self) -> None:
        """Forgets the rows that have failed, so that they are run again; a later outcome of a line replaces it."""
        for line, at in list(self._places.items()):
            self._file.seek(at)
            if "error" in (json_object(self._file.readline()) or {}):
                del self._places[line]
        self.failed = 0
        self._file.seek(0, os.SEEK_END)

    def flush(self) -> None:
        """Hands what was added to the operating system, so that it outlives this process."""
        try:
            self._file.flush()
        except OSError as error:
            raise _cannot(self.path, error) from error

    def in_order(self) -> Iterator[Iterable[dict[str, Any]]]:
        """The outcomes in the order of the input, each in a list."""
        self.flush()
        for line in sorted(self._places):
            self._file.seek(self._places[line])
            if (outcome := json_object(self._file.readline())) is not None:
                yield [outcome]
        self._file.seek(0, os.SEEK_END)


def _cannot(path: Path, error: OSError) -> PipeqError:
    return PipeqError(ErrorCode.OUTPUT_FAILED, f"cannot write {shown.line(str(path))}: {error.strerror}")
