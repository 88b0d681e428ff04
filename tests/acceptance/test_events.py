"""The stream of state changes, of real workers: each change is one event, in order, also when processes are killed."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from celery import Celery
from pipeq import Client, State
from pipeq.contract import keys
from pipeq.demo import embedded

from tests.slow_worker import PIPELINE, serving
from tests.worker_process import WorkerProcess

QUEUED, RUNNING, RETRYING = State.QUEUED, State.RUNNING, State.RETRYING
SUCCEEDED, FAILED, CANCELLED, EXPIRED = State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED


@dataclass
class Served:
    process: WorkerProcess
    client: Client
    url: str
    folder: Path

    def told(self, task_id: str) -> list[State]:
        """The states that the events of a task told; the last one is that of its status."""
        found = [one for one in self.client.events("0", timeout_s=0) if one.task_id == task_id]
        status = self.client.status(task_id)
        assert found[-1].state is status.state
        assert {one.pipeline for one in found} <= {PIPELINE, None}
        if status.state.is_final:
            assert found[-1].worker == status.worker
            assert found[-1].code == (status.error.code if status.error else None)
        return [one.state for one in found]

    def ends(self, value: str, **options: object) -> list[State]:
        task = self.client.submit(PIPELINE, value, **options)  # type: ignore[arg-type]
        self.client.wait(task, timeout_s=120)
        return self.told(task)

    def runs(self, task_id: str) -> None:
        deadline = time.monotonic() + 60
        while self.client.status(task_id).state is not RUNNING and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self.client.status(task_id).state is RUNNING


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("events")
    with embedded.valkey() as url, serving(folder, url) as process, Client(url) as client:
        process.wait_ready(client, PIPELINE)
        client.keep_events(1_000_000)
        yield Served(process, client, url, folder)


def test_each_way_through(served: Served) -> None:
    client = served.client
    assert served.ends("x") == [QUEUED, RUNNING, SUCCEEDED]
    assert served.ends("x", delay_s=0.2) == [QUEUED, RUNNING, SUCCEEDED]
    assert served.ends("x", params={"nonsense": 1}) == [QUEUED, FAILED]
    assert served.ends("fails=prepare") == [QUEUED, FAILED]
    assert served.ends("fails=deliver") == [QUEUED, RUNNING, FAILED]
    once = served.folder / "once"
    assert served.ends(f"away_in_prepare={once}") == [QUEUED, RETRYING, RUNNING, SUCCEEDED]
    assert served.ends(f"away_in_deliver={once}-more") == [QUEUED, RUNNING, RETRYING, RUNNING, SUCCEEDED]
    assert served.ends(["x"] * 20) == [QUEUED, RUNNING, SUCCEEDED]  # type: ignore[arg-type]
    task = client.submit(PIPELINE, "fails=deliver")
    client.wait(task, 60)
    client.dead(ids=[task]).retry()
    client.wait(task, 60)
    assert served.told(task) == [QUEUED, RUNNING, FAILED, QUEUED, RUNNING, FAILED]
    attempts = [one.attempt for one in client.events("0", timeout_s=0) if one.task_id == task]
    assert attempts == [None, 1, 1, 1, 2, 2]


def test_a_task_that_is_cancelled_or_expires(served: Served) -> None:
    client = served.client
    task = client.submit(PIPELINE, "forward=20")
    served.runs(task)
    late = client.submit(PIPELINE, "x", expires_s=0.1, priority=9)
    waits = client.submit(PIPELINE, "x", priority=9)
    client.cancel(waits)
    client.cancel(task)
    assert served.told(task) == [QUEUED, RUNNING, CANCELLED]
    assert served.told(waits) == [QUEUED, CANCELLED]
    deadline = time.monotonic() + 60
    while client.status(late).finished_at is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert served.told(late) == [QUEUED, EXPIRED]


def test_a_process_that_dies(served: Served) -> None:
    once = served.folder / "dies"
    assert served.ends(f"dies_in_forward={once}") == [QUEUED, RUNNING, QUEUED, RUNNING, SUCCEEDED]
    again = [QUEUED, RUNNING]
    assert served.ends("dies_in_forward=/always") == [*again, *again, QUEUED, FAILED]


def test_a_stock_celery_producer(served: Served) -> None:
    with Celery(broker=served.url, backend=served.url, set_as_current=False) as app:
        sent = app.send_task("pipeq.infer", kwargs={"pipeline": PIPELINE, "inputs": "x"}, queue=PIPELINE)
        assert sent.get(timeout=60) == "x"
        assert served.told(sent.id) == [RUNNING, SUCCEEDED]
        sent.forget()
        app.backend.client.close()


def test_the_switch_may_be_turned_at_any_time(served: Served) -> None:
    client = served.client
    client.keep_events(0)
    with redis.Redis.from_url(served.url) as db:
        ids = client.submit_many(PIPELINE, ["x"] * 20, priority=0)
        for _ in client.as_completed(ids, 60):
            pass
        assert not db.exists(keys.EVENTS)
    client.keep_events(1_000_000)
    client.submit(PIPELINE, "x")  # the client learns of it with the answer
    assert served.ends("x") == [QUEUED, RUNNING, SUCCEEDED]


def test_many_tasks_have_three_events_each(served: Served) -> None:
    ids = served.client.submit_many(PIPELINE, ["x"] * 2000, priority=0)
    ended = list(served.client.as_completed(ids, 200))
    assert [one.error for one in ended if one.state is not SUCCEEDED] == []
    found: dict[str, list[State]] = {}
    for one in served.client.events("0", timeout_s=0):
        found.setdefault(one.task_id, []).append(one.state)
    assert {tuple(found[one]) for one in ids} == {(QUEUED, RUNNING, SUCCEEDED)}


def test_a_worker_that_is_killed_or_gives_back(tmp_path: Path, redis_url: str) -> None:
    with Client(redis_url) as client:
        client.keep_events(100_000)
        with serving(tmp_path, redis_url) as process:
            first = Served(process, client, redis_url, tmp_path)
            process.wait_ready(client, PIPELINE)
            ids = client.submit_many(PIPELINE, ["forward=0.3 prepare=0.01"] * 30, priority=0)
            first.runs(ids[0])
            process.process.send_signal(signal.SIGKILL)
            process.process.wait()
        with serving(tmp_path, redis_url) as process:
            second = Served(process, client, redis_url, tmp_path)
            client.wait(ids[0], 120)
            process.stop()
        with serving(tmp_path, redis_url):
            for _ in client.as_completed(ids, 200):
                pass
        told = [second.told(task) for task in ids]
        for states in told:
            # Begun again by another worker: running follows running. Given back: queued follows running.
            assert (states[0], states[-1]) == (QUEUED, SUCCEEDED)
            assert states.count(SUCCEEDED) == 1
            assert all(states[at - 1] is RUNNING for at in range(1, len(states)) if states[at] is QUEUED)
        assert [QUEUED, RUNNING, RUNNING, SUCCEEDED] in told
