"""Seen from outside: metrics, health and queues of real workers that load, serve, lose Redis, hang and stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery
from pipeq import Client
from pipeq.contract import keys
from pipeq.demo import embedded
from prometheus_client.parser import text_string_to_metric_families

from tests.ports import consecutive
from tests.waiting import until
from tests.worker_process import WorkerProcess, worker

CONFIG = """
[metrics]
port = {port}
hung_s = 3
[pipelines.constant]
[pipelines.slow]
task = "constant"
max_batch_size = 1
params = {{ seconds = 0.1 }}
"""
#: Celery calls this on its event loop, which then turns no more.
HANGS = """
import time
from celery import shared_task
from celery.signals import task_received

@shared_task(name="hang")
def task():
    pass

@task_received.connect(weak=False)
def hang(request=None, **_):
    if request.task_name == "hang":
        time.sleep(300)
"""

#: In the child only: it takes longer to load than two heartbeats are apart, so that one says that it loads.
LATE = """
import sys, time

if "pipeq_worker.children.main" in sys.orig_argv:
    time.sleep(2)
"""


class Page:
    """Reads a worker's pages."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=15) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def series(self) -> dict[tuple[str, ...], float]:
        """Name and labels' values, in the order of their names -> value."""
        status, text = self.get("/metrics")
        assert status == 200
        found = {}
        for family in text_string_to_metric_families(text):
            for one in family.samples:
                found[one.name, *(value for _, value in sorted(one.labels.items()))] = one.value
        return found


def importable(folder: Path) -> str:
    """A ``PYTHONPATH`` with this folder."""
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def server_pid(url: str) -> int:
    with redis.Redis.from_url(url) as db:
        return int(db.info("server")["process_id"])


@pytest.fixture
def config(tmp_path: Path) -> tuple[Path, Page]:
    page = Page(consecutive(2))
    path = tmp_path / "pipelines.toml"
    path.write_text(CONFIG.format(port=page.port))
    return path, page


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, WorkerProcess, Page]]:
    """One worker, which the tests take through its life in their order."""
    folder, page = tmp_path_factory.mktemp("served"), Page(consecutive(2))
    path = folder / "pipelines.toml"
    path.write_text(CONFIG.format(port=page.port))
    (folder / "sitecustomize.py").write_text(LATE)
    with (
        embedded.valkey() as url,
        worker(folder, url, "--config", path, PYTHONPATH=importable(folder), lease_s=3, sweep_s=1) as process,
        Client(url) as client,
    ):
        # It answers while it is loading, and is then live and not ready.
        until(lambda: page.get("/livez")[0])
        process.wait_ready(client, "constant", "slow")
        until(lambda: page.get("/readyz") == (200, "ok\n"))
        yield client, process, page


def test_tasks_batches_and_queues(served: tuple[Client, WorkerProcess, Page]) -> None:
    client, process, page = served
    ids = client.submit_many("constant", range(50), priority=0)
    bad = client.submit("constant", 1, params={"no_such_parameter": 1})
    with redis.Redis.from_url(client.redis_url) as db:
        db.lpush("constant", "no message", '{"headers": {"id": "unusable"}}')
    with Celery(broker=client.redis_url, backend=client.redis_url) as app:
        # A message that names a pipeline that nobody serves.
        message = {"pipeline": "nobody's", "inputs": 1}
        lost = app.send_task(keys.TASK_NAME, kwargs=message, queue="constant").id
    for task_id in (*ids, bad, "unusable", lost):
        client.wait(task_id, timeout_s=60)
    # They are counted just after their results are known.
    counted = {
        ("pipeq_tasks_total", "", "constant", "succeeded"): 50,
        ("pipeq_tasks_total", "invalid_params", "constant", "failed"): 1,
        ("pipeq_queue_dead_letters", "constant"): 4,
    }
    until(lambda: counted.items() <= page.series().items())
    found = page.series()
    assert found["pipeq_messages_refused_total", "constant"] >= 2
    assert found["pipeq_tasks_accepted_total", "constant"] == 51
    assert found["pipeq_tasks_accepted_total", "slow"] == 0
    assert found["pipeq_queue_wait_seconds_count", "constant"] >= 50
    assert found["pipeq_batch_items_sum", "constant"] == found["pipeq_batch_padded_cost_total", "constant"] == 50
    assert (
        0
        < found["pipeq_device_busy_seconds_total",]
        == pytest.approx(found["pipeq_batch_seconds_sum", "constant"], abs=0.01)
    )
    # The one with a wrong parameter ended while it was prepared.
    for stage, tasks in {"prepare": 51, "wait_device": 50, "infer": 50, "deliver": 50}.items():
        assert found["pipeq_stage_seconds_count", "constant", stage] == tasks
    assert not any("nobody's" in key for key in found)
    assert found["pipeq_process_pid", "0", "host"] == process.process.pid
    resident = sum(value for key, value in found.items() if key[0] == "pipeq_process_resident_memory_bytes")
    assert resident == pytest.approx(process.resident_mib() * 2**20, rel=0.2)
    assert found["pipeq_worker_live",] == found["pipeq_worker_ready",] == found["pipeq_redis_up",] == 1


def test_without_redis_it_lives_and_is_not_ready(served: tuple[Client, WorkerProcess, Page]) -> None:
    client, _, page = served
    pid = server_pid(client.redis_url)
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: page.get("/readyz") == (503, "Redis does not answer\n"))
        # For longer than a part may hang.
        deadline = time.monotonic() + 8
        while time.monotonic() < deadline:
            assert page.get("/livez") == (200, "ok\n")
            time.sleep(0.2)
        found = page.series()
        assert found["pipeq_redis_up",] == found["pipeq_worker_ready",] == 0
        assert not [key for key in found if key[0].startswith("pipeq_queue_waiting")]
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: page.get("/readyz") == (200, "ok\n"))
    assert client.wait(client.submit("constant", 1, check=False), timeout_s=60).error is None
    until(lambda: page.series()["pipeq_redis_up",] == 1)


def test_a_queue_that_it_cannot_take_from(served: tuple[Client, WorkerProcess, Page]) -> None:
    client, _, page = served
    with redis.Redis.from_url(client.redis_url) as db:
        db.set("slow", "no list")
        until(lambda: page.series()["pipeq_queue_deaf", "slow"] == 1)
        # It still takes from the other one.
        assert page.get("/readyz") == (200, "ok\n")
        db.set("constant", "no list")
        until(lambda: page.get("/readyz")[0] == 503)
        assert "no messages are taken from constant: the key 'constant': WRONGTYPE" in page.get("/readyz")[1]
        db.delete("slow", "constant")
    until(lambda: page.get("/readyz") == (200, "ok\n"))
    until(lambda: page.series()["pipeq_queue_deaf", "slow"] == 0)


def test_a_child_that_dies_is_seen(served: tuple[Client, WorkerProcess, Page]) -> None:
    client, process, page = served
    before = page.series()
    pid = int(before["pipeq_process_pid", "0", "device"])
    assert int(before["pipeq_process_pid", "0", "host"]) == process.process.pid != pid
    assert before["pipeq_process_resident_memory_bytes", "0", "device"] > 2**20
    ids = client.submit_many("slow", range(30), priority=0)
    until(lambda: page.series()["pipeq_running_tasks", "slow"])
    os.kill(pid, signal.SIGKILL)
    seen = []
    until(lambda: seen.append(page.get("/readyz")) or seen[-1][0] == 503)
    assert page.get("/livez") == (200, "ok\n")
    until(lambda: [queue.loading for queue in client.queues()] == [1, 1], 10)
    until(lambda: page.get("/readyz") == (200, "ok\n"))
    for task_id in ids:
        assert client.wait(task_id, timeout_s=60).error is None
    found = page.series()
    assert found["pipeq_child_deaths_total",] == before["pipeq_child_deaths_total",] + 1
    # The one that ran, none if it died between two batches, and one whose result was just being made.
    assert found["pipeq_task_deaths_total",] <= before["pipeq_task_deaths_total",] + 2
    assert found["pipeq_process_pid", "0", "device"] not in (pid, process.process.pid)
    assert found["pipeq_device_busy_seconds_total",] == pytest.approx(
        found["pipeq_batch_seconds_sum", "slow"] + found["pipeq_batch_seconds_sum", "constant"], abs=0.2
    )
    assert seen[-1][1].startswith("loading ")


def test_a_child_that_does_not_answer_is_replaced(served: tuple[Client, WorkerProcess, Page]) -> None:
    client, process, page = served
    before = page.series()
    pid = int(before["pipeq_process_pid", "0", "device"])
    os.kill(pid, signal.SIGSTOP)
    waits = client.submit("constant", 1)
    until(lambda: page.series().get(("pipeq_process_pid", "0", "device"), pid) != pid)
    assert f"process {pid} did not answer for 3 s, and was ended; it was working on no task" in process.text()
    assert client.wait(waits, timeout_s=60).error is None
    found = page.series()
    assert found["pipeq_child_deaths_total",] == before["pipeq_child_deaths_total",] + 1
    assert found["pipeq_task_deaths_total",] == before["pipeq_task_deaths_total",]
    assert page.get("/livez") == (200, "ok\n")


def test_backlog_and_time_to_drain(served: tuple[Client, WorkerProcess, Page]) -> None:
    client, _, page = served
    total = 700  # more than a worker takes at once
    ids = client.submit_many("slow", range(total), priority=0)
    client.wait(ids[20], timeout_s=60)
    until(lambda: page.series().get(("pipeq_queue_drain_seconds", "slow"), 0) > 0)
    found, (queue,) = page.series(), [one for one in client.queues() if one.pipeline == "slow"]
    left = found["pipeq_queue_waiting_messages", "slow"] + found["pipeq_queue_leased_messages", "slow"]
    assert found["pipeq_queue_waiting_messages", "slow"] > 0
    assert found["pipeq_queue_leased_messages", "slow"] > 0
    assert 0 < left < total
    assert queue.depth + queue.in_flight == pytest.approx(left, abs=60)
    assert queue.running >= 1
    # A tenth of a second each, one at a time.
    assert left / 10 * 0.9 <= found["pipeq_queue_drain_seconds", "slow"] < left
    assert queue.drain_s == pytest.approx(found["pipeq_queue_drain_seconds", "slow"], rel=0.3)
    assert found["pipeq_running_tasks", "slow"] >= 1
    # A measured promise: what has been worked off since then says how fast the worker is now.
    began, before = time.monotonic(), queue.depth + queue.in_flight
    time.sleep(5)
    (queue,) = (one for one in client.queues() if one.pipeline == "slow")
    now = queue.depth + queue.in_flight
    rate = (before - now) / (time.monotonic() - began)
    assert queue.drain_s == pytest.approx(now / rate, rel=0.6)


def test_stopping(served: tuple[Client, WorkerProcess, Page]) -> None:
    """The last one of the worker that the tests above share. What is left of the backlog goes back."""
    client, process, page = served
    client.submit_many("constant", range(2), params={"seconds": 6}, priority=0)
    until(lambda: page.series()["pipeq_running_tasks", "constant"])
    process.process.send_signal(signal.SIGTERM)
    until(lambda: page.get("/readyz") == (503, "the worker is stopping\n"))
    assert page.get("/livez") == (200, "ok\n")
    until(lambda: {one for queue in client.queues() for one in queue.deaf.values()}, 5)
    reasons = {one for queue in client.queues() for one in queue.deaf.values()}
    assert reasons == {"it is stopping: it ends the tasks that run"}
    assert process.stop() == 0
    assert page.get("/livez")[0] == 0


def test_an_event_loop_that_hangs_is_not_live(redis_url: str, tmp_path: Path, config: tuple[Path, Page]) -> None:
    path, page = config
    (tmp_path / "hangs.py").write_text(HANGS)
    with (
        worker(tmp_path, redis_url, "--config", path, "--include", "hangs", PYTHONPATH=importable(tmp_path)) as process,
        Client(redis_url) as client,
    ):
        process.wait_ready(client, "constant")
        until(lambda: page.get("/readyz")[0] == 200)
        hang(redis_url)
        until(lambda: page.get("/livez")[0] == 503)
        assert page.get("/livez")[1].startswith("Celery's event loop has not turned for ")
        found = page.series()
        assert found["pipeq_worker_live",] == found["pipeq_worker_ready",] == 0
        process.process.kill()


def hang(url: str) -> None:
    with Celery(broker=url, backend=url) as app:
        app.send_task("hang", queue="celery")


def test_each_device_has_a_port_of_its_own(redis_url: str, tmp_path: Path, config: tuple[Path, Page]) -> None:
    path, page = config
    other = Page(page.port + 1)
    with worker(tmp_path, redis_url, "--config", path, "--devices", "cpu,cpu"), Client(redis_url) as client:
        until(lambda: page.get("/readyz")[0] == other.get("/readyz")[0] == 200, 240)
        ids = client.submit_many("slow", range(60), priority=0)
        for task_id in ids:
            client.wait(task_id, timeout_s=60)
        until(
            lambda: (
                sum(one.series().get(("pipeq_tasks_total", "", "slow", "succeeded"), 0) for one in (page, other)) == 60
            ),
            20,
        )
        pids = {one.series()["pipeq_process_pid", "0", "host"] for one in (page, other)}
        assert len(pids) == 2
        assert page.series()["pipeq_queue_workers", "slow"] == 2


def test_a_port_that_is_taken_stops_the_start(redis_url: str, tmp_path: Path, config: tuple[Path, Page]) -> None:
    path, page = config
    with socket.create_server(("127.0.0.1", page.port)):
        with worker(tmp_path, redis_url, "--config", path) as process:
            assert process.process.wait(120) == 2
        assert f"metrics.port: cannot listen on 127.0.0.1:{page.port}" in process.text()


def test_loading_is_seen(client_of_nobody: Client, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as db:
        db.hset(keys.PIPELINES, "constant", "{}")
        now = time.time()
        db.zadd(keys.loading_key("constant"), {"w1": now, "w2": now, "gone": now - 60})
        db.zadd(keys.workers_key("constant"), {"w2": now, "w3": now})
        db.set(keys.worker_key("w3"), json.dumps({"in_flight": {}, "loading": ["constant"]}))
    (queue,) = client_of_nobody.queues()
    # w2 serves by now; w3 loads again.
    assert (queue.loading, queue.workers) == (2, 2)
    assert queue.deaf == {"w3": "it is loading the pipeline"}


@pytest.fixture
def client_of_nobody(redis_url: str) -> Iterator[Client]:
    with Client(redis_url) as client:
        yield client
