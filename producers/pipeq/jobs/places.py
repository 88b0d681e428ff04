"""PLACES: where the files of a job go, checked before the work that fills them. Before: calls. After: files."""

from __future__ import annotations

import errno
import os
from typing import NoReturn
from urllib.parse import unquote_to_bytes

from pipeq import checks, uploading
from pipeq.contract import schemes, shown
from pipeq.contract.errors import ErrorCode, PipeqError, ReadError

#: The ends of names that say what a file of a job holds: lines of JSON, of text with columns, or Parquet.
ENDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


def local_path(place: str) -> str | None:
    """The path of a place on this machine; None for one in a store.

    Of a path, links are followed, so that a link stays one. A ``file://`` URI may be a stranger's wish to a worker, and
    a link there could lead out of what the worker allows: the file replaces it.

    Raises:
        PipeqError: it is neither a path nor in a store that can be written.
    """
    scheme = schemes.of(place)
    if scheme and scheme not in uploading.SCHEMES:
        sentence = f"{shown.uri(place)} is neither a path of this machine nor {schemes.listed(uploading.SCHEMES)}"
        raise PipeqError(ErrorCode.INVALID_INPUT, sentence)
    if scheme == "file":
        return os.path.abspath(os.fsdecode(unquote_to_bytes(place.removeprefix("file://"))))
    if scheme:
        return None
    path = os.path.abspath(os.path.expanduser(place))
    return path if is_stream(path) else os.path.realpath(path)  # /dev/stdout may lead to a pipe without a path


def check_name(name: str, place: str) -> None:
    """Checks that the end of a file's name says what it is to hold.

    Args:
        name: what the file is called in the error.
        place: a path or a URI.

    Raises:
        PipeqError: it does not.
    """
    if os.path.splitext(place.lower())[1] in ENDS:
        return
    if place.lower().endswith(".gz"):
        why = "files of a job are not compressed"
    else:
        why = "the end of its name does not say what it is to hold"
    checks.refuse(f"{name} is {shown.uri(place)}, and {why}: end it in {', '.join(ENDS[:-1])} or {ENDS[-1]}")


def is_stream(path: str) -> bool:
    """Whether it is there and holds no bytes of its own (a pipe, a terminal, a device): a file must not replace it."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def check(results: str, errors: str | None = None, inputs: object = None, name: str = "results") -> None:
    """Finds out whether files of this machine can be written, as far as that can be told in advance.

    Args:
        results: the file of results.
        errors: the file of errors; None for none.
        inputs: what is read meanwhile, which must not be replaced.
        name: what the caller calls the file of results.

    Raises:
        PipeqError: one cannot be written, or two of them are the same file.
    """
    seen: dict[str, str] = {}
    given = inputs if isinstance(inputs, str) and not schemes.of(inputs) and inputs != "-" else None
    if given is not None:
        seen[os.path.realpath(os.path.expanduser(given))] = "the input"
    for called, place in ((name, results), ("errors", errors)):
        if place is None:
            continue
        path = local_path(place)
        if (other := seen.setdefault(path or place, called)) is not called and not (path and is_stream(path)):
            checks.refuse(f"{called} and {other} are the same file, {shown.uri(place)}: choose another one")
        if path is not None:
            _check_path(place, path)
        if path is None or not is_stream(path):
            check_name(called, place)


def _check_path(place: str, path: str) -> None:
    folder = os.path.dirname(path)
    if os.path.isdir(path) or place.endswith("/"):
        cannot(place, f"it is a folder: name a file, such as {os.path.join(place, 'results.jsonl')}")
    if is_stream(path):
        return
    if not os.path.isdir(folder):
        cannot(place, f"there is no folder {shown.line(folder)}: make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        cannot(place, f"{os.strerror(errno.EACCES)}: files are written beside their place first, so its folder counts")


def cannot(place: str, reason: str | Exception) -> NoReturn:
    """Raises what says that a place cannot be written, and why."""
    says = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
    sentence = f"cannot write {shown.uri(place)}: {shown.line(says, 300)}"
    raise ReadError(ErrorCode.OUTPUT_FAILED, sentence, False) from (reason if isinstance(reason, Exception) else None)
