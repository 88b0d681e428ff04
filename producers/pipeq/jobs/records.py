"""RECORDS: what the sources of a job yield beside records, and what is wrong with lines. Used by readers, tables."""

from __future__ import annotations

import codecs
from typing import Any, Final

from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError

#: A line that is no record: blank, or a further line of the record before. It only counts.
NOTHING: Final = object()
#: No record, and no line: what was taken of an asynchronous input is used up, and more must be taken of it first.
DRY: Final = object()
#: Longest line that is kept, in bytes; of a longer one only its error.
LINE_BYTES = 8 * 2**20


class Header(tuple[str, ...]):
    """The names of the columns, where the first line of a table has them. It is no record."""

    __slots__ = ()


def is_record(found: Any) -> bool:
    """Whether what a source yields is a record."""
    return found is not NOTHING and type(found) is not Header and not isinstance(found, PipeqError)


def refuse_utf_16(data: bytes) -> None:
    """Raises if a file begins as one in UTF-16 does."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        sentence = "it is written in UTF-16, and is read as UTF-8: convert it first (iconv -f UTF-16 -t UTF-8)"
        raise PipeqError(ErrorCode.INVALID_INPUT, sentence)


def not_utf_8(at: int, byte: int) -> PipeqError:
    """The error of a line with a byte, behind so many others, that cannot stand there in UTF-8."""
    where = f"byte {byte:#04x} after {shown.count(at, 'other')}"
    sentence = f"it is not UTF-8 ({where}): convert the file first (iconv -t UTF-8)"
    return PipeqError(ErrorCode.INVALID_INPUT, sentence)
