"""READING: bytes from Redis -> JSON, or nothing. Before: any GET, HGET, LRANGE ... After: a check of the fields.

Any client with write access to Redis can store anything there: text that is no JSON, 50,000 brackets, numbers of 5,000
digits. The values that these functions return are plain Python of bounded depth, and their numbers fit into a float.
Their fields are not checked yet.

msgspec reads nearly every text, in a quarter of the time of Python's json. It accepts less: no NaN, no lone surrogates,
no number beyond a float. What it refuses is read again by json, so that its rules, which are Python's, hold for all.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import msgspec

#: Deepest nesting that is read. json, pydantic and cjson have limits of their own, each with another error.
MAX_DEPTH = 200
#: Most digits of an integer: the largest float has 309.
MAX_DIGITS = 300

_LONG_NUMBER = re.compile(rb"[0-9]{%d}" % (MAX_DIGITS + 1))
#: One without end goes on to the end of all: looked for again from each quotation mark in it, it would take minutes.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_BRACKET = re.compile(rb"[\[{\]}]")
#: One of so many bytes is looked at for a long number: of a long one, so many samples in a row are digits. Two steps
#: without a common factor, because the rows of a pack may be as long as one of them, with a digit at the same place.
_SAMPLES = [(step, re.compile(rb"[0-9]{%d}" % (MAX_DIGITS // step))) for step in (47, 37)]
#: All bytes but brackets and quotation marks; a text of which nothing else is left; and how often pairs are taken out.
_NO_MARKS = bytes(set(range(256)) - set(b'[{]}"'))
_TEXT = re.compile(rb'"[^"]*+"')
_PASSES = 4
_decode = msgspec.json.Decoder().decode


class UnreadableError(ValueError):
    """The text is no JSON that can be read. The argument gives the reason."""


def json_value(raw: bytes | str | None, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Parses any JSON.

    Args:
        raw: the text, or its UTF-8.
        object_hook: as in :func:`json.loads`: converts objects.

    Raises:
        UnreadableError: there is nothing, or it is no JSON, is nested too deep, or has an integer of too many digits.
    """
    if raw is None:
        raise UnreadableError("there is nothing")
    if isinstance(raw, str):
        raw = raw.encode("utf-8", "surrogatepass")
    if _depth_is_over(raw):
        raise UnreadableError(f"it is nested deeper than {MAX_DEPTH} levels")
    has_long_number = _has_long_number(raw)
    if object_hook is None and not has_long_number:
        try:
            return _decode(raw)
        except (ValueError, RecursionError):
            pass
    try:
        # Calling a function for each integer costs time, so it is used only if there is a long run of digits.
        parse_int = _integer if has_long_number else None
        # Decoded strictly, because json would also accept UTF-16 and UTF-32, whose brackets and digits are not counted
        # above.
        return json.loads(raw.decode(), parse_int=parse_int, object_hook=object_hook)
    except UnreadableError:
        raise
    except (ValueError, RecursionError) as error:
        raise UnreadableError("it is no JSON") from error


def is_bounded(raw: bytes) -> bool:
    """Whether a text keeps to the limits of depth and digits, if it is JSON."""
    return not _depth_is_over(raw) and not _has_long_number(raw)


def readable(raw: bytes | str | None) -> Any:
    """Parses any JSON as :func:`json_value` does, and replaces lone surrogates by U+FFFD.

    Lone surrogates can be neither printed nor stored.

    Raises:
        UnreadableError: as :func:`json_value` raises.
    """
    value = json_value(raw)
    # Escaped pairs have become characters by now. Lone surrogates are searched for only if the text has an escaped one.
    if isinstance(raw, str):
        raw = raw.encode("utf-8", "surrogatepass")
    return _mended(value) if raw and _SURROGATE.search(raw) else value


def readable_object(raw: bytes | str | None) -> dict[str, Any] | None:
    """Parses a JSON object as :func:`readable` does; returns None for anything else. Never raises."""
    try:
        value = readable(raw)
    except UnreadableError:
        return None
    return value if isinstance(value, dict) else None


def json_object(raw: bytes | str | None) -> dict[str, Any] | None:
    """Parses a JSON object; returns None for anything else. Never raises."""
    try:
        value = json_value(raw)
    except UnreadableError:
        return None
    return value if isinstance(value, dict) else None


def number(value: object) -> float | None:
    """Returns a finite number as a float; None for anything else, booleans included. Never raises."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_mended(item) for item in value]
    if isinstance(value, dict):
        return {_mended(name): _mended(item) for name, item in value.items()}
    return value


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise UnreadableError(f"it holds an integer of more than {MAX_DIGITS} digits")
    return int(digits)


def _has_long_number(raw: bytes) -> bool:
    # The samples settle it for nearly every record and message that has so many bytes at all.
    if len(raw) <= MAX_DIGITS or not all(many.search(raw[::step]) for step, many in _SAMPLES):
        return False
    return _LONG_NUMBER.search(raw) is not None


def _depth_is_over(raw: bytes) -> bool:
    # Few brackets cannot nest deep, which settles it for nearly every record and message.
    if len(raw) <= MAX_DEPTH or raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH or _is_wide(raw):
        return False
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub(b"", raw)):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


def _is_wide(raw: bytes) -> bool:
    """Whether many brackets surely stand beside each other, as in the rows of a pack. A tenth of the time of a count.

    Two brackets with nothing between them but what is no bracket make one level. Without all such pairs, the rest is
    less deep by one, and it is no deeper than it has brackets that open.
    """
    if b"\\" in raw:
        # In front of a quotation mark an odd number of backslashes says that the text goes on.
        raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    left = raw.translate(None, _NO_MARKS).replace(b'""', b"")
    if b'"' in left:
        left = _TEXT.sub(b"", left)  # texts that hold brackets
        if b'"' in left:
            return False  # one has no end
    for passes in range(1, _PASSES + 1):
        left = left.replace(b"{}", b"").replace(b"[]", b"")
        if left.count(b"[") + left.count(b"{") + 2 * passes <= MAX_DEPTH:
            return True
    return False
