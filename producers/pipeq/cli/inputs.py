"""INPUTS of ``pipeq submit``: arguments, files and stdin -> values of a message's ``inputs``, one after the other.

What an argument is taken for depends on what the pipeline takes, which its worker has registered: for text, a plain
argument is text; for images, audio and video it is a URI, a file, a folder's names with wildcards, or a prefix of S3.
Where nothing is known of the pipeline, a file that exists is a file, and anything else is text.

Before: the command. After: submitting, in chunks.
"""

from __future__ import annotations

import json
import mimetypes
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import click

from pipeq.cli.paths import SCHEME, is_a_files_name, meant, no_scheme
from pipeq.cli.streams import Paused, Stream
from pipeq.contract import schemes, shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.message import Ref
from pipeq.local_paths import is_pattern, matching
from pipeq.s3_listing import WILDCARDS, listed

#: How the content of a file, or of stdin, becomes inputs; ``auto``: a file is a reference, and a line of stdin is read
#: as an argument would be.
Form = Literal["auto", "lines", "jsonl", "document"]
#: What a pipeline takes, as its worker registers it: where a plain text is the value itself, and where it is a URI.
TEXT_KINDS = frozenset({"text", "texts", "chat"})
BYTES_KINDS = frozenset({"image", "images", "audio", "video"})
#: What an argument is taken for with a flag that says how files are read.
_FILES: Mapping[Form, str] = {
    "lines": "a file of texts",
    "jsonl": "a file of JSON lines",
    "document": "a file whose content is one input",
}


@dataclass(frozen=True, slots=True)
class Value:
    """One input."""

    value: Any
    #: About how large its message is.
    bytes: int
    #: Where it comes from, for errors: an argument, or a line of a file.
    where: str


@dataclass
class Reader:
    """Reads the inputs of one command.

    Args:
        takes: returns what a plain value of the pipeline is (``text``, ``image`` ...), as its worker has registered it;
            None if that is not known. Called only if it matters.
        say: prints a warning.
        max_bytes: most bytes of a message.
        text: whether every argument and every line is plain text.
        files: whether every argument is a URI, a file, or names files by wildcards, also where text is expected.
        form: how content is read.
        uploads: whether the client uploads files; otherwise they are references to files that the workers can open.
    """

    takes: Callable[[], str | None]
    say: Callable[[str], None]
    max_bytes: int
    text: bool = False
    files: bool = False
    form: Form = "auto"
    uploads: bool = False
    _has_said: bool = False

    def values(self, arguments: Sequence[str]) -> Iterator[Value | Paused]:
        """Yields each input, read lazily; :data:`PAUSED` when nothing comes from stdin for a moment.

        Raises:
            click.UsageError: an argument, or a line, cannot be what is expected there.
            PipeqError: one is too large; a store does not say what it has.
        """
        for argument in arguments:
            if argument == "-":
                yield from self._content(Stream.stdin())
            elif self.text:
                yield _value(argument, argument)
            elif self.form == "auto":
                yield from self._of(argument)
            else:
                for path in self._paths(argument):
                    with Stream.file(path) as stream:
                        yield from self._content(stream)

    def may_be_several(self, arguments: Sequence[str]) -> bool:
        """Whether arguments may become more than one input, or fewer."""
        if len(arguments) != 1 or self.form in ("lines", "jsonl"):
            return True
        [argument] = arguments
        if argument == "-":
            return self.form != "document"
        if self.text:
            return False
        if schemes.of(argument) == "s3":
            return _names_several(argument)
        return self._has_wildcards(argument)

    # -- arguments ----------------------------------------------------------------------------------------------------

    def _of(self, argument: str) -> Iterator[Value]:
        """Reads a URI, JSON, files or text; what fits first counts."""
        if schemes.of(argument) == "s3" and _names_several(argument):
            for uri in listed(argument):
                yield _value(Ref(uri), uri)
            return
        if self._has_wildcards(argument):
            for path in self._paths(argument):
                yield _value(self._reference(path), path)
            return
        yield self._single(argument, shown.line(repr(argument), 80))

    def _single(self, text: str, where: str) -> Value:
        if schemes.is_known(schemes.of(text)):
            return _value(self._ref(text), text, where)
        if not self.files and (found := _json(text)) is not None:
            return _value(found, text, where)
        if self._wants_files:
            return _value(self._reference(self._file(text)), text, where)
        if self._kind in TEXT_KINDS:
            self._say_if_a_file(text)
        elif self._kind is None:
            return self._guess(text, where)
        elif os.path.isfile(text):
            return _value(self._reference(text), text, where)
        return _value(text, text, where)

    def _ref(self, uri: str) -> Ref:
        scheme = schemes.of(uri)
        if uri.endswith("/") and scheme in schemes.SCHEMES and scheme not in ("s3", "https"):
            raise click.UsageError(
                f"{shown.uri(uri)} was taken for a prefix, and only those of s3:// are listed here: name the files or "
                "objects below it, or pass --text if it is text"
            )
        return Ref(uri)

    def _reference(self, path: str) -> Path | Ref:
        return Path(path) if self.uploads else Ref.from_path(path)

    def _guess(self, text: str, where: str) -> Value:
        """Nothing is known of the pipeline."""
        if os.path.isfile(text):
            return _value(self._reference(text), text, where)
        if os.path.isdir(text):
            raise click.UsageError(f"{text!r} is a folder: name the files in it, or pass --text if it is text")
        if match := SCHEME.match(text):
            raise click.UsageError(f"{no_scheme(text, match[0])}; pass --text if it is text")
        if is_a_files_name(text):
            raise click.UsageError(f"there is no file {shown.line(text)!r} here; pass --text if it is text")
        return _value(text, text, where)

    def _say_if_a_file(self, text: str) -> None:
        if not self._has_said and os.path.isfile(text):
            self._has_said = True
            self.say(
                f"{shown.line(text)!r} is taken as text, although a file of that name is here: --document submits what "
                "it holds, --file a reference to it, and --text says that text is meant"
            )

    def _has_wildcards(self, argument: str) -> bool:
        """Whether an argument names files on this machine by wildcards."""
        if schemes.of(argument) or not is_pattern(argument):
            return False
        if self.form == "auto" and not self.files and _json(argument) is not None:
            return False
        return self.form != "auto" or self._wants_files or (self._kind is None and is_a_files_name(argument))

    @cached_property
    def _kind(self) -> str | None:
        return self.takes()

    @property
    def _wants_files(self) -> bool:
        return self.files or (not self.text and self._kind in BYTES_KINDS)

    # -- files --------------------------------------------------------------------------------------------------------

    def _paths(self, argument: str) -> Iterator[str]:
        """The files that an argument names, in the order of their names, so that the n-th is always the same one."""
        if not self._has_wildcards(argument):
            yield self._file(argument)
            return
        found = matching(argument)
        if not found:
            raise click.UsageError(
                f"{shown.line(argument)!r} was taken for {self._wanted} by wildcards: no file matches"
            )
        yield from found

    def _file(self, text: str) -> str:
        path = os.path.expanduser(text)
        if os.path.isfile(path):
            return path
        what = f"{shown.line(text)!r} was taken for {self._wanted}"
        if os.path.isdir(path):
            raise click.UsageError(f"{what}, and is a folder: name the files in it, as in {shown.line(text + '/*')!r}")
        if match := SCHEME.match(text):
            raise click.UsageError(f"{what}: {no_scheme(text, match[0])}")
        if os.path.exists(path):
            raise click.UsageError(f"{what}, and is no regular file")
        raise click.UsageError(f"{what}, and there is none here{meant(path)}")

    @property
    def _wanted(self) -> str:
        if self.form != "auto":
            return _FILES[self.form]
        kind = None if self.files else _A.get(self._kind or "")
        return "the name of a file" if kind is None else f"the file or URI of {kind}"

    # -- what files and stdin hold ------------------------------------------------------------------------------------

    def _content(self, stream: Stream) -> Iterator[Value | Paused]:
        if self.form == "document":
            yield self._document(stream)
            return
        for line in stream.lines(self.max_bytes):
            if isinstance(line, Paused):
                yield line
                continue
            if not line.text.strip():
                continue
            if self.text or (self.form == "lines" and self._kind not in BYTES_KINDS):
                yield Value(line.text, line.bytes, line.where)
            elif self.form == "jsonl":
                yield Value(_parsed(line.text, line.where), line.bytes, line.where)
            else:
                try:
                    yield self._single(line.text, line.where)
                except click.UsageError as error:
                    raise click.UsageError(f"{line.where}: {error.message}") from error

    def _document(self, stream: Stream) -> Value:
        data = stream.all(self.max_bytes)
        if self._kind in BYTES_KINDS:
            return Value(Ref.from_bytes(data, mimetypes.guess_type(stream.name)[0]), len(data) * 4 // 3, stream.name)
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise click.UsageError(f"{stream.name} is not UTF-8: {error.reason}") from error
        if self._kind is None or self._kind in TEXT_KINDS:
            return Value(text, len(data), stream.name)
        return Value(_parsed(text, stream.name), len(data), stream.name)


#: What a pipeline takes -> in words.
_A = {"image": "an image", "images": "images", "audio": "audio", "video": "a video"}


def _value(value: Any, text: str, where: str | None = None) -> Value:
    return Value(value, len(text), where or shown.line(repr(text), 80))


def _json(text: str) -> Any:
    """The JSON object or array that a text is; None if it is none."""
    if text.lstrip().startswith(("{", "[")):
        with suppress(ValueError, RecursionError):
            return json.loads(text)
    return None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = f"no JSON: {error}" if isinstance(error, ValueError) else "nested too deep"
        raise PipeqError(ErrorCode.INVALID_INPUT, f"{where} is {reason}") from error


def _names_several(uri: str) -> bool:
    return uri.endswith("/") or WILDCARDS.search(uri) is not None
