"""The books of the soak: what the producers say that they sent, and what Redis has written to disk of each task.

A listener would miss what is published while Redis is away. But Redis appends each write to its file before it answers,
so that file tells the whole story of each record, restarts or not.
"""

from __future__ import annotations

import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pipeq.contract import keys

_RECORD = keys.record_key("").encode()
_STATUS = re.compile(rb'^\{"status": ?"([A-Z]+)"')
LETTERS = {b"QUEUED": "Q", b"RETRY": "R", b"SUCCESS": "S", b"FAILURE": "F", b"REVOKED": "C"}
#: A record may go back to QUEUED or RETRY with its message. It ends once, but for a failed one that is sent again.
STORY = re.compile(r"([QR]*F(?=Q))*[QR]*[SFC]?")
ENDS = frozenset("SFC")


class Log:
    """Reads the append-only files of a Valkey as they grow.

    The server begins a new one when it writes what it holds to a file of its own, and removes the last one then, so
    read before that.

    Args:
        folder: that of the server.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        #: The file that is being read, and how far; it stays open, because the server may remove it.
        self._path: Path | None = None
        self._file: BinaryIO = io.BytesIO()
        self._at = 0
        #: Id -> a letter for each status that was written.
        self.stories: dict[str, str] = defaultdict(str)

    def read(self) -> None:
        """Reads what was written since."""
        files = sorted(self._folder.glob("appendonlydir/*.incr.aof"), key=_number)
        self._read_on()
        for path in files:
            if self._path is None or _number(path) > _number(self._path):
                self._file.close()
                self._path, self._file, self._at = path, path.open("rb"), 0
                self._read_on()

    def close(self) -> None:
        """Reads no more."""
        self._file.close()

    @property
    def size(self) -> int:
        """Bytes read of the present file."""
        return self._at

    def _read_on(self) -> None:
        file = self._file
        file.seek(self._at)
        pending: list[list[bytes]] | None = None
        while (command := _command(file)) is not None:
            word = command[0].upper()
            if word == b"MULTI":
                pending = []
                continue
            # What is left of a transaction without its end does not count when Redis starts again.
            if pending is not None and word != b"EXEC":
                pending.append(command)
                continue
            for one in [command] if pending is None else pending:
                self._note(one)
            pending = None
            self._at = file.tell()

    def _note(self, command: list[bytes]) -> None:
        if command[0].upper() != b"SET" or not command[1].startswith(_RECORD):
            return
        if (found := _STATUS.match(command[2])) is not None and (letter := LETTERS.get(found[1])) is not None:
            task_id = command[1][len(_RECORD) :].decode()
            # A story of an hour may have many turns; the same status twice in a row tells nothing but for an end.
            if letter in ENDS or not self.stories[task_id].endswith(letter):
                self.stories[task_id] += letter

    def open(self) -> int:
        """Number of tasks that have not ended."""
        return sum(story[-1:] not in ENDS for story in self.stories.values())


def _number(path: Path) -> int:
    """``appendonly.aof.12.incr.aof`` -> 12."""
    return int(path.name.split(".")[2])


def _command(file: BinaryIO) -> list[bytes] | None:
    """The next command; None if it is not there as a whole."""
    head = file.readline()
    while head.startswith(b"#"):
        head = file.readline()
    if not head.startswith(b"*") or not head.endswith(b"\n"):
        return None
    words = []
    for _ in range(int(head[1:])):
        size = file.readline()
        if not size.startswith(b"$") or not size.endswith(b"\n"):
            return None
        text = file.read(int(size[1:]) + 2)
        if len(text) < int(size[1:]) + 2:
            return None
        words.append(text[:-2])
    return words


class Ledgers:
    """What the producers noted."""

    def __init__(self, paths: list[Path]) -> None:
        #: Id -> pipeline, number of its input, and kind.
        self.wanted: dict[str, tuple[str, int, str]] = {}
        self.accepted: set[str] = set()
        self.cancelled: set[str] = set()
        #: Idempotency key -> ids.
        self.of_key: dict[str, set[str]] = defaultdict(set)
        self.errors: list[str] = []
        for line in _lines(paths):
            ids = line.get("ids", ())
            if line["what"] in ("want", "key"):
                for task_id, number in zip(ids, line["numbers"], strict=True):
                    self.wanted[task_id] = line["pipeline"], number, line.get("kind", "key")
            if line["what"] in ("ok", "key"):
                self.accepted.update(ids)
            if line["what"] == "key":
                self.of_key[line["key"]].update(ids)
            elif line["what"] == "cancel":
                self.cancelled.update(ids)
            elif line["what"] == "error":
                self.errors.append(line["error"])


def _lines(paths: list[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        for line in path.read_text().splitlines():
            try:
                found = json.loads(line)
            except ValueError:
                continue  # the process was killed while it wrote it
            yield found
