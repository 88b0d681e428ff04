"""PATHS: texts that look like a name of a file, or like a URI. Used by inputs, for what is guessed and what is said."""

from __future__ import annotations

import mimetypes
import os
import re
from difflib import get_close_matches
from itertools import islice

from pipeq.contract import schemes, shown

SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://(?=\S*$)", re.IGNORECASE)
#: Most names of a folder that are compared with one that is not there.
NAMES_COMPARED = 2000
#: Suffixes of files that are inputs although they are not media.
_SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".npy", ".pdf", ".flac", ".opus", ".webp", ".mkv")


def no_scheme(text: str, scheme: str) -> str:
    """Says that a text looks like a URI of a scheme that nobody reads."""
    return f"{shown.uri(text)}: {scheme} is not read, only {', '.join(f'{one}://' for one in schemes.known())}"


def meant(path: str) -> str:
    """Names the file that was probably meant."""
    folder, name = os.path.split(path)
    try:
        with os.scandir(folder or ".") as entries:
            names = [entry.name for entry in islice(entries, NAMES_COMPARED) if entry.is_file()]
    except (OSError, ValueError):
        return ""
    close = get_close_matches(name, names, 1)
    return f"; did you mean {shown.line(os.path.join(folder, close[0]))!r}?" if close else ""


def is_a_files_name(text: str) -> bool:
    """Whether a text was probably meant as a file: one word that is a path, or has a suffix of media."""
    if text.split() != [text]:
        return False
    kind = mimetypes.guess_type(text)[0] or ""
    is_media = kind.startswith(("image/", "audio/", "video/")) or text.lower().endswith(_SUFFIXES)
    return is_media or text.startswith(("/", "./", "../", "~/"))
