"""ALLOW: may this URI be touched? What fetch and store ask before they open anything."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self
from urllib.parse import unquote, unquote_to_bytes

from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError, SettingsError

# Only what a URI may hold, and no "\" and no "@" before the path: other parsers disagree on where the host ends then.
_HTTPS = re.compile(
    r"https://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?(#.*)?",
    re.IGNORECASE | re.ASCII,
)
_PRINTABLE = re.compile(r"[!-~]*")


def display(uri: str) -> str:
    """The URI as errors and logs may show it: without user, password and signature."""
    return shown.uri(uri)


@dataclass(frozen=True)
class HttpsUrl:
    """An https:// URL that every parser reads the same way."""

    #: Lower case; an IPv6 address stands without brackets.
    host: str
    port: int
    #: Percent-encoded, as given; begins with a slash.
    path: str
    #: With its question mark, or empty.
    query: str = ""

    @classmethod
    def parse(cls, url: str) -> Self:
        """Splits a URL.

        Raises:
            ValueError: says what is wrong: another scheme, user information, a backslash, ``..`` in any spelling, ...
        """
        match = _HTTPS.fullmatch(url)
        if match is None or not _PRINTABLE.fullmatch(url):
            raise ValueError("it is no plain https://host/path (user, password, spaces and non-ASCII are not taken)")
        path = match["path"] or "/"
        if _climbs(path):
            raise ValueError('its path holds "." or ".." segments or a backslash')
        port = int(match["port"] or 443)
        if not 0 < port < 65536:
            raise ValueError(f"there is no port {port}")
        return cls(match["host"].lower().strip("[]"), port, path, match["query"] or "")

    @property
    def netloc(self) -> str:
        """Host and port as the Host header wants them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == 443 else f"{host}:{self.port}"

    @property
    def target(self) -> str:
        """Path and query: what a request asks for."""
        return self.path + self.query

    def __str__(self) -> str:
        return f"https://{self.netloc}{self.target}"


def _climbs(path: str, separators: str = "/") -> bool:
    """Whether a path, as it is or decoded, has a segment that leads up, or a backslash that separates none for us."""
    # A server behind a proxy may decode twice; a path that still changes after that many rounds is an attack.
    for _ in range(4):
        # Some servers cut parameters off before they resolve: "..;x" is ".." to them.
        parts = path.replace("\\", "/").split("/") if "\\" in separators else path.split("/")
        if any(part.partition(";")[0] in (".", "..") for part in parts) or ("\\" in path and "\\" not in separators):
            return True
        decoded = unquote(path)
        if decoded == path:
            return False
        path = decoded
    return True


def file_path(uri: str) -> str:
    """``file:///a%20b`` -> ``/a b``. A ``?`` or ``#`` is part of the name, as nothing else could be meant.

    Raises:
        ValueError: relative, on another host, or with a zero byte.
    """
    path = os.fsdecode(unquote_to_bytes(uri.removeprefix("file://")))
    if not path.startswith("/"):
        raise ValueError("it is no absolute path on the worker's own disk: write file:///folder/file")
    if "\0" in path:
        raise ValueError("its name holds a zero byte")
    return path


def split_s3(uri: str) -> tuple[str, str]:
    """``s3://bucket/key`` -> bucket and key. Nothing is decoded: ``%20``, ``?`` and ``#`` are what they are.

    Raises:
        ValueError: a segment is ``.`` or ``..``, in any spelling: many servers resolve them, some after decoding.
    """
    place = uri.removeprefix("s3://")
    if _climbs(place, "/\\"):
        raise ValueError('its bucket or key holds "." or ".." segments')
    bucket, _, key = place.partition("/")
    return bucket, key


def _below(value: str, entry: str) -> bool:
    return value.startswith(entry) if entry.endswith("/") else value == entry or value.startswith(entry + "/")


class AllowList:
    """The URIs below a list of prefixes.

    An entry that ends in ``/`` is a prefix; any other is that one thing, or a folder with all below it.

    Args:
        entries: ``s3://bucket/prefix/``, ``file:///folder/`` or ``https://host/path/``.
        key: where they are set, for the errors: ``[inputs] allow``.
        option: the command line's name for the same, if there is one: ``--allow``.

    Raises (from the constructor):
        SettingsError: an https:// or s3:// entry that cannot be compared.
    """

    def __init__(self, entries: Iterable[str], key: str, option: str | None = None) -> None:
        self._key = key
        self._option = option
        entries = tuple(entries)
        self._s3 = [self._parse_s3(entry) for entry in entries if entry.startswith("s3://")]
        self._files = [file_path(entry) for entry in entries if entry.startswith("file://")]
        self._https = [self._parse(entry) for entry in entries if entry.startswith("https://")]

    @property
    def has_s3(self) -> bool:
        """Whether any ``s3://`` URI is allowed."""
        return bool(self._s3)

    def _parse(self, entry: str) -> HttpsUrl:
        try:
            url = HttpsUrl.parse(entry)
        except ValueError as error:
            raise SettingsError(f"{self._key}: {display(entry)!r} cannot be used: {error}") from error
        if url.query or "#" in entry:
            raise SettingsError(
                f"{self._key}: {display(entry)!r} has a query or a fragment, which is not compared: drop it"
            )
        return url

    def _parse_s3(self, entry: str) -> str:
        try:
            split_s3(entry)
        except ValueError as error:
            raise SettingsError(f"{self._key}: {display(entry)!r} cannot be used: {error}") from error
        return entry

    def check_s3(self, uri: str) -> tuple[str, str]:
        """Bucket and key of an allowed ``s3://`` URI; any other is ``input_forbidden``."""
        try:
            bucket, key = split_s3(uri)
        except ValueError as error:
            raise PipeqError(ErrorCode.INPUT_FORBIDDEN, f"{display(uri)} is not touched: {error}") from error
        if not bucket:
            raise PipeqError(ErrorCode.INPUT_FORBIDDEN, f"{display(uri)} names no bucket")
        if not any(_below(uri, entry) for entry in self._s3):
            raise self._forbidden(uri, f"s3://{bucket}/")
        return bucket, key

    def check_https(self, url: str, name: str | None = None) -> HttpsUrl:
        """The parts of an allowed ``https://`` URL; any other is ``input_forbidden``; the error calls it ``name``."""
        try:
            parsed = HttpsUrl.parse(url)
        except ValueError as error:
            raise PipeqError(ErrorCode.INPUT_FORBIDDEN, f"{name or display(url)} is not read: {error}") from error
        for entry in self._https:
            if (parsed.host, parsed.port) == (entry.host, entry.port) and _below(parsed.path, entry.path):
                return parsed
        raise self._forbidden(url, f"https://{parsed.netloc}/", name)

    def check_file(self, uri: str) -> tuple[str, str]:
        """The allowed folder that holds a file, and the file's path below it, both without any symbolic link.

        The file need not exist. It may still change into a link before it is opened: files.py opens it in a
        way that follows none.

        Raises:
            PipeqError: ``input_forbidden``.
        """
        try:
            path = file_path(uri)
        except ValueError as error:
            raise PipeqError(ErrorCode.INPUT_FORBIDDEN, f"{display(uri)} is not opened: {error}") from error
        real = os.path.realpath(path)
        for entry in self._files:
            # Resolved each time: a root such as "current" may be a link that is moved on while the worker runs.
            root = os.path.realpath(entry)
            if real == root:
                return os.path.split(real)
            if real.startswith(root.rstrip("/") + "/"):
                return root, os.path.relpath(real, root)
        if any(_below(path, entry) for entry in self._files):
            reason = 'leads outside the allowed folders, through a symbolic link or ".."'
            raise PipeqError(
                ErrorCode.INPUT_FORBIDDEN, f"{display(uri)} {reason}; to allow that, add its folder to {self._key}"
            )
        folder = uri[: uri.rindex("/") + 1]
        # For a file right below the root, its folder would be the whole disk.
        raise self._forbidden(uri, uri if folder == "file:///" else folder)

    def _forbidden(self, uri: str, suggestion: str, name: str | None = None) -> PipeqError:
        suggestion = display(suggestion)
        option = f", or start the worker with {self._option} {suggestion}" if self._option else ""
        return PipeqError(
            ErrorCode.INPUT_FORBIDDEN,
            f'this worker\'s settings do not allow {name or display(uri)}: add "{suggestion}" to {self._key}{option}',
        )
