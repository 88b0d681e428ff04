"""Compares two pipeline outputs, with the tolerance that the whole suite uses."""

from __future__ import annotations

import json
from typing import Any

from pipeq_worker.doctor.compare import differences


def plain(value: Any) -> Any:
    """A round trip through JSON: tuples become lists, numpy scalars numbers."""
    return json.loads(json.dumps(value, default=lambda other: other.tolist()))


def assert_same(got: Any, want: Any) -> None:
    """Labels and texts equal, numbers within 1e-5 absolute plus 1e-4 relative."""
    found = list(differences(got, want))
    assert not found, "; ".join(found[:5])
