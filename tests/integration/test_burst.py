"""Many tasks that fail together: what a worker holds for them until all are stored."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest
import redis
from pipeq import Client, State
from pipeq.contract.errors import PipeqError

from tests.host import Host

PIPELINE = "it"
COUNT = 100
#: What a task that failed may hold until it is stored. It is some 17 KB; with a copy of the frames of Celery's tracer,
#: 365.
MOST_BYTES = 30_000


@pytest.fixture
def host(valkey_url: str) -> Iterator[Host]:
    with redis.Redis.from_url(valkey_url) as db:
        db.flushdb()
    host = Host(valkey_url, PIPELINE, retry_backoff_s=1000)
    yield host
    host.stop()


@pytest.mark.parametrize("is_retryable", [False, True])
def test_tasks_that_fail_together_hold_little(client: Client, host: Host, is_retryable: bool) -> None:
    ids = client.submit_many(PIPELINE, ["x"] * (COUNT + 1), check=False)

    def fail(count: int) -> int:
        """Has so many tasks fail, and returns how much memory that took at most."""
        assert host.take(count) == count
        tasks = list(host.hands.tasks)
        for one in tasks:
            host.hands.begin(one)
            one.fail(PipeqError("input_unavailable", "the store is away", is_retryable))
        host.hands.tasks.clear()
        tracemalloc.start()
        try:
            host.runtime._deliver(tasks)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    fail(1)  # what is made once
    assert fail(COUNT) < COUNT * MOST_BYTES
    state = State.RETRYING if is_retryable else State.FAILED
    assert {one.state for one in client.status_many(ids)} == {state}
