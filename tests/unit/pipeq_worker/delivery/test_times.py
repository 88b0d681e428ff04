"""The parts of a task's life add up to it, whatever the clocks say. More of that, with workers: tests/acceptance."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq_worker.delivery.times import times_of

#: By the monotonic clock and in seconds since the epoch: when a message arrived.
ARRIVED, RECEIVED = 100.0, 5000.0
#: What a child tells of its work, which took 200 ms and began 50 ms after that.
WORKED = {"prepare": 50.0, "wait_device": 40.0, "infer": 100.0, "deliver": 10.0}


@pytest.mark.parametrize("apart_s", [0.0, 0.02, -0.02, 0.3])
@pytest.mark.parametrize("error", [None, PipeqError(ErrorCode.INFERENCE_FAILED, "broken")])
def test_they_add_up_when_the_two_clocks_were_read_a_moment_apart(apart_s: float, error: PipeqError | None) -> None:
    delivery: Any = SimpleNamespace(
        arrived=ARRIVED, received_at=RECEIVED + apart_s, began=ARRIVED + 0.05, timing_ms=WORKED, error=error,
        before=None, sent_at=RECEIVED - 1, tried_until=None, was_lost=False,
    )  # fmt: skip
    ended_at = RECEIVED + 0.251
    found = times_of(delivery, ended_at)
    assert list(found) == ["queued", *WORKED]
    assert sum(found.values()) == pytest.approx((ended_at - delivery.sent_at) * 1000, abs=0.01)
    assert min(found.values()) >= 0
