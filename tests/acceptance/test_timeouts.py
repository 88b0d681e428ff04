"""`timeout_s`: the time of a task is over at each stage. It ends at once, its neighbours do not notice, and work stops.

The worker's pipelines do what their inputs say (tests/evil.py). Its S3 server takes connections and never answers. A
generation whose time is over is in test_generation.py, and with a prepare process in test_bounds_lifted.py.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from celery import Celery
from pipeq import Client, Ref, State, TaskStatus
from pipeq.demo import embedded

from tests.evil import python_path
from tests.worker_process import WorkerProcess, worker

#: Seconds that tasks get here, and that may pass until their end is known.
TIMEOUT_S, SLACK_S = 0.5, 1.0


@dataclass
class Served:
    client: Client
    process: WorkerProcess
    url: str
    #: A task with ``timeout_s`` that waited for the worker.
    early: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("timeouts")
    config = folder / "pipelines.toml"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config.write_text(
            "prepare_threads = 2\nfetch_threads = 2\nstep_timeout_s = 4\n"
            f'[s3]\nendpoint_url = "http://127.0.0.1:{silent.getsockname()[1]}"\nregion = "us-east-1"\n'
            '[inputs]\nallow = ["s3://inputs/"]\n[results]\nallow = ["s3://results/"]\n'
            '[pipelines.constant]\n[pipelines.pictures]\ntask = "constant"\n'
            f'[pipelines.limited]\ntask = "constant"\ntimeout_s = {TIMEOUT_S}\n'
        )
        aws = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        with (
            embedded.valkey() as url,
            Client(url) as client,
            worker(folder, url, "--config", config, PYTHONPATH=python_path(folder), **aws) as process,
        ):
            early = client.submit("constant", "early", timeout_s=2 * SLACK_S, check=False)
            process.wait_ready(client, "constant", "pictures", "limited")
            yield Served(client, process, url, early)


def good(client: Client, count: int = 20) -> list[str]:
    return client.submit_many("constant", [f"good {at}" for at in range(count)], priority=0)


def assert_late(served: Served, task_id: str, stage: str, timeout_s: float = TIMEOUT_S) -> TaskStatus:
    """Waits for a task, and checks that its time was over, and where."""
    status = served.client.wait(task_id, timeout_s=60)
    assert status.state is State.FAILED, status
    assert status.error is not None
    assert (status.error.code, status.error.retryable) == ("timeout", False), status.error
    assert "timeout_s" in status.error.message
    assert stage in status.error.message
    return status


def assert_good(served: Served, ids: list[str]) -> None:
    found = list(served.client.as_completed(ids, timeout_s=60))
    assert [one.state for one in found] == [State.SUCCEEDED] * len(ids), served.process.text()
    assert {one.attempts for one in found} == {1}


def test_the_time_in_the_queue_does_not_count(served: Served) -> None:
    assert served.client.wait(served.early, timeout_s=60).state is State.SUCCEEDED


@pytest.mark.parametrize(
    ("pipeline", "inputs", "output", "stage"),
    [
        ("pictures", Ref("s3://inputs/silent.png"), None, "its inputs were being read"),
        ("pictures", Ref.from_bytes(b"sleeps 2 at fetch"), None, "its inputs were being read"),
        ("pictures", Ref.from_bytes(b"sleeps 2 at decode"), None, "its inputs were being prepared"),
        ("constant", "sleeps 2 at prepare", None, "its inputs were being prepared"),
        ("constant", "sleeps 2 at forward", None, "it was in a forward pass"),
        ("constant", [f"sleeps 0.1 at forward {at}" for at in range(2000)], None, "of 2000 inputs"),
        ("constant", "sleeps 2 at finish", None, "its result was being made"),
        ("constant", "stored", "s3://results/silent.json", "its result was being written to a store"),
    ],
)
def test_its_time_is_over(served: Served, pipeline: str, inputs: Any, output: str | None, stage: str) -> None:
    client = served.client
    before = good(client)
    began = time.monotonic()
    late = client.submit(pipeline, inputs, output=output, timeout_s=TIMEOUT_S)
    after = good(client)
    status = assert_late(served, late, stage if not isinstance(inputs, list) else "")
    took_s = time.monotonic() - began
    assert TIMEOUT_S <= took_s < TIMEOUT_S + SLACK_S
    assert_good(served, [*before, *after])
    (letter,) = client.dead(pipeline, ids=[late])
    assert (letter.code, letter.attempts) == ("timeout", status.attempts)
    assert status.attempts == 1
    # What a list would have gone on with for minutes is not done.
    if isinstance(inputs, list):
        assert_good(served, good(client, 1))
        assert time.monotonic() - began < 10


def test_it_waits_for_a_thread(served: Served) -> None:
    client = served.client
    busy = client.submit_many("constant", ["sleeps 1 at prepare"] * 2, priority=0)
    time.sleep(0.2)
    assert_late(served, client.submit("constant", "x", timeout_s=TIMEOUT_S), "it waited for a thread")
    assert_good(served, busy)


def test_it_waits_for_the_device(served: Served) -> None:
    client = served.client
    busy = client.submit("constant", "sleeps 1.2 at forward")
    time.sleep(0.2)
    late = client.submit("constant", "x", timeout_s=TIMEOUT_S)
    assert_late(served, late, "it waited for the device")
    assert_good(served, [busy])


def test_the_smaller_limit_holds(served: Served) -> None:
    client = served.client
    assert client.result(client.submit("limited", "good"), timeout_s=60) == "good"
    assert_late(served, client.submit("limited", "sleeps 2 at prepare", timeout_s=60), f"({TIMEOUT_S:g} s)")
    assert_late(served, client.submit("limited", "sleeps 2 at prepare", timeout_s=0.2), "(0.2 s)")


def test_a_stock_producer_says_it_in_a_header(served: Served) -> None:
    with Celery(broker=served.url, backend=served.url, set_as_current=False) as app:

        def send(inputs: str, timeout_s: Any) -> str:
            fields = {"pipeline": "constant", "inputs": inputs}
            sent = app.send_task("pipeq.infer", kwargs=fields, queue="constant", headers={"timeout_s": timeout_s})
            return str(sent.id)

        assert_late(served, send("sleeps 2 at prepare", TIMEOUT_S), "its inputs were being prepared")
        status = served.client.wait(send("x", 0), timeout_s=60)
        assert status.error is not None
        assert status.error.code == "invalid_message"


def test_a_step_that_holds_pythons_lock_ends_with_its_process_and_the_task_before_it(served: Served) -> None:
    client = served.client
    # Steps of tasks whose time was over have come to their end.
    assert_good(served, good(client, 1))
    began = time.monotonic()
    late = client.submit("constant", "spins at prepare", timeout_s=TIMEOUT_S)
    assert_late(served, late, "its inputs were being prepared")
    assert time.monotonic() - began < TIMEOUT_S + SLACK_S
    # The process is ended by `step_timeout_s`. Nobody is charged whose own step was not there.
    assert_good(served, good(client))
    assert "took over step_timeout_s" in served.process.text()
    assert served.process.process.poll() is None
    assert "it was working on no task" in served.process.text()
