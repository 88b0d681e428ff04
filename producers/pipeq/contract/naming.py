"""CONTRACT: names of results: ``s3://results/{date}/{stem}-{id}.json`` and a task -> the URI of its result.

A client expands the fields when it submits, so that what cannot be named is an error there. A worker expands those of
messages that were sent by other means. A field's value is text of strangers, so it becomes a part of a name that cannot
lead anywhere: no slash, no ``..``, no control character, and not too long.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from pipeq.contract import keys, schemes, shown
from pipeq.contract.errors import ErrorCode, PipeqError

#: Field -> what it stands for.
FIELDS: Final = {
    "id": "the task's id",
    "custom_id": "the producer's own name for the task",
    "pipeline": "the pipeline's name",
    "date": "the day of the submission in UTC, as 2026-01-31",
    "stem": "the name of the input's file without its extension",
    "extension": "its extension without the dot; empty if it has none",
    "name": "its whole name",
}
#: Those that are read from the only reference among the inputs.
OF_REFERENCE: Final = frozenset({"stem", "extension", "name"})

#: Most bytes of a field's value; a longer one ends in a digest. An id has its own rule (:func:`keys.object_name`).
VALUE_MAX_BYTES: Final = 100
#: Most bytes of a segment on usual disks, and of an object's key on S3.
SEGMENT_MAX_BYTES: Final = 255
KEY_MAX_BYTES: Final = 1024
_DIGEST: Final = 16

_FIELD = re.compile(r"\{([^{}]*)\}")
#: Schemes whose URIs are percent-encoded; in the others, a key is what it says.
_ENCODED = frozenset({"file", "https"})


def has_fields(uri: str) -> bool:
    """Whether a URI has fields to be filled in."""
    return "{" in uri or "}" in uri


def check(uri: str) -> None:
    """Checks the fields of an output's URI.

    Raises:
        ValueError: a brace of no field, an unknown field, one in front of the first folder, or no ``{id}``; or a part
            of its path is ``.`` or ``..``.
    """
    if schemes.has_dots(uri):
        raise ValueError(f"{shown.uri(uri)!r} has '.' or '..' as a part of its path: write the place that is meant")
    if not has_fields(uri):
        return
    names, known = _FIELD.findall(uri), ", ".join(f"{{{name}}}" for name in FIELDS)
    if has_fields(_FIELD.sub("", uri)):
        raise ValueError(f"{shown.uri(uri)!r} has a brace that belongs to no field; fields are {known}")
    for name in names:
        if name not in FIELDS:
            raise ValueError(f"{shown.uri(uri)!r} has the unknown field {{{shown.line(name, 40)}}}; known are {known}")
    fixed = prefix(uri).partition("://")[2]
    if not fixed.strip("/"):
        raise ValueError(f"{shown.uri(uri)!r} has a field where a bucket or a first folder must stand")
    if "id" not in names and not uri.endswith("/"):
        raise ValueError(
            f"{shown.uri(uri)!r} has no {{id}}, so that two tasks might write one object: add it, or end the URI in "
            "'/'; to choose names, choose the tasks' ids"
        )


def prefix(uri: str) -> str:
    """The folder that holds all that a URI with fields can name."""
    return uri[: uri.index("{")].rpartition("/")[0] + "/" if "{" in uri else uri


def expand(
    uri: str, *, task_id: str, pipeline: str, inputs: Any, custom_id: str | None = None, now: float | None = None
) -> str:
    """Fills in the fields of an output's URI.

    Args:
        uri: one that :func:`check` has passed.
        task_id: the task.
        pipeline: its pipeline.
        inputs: as its message has them.
        custom_id: the producer's own name for it.
        now: the time of its submission, in seconds since the epoch; None for the present.

    Raises:
        PipeqError: ``invalid_message``: the task has nothing to fill in, or the name would be none.
    """
    if not has_fields(uri):
        return uri
    if not keys.is_readable_id(task_id):
        said = shown.line(task_id, 60) if isinstance(task_id, str) else type(task_id).__name__
        raise PipeqError(ErrorCode.INVALID_MESSAGE, f"task_id: it is no text that can be stored: {said}")
    values: dict[str, str] = {}
    for name in dict.fromkeys(_FIELD.findall(uri)):
        if name == "id":
            values[name] = keys.object_name(task_id)
        elif name == "custom_id":
            if custom_id is None:
                raise _refused(uri, "the task has no custom_id: use {id}")
            values[name] = safe(custom_id)
        elif name == "pipeline":
            values[name] = safe(pipeline)
        elif name == "date":
            values[name] = _day(now)
        else:
            values |= {key: safe(value) for key, value in _of_reference(uri, inputs).items()}
    found = _FIELD.sub(lambda match: values[match[1]], uri)
    _check_name(uri, found, keys.object_name(task_id))
    return found


def _day(now: float | None) -> str:
    try:
        day = datetime.now(UTC) if now is None else datetime.fromtimestamp(now, UTC)
    except (TypeError, ValueError, OverflowError, OSError) as error:
        raise PipeqError(
            ErrorCode.INVALID_MESSAGE, f"now: it is no time in seconds since the epoch ({error})"
        ) from error
    return day.strftime("%Y-%m-%d")


def safe(text: str) -> str:
    """Makes a text a part of a name. Letters and digits of all scripts and ``. _ + = -`` stay as they are.

    ``~`` and two hexadecimal digits replace each other byte of the UTF-8, and dots where there is nothing else. A text
    that is too long is cut, and ends in ``~~`` and a part of its SHA-256.
    """
    pieces = [char if char.isalnum() or char in "._+=-" else _escaped(char) for char in text]
    if not text.strip("."):
        pieces = [_escaped(char) for char in text]
    if len("".join(pieces).encode()) <= VALUE_MAX_BYTES:
        return "".join(pieces)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
    room, kept = VALUE_MAX_BYTES - _DIGEST - 2, ""
    for piece in pieces:
        if (room := room - len(piece.encode())) < 0:
            break
        kept += piece
    return f"{kept}~~{digest}"


def _escaped(char: str) -> str:
    return "".join(f"~{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))


def references(inputs: Any) -> Iterator[str | None]:
    """The URIs among the inputs of a message, in order; None for each reference that carries its bytes.

    A reference is an object with ``uri`` or ``base64``, or a text that begins as a URI of a known scheme.
    """
    left = [inputs]
    while left:
        value = left.pop()
        if isinstance(value, str):
            if "://" in value and schemes.is_known(schemes.of(value)):
                yield value
        elif isinstance(value, list):
            left += reversed(value)
        elif isinstance(value, dict):
            if isinstance(value.get("uri"), str):
                yield value["uri"]
            elif isinstance(value.get("base64"), str):
                yield None
            else:
                left += reversed(value.values())


def _of_reference(uri: str, inputs: Any) -> dict[str, str]:
    found = references(inputs)
    first, others = next(found, ""), sum(1 for _ in found)
    if first == "" or others:
        many = f"{others + 1} references" if others else "no reference"
        raise _refused(uri, f"the task's inputs have {many}, and a name comes from one: use {{id}}")
    if first is None:
        raise _refused(uri, "the task's input carries its bytes, so it has no name: use {id}")
    scheme, _, place = first.partition("://")
    if scheme == "https":
        place = re.split("[?#]", place, maxsplit=1)[0]
    _, slash, name = place.rpartition("/")
    if scheme in _ENCODED:
        name = unquote_to_bytes(name.encode("utf-8", "surrogatepass")).decode("utf-8", "backslashreplace")
    if not slash or not name:
        raise _refused(uri, f"the input {shown.uri(first)} has no file name: use {{id}}")
    stem, extension = posixpath.splitext(name)
    return {"name": name, "stem": stem, "extension": extension[1:]}


def _check_name(uri: str, found: str, object_name: str) -> None:
    """Checks what became of a URI, also as far as its own text is to blame."""
    place = found.partition("://")[2].removeprefix("/")
    key = place.partition("/")[2] + (f"{object_name}.json" if found.endswith("/") else "")
    segments = key.split("/")
    if any(segment in ("", ".", "..") for segment in segments):
        raise _refused(uri, f"for this task it would be {shown.uri(found)}, which has an empty part, or dots as one")
    if any(len(one.encode()) > SEGMENT_MAX_BYTES for one in segments) or len(key.encode()) > KEY_MAX_BYTES:
        raise _refused(uri, f"for this task it would be too long: {shown.uri(found)}")


def _refused(uri: str, why: str) -> PipeqError:
    return PipeqError(ErrorCode.INVALID_MESSAGE, f"output {shown.uri(uri)!r}: {why}")
