"""Values of every kind, for the arguments of public calls."""

from __future__ import annotations

import math
from typing import Any


class Odd:
    """A value that is no JSON, and whose repr raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


LOOP: list[Any] = []
LOOP.append(LOOP)
DEEP: Any = []
for _ in range(50_000):
    DEEP = [DEEP]
#: Values of every kind.
ODD: dict[str, Any] = {
    "none": None,
    "true": True,
    "int": 5,
    "negative": -1,
    "huge": 10**5000,
    "float": 2.5,
    "nan": math.nan,
    "inf": math.inf,
    "empty": "",
    "text": "text",
    "surrogate": "\udc80",
    "escape": "\x1b[2J\n",
    "long": "x" * 300_000,
    "bytes": b"bytes",
    "list": [1],
    "nested": [[None]],
    "loop": LOOP,
    "deep": DEEP,
    "set": {1, 2},
    "mapping": {"a": 1},
    "wrong keys": {1: 2, b"x": 3},
    "not json": {"a": object()},
    "object": Odd(),
    "class": int,
    "generator": (n for n in [1]),
}
