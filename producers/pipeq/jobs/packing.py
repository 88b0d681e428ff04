"""PACKING: rows of the input -> packs. Before: the readers. After: store.

A pack should be a few good batches: large enough that its price is nothing beside that of its rows, small enough that a
slow worker is not left with hours. What a row costs is not known here, so it is guessed: from its bytes, from the
number of references (a picture or a recording is work for a good part of a second), and from whether the pipeline
generates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pipeq.contract.errors import PipeqError
from pipeq.contract.pack import PackRow

#: Most rows of a pack; fewer for pipelines that generate.
ROWS, ROWS_GENERATED = 256, 32
#: Most bytes of a pack: a quarter of what a message may have, so that base64 and the envelope fit, too.
BYTES = 64 * 2**10
#: What a reference counts as, in bytes.
REF_BYTES = 4 * 2**10


class Line(msgspec.Struct, frozen=True):
    """One line of the input: a row, or the reason why it is none."""

    number: int
    row: PackRow | None
    #: The row as JSON; empty if it is none.
    text: str = ""
    #: Its bytes as UTF-8.
    nbytes: int = 0
    error: PipeqError | None = None
    custom_id: str | None = None

    @property
    def cost(self) -> int:
        """What the row is guessed to cost, in bytes."""
        text, count = self.text, self.nbytes
        if '"uri"' in text or '"base64"' in text:
            count += REF_BYTES * (text.count('"uri"') + text.count('"base64"'))
        return count


@dataclass
class Pack:
    """Rows that travel together."""

    rows: list[PackRow] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    #: What was wrong with lines between its rows.
    wrong: list[dict[str, Any]] = field(default_factory=list)
    cost: int = 0
    #: The number of the last line that belongs to it.
    last_line: int = 0

    def add(self, line: Line, cost: int) -> None:
        """Adds a line."""
        self.last_line = line.number
        if line.row is None:
            assert line.error is not None
            error = {"code": line.error.code, "message": line.error.message, "retryable": False}
            self.wrong.append({"row": None, "line": line.number, "custom_id": line.custom_id, "error": error})
            return
        self.rows.append(line.row)
        self.texts.append(line.text)
        self.cost += cost


def packs(lines: Iterable[Line | None], most_rows: int, most_bytes: int = BYTES) -> Iterator[Pack | None]:
    """Groups lines to packs, in order. Each line is in one of them.

    Args:
        lines: of the input; None, where more of it must be taken first, is passed on.
        most_rows: most rows of a pack.
        most_bytes: most bytes of its rows; a row that alone has more is a pack of its own.
    """
    pack = Pack()
    for line in lines:
        if line is None:
            yield None
            continue
        full, cost = len(pack.rows) >= most_rows or len(pack.wrong) >= 1000, line.cost
        if full or (pack.rows and line.row is not None and pack.cost + cost > most_bytes):
            yield pack
            pack = Pack()
        pack.add(line, cost)
    if pack.rows or pack.wrong:
        yield pack


def most_rows(task_type: str | None) -> int:
    """Most rows of a pack for pipelines of a task type; None if that is not known."""
    generates = task_type is not None and any(
        word in task_type for word in ("generation", "text-to", "to-text", "summarization", "translation", "any-to-any")
    )
    return ROWS_GENERATED if generates else ROWS
