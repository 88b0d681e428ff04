"""STREAMS: stdin, or a file -> its lines, or all of it; never more in memory than a message may have.

A line that comes slowly does not wait for the next ones: a stream says when nothing more comes for a moment, so that
what was read can be dealt with.
"""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, BinaryIO, Self

import click

from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.terminal import is_terminal

#: If nothing comes from a pipe or a terminal for so long, what came before is dealt with first; in seconds.
PAUSE_S = 0.1
_READ_BYTES = 2**16


class Paused(Enum):
    """Stands among the lines where nothing more comes for a moment."""

    PAUSED = "paused"


PAUSED = Paused.PAUSED


@dataclass(frozen=True, slots=True)
class Line:
    """One line, without its end."""

    text: str
    bytes: int
    #: Such as ``line 3 of stdin``.
    where: str


class Stream:
    """What is read: its name, and its bytes."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        self.name = name
        self._file = file
        self._waits = _may_wait(file)

    @classmethod
    def stdin(cls) -> Self:
        """The standard input. Says so where a person has to type it.

        Raises:
            click.UsageError: whoever started this has closed it.
        """
        if sys.stdin is None:
            raise click.UsageError("standard input is closed, and `-` reads it")
        if is_terminal(sys.stdin):
            click.echo("reading from the terminal; Ctrl-D ends it", err=True)
        return cls("stdin", sys.stdin.buffer)

    @classmethod
    def file(cls, path: str) -> Self:
        """A file on this machine. To be closed.

        Raises:
            click.UsageError: it cannot be read.
        """
        try:
            return cls(shown.line(path), open(path, "rb"))
        except OSError as error:
            raise click.UsageError(f"cannot read {shown.line(path)!r}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def lines(self, max_bytes: int) -> Iterator[Line | Paused]:
        """Yields the lines, and :data:`PAUSED` whenever nothing more comes for a moment.

        Raises:
            PipeqError: ``input_too_large``: a line is longer than ``max_bytes``.
            click.UsageError: a line is not UTF-8.
        """
        number = 0
        for raw in self._raw_lines(max_bytes):
            if isinstance(raw, Paused):
                yield raw
                continue
            number += 1
            where = f"line {number} of {self.name}"
            if len(raw) > max_bytes:
                raise _too_large(where, max_bytes)
            try:
                text = raw.decode().rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise click.UsageError(f"{where} is not UTF-8: {error.reason}") from error
            yield Line(text, len(raw), where)

    def all(self, max_bytes: int) -> bytes:
        """Returns everything.

        Raises:
            PipeqError: ``input_too_large``: it is more than ``max_bytes``.
        """
        data = self._file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise _too_large(self.name, max_bytes)
        return data

    def _raw_lines(self, max_bytes: int) -> Iterator[bytes | Paused]:
        """Lines with their ends; of one that is too long, only its beginning, as the last one."""
        if not self._waits:
            while raw := self._file.readline(max_bytes + 1):
                yield raw
                if len(raw) > max_bytes:
                    return
            return
        rest, is_new = b"", False
        while True:
            if is_new and not select.select([self._file], [], [], PAUSE_S)[0]:
                is_new = False
                yield PAUSED
            # What Python's buffer holds is unknown to select, so the buffer is not used.
            data = os.read(self._file.fileno(), _READ_BYTES)
            *whole, rest = (rest + data).split(b"\n")
            is_new = is_new or bool(whole)
            yield from (line + b"\n" for line in whole)
            if len(rest) > max_bytes or not data:
                break
        if rest:
            yield rest


def _may_wait(file: Any) -> bool:
    """Whether reading may have to wait for somebody: it is a pipe, a socket or a terminal."""
    with suppress(OSError, ValueError):  # raised by what has no file handle
        return not stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    return False


def _too_large(where: str, limit: int) -> PipeqError:
    return PipeqError(
        ErrorCode.INPUT_TOO_LARGE,
        f"{where} is larger than {limit} bytes, which is all that a message may have: put the input on S3, and submit "
        "a reference to it",
    )
