"""FILES: the outcomes of a job -> a file of results and a file of errors. Before: outcomes.

Each is written beside its place, and renamed when it is whole, so that nobody reads half of one. An object of S3
appears at its end by itself. JSON lines, or CSV if the name says so.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from typing import IO, Any, Self

from pipeq.contract import schemes, shown
from pipeq.contract.errors import ErrorCode, PipeqError, ReadError
from pipeq.contract.writing import to_json
from pipeq.s3_client import s3_client

#: An object of S3 up to this size is gathered in memory; a larger one in a file, from which it is sent in parts.
MEMORY_BYTES = 8 * 2**20


class OutcomeFile:
    """One file that is being written; use it as a context manager.

    Args:
        place: a path, or an ``s3://`` URI.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self.rows = 0
        self._is_remote = schemes.of(place) == "s3"
        if schemes.of(place) and not self._is_remote:
            raise PipeqError(
                ErrorCode.INVALID_INPUT, f"{shown.uri(place)} is neither a path of this machine nor an s3:// URI"
            )
        self._is_csv = place.lower().endswith(".csv")
        self._file: IO[Any]
        self._writer: Any = None

    def __enter__(self) -> OutcomeFile:
        try:
            if self._is_remote:
                import tempfile

                self._file = tempfile.SpooledTemporaryFile(MEMORY_BYTES, "w+b")
            else:
                self._path = os.path.abspath(os.path.expanduser(self.place))
                self._part = f"{self._path}.{os.getpid()}.part"
                self._file = open(self._part, "wb")
        except OSError as error:
            raise _cannot(self.place, error) from error
        return self

    def write(self, outcome: dict[str, Any]) -> None:
        """Adds the outcome of a row."""
        self.rows += 1
        try:
            self._file.write(self._csv_row(outcome) if self._is_csv else to_json(outcome, is_finite=True) + b"\n")
        except OSError as error:
            raise _cannot(self.place, error) from error

    def _csv_row(self, outcome: dict[str, Any]) -> bytes:
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        if self.rows == 1:
            writer.writerow(["line", "custom_id", "result", "code", "message"])
        error, result = outcome.get("error") or {}, outcome.get("result")
        said = result if isinstance(result, str) else "" if error else json.dumps(result, ensure_ascii=False)
        about = (outcome.get("line"), outcome.get("custom_id"), said, error.get("code"), error.get("message"))
        writer.writerow(["" if one is None else one for one in about])
        return text.getvalue().encode()

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
            self._file.flush()
            if not self._is_remote:
                os.fsync(self._file.fileno())
                os.replace(self._part, self._path)
                return
            from botocore.exceptions import BotoCoreError, ClientError

            bucket, _, key = self.place.removeprefix("s3://").partition("/")
            self._file.seek(0)
            try:
                s3_client().upload_fileobj(self._file, bucket, key)  # in parts, if it is large
            except (BotoCoreError, ClientError, ValueError) as error:
                raise OSError(str(error)) from error
        except Exception as error:
            if isinstance(error, PipeqError):
                raise
            raise _cannot(self.place, error) from error


class OutcomeFiles:
    """A file of results, and one of errors; use it as a context manager.

    Args:
        results: a path, or an ``s3://`` URI.
        errors: the same; None to write errors beside results, in one file.
    """

    def __init__(self, results: str, errors: str | None) -> None:
        self._good = OutcomeFile(results)
        self._bad = None if errors is None else OutcomeFile(errors)
        #: How many of each are written.
        self.succeeded = self.failed = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._good)
            if self._bad is not None:
                stack.enter_context(self._bad)
            self._stack = stack.pop_all()
        return self

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
