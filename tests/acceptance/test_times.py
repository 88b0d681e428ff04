"""``timing_ms`` adds up to ``finished_at`` minus ``submitted_at``, whatever way a task takes through real workers.

The inputs say how long each stage takes, and what goes wrong there: tests/slow_worker.py.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from pipeq import Client, Ref, State, TaskStatus
from pipeq.contract import keys
from pipeq.demo import embedded

from tests.slow_worker import PIPELINE, serving
from tests.times import OFF_MS, adds_up
from tests.worker_process import WorkerProcess

#: A message comes back once the heartbeat of its worker has lapsed, so that this counts as dead.
LEASE_S = keys.WORKER_TTL_S + 1


@dataclass
class Served:
    process: WorkerProcess
    client: Client
    url: str
    folder: Path

    def ends(self, value: Any, **options: Any) -> TaskStatus:
        return self.client.wait(self.client.submit(PIPELINE, value, **options), timeout_s=120)

    def once(self, name: str) -> Path:
        """A file that is not there yet."""
        path = self.folder / name
        path.unlink(missing_ok=True)
        return path


@pytest.fixture(scope="module", params=[0, 1], ids=["one child", "prepare process"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("times")
    with (
        embedded.valkey() as url,
        serving(folder, url, prepare_processes=request.param) as process,
        Client(url) as client,
    ):
        process.wait_ready(client, PIPELINE)
        yield Served(process, client, url, folder)


def test_each_part_is_what_its_name_says(served: Served) -> None:
    found = adds_up(served.ends("prepare=0.2 forward=0.3 deliver=0.1"))
    assert list(found) == ["queued", "prepare", "wait_device", "infer", "deliver"]
    assert found["prepare"] >= 200
    assert found["infer"] >= 300
    assert found["deliver"] >= 100


def test_inputs_that_are_read(served: Served) -> None:
    path = served.folder / "input.txt"
    path.write_text("forward=0.05")
    found = adds_up(served.ends([Ref.from_path(path)] * 3))
    assert {"fetch", "decode", "prepare"} <= found.keys()


@pytest.mark.parametrize("count", [1, 2, 5, 60])
def test_lists(served: Served, count: int) -> None:
    found = adds_up(served.ends(["prepare=0.01 forward=0.02"] * count))
    # The passes are counted whole, although items are prepared meanwhile.
    assert found["infer"] >= 20 * -(-count // 4) - 1


@pytest.mark.parametrize("count", [2, 9, 100])
def test_many_items_of_one_input(served: Served, count: int) -> None:
    found = adds_up(served.ends(f"items={count} prepare=0.002 forward=0.01"))
    assert found["infer"] >= 10 * -(-count // 4) - 1


def test_tasks_that_share_batches_and_wait_for_each_other(served: Served) -> None:
    ids = served.client.submit_many(PIPELINE, ["forward=0.1"] * 20, priority=0)
    found = [adds_up(status) for status in served.client.as_completed(ids, timeout_s=60)]
    assert max(one["wait_device"] for one in found) >= 300


def test_a_worker_that_is_full_lets_them_queue(served: Served) -> None:
    ids = served.client.submit_many(PIPELINE, ["prepare=0.02"] * 60, priority=0)
    found = [adds_up(status) for status in served.client.as_completed(ids, timeout_s=60)]
    # Preparing them takes a second and more on one thread.
    assert max(one["queued"] for one in found) > min(one["queued"] for one in found)


@pytest.mark.parametrize("stage", ["prepare", "forward", "deliver"])
def test_what_fails_lasts_until_its_end_in_the_part_in_which_it_failed(served: Served, stage: str) -> None:
    status = served.ends(f"{stage}=0.1 fails={stage}")
    assert status.state is State.FAILED
    found = adds_up(status)
    part = "infer" if stage == "forward" else stage
    assert next(reversed(found)) == part
    assert found[part] >= 100
    assert status.history[-1].stage == part


@pytest.mark.parametrize(
    ("inputs", "params", "part"),
    [
        ("x", {"nonsense": 1}, "prepare"),
        ({"uri": "file:///no/such/place"}, {}, "fetch"),
        ([{"base64": "//79"}], {}, "decode"),
    ],
)
def test_what_fails_before_it_is_prepared(served: Served, inputs: Any, params: dict[str, Any], part: str) -> None:
    status = served.ends(inputs, params=params)
    assert status.state is State.FAILED, status
    assert next(reversed(adds_up(status))) == part


def test_a_delay_is_not_the_queue(served: Served) -> None:
    status = served.ends("x", delay_s=0.7)
    found = adds_up(status)
    assert found["delayed"] == pytest.approx(700, abs=OFF_MS)
    assert status.due_at is not None
    assert status.submitted_at is not None
    assert status.due_at - status.submitted_at == pytest.approx(0.7)


@pytest.mark.parametrize("stage", ["prepare", "deliver"])
def test_earlier_tries_and_the_wait_after_them_are_delayed(served: Served, stage: str) -> None:
    task = served.client.submit(PIPELINE, f"{stage}=0.1 away_in_{stage}={served.once(f'away-{stage}')}")
    deadline = time.monotonic() + 30
    while (waiting := served.client.status(task)).state is not State.RETRYING and time.monotonic() < deadline:
        time.sleep(0.01)
    assert waiting.state is State.RETRYING
    assert waiting.due_at is not None
    status = served.client.wait(task, 60)
    assert (status.state, status.attempts, status.due_at) == (State.SUCCEEDED, 2, waiting.due_at)
    found = adds_up(status)
    assert found["delayed"] == pytest.approx((status.due_at - status.submitted_at) * 1000, abs=OFF_MS)
    assert found["delayed"] >= 100 - OFF_MS


def test_a_task_that_gets_a_new_life_counts_from_then(served: Served) -> None:
    status = served.ends("prepare=0.05 fails=prepare", delay_s=0.2)
    assert adds_up(status)["delayed"] > 190
    served.client.dead(ids=[status.id]).retry()
    again = served.client.wait(status.id, 60)
    assert again.attempts == 2
    assert "delayed" not in adds_up(again)
    assert again.submitted_at is not None
    assert status.finished_at is not None
    assert again.submitted_at > status.finished_at


@pytest.mark.parametrize("stage", ["prepare", "forward", "deliver"])
def test_a_process_that_dies_with_it_delays_it(served: Served, stage: str) -> None:
    status = served.ends(f"{stage}=0.2 dies_in_{stage}={served.once(f'dies-{stage}')}")
    assert (status.state, status.attempts) == (State.SUCCEEDED, 2)
    found = adds_up(status)
    assert found["delayed"] >= 200


def test_a_task_that_kills_every_process_has_its_last_try_told(served: Served) -> None:
    status = served.ends("prepare=0.1 dies_in_forward=/always")
    assert status.state is State.FAILED
    found = adds_up(status)
    assert found["delayed"] >= 100
    assert found["prepare"] >= 100


def test_cancelled_while_it_waits(served: Served) -> None:
    nobody = served.client.submit("nobody", "x", check=False)
    later = served.client.submit("nobody", "x", delay_s=60, check=False)
    time.sleep(0.2)
    found, delayed = (adds_up(served.client.cancel(task)) for task in (nobody, later))
    assert list(found) == ["queued"]
    assert found["queued"] >= 200
    assert delayed["delayed"] >= 200
    assert delayed["queued"] == 0
    other = served.client.submit("nobody", "x", check=False)
    assert served.client.purge("nobody") >= 1
    assert list(adds_up(served.client.status(other))) == ["queued"]


def test_cancelled_while_it_runs(served: Served) -> None:
    first = served.client.submit(PIPELINE, "forward=0.5")
    task = served.client.submit(PIPELINE, "prepare=0.2 forward=20")
    deadline = time.monotonic() + 30
    while served.client.status(task).state is not State.RUNNING and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    status = served.client.cancel(task)
    assert status.state is State.CANCELLED
    found = adds_up(status)
    assert list(found) == ["queued", "prepare", "wait_device", "infer"]
    assert found["prepare"] >= 190
    assert found["infer"] >= 290
    adds_up(served.client.wait(first, 30))


def test_expired_in_the_worker(served: Served) -> None:
    busy = [served.client.submit(PIPELINE, "forward=0.4") for _ in range(12)]
    task = served.client.submit(PIPELINE, "x", expires_s=0.2, priority=9)
    for one in busy:
        adds_up(served.client.wait(one, 30))
    # Its time is over before a worker says so.
    deadline = time.monotonic() + 30
    while (status := served.client.status(task)).finished_at is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert status.state is State.EXPIRED
    assert list(adds_up(status)) == ["queued"]


def test_a_message_of_a_stock_celery_producer_has_no_submit(served: Served) -> None:
    with Celery(broker=served.url, backend=served.url, set_as_current=False) as app:
        sent = app.send_task("pipeq.infer", kwargs={"pipeline": PIPELINE, "inputs": "x"}, queue=PIPELINE)
        assert sent.get(timeout=30) == "x"
        status = served.client.status(sent.id)
        assert status.timing_ms is not None
        assert {"prepare", "infer", "deliver"} <= status.timing_ms.keys()
        assert "queued" not in status.timing_ms
        sent.forget()
        app.backend.client.close()


def test_every_task_of_this_worker_adds_up_for_its_reader(served: Served) -> None:
    """Also for those who read the record alone."""
    status = served.ends("x")
    with redis.Redis.from_url(served.url) as db:
        raw = db.get(keys.record_key(status.id))
    assert raw is not None
    assert b'"timing_ms":{"queued":' in raw


def test_another_worker_takes_what_one_gives_back_or_dies_with(tmp_path: Path, redis_url: str) -> None:
    with Client(redis_url) as client:
        with serving(tmp_path, redis_url) as first:
            first.wait_ready(client, PIPELINE)
            runs = client.submit(PIPELINE, "forward=30")
            deadline = time.monotonic() + 30
            while client.status(runs).state is not State.RUNNING and time.monotonic() < deadline:
                time.sleep(0.01)
            waits = client.submit_many(PIPELINE, ["x"] * 5, priority=0)
            time.sleep(0.5)
            first.process.send_signal(signal.SIGKILL)
            first.process.wait()
        client.cancel(runs)
        marker = tmp_path / "second"
        lost = client.submit(PIPELINE, f"forward=0.2 away_in_prepare={marker}")
        with serving(tmp_path, redis_url) as second:
            for task in waits:
                found = adds_up(client.wait(task, 60))
                # Some lay ready for the device, as if they ran, when the worker died.
                assert found["queued"] + found.get("delayed", 0) >= 500
            found = adds_up(client.wait(lost, 60))
            assert found["delayed"] > 0
            last = client.submit_many(PIPELINE, ["forward=0.1 prepare=0.05"] * 40, priority=0)
            time.sleep(0.3)
            second.stop()
        with serving(tmp_path, redis_url):
            for task in last:
                adds_up(client.wait(task, 60))


def test_the_try_that_a_worker_died_with_delays_it(tmp_path: Path, redis_url: str) -> None:
    with Client(redis_url) as client:
        with serving(tmp_path, redis_url, lease_s=LEASE_S) as first:
            first.wait_ready(client, PIPELINE)
            task = client.submit(PIPELINE, "forward=1")
            deadline = time.monotonic() + 30
            while client.status(task).state is not State.RUNNING and time.monotonic() < deadline:
                time.sleep(0.01)
            first.process.send_signal(signal.SIGKILL)
            first.process.wait()
        with serving(tmp_path, redis_url, lease_s=LEASE_S):
            status = client.wait(task, 90)
        assert (status.state, status.attempts) == (State.SUCCEEDED, 2)
        found = adds_up(status)
        assert found["delayed"] > 1000
        assert found["infer"] >= 1000
