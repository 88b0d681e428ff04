"""Whether two pipeline outputs are the same answer: the tolerance that the whole suite uses."""

from __future__ import annotations

import json
import math
from typing import Any

ABSOLUTE, RELATIVE = 1e-5, 1e-4


def plain(value: Any) -> Any:
    """A round trip through JSON: tuples become lists, numpy scalars numbers."""
    return json.loads(json.dumps(value, default=lambda other: other.tolist()))


def assert_same(got: Any, want: Any, where: str = "result") -> None:
    """Labels and texts equal, numbers within 1e-5 absolute plus 1e-4 relative."""
    if isinstance(want, dict):
        assert isinstance(got, dict), where
        assert got.keys() == want.keys(), where
        for key in want:
            assert_same(got[key], want[key], f"{where}.{key}")
    elif isinstance(want, list):
        assert isinstance(got, list), where
        assert len(got) == len(want), where
        for at, (mine, theirs) in enumerate(zip(got, want, strict=True)):
            assert_same(mine, theirs, f"{where}[{at}]")
    elif isinstance(want, float):
        assert math.isclose(got, want, rel_tol=RELATIVE, abs_tol=ABSOLUTE), f"{where}: {got} is not {want}"
    else:
        assert got == want, f"{where}: {got!r} is not {want!r}"
