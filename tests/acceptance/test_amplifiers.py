"""Small messages that cause much work are refused beyond a limit, and do not delay other tasks below it."""

from __future__ import annotations

import time

import pytest
from pipeq import Client, State

from tests.acceptance.conftest import PREPARE_THREADS, Service

TASK = "zero-shot-classification"


@pytest.fixture
def client(service: Service) -> Client:
    return service.client


def test_more_items_than_a_task_may_have_are_refused_at_once(client: Client) -> None:
    began = time.monotonic()
    labels = [f"l{at}" for at in range(1000)]
    tasks = [client.submit(TASK, ["x"] * 20_000, params={"candidate_labels": labels}) for _ in range(2)]
    for task in tasks:
        error = client.wait(task, timeout_s=30).error
        assert error is not None
        assert error.code == "input_too_large"
        assert "max_items" in error.message
    assert time.monotonic() - began < 30


def test_large_tasks_hold_up_nobody_and_end_when_they_are_cancelled(client: Client) -> None:
    labels = [f"l{at}" for at in range(500)]
    large = [client.submit(TASK, ["fox"] * 40, params={"candidate_labels": labels}) for _ in range(PREPARE_THREADS)]
    while not all(status.state is State.RUNNING for status in client.status_many(large)):
        time.sleep(0.05)
    few = {"candidate_labels": ["fox", "dog"]}
    for _ in range(3):
        assert client.result(client.submit(TASK, "dog", params=few), timeout_s=30)["labels"]
    assert not any(status.is_final for status in client.status_many(large))
    for task in large:
        assert client.cancel(task).state is State.CANCELLED
    deadline = time.monotonic() + 30
    while any(queue.in_flight for queue in client.queues()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
