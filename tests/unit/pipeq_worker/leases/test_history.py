"""What the front of a message tells of its past."""

from __future__ import annotations

import pytest
from pipeq.contract.reading import json_value
from pipeq_worker.leases.history import history_of


@pytest.mark.parametrize(
    ("front", "lapses", "charged", "deaths"),
    [
        ("", 0, 0, 0),
        (" ", 0, 0, 0),
        ("  ", 0, 0, 0),
        (" \t", 1, 0, 1),
        ("  \t\t", 2, 0, 1),
        (" \t\t\r", 2, 1, 2),
        (" \t\t\t\r\r", 3, 2, 3),
        (" \r", 0, 1, 0),
        ("\t", 1, 0, 1),
    ],
)
def test_history(front: str, lapses: int, charged: int, deaths: int) -> None:
    raw = (front + '{"a": " \\t\\r"}').encode()
    found = history_of(raw)
    assert (found.lapses, found.charged, found.deaths) == (lapses, charged, deaths)
    assert json_value(raw) == {"a": " \t\r"}
