"""Whether the times of a task add up."""

from __future__ import annotations

import pytest
from pipeq import TaskStatus
from pipeq.contract.times import PARTS

#: How far the sum may be off, in milliseconds.
OFF_MS = 5.0


def adds_up(status: TaskStatus) -> dict[str, float]:
    """Checks the sum of a task that has ended, and returns its parts."""
    assert status.is_final, status
    assert status.submitted_at is not None
    assert status.finished_at is not None
    assert status.timing_ms is not None, status
    whole = (status.finished_at - status.submitted_at) * 1000
    assert sum(status.timing_ms.values()) == pytest.approx(whole, abs=OFF_MS), status
    assert list(status.timing_ms) == [part for part in PARTS if part in status.timing_ms]
    assert min(status.timing_ms.values()) >= 0, status
    return status.timing_ms
