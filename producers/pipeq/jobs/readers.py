"""READERS: the input of a job -> its records, one by one, with their line numbers. After: columns.

A source is read from its beginning each time, and in the same order, so that a producer that is started again skips
what is queued. It is streamed: memory does not grow with its length. What is wrong with a line is that line's error;
what is wrong with the source itself (it is not there, or is no Parquet) ends the reading.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
import zlib
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Final

from pipeq import checks
from pipeq.contract import schemes, shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.message import Ref
from pipeq.contract.reading import UnreadableError, json_value
from pipeq.jobs.records import DRY, LINE_BYTES, NOTHING, Header, not_utf_8, refuse_utf_16
from pipeq.jobs.tables import csv_rows, parquet_rows
from pipeq.local_paths import is_pattern, matching
from pipeq.s3_client import s3_client, s3_errors
from pipeq.s3_listing import WILDCARDS, listed
from pipeq.wanted import Fed

#: What a file holds, by the end of its name.
FORMATS: Final = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
    ".txt": "lines",
}  # fmt: skip
#: All of these, and ``refs``: each file or object is a row.
KINDS: Final = ("jsonl", "csv", "tsv", "parquet", "lines", "refs")
#: Those whose columns have nothing but text.
TEXT_KINDS: Final = ("csv", "tsv")
#: Those whose rows all have the same columns.
TABLES: Final = (*TEXT_KINDS, "parquet")


@dataclass(frozen=True)
class Source:
    """The input of a job."""

    #: What people read of it, and what a producer that is started again must have, too.
    name: str
    kind: str
    #: Yields a record for each line; of one that cannot be read, its :class:`PipeqError`; or :data:`NOTHING`.
    records: Callable[[], Iterator[Any]]
    #: Whether it can be read again, from the same beginning, by another process.
    is_repeatable: bool = True
    #: What takes its records, if it is asynchronous; then ``records`` has those that were taken, and :data:`DRY`.
    fed: Fed | None = None
    #: The names of its columns, if it says so itself.
    names: tuple[str, ...] | None = None

    def begun(self) -> Source:
        """The source with its first line read, once; of a table with the names of its columns.

        Those whose first line may be long in coming stay as they are: iterables, and what is written to a pipe.

        Raises:
            PipeqError: it cannot be read.
        """
        if self.kind == "iterable" or not (self.is_repeatable or self.kind in TABLES):
            return self
        records = self.records()
        first = list(islice(records, 1))
        names = first[0] if first else None
        if self.kind not in TABLES or not isinstance(names, Header | dict):
            names = None
        return replace(self, records=lambda: chain(first, records), names=None if names is None else tuple(names))


def source(given: Any, kind: str | None = None, *, uploads: bool = False) -> Source:
    """Finds out what the input of a job is.

    Args:
        given: a path, ``-`` (standard input), an ``s3://`` URI of a file or of a prefix, a name with wildcards, an open
            file, or an iterable, also an asynchronous one.
        kind: one of :data:`KINDS`; None to tell by the name.
        uploads: whether files of this machine are uploaded, and need not be the workers', too.

    Raises:
        PipeqError: it cannot be read, naming the argument.
    """
    if kind is not None and kind not in KINDS:
        checks.refuse(f"format is {shown.value(kind)}, not one of {', '.join(KINDS)}")
    if isinstance(given, os.PathLike):
        given = os.fspath(given)
    if isinstance(given, str):
        return _of_text(given, kind, uploads=uploads)
    if isinstance(given, io.IOBase) or (hasattr(given, "read") and hasattr(given, "__iter__")):
        name = str(getattr(given, "name", "a file"))
        return Source(
            name,
            kind or _kind_of(name) or "jsonl",
            lambda: _of_file(given, kind or _kind_of(name) or "jsonl", name),
            False,
        )
    if isinstance(given, AsyncIterable):
        fed = Fed(given)
        return Source(_one(given), "iterable", lambda: _of_fed(fed), False, fed)
    if isinstance(given, Mapping | bytes) or not isinstance(given, Iterable):
        checks.refuse(
            f"inputs is {shown.value(given)}, {_one(given)}, and takes a path, s3://bucket/key, an open "
            "file, or an iterable of rows"
        )
    names = getattr(given, "column_names", None)  # of a data set
    return Source(
        _one(given),
        "iterable",
        lambda: _of_iterable(given),
        not isinstance(given, Iterator),
        names=tuple(names) if isinstance(names, list) and all(isinstance(one, str) for one in names) else None,
    )


def _one(given: Any) -> str:
    name = type(given).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _of_text(given: str, kind: str | None, *, uploads: bool) -> Source:
    scheme = schemes.of(given)
    if given == "-":
        return _standard_input(kind or "jsonl")
    if scheme and scheme != "s3":
        checks.refuse(f"inputs is {shown.uri(given)}: a job reads files of this machine, s3:// and standard input")
    if scheme and not given.partition("://")[2].partition("/")[0]:
        checks.refuse(
            f"inputs is {shown.uri(given)}, which names no bucket: write s3://bucket/key or s3://bucket/prefix/"
        )
    several = given.endswith("/") or (WILDCARDS.search(given) is not None if scheme else is_pattern(given))
    if kind == "refs" or (kind is None and several and _kind_of(given) is None):
        return Source(given, "refs", lambda: _refs(given, bool(scheme), uploads=uploads))
    found = kind or _kind_of(given)
    if found is None and scheme and "/" not in given.partition("://")[2]:
        checks.refuse(f"inputs is {shown.value(given)}, a bucket: end it in '/' to submit each of its objects")
    if found is None and not scheme and os.path.isdir(os.path.expanduser(given)):
        checks.refuse(f"inputs is {shown.value(given)}, a folder: end it in '/' to submit each of its files")
    if found is None:
        checks.refuse(
            f"inputs is {shown.value(given)}, and its name does not say what it holds: pass a format, one of "
            f"{', '.join(KINDS)}"
        )
    if not several and not scheme and not os.path.isfile(os.path.expanduser(given)):
        raise PipeqError(ErrorCode.INPUT_NOT_FOUND, f"there is no file {shown.line(given)} here")
    return Source(given, found, lambda: _of_files(_names(given, bool(scheme)) if several else iter([given]), found))


def _standard_input(kind: str) -> Source:
    if sys.stdin is None:  # whoever started this has closed it
        checks.refuse("inputs is -, and standard input is closed")
    return Source("standard input", kind, lambda: _of_file(sys.stdin.buffer, kind, "stdin"), False)


def _names(given: str, is_remote: bool) -> Iterator[str]:
    return listed(given) if is_remote else _paths(given)


def _kind_of(name: str) -> str | None:
    return FORMATS.get(os.path.splitext(name.lower().removesuffix(".gz"))[1])


def _paths(given: str) -> Iterator[str]:
    if not (found := matching(given)):
        raise PipeqError(ErrorCode.INPUT_NOT_FOUND, f"no file matches {shown.line(given)}")
    yield from found


def _whole(name: str) -> Any:
    return io.BytesIO(_s3_body(name).read()) if schemes.of(name) == "s3" else os.path.expanduser(name)


def _refs(given: str, is_remote: bool, *, uploads: bool) -> Iterator[Any]:
    """A reference to each file or object, with its name as the row's."""
    for name in _names(given, is_remote):
        found = Ref(name) if is_remote else Path(name) if uploads else Ref.from_path(name)
        yield {"inputs": found, "custom_id": name[-500:]}


def _of_iterable(given: Iterable[Any]) -> Iterator[Any]:
    count = 0
    try:
        for record in given:
            count += 1
            yield record
    except PipeqError:
        raise
    except Exception as error:  # it is the caller's code
        sentence = f"inputs raised {shown.value(error, 300)} after {shown.count(count, 'row')}"
        raise PipeqError(ErrorCode.INVALID_INPUT, sentence) from error


def _of_fed(fed: Fed) -> Iterator[Any]:
    while not fed.has_ended:
        yield DRY
        yield from fed


def _of_files(names: Iterator[str], kind: str) -> Iterator[Any]:
    for name in names:
        if kind == "parquet":
            yield from parquet_rows(_whole(name), name)
        else:
            with _opened(name) as file:
                yield from _of_file(file, kind, name)


def _of_file(file: IO[Any], kind: str, name: str) -> Iterator[Any]:
    try:
        yield from _records(file, kind)
    except Exception as error:
        # A disk or a store that fails in the middle, or what is no gzip.
        library = type(error).__module__.partition(".")[0]
        if not isinstance(error, OSError | EOFError | zlib.error) and library not in ("botocore", "urllib3"):
            raise
        sentence = f"{shown.uri(name)} cannot be read: {shown.line(str(error))}"
        raise PipeqError(ErrorCode.INPUT_UNAVAILABLE, sentence) from error


def _records(file: IO[Any], kind: str) -> Iterator[Any]:
    if kind == "parquet":
        yield from parquet_rows(file, "it")
    elif kind in ("csv", "tsv"):
        yield from csv_rows(file, "\t" if kind == "tsv" else ",")
    else:
        for text in _lines(file):
            if isinstance(text, PipeqError):
                yield text
            elif kind == "lines":
                yield _text(text)
            else:
                yield _json(text)


@contextmanager
def _opened(name: str) -> Iterator[IO[bytes]]:
    """A file of this machine, or an object, decompressed if its name ends in ``.gz``."""
    try:
        if schemes.of(name) == "s3":
            raw: Any = _s3_body(name)
        else:
            raw = open(os.path.expanduser(name), "rb")  # noqa: SIM115
    except OSError as error:
        raise PipeqError(ErrorCode.INPUT_NOT_FOUND, f"{shown.uri(name)} cannot be read: {error.strerror}") from error
    with raw:
        if name.endswith(".gz"):
            import gzip

            with gzip.open(raw) as unpacked:
                yield unpacked  # type: ignore[misc]
        else:
            yield raw


def _s3_body(uri: str) -> IO[bytes]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    with s3_errors(uri, "read"):
        body = s3_client().get_object(Bucket=bucket, Key=key)["Body"]
    return io.BufferedReader(_Readable(body), 2**20)


class _Readable(io.RawIOBase):
    """boto3's body as a file that can be read by lines, without what it would do for each of them."""

    def __init__(self, body: Any) -> None:
        self._body = body

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Reads the next bytes."""
        data = self._body.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Closes the connection."""
        self._body.close()
        super().close()


def _lines(file: IO[Any]) -> Iterator[bytes | PipeqError]:
    """The lines of a file, or why one cannot be kept."""
    mark = codecs.BOM_UTF8
    while True:
        line = file.readline(LINE_BYTES + 1)
        if not line:
            return
        data = line.encode("utf-8", "surrogateescape") if isinstance(line, str) else line
        if mark:  # Windows' editors begin a file with it
            refuse_utf_16(data)
            data, mark = data.removeprefix(mark), b""
        if len(data) > LINE_BYTES and not data.endswith(b"\n"):
            while (more := file.readline(LINE_BYTES)) and not more.endswith(b"\n" if isinstance(more, bytes) else "\n"):
                pass
            yield PipeqError(ErrorCode.INPUT_TOO_LARGE, f"the line has more than {LINE_BYTES} bytes")
            continue
        yield data.rstrip(b"\r\n")


def _text(data: bytes) -> str | PipeqError:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        return not_utf_8(error.start, data[error.start])


def _json(text: bytes) -> Any:
    if not text.strip():
        return NOTHING
    try:
        return json_value(text)
    except UnreadableError as error:
        sentence = f"{error}: {shown.line(text.decode('utf-8', 'replace'), 60)!r}"
        return PipeqError(ErrorCode.INVALID_INPUT, sentence)
