"""What is known of a task's times outside of a worker."""

from __future__ import annotations

from typing import Any

import pytest
from pipeq.contract.times import of_ended_by_client, waited


@pytest.mark.parametrize(
    ("due_at", "until", "more_s", "times"),
    [
        (None, 12.0, 0.0, {"queued": 2000}),
        (None, 12.0, 0.5, {"queued": 2500}),
        (11.5, 12.0, 0.0, {"delayed": 1500, "queued": 500}),
        # Before its time it is not queued.
        (99.0, 12.0, 0.0, {"delayed": 2000, "queued": 0}),
        (5.0, 12.0, 0.0, {"queued": 2000}),
        # The clock of the worker is behind that of the producer: nothing is below 0.
        (None, 9.0, 0.0, {"queued": 0}),
        (11.0, 9.0, 0.25, {"queued": 250}),
    ],
)
def test_a_wait_is_delayed_until_it_could_be_taken(
    due_at: float | None, until: float, more_s: float, times: dict[str, float]
) -> None:
    assert waited(10.0, due_at, until, more_s) == times


@pytest.mark.parametrize(
    ("began_at", "before", "times"),
    [
        (None, None, {"queued": 10_000}),
        (14.0, None, {"queued": 4000, "infer": 6000}),
        (
            14.0,
            {"prepare": 1000, "wait_device": 500.5},
            {"queued": 2499.5, "prepare": 1000, "wait_device": 500.5, "infer": 6000},
        ),
        (14.0, {"prepare": 9e9, "wait_device": "x"}, {"queued": 4000, "infer": 6000}),
        (14.0, {"prepare": -1, "wait_device": float("nan")}, {"queued": 4000, "infer": 6000}),
        (14.0, [], {"queued": 4000, "infer": 6000}),
        (25.0, None, {"queued": 15_000, "infer": 0}),
        ("x", None, {"queued": 10_000}),
    ],
)
def test_a_client_tells_what_the_mark_says(began_at: Any, before: Any, times: dict[str, float]) -> None:
    assert of_ended_by_client(10.0, None, 20.0, began_at, before) == times


@pytest.mark.parametrize("submitted_at", [None, "x", True, [], float("nan")])
def test_without_a_submit_there_is_nothing_to_add_up(submitted_at: Any) -> None:
    assert of_ended_by_client(submitted_at, 5.0, 20.0) is None
