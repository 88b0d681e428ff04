"""WRITING: values -> JSON in UTF-8. After: any SET, HSET, PUBLISH ...; :mod:`pipeq.contract.reading` reads it.

The text means what ``json.dumps(value, ensure_ascii=False, allow_nan=False)`` writes. msgspec writes nearly every
value, in a tenth of the time; json writes, or refuses, the others.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode


def to_json(value: Any, *, is_finite: bool = False) -> bytes:
    """Writes JSON.

    Args:
        value: numbers, texts, lists, dictionaries, nested.
        is_finite: whether it surely holds no NaN and no infinity, so that they are not searched for.

    Raises:
        ValueError: it holds NaN, infinity, or half of a surrogate pair.
        TypeError: it holds an object that JSON does not have.
    """
    try:
        text = _encode(value)
    except (ValueError, TypeError, OverflowError, RecursionError):
        # Integers of more than 64 bits, subclasses of numbers and texts, keys that are no texts.
        return _strictly(value)
    # msgspec writes NaN and infinity as null. It would also write bytes, dates, sets and the like, which json refuses:
    # callers have converted them before.
    return _strictly(value) if not is_finite and b"null" in text else text


def _strictly(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
