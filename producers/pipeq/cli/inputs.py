"""Parses the inputs of ``pipeq submit``: arguments and lines of stdin -> values of a message's ``inputs``."""

from __future__ import annotations

import json
import mimetypes
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click

from pipeq.contract import schemes, shown
from pipeq.contract.message import Ref

#: Suffixes of files that are inputs although they are not media.
_SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".npy", ".pdf", ".flac", ".opus", ".webp", ".mkv")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://(?=\S*$)", re.IGNORECASE)


def read_inputs(arguments: Sequence[str], text: bool) -> Iterator[Any]:
    """Yields each argument's value; for `-`, that of each line of stdin, read lazily.

    Args:
        arguments: as they stand on the command line.
        text: whether to take all of them as plain text.

    Raises:
        click.UsageError: a folder, a text that only looks like a file or a URI, or a line that is not UTF-8.
    """
    for argument in arguments:
        values = _stdin_lines() if argument == "-" else iter([argument])
        yield from values if text else map(_parse_input, values)


def _stdin_lines() -> Iterator[str]:
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            text = line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise click.UsageError(f"line {number} of stdin is not UTF-8: {error.reason}") from error
        if text.strip():
            yield text


def _parse_input(text: str) -> Any:
    """Parses a URI, an existing file, a JSON object or array, or text; the first that fits counts."""
    if schemes.is_known(schemes.of(text)):
        return Ref(text)
    if text.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass
    if os.path.isfile(text):
        return Ref.from_path(text)
    if os.path.isdir(text):
        raise click.UsageError(f"{text!r} is a folder: name the files in it, or pass --text if it is text")
    if match := _SCHEME.match(text):
        raise click.UsageError(
            f"{shown.uri(text)}: {match[0]} is not read, only {', '.join(f'{one}://' for one in schemes.known())}; "
            "pass --text if it is text"
        )
    if _is_a_files_name(text):
        raise click.UsageError(f"there is no file {shown.line(text)!r} here; pass --text if it is text")
    return text


def _is_a_files_name(text: str) -> bool:
    """Whether a text was probably meant as a file: one word that is a path, or has a suffix of media."""
    if text.split() != [text]:
        return False
    kind = mimetypes.guess_type(text)[0] or ""
    is_media = kind.startswith(("image/", "audio/", "video/")) or text.lower().endswith(_SUFFIXES)
    return is_media or text.startswith(("/", "./", "../", "~/"))
