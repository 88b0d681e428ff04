"""Decides which URIs of results a client may read: only those that its owner allowed. Before: a record. After: results.

Anyone who can write to Redis can put any URI into a record, but the client would read it from its own disk, or with its
own credentials. Therefore a client reads only what is below the prefixes that it was given.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from pipeq.contract import naming, schemes, shown
from pipeq.contract.errors import ErrorCode, ReadError, SettingsError

#: The environment variable with the prefixes of a client that was given none: separated by commas, or a JSON list.
VARIABLE = "PIPEQ_CLIENT_ALLOW"
#: Number of outputs requested by this client itself that it remembers.
_OWN_OUTPUTS = 1000


class ReadAllow:
    """Prefixes below which results and their objects may be read: ``s3://bucket/prefix/`` or ``file:///folder/``.

    An entry that ends in ``/`` is a prefix. Any other entry is a single object, or a folder with everything below it.

    Args:
        entries: one or several; None for those of the environment.

    Raises (from the constructor):
        SettingsError: an entry cannot be used; the sentence names it.
    """

    def __init__(self, entries: Iterable[str] | str | None = None) -> None:
        self._entries = [_checked(entry) for entry in (_of_environment() if entries is None else _listed(entries))]
        self._own: dict[str, None] = {}

    def remember(self, output: Mapping[str, Any]) -> None:
        """Allows an output that this client's own caller has requested, as a message has it."""
        place = naming.prefix(output["uri"])
        self._own.pop(place, None)
        self._own[place] = None
        if len(self._own) > _OWN_OUTPUTS:
            del self._own[next(iter(self._own))]

    def object(self, uri: str) -> tuple[str, str]:
        """Returns the bucket and the key of an allowed URI of an object store (``s3://``, ``gs://``, ``az://``).

        Raises:
            ReadError: ``input_forbidden``.
        """
        scheme = schemes.of(uri)
        bucket, _, key = uri.removeprefix(f"{scheme}://").partition("/")
        # Some servers resolve dot segments, and some libraries drop characters; both then read another place than was
        # checked.
        strange = not uri.isprintable() or any(char in bucket + key for char in schemes.SCHEMES[scheme].reserved)
        if not bucket or not key or strange or schemes.has_dots(uri):
            raise _forbidden(f"{shown.uri(uri)} is no plain {scheme}://bucket/key")
        if not any(_below(uri, entry) for entry in self._all(f"{scheme}://")):
            raise _not_allowed(uri, f"{scheme}://{bucket}/")
        return bucket, key

    def file(self, uri: str) -> str:
        """Returns the path of an allowed ``file://`` URI, with symbolic links resolved.

        Raises:
            ReadError: ``input_forbidden``.
        """
        path = _path(uri)
        if path is None:
            raise _forbidden(f"{shown.uri(uri)} is no absolute path on this machine")
        real = os.path.realpath(path)
        for entry in self._all("file://"):
            root = os.path.realpath(_path(entry) or "/nowhere")
            if real == root or real.startswith(root.rstrip("/") + "/"):
                return real
        raise _not_allowed(uri, f"file://{os.path.dirname(path).rstrip('/')}/")

    def _all(self, scheme: str) -> list[str]:
        return [entry for entry in (*self._entries, *self._own) if entry.startswith(scheme)]


def _of_environment() -> list[str]:
    return _listed(os.environ.get(VARIABLE, ""))


def _listed(entries: Iterable[str] | str) -> list[str]:
    if not isinstance(entries, str):
        if not isinstance(entries, Iterable):
            raise SettingsError(f"allow is {shown.value(entries)}, not a list of prefixes")
        try:
            return list(entries)
        except Exception as error:
            raise SettingsError(f"allow: the list of prefixes raised {shown.value(error)}") from error
    if entries.lstrip().startswith("["):
        try:
            return list(json.loads(entries))
        except (ValueError, RecursionError) as error:
            raise SettingsError(f"allow: {shown.line(entries)} is no JSON list") from error
    return [entry for part in entries.split(",") if (entry := part.strip())]


def _checked(entry: object) -> str:
    problem = f"allow: {shown.value(entry)} is no prefix like s3://results/ or file:///data/results/"
    scheme = schemes.SCHEMES.get(schemes.of(entry)) if isinstance(entry, str) else None
    if not isinstance(entry, str) or scheme is None or not scheme.writable:
        raise SettingsError(problem)
    if scheme.name == "file":
        if _path(entry) is None:
            raise SettingsError(f"{problem}: it is not absolute")
    elif not entry.partition("://")[2].partition("/")[0]:
        raise SettingsError(f"{problem}: it names no {scheme.first}")
    elif schemes.has_dots(entry):
        raise SettingsError(f"{problem}: '.' or '..' is a part of its path")
    return entry


def _path(uri: str) -> str | None:
    try:
        path = os.fsdecode(unquote_to_bytes(uri.removeprefix("file://")))
    except UnicodeEncodeError:
        return None
    return path if path.startswith("/") and "\0" not in path else None


def _below(value: str, entry: str) -> bool:
    return value.startswith(entry) if entry.endswith("/") else value == entry or value.startswith(entry + "/")


def _not_allowed(uri: str, prefix: str) -> ReadError:
    prefix = shown.uri(prefix)
    return _forbidden(
        f"this client was not told to read {shown.uri(uri)}: if your workers' store is there, write "
        f'Client(allow=["{prefix}"]), --allow {prefix} or {VARIABLE}={prefix}'
    )


def _forbidden(message: str) -> ReadError:
    return ReadError(ErrorCode.INPUT_FORBIDDEN, message)
